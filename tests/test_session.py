"""Jobs, the shared worker, sessions and their ends; the whole chain with an instant generator."""

import gc
import os
import re
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import InstantGenerator, room_capture
from ui.session.config import bundled_examples
from ui.session.opening import sketch_of
from ui.session.preview import along, beyond_reach, describe, frames_inside
from ui.session.retention import RetentionPolicy, tidy
from ui.session.sessions import (
    Example,
    GeneratorChoice,
    Job,
    Session,
    Sessions,
    SessionsConfig,
    Worker,
)
from ui.viewport.events import Selected
from worldstereo import exports
from worldstereo.cameras import Cameras, look_at
from worldstereo.errors import Cancelled, InputRefused, WorldBusy, WorldStereoError
from worldstereo.inputs import LOCAL
from worldstereo.project import Project, packed, save_world, state_of
from worldstereo.scene import PointCloud, Scene
from worldstereo.trajectory import Trajectory
from worldstereo.world import World, next_best_views, start

SECONDS = 60.0


class Gate(InstantGenerator):
    """Makes one frame each time it is let to."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.reached = threading.Semaphore(0)

    def __call__(self, request, on_step=lambda *step: None):
        for frame in super().__call__(request, on_step):
            self.reached.release()
            assert self.go.acquire(timeout=SECONDS)
            yield frame


class Slow(InstantGenerator):
    """Remembers a given view each time it is let to."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.reached = threading.Semaphore(0)

    def encode(self, color):
        self.reached.release()
        assert self.go.acquire(timeout=SECONDS)
        return super().encode(color)


def config(tmp_path: Path | None = None, generator=None, **rest) -> SessionsConfig:
    made = generator or InstantGenerator()
    choice = GeneratorChoice("instant", "Instant", "", made.limits, lambda: made)
    off = GeneratorChoice("off", "Off", "", None, lambda: made, why_not="No weights found here.")
    return SessionsConfig(
        generator="instant",
        generators=(choice, off),
        examples=(),
        max_points=50_000,
        projects=tmp_path,
        read=lambda path, name: room_capture(2),
        **rest,
    )


@pytest.fixture
def opened(tmp_path):
    """Sessions with one open world of the two-wall room."""
    sessions = Sessions(config(tmp_path))
    session = sessions.create()
    session.open(tmp_path / "room.zip", "room.zip").result(SECONDS)
    yield sessions, session
    sessions.close_all()


def path_of(session: Session, frames: int = 3) -> Trajectory:
    start = session.world.scene.views[0].cameras
    return Trajectory.preset("truck", start, frames=frames, distance=3.0, up=session.world.scene.up)


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Waits for what another thread is about to do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


# ---- jobs ----------------------------------------------------------------------------------------


def run(job: Job) -> Job:
    thread = threading.Thread(target=job.run)
    thread.start()
    thread.join(SECONDS)
    return job


def test_a_job_returns_what_its_work_returned_and_reports_on_the_way():
    def work(job: Job) -> str:
        for step in range(4):
            job.on_step(step, 4, f"part {step + 1}")
            job.add_frame(np.zeros((5, 7, 3), np.uint8))
        return "result"

    states = []
    job = run(Job("explore", work, lambda job: states.append(job.state)))
    assert job.result() == "result"
    assert states == ["running", "done"]
    assert len(job.frames) == 4
    assert list(job)[-1].message == "part 4"


@pytest.mark.parametrize("error", [InputRefused("room.zip: is empty."), ZeroDivisionError("x")])
def test_a_job_raises_what_its_work_raised(error, caplog):
    def work(job: Job) -> None:
        raise error

    job = run(Job("open", work))
    assert job.state == "failed" and job.over
    with pytest.raises(type(error)) as raised:
        job.result()
    assert raised.value is error
    # bugs go to the log with their traceback, what is written for people does not
    assert ("ZeroDivisionError" in caplog.text) == isinstance(error, ZeroDivisionError)


def test_cancel_stops_at_the_next_step():
    steps = []

    def work(job: Job) -> None:
        for step in range(7):
            job.on_step(step, 7, "")
            steps.append(step)
            if step == 2:
                job.cancel()

    job = run(Job("explore", work))
    assert steps == [0, 1, 2]
    assert job.state == "cancelled"
    with pytest.raises(Cancelled, match="world is unchanged"):
        job.result()


def test_a_job_that_waits_is_cancelled_at_once_and_never_runs():
    ran = []
    job = Job("explore", lambda job: ran.append(1))
    job.cancel()
    assert job.over
    run(job)
    assert ran == [] and job.state == "cancelled"


