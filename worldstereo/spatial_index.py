"""Exact nearest neighbours behind one interface: `build_index(points).query(queries, k)`.

Distances are compared in float64 and ties go to the lower row, whatever the structure inside, so
every index gives the same answer as a slow loop. Kinds: "kd_tree" and "ball_tree" (one structure),
"cuda_knn" (KeOps candidates, re-ranked in float64) and "auto".
"""

import logging
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from worldstereo import _parallel

log = logging.getLogger(__name__)

KINDS = ("kd_tree", "ball_tree", "cuda_knn", "auto")


@runtime_checkable
class SpatialIndex(Protocol):
    """What every index offers. `n` is the number of indexed points."""

    n: int

    def query(
        self, queries: Float[np.ndarray, "Q 3"], k: int
    ) -> tuple[Float[np.ndarray, "Q m"], Int[np.ndarray, "Q m"]]:
        """The `m = min(k, n)` nearest rows per query: float64 distances ascending, and rows."""
        ...


def build_index(points: Float[Tensor, "N 3"] | np.ndarray, kind: str = "auto") -> SpatialIndex:
    """An exact index over a cloud; the points are copied and may change afterwards.

    Raises:
        ValueError: an unknown kind or points of another shape.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    array = points.detach().cpu().numpy() if isinstance(points, Tensor) else np.asarray(points)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"points must be (N, 3), got {tuple(array.shape)}.")
    return ScipyIndex(np.ascontiguousarray(array, np.float32))


class ScipyIndex:
    """scipy's k-d tree over the distinct positions: the path without a compiler, and the oracle.

    Copies of one position are kept in a list beside the tree, because a tree cannot split them and
    would scan all of them for every query.
    """

    def __init__(self, points: Float[np.ndarray, "N 3"]) -> None:
        from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

        self.n = len(points)
        self._first, self._members = distinct_positions(points)
        sites = points if self._members is None else points[self._members[self._first[:-1]]]
        self._sites = len(sites)
        # Unbalanced trees build 2-3 times faster and answer as quickly (bench/README.md).
        self._tree = cKDTree(sites, balanced_tree=False, compact_nodes=False) if self.n else None

    def query(
        self, queries: Float[np.ndarray, "Q 3"], k: int
    ) -> tuple[Float[np.ndarray, "Q m"], Int[np.ndarray, "Q m"]]:
        m = min(k, self.n)
        if m == 0 or len(queries) == 0:
            return np.zeros((len(queries), m)), np.zeros((len(queries), m), np.int64)
        queries = np.asarray(queries, np.float64)
        distance, row = np.empty((len(queries), m)), np.empty((len(queries), m), np.int64)
        left, wanted = np.arange(len(queries)), m + 1
        while len(left) > 0:  # ask for more sites until the last one is farther than the m-th
            wanted = min(wanted, self._sites)
            d, site = self._ask(queries[left], wanted)
            d_rows, rows = (d, site) if self._members is None else self._expand(d, site, m)
            order = np.lexsort((rows, d_rows), axis=-1)[:, :m]
            distance[left] = np.take_along_axis(d_rows, order, axis=1)
            row[left] = np.take_along_axis(rows, order, axis=1)
            if wanted == self._sites:
                break
            left = left[d[:, -1] <= distance[left, -1]]
            wanted *= 2
        return distance, row

    def _ask(self, queries: np.ndarray, sites: int) -> tuple[np.ndarray, np.ndarray]:
        assert self._tree is not None
        ranks = np.arange(
            1, sites + 1
        )  # a list of ranks keeps the second axis when it has length 1
        d, site = self._tree.query(queries, k=ranks, workers=_parallel.threads())
        return np.asarray(d), np.asarray(site, np.int64)

    def _expand(self, d: np.ndarray, site: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
        """Sites to rows: the first `m` rows of each site, padded with infinity."""
        assert self._members is not None
        start, size = self._first[site], np.diff(self._first)[site]
        copies = min(m, int(size.max()))
        offset = np.arange(copies)
        held = offset < size[..., None]
        rows = self._members[np.where(held, start[..., None] + offset, 0)]
        d_rows = np.where(held, d[..., None], np.inf)
        return d_rows.reshape(len(d), -1), rows.reshape(len(d), -1)


def distinct_positions(
    points: Float[np.ndarray, "N 3"],
) -> tuple[Int[np.ndarray, "S1"], Int[np.ndarray, "N"] | None]:
    """Groups of equal positions: site `s` has the rows `members[first[s]:first[s + 1]]`, ascending.

    `members` is None where all positions differ, and site and row are then the same number.
    """
    points = points + np.float32(0)  # -0.0 and 0.0 are one position
    key = np.zeros(len(points), np.uint64)
    for axis in range(3):
        bits = points[:, axis].copy().view(np.uint32).astype(np.uint64)
        key = (key ^ bits) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")
    same_key = key[order[1:]] == key[order[:-1]]
    if not same_key.any():
        return np.arange(len(points) + 1), None
    same = (points[order[1:]] == points[order[:-1]]).all(axis=1)
    if (same != same_key).any():  # two positions share a hash: sort by the coordinates themselves
        order = np.lexsort(points.T)
        same = (points[order[1:]] == points[order[:-1]]).all(axis=1)
    first = np.flatnonzero(np.concatenate([[True], ~same, [True]]))
    return first, order
