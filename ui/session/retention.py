"""Which saved worlds stay on disk: the newest, up to a number and a size; never one in use."""

import contextlib
import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from worldstereo.errors import WorldStereoError
from worldstereo.project import Project

log = logging.getLogger(__name__)

GONE = ".gone-"  # what is being deleted: no longer a world, whatever happens on the way


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """How much of what people made stays on disk when they have left."""

    worlds: int = 40
    """The newest saved worlds that stay; 0 keeps all."""

    gigabytes: float = 20.0
    """Older worlds go while all of them take more than this; 0 keeps all."""

    def __post_init__(self) -> None:
        if self.worlds < 0:
            raise ValueError(f"worlds must be at least 0, got {self.worlds}.")
        if not self.gigabytes >= 0:
            raise ValueError(f"gigabytes must be at least 0, got {self.gigabytes}.")

    def __str__(self) -> str:
        limits = [f"the newest {self.worlds} worlds"] if self.worlds else []
        limits += [f"at most {self.gigabytes:g} GB"] if self.gigabytes else []
        return ", ".join(limits) or "all worlds"


def tidy(folder: Path, keep: RetentionPolicy, in_use: Collection[Path] = ()) -> list[Path]:
    """Delete the oldest saved worlds beyond what is kept; returns those that went.

    Args:
        folder: of the saved worlds, `*.world` by when they were last saved; nothing else in it
            is touched.
        in_use: worlds that are open here. One that another process holds is left alone, too.
    """
    for leftover in folder.glob(f"{GONE}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    worlds = sorted(
        (path for path in folder.glob("*.world") if path.is_dir() and not path.is_symlink()),
        key=_saved_at,
        reverse=True,
    )
    gone, count, size = [], 0, 0
    for path in worlds:  # newest first: all that is kept is counted before what may go
        own = _size(path)
        count, size = count + 1, size + own
        many = 0 < keep.worlds < count
        much = 0 < keep.gigabytes * 1e9 < size and count > 1
        if (many or much) and path not in in_use and _delete(path):
            gone.append(path)
            count, size = count - 1, size - own
    return gone


def _delete(path: Path) -> bool:
    """True when it went; a world that is being written, or that cannot be moved, stays."""
    away = path.with_name(GONE + path.name)
    try:
        with Project(path):  # refused while another process has it open
            path.rename(away)
    except (WorldStereoError, OSError) as error:
        log.debug("a saved world stays: %s", error)
        return False
    shutil.rmtree(away, ignore_errors=True)
    return True


def _saved_at(path: Path) -> float:
    for name in ("project.json", "."):
        with contextlib.suppress(OSError):
            return (path / name).stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.lstat().st_size if file.is_file() else 0
    return total