def test_a_result_that_is_not_there_in_time_is_a_timeout():
    with pytest.raises(TimeoutError, match="still waiting"):
        Job("open", lambda job: None).result(timeout=0.01)


def test_time_left_follows_the_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("ui.session.jobs.time.monotonic", lambda: now[0])
    job = Job("explore", lambda job: None)
    assert job.begin()
    job.on_step(0, 5, "")
    assert job.progress.seconds_left is None
    now[0] += 4
    job.on_step(2, 5, "")  # 2 s a step, 3 to go
    assert job.progress.seconds_left == pytest.approx(6)
    now[0] += 1
    assert job.progress.seconds_left == pytest.approx(5)
    job.on_step(0, 3, "another phase")
    assert job.progress.seconds_left is None
    job.on_step(0, 1000, "a long one")
    now[0] += 1
    job.on_step(60, 1000, "a quick beginning says nothing of the rest")
    assert job.progress.seconds_left is None
    now[0] += 3
    job.on_step(80, 1000, "")
    assert job.progress.seconds_left == pytest.approx(4 / 80 * 920)


def test_two_tabs_follow_one_job_to_its_end():
    go = threading.Event()

    def work(job: Job) -> None:
        job.on_step(1, 2, "half")
        assert go.wait(SECONDS)
        job.on_step(2, 2, "all")

    job = Job("explore", work)
    ends: list = []
    tabs = [threading.Thread(target=lambda: ends.append(list(job)[-1])) for _ in range(2)]
    worker = threading.Thread(target=job.run)
    for thread in (*tabs, worker):
        thread.start()
    until(lambda: job.progress.message == "half")
    go.set()
    for thread in (*tabs, worker):
        thread.join(SECONDS)
    assert [end.message for end in ends] == ["all", "all"]


# ---- the worker ----------------------------------------------------------------------------------


def test_sessions_take_turns_however_many_jobs_one_of_them_asks_for():
    worker, order = Worker(), []
    gate, held = threading.Event(), threading.Event()

    def hold(job: Job) -> None:
        held.set()
        assert gate.wait(SECONDS)

    first = Job("explore", hold)
    worker.submit("a", first)
    assert held.wait(SECONDS)
    jobs = []
    for owner, name in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1")):
        job = Job("explore", lambda job, name=name: order.append(name))
        jobs.append(job)
        worker.submit(owner, job)
    assert worker.waiting == 5
    gate.set()
    for job in jobs:
        job.result(SECONDS)
    worker.close()
    assert order == ["a1", "b1", "c1", "a2", "a3"]


def test_two_devices_never_run_two_jobs_of_one_session():
    worker, running, most = Worker(threads=2), [0], [0]
    lock = threading.Lock()

    def work(job: Job) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)
        with lock:
            running[0] -= 1

    jobs = [Job("explore", work) for _ in range(5)]
    for job in jobs:
        worker.submit("a", job)
    for job in jobs:
        job.result(SECONDS)
    worker.close()
    assert most[0] == 1


def test_a_closed_worker_cancels_what_waits_and_takes_no_more():
    worker = Worker()
    gate, held = threading.Event(), threading.Event()

    def hold(job: Job) -> None:
        held.set()
        assert gate.wait(SECONDS)

    worker.submit("a", Job("explore", hold))
    assert held.wait(SECONDS)
    waiting = Job("explore", lambda job: None)
    worker.submit("a", waiting)
    closing = threading.Thread(target=worker.close)
    closing.start()
    with pytest.raises(Cancelled):
        waiting.result(SECONDS)
    gate.set()
    closing.join(SECONDS)
    assert not closing.is_alive()
    with pytest.raises(WorldStereoError, match="shutting down"):
        worker.submit("a", Job("explore", lambda job: None))


# ---- one session ---------------------------------------------------------------------------------


def test_the_chain_from_a_file_to_new_views_and_back(opened):
    sessions, session = opened
    assert session.world.scene.name == "room" and len(session.world.scene.views) == 2
    before = session.world.scene
    job = session.explore(path_of(session), seed=3)
    clip = job.result(SECONDS)
    assert len(clip) == 3 and len(session.world.scene.views) == 5
    assert [frame.shape for frame in job.frames] == [(64, 80, 3)] * 3
    assert {int(value) for value in np.unique(job.frames[0])} == {128}
    assert session.can_undo and session.undo()
    assert len(session.world.scene.views) == len(before.views)
    assert not session.can_undo  # nothing would be left on the viewport
    assert not session.undo()
    assert session.redo() and len(session.world.scene.views) == 5
    assert session.viewport.settle()
    assert session.viewport.stats["points"] == len(session.world.scene.cloud)


