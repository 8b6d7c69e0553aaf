"""Long work: a `Job` that can be followed, cancelled and awaited, and the `Worker` that runs them.

One worker thread per device serves all sessions in turn. A job belongs to its session, not to a
tab: any number of pages may follow it, and none needs to.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any, Literal

import numpy as np

from worldstereo.errors import Cancelled, WorldStereoError
from worldstereo.progress import interruptible

log = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "cancelled", "failed"]
OVER = ("done", "cancelled", "failed")

MIN_REPORT_SECONDS = 0.125  # seconds between two progress reports of one follower
MAX_REPORT_SECONDS = 0.5
SOON, FEW = 3.0, 0.1  # before so many seconds, and so small a share, there is no estimate


@dataclass(frozen=True)
class Progress:
    """Where a job is."""

    step: int
    total: int
    """0 while it is not known."""
    message: str
    seconds_left: float | None
    """From the pace so far; None until there is one."""


class Job:
    """Work on the worker's thread. Every method may be called from any thread.

    Args:
        kind: "open", "explore", "registration" or "save".
        work: does it all; is given the job, to report to and to be stopped by.
        changed: called after each change of state, in the thread that made it.
        first: what comes before the work and needs no generator, such as reading a file; done
            on another worker, see `run_first`. What it returns is `first_result` of the work.
    """

    def __init__(
        self,
        kind: str,
        work: Callable[["Job"], Any],
        changed: Callable[["Job"], None] = lambda job: None,
        first: Callable[["Job"], Any] | None = None,
    ) -> None:
        self.kind, self.first = kind, first
        self.first_result: Any = None
        self.frames: list[np.ndarray] = []
        """Finished frames so far, or pictures that were read, (H, W, 3) uint8; only grows."""
        self._work, self._changed = work, changed
        self._news = threading.Condition()
        self._over = threading.Event()
        self._version = 0
        self._state: State = "waiting"
        self._cancelled = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._step, self._total, self._message = 0, 0, "Waiting for its turn"
        self._phase_began = self._stepped = time.monotonic()
        self._phase_first = 0

    # ---- for those who follow it -----------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    @property
    def over(self) -> bool:
        return self._state in OVER

    @property
    def progress(self) -> Progress:
        with self._news:
            return Progress(self._step, self._total, self._message, self._seconds_left())

    def cancel(self) -> None:
        """Ask it to stop: it does at its next step, or at once while it waits for its turn."""
        with self._news:
            self._cancelled = True
            waiting = self._state == "waiting"
        if waiting:
            self._end("cancelled", error=Cancelled("Cancelled. The world is unchanged."))

    @property
    def cancelled(self) -> bool:
        """True once a stop was asked for."""
        return self._cancelled

    def result(self, timeout: float | None = None) -> Any:
        """What the work returned; waits for it.

        Raises:
            Cancelled: it was stopped.
            TimeoutError: it is not over after `timeout` seconds.
            Exception: whatever the work raised.
        """
        if not self._over.wait(timeout):
            raise TimeoutError(f"the job is still {self._state} after {timeout} s.")
        if self._error is not None:
            raise self._error
        return self._result

    def __iter__(self) -> Iterator[Progress]:
        """Progress at most 8 times a second and at least twice, until the job is over."""
        seen = -1
        while True:
            with self._news:
                if self._version == seen and not self.over:
                    self._news.wait(MAX_REPORT_SECONDS)
                seen, over = self._version, self.over
            yield self.progress
            if over:
                return
            self._over.wait(MIN_REPORT_SECONDS)

    # ---- for the work --------------------------------------------------------------------------

    def on_step(self, step: int, total: int, message: str) -> None:
        """Report, and stop here if that was asked for.

        Raises:
            Cancelled: `cancel` was called.
        """
        if self._cancelled:
            raise Cancelled("Cancelled. The world is unchanged.")
        with self._news:
            now = time.monotonic()
            if total != self._total or step < self._step:
                self._phase_began, self._phase_first = now, step
            self._step, self._total, self._message, self._stepped = step, total, message, now
            self._tell()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Inside it, `cancel` also stops the kernels between two reports. Not for saving."""

        def check() -> None:
            nonlocal said
            if self._cancelled and not said:
                said = True  # once: what restores the world after it must not be stopped
                raise Cancelled("Cancelled. The world is unchanged.")

        said = False
        with interruptible(check):
            yield

    def note(self, message: str) -> None:
        """Say what it does now, where it is too late to stop."""
        with self._news:
            self._message = message
            self._tell()

    def add_frame(self, frame: np.ndarray) -> None:
        """Offer a finished frame to whoever follows."""
        with self._news:
            self.frames.append(frame)
            self._tell()

    def begin(self) -> bool:
        """Mark it as running; False if it was cancelled before its turn."""
        with self._news:
            if self._state != "waiting":
                return self._state == "running"
            self._state, self._message = "running", "Starting"
            self._phase_began = time.monotonic()
            self._tell()
        self._changed(self)
        return True

    def run_first(self, then: Callable[[], None]) -> None:
        """Do what comes before the work in this thread, then wait for the work's turn."""
        assert self.first is not None
        if not self.begin():
            return
        try:
            self.first_result = self.first(self)
        except Exception as error:
            self._failed(error)
            return
        with self._news:
            self._state, self._message = "waiting", "Waiting for its turn"
            cancelled = self._cancelled
            self._tell()
        if cancelled:
            self.cancel()
            return
        try:
            then()
        except WorldStereoError as error:
            self.fail(error)

    def run(self) -> None:
        """Do the work in this thread. Never raises: `result` does."""
        if not self.begin():
            return
        try:
            result = self._work(self)
        except Exception as error:
            self._failed(error)
        else:
            self._end("done", result)

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, WorldStereoError):  # the page shows those
            log.error("a job failed (%s)", self.kind, exc_info=error)
        part: BaseException | None = error
        while part is not None:  # a kept error keeps what was being made: tensors of a whole step
            clear_frames(part.__traceback__)
            part = part.__cause__ or part.__context__
        self._end("cancelled" if isinstance(error, Cancelled) else "failed", error=error)

    def fail(self, error: Exception) -> None:
        """End it with an error found before its turn."""
        self._end("cancelled" if isinstance(error, Cancelled) else "failed", error=error)

    def _end(self, state: State, result: Any = None, error: BaseException | None = None) -> None:
        with self._news:
            if self.over:
                return
            self._state, self._result, self._error = state, result, error
            self.first_result = None  # a job that is over holds nothing large
            if error is not None:
                self._message = str(error)
            self._tell()
        self._changed(self)  # before waking who waits for the result: they see all of it
        self._over.set()

    def _tell(self) -> None:
        self._version += 1
        self._news.notify_all()

    def _seconds_left(self) -> float | None:
        done = self._step - self._phase_first
        if self._state != "running" or done < 1 or self._total <= 0:
            return None
        passed = self._stepped - self._phase_began
        if passed < SOON and done < FEW * self._total:
            return None
        pace = passed / done
        since = time.monotonic() - self._stepped
        return max(0.0, pace * (self._total - self._step) - since)


