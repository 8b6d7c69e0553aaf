"""`BrickHash`: where stored points are, updated point by point: insert, move, remove, nearest.

Space is cut into cells of edge `h`, 4 x 4 x 4 cells are a brick, and an open-addressing table leads
from a brick to its 64 chain heads. The points of a cell are doubly linked, so that removing one
needs no search. No operation loops over the cloud: a look-up reads the chains of the cells that
the search ball meets. Bricks are told apart by a 64-bit hash of their position: two that share one
only share chains, and distances decide anyway.

Memory: 8 bytes of links per slot, and 256 + 24 bytes per brick, about 64 points on a surface.
"""

import numpy as np
from jaxtyping import Float, Int

from worldstereo._core.compiled import kernel
from worldstereo._core.morton import REACH, for_pieces, morton_order, reach
from worldstereo.neighbors.compiled import cell_size

NONE = np.int32(-1)
CROWDED = np.int64(-2)
BUDGET = 2048
"""Points a look-up may visit; beyond, the caller asks another index."""
_EMPTY = np.uint64(0)


class BrickHash:
    """The living slots of a column of positions, by place."""

    def __init__(self, points: Float[np.ndarray, "S 3"], slots: Int[np.ndarray, "n"], h: float):
        self.h = h
        self.count = 0
        self.built_at = len(slots)
        self.next = np.full(len(points), NONE)
        self.prev = np.full(len(points), NONE)
        self._table(max(64, len(slots) // 32))
        self.add(points, slots)

    @staticmethod
    def fit(points: Float[np.ndarray, "n 3"], threshold: float) -> float:
        """Cell edge for a cloud and a radius: a few points per cell, a few cells per ball."""
        # Half the grid's edge: a visited point of a chain costs more than an empty cell.
        edge = cell_size(points) / 2 if len(points) >= 64 else 2 * threshold
        # Far more cells than float64 can number between here and the origin would share one.
        edge = max(edge, threshold / 2, reach(points) * 1e-12)
        return edge if edge > 0 and np.isfinite(edge) else 1.0

    def suits(self, threshold: float) -> bool:
        """Whether cells still fit: not far smaller than the ball, not far too full or too empty."""
        if self.h < threshold / 4:
            return False
        grown = self.count > 4 * self.built_at + 4096
        sparse = self.bricks > 1024 and self.count < 2 * self.bricks and self.count > 0
        return not (grown or (sparse and self.built_at != self.count))

    def nearest(
        self, points: Float[np.ndarray, "M 3"], stored: Float[np.ndarray, "S 3"], radius: float
    ) -> Int[np.ndarray, "M"]:
        """Nearest slot within the radius (ties: the lowest), -1 for none, `CROWDED` if unsure."""
        found = np.empty(len(points), np.int64)
        arrays = (self.keys, self.values, self.heads, self.next)
        for_pieces(
            len(points),
            lambda a, b: look_up(points, stored, radius, 1 / self.h, *arrays, found, a, b),
            1 << 11,
        )
        return found

    def add(self, stored: Float[np.ndarray, "S 3"], slots: Int[np.ndarray, "n"]) -> None:
        """Links slots that are not linked."""
        self._reserve(len(stored))
        done = 0
        while done < len(slots):
            done = link(stored, slots, done, 1 / self.h, *self._arrays(), self._fill)
            if done < len(slots):
                self._grow()
        self.count += len(slots)

    def move(
        self, stored: Float[np.ndarray, "S 3"], slots: Int[np.ndarray, "n"], was: np.ndarray
    ) -> None:
        """Relinks slots whose position changed from `was`."""
        left = moved(stored, slots, was, 1 / self.h)
        self.remove(left)
        self.add(stored, left)

    def remove(self, slots: Int[np.ndarray, "n"]) -> None:
        """Unlinks slots that are linked."""
        unlink(slots, self.heads, self.next, self.prev)
        self.count -= len(slots)

    def renumbered(self, kept: Int[np.ndarray, "n"]) -> "BrickHash":
        """The same places for slots `kept`, now numbered 0, 1, ...; all others must be unlinked."""
        other = object.__new__(BrickHash)
        other.__dict__ |= self.__dict__
        place = np.full(len(self.next), NONE)
        place[kept] = np.arange(len(kept), dtype=np.int32)
        other.next, other.prev = np.empty(len(kept), np.int32), np.empty(len(kept), np.int32)
        renumber(kept, place, self.next, self.prev, other.next, other.prev)
        other.heads = np.full(len(self.heads), NONE)
        renumber_heads(self.heads, place, 64 * self.bricks, other.heads)
        other.keys, other.values, other._fill = (
            self.keys.copy(),
            self.values.copy(),
            self._fill.copy(),
        )
        return other

    @property
    def bricks(self) -> int:
        return int(self._fill[0])

    def arrays(self) -> list[np.ndarray]:
        return [self.keys, self.values, self.heads, self.next, self.prev]

    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays())

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.keys, self.values, self.heads, self.next, self.prev

    def _table(self, bricks: int) -> None:
        room = 1 << int(np.ceil(np.log2(bricks)))
        self.keys, self.values = np.full(2 * room, _EMPTY), np.empty(2 * room, np.int32)
        self.heads = np.full(64 * room, NONE)
        self._fill = np.zeros(1, np.int64)

    def _grow(self) -> None:
        keys, values = self.keys, self.values
        self.keys, self.values = np.full(2 * len(keys), _EMPTY), np.empty(2 * len(keys), np.int32)
        rehash(keys, values, self.keys, self.values)
        heads = np.full(2 * len(self.heads), NONE)
        heads[: len(self.heads)] = self.heads
        self.heads = heads

    def _reserve(self, slots: int) -> None:
        if slots > len(self.next):
            for name in ("next", "prev"):
                old = getattr(self, name)
                column = np.full(slots, NONE)
                column[: len(old)] = old
                setattr(self, name, column)


def build_hash(
    points: Float[np.ndarray, "S 3"],
    living: Int[np.ndarray, "n"] | None,
    size: int,
    threshold: float,
) -> BrickHash:
    """A hash of the living slots among the first `size`, entered along the Morton curve."""
    places = points[:size] if living is None else points[living]
    h = BrickHash.fit(places, threshold)
    slots = np.arange(size) if living is None else living
    if len(places) > 4096 and reach(places) < REACH:
        slots = slots[morton_order(places)]
    return BrickHash(points, slots, h)


@kernel(inline="always")
def cell(value, inverse):
    """Cell number of a coordinate; never decreases with the coordinate, never overflows."""
    return np.int64(np.floor(min(max(value * inverse, -4e18), 4e18)))


@kernel(inline="always")
def gap(value, c, h):
    """How far a coordinate is from a cell, less a little for rounding; the outermost never end."""
    if abs(c) >= np.int64(4000000000000000000):
        return 0.0
    away = max(c * h - value, value - (c + 1) * h) - abs(value) * 1e-15
    return max(away, 0.0) * 0.999999


@kernel(inline="always")
def brick_key(cx, cy, cz):
    """64-bit hash of a brick's position, never 0."""
    h = np.uint64(cx >> 2) * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(32))) + np.uint64(cy >> 2) * np.uint64(0xC2B2AE3D27D4EB4F)
    h = (h ^ (h >> np.uint64(29))) * np.uint64(0x165667B19E3779F9)
    h = (h ^ (h >> np.uint64(32))) + np.uint64(cz >> 2) * np.uint64(0xD6E8FEB86659FD93)
    h = (h ^ (h >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    return (h ^ (h >> np.uint64(32))) | np.uint64(1)


@kernel(inline="always")
def local(cx, cy, cz):
    return ((cx & 3) * 4 + (cy & 3)) * 4 + (cz & 3)


@kernel(inline="always")
def find(key, keys, values):
    """Brick number of a key, or -1."""
    mask = np.int64(keys.size - 1)
    i = np.int64(key >> np.uint64(1)) & mask
    while True:
        if keys[i] == key:
            return np.int64(values[i])
        if keys[i] == np.uint64(0):
            return np.int64(-1)
        i = (i + 1) & mask


@kernel
def look_up(points, stored, radius, inverse, keys, values, heads, following, found, start, stop):
    """Nearest linked slot within the radius of each point; see `BrickHash.nearest`."""
    h = 1.0 / inverse
    for p in range(start, stop):
        x, y, z = np.float64(points[p, 0]), np.float64(points[p, 1]), np.float64(points[p, 2])
        rx = radius * 1.000000001 + abs(x) * 1e-15
        ry = radius * 1.000000001 + abs(y) * 1e-15
        rz = radius * 1.000000001 + abs(z) * 1e-15
        best = radius * radius
        who = np.int64(-1)
        visited = 0
        mx, my, mz = cell(x, inverse), cell(y, inverse), cell(z, inverse)
        last_key = np.uint64(0)
        brick = np.int64(-1)
        # The own cell first: what it holds prunes most of the others.
        for turn in range(2):
            x0, x1 = (mx, mx) if turn == 0 else (cell(x - rx, inverse), cell(x + rx, inverse))
            y0, y1 = (my, my) if turn == 0 else (cell(y - ry, inverse), cell(y + ry, inverse))
            z0, z1 = (mz, mz) if turn == 0 else (cell(z - rz, inverse), cell(z + rz, inverse))
            for cx in range(x0, x1 + 1):
                ex = gap(x, cx, h)
                for cy in range(y0, y1 + 1):
                    ey = gap(y, cy, h)
                    if ex * ex + ey * ey > best:
                        continue
                    for cz in range(z0, z1 + 1):
                        if turn == 1 and cx == mx and cy == my and cz == mz:
                            continue
                        ez = gap(z, cz, h)
                        if ex * ex + ey * ey + ez * ez > best:
                            continue
                        key = brick_key(cx, cy, cz)
                        if key != last_key:
                            last_key = key
                            brick = find(key, keys, values)
                        if brick < 0:
                            continue
                        j = np.int64(heads[brick * 64 + local(cx, cy, cz)])
                        while j >= 0 and visited <= BUDGET:
                            visited += 1
                            dx = np.float64(stored[j, 0]) - x
                            dy = np.float64(stored[j, 1]) - y
                            dz = np.float64(stored[j, 2]) - z
                            d = dx * dx + dy * dy + dz * dz
                            if d < best or (d == best and (who < 0 or j < who)):
                                best = d
                                who = j
                            j = np.int64(following[j])
        found[p] = who if visited <= BUDGET else CROWDED


@kernel
def link(stored, slots, start, inverse, keys, values, heads, following, before, fill):
    """Links `slots[start:]`; returns where it stopped for want of room in the table."""
    mask = np.int64(keys.size - 1)
    room = keys.size // 2
    for i in range(start, slots.size):
        s = slots[i]
        cx = cell(np.float64(stored[s, 0]), inverse)
        cy = cell(np.float64(stored[s, 1]), inverse)
        cz = cell(np.float64(stored[s, 2]), inverse)
        key = brick_key(cx, cy, cz)
        at = np.int64(key >> np.uint64(1)) & mask
        while keys[at] != key and keys[at] != np.uint64(0):
            at = (at + 1) & mask
        if keys[at] == np.uint64(0):
            if fill[0] >= room:
                return i
            keys[at] = key
            values[at] = fill[0]
            fill[0] += 1
        head = np.int64(values[at]) * 64 + local(cx, cy, cz)
        first = heads[head]
        following[s] = first
        before[s] = np.int32(-2 - head)
        if first >= 0:
            before[first] = s
        heads[head] = s
    return slots.size


@kernel
def unlink(slots, heads, following, before):
    for i in range(slots.size):
        s = slots[i]
        p, n = np.int64(before[s]), np.int64(following[s])
        if p >= 0:
            following[p] = n
        else:
            heads[-2 - p] = n
        if n >= 0:
            before[n] = p


@kernel
def moved(stored, slots, was, inverse):
    """The slots that are in another cell than where they were."""
    out = np.empty(slots.size, np.int64)
    n = 0
    for i in range(slots.size):
        s = slots[i]
        same = True
        for axis in range(3):
            new, old = np.float64(stored[s, axis]), np.float64(was[i, axis])
            same = same and cell(new, inverse) == cell(old, inverse)
        if not same:
            out[n] = s
            n += 1
    return out[:n]


@kernel
def rehash(old_keys, old_values, keys, values):
    mask = np.int64(keys.size - 1)
    for i in range(old_keys.size):
        if old_keys[i] != np.uint64(0):
            at = np.int64(old_keys[i] >> np.uint64(1)) & mask
            while keys[at] != np.uint64(0):
                at = (at + 1) & mask
            keys[at] = old_keys[i]
            values[at] = old_values[i]


@kernel
def renumber(kept, place, following, before, new_following, new_before):
    for i in range(kept.size):
        n, p = following[kept[i]], before[kept[i]]
        new_following[i] = place[n] if n >= 0 else n
        new_before[i] = place[p] if p >= 0 else p


@kernel
def renumber_heads(heads, place, count, new_heads):
    for i in range(count):
        if heads[i] >= 0:
            new_heads[i] = place[heads[i]]


@kernel
def group_rows(keys):
    """Groups of equal rows of (M, 3) float64: group of each row, first row of each group.

    Groups are numbered in the order of their first row.
    """
    m = keys.shape[0]
    room = 16
    while room < 2 * m:
        room *= 2
    table = np.full(room, -1, np.int64)
    group = np.empty(m, np.int64)
    first = np.empty(m, np.int64)
    groups = 0
    bits = keys.view(np.uint64)
    for i in range(m):
        h = bits[i, 0] * np.uint64(0x9E3779B97F4A7C15)
        h = (h ^ (h >> np.uint64(32))) + bits[i, 1] * np.uint64(0xC2B2AE3D27D4EB4F)
        h = (h ^ (h >> np.uint64(29))) * np.uint64(0x165667B19E3779F9)
        h = (h ^ (h >> np.uint64(32))) + bits[i, 2] * np.uint64(0xD6E8FEB86659FD93)
        h = (h ^ (h >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
        at = np.int64((h ^ (h >> np.uint64(32))) & np.uint64(room - 1))
        while True:
            g = table[at]
            if g < 0:
                table[at] = groups
                first[groups] = i
                group[i] = groups
                groups += 1
                break
            f = first[g]
            if keys[f, 0] == keys[i, 0] and keys[f, 1] == keys[i, 1] and keys[f, 2] == keys[i, 2]:
                group[i] = g
                break
            at = (at + 1) & (room - 1)
    return group, first[:groups]