def test_a_capture_is_seen_as_it_was_given_until_its_world_is_ready(tmp_path):
    slow = Slow()
    sessions = Sessions(config(tmp_path, slow))
    session, capture = sessions.create(), room_capture(2)
    stage = session.viewport

    def opening() -> Job:
        job = session.open(tmp_path / "room.zip", "room.zip")
        assert slow.reached.acquire(timeout=SECONDS) and stage.settle()
        return job

    job, empty = opening(), session.world.scene
    sketch = session.loader.sketch
    assert sketch is not None and session.shown is sketch
    assert len(empty.views) == 0 and session.planned.path is None  # the world is what it was
    assert stage.stats["revision"] == sketch.revision < 0
    assert stage.stats["points"] == len(sketch.cloud) > 1000
    for i, view in enumerate(capture.views):  # every point lies on the depth that was given
        mine = sketch.cloud.points[sketch.cloud.source == i]
        local = (mine - view.cameras.c2w[:3, 3]) @ view.cameras.c2w[:3, :3]
        pixel = local @ view.cameras.K.T / local[:, 2:]
        column, row = pixel[:, 0].floor().long(), pixel[:, 1].floor().long()
        torch.testing.assert_close(view.depth[0, row, column], local[:, 2], rtol=1e-4, atol=0)
    job.cancel()
    slow.go.release()
    with pytest.raises(Cancelled):
        job.result(SECONDS)
    assert session.loader.sketch is None and session.shown is empty and stage.settle()
    assert stage.stats["points"] == 0

    job = opening()
    for change in (lambda: session.rescale(2.0), lambda: session.set_up([0, 0, 1.0])):
        with pytest.raises(WorldBusy, match="being prepared"):
            change()
    for _ in capture.views:
        slow.go.release()
    job.result(SECONDS)
    assert not session.preparing
    assert session.loader.sketch is None and stage.settle()
    assert stage.stats["revision"] == session.world.scene.revision
    assert stage.stats["points"] == len(session.world.scene.cloud)
    sessions.close_all()


@pytest.mark.parametrize("points", [0, 51])
def test_photos_without_depth_show_where_they_were_taken_and_the_points_they_came_with(points):
    capture = room_capture(3)
    views = tuple(replace(view, depth=torch.zeros_like(view.depth)) for view in capture.views)
    cloud = PointCloud.of(torch.rand(points, 3) + 2) if points else None
    sketch = sketch_of(replace(capture, views=views, cloud=cloud))
    assert len(sketch.views) == 3 and len(sketch.cloud) == points
    assert sketch.unit > 0 and sketch.revision < 0


def test_cancelling_between_frames_leaves_the_world_as_it_was(tmp_path):
    gate = Gate()
    sessions = Sessions(config(tmp_path, gate))
    session = sessions.create()
    session.open(tmp_path / "room", "room").result(SECONDS)
    before = session.world.scene
    job = session.explore(path_of(session))
    assert gate.reached.acquire(timeout=SECONDS)
    gate.go.release()
    assert gate.reached.acquire(timeout=SECONDS)
    until(lambda: len(job.frames) == 1)
    job.cancel()
    gate.go.release()
    with pytest.raises(Cancelled):
        job.result(SECONDS)
    assert session.world.scene is before
    assert len(job.frames) <= 2  # what was made is still offered
    assert not session.world.busy
    sessions.close_all()


def test_one_job_at_a_time_in_a_session_and_the_page_is_told(tmp_path):
    gate = Gate()
    sessions = Sessions(config(tmp_path, gate))
    session = sessions.create()
    session.open(tmp_path / "room", "room").result(SECONDS)
    states: list[str] = []
    session.viewport.listen(lambda m: states.append(m["state"]) if m["kind"] == "job" else None)
    job = session.explore(path_of(session, frames=1))
    assert gate.reached.acquire(timeout=SECONDS)
    for refused in (
        lambda: session.explore(path_of(session)),
        lambda: session.open(tmp_path, "x"),
        lambda: session.undo() or session.rescale(2.0),
    ):
        with pytest.raises(WorldBusy):
            refused()
    gate.go.release()
    job.result(SECONDS)
    assert states[:2] == ["running", "done"]
    sessions.close_all()


def test_generators_that_cannot_run_say_why(opened):
    sessions, session = opened
    with pytest.raises(WorldStereoError, match="No weights found here"):
        session.explore(path_of(session), generator="off")
    with pytest.raises(WorldStereoError, match="no generator named 'nope'"):
        session.explore(path_of(session), generator="nope")
    with pytest.raises(WorldStereoError, match="no example named 'moon'"):
        session.example("moon")
    assert not session.busy


