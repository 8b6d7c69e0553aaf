"""The place from above: its points, the views, the planned path, and where the visitor is.

The plane is the one across the world's up; the page's script moves the visitor's mark in it.
"""

from weakref import WeakKeyDictionary

import numpy as np
import torch

from worldstereo.cameras import Cameras
from worldstereo.scene import Scene
from worldstereo.trajectory import Trajectory
from worldstereo.world import coverage

from ..palette import ACCENT_LIGHT, INVENTED, LINE, hex_of
from . import html

SIDE = 148  # px of the longer side
MARGIN = 0.06  # of the longer side, around the points
INSIDE = 0.02  # of the points at each end, along each axis, may lie outside the map
POINTS = 60_000  # drawn at most
VIEWS = 200  # drawn at most


_KEPT: WeakKeyDictionary[Scene, "tuple[Plane, str]"] = WeakKeyDictionary()


class Plane:
    """World to the map: `u`, `v` unit vectors across up, an origin and a scale.

    The first view looks up the map, and it is as large as what was given: what was invented far
    off, behind a window, must not shrink the place to a corner.
    """

    def __init__(self, scene: Scene) -> None:
        up = scene.up.detach().cpu().double().numpy()
        up = up / max(float(np.linalg.norm(up)), 1e-9)
        ahead = np.array([0.0, 0.0, 1.0])
        if scene.views:
            ahead = scene.views[0].cameras.c2w[:3, 2].detach().cpu().double().numpy()
        ahead = ahead - (ahead @ up) * up
        if np.linalg.norm(ahead) < 1e-3:
            ahead = np.cross(up, [1.0, 0.0, 0.0] if abs(up[0]) < 0.9 else [0.0, 1.0, 0.0])
        ahead = ahead / np.linalg.norm(ahead)
        self.u, self.v, self.up = np.cross(ahead, up), -ahead, up
        points = _thinned(scene, scene.cloud.points).astype(np.float64)
        given = _thinned(scene, scene.cloud.step) == 0
        points = points[given] if given.any() else points
        eyes = np.array([view.cameras.c2w[:3, 3].tolist() for view in scene.views]).reshape(-1, 3)
        u, v = self._flat(points)
        low = np.array([np.quantile(axis, INSIDE) if len(axis) else 0.0 for axis in (u, v)])
        high = np.array([np.quantile(axis, 1 - INSIDE) if len(axis) else 1.0 for axis in (u, v)])
        if len(eyes):
            flat = np.stack(self._flat(eyes), 1)
            low, high = np.minimum(low, flat.min(0)), np.maximum(high, flat.max(0))
        margin = MARGIN * float((high - low).max())
        self.low, extent = low - margin, np.maximum(high - low, 1e-6) + 2 * margin
        self.scale = SIDE / float(extent.max())
        self.width, self.height = (max(40, round(float(e) * self.scale)) for e in extent)

    def _flat(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return points @ self.u, points @ self.v

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) places on the map, px from its top left."""
        return (np.stack(self._flat(points), 1) - self.low) * self.scale

    @property
    def words(self) -> str:
        """What the script needs: u, v, the origin and the scale."""
        return ",".join(f"{x:.6g}" for x in (*self.u, *self.v, *self.low, self.scale))


def map_svg(scene: Scene, plan: Trajectory | None) -> str:
    """The map; nothing for a world without points."""
    if not len(scene.cloud):
        return ""
    plane, image = _drawn(scene)
    path = ""
    if plan is not None:
        places = plane(plan.cameras.position.detach().cpu().double().numpy())
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return html.render(
        "stage.html",
        "map",
        width=plane.width,
        height=plane.height,
        plane=plane.words,
        image=image,
        views=[_wedge(plane, view.cameras, view.step) for view in scene.views[:VIEWS]],
        path=path,
        color=hex_of(ACCENT_LIGHT),
    )


def _drawn(scene: Scene) -> tuple[Plane, str]:
    """The points by coverage; a point nearer to eye level hides those above and below it."""
    kept = _KEPT.get(scene)
    if kept is not None:
        return kept
    plane = Plane(scene)
    step = max(1, -(-len(scene.cloud) // POINTS))
    points = _thinned(scene, scene.cloud.points).astype(np.float64)
    colors = coverage(scene, every=step).colors().cpu().numpy() * 255
    light = _thinned(scene, scene.cloud.colors) @ [0.3, 0.6, 0.1]
    colors = colors * (0.35 + 0.65 * light[:, None])
    height = points @ plane.up
    eyes = [np.array(view.cameras.c2w[:3, 3].tolist()) @ plane.up for view in scene.views]
    level = float(np.median(eyes)) if eyes else float(np.median(height))
    order = np.argsort(-np.abs(height - level), kind="stable")
    at = np.floor(plane(points[order])).astype(int)
    inside = ((at >= 0) & (at < [plane.width, plane.height])).all(1)
    out = np.full((plane.height, plane.width, 3), (20, 23, 28), np.uint8)
    out[at[inside, 1], at[inside, 0]] = np.clip(colors[order][inside], 0, 255).astype(np.uint8)
    _KEPT[scene] = made = (plane, html.picture(out, SIDE, 85))
    return made


def _thinned(scene: Scene, column: torch.Tensor) -> np.ndarray:
    """At most `POINTS` rows of a column of the cloud."""
    step = max(1, -(-len(scene.cloud) // POINTS))
    return column[::step].detach().cpu().numpy()


def _wedge(plane: Plane, camera: Cameras, step: int) -> tuple[float, float, int, int, str]:
    """A view, a small triangle that opens the way it looks: place, angle, size, colour."""
    c2w = camera.c2w.detach().cpu().double().numpy()
    ((x, y),) = plane(c2w[None, :3, 3])
    angle = np.degrees(np.arctan2(float(c2w[:3, 2] @ plane.v), float(c2w[:3, 2] @ plane.u)))
    color, size = (LINE, 7) if step == 0 else (INVENTED, 4)
    return round(float(x), 1), round(float(y), 1), round(float(angle)), size, hex_of(color)
