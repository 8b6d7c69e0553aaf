"""The shape alone as binary STL: +Z up, and millimetres where metres are known, as slicers read."""

import numpy as np

from worldstereo.exports.archive import array
from worldstereo.exports.conventions import to_file
from worldstereo.exports.mesh import Body, body_of, placed
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Scene


def write_stl(
    scene: Scene,
    *,
    generated: bool = True,
    quality: str = "standard",
    fill_holes: bool = False,
    on_step: OnStep = ignore,
) -> bytes:
    """Raises ExportError: no view has depth, or an unknown quality."""
    return stl(body_of(scene, on_step, generated=generated, quality=quality, fill_holes=fill_holes))


def stl(body: Body) -> bytes:
    metric = body.scene.metres_per_unit is not None
    points, _ = placed(body, to_file(body.scene, (0, 0, 1), 1000.0 if metric else 1.0))
    corners = points[array(body.mesh.faces)].astype("<f4")
    table = np.zeros(len(corners), np.dtype([("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")]))
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    table["n"] = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    table["v"] = corners
    unit = "mm" if metric else "scene units"
    head = f"{body.notes('stl')['written_by']}; +Z up; {unit}".encode()[:80].ljust(80)
    return head + np.uint32(len(table)).tobytes() + table.tobytes()
