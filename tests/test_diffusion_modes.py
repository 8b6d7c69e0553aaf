"""Memory modes, what the preflight says of them, and the oddities of the encoders."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.parity import Fixture, difference, tiny_transformer, tiny_vae
from tests.tiny_model import write_base
from worldstereo.errors import WeightsMissing
from worldstereo.generators.diffusion import MODES, Card, ClipSize, ModelSize, preflight
from worldstereo.generators.diffusion.encoders import clean, load_image_encoder, load_text_encoder
from worldstereo.generators.diffusion.memory_modes import GIB, apply_mode, choose_mode, smaller_mode

FULL_CONTROL = {
    "conv_out_dim": 5120,
    "dim": 1024,
    "num_heads": 16,
    "num_layers": 20,
    "ffn_dim": 4096,
    "time_embed_dim": 5120,
    "add_channels": 7,
    "mid_channels": 256,
    "mask_downsample": 1,
    "main_camera_embedding": True,
    "camera_embedding_dim": 7,
}


@pytest.fixture(scope="module")
def full_size() -> ModelSize:
    from accelerate import init_empty_weights

    from worldstereo.generators.diffusion import WorldStereoRefSModel

    with init_empty_weights(include_buffers=False):
        model = WorldStereoRefSModel(controlnet_cfg=FULL_CONTROL)
    names = [name for name, _ in model.named_parameters()]
    own = sum(name.startswith("controlnet.") for name in names)
    pose = sum(name.startswith("camera_embedding.") for name in names)
    assert (len(names) - own - pose, own) == (1303, 490)  # tensors of the published checkpoint
    size = ModelSize.of(model)
    assert size.control == pytest.approx(0.998e9, rel=1e-3)
    assert size.linear + size.other == pytest.approx(16.395e9 + 0.998e9 + 0.0394e9, rel=1e-3)
    return size


@pytest.mark.parametrize("mode", ["full", "group", "sequential"])
def test_offloading_changes_no_bit(mode):
    name = "worldstereo_refs_tiny"
    model, given = tiny_transformer(name), Fixture(name).below("input/")
    with torch.no_grad():
        expected = model(**given).sample
        apply_mode(model, MODES[mode], torch.device("cpu"))
        assert torch.equal(model(**given).sample, expected)


def test_8_bit_float_weights_stay_close_and_are_stored_narrow():
    name = "worldstereo_refs_tiny"
    model, given = tiny_transformer(name), Fixture(name).below("input/")
    with torch.no_grad():
        expected = model(**given).sample
        apply_mode(model, MODES["float8"], torch.device("cpu"))
        found = model(**given).sample
    weight = model.blocks[0].ffn.net[0].proj.weight
    assert weight.dtype == torch.float8_e4m3fn
    assert model.patch_embedding.weight.dtype == torch.float32
    assert 0 < difference(found, expected) < 0.5 * float(expected.std())


def test_preflight_offers_what_fits(full_size):
    clip = ClipSize()
    fits = {
        gib: [f.mode for f in preflight(full_size, clip, Card("card", gib * GIB)) if f.fits]
        for gib in (80, 48, 24, 16, 4)
    }
    assert fits[80][0] == "full" and "full" in fits[48] and fits[24][0] == "group"
    assert set(fits[16]) == {"group", "sequential"} and fits[4] == []
    for fit in preflight(full_size, clip, Card("card", 16 * GIB)):
        assert fit.fits == (fit.why == "") and fit.seconds > 0
    with pytest.raises(WeightsMissing, match="no memory mode fits card with 4 GiB for 21 frames"):
        choose_mode(full_size, clip, Card("card", 4 * GIB))
    assert choose_mode(full_size, clip, Card("card", 80 * GIB)) in ("full", "group")
    larger = ClipSize(height=704, width=1280)
    a, b = (preflight(full_size, c, Card("card", 80 * GIB))[0] for c in (clip, larger))
    assert b.gib > a.gib and b.seconds > 2 * a.seconds  # attention grows with the square


def test_a_smaller_mode_follows_each():
    assert smaller_mode("full") == "float8"
    assert smaller_mode("sequential") is None


def test_tiles_decode_about_what_whole_frames_do():
    vae = tiny_vae()
    latents = torch.randn(1, 16, 2, 12, 18, generator=torch.Generator().manual_seed(0))
    whole = vae.decode(latents)
    vae.vae.enable_tiling(
        tile_sample_min_height=64,
        tile_sample_min_width=64,
        tile_sample_stride_height=48,
        tile_sample_stride_width=48,
    )
    tiled = vae.decode(latents)
    assert tiled.shape == whole.shape
    assert float((tiled - whole).abs().mean()) < 0.1 * float(whole.std()) + 0.05


def test_text_is_cleaned_and_cut_at_its_true_length(tmp_path):
    torch.manual_seed(0)
    write_base(tmp_path)
    encode = load_text_encoder(tmp_path / "text_encoder", tmp_path / "tokenizer")
    assert clean("a &amp;amp; b\n\n  c ") == "a & b c"
    states = encode("a room with table")
    assert states.shape == (1, 512, 32)
    assert bool((states[0, :5] != 0).any(-1).all())  # four words and the end mark
    assert float(states[0, 5:].abs().max()) == 0
    assert encode.encoder.encoder.embed_tokens is encode.encoder.shared
    with pytest.raises(WeightsMissing, match="text encoder .* cannot be loaded") as caught:
        load_text_encoder(tmp_path / "nothing", tmp_path / "tokenizer")
    assert "\n" not in str(caught.value)


def test_the_start_picture_reaches_clip_without_rescaling(tmp_path):
    """The release's oddity, kept by default, against transformers' own processor."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    write_base(tmp_path)
    encode = load_image_encoder(tmp_path / "image_encoder", tmp_path / "image_processor")
    pixels = np.random.default_rng(3).integers(0, 255, (47, 71, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    for rescale in (False, True):
        encode.rescale = rescale
        theirs = CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_rescale=rescale
        )(picture, return_tensors="np").pixel_values
        found = encode.pixels(picture)
        assert difference(found, torch.from_numpy(np.array(theirs))) <= 1e-4
        assert (float(found.max()) > 100) == (not rescale)
    encode.rescale = False
    states = encode.encoder(encode.pixels(picture), output_hidden_states=True).hidden_states
    assert torch.equal(encode(picture), states[-2])


def test_8_bit_integer_weights_stay_close():
    pytest.importorskip("torchao", reason="the optional package torchao is not installed")
    name = "worldstereo_refs_tiny"
    model, given = tiny_transformer(name), Fixture(name).below("input/")
    with torch.no_grad():
        expected = model(**given).sample
        apply_mode(model, MODES["int8"], torch.device("cpu"))
        found = model(**given).sample
    assert 0 < difference(found, expected) < 0.2 * float(expected.std())
