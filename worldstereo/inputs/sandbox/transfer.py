"""A capture as files between two processes: `capture.json`, `capture.safetensors`, one a view.

Nothing is pickled: tensors travel as safetensors, the rest as JSON; both are checked on arrival.
One view at a time is in memory twice, however many there are.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldstereo._core.resident import release, tensors_in
from worldstereo.cameras import Cameras
from worldstereo.scene import Capture, LeftOut, PointCloud, View
from worldstereo.trajectory import Trajectory

TENSORS, TEXT = "capture.safetensors", "capture.json"
_VIEW = "view.{:05d}.safetensors"
_MAPS = ("color_u8", "depth", "confidence_u8", "kind")
_PLAIN = ("name", "kind", "rough_depth", "prompt", "notices", "metres_per_unit", "origin")
_CLOUD = ("points", "colors", "confidence", "step", "normals", "radii", "source")


def write(capture: Capture, folder: Path) -> None:
    """All files into a folder; maps that are all zero are left out."""
    tensors: dict[str, Tensor] = {}
    views = []
    for i, view in enumerate(capture.views):
        maps = {key: getattr(view, key) for key in _MAPS}
        maps = {key: v for key, v in maps.items() if key == "color_u8" or bool(v.any())}
        _save(maps | {"K": view.cameras.K, "c2w": view.cameras.c2w}, folder / _VIEW.format(i))
        release(tensors_in(view))
        size = {"width": view.width, "height": view.height}
        views.append({"frame": view.frame, "name": view.name, **size})
    if capture.cloud is not None:
        for key in _CLOUD:
            value = getattr(capture.cloud, key)
            if value is not None:
                tensors[f"cloud.{key}"] = value.contiguous()
    if capture.up is not None:
        tensors["up"] = capture.up
    for i, left in enumerate(capture.left_out):
        tensors[f"left.{i}"] = left.thumbnail.contiguous()
    text: dict[str, Any] = {key: getattr(capture, key) for key in _PLAIN} | {"views": views}
    text["left_out"] = [{"name": left.name, "why": left.why} for left in capture.left_out]
    if capture.trajectory is not None:
        text["trajectory"] = capture.trajectory.to_json()
    _save(tensors, folder / TENSORS)
    (folder / TEXT).write_text(json.dumps(text), encoding="utf-8")


def read_capture(folder: Path) -> Capture:
    """The capture back; a `ValueError`, `KeyError` or `TypeError` when the files do not fit."""
    text = json.loads((folder / TEXT).read_text(encoding="utf-8"))
    tensors = load_file(folder / TENSORS)
    views = tuple(
        _view(load_file(folder / _VIEW.format(i)), i, entry).spilled()
        for i, entry in enumerate(text["views"])
    )
    cloud = None
    if "cloud.points" in tensors:
        columns = {k: tensors[f"cloud.{k}"] for k in _CLOUD if f"cloud.{k}" in tensors}
        n = len(columns["points"])
        for key, value in columns.items():
            if len(value) != n:
                raise ValueError(f"cloud.{key} has {len(value)} rows, the points {n}.")
        cloud = PointCloud(**columns)
    path, metres = text.get("trajectory"), text["metres_per_unit"]
    x, y, z = text["origin"]
    return Capture(
        name=str(text["name"]),
        kind=str(text["kind"]),
        views=views,
        cloud=cloud,
        up=tensors.get("up"),
        trajectory=None if path is None else Trajectory.from_json(path),
        rough_depth=bool(text["rough_depth"]),
        prompt=str(text["prompt"]),
        notices=tuple(str(n) for n in text["notices"]),
        metres_per_unit=None if metres is None else float(metres),
        origin=(float(x), float(y), float(z)),
        left_out=tuple(
            LeftOut(str(entry["name"]), str(entry["why"]), tensors[f"left.{i}"])
            for i, entry in enumerate(text["left_out"])
        ),
    )


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Clones: what shares memory is refused by the format."""
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)


def _view(tensors: dict[str, Tensor], i: int, entry: dict[str, Any]) -> View:
    width, height = int(entry["width"]), int(entry["height"])
    cameras = Cameras(tensors["K"], tensors["c2w"], width, height)

    def pixels(key: str, channels: int, dtype: torch.dtype) -> Tensor:
        shape = (channels, height, width)
        value = tensors.get(key)
        if value is None and key != "color_u8":
            return torch.zeros(shape, dtype=dtype)
        if value is None or tuple(value.shape) != shape or value.dtype != dtype:
            raise ValueError(f"view {i}: {key} is not {shape} of {dtype}.")
        return value

    return View(
        color_u8=pixels("color_u8", 3, torch.uint8),
        depth=pixels("depth", 1, torch.float32),
        confidence_u8=pixels("confidence_u8", 1, torch.uint8),
        kind=pixels("kind", 1, torch.uint8),
        log_gain=torch.zeros(3),
        cameras=cameras,
        given=cameras,
        step=0,
        frame=int(entry["frame"]),
        name=str(entry["name"]),
    )
