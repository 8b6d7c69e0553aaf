"""Which pixels of two views show the same surface: dense, at keypoints, or by patches.

Dense and patch pairs follow from depth and cameras: a pixel's point lands in the other view where
that view's depth agrees. Keypoints follow from appearance alone (RootSIFT, distinctive and mutual),
so they also serve views whose poses are not to be trusted.

Sources: Lowe 2004 (ratio); Arandjelović & Zisserman 2012 (RootSIFT).
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo.scene import View

KINDS = ("dense", "keypoints", "patches")
AGREES = 0.02  # of the depth: the same surface
DISTINCTIVE = 0.8  # the best match is at most so far, beside the second
PATCH = 16  # pixels


class PixelPairs(NamedTuple):
    """Row i of both is one surface point."""

    a: Float[Tensor, "P 2"]
    """Pixels (u, v) of the first view, the first pixel's centre at (0.5, 0.5)."""
    b: Float[Tensor, "P 2"]
    confidence: Float[Tensor, "P"]
    """In [0, 1]: how well depths (or descriptors) agree, times the stored confidence of depth."""


def correspondences(view_a: View, view_b: View, kind: str = "dense") -> PixelPairs:
    """Pixels of two views that show the same surface point.

    Args:
        kind: "dense" for every pixel with depth, "patches" for the middles of 16-pixel patches,
            "keypoints" for SIFT points, which need no depth.

    Raises:
        ValueError: an unknown kind. TypeError: not views.
    """
    for name, view in (("view_a", view_a), ("view_b", view_b)):
        if not isinstance(view, View):
            raise TypeError(f"{name} must be a View, got {type(view).__name__}.")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if kind == "keypoints":
        return _keypoints(view_a, view_b)
    a = view_a.cameras
    if kind == "dense":
        pixels = a.pixel_grid()
    else:
        rows, columns = max(1, a.height // PATCH), max(1, a.width // PATCH)
        pixels = a.pixel_grid(rows, columns)
    depth, sure_a = _at(view_a, pixels)
    known = depth > 0
    pixels, depth, sure_a = pixels[known], depth[known], sure_a[known]
    there, z = view_b.cameras.project(a.unproject(pixels, depth))
    size = torch.tensor([view_b.width, view_b.height])
    inside = (z > 0) & (there >= 0).all(dim=1) & (there < size).all(dim=1)
    pixels, there, z, sure_a = (column[inside] for column in (pixels, there, z, sure_a))
    seen, sure_b = _at(view_b, there)
    off = (seen - z).abs() / z
    same = (seen > 0) & (off <= AGREES)
    confidence = (1 - off / AGREES).clamp_min(0) * torch.minimum(sure_a, sure_b)
    return PixelPairs(pixels[same], there[same], confidence[same])


def _at(view: View, pixels: Float[Tensor, "n 2"]) -> tuple[Tensor, Tensor]:
    """Depth and its confidence at the pixels."""
    u = pixels[:, 0].floor().long().clamp(0, view.width - 1)
    v = pixels[:, 1].floor().long().clamp(0, view.height - 1)
    return view.depth[0, v, u], view.confidence[0, v, u]


def _keypoints(view_a: View, view_b: View) -> PixelPairs:
    (at_a, of_a), (at_b, of_b) = _described(view_a), _described(view_b)
    nothing = torch.zeros(0, 2)
    if len(of_a) < 2 or len(of_b) < 2:
        return PixelPairs(nothing, nothing, torch.zeros(0))
    alike = of_a @ of_b.T  # unit rows: the larger, the nearer
    best = alike.topk(2, dim=1)
    ratio = ((1 - best.values[:, 0]) / (1 - best.values[:, 1]).clamp_min(1e-9)).clamp_min(0).sqrt()
    to = best.indices[:, 0]
    mutual = alike.argmax(dim=0)[to] == torch.arange(len(to))
    kept = mutual & (ratio < DISTINCTIVE)
    return PixelPairs(at_a[kept], at_b[to[kept]], 1 - ratio[kept])


def _described(view: View) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 128"]]:
    """SIFT keypoints and RootSIFT descriptors of unit length."""
    grey = cv2.cvtColor(view.color_u8.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)
    points, found = cv2.SIFT_create(nfeatures=2000).detectAndCompute(grey, None)  # pyright: ignore
    if found is None:
        return torch.zeros(0, 2), torch.zeros(0, 128)
    root = np.sqrt(found / np.maximum(found.sum(axis=1, keepdims=True), 1e-9))
    at = torch.tensor([point.pt for point in points], dtype=torch.float32) + 0.5
    return at, torch.from_numpy(root.astype(np.float32))
