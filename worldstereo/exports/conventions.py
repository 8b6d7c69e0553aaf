"""What a stranger must know of an export: axes, units, pixel centre, what was made up, by whom."""

from typing import Any

import numpy as np

from worldstereo import __version__
from worldstereo.exports.archive import array
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
