"""What a stranger must know of an export: axes, units, pixel centre, what was made up, by whom."""

from typing import Any

import numpy as np

from worldstereo._core.version import __version__
from worldstereo.exports.archive import array, as_json
from worldstereo.scene import Scene

COMMON = {
    "pixel_centre": "the first pixel's centre is at (0.5, 0.5); K is in pixels of its picture",
    "colour": "sRGB",
    "depth": "z along the optical axis in scene units; 0 is unknown",
    "invented": (
        "true or 255/0 as stated: no camera ever saw it, a generator made it up. Do not measure it."
    ),
}


def conventions(scene: Scene, form: str, **details: Any) -> dict[str, Any]:
    """The content of `conventions.json` of one export."""
    cloud = scene.cloud
    made = array(cloud.step) > 0
    given = sum(view.step == 0 for view in scene.views)
    metres = scene.metres_per_unit
    return {
        "written_by": f"WorldStereo {__version__}",
        "format": form,
        "name": scene.name,
        "revision": scene.revision,
        "world_axes": "right-handed, as the capture came; not turned unless stated here",
        "camera_axes": "OpenCV: +x right, +y down, +z forward, poses camera to world",
        "up": [float(v) for v in scene.up],
        "units": "scene units" if metres is None else f"scene units of {metres:.9g} metres",
        "metres_per_unit": metres,
        "origin": list(scene.origin),
        **COMMON,
        "depth_is_rough": scene.rough_depth,
        "views": {"given": given, "generated": len(scene.views) - given},
        "points": {"given": int(np.sum(~made)), "invented": int(np.sum(made))},
        "steps": [
            {
                "step": clip.step,
                "generator": clip.generator,
                "seed": clip.seed,
                "frames": len(clip),
                "registration": clip.registration,
            }
            for clip in scene.clips
        ],
        "notices": list(scene.notices),
        **details,
    }


def write_conventions(scene: Scene) -> bytes:
    """The conventions alone."""
    return as_json(conventions(scene, "conventions"))


def turn(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(3, 3) the smallest rotation that turns `start` to `end`."""
    a = start / max(float(np.linalg.norm(start)), 1e-12)
    b = end / np.linalg.norm(end)
    if float(a @ b) < -1 + 1e-9:
        side = np.cross(b, [0.0, 0.0, 1.0] if abs(b[2]) < 0.9 else [0.0, 1.0, 0.0])
        side /= np.linalg.norm(side)
        return 2 * np.outer(side, side) - np.eye(3)
    v = np.cross(a, b)
    skew = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + float(a @ b))


def to_file(scene: Scene, up: tuple[float, float, float], per_unit: float = 1.0) -> np.ndarray:
    """(3, 3) the matrix from the world to a file: turned so that the sky is at `up`, and in metres
    where they are known, times `per_unit`."""
    scale = (scene.metres_per_unit or 1.0) * per_unit
    return scale * turn(array(scene.up).astype(np.float64), np.array(up))
