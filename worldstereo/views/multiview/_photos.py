"""Steps of `multiview.photo_depth`: a coarse search, a fine one, and what survives comparison.

The coarse search is done at half the matched size, where all neighbours are asked; the fine one
starts from it and asks, at each pixel, only the neighbours that saw the coarse surface best.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras
from worldstereo.views.multiview._choice import MIN_POINTS
from worldstereo.views.multiview.arrays import (
    MatchOptions,
    MatchView,
    asking_best,
    consistent,
    depth_of,
    improve,
    job_of,
    judge,
    nearest,
    swept,
    upsampled,
    without_specks,
)

Planes = tuple[np.ndarray, np.ndarray]
"""(h, w, 3) plane hypotheses, (h, w) their cost."""

VISIBLE = 1.5  # a point so much farther than another one beside it lies behind it
BESIDE = 24  # cells in which points are compared, along the longer side
COARSE_ASKED, FINE_ASKED = 3, 2  # neighbours that a pixel keeps asking
COARSE_SWEEPS = 3
COMPARED_SWEEPS = 1  # after the search the planes are near; a second pass bought nothing
SPECK = 1 / 400  # share of a photo that a surface must cover: smaller ones are chance matches


def coarse(options: MatchOptions) -> MatchOptions:
    return replace(options, scale=options.scale / 2, sweeps=min(options.sweeps, COARSE_SWEEPS))


def searched(
    view: MatchView,
    others: Sequence[MatchView],
    depth_range: tuple[float, float],
    points: Float[Tensor, "N 3"] | None,
    options: MatchOptions,
    seed: int,
) -> Planes:
    """Planes of one photo from nothing: a sweep, the nearest known points, then PatchMatch."""
    near, far = depth_range
    job = job_of(view, others, options, 0.0)
    h, w = job.grey.shape
    active = _active(view, h, w)
    low, high = np.full((h, w), 1 / far, np.float32), np.full((h, w), 1 / near, np.float32)
    guess = np.zeros((h, w), np.float32)
    plane, cost = _flat(swept(job, near, far), active), np.full((h, w), 9.0, np.float32)
    judge(job, plane, cost, active, guess, 0.0)
    known = None if points is None else nearest_points(view.cameras.scaled(w, h), points)
    if known is not None:
        other, theirs = _flat(known, active), np.full((h, w), 9.0, np.float32)
        judge(job, other, theirs, active, guess, 0.0)
        better = theirs < cost
        plane[better], cost[better] = other[better], theirs[better]
    if len(others) > COARSE_ASKED:
        job = asking_best(job, plane, COARSE_ASKED)
        judge(job, plane, cost, active, guess, 0.0)
    improve(job, plane, cost, active, low, high, guess, 0.0, options.sweeps, seed)
    return plane, cost


def compared(
    view: MatchView,
    others: Sequence[MatchView],
    depth_range: tuple[float, float],
    state: Planes,
    depths: Sequence[np.ndarray | None],
    options: MatchOptions,
    seed: int,
    asked: int,
) -> Planes:
    """Planes again, now with what the neighbours' own depth says against them.

    `state` and `depths` may be of a smaller size than `options.scale` asks for.
    """
    near, far = depth_range
    sizes = [_matched_size(other, options.scale) for other in others]
    larger = [None if d is None else _enlarged(d, *s) for d, s in zip(depths, sizes, strict=True)]
    job = job_of(view, others, options, options.geometric, larger)
    h, w = job.grey.shape
    plane = _finer(state[0], h, w)
    active = (plane[..., 0] > 0) & _active(view, h, w)
    plane[~active] = 0
    cost, guess = np.full((h, w), 9.0, np.float32), np.zeros((h, w), np.float32)
    low, high = np.full((h, w), 1 / far, np.float32), np.full((h, w), 1 / near, np.float32)
    if len(others) > asked:
        job = asking_best(job, plane, asked)
    judge(job, plane, cost, active, guess, 0.0)
    improve(job, plane, cost, active, low, high, guess, 0.0, COMPARED_SWEEPS, seed)
    return plane, cost


def kept(
    view: MatchView,
    others: Sequence[MatchView],
    state: Planes,
    depths: Sequence[np.ndarray | None],
    options: MatchOptions,
) -> tuple[Float[Tensor, "1 H W"], Float[Tensor, "1 H W"]]:
    """Depth that other photos return to, and confidence in [0, 1], at the photo's own size."""
    H, W = view.cameras.height, view.cameras.width
    plane, cost = state
    z = depth_of(plane)
    job = job_of(view, others, options, 0.0, depths)
    h, w = z.shape
    counts = [
        consistent(job, z, pixels, relative) for pixels, relative in ((1.0, 0.01), (2.0, 0.02))
    ]
    good = ((counts[0] >= 1) | (counts[1] >= 2)) & (cost < 0.8)
    good = without_specks(good, z, max(20, round(SPECK * h * w)))
    agree = counts[0] / max(1, len(others))
    sure = np.clip(1 - cost / 0.8, 0, 1) * (0.3 + 0.7 * agree)
    depth = upsampled(torch.from_numpy(np.where(good, z, 0).astype(np.float32)), H, W)
    confidence = torch.from_numpy(np.where(good, sure, 0).astype(np.float32))[None, None]
    up = functional.interpolate(confidence, (H, W), mode="nearest")[0]
    return depth, torch.where(depth > 0, up, 0.0)


