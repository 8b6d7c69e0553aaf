"""Which reader a file or folder belongs to, after its bytes first and its name second.

Readers are in `registry`. A reader for something new (photos without poses, a video) registers
itself with `find` and `poses=False`: it is asked where no capture with poses was found.
"""

import logging
import posixpath
from dataclasses import replace
from pathlib import Path

from worldstereo.errors import InputRefused
from worldstereo.inputs import archive, builtin, images, registry, together, unposed, video
from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.limits import Limits, refusal, shown
from worldstereo.inputs.registry import Reader
from worldstereo.scene import Capture

log = logging.getLogger(__name__)


def read_source(source: Path | str | bytes, name: str, limits: Limits) -> Capture:
    """The capture in a path or in bytes; see `worldstereo.inputs.read`."""
    builtin.load()
    if not isinstance(source, bytes):
        path = Path(source)
        try:
            if path.is_dir():
                return read_bundle(archive.Folder(path, limits, name))
            if video.is_video(name, archive.head(path, name)):  # read frame by frame, never whole
                return unposed.read_video(name, path, limits)
            source = archive.read_regular(path, name, limits)
        except FileNotFoundError:
            raise refusal(name, "there is no such file", "Check the name") from None
        except OSError:
            raise refusal(name, "the file cannot be opened", "Check that you may read it") from None
    if len(source) > limits.file_bytes:
        raise Bundle(name, {}, limits).too_large(name, len(source))
    if not source:
        raise refusal(name, "the file is empty (0 bytes)", registry.accepted())
    suffix = posixpath.splitext(name.lower())[1]
    if source.startswith((b"PK\x03\x04", b"PK\x05\x06")) or suffix == ".zip":
        bundle = archive.Zip(name, source, limits)
        try:
            return read_bundle(bundle)
        finally:
            bundle.close()
    return read_file(name, source, limits)


def read_file(name: str, data: bytes, limits: Limits) -> Capture:
    """One file that is no archive."""
    if video.is_video(name, data[:64]):
        return unposed.read_video(name, data, limits)
    reader = registry.of_file(name, data)
    if reader is not None and reader.read is not None:
        return reader.read(name, data, limits)
    suffix = posixpath.splitext(name.lower())[1]
    if suffix in (".json", ".log"):
        raise refusal(name, "poses alone hold no pictures", "Give the whole folder, or a zip of it")
    if suffix in (".pt", ".pth", ".pkl", ".ckpt", ".bin") and "pickle" in images.looks_like(data):
        raise refusal(name, "this is a pickle and could run code", "Convert it to .safetensors")
    if suffix in KNOWN:
        what, way_out = KNOWN[suffix]
        raise refusal(name, f"{what} is not read here", way_out)
    raise refusal(
        name, f"this kind of file is not read, {images.looks_like(data)}", registry.accepted()
    )


KNOWN = {
    ".spz": ("a packed splat file (SPZ)", "Save it as PLY"),
    ".splat": ("a .splat file", "Save it as PLY"),
    ".ksplat": ("a .ksplat file", "Save it as PLY"),
    ".sog": ("a packed splat file (SOG)", "Save it as PLY"),
    ".fbx": ("FBX", "Export it as GLB"),
    ".usdz": ("USDZ", "Export it as GLB"),
    ".usdc": ("USD", "Export it as GLB"),
    ".blend": ("a Blender project", "Export it as GLB"),
    ".dae": ("COLLADA", "Export it as GLB"),
    ".3ds": ("3DS", "Export it as GLB"),
    ".3mf": ("3MF", "Export it as GLB or STL"),
    ".dng": ("a raw photo (DNG)", "Save it as JPEG"),
    ".cr2": ("a raw photo", "Save it as JPEG"),
    ".nef": ("a raw photo", "Save it as JPEG"),
    ".arw": ("a raw photo", "Save it as JPEG"),
    ".exr": ("OpenEXR", "Save pictures as PNG, depth as 16-bit PNG or TIFF"),
    ".hdr": ("a Radiance picture", "Save it as PNG or JPEG"),
    ".tif": ("a TIFF picture", "Save it as PNG or JPEG"),
    ".tiff": ("a TIFF picture", "Save it as PNG or JPEG"),
    ".jxl": ("JPEG XL", "Save it as JPEG"),
    ".jp2": ("JPEG 2000", "Save it as JPEG"),
    ".rcs": ("an Autodesk scan (RCS)", "Export it as E57 or LAS"),
    ".rcp": ("an Autodesk project (RCP)", "Export it as E57 or LAS"),
    ".fls": ("a FARO scan", "Export it as E57 or LAS"),
    ".tar": ("a tar archive", "Pack it as .zip"),
    ".7z": ("a 7z archive", "Pack it as .zip"),
    ".rar": ("a RAR archive", "Pack it as .zip"),
    ".bag": ("a ROS bag", "Export color/, depth/ and poses, and give the folder"),
}
"""Formats that people have and that are not read: what they are, and the way out."""


