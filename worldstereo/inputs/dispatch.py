"""Which reader a file or folder belongs to, after its bytes first and its name second."""

import posixpath
from pathlib import Path

from worldstereo.inputs import archive, images
from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.limits import Limits, refusal, shown
from worldstereo.scene import Capture

ACCEPTED = (
    "A photo, a mesh or point cloud (PLY, GLB, glTF, OBJ, STL, OFF), or a folder or zip of posed "
    "pictures is accepted"
)
MESHES = (".ply", ".glb", ".gltf", ".obj", ".stl", ".off")


def read(source: Path | str | bytes, name: str, limits: Limits) -> Capture:
    """The capture in a path or in bytes; see `worldstereo.inputs.read`."""
    if not isinstance(source, bytes):
        path = Path(source)
        try:
            if path.is_dir():
                return read_bundle(archive.Folder(path, limits, name))
            source = archive.read_regular(path, name, limits)
        except FileNotFoundError:
            raise refusal(name, "there is no such file", "Check the name") from None
        except OSError:
            raise refusal(name, "the file cannot be opened", "Check that you may read it") from None
    if len(source) > limits.file_bytes:
        raise Bundle(name, {}, limits).too_large(name, len(source))
    if not source:
        raise refusal(name, "the file is empty (0 bytes)", ACCEPTED)
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
    suffix = posixpath.splitext(name.lower())[1]
    if suffix in MESHES:
        from worldstereo.inputs import cloud

        return cloud.read(name, data, limits)
    picture = data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (
        data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    )
    if picture or suffix in images.SUFFIXES:
        from worldstereo.inputs import photo

        return photo.read(name, data, limits)
    if data.startswith(b"glTF") or data[:4] in (b"ply\n", b"ply\r"):
        from worldstereo.inputs import cloud

        return cloud.read(name, data, limits)
    if suffix in (".json", ".log", ".txt"):
        raise refusal(name, "poses alone hold no pictures", "Give the whole folder, or a zip of it")
    if suffix in (".pt", ".pth", ".pkl", ".ckpt", ".bin") and "pickle" in images.looks_like(data):
        raise refusal(name, "this is a pickle and could run code", "Convert it to .safetensors")
    raise refusal(name, f"this kind of file is not read, {images.looks_like(data)}", ACCEPTED)


def read_bundle(bundle: Bundle) -> Capture:
    """A folder or archive: posed pictures in one of the known forms, or one file in a wrapping."""
    from worldstereo.inputs import rgbd

    def find(*names: str) -> list[str]:
        """Members with one of these base names, the shallowest first."""
        found = [n for n in bundle.names if posixpath.basename(n).lower() in names]
        return sorted(found, key=lambda n: (n.count("/"), archive.natural(n)))

    if not bundle.names:
        raise refusal(bundle.name, "holds no file", ACCEPTED)
    if frames := find("frames.json"):
        return rgbd.read_frames(bundle, frames[0])
    from worldstereo.inputs import posed

    capture = posed.read(bundle, find)
    if capture is not None:
        return capture
    if text := rgbd.find_text(bundle):
        return rgbd.read_text(bundle, *text)
    pictures, meshes = bundle.child(*images.SUFFIXES), bundle.child(*MESHES)
    if len(meshes) == 1 or (len(pictures) == 1 and not meshes):
        only = (meshes or pictures)[0]
        return read_file(posixpath.basename(only), bundle.read(only), bundle.limits)
    if len(meshes) > 1:
        raise refusal(bundle.name, f"holds {len(meshes)} meshes", "One mesh at a time is accepted")
    if pictures:
        raise refusal(
            bundle.name,
            f"{len(pictures)} pictures and no camera poses",
            "Add frames.json, transforms.json or a COLMAP model; or give one photo",
        )
    kinds = sorted({posixpath.splitext(n.lower())[1] or "no suffix" for n in bundle.names})
    raise refusal(bundle.name, f"holds only {shown(', '.join(kinds), 40)}", ACCEPTED)
