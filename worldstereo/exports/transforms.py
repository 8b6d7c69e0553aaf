"""nerfstudio's `transforms.json` with pictures, depth, masks and points.

Its cameras are OpenGL's: +x right, +y up, looking along -z. The world is not turned.
Source: https://docs.nerf.studio/quickstart/data_conventions.html
"""

from typing import Any

import numpy as np

from worldstereo.exports.archive import (
    array,
    as_json,
    camera_fixed_mask,
    depth_png,
    depth_step,
    invented_mask,
    mask_png,
    packed,
    picture,
    pictures,
    pixels_of,
)
from worldstereo.exports.conventions import conventions
from worldstereo.exports.ply import write_ply
from worldstereo.scene import Scene, View

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def write_transforms(
    scene: Scene,
    *,
    generated: bool = True,
    images: str = "png",
    depth: bool = True,
    train_on_invented: bool = True,
) -> bytes:
    """A zip of `transforms.json`, `images/`, `depth/` (16 bits), `invented/` (0 where a generated
    picture is invented), `points.ply`, and `masks/` of what trainers leave out: what is fixed to
    the camera and, without `train_on_invented`, what is invented.

    Raises:
        ExportError: no views.
    """
    shown = pictures(scene, generated)
    depths = [array(p.view.depth[0]) for p in shown] if depth else []
    # nerfstudio stops unless depth is there for every frame or for none: 0 says "unknown".
    deep = any(d.max(initial=0) > 0 for d in depths)
    step = depth_step(depths)
    hidden_by_camera = [camera_fixed_mask(scene, p.view) for p in shown]
    masked = not train_on_invented or any(bool(mask.any()) for mask in hidden_by_camera)
    members: dict[str, bytes] = {}
    frames: list[dict[str, Any]] = []
    for i, p in enumerate(shown):
        frame = _frame(p.view)
        frame["file_path"] = f"images/{p.name}.{images}"
        members[frame["file_path"]] = picture(pixels_of(p.view.color_u8), images)
        if deep:
            frame["depth_file_path"] = f"depth/{p.name}.png"
            members[frame["depth_file_path"]] = depth_png(depths[i], step)
        invented = invented_mask(scene, p.view)
        if p.view.step > 0:
            frame["invented_mask_path"] = f"invented/{p.name}.png"
            members[frame["invented_mask_path"]] = mask_png(invented)
        if masked:  # a mask for every frame or for none: so trainers want it
            frame["mask_path"] = f"masks/{p.name}.png"
            hidden = hidden_by_camera[i] if train_on_invented else hidden_by_camera[i] | invented
            members[frame["mask_path"]] = mask_png(hidden)
        frames.append(frame)
    fields: dict[str, Any] = {"camera_model": "OPENCV", "applied_transform": np.eye(4)[:3].tolist()}
    if depth:
        fields["depth_unit_scale_factor"] = step
    if len(scene.cloud) > 0:
        members["points.ply"] = write_ply(scene, generated=generated)
        fields["ply_file_path"] = "points.ply"
    members["transforms.json"] = as_json({**fields, "frames": frames})
    notes = conventions(
        scene,
        "nerfstudio transforms.json",
        generated=generated,
        camera_axes_here="transform_matrix is camera to world with OpenGL axes: y and z flipped",
        applied_transform="the identity: the world is as in the scene",
        depth_unit=f"{step:g} scene units per step of the 16-bit pictures" if depth else "no depth",
        invented_pixels="0 in invented/, 255 elsewhere; given pictures have no invented pixel",
        invented_points="property invented in points.ply",
        original_names={p.name: p.view.name for p in shown if p.view.name},
    )
    members["conventions.json"] = as_json(notes)
    return packed(members)


def _frame(view: View) -> dict[str, Any]:
    K = array(view.cameras.K).astype(np.float64)
    pose = array(view.cameras.c2w).astype(np.float64) @ OPENGL
    return {
        "transform_matrix": pose.tolist(),
        "fl_x": float(K[0, 0]),
        "fl_y": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
        "w": view.width,
        "h": view.height,
        **dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0),
        "generated": view.step > 0,
        "step": view.step,
        "frame": view.frame,
    }
