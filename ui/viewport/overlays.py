"""What is drawn over the cloud: remembered views, the planned path, matches, marks, a selection.

Every method runs in the viewport's thread. Lines are `thickness_units="screen"`: viser's default
unit for thickness is the world's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import viser
from scipy.spatial import KDTree

from worldstereo.cameras import Cameras
from worldstereo.scene import View
from worldstereo.trajectory import Trajectory

from ..palette import ACCENT, ACCENT_LIGHT, INVENTED, LINE, REFUSED, STEREO
from .frames import poses, pyramid_lines, vertical_fov, wxyz

FRAMED = 16  # frusta that can be clicked; they cost six draw calls each, the others are lines
PICTURED = 6  # of them with a picture: more would hide the place
GENERATED = 12  # generated views drawn, without pictures: their frames would hide the place
THUMBNAIL = 160  # px, the longer side of a picture on a frustum
FRUSTUM = 0.11  # depth of a frustum in the viewport, where views are few
MIN_FRUSTUM = 0.025
SPACING = 0.4  # of the way from a view to the next: the depth of frusta that stand close together
CLEAR = 0.5  # of the height of the sight, in its middle: no large picture reaches into it
COVERED = 0.06  # steradians, 3 % of a picture of 60 degrees: a frustum that covers more is hidden
MAX_MATCHES = 300  # line segments; 5,000 cost 0.2 s a frame in software
PLAN_FRUSTA = 12
LIFT = 0.04  # of the way to the eye, for marks on surfaces
SAME_SPOT = 0.02  # of a frustum: views nearer to each other stand on one spot
GIZMO = 0.35  # reach of a gizmo's arms in the viewport


@dataclass(frozen=True)
class MatchLine:
    """A line from a point to a remembered view that was asked about it."""

    position: tuple[float, float, float]
    """Of the view's camera, in the world."""
    weight: float = 1.0
    """Its share, 0 to 1; wider lines weigh more."""
    accepted: bool = True


