"""The viewport: owns one viser server, draws a scene in it, turns clicks and flights into events.

viser's own threads, gradio's handlers and the world's writer only put work into the inbox; the
viewport's thread takes it out, touches every viser handle, and moves the camera. Methods return at
once unless they say otherwise. Cameras and points given and returned are those of the world.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import rich
import torch
import viser

from worldstereo.cameras import Cameras
from worldstereo.scene import Scene
from worldstereo.trajectory import Trajectory
from worldstereo.world import coverage, reach_along

from ..palette import STAGE
from .camera import Framing, Motion, Recorder, aim_of
from .cloud import DRAW_MODES, CloudDrawing, DrawMode
from .colors import COLOR_MODES, ColorMode
from .events import (
    CameraMoved,
    Drawn,
    Event,
    Events,
    FromPage,
    GhostClicked,
    KeyframesChanged,
    LiveShown,
    Playing,
    Point,
    Recording,
    ViewClicked,
)
from .frames import camera_of, pose_matrix, poses, stage_scale, wxyz
from .live import REST, LivePicture, LiveView, Place, stage_camera
from .overlays import Ghosts, KeyframeGizmos, Marks, MatchLine, PlanDrawing, ViewFrusta
from .pointer import Pointer, point_of

log = logging.getLogger(__name__)

_STARTING = threading.Lock()
DARK = np.full((2, 2, 3), STAGE, np.uint8)
FLIGHT_SECONDS = 0.7
CAMERA_EVENTS = 0.2  # seconds between two `CameraMoved`, and while a keyframe is dragged


@contextmanager
def silent() -> Iterator[None]:
    """Nothing of viser on the console: it prints at start and stop whatever `verbose` says.

    Only rich's `print` as viser calls it, only in this thread and only meanwhile: what else the
    process prints through rich stays as it is.
    """
    here, original = threading.get_ident(), rich.print

    def elsewhere(*objects: Any, **options: Any) -> None:
        if threading.get_ident() != here:
            original(*objects, **options)

    with _STARTING:
        original, rich.print = rich.print, elsewhere
        try:
            yield
        finally:
            rich.print = original


class Viewport:
    """One visitor's viewport.

    Args:
        on_event: called in the viewport's thread for every event.

    Attributes:
        drawing, color_mode, views_shown, path_shown, measuring, selecting, live: what was last
            asked for; read them, and change them by the methods of like names.
        live_unknown: share of the live view that no memory knows; None while none is shown.
        still: the visitor wants little motion; set it at any time.
    """

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        with silent():
            self._server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
        # Any client may ask viser for a public tunnel; hiding the button would not stop it.
        self._server.request_share_url = lambda verbose=True: None
        self._server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        self._server.scene.set_background_image(DARK)
        self.drawing: DrawMode = "points"
        self.color_mode: ColorMode = "photo"
        self.views_shown = self.path_shown = True
        self.measuring = self.selecting = self.still = self.mesh_shown = self.live = False
        self.live_unknown: float | None = None
        self._events = Events(on_event)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._scene = Scene()
        self._scale = 1.0
        self._source: Callable[[], Scene] | None = None
        self._sketch: Scene | None = None
        self._unfollow: Callable[[], None] = lambda: None
        self._woken = threading.Event()
        self._cloud = CloudDrawing(self._server)
        self._cloud_root = self._server.scene.add_frame("/cloud", show_axes=False)
        self._live = LiveView(lambda picture: self._post(lambda: self._show_live(picture)))
        self._software = False
        self._rests_at: float | None = None  # when the camera will have come to rest
        self._covered: int | None = None  # the client whose viewport the live view covers
        self._views = ViewFrusta(self._server, self._posted(self._view_clicked))
        self._plan_drawing = PlanDrawing(self._server)
        self._marks = Marks(self._server)
        self._gizmos = KeyframeGizmos(
            self._server, self._on_gizmo, self._posted(self._keyframe_clicked)
        )
        self._ghosts = Ghosts(self._server, self._posted(self._ghost_clicked))
        self._plan: Trajectory | None = None
        self._keyframes: tuple[Cameras, ...] = ()
        self._motion = Motion(lambda frame: self.emit(Playing(frame)))
        self._recorder = Recorder()
        self._last_client = -1
        self._sketched = False
        self._mesh: Any = None
        self._pointer = Pointer(self._server, self._marks, self.emit)
        self._framing = Framing(self._server)
        self._view_clicked_at = -1.0
        self._camera_told_at = self._recording_told_at = self._keyframe_told_at = 0.0
        self._server.on_client_connect(self._on_connect)
        self._server.scene.on_click()(self._on_click)
        self._thread = threading.Thread(target=self._run, name="viewport", daemon=True)
        self._thread.start()

    # ---- what the proxy needs --------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The loopback port of this viewport's viser server."""
        return self._server.get_port()

    def listen(self, listener: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        """Be handed each event's JSON form, in the thread that made it; returns the undoing."""
        return self._events.listen(listener)

    def from_page(self, message: dict[str, Any]) -> None:
        """A message from the page's event socket, passed on as an event."""
        self._post(lambda: self.emit(FromPage(message)))

    # ---- life ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the thread, then the server. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._unfollow()
        self._live.close()
        self._inbox.put(None)
        self._thread.join(timeout=10)
        with silent():
            self._server.stop()

    def settle(self, timeout: float = 30.0) -> bool:
        """Wait until everything asked for so far is drawn. False when that took too long."""
        done = threading.Event()
        self._post(done.set)
        return done.wait(timeout)

    @property
    def stats(self) -> dict[str, int]:
        """Counts for the page and for tests: clients, nodes, points shown, bytes of points sent."""
        return {
            "clients": len(self._server.get_clients()),
            "nodes": self._cloud.nodes,
            "points": self._cloud.shown,
            "bytes_sent": self._cloud.bytes_sent,
            "revision": self._scene.revision,
        }

    @property
    def nbytes(self) -> int:
        """Bytes that the drawn points take here, beside the cloud itself."""
        return self._cloud.nbytes

    @property
    def notices(self) -> tuple[str, ...]:
        """What the viewport does not show, one line each."""
        return tuple(line for line in (self._cloud.notice,) if line)

    def emit(self, event: Event) -> None:
        """Tell the page of an event. Also for the session's own events."""
        self._events.emit(event)

    # ---- the scene -------------------------------------------------------------------------------

    def follow(
        self,
        scene: Callable[[], Scene],
        subscribe: Callable[[Callable[[], None]], Callable[[], None]],
    ) -> None:
        """Draw what `scene()` returns, now and after each wake; ten wakes may be one redraw."""
        self._unfollow()
        self._source = scene
        self._unfollow = subscribe(self.wake)
        self.wake()

    def wake(self) -> None:
        """Something was published: look soon. Only sets a flag; safe in the writer's thread."""
        if not self._woken.is_set():
            self._woken.set()
            self._post(self._draw_followed)

    def draw(self, scene: Scene) -> None:
        """Show this scene; only what differs from the last one is sent."""
        self._post(lambda: self._draw(scene))

    def show_sketch(self, sketch: Scene | None) -> None:
        """Show this in place of the followed scene, without a path; None shows the scene again."""
        self._sketch = sketch
        self.wake()

    def draw_as(self, mode: DrawMode) -> None:
        """As "points", closed in software too, or "surface": discs, for a page with a GPU."""
        if mode not in DRAW_MODES:
            raise ValueError(f"draw_as takes one of {', '.join(DRAW_MODES)}, got {mode!r}.")
        self.drawing = mode
        self._post(lambda: self._cloud.draw_as(mode))

    def show_live(self, on: bool) -> None:
        """Show the synthesised view from where the camera rests, in place of the cloud.

        Only while a single page looks on: two would want two pictures.
        """
        self.live = on
        self._post(self._follow_live)

    def stage_camera(self) -> Cameras | None:
        """What the visitor sees, every corner of it, as a camera; None without a browser."""
        client = self._client()
        if client is None:
            return None
        return stage_camera(aim_of(client), size_of(client), self._scale)

    def color_by(self, mode: ColorMode) -> None:
        """By "photo", "step", "confidence", "age", "source" or "coverage"."""
        if mode not in COLOR_MODES:
            raise ValueError(f"color_by takes one of {', '.join(COLOR_MODES)}, got {mode!r}.")
        self.color_mode = mode
        self._post(lambda: self._color_by(mode))

    def renderer(self, software: bool) -> None:
        """Whether the page renders without a GPU: then the viewport shows fewer points."""
        self._post(lambda: self._set_renderer(software))

    def show_views(self, visible: bool) -> None:
        self.views_shown = visible
        self._post(lambda: self._views.show(visible))

    def show_path(self, visible: bool) -> None:
        self.path_shown = visible
        self._post(lambda: self._plan_drawing.show(visible))

    def show_draft(self, points: np.ndarray, colors: np.ndarray, width: float) -> None:
        """Points (n, 3) of a view that is just made, until the next scene or `clear_draft`.

        Args:
            colors: (n, 3) uint8.
            width: of a point, scene units.
        """
        self._post(lambda: self._marks.draft(points * self._scale, colors, width * self._scale))

    def clear_draft(self) -> None:
        self._post(lambda: self._marks.clear("draft"))

    def show_mesh(self, glb: bytes | None, to_world: np.ndarray | None = None) -> None:
        """A mesh in place of the cloud until the world changes; None shows the cloud again.

        Args:
            glb: binary glTF.
            to_world: (3, 3) from its axes and metres to the world's, a rotation times a scale.
        """
        self.mesh_shown = glb is not None
        matrix = np.eye(3) if to_world is None else to_world
        self._post(lambda: self._show_mesh(glb, matrix))

    def show_ghosts(self, cameras: Sequence[Cameras]) -> None:
        """Frusta of cameras that are proposed; a click on one is a `GhostClicked`."""
        kept = tuple(cameras)
        self._post(lambda: self._ghosts.draw(kept, self._scale))

    # ---- the path --------------------------------------------------------------------------------

    def show_plan(
        self, plan: Trajectory | None, keyframes: Sequence[Cameras] | None = None
    ) -> None:
        """Draw the planned path; `keyframes` None leaves the keyframes as they are."""
        self._post(lambda: self._show_plan(plan, None if keyframes is None else tuple(keyframes)))

    def mark_frame(self, frame: int) -> None:
        """Draw this frame of the plan larger, -1 for none."""
        self._post(lambda: self._plan_drawing.mark(frame))

    @property
    def keyframes(self) -> tuple[Cameras, ...]:
        return self._keyframes

    def add_keyframe(self, camera: Cameras | None = None) -> bool:
        """Add a keyframe, by default where the visitor is. False without a browser."""
        camera = self.camera() if camera is None else camera
        if camera is None:
            return False
        self._keyframes = (*self._keyframes, camera)
        self._post(lambda: self._keyframes_changed(len(self._keyframes) - 1))
        return True

    def remove_keyframe(self, index: int = -1) -> None:
        """Remove one keyframe, by default the last; nothing happens where there is none."""
        if -len(self._keyframes) <= index < len(self._keyframes):
            kept = list(self._keyframes)
            kept.pop(index)
            self._keyframes = tuple(kept)
            self._post(lambda: self._keyframes_changed(len(self._keyframes) - 1))

    def clear_keyframes(self) -> None:
        self._keyframes = ()
        self._post(lambda: self._keyframes_changed(-1))

    # ---- the camera ------------------------------------------------------------------------------

    def camera(self, width: int = 640, height: int = 480) -> Cameras | None:
        """Where the visitor looks from, as a camera of this size; None without a browser."""
        client = self._client()
        if client is None:
            return None
        pose, fov = aim_of(client)
        return camera_of(pose, fov, width, height, self._scale)

    def fly_to(self, camera: Cameras) -> None:
        """Move the visitor to a single camera, on a straight line; at once where `still`."""
        self._post(lambda: self._fly_to(camera))

    def play(self, trajectory: Trajectory) -> None:
        """Fly a path at its own speed; `Playing` events tell the frame, -1 at the end."""
        self._post(lambda: self._play(trajectory))

    def stop(self) -> None:
        """Leave the camera where it is."""
        self._post(self._motion.stop)

    @property
    def playing(self) -> bool:
        return self._motion.moving

    def record(self, on: bool, *, fps: float = 24.0) -> Trajectory | None:
        """Begin to record the visitor's flight, or end it and return it (None if nothing moved)."""
        if on:
            self._recorder.begin()
            return None
        return self._recorder.end(self._scale, fps)

    @property
    def recording(self) -> bool:
        return self._recorder.on

    # ---- measuring, selecting, matches -----------------------------------------------------------

    def measure(self, on: bool) -> None:
        """While on, two clicks give a length instead of a pick."""
        self.measuring = on
        self._post(lambda: self._pointer.measure(on))

    def select(self, on: bool) -> None:
        """While on, dragging draws a box and selects the points in sight inside it."""
        self.selecting = on
        self._post(lambda: self._pointer.select(on, self._on_rect))

    def show_matches(self, point: Point | None, matches: Sequence[MatchLine] = ()) -> None:
        """Mark a point and draw its lines to the views that were asked; None removes them."""
        kept = tuple(matches)
        self._post(lambda: self._marks.explain(point, kept, self._scale))

    # ---- the thread ------------------------------------------------------------------------------

    def _post(self, work: Callable[[], None]) -> None:
        if not self._closed:
            self._inbox.put(work)

    def _posted(self, work: Callable[[int], None]) -> Callable[[int], None]:
        return lambda index: self._post(lambda: work(index))

    def _run(self) -> None:
        stepped = 0.0
        while True:
            try:
                # While the camera moves, wake 60 times a second; else sleep until there is work.
                work = self._inbox.get(timeout=self._pause())
            except queue.Empty:
                work = bool  # no work: only time has passed
            if work is None:
                return
            try:
                work()
                if self._motion.moving and time.monotonic() - stepped > 1 / 90:
                    stepped = time.monotonic()
                    self._motion.step(self._client())
                if self._framing.active:
                    self._framing.step(self._server.get_clients())
                if self._rests_at is not None and time.monotonic() >= self._rests_at:
                    self._look_closer()
            except Exception:
                if self._closed:
                    return
                log.exception("the viewport could not do what it was asked")

    def _pause(self) -> float | None:
        """How long to sleep without work: not at all long while something moves."""
        if self._motion.moving:
            return 1 / 60
        if self._rests_at is not None:
            return max(0.01, self._rests_at - time.monotonic())
        return 0.1 if self._framing.active else None

    def _look_closer(self) -> None:
        """The camera rests: more of what is near, less of what is far."""
        self._rests_at = None
        client = self._client()
        if client is not None and self._cloud.look_from(aim_of(client)[0][:3, 3]):
            self.emit(Drawn(self._scene.revision, self._cloud.shown, self._cloud.notice))

    def _draw_followed(self) -> None:
        self._woken.clear()
        sketch, source = self._sketch, self._source
        if sketch is not None:
            if sketch is not self._scene:
                self._draw(sketch, sketch=True)
        elif source is not None:
            self._draw(source())

    def _draw(self, scene: Scene, *, sketch: bool = False) -> None:
        scale = stage_scale(scene.unit)
        before, self._scene = self._scene, scene
        if not torch.equal(scene.up, before.up) or not self._framing.framed:
            self._framing.set_up(scene)
        factor, self._scale = scale / self._scale, scale
        eyes = [poses(view.cameras)[0, :3, 3] for view in scene.views]
        with self._server.atomic():  # one replaces the other: the viewport is never seen empty
            if sketch != self._sketched:
                self._cloud.clear()  # points of a sketch are wider: none may stay in the world
            places = np.array(eyes, np.float32).reshape(-1, 3)
            self._cloud.draw(scene.cloud, scale, places, scene.stretch > 1)
        if self._cloud.color_mode == "coverage":
            self._color_by("coverage")  # a view that is new may cover points that are old
        if scene.revision != before.revision:
            self._ghosts.clear()
        self._views.draw(scene.views, scale)
        self._pointer.draw(scene, scale)
        other = factor != 1 or sketch != self._sketched
        self._sketched = sketch
        if other or scene.revision != before.revision:
            self._draw_path()
        if other:
            self._draw_keyframes(self._gizmos.active)
        if scene.revision != before.revision:
            self._marks.clear()
        if self._mesh is not None and (scene.revision != before.revision or factor != 1):
            self.mesh_shown = False
            self._show_mesh(None, np.eye(3))
        new_place = not before.views or not scene.views or before.views[0] is not scene.views[0]
        elsewhere = new_place and before.name != scene.name
        self._framing.follow(scene, scale, factor, elsewhere=elsewhere)
        self._clear_the_eye()
        self._follow_live()
        self.emit(Drawn(scene.revision, self._cloud.shown, self._cloud.notice))

    def _show_mesh(self, glb: bytes | None, to_world: np.ndarray) -> None:
        with self._server.atomic():
            if self._mesh is not None:
                self._mesh.remove()
                self._mesh = None
            if glb is not None:
                size = float(np.cbrt(np.linalg.det(to_world)))
                self._mesh = self._server.scene.add_glb(
                    "/mesh", glb, scale=size * self._scale, wxyz=wxyz(to_world / size)
                )
            self._cloud.show(glb is None)

    def _color_by(self, mode: ColorMode) -> None:
        if mode == "coverage":
            self._cloud.covered = coverage(self._scene).colors().cpu().numpy()
        self._cloud.color_by(mode)

    def _draw_path(self) -> None:
        plan = None if self._sketched else self._plan
        reach = 0 if plan is None else len(plan)
        if plan is not None and len(self._scene.cloud) > 0:
            reach = reach_along(self._scene, plan)
        self._plan_drawing.draw(plan, self._scale, reach)

    def _draw_keyframes(self, active: int) -> None:
        self._gizmos.draw(() if self._sketched else self._keyframes, self._scale, active)

    def _set_renderer(self, software: bool) -> None:
        self._software = software
        self._cloud.renderer(software)
        self.emit(Drawn(self._scene.revision, self._cloud.shown, self._cloud.notice))

    def _show_plan(self, plan: Trajectory | None, keyframes: tuple[Cameras, ...] | None) -> None:
        self._plan = plan
        self._draw_path()
        if keyframes is not None and keyframes != self._keyframes:
            self._keyframes = keyframes
            self._draw_keyframes(len(keyframes) - 1)

    def _keyframes_changed(self, active: int) -> None:
        self._draw_keyframes(active)
        self._clear_the_eye()
        self.emit(KeyframesChanged(self._keyframes, active))

    # ---- the camera and what it looks at ---------------------------------------------------------

    def _fly_to(self, camera: Cameras) -> None:
        self._framing.stop()
        if (client := self._client()) is not None:
            seconds = 0.0 if self.still else FLIGHT_SECONDS
            self._motion.fly(client, camera, self._scale, seconds)

    def _play(self, trajectory: Trajectory) -> None:
        self._framing.stop()
        if (client := self._client()) is not None:
            self._motion.play(client, trajectory, self._scale)

    def _client(self) -> viser.ClientHandle | None:
        """The client that moved last: with two tabs, the one in use."""
        clients = self._server.get_clients()
        return clients.get(self._last_client) or (clients[max(clients)] if clients else None)

    def _clear_the_eye(self) -> None:
        if (client := self._client()) is not None:
            pose, fov = aim_of(client)
            self._views.make_way(pose, fov)
            self._gizmos.hide_near(pose[:3, 3])

    # ---- the live view ---------------------------------------------------------------------------

    def _follow_live(self) -> None:
        """The camera or the scene has changed: want the picture of this place, or none."""
        clients, scene = self._server.get_clients(), self._scene
        client = next(iter(clients.values())) if len(clients) == 1 else None
        some = bool(scene.views) or len(scene.cloud) > 0
        if client is None or not (self.live and some) or self._sketched:
            self._live.want(None)
            self._uncover()
            return
        # Where each drawn frame of the cloud costs a second, small pictures show the way instead.
        small = self._software or self._motion.moving
        place = Place(scene, aim_of(client), size_of(client), self._scale, time.monotonic(), small)
        if place.same(self._live.wanted):
            return
        if not small:
            self._uncover()
        self._live.want(place)

    def _show_live(self, picture: LivePicture) -> None:
        clients, wanted = self._server.get_clients(), self._live.wanted
        if wanted is None or len(clients) != 1:
            return
        if picture.place is not wanted and not (picture.moving and wanted.in_motion):
            return
        key, client = next(iter(clients.items()))
        client.scene.set_background_image(
            picture.color, "jpeg", jpeg_quality=88, depth=picture.depth
        )
        client.flush()
        if self._covered != key:
            self._covered = key
            self._cloud_root.visible = False
        if not picture.moving:
            self.live_unknown = picture.unknown
            self.emit(LiveShown(picture.unknown, picture.full, picture.seconds))

    def _uncover(self) -> None:
        """The cloud again, without the live view."""
        if self._covered is None:
            return
        client = self._server.get_clients().get(self._covered)
        self._covered, self.live_unknown = None, None
        self._cloud_root.visible = True
        if client is not None:
            client.scene.set_background_image(DARK)

    # ---- what viser tells, in viser's threads: into the inbox ------------------------------------

    def _on_connect(self, client: viser.ClientHandle) -> None:
        client.camera.on_update(
            lambda camera: self._post(lambda: self._camera_moved(client, time.monotonic()))
        )
        self._post(lambda: self._camera_moved(client, time.monotonic()))

    def _on_click(self, event: viser.SceneClickEvent) -> None:
        self._post(lambda: self._clicked(event))

    def _on_rect(self, event: viser.SceneRectSelectEvent) -> None:
        self._post(lambda: self._pointer.box(event))

    def _on_gizmo(self, index: int, quaternion: np.ndarray, at: np.ndarray, end: bool) -> None:
        self._post(lambda: self._gizmo_moved(index, quaternion, at, end))

    # ---- the same, in the viewport's thread ------------------------------------------------------

    def _camera_moved(self, client: viser.ClientHandle, moment: float) -> None:
        if client.client_id not in self._server.get_clients():
            return
        pose, fov = aim_of(client)
        if not self._motion.moving:
            self._last_client = client.client_id
        if self._recorder.on and client is self._client():
            seconds = self._recorder.add(moment, (pose, fov))
            if moment - self._recording_told_at > 0.5:
                self._recording_told_at = moment
                self.emit(Recording(seconds))
        self._clear_the_eye()
        self._follow_live()
        if client is self._client():
            self._rests_at = time.monotonic() + REST
        if moment - self._camera_told_at > CAMERA_EVENTS:
            self._camera_told_at = moment
            self.emit(CameraMoved(point_of(pose[:3, 3] / self._scale), point_of(pose[:3, 2]), fov))

    def _clicked(self, event: viser.SceneClickEvent) -> None:
        # viser reports a click on a frustum as a click on the scene, too
        if time.monotonic() - self._view_clicked_at > 0.3:
            self._pointer.click(event)

    def _view_clicked(self, index: int) -> None:
        self._view_clicked_at = time.monotonic()
        if index < len(self._scene.views):
            self._fly_to(self._scene.views[index].cameras)
            self.emit(ViewClicked(index))

    def _ghost_clicked(self, index: int) -> None:
        self._view_clicked_at = time.monotonic()
        self.emit(GhostClicked(index))

    def _keyframe_clicked(self, index: int) -> None:
        self._view_clicked_at = time.monotonic()
        self._gizmos.draw(self._keyframes, self._scale, index)
        self._clear_the_eye()

    def _gizmo_moved(self, index: int, quaternion: np.ndarray, at: np.ndarray, end: bool) -> None:
        if self._sketched or not 0 <= index < len(self._keyframes):
            return
        old = self._keyframes[index]
        pose = pose_matrix(quaternion, at / self._scale)
        moved = Cameras(old.K, torch.from_numpy(pose).to(old.c2w), old.width, old.height)
        self._keyframes = (*self._keyframes[:index], moved, *self._keyframes[index + 1 :])
        self._gizmos.follow(index, moved, self._scale)
        if end or time.monotonic() - self._keyframe_told_at > CAMERA_EVENTS:
            self._keyframe_told_at = time.monotonic()
            self.emit(KeyframesChanged(self._keyframes, index, settled=end))


def size_of(client: viser.ClientHandle) -> tuple[int, int]:
    """Width and height of a client's stage in px; a common shape before it has said so."""
    width, height = client.camera.image_width, client.camera.image_height
    return (width, height) if width > 0 and height > 0 else (640, 480)
