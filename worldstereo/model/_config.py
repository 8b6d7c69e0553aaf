"""The three mappings a `WorldStereo` is built from: known keys, aliases, defaults, checks."""

import difflib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch

from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.model._process import PREDICTIONS, SCHEDULES

BACKBONES = ("compact", "wan", "warp")
DEFAULTS: dict[str, Any] = {
    "backbone": "compact",
    "num_layers": 8,
    "hidden_dim": 512,
    "num_heads": 8,
    "channels": 3,
    "patch_size": 8,
    "temporal_attention": True,
    "max_frames": 128,
    "num_timesteps": 1000,
    "noise_schedule": "linear",
    "prediction_type": "epsilon",
    "vae": None,
}
ALIASES = {
    "num_layers": ("layers", "depth"),
    "hidden_dim": ("dim", "hidden_size", "model_dim", "embed_dim"),
    "num_heads": ("heads", "attention_heads", "num_attention_heads"),
    "channels": ("in_channels",),
    "max_frames": ("num_frames", "temporal_length"),
    "num_timesteps": ("timesteps", "num_train_timesteps"),
    "noise_schedule": ("beta_schedule", "schedule"),
}
WAN_KEYS = ("base_model", "controlnet_cfg")
"""Keys of a published variant's own config: they choose the backbone by themselves."""
WHOLE = ("num_layers", "hidden_dim", "num_heads", "channels", "patch_size", "max_frames")
MAX_VALUES = {"num_layers": 200, "hidden_dim": 16384, "num_heads": 512, "channels": 64,
           "patch_size": 256, "max_frames": 10_000}  # fmt: skip


def backbone_config(given: Any) -> dict[str, Any]:
    """The complete `vdm_config`.

    Raises:
        TypeError: not a mapping, or a value of another type.
        ValueError: an unknown key (the nearest known one is named), a key twice, a bad value.
    """
    given = _mapping("vdm_config", given)
    if "backbone" not in given and any(key in given for key in WAN_KEYS):
        return {"backbone": "wan", **given}
    if given.get("backbone") == "wan":
        return dict(given)
    names = {name: name for name in DEFAULTS}
    names |= {alias: name for name, aliases in ALIASES.items() for alias in aliases}
    complete = dict(DEFAULTS)
    seen: dict[str, str] = {}
    for key, value in given.items():
        if key not in names:
            raise ValueError(_unknown("vdm_config", key, list(names)))
        name = names[key]
        if name in seen:
            raise ValueError(f"vdm_config names {name} twice, as {seen[name]!r} and {key!r}.")
        seen[name], complete[name] = key, value
    if "prediction_type" not in seen and complete["noise_schedule"] == "flow":
        complete["prediction_type"] = "flow"
    _check_backbone(complete)
    return complete


def memory_config(name: str, kind: type, given: Any) -> dict[str, Any]:
    """The complete keyword arguments of a memory; `{}` gives its defaults.

    Raises:
        TypeError, ValueError: as `backbone_config`; values are checked by the memory itself.
    """
    given = _mapping(name, given)
    parameters = inspect.signature(kind).parameters
    for key in given:
        if key not in parameters:
            raise ValueError(_unknown(name, key, list(parameters)))
    complete = {key: parameter.default for key, parameter in parameters.items()} | dict(given)
    return {k: str(v) if isinstance(v, torch.dtype) else v for k, v in complete.items()}


def check_widths(vdm: dict[str, Any], geometry: dict[str, Any], stereo: dict[str, Any]) -> None:
    """Raises `ValueError` where a memory's features are of a width the backbone cannot take."""
    del geometry
    least = 48 if vdm["backbone"] == "warp" else 3
    if isinstance(stereo["feature_dim"], int) and stereo["feature_dim"] < least:
        raise ValueError(
            f"spatial_memory_config.feature_dim must be at least {least} for the "
            f'"{vdm["backbone"]}" backbone, got {stereo["feature_dim"]}.'
        )


def _mapping(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a mapping of settings, got {type(given).__name__}.")
    for key in given:
        if not isinstance(key, str):
            raise TypeError(f"{name}: keys must be names, got {key!r}.")
    given = dict(given)
    plain = {k: str(v) if isinstance(v, torch.dtype) else v for k, v in given.items()}
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must hold plain numbers, texts, lists and None.") from None
    return given


def _unknown(name: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.4)
    way_out = f"did you mean {near[0]!r}?" if near else f"{', '.join(known)} are known."
    return f"{name}: {key[:40]!r} is not known; {way_out}"


def _check_backbone(c: dict[str, Any]) -> None:
    for name, options in (
        ("backbone", BACKBONES),
        ("noise_schedule", SCHEDULES),
        ("prediction_type", PREDICTIONS),
    ):
        if c[name] not in options:
            raise ValueError(
                f"vdm_config.{name} must be one of {', '.join(options)}, got {c[name]!r}."
            )
    for name in (*WHOLE, "num_timesteps"):
        value, most = c[name], MAX_VALUES.get(name, 1_000_000)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"vdm_config.{name} must be a whole number, got {value!r}.")
        if not 1 <= value <= most:
            raise ValueError(f"vdm_config.{name} must be 1 to {most}, got {value}.")
    if c["hidden_dim"] % c["num_heads"]:
        raise ValueError(
            f"vdm_config.num_heads must divide hidden_dim {c['hidden_dim']}, got {c['num_heads']}."
        )
    if not isinstance(c["temporal_attention"], bool):
        raise TypeError(
            f"vdm_config.temporal_attention must be True or False, got {c['temporal_attention']!r}."
        )
    if c["channels"] != 3:
        raise ValueError(f"vdm_config.channels must be 3, those of images; got {c['channels']}.")
    if c["vae"] is not None and not isinstance(c["vae"], str):
        raise TypeError(f"vdm_config.vae must be a folder or None, got {type(c['vae']).__name__}.")
    if c["prediction_type"] == "epsilon" and c["noise_schedule"] == "flow":
        raise ValueError(
            'vdm_config.prediction_type "epsilon" says nothing at the first step of "flow", which '
            'is pure noise. Use "flow", "sample" or "v_prediction".'
        )
    if c["noise_schedule"] != "flow" and c["prediction_type"] == "flow":
        raise ValueError(
            f'vdm_config.prediction_type "flow" belongs to noise_schedule "flow", '
            f"got {c['noise_schedule']!r}."
        )


MEMORIES = {
    "global_memory_config": GlobalGeometricMemory,
    "spatial_memory_config": SpatialStereoMemory,
}