class ViewFrusta:
    """Frusta of the remembered views, which give way to the place.

    Those that would stand in the visitor's eye are hidden, and large pictures over the middle of
    the sight are left out: what remains are lines, through which the place is seen.
    """

    def __init__(self, server: viser.ViserServer, clicked: Callable[[int], None]) -> None:
        self._server, self._clicked = server, clicked
        self._drawn: dict[int, tuple[View, Any]] = {}
        self._lines: Any = None
        self._lines_of: list[View] = []
        self._pictures: dict[int, np.ndarray] = {}
        self._scale, self._size = 1.0, FRUSTUM
        self._visible = True

    def draw(self, views: Sequence[View], scale: float) -> None:
        given = one_a_spot(views, scale)
        made = [i for i, view in enumerate(views) if view.step > 0]
        framed = [given[i] for i in evenly(len(given), FRAMED)]
        pictured = {framed[i] for i in evenly(len(framed), PICTURED)}
        wanted = {*framed, *(made[i] for i in evenly(len(made), GENERATED))}
        size = frustum_size([views[i] for i in given], scale)
        resized = (scale, size) != (self._scale, self._size)
        again = pictured ^ set(self._pictures)  # their picture comes or goes
        self._scale, self._size = scale, size
        kept = {i: p for i, p in self._pictures.items() if self._is(i, views)}
        self._pictures = {i: kept[i] if i in kept else thumbnail(views[i]) for i in pictured}
        for index in [i for i in self._drawn if i not in wanted]:
            self._drawn.pop(index)[1].remove()
        for index in sorted(wanted):
            if resized or index in again or not self._is(index, views):
                self._drawn[index] = (views[index], self._add(index, views[index]))
        rest = [views[i] for i in given if i not in wanted]
        same = len(rest) == len(self._lines_of) and all(
            a is b for a, b in zip(rest, self._lines_of, strict=True)
        )
        if not same or resized:
            self._draw_lines(rest)

    def show(self, visible: bool) -> None:
        self._visible = visible
        for _, handle in self._drawn.values():
            handle.visible = visible
        if self._lines is not None:
            self._lines.visible = visible

    def _is(self, index: int, views: Sequence[View]) -> bool:
        """Whether this view is drawn under this number."""
        drawn = self._drawn.get(index)
        return drawn is not None and index < len(views) and drawn[0] is views[index]

    def make_way(self, pose: np.ndarray, fov: float) -> None:
        """Clear the sight of a camera (4, 4) in the viewport with this vertical field of view."""
        eye, forward = pose[:3, 3], pose[:3, 2]
        for index, (view, handle) in self._drawn.items():
            c2w = poses(view.cameras)[0]
            depth = self._depth(view)
            middle = c2w[:3, 3] * self._scale + depth * c2w[:3, 2]
            tall = 2 * depth * float(np.tan(vertical_fov(view.cameras) / 2))
            area = tall * tall * view.width / view.height
            distance = float(np.linalg.norm(middle - eye))
            near = distance < 1.5 * depth or area > COVERED * distance**2
            if handle.visible != (self._visible and not near):
                handle.visible = self._visible and not near
            if index in self._pictures and not near:
                aside = np.arccos(np.clip((middle - eye) @ forward / distance, -1, 1))
                reach = np.arctan(0.5 * tall * np.hypot(1, view.width / view.height) / distance)
                over = aside - reach < np.arctan(CLEAR * np.tan(fov / 2))
                large = area > COVERED / 8 * distance**2  # far away all are in the middle
                if (handle.image is None) != (over and large):
                    handle.image = None if over and large else self._pictures[index]

    def _depth(self, view: View) -> float:
        return self._size if view.step == 0 else self._size / 2

    def _add(self, index: int, view: View) -> Any:
        c2w = poses(view.cameras)[0]
        fov, aspect = vertical_fov(view.cameras), view.width / view.height
        handle = self._server.scene.add_camera_frustum(
            f"/views/{index:04d}",
            fov=fov,
            aspect=aspect,
            scale=scale_for(self._depth(view), fov, aspect),
            thickness=1.2,
            thickness_units="screen",
            color=LINE if view.step == 0 else STEREO,
            image=self._pictures.get(index),
            format="jpeg",
            jpeg_quality=80,
            wxyz=wxyz(c2w[:3, :3]),
            position=c2w[:3, 3] * self._scale,
            visible=self._visible,
            cast_shadow=False,
            receive_shadow=False,
        )
        handle.on_click(lambda _: self._clicked(index))
        return handle

    def _draw_lines(self, views: list[View]) -> None:
        if self._lines is not None:
            self._lines.remove()
            self._lines = None
        self._lines_of = views
        if views:
            lines = [pyramid_lines(view.cameras, self._scale, self._size) for view in views]
            self._lines = add_lines(self._server, "/views/others", np.concatenate(lines), LINE, 1.0)
            self._lines.visible = self._visible


def scale_for(depth: float, fov: float, aspect: float) -> float:
    """What viser calls the scale of a frustum: it draws those of one scale with one volume."""
    return depth * float(np.cbrt(np.tan(fov / 2) ** 2 * aspect / 3))


