"""Where the placing of photos goes on after it was stopped: one folder for each set of files.

The folder is named by what the files hold, so a job can only ever find what came from the same
bytes. It goes when the job succeeds, and after an hour.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_SECONDS = 3600.0
_MAX_FOLDERS = 8  # folders kept; the oldest go first
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif")
_WHOLE = (".zip", ".mp4", ".mov", ".m4v", ".webm", ".mkv")


@contextlib.contextmanager
def room(source: Path) -> Iterator[Path | None]:
    """The folder for these files; None for files that are never placed."""
    key = _key(source)
    if key is None:
        yield None
        return
    root = _root()
    _forget(root)
    folder = root / key
    try:
        folder.mkdir()
        mine = True
    except FileExistsError:
        mine = True
    lock = folder / "busy"
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(handle, str(os.getpid()).encode())
        os.close(handle)
    except FileExistsError:
        mine = not _alive(lock)  # a crashed app left it
    if not mine:
        yield None
        return
    done = False
    try:
        yield folder
        done = True
    finally:
        lock.unlink(missing_ok=True)
        if done or not (folder / "work" / "matches.db").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _root() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0
    root = Path(tempfile.gettempdir()).resolve() / f"worldstereo-placing-{user}"
    root.mkdir(mode=0o700, exist_ok=True)
    return root


def _alive(lock: Path) -> bool:
    import psutil

    try:
        return psutil.pid_exists(int(lock.read_text() or 0))
    except (OSError, ValueError):
        return False


def _forget(root: Path) -> None:
    folders = sorted((f for f in root.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime)
    old = time.time() - _SECONDS
    for i, folder in enumerate(folders):
        aged = folder.stat().st_mtime < old or i < len(folders) - _MAX_FOLDERS
        if aged and not ((folder / "busy").exists() and _alive(folder / "busy")):
            shutil.rmtree(folder, ignore_errors=True)


def _key(source: Path) -> str | None:
    """What the files hold, as a name."""
    try:
        if source.is_dir():
            files = sorted(f for f in source.rglob("*") if f.suffix.lower() in _PICTURES)
            files = [f for f in files if f.is_file()]
        else:
            files = [source] if source.suffix.lower() in _WHOLE and source.is_file() else []
        if len(files) < (2 if source.is_dir() else 1):
            return None
        digest = hashlib.sha256()
        for file in files[:2000]:
            name = file.relative_to(source).as_posix() if source.is_dir() else ""
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{name}\0{content}\n".encode())
        return digest.hexdigest()[:32]
    except OSError:
        return None
