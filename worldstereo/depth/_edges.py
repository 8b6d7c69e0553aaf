"""Depth edges: what a model draws as a slope between near and far is a step in the world.

Lifted as it is, the slope becomes a curtain of points that hangs between two surfaces.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_STEP = 0.06  # of inverse depth: a smaller step makes no curtain worth the risk
_STEEP = 0.6  # of the range three times as far: a plane has a third


def clean_edges(
    depth: Float[Tensor, "1 H W"], color: Float[Tensor, "3 H W"] | None = None, *, rounds: int = 2
) -> Float[Tensor, "1 H W"]:
    """Every pixel of a slope takes the depth of its near or its far side.

    In inverse depth a plane is linear: within a radius it spans a third of what it spans within
    three. A step spans the same. Such pixels take the side that is nearer to them in depth and,
    where `color` is given, looks more like them. Unknown depth (0) stays.
    """
    near = depth[0].detach().cpu().numpy().astype(np.float32)
    known = near > 0
    if not known.any() or min(near.shape) < 8:
        return depth
    near = np.where(known, 1 / np.maximum(near, 1e-9), 0)
    r = max(2, round(max(near.shape) / 200))
    guide = None
    if color is not None:
        guide = color.detach().cpu().permute(1, 2, 0).numpy().astype(np.float32)
    for _ in range(rounds):
        low, high = _extremes(near, known, r)
        low3, high3 = _extremes(near, known, 3 * r)
        span, wide = high - low, high3 - low3
        step = known & (span > _STEP * high) & (span > _STEEP * wide)
        if not step.any():
            break
        kernel = np.ones((2 * r + 1, 2 * r + 1), np.uint8)
        edge = known & (cv2.dilate(step.astype(np.uint8), kernel) > 0) & (wide > _STEP * high3)
        to_high = near - low3 > high3 - near
        if guide is not None:
            to_high = _by_color(near, low3, high3, guide, edge, r, to_high)
        side = np.where(to_high, high3, low3)
        near = np.where(edge & (np.abs(near - side) > 0.1 * wide), side, near)
    out = np.where(known, 1 / np.maximum(near, 1e-9), 0).astype(np.float32)
    return torch.from_numpy(out)[None].to(depth)


def _extremes(near: np.ndarray, known: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray]:
    kernel = np.ones((2 * r + 1, 2 * r + 1), np.uint8)
    low = cv2.erode(np.where(known, near, np.inf).astype(np.float32), kernel)
    return np.where(np.isfinite(low), low, 0), cv2.dilate(near, kernel)


def _by_color(
    near: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    guide: np.ndarray,
    edge: np.ndarray,
    r: int,
    to_high: np.ndarray,
) -> np.ndarray:
    """The side whose mean colour is nearer, where the two sides differ in colour at all."""
    size = (4 * r + 1, 4 * r + 1)
    middle = (low + high) / 2
    sides = []
    for mask in (near < middle - 0.25 * (high - low), near > middle + 0.25 * (high - low)):
        weight = mask.astype(np.float32)
        total = cv2.boxFilter(weight, -1, size, normalize=False)
        mean = cv2.boxFilter(guide * weight[..., None], -1, size, normalize=False)
        sides.append((mean / np.maximum(total, 1e-6)[..., None], total > 2))
    (far_color, far_there), (near_color, near_there) = sides
    to_far = np.linalg.norm(guide - far_color, axis=-1)
    to_near = np.linalg.norm(guide - near_color, axis=-1)
    apart = np.linalg.norm(far_color - near_color, axis=-1)
    clear = edge & far_there & near_there & (apart > 0.1) & (np.abs(to_far - to_near) > 0.3 * apart)
    return np.where(clear, to_near < to_far, to_high)