def thumbnail(view: View) -> np.ndarray:
    """A view's picture, small: (h, w, 3) uint8."""
    stride = max(1, max(view.width, view.height) // THUMBNAIL)
    picture = view.color_u8[:, ::stride, ::stride].permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(picture)


def one_a_spot(views: Sequence[View], scale: float) -> list[int]:
    """Input views without those that stand where an earlier one does: the pictures of a panorama's
    views would wall its place in. The strip shows them all."""
    kept: list[int] = []
    spots = np.zeros((0, 3))
    for i, view in enumerate(views):
        if view.step > 0:
            continue
        spot = poses(view.cameras)[0, :3, 3] * scale
        if (np.linalg.norm(spots - spot, axis=1) < SAME_SPOT * FRUSTUM).any():
            continue
        kept.append(i)
        spots = np.concatenate([spots, spot[None]])
    return kept


def frustum_size(views: Sequence[View], scale: float) -> float:
    """Depth of the frusta of views that stand apart: smaller where the next view is near."""
    if len(views) < 2:
        return FRUSTUM
    spots = scale * np.array([poses(view.cameras)[0, :3, 3] for view in views])
    gaps = KDTree(spots).query(spots, k=2)[0][:, 1]
    return float(np.clip(SPACING * np.median(gaps), MIN_FRUSTUM, FRUSTUM))


class PlanDrawing:
    """The planned path: a line and a few small frusta, the scrubbed frame drawn larger.

    Where the place's views do not reach the line has the colour of what is invented.
    """

    def __init__(self, server: viser.ViserServer) -> None:
        self._server = server
        self._handles: list[Any] = []
        self._marker: Any = None
        self._plan: Trajectory | None = None
        self._scale, self._reach, self._frame, self._visible = 1.0, 0, -1, True

    def draw(self, plan: Trajectory | None, scale: float, reach: int) -> None:
        """
        Args:
            reach: how many of the first frames hold enough that is known.
        """
        if plan is self._plan and (scale, reach) == (self._scale, self._reach):
            return
        self.clear()
        self._plan, self._scale, self._reach = plan, scale, reach
        if plan is None:
            return
        path = plan.cameras.position.detach().cpu().double().numpy() * scale
        segments = np.stack([path[:-1], path[1:]], axis=1)
        moves = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1) > 1e-6
        beyond = np.arange(len(segments)) >= reach - 1  # a segment leads to the frame after it
        frusta = evenly(len(plan), PLAN_FRUSTA)
        for name, there, line, light in (
            ("/plan", False, ACCENT, ACCENT_LIGHT),
            ("/plan/beyond", True, INVENTED, INVENTED),
        ):
            some = segments[moves & (beyond == there)]
            if len(some) > 0:
                self._handles.append(add_lines(self._server, f"{name}/line", some, line, 3.0))
            chosen = [i for i in frusta if (i >= reach) == there]
            if chosen:
                lines = pyramid_lines(plan.cameras[chosen], scale, 0.5 * FRUSTUM)
                drawn = add_lines(self._server, f"{name}/frusta", lines, light, 1.2)
                self._handles.append(drawn)
        for handle in self._handles:
            handle.visible = self._visible
        self.mark(self._frame)

    def mark(self, frame: int) -> None:
        """Draw frame number `frame` of the plan larger; -1 draws none."""
        self._frame = frame
        if self._marker is not None:
            self._marker.remove()
            self._marker = None
        if self._plan is None or not 0 <= frame < len(self._plan):
            return
        camera = self._plan.cameras[[frame]]
        lines = pyramid_lines(camera, self._scale, FRUSTUM)
        self._marker = add_lines(self._server, "/plan/now", lines, ACCENT, 3.0)
        self._marker.visible = self._visible

    def show(self, visible: bool) -> None:
        self._visible = visible
        for handle in [*self._handles, self._marker]:
            if handle is not None:
                handle.visible = visible

    def clear(self) -> None:
        for handle in [*self._handles, self._marker]:
            if handle is not None:
                handle.remove()
        self._handles, self._marker, self._plan = [], None, None


