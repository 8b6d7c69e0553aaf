"""Exact nearest neighbours behind one interface: `build_index(points).query(queries, k)`.

Distances are compared in float64 and ties go to the lower row, whatever the structure inside, so
every index gives the same answer as a slow loop. Kinds: "kd_tree" and "ball_tree" (one structure),
"cuda_knn" (KeOps candidates, re-ranked in float64) and "auto".
"""

import contextlib
import functools
import io
import logging
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldstereo._core.compiled import has_compiler
from worldstereo.neighbors._plain import ScipyIndex, brute_force

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
    """The fastest exact index available for points that live on the CPU."""
    if has_compiler():
        from worldstereo._core.morton import MAX_COUNT, REACH, reach
        from worldstereo.neighbors.compiled import CompiledIndex

        if len(points) < MAX_COUNT and reach(points) < REACH:
            return CompiledIndex(points)
    return ScipyIndex(points)


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
