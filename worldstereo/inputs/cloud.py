"""Meshes and point clouds as captures: each format, its axis up and its unit."""

import posixpath
from collections.abc import Callable

import torch

from worldstereo.inputs import gltf, meshes, pcd, ply, splats, survey, xyz
from worldstereo.inputs.capture import title
from worldstereo.inputs.images import looks_like
from worldstereo.inputs.limits import Limits, refusal
from worldstereo.inputs.meshes import Fetch
from worldstereo.inputs.surface import cloud_of
from worldstereo.scene import Capture

_FOREIGN = ("picture", "archive", "pickle", "program", "page", "document", "database", "drawing")
_Y_UP, _Z_UP, _Y_DOWN = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)

Kind = tuple[str, str, tuple[str, ...], Callable[[bytes], bool] | None]
KINDS: tuple[Kind, ...] = (
    ("ply", "PLY: points, meshes, Gaussian splats (also packed)", (".ply",),
     lambda d: d[:4] in (b"ply\n", b"ply\r")),
    ("gltf", "glTF 2.0 and GLB with textures", (".glb", ".gltf"), lambda d: d[:4] == b"glTF"),
    ("obj", "OBJ with MTL and textures", (".obj",), None),
    ("stl", "STL", (".stl",), None),
    ("off", "OFF", (".off",), None),
    ("pcd", "PCD: ASCII, binary, compressed", (".pcd",), pcd.is_pcd),
    ("las", "LAS and LAZ", (".las", ".laz"), lambda d: d[:4] == b"LASF"),
    ("e57", "E57 (with pye57)", (".e57",), lambda d: d[:8] == b"ASTM-E57"),
    ("splat", ".splat", (".splat",), None),
    ("xyz", "Lists of points: XYZ, PTS, CSV, TXT, ASC", xyz.SUFFIXES, None),
)  # fmt: skip


def read_geometry(name: str, data: bytes, limits: Limits, beside: Fetch | None = None) -> Capture:
    """A capture without views: coloured points, sampled where the file holds faces.

    `beside` gives the files of the same archive or folder that a model names.
    """
    if not data:
        raise refusal(name, "the file is empty (0 bytes)", "A mesh or point cloud is accepted")
    suffix = posixpath.splitext(name.lower())[1]
    looks = looks_like(data)
    if any(word in looks for word in _FOREIGN):
        raise refusal(name, looks, f"A file that is what {suffix} promises is accepted. Rename it")
    up, metres = None, None
    if suffix in (".glb", ".gltf") or data.startswith(b"glTF"):
        surface, up, metres = gltf.read_gltf(name, data, limits, beside), _Y_UP, 1.0
    elif suffix == ".ply" or data[:4] in (b"ply\n", b"ply\r"):
        surface, up = ply.read_ply(name, data, limits, beside), ply.up_of(data)
    elif suffix == ".obj":
        surface, up = meshes.read_obj(name, data, limits, beside), _Y_UP
    elif suffix == ".stl":
        surface, up = meshes.read_stl(name, data, limits), _Z_UP
    elif suffix == ".off":
        surface = meshes.read_off(name, data, limits)
    elif suffix in (".las", ".laz") or data.startswith(b"LASF"):
        surface, up, metres = survey.read_las(name, data, limits), _Z_UP, 1.0
    elif suffix == ".e57" or data.startswith(b"ASTM-E57"):
        surface, up, metres = survey.read_e57(name, data, limits), _Z_UP, 1.0
    elif suffix == ".pcd" or pcd.is_pcd(data):
        surface, up = pcd.read_pcd(name, data, limits), _Z_UP
    elif suffix == ".splat":
        surface, up = splats.read_splats(name, data, limits), _Y_DOWN
    else:
        surface, up = xyz.read_xyz(name, data, limits), _Z_UP
    cloud, notices, origin = cloud_of(name, surface, limits)
    if up is None and any(origin):
        up = _Z_UP  # only a survey lies so far from its origin
    return Capture(
        name=title(name),
        kind="cloud",
        cloud=cloud,
        up=None if up is None else torch.tensor(up),
        notices=notices,
        metres_per_unit=metres,
        origin=origin,
    )
