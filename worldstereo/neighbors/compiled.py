"""`CompiledIndex`: a dense grid for queries near the points, a box tree for the others."""

import numpy as np
from jaxtyping import Float, Int

from worldstereo._core.morton import (
    GONE,
    MAX_COUNT,
    REACH,
    MortonTree,
    bulk_bounds,
    for_pieces,
    gather,
    morton_keys,
    places,
    reach,
)
from worldstereo.neighbors import kernels
from worldstereo.neighbors._plain import ScipyIndex, brute_force, squares

PER_CELL = 4.0  # points aimed at per occupied cell; anything from 2 to 12 costs the same
CELLS = 6  # cells per point at most, 4 bytes each; of a small cloud four times as many
MAX_CELLS = 1 << 24
PIECE = 512  # queries a thread takes at once
SMALL = 256  # up to here the tree alone is as quick
WIDE = 512  # more neighbours than this are ranked at once when they are a fair part of the cloud


class CompiledIndex:
    """Exact neighbours of a cloud of at most `_morton.MAX_COUNT` points.

    Memory per point: 16 bytes of grid order and columns, at most 24 of cells, and 19 of the tree,
    which is built when the first query needs it. Removed points stay and are stepped over.
    """

    def __init__(self, points: Float[np.ndarray, "N 3"]) -> None:
        self.n = len(points)
        self._points = points
        self._tree: MortonTree | None = None
        self._grid = Grid.of(points) if self.n > SMALL else None
        self._gone: list[np.ndarray] = []

    def query(
        self, queries: Float[np.ndarray, "Q 3"], k: int
    ) -> tuple[Float[np.ndarray, "Q m"], Int[np.ndarray, "Q m"]]:
        """The `m = min(k, n)` nearest rows per query: float64 distances ascending, and rows."""
        if not reach(queries) < REACH:
            return ScipyIndex(self._points).query(queries, k)
        square, rows = self.search(np.ascontiguousarray(queries, np.float32), k)
        return np.sqrt(square, out=square), rows

    def search(
        self, queries: Float[np.ndarray, "Q 3"], k: int
    ) -> tuple[Float[np.ndarray, "Q m"], Int[np.ndarray, "Q m"]]:
        """`query` with squared distances, for coordinates below `REACH`.

        Where removed points leave fewer than `m`, rows are `_spatial_index.kernels.NOBODY`.
        """
        m, Q = min(k, self.n), len(queries)
        square, rows = np.empty((Q, m)), np.empty((Q, m), np.int64)
        if m == 0 or Q == 0:
            return square, rows
        if (
            m > WIDE and m * m > 256 * self.n
        ):  # a sorted list of so many costs more than sorting all
            return self._rank_all(queries, m)
        turn = query_order(queries)
        if self._grid is not None:
            open_ = np.empty(Q, np.bool_)
            self._grid.search(queries, turn, m, square, rows, open_)
            turn = turn[open_[turn]]
        if len(turn) > 0:
            tree = self.tree
            columns = (tree.x, tree.y, tree.z, tree.order, tree.box, tree.lowest, tree.level)
            for_pieces(
                len(turn),
                lambda a, b: kernels.tree_search(queries, turn, *columns, m, square, rows, a, b),
                PIECE,
            )
        return square, rows

    def _rank_all(
        self, queries: Float[np.ndarray, "Q 3"], m: int
    ) -> tuple[Float[np.ndarray, "Q m"], Int[np.ndarray, "Q m"]]:
        points = self._points.copy()
        for rows in self._gone:
            points[rows] = GONE
        rows = brute_force(points, queries, m)[1]
        square = squares(points, rows, queries.astype(np.float64))
        return square, np.where(square < kernels.FAR, rows, kernels.NOBODY)

    @property
    def tree(self) -> MortonTree:
        if self._tree is None:
            self._tree = MortonTree(self._points)
            for rows in self._gone:
                self._tree.remove(rows)
        return self._tree

    def remove(self, rows: Int[np.ndarray, "n"]) -> None:
        """Rows that no search finds any more; costs nothing per remaining point after the first."""
        self._gone.append(rows)
        if self._grid is not None:
            self._grid.remove(rows)
        if self._tree is not None:
            self._tree.remove(rows)

    def nbytes(self) -> int:
        grid = self._grid.nbytes() if self._grid is not None else 0
        return grid + (self._tree.nbytes() if self._tree is not None else 0)


