"""One thread policy for every compiled kernel of the library.

`threads()` threads work on a kernel: the caller and `threads() - 1` helpers of one shared pool. The
number is 2, or the number of processors this process may use when that is smaller; the environment
variable `WORLDSTEREO_THREADS` overrides it. Helpers sleep on a queue between calls and never spin,
so an idle library costs nothing on a shared machine. A caller never waits for a helper to become
free: when the pool is busy with another session, the caller does the work alone, which is also why
nested calls cannot deadlock.
"""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from worldstereo.progress import check_here

_DEFAULT = 2
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def threads() -> int:
    """How many threads one kernel may keep busy; at least 1."""
    given = os.environ.get("WORLDSTEREO_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, min(_DEFAULT, available_processors()))


def available_processors() -> int:
    """Processors this process may run on, which in a container is often fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_for(n: int, work: Callable[[int], object]) -> None:
    """Calls `work(i)` once for each `i` in `range(n)`, on `threads()` threads, in no fixed order.

    `work` must release the GIL to gain anything and must write to places no other `i` writes to.
    The first exception stops further chunks and is raised here, also `interruptible`'s.
    """
    check = check_here()
    helpers = min(threads(), n) - 1
    if helpers < 1:
        for i in range(n):
            if check is not None:
                check()
            work(i)
        return
    counter = itertools.count()  # next() is atomic: each chunk is taken once
    failed = threading.Event()

    def drain(check: Callable[[], object] | None = None) -> None:
        try:
            while not failed.is_set() and (i := next(counter)) < n:
                if check is not None:
                    check()
                work(i)
        except BaseException:
            failed.set()
            raise

    futures: list[Future[None]] = [_shared_pool().submit(drain) for _ in range(helpers)]
    try:
        drain(check)
    finally:
        started = [future for future in futures if not future.cancel()]
        errors = [future.exception() for future in started]
    for error in errors:
        if error is not None:
            raise error


def spans(n: int, pieces: int) -> list[tuple[int, int]]:
    """`range(n)` cut into at most `pieces` runs of nearly equal length, as (start, stop)."""
    pieces = max(1, min(pieces, n))
    return [(n * i // pieces, n * (i + 1) // pieces) for i in range(pieces)] if n > 0 else []


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            size = max(1, threads() - 1)
            _pool = ThreadPoolExecutor(size, thread_name_prefix="worldstereo-kernel")
        return _pool


def _forget_pool() -> None:
    """A forked child has none of its parent's threads; it must start its own."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
