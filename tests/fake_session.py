"""A session without threads, files or viser: what the page's handlers are tested against.

It is a real `World` over two turned cameras in the two-wall room; only the parts that take time or
a browser are stood in for.
"""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.conftest import room, turned_cameras
from worldstereo.cameras import Cameras
from worldstereo.errors import WorldStereoError
from worldstereo.generators import GeneratorLimits, SamplerConfig, StepRange, WarpGenerator
from worldstereo.generators.registry import GeneratorChoice
from worldstereo.scene import Clip, Origin, PointCloud, Scene, View
from worldstereo.trajectory import Trajectory

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)
    from ui.session.depth_model import DepthModel
    from ui.session.preview import PlannedPath, Unseen

WIDTH, HEIGHT = 53, 41


@contextmanager
def quietly() -> Iterator[None]:
    """Gradio leaves event loops open while it is imported and while it builds a page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()


def small_scene(*, clips: int = 1, views: int = 3) -> Scene:
    """Views of the two-wall room, a cloud of their pixels, and clips of two frames each."""
    cameras = turned_cameras(views + 2 * clips, WIDTH, HEIGHT)
    color, depth = room(cameras)
    remembered = [
        View.of(color[i], depth[i], cameras[i], frame=i, name=f"view {i}") for i in range(views)
    ]
    points, colors = [], []
    for view in remembered:
        points.append(view.cameras.unproject(view.cameras.pixel_grid(), view.depth.flatten()))
        colors.append(view.color.reshape(3, -1).T)
    made = []
    for c in range(clips):
        rows = slice(views + 2 * c, views + 2 * c + 2)
        origin = torch.full((2, 1, HEIGHT, WIDTH), int(Origin.STEREO), dtype=torch.uint8)
        origin[:, :, :, :7] = int(Origin.GLOBAL)
        origin[:, :, :5] = int(Origin.INVENTED)
        clip = Clip.of(
            color[rows],
            depth[rows],
            origin,
            torch.full((2, 1, HEIGHT, WIDTH), 0.5),
            Trajectory(cameras[rows], "test"),
            step=c + 1,
            references=(tuple(range(views)),) * 2,
        )
        made.append(clip)
        for t in range(2):
            i = views + 2 * c + t
            remembered.append(View.of(color[i], depth[i], cameras[i], step=c + 1, frame=t))
    cloud = PointCloud.of(torch.cat(points), torch.cat(colors))
    return Scene(1 + clips, "room", tuple(remembered), cloud, tuple(made), unit=4.0)


class FakeJob:
    """A job that has ended, or ends after the given reports."""

    def __init__(self, kind: str, reports: int = 2, error: Exception | None = None) -> None:
        self.kind, self.error, self.reports = kind, error, reports
        self.frames: list[np.ndarray] = []
        self.state, self.cancelled = "running", False
        self.report: Any = None

    @property
    def over(self) -> bool:
        return self.state not in ("waiting", "running")

    @property
    def progress(self) -> Any:
        return SimpleNamespace(
            step=len(self.frames), total=self.reports, message="View 1 of 2", seconds_left=3.0
        )

    def cancel(self) -> None:
        self.cancelled = True

    def result(self, timeout: float | None = None) -> Any:
        if self.error is not None:
            raise self.error
        return self.report

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.reports):
            self.frames.append(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
            yield self.progress
        self.state = "failed" if self.error else "done"
        yield self.progress


class FakeViewport:
    """Remembers what it was asked to show."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.keyframes: tuple[Cameras, ...] = ()
        self.notices: tuple[str, ...] = ()
        self.playing = self.recording = self.measuring = self.selecting = False
        self.drawing, self.color_mode = "points", "photo"
        self.mesh_shown = False
        self.live, self.live_unknown = False, None

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **named: self.calls.append((name, values))

    def measure(self, on: bool) -> None:
        self.measuring = on

    def show_mesh(self, glb: bytes | None, to_world: Any = None) -> None:
        self.mesh_shown = glb is not None

    def select(self, on: bool) -> None:
        self.selecting = on

    def camera(self, width: int = WIDTH, height: int = HEIGHT) -> Cameras | None:
        return turned_cameras(7, width, height)[6]

    def add_keyframe(self) -> bool:
        i = len(self.keyframes)
        self.keyframes = (*self.keyframes, turned_cameras(i + 1, WIDTH, HEIGHT)[i])
        return True

    def clear_keyframes(self) -> None:
        self.keyframes = ()

    def named(self, name: str) -> list[Any]:
        return [values for called, values in self.calls if called == name]


