"""What a reader that takes its time needs besides the file: progress, room, and a process apart.

It is the same for everything that one job reads, so readers find it here (`current`) and their
signatures stay those of the registry.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldstereo.progress import OnStep, ignore

PICTURE_SIDE = 160
"""Long side of a picture that is shown while it works, pixels."""


class Apart(Exception):
    """This input is solved in the import process only: it can be stopped there, and limited."""


@dataclass(frozen=True)
class Task:
    """How one import runs."""

    on_step: OnStep = ignore
    room: Path | None = None
    """In the import process, a folder of this job: what takes long and much memory may run. It may
    hold what a try of the same files that was stopped left behind, and is used again."""
    on_picture: Callable[[np.ndarray], None] = lambda pixels: None
    """Hears of each picture that is taken, (H, W, 3) uint8: to be shown while it works."""
    solving: Callable[[], None] = lambda: None
    """Says that poses are solved now, which takes longer than reading does."""

    def solve_here(self) -> Path:
        """The folder to work in.

        Raises:
            Apart: this is not the import process.
        """
        if self.room is None:
            raise Apart
        self.solving()
        return self.room


PLAIN = Task()
_current: ContextVar[Task] = ContextVar("worldstereo-import", default=PLAIN)


def current() -> Task:
    """The task of the import that runs in this thread."""
    return _current.get()


@contextmanager
def running(task: Task) -> Iterator[None]:
    """Inside it, `current` is this task."""
    token = _current.set(task)
    try:
        yield
    finally:
        _current.reset(token)
