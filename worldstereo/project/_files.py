"""The files of a project as bytes: what its manifest promises, folders and zips read with care.

Nothing is unpacked, and no name of a foreign file becomes a path: members have 64 hex digits.
"""

import hashlib
import json
import os
import re
import stat
import zipfile
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from worldstereo.errors import InputRefused
from worldstereo.project._codec import Unsound, fits

FORMAT, VERSION = "worldstereo-project", 1
MANIFEST, PREVIOUS, MEMBERS, LOCK = "project.json", "previous.json", "members", ".lock"
MAX_MEMBERS = 200_000
MAX_BYTES = 40_000_000_000
SMALL_BYTES = 10**9  # of members together: so much may come from a file of any size
MAX_RATIO = 20  # of what they are to what holds them, above that
NAME = re.compile(r"[0-9a-f]{64}")
STATE = ("scene", "registration", "history", "geometry", "stereo", "plan", "settings")
LATER = ("original", "keypoints")
"""Parts that older files lack."""

ReadMember = Callable[[str, int], bytes]
"""`(name, most)`: the bytes of a file of the project; more than `most` is an `Unsound`."""


def checked_manifest(fields: Any) -> tuple[dict[str, int], str | None, dict[str, Any]]:
    """Sizes of the members, name of the small one, and the skeleton of the state.

    Raises:
        Unsound: damaged, written by a newer version, or never written by us.
    """
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise Unsound("it is not a WorldStereo project")
    version = fields.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise Unsound(
            f"it was saved by a newer WorldStereo (version {str(version)[:9]} of the format, "
            f"{VERSION} is read here); update to open it"
        )
    body = {key: fields.get(key) for key in ("small", "members", "state")}
    sizes, small, skeleton = body["members"], body["small"], body["state"]
    if version != VERSION or not isinstance(sizes, dict) or not isinstance(skeleton, dict):
        raise Unsound(f"{MANIFEST} lacks its parts")
    if fields.get("checksum") != checksum(body):
        raise Unsound(f"{MANIFEST} is damaged (wrong checksum)")
    if len(sizes) > MAX_MEMBERS:
        raise Unsound(f"it names {len(sizes)} members; at most {MAX_MEMBERS} are read")
    for member, size in sizes.items():
        if not NAME.fullmatch(member) or not fits(size, int) or not 0 < size <= MAX_BYTES:
            raise Unsound(f"{MANIFEST} names a member that cannot be")
    if small is not None and (not isinstance(small, str) or small not in sizes):
        raise Unsound(f"{MANIFEST} lacks its small member")
    missing = [key for key in STATE if key not in skeleton]
    if missing:
        raise Unsound(f"{MANIFEST} lacks {missing[0]}")
    return sizes, small, skeleton


def entries_of(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """Members of a packed project by name; anything that is none of its files is refused."""
    entries: dict[str, zipfile.ZipInfo] = {}
    if len(archive.infolist()) > MAX_MEMBERS:
        raise InputRefused(f"{name}: holds too many files; at most {MAX_MEMBERS} are read.")
    for info in archive.infolist():
        folder, _, last = info.filename.rpartition("/")
        member = folder == MEMBERS and bool(NAME.fullmatch(last.removesuffix(".safetensors")))
        if not (member or info.filename == MANIFEST or info.is_dir()):
            raise InputRefused(
                f"{name}: holds a file that is not part of a project. Pack it again."
            )
        if info.filename in entries or info.flag_bits & 1:
            raise InputRefused(f"{name}: a member is there twice or encrypted. Pack it again.")
        entries[info.filename] = info
    unpacked = sum(info.file_size for info in entries.values())
    packed = sum(info.compress_size for info in entries.values())
    if unpacked > max(SMALL_BYTES, MAX_RATIO * packed):
        raise InputRefused(
            f"{name}: unpacks to {unpacked} bytes from {packed}. Download the project again."
        )
    return entries


def zip_reader(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> ReadMember:
    def read(member: str, most: int) -> bytes:
        if member not in entries:
            raise FileNotFoundError(member)
        try:
            with archive.open(entries[member]) as stream:
                content = stream.read(most + 1)
        except Exception as error:  # zlib and zipfile raise a dozen kinds for a damaged member
            raise Unsound(f"{Path(member).name[:12]} is damaged") from error
        return _at_most(content, most, member)

    return read


def open_member(path: Path, most: int) -> bytes:
    """The bytes of a regular file; links, pipes and devices are no part of a project."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unsound(f"{path.name[:12]} is not a file")
        return _at_most(stream.read(most + 1), most, path.name)


class ReadAhead:
    """Reads and checks members in threads, a few before they are asked for.

    Args:
        read: the checked bytes of a member; called in a thread, once for each name of `order`.
        order: names as they will be asked for; a name that comes again at once is read once.
    """

    AHEAD = 4

    def __init__(self, read: Callable[[str], bytes], order: Iterable[str]) -> None:
        self._read = read
        self._order = (name for name, _ in groupby(order))
        self._coming: deque[tuple[str, Future[bytes]]] = deque()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="project")

    def __enter__(self) -> "ReadAhead":
        for name in islice(self._order, self.AHEAD):
            self._coming.append((name, self._pool.submit(self._read, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, name: str) -> bytes:
        """The bytes of a member. Raises what reading it raised."""
        if not self._coming or self._coming[0][0] != name:
            return self._read(name)
        _, content = self._coming.popleft()
        for coming in islice(self._order, 1):
            self._coming.append((coming, self._pool.submit(self._read, coming)))
        return content.result()


def _at_most(content: bytes, most: int, member: str) -> bytes:
    if len(content) > most:
        raise Unsound(f"{Path(member).name[:12]} is longer than {most} bytes")
    return content


def member_file(member: str) -> str:
    return f"{member}.safetensors"


def checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(compact_json(body)).hexdigest()


def compact_json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
