"""The benchmarks are listed and run."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_benchmarks_are_listed_with_what_they_measure():
    lines = bench().splitlines()
    names = {line.split()[0] for line in lines}
    assert {"neighbours", "update", "render", "guide", "import", "attention"} <= names
    assert all(len(line.split()) > 2 for line in lines)


def test_a_benchmark_runs_and_prints_a_table():
    out = bench("render", "update", "--quick")
    assert "| splat 480x832, 3x3 | worldstereo | 20,000 |" in out
    assert "x of torch scatter_reduce + filter" in out
    assert "x of scipy cKDTree rebuild" in out


def test_the_calls_that_a_gpu_would_run_are_run_on_the_cpu_device():
    out = bench("cuda", "--quick")
    for part in ("neighbours", "update", "splat", "correspondence mask", "attention"):
        assert f"| CUDA {part}" in out
