"""What a user would pick instead: optional peers beside the libraries the project needs anyway.

`requirements-bench.txt` installs them; one that is absent, or does not start, is left out and
named once. Every function returns name -> work, ready to be timed.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.harness import THREADS

Work = dict[str, Callable[[], Any]]


@functools.cache
def module(name: str) -> Any:
    """An optional package, or None; says once on stderr which one is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: skipped, {error}", file=sys.stderr)
        return None


def neighbour_trees(points: np.ndarray, queries: np.ndarray, k: int) -> Work:
    """Exact nearest neighbours on the CPU; scipy's tree first."""
    from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

    tree = cKDTree(points)
    work: Work = {"scipy cKDTree": lambda: tree.query(queries, k, workers=THREADS)}
    if napf := module("napf"):
        flat = napf.KDT(points, nthread=THREADS)
        work["napf"] = lambda: flat.knn_search(queries, k, THREADS)
    if nano := module("pynanoflann"):
        fitted = nano.KDTree(n_neighbors=k)
        fitted.fit(points)
        work["pynanoflann"] = lambda: fitted.kneighbors(queries, n_jobs=THREADS)
    if gicp := module("small_gicp"):
        doubles = points.astype(np.float64), queries.astype(np.float64)
        small = gicp.KdTree(doubles[0], num_threads=THREADS)
        work["small_gicp"] = lambda: small.batch_knn_search(doubles[1], k, num_threads=THREADS)
    if open3d := module("open3d"):
        tensor = open3d.core.Tensor
        search = open3d.core.nns.NearestNeighborSearch(tensor(points))
        search.knn_index()
        asked = tensor(queries)
        work["Open3D"] = lambda: search.knn_search(asked, k)
    return work


def slow_neighbours(points: np.ndarray, queries: np.ndarray, k: int) -> Work:
    """Peers that take seconds at large sizes: one thread, or all pairs."""
    work: Work = {}
    if neighbors := module("sklearn.neighbors"):
        ball = neighbors.KDTree(points)
        work["scikit-learn KDTree, 1 thread"] = lambda: ball.query(queries, k)
    return work


def voxel_maps(cloud: np.ndarray, frames: list[torch.Tensor], cell: float) -> Work:
    """Growing maps with rules of their own: one or few points a voxel, no averages, no history."""
    turn = {"torch": 0, "gicp": 0, "open3d": 0}

    def next_frame(who: str) -> torch.Tensor:
        turn[who] = (turn[who] + 1) % len(frames)
        return frames[turn[who]]

    keys = torch.unique(_voxel_keys(torch.from_numpy(cloud), cell))

    def sorted_keys() -> None:
        nonlocal keys
        fresh = torch.unique(_voxel_keys(next_frame("torch"), cell))
        at = torch.searchsorted(keys, fresh).clamp(max=len(keys) - 1)
        keys = torch.sort(torch.cat([keys, fresh[keys[at] != fresh]])).values

    work: Work = {"torch sorted voxel keys": sorted_keys}
    if gicp := module("small_gicp"):
        grown = gicp.IncrementalVoxelMap(cell)
        grown.set_lru(1 << 30, 1 << 30)
        grown.insert(gicp.PointCloud(cloud.astype(np.float64)))
        work["small_gicp IncrementalVoxelMap"] = lambda: grown.insert(
            gicp.PointCloud(next_frame("gicp").double().numpy())
        )
    if open3d := module("open3d"):
        core = open3d.core
        table = core.HashSet(2 * len(cloud), core.int32, (3,))
        voxels = lambda p: core.Tensor(np.floor(p / cell).astype(np.int32))  # noqa: E731
        table.insert(voxels(cloud))
        work["Open3D HashSet of voxels"] = lambda: table.insert(
            voxels(next_frame("open3d").numpy())
        )
    return work


def _voxel_keys(points: torch.Tensor, cell: float) -> torch.Tensor:
    x, y, z = ((points / cell).floor().long() + (1 << 20)).unbind(1)
    return (x << 42) | (y << 21) | z


def splatters(points: torch.Tensor, colors: torch.Tensor, camera: Any) -> Work:
    """Depth and index of 3x3 splats as one would write them with numpy or plain torch."""
    K, size = camera.K.double(), camera.width * camera.height
    taps = [(du, dv) for dv in (-1, 0, 1) for du in (-1, 0, 1)]

    def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        R, t = camera.c2w[:3, :3], camera.c2w[:3, 3]
        seen = (points - t) @ R
        z = seen[:, 2]
        u = (K[0, 0] * seen[:, 0] / z + K[0, 2]).floor().long()
        v = (K[1, 1] * seen[:, 1] / z + K[1, 2]).floor().long()
        word = (z.view(torch.int32).long() << 32) | torch.arange(len(z))
        good = (z > 0.05) & (u >= -1) & (u <= camera.width) & (v >= -1) & (v <= camera.height)
        return u[good], v[good], word[good]

    def every_tap(put: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        u, v, word = packed()
        for du, dv in taps:
            x, y = u + du, v + dv
            good = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
            put((y * camera.width + x)[good], word[good])

    def finish(buffer: torch.Tensor) -> torch.Tensor:
        index = (buffer & 0xFFFFFFFF).clamp(max=len(points) - 1)
        return colors[index] * (buffer < EMPTY)[:, None]

    def with_torch() -> torch.Tensor:
        buffer = torch.full((size,), EMPTY)
        every_tap(lambda at, word: _least(buffer, at, word))
        return finish(buffer)

    def with_numpy() -> torch.Tensor:
        buffer = np.full(size, EMPTY)
        every_tap(lambda at, word: np.minimum.at(buffer, at.numpy(), word.numpy()))
        return finish(torch.from_numpy(buffer))

    return {"torch scatter_reduce, every tap": with_torch, "numpy minimum.at": with_numpy}


EMPTY = (1 << 63) - 1


def _least(buffer: torch.Tensor, at: torch.Tensor, word: torch.Tensor) -> None:
    buffer.scatter_reduce_(0, at, word, "amin")
