"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path


def nothing(point: str) -> None:
    """The fault point of every day: does nothing. Tests pass one that kills the process."""


def write_atomic(
    path: Path, data: bytes, *, point: Callable[[str], None] = nothing, sync: bool = True
) -> None:
    """Write -> fsync -> replace -> fsync of the folder. A crash leaves the old file or the new one.

    Args:
        point: called with the name of each step, before the next.
        sync: False leaves the last fsync to the caller, once for many files of one folder.

    Raises:
        OSError: as the system says; the old file is then untouched and no new one remains.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    point("before-open")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(data)
            half = len(view) // 2
            _write_all(descriptor, view[:half])
            point("half-written")
            _write_all(descriptor, view[half:])
            point("written")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        point("before-replace")
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    point("replaced")
    if sync:
        sync_folder(path.parent)
        point("folder-synced")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: memoryview) -> None:
    while len(data) > 0:
        data = data[os.write(descriptor, data) :]
