"""The world as one HTML file: points, views, path and film, without a server or a network.

The page draws discs with WebGL by itself. viser's recordings leave its controls out, and the page
needs a switch for what was invented; so the viewer (`viewer.html`, `viewer.js`) is our own.
"""

import base64
import gzip
import html
import json
import re
from importlib.resources import files
from typing import Any

import cv2
import numpy as np

from worldstereo._core.morton import morton_order
from worldstereo.errors import ExportError
from worldstereo.exports.archive import array, bytes_of, chosen_points, jpeg, pixels_of
from worldstereo.exports.conventions import conventions, to_file
from worldstereo.exports.video import write_mp4
from worldstereo.scene import Scene, View

MAX_VIEWS = 48  # shown as pictures; more would hide the world
THUMB = 176  # pixels
BLOCK = 256  # points, at most, that share a corner and a step


def write_page(
    scene: Scene,
    *,
    generated: bool = True,
    megabytes: float = 15.0,
    max_points: int = 400_000,
    film: bool = True,
) -> bytes:
    """The page, at most `megabytes` long: the film may take 40 % of it, and points are thinned
    evenly until the rest fits.

    Raises:
        ExportError: no points, or a size that holds nothing.
    """
    if not 1 <= megabytes <= 200:
        raise ExportError(f"megabytes must be from 1 to 200, got {megabytes:g}.")
    if max_points < 1:
        raise ExportError(f"max_points must be at least 1, got {max_points}.")
    budget = int(megabytes * 1e6)
    matrix = to_file(scene, (0, 1, 0))
    scale = float(np.cbrt(np.linalg.det(matrix)))
    about: dict[str, Any] = {
        "name": scene.name or "World",
        "metric": scene.metres_per_unit is not None,
        "views": _views(scene, matrix, scale, generated),
        "path": _path(scene, matrix, scale),
        "notes": conventions(
            scene, "html", file_axes="+Y up; file = matrix @ world", matrix=matrix.tolist()
        ),
    }
    movie = b""
    if film and scene.clips:
        movie = next((m for m in _films(scene) if len(m) * 4 / 3 < 0.4 * budget), b"")
    fixed = {"TITLE": html.escape(about["name"]), "FILM": base64.b64encode(movie).decode()}
    parts = files("worldstereo.exports")
    template = parts.joinpath("viewer.html").read_text("utf-8")
    fixed["VIEWER"] = parts.joinpath("viewer.js").read_text("utf-8")

    def room() -> int:
        """Bytes that are left for the points; 1,000 of the rest are what the page knows of them."""
        return budget - len(template) - len(_json(about)) - sum(map(len, fixed.values())) - 1_000

    if room() <= 0:
        about["views"] = [{**v, "image": ""} for v in about["views"]]
    left, most, data = room(), max_points, b""
    for _ in range(6):
        rows = chosen_points(scene.cloud, generated, most)
        about["points"], data = _points(scene, rows, matrix, scale)
        size = 4 * (len(data) // 3 + 1)
        if size <= left:
            break
        most = int(len(rows) * 0.97 * max(0.05, left / size))
        if most < 100:
            needed = (budget - left) / 1e6 + 1
            raise ExportError(f"{megabytes:g} MB hold no world; {needed:.0f} would do.")
    values = fixed | {"ABOUT": _json(about), "POINTS": base64.b64encode(data).decode()}
    # in one pass: what is filled in is never read as a place to fill
    return re.sub("@@([A-Z]+)@@", lambda place: values[place[1]], template).encode()


def _json(about: dict[str, Any]) -> str:
    """JSON inside a script element: no `<`, so that nothing in a name ends it or begins another."""
    return json.dumps(about, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _films(scene: Scene):  # noqa: ANN202
    """The last clip in falling quality."""
    for crf in (20, 26, 32):
        yield write_mp4(scene, crf=crf)


def _points(
    scene: Scene, rows: np.ndarray, matrix: np.ndarray, scale: float
) -> tuple[dict[str, Any], bytes]:
    """What the page knows of all points, and gzip of them along a Morton curve, which compresses.

    A block of points shares a corner and a step, a tenth of their radius or what 16 bits need, and
    has one octave of distance from the place: far points cost the near ones no precision. First
    the blocks: 5 float32, corner, step and number of points. Then columns: 3 of uint16 steps, and
    bytes of red, green, blue, mark, normal (3, signed) and root of radius."""
    cloud = scene.cloud
    points = array(cloud.points)[rows].astype(np.float64) @ matrix.T
    step = array(cloud.step)[rows]
    given = points[step == 0] if (step == 0).any() else points
    middle, inner = np.median(given, axis=0), np.percentile(given, (10, 90), axis=0)
    size = max(float(np.linalg.norm(inner[1] - inner[0])), 1e-9)  # of the place
    away = np.linalg.norm(points - middle, axis=1)
    octave = np.log2(np.maximum(away / size, 1)).astype(np.int64)
    order = np.concatenate(
        [
            some[morton_order(points[some].astype(np.float32))]
            for some in (np.flatnonzero(octave == k) for k in np.unique(octave))
        ]
    )
    points, rows, step, octave = points[order], rows[order], step[order], octave[order]
    radius = np.nan_to_num(array(cloud.radii)[rows].astype(np.float64)) * scale
    spare = float(np.median(radius[radius > 0])) if (radius > 0).any() else 0.004 * size
    radius = np.where(radius > 0, radius, spare)
    _, shells = np.unique(octave, return_index=True)
    ends = np.append(shells[1:], len(rows))
    starts = np.concatenate([np.arange(a, b, BLOCK) for a, b in zip(shells, ends, strict=True)])
    counts = np.diff(np.append(starts, len(rows)))
    corner = np.minimum.reduceat(points, starts).astype(np.float32)
    spread = (np.maximum.reduceat(points, starts) - corner).max(axis=1)
    finest = np.minimum.reduceat(radius, starts) / 10
    blocks = np.column_stack([corner, np.maximum(spread / 65_000, finest), counts]).astype("<f4")
    each = np.repeat(blocks, counts, axis=0).astype(np.float64)
    steps = np.rint((points - each[:, :3]) / each[:, 3:4]).clip(0, 65_535).astype("<u2")
    color = np.zeros((4, len(rows)), np.uint8)
    color[:3] = bytes_of(array(cloud.colors)[rows]).T
    color[3] = np.where(step > 0, 255, 0)
    # the thinned cloud must still close: spacing grows with the root of what was left out
    radius *= max(1.0, (len(cloud) / len(rows)) ** 0.5)
    top = float(np.percentile(radius, 99.5))
    shape = np.zeros((4, len(rows)), np.int8)
    normals = np.nan_to_num(array(cloud.normals)[rows].astype(np.float64)) @ (matrix / scale).T
    shape[:3] = np.rint(normals.clip(-1, 1) * 127).T
    shape[3] = np.rint((radius / top).clip(0, 1) ** 0.5 * 127).clip(1, 127)
    data = blocks.tobytes() + steps.T.tobytes() + color.tobytes() + shape.tobytes()
    about = {
        "count": len(rows),
        "blocks": len(blocks),
        "radius": top,
        "middle": middle.tolist(),
        "size": size,
        "reach": float(away.max()),
    }
    return about, gzip.compress(data, compresslevel=6, mtime=0)


def _pose(c2w: np.ndarray, matrix: np.ndarray, scale: float) -> list[float]:
    """Right, down, forward and position of a camera in the page's frame, 12 numbers."""
    turned = np.eye(4)
    turned[:3, :3] = matrix / scale @ c2w[:3, :3]
    turned[:3, 3] = matrix @ c2w[:3, 3]
    return [round(float(v), 6) for v in turned[:3].T.ravel()]


def _views(scene: Scene, matrix: np.ndarray, scale: float, generated: bool) -> list[dict[str, Any]]:
    chosen = [v for v in scene.views if generated or v.step == 0]
    if len(chosen) > MAX_VIEWS:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, MAX_VIEWS).astype(int)]
    return [
        {
            "pose": _pose(array(view.cameras.c2w).astype(np.float64), matrix, scale),
            "fov": float(view.cameras.fov[1]),
            "aspect": view.width / view.height,
            "generated": view.step > 0,
            "image": _thumbnail(view),
        }
        for view in chosen
    ]


def _thumbnail(view: View) -> str:
    factor = THUMB / max(view.width, view.height)
    size = (max(1, round(view.width * factor)), max(1, round(view.height * factor)))
    small = cv2.resize(pixels_of(view.color_u8), size, interpolation=cv2.INTER_AREA)
    return base64.b64encode(jpeg(np.asarray(small), 80)).decode()


def _path(scene: Scene, matrix: np.ndarray, scale: float) -> dict[str, Any] | None:
    if not scene.clips:
        return None
    path = scene.clips[-1].trajectory
    poses = array(path.cameras.c2w).astype(np.float64)
    fov = float(path.cameras[0].fov[1])
    return {"fps": path.fps, "fov": fov, "poses": [_pose(p, matrix, scale) for p in poses]}