def nearest_points(camera: Cameras, points: Float[Tensor, "N 3"]) -> np.ndarray | None:
    """(h, w) disparity of the visible point nearest in the picture; None if few are seen."""
    import cv2

    uv, z = camera.project(points.to(camera.K))
    size = torch.tensor([camera.width, camera.height]).to(uv)
    inside = (z > 0) & (uv >= 0).all(-1) & (uv < size).all(-1)
    uv, z = uv[inside].double().numpy(), z[inside].double().numpy()
    if len(z) < MIN_POINTS:
        return None
    # Points behind a nearer surface are seen through its gaps: in a coarse cell the front decides.
    step = max(camera.width, camera.height) / BESIDE
    cell = (uv[:, 1] // step).astype(np.int64) * (BESIDE + 1) + (uv[:, 0] // step).astype(np.int64)
    front = np.full((BESIDE + 1) ** 2, np.inf)
    np.minimum.at(front, cell, z)
    local = z <= VISIBLE * front[cell]
    uv, z = uv[local], z[local]
    image = np.zeros((camera.height, camera.width), np.float32)
    order = np.argsort(-z, kind="stable")  # the nearest is written last
    x, y = uv[order].astype(np.int64).T
    image[y, x] = 1 / z[order]
    _, label = cv2.distanceTransformWithLabels(
        (image == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label = np.asarray(label)
    value = np.zeros(int(label.max()) + 1, np.float32)
    value[label[image > 0]] = image[image > 0]
    return value[label]


def _flat(d: np.ndarray, active: np.ndarray) -> np.ndarray:
    d = np.where(active, d, 0).astype(np.float32)
    return np.stack([d, np.zeros_like(d), np.zeros_like(d)], axis=-1)


def _active(view: MatchView, h: int, w: int) -> np.ndarray:
    if view.blocked is None:
        return np.ones((h, w), dtype=bool)
    return nearest(view.blocked[None].float(), h, w) < 0.5


def _matched_size(view: MatchView, scale: float) -> tuple[int, int]:
    return max(4, round(view.cameras.height * scale)), max(4, round(view.cameras.width * scale))


def _enlarged(depth: np.ndarray, h: int, w: int) -> np.ndarray:
    if depth.shape == (h, w):
        return depth
    return upsampled(torch.from_numpy(depth), h, w)[0].numpy()


def _finer(plane: np.ndarray, h: int, w: int) -> np.ndarray:
    """Planes at a larger size: each pixel continues the plane of the pixel it lies in."""
    H, W = plane.shape[:2]
    if (h, w) == (H, W):
        return plane.copy()
    y, x = (np.arange(h) + 0.5) * (H / h), (np.arange(w) + 0.5) * (W / w)
    iy, ix = np.minimum(y.astype(np.int64), H - 1), np.minimum(x.astype(np.int64), W - 1)
    out = plane[iy[:, None], ix[None]].copy()
    out[..., 0] += out[..., 1] * (x - ix - 0.5)[None] + out[..., 2] * (y - iy - 0.5)[:, None]
    out[..., 1] *= W / w
    out[..., 2] *= H / h
    out[(out[..., 0] <= 0) | (plane[iy[:, None], ix[None], 0] <= 0)] = 0
    return out.astype(np.float32)
