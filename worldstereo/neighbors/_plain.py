"""Exact neighbours without a compiler: a slow loop, and scipy's k-d tree."""

import numpy as np
from jaxtyping import Float, Int

from worldstereo._core import parallel as _parallel


def brute_force(
    points: Float[np.ndarray, "N 3"], queries: Float[np.ndarray, "Q 3"], k: int
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """The definition of the answer, in blocks of queries: for small clouds and as an oracle."""
    distance, rows = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    block = max(1, (1 << 22) // max(1, len(points)))
    for start in range(0, len(queries), block):
        part = slice(start, start + block)
        away = points.astype(np.float64) - queries[part, None].astype(np.float64)
        square = away[..., 0] ** 2 + away[..., 1] ** 2 + away[..., 2] ** 2
        order = np.argsort(square, axis=-1, kind="stable")[:, :k]
        rows[part] = order
        distance[part] = np.sqrt(np.take_along_axis(square, order, axis=1))
    return distance, rows


class ScipyIndex:
    """scipy's k-d tree over the distinct positions: the path without a compiler, and the oracle.

    Copies of one position are kept in a list beside the tree, because a tree cannot split them and
    would scan all of them for every query.
    """

    def __init__(self, points: Float[np.ndarray, "N 3"]) -> None:
        from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

        self.n = len(points)
        self._points = points
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
            # The tree's own distances are rounded roots: near ties are told apart by the squares.
            square = np.where(np.isinf(d_rows), np.inf, squares(self._points, rows, queries[left]))
            order = np.lexsort((rows, square), axis=-1)[:, :m]
            distance[left] = np.sqrt(np.take_along_axis(square, order, axis=1))
            row[left] = np.take_along_axis(rows, order, axis=1)
            if wanted == self._sites:
                break
            left = left[d[:, -1] <= distance[left, -1] * (1 + 1e-14)]
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


def squares(
    points: Float[np.ndarray, "N 3"],
    rows: Int[np.ndarray, "Q m"],
    queries: Float[np.ndarray, "Q 3"],
) -> Float[np.ndarray, "Q m"]:
    """Squared distances in float64, summed in the order x, y, z like everywhere here."""
    away = points[rows].astype(np.float64) - queries[:, None]
    return away[..., 0] ** 2 + away[..., 1] ** 2 + away[..., 2] ** 2


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
