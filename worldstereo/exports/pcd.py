"""Points as PCD 0.7, binary, in the world's own frame and scene units.

Source: https://pcl.readthedocs.io/projects/tutorials/en/latest/pcd_file_format.html
"""

import numpy as np

from worldstereo.exports.archive import array, bytes_of, chosen_points
from worldstereo.exports.conventions import conventions
from worldstereo.scene import Scene

COLUMNS = [*((n, "<f4") for n in ("x", "y", "z", "rgb", "normal_x", "normal_y", "normal_z"))]


def write_pcd(
    scene: Scene,
    *,
    generated: bool = True,
    colors: bool = True,
    normals: bool = True,
    max_points: int | None = None,
) -> bytes:
    """`rgb` is packed as PCL does it; `invented` is 1 where a generator made the point.

    Raises:
        ExportError: no points.
    """
    cloud, rows = scene.cloud, chosen_points(scene.cloud, generated, max_points)
    kinds = [c for c in COLUMNS if (colors or c[0] != "rgb") and (normals or "normal" not in c[0])]
    table = np.zeros(len(rows), np.dtype([*kinds, ("confidence", "<f4"), ("invented", "u1")]))
    for i, axis in enumerate("xyz"):
        table[axis] = array(cloud.points)[rows, i]
        if normals:
            table[f"normal_{axis}"] = array(cloud.normals)[rows, i]
    if colors:
        r, g, b = bytes_of(array(cloud.colors)[rows]).astype(np.uint32).T
        table["rgb"] = ((r << 16) | (g << 8) | b).view(np.float32)
    table["confidence"] = array(cloud.confidence)[rows]
    table["invented"] = array(cloud.step)[rows] > 0
    names = table.dtype.names or ()
    kinds = [table.dtype[n] for n in names]
    written = conventions(scene, "pcd")
    head = [
        f"# .PCD v0.7 - {written['written_by']}; {written['units']}; up {written['up']}",
        "VERSION 0.7",
        "FIELDS " + " ".join(names),
        "SIZE " + " ".join(str(k.itemsize) for k in kinds),
        "TYPE " + " ".join("F" if k.kind == "f" else "U" for k in kinds),
        "COUNT " + " ".join("1" for _ in names),
        f"WIDTH {len(table)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(table)}",
        "DATA binary",
    ]
    return ("\n".join(head) + "\n").encode() + table.tobytes()
