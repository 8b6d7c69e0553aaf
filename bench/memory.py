"""The global memory: neighbours, incremental update, splatting, the guide, the import.

Ratios are CPU time of what a user would otherwise pick, divided by ours, in one run.
"""

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from bench._peers import neighbour_trees, slow_neighbours, splatters, voxel_maps
from bench._scenes import Scanner, rooms, walk
from bench.harness import THREADS, Context, Row, Timing
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.neighbors import build_index
from worldstereo.render import render_points, render_torch


def neighbours(context: Context) -> list[Row]:
    """Exact k nearest neighbours: raster order, random order, off the surface, growth with N."""
    rows: list[Row] = []
    n, q = (20_000, 2_000) if context.quick else (1_000_000, 100_000)
    scanner = Scanner(200_000 if context.quick else 2_000_000)
    views = walk(49)
    step = 16 if context.quick else 4
    raster = np.concatenate([scanner.frame(views[i], step, i) for i in range(49)])[:n]
    between = walk(48)
    asked = np.concatenate([scanner.frame(between[i], 2 * step, 99) for i in range(0, 48, 3)])[:q]
    for k in (8, 32):
        name = f"neighbours k={k}, raster order"
        rows += _neighbours(context, name, raster, asked, k, 2.5, 4.0)
    cloud, near = rooms(n), rooms(q, 99) + np.float32(0.01)
    for k, floor, stretch in ((8, 4.0, 7.0), (32, 3.0, 5.0)):
        name = f"neighbours k={k}, random order"
        rows += _neighbours(context, name, cloud, near, k, floor, stretch)
    free = np.random.default_rng(4).random((q // 5, 3)).astype(np.float32) * [10, 8, 3]
    rows += _neighbours(
        context, "neighbours k=8, off the surface", cloud, free.astype(np.float32), 8, 1.0, 2.0
    )
    equal = np.ones((n, 3), np.float32)
    many = context.compare({"worldstereo": lambda: build_index(equal).query(near, 8)}, rounds=3)
    rows += context.rows_of("build + neighbours k=8, all points equal", n, many)
    for size in (10_000,) if context.quick else (10_000, 100_000, 1_000_000, 4_000_000):
        part = rooms(size, 5)
        rows += _neighbours(context, "neighbours k=8, growth", part, near[: q // 4], 8, rounds=3)
    return rows


def _neighbours(
    context: Context,
    name: str,
    points: np.ndarray,
    queries: np.ndarray,
    k: int,
    floor: float | None = None,
    stretch: float | None = None,
    rounds: int = 5,
) -> list[Row]:
    ours = build_index(points)
    peers = neighbour_trees(points, queries, k)
    distance, expected = ours.query(queries, k)[0], peers["scipy cKDTree"]()[0]
    assert np.allclose(distance, expected, atol=1e-5)
    work = {"worldstereo": lambda: ours.query(queries, k), **peers}
    if len(points) <= 100_000:
        work |= slow_neighbours(points, queries, k)
    timings = context.compare(work, rounds)
    extra: dict[str, Any] = {"floor": floor, "stretch": stretch} if floor is not None else {}
    each = 1e3 * timings["worldstereo"].cpu_ms / len(queries)
    return context.rows_of(
        name, len(points), timings, against="scipy cKDTree", us_per_query=each, **extra
    )


def update(context: Context) -> list[Row]:
    """20 000 points a frame into N, half revisits, half new area; growth; eviction."""
    from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

    rows: list[Row] = []
    m = 500 if context.quick else 20_000
    sizes = (5_000,) if context.quick else (100_000, 1_000_000, 5_000_000, 10_000_000)
    cost: dict[int, float] = {}
    for n in sizes:
        r = 0.62 * (505.0 / n) ** 0.5
        cloud = rooms(n, 1)
        frames = [_frame(cloud, i, m, r) for i in range(16)]
        plain, capped = _fill(cloud, 30_000_000), _fill(cloud, n)

        def pair(geometry: GlobalGeometricMemory, turn: Iterator[int], f=frames, r=r) -> None:
            """One frame of a known area and one of a new area."""
            for _ in range(2):
                geometry.update(f[next(turn)], torch.eye(4), merge_threshold=r)

        def rebuild(cloud=cloud, f=frames, r=r) -> None:
            for frame in f[:2]:
                tree = cKDTree(cloud)
                tree.query(frame.numpy(), 1, distance_upper_bound=r, workers=THREADS)

        work: dict[str, Callable[[], object]] = {
            "worldstereo": functools.partial(pair, plain, iter(range(16))),
            "worldstereo at capacity": functools.partial(pair, capped, iter(range(16))),
        }
        if n <= 1_000_000:
            work["scipy cKDTree rebuild"] = rebuild
        if n <= 5_000_000:
            for who, insert in voxel_maps(cloud, frames, r).items():
                work[who] = functools.partial(_twice, insert)
        timings = context.compare(work, rounds=7)
        timings = {who: Timing(t.cpu_ms / 2, t.wall_ms / 2, t.rounds) for who, t in timings.items()}
        cost[n] = timings["worldstereo"].cpu_ms
        capped_ratio = timings["worldstereo at capacity"].cpu_ms / cost[n]
        extra: dict[str, Any] = {"floor": 40.0, "stretch": 100.0} if n == 1_000_000 else {}
        rows += context.rows_of(
            f"update, {m} points a frame",
            n,
            timings,
            against="scipy cKDTree rebuild",
            at_capacity=f"{capped_ratio:.2f} (floor 2, stretch 1.5)",
            bytes_per_point=plain.memory_bytes / plain.num_points,
            **extra,
        )
        if n == 10_000_000:
            rows[-2].extra["10M_over_1M"] = f"{cost[n] / cost[1_000_000]:.2f} (floor 2.5)"
    return rows


def _twice(work: Callable[[], object]) -> None:
    work()
    work()


def _fill(cloud: np.ndarray, max_points: int) -> GlobalGeometricMemory:
    geometry = GlobalGeometricMemory(4, 4, 4, max_points=max_points)
    geometry.initialize(torch.from_numpy(cloud))
    return geometry


def _frame(cloud: np.ndarray, i: int, m: int, r: float) -> torch.Tensor:
    """Points near one place, on stored ones (even) or in a new area (odd), like a depth frame."""
    from worldstereo._core.morton import morton_order

    g = np.random.default_rng(i)
    away = ((cloud[::3] - cloud[g.integers(len(cloud))]) ** 2).sum(axis=1)
    place = cloud[::3][np.argpartition(away, m)[:m]]
    place = place + g.normal(scale=r / 4, size=place.shape).astype(np.float32)
    if i % 2 == 1:
        place = place + np.array([0, 0, 50 + 10 * i], np.float32)
    return torch.from_numpy(np.ascontiguousarray(place[morton_order(place)], np.float32))


def render(context: Context) -> list[Row]:
    """One 480x832 frame with 3x3 splats: against torch scatter_reduce + minimum filter."""
    rows: list[Row] = []
    camera = walk(7)[3]
    targets = {1_000_000: (3.0, 6.0), 5_000_000: (4.0, 8.0)}
    for n in (20_000,) if context.quick else (100_000, 1_000_000, 5_000_000):
        points, colors = torch.from_numpy(rooms(n)), torch.rand(n, 3)
        for _ in range(3):  # a cloud drawn often is sorted once
            render_points(points, colors, camera)
        same = render_points(points, colors, camera).index
        assert torch.equal(same, render_torch(points, colors, camera).index)
        timings = context.compare(
            {
                "worldstereo": lambda p=points, c=colors: render_points(p, c, camera),
                "worldstereo, 5x5": lambda p=points, c=colors: render_points(p, c, camera, 2),
                "torch scatter_reduce + filter": lambda p=points, c=colors: render_torch(
                    p, c, camera
                ),
            }
            | splatters(points, colors, camera),
            rounds=5,
        )
        floor = targets.get(n)
        extra: dict[str, Any] = {"floor": floor[0], "stretch": floor[1]} if floor else {}
        against = "torch scatter_reduce + filter"
        rows += context.rows_of("splat 480x832, 3x3", n, timings, against=against, **extra)
    return rows


def guide(context: Context) -> list[Row]:
    """49 frames over 5 M points, against reading 15 bytes a point and frame at memory bandwidth."""
    n = 20_000 if context.quick else 5_000_000
    points, colors = torch.from_numpy(rooms(n)), torch.rand(n, 3)
    cameras = walk(49)
    render_points(points, colors, cameras)

    def frames() -> None:
        """One after the other, each dropped before the next but one, as a generator takes them."""
        for t in range(len(cameras)):
            render_points(points, colors, cameras[t])

    block = np.ones(1 << (20 if context.quick else 25), np.float64)
    timings = context.compare(
        {
            "worldstereo": frames,
            "worldstereo, one batch of 49": lambda: render_points(points, colors, cameras),
            "reading memory, 256 MiB": lambda: block.sum(),
        },
        rounds=3,
    )
    read = timings["reading memory, 256 MiB"]
    # Read by one thread: CPU time per byte does not depend on how many threads share the work.
    limit = read.cpu_ms * (15 * n * 49) / block.nbytes
    return context.rows_of(
        "guide, 49 frames",
        n,
        timings,
        times_the_limit=timings["worldstereo"].cpu_ms / limit,
        target="<= 8, stretch 4",
    )


def importing(context: Context) -> list[Row]:
    """`import worldstereo` and `import torch` in fresh processes."""
    rounds = 1 if context.quick else 7
    memory = "from worldstereo import GlobalGeometricMemory"
    spent: dict[str, list[tuple[float, float]]] = {
        "import worldstereo": [],
        memory: [],
        "import torch": [],
    }
    for _ in range(rounds):
        for statement, times in spent.items():
            code = f"import time; a=time.process_time(); {statement}; print(time.process_time()-a)"
            wall = time.perf_counter()
            out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            times.append((float(out.stdout), time.perf_counter() - wall))
    timings = {
        name: Timing(
            1e3 * float(np.median([c for c, _ in t])),
            1e3 * float(np.median([w for _, w in t])),
            len(t),
        )
        for name, t in spent.items()
    }
    ratio = timings[memory].cpu_ms / timings["import torch"].cpu_ms
    return context.rows_of(
        "import", 0, timings, ours=memory, of_torch=ratio, target="<= 1.3, stretch 1.1"
    )


BENCHMARKS = {
    "neighbours": neighbours,
    "update": update,
    "render": render,
    "guide": guide,
    "import": importing,
}