def test_the_estimate_follows_what_was_measured(opened):
    sessions, session = opened
    guess = session.estimate("instant", 10, 640, 480)
    assert guess == pytest.approx(10 * InstantGenerator.limits.seconds_per_frame)
    sessions.shared.pace["instant"] = 2.0 / (640 * 480)
    assert session.estimate("instant", 10, 320, 240) == pytest.approx(10 * 2.0 / 4)
    assert session.estimate("off", 10, 640, 480) is None


def test_boxed_points_are_deleted_once_and_can_come_back(opened):
    _, session = opened
    count = len(session.world.scene.cloud)
    rows = np.arange(0, 100, 7)
    session._on_event(Selected(rows, session.world.scene.revision))
    assert session.selected == len(rows)
    assert session.delete_selection() == len(rows)
    assert len(session.world.scene.cloud) == count - len(rows)
    assert session.selected == 0 and session.delete_selection() == 0
    assert session.undo() and len(session.world.scene.cloud) == count


def test_a_selection_of_another_scene_is_not_used(opened):
    _, session = opened
    session._on_event(Selected(np.arange(5), session.world.scene.revision + 1))
    assert session.selected == 0 and session.delete_selection() == 0


def test_up_and_scale_are_steps_that_can_be_undone(opened):
    _, session = opened
    session.set_up((0.0, 0.0, -2.0))
    torch.testing.assert_close(session.world.scene.up, torch.tensor([0.0, 0.0, -1.0]))
    before = session.world.scene.metres_per_unit or 1.0
    session.rescale(2.5)
    assert session.world.scene.metres_per_unit == pytest.approx(2.5 * before)
    assert session.undo() and session.undo()
    torch.testing.assert_close(session.world.scene.up, torch.tensor([0.0, -1.0, 0.0]))
    with pytest.raises(ValueError, match="3 numbers"):
        session.set_up((1.0, 0.0))
    with pytest.raises(WorldStereoError, match="not connected"):
        session.set_up("camera")


def test_exports_are_of_the_published_scene(opened):
    _, session = opened
    assert exports.export(session.world.scene, "ply").startswith(b"ply")
    assert exports.file_name(session.world.scene, "ply").endswith(".ply")


# ---- previews ------------------------------------------------------------------------------------


def test_the_draft_shows_the_cloud_and_says_how_much_is_unknown(opened):
    _, session = opened
    with pytest.raises(WorldStereoError, match="no path yet"):
        session.preview(0)
    plan = path_of(session)
    session.set_plan(plan)
    draft = session.preview(0)
    assert draft.color.shape == (64, 80, 3) and draft.color.dtype == np.uint8
    assert draft.known.shape == (64, 80) and not draft.final
    assert draft.unknown == pytest.approx(1 - draft.known.mean())
    seen = session.world.scene.views[0].color_u8.permute(1, 2, 0).numpy()
    off = np.abs(draft.color.astype(int) - seen)[draft.known]
    assert np.median(off) < 20  # the first frame stands where the first view was taken
    assert session.preview(99).unknown >= 0  # a slider of a longer path: the last frame


def test_the_final_preview_is_the_frame_the_generator_is_shown(opened):
    sessions, session = opened
    plan = path_of(session)
    session.set_plan(plan)
    final = session.preview(1, final=True)
    assert final.final and final.color.shape == (64, 80, 3)
    guide = session._previewed.guide
    shown = []
    made = sessions.shared.generator("instant")
    call = type(made).__call__

    def spy(self, request, on_step):
        shown.append(request.guide)
        return call(self, request, on_step)

    type(made).__call__ = spy
    try:
        session.explore(plan).result(SECONDS)
    finally:
        type(made).__call__ = call
    assert shown == [guide]


def wall_cloud(z: float, step: float = 0.02) -> PointCloud:
    grid = torch.stack(
        torch.meshgrid(torch.arange(-1, 1, step), torch.arange(-1, 1, step), indexing="ij"), -1
    ).reshape(-1, 2)
    points = torch.cat([grid, torch.full((len(grid), 1), z)], dim=1)
    return PointCloud.of(points, radii=torch.full((len(points),), step / 2))


def straight(z: list[float]) -> Trajectory:
    up = torch.tensor([0.0, -1.0, 0.0])
    poses = [look_at(torch.tensor([0.1, 0.05, d]), torch.tensor([0.1, 0.05, d + 1]), up) for d in z]
    K = torch.tensor([[50.0, 0, 32], [0, 50.0, 24], [0, 0, 1]])
    return Trajectory(Cameras(K.expand(len(z), 3, 3).clone(), torch.stack(poses), 64, 48))


