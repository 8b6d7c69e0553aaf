"""A COLMAP model with its pictures. COLMAP's camera and pixel conventions are ours.

Source: https://colmap.github.io/format.html (text and binary layout of a sparse model).
"""

import struct
from dataclasses import dataclass

import numpy as np
import torch

from worldstereo.errors import ExportError
from worldstereo.exports.archive import (
    Picture,
    array,
    as_json,
    bytes_of,
    camera_fixed_mask,
    chosen_points,
    invented_mask,
    mask_png,
    packed,
    picture,
    pictures,
    pixels_of,
)
from worldstereo.exports.conventions import conventions
from worldstereo.exports.ply import write_ply
from worldstereo.exports.tracks import tracks
from worldstereo.rotations import quaternions
from worldstereo.scene import Scene

PINHOLE = 1  # model id: fx, fy, cx, cy


@dataclass(frozen=True, eq=False)
class _Model:
    """What both layouts write."""

    cameras: list[tuple[int, int, tuple[float, ...]]]
    """Width, height, (fx, fy, cx, cy); ids count from 1."""
    names: list[str]
    camera_ids: list[int]
    poses: list[tuple[np.ndarray, np.ndarray]]
    """Quaternion (w, x, y, z) and translation, world to camera."""
    seen: list[tuple[np.ndarray, np.ndarray]]
    """Rows of points and pixels, for each picture."""
    points: np.ndarray
    colors: np.ndarray
    entries: np.ndarray
    """(P, 2): picture id and index in its list of pixels, sorted by point."""
    counts: np.ndarray
    """(N,): how many entries each point has."""


def write_colmap(
    scene: Scene,
    *,
    text: bool = False,
    generated: bool = True,
    images: str = "png",
    max_points: int = 250_000,
) -> bytes:
    """A zip of `images/`, `masks/` (0 where a picture is invented or fixed to the camera),
    `sparse/0/` with tracks, and all points with their marks in `points.ply`. Above `max_points` the
    model's own points are thinned evenly.

    Raises:
        ExportError: no views or points, or a camera with skew.
    """
    shown = pictures(scene, generated)
    rows = chosen_points(scene.cloud, generated, max_points)
    model = _model(scene, shown, rows, images)
    members = {
        f"images/{p.name}.{images}": picture(pixels_of(p.view.color_u8), images) for p in shown
    }
    for p in shown:
        hidden = invented_mask(scene, p.view) | camera_fixed_mask(scene, p.view)
        if p.view.step > 0 or hidden.any():
            members[f"masks/{p.name}.{images}.png"] = mask_png(hidden)
    suffix = "txt" if text else "bin"
    layout = _text(model) if text else _binary(model)
    for name, content in zip(("cameras", "images", "points3D"), layout, strict=True):
        members[f"sparse/0/{name}.{suffix}"] = content
    made = array(scene.cloud.step)[rows] > 0
    members["invented.json"] = as_json((np.flatnonzero(made) + 1).tolist())
    members["points.ply"] = write_ply(scene, generated=generated)
    notes = conventions(
        scene,
        f"colmap {'text' if text else 'binary'}",
        generated=generated,
        poses="world to camera, quaternion (w, x, y, z), in the files of the model",
        points_written=len(rows),
        invented_points="ids in invented.json; property invented in points.ply",
        invented_pixels="0 in masks/, as what is fixed to the camera; 255 elsewhere; no mask: none",
        original_names={p.name: p.view.name for p in shown if p.view.name},
    )
    members["conventions.json"] = as_json(notes)
    return packed(members)


