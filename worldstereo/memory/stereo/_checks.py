"""Argument checks of the spatial-stereo memory: one line naming argument, value and a way out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.memory._checks import WrongType

ALIASES = {
    "source_camera": "camera",
    "frame_index": "frame",
    "surface_normal": "normal",
    "pyramid_level": "level",
}


def check_metadata(
    metadata: Mapping[str, Any] | None, n: int, many: int, device: torch.device
) -> dict[str, Tensor]:
    """One row per entry of every kind of metadata; -1 or zeros where nothing was given."""
    shapes = {"camera": (), "frame": (), "level": ()}
    shapes |= {"pixel": (2,), "normal": (3,), "seen_by": (many,)}
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, Mapping):
        raise WrongType(f"metadata must be a dict or None, got {type(metadata).__name__}.")
    named = {ALIASES.get(str(key), str(key)): value for key, value in metadata.items()}
    for key in named:
        if key not in shapes:
            raise ValueError(f"metadata[{key!r}] is unknown; accepted are {', '.join(shapes)}.")
    return {
        name: _metadata_column(name, named.get(name), (n, *shape), device)
        for name, shape in shapes.items()
    }


def _metadata_column(
    name: str, given: Any, wanted: tuple[int, ...], device: torch.device
) -> Tensor:
    real = name in ("pixel", "normal")
    if given is None:
        given = 0.0 if real else -1
    if isinstance(given, Tensor) and given.device.type != device.type:
        raise ValueError(
            f"metadata[{name!r}] is on {given.device}, the memory on {device}; move one of them."
        )
    try:
        value = torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise WrongType(
            f"metadata[{name!r}] must hold numbers, got {type(given).__name__}."
        ) from None
    if not real and (value.is_floating_point() or value.is_complex()):
        raise WrongType(f"metadata[{name!r}] must hold whole numbers, got {value.dtype}.")
    if tuple(value.shape) not in ((), wanted[1:], wanted):
        raise ValueError(f"metadata[{name!r}] must have shape {wanted}, got {tuple(value.shape)}.")
    if not real and value.numel() > 0 and int(value.abs().max()) >= 2**31:
        raise ValueError(f"metadata[{name!r}] must fit into 32 bits, got {int(value.abs().max())}.")
    value = value.to(torch.float32 if real else torch.int32)
    if real and not bool(torch.isfinite(value).all()):
        raise ValueError(f"metadata[{name!r}] must hold finite numbers only.")
    return value.expand(wanted)


def check_cameras(cameras: object, batch: int, device: torch.device) -> None:
    """One camera, which serves all, or one per batch item."""
    if not isinstance(cameras, Cameras):
        raise WrongType(f"camera_params must be Cameras, got {type(cameras).__name__}.")
    if cameras.batch_shape not in ((), (1,), (batch,)):
        raise ValueError(
            f"camera_params must be one camera or a batch of {batch}, "
            f"got batch shape {cameras.batch_shape}."
        )
    if cameras.c2w.device.type != device.type:
        raise ValueError(
            f"camera_params are on {cameras.c2w.device}, the memory on {device}; move one of them."
        )


def check_view(cameras: object, occluder: object, batch: int, device: torch.device) -> list[Tensor]:
    """Checks cameras and occluder; returns the occluder's depth per batch item, inf in holes."""
    check_cameras(cameras, batch, device)
    if occluder is None:
        return [torch.zeros(0, 0, dtype=torch.float64, device=device)] * batch
    depth, mask = getattr(occluder, "depth", None), getattr(occluder, "mask", None)
    if not isinstance(depth, Tensor) or not isinstance(mask, Tensor):
        raise WrongType(f"occluder must be a RenderResult, got {type(occluder).__name__}.")
    fits = depth.ndim >= 3 and depth.shape[-3] == 1 and depth.shape == mask.shape
    if not fits or tuple(depth.shape[:-3]) not in ((), (1,), (batch,)):
        raise ValueError(
            f"occluder.depth and .mask must have shape (1, h, w) or ({batch}, 1, h, w), "
            f"got {tuple(depth.shape)} and {tuple(mask.shape)}."
        )
    if depth.device.type != device.type:
        raise ValueError(
            f"occluder is on {depth.device}, the memory on {device}; move one of them."
        )
    shown = torch.where((mask > 0) & (depth > 0), depth.double(), torch.inf)
    shown = shown.reshape(-1, *depth.shape[-2:])
    return [shown[b if len(shown) > 1 else 0] for b in range(batch)]


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise WrongType(f"{name} must be True or False, got {value!r}.")


def check_number(name: str, value: object, least: float, most: float = float("inf")) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongType(f"{name} must be a number, got {value!r}.")
    if not least <= value <= most or value == float("inf"):
        limits = f"at least {least:g}" if most == float("inf") else f"within [{least:g}, {most:g}]"
        raise ValueError(f"{name} must be {limits} and finite, got {value}.")
    return value