class Ghosts:
    """Cameras from which much can be learned, numbered from the best; a click plans a path."""

    def __init__(self, server: viser.ViserServer, clicked: Callable[[int], None]) -> None:
        self._server, self._clicked = server, clicked
        self._handles: list[Any] = []

    def draw(self, cameras: Sequence[Cameras], scale: float) -> None:
        self.clear()
        for index, camera in enumerate(cameras):
            c2w = poses(camera)[0]
            place = c2w[:3, 3] * scale
            handle = self._server.scene.add_camera_frustum(
                f"/ghosts/{index}",
                fov=vertical_fov(camera),
                aspect=camera.width / camera.height,
                scale=3 * FRUSTUM,
                thickness=2.5,
                thickness_units="screen",
                color=INVENTED,
                wxyz=wxyz(c2w[:3, :3]),
                position=place,
                cast_shadow=False,
                receive_shadow=False,
                variant="filled",
            )
            handle.on_click(lambda _, index=index: self._clicked(index))
            ahead = place + 1.5 * FRUSTUM * c2w[:3, 2]
            label = self._server.scene.add_label(
                f"/ghosts/{index}/label", f"{index + 1}", anchor="center-center"
            )
            label.position = c2w[:3, :3].T @ (ahead - place)
            self._handles.append(handle)

    def clear(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class Marks:
    """Short-lived marks: a picked point with its matches, a measured length, a selection."""

    def __init__(self, server: viser.ViserServer) -> None:
        self._server = server
        self._groups: dict[str, list[Any]] = {}

    def clear(self, group: str | None = None) -> None:
        for name in [group] if group else list(self._groups):
            for handle in self._groups.pop(name, []):
                handle.remove()

    def point(self, at: np.ndarray, color: tuple[int, int, int] = (255, 255, 255)) -> None:
        self.clear("pick")
        self._groups["pick"] = [self._dot("/marks/pick", at, color)]

    def explain(
        self, point: tuple[float, ...] | None, matches: Sequence[MatchLine], scale: float
    ) -> None:
        """Mark a point of the world and its matches; None takes both away."""
        if point is None:
            self.clear("matches")
            self.clear("pick")
        else:
            self.matches(np.array(point) * scale, matches, scale)

    def matches(self, at: np.ndarray, matches: Sequence[MatchLine], scale: float) -> None:
        """Lines from a point in the viewport to views; the heaviest `MAX_MATCHES` of them."""
        self.clear("matches")
        self.point(at)
        kept = sorted(matches, key=lambda match: -match.weight)[:MAX_MATCHES]
        handles = []
        for name, color, width, chosen in (
            ("strong", STEREO, 4.0, [m for m in kept if m.accepted and m.weight >= 0.3]),
            ("medium", STEREO, 2.5, [m for m in kept if m.accepted and 0.1 <= m.weight < 0.3]),
            ("weak", STEREO, 1.4, [m for m in kept if m.accepted and m.weight < 0.1]),
            ("refused", REFUSED, 1.0, [m for m in kept if not m.accepted]),
        ):
            if chosen:
                ends = np.array([match.position for match in chosen]) * scale
                lines = np.stack([np.broadcast_to(at, ends.shape), ends], axis=1)
                handles.append(add_lines(self._server, f"/marks/{name}", lines, color, width))
        self._groups["matches"] = handles

    def measured(
        self, start: np.ndarray, end: np.ndarray | None, eye: np.ndarray, text: str = ""
    ) -> None:
        """A length between two points in the viewport, or its first end alone.

        Drawn a little towards the eye, where it looks the same and no surface hides it.
        """
        self.clear("measure")
        start = start + LIFT * (eye - start)
        end = None if end is None else end + LIFT * (eye - end)
        handles = [self._dot("/marks/from", start, (255, 255, 255))]
        if end is not None:
            handles.append(self._dot("/marks/to", end, (255, 255, 255)))
            line = np.stack([start, end])[None]
            handles.append(add_lines(self._server, "/marks/length", line, (255, 255, 255), 2.0))
            handles.append(
                self._server.scene.add_label(
                    "/marks/text", text, position=(start + end) / 2, anchor="bottom-center"
                )
            )
        self._groups["measure"] = handles

    def selected(self, points: np.ndarray, size: float) -> None:
        """Selected points in the colour of refusal, at most 30,000 of them."""
        self.clear("selection")
        if len(points) == 0:
            return
        points = points[:: max(1, len(points) // 30_000)]
        center = (points.min(0) + points.max(0)) / 2
        self._groups["selection"] = [
            self._server.scene.add_point_cloud(
                "/marks/selection",
                (points - center).astype(np.float16),
                REFUSED,
                point_size=size,
                point_shape="circle",
                point_shading="flat",
                position=center,
            )
        ]

    def draft(self, points: np.ndarray, colors: np.ndarray, size: float) -> None:
        """Points of a view that is just made; each call adds a node."""
        if len(points) == 0:
            return
        nodes = self._groups.setdefault("draft", [])
        center = (points.min(0) + points.max(0)) / 2
        nodes.append(
            self._server.scene.add_point_cloud(
                f"/marks/draft/{len(nodes):04d}",
                (points - center).astype(np.float16),
                colors,
                point_size=size,
                point_shape="circle",
                point_shading="flat",
                position=center,
            )
        )

    def _dot(self, name: str, at: np.ndarray, color: tuple[int, int, int]) -> Any:
        return self._server.scene.add_point_cloud(
            name,
            np.zeros((1, 3), np.float16),
            color,
            point_size=0.05,
            point_shape="circle",
            point_shading="flat",
            position=at,
        )


class KeyframeGizmos:
    """The keyframes of a path: a frustum each, and a gizmo on the one being edited."""

    def __init__(
        self,
        server: viser.ViserServer,
        moved: Callable[[int, np.ndarray, np.ndarray, bool], None],
        clicked: Callable[[int], None],
    ) -> None:
        self._server, self._moved, self._clicked = server, moved, clicked
        self._handles: list[Any] = []
        self._gizmo: Any = None
        self.active = -1

    def hide_near(self, eye: np.ndarray) -> None:
        """Hide what stands in the visitor's eye, as a keyframe just placed there does."""
        for handle, reach in [*((h, 3 * FRUSTUM) for h in self._handles), (self._gizmo, GIZMO)]:
            if handle is not None:
                far = float(np.linalg.norm(np.asarray(handle.position) - eye)) > reach
                if handle.visible != far:
                    handle.visible = far

    def draw(self, cameras: Sequence[Cameras], scale: float, active: int) -> None:
        self.clear()
        self.active = active
        for index, camera in enumerate(cameras):
            c2w = poses(camera)[0]
            handle = self._server.scene.add_camera_frustum(
                f"/keyframes/{index:03d}",
                fov=vertical_fov(camera),
                aspect=camera.width / camera.height,
                scale=FRUSTUM,
                thickness=3.0 if index == active else 2.0,
                thickness_units="screen",
                color=ACCENT,
                wxyz=wxyz(c2w[:3, :3]),
                position=c2w[:3, 3] * scale,
                cast_shadow=False,
                receive_shadow=False,
                variant="filled",  # a click between the lines means it, too
            )
            handle.on_click(lambda _, index=index: self._clicked(index))
            self._handles.append(handle)
        if 0 <= active < len(cameras):
            c2w = poses(cameras[active])[0]
            self._gizmo = self._server.scene.add_transform_controls(
                "/keyframes/gizmo",
                scale=GIZMO,
                line_width=2.5,
                depth_test=False,
                wxyz=wxyz(c2w[:3, :3]),
                position=c2w[:3, 3] * scale,
            )
            self._gizmo.on_update(self._on_gizmo)

    def follow(self, index: int, camera: Cameras, scale: float) -> None:
        """Move a keyframe's frustum along with its gizmo."""
        c2w = poses(camera)[0]
        self._handles[index].wxyz = wxyz(c2w[:3, :3])
        self._handles[index].position = c2w[:3, 3] * scale

    def clear(self) -> None:
        for handle in [*self._handles, self._gizmo]:
            if handle is not None:
                handle.remove()
        self._handles, self._gizmo = [], None

    def _on_gizmo(self, event: viser.TransformControlsEvent) -> None:
        target = event.target
        pose = np.array(target.wxyz), np.array(target.position)
        self._moved(self.active, *pose, event.phase == "end")


def add_lines(
    server: viser.ViserServer,
    name: str,
    segments: np.ndarray,
    color: tuple[int, int, int],
    width: float,
) -> Any:
    """Line segments (n, 2, 3) in the viewport, `width` in pixels."""
    return server.scene.add_line_segments(
        name,
        np.ascontiguousarray(segments, np.float32),
        color,
        thickness=width,
        thickness_units="screen",
    )


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of 0 .. count - 1, evenly spread, both ends among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