def read_bundle(bundle: Bundle) -> Capture:
    """A folder or archive: a capture in one of the known forms, or files in a wrapping.

    The first form that fits counts; where it cannot be read, the next one does, and what was
    wrong with the first is said.
    """
    if not bundle.names:
        raise refusal(bundle.name, "holds no file", registry.accepted())
    first: InputRefused | None = None
    able = [r for r in registry.readers() if r.find is not None]
    for reader in (r for r in able if r.poses):
        try:
            capture = _captured(bundle, reader)
        except InputRefused as error:
            first = first or error
            continue
        if capture is not None:
            return _said(capture, first)
    suffixes = tuple(
        s for r in registry.readers() if r.group != registry.PHOTOS for s in r.suffixes
    )
    solids = together.solids(bundle, suffixes, lists=first is None)
    if first is None and not solids:
        for reader in (r for r in able if not r.poses):
            capture = _captured(bundle, reader)
            if capture is not None:
                return capture
    try:
        return _said(_files(bundle, solids, first is None), first)
    except InputRefused as error:
        raise (first or error) from None


def _captured(bundle: Bundle, reader: Reader) -> Capture | None:
    assert reader.find is not None and reader.read_bundle is not None
    members = list(reader.find(bundle))
    return together.best(bundle, reader, members) if members else None


def _said(capture: Capture, first: InputRefused | None) -> Capture:
    """The capture with a word on the form that was tried before."""
    if first is None:
        return capture
    why = str(first).rsplit(". ", 1)[0].rstrip(".")
    return replace(capture, notices=(f"Left aside: {why}.", *capture.notices))


def _files(bundle: Bundle, solids: list[str], alone: bool) -> Capture:
    """A mesh or cloud with the files that belong to it, or one photo."""
    pictures = bundle.child(*images.SUFFIXES)
    if len(solids) == 1:
        capture = together.solid(bundle, solids[0])
        left = [p for p in pictures if not together.belongs(bundle, solids[0], p)]
        if len(left) > 1:
            said = f"{len(left)} pictures without camera poses were left aside."
            capture = replace(capture, notices=(*capture.notices, said))
        return capture
    if len(solids) > 1:
        names = ", ".join(shown(s, 24) for s in solids[:4])
        raise refusal(
            bundle.name,
            f"holds {len(solids)} meshes or clouds ({names}{', …' if len(solids) > 4 else ''})",
            "One at a time is accepted",
        )
    if len(pictures) == 1 and alone:
        return read_file(posixpath.basename(pictures[0]), bundle.read(pictures[0]), bundle.limits)
    if pictures:
        raise refusal(
            bundle.name,
            f"{len(pictures)} pictures and no camera poses",
            "Add frames.json, transforms.json or a COLMAP model; or give one photo",
        )
    kinds = sorted({posixpath.splitext(n.lower())[1] or "no suffix" for n in bundle.names})
    raise refusal(bundle.name, f"holds only {shown(', '.join(kinds), 40)}", registry.accepted())
