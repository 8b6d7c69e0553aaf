"""What the planned path will show, and what it runs into: the scrubber's pictures and warnings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldstereo.cameras import Cameras
from worldstereo.generators import Frame
from worldstereo.guide import Guide, GuideFrame, splat_cloud
from worldstereo.scene import Origin, PointCloud, Scene
from worldstereo.trajectory import Trajectory
from worldstereo.world import NextView, reach_along

LONG_SIDE = 640  # px of a draft
CLOSE = 0.02  # of the scene's unit: nearer than this the camera is inside a surface
MIN_POINTS = 3  # points within reach of the path: fewer may be floaters
GHOSTS = 3  # cameras proposed at once
SAMPLES = 4000  # along a path, at most


@dataclass(frozen=True, eq=False)
class Preview:
    """One frame of the planned path as the memories know it."""

    color: np.ndarray
    """(H, W, 3) uint8; what is unknown is black in a draft, filled in the final picture."""
    known: np.ndarray
    """(H, W) bool."""
    unknown: float
    """Share of the pixels without a surface, 0 to 1: in a draft the holes of the cloud's splat, in
    the final picture what neither memory knows."""
    warnings: tuple[str, ...]
    final: bool


def draft(scene: Scene, camera: Cameras, warnings: tuple[str, ...] = ()) -> Preview:
    """The published cloud splatted at one camera: what a dragged slider shows."""
    splat = splat_cloud(scene, sized(camera, LONG_SIDE))
    known = splat.mask.reshape(splat.mask.shape[-2:]).bool().cpu().numpy()
    color = (splat.color * 255 + 0.5).byte().permute(1, 2, 0).contiguous().cpu().numpy()
    return Preview(color, known, float(1 - known.mean()), warnings, final=False)


def final(frame: GuideFrame, warnings: tuple[str, ...] = ()) -> Preview:
    """The guide's own frame: exactly what the generator will be shown."""
    color = (frame.color.clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).contiguous()
    known = frame.mask[0].cpu().numpy()
    return Preview(color.cpu().numpy(), known, frame.unknown, warnings, final=True)


def sized(camera: Cameras, long_side: int) -> Cameras:
    """The camera with its longer side at `long_side` px; never larger than it was."""
    factor = long_side / max(camera.width, camera.height)
    if factor >= 1:
        return camera
    return camera.scaled(round(camera.width * factor), round(camera.height * factor))


@dataclass(frozen=True, eq=False)
class PlannedPath:
    """The planned path with what it was planned from; swapped as a whole, never half of it."""

    path: Trajectory | None = None
    settings: Any = None
    """What the page's settings were; only the page knows them."""
    keyframes: tuple[Cameras, ...] | None = None
    """The keyframes that it goes through, as the viewport had them; None for other paths."""
    guide: str = "fused"
    """What the generator is shown along it: "fused" or "cloud"."""


@dataclass(frozen=True, eq=False)
class Unseen:
    """The cameras of one scene from which most can be learned, and the one that was chosen."""

    scene: Scene | None = None
    views: tuple[NextView, ...] = ()
    chosen: int = 0

    def goal(self, scene: Scene) -> NextView | None:
        """What a path to the unseen leads to; None in another scene, where it is looked for."""
        return self.views[self.chosen] if scene is self.scene and self.views else None


class PreviewedGuide:
    """What is known about one plan in one scene: its guide, made on demand, and its warnings."""

    def __init__(self, scene: Scene, plan: Trajectory, kind: str = "fused") -> None:
        self.scene, self.plan, self.kind = scene, plan, kind
        self.guide = Guide(scene, plan, kind)
        self._warnings: tuple[str, ...] | None = None

    def matches(self, scene: Scene, plan: Trajectory, kind: str) -> bool:
        return (self.scene, self.plan, self.kind) == (scene, plan, kind)

    @property
    def warnings(self) -> tuple[str, ...]:
        if self._warnings is None:
            inside = frames_inside(self.scene.cloud, self.plan, self.scene.unit)
            beyond = beyond_reach(self.scene, self.plan)
            self._warnings = (*describe(inside), *beyond)
        return self._warnings

    def preview(self, frame: int, wants_final: bool) -> Preview:
        """The draft or the final picture of one frame, with the path's warnings."""
        if wants_final:
            return final(self.guide[frame], self.warnings)
        return draft(self.scene, self.plan.cameras[frame], self.warnings)


