"""Views asked where a held-out picture was really taken, found from the picture itself.

A target's given pose is often off by more than what synthesis does wrong, so a figure there rewards
softness. The localizer finds the picture among the remembered views, for the measure only: the
library never sees the target. The baselines stand at the same pose.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from bench.views_sets import image_of, picture, scores, splat_and_nearest
from worldstereo.cameras import Cameras
from worldstereo.memory.localize import Localizer
from worldstereo.memory.stereo.dense import SynthesisOptions, synthesize
from worldstereo.scene import View
from worldstereo.views.fusion import ViewArrays, make_view_arrays, pose_distance, pose_of

BESIDE = 0.05  # u; a radian counts like 0.3 m
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
