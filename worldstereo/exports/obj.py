"""A textured mesh as OBJ with its MTL and PNG. +Y up, metres where known, as importers expect."""

import numpy as np

from worldstereo.exports.archive import array, as_json, packed
from worldstereo.exports.conventions import to_file
from worldstereo.exports.mesh import Body, body_of, colors_u8, picture_of, placed
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Scene


def write_obj(
    scene: Scene,
    *,
    generated: bool = True,
    quality: str = "standard",
    texture: int = 2048,
    fill_holes: bool = False,
    on_step: OnStep = ignore,
) -> bytes:
    """A zip of `mesh.obj`, `mesh.mtl`, `mesh.png` and `conventions.json`.

    Raises:
        ExportError: no view has depth, or an unknown quality.
    """
    body = body_of(
        scene, on_step, generated=generated, quality=quality, texture=texture, fill_holes=fill_holes
    )
    files = obj(body, "mesh")
    files["conventions.json"] = as_json(notes_of(body))
    return packed(files)


def notes_of(body: Body) -> dict:
    return body.notes(
        "obj",
        file_axes="+Y up; file = matrix @ world",
        matrix=to_file(body.scene, (0, 1, 0)).tolist(),
    )


def obj(body: Body, name: str) -> dict[str, bytes]:
    """`name.obj`, `name.mtl` and, with a texture, `name.png`. Without one, colours follow the
    positions, which MeshLab and Blender read."""
    mesh, albedo = body.mesh, body.albedo
    points, normals = placed(body, to_file(body.scene, (0, 1, 0)))
    lines = [f"# {body.notes('obj')['written_by']}; +Y up; see conventions.json for the world"]
    lines += [f"mtllib {name}.mtl", f"o {name}"]
    columns = points if albedo is not None else np.hstack([points, colors_u8(mesh) / 255.0])
    lines += [_row("v", row) for row in columns.tolist()]
    if albedo is not None and mesh.uv is not None:
        lines += [_row("vt", row) for row in array(mesh.uv).astype(float).tolist()]
    lines += [_row("vn", row) for row in normals.tolist()]
    lines.append("usemtl surface")
    corner = "{0}/{0}/{0}" if albedo is not None else "{0}//{0}"
    form = "f " + " ".join(corner.replace("0", str(i)) for i in range(3))
    lines += [form.format(*row) for row in (array(mesh.faces) + 1).tolist()]
    material = ["newmtl surface", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "illum 1"]
    files = {}
    if albedo is not None:
        material.append(f"map_Kd {name}.png")
        files[f"{name}.png"] = picture_of(albedo)
    files[f"{name}.obj"] = ("\n".join(lines) + "\n").encode()
    files[f"{name}.mtl"] = ("\n".join(material) + "\n").encode()
    return files


def _row(key: str, values: list[float]) -> str:
    return key + "".join(f" {v:.7g}" for v in values)
