"""Holes continued along the planes around them: a wall goes on behind what stands before it.

Planes are linear in disparity, d = a x + b y + c with x, y the ray of a pixel, so that (a, b, c) is
the normal over the distance. They are found in what is known of a target and reach into a hole only
where nothing speaks against it; everywhere else there is no answer, and the caller's stands.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from worldstereo.views.fusion import (
    AGREE,
    Pose,
    ViewArrays,
    bands,
    invert,
    nearest_known,
    parallel_for,
    relative,
    stacked_minima,
)

__all__ = ["Planes", "continued", "find_planes"]

CELLS = 80  # across the longer side of the picture; lengths below are in cells
FIT = 0.01  # relative disparity within which a sample lies on a plane
TILT = 0.95  # cosine between the plane and the surface around a sample of it
MAX_PLANES, MIN_PLANE_SHARE = (
    6,
    0.01,
)  # planes looked for, and the share of the picture that makes one
TRIED = 250  # pieces of surface tried for each plane
EDGE, RING = 0.5, 2.5  # how far around a hole it is touched, and looked around
TOUCHED = 0.1  # share of a hole's edge that lies on a plane which continues into it
BEYOND = 0.05  # share of its surroundings that may lie behind such a plane
AGAIN = 3.0  # reach over radius: a plane goes on for as far as it was seen to be wide
BEHIND = 0.04  # relative depth from which on something lies before or behind something else


class Planes(NamedTuple):
    """What was found, the largest first; lengths in u."""

    coefficients: np.ndarray
    """(n, 3) float64: a, b, c of the disparity."""
    centres: np.ndarray
    """(n, 3): the middle of what was seen of each, in the camera's axes."""
    reaches: np.ndarray
    """(n,): how far from there each may be continued."""


def continued(
    depth: np.ndarray, known: np.ndarray, target: Pose, views: Sequence[ViewArrays]
) -> np.ndarray:
    """Depth of the planes that reach into the holes of a target, in u; 0 where none does.

    A plane serves a hole whose edge lies on it while nothing around the hole lies behind it. The
    nearest of those that serve is what shows: a room is the inside of its walls. It does not show
    where a view looks through it; nor, where no view looked at all, next to something that stands
    before it, which as likely goes on itself.

    Args:
        depth: (H, W) float32 in u; read where `known` only.
        known: (H, W) bool.
        views: the given views; empty: none can tell that something stood before a plane.
    """
    import cv2

    from worldstereo.memory.stereo.dense import _hole_kernels as kernels

    out = np.zeros(depth.shape, np.float32)
    if known.all() or not known.any():
        return out
    d = np.where(known, invert(depth), np.float32(0))
    planes = find_planes(d, target.K)
    if len(planes.coefficients) == 0:
        return out
    cell = _cell(d)
    around, hole = cv2.distanceTransformWithLabels(
        known.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP
    )
    count, n = int(hole.max()) + 1, len(planes.coefficients)
    size, ring, edge = (np.zeros(count, np.int64) for _ in range(3))
    on, behind = np.zeros((count, n), np.int64), np.zeros((count, n), np.int64)
    kernels.surroundings(
        d, around, hole, target.K, planes.coefficients, EDGE * cell, RING * cell, AGREE, BEHIND,
        size, ring, edge, on, behind,
    )  # fmt: skip
    serves = (on > TOUCHED * edge[:, None]) & (behind < BEYOND * ring[:, None])
    serves &= (size >= cell * cell)[:, None]
    if not serves.any():
        return out
    nearest = nearest_known(known)
    stacked = _stacked(views, target)
    rows = bands(len(d))

    def band(i: int) -> None:
        kernels.continue_planes(
            d, hole, nearest, serves, target.K, *planes, *stacked, AGREE, BEHIND, *rows[i],
            out,
        )  # fmt: skip

    parallel_for(len(rows), band)
    return out


