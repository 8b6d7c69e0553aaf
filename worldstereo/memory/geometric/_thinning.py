"""Which points of a full cloud stay, so that all of the place stays: a cell each, by detail.

Each point deserves the detail of the camera that saw it: the width of a sample on its surface. All
widths are stretched by one factor, the same everywhere, until the points that are then more than
one in a cell of their own size are enough to free the room that is wanted. So near surfaces keep
fine points and far ones coarse points, regions that were seen long ago as well as new ones, and a
coarse point goes where finer ones cover its cell. No point is moved.

Levels are a factor of sqrt 2 apart, and worked on from fine to coarse: one pass each.
"""

import numpy as np
from jaxtyping import Bool, Float

from worldstereo._core.compiled import has_compiler, kernel

STEP = 2**0.5  # between levels of detail
LEVELS = 24  # a factor of 4096 from the finest to the coarsest: all beyond are the coarsest
SEARCH = 12  # tries for the factor; each comes closer like a bisection
SAMPLE = 16  # the search looks at one cell of so many


def thinned(
    points: Float[np.ndarray, "n 3"],
    width: Float[np.ndarray, "n"],
    weight: Float[np.ndarray, "n"],
    target: int,
    stretch: float = 1.0,
) -> tuple[Bool[np.ndarray, "n"], float]:
    """Which points stay, at most `target`, and the factor by which widths were stretched.

    Args:
        width: of a sample on the surface, scene units; 0 where unknown.
        weight: of several points in a cell, the one with the highest stays; then the first.
        target: how many may stay.
        stretch: the factor that an earlier call ended with; never goes down.
    """
    if len(points) <= target:
        return np.ones(len(points), np.bool_), stretch
    width = _known(points, width)
    finest = float(np.quantile(width[:: max(1, len(width) // 100_000)], 0.01))
    level = np.clip(np.floor(np.log(width / finest) / np.log(STEP) + 0.5), 0, LEVELS - 1)
    level = level.astype(np.int8)
    part = _some_cells(points, finest * STEP ** float(np.median(level)) * 64)
    low, high = stretch, stretch
    share = 0.985 * target / len(points)  # the sample is off by about a hundredth
    while _kept(points[part], level[part], weight[part], finest * high).mean() > share:
        low, high = high, high * 1.5
    for _ in range(SEARCH if high > low else 0):
        middle = (low * high) ** 0.5
        if _kept(points[part], level[part], weight[part], finest * middle).mean() > share:
            low = middle
        else:
            high = middle
        if high / low < 1.02:
            break
    while True:  # the sample may be off by a little
        kept = _kept(points, level, weight, finest * high)
        if kept.sum() <= target:
            return kept, high
        high *= 1.01


def _known(points: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Widths with the unknown ones filled: the typical one, or the spacing of the whole cloud."""
    known = width > 0
    if known.all():
        return width.astype(np.float64)
    if known.any():
        typical = float(np.median(width[known]))
    else:
        extent = np.sort(np.ptp(points, axis=0).astype(np.float64))
        area = max(extent[2] * max(extent[1], extent[2] * 1e-6), 1e-30)
        typical = float(np.sqrt(area / len(points)))
    return np.where(known, width, typical).astype(np.float64)


def _some_cells(points: np.ndarray, edge: float) -> np.ndarray:
    """Rows of all points in one of `SAMPLE` large cells; all rows of a small cloud."""
    if len(points) < 200_000:
        return np.arange(len(points))
    cell = np.floor(points.astype(np.float64) / edge).astype(np.int64)
    mixed = (cell * np.array([73856093, 19349663, 83492791])).sum(axis=1)
    rows = np.flatnonzero((mixed ^ (mixed >> 7)) % SAMPLE == 0)
    return rows if len(rows) > 1000 else np.arange(0, len(points), SAMPLE)


def _kept(points: np.ndarray, level: np.ndarray, weight: np.ndarray, edge: float) -> np.ndarray:
    kept = np.zeros(len(points), np.bool_)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(LEVELS + 1))
    if has_compiler():
        _keep(points, weight.astype(np.float64), order, starts, edge, STEP, kept)
    else:
        _keep_plain(points, weight, order, starts, edge, kept)
    return kept


def _keep_plain(
    points: np.ndarray,
    weight: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    edge: float,
    kept: np.ndarray,
) -> None:
    """`_keep` without a compiler; what it keeps is the same but for cells that share a hash."""
    carried: list[int] = []
    for level in range(LEVELS):
        rows = order[starts[level] : starts[level + 1]]
        if len(rows) == 0:
            continue
        size = edge * STEP**level
        table: dict[tuple[int, ...], int] = {}
        for row in carried:
            cell = tuple(np.floor(points[row].astype(np.float64) / size).astype(np.int64).tolist())
            table[cell] = min(table.get(cell, row), row)
        finer = set(table)
        for row in rows.tolist():
            cell = tuple(np.floor(points[row].astype(np.float64) / size).astype(np.int64).tolist())
            if cell in finer:
                continue
            if cell not in table or weight[row] > weight[table[cell]]:
                table[cell] = row
        own = [row for cell, row in table.items() if cell not in finer]
        kept[own] = True
        carried = list(table.values())


@kernel
def _keep(points, weight, order, starts, edge, step, kept):
    """Marks what stays; see `thinned`. Levels fine to coarse, one best point a free cell."""
    carried = np.empty(0, np.int64)
    for level in range(len(starts) - 1):
        own = starts[level + 1] - starts[level]
        if own == 0:
            continue
        room = 16
        while room < 2 * (carried.size + own):
            room *= 2
        keys = np.zeros(room, np.uint64)
        rows = np.empty(room, np.int64)
        finer = np.zeros(room, np.bool_)
        size = edge * step**level
        mask = np.int64(room - 1)
        count = 0
        for turn in range(2):
            n = carried.size if turn == 0 else own
            for i in range(n):
                row = carried[i] if turn == 0 else order[starts[level] + i]
                h = np.uint64(np.int64(np.floor(points[row, 0] / size))) * np.uint64(
                    0x9E3779B97F4A7C15
                )
                h = (h ^ (h >> np.uint64(32))) + np.uint64(
                    np.int64(np.floor(points[row, 1] / size))
                ) * np.uint64(0xC2B2AE3D27D4EB4F)
                h = (h ^ (h >> np.uint64(29))) * np.uint64(0x165667B19E3779F9)
                h = (h ^ (h >> np.uint64(32))) + np.uint64(
                    np.int64(np.floor(points[row, 2] / size))
                ) * np.uint64(0xD6E8FEB86659FD93)
                h = (h ^ (h >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
                key = (h ^ (h >> np.uint64(32))) | np.uint64(1)
                at = np.int64(key >> np.uint64(1)) & mask
                while keys[at] != key and keys[at] != np.uint64(0):
                    at = (at + 1) & mask
                if keys[at] == np.uint64(0):
                    keys[at] = key
                    rows[at] = row
                    finer[at] = turn == 0
                    count += 1
                elif turn == 0:
                    rows[at] = min(rows[at], row)
                elif not finer[at] and weight[row] > weight[rows[at]]:
                    rows[at] = row
        following = np.empty(count, np.int64)
        n = 0
        for at in range(room):
            if keys[at] != np.uint64(0):
                following[n] = rows[at]
                n += 1
                if not finer[at]:
                    kept[rows[at]] = True
        carried = following
