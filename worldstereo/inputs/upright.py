"""Which way is up in a capture with poses: where upright lines vanish.

People hold cameras level but look down or up, so the mean of the cameras' own up leans by 8 to 12
degrees; the edges of walls, doors and shelves do not.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from worldstereo.scene import View

_PICTURES = 24  # looked at, evenly
_LONG = 0.04  # of the long side: shorter segments point anywhere
_MIN_LINES = 20  # lines below which nothing is proved
_NEAR = math.radians(2)  # of the axis: a line that counts for it
_CLEAR, _SOME = 3.0, 2.0  # times as many lines as would point there by chance
_ALONE_LINES, _ALONE = 12, 4.0  # the same for one picture: it has fewer, and nothing else agrees
_AGREE = 15.0  # degrees from the level axis within which some more lines than by chance suffice


class Look(NamedTuple):
    """One picture of the capture."""

    grey: np.ndarray
    """(H, W) uint8."""
    K: np.ndarray
    c2w: np.ndarray
    """Only its rotation counts."""


class Upright(NamedTuple):
    up: np.ndarray | None
    """Unit vector in the world; None when neither lines nor cameras tell."""
    how: str
    """"lines", "level" (across the level axis of the cameras), "mean" of their up, or "none"."""
    lines: int
    """That point up, within two degrees."""

    @property
    def guessed(self) -> bool:
        return self.how != "lines"


def up(views: Sequence[View]) -> Upright:
    """The direction of the sky in a capture with poses."""
    poses = [view.given.c2w.double().numpy() for view in views]
    return from_looks(poses, lambda i: _look_of(views[i]))


def from_looks(poses: Sequence[np.ndarray], look: Callable[[int], Look]) -> Upright:
    """As `up`, of poses (c2w) and their pictures: `_PICTURES` of them are looked at."""
    if not poses:
        return Upright(None, "none", 0)
    turns = np.array([c2w[:3, :3] for c2w in poses], np.float64)
    mean = -turns[:, :, 1].mean(axis=0)
    length = float(np.linalg.norm(mean))
    mean_known = length > 0.5
    mean = mean / max(length, 1e-9)
    level = _level(turns, mean) if mean_known else None
    starts = [v for v in (level, mean if mean_known else None) if v is not None]
    if not starts:
        return Upright(None, "none", 0)
    normals = np.concatenate(
        [
            _planes(look(int(i)))
            for i in np.unique(np.linspace(0, len(poses) - 1, _PICTURES).astype(int))
        ]
    )
    found = [_refined(normals, start) for start in starts]
    best, lines = max(found, key=lambda f: f[1])
    off = math.degrees(math.acos(min(1.0, abs(float(best @ starts[0])))))
    chance = len(normals) * math.sin(_NEAR)  # lines of a picture without any upright thing
    agrees = level is None or off < _AGREE
    if lines >= max(_MIN_LINES, (_SOME if agrees else _CLEAR) * chance):
        return Upright(best, "lines", lines)
    return Upright(starts[0], "level" if level is not None else "mean", lines)


def one(view: View) -> Upright:
    """The direction of the sky in one picture, in its own camera's frame.

    Only lines tell: one picture does not say how its camera was held. Its focal length may be a
    guess, for lines that nearly run down the picture hardly depend on it.
    """
    look = _look_of(view)
    normals = _planes(look._replace(c2w=np.eye(4)))
    best, lines = _refined(normals, np.array([0.0, -1.0, 0.0]))
    if lines >= max(_ALONE_LINES, _ALONE * len(normals) * math.sin(_NEAR)):
        return Upright(best, "lines", lines)
    return Upright(None, "none", lines)


def _look_of(view: View) -> Look:
    import cv2

    pixels = np.ascontiguousarray(view.color_u8.permute(1, 2, 0).numpy())
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return Look(grey, view.given.K.double().numpy(), view.given.c2w.double().numpy())


def _level(turns: np.ndarray, mean: np.ndarray) -> np.ndarray | None:
    """Across the axis that people hold level: x, or y of a picture turned by 90 degrees.

    None where the cameras all look one way: then any tilt about that axis fits as well.
    """
    axes = np.array([min(R[:, 0], R[:, 1], key=lambda a: abs(float(a @ mean))) for R in turns])
    values, vectors = np.linalg.eigh(axes.T @ axes / len(axes))
    if len(turns) < 4 or values[1] < 20 * values[0] or values[1] < 0.05:
        return None
    axis = vectors[:, 0]
    return axis * np.sign(axis @ mean) if abs(float(axis @ mean)) > 0.5 else None


def _planes(look: Look) -> np.ndarray:
    """Unit normals, in the world, of the planes through the camera and each straight line."""
    import cv2

    found = cv2.createLineSegmentDetector(0).detect(look.grey)[0]
    ends = np.zeros((0, 2, 2)) if found is None else found.reshape(-1, 2, 2).astype(np.float64)
    long = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) > _LONG * max(look.grey.shape)
    ends = ends[long] + 0.5  # its first pixel has its centre at 0
    rays = np.insert(ends, 2, 1.0, axis=2) @ np.linalg.inv(look.K).T
    normals = np.cross(rays[:, 0], rays[:, 1])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return normals @ look.c2w[:3, :3].T


def _refined(normals: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray, int]:
    """The direction in most of these planes near `axis`, by reweighted least squares."""
    near = normals[:0]
    for degrees in (15, 10, 6, 4, 3, 2, 2):
        most = math.sin(math.radians(degrees))
        near = normals[np.abs(normals @ axis) < most]
        if len(near) < 3:
            return axis, 0
        weights = 1 / (1 + (2 * near @ axis / most) ** 2)
        new = np.linalg.eigh(near.T @ (near * weights[:, None]))[1][:, 0]
        axis = new * np.sign(new @ axis)
    return axis / np.linalg.norm(axis), len(near)
