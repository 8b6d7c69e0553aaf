"""Bad input to the published model: one line each, and nothing half-loaded stays."""

import gc
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity import Fixture, tiny_transformer, tiny_vae
from tests.test_diffusion_formulas import inputs_of
from tests.tiny_model import write_tiny_model
from worldstereo.errors import WeightsMissing
from worldstereo.generators.diffusion import DiffusionGenerator, SampleInputs, flow_unipc, sample

MEMORY = "worldstereo-memory"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(good, tmp_path) -> Path:
    """A copy to be spoilt."""
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def weights_alive() -> int:
    """Numbers in all parameters that anybody still holds in memory."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.nn.Parameter)]
    return sum(p.numel() for p in found if p.device.type != "meta")


def edit(folder: Path, **changes: object) -> None:
    path = folder / MEMORY / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def narrow_control(folder: Path) -> None:
    config = json.loads((folder / MEMORY / "config.json").read_text())
    edit(folder, controlnet_cfg=config["controlnet_cfg"] | {"dim": 16})


def another_model(folder: Path) -> None:
    save_file({"model.wte.weight": torch.zeros(7, 5)}, folder / MEMORY / "model.safetensors")


def another_width(folder: Path) -> None:
    path = folder / MEMORY / "model.safetensors"
    save_file(load_file(path) | {"blocks.1.ffn.net.2.bias": torch.zeros(47)}, path)


def another_base(folder: Path) -> None:
    path = folder / "base" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ffn_dim": 65}))


def cut(folder: Path) -> None:
    path = folder / MEMORY / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no(part: str):
    def spoil(folder: Path) -> None:
        shutil.rmtree(folder / "base" / part)

    return spoil


def truncated(part: str):
    def spoil(folder: Path) -> None:
        [path] = (folder / "base" / part).glob("*.safetensors")
        path.write_bytes(path.read_bytes()[:-64])

    return spoil


def described(part: str, file: str = "config.json", **changes: object):
    """A part of the base whose description fits nothing."""

    def spoil(folder: Path) -> None:
        path = folder / "base" / part / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


PREPROCESSOR = ("image_processor", "preprocessor_config.json")


@pytest.mark.parametrize(
    ("spoil", "variant", "words"),
    [
        (None, "worldstereo-big", "variant must be one of .* got 'worldstereo-big'"),
        (another_model, MEMORY, "has no tensor controlnet.*: it is not a WorldStereo checkpoint"),
        (narrow_control, MEMORY, "controlnet_cfg.dim is 16, but the weights have 32"),
        (another_width, MEMORY, r"net.2.bias has shape \(47,\), the config asks for \(48,\)"),
        (another_base, MEMORY, "ffn_dim is 65, but the weights have 64"),
        (cut, MEMORY, "is truncated"),
        (no("text_encoder"), MEMORY, "text encoder in .* cannot be loaded"),
        (no("image_encoder"), MEMORY, "image encoder in .* cannot be loaded"),
        (no("image_processor"), MEMORY, "image encoder in .* cannot be loaded"),
        (no("vae"), MEMORY, "base model in .* cannot be loaded"),
        (no("scheduler"), MEMORY, "base model in .* cannot be loaded"),
        (truncated("text_encoder"), MEMORY, "text encoder in .* cannot be loaded"),
        (truncated("vae"), MEMORY, "base model in .* cannot be loaded"),
        (described("vae", latents_std=["x"]), MEMORY, "base model in .* cannot be loaded"),
        (described("text_encoder", feed_forward_proj=7), MEMORY, "text encoder in .*describe no"),
        (described("image_encoder", hidden_act="zz"), MEMORY, "image encoder in .* cannot be"),
        (described("tokenizer", "tokenizer_config.json", pad_token={}), MEMORY, "text encoder in"),
        (described(*PREPROCESSOR, size={"height": 3}), MEMORY, "image encoder in .*describe no"),
        (described(*PREPROCESSOR, crop_size=10**9), MEMORY, "crop_size must be at most 16384"),
        (described(*PREPROCESSOR, image_std=[0, 1, 1]), MEMORY, "image_mean and image_std are not"),
    ],
)
def test_a_load_that_fails_keeps_nothing(folder, spoil, variant, words):
    """Counted while the error itself is still held, as the app's jobs hold theirs."""
    if spoil is not None:
        spoil(folder)
    before = weights_alive()
    with pytest.raises((ValueError, WeightsMissing), match=words) as caught:
        DiffusionGenerator.from_pretrained(folder, variant, device="cpu")
    assert "\n" not in str(caught.value)
    assert weights_alive() == before