class Grid:
    """Points sorted by cell of a dense table over the bulk of the cloud."""

    def __init__(self, points: Float[np.ndarray, "N 3"], low, high, h: float) -> None:
        n = len(points)
        self.low, self.h = low.astype(np.float32), float(np.float32(h))
        extent = (high.astype(np.float64) - low) / self.h
        self.cells = np.maximum(np.floor(extent), 0).astype(np.int64) + 1
        key = np.empty(n, np.uint64)
        shape = (int(self.cells[0]), int(self.cells[1]), int(self.cells[2]))
        inverse = np.float32(1 / self.h)
        for_pieces(n, lambda a, b: kernels.cell_keys(points, self.low, inverse, *shape, key, a, b))
        key.sort()
        self.shape = shape
        self.starts = np.empty(shape[0] * shape[1] * shape[2] + 1, np.int32)
        kernels.cell_starts(key, self.starts)
        self.order = (key & np.uint64(MAX_COUNT - 1)).astype(np.int32)
        self._where: np.ndarray | None = None
        self.x, self.y, self.z = (np.empty(n, np.float32) for _ in range(3))
        for_pieces(n, lambda a, b: gather(points, self.order, self.x, self.y, self.z, a, b))

    @staticmethod
    def of(points: Float[np.ndarray, "N 3"]) -> "Grid | None":
        """A grid with cells fit for the local density; None where none does (one place)."""
        low, high = bulk_bounds(points)
        extent = np.maximum(high.astype(np.float64) - low, 0)
        if not extent.max() > 0:
            return None
        h = max(cell_size(points), float(extent.max()) * 1e-6)
        most = max(CELLS * len(points), min(4 * CELLS * len(points), MAX_CELLS), 4096)
        while np.prod(np.floor(extent / h) + 1) > most:
            h *= 1.1
        magnitude = max(float(np.abs(low).max()), float(np.abs(high).max()))
        if h < magnitude * 1e-5:  # float32 cannot place points in so small cells
            return None
        return Grid(points, low, high, h)

    def search(self, queries, turn, k: int, distance, rows, open_) -> None:
        room = min(64 * k + 1024, 1 << 16)
        columns = (self.x, self.y, self.z, self.order, self.starts, self.low, self.h, *self.shape)
        for_pieces(
            len(turn),
            lambda a, b: kernels.grid_search(
                queries, turn, *columns, k, room, distance, rows, open_, a, b
            ),
            PIECE,
        )

    def remove(self, rows: Int[np.ndarray, "n"]) -> None:
        if self._where is None:
            self._where = places(self.order)
        self.x[self._where[rows]] = GONE

    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.starts, self.order, self.x, self.y, self.z))


def query_order(queries: Float[np.ndarray, "Q 3"]) -> Int[np.ndarray, "Q"]:
    """Queries along the curve, so that consecutive ones read the same cells."""
    n = len(queries)
    if n < 256 or n >= MAX_COUNT:
        return np.arange(n)
    low, high = bulk_bounds(queries)
    step = np.float32(8191 / max(float((high - low).max()), 1e-30))
    key = np.empty(n, np.uint64)
    for_pieces(n, lambda a, b: morton_keys(queries, low, step, key, a, b))
    key.sort()
    return (key & np.uint64(MAX_COUNT - 1)).astype(np.int64)


def cell_size(points: Float[np.ndarray, "N 3"]) -> float:
    """Cell edge at which an occupied cell holds about `PER_CELL` points.

    From the spacing around 16 points of a sample, whose growth from radius r to 2 r also tells
    whether the cloud is a surface or fills space there.
    """
    n = len(points)
    probes = points[np.random.default_rng(0).integers(0, n, 16)].astype(np.float64)
    sample = points[:: max(1, n // 40_000)].astype(np.float64)
    share = n / len(sample)
    sizes = []
    for probe in probes:
        square = ((sample - probe) ** 2).sum(axis=1)
        m = min(max(16, round(64 / share)), len(sample) - 1)
        r = np.sqrt(np.partition(square, m)[m])
        wide = np.count_nonzero(square < (2 * r) ** 2)
        dimension = np.clip(np.log2(max(wide, 1) / m), 1.5, 3.0)
        sizes.append(r * (PER_CELL / (share * m)) ** (1 / dimension) * 1.9)
    return float(np.median(sizes))
