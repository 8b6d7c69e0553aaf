"""Points as text, one a line, in the world's own frame and scene units."""

import numpy as np

from worldstereo.exports.archive import array, bytes_of, chosen_points
from worldstereo.scene import Scene


def write_xyz(
    scene: Scene,
    *,
    generated: bool = True,
    colors: bool = True,
    normals: bool = True,
    max_points: int | None = None,
) -> bytes:
    """`x y z [r g b] [nx ny nz]`, nine significant digits; nothing else, as readers want it.

    Raises:
        ExportError: no points.
    """
    cloud, rows = scene.cloud, chosen_points(scene.cloud, generated, max_points)
    form, columns = "%.9g %.9g %.9g", [array(cloud.points)[rows].astype(np.float64)]
    if colors:
        form += " %d %d %d"
        columns.append(bytes_of(array(cloud.colors)[rows]).astype(np.float64))
    if normals:
        form += " %.6g %.6g %.6g"
        columns.append(np.nan_to_num(array(cloud.normals)[rows].astype(np.float64)))
    return "".join(f"{form % tuple(row)}\n" for row in np.hstack(columns).tolist()).encode()