def _model(scene: Scene, shown: list[Picture], rows: np.ndarray, images: str) -> _Model:
    cameras: list[tuple[int, int, tuple[float, ...]]] = []
    known: dict[tuple, int] = {}
    camera_ids, poses = [], []
    for p in shown:
        K = p.view.cameras.K.detach().cpu().double()
        if abs(float(K[0, 1])) > 1e-6 * float(K[0, 0]):
            raise ExportError(f"View {p.index} has a skewed camera, which COLMAP's PINHOLE lacks.")
        lens = tuple(float(v) for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
        camera = (p.view.width, p.view.height, lens)
        if camera not in known:
            cameras.append(camera)
            known[camera] = len(cameras)
        camera_ids.append(known[camera])
        w2c = torch.linalg.inv(p.view.cameras.c2w.detach().cpu().double())
        q = quaternions(w2c[None, :3, :3])[0]
        poses.append((array(q if q[0] >= 0 else -q), array(w2c[:3, 3])))
    points = array(scene.cloud.points)[rows].astype(np.float64)
    seen = tracks(points, array(scene.cloud.radii)[rows].astype(np.float64), shown)
    point = np.concatenate([r for r, _ in seen])
    entry = np.concatenate(
        [np.stack([np.full(len(r), i + 1), np.arange(len(r))], 1) for i, (r, _) in enumerate(seen)],
        dtype=np.int32,
    )
    order = np.argsort(point, kind="stable")
    return _Model(
        cameras=cameras,
        names=[f"{p.name}.{images}" for p in shown],
        camera_ids=camera_ids,
        poses=poses,
        seen=seen,
        points=points,
        colors=bytes_of(array(scene.cloud.colors)[rows]),
        entries=entry[order],
        counts=np.bincount(point, minlength=len(points)),
    )


def _binary(model: _Model) -> tuple[bytes, bytes, bytes]:
    cameras = [struct.pack("<Q", len(model.cameras))]
    for i, (width, height, lens) in enumerate(model.cameras):
        cameras.append(struct.pack("<iiQQ4d", i + 1, PINHOLE, width, height, *lens))
    images = [struct.pack("<Q", len(model.names))]
    row = np.dtype([("pixel", "<f8", 2), ("point", "<i8")])
    for i, (rows, pixels) in enumerate(model.seen):
        q, t = model.poses[i]
        images.append(struct.pack("<i7di", i + 1, *q, *t, model.camera_ids[i]))
        images.append(model.names[i].encode() + b"\0" + struct.pack("<Q", len(rows)))
        table = np.zeros(len(rows), row)
        table["pixel"], table["point"] = pixels, rows + 1
        images.append(table.tobytes())
    return b"".join(cameras), b"".join(images), _binary_points(model)


def _binary_points(model: _Model) -> bytes:
    head = np.zeros(
        len(model.points),
        np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("e", "<f8"), ("n", "<u8")]),
    )
    head["id"] = np.arange(len(head)) + 1
    head["xyz"], head["rgb"], head["n"] = model.points, model.colors, model.counts
    size, heads = head.dtype.itemsize, head.tobytes()
    track = np.ascontiguousarray(model.entries, "<i4").tobytes()
    ends = (np.cumsum(model.counts) * 8).tolist()
    parts, start = [struct.pack("<Q", len(head))], 0
    for i, end in enumerate(ends):
        parts += (heads[i * size : (i + 1) * size], track[start:end])
        start = end
    return b"".join(parts)


def _text(model: _Model) -> tuple[bytes, bytes, bytes]:
    cameras = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, fx, fy, cx, cy"]
    for i, (width, height, lens) in enumerate(model.cameras):
        cameras.append(f"{i + 1} PINHOLE {width} {height} " + _numbers(lens))
    images = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME; then X, Y, POINT3D_ID"]
    for i, (rows, pixels) in enumerate(model.seen):
        q, t = model.poses[i]
        pose = _numbers([*q, *t])
        images.append(f"{i + 1} {pose} {model.camera_ids[i]} {model.names[i]}")
        ids = (rows + 1).tolist()
        images.append(
            " ".join(f"{u!r} {v!r} {n}" for (u, v), n in zip(pixels.tolist(), ids, strict=True))
        )
    points = ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"]
    tracks_left = iter(model.entries.tolist())
    rows = zip(model.points.tolist(), model.colors.tolist(), model.counts.tolist(), strict=True)
    for i, (xyz, rgb, count) in enumerate(rows):
        track = "".join(" {} {}".format(*next(tracks_left)) for _ in range(count))
        points.append(f"{i + 1} {_numbers(xyz)} {rgb[0]} {rgb[1]} {rgb[2]} 0{track}")
    cam, img, pts = ("\n".join(lines) + "\n" for lines in (cameras, images, points))
    return cam.encode(), img.encode(), pts.encode()


def _numbers(values) -> str:
    """Shortest text that reads back as the same float64."""
    return " ".join(repr(float(v)) for v in values)


def write_colmap_text(
    scene: Scene, *, generated: bool = True, images: str = "png", max_points: int = 250_000
) -> bytes:
    """The model as text; see `write_colmap`."""
    return write_colmap(scene, text=True, generated=generated, images=images, max_points=max_points)


def write_colmap_binary(
    scene: Scene, *, generated: bool = True, images: str = "png", max_points: int = 250_000
) -> bytes:
    """The model in COLMAP's binary layout; see `write_colmap`."""
    return write_colmap(scene, generated=generated, images=images, max_points=max_points)