def test_a_path_through_a_wall_is_warned_about_where_it_happens():
    path = straight([0.0, 0.5, 1.5, 2.0, 2.5])
    assert frames_inside(wall_cloud(1.0), path, unit=2.0) == [2]  # on the way to the third frame
    assert frames_inside(wall_cloud(3.0), path, unit=2.0) == []
    assert frames_inside(PointCloud.of(torch.zeros(0, 3)), path, unit=2.0) == []
    two = wall_cloud(1.0).points[:2]  # a floater or two are no wall
    assert frames_inside(PointCloud.of(two * 0.001 + path.cameras.position[1]), path, 2.0) == []


def test_a_path_that_turns_away_is_said_to_lead_beyond_what_is_known():
    turns = torch.linspace(0, 1.8, 7)  # radians; the wall fills the picture at first
    c2w = torch.eye(4).repeat(7, 1, 1)
    c2w[:, 0, 0] = c2w[:, 2, 2] = turns.cos()
    c2w[:, 0, 2], c2w[:, 2, 0] = turns.sin(), -turns.sin()
    K = torch.tensor([[80.0, 0.0, 40.0], [0.0, 80.0, 30.0], [0.0, 0.0, 1.0]])
    path = Trajectory(Cameras(K.expand(7, 3, 3).clone(), c2w, 80, 60))
    x, y = torch.meshgrid(torch.linspace(-1, 1, 300), torch.linspace(-1, 1, 300), indexing="ij")
    wall = torch.stack([x.flatten(), y.flatten(), torch.ones(x.numel())], 1)
    scene = Scene(cloud=PointCloud.of(wall), unit=1.0)
    (line,) = beyond_reach(scene, path)
    assert line.startswith("Beyond view ") and "of 7" in line and "not reach" in line
    assert beyond_reach(scene, Trajectory(path.cameras[:1])) == ()
    assert beyond_reach(Scene(), path) == ()


def test_warnings_count_from_one_and_stay_short():
    assert describe([]) == ()
    assert describe([2]) == ("View 3 passes through a surface. Shorten or turn the path.",)
    (line,) = describe([0, 1, 2, 7, 9, 10, 12])
    assert line.startswith("Views 1 to 3, 8, 10 to 11 and later pass through")


