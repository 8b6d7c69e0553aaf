"""Views asked where a held-out picture was really taken, found from the picture itself.

A target's given pose is often off by more than what synthesis does wrong, so a figure there rewards
softness. The localizer finds the picture among the remembered views, for the measure only: the
library never sees the target. The baselines stand at the same pose.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from bench.views_sets import image_of, picture, scores, splat_and_nearest
from worldstereo.cameras import Cameras
from worldstereo.memory.localize import Localizer
from worldstereo.memory.stereo.dense import Synthesis, SynthesisOptions, synthesize
from worldstereo.scene import Origin, View
from worldstereo.views.fusion import ViewArrays, make_view_arrays, pose_distance, pose_of
from worldstereo.views.registration._matches import best_per_cell, flow_both_ways

BESIDE = 0.05  # u; a radian counts like 0.3 m
MIN_ALIGNED = 30  # corners that must agree on a correction
PLAIN = SynthesisOptions(
    weighted=False, free_space=False, exposure=False, antialias=False, background=False,
    rims=False, mean=False, planes=False, nearest=False, slip=0.0,
)  # fmt: skip


class FoundPoses:
    """Cameras of held-out pictures in the world of some remembered views."""

    def __init__(self, views: Sequence[View], unit: float) -> None:
        self._localizer, self._unit = Localizer.of(views, unit), unit

    def __call__(self, target: View, given: Cameras) -> tuple[Cameras, bool]:
        """The camera with the intrinsics of `given`, and whether the picture was found.

        A doubtful place counts where it lies beside the given pose: the two confirm each other.
        """
        place = self._localizer.find(target.color_u8, given.K)
        if place.camera is None:
            return given, False
        apart = pose_distance(pose_of(place.camera, self._unit), pose_of(given, self._unit))
        if place.doubtful and apart > BESIDE:
            return given, False
        c2w = place.camera.c2w.to(given.c2w)
        return Cameras(given.K, c2w, given.width, given.height), True


def aligned(make: Callable[[Cameras], Synthesis], camera: Cameras, truth: np.ndarray) -> Cameras:
    """A found camera, corrected by what optical flow sees between its picture and the true one.

    Keypoints leave some places several pixels off, by chance of which were matched: such errors are
    the measure's own. Flow over the whole picture, one corner a cell, at the depth that the world
    shows there, moves the camera rigidly; invented pixels have no say. Twice.
    """
    goal = cv2.cvtColor((truth * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    fx, fy, cx, cy = pose_of(camera, 1.0).K
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    for _ in range(2):
        result = make(camera)
        shown = cv2.cvtColor((image_of(result) * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
        flow, residual = flow_both_ways(shown, goal)
        depth = result.depth[0].numpy()
        known = (depth > 0) & (result.origin[0].numpy() != int(Origin.INVENTED))
        strength = np.minimum(cv2.cornerMinEigenVal(shown, 9), cv2.cornerMinEigenVal(goal, 9))
        y, x = best_per_cell(np.where(known & (residual < 1), strength, 0))
        z = depth[y, x].astype(np.float64)
        points = np.stack([(x - cx) / fx * z, (y - cy) / fy * z, z], 1)
        pixels = np.stack([x, y], 1) + flow[y, x].astype(np.float64)
        r, t = np.zeros((3, 1)), np.zeros((3, 1))
        for reach in (4.0, 2.0, 1.0):
            seen = cv2.projectPoints(points, r, t, K, None)[0][:, 0] if len(points) else pixels
            inside = np.linalg.norm(seen - pixels, axis=1) < reach
            if inside.sum() < MIN_ALIGNED:
                return camera
            r, t = cv2.solvePnPRefineLM(points[inside], pixels[inside], K, None, r, t)
        moved = np.eye(4)
        moved[:3, :3], moved[:3, 3] = cv2.Rodrigues(r)[0], t[:, 0]
        c2w = camera.c2w.double().numpy() @ np.linalg.inv(moved)
        c2w = torch.from_numpy(c2w).to(camera.c2w)
        camera = Cameras(camera.K, c2w, camera.width, camera.height)
    return camera


def nearest_warped(views: Sequence[View], camera: Cameras, unit: float) -> np.ndarray:
    """Baseline: the nearest registered view with its completed depth, warped alone."""
    pose = pose_of(camera, unit)
    best = min(views, key=lambda view: pose_distance(pose_of(view.cameras, unit), pose))
    return image_of(synthesize(camera, [best], unit=unit, options=PLAIN))


def splatted(kept: Sequence[ViewArrays], camera: Cameras, target: View) -> np.ndarray:
    """Baseline: measured points of the registered views, holes from the nearest pixel."""
    at = make_view_arrays(View.of(target.color, target.depth, camera))
    return splat_and_nearest(kept, at)


def sharpness(image: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """Gradient energy of a picture over that of the true one."""
    return float(_slope(image)[where].mean() / max(_slope(truth)[where].mean(), 1e-9))


def _slope(image: np.ndarray) -> np.ndarray:
    grey = image.mean(2, dtype=np.float32)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


def scored(image: np.ndarray, target: View, seen: np.ndarray) -> dict[str, float]:
    """`scores` and how sharp the picture is where it was seen."""
    truth = picture(target)
    out = scores(image, truth, seen)
    out["sharp"] = sharpness(image, truth, seen) if seen.any() else float("nan")
    return out
