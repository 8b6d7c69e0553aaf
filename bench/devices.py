"""The CUDA paths: `python -m bench cuda` measures all of them where there is a GPU.

CUDA events around each call, after warm-up, medians; candidates take turns. Beside each row the
same work on the CPU, and a dense or brute-force baseline on the GPU. Without a GPU the rows say
that they are unmeasured; `--quick` then runs the same calls on the CPU device, to show that they
run.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench._scenes import rooms, walk
from bench.attention import Problem, _bank, view
from bench.harness import Context, Row
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.render import render_points

Work = dict[str, Callable[[], Any]]
NOTE = "unmeasured: no GPU here"


def cuda(context: Context) -> list[Row]:
    """The CUDA paths of neighbours, update, splat, mask and attention; unmeasured without a GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = context.quick
    titles: list[tuple[str, int, Callable[[], Work]]] = [
        ("neighbours k=8, 100,000 queries", 1_000_000, lambda: _neighbours(small, device)),
        ("update, 20000 points a frame", 1_000_000, lambda: _update(small, device)),
        ("splat 480x832, 3x3", 5_000_000, lambda: _splat(small, device)),
        ("correspondence mask, 6240 queries", 1_000_000, lambda: _mask(small, device)),
    ]
    for heads in (1, 8):
        titles.append(
            (f"attention, 6240 queries, {heads} head(s)", 100_000,
             lambda heads=heads: _attention(small, device, heads))
        )  # fmt: skip
    rows = []
    for title, size, build in titles:
        if device.type == "cpu" and not small:
            rows.append(Row(f"CUDA {title}", "worldstereo", size, 0, 0, 0, {"note": NOTE}))
            continue
        for name, milliseconds in _events(build(), device, 1 if small else 9).items():
            extra = {"gpu": torch.cuda.get_device_name()} if device.type == "cuda" else {}
            size = 0 if small else size
            rounds = 1 if small else 9
            rows.append(Row(f"CUDA {title}", name, size, 0, milliseconds, rounds, extra))
    return rows


def _events(work: Work, device: torch.device, rounds: int) -> dict[str, float]:
    """Median milliseconds of each candidate; on the CPU by the clock."""
    spent: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(-2 if rounds > 1 else 0, rounds):
        for name, call in work.items():
            if device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                call()
                end.record()
                torch.cuda.synchronize()
                took = start.elapsed_time(end)
            else:
                began = time.perf_counter()
                call()
                took = 1e3 * (time.perf_counter() - began)
            if turn >= 0:
                spent[name].append(took)
    return {name: statistics.median(times) for name, times in spent.items()}


def _both(device: torch.device, work: Callable[[torch.device], Callable[[], Any]]) -> Work:
    return {"worldstereo": work(device), "worldstereo on the CPU": work(torch.device("cpu"))}


def _neighbours(small: bool, device: torch.device) -> Work:
    n, q = (3_000, 100) if small else (1_000_000, 100_000)
    points = torch.from_numpy(rooms(n))
    queries = torch.from_numpy(rooms(q, 99) + np.float32(0.01))

    def asked(where: torch.device, kind: str = "auto") -> Callable[[], Any]:
        memory = GlobalGeometricMemory(4, 4, 8, max_points=n, spatial_index=kind).to(where)
        memory.initialize(points.to(where))
        there = queries[None].to(where)
        return lambda: memory.neighbors(there)

    cloud, near = points.to(device), queries.to(device)

    def dense() -> None:
        mode = "donot_use_mm_for_euclid_dist"  # the product form loses digits
        for part in near.split(512):
            torch.cdist(part, cloud, compute_mode=mode).topk(8, largest=False)

    return _both(device, asked) | {"KeOps": asked(device, "cuda_knn"), "cdist + topk": dense}


def _update(small: bool, device: torch.device) -> Work:
    n, m = (3_000, 100) if small else (1_000_000, 20_000)
    points = torch.from_numpy(rooms(n, 1))

    def grown(where: torch.device) -> Callable[[], Any]:
        memory = GlobalGeometricMemory(4, 4, 4, max_points=2 * n).to(where)
        memory.initialize(points.to(where))
        fresh, pose = points[:m].to(where) + 0.003, torch.eye(4, device=where)
        return lambda: memory.update(fresh, pose, merge_threshold=0.01)

    return _both(device, grown)


def _splat(small: bool, device: torch.device) -> Work:
    n = 3_000 if small else 5_000_000
    points, colors, camera = torch.from_numpy(rooms(n)), torch.rand(n, 3), walk(7)[3]

    def drawn(where: torch.device) -> Callable[[], Any]:
        cloud, paint, there = points.to(where), colors.to(where), camera.to(where)
        return lambda: render_points(cloud, paint, there)

    return _both(device, drawn)


def _mask(small: bool, device: torch.device) -> Work:
    camera, queries, shown = view(13, 8) if small else view(104, 60)

    def tested(where: torch.device) -> Callable[[], Any]:
        bank = _bank(2_000 if small else 1_000_000, 1, 8.0, False).to(where)
        there, seen = queries[None].to(where), camera.to(where)
        hidden = type(shown)(*(x.to(where) for x in shown))
        return lambda: bank.correspondence_mask(there, seen, hidden)

    return _both(device, tested)


def _attention(small: bool, device: torch.device, heads: int) -> Work:
    here = Problem(*((60, 500) if small else (6240, 100_000)), heads)
    there = Problem(here.n, here.m, heads).to(device)

    def dense() -> None:
        for start in range(0, there.n, 640):  # as much work as all queries, in parts that fit
            there.dense(min(640, there.n - start))

    return {
        "worldstereo": lambda: there.ours(False),
        "worldstereo on the CPU": lambda: here.ours(True),
        "gather + einsum": there.gather,
        "dense SDPA with mask": dense,
    }


BENCHMARKS = {"cuda": cuda}