def frames_inside(cloud: PointCloud, plan: Trajectory, unit: float) -> list[int]:
    """Frames at which, or on the way to which, the camera passes through a surface.

    A frame counts when at least three points of the cloud lie within reach of the way from the
    frame before: 2 % of the scene's unit, or twice a point's own radius where points are sparse.
    """
    path = plan.cameras.position.detach().cpu().double().numpy()
    if len(cloud) == 0 or not np.isfinite(unit) or unit <= 0:
        return []
    points, radii = cloud.points.cpu().numpy(), cloud.radii.cpu().numpy()
    reach = np.maximum(CLOSE * unit, np.minimum(2 * radii, 4 * CLOSE * unit))
    most = float(reach.max())
    low, high = path.min(0) - most, path.max(0) + most
    near = np.flatnonzero(((points >= low) & (points <= high)).all(axis=1))
    if len(near) == 0:
        return []
    samples, frame_of = along(path, step=0.5 * CLOSE * unit)

    from scipy.spatial import KDTree

    found = KDTree(samples).query(points[near], distance_upper_bound=most, workers=2)
    distance, sample = np.asarray(found[0]), np.asarray(found[1])
    hit = distance <= reach[near]
    counts = np.bincount(frame_of[sample[hit]], minlength=len(path))
    return np.flatnonzero(counts >= MIN_POINTS).tolist()


def beyond_reach(scene: Scene, plan: Trajectory) -> tuple[str, ...]:
    """One line about frames that hold too little that is known to continue from."""
    if len(scene.cloud) == 0:
        return ()
    reach = reach_along(scene, plan)
    if reach == len(plan):
        return ()
    captured = sum(view.step == 0 for view in scene.views)
    what = "this photo does" if captured == 1 else "the captured views do"
    return (
        f"Beyond view {reach} of {len(plan)} {what} not reach: most of the picture is unknown.",
    )


def along(path: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Samples (M, 3) at most `step` apart on the way, and the frame that each leads to, (M,)."""
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    step = max(step, float(lengths.sum()) / SAMPLES, 1e-12)
    samples, frames = [path[:1]], [np.zeros(1, np.int64)]
    for i, length in enumerate(lengths):
        s = np.linspace(0, 1, int(length / step) + 2)[1:, None]
        samples.append((1 - s) * path[i] + s * path[i + 1])
        frames.append(np.full(len(s), i + 1))
    return np.concatenate(samples), np.concatenate(frames)


def describe(frames: Sequence[int]) -> tuple[str, ...]:
    """One line about frames inside a surface, counted from 1 as people do."""
    if not frames:
        return ()
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame == runs[-1][1] + 1:
            runs[-1][1] = frame
        else:
            runs.append([frame, frame])
    named = [f"{a + 1}" if a == b else f"{a + 1} to {b + 1}" for a, b in runs[:3]]
    more = " and later" if len(runs) > 3 else ""
    one = len(frames) == 1
    text = f"View{'' if one else 's'} {', '.join(named)}{more} pass{'es' if one else ''} through"
    return (f"{text} a surface. Shorten or turn the path.",)


def new_points(frame: Frame, camera: Cameras) -> tuple[np.ndarray, np.ndarray, float]:
    """What a new frame adds that was unseen before: points, 8-bit colours and their width.

    Every second pixel; the world itself decides later what it keeps.
    """
    grid = torch.zeros_like(frame.origin[0], dtype=torch.bool)
    grid[::2, ::2] = True
    rows = (grid & (frame.origin[0] == int(Origin.INVENTED)) & (frame.depth[0] > 0)).flatten()
    depth = frame.depth[0].flatten()[rows]
    points = camera.unproject(camera.pixel_grid()[rows], depth)
    colors = (frame.color.flatten(1).T[rows].clamp(0, 1) * 255 + 0.5).byte()
    width = 2 * float(depth.median()) / float(camera.K[0, 0]) if len(depth) > 0 else 0.0
    return points.cpu().numpy(), colors.cpu().numpy(), width
