"""The book of a growing cloud: columns per point, merging, eviction, undo. No learned weights here.

A point lives in a *slot*; slots are only ever appended, and a removed point leaves its slot dead
until the store is compacted, so slot order is the order of adding. The *row* of a point, the number
the outside sees, is its rank among the living slots. Cost per update follows the batch: columns
grow geometrically, eviction takes the next of a queue sorted once per pass over the cloud, and
compaction waits until a third of the slots is dead.

Undo is a chain of differences (`Snapshot`): each state that is still held knows how to get to
the next newer one, and restoring walks the chain and turns the differences around (Baker 1991,
"Shallow binding makes functional arrays fast"). A state that is not held costs nothing.
"""

import weakref
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from worldstereo._core import parallel as _parallel
from worldstereo._core.compiled import has_compiler
from worldstereo.memory.geometric._storage import (
    DEFAULTS,
    Columns,
    Difference,
    Snapshot,
    Storage,
    blank_columns,
)
from worldstereo.memory.geometric._thinning import thinned
from worldstereo.neighbors import SpatialIndex, exact_index

if TYPE_CHECKING:
    from worldstereo.memory.geometric._hash import BrickHash


class Merged(NamedTuple):
    added: int
    merged: int


class PointStore:
    """Columns of a growing cloud with exact merging, eviction of the oldest and undo."""

    def __init__(self, max_points: int) -> None:
        self.max_points = max_points
        self.thins = False
        """What leaves a full store: False the oldest points, True what others make superfluous."""
        self.stretch = 1.0
        """Distance between points over the width of their samples, once the cloud was thinned."""
        self.tick = 0
        self.revision = 0
        """Another number for another state; caches elsewhere compare it."""
        self._storage = Storage(blank_columns(0))
        self._here: weakref.ref[Snapshot] | None = None
        self._queue = np.zeros(0, np.int64)
        self._queue_from = 0
        self._queue_tick = -1
        self._slots: np.ndarray | None = None
        self._cache: Columns = {}
        self._matcher: SpatialIndex | None = None
        self.generation = 0
        """Another number when slots were renumbered."""
        self._touched: list[np.ndarray] | None = None
        self._reach = 0.0

    def __getstate__(self) -> dict[str, object]:
        """A copy is a store of its own: no state of it is held yet."""
        return self.__dict__ | {"_here": None, "_cache": {}, "_matcher": None, "_touched": None}

    # ---- reading -----------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._storage.living

    def has(self, name: str) -> bool:
        return name in self._storage.columns

    def slots(self) -> Int[np.ndarray, "N"] | None:
        """Slot of each row; None while no slot is dead, when both are the same number."""
        if self._storage.dead == 0:
            return None
        if self._slots is None:
            self._slots = np.flatnonzero(self._storage.alive[: self._storage.size])
        return self._slots

    def column(self, name: str) -> np.ndarray:
        """A column in row order: a copy never written again, shared until the next change."""
        if name not in self._cache:
            self._cache[name] = self.rows(name)
        return self._cache[name]

    def rows(self, name: str, rows: Int[np.ndarray, "n"] | None = None) -> np.ndarray:
        """Values of some rows, or of all: always a copy."""
        column, slots = self._storage.columns[name], self.slots()
        if rows is not None:
            return column[rows if slots is None else slots[rows]]
        if slots is not None:
            return column[slots]
        whole = np.empty((self._storage.size, *column.shape[1:]), column.dtype)
        parts = _parallel.spans(len(whole), len(whole) >> 18)  # fresh pages cost more than reading

        def copy(i: int) -> None:
            whole[slice(*parts[i])] = column[slice(*parts[i])]

        _parallel.parallel_for(len(parts), copy)
        return whole

    def memory_bytes(self) -> int:
        return self._storage.nbytes() + sum(column.nbytes for column in self._cache.values())

    def arrays(self) -> list[np.ndarray]:
        """Everything that is held for the present state."""
        storage, hash_ = self._storage, self._storage.hash
        arrays = [storage.alive, *storage.columns.values(), *self._cache.values(), self._queue]
        if self._slots is not None:
            arrays.append(self._slots)
        return arrays if hash_ is None else [*arrays, *hash_.arrays()]

    def rest(self) -> None:
        """Moves the columns to disk and drops what can be made again; nothing changes."""
        self._storage.spill()
        self._slots, self._cache, self._matcher = None, {}, None
        self._queue, self._queue_tick = np.zeros(0, np.int64), -1

    # ---- for an index over the slots, which outlives changes ---------------------------------

    @property
    def size(self) -> int:
        return self._storage.size

    def positions(self) -> Float[np.ndarray, "S 3"]:
        """Positions of all slots, the dead ones too; written by the next change."""
        return self._storage.columns["point"]

    def living(self, slots: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        inside = slots < self._storage.size
        return inside & self._storage.alive[np.where(inside, slots, 0)]

    def dead(self) -> Int[np.ndarray, "n"]:
        return np.flatnonzero(~self._storage.alive[: self._storage.size])

    def rows_of(self, slots: Int[np.ndarray, "*S"]) -> Int[np.ndarray, "*S"]:
        """Rows of living slots."""
        if self._storage.dead == 0:
            return slots
        if "row" not in self._cache:
            alive = self._storage.alive[: self._storage.size]
            self._cache["row"] = np.cumsum(alive, dtype=np.int32) - np.int32(1)
        return self._cache["row"][slots].astype(np.int64)

    def take_touched(self) -> Int[np.ndarray, "n"] | None:
        """Slots written, added or removed since the last call; None at the first call."""
        touched, self._touched = self._touched, []
        if touched is None:
            return None
        return np.unique(np.concatenate([np.zeros(0, np.int64), *touched]))

    def reach(self) -> float:
        """A bound on the size of all coordinates so far."""
        if self._reach == np.inf:
            self._reach = _extent(self.column("point"))
        return self._reach

    def _touch(self, *slots: np.ndarray) -> None:
        if self._touched is not None:
            self._touched.extend(slots)

    # ---- changing ----------------------------------------------------------------------------

    def replace(self, columns: Columns, tick: int = 0) -> None:
        """A new cloud; missing columns are filled with their defaults."""
        n = len(columns["point"])
        storage = Storage(blank_columns(n) | columns)
        self._note(self._storage)
        self._storage, self.tick, self.stretch = storage, tick, 1.0
        self._queue_tick = -1
        self.generation += 1
        self._reach = _extent(columns["point"])
        self._changed()

    def update(self, batch: Columns, threshold: float) -> Merged:
        """Merges a batch into the cloud or adds it; see `GlobalGeometricMemory.update`."""
        m = len(batch["point"])
        match = self._match(batch["point"], threshold)
        fresh = np.flatnonzero(match < 0)
        added = self._collapse({name: c[fresh] for name, c in batch.items()}, threshold)
        hit = np.flatnonzero(match >= 0)
        first, target = _groups(np.repeat(match[hit, None], 3, axis=1).astype(np.float64))
        slots = match[hit][first]
        old = {name: column[slots] for name, column in self._storage.columns.items()}
        merged = self._blend(old, target, {name: c[hit] for name, c in batch.items()})
        # Nothing was written so far: an error up to here leaves the store as it was.
        storage, before, none = self._storage, self._storage.size, np.zeros(0, np.int64)
        n_added = len(added["point"])
        storage.reserve(before + n_added)
        for name in [name for name in batch if name not in storage.columns]:
            storage.add_column(name, batch[name].shape[-1])
        storage.size = before + n_added
        storage.alive[before : storage.size] = True
        for name, column in storage.columns.items():
            if name in merged:
                column[slots] = merged[name]
            column[before : storage.size] = added.get(name, DEFAULTS.get(name, 0))
        if storage.hash is not None:
            storage.hash.move(storage.columns["point"], slots, old["point"])
            storage.hash.add(storage.columns["point"], np.arange(before, storage.size))
        self.tick += 1
        storage.columns["seen"][slots] = self.tick
        storage.columns["seen"][before : storage.size] = self.tick
        self._reach = max(self._reach, _extent(batch["point"]))
        self._touch(slots, np.arange(before, storage.size))
        stretch = self.stretch
        over = max(0, storage.living - self.max_points)
        evicted = self._thin() if self.thins and over > 0 else self._evict(over)
        revived = evicted[evicted < before]
        difference = Difference(slots, old, revived, none, before, {}, tuple(old))
        self._note(difference, self.tick - 1, stretch)
        self._changed()
        self._compact()
        return Merged(n_added, m - n_added)

    def prune(self, keep: Bool[np.ndarray, "N"]) -> int:
        """Removes the rows that are not kept; returns how many."""
        rows = np.flatnonzero(~keep)
        if len(rows) == 0:
            return 0
        slots = self.slots()
        gone = rows if slots is None else slots[rows]
        self._kill(gone)
        storage, none = self._storage, np.zeros(0, np.int64)
        empty = {name: column[:0].copy() for name, column in storage.columns.items()}
        names = tuple(storage.columns)
        self._note(Difference(none, empty, gone, none, storage.size, {}, names), self.tick)
        self._changed()
        self._compact()
        return len(gone)

    def fill_column(self, name: str, values: np.ndarray) -> None:
        """Stores a column that was not stored so far, one value per row."""
        columns = {key: self.rows(key) for key in self._storage.columns} | {name: values}
        self.replace(columns, self.tick)

    # ---- undo --------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """A handle on the present state; while held, later changes keep what they overwrite."""
        here = self._here() if self._here is not None else None
        if here is None:
            here = Snapshot()
            self._here = weakref.ref(here)
        here.tick, here.stretch = self.tick, self.stretch
        return here

    def restore(self, version: Snapshot) -> None:
        """Back (or forth) to a state; costs what changed on the way.

        Raises:
            ValueError: the handle belongs to another store.
        """
        present = self.snapshot()
        path = [version]
        while path[-1].newer is not None:
            path.append(path[-1].newer)
        if path[-1] is not present:
            raise ValueError(
                "snapshot belongs to another memory; restore takes one of this memory."
            )
        for target in reversed(path[:-1]):
            assert target.difference is not None and target.newer is not None
            target.newer.difference = self._apply(target.difference)
            target.newer.newer, target.newer = target, None
            target.difference = None
            self.tick, self.stretch = target.tick, target.stretch
        self._here = weakref.ref(version)
        self._queue_tick = -1
        self._changed()

    def _note(
        self,
        difference: "Difference | Storage",
        tick: int | None = None,
        stretch: float | None = None,
    ) -> None:
        """Remembers how to get back to the state before a change, if that state is held."""
        here = self._here() if self._here is not None else None
        if here is None:
            return
        newer = Snapshot()
        difference.spill()
        here.newer, here.difference = newer, difference
        here.tick = self.tick if tick is None else tick
        here.stretch = self.stretch if stretch is None else stretch
        self._here = weakref.ref(newer)

    def _apply(self, difference: "Difference | Storage") -> "Difference | Storage":
        """Moves to the neighbouring state; returns the way back."""
        storage = self._storage
        if isinstance(difference, Storage):
            self._storage = difference
            self.generation += 1
            self._reach = np.inf  # not known without a pass over the cloud
            return storage
        low = min(storage.size, difference.size)
        back = Difference(
            slots=difference.slots,
            values={name: column[difference.slots] for name, column in storage.columns.items()},
            revived=difference.killed,
            killed=difference.revived,
            size=storage.size,
            tail={
                name: column[low : storage.size].copy() for name, column in storage.all_columns()
            },
            names=tuple(storage.columns),
        )
        if storage.hash is not None:
            storage.hash.remove(np.flatnonzero(storage.alive[low : storage.size]) + low)
        storage.dead -= int(np.count_nonzero(~storage.alive[low : storage.size]))
        storage.size = low
        storage.reserve(difference.size)
        for name in difference.names:
            if name not in storage.columns:
                storage.add_column(name, difference.values[name].shape[-1])
        for name in [name for name in storage.columns if name not in difference.names]:
            del storage.columns[name]
        for name, values in difference.values.items():
            storage.columns[name][difference.slots] = values
        if difference.size > low:
            storage.size = difference.size
            for name, column in storage.all_columns():
                column[low : storage.size] = difference.tail[name]
            storage.dead += int(np.count_nonzero(~storage.alive[low : storage.size]))
        if storage.hash is not None:
            points, slots = storage.columns["point"], difference.slots
            linked = storage.alive[slots]  # the revived are not linked yet
            storage.hash.move(points, slots[linked], back.values["point"][linked])
            storage.hash.add(points, difference.revived)
            storage.hash.add(points, np.flatnonzero(storage.alive[low : storage.size]) + low)
        self._touch(difference.slots, difference.revived)
        self._touch(np.arange(low, max(back.size, difference.size)))
        storage.alive[difference.revived] = True
        storage.dead -= len(difference.revived)
        self._kill(difference.killed)
        return back

    # ---- inside ------------------------------------------------------------------------------

    def _match(self, points: Float[np.ndarray, "M 3"], threshold: float) -> Int[np.ndarray, "M"]:
        """Slot of the nearest stored point within the threshold, the lowest among equals, or -1."""
        if len(self) == 0 or len(points) == 0:
            return np.full(len(points), -1, np.int64)
        if not has_compiler():
            return self._match_rows(points, threshold)
        stored = self._storage.columns["point"]
        found = self._hash(threshold).nearest(points, stored, threshold)
        crowded = np.flatnonzero(found < -1)
        if len(crowded) > 0:  # more points within the threshold than a chain can hold
            found[crowded] = self._match_rows(points[crowded], threshold)
        return found

    def _match_rows(self, points: Float[np.ndarray, "M 3"], threshold: float) -> np.ndarray:
        """`_match` with an index built for the purpose: costs a pass over the cloud."""
        if self._matcher is None:
            self._matcher = exact_index(self.column("point"))
        distance, row = self._matcher.query(points, 1)
        slots = self.slots()
        slot = row[:, 0] if slots is None else slots[row[:, 0]]
        return np.where(distance[:, 0] <= threshold, slot, -1)

    def _collapse(self, fresh: Columns, threshold: float) -> Columns:
        """New points that share a cell of the threshold's size, made one: their mean."""
        points = fresh["point"]
        cell = points.astype(np.float64) + 0.0
        if threshold > 0:
            cell = np.floor(cell / threshold)
        first, group = _groups(cell)
        count = np.bincount(group, minlength=len(first))
        if len(first) == len(points):
            return fresh | {"count": count.astype(np.int32)}
        added = {name: column[first] for name, column in fresh.items()}
        many = count > 1
        for name, column in fresh.items():
            if name != "source":
                mean = _sums(column, group, len(first)) / _like(count, column)
                added[name] = np.where(_like(many, column), finished(name, mean), added[name])
        # A mean may come near a stored point although none of its points did: keep the first then.
        near = np.flatnonzero(many)
        near = near[self._match(added["point"][near], threshold) >= 0]
        added["point"][near] = points[first[near]]
        return added | {"count": count.astype(np.int32)}

    def _blend(self, old: Columns, target: np.ndarray, batch: Columns) -> Columns:
        """`old` values of some slots after taking in the batch: means weighted by observations."""
        before = old["count"]
        extra = np.bincount(target, minlength=len(before))
        blended: Columns = {"count": before + extra.astype(np.int32)}
        for name, values in batch.items():
            if name == "source":
                continue
            mean = _sums(values, target, len(before))
            weight = before if name in old else np.zeros_like(before)
            if name == "radius" and name in old:  # 0: not known
                weight = np.where(old[name] > 0, before, 0)
            if name in old:
                mean += old[name].astype(np.float64) * _like(weight, mean)
            blended[name] = finished(name, mean / _like(weight + extra, mean))
            if name == "radius" and self.thins:  # the detail of the nearest camera
                least = np.where(weight > 0, old[name], np.inf) if name in old else np.inf
                least = np.broadcast_to(least, len(before)).astype(np.float32)
                np.minimum.at(least, target, np.where(values > 0, values, np.inf))
                blended[name] = np.where(np.isfinite(least), least, 0).astype(np.float32)
        return blended

    def _hash(self, threshold: float) -> "BrickHash":
        from worldstereo.memory.geometric._hash import build_hash

        storage = self._storage
        if storage.hash is None or not storage.hash.suits(threshold):
            storage.hash = build_hash(
                storage.columns["point"], self.slots(), storage.size, threshold
            )
        return storage.hash

    def _kill(self, slots: np.ndarray) -> None:
        if self._storage.hash is not None:
            self._storage.hash.remove(slots)
        self._touch(slots)
        self._storage.alive[slots] = False
        self._storage.dead += len(slots)

    def _evict(self, n: int) -> Int[np.ndarray, "n"]:
        """Removes the `n` living slots that were observed longest ago, ties by slot."""
        storage, gone = self._storage, [np.zeros(0, np.int64)]
        seen = storage.columns["seen"]
        while n > 0:
            if self._queue_tick < 0 or self._queue_from == len(self._queue):
                living = np.flatnonzero(storage.alive[: storage.size])
                self._queue = living[np.argsort(seen[living], kind="stable")]
                self._queue_from, self._queue_tick = 0, self.tick
            head = self._queue[self._queue_from : self._queue_from + n]
            self._queue_from += len(head)
            # Entries observed since the queue was sorted come again, later, in the next queue.
            gone.append(head[storage.alive[head] & (seen[head] <= self._queue_tick)])
            self._kill(gone[-1])
            n -= len(gone[-1])
        return np.concatenate(gone)

    def _thin(self) -> Int[np.ndarray, "n"]:
        """Removes points that are closer than they need be, until there is room for many."""
        storage = self._storage
        living = np.flatnonzero(storage.alive[: storage.size])
        columns = storage.columns
        width = 2 * columns["radius"][living] if "radius" in columns else np.zeros(len(living))
        weight = columns["confidence"][living] * np.minimum(columns["count"][living], 255)
        target = max(1, self.max_points * 7 // 10)
        kept, self.stretch = thinned(columns["point"][living], width, weight, target, self.stretch)
        gone = living[~kept]
        self._kill(gone)
        return gone

    def _compact(self) -> None:
        """Gives dead slots back once they are a third of all."""
        storage = self._storage
        if storage.dead < 1024 or storage.dead * 3 < storage.size:
            return
        fresh = Storage({name: self.rows(name) for name in storage.columns})
        if storage.hash is not None and storage.hash.suits(0.0):
            slots = self.slots()
            assert slots is not None
            fresh.hash = storage.hash.renumbered(slots)
        self._note(storage, self.tick)
        self._storage = fresh
        self._queue_tick = -1
        self.generation += 1
        self._changed()

    def _changed(self) -> None:
        self.revision += 1
        self._slots, self._cache, self._matcher = None, {}, None


def finished(name: str, mean: np.ndarray) -> np.ndarray:
    """A mean formed in float64 as it is stored; normals are made unit length again, or zero."""
    if name == "normal":
        length = np.sqrt((mean * mean).sum(axis=-1, keepdims=True))
        mean = np.divide(mean, length, out=np.zeros_like(mean), where=length > 0)
    return mean.astype(np.float32)


def _sums(values: np.ndarray, group: np.ndarray, groups: int) -> Float[np.ndarray, "*G"]:
    """Float64 sums per group, added up in the order of the rows: no thread count changes a bit."""
    if groups == 0:  # bincount would answer in integers
        return np.zeros((0, *values.shape[1:]))
    if values.ndim == 1:
        return np.bincount(group, weights=values, minlength=groups)
    parts = [np.bincount(group, weights=column, minlength=groups) for column in values.T]
    return np.stack(parts, axis=-1)


def _groups(keys: Float[np.ndarray, "M 3"]) -> tuple[np.ndarray, np.ndarray]:
    """First row of each group of equal rows, in the order of those, and the group of each row."""
    if has_compiler():
        from worldstereo.memory.geometric._hash import group_rows

        group, first = group_rows(keys + 0.0)  # -0.0 and 0.0 are one place, their bits are not
        return first, group
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[group.reshape(-1)]


def _extent(points: Float[np.ndarray, "n 3"]) -> float:
    return float(np.abs(points).max()) if len(points) > 0 else 0.0


def _like(per_row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return per_row[:, None] if column.ndim == 2 else per_row
