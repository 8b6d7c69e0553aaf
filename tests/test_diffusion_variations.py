"""Widths, sizes, counts and schedules that no fixture has, against plain formulas."""

from typing import Any

import pytest
import torch

from tests.parity import Fixture, difference, tiny_transformer
from tests.plain_model import velocity
from tests.tiny_model import scramble
from worldstereo.generators.diffusion import WorldStereoModel, WorldStereoRefSModel

MODEL = 2e-5

BASE: dict[str, Any] = {
    "heads": 2, "d": 12, "layers": 2, "ffn": 40, "text": 16, "image": 14, "freq": 16,
    "dim": 24, "c_heads": 2, "c_layers": 1, "c_ffn": 32, "mid": 8, "md": 1, "add": 7,
    "B": 1, "F": 3, "h": 4, "w": 6, "tokens": 9, "N": 0, "slots": (), "timestep": (413.0,),
}  # fmt: skip
VARIATIONS: dict[str, dict[str, Any]] = {
    "one keyframe, one token": {"F": 1, "h": 2, "w": 2},
    "odd rows and columns of tokens": {"h": 6, "w": 10, "F": 2},
    "upright": {"h": 10, "w": 4},
    "many keyframes": {"F": 9, "h": 2, "w": 4},
    "three heads of eight": {"heads": 3, "d": 8, "c_heads": 3, "dim": 36},
    "one head": {"heads": 1, "d": 30, "c_heads": 1},
    "heads narrower than six": {"heads": 4, "d": 4, "dim": 16, "c_heads": 4},
    "control as wide as the backbone": {"dim": 24, "heads": 2, "d": 12},
    "control narrower": {"dim": 16, "c_heads": 2},
    "control in every block": {"c_layers": 2},
    "control longer than the backbone": {"c_layers": 3},
    "wide mask convolution": {"mid": 32},
    "mask alone": {"add": 1},
    "mask at frame rate": {"md": 4, "F": 4, "h": 4},
    "three clips at once": {"B": 3, "timestep": (1000.0, 0.0, 37.5)},
    "one reference": {"N": 1, "slots": (0,)},
    "eight references": {"N": 8, "slots": (0, 1, 2, 3, 4, 5, 6, 7), "F": 9, "h": 2, "w": 4},
    "references beside the last keyframes": {"N": 3, "slots": (1, 3, 4), "F": 6},
    "two clips, five references": {"B": 2, "N": 5, "slots": (0, 1, 2, 3, 5), "F": 7, "h": 2,
                                   "timestep": (250.0, 750.0)},
    "references stay": {"N": 2, "slots": (0, 2), "F": 4, "layers": 3, "update": False},
    "no pose vectors": {"N": 2, "slots": (0, 1), "pose": False},
    "no pose embedding": {"N": 2, "slots": (0, 1), "embed": False},
    "three heads, upright, references": {"N": 2, "slots": (0, 1), "heads": 3, "d": 14, "h": 6,
                                         "dim": 36, "c_heads": 3},
}  # fmt: skip


def case_of(name: str) -> tuple[torch.nn.Module, dict, dict, dict]:
    """A model, the two configs, and random inputs of one variation."""
    c = BASE | VARIATIONS[name]
    width = c["heads"] * c["d"]
    config = {
        "num_attention_heads": c["heads"],
        "attention_head_dim": c["d"],
        "text_dim": c["text"],
        "freq_dim": c["freq"],
        "ffn_dim": c["ffn"],
        "num_layers": c["layers"],
        "image_dim": c["image"],
        "added_kv_proj_dim": width,
    }
    control = {
        "conv_out_dim": width,
        "dim": c["dim"],
        "num_heads": c["c_heads"],
        "num_layers": c["c_layers"],
        "ffn_dim": c["c_ffn"],
        "time_embed_dim": width,
        "add_channels": c["add"],
        "mid_channels": c["mid"],
        "mask_downsample": c["md"],
        "update_ref": c.get("update", True),
        "main_camera_embedding": bool(c["N"]) and c.get("embed", True),
        "camera_embedding_dim": 7,
    }
    made = torch.Generator().manual_seed(sum(map(ord, name)))
    torch.manual_seed(sum(map(ord, name)))
    model = (WorldStereoRefSModel if c["N"] else WorldStereoModel)(**config, controlnet_cfg=control)
    scramble(model)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made)

    B, F, h, w = c["B"], c["F"], c["h"], c["w"]
    maps = F if c["md"] == 1 else c["md"] * (F - 1) + 1
    given = {
        "hidden_states": noise(B, 36, F, h, w),
        "timestep": torch.tensor(c["timestep"]),
        "encoder_hidden_states": noise(B, 512, c["text"]),
        "encoder_hidden_states_image": noise(B, c["tokens"], c["image"]),
        "render_latent": noise(B, 16, F, h, w),
        "render_mask": (noise(B, 1, maps, 8 * h, 8 * w) > 0.3).float(),
        "camera_embedding": noise(B, 6, maps, 8 * h, 8 * w)[:, : c["add"] - 1],
    }
    if c["N"]:
        given |= {
            "reference_latent": noise(B, 36, c["N"], h, w),
            "ref_index": torch.tensor(c["slots"]),
        }
        if c.get("pose", True):
            given |= {"camera_qt": noise(B, F, 7), "camera_qt_ref": noise(B, c["N"], 7)}
    return model.eval(), config, control, given


@torch.no_grad()
@pytest.mark.parametrize("name", VARIATIONS)
def test_the_transformers_are_what_the_formulas_say(name):
    model, config, control, given = case_of(name)
    found = model(**given).sample
    expected = velocity(model.state_dict(), config, control, given)
    assert float(expected.std()) > 0.1
    assert difference(found, expected) <= MODEL * max(1.0, float(expected.abs().max()) / 4.4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["worldstereo_camera_tiny", "worldstereo_refs_tiny"])
def test_the_formulas_are_those_of_the_recorded_model(name):
    """The oracle of the test above, against the fixtures."""
    fixture = Fixture(name)
    info = fixture.info
    found = velocity(
        fixture.below("state_dict/"),
        info["transformer_config"],
        info["controlnet_cfg"],
        fixture.below("input/"),
    )
    assert difference(found, fixture["output/sample"]) <= MODEL


@torch.no_grad()
def test_half_precision_stays_close_to_float32():
    """bf16 weights as loading leaves them: norms, tables and the control branch in float32."""
    from worldstereo.generators.diffusion.loading import set_parameter, target_type

    name = "worldstereo_refs_tiny"
    model, given = tiny_transformer(name), Fixture(name).below("input/")
    expected = model(**given).sample
    for label, parameter in list(model.named_parameters()):
        kind = target_type(label, torch.bfloat16, torch.float32)
        set_parameter(model, label, parameter.to(kind))
    half = {"hidden_states", "encoder_hidden_states", "encoder_hidden_states_image"}
    found = model(**{k: v.bfloat16() if k in half else v for k, v in given.items()}).sample
    assert found.dtype == torch.bfloat16
    assert difference(found, expected) < 0.05 * float(expected.abs().max())
