"""Which points of a full cloud stay, so that all of the place stays: apart by their own detail.

Each point deserves the detail of the camera that saw it: the width of a sample on its surface. All
widths are stretched (or shrunk, where many views saw the same) by one factor, the same everywhere,
until enough points lie within their own stretched width of one that stays; those go. So near
surfaces keep fine points and far ones coarse points, regions that were seen long ago as well as new
ones, and a coarse point goes where finer ones are. What went has a neighbour within its stretched
width, so discs of that radius leave no gap that was not there before, whatever the direction of the
surface. No point is moved.

Points are taken from fine to coarse, the better observed first: a maximal Poisson-disk sample with
a radius of its own for each point.

Source: Mitchell et al. 2012, "Variable radii Poisson-disk sampling".
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from worldstereo._core.compiled import has_compiler, kernel
from worldstereo._core.hash_table import place_of

STEP = 2**0.5  # between levels of detail: the grids that neighbours are looked up in
LEVELS = 24  # a factor of 4096 from the finest to the coarsest: all beyond are the coarsest
APART = 0.25  # of a cell: finer points that are closer than this stand for each other
SEARCH = 12  # tries for the factor; each comes closer like a bisection
SAMPLE = 16  # the search looks at one cell of so many
BESIDE = 1.25  # factors that much smaller and larger say how fast points become fewer
MIN_SLOPE = 0.5  # points become fewer at least with the root of the factor
FIRST = 1 / 8  # the factor that is tried first; below it points of one view would have to go
CLOSED = 0.75  # up to this factor no gap is wider than the splat of a sample, three pixels


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
        weight: of points with the same detail, the higher comes first; then the earlier.
        target: how many may stay.
        stretch: the factor that an earlier call ended with; above 1 it never goes down.

    Returns:
        which stay; the factor, 1 where samples still close up as they are, above 1 where they have
        to be drawn wider.
    """
    if len(points) <= target:
        return np.ones(len(points), np.bool_), stretch
    width = _known(points, width)
    finest = float(np.quantile(width[:: max(1, len(width) // 100_000)], 0.01))
    width = np.clip(width, finest, finest * STEP ** (LEVELS - 1))
    level = np.clip(np.floor(np.log(width / finest) / np.log(STEP)), 0, LEVELS - 1).astype(np.int64)
    part = _some_cells(points, finest * STEP ** float(np.median(level)) * 64)
    some = Ordered.of(points[part], width[part], level[part], weight[part])
    low = high = stretch if stretch > 1 else FIRST
    share = target / len(points)
    if len(part) < len(points):
        share *= 0.985  # the sample is off by about a hundredth
    while some.kept(finest, high).mean() > share:
        low, high = high, high * 1.5
    for _ in range(SEARCH if high > low else 0):
        middle = (low * high) ** 0.5
        if some.kept(finest, middle).mean() > share:
            low = middle
        else:
            high = middle
        if high / low < 1.02:
            break
    everything = Ordered.of(points, width, level, weight)
    while (count := (kept := everything.kept(finest, high)).sum()) > target:
        # The sample is off by some hundredths: farther by as much as it says that this takes.
        falls = some.kept(finest, high / BESIDE).sum() / max(
            1, some.kept(finest, high * BESIDE).sum()
        )
        slope = max(MIN_SLOPE, float(np.log(falls) / np.log(BESIDE**2)))
        high *= max(1.005, (count / target) ** (1.02 / slope))
    least = 1.0 if high <= CLOSED else float(np.nextafter(np.float32(1), np.float32(2)))
    return everything.rows_of(kept), max(high, least)


class Ordered(NamedTuple):
    """Points in the order in which they are taken."""

    order: Int[np.ndarray, "n"]
    points: Float[np.ndarray, "n 3"]
    width: Float[np.ndarray, "n"]
    starts: Int[np.ndarray, "levels"]

    @staticmethod
    def of(
        points: np.ndarray, width: np.ndarray, level: np.ndarray, weight: np.ndarray
    ) -> "Ordered":
        rank = np.log2(np.maximum(weight.astype(np.float64), 2.0**-16) * 2.0**16)  # 0 to 24: 8 bits
        worse = 255 - np.clip(rank * 10, 0, 255).astype(np.int64)
        order = np.argsort((level * 256 + worse).astype(np.int16), kind="stable")
        starts = np.searchsorted(level[order], np.arange(LEVELS + 1))
        return Ordered(order, np.ascontiguousarray(points[order]), width[order], starts)

    def kept(self, finest: float, stretch: float) -> Bool[np.ndarray, "n"]:
        """Which stay, in this order, when widths are stretched so far."""
        kept = np.zeros(len(self.points), np.bool_)
        keep = _keep if has_compiler() else _keep_plain
        keep(self.points, self.width * stretch, self.starts, finest * stretch, STEP, APART, kept)
        return kept

    def rows_of(self, kept: np.ndarray) -> Bool[np.ndarray, "n"]:
        rows = np.zeros(len(kept), np.bool_)
        rows[self.order[kept]] = True
        return rows


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


def _keep_plain(
    points: np.ndarray,
    radius: np.ndarray,
    starts: np.ndarray,
    edge: float,
    step: float,
    apart: float,
    kept: np.ndarray,
) -> None:
    """`_keep` without a compiler; what it keeps is the same but for cells that share a hash."""
    places = points.astype(np.float64)
    carried: list[int] = []
    for level in range(len(starts) - 1):
        rows = range(starts[level], starts[level + 1])
        if len(rows) == 0:
            continue
        size = edge * step ** (level + 1)
        cells: dict[tuple[int, ...], list[int]] = {}
        own: list[int] = []
        for finer in carried:
            cell = tuple(np.floor(places[finer] / size).astype(np.int64).tolist())
            chain = cells.setdefault(cell, [])
            if not (chain and _near(places, finer, chain, apart * size)):
                chain.append(finer)
                own.append(finer)
        for row in rows:
            x, y, z = np.floor(places[row] / size).astype(np.int64).tolist()
            around = [
                other
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
                for k in (-1, 0, 1)
                for other in cells.get((x + i, y + j, z + k), ())
            ]
            if around and _near(places, row, around, float(radius[row])):
                continue
            kept[row] = True
            cells.setdefault((x, y, z), []).append(row)
            own.append(row)
        carried = own


def _near(places: np.ndarray, row: int, others: list[int], reach: float) -> bool:
    away = places[others] - places[row]
    return bool(((away * away).sum(axis=1) < reach * reach).any())


@kernel(inline="always")
def _cell_key(x, y, z):
    h = np.uint64(x) * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(32))) + np.uint64(y) * np.uint64(0xC2B2AE3D27D4EB4F)
    h = (h ^ (h >> np.uint64(29))) * np.uint64(0x165667B19E3779F9)
    h = (h ^ (h >> np.uint64(32))) + np.uint64(z) * np.uint64(0xD6E8FEB86659FD93)
    h = (h ^ (h >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    return (h ^ (h >> np.uint64(32))) | np.uint64(1)


@kernel(inline="always")
def _is_near(points, x, y, z, first, following, reach):
    """Whether a point of a chain is nearer than `reach`."""
    j = first
    while j >= 0:
        dx = np.float64(points[j, 0]) - x
        dy = np.float64(points[j, 1]) - y
        dz = np.float64(points[j, 2]) - z
        if dx * dx + dy * dy + dz * dz < reach * reach:
            return True
        j = np.int64(following[j])
    return False


@kernel
def _keep(points, radius, starts, edge, step, apart, kept):
    """Marks what stays; see `thinned`. Levels fine to coarse; a grid each, cells hold chains."""
    following = np.empty(points.shape[0], np.int32)
    carried = np.empty(0, np.int64)
    for level in range(len(starts) - 1):
        own = starts[level + 1] - starts[level]
        if own == 0:
            continue
        room = 16
        while room < 2 * (carried.size + own):
            room *= 2
        keys = np.zeros(room, np.uint64)
        heads = np.empty(room, np.int32)
        size = edge * step ** (level + 1)
        stay = np.empty(carried.size + own, np.int64)
        count = 0
        for i in range(carried.size + own):
            fresh = i >= carried.size
            row = starts[level] + i - carried.size if fresh else carried[i]
            x, y, z = (
                np.float64(points[row, 0]),
                np.float64(points[row, 1]),
                np.float64(points[row, 2]),
            )
            cx, cy, cz = np.floor(x / size), np.floor(y / size), np.floor(z / size)
            ix, iy, iz = np.int64(cx), np.int64(cy), np.int64(cz)
            here = _cell_key(ix, iy, iz)
            place = place_of(here, keys)
            reach = radius[row] if fresh else apart * size
            head = np.int64(heads[place]) if keys[place] == here else np.int64(-1)
            covered = _is_near(points, x, y, z, head, following, reach)
            if fresh and not covered:
                # The gap to each neighbouring cell: only those within reach are looked up.
                gx, gy, gz = x - cx * size, y - cy * size, z - cz * size
                for a in range(-1, 2):
                    ex = gx if a < 0 else (size - gx if a > 0 else 0.0)
                    for b in range(-1, 2):
                        ey = gy if b < 0 else (size - gy if b > 0 else 0.0)
                        for c in range(-1, 2):
                            ez = gz if c < 0 else (size - gz if c > 0 else 0.0)
                            if covered or (a == 0 and b == 0 and c == 0):
                                continue
                            if ex * ex + ey * ey + ez * ez > reach * reach * 1.000001:
                                continue
                            key = _cell_key(ix + a, iy + b, iz + c)
                            at = place_of(key, keys)
                            if keys[at] == key:
                                covered = _is_near(
                                    points, x, y, z, np.int64(heads[at]), following, reach
                                )
            if covered:
                continue
            following[row] = np.int32(head)
            heads[place] = row
            keys[place] = here
            stay[count] = row
            count += 1
            if fresh:
                kept[row] = True
        carried = stay[:count].copy()
