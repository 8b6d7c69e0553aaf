"""Keyframes of a large capture: the views that carry what all of them show.

Space is cut into cells of the size of a few pixels on the surface, one grid per power of two, and
each cell counts the views that saw it, from one of six sides, at that detail or better. Then views
are let go, every second one first, while what they show stays seen by the others. Cost follows the
number of views: nothing compares views with each other.
"""

from collections.abc import Callable, Sequence

import numpy as np

from worldstereo._core.compiled import kernel
from worldstereo._core.hash_table import place_of
from worldstereo._core.resident import release, tensors_in
from worldstereo.scene import View

PLENTY = 100
"""Views that always stay: so many are prepared in a minute or two, and each makes details finer."""
SEEN = 3
"""Views that should see a place: one may be wrong, and two cannot tell which of them is."""
MISSED = 0.01
"""Share of a view's surface that would be seen by no other view, up to which it may go."""
FEW = 0.5
"""Share of a view's surface that would be seen by fewer than `SEEN`, up to which it may go."""

_COLUMNS = 128  # samples across a view
_WIDE = 4.0  # edge of a cell over the distance between two samples
_COARSER = 3  # a cell counts for up to so many times half the detail


def keyframes(
    views: Sequence[View],
    *,
    plenty: int | None = None,
    on_view: Callable[[int], None] | None = None,
) -> list[int]:
    """Which views carry what all of them show, ascending; all where there are at most `plenty`.

    Only views with measured depth can be judged: without any, all stay.

    Args:
        plenty: number of views below which none is left out; `PLENTY` where None.
        on_view: called with the number of each view before it is looked at.
    """
    plenty = PLENTY if plenty is None else plenty
    everything = list(range(len(views)))
    if len(views) <= plenty or not any(bool(view.mask.any()) for view in views[:plenty]):
        return everything
    cells = Cells()
    for index, view in enumerate(views):
        if on_view is not None:
            on_view(index)
        cells.count(*samples(view), 1)
        release(tensors_in(view))
    left = set(everything)
    for index in _every_second_first(len(views)):
        if len(left) <= plenty:
            break
        points, width, side = samples(views[index])
        release(tensors_in(views[index]))
        alone, few = cells.lacking(points, width, side, SEEN)
        if alone <= MISSED * len(points) and few <= FEW * len(points):
            cells.count(points, width, side, -1)
            left.remove(index)
    return sorted(left)


def _every_second_first(n: int) -> list[int]:
    """1, 3, 5, ..., then 2, 6, 10, ..., and so on, without the first and the last."""
    inner = np.arange(1, n - 1)
    return inner[np.argsort(inner & -inner, kind="stable")].tolist()


def samples(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grid of surface points of a view: positions, distance between samples, direction of sight.

    Returns:
        (n, 3) world points, (n,) spacing in scene units, (n,) which of six sides they are seen
        from.
    """
    stride = max(1, view.width // _COLUMNS)
    first = stride // 2
    depth = view.depth[0, first::stride, first::stride].detach().cpu().numpy().astype(np.float64)
    rows, columns = np.nonzero((depth > 0) & np.isfinite(depth))
    z = depth[rows, columns]
    K = view.cameras.K.detach().cpu().double().numpy()
    c2w = view.cameras.c2w.detach().cpu().double().numpy()
    u, v = columns * stride + first + 0.5, rows * stride + first + 0.5
    local = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(z)], 1)
    ray = local @ c2w[:3, :3].T
    axis = np.abs(ray).argmax(axis=1)
    side = 2 * axis + (ray[np.arange(len(ray)), axis] > 0)
    return ray * z[:, None] + c2w[:3, 3], stride * z / K[0, 0], side.astype(np.int64)


class Cells:
    """How many views see each place, by detail and side: a hash table that grows."""

    def __init__(self) -> None:
        self._keys = np.zeros(1 << 16, np.uint64)
        self._counts = np.zeros(1 << 16, np.int32)
        self._last = np.zeros(1 << 16, np.int32)
        self._used = np.zeros(1, np.int64)
        self._calls = 0

    def lacking(
        self, points: np.ndarray, width: np.ndarray, side: np.ndarray, enough: int
    ) -> tuple[int, int]:
        """How many points of a counted view no other, or too few, see in half the detail."""
        alone, few = _lacking(points, _level(width) + 1, side, self._keys, self._counts, enough)
        return int(alone), int(few)

    def count(self, points: np.ndarray, width: np.ndarray, side: np.ndarray, by: int) -> None:
        """One view more (1), or one that was counted less (-1)."""
        room = int(self._used[0]) + len(points) * (_COARSER + 1)
        if 2 * room > len(self._keys):
            self._grow(4 * room)
        self._calls += 1
        _count(
            points, _level(width), side, self._keys, self._counts, self._last, self._used,
            self._calls, by, _COARSER,
        )  # fmt: skip

    def _grow(self, room: int) -> None:
        size = 1 << int(np.ceil(np.log2(room)))
        keys, counts = np.zeros(size, np.uint64), np.zeros(size, np.int32)
        last = np.zeros(size, np.int32)
        _rehash(self._keys, self._counts, self._last, keys, counts, last)
        self._keys, self._counts, self._last = keys, counts, last


def _level(width: np.ndarray) -> np.ndarray:
    return np.floor(np.log2(_WIDE * width)).astype(np.int64)


@kernel(inline="always")
def _key(x, y, z, level, side):
    """64-bit hash of a cell, never 0; two that share one only share a count."""
    edge = 2.0**level
    h = np.uint64(np.int64(np.floor(x / edge))) * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(32))) + np.uint64(np.int64(np.floor(y / edge))) * np.uint64(
        0xC2B2AE3D27D4EB4F
    )
    h = (h ^ (h >> np.uint64(29))) * np.uint64(0x165667B19E3779F9)
    h = (h ^ (h >> np.uint64(32))) + np.uint64(np.int64(np.floor(z / edge))) * np.uint64(
        0xD6E8FEB86659FD93
    )
    h = (h ^ (h >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(31))) + np.uint64(level * 8 + side) * np.uint64(0xA0761D6478BD642F)
    h = (h ^ (h >> np.uint64(29))) * np.uint64(0xE7037ED1A0B428DB)
    return (h ^ (h >> np.uint64(32))) | np.uint64(1)


@kernel
def _lacking(points, level, side, keys, counts, enough):
    alone = 0
    few = 0
    for i in range(len(points)):
        at = place_of(_key(points[i, 0], points[i, 1], points[i, 2], level[i], side[i]), keys)
        others = counts[at] - 1 if keys[at] != np.uint64(0) else 0
        alone += others < 1
        few += others < enough
    return alone, few


@kernel
def _count(points, level, side, keys, counts, last, used, call, by, coarser):
    for i in range(len(points)):
        for up in range(coarser + 1):
            key = _key(points[i, 0], points[i, 1], points[i, 2], level[i] + up, side[i])
            at = place_of(key, keys)
            if keys[at] == np.uint64(0):
                keys[at] = key
                used[0] += 1
            if last[at] != call:
                last[at] = call
                counts[at] += by


@kernel
def _rehash(old_keys, old_counts, old_last, keys, counts, last):
    for i in range(old_keys.size):
        if old_keys[i] != np.uint64(0):
            at = place_of(old_keys[i], keys)
            keys[at] = old_keys[i]
            counts[at] = old_counts[i]
            last[at] = old_last[i]