def test_samples_along_a_path_are_close_together_and_know_their_frame():
    path = np.array([[0.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [1.0, 2.0, 0]])
    samples, frames = along(path, step=0.13)
    assert np.linalg.norm(np.diff(samples, axis=0), axis=1).max() <= 0.13 + 1e-9
    for frame in (1, 3):
        np.testing.assert_allclose(samples[frames == frame][-1], path[frame])
    assert set(frames) == {0, 1, 2, 3}


# ---- saving and coming back ----------------------------------------------------------------------


def test_a_world_survives_a_restart_of_the_app(tmp_path):
    sessions = Sessions(config(tmp_path))
    session = sessions.create()
    session.open(tmp_path / "x", "x").result(SECONDS)
    session.set_plan(path_of(session))
    session.explore(session.planned.path).result(SECONDS)
    assert session.saving.state == "saved"
    token, scene = session.token, session.world.scene
    sessions.close_all()
    again = Sessions(config(tmp_path))
    assert again.viewport(token) is None  # the proxy never opens a world
    back = again.get(token)
    assert back is not None and back.token == token
    torch.testing.assert_close(back.world.scene.cloud.points, scene.cloud.points)
    assert len(back.world.scene.views) == len(scene.views)
    torch.testing.assert_close(back.planned.path.cameras.c2w, path_of(back).cameras.c2w)
    assert again.get(token) is back
    again.close_all()


def test_quick_steps_are_saved_too(opened):
    sessions, session = opened
    session.rescale(3.0)
    until(lambda: session.saving.state == "saved")
    token = session.token
    sessions.close_all()
    again = Sessions(sessions.config)
    assert again.get(token).world.scene.metres_per_unit == pytest.approx(
        session.world.scene.metres_per_unit
    )
    again.close_all()


def test_a_save_that_fails_is_told_and_loses_nothing(opened, monkeypatch):
    _, session = opened

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ui.session.autosave.state_of", full)
    clip = session.explore(path_of(session)).result(SECONDS)
    assert len(clip) == 3 and len(session.world.scene.views) == 5
    assert session.saving.state == "not saved: No space left on device"


@pytest.mark.parametrize("limit", ["unpacked_bytes", "json_bytes"])
def test_an_uploaded_project_is_held_to_the_limits_of_uploads(opened, tmp_path, limit):
    _, session = opened
    file = tmp_path / "upload"
    file.write_bytes(packed(state_of(session.world)))
    for limits, views in (
        (replace(LOCAL, **{limit: 1000}), 0),
        (LOCAL, len(session.world.scene.views)),
    ):
        others = Sessions(config(None, limits=limits))
        other = others.create()
        job = other.open(file, "mine.world.zip")
        if views:
            job.result(SECONDS)
        else:
            with pytest.raises(InputRefused, match=r"^mine\.world\.zip: "):
                job.result(SECONDS)
        assert len(other.world.scene.views) == views
        others.close_all()


def test_a_damaged_save_opens_an_empty_world_with_a_notice(tmp_path, caplog):
    sessions = Sessions(config(tmp_path))
    session = sessions.create()
    session.open(tmp_path / "x", "x").result(SECONDS)
    token, path = session.token, session.saving.path
    sessions.close_all()
    for name in ("project.json", "previous.json"):
        if (path / name).exists():
            text = (path / name).read_bytes()
            (path / name).write_bytes(text.replace(b'"checksum":"', b'"checksum":"0'))
    again = Sessions(config(tmp_path))
    back = again.get(token)
    assert back is not None and len(back.world.scene.views) == 0
    assert "could not be read" in " ".join(back.notices)
    assert "could not be read" in caplog.text
    again.close_all()


def test_a_started_example_is_kept_and_opens_the_same_world(tmp_path, monkeypatch):
    folder = tmp_path / "room"
    folder.mkdir()
    (folder / "frames.json").write_text("{}")
    example = Example("room", "The room", folder)
    reads = []

    def read(path, name):
        reads.append(path)
        return room_capture(2)

    monkeypatch.setattr("ui.session.shared.read", read)
    settings = config(tmp_path / "projects")
    settings = SessionsConfig(**{**settings.__dict__, "examples": (example,)})
    sessions = Sessions(settings)
    first, second = sessions.create(), sessions.create()
    first.example("room").result(SECONDS)
    kept = sessions.shared.kept.place(example)
    until(lambda: (kept / "project.json").exists() and not sessions.shared.worker.waiting)
    second.example("room").result(SECONDS)
    assert len(reads) == 1
    assert first.world.scene.name == second.world.scene.name == "The room"
    torch.testing.assert_close(first.world.scene.cloud.points, second.world.scene.cloud.points)
    looked = next_best_views(second.world.scene, 3)  # what was kept beside the world, found anew
    assert looked and len(second.unseen.views) == len(looked)
    for kept_view, view in zip(second.unseen.views, looked, strict=True):
        assert torch.equal(kept_view.camera.c2w, view.camera.c2w)
        assert torch.equal(kept_view.camera.K, view.camera.K)
        assert (kept_view.gain, kept_view.unknown) == (view.gain, view.unknown)
    assert second.unseen.goal(second.world.scene) is second.unseen.views[0]
    (folder / "frames.json").write_text("{ }")  # another example under the same name
    assert sessions.shared.kept.place(example) != kept
    sessions.close_all()


def test_the_path_of_an_example_is_kept_with_its_world(tmp_path, monkeypatch):
    (tmp_path / "room").mkdir()
    example = Example("room", "The room", tmp_path / "room")
    capture = replace(
        room_capture(2),
        trajectory=Trajectory.preset("pan", room_capture(2).views[0].cameras, frames=5),
    )
    monkeypatch.setattr("ui.session.shared.read", lambda path, name: capture)
    settings = config(tmp_path / "projects")
    settings = SessionsConfig(**{**settings.__dict__, "examples": (example,)})
    sessions = Sessions(settings)
    first, second = sessions.create(), sessions.create()
    first.example("room").result(SECONDS)
    until(lambda: sessions.shared.kept.find(example) and not sessions.shared.worker.waiting)
    monkeypatch.setattr("ui.session.shared.read", None)  # it is not read again
    second.example("room").result(SECONDS)
    assert first.planned.path is not None and second.planned.path is not None
    assert torch.equal(first.planned.path.cameras.c2w, second.planned.path.cameras.c2w)
    assert second.unseen.views == ()  # nobody asked for another path
    sessions.close_all()


def test_a_first_start_compiles_in_a_second_process_and_ends_it(tmp_path):
    """Only where the first example was not started with this code before."""
    (tmp_path / "room").mkdir()
    settings = config(tmp_path / "projects")
    example = Example("room", "The room", tmp_path / "room")
    settings = SessionsConfig(**{**settings.__dict__, "examples": (example,)})
    sessions = Sessions(settings)
    sessions.shared.compile_beside(example)
    compiling = sessions.shared._compiling
    assert compiling is not None and compiling.poll() is None
    assert not sessions.shared.settled(example, timeout=0.2)
    sessions.close_all()
    assert compiling.poll() is not None
    kept = sessions.shared.kept.place(example)
    start(world := World(InstantGenerator()), room_capture(2))
    save_world(world, kept)
    again = Sessions(settings)
    again.shared.compile_beside(example)
    assert again.shared._compiling is None and again.shared.settled(example, timeout=5)
    again.close_all()


# ---- all sessions --------------------------------------------------------------------------------


def test_tokens_are_long_and_strangers_find_nothing(tmp_path):
    sessions = Sessions(config(tmp_path))
    a, b = sessions.create(), sessions.create()
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", a.token) and a.token != b.token
    assert sessions.get(a.token) is a and sessions.viewport(b.token) is b.viewport
    for wrong in (None, "", a.token[:-1], a.token + "x", "../" + a.token[3:], "A" * 43):
        assert sessions.get(wrong) is None
        assert sessions.viewport(wrong or "") is None
    assert a.token not in str(a.saving.path)
    sessions.close_all()


def test_two_sessions_see_nothing_of_each_other(opened):
    sessions, session = opened
    other = sessions.create()
    assert len(other.world.scene.views) == 0 and other.viewport.port != session.viewport.port
    assert other.viewport.settle() and other.viewport.stats["points"] == 0


def test_the_cap_is_kept_and_leaves_room_again(tmp_path):
    sessions = Sessions(config(tmp_path, max_sessions=2))
    first, _ = sessions.create(), sessions.create()
    with pytest.raises(WorldStereoError, match="All 2 worlds"):
        sessions.create()
    sessions.close(first.token)
    sessions.create()
    assert sessions.stats["sessions"] == 2
    sessions.close_all()
    assert sessions.stats["sessions"] == 0


def test_sessions_without_tabs_end_and_those_with_tabs_or_work_stay(tmp_path):
    gate = Gate()
    sessions = Sessions(config(tmp_path, gate, idle_seconds=100.0))
    idle, tabbed, working = (sessions.create() for _ in range(3))
    working.open(tmp_path, "x").result(SECONDS)
    job = working.explore(path_of(working, frames=1))
    assert gate.reached.acquire(timeout=SECONDS)
    sessions.sockets.opened(tabbed.token)
    assert sessions.reap() == 0  # all were here a moment ago
    for session in (idle, tabbed, working):
        session.touched -= 1000
    assert sessions.reap() == 1
    assert sessions.viewport(idle.token) is None
    assert sessions.viewport(tabbed.token) is not None
    assert sessions.viewport(working.token) is not None
    gate.go.release()
    job.result(SECONDS)
    sessions.close_all()


def test_a_closed_world_leaves_memory_though_no_other_job_comes(tmp_path):
    sessions = Sessions(config(tmp_path, idle_seconds=1.0))  # the reaper looks four times as often
    try:
        session = sessions.create()
        session.open(tmp_path / "room.zip", "room.zip").result(SECONDS)
        session.explore(path_of(session)).result(SECONDS)
        kept = [weakref.ref(one) for one in (session.world, session.viewport, session.job)]
        token = session.token
        del session
        assert all(one() is not None for one in kept)
        sessions.close(token)
        until(lambda: all(one() is None for one in kept))
    finally:
        sessions.close_all()


def test_a_job_that_failed_holds_nothing_of_what_it_was_making():
    class Large:
        pass

    def work(job: Job) -> None:
        large = Large()
        made.append(weakref.ref(large))
        try:
            int("no number")
        except ValueError as error:
            raise WorldStereoError("It cannot be done.") from error

    made: list[weakref.ref] = []
    job = run(Job("explore", work))
    gc.collect()
    assert job.state == "failed" and made[0]() is None
    with pytest.raises(WorldStereoError, match="cannot be done"):
        job.result()


def test_closing_cancels_the_job_then_stops_the_stage(tmp_path):
    gate = Gate()
    sessions = Sessions(config(tmp_path, gate))
    session = sessions.create()
    session.open(tmp_path, "x").result(SECONDS)
    job = session.explore(path_of(session))
    assert gate.reached.acquire(timeout=SECONDS)
    threading.Timer(0.05, gate.go.release).start()
    sessions.close(session.token)
    assert job.state == "cancelled"
    assert not session.viewport._thread.is_alive()
    with pytest.raises(WorldStereoError, match="closed"):
        session.open(tmp_path, "x")
    session.close()  # twice is once
    sessions.close_all()


def test_nothing_outlives_the_app(tmp_path):
    before = set(threading.enumerate())
    sessions = Sessions(config(tmp_path))
    for _ in range(3):
        sessions.create()
    sessions.close_all()
    ours = ("viewport", "generator", "reaper")
    until(
        lambda: (
            not [t for t in threading.enumerate() if t.name.startswith(ours) and t not in before]
        )
    )


def test_bundled_examples_have_a_picture_and_a_credit():
    found = bundled_examples()
    assert [example.key for example in found] == sorted(example.key for example in found)
    for example in found:
        assert example.thumbnail is not None and example.thumbnail.is_file()
        assert example.credit and example.label[0].isupper()
    assert bundled_examples(Path("nowhere")) == ()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_sessions": 0}, "max_sessions"),
        ({"workers": 0}, "workers"),
        ({"idle_seconds": 0.0}, "idle_seconds"),
        ({"generator": "moon"}, "one of warp"),
    ],
)
def test_a_config_that_cannot_be_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        SessionsConfig(**wrong)


