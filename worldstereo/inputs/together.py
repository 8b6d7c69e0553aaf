"""Files that belong together: several captures in one archive, a model with its textures.

What was not opened is counted in words; nothing is left aside in silence.
"""

import posixpath
import re
from dataclasses import replace

from worldstereo.errors import InputRefused
from worldstereo.inputs import images, xyz
from worldstereo.inputs.archive import Bundle, folded, natural
from worldstereo.inputs.limits import refusal, shown
from worldstereo.inputs.registry import Reader, of_file
from worldstereo.scene import Capture

_ONE_MODEL = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")  # the same one: colours first
_MAX_NAMED = 4


def best(bundle: Bundle, reader: Reader, members: list[str]) -> Capture:
    """The capture with most pictures around it; the others are named in a notice."""
    assert reader.read_bundle is not None
    if len(members) == 1:
        return reader.read_bundle(bundle, members[0])
    pictures = bundle.child(*images.SUFFIXES)
    folders = [posixpath.dirname(member) for member in members]
    counts = [sum(p.startswith(f"{f}/" if f else "") for p in pictures) for f in folders]
    order = sorted(range(len(members)), key=lambda i: -counts[i])
    first: InputRefused | None = None
    for i in order:
        try:
            capture = reader.read_bundle(bundle, members[i])
        except InputRefused as error:
            first = first or error
            continue
        left = [shown(members[k], 32) for k in order if k != i]
        names = ", ".join(left[:_MAX_NAMED]) + (", …" if len(left) > _MAX_NAMED else "")
        said = (
            f"{len(members)} captures of this kind are in it; {shown(members[i], 40)} was opened, "
            f"left aside: {names}."
        )
        return replace(capture, notices=(said, *capture.notices))
    assert first is not None
    raise first


def solids(bundle: Bundle, suffixes: tuple[str, ...], lists: bool = True) -> list[str]:
    """The meshes and clouds of a bundle, one for each thing; text `lists` only without others."""
    found = [n for n in bundle.child(*suffixes) if not n.lower().endswith(xyz.SUFFIXES)]
    state = re.compile(r"(?:^|/)iteration_(\d{1,9})/point_cloud\.ply$", re.IGNORECASE)
    steps = {n: int(m.group(1)) for n in found if (m := state.search(n))}
    if steps:  # the output of a splat trainer: its last state
        return [max(steps, key=lambda n: steps[n])]
    one: dict[str, str] = {}
    for name in sorted(found, key=lambda n: _preference(n)):
        one.setdefault(posixpath.splitext(folded(name))[0], name)
    if one:
        return sorted(one.values(), key=natural)
    texts = bundle.child(*xyz.SUFFIXES) if lists else []
    return [n for n in texts if xyz.is_list(bundle.read(n)[: xyz.LOOKED_AT])]


def _preference(name: str) -> int:
    suffix = posixpath.splitext(name.lower())[1]
    return _ONE_MODEL.index(suffix) if suffix in _ONE_MODEL else len(_ONE_MODEL)


def belongs(bundle: Bundle, member: str, picture: str) -> bool:
    """Whether a picture may be a texture of a model."""
    return member.lower().endswith((".gltf", ".obj"))


class Beside:
    """The files around one member of a bundle, for a model that names them."""

    def __init__(self, bundle: Bundle, member: str) -> None:
        self._bundle, self._member = bundle, member

    def read(self, given: str) -> bytes | None:
        """The bytes of a file that the model names; None where it is not in the bundle."""
        name = posixpath.basename(self._member)
        path = given.replace("\\", "/")
        base = posixpath.dirname(self._member)
        parts = posixpath.normpath(posixpath.join(base, path)).split("/")
        if ".." in parts or "\0" in path or re.match(r"^[A-Za-z][A-Za-z0-9+.-]+:", path):
            raise refusal(
                name,
                f'"{shown(given, 32)}" points outside the capture',
                "Names of files beside it are accepted",
            )
        try:
            found = self._bundle.inside(base, path, name, "a file")
        except InputRefused:
            return None
        return self._bundle.read(found) if found in self._bundle else None


def solid(bundle: Bundle, member: str) -> Capture:
    """A mesh or cloud of a bundle, with what it names beside it."""
    from worldstereo.inputs import cloud

    name, data = posixpath.basename(member), bundle.read(member)
    reader = of_file(name, data)
    if reader is not None and reader.read is cloud.read_geometry:
        return cloud.read_geometry(name, data, bundle.limits, Beside(bundle, member).read)
    if reader is None or reader.read is None:
        raise refusal(name, "is not what its name promises", "Export it again")
    return reader.read(name, data, bundle.limits)
