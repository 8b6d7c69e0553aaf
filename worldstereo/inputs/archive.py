"""A folder or a zip as one flat list of named files, read one by one and counted.

Nothing is ever unpacked to disk. Zip only; links, twins, names that point outside, archives in
archives and members that lie about their size are refused before anything is read.
"""

import io
import os
import posixpath
import re
import stat
import unicodedata
import zipfile
from collections.abc import Mapping
from pathlib import Path

from worldstereo.errors import InputRefused
from worldstereo.inputs.limits import Limits, refusal, shown, size_text

_JUNK = re.compile(r"(^|/)(__MACOSX|\.git|\.DS_Store|Thumbs\.db|desktop\.ini)(/|$)|(^|/)\._[^/]*$")
_NESTED = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz", ".zst")
_FREE_RATIO = 1 << 20  # members below 1 MB may be packed as tightly as they like
_CLEAN = "Nothing was unpacked"


class Bundle:
    """Named files of one capture. Names use `/` and are relative; reading counts bytes."""

    def __init__(self, name: str, sizes: Mapping[str, int], limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.sizes = dict(sizes)
        self._read_bytes = 0

    @property
    def names(self) -> list[str]:
        return list(self.sizes)

    def __contains__(self, name: object) -> bool:
        return name in self.sizes

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            InputRefused: too large, cut, or all members together above the limit.
        """
        size = self.sizes[name]
        if size > self.limits.file_bytes:
            raise self.too_large(name, size)
        data = self._fetch(name, size)
        self._read_bytes += len(data)
        if self._read_bytes > 2 * self.limits.unpacked_bytes:  # twice: pictures may be sized first
            raise self.too_large(name, self._read_bytes)
        return data

    def too_large(self, name: str, size: int) -> InputRefused:
        return refusal(
            name,
            f"{size_text(size)} is too large",
            f"At most {size_text(self.limits.file_bytes)} is accepted",
        )

    def inside(self, base: str, given: str, source: str, where: str) -> str:
        """The member that a file names, relative to the folder `base`.

        Raises:
            InputRefused: the name is absolute, an address, or leaves the capture.
        """
        path = given.replace("\\", "/")
        joined = posixpath.normpath(posixpath.join(base, path))
        absolute = path.startswith("/") or re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", path)
        if absolute or joined.startswith("../") or joined == ".." or "\0" in path:
            raise refusal(
                source,
                f'{where}: "{shown(given, 32)}" points outside the capture',
                "Names relative to the file itself are accepted",
            )
        return joined

    def child(self, *suffixes: str, folder: str | None = None) -> list[str]:
        """Members with one of these suffixes, in natural order; in `folder` only, if given."""
        return sorted(
            (
                n
                for n in self.sizes
                if n.lower().endswith(suffixes)
                and (folder is None or posixpath.dirname(n) == folder)
            ),
            key=natural,
        )

    def _fetch(self, name: str, size: int) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        """Release what reading holds open."""


class Folder(Bundle):
    """A folder on disk, walked without following links."""

    def __init__(self, root: Path, limits: Limits, name: str | None = None) -> None:
        name = name or root.name
        self._root = root.resolve()
        sizes: dict[str, int] = {}
        for folder, folders, files in os.walk(self._root, followlinks=False):
            folders[:] = sorted(f for f in folders if not _JUNK.search(f))
            for file in sorted(files) + [f for f in folders if (Path(folder) / f).is_symlink()]:
                path = Path(folder) / file
                member = path.relative_to(self._root).as_posix()
                if _JUNK.search(member):
                    continue
                target = path.resolve()
                if path.is_symlink() and not target.is_relative_to(self._root):
                    raise refusal(
                        name,
                        f'"{shown(member, 32)}" is a link that points outside the folder',
                        "Put the file itself there",
                    )
                if target.is_file():
                    sizes[member] = target.stat().st_size
                if len(sizes) > limits.members:
                    raise _too_many(name, len(sizes), limits, "files")
        super().__init__(name, sizes, limits)

    def _fetch(self, name: str, size: int) -> bytes:
        try:
            return read_regular(self._root / name, name, self.limits)
        except OSError:
            raise refusal(name, "the file cannot be opened", "Check that you may read it") from None


class Zip(Bundle):
    """A zip archive, its directory checked as a whole before any member is read."""

    def __init__(self, name: str, source: bytes, limits: Limits) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(source))
        except Exception:
            raise refusal(
                name, "the zip directory is cut or damaged", "Pack it again as .zip"
            ) from None
        infos = self._zip.infolist()
        if len(infos) > limits.members:
            raise _too_many(name, len(infos), limits, "members")
        self._infos: dict[str, zipfile.ZipInfo] = {}
        sizes: dict[str, int] = {}
        folded: set[str] = set()
        for info in infos:
            clean = _checked_name(name, info)
            if info.is_dir() or _JUNK.search(clean):
                continue
            key = unicodedata.normalize("NFC", clean).casefold()
            if key in folded:
                raise refusal(
                    name,
                    f'"{shown(clean, 32)}" is there twice',
                    f"One of each name is accepted. {_CLEAN}",
                )
            folded.add(key)
            _check_member(name, info, limits)
            self._infos[clean] = info
            sizes[clean] = info.file_size
        parents = {p for key in folded for p in _parents(key)}
        both = sorted(parents & folded)
        if both:
            raise refusal(
                name,
                f'"{shown(both[0], 32)}" is a file and a folder',
                f"Pack it again. {_CLEAN}",
            )
        if sum(sizes.values()) > limits.unpacked_bytes:
            raise refusal(
                name,
                f"unpacks to {size_text(sum(sizes.values()))}",
                f"At most {size_text(limits.unpacked_bytes)} is accepted. {_CLEAN}",
            )
        _check_overlap(name, list(self._infos.values()), len(source))
        super().__init__(name, sizes, limits)

    def _fetch(self, name: str, size: int) -> bytes:
        data = bytearray()
        try:
            with self._zip.open(self._infos[name]) as member:
                while chunk := member.read(1 << 20):
                    data += chunk
                    if len(data) > size:
                        break
        except MemoryError:
            raise
        except Exception:
            raise refusal(
                self.name,
                f'"{shown(name, 40)}" is cut or damaged in the archive',
                "Pack it again",
            ) from None
        if len(data) != size:
            raise refusal(
                self.name,
                f'"{shown(name, 32)}" holds {len(data)} bytes where {size} are declared',
                "Pack it again",
            )
        return bytes(data)

    def close(self) -> None:
        self._zip.close()


def natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key that puts 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(p)) if p.isascii() and p.isdigit() else (1, p) for p in parts], name


def read_regular(path: Path, name: str, limits: Limits) -> bytes:
    """The bytes of a regular file; a pipe or device is refused instead of waited for."""
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise refusal(name, "this is not a regular file", "A file or a folder is accepted")
        if status.st_size > limits.file_bytes:
            raise refusal(
                name,
                f"{size_text(status.st_size)} is too large",
                f"At most {size_text(limits.file_bytes)} is accepted",
            )
        return file.read(limits.file_bytes + 1)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _too_many(name: str, n: int, limits: Limits, what: str) -> InputRefused:
    return refusal(name, f"{n} {what}", f"At most {limits.members} are accepted")


def _checked_name(archive: str, info: zipfile.ZipInfo) -> str:
    given = info.orig_filename.replace("\\", "/")
    parts = given.rstrip("/").split("/")
    outside = given.startswith("/") or ".." in parts or re.match(r"^[A-Za-z]:", given)
    if outside:
        raise refusal(archive, f'"{shown(given, 40)}" points outside the archive', _CLEAN)
    odd = any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in given)
    if odd or not given.strip("/. ") or len(given) > 400:
        raise refusal(
            archive,
            f'a member has the name "{shown(given, 32)}" with characters that no file should have',
            f"Rename it. {_CLEAN}",
        )
    return posixpath.normpath(given)


def _check_member(archive: str, info: zipfile.ZipInfo, limits: Limits) -> None:
    name = shown(info.filename, 32)
    mode = info.external_attr >> 16
    if info.create_system == 3 and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refusal(
            archive, f'"{name}" is a link or device', f"Plain files are accepted. {_CLEAN}"
        )
    if info.flag_bits & 0x41:
        raise refusal(archive, f'"{name}" is encrypted', f"Pack it without a password. {_CLEAN}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise refusal(
            archive,
            f'"{name}" is packed by method {info.compress_type}',
            f"Stored and deflated members are accepted. {_CLEAN}",
        )
    if name.lower().endswith(_NESTED):
        raise refusal(
            archive, f'"{name}" is an archive in the archive', f"Unpack it first. {_CLEAN}"
        )
    if info.file_size > limits.file_bytes:
        raise refusal(
            archive,
            f'"{name}" unpacks to {size_text(info.file_size)}',
            f"At most {size_text(limits.file_bytes)} is accepted. {_CLEAN}",
        )
    if info.file_size > max(_FREE_RATIO, limits.ratio * info.compress_size):
        ratio = info.file_size / max(info.compress_size, 1)
        raise refusal(
            archive,
            f'"{name}" is packed {ratio:.0f} : 1',
            f"At most {limits.ratio} : 1 is accepted. {_CLEAN}",
        )


def _check_overlap(archive: str, infos: list[zipfile.ZipInfo], size: int) -> None:
    end = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        if info.header_offset < end or info.header_offset + info.compress_size > size:
            raise refusal(
                archive,
                f'"{shown(info.filename, 32)}" shares bytes with another member',
                f"Pack it again. {_CLEAN}",
            )
        end = info.header_offset + 30 + info.compress_size
