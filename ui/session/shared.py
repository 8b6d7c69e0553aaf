"""What all sessions share: the worker, the generators, the import process, the folder of worlds."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from worldstereo.errors import InputRefused
from worldstereo.generators import Closable, Generator
from worldstereo.inputs import read
from worldstereo.inputs.pictures import read_pictures
from worldstereo.inputs.sandbox.worker import ImportWorker, OnPicture
from worldstereo.progress import OnStep, ignore
from worldstereo.project import ProjectState, is_project, load
from worldstereo.scene import Capture
from worldstereo.world import World

from .config import Example, GeneratorChoice, SessionsConfig
from .depth_model import DepthModel
from .jobs import Worker
from .kept import LIBRARY, KeptExamples

PROJECTS = "worldstereo.project.sandboxed"  # saved worlds, beside captures
IMPORTS = 2  # files read at once, each by a process of its own


class Shared:
    """Made once by `Sessions`; every session keeps a reference. Safe from any thread.

    Attributes:
        pace: seconds per pixel of a view as measured here, by generator.
    """

    def __init__(self, config: SessionsConfig) -> None:
        self.config = config
        self.importing = Worker(IMPORTS, name="import")
        self.worker = Worker(config.workers, before=self.importing)
        self.pace: dict[str, float] = {}
        self.depth_model = DepthModel(config.depth_model)
        self.kept = KeptExamples(config.projects)
        self.examples: tuple[Example, ...] = config.examples
        # What this machine can run comes first; among equals the order of the configuration stays.
        offered = sorted(config.generators, key=lambda choice: bool(choice.why_not))
        self.generators: dict[str, GeneratorChoice] = {choice.name: choice for choice in offered}
        self._made: dict[str, tuple[str, Generator]] = {}
        self._making = threading.Lock()  # weights take minutes: readers of files must not wait
        self._lock = threading.Lock()
        self._importer: ImportWorker | None = None
        self._compiling: subprocess.Popen[bytes] | None = None

    def new_world(self) -> World:
        return World(self.generator(self.config.generator), max_points=self.config.max_points)

    def generator(self, name: str, mode: str = "", on_step: OnStep = ignore) -> Generator:
        """The generator of that name, made on first use: they keep no state between calls.

        One with memory modes is made again when another mode is asked for, after the one before
        has given back what it held; "" takes the one that is there, or else the quickest.
        """
        with self._making:
            held = self._made.get(name)
            if held is not None and mode in ("", held[0]):
                return held[1]
            self._drop(name)
            choice = self.generators[name]
            if choice.modes is None:
                made = choice.make()
            else:
                made = choice.make(mode=mode or "auto", on_step=on_step)
            self._made[name] = (mode, made)
            return made

    def forget(self, name: str) -> None:
        """Give back the card: the generator is made again when it is next asked for."""
        with self._making:
            self._drop(name)

    def _drop(self, name: str) -> None:
        held = self._made.pop(name, None)
        if held is not None and isinstance(held[1], Closable):
            held[1].close()

    def measured(self, generator: str, seconds_per_pixel: float) -> None:
        """Remember how fast a generator is here; later measurements weigh more."""
        before = self.pace.get(generator, seconds_per_pixel)
        self.pace[generator] = 0.7 * before + 0.3 * seconds_per_pixel

    def read(
        self,
        path: Path | Sequence[Path],
        name: str,
        cancelled: Callable[[], bool],
        on_step: OnStep = ignore,
        on_picture: OnPicture = lambda pixels: None,
    ) -> Capture | ProjectState:
        """A stranger's files, read in an own process. Raises `InputRefused`, `Cancelled`."""
        if self.config.read is not None:
            first = path if isinstance(path, Path) else path[0]
            if is_project(first):
                limits = self.config.limits
                return load(first, name=name, limits=limits, most_bytes=limits.unpacked_bytes)
            return self.config.read(first, name)
        importer = self.warm_importer()
        assert importer is not None
        return importer.read(
            path, name, cancelled=cancelled, on_step=on_step, on_picture=on_picture
        )

    def read_pictures(self, paths: Sequence[Path], cancelled: Callable[[], bool]) -> Capture:
        """Photos for an open world, read in a process of their own. Raises as `read`."""
        importer = self.warm_importer()
        if importer is None:
            return read_pictures(paths, "photos")
        return importer.read(paths, "photos", cancelled=cancelled, pictures=True)

    def warm_importer(self) -> ImportWorker | None:
        """Have a process ready that reads the next file: it takes seconds to start."""
        if self.config.read is not None:
            return None
        with self._lock:
            if self._importer is None:
                limits = self.config.limits
                self._importer = ImportWorker(limits, processes=IMPORTS, also=PROJECTS)
            return self._importer

    def read_example(self, example: Example) -> Capture:
        """A bundled capture: ours, so it is read in this process."""
        if example.path is None:
            raise InputRefused(f"{example.label}: has no files here.")
        return replace(read(example.path, example.label), name=example.label)

    def compile_beside(self, example: Example) -> None:
        """Have a second process compile what this example's world needs last, while it is prepared.

        Nothing where that world is kept: then this code has run here before.
        """
        path = self.kept.place(example)
        if path is None or is_project(path) or self._compiling is not None:
            return
        self._compiling = subprocess.Popen(
            [sys.executable, "-P", "-m", "worldstereo.warmup"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(LIBRARY.parent)},
        )

    def settled(self, example: Example, timeout: float) -> bool:
        """Whether, within seconds, the kernels are compiled and the example's world is kept."""
        until = time.monotonic() + timeout
        path = self.kept.place(example)
        while time.monotonic() < until:
            compiled = self._compiling is None or self._compiling.poll() is not None
            if compiled and (path is None or is_project(path)):
                return True
            time.sleep(0.1)
        return False

    def project_of(self, token: str) -> Path | None:
        """Where the world of a token is saved. The name tells nothing about the token."""
        if self.config.projects is None:
            return None
        return self.config.projects / f"{hashlib.sha256(token.encode()).hexdigest()[:40]}.world"

    def close(self) -> None:
        """Stop the workers, the import processes and a download."""
        self.depth_model.stop()
        if self._compiling is not None:
            self._compiling.kill()
            self._compiling.wait()
        if self._importer is not None:
            self._importer.close()
        self.importing.close()
        self.worker.close()
