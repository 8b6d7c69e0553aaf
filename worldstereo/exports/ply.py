"""Points as binary PLY, in the world's own frame and scene units."""

import json
import textwrap

import numpy as np

from worldstereo.exports.archive import array, bytes_of, chosen_points
from worldstereo.exports.conventions import conventions
from worldstereo.scene import Scene

COLUMNS = np.dtype(
    [
        *((name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")),
        *((name, "u1") for name in ("red", "green", "blue")),
        ("confidence", "<f4"),
        ("radius", "<f4"),
        ("step", "<i4"),
        ("view", "<i4"),
        ("invented", "u1"),
    ]
)
NAMES = {"<f4": "float", "<f8": "double", "u1": "uchar", "|u1": "uchar", "<i4": "int"}


def write_ply(
    scene: Scene,
    *,
    generated: bool = True,
    colors: bool = True,
    normals: bool = True,
    max_points: int | None = None,
) -> bytes:
    """Positions, normals, colours; and per point how sure, half its spacing, the step and the view
    that added it (-1: none), and whether a generator invented it.

    Raises:
        ExportError: no points.
    """
    rows = chosen_points(scene.cloud, generated, max_points)
    cloud = scene.cloud
    left_out = (() if colors else ("red", "green", "blue")) + (
        () if normals else ("nx", "ny", "nz")
    )
    # Coordinates of a survey (UTM) need doubles; others stay as every reader expects them.
    wide = dict.fromkeys("xyz", "<f8") if any(scene.origin) else {}
    kept = [n for n in COLUMNS.names or () if n not in left_out]
    kinds = np.dtype([(n, wide.get(n, COLUMNS[n].str)) for n in kept])
    table = np.zeros(len(rows), kinds)
    for names, values in ((("x", "y", "z"), cloud.points), (("nx", "ny", "nz"), cloud.normals)):
        columns = np.nan_to_num(array(values)[rows])
        for i, name in enumerate(names if names[0] in (kinds.names or ()) else ()):
            table[name] = columns[:, i]
    for i, name in enumerate("xyz"):
        table[name] += scene.origin[i]
    color = bytes_of(array(cloud.colors)[rows])
    for i, name in enumerate(("red", "green", "blue") if colors else ()):
        table[name] = color[:, i]
    table["confidence"] = array(cloud.confidence)[rows]
    table["radius"] = array(cloud.radii)[rows]
    table["step"] = array(cloud.step)[rows]
    table["view"] = -1 if cloud.source is None else array(cloud.source)[rows]
    table["invented"] = table["step"] > 0
    notes = conventions(scene, "ply", generated=generated, points_written=len(rows))
    head = ["ply", "format binary_little_endian 1.0"]
    for key, value in notes.items():  # some readers take no line above 1 kB
        text = f"{key}: {json.dumps(value, allow_nan=False)}"
        head += [f"comment {line}" for line in textwrap.wrap(text, 200)]
    head.append(f"element vertex {len(rows)}")
    head += [f"property {NAMES[kinds[name].str]} {name}" for name in kinds.names or ()]
    return ("\n".join([*head, "end_header"]) + "\n").encode("ascii") + table.tobytes()
