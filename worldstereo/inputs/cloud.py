"""Meshes and point clouds as captures: PLY, GLB, glTF, OBJ, STL, OFF."""

import posixpath

import torch

from worldstereo.inputs import gltf, meshes, ply
from worldstereo.inputs.capture import title
from worldstereo.inputs.images import looks_like
from worldstereo.inputs.limits import Limits, refusal
from worldstereo.inputs.surface import cloud_of
from worldstereo.scene import Capture

_FOREIGN = ("picture", "archive", "pickle", "program", "page", "document", "database", "drawing")


def read(name: str, data: bytes, limits: Limits) -> Capture:
    """A capture without views: coloured points, sampled where the file holds faces."""
    if not data:
        raise refusal(name, "the file is empty (0 bytes)", "A mesh or point cloud is accepted")
    suffix = posixpath.splitext(name.lower())[1]
    looks = looks_like(data)
    if any(word in looks for word in _FOREIGN):
        raise refusal(name, looks, f"A file that is what {suffix} promises is accepted. Rename it")
    up = None
    if suffix in (".glb", ".gltf") or data.startswith(b"glTF"):
        surface = gltf.read(name, data, limits)
        up = torch.tensor([0.0, 1.0, 0.0])
    elif suffix == ".ply" or data[:4] in (b"ply\n", b"ply\r"):
        surface = ply.read(name, data, limits)
    elif suffix == ".obj":
        surface = meshes.read_obj(name, data, limits)
    elif suffix == ".stl":
        surface = meshes.read_stl(name, data, limits)
    else:
        surface = meshes.read_off(name, data, limits)
    cloud, notices = cloud_of(name, surface, limits)
    return Capture(name=title(name), kind="cloud", cloud=cloud, up=up, notices=notices)
