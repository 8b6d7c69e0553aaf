"""The import worker: foreign files are parsed in a process of their own, one job each.

A spare process waits with its imports done. A job gives it a path and an empty folder; it answers
with files in that folder or with the text of a refusal, and ends. Whatever it does instead (hang,
run out of memory, die), the answer here is one `InputRefused`, and nothing of it stays behind.
"""

import base64
import contextlib
import importlib
import json
import logging
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo.depth import MODEL_FOLDER, model_folder
from worldstereo.errors import Cancelled, InputRefused
from worldstereo.inputs.limits import (
    LOCAL,
    Limits,
    refusal,
    shown,
    size_text,
    unknown_failure,
)
from worldstereo.inputs.sandbox import kept
from worldstereo.inputs.task import PICTURE_SIDE
from worldstereo.progress import OnStep, ignore

log = logging.getLogger(__name__)

_START_SECONDS = 120.0  # a cold disk and a busy machine
_TICK = 0.05  # how soon a cancel is noticed, seconds
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "OMP_WAIT_POLICY", "TMPDIR")

OnPicture = Callable[[np.ndarray], None]
"""`(pixels)`: a photo or keyframe that was taken, (H, W, 3) uint8."""
Stop = Callable[[], bool] | threading.Event | None


class ImportWorker:
    """Reads files in separate processes; usable from several threads."""

    def __init__(
        self,
        limits: Limits = LOCAL,
        *,
        processes: int = 2,
        warm: bool = True,
        also: str = "",
    ) -> None:
        """
        Args:
            processes: jobs that run at once, at most.
            warm: keep one spare process ready.
            also: a module that reads another kind of file, beside captures: `takes(path)` and
                `write(path, name, folder, limits)` there, `read(folder, name, limits)` here.
        """
        if processes < 1:
            raise ValueError(f"processes must be at least 1, got {processes}.")
        self.limits, self.warm, self.also = limits, warm, also
        self._slots = threading.Semaphore(processes)
        self._lock = threading.Lock()
        self._spare: _Process | None = None
        self._running: set[_Process] = set()
        self._closed = False
        if warm:
            self._restock()

    def read(
        self,
        path: Path | str | Sequence[Path],
        name: str | None = None,
        timeout: float | int | None = None,
        cancelled: Stop = None,
        on_step: OnStep = ignore,
        *,
        on_picture: OnPicture = lambda pixels: None,
        pictures: bool = False,
        frames: bool = False,
    ) -> Any:
        """The capture in a file, a folder, or several files; or what `also` reads of them.

        What a placing of photos that was stopped had found is kept for an hour: the same files go
        on from there.

        Args:
            path: What to read; the worker can open nothing else.
            name: What it was called; default: the name of the path.
            timeout: Seconds until the worker is killed; default `limits.seconds`. Placing photos
                gets `limits.solve_seconds` from when it begins.
            cancelled: An event, or a function that says whether to stop.
            on_step: hears how far it is, in this thread; it may raise `Cancelled`.
            on_picture: hears of each photo or keyframe that is taken, small.
            pictures: read pictures alone, to be placed in an open world; see `read_pictures`.
            frames: read all frames of a video as they are; see `every_frame`.

        Raises:
            InputRefused: it cannot be read within the limits; one line.
            Cancelled: `cancelled` said so; the worker is gone.
        """
        several = None if isinstance(path, (str, Path)) else [Path(p) for p in path]
        path = Path(path) if isinstance(path, (str, Path)) else Path("photos")
        name = name or path.name or "upload"
        seconds = self.limits.seconds if timeout is None else float(timeout)
        stop = _as_function(cancelled)
        while not self._slots.acquire(timeout=_TICK):
            _check(stop)
        # Resolved: a temporary folder may be reached through a link, and the worker compares names.
        folder = Path(tempfile.mkdtemp(prefix="worldstereo-import-")).resolve()
        process: _Process | None = None
        try:
            if several is not None:
                path = gathered(several, folder / "given")
            process = self._take()
            with contextlib.nullcontext() if pictures or frames else kept.room(path) as keep:
                job = {
                    "path": str(path.resolve()),
                    "name": name,
                    "folder": str(folder),
                    "keep": None if keep is None else str(keep),
                    "limits": asdict(self.limits),
                    "seconds": seconds,
                    "pictures": pictures,
                    "frames": frames,
                }
                return self._run(process, job, stop, on_step, on_picture)
        finally:
            if process is not None:
                process.kill()
                with self._lock:
                    self._running.discard(process)
            shutil.rmtree(folder, ignore_errors=True)
            self._slots.release()
            if self.warm:
                self._restock()

    def close(self) -> None:
        """Ends every process; jobs that run are refused."""
        with self._lock:
            self._closed = True
            processes = [*self._running, *([self._spare] if self._spare else [])]
            self._spare = None
        for process in processes:
            process.kill()

    def __enter__(self) -> "ImportWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise InputRefused("The import worker is closed. Restart the app.")
            process, self._spare = self._spare, None
            if process is not None and process.model != model_folder():
                process.kill()  # a depth model was downloaded since
            if process is None or not process.alive:
                process = _Process(self.also)
            self._running.add(process)
            return process

    def _restock(self) -> None:
        with self._lock:
            if not self._closed and (self._spare is None or not self._spare.alive):
                self._spare = _Process(self.also)

    def _run(
        self,
        process: "_Process",
        job: dict[str, Any],
        stop: Callable[[], bool],
        on_step: OnStep,
        on_picture: OnPicture,
    ) -> Any:
        name, seconds = job["name"], job["seconds"]
        answer = process.receive(_START_SECONDS, stop)
        if answer is None or answer.get("ready") is not True:
            raise self._broken(name, process, "the import worker did not start")
        process.send(job)
        deadline, asked = time.monotonic() + seconds, False
        while True:
            answer = process.receive(deadline - time.monotonic(), stop)
            if answer is not None and "step" in answer:
                on_step(*_step(answer["step"]))
            elif answer is not None and "picture" in answer:
                picture = _picture(answer["picture"])
                if picture is not None:
                    on_picture(picture)
            elif answer is not None and answer.get("needs") == "solve":
                if not asked:  # once: a worker cannot stay alive by asking
                    seconds, asked = self.limits.solve_seconds, True
                    deadline = time.monotonic() + seconds
            else:
                break
        for line in (answer or {}).get("log", []):
            log.error("import worker: %s", str(line)[:4000])
        if answer is None and time.monotonic() >= deadline:
            raise refusal(name, f"not read within {seconds:g} s", "Make it smaller or simpler")
        if answer is None:
            raise self._broken(name, process, "the import worker died")
        if "refused" in answer:
            raise InputRefused(" ".join(str(answer["refused"]).split())[:200])
        try:
            from worldstereo.inputs.sandbox import transfer

            folder = Path(job["folder"])
            if self.also and answer.get("also") is True:
                return importlib.import_module(self.also).read(folder, name, self.limits)
            return transfer.read_capture(folder)
        except Exception:
            raise unknown_failure(name) from None

    def _broken(self, name: str, process: "_Process", what: str) -> InputRefused:
        code = process.exit_code()
        if code is not None and code < 0 and -code in (9, 6, 11, 24, 25):
            log.error("%s with signal %d", what, -code)
            return refusal(
                name,
                f"reading it needs more than {size_text(self.limits.memory)} of memory or "
                f"{self.limits.seconds:g} s",
                "Make it smaller",
            )
        try:
            raise RuntimeError(f"{what}: exit code {code}, {process.errors()}")
        except RuntimeError:
            return unknown_failure(shown(name))


