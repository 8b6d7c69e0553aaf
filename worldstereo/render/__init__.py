"""Z-buffered point splatting: points x cameras -> color, depth, mask, index.

A point covers the pixel its projection falls into and, with radius R, the square of half width R
around it, clipped by the image; a centre outside the image still covers what its square reaches.
The nearest point wins a pixel, the lower index among equals. A square splat of constant radius is a
one-pixel z-buffer followed by a (2R+1)^2 minimum filter of the packed words `depth bits << 32 |
index`, so the filter costs per pixel and never per point. Splats of their own radius are drawn in a
few half widths, each with its own z-buffer and filter, and the nearest of all is seen.

On the CPU compiled kernels draw (`_render/compiled.py`), elsewhere torch operators
(`_render/plain.py`); their results are the same bits.

Source: Schuetz et al. 2021, "Rendering point clouds with compute shaders", arXiv:2104.07526.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldstereo._core.compiled import has_compiler
from worldstereo.cameras import Cameras
from worldstereo.render._plain import RenderResult, render_torch

if TYPE_CHECKING:
    from worldstereo._core.morton import MortonTree

__all__ = ["RenderResult", "check_render", "render_points", "render_torch", "tree_bytes"]


def render_points(
    points: Tensor,
    colors: Tensor | None,
    cameras: Cameras,
    radius: int = 1,
    near: float | int = 0.0,
    block_index: "MortonTree | None" = None,
    radii: Tensor | None = None,
) -> RenderResult:
    """Splats a cloud into one camera or into each camera of a batch (T,).

    Args:
        points: (N, 3) float32, world.
        colors: (N, 3) in [0, 1]; without them seen pixels are grey (0.5).
        radius: half width of the square footprint in pixels (0: one pixel, 1: 3x3).
        near: points at this depth or nearer are not drawn; a camera inside a point sees past it.
        block_index: `_morton.MortonTree` of the same points, to skip what is out of view; else
            one is built when the same tensor is drawn often, and kept as long as it.
        radii: (N,) float32, scene units: a point that spans more pixels than `radius` is drawn as
            wide as it is, up to 25 pixels. Without them all splats have the same width.

    Raises:
        ValueError: wrong shapes, a negative radius.
    """
    check_render(points, colors, cameras, radius, near)
    if radii is not None and (radii.shape != points.shape[:1] or radii.dtype != torch.float32):
        raise ValueError(
            f"radii must be ({len(points)},) float32, got {tuple(radii.shape)} {radii.dtype}."
        )
    if points.device.type != "cpu" or not has_compiler() or cameras.batch_shape == (0,):
        return render_torch(points, colors, cameras, radius, near, radii)
    from worldstereo.render._compiled import render_compiled

    return render_compiled(points, colors, cameras, radius, near, block_index, radii)


def tree_bytes(points: Tensor) -> int:
    """Bytes of the order of these points that is kept because they are drawn often."""
    if not has_compiler():
        return 0
    from worldstereo.render._compiled import kept_tree

    tree = kept_tree(points)
    return 0 if tree is None else tree.nbytes()


def check_render(
    points: Tensor, colors: Tensor | None, cameras: Cameras, radius: int, near: float | int
) -> None:
    """The argument checks of `render_points`."""
    if not isinstance(cameras, Cameras):
        raise TypeError(f"cameras must be Cameras, got {type(cameras).__name__}.")
    if points.ndim != 2 or points.shape[-1] != 3 or points.dtype != torch.float32:
        raise ValueError(
            f"points must be (N, 3) float32, got {tuple(points.shape)} {points.dtype}."
        )
    if colors is not None and (colors.shape != points.shape or colors.dtype != torch.float32):
        raise ValueError(
            f"colors must be {tuple(points.shape)} float32 like the points, "
            f"got {tuple(colors.shape)} {colors.dtype}."
        )
    if len(cameras.batch_shape) > 1:
        raise ValueError(
            f"cameras must be one camera or a batch (T,), got batch shape {cameras.batch_shape}."
        )
    if isinstance(radius, bool) or not isinstance(radius, int) or radius < 0:
        raise ValueError(f"radius must be a whole number of pixels >= 0, got {radius!r}.")
    if not near >= 0:
        raise ValueError(f"near must be a depth >= 0, got {near!r}.")
