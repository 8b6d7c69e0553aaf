"""Progress of long work, and where it can be stopped."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OnStep = Callable[[int, int, str], None]
"""`(step, total, message)`: reports progress, and may raise `Cancelled` to stop the work there."""

_here = threading.local()


def ignore(step: int, total: int, message: str) -> None:
    """An `OnStep` that does nothing."""


@contextmanager
def interruptible(check: Callable[[], object]) -> Iterator[None]:
    """Inside it, every parallel loop of this thread calls `check` before each of its own chunks.

    Long work can so be stopped within a chunk's time: `check` raises, and the loop raises it.
    """
    before = check_here()
    _here.check = check
    try:
        yield
    finally:
        _here.check = before


def check_here() -> Callable[[], object] | None:
    """What the innermost `interruptible` of this thread set, or None."""
    return getattr(_here, "check", None)