class _Process:
    """One child: JSON lines in, JSON lines out, killed for certain."""

    def __init__(self, also: str = "") -> None:
        source = str(Path(__file__).resolve().parents[3])
        environment = {k: v for k, v in os.environ.items() if k in _KEPT_ENVIRONMENT}
        environment |= {
            "PYTHONPATH": source,
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "2",
            # Found here: the process knows no home folder and so no hub cache.
            MODEL_FOLDER: model_folder(),
            "HF_HUB_OFFLINE": "1",
        }
        self.model = environment[MODEL_FOLDER]
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-m", "worldstereo.inputs.sandbox.child", also],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=tempfile.gettempdir(),
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._errors: list[str] = []
        for work in (self._listen, self._listen_to_errors):
            threading.Thread(target=work, daemon=True, name="worldstereo-import").start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def exit_code(self) -> int | None:
        try:
            return self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return None

    def errors(self) -> str:
        return " ".join(self._errors[-20:])[-2000:]

    def send(self, message: dict[str, Any]) -> None:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # it died: `receive` will say so
            pass

    def receive(self, seconds: float, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """The next message; None when the child ended or the time is over."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            _check(stop)
            try:
                line = self._lines.get(timeout=min(_TICK, left))
            except queue.Empty:
                continue
            if line is None:
                return None
            try:
                message = json.loads(line)
            except ValueError:
                continue  # something a library printed
            if isinstance(message, dict):
                return message
        return None

    def kill(self) -> None:
        process = self._process
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self._lines.put(line)
        self._lines.put(None)

    def _listen_to_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                self._errors.append(line.strip())
                del self._errors[:-50]


def _step(said: Any) -> tuple[int, int, str]:
    """What the worker reports, as checked as anything else that comes from there."""
    try:
        step, total, message = said
        return int(step), int(total), shown(str(message), 100)
    except (TypeError, ValueError):
        return 0, 0, "Reading"


def _picture(said: Any) -> np.ndarray | None:
    """A small picture as the worker sends it; None where it is none."""
    try:
        width, height, data = said
        if not (0 < int(width) <= PICTURE_SIDE and 0 < int(height) <= PICTURE_SIDE):
            return None
        pixels = np.frombuffer(base64.b64decode(data, validate=True), np.uint8)
        return pixels.reshape(int(height), int(width), 3)
    except (TypeError, ValueError):
        return None


def gathered(paths: Sequence[Path], folder: Path) -> Path:
    """One folder of several files: linked where the file system allows it, else copied."""
    folder.mkdir()
    for i, path in enumerate(paths):
        if not path.is_file():
            raise refusal(path.name, "there is no such file", "Check the name")
        target = folder / path.name
        if target.exists():
            target = folder / f"{path.stem} {i}{path.suffix}"
        try:
            os.link(path.resolve(), target)
        except OSError:
            shutil.copyfile(path, target)
    return folder


def _as_function(cancelled: Stop) -> Callable[[], bool]:
    if cancelled is None:
        return lambda: False
    return cancelled.is_set if isinstance(cancelled, threading.Event) else cancelled


def _check(stop: Callable[[], bool]) -> None:
    if stop():
        raise Cancelled("The import was stopped. The world is unchanged.")
