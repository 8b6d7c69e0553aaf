"""Surface discs as Gaussians for splat viewers: not trained, one for each point of the cloud.

PLY as 3D Gaussian splatting writes it (up is -Y, as after COLMAP), SPZ as its library reads it
(right, up, back). A disc is flat along the point's normal; without a normal it is a ball.

Source: Kerbl et al., 3D Gaussian splatting, SIGGRAPH 2023 (layout of point_cloud.ply);
https://github.com/nianticlabs/spz (layout of version 2).
"""

import gzip
import json
import struct
import textwrap
from typing import NamedTuple

import numpy as np

from worldstereo.exports.archive import array, chosen_points
from worldstereo.exports.conventions import conventions, to_file
from worldstereo.scene import Scene

SH = 0.28209479177387814  # the constant spherical harmonic
WIDE = 1.0  # standard deviation of a disc in radii of the point: neighbours overlap, no gap shows
FLAT = 0.1  # thickness of a disc in its width
OPACITY = 0.95
COLUMNS = [
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
]


class _Discs(NamedTuple):
    points: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    scales: np.ndarray
    """(N, 3) standard deviations, the last along the normal."""
    rotation: np.ndarray
    """(N, 4) quaternion w, x, y, z with w >= 0; turns +Z to the normal."""
    invented: int
    """How many at the end were invented."""


def write_splats(scene: Scene, *, generated: bool = True, max_points: int | None = None) -> bytes:
    """Given points first, then the invented ones; the header says where they begin.

    Raises:
        ExportError: no points.
    """
    d = _discs(scene, (0, -1, 0), generated, max_points)
    table = np.zeros((len(d.points), len(COLUMNS)), "<f4")
    table[:, 0:3], table[:, 3:6] = d.points, d.normals
    table[:, 6:9] = (d.colors - 0.5) / SH
    table[:, 9] = np.log(OPACITY / (1 - OPACITY))
    table[:, 10:13], table[:, 13:17] = np.log(d.scales), d.rotation
    notes = conventions(
        scene,
        "3dgs ply",
        file_axes="+Y down, as 3D Gaussian splatting has it; file = matrix @ world",
        matrix=to_file(scene, (0, -1, 0)).tolist(),
        invented_rows=f"the last {d.invented} of {len(table)}",
        trained="no: discs of the measured surface",
    )
    head = ["ply", "format binary_little_endian 1.0"]
    for key, value in notes.items():
        text = f"{key}: {json.dumps(value, allow_nan=False)}"
        head += [f"comment {line}" for line in textwrap.wrap(text, 200)]
    head.append(f"element vertex {len(table)}")
    head += [f"property float {name}" for name in COLUMNS]
    return ("\n".join([*head, "end_header"]) + "\n").encode("ascii") + table.tobytes()


def write_spz(scene: Scene, *, generated: bool = True, max_points: int | None = None) -> bytes:
    """Version 2, without view-dependent colour. Positions keep 23 bits of the largest coordinate.

    Raises:
        ExportError: no points.
    """
    d = _discs(scene, (0, 1, 0), generated, max_points)
    # the library unpacks right, up, back: our file frame has +Y up, right-handed, which is that
    reach = max(float(np.abs(d.points).max()), 1e-9)
    bits = int(np.clip(np.floor(22 - np.log2(reach)), 0, 24))
    fixed = np.rint(d.points * 2.0**bits).clip(-(2**23), 2**23 - 1).astype("<i4")
    positions = fixed.view(np.uint8).reshape(-1, 3, 4)[:, :, :3]
    colors = ((d.colors - 0.5) / SH * 0.15 + 0.5) * 255
    scales = (np.log(d.scales) + 10) * 16
    turns = d.rotation[:, 1:] * 127.5 + 127.5
    body = [
        struct.pack("<IIIBBBB", 0x5053474E, 2, len(d.points), 0, bits, 0, 0),
        positions.tobytes(),
        np.full(len(d.points), round(255 * OPACITY), np.uint8).tobytes(),
        *(np.rint(v).clip(0, 255).astype(np.uint8).tobytes() for v in (colors, scales, turns)),
    ]
    return gzip.compress(b"".join(body), compresslevel=6, mtime=0)


def _discs(
    scene: Scene, up: tuple[float, float, float], generated: bool, most: int | None
) -> _Discs:
    cloud, rows = scene.cloud, chosen_points(scene.cloud, generated, most)
    made = array(cloud.step)[rows] > 0
    rows = np.concatenate([rows[~made], rows[made]])
    matrix = to_file(scene, up)
    scale = float(np.cbrt(np.linalg.det(matrix)))
    points = array(cloud.points)[rows].astype(np.float64) @ matrix.T
    normals = np.nan_to_num(array(cloud.normals)[rows].astype(np.float64)) @ (matrix / scale).T
    radii = np.nan_to_num(array(cloud.radii)[rows].astype(np.float64)) * scale
    known = radii[radii > 0]
    spare = float(np.median(known)) if len(known) else 0.005 * float(np.ptp(points, axis=0).max())
    radii = np.where(radii > 0, radii, max(spare, 1e-9))
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    flat = length[:, 0] > 0.5
    normals = np.where(flat[:, None], normals / np.maximum(length, 1e-12), 0.0)
    scales = WIDE * np.stack([radii, radii, np.where(flat, FLAT, 1.0) * radii], axis=1)
    # the half-way quaternion from +Z to the normal: (1 + n_z, z x n), or half a turn about x
    w = 1 + normals[:, 2]
    turn = np.stack([w, -normals[:, 1], normals[:, 0], np.zeros(len(w))], axis=1)
    turn[w < 1e-6] = (0.0, 1.0, 0.0, 0.0)
    turn[~flat] = (1.0, 0.0, 0.0, 0.0)
    turn /= np.linalg.norm(turn, axis=1, keepdims=True)
    colors = np.nan_to_num(array(cloud.colors)[rows]).clip(0, 1)
    return _Discs(points, normals, colors, scales, turn, int(made.sum()))
