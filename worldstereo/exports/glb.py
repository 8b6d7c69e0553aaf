"""Points as binary glTF 2.0: given and invented points are two nodes, cameras a third.

glTF is +Y up and in metres. The vertices stay in the world's own frame, so that they can be
compared with the scene; one root node turns up to +Y and scales to metres where that is known.
"""

import json
import struct
from typing import Any

import numpy as np

from worldstereo.errors import ExportError
from worldstereo.exports.archive import array, bytes_of, chosen_points
from worldstereo.exports.conventions import conventions, to_file
from worldstereo.scene import Scene, View

FLOAT, UBYTE, POINTS, ARRAY_BUFFER = 5126, 5121, 0, 34962


def write_glb(
    scene: Scene,
    *,
    generated: bool = True,
    cameras: bool = True,
    linear: bool = False,
    max_points: int | None = None,
) -> bytes:
    """`linear` writes vertex colours as the standard reads them, light and not sRGB; most programs
    that show point clouds expect the bytes of the photo, which is the default.

    Raises:
        ExportError: no points.
    """
    rows = chosen_points(scene.cloud, generated, max_points)
    made = array(scene.cloud.step)[rows] > 0
    build = _Builder()
    children = [
        build.points(scene, rows[part], name, linear)
        for name, part in (("given", ~made), ("invented", made))
        if part.any()
    ]
    if cameras and scene.views:
        views = [view for view in scene.views if generated or view.step == 0]
        shown = [build.camera(view, i) for i, view in enumerate(views)]
        if shown:
            children.append(build.node({"name": "cameras", "children": shown}))
    matrix = np.eye(4)
    matrix[:3, :3] = to_file(scene, (0, 1, 0))
    root = {"name": "world", "matrix": matrix.T.reshape(-1).tolist(), "children": children}
    notes = conventions(
        scene,
        "glb",
        generated=generated,
        points_written=len(rows),
        vertex_colours="linear" if linear else "sRGB bytes",
        invented_points='the node "invented"; attribute _INVENTED is 1 there',
        node_axes="vertices are in the world's frame; the root node turns up to +Y",
    )
    return build.file(build.node(root), notes)


class _Builder:
    """Collects nodes and the binary chunk."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.meshes: list[dict[str, Any]] = []
        self.cameras: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.binary = bytearray()

    def node(self, fields: dict[str, Any]) -> int:
        self.nodes.append(fields)
        return len(self.nodes) - 1

    def points(self, scene: Scene, rows: np.ndarray, name: str, linear: bool) -> int:
        cloud = scene.cloud
        xyz = array(cloud.points)[rows].astype("<f4")
        if not np.isfinite(xyz).all():
            raise ExportError("A point is too far away for a GLB file. Rescale the world first.")
        colors = array(cloud.colors)[rows]
        if linear:
            colors = np.where(
                colors <= 0.04045, colors / 12.92, ((colors.clip(0, 1) + 0.055) / 1.055) ** 2.4
            )
        rgba = np.full((len(rows), 4), 255, np.uint8)
        rgba[:, :3] = bytes_of(colors)
        step = array(cloud.step)[rows].astype("<f4")
        limits = {"min": xyz.min(axis=0).tolist(), "max": xyz.max(axis=0).tolist()}
        attributes = {
            "POSITION": self.accessor(xyz, FLOAT, "VEC3", **limits),
            "COLOR_0": self.accessor(rgba, UBYTE, "VEC4", normalized=True),
            "_CONFIDENCE": self.accessor(
                array(cloud.confidence)[rows].astype("<f4"), FLOAT, "SCALAR"
            ),
            "_STEP": self.accessor(step, FLOAT, "SCALAR"),
            "_INVENTED": self.accessor((step > 0).astype("<f4"), FLOAT, "SCALAR"),
        }
        part = {"attributes": attributes, "mode": POINTS, "material": 0}
        self.meshes.append({"name": name, "primitives": [part]})
        extras = {"invented": name == "invented"}
        return self.node({"name": name, "mesh": len(self.meshes) - 1, "extras": extras})

    def camera(self, view: View, index: int) -> int:
        """glTF cameras look along -z with +y up and have no principal point."""
        c2w = array(view.cameras.c2w).astype(np.float64) @ np.diag([1.0, -1.0, -1.0, 1.0])
        yfov = float(view.cameras.fov[1])
        lens = {"yfov": yfov, "aspectRatio": view.width / view.height, "znear": 0.01}
        self.cameras.append({"type": "perspective", "perspective": lens})
        kind = "given" if view.step == 0 else f"step{view.step}"
        return self.node(
            {
                "name": f"view_{index:05d}_{kind}",
                "camera": len(self.cameras) - 1,
                "matrix": c2w.T.reshape(-1).tolist(),
                "extras": {"generated": view.step > 0, "step": view.step, "frame": view.frame},
            }
        )

    def accessor(self, values: np.ndarray, component: int, kind: str, **rest: Any) -> int:
        while len(self.binary) % 4:
            self.binary.append(0)
        data = np.ascontiguousarray(values).tobytes()
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)}
        self.views.append({**view, "target": ARRAY_BUFFER})
        self.binary += data
        entry = {"bufferView": len(self.views) - 1, "componentType": component}
        self.accessors.append({**entry, "count": len(values), "type": kind, **rest})
        return len(self.accessors) - 1

    def file(self, root: int, notes: dict[str, Any]) -> bytes:
        unlit = "KHR_materials_unlit"
        fields: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": notes["written_by"], "extras": notes},
            "scene": 0,
            "scenes": [{"nodes": [root]}],
            "nodes": self.nodes,
            "meshes": self.meshes,
            "materials": [{"name": "points", "extensions": {unlit: {}}}],
            "extensionsUsed": [unlit],
            "accessors": self.accessors,
            "bufferViews": self.views,
            "buffers": [{"byteLength": len(self.binary) + -len(self.binary) % 4}],
        }
        if self.cameras:
            fields["cameras"] = self.cameras
        text = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        binary = bytes(self.binary) + b"\0" * (-len(self.binary) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
        chunks += struct.pack("<II", len(binary), 0x004E4942) + binary
        return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks
