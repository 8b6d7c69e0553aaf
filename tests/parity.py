"""Reads the parity fixtures: weights, inputs and outputs of the release, recorded at tiny sizes."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "fixtures" / "parity"


class Fixture:
    """One pair of files: tensors by name, and what their JSON says."""

    def __init__(self, name: str) -> None:
        self.tensors = load_file(FOLDER / f"{name}.safetensors")
        self.info: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        self.cases: dict[str, Any] = self.info.get("cases", {})

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def below(self, prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; sizes must agree."""
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max())


def tiny_transformer(name: str, **control: Any) -> torch.nn.Module:
    """The transformer of a model fixture with its recorded weights."""
    from worldstereo.generators.diffusion import WorldStereoModel, WorldStereoRefSModel

    fixture = Fixture(name)
    kind = WorldStereoRefSModel if "refs" in name else WorldStereoModel
    model = kind(
        **fixture.info["transformer_config"],
        controlnet_cfg=fixture.info["controlnet_cfg"] | control,
    )
    model.load_state_dict(fixture.below("state_dict/"), strict=True)
    return model.eval()


def tiny_vae() -> Any:
    from diffusers import AutoencoderKLWan

    from worldstereo.generators.diffusion import KeyframeVae

    fixture = Fixture("keyframe_vae")
    vae = AutoencoderKLWan(**fixture.info["vae_config"]).eval()
    vae.load_state_dict(fixture.below("state_dict/"))
    return KeyframeVae(vae)
