"""Checkpoints: complete, partial, truncated, foreign; and what loading costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_model import split_off_backbone, write_base, write_variant
from worldstereo.errors import Cancelled, WeightsMissing
from worldstereo.generators.diffusion import load_transformer
from worldstereo.generators.diffusion.checkpoint import Weights, read_header
from worldstereo.generators.diffusion.config import VARIANTS, derive_control, parse_config

MEMORY = "worldstereo-memory"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    write_base(folder)
    return folder


@pytest.fixture
def folder(tmp_path, base) -> Path:
    """One variant whose config names the base beside it."""
    torch.manual_seed(2)
    (tmp_path / "base").symlink_to(base)
    write_variant(tmp_path / MEMORY, MEMORY)
    return tmp_path


def edit(folder: Path, **entries: object) -> None:
    path = folder / MEMORY / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def edit_control(folder: Path, **entries: object) -> None:
    config = json.loads((folder / MEMORY / "config.json").read_text())
    edit(folder, controlnet_cfg=config["controlnet_cfg"] | entries)


def refused(folder: Path, match: str, variant: str = MEMORY, **options: object) -> None:
    with pytest.raises((WeightsMissing, ValueError), match=match) as caught:
        load_transformer(folder, variant, **options)
    assert "\n" not in str(caught.value)


def test_a_complete_file_loads_without_base_weights(folder):
    model, config, report = load_transformer(folder, MEMORY)
    expected = load_file(folder / MEMORY / "model.safetensors")
    assert set(model.state_dict()) == set(expected)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert report.missing == report.unexpected == () and report.tensors == len(expected)
    assert report.bytes == sum(t.numel() * 4 for t in expected.values())
    assert "Apache-2.0" in str(report) and config.nframe == 5
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.rope.freqs_cos.device.type == "cpu"  # tables are no weights and are real


def test_a_partial_file_takes_its_backbone_from_the_base(folder, tmp_path):
    own_base = tmp_path / "own"
    write_base(own_base)
    complete = split_off_backbone(folder / MEMORY, own_base)
    model, _, report = load_transformer(folder, MEMORY, base=own_base)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, complete[name]), name
    assert "blocks.0.attn1.to_q.weight" in report.missing and report.tensors == len(complete)
    refused(folder, "no .safetensors file; the base model needs one")


def test_unexpected_and_dead_tensors_are_reported(folder):
    path = folder / MEMORY / "model.safetensors"
    tensors = load_file(path) | {"mystery.weight": torch.zeros(3)}
    save_file(tensors, path)
    edit_control(folder, ref_embedding=True)
    _, _, report = load_transformer(folder, MEMORY)
    assert report.unexpected == ("mystery.weight",)
    assert report.missing == ("ref_index_embedding.weight",)  # read by nothing: zeros will do


def test_half_precision_keeps_what_diffusers_keeps(folder):
    model, _, _ = load_transformer(folder, MEMORY, dtype=torch.bfloat16)
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    full = {name for name, dtype in types.items() if dtype == torch.float32}
    assert types["blocks.1.attn1.to_q.weight"] == types["patch_embedding.weight"] == torch.bfloat16
    for name in ("scale_shift_table", "blocks.0.scale_shift_table", "blocks.2.norm2.weight"):
        assert name in full
    assert "condition_embedder.time_embedder.linear_1.weight" in full
    assert all(name in full for name in types if name.startswith(("controlnet.", "camera_emb")))


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"dim": 48}, "controlnet_cfg.dim is 48, but the weights have 32"),
        ({"ffn_dim": 64}, "controlnet_cfg.ffn_dim is 64, but the weights have 48"),
        ({"num_layers": 1}, "controlnet_cfg.num_layers is 1, but the weights have 2"),
        ({"mid_channels": 24}, "controlnet_cfg.mid_channels is 24, but the weights have 16"),
        ({"add_channels": 1}, "controlnet_cfg.add_channels is 1, but the weights have 7"),
        ({"mask_downsample": 4}, "controlnet_cfg.mask_downsample is 4, but the weights have 1"),
        ({"conv_out_dim": 64}, "controlnet_cfg.conv_out_dim is 64, but the weights have 48"),
        ({"camera_embedding_dim": 6}, "camera_embedding_dim is 6, but the weights have 7"),
        ({"num_heads": 5}, "num_heads must divide dim 32"),
        ({"num_heads": "two"}, "num_heads must be a whole number >= 1, got 'two'"),
        ({"num_layers": 10**9}, "num_layers must be at most 1024, got 1000000000"),
        ({"mid_channels": 10**400}, "at most 131072, got a number of more than 18 digits"),
        ({"camera_embedding_dim": "7"}, "camera_embedding_dim must be a whole number"),
        ({"update_ref": []}, r"update_ref must be true or false, got \[\]"),
    ],
)
def test_a_config_that_disagrees_is_refused_by_name(folder, entries, match):
    edit_control(folder, **entries)
    refused(folder, match)


def test_config_entries_are_checked(folder):
    edit(folder, latent_cond_mode="none")
    refused(folder, "latent_cond_mode must be one of full_vae, first_frame_only, got 'none'")
    edit(folder, latent_cond_mode="full_vae", scale_map=[[480, 770]])
    refused(folder, r"scale_map sizes must be multiples of 16 up to 16384, got \[\(480, 770\)\]")
    edit(folder, scale_map=None, nframe=0)
    refused(folder, "nframe must be a whole number >= 1, got 0")
    edit(folder, nframe=10**6)
    refused(folder, "nframe must be at most 1000, got 1000000")
    edit(folder, nframe=5, scale_map=[[float("inf"), 16]])
    refused(folder, "scale_map must be a list")
    edit(folder, scale_map=[[16 * 10**9, 16]])
    refused(folder, "multiples of 16 up to 16384")
    edit(folder, scale_map=None, negative_prompt={"a": 1})
    refused(folder, "negative_prompt must be a text")
    edit(folder, negative_prompt=None)
    distilled = VARIANTS["worldstereo-memory-dmd"]
    entries = json.loads((folder / MEMORY / "config.json").read_text())
    for change, said in (
        ({"gen_shift": float("nan")}, "gen_shift must be a number above 0 and up to 1000, got nan"),
        ({"gen_shift": 1e300}, "gen_shift must be"),
        ({"dmd_steps": 10**30}, "dmd_steps must be at most 1000"),
        ({"dmd_end_steps": True}, "dmd_end_steps must be a whole number"),
        ({"base_model": "a\0b"}, "base_model must be a hub id or a folder"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_config(entries | change, distilled)
    path = folder / MEMORY / "config.json"
    path.write_text("[" * 200_000)
    refused(folder, "nested too deeply")
    path.write_text('{"nframe": 1, "nframe": 2}')
    refused(folder, "a name appears twice")
    del entries["base_model"]
    path.write_text(json.dumps(entries))
    refused(folder, "lacks base_model; worldstereo-memory needs")
    path.write_text("[1]")
    refused(folder, "must hold a JSON object, got list")
    path.write_text("{")
    refused(folder, "is not valid JSON")
    path.unlink()
    refused(folder, "config.json cannot be read")


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number >= 1, got 0"),
        ({"num_attention_heads": "two"}, "num_attention_heads must be a whole number"),
        ({"num_attention_heads": float("nan")}, "num_attention_heads must be .* got nan"),
        ({"num_layers": 10**9}, "num_layers must be at most 1024"),
        ({"rope_max_seq_len": 10**9}, "rope_max_seq_len must be at most 16384"),
        ({"patch_size": [1, 2]}, "patch_size must be three whole numbers"),
        ({"patch_size": [1, 0, 2]}, "patch_size must be a whole number >= 1"),
        ({"eps": float("inf")}, "eps must be a number between 0 and 1"),
        ({"qk_norm": "x"}, "qk_norm must be"),
        ({"cross_attn_norm": "yes"}, "cross_attn_norm must be true or false"),
    ],
)
def test_a_base_config_that_builds_no_transformer_is_refused(folder, entries, match):
    good = folder.joinpath("base", "transformer", "config.json").read_text()
    spoilt = folder / "spoilt" / "transformer"  # the fixture's base is shared
    spoilt.mkdir(parents=True)
    (spoilt / "config.json").write_text(json.dumps(json.loads(good) | entries))
    refused(folder, match, base=folder / "spoilt")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("blocks.99999999.ffn.x", "not numbered from 0 on"),
        ("blocks.x.y", "not numbered from 0 on"),
        ("controlnet.controlnet_blocks.", "not numbered from 0 on"),
    ],
)
def test_blocks_are_counted_only_where_they_follow_each_other(folder, name, match):
    """Or a name alone would ask for a hundred million layers."""
    path = folder / MEMORY / "model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(1)}, path)
    refused(folder, match)


def test_a_tensor_with_too_few_axes_is_refused(folder):
    path = folder / MEMORY / "model.safetensors"
    for name in ("controlnet.controlnet_mask_embedding.mask_proj.0.weight", "proj_out.weight"):
        good = load_file(path)
        save_file(good | {name: torch.zeros(())}, path)
        refused(folder, rf"tensor {name} has shape \(\)")
        save_file(good, path)


def test_missing_truncated_and_foreign_files_are_one_line(folder, tmp_path):
    path = folder / MEMORY / "model.safetensors"
    good = path.read_bytes()
    refused(folder, "variant must be one of worldstereo-camera", variant="worldstereo-xl")
    refused(folder, "holds no worldstereo-camera", variant="worldstereo-camera")
    refused(tmp_path / "nowhere", "neither a folder here nor a hub id")
    path.write_bytes(good[:-1000])
    refused(folder, r"is truncated: \d+ bytes are promised, the file has \d+")
    path.write_bytes(good[:500])
    refused(folder, "is truncated: its header alone needs")
    path.write_bytes(b"PK\x03\x04" + good)
    refused(folder, "pickled checkpoint, which is never opened")
    path.write_bytes(b"\x80\x02" + good)
    refused(folder, "pickled checkpoint, which is never opened")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(folder, "Git LFS pointer")
    path.write_bytes(b"hello")
    refused(folder, "is not a safetensors file")
    path.write_bytes(good[:8] + b"?" * (len(good) - 8))
    refused(folder, "no safetensors header")
    path.unlink()
    refused(folder, "model.safetensors cannot be read")
    save_file({"transformer.wte.weight": torch.zeros(5, 7)}, path)
    refused(folder, "has no tensor controlnet.*: it is not a WorldStereo checkpoint")
    path.write_bytes(good)
    tensors = load_file(path)
    del tensors["controlnet.proj_out.1.bias"]
    save_file(tensors, path)
    refused(folder, "lacks 1 tensors that no base model has, first controlnet.proj_out.1.bias")
    tensors = load_file(path) | {"controlnet.proj_out.1.bias": torch.zeros(47)}
    save_file(tensors, path)
    refused(folder, r"controlnet.proj_out.1.bias has shape \(47,\), the config asks for \(48,\)")


def test_a_memory_file_is_no_camera_file_and_the_other_way_round(folder, tmp_path):
    (folder / MEMORY).rename(folder / "worldstereo-camera")
    path = folder / "worldstereo-camera" / "config.json"
    config = json.loads(path.read_text())
    refused(folder, "holds camera_embedding", variant="worldstereo-camera")
    (folder / "worldstereo-camera").rename(folder / MEMORY)
    tensors = load_file(folder / MEMORY / "model.safetensors")
    tensors = {k: v for k, v in tensors.items() if not k.startswith("camera_embedding")}
    save_file(tensors, folder / MEMORY / "model.safetensors")
    assert config["controlnet_cfg"]["main_camera_embedding"]
    refused(folder, "main_camera_embedding is True, but the weights have False")


def test_nothing_half_loaded_stays(folder):
    """A cancelled or failed load leaves no weights alive, and the error is what was raised."""
    held = {}

    def stop(done: int, total: int, message: str) -> None:
        if done == 20:
            raise Cancelled("stopped")

    def place(model):
        held["model"] = model
        return lambda name, tensor: tensor

    with pytest.raises(Cancelled):
        load_transformer(folder, MEMORY, on_step=stop, place=place)
    assert all(p.device.type == "meta" for p in held["model"].parameters())


def test_widths_come_from_the_weights(folder):
    shapes = Weights.open(folder / MEMORY / "model.safetensors").shapes
    config = json.loads((folder / MEMORY / "config.json").read_text())["controlnet_cfg"]
    for name, value in derive_control(shapes).items():
        if name != "ref_embedding":
            assert config[name] == value
    assert set(VARIANTS) == {"worldstereo-camera", MEMORY, "worldstereo-memory-dmd"}


def test_headers_that_lie_are_refused(tmp_path):
    def write(header: object, size: int = 64) -> Path:
        text = json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
        return path

    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    assert read_header(write({"a": entry, "__metadata__": {}}))[0].shape == (2, 3)
    for change, match in (
        ({"shape": [2, 4]}, "claims 24 bytes"),
        ({"data_offsets": [0, 4000], "shape": [1000]}, "truncated"),
        ({"data_offsets": [-8, 16]}, "claims"),
        ({"dtype": "F31"}, "damaged"),
        ({"shape": ["x"]}, "damaged"),
        ({"data_offsets": [0]}, "damaged"),
        ({"data_offsets": [0.0, 24.0]}, "damaged"),
        ({"shape": [float("inf")]}, "damaged"),
        ({"shape": [10**400, 0]}, "damaged"),
        ({"dtype": []}, "damaged"),
    ):
        with pytest.raises(WeightsMissing, match=match):
            read_header(write({"a": entry | change}))
    with pytest.raises(WeightsMissing, match="b shares bytes with another tensor"):
        read_header(write({"a": entry, "b": entry | {"data_offsets": [20, 44]}}))
    path = write({"a": entry})
    for text in (b'{"a":' + path.read_bytes()[13:-64] + b',"a":1}', b"[" * 200_000):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(WeightsMissing, match="JSON is damaged"):
            read_header(path)


def test_offline_says_so_and_a_download_asks_for_two_files_only(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def snapshot(repo, *, allow_patterns, local_files_only):
        asked.append((repo, allow_patterns, local_files_only))
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("owner/name", r"offline, and not in the cache.*--model PATH")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    refused("owner/name", "not reachable, and not in the cache")
    files = [f"{MEMORY}/config.json", f"{MEMORY}/model.safetensors"]
    assert asked == [("owner/name", files, True), ("owner/name", files, False)]


def test_loading_costs_the_destination_and_one_tensor(tmp_path):
    """A sparse 0.4 GB file: the peak above the start is the weights, a tensor, and little else."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-m", "bench._load_peak", str(tmp_path), "0.4"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    found = json.loads(out.stdout.splitlines()[-1])
    assert found["destination"] > 0.35e9
    over = found["peak"] - found["destination"]
    assert over <= found["largest"] + 80e6, found
