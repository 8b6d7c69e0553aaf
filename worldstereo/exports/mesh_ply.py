"""A mesh with vertex colours and marks as binary PLY, in the world's own frame and scene units."""

import json
import textwrap

import numpy as np

from worldstereo.exports.archive import array
from worldstereo.exports.mesh import Body, body_of, colors_u8, marks
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Scene


def write_mesh_ply(
    scene: Scene,
    *,
    generated: bool = True,
    quality: str = "standard",
    fill_holes: bool = False,
    on_step: OnStep = ignore,
) -> bytes:
    """Raises ExportError: no view has depth, or an unknown quality."""
    return ply(body_of(scene, on_step, generated=generated, quality=quality, fill_holes=fill_holes))


def ply(body: Body) -> bytes:
    mesh = body.mesh
    names = ("x", "y", "z", "nx", "ny", "nz")
    kinds = [*((n, "<f4") for n in names), *((n, "u1") for n in ("red", "green", "blue"))]
    table = np.zeros(len(mesh.vertices), np.dtype([*kinds, ("invented", "u1")]))
    values = np.hstack([array(mesh.vertices), array(mesh.normals)])
    for i, name in enumerate(names):
        table[name] = values[:, i]
    for i, name in enumerate(("red", "green", "blue")):
        table[name] = colors_u8(mesh)[:, i]
    table["invented"] = marks(mesh)
    rows = np.zeros(len(mesh), np.dtype([("n", "u1"), ("v", "<i4", 3)]))
    rows["n"], rows["v"] = 3, array(mesh.faces)
    head = ["ply", "format binary_little_endian 1.0"]
    for key, value in body.notes("mesh ply").items():
        text = f"{key}: {json.dumps(value, allow_nan=False)}"
        head += [f"comment {line}" for line in textwrap.wrap(text, 200)]
    head.append(f"element vertex {len(table)}")
    head += [f"property {'float' if k == '<f4' else 'uchar'} {n}" for n, k in kinds]
    head += ["property uchar invented", f"element face {len(rows)}"]
    head += ["property list uchar int vertex_indices", "end_header"]
    return ("\n".join(head) + "\n").encode("ascii") + table.tobytes() + rows.tobytes()