def find_planes(d: np.ndarray, K: np.ndarray) -> Planes:
    """The largest planes of a disparity image, each at least a hundredth of it.

    Candidates are the surfaces around evenly chosen cells that are flat; the one that most cells
    lie on is fitted to them, they are taken out, and the search goes on. Nothing is random.

    Args:
        d: (H, W) float32 in 1/u, 0 where unknown.
        K: index intrinsics (fx, fy, cx, cy).
    """
    from worldstereo.memory.stereo.dense import _hole_kernels as kernels

    step = _cell(d)
    rows, columns = (np.arange(step // 2, n, step) for n in d.shape)
    at = np.ascontiguousarray(d[np.ix_(rows, columns)], np.float64)
    x, y = np.meshgrid((columns - K[2]) / K[0], (rows - K[3]) / K[1])
    local, flat = _local(at, x, y)
    free, flat = (at > 0).ravel(), flat.ravel()
    x, y, at, local = x.ravel(), y.ravel(), at.ravel(), local.reshape(-1, 3)
    normal = local / np.maximum(np.linalg.norm(local, axis=1, keepdims=True), 1e-12)
    found, centres, reaches = [], [], []
    while len(found) < MAX_PLANES:
        candidates = np.flatnonzero(flat & free)
        if len(candidates) == 0:
            break
        chosen = np.unique(np.linspace(0, len(candidates) - 1, TRIED).astype(int))
        chosen = candidates[chosen]
        support = np.zeros(len(chosen), np.int64)
        kernels.support(local[chosen], x[free], y[free], at[free], 2 * FIT, support)
        best = int(support.argmax())
        if support[best] < MIN_PLANE_SHARE * len(at):
            break
        plane = local[chosen[best]].copy()
        member = np.zeros(len(at), bool)
        kernels.fit(plane, x, y, at, free, normal, FIT, TILT, member)
        if member.sum() < MIN_PLANE_SHARE * len(at):
            flat[chosen[best]] = False
            continue
        free &= ~member
        rays = np.stack([x[member], y[member], np.ones(int(member.sum()))], 1)
        points = rays / (rays * plane).sum(1, keepdims=True)
        centre = np.median(points, 0)
        found.append(plane)
        centres.append(centre)
        apart = np.sqrt(((points - centre) ** 2).sum(1))
        reaches.append(AGAIN * float(np.percentile(apart, 95)))
    return Planes(
        np.array(found).reshape(-1, 3), np.array(centres).reshape(-1, 3), np.array(reaches)
    )


def _cell(d: np.ndarray) -> int:
    return max(1, round(max(d.shape) / CELLS))


def _local(d: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The plane through the 5x5 cells around each, and whether they lie on it."""
    import cv2

    ok = (d > 0).astype(np.float64)

    def total(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(
            values, cv2.CV_64F, (5, 5), normalize=False, borderType=cv2.BORDER_CONSTANT
        )

    n = total(ok)
    N = np.empty((*d.shape, 3, 3))
    terms = (x * ok, y * ok, ok)
    for i, a in enumerate((x, y, np.ones_like(x))):
        for j in range(i, 3):
            N[..., i, j] = N[..., j, i] = total(a * terms[j])
    right = np.stack([total(d * t) for t in terms], -1)
    # Few samples leave a direction open: the smallest plane that fits is as good as any then.
    N += 1e-9 * np.maximum(n, 1)[..., None, None] * np.eye(3)
    plane = np.linalg.solve(N, right[..., None])[..., 0]
    fitted = plane[..., 0] * x + plane[..., 1] * y + plane[..., 2]
    close = (np.abs(fitted - d) < FIT * d) & (d > 0)
    return plane, close & (n >= 20) & (total(close.astype(np.float64)) >= 0.9 * n)


def _stacked(views: Sequence[ViewArrays], target: Pose) -> tuple:
    """Lowest depths of the views one after the other, offsets, sizes, intrinsics, transforms."""
    if not views:
        return (
            np.zeros(1, np.float32), np.zeros(0, np.int64), np.zeros((0, 2), np.int64),
            np.zeros((0, 4)), np.zeros((0, 3, 4)),
        )  # fmt: skip
    return (
        *stacked_minima(views),
        np.stack([v.pose.K for v in views]),
        np.stack([relative(target, v.pose) for v in views]),
    )