class _First:
    """What comes before a job's work, as a worker runs it."""

    def __init__(self, job: Job, then: Callable[[], None]) -> None:
        self.job, self._then = job, then

    @property
    def over(self) -> bool:
        return self.job.over

    def cancel(self) -> None:
        self.job.cancel()

    def run(self) -> None:
        self.job.run_first(self._then)


class Worker:
    """Threads that run jobs: one per device, shared by all sessions, each in its turn.

    Sessions take turns job by job, and never have two jobs running at once.

    Args:
        before: runs what a job has to do `first`; without it that is done in this worker's turn.
    """

    def __init__(
        self, threads: int = 1, *, name: str = "generator", before: "Worker | None" = None
    ) -> None:
        self._before = before
        self._waiting: OrderedDict[Hashable, deque[Job | _First]] = OrderedDict()
        self._busy: set[Hashable] = set()
        self._news = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, owner: Hashable, job: Job) -> None:
        """Queue a job behind the owner's own; owners take turns.

        Raises:
            WorldStereoError: the app is shutting down.
        """
        if job.first is None:
            self._queue(owner, job)
        else:
            before = self._before or self
            before._queue(owner, _First(job, lambda: self._queue(owner, job)))

    def _queue(self, owner: Hashable, job: Job | _First) -> None:
        with self._news:
            if self._closed:
                raise WorldStereoError("The app is shutting down; start it again to go on.")
            self._waiting.setdefault(owner, deque()).append(job)
            self._news.notify()

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        with self._news:
            return sum(not job.over for jobs in self._waiting.values() for job in jobs)

    def close(self, timeout: float = 10.0) -> None:
        """Cancel what waits, let the running step end, stop the threads."""
        with self._news:
            self._closed = True
            waiting = [job for jobs in self._waiting.values() for job in jobs]
            self._waiting.clear()
            self._news.notify_all()
        for job in waiting:
            job.cancel()
        for thread in self._threads:
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self._next_owner() is not None)
                owner = self._next_owner()
                if owner is None:
                    return
                jobs = self._waiting.pop(owner)
                job = jobs.popleft()
                if jobs:
                    self._waiting[owner] = jobs  # to the end of the line
                self._busy.add(owner)
            try:
                job.run()
            finally:
                # else this thread holds the last job's world until the next job comes
                del job, jobs
                with self._news:
                    self._busy.discard(owner)
                    self._news.notify_all()

    def _next_owner(self) -> Hashable | None:
        return next((owner for owner in self._waiting if owner not in self._busy), None)
