"""Points along a space-filling curve, with a tree of boxes over them: `MortonTree`.

One order serves two users: the renderer skips whole blocks outside the view, and neighbour search
far from any surface walks the boxes. Points stay as three separate columns, so that the inner loops
vectorise. Leaves hold `LEAF` points, inner nodes `FAN` children.

Source: Morton 1966; Karras 2012, "Maximizing parallelism in the construction of BVHs".
"""

import numpy as np
from jaxtyping import Float, Int

from worldstereo._core import parallel as _parallel
from worldstereo._core.compiled import kernel

LEAF = 16
FAN = 8
BLOCK = LEAF * FAN
"""Points of a node above the leaves: what the renderer culls."""
GONE = np.float32(3e18)
"""Coordinate of padding and of removed points: farther than anything, its square still finite."""
REACH = 1e15
"""Coordinates must be smaller than this for the compiled kernels; others take the plain paths."""
INDEX_BITS = 25
MAX_COUNT = 1 << INDEX_BITS
"""Points a tree can hold: the sort word has this many index bits beside 3 x 13 bits of position."""
_STEPS = 8191
_PIECE = 1 << 16


class MortonTree:
    """A cloud in Morton order with boxes over runs of 16, 128, 1024, ... points.

    Raises:
        ValueError: a coordinate of `REACH` or more, or more points than `MAX_COUNT`.
    """

    def __init__(self, points: Float[np.ndarray, "N 3"]) -> None:
        self.n = len(points)
        if not reach(points) < REACH:
            raise ValueError(f"coordinates must be below {REACH:g}, got {reach(points):g}.")
        self.order = morton_order(points)
        self._where: np.ndarray | None = None
        room = -(-max(self.n, 1) // BLOCK) * BLOCK
        self.x, self.y, self.z = (np.full(room, GONE) for _ in range(3))
        for_pieces(self.n, lambda a, b: gather(points, self.order, self.x, self.y, self.z, a, b))
        self._box()

    def _box(self) -> None:
        """Boxes and lowest rows of all levels, one after the other in `box` and `lowest`."""
        widths = [len(self.x) // LEAF]
        while widths[-1] > FAN:
            widths.append(-(-widths[-1] // FAN))
        padded = [-(-width // FAN) * FAN for width in widths]
        self.level = np.concatenate([[0], np.cumsum(padded)]).astype(np.int64)
        self.box = np.full((6, int(self.level[-1])), GONE)
        self.lowest = np.full(int(self.level[-1]), np.iinfo(np.int32).max, np.int32)
        columns = (self.x, self.y, self.z)
        for_pieces(
            widths[0],
            lambda a, b: leaf_boxes(*columns, self.order, self.box, self.lowest, a, b),
            _PIECE // LEAF,
        )
        for i in range(1, len(widths)):
            below, here = int(self.level[i - 1]), int(self.level[i])
            inner_boxes(self.box, self.lowest, below, padded[i - 1], here, widths[i])

    def remove(self, rows: Int[np.ndarray, "n"]) -> None:
        """Points that are found no more; boxes stay as they are."""
        if self._where is None:
            self._where = places(self.order)
        self.x[self._where[rows]] = GONE

    def nbytes(self) -> int:
        arrays = (self.order, self.x, self.y, self.z, self.box, self.lowest)
        return sum(array.nbytes for array in arrays)


def places(order: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Where each row is in an order."""
    where = np.empty(len(order), np.int32)
    where[order] = np.arange(len(order), dtype=np.int32)
    return where


def reach(points: Float[np.ndarray, "N 3"]) -> float:
    """The largest coordinate, without its sign; 0 of no points."""
    return max(float(points.max()), -float(points.min())) if len(points) > 0 else 0.0


def for_pieces(n: int, work, piece: int = _PIECE) -> None:
    """`work(start, stop)` over `range(n)` in pieces that fit the cache, on the policy's threads."""
    spans = _parallel.spans(n, -(-n // piece)) if n > 0 else []
    _parallel.parallel_for(len(spans), lambda i: work(*spans[i]))


def morton_order(points: Float[np.ndarray, "N 3"]) -> Int[np.ndarray, "N"]:
    """Rows along the curve, as int32; rows of one position stay in ascending order.

    The curve's cells follow the bulk of the cloud (the middle 98 % of a sample), so one point far
    away does not push all others into one cell; cells that stay crowded are sorted on their own.

    Raises:
        ValueError: more points than the sort word can number.
    """
    n = len(points)
    if n > MAX_COUNT:
        raise ValueError(f"a Morton order holds at most {MAX_COUNT} points, got {n}.")
    if n == 0:
        return np.zeros(0, np.int32)
    low, high = bulk_bounds(points)
    key = np.empty(n, np.uint64)
    step = np.float32(_STEPS / max(float((high - low).max()), 1e-30))
    for_pieces(n, lambda a, b: morton_keys(points, low, step, key, a, b))
    key.sort()
    order = (key & np.uint64(MAX_COUNT - 1)).astype(np.int32)
    crowded = crowded_runs(key, 8 * BLOCK)
    for start, stop in crowded.tolist():
        rows = np.sort(order[start:stop])
        inside = points[rows]
        if (inside.max(axis=0) > inside.min(axis=0)).any() and stop - start < n:
            order[start:stop] = rows[morton_order(inside)]
    return order


def bulk_bounds(points: Float[np.ndarray, "N 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner of where most points are; the exact ones of a small cloud."""
    n = len(points)
    if n <= 4096:
        low, high = points.min(axis=0), points.max(axis=0)
        if n < 64:
            return low, high
        sample = points
    else:
        sample = points[:: n // 4096]
    sample = np.sort(sample, axis=0)
    edge = max(1, len(sample) // 100)
    low, high = sample[edge], sample[-1 - edge]
    margin = np.maximum((high - low) * np.float32(0.25), np.float32(1e-30))
    low, high = low - margin, high + margin
    if not (high > low).any():
        return points.min(axis=0), points.max(axis=0)
    return low, high


@kernel(fastmath=True, forceinline=True)
def spread(v):
    """13 bits, two zeros after each."""
    v = np.uint64(v) & np.uint64(0x1FFF)
    v = (v | (v << np.uint64(16))) & np.uint64(0x00FF0000FF0000FF)
    v = (v | (v << np.uint64(8))) & np.uint64(0xF00F00F00F00F00F)
    v = (v | (v << np.uint64(4))) & np.uint64(0x30C30C30C30C30C3)
    return (v | (v << np.uint64(2))) & np.uint64(0x9249249249249249)


@kernel(fastmath=True)
def morton_keys(points, low, step, key, start, stop):
    """Sort words: 39 bits of position, 25 bits of row."""
    top = np.float32(8191)
    for i in range(start, stop):
        x = min(max((points[i, 0] - low[0]) * step, np.float32(0)), top)
        y = min(max((points[i, 1] - low[1]) * step, np.float32(0)), top)
        z = min(max((points[i, 2] - low[2]) * step, np.float32(0)), top)
        m = spread(int(x)) | (spread(int(y)) << np.uint64(1)) | (spread(int(z)) << np.uint64(2))
        key[i] = (m << np.uint64(25)) | np.uint64(i)


@kernel
def crowded_runs(key, most):
    """(start, stop) of runs of more than `most` sort words with one position."""
    found = []
    start = 0
    for i in range(1, key.size + 1):
        if i == key.size or (key[i] >> np.uint64(25)) != (key[start] >> np.uint64(25)):
            if i - start > most:
                found.append((start, i))
            start = i
    runs = np.empty((len(found), 2), np.int64)
    for i in range(len(found)):
        runs[i, 0] = found[i][0]
        runs[i, 1] = found[i][1]
    return runs


@kernel
def gather(points, order, x, y, z, start, stop):
    """The columns of the points in an order."""
    for i in range(start, stop):
        j = order[i]
        x[i] = points[j, 0]
        y[i] = points[j, 1]
        z[i] = points[j, 2]


@kernel
def leaf_boxes(x, y, z, order, box, lowest, start, stop):
    """Boxes and lowest rows of leaves. A leaf of padding alone stays far away."""
    for leaf in range(start, stop):
        first = leaf * LEAF
        last = min(first + LEAF, order.size)
        if last <= first:
            continue
        x0 = x1 = x[first]
        y0 = y1 = y[first]
        z0 = z1 = z[first]
        row = order[first]
        for i in range(first + 1, last):
            x0 = min(x0, x[i])
            x1 = max(x1, x[i])
            y0 = min(y0, y[i])
            y1 = max(y1, y[i])
            z0 = min(z0, z[i])
            z1 = max(z1, z[i])
            row = min(row, order[i])
        box[0, leaf] = x0
        box[1, leaf] = y0
        box[2, leaf] = z0
        box[3, leaf] = x1
        box[4, leaf] = y1
        box[5, leaf] = z1
        lowest[leaf] = row


@kernel
def inner_boxes(box, lowest, below, width, here, n):
    """Boxes of a level from those below; empty children (at `GONE`) do not widen a box."""
    for node in range(n):
        for axis in range(3):
            low = GONE
            high = -GONE
            for child in range(node * FAN, min(node * FAN + FAN, width)):
                if box[0, below + child] < GONE:
                    low = min(low, box[axis, below + child])
                    high = max(high, box[axis + 3, below + child])
            if low < GONE:
                box[axis, here + node] = low
                box[axis + 3, here + node] = high
        row = lowest[here + node]
        for child in range(node * FAN, min(node * FAN + FAN, width)):
            row = min(row, lowest[below + child])
        lowest[here + node] = row
