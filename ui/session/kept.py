"""`KeptExamples`: the worlds that examples become, kept on disk so that they open at once."""

import hashlib
import shutil
from pathlib import Path

import worldstereo
from worldstereo.project import is_project, save_world
from worldstereo.world import World

from .config import Example

LIBRARY = Path(worldstereo.__file__).resolve().parent


class KeptExamples:
    """One folder beside the saved worlds. Safe from any thread.

    Args:
        projects: the folder of saved worlds; None where nothing is saved.
    """

    def __init__(self, projects: Path | None) -> None:
        self._projects = projects

    def place(self, example: Example) -> Path | None:
        """Where the world of an example is kept; None where it cannot be.

        The name changes with the example's files and with the library's code.
        """
        if self._projects is None or example.path is None:
            return None
        digest = hashlib.sha256()
        files = [*example.path.rglob("*"), *LIBRARY.rglob("*.py")]
        for file in sorted(file for file in files if file.is_file()):
            about = file.stat()
            digest.update(f"{file} {about.st_size} {about.st_mtime_ns}\n".encode())
        return self._projects / "examples" / f"{example.key}-{digest.hexdigest()[:16]}.world"

    def find(self, example: Example) -> Path | None:
        """The kept world of an example; None where there is none yet."""
        path = self.place(example)
        return path if path is not None and is_project(path) else None

    def keep(self, example: Example, world: World) -> None:
        """Keep a world that was just started from an example; forget older ones of its name."""
        path = self.place(example)
        if path is None or is_project(path) or len(world.history) != 1:
            return
        save_world(world, path)
        for old in path.parent.glob(f"{example.key}-*.world"):
            if old != path:
                shutil.rmtree(old, ignore_errors=True)
