"""`python -m bench._attention_peak N M HEADS ORDER`: what attention takes beside its results.

A process of its own, because what is free in an old heap hides what is asked for: here the
allocator hands every larger array back at once (`MALLOC_MMAP_THRESHOLD_`, set by
`attention.extra_memory`), so that the highest resident size counts what lived together. Linux only.
Prints one JSON object: bytes above the start without outputs and weights, in bytes of the weights,
by candidate.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from bench.harness import THREADS  # before torch: sets its threads


def _kilobytes(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])


def _peak_bytes(run: Callable[[], object]) -> int:
    """Most resident memory above the start while `run` worked, its results included."""
    run()  # what is loaded or compiled on the first call is not the call's
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size so far
    start = _kilobytes("VmRSS")
    kept = run()
    peak = _kilobytes("VmHWM") - start
    del kept
    return 1024 * max(0, peak)


def main() -> None:
    import torch

    from bench.attention import CHANNELS, Problem, contenders

    torch.set_num_threads(THREADS)
    n, m, heads = (int(x) for x in sys.argv[1:4])
    problem = Problem(n, m, heads, sys.argv[4] == "random")
    weights = problem.pairs * heads * 4
    results = n * CHANNELS * 4 + weights
    with torch.no_grad():
        found = {
            name: (_peak_bytes(run) - results) / weights
            for name, run in contenders(problem).items()
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
