"""`KeptExamples`: the worlds that examples become, kept on disk so that they open at once.

With a world the cameras are kept from which most can be learned in it: the first path leads there,
and finding them takes longer than opening the world.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import worldstereo
from worldstereo.cameras import Cameras
from worldstereo.project import is_project, load_world, save_world
from worldstereo.trajectory import Trajectory
from worldstereo.world import NextView, World

from .config import Example

LIBRARY = Path(worldstereo.__file__).resolve().parent


@dataclass(frozen=True)
class Outlook:
    """Where the first path in a new world goes."""

    path: Trajectory | None = None
    """The path that came with the capture."""
    views: tuple[NextView, ...] = ()
    """Without one, the cameras from which most can be learned, the best first."""


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

    def open(self, example: Example, world: World) -> Outlook | None:
        """Turn `world` into the kept one; None where there is none yet, and nothing changes.

        Raises:
            InputRefused: what was kept cannot be read; the world is as it was.
        """
        path = self.find(example)
        if path is None:
            return None
        plan, settings = load_world(world, path)
        return Outlook(plan, _next_views(settings))

    def keep(self, example: Example, world: World, outlook: Outlook) -> None:
        """Keep a world that was just started from an example; forget older ones of its name."""
        path = self.place(example)
        if path is None or is_project(path) or len(world.history) != 1:
            return
        save_world(world, path, plan=outlook.path, settings=_settings(outlook.views))
        for old in path.parent.glob(f"{example.key}-*.world"):
            if old != path:
                shutil.rmtree(old, ignore_errors=True)


def _settings(views: Sequence[NextView]) -> dict[str, Any]:
    if not views:
        return {}
    cameras = Trajectory(Cameras.stack([view.camera for view in views]), "unseen")
    shares = [[view.gain, view.unknown] for view in views]
    return {"next_views": {"cameras": cameras.to_json(), "shares": shares}}


def _next_views(settings: dict[str, Any]) -> tuple[NextView, ...]:
    """What `_settings` wrote, bit for bit."""
    found = settings.get("next_views")
    if found is None:
        return ()
    cameras = Trajectory.from_json(found["cameras"]).cameras
    return tuple(NextView(cameras[i], *shares) for i, shares in enumerate(found["shares"]))
