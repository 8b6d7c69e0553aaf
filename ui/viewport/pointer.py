"""What a pointer does in the viewport: pick a point, measure between two, box many.

Runs in the viewport's thread, in units of the world; rays and rectangles come from viser.
"""

from collections.abc import Callable

import numpy as np
import viser

from worldstereo.scene import Scene

from .camera import aim_of
from .events import Event, Measured, Pick, Point, Selected
from .overlays import Marks
from .picking import Hit, pick, select

WIDE = 0.015  # slope of the wider cone, some eight pixels


class Pointer:
    """Turns clicks and boxes into events and marks."""

    def __init__(
        self, server: viser.ViserServer, marks: Marks, emit: Callable[[Event], None]
    ) -> None:
        self._server, self._marks, self._emit = server, marks, emit
        self._scene, self._scale = Scene(), 1.0
        self._ends: list[np.ndarray] | None = None  # clicked while measuring, in the viewport
        self._boxing = False

    def draw(self, scene: Scene, scale: float) -> None:
        """From now on the pointer meets this scene."""
        self._scene, self._scale = scene, scale
        if self._ends:
            self._ends = []

    def hit(self, origin: np.ndarray, direction: np.ndarray) -> Hit | None:
        """What a ray of the viewport meets first; the hit is in viewport units."""
        cloud = self._scene.cloud
        if len(cloud) == 0:
            return None
        eye, radii = np.asarray(origin) / self._scale, 1.4 * cloud.radii.numpy()
        hit = pick(cloud.points.numpy(), eye, direction, radii)
        if hit is None:  # a click between two points means the nearer one
            hit = pick(cloud.points.numpy(), eye, direction, radii, cone=WIDE)
        if hit is None:
            return None
        return Hit(hit.row, hit.point * self._scale, hit.distance * self._scale)

    def click(self, event: viser.SceneClickEvent) -> None:
        hit = self.hit(np.array(event.ray_origin), np.array(event.ray_direction))
        if hit is None:
            return
        if self._ends is not None:
            self._measure_point(hit.point, np.array(event.ray_origin))
            return
        self._marks.clear("matches")
        self._marks.point(hit.point)
        at = point_of(hit.point / self._scale)
        self._emit(Pick(at, hit.row, self._scene.revision, event.screen_pos))

    def measure(self, on: bool) -> None:
        self._ends = [] if on else None
        if not on:
            self._marks.clear("measure")

    def select(self, on: bool, boxed: Callable[[viser.SceneRectSelectEvent], None]) -> None:
        if on == self._boxing:
            return
        self._boxing = on
        if on:
            self._server.scene.on_rect_select()(boxed)
        else:
            self._server.scene.remove_rect_select_callback()
            self._marks.clear("selection")

    def box(self, event: viser.SceneRectSelectEvent) -> None:
        pose, fov = aim_of(event.client)
        tall = float(np.tan(fov / 2))
        pose[:3, 3] /= self._scale
        cloud = self._scene.cloud
        points = cloud.points.numpy()
        rows = select(
            points,
            np.linalg.inv(pose),
            (tall * event.client.camera.aspect, tall),
            event.screen_min,
            event.screen_max,
        )
        size = 2.2 * float(cloud.radii.median()) * self._scale if len(cloud) else 0.0
        self._marks.selected(points[rows] * np.float32(self._scale), max(size, 0.012))
        self._emit(Selected(rows, self._scene.revision))

    def _measure_point(self, at: np.ndarray, eye: np.ndarray) -> None:
        assert self._ends is not None
        self._ends = [at] if len(self._ends) != 1 else [self._ends[0], at]
        if len(self._ends) == 1:
            self._marks.measured(at, None, eye)
            return
        first, second = self._ends
        start, end = first / self._scale, second / self._scale
        per_unit = self._scene.metres_per_unit
        length = float(np.linalg.norm(end - start)) * (per_unit or 1.0)
        unit = "units" if per_unit is None else "m"
        self._marks.measured(first, second, eye, f"{length:.3g} {unit}")
        self._emit(Measured(point_of(start), point_of(end), length, unit))


def point_of(values: np.ndarray) -> Point:
    return float(values[0]), float(values[1]), float(values[2])
