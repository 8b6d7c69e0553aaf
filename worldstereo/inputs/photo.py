"""One photo: turned upright, scaled, a field of view from its tags, depth from an estimator."""

import math
from dataclasses import replace

import numpy as np
import torch

from worldstereo.cameras import Cameras
from worldstereo.depth import (
    DEFAULT_FOV,
    DepthEstimator,
    LayoutDepth,
    best_estimator,
    default_camera,
)
from worldstereo.inputs import images, upright
from worldstereo.inputs.assemble import fitted, shrunk, with_depth
from worldstereo.inputs.capture import title
from worldstereo.inputs.limits import Limits, shown
from worldstereo.scene import Capture, DepthKind, View, to_bytes

LEARNED = "Depth of the photo comes from a depth model; its scale is the model's."
RELATIVE = "Depth of the photo comes from a depth model that knows near from far, but no distances."
ROUGH = "Depth was guessed from one photo: a rough layout, good for small camera moves."


def read_photo(
    name: str, data: bytes, limits: Limits, estimator: DepthEstimator | None = None
) -> Capture:
    """A capture of one view; position, time and all other tags of the photo are dropped."""
    photo = images.photo(name, data, limits)
    height, width = photo.color.shape[:2]
    notices = []
    if max(height, width) > limits.view_side:
        width, height = fitted(width, height, limits.view_side)
        notices.append(f"The photo was scaled down to {width} x {height} px.")
    pixels = shrunk(photo.color, width, height) if notices else photo.color
    camera = None
    if photo.focal_35mm is not None:
        camera = default_camera(width, height, 2 * math.atan(18.0 / photo.focal_35mm))
    estimator = estimator or best_estimator()
    view, rough = guessed(pixels, camera, name, estimator)
    sky = upright.one(view)
    up = torch.tensor([0.0, -1.0, 0.0]) if sky.up is None else torch.from_numpy(sky.up).float()
    if sky.up is not None and isinstance(estimator, LayoutDepth) and estimator.up is None:
        # The ground of the layout lies across the sky, and the camera may have looked down on it.
        view, rough = guessed(pixels, view.cameras, name, estimator.on(up))
    if (tilt := _tilt(sky)) >= 1:
        notices.append(
            f"The camera was tilted by {tilt:.0f} degrees, by the straight lines of the photo."
        )
    if camera is None:
        fov = float(view.cameras.fov.max())
        how = "measured by the depth model" if abs(fov - DEFAULT_FOV) > 1e-4 else "assumed"
        degrees = round(math.degrees(fov))
        notices.append(f"The photo does not name its lens; {degrees} degrees of view were {how}.")
    learned = not isinstance(estimator, LayoutDepth)
    if learned:
        notices.append(RELATIVE if rough else LEARNED)
    if images.is_panorama(data):
        notices.append("It is a 360-degree panorama by its tags and was opened as a flat photo.")
    return Capture(
        name=title(name),
        kind="photo",
        views=(view,),
        up=up,
        rough_depth=rough,
        notices=(*notices, *(() if learned else (ROUGH,))),
    )


def _tilt(sky: upright.Upright) -> float:
    """Degrees between the picture's own up and the one that its lines show."""
    return 0.0 if sky.up is None else math.degrees(math.acos(min(1.0, -float(sky.up[1]))))


def guessed(
    pixels: np.ndarray, camera: Cameras | None, name: str, estimator: DepthEstimator
) -> tuple[View, bool]:
    """A view whose depth an estimator made, and whether its distances are rough.

    Without a camera the estimator's own is taken: measured by the model, or a usual one.
    """
    color_u8 = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    estimate = estimator(color_u8.float() / 255, camera)
    camera = estimate.cameras
    view = View(
        color_u8=color_u8,
        depth=torch.zeros(1, camera.height, camera.width),
        confidence_u8=torch.zeros(1, camera.height, camera.width, dtype=torch.uint8),
        kind=torch.zeros(1, camera.height, camera.width, dtype=torch.uint8),
        log_gain=torch.zeros(3),
        cameras=camera,
        given=camera,
        step=0,
        frame=0,
        name=shown(name, 80),
    )
    layout = isinstance(estimator, LayoutDepth)
    kind = DepthKind.INPAINTED if layout else DepthKind.LEARNED
    view = with_depth(view, estimate.depth, kind, 1.0)
    return replace(view, confidence_u8=to_bytes(estimate.confidence)), estimate.rough
