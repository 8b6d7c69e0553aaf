"""The world as one HTML file: points, views, path and film, without a server or a network.

The page draws discs with WebGL by itself. viser's recordings leave its controls out, and the page
needs a switch for what was invented; so it brings its own small viewer (`viewer.html`) instead.
"""

import base64
import gzip
import html
import json
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
    template = files("worldstereo.exports").joinpath("viewer.html").read_text("utf-8")
    used = len(template) + len(json.dumps(about)) + len(movie) * 4 // 3 + 1_000
    if used >= budget:
        about["views"] = [{**v, "image": ""} for v in about["views"]]
        used = len(template) + len(json.dumps(about)) + len(movie) * 4 // 3 + 1_000
    most, data = max_points, b""
    for _ in range(6):
        rows = chosen_points(scene.cloud, generated, most)
        about["points"], data = _points(scene, rows, matrix, scale)
        size = used + len(data) * 4 // 3 + 400
        if size <= budget:
            break
        most = int(len(rows) * 0.97 * max(0.05, (budget - used) / (size - used)))
        if most < 100:
            raise ExportError(f"{megabytes:g} MB hold no world; {used / 1e6 + 1:.0f} would do.")
    text = json.dumps(about, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    for key, value in (
        ("TITLE", html.escape(about["name"])),
        ("ABOUT", text),
        ("POINTS", base64.b64encode(data).decode()),
        ("FILM", base64.b64encode(movie).decode()),
    ):
        template = template.replace(f"@@{key}@@", value)
    return template.encode()


def _films(scene: Scene):  # noqa: ANN202
    """The last clip in falling quality."""
    for crf in (20, 26, 32):
        yield write_mp4(scene, crf=crf)


def _points(
    scene: Scene, rows: np.ndarray, matrix: np.ndarray, scale: float
) -> tuple[dict[str, Any], bytes]:
    """Box and count, and gzip of: positions (16 bits), colours and mark, normals and radii (8)."""
    cloud = scene.cloud
    points = array(cloud.points)[rows].astype(np.float64) @ matrix.T
    order = morton_order(points.astype(np.float32))  # neighbours compress better
    points, rows = points[order], rows[order]
    low = points.min(axis=0)
    side = np.maximum(points.max(axis=0) - low, 1e-9)
    fixed = np.rint((points - low) / side * 65535).astype("<u2")
    color = np.zeros((len(rows), 4), np.uint8)
    color[:, :3] = bytes_of(array(cloud.colors)[rows])
    color[:, 3] = np.where(array(cloud.step)[rows] > 0, 255, 0)
    radius = np.nan_to_num(array(cloud.radii)[rows].astype(np.float64)) * scale
    spare = float(np.median(radius[radius > 0])) if (radius > 0).any() else 0.004 * side.max()
    radius = np.where(radius > 0, radius, spare)
    # the thinned cloud must still close: spacing grows with the root of what was left out
    radius *= max(1.0, (len(cloud) / len(rows)) ** 0.5)
    top = float(np.percentile(radius, 99.5))
    shape = np.zeros((len(rows), 4), np.int8)
    normals = np.nan_to_num(array(cloud.normals)[rows].astype(np.float64)) @ (matrix / scale).T
    shape[:, :3] = np.rint(normals.clip(-1, 1) * 127)
    shape[:, 3] = np.rint((radius / top).clip(0, 1) ** 0.5 * 127).clip(1, 127)
    data = fixed.tobytes() + color.tobytes() + shape.tobytes()
    middle = np.median(points, axis=0)
    box = {"low": low.tolist(), "side": side.tolist(), "middle": middle.tolist()}
    about = {"count": len(rows), "radius": top, **box}
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
            "fov": view.cameras.fov[1],
            "aspect": view.width / view.height,
            "generated": view.step > 0,
            "image": _thumbnail(view),
        }
        for view in chosen
    ]


def _thumbnail(view: View) -> str:
    factor = THUMB / max(view.width, view.height)
    size = (max(1, round(view.width * factor)), max(1, round(view.height * factor)))
    small = cv2.resize(pixels_of(view.color8), size, interpolation=cv2.INTER_AREA)
    return base64.b64encode(jpeg(np.asarray(small), 80)).decode()


def _path(scene: Scene, matrix: np.ndarray, scale: float) -> dict[str, Any] | None:
    if not scene.clips:
        return None
    path = scene.clips[-1].trajectory
    poses = array(path.cameras.c2w).astype(np.float64)
    fov = path.cameras[0].fov[1]
    return {"fps": path.fps, "fov": fov, "poses": [_pose(p, matrix, scale) for p in poses]}
