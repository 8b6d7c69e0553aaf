"""Depth of what was painted: walls go on, a learned model says more, seen space stays free.

The guide's fill continues planes and the background into holes. A learned depth of the painted
picture replaces it where it agrees with what is known around. Then every painted surface is pushed
along its ray out of the space that a given view looked through.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras
from worldstereo.depth import DepthEstimator, LayoutDepth, align, sky_mask
from worldstereo.scene import DepthKind, View
from worldstereo.views.fusion import FREE, harmonic_fill

TRUSTED = 0.08
"""Median relative error on the known part up to which a learned depth is used."""
PUSH, PUSHES = 1.04, 60
"""How a surface leaves seen space: this factor, so many times; beyond that it has no depth."""
FAR = 4.0
"""Depth over the picture's median from which a known sky is far."""
SEEN = (DepthKind.MEASURED, DepthKind.REPROJECTED, DepthKind.STEREO)


def painted_depth(
    color: Float[Tensor, "3 H W"],
    depth: Float[Tensor, "1 H W"],
    known: Bool[Tensor, "1 H W"],
    hole: Bool[Tensor, "1 H W"],
    camera: Cameras,
    views: Sequence[View],
    estimator: DepthEstimator | None = None,
) -> Float[Tensor, "1 H W"]:
    """Depth of the hole's pixels, the rest as given.

    Args:
        color: painted.
        depth: known, and filled in the hole.
        known: where the depth is known rather than filled.
        estimator: a learned one; a layout guess is not asked.
    """
    out = depth
    learned = _learned(color, depth, known, camera, estimator)
    if learned is not None:
        out = torch.where(hole, learned, out)
    out = _sky(color, out, known, hole)
    return out_of_free_space(out, hole, camera, views)


def _learned(
    color: Tensor, depth: Tensor, known: Tensor, camera: Cameras, estimator: DepthEstimator | None
) -> Tensor | None:
    """A learned depth at the scale of what is known, met at the rim; None where it does not fit."""
    seen = known & (depth > 0)
    if estimator is None or isinstance(estimator, LayoutDepth) or int(seen.sum()) < 64:
        return None
    guess = align(estimator(color, camera).depth, depth, seen)
    error = (guess / depth.clamp_min(1e-9) - 1).abs()[seen]
    if float(error.median()) > TRUSTED:
        return None
    ratio = torch.where(seen, (depth / guess.clamp_min(1e-9)).clamp(0.5, 2).log(), 0.0)
    interpolant = harmonic_fill(
        ratio[0].cpu().numpy().astype(np.float32), seen[0].cpu().numpy(), sweeps=15
    )
    return guess * torch.from_numpy(interpolant)[None].to(guess).exp()


def _sky(color: Tensor, depth: Tensor, known: Tensor, hole: Tensor) -> Tensor:
    """A painted sky is as far as the known sky that it continues; without one there is none."""
    sky = sky_mask(color)
    above = sky & known & (depth > 0)
    if int(above.sum()) < 64:
        return depth
    far = depth[above].median()
    if float(far) < FAR * float(depth[known & (depth > 0)].median()):
        return depth
    return torch.where(sky & hole, far, depth)


def out_of_free_space(
    depth: Float[Tensor, "1 H W"],
    hole: Bool[Tensor, "1 H W"],
    camera: Cameras,
    views: Sequence[View],
) -> Float[Tensor, "1 H W"]:
    """Depth with the hole's surfaces moved back where a given view sees something behind them.

    A pixel for which no depth is free of contradiction gets 0.
    """
    rows = (hole & (depth > 0))[0].nonzero()
    if len(rows) == 0:
        return depth
    pixels = (rows.flip(1) + 0.5).to(camera.K)
    z = depth[0][rows[:, 0], rows[:, 1]].clone()
    ray = camera.unproject(pixels, torch.ones_like(z)) - camera.position
    free = [_free_of(view) for view in _facing(views, camera, pixels, z, ray)]
    wrong = torch.arange(len(z))
    for _ in range(PUSHES):
        points = camera.position + ray[wrong] * z[wrong, None]
        bad = torch.zeros(len(wrong), dtype=torch.bool)
        for view, min_depth_3x3 in free:
            bad |= _looked_through(view, min_depth_3x3, points)
        wrong = wrong[bad]
        if len(wrong) == 0:
            break
        z[wrong] = z[wrong] * PUSH
    z[wrong] = 0.0
    out = depth.clone()
    out[0][rows[:, 0], rows[:, 1]] = z
    return out


def _facing(
    views: Sequence[View], camera: Cameras, pixels: Tensor, z: Tensor, ray: Tensor
) -> list[View]:
    """The given views in whose picture some of the painted rays may be."""
    few = torch.linspace(0, len(z) - 1, min(64, len(z))).long()
    at = torch.cat([camera.position + ray[few] * (z[few, None] * f) for f in (1.0, 2.0, 5.0)])
    out = []
    for view in views:
        if view.step != 0:
            continue
        uv, q = view.cameras.project(at)
        inside = (q > 0) & (uv >= 0).all(1) & (uv[:, 0] < view.width) & (uv[:, 1] < view.height)
        if bool(inside.any()):
            out.append(view)
    return out


def _free_of(view: View) -> tuple[View, Tensor]:
    """The view and the nearest depth around each pixel, 0 where one around is not seen."""
    seen = torch.zeros_like(view.mask)
    for kind in SEEN:
        seen |= view.kind == int(kind)
    d = torch.where(seen, view.depth, 0.0)
    return view, -functional.max_pool2d(-d[None], 3, 1, 1)[0, 0]


def _looked_through(view: View, min_depth_3x3: Tensor, points: Tensor) -> Tensor:
    uv, q = view.cameras.project(points)
    inside = (q > 0) & (uv >= 0).all(1) & (uv[:, 0] < view.width) & (uv[:, 1] < view.height)
    u = torch.where(inside, uv[:, 0], 0.0).long()
    v = torch.where(inside, uv[:, 1], 0.0).long()
    return inside & (q < min_depth_3x3[v, u] * (1 - FREE))
