"""Which views see which points: what COLMAP calls tracks."""

import numpy as np

from worldstereo.exports.archive import Picture, array

NEAR = 1e-6
AGREES = 0.02  # share by which a view's own depth and the point's may differ
HIDDEN = 0.01  # share by which a point may lie behind the nearest one of its pixel's surroundings


def tracks(
    points: np.ndarray, radii: np.ndarray, pictures: list[Picture]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each picture the rows of the points it sees unoccluded and their pixels (n, 2), float64.

    Where a view knows its depth, the point must lie there; elsewhere no nearer point may cover it.
    Cost: points x pictures.
    """
    seen = []
    for picture in pictures:
        view = picture.view
        width, height = view.width, view.height
        K = array(view.cameras.K).astype(np.float64)
        w2c = np.linalg.inv(array(view.cameras.c2w).astype(np.float64))
        x_cam = points @ w2c[:3, :3].T + w2c[:3, 3]
        z = x_cam[:, 2]
        rows = np.flatnonzero(z > NEAR)
        uvw = x_cam[rows] @ K.T
        pixel = uvw[:, :2] / uvw[:, 2:]
        inside = (pixel >= 0).all(axis=1) & (pixel < [width, height]).all(axis=1)
        rows, pixel = rows[inside], pixel[inside]
        u, v = pixel.astype(np.int64).T
        z, slack = z[rows], 2 * radii[rows]
        nearest = np.full((height, width), np.inf)
        np.minimum.at(nearest, (v, u), z)
        free = z <= _surroundings(nearest)[v, u] * (1 + HIDDEN) + slack
        depth = array(view.depth[0]).astype(np.float64)[v, u]
        agrees = np.abs(z - depth) <= np.maximum(AGREES * depth, slack)
        kept = np.where(depth > 0, agrees, free)
        seen.append((rows[kept], pixel[kept]))
    return seen


def _surroundings(nearest: np.ndarray) -> np.ndarray:
    """Smallest value in each 3x3 window: sparse points in front still hide what is behind."""
    padded = np.pad(nearest, 1, constant_values=np.inf)
    h, w = nearest.shape
    windows = [padded[i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return np.minimum.reduce(windows)
