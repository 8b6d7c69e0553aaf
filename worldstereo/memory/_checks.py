"""Argument checks shared by the memories: one line naming the argument, the value and a way out."""

import numpy as np
import torch
from torch import Tensor

from worldstereo.cameras import Cameras

SOURCES = 2**31 - 1


class WrongType(TypeError, ValueError):
    """Another type or dtype than the one accepted. Both a `TypeError` and a `ValueError`."""


def check_tensor(
    name: str,
    value: object,
    shape: tuple[int | str, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A tensor of the given shape (names stand for any size), dtype and device, and finite.

    Raises:
        TypeError: not a tensor, or another dtype (also a `ValueError`).
        ValueError: another shape or device, or an entry that is not finite.
    """
    wanted = "(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
    kind = str(dtype).removeprefix("torch.")
    if not isinstance(value, Tensor):
        raise WrongType(f"{name} must be a {kind} tensor {wanted}, got {type(value).__name__}.")
    if value.dtype != dtype:
        given = str(value.dtype).removeprefix("torch.")
        raise WrongType(
            f"{name} must be of {kind}, got {given}. Convert it with .to(torch.{kind})."
        )
    fits = value.ndim == len(shape) and all(
        isinstance(n, str) or n == m for n, m in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(value.shape)}.")
    if value.device.type != device.type or (
        value.device.index is not None
        and device.index is not None
        and value.device.index != device.index
    ):
        raise ValueError(f"{name} is on {value.device}, the memory on {device}; move one of them.")
    if dtype.is_floating_point and value.numel() > 0:
        finite = torch.isfinite(value)
        if not bool(finite.all()):
            at = (~finite).nonzero()[0].tolist()
            place = ", ".join(str(i) for i in at)
            raise ValueError(
                f"{name}[{place}] is {float(value[tuple(at)])}; only finite numbers are accepted."
            )
    return value.detach()


def check_range(name: str, value: Tensor, low: float, high: float) -> None:
    """Every entry within [low, high].

    Raises:
        ValueError: one is not; the first is named.
    """
    outside = (value < low) | (value > high)
    if bool(outside.any()):
        at = outside.nonzero()[0].tolist()
        place = ", ".join(str(i) for i in at)
        raise ValueError(
            f"{name}[{place}] is {float(value[tuple(at)]):.6g}; it must be within "
            f"[{low:g}, {high:g}]."
        )


def check_whole(name: str, value: object, least: int) -> int:
    """A whole number of at least `least`.

    Raises:
        TypeError: not a whole number (also a `ValueError`).
        ValueError: too small.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongType(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return value


def check_option(name: str, value: object, options: tuple[str, ...]) -> None:
    """One of the named options.

    Raises:
        ValueError: another one.
    """
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}.")


def check_pose(camera_pose: Tensor) -> None:
    """Refuses a pose that `Cameras` would refuse, or one of another shape."""
    if not isinstance(camera_pose, Tensor):
        raise WrongType(f"camera_pose must be a tensor (4, 4), got {type(camera_pose).__name__}.")
    if tuple(camera_pose.shape) != (4, 4):
        raise ValueError(f"camera_pose must have shape (4, 4), got {tuple(camera_pose.shape)}.")
    if not camera_pose.is_floating_point():
        raise WrongType(f"camera_pose must be a tensor of floats, got {camera_pose.dtype}.")
    try:
        Cameras(torch.eye(3).to(camera_pose), camera_pose, 1, 1)
    except ValueError as error:
        raise ValueError(f"camera_pose: {error}") from None


def check_threshold(threshold: float | int) -> float:
    """A finite distance of at least 0."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise WrongType(f"merge_threshold must be a number, got {threshold!r}.")
    if not (np.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"merge_threshold must be a distance of at least 0, got {threshold}.")
    return float(threshold)


def check_source(source: int | Tensor, n: int) -> np.ndarray:
    """One integer for all points, or one for each."""
    if isinstance(source, Tensor):
        if source.is_floating_point() or source.dtype == torch.bool or source.is_complex():
            raise WrongType(f"source must hold whole numbers, got {source.dtype}.")
        if tuple(source.shape) not in ((), (n,)):
            raise ValueError(f"source must be one number or ({n},), got {tuple(source.shape)}.")
        values = source.detach().cpu().numpy().astype(np.int64)
    elif isinstance(source, bool) or not isinstance(source, int):
        raise WrongType(f"source must be a whole number, got {source!r}.")
    else:
        values = np.asarray(source, np.int64) if abs(source) <= SOURCES else np.asarray([2**32])
    if values.size and int(np.abs(values).max()) > SOURCES:
        raise ValueError(f"source must be within +-{SOURCES}.")
    return np.broadcast_to(values, (n,)).astype(np.int32)