def test_a_closed_generator_holds_nothing(good):
    before = weights_alive()
    generator = DiffusionGenerator.from_pretrained(good, MEMORY, device="cpu")
    assert weights_alive() > before
    generator.close()
    assert weights_alive() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference_video": None, "ref_index": None}, "references must be 1 to 8, got 0"),
        ({"reference_video": 9, "ref_index": 9}, "references must be 1 to 8, got 9"),
        ({"ref_index": 2}, r"one slot for each of 3 references, got \(2,\)"),
        ({"ref_index": torch.tensor([0, 1, 3])}, r"whole slots 0 \.\. 2 for 4 keyframes.*3\]"),
        ({"ref_index": torch.tensor([-1, 1, 2])}, r"whole slots 0 \.\. 2 for 4 keyframes"),
        ({"ref_index": torch.tensor([0.0, 1.0, 2.0])}, "whole slots"),
        ({"camera_qt_ref": torch.zeros(1, 2, 7)}, r"camera_qt_ref must be \(1, 3, 7\)"),
        ({"camera_qt": torch.zeros(1, 3, 7)}, r"camera_qt must be \(1, 4, 7\)"),
        ({"image": torch.zeros(1, 3, 48, 40)}, "multiples of 16, got 48 x 40"),
        ({"render_video": torch.zeros(1, 3, 3, 48, 32)}, "render_mask must be"),
        ({"prompt_embeds": torch.zeros(1, 77, 32)}, "prompt_embeds must hold 512 tokens, got 77"),
        ({"negative_prompt_embeds": None}, "guidance 5.0 needs negative_prompt_embeds"),
    ],
)
def test_sampling_refuses_before_anything_runs(changes, words):
    inputs, name = inputs_of("memory")
    count = changes.get("reference_video")
    if isinstance(count, int):
        changes = changes | {"reference_video": torch.zeros(1, 3, count, 48, 32)}
    if isinstance(changes.get("ref_index"), int):
        changes = changes | {"ref_index": torch.zeros(changes["ref_index"], dtype=torch.int64)}
    part, vae, reported = vars(inputs) | changes, tiny_vae(), []
    with pytest.raises(ValueError, match=words) as caught:
        sample(
            tiny_transformer(name),
            vae,
            SampleInputs(**part),
            scheduler=flow_unipc(),
            latent_cond_mode="full_vae",
            on_step=lambda *step: reported.append(step),
        )
    assert "\n" not in str(caught.value) and reported == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference_latent": None}, "references must be 1 to 8, got 0"),
        ({"reference_latent": 0}, "references must be 1 to 8, got 0"),
        ({"reference_latent": 9}, "references must be 1 to 8, got 9"),
        (
            {"ref_index": torch.tensor([0, 3])},
            r"whole slots 0 \.\. 2 for 4 keyframes, got \[0, 3\]",
        ),
        ({"camera_qt_ref": 3}, r"camera_qt_ref must be \(B, 2, 7\), one vector per frame"),
        ({"camera_qt": 5}, r"camera_qt must be \(B, 4, 7\)"),
        ({"render_latent": None}, "render_latent and render_mask are required"),
        ({"encoder_hidden_states": torch.zeros(1, 77, 32)}, "must hold 512 text tokens"),
    ],
)
def test_the_model_refuses_what_would_be_spread_wrongly(changes, words):
    """Pose vectors for another number of frames, for one, would divide evenly and mean nothing."""
    given = Fixture("worldstereo_refs_tiny").below("input/")
    for name, value in changes.items():
        if isinstance(value, int):
            shape = list(given[name].shape)
            shape[2 if name == "reference_latent" else 1] = value
            value = torch.zeros(shape)
        given[name] = value
    with pytest.raises(ValueError, match=words):
        tiny_transformer("worldstereo_refs_tiny")(**given)
