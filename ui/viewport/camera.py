"""Moves the visitor's camera: flights to a view, paths at their own speed, recordings.

Everything here runs in the viewport's thread, except `Recorder.end`.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import viser

from worldstereo.cameras import Cameras, look_at
from worldstereo.scene import Scene
from worldstereo.trajectory import Trajectory
from worldstereo.world import default_view, pivot_distance

from .frames import COMFORT, blend_poses, camera_of, fitting_fov, pose_matrix, poses

Aim = tuple[np.ndarray, float]
"""Pose (4, 4) in the viewport and vertical field of view in radians."""

BEHIND, ABOVE = 0.35, 0.12  # of the distance to what is looked at: where a visitor begins
FAR_OFF = 1.5  # a scale that was guessed worse than this says nothing of where to stand
TELL_EVERY = 0.2  # seconds between two reports while a path is played


class Motion:
    """The move under way, if any. `step` is called about 60 times a second while there is one."""

    def __init__(self, tell_frame: Callable[[int], None]) -> None:
        self._tell_frame = tell_frame
        self._path: Callable[[float], Aim | None] | None = None
        self._began = 0.0

    @property
    def moving(self) -> bool:
        return self._path is not None

    def step(self, client: viser.ClientHandle | None) -> None:
        if self._path is None:
            return
        now = None if client is None else self._path(time.monotonic() - self._began)
        if client is None or now is None:
            self._path = None
        else:
            aim(client, now, COMFORT)

    def stop(self) -> None:
        self._path = None

    def fly(
        self, client: viser.ClientHandle, camera: Cameras, scale: float, seconds: float
    ) -> None:
        """To a single camera, straight, slow at both ends."""
        start, start_fov = aim_of(client)
        goal, goal_fov = on_stage(camera, scale), fitting_fov(camera, client.camera.aspect)

        def path(t: float) -> Aim | None:
            if t > seconds + 0.03:
                return None
            s = min(1.0, t / seconds) if seconds > 0 else 1.0
            s = s * s * (3 - 2 * s)
            return blend_poses(start, goal, s), (1 - s) * start_fov + s * goal_fov

        self._begin(path)

    def play(self, client: viser.ClientHandle, trajectory: Trajectory, scale: float) -> None:
        """A path at its own speed, smooth between its frames; tells the frame, -1 at the end."""
        stage = [on_stage(camera, scale) for camera in trajectory]
        fovs = [fitting_fov(camera, client.camera.aspect) for camera in trajectory]
        clock = trajectory.seconds.numpy()
        told = -1.0

        def path(t: float) -> Aim | None:
            nonlocal told
            if t > clock[-1] + 0.05:
                self._tell_frame(-1)
                return None
            frame = int(np.clip(np.searchsorted(clock, t, side="right") - 1, 0, len(clock) - 1))
            after = min(frame + 1, len(clock) - 1)
            span = clock[after] - clock[frame]
            s = min(1.0, (t - clock[frame]) / span) if span > 0 else 0.0
            if t - told > TELL_EVERY:
                told = t
                self._tell_frame(frame)
            pose = blend_poses(stage[frame], stage[after], s)
            return pose, (1 - s) * fovs[frame] + s * fovs[after]

        self._begin(path)

    def _begin(self, path: Callable[[float], Aim | None]) -> None:
        self._path, self._began = path, time.monotonic()


class Framing:
    """Brings every tab to a first camera, and looks after it until it has arrived.

    A turn of the viewport's up axis and a move of the camera reach a page in no fixed order, and a
    page that is just connecting hears neither: so ask again until it reports the right pose.
    """

    PATIENCE = 6.0  # seconds
    AGAIN = 0.3

    def __init__(self, server: viser.ViserServer) -> None:
        self._server = server
        self.framed = False
        """Whether there was anything yet to point a camera at."""
        self._goal: Aim | None = None
        self._up = np.array([0.0, 0.0, 1.0])
        self._reach, self._until = COMFORT, 0.0
        self._asked: dict[int, float] = {}
        self._arrived: set[int] = set()

    def set_up(self, scene: Scene) -> None:
        """Every tab orbits about the scene's own up."""
        up = scene.up.detach().cpu().double().numpy()
        self._server.scene.set_up_direction(up)
        self._server.initial_camera.up = up
        for client in self._server.get_clients().values():
            client.camera.up_direction = up

    def follow(self, scene: Scene, scale: float, factor: float, *, elsewhere: bool) -> None:
        """Another scene is drawn, `factor` times as large as the last in the viewport.

        Where that was a poor guess, or the scene is of another place, tabs start again.
        """
        if elsewhere or not self.framed or not 1 / FAR_OFF < factor < FAR_OFF:
            self.frame(scene, scale)
        elif factor != 1:
            self.carry(factor)

    def frame(self, scene: Scene, scale: float) -> None:
        """Bring every tab, and those that come later, to where a visitor begins."""
        first = first_aim(scene, scale)
        if first is None:
            return
        self.framed = True
        self._goal, self._reach = first
        self._up = scene.up.detach().cpu().double().numpy()
        self._until = time.monotonic() + self.PATIENCE
        self._asked, self._arrived = {}, set()
        (pose, fov), initial = self._goal, self._server.initial_camera
        initial.position = pose[:3, 3]
        initial.look_at = pose[:3, 3] + pose[:3, 2] * self._reach
        initial.fov = fov
        self.step(self._server.get_clients())

    def carry(self, factor: float) -> None:
        """The viewport has grown by a factor: every eye keeps its place in the world."""
        initial = self._server.initial_camera
        initial.position = np.asarray(initial.position) * factor
        initial.look_at = np.asarray(initial.look_at) * factor
        if self._goal is not None:
            self._goal[0][:3, 3] *= factor
            self._reach, self._asked, self._arrived = self._reach * factor, {}, set()
        for client in self._server.get_clients().values():
            with client.atomic():
                client.camera.position = np.asarray(client.camera.position) * factor
                client.camera.look_at = np.asarray(client.camera.look_at) * factor

    @property
    def active(self) -> bool:
        return self._goal is not None

    def stop(self) -> None:
        self._goal = None

    def step(self, clients: dict[int, viser.ClientHandle]) -> None:
        now = time.monotonic()
        if self._goal is None or now > self._until:
            self._goal = None
            return
        for key, client in clients.items():
            if key in self._arrived:
                continue
            if key in self._asked and self._close(client):
                self._arrived.add(key)
            elif now - self._asked.get(key, 0.0) > self.AGAIN:
                self._asked[key] = now
                client.camera.up_direction = self._up
                aim(client, self._goal, self._reach)

    def _close(self, client: viser.ClientHandle) -> bool:
        assert self._goal is not None
        pose, _ = aim_of(client)
        goal = self._goal[0]
        off = float(np.abs(pose[:3, 3] - goal[:3, 3]).max())
        return off < 0.02 and float(pose[:3, 2] @ goal[:3, 2]) > 0.999


