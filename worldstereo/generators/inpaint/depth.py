"""Depth of what was painted: walls go on, a learned model says more, seen space stays free.

The guide's fill continues planes and the background into holes; a backdrop, which has no distance,
is continued by a painted sky alone. A learned depth of the painted picture replaces the fill where
it agrees with what is known around. Then every painted surface is pushed along its ray out of the
space that a given view looked through.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras
from worldstereo.depth import DepthEstimator, LayoutDepth, align, sky_mask
from worldstereo.memory.stereo.dense import continued
from worldstereo.scene import DepthKind, View
from worldstereo.views.fusion import (
    FREE,
    INFINITY,
    background_trust,
    harmonic_fill,
    invert,
    pose_of,
    view_arrays,
)

TRUSTED = 0.08
"""Median relative error on the known part up to which a learned depth is used."""
OUTLIER = 3.0
"""Times its usual error from which on a learned depth means another surface than what is known."""
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
    unit: float = 1.0,
    confidence: Float[Tensor, "1 H W"] | None = None,
) -> Float[Tensor, "1 H W"]:
    """Depth of the hole's pixels, the rest as given.

    Args:
        color: painted.
        depth: known, and filled in the hole.
        known: where the depth is known rather than filled.
        estimator: a learned one; a layout guess is not asked.
        unit: u in scene units.
        confidence: of the known depth; a learned depth is fitted to the surer half.
    """
    # A picture without distance, as of sky or of what a sensor could not reach, is no neighbour.
    near = known & (depth > 0) & (depth < unit / (2 * INFINITY))
    backdrop = bool((known & (depth > 0) & ~near).any())
    if not bool(near.any()):
        near, backdrop = known & (depth > 0), False
    planes = _planes(depth, near, camera, views, unit)
    out = depth
    if backdrop:  # the guide's fill was drawn to it
        out = torch.where(
            hole, torch.where(planes > 0, planes, _continued_background(depth, near, unit)), depth
        )
    learned = (
        None if estimator is None else _learned(color, depth, near, confidence, camera, estimator)
    )
    if learned is not None:
        guess, error = learned
        # A plane is exact: where the model means it, its own error need not be added.
        meant = (planes > 0) & ((guess / planes.clamp_min(1e-9)).log().abs() < OUTLIER * error)
        out = torch.where(hole, torch.where(meant, planes, guess), out)
    out = _sky(color, out, known, hole)
    return out_of_free_space(out, hole, camera, views)


def _planes(
    depth: Tensor, near: Tensor, camera: Cameras, views: Sequence[View], unit: float
) -> Tensor:
    """(1, H, W): planes of what is known where they go on into the unknown, 0 elsewhere."""
    given = [view_arrays(view, unit) for view in views if view.step == 0]
    d = depth[0].cpu().numpy().astype(np.float32) / np.float32(unit)
    found = continued(d, near[0].cpu().numpy(), pose_of(camera, unit), given)
    return torch.from_numpy(found * np.float32(unit))[None].to(depth)


def _continued_background(depth: Tensor, near: Tensor, unit: float) -> Tensor:
    """(1, H, W): the background side of what is known, continued harmonically."""
    at = near[0].cpu().numpy()
    d = invert(np.where(at, depth[0].cpu().numpy() / unit, 0).astype(np.float32))
    interpolant = invert(harmonic_fill(d, at, trust=background_trust(d, at)))
    return torch.from_numpy(interpolant * np.float32(unit))[None].to(depth)


def _learned(
    color: Tensor, depth: Tensor, seen: Tensor, confidence: Tensor | None, camera: Cameras,
    estimator: DepthEstimator,
) -> tuple[Tensor, float] | None:  # fmt: skip
    """A learned depth at the scale of what is known, met at the rim, and its usual relative error
    there; None where it does not fit."""
    sure = seen
    if confidence is not None and bool(seen.any()):
        sure = seen & (confidence >= confidence[seen].median())
    if isinstance(estimator, LayoutDepth) or int(sure.sum()) < 64:
        return None
    guess = align(estimator(color, camera).depth, depth, sure)
    ratio = torch.where(seen, (depth / guess.clamp_min(1e-9)).log(), 0.0)
    usual = float(ratio[sure].abs().median())
    if usual > TRUSTED:
        return None
    # An edge beside its place, or a surface seen twice, says nothing about what lies in the hole.
    reliable = seen & (ratio.abs() < OUTLIER * usual)
    values = ratio[0].cpu().numpy().astype(np.float32)
    interpolant = harmonic_fill(values, reliable[0].cpu().numpy(), sweeps=15)
    return guess * torch.from_numpy(interpolant)[None].to(guess).exp(), usual


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
