"""Exact nearest neighbours behind one interface: `build_index(points).query(queries, k)`.

Distances are compared in float64 and ties go to the lower row, whatever the structure inside, so
every index gives the same answer as a slow loop. Kinds: "kd_tree" and "ball_tree" (one structure),
"cuda_knn" (KeOps candidates, re-ranked in float64) and "auto".
"""

import contextlib
import functools
import importlib.util
import io
import logging
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
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


def build_index(points: Tensor | np.ndarray, kind: str = "auto") -> SpatialIndex:
    """An exact index over a cloud (N, 3); the points are copied and may change afterwards.

    Raises:
        ValueError: an unknown kind or points of another shape.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    array = points.detach().cpu().numpy() if isinstance(points, Tensor) else np.asarray(points)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"points must be (N, 3), got {tuple(array.shape)}.")
    array = np.ascontiguousarray(array, np.float32)
    if kind == "cuda_knn" and keops_works():
        return KeopsIndex(points if isinstance(points, Tensor) else torch.from_numpy(array))
    return exact_index(array)


def exact_index(points: Float[np.ndarray, "N 3"]) -> SpatialIndex:
    """The fastest exact index at hand for points that live on the CPU."""
    if has_compiler():
        from worldstereo._morton import MOST, REACH, reach
        from worldstereo._spatial_index.compiled import CompiledIndex

        if len(points) < MOST and reach(points) < REACH:
            return CompiledIndex(points)
    return ScipyIndex(points)


def has_compiler() -> bool:
    """Whether numba is at hand; without it every function takes its torch or scipy path."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def keops_works() -> bool:
    """Whether KeOps can be imported and finds a compiler; says once why it cannot."""
    try:
        index = KeopsIndex(torch.zeros(40, 3))
        index.query(np.zeros((1, 3), np.float32), 1)
    except Exception as error:  # a missing package, compiler or header: whatever it raises
        reason = str(error).strip().splitlines()
        log.warning(
            "cuda_knn: KeOps is not usable here (%s: %s); another exact index takes its place.",
            type(error).__name__,
            reason[0] if reason else "no reason given",
        )
        return False
    return True


class KeopsIndex:
    """Candidates by brute force on the points' device, ranked again in float64.

    The (Q, N) table is never stored. Where the candidates cannot prove that they hold the answer
    (more than `SPARE` near ties in float32), another exact index decides.

    Source: Charlier et al. 2021, "Kernel operations on the GPU, with autodiff, without memory
    overflows", JMLR 22.
    """

    SPARE = 8

    def __init__(self, points: Float[Tensor, "N 3"]) -> None:
        self.n = len(points)
        self._points = points.detach().float().contiguous()
        self._exact: SpatialIndex | None = None

    def query(
        self, queries: Float[np.ndarray, "Q 3"], k: int
    ) -> tuple[Float[np.ndarray, "Q m"], Int[np.ndarray, "Q m"]]:
        m = min(k, self.n)
        wanted = (
            -(-(m + self.SPARE) // 16) * 16
        )  # few different formulas: each compiles for seconds
        if wanted >= self.n or len(queries) == 0:
            if self.n > 1 << 12:
                return self._other().query(queries, k)
            return brute_force(self._points.cpu().numpy(), queries, m)
        asked = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(self._points.device)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints at import and when compiling
            rows = _keops_candidates(self._points, asked, wanted)
        near = self._points[rows].double() - asked[:, None].double()
        square = near[..., 0] ** 2 + near[..., 1] ** 2 + near[..., 2] ** 2
        square, rows = square.cpu().numpy(), rows.cpu().numpy()
        order = np.lexsort((rows, square), axis=-1)
        square, rows = np.take_along_axis(square, order, 1), np.take_along_axis(rows, order, 1)
        distance, found = np.sqrt(square[:, :m]), rows[:, :m].astype(np.int64)
        unsure = np.flatnonzero(square[:, -1] <= square[:, m - 1] * (1 + 1e-5) + 1e-37)
        if len(unsure) > 0:
            distance[unsure], found[unsure] = self._other().query(queries[unsure], k)
        return distance, found

    def _other(self) -> SpatialIndex:
        if self._exact is None:
            self._exact = exact_index(self._points.cpu().numpy())
        return self._exact


def _keops_candidates(
    points: Float[Tensor, "N 3"], queries: Float[Tensor, "Q 3"], k: int
) -> Int[Tensor, "Q k"]:
    from pykeops.torch import LazyTensor  # compiles each formula on first use: seconds, once

    q: Any = LazyTensor(queries[:, None].contiguous())
    p: Any = LazyTensor(points[None].contiguous())
    return ((q - p) ** 2).sum(-1).argKmin(k, dim=1)


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
