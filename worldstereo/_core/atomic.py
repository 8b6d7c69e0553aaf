"""Files that appear whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
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
    draft = _draft_of(path)
    point("before-open")
    try:
        _write_draft(draft, data, point)
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


def write_together(files: Mapping[Path, bytes], *, parents: bool = False) -> None:
    """The files of one result, in order: all are on the disk before the first gets its name.

    A crash between two names leaves a mixture, a full disk does not: folders and files are then as
    they were.

    Args:
        parents: make folders that are missing.

    Raises:
        OSError: as the system says.
    """
    drafts: dict[Path, Path] = {}
    made: list[Path] = []
    try:
        for path, data in files.items():
            for folder in reversed(path.parents if parents else []):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            drafts[_draft_of(path)] = path
            _write_draft(_draft_of(path), data, nothing)
        for draft, path in drafts.items():
            os.replace(draft, path)
    except BaseException:
        for draft in drafts:
            with contextlib.suppress(OSError):
                os.unlink(draft)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    for folder in {path.parent for path in files}:
        sync_folder(folder)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _write_draft(draft: Path, data: bytes, point: Callable[[str], None]) -> None:
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