def test_the_first_visitor_finds_the_world_that_was_prepared(tmp_path):
    """Opened ahead, in nobody's name: no file of it before somebody has it, and only for one."""
    ball = torch.nn.functional.normalize(torch.randn(97, 3), dim=1)
    lines = "\n".join(" ".join(f"{v:.4f}" for v in p) for p in ball.tolist())
    header = "ply\nformat ascii 1.0\nelement vertex 97\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    (tmp_path / "ball.ply").write_text(header + lines + "\n")
    example = Example("ball", "Ball", tmp_path / "ball.ply")
    sessions = Sessions(replace(config(tmp_path / "projects"), examples=(example,)))
    try:
        assert sessions.stats["sessions"] == 0
        prepared = sessions.prepare()
        assert prepared is not None and prepared.job is not None
        assert prepared.job.result(SECONDS) is prepared.world.scene
        assert sessions.viewport(prepared.token) is None and sessions.stats["sessions"] == 0
        assert prepared.saving.path is not None and not prepared.saving.path.exists()
        assert sessions.is_ahead(prepared)
        first, second = sessions.create(), sessions.create()
        assert not sessions.is_ahead(prepared)
        assert first is prepared and len(first.world.scene.cloud) == 97
        assert second is not prepared and len(second.world.scene.cloud) == 0
        first.saving.save_unsaved()
        until(lambda: first.saving.state == "saved" and prepared.saving.path.exists())
        sessions.prepare()  # never visited: it ends with the app
    finally:
        sessions.close_all()


