"""A folder or a zip as one flat list of named files, read one by one and counted.

Nothing is ever unpacked to disk. Zip only; links, twins, names that point outside, archives in
archives and members that lie about their size are refused before anything is read.
"""

import contextlib
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

_JUNK = re.compile(
    r"(^|/)(__MACOSX|\.git|\.svn|\.DS_Store|\.AppleDouble|\.Spotlight-V100|\.Trashes|\.fseventsd"
    r"|\.TemporaryItems|\.DocumentRevisions-V100|\.localized|\.VolumeIcon\.icns|\.apdisk|Icon[\r?]?\r"
    r"|Thumbs\.db|ehthumbs(_vista)?\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information"
    r"|\.directory|\.thumbnails|\.ipynb_checkpoints|__pycache__|@eaDir|\.picasa\.ini)(/|$)"
    r"|(^|/)\._[^/]*$|(^|/)~\$[^/]*$",
    re.IGNORECASE,
)  # what macOS, Windows, Linux desktops, NAS boxes and notebooks leave behind
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # reorder a shown name
_NESTED = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz", ".zst")
_FREE_RATIO = 1 << 20  # members below 1 MB may be packed as tightly as they like
_CLEAN = "Nothing was unpacked"


class Bundle:
    """Named files of one capture. Names use `/` and are relative; reading counts bytes."""

    def __init__(self, name: str, sizes: Mapping[str, int], limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.sizes = dict(sizes)
        self._read_bytes = 0
        self._folded: dict[str, str] | None = None
        self._by_name: dict[str, list[str]] | None = None

    @property
    def names(self) -> list[str]:
        return list(self.sizes)

    def __contains__(self, name: object) -> bool:
        return name in self.sizes

    def found(self, name: str) -> str | None:
        """The member of a name, also where letter case or Unicode form differ; else None."""
        if name in self.sizes:
            return name
        if self._folded is None:
            self._folded = {}
            for member in self.sizes:
                self._folded.setdefault(folded(member), member)
        return self._folded.get(folded(name))

    def ending(self, path: str) -> str | None:
        """The member whose path ends as `path` does: folders in front of it may differ.

        The more folders agree the better. A bare name counts where it is the only one of its kind
        and no folder is called as its own: else the file is missing there, not moved.
        """
        if self._by_name is None:
            self._by_name = {}
            for member in self.sizes:
                key = posixpath.basename(folded(member))
                self._by_name.setdefault(key, []).append(member)
        parts = [p for p in folded(path).split("/") if p not in ("", ".")]
        same = self._by_name.get(parts[-1], []) if parts else []
        if not same:
            return None

        def agreeing(member: str) -> int:
            n = 0
            for a, b in zip(reversed(folded(member).split("/")), reversed(parts), strict=False):
                if a != b:
                    break
                n += 1
            return n

        counts = [agreeing(member) for member in same]
        best = max(counts)
        folders = {p for member in self.sizes for p in folded(member).split("/")[:-1]}
        if best < 2 and len(parts) > 1 and parts[-2] in folders:
            return None
        winners = [m for m, n in zip(same, counts, strict=True) if n == best]
        return winners[0] if len(winners) == 1 else None

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

        A full path of the machine that wrote the file, other letter case and Unicode forms, and
        folders that were moved or doubled are looked through; the answer is always a member, or
        the name that is missing.

        Raises:
            InputRefused: the name leaves the capture and nothing in it fits, or is an address.
        """
        path = given.replace("\\", "/")
        joined = posixpath.normpath(posixpath.join(base, path.lstrip("/")))
        drive = re.match(r"^[A-Za-z]:/", path) or re.match(r"^file:/{1,3}", path)
        absolute = path.startswith("/") or bool(drive)
        address = not drive and re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", path)
        leaves = joined.startswith("../") or joined == ".." or "\0" in path
        if not (absolute or address or leaves):
            return self.found(joined) or (
                (None if path.startswith("~") else self.ending(path)) or joined
            )
        if absolute and not leaves:
            inner = path[drive.end() :] if drive else path.lstrip("/")
            if "/" in inner and (member := self.ending(inner)) is not None:
                return member
        raise refusal(
            source,
            f'{where}: "{shown(given, 32)}" points outside the capture',
            "Names relative to the file itself are accepted",
        )

    def named(self, *names: str) -> list[str]:
        """Members with one of these base names in any letter case, the shallowest first."""
        found = [n for n in self.sizes if posixpath.basename(n).lower() in names]
        return sorted(found, key=lambda n: (n.count("/"), natural(n)))

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
        met: set[str] = set()
        for info in infos:
            clean = _checked_name(name, info)
            if clean is None or info.is_dir() or _JUNK.search(clean):
                continue
            key = folded(clean)
            if key in met:
                raise refusal(
                    name,
                    f'"{shown(clean, 32)}" is there twice',
                    f"One of each name is accepted. {_CLEAN}",
                )
            met.add(key)
            _check_member(name, info, limits)
            self._infos[clean] = info
            sizes[clean] = info.file_size
        parents = {p for key in met for p in _parents(key)}
        both = sorted(parents & met)
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


def folded(name: str) -> str:
    """A name as people see it: one Unicode form, no letter case, no marks without a width."""
    plain = "".join(c for c in name if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", plain.replace("\\", "/")).casefold()


def natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key that puts 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(p)) if p.isascii() and p.isdigit() else (1, p) for p in parts], name


def head(path: Path, name: str) -> bytes:
    """The first bytes of a regular file."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise refusal(name, "this is not a regular file", "A file or a folder is accepted")
        return file.read(64)


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
        return file.read(status.st_size)  # `read` allocates what it is asked for, not what is there


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _too_many(name: str, n: int, limits: Limits, what: str) -> InputRefused:
    return refusal(name, f"{n} {what}", f"At most {limits.members} are accepted")


def _checked_name(archive: str, info: zipfile.ZipInfo) -> str | None:
    """The member's name with `/`; None for litter of an operating system."""
    given = info.orig_filename
    if not info.flag_bits & 0x800 and not given.isascii():
        with contextlib.suppress(UnicodeError):  # UTF-8 without the flag, as macOS packs
            given = given.encode("cp437").decode("utf-8")
    given = given.replace("\\", "/")
    parts = given.rstrip("/").split("/")
    outside = given.startswith("/") or ".." in parts or re.match(r"^[A-Za-z]:", given)
    if outside:
        raise refusal(archive, f'"{shown(given, 40)}" points outside the archive', _CLEAN)
    if _JUNK.search(given):
        return None
    odd = any(unicodedata.category(c) in ("Cc", "Cs") or c in _TURNING for c in given)
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
