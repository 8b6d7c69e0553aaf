"""Neighbours in a cloud that keeps changing: a large index, and a small one over recent changes.

After a change the large index only steps over the points that moved or went; they and the new ones
are searched in a small index of their own. When that has grown to a part of the cloud, everything
is indexed again: the cost per changed point does not grow with the cloud (amortised).
"""

import numpy as np
import torch
from jaxtyping import Float, Int

from worldstereo._core.compiled import has_compiler
from worldstereo.memory.geometric._store import PointStore
from worldstereo.neighbors import SpatialIndex, build_index

SHARE = 8  # the small index may hold this part of the cloud
MIN_SLOTS = 4096
BRUTE = 1 << 20  # points up to which "auto" compares all of them on a CUDA device


class GrowingIndex:
    """Exact neighbours of the rows of a store, whatever happened to it since the last query."""

    def __init__(self, store: PointStore, kind: str) -> None:
        self._store = store
        self._kind = kind
        self._revision = -1
        self._plain: SpatialIndex | None = None
        self._base: SpatialIndex | None = None
        self._base_size = 0
        self._small: SpatialIndex | None = None
        self._changed = np.zeros(0, np.int64)
        self._generation = -1

    def query(
        self, queries: Float[np.ndarray, "Q 3"], k: int, device: torch.device
    ) -> tuple[Float[np.ndarray, "Q m"], Int[np.ndarray, "Q m"]]:
        """Float64 distances ascending and rows of the `m = min(k, N)` nearest points."""
        kind = self._kind
        if kind == "auto" and device.type == "cuda" and len(self._store) <= BRUTE:
            kind = "cuda_knn"
        if kind == "cuda_knn" or not self._in_reach(queries):
            if self._plain is None or self._revision != self._store.revision:
                points = torch.from_numpy(self._store.column("point")).to(device)
                self._plain, self._revision = build_index(points, kind), self._store.revision
            return self._plain.query(queries, k)
        return self._search(np.ascontiguousarray(queries, np.float32), k)

    def nbytes(self) -> int:
        held = (self._base, self._small, self._plain)
        return sum(index.nbytes() for index in held if hasattr(index, "nbytes"))  # type: ignore

    def _in_reach(self, queries: np.ndarray) -> bool:
        if not has_compiler():
            return False
        from worldstereo._core.morton import MAX_COUNT, REACH, reach

        return (
            reach(queries) < REACH
            and self._store.reach() < REACH
            and self._store.size < MAX_COUNT
            and len(self._store) > 0
        )

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        from worldstereo.neighbors.compiled import CompiledIndex
        from worldstereo.neighbors.kernels import merge_lists

        store = self._store
        self._refresh()
        assert isinstance(self._base, CompiledIndex)
        square, rows = self._base.search(queries, k)
        m = min(k, len(store))
        if len(self._changed) > 0:
            slots = self._changed[store.living(self._changed)]
            if self._small is None:
                self._small = CompiledIndex(store.positions()[slots])
            assert isinstance(self._small, CompiledIndex)
            other, other_rows = self._small.search(queries, k)
            out, found = np.empty((len(queries), m)), np.empty((len(queries), m), np.int64)
            names = np.arange(self._base_size)
            merge_lists(square, rows, names, other, other_rows, slots, out, found)
            square, rows = out, found
        else:
            square, rows = square[:, :m], rows[:, :m]
        return np.sqrt(square), store.rows_of(rows)

    def _refresh(self) -> None:
        """Takes in what changed since the last query."""
        from worldstereo.neighbors.compiled import CompiledIndex

        store = self._store
        touched = store.take_touched()
        if self._generation == store.generation and touched is not None:
            if len(touched) > 0:
                fresh = np.setdiff1d(touched[touched < self._base_size], self._changed)
                self._changed = np.union1d(self._changed, touched)
                self._changed = self._changed[self._changed < max(store.size, self._base_size)]
                self._small = None
                assert isinstance(self._base, CompiledIndex)
                self._base.remove(fresh)
            if len(self._changed) <= max(MIN_SLOTS, len(store) // SHARE):
                return
        points = store.positions()[: store.size]
        self._base, self._base_size = CompiledIndex(points), store.size
        dead = store.dead()
        if len(dead) > 0:
            self._base.remove(dead)
        self._changed, self._small = np.zeros(0, np.int64), None
        self._generation = store.generation
