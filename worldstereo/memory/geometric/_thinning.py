"""Which points of a full cloud stay, so that all of the place stays: apart by their own detail.

Each point deserves the detail of the camera that saw it: the width of a sample on its surface. All
widths are stretched (or shrunk, where many views saw the same) by one factor, the same everywhere,
until enough points lie within their own stretched width of one that stays; those go. So near
surfaces keep fine points and far ones coarse points, regions that were seen long ago as well as new
ones, and a coarse point goes where finer ones are. What went has a neighbour within its stretched
width, so discs of that radius leave no gap that was not there before, whatever the direction of the
surface. No point is moved.

Points are taken from fine to coarse, within a level the better observed first by factors of two,
and then along a space-filling curve, so that what is compared lies together in memory: a maximal
Poisson-disk sample with a radius of its own for each point.

Source: Mitchell et al. 2012, "Variable radii Poisson-disk sampling".
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from worldstereo._core.compiled import has_compiler, kernel
from worldstereo._core.hash_table import place_of
from worldstereo._core.morton import MAX_COUNT, morton_order
from worldstereo.memory.geometric._hash import brick_key, local

STEP = 2**0.5  # between levels of detail, in which points are taken
LEVELS = 24  # a factor of 4096 from the finest to the coarsest: all beyond are the coarsest
SHARED = 6  # levels whose points share a grid: its cells are as wide as the widest reach
APART = 0.125  # of a cell: finer points that are closer than this stand for each other
SEARCH = 12  # tries for the factor in the sample
TRIES = 3  # with all points, to come close to the target from below
CLOSE = 0.97  # of the target are enough
SAMPLE = 16  # the search looks at one cell of so many
CELL = 16  # widths of the typical point: many small cells say more than few large ones
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
        weight: of points with the same detail, those of twice the weight come first.
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
    part = _some_cells(points, finest * STEP ** float(np.median(level)) * CELL)
    some = Ordered.of(points[part], width[part], level[part], weight[part])
    least = stretch if stretch > 1 else FIRST
    wanted = CLOSE**0.5 * target
    factor = _found(some, least, max(wanted / len(points), 1 / len(part)))
    slope = _slope(some, factor)
    everything = Ordered.of(points, width, level, weight)
    best, tries = (np.zeros(0, np.bool_), 0.0, -1), 0
    while best[2] < 0 or (best[2] < CLOSE * target and best[1] > least and tries < TRIES):
        kept = everything.kept(factor)
        count, tries = int(kept.sum()), tries + 1
        if best[2] < count <= target:
            best = kept, factor, count
        change = (count / wanted) ** (1 / slope)  # the sample is off by some hundredths
        factor = max(least, factor * (max(1.005, change) if count > target else change))
    kept, factor, _ = best
    drawn = 1.0 if factor <= CLOSED else float(np.nextafter(np.float32(1), np.float32(2)))
    return everything.rows_of(kept), max(factor, drawn)


def _found(some: "Ordered", least: float, share: float) -> float:
    """The factor, at least `least`, with which about this share of a sample stays."""
    low = high = least
    above = below = float(some.kept(least).mean())
    while below > share:
        low, above = high, below
        high *= 1.5
        below = float(some.kept(high).mean())
    for _ in range(SEARCH):
        if below > 0.99 * share or low == high:
            break
        # The share falls like a power of the factor, nearly; never stay at one end.
        part = np.log(above / share) / np.log(above / below)
        middle = low * (high / low) ** float(np.clip(part, 0.1, 0.9))
        stays = float(some.kept(middle).mean())
        if stays > share:
            low, above = middle, stays
        else:
            high, below = middle, stays
    return high


def _slope(some: "Ordered", factor: float) -> float:
    """By which power of the factor points become fewer."""
    near, far = (int(some.kept(factor * f).sum()) for f in (1 / BESIDE, BESIDE))
    return max(MIN_SLOPE, float(np.log(near / max(1, far)) / np.log(BESIDE**2)))


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
        _, octave = np.frexp(np.clip(weight, 2.0**-15, 2.0**16))  # -14 to 17: 5 bits
        fits = len(points) <= MAX_COUNT  # a curve serves speed alone
        along = morton_order(points) if fits else np.arange(len(points))
        rank = (level * 32 + (17 - octave)).astype(np.int16)
        order = along[np.argsort(rank[along], kind="stable")].astype(np.int64)
        starts = np.searchsorted(level[order], np.arange(LEVELS + 1))
        return Ordered(order, np.ascontiguousarray(points[order]), width[order], starts)

    def kept(self, stretch: float) -> Bool[np.ndarray, "n"]:
        """Which stay, in this order, when widths are stretched so far."""
        kept = np.zeros(len(self.points), np.bool_)
        keep = _keep if has_compiler() else _keep_plain
        keep(self.points, self.width * stretch, self.starts[::SHARED], APART, kept)
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
    """Rows of all points in one of `SAMPLE` cells; all rows of a small cloud."""
    if len(points) < 200_000:
        return np.arange(len(points))
    mixed = np.zeros(len(points), np.int64)
    for axis, prime in enumerate((73856093, 19349663, 83492791)):
        mixed += np.floor(points[:, axis] / np.float64(edge)).astype(np.int64) * prime
    mixed = (mixed.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    rows = np.flatnonzero(mixed % np.uint64(SAMPLE) == 0)
    return rows if len(rows) > 1000 else np.arange(0, len(points), SAMPLE)


def _keep_plain(
    points: np.ndarray,
    radius: np.ndarray,
    starts: np.ndarray,
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
        size = float(radius[rows.start : rows.stop].max())
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
def _keep(points, radius, starts, apart, kept):
    """Marks what stays; see `thinned`. A grid for each run of levels, whose cells hold chains.

    A hash table leads from a brick of 4 x 4 x 4 cells to its chains. Points come along a curve,
    so the brick of one is mostly that of the point before: it and its neighbours are kept ready.
    """
    following = np.empty(points.shape[0], np.int32)
    carried = np.empty(0, np.int64)
    around = np.empty(27, np.int64)
    for level in range(len(starts) - 1):
        own = starts[level + 1] - starts[level]
        if own == 0:
            continue
        size = radius[starts[level] : starts[level + 1]].max()
        room = 16
        while room < 2 * (carried.size + own):
            room *= 2
        keys = np.zeros(room, np.uint64)
        numbers = np.empty(room, np.int32)
        bricks = 0
        chains = np.empty((1024, 64), np.int32)
        lx, ly, lz = np.int64(0), np.int64(0), np.int64(0)
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
            bx, by, bz = ix >> 2, iy >> 2, iz >> 2
            if i == 0 or bx != lx or by != ly or bz != lz:
                lx, ly, lz = bx, by, bz
                around[:] = -2
                around[13] = _brick(ix, iy, iz, keys, numbers)
            cell = local(ix, iy, iz)
            reach = radius[row] if fresh else apart * size
            first = np.int64(chains[around[13], cell]) if around[13] >= 0 else np.int64(-1)
            covered = _is_near(points, x, y, z, first, following, reach)
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
                            jx, jy, jz = ix + a, iy + b, iz + c
                            side = 13 + 9 * ((jx >> 2) - bx) + 3 * ((jy >> 2) - by) + (jz >> 2) - bz
                            if around[side] == -2:
                                around[side] = _brick(jx, jy, jz, keys, numbers)
                            if around[side] >= 0:
                                j = np.int64(chains[around[side], local(jx, jy, jz)])
                                covered = _is_near(points, x, y, z, j, following, reach)
            if covered:
                continue
            if around[13] < 0:
                if bricks == len(chains):
                    more = np.empty((2 * bricks, 64), np.int32)
                    more[:bricks] = chains
                    chains = more
                key = brick_key(ix, iy, iz)
                place = place_of(key, keys)
                keys[place] = key
                numbers[place] = bricks
                chains[bricks] = -1
                around[13] = bricks
                bricks += 1
            following[row] = chains[around[13], cell]
            chains[around[13], cell] = row
            stay[count] = row
            count += 1
            if fresh:
                kept[row] = True
        carried = stay[:count].copy()


@kernel(inline="always")
def _brick(x, y, z, keys, numbers):
    """Number of the brick of a cell; -1 where nothing is."""
    key = brick_key(x, y, z)
    place = place_of(key, keys)
    return np.int64(numbers[place]) if keys[place] == key else np.int64(-1)
