"""A stranger's project file, unpacked and checked by the import process.

`worker.ImportWorker(also="worldstereo.project.sandboxed")` gives such files to `write`, in its
process; the app then `read`s what that wrote, and never opens the stranger's file itself.
"""

from pathlib import Path

from worldstereo.inputs.limits import Limits
from worldstereo.project import ProjectState, is_project, load, unpacked

FOLDER = "project"


def takes(path: Path) -> bool:
    """Whether a file or folder is of this kind."""
    return is_project(path)


def write(path: Path, name: str, folder: Path, limits: Limits) -> None:
    """Reads the file and writes what it holds again, as our own writer does.

    Raises:
        InputRefused: as `project.load`.
    """
    state = load(path, name=name, limits=limits, most_bytes=limits.unpacked_bytes)
    unpacked(state, folder / FOLDER)


def read(folder: Path, name: str, limits: Limits) -> ProjectState:
    """What `write` left, checked once more on arrival."""
    return load(folder / FOLDER, name=name, limits=limits, most_bytes=limits.unpacked_bytes)