def test_a_world_opened_before_the_start_froze_its_objects_is_freed_when_it_is_closed(tmp_path):
    sessions = Sessions(config(tmp_path / "projects"))
    session = sessions.create()
    world, token = weakref.ref(session.world), session.token
    gc.freeze()
    try:
        del session
        sessions.close(token)
        sessions._collect()
        assert world() is None
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        sessions.close_all()


def saved_world(folder: Path, name: str, age: float, size: int = 1000) -> Path:
    path = folder / f"{name}.world"
    (path / "members").mkdir(parents=True)
    (path / "members" / "a.safetensors").write_bytes(b"x" * size)
    (path / "project.json").write_text("{}")
    stamp = 1.7e9 - age
    os.utime(path / "project.json", (stamp, stamp))
    return path


def test_old_worlds_go_and_none_in_use_goes(tmp_path):
    """By number, then by size, oldest first; open here, held elsewhere, or foreign: they stay."""
    a, b, c, d, e = (saved_world(tmp_path, name, age) for age, name in enumerate("abcde"))
    (tmp_path / "examples").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".gone-f.world" / "members").mkdir(parents=True)  # a deletion that was cut short
    with Project(d):
        assert tidy(tmp_path, RetentionPolicy(worlds=2, gigabytes=0), in_use=[e]) == [c]
    assert [p.exists() for p in (a, b, c, d, e)] == [True, True, False, True, True]
    assert not list(tmp_path.glob(".gone-*"))
    big = saved_world(tmp_path, "big", 2.5, size=5000)
    assert tidy(tmp_path, RetentionPolicy(worlds=0, gigabytes=5e-6)) == [big]
    assert tidy(tmp_path, RetentionPolicy(worlds=0, gigabytes=0)) == []
    assert set(tidy(tmp_path, RetentionPolicy(worlds=0, gigabytes=1e-9))) == {
        b,
        d,
        e,
    }  # the newest stays
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.world", "examples", "notes.txt"]
    assert "newest 2 worlds" in str(RetentionPolicy(worlds=2)) and str(
        RetentionPolicy(worlds=0, gigabytes=0)
    )


def test_a_session_keeps_its_own_world(opened, tmp_path):
    sessions, session = opened
    for age in range(45):
        saved_world(tmp_path, f"old{age:02d}", -1e9 + age)  # all of them newer than the open one
    assert sessions.tidy() >= 5
    assert session.saving.path is not None and session.saving.path.exists()
    assert len(list(tmp_path.glob("*.world"))) in (40, 41)
