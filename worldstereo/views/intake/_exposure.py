"""Exposure of the views relative to the first one, from colours that correspond in 3D."""

from collections.abc import Sequence

import numpy as np

from worldstereo.views.fusion import AGREE, ViewArrays, fetch, parallel_for

UNSATURATED = (0.06, 0.93)
WIDEST = 0.6  # radians
MIN_MATCHES = 1000  # matches at 640x480
QUARTER = 2  # halvings: exposure is the same all over a picture, details say nothing about it


def exposure_gains(
    views: Sequence[ViewArrays],
    pairs: Sequence[tuple[int, int]],
    fixed: np.ndarray | None = None,
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Log gains (n, 3) towards the first view, and the pairs that had too little to compare.

    Least squares on the medians of the pairs; a weak pull towards 0 keeps a view without pairs at
    its own exposure.

    Args:
        fixed: (n, 3) gains that are known already, NaN for views to be solved for.
    """
    n = len(views)
    used = sorted({i for pair in pairs for i in pair})
    small: dict[int, ViewArrays] = {}

    def halved(k: int) -> None:
        small[used[k]] = views[used[k]].reduced(QUARTER)
        views[used[k]].let_go()

    parallel_for(len(used), halved)
    rows: list[np.ndarray] = [0.05 * np.eye(n)]
    values: list[np.ndarray] = [np.zeros((n, 3))]
    results: list[tuple[float, np.ndarray] | None] = [None] * len(pairs)

    def one(k: int) -> None:
        results[k] = _ratio(small[pairs[k][0]], small[pairs[k][1]])

    parallel_for(len(pairs), one)
    left_out = []
    for (i, j), result in zip(pairs, results, strict=True):
        if result is None:
            left_out.append((i, j))
            continue
        weight, ratio = result
        row = np.zeros((1, n))
        row[0, i], row[0, j] = weight, -weight
        rows.append(row)
        values.append(weight * ratio[None])
    A, b = np.vstack(rows), -np.vstack(values)  # colour * exp(gain) looks like the first view's
    if fixed is None:
        gains = np.linalg.lstsq(A, b, rcond=None)[0]
        return gains - gains[0], left_out
    gains, free = np.nan_to_num(fixed), np.isnan(fixed).any(1)
    if free.any():
        rest = b - A[:, ~free] @ gains[~free]
        gains[free] = np.linalg.lstsq(A[:, free], rest, rcond=None)[0]
    return gains, left_out


def _ratio(p: ViewArrays, q: ViewArrays) -> tuple[float, np.ndarray] | None:
    """Weight of a pair and the median log ratio of its colours, p over q."""
    import cv2

    color, agreement, angle = fetch(p.depth, p.pose, q, AGREE)
    mine = cv2.GaussianBlur(p.color.astype(np.float32) / 255, (3, 3), 0.5)
    theirs = cv2.GaussianBlur(color, (3, 3), 0.5)
    low, high = np.minimum(mine, theirs).min(2), np.maximum(mine, theirs).max(2)
    use = (cv2.erode(agreement, np.ones((3, 3), np.uint8)) > 0.2) & (angle < WIDEST)
    use &= (low > UNSATURATED[0]) & (high < UNSATURATED[1])
    if use.sum() < MIN_MATCHES * p.depth.size / (640 * 480):
        return None
    return float(use.mean()) ** 0.5, np.median(np.log(mine[use] / theirs[use]), 0)
