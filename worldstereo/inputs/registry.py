"""What can be opened: each kind of file or capture is one `Reader` and one `register` line.

    register(Reader("las", "LAS and LAZ point clouds", suffixes=(".las", ".laz"), read=read_las))

A reader of one file has `read(name, data, limits)`; `suffixes` and `sniff` say which files are
its own, the first bytes before the name. A reader of folders and archives has `find(bundle)`,
which names the files that a capture of its kind hangs on, best first, and
`read_bundle(bundle, member)`. A reader may have both. Packages add readers by an entry point of
the group `worldstereo.readers` that names a `Reader` or a function that returns one. All of them
run in the import process: nothing they are given was opened before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.limits import Limits
from worldstereo.scene import Capture

GROUP = "worldstereo.readers"
POSES, CLOUDS, PHOTOS = "poses", "clouds and meshes", "photos"
"""Headings of `Reader.group`."""

ReadFile = Callable[[str, bytes, Limits], Capture]
ReadBundle = Callable[[Bundle, str], Capture]


@dataclass(frozen=True)
class Reader:
    """One kind of input."""

    name: str
    """Short and unique, lower case: `ply`."""

    title: str
    """For lists: what it opens, in words."""

    suffixes: tuple[str, ...] = ()
    """Lower case, with the dot."""

    sniff: Callable[[bytes], bool] | None = None
    """Whether the first bytes are certainly of this kind."""

    read: ReadFile | None = None
    """One file to a capture."""

    find: Callable[[Bundle], Sequence[str]] | None = None
    """Members that a capture of this kind hangs on; empty: not this kind."""

    read_bundle: ReadBundle | None = None
    """The capture that hangs on such a member."""

    rank: int = 50
    """Which kind is tried first where several fit a bundle or a suffix: the lower one."""

    poses: bool = True
    """False: a capture without camera poses, taken only where no reader with poses fits."""

    group: str = ""
    """Heading in lists; readers of one group stand together."""


_readers: dict[str, Reader] = {}


def register(reader: Reader) -> Reader:
    """Adds a reader.

    Raises:
        ValueError: the name is taken, or it can read neither a file nor a bundle.
    """
    if reader.name in _readers:
        raise ValueError(f"reader {reader.name!r} is registered already.")
    if reader.read is None and (reader.find is None or reader.read_bundle is None):
        raise ValueError(f"reader {reader.name!r} needs `read`, or `find` and `read_bundle`.")
    _readers[reader.name] = reader
    return reader


def readers() -> tuple[Reader, ...]:
    """All that were registered, in the order in which they are tried; `inputs.readers` has all."""
    return tuple(sorted(_readers.values(), key=lambda r: (r.rank, r.name)))


def of_file(name: str, data: bytes) -> Reader | None:
    """The reader of one file: by its first bytes, else by its suffix."""
    suffix = "." + name.lower().rpartition(".")[2]
    able = [r for r in readers() if r.read is not None]
    named = [r for r in able if suffix in r.suffixes]
    for reader in [*named, *able]:
        if reader.sniff is not None and reader.sniff(data):
            return reader
    return named[0] if named else None


def suffixes() -> tuple[str, ...]:
    """Suffixes of all files that are read, sorted."""
    return tuple(sorted({s for r in readers() if r.read is not None for s in r.suffixes}))


def accepted() -> str:
    """One sentence of what is accepted, for refusals."""
    kinds = [r.suffixes[0] for r in readers() if r.group == CLOUDS and r.suffixes]
    named = ", ".join(suffix[1:].upper() for suffix in kinds)
    return (
        f"Photos, a video, a mesh or point cloud ({named}), or a folder or zip of pictures is "
        f"accepted"
    )