@dataclass(eq=False)
class FakeSession:
    """What a handler sees of a session."""

    scene: Scene = field(default_factory=small_scene)
    token: str = "token"
    next_error: Exception | None = None
    sketch: Scene | None = None

    def __post_init__(self) -> None:
        self.shared = SimpleNamespace(depth_model=DepthModel(offered=False), generators=choices())
        self.saving = SimpleNamespace(
            state="saved",
            path=None,
            save_unsaved=lambda: self.asked.append(("save_unsaved", (), {})),
        )
        self.viewport = FakeViewport()
        self.planned = PlannedPath()
        self.job: FakeJob | None = None
        self.asked: list[tuple[str, tuple, dict]] = []
        self.notices: tuple[str, ...] = ()
        self.registration: Any = None
        self.selected, self.flight, self.generator = 0, None, "warp"
        self.measured = None
        self.left_out = ()
        self.voted: tuple[Any, ...] = ()
        self.unseen = Unseen()
        self.mode, self.sampler, self.prompt = "", SamplerConfig(), ""
        self.can_undo, self.undone = True, 0

    @property
    def nbytes(self) -> int:
        return 123_456_789

    @property
    def busy(self) -> bool:
        return self.job is not None and not self.job.over

    @property
    def matchable(self) -> bool:
        return any(view.step == 0 for view in self.scene.views)

    @property
    def preparing(self) -> bool:
        return self.job is not None and not self.job.over and self.job.kind == "open"

    @property
    def shown(self) -> Scene:
        return self.sketch or self.scene

    @property
    def world(self) -> Any:
        return SimpleNamespace(
            scene=self.scene,
            registration=self.registration,
            max_points=2_000_000,
            can_redo=False,
            states=(),
            undo_steps=0,
            references=lambda camera, **_: self.voted,
        )

    @property
    def loader(self) -> Any:
        return SimpleNamespace(sketch=self.sketch)

    def set_plan(self, path: Trajectory | None, **rest: Any) -> None:
        self.planned = PlannedPath(path, **rest)

    def show_guide(self, guide: str) -> None:
        self.planned = replace(self.planned, guide=guide)

    def preview(self, frame: int, final: bool) -> Any:
        self.asked.append(("preview", (frame,), {"final": final}))
        known = np.ones((HEIGHT, WIDTH), bool)
        known[:10] = False
        color = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        return SimpleNamespace(
            color=color, known=known, unknown=float(1 - known.mean()), warnings=("Too close.",)
        )

    def pace_of(self, generator: str) -> str:
        return generator

    def estimate(self, generator: str, frames: int, width: int, height: int) -> float | None:
        return 0.5 * frames

    def _start(self, kind: str, name: str, values: tuple, named: dict) -> FakeJob:
        self.asked.append((name, values, named))
        self.job = FakeJob(kind, error=self.next_error)
        return self.job

    def explore(self, *values: Any, **named: Any) -> FakeJob:
        return self._start("explore", "explore", values, named)

    def open(self, *values: Any, **named: Any) -> FakeJob:
        return self._start("open", "open", values, named)

    def add(self, *values: Any, **named: Any) -> FakeJob:
        return self._start("add", "add", values, named)

    def view_here(self) -> FakeJob:
        return self._start("explore", "view_here", (), {})

    def example(self, *values: Any, **named: Any) -> FakeJob:
        return self._start("open", "example", values, named)

    def set_registration(self, on: bool) -> FakeJob:
        return self._start("registration", "set_registration", (on,), {})

    def undo(self) -> None:
        if self.next_error:
            raise self.next_error
        self.undone += 1

    def redo(self) -> None:
        raise WorldStereoError("Nothing to redo.")

    def rescale(self, factor: float) -> None:
        self.asked.append(("rescale", (factor,), {}))

    def set_up(self, up: Any) -> None:
        self.asked.append(("set_up", (up,), {}))

    def set_drawing(self, mode: str, by_hand: bool) -> None:
        self.asked.append(("set_drawing", (mode,), {"by_hand": by_hand}))

    def delete_selection(self) -> int:
        return 11

    def record(self, on: bool) -> Trajectory | None:
        self.viewport.recording = on
        if not on:
            self.flight = Trajectory(turned_cameras(5, WIDTH, HEIGHT), "flight")
            return self.flight
        return None

    def preview_mesh(self, on_step: Any, **options: Any) -> int:
        self.asked.append(("preview_mesh", (), options))
        on_step(1, 2, "Fusing depth")
        self.viewport.show_mesh(b"mesh")
        return 4


def choices() -> dict[str, Any]:
    warp = GeneratorChoice(
        "warp",
        "Warp",
        "Copies what the memories know.",
        GeneratorLimits(name="warp"),
        WarpGenerator,
    )
    diffusion = GeneratorChoice(
        name="diffusion",
        label="WorldStereo 2.0",
        description="Video diffusion.",
        limits=GeneratorLimits(
            name="diffusion", frame_step=4, size_multiple=16, prompt=True, steps=StepRange(1, 50, 4)
        ),
        make=WarpGenerator,
        why_not="No weights found. Start the app with --model FOLDER.",
    )
    return {"warp": warp, "diffusion": diffusion}


class FakeSessions:
    """Two examples, one session per token."""

    def __init__(self, *sessions: FakeSession) -> None:
        self.known = {session.token: session for session in sessions}
        self.generators = choices()
        self.shared = SimpleNamespace(pace={})
        self.examples = (
            SimpleNamespace(key="room", label="Room", thumbnail=None, credit="CC0"),
            SimpleNamespace(key="shelf", label="Shelf", thumbnail=None, credit="CC0"),
        )

    def get(self, token: str) -> FakeSession | None:
        return self.known.get(token)

    def create(self) -> FakeSession:
        session = FakeSession(Scene(), token=f"token{len(self.known)}")
        self.known[session.token] = session
        return session

    def viewport(self, token: str) -> None:
        return None

    def close_all(self) -> None:
        self.known.clear()
