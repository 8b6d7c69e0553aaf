"""From a ray or a rectangle on the screen to rows of the cloud. Plain numpy, no viser."""

from typing import NamedTuple

import numpy as np

BLOCK = 1 << 18  # rows handled at once: temporaries stay in the cache


class Hit(NamedTuple):
    """What a ray met first."""

    row: int
    point: np.ndarray
    distance: float
    """Along the ray, from its origin."""


def pick(
    points: np.ndarray,
    origin: np.ndarray,
    direction: np.ndarray,
    radii: np.ndarray | None = None,
    cone: float = 0.004,
) -> Hit | None:
    """The first point of (N, 3) that a ray meets, or None.

    A point counts as met when the ray passes within its radius or within the cone (a slope; about
    two pixels), whichever is wider. Among the points within one radius behind the first, the one
    closest to the ray wins, so that a click on a surface hits where the pointer was.
    """
    o = np.asarray(origin, np.float32)
    d = np.asarray(direction, np.float32)
    d = d / np.linalg.norm(d)
    best_rows, best_t, best_off = [], [], []
    for first in range(0, len(points), BLOCK):
        v = points[first : first + BLOCK] - o
        t = v @ d
        off2 = np.einsum("ij,ij->i", v, v) - t * t
        reach = np.maximum(t, 0) * cone
        if radii is not None:
            reach = np.maximum(reach, radii[first : first + BLOCK])
        rows = np.flatnonzero((t > 1e-6) & (off2 < reach * reach))
        if len(rows) > 0:
            best_rows.append(rows + first)
            best_t.append(t[rows])
            best_off.append(off2[rows])
    if not best_rows:
        return None
    rows, t, off2 = (np.concatenate(x) for x in (best_rows, best_t, best_off))
    front = t.min()
    depth = front * cone + (float(radii[rows[t.argmin()]]) if radii is not None else 0.0)
    near = np.flatnonzero(t <= front + 2 * depth)
    winner = near[off2[near].argmin()]
    row = int(rows[winner])
    return Hit(row, points[row].copy(), float(t[winner]))


def select(
    points: np.ndarray,
    w2c: np.ndarray,
    tan_half: tuple[float, float],
    low: tuple[float, float],
    high: tuple[float, float],
    *,
    through: bool = False,
) -> np.ndarray:
    """Rows of (N, 3) inside a rectangle of the screen, ascending; by default only those in sight.

    Args:
        w2c: (4, 4), OpenCV frame.
        tan_half: tangents of half the horizontal and vertical field of view.
        low, high: corners, 0 to 1 from the top left.
        through: also take what is hidden behind other points.
    """
    x = points @ w2c[:3, :3].T.astype(np.float32) + w2c[:3, 3].astype(np.float32)
    z = x[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = 0.5 + 0.5 * x[:, 0] / (z * tan_half[0])
        v = 0.5 + 0.5 * x[:, 1] / (z * tan_half[1])
    inside = (z > 1e-6) & (u >= low[0]) & (u <= high[0]) & (v >= low[1]) & (v <= high[1])
    rows = np.flatnonzero(inside)
    if through or len(rows) == 0:
        return rows
    # What is hidden is decided cell by cell, each with some ten points, so that walls are closed.
    cells = int(np.clip((len(rows) / 16) ** 0.5, 4, 160))
    cell = max(high[0] - low[0], high[1] - low[1], 1e-6) / cells
    a = ((u[rows] - low[0]) / cell).astype(np.int64)
    b = ((v[rows] - low[1]) / cell).astype(np.int64)
    key = b * (cells + 2) + a
    front = np.full((cells + 2) * (cells + 2), np.inf, np.float32)
    np.minimum.at(front, key, z[rows])
    return rows[z[rows] <= 1.03 * front[key]]