class Recorder:
    """A flight, sample by sample, as the visitor's camera reports them."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, np.ndarray, float]] | None = None

    @property
    def on(self) -> bool:
        return self._samples is not None

    def begin(self) -> None:
        self._samples = []

    def add(self, moment: float, now: Aim) -> float:
        """Keep a sample; returns the seconds recorded so far."""
        samples = self._samples
        if samples is None:
            return 0.0
        samples.append((moment, *now))
        return moment - samples[0][0]

    def end(self, scale: float, fps: float) -> Trajectory | None:
        """The flight; None when it has fewer than two moments."""
        samples, self._samples = self._samples, None
        if samples is None or len(samples) < 2:
            return None
        cameras = [camera_of(pose, fov, 640, 480, scale) for _, pose, fov in samples]
        seconds = [moment - samples[0][0] for moment, _, _ in samples]
        try:
            return Trajectory.recorded(Cameras.stack(cameras), seconds, fps=fps)
        except ValueError:  # all samples at one moment
            return None


def aim_of(client: viser.ClientHandle) -> Aim:
    """Where a connected client looks."""
    camera = client.camera
    return pose_matrix(camera.wxyz, camera.position), float(camera.fov)


def aim(client: viser.ClientHandle, now: Aim, reach: float) -> None:
    """Point a client's camera; it then orbits about what lies `reach` ahead."""
    pose, fov = now
    camera = client.camera
    with client.atomic():
        camera.position = pose[:3, 3]
        camera.look_at = pose[:3, 3] + pose[:3, 2] * reach
        camera.fov = fov
    client.flush()


def on_stage(camera: Cameras, scale: float) -> np.ndarray:
    """Pose (4, 4) of a single camera of the world, in the viewport."""
    pose = poses(camera)[0].copy()
    pose[:3, 3] *= scale
    return pose


def first_aim(scene: Scene, scale: float) -> tuple[Aim, float] | None:
    """Where a visitor begins: behind and a little above the view that a first path starts from.

    Returns the aim and how far ahead the camera should orbit, in the viewport; None for an empty
    scene. Standing back, frusta and path are in sight.
    """
    if not scene.views and len(scene.cloud) == 0:
        return None
    camera = default_view(scene)
    start, reach = camera.c2w.double(), pivot_distance(scene, camera)
    target = start[:3, 3] + reach * start[:3, 2]
    up = scene.up.double()
    eye = start[:3, 3] - BEHIND * reach * start[:3, 2] + ABOVE * reach * up
    along = torch.linalg.cross(target - eye, up)
    c2w = look_at(eye, target, up if float(along.norm()) > 1e-3 * reach else -start[:3, 1])
    pose = c2w.numpy().copy()
    pose[:3, 3] *= scale
    return (pose, fitting_fov(camera, 1.6)), float((target - eye).norm()) * scale
