"""How everything here is measured: candidates round-robin in one process, medians, CPU time.

`cpu_ms` is user + system time of all threads and is what ratios compare: on a machine shared with
others, wall time says more about the others. Threads of every library are held to `THREADS`, and
OpenMP threads sleep when idle (a spinning thread counts as work).
"""

import os

THREADS = int(os.environ.get("BENCH_THREADS", "2"))
for _name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
    os.environ.setdefault(f"{_name}_NUM_THREADS", str(THREADS))
os.environ.setdefault("WORLDSTEREO_THREADS", str(THREADS))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

import importlib.metadata  # noqa: E402  (after the thread counts, which libraries read at import)
import platform  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from dataclasses import asdict, dataclass, field  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

PACKAGES = ("torch", "numpy", "scipy", "numba", "pykeops", "gradio", "viser")
PACKAGES += ("napf", "pynanoflann", "small_gicp", "scikit-learn", "open3d-cpu")


class Timing(NamedTuple):
    """Medians over the rounds, in milliseconds."""

    cpu_ms: float
    wall_ms: float
    rounds: int


@dataclass
class Row:
    """One line of the table."""

    name: str
    """What is done: "neighbours k=8, raster order"."""
    variant: str
    """Who does it: "worldstereo", "scipy cKDTree"."""
    size: int
    cpu_ms: float
    wall_ms: float
    rounds: int
    extra: dict[str, Any] = field(default_factory=dict)
    """Shown when present: `ratio` (how many times less CPU than `against`), `floor`, `stretch`;
    `per` names the unit behind `each_us`, microseconds per unit."""


@dataclass
class Context:
    """What a benchmark is given."""

    quick: bool = False
    """Tiny sizes: shows that everything runs, measures nothing."""
    rows: list[Row] = field(default_factory=list)

    def compare(
        self, candidates: Mapping[str, Callable[[], object]], rounds: int = 5, warm: int = 1
    ) -> dict[str, Timing]:
        """Times each candidate once per round, in turn, after `warm` untimed calls of each."""
        rounds, warm = (1, 0) if self.quick else (rounds, warm)
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
        for work in candidates.values():
            for _ in range(warm):
                work()
        for _ in range(rounds):
            for name, work in candidates.items():
                cpu, wall = time.process_time(), time.perf_counter()
                work()
                spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        return {
            name: Timing(
                1e3 * statistics.median(cpu for cpu, _ in times),
                1e3 * statistics.median(wall for _, wall in times),
                len(times),
            )
            for name, times in spent.items()
        }

    def rows_of(
        self,
        name: str,
        size: int,
        timings: Mapping[str, Timing],
        *,
        ours: str = "worldstereo",
        against: str = "",
        **extra: Any,
    ) -> list[Row]:
        """Rows of one comparison; ours carries the ratio to `against` and the targets."""
        rows = []
        for variant, (cpu, wall, rounds) in timings.items():
            row = Row(name, variant, size, cpu, wall, rounds)
            if variant == ours:
                row.extra = dict(extra)
                if against in timings:
                    row.extra |= {"against": against, "ratio": timings[against].cpu_ms / cpu}
            rows.append(row)
        return rows


Benchmark = Callable[[Context], list[Row]]


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": THREADS,
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "gpu": _gpu(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "| measured | who | size | CPU ms | wall ms | rounds | ratio | floor | stretch | note |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        extra = row.extra
        ratio = f"{extra['ratio']:.2f}x" if "ratio" in extra else ""
        if ratio and "against" in extra:
            ratio += f" of {extra['against']}"
        known = ("ratio", "against", "floor", "stretch")
        note = ", ".join(f"{k} {_short(v)}" for k, v in extra.items() if k not in known)
        cells = (row.name, row.variant, f"{row.size:,}", f"{row.cpu_ms:.3g}", f"{row.wall_ms:.3g}")
        targets = (_short(extra.get("floor", "")), _short(extra.get("stretch", "")))
        lines.append("| " + " | ".join([*cells, str(row.rounds), ratio, *targets, note]) + " |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_json(rows: list[Row]) -> dict[str, Any]:
    return {"machine": machine(), "rows": [asdict(row) for row in rows]}
