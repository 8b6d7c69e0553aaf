"""What went wrong between page, sessions and viewport, each through a user's door."""

import gc
import threading
import time
import weakref
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich
import torch

from tests.conftest import InstantGenerator, room_capture
from tests.fake_session import quietly
from tests.model_page import merged, text
from worldstereo.errors import InputRefused, WorldBusy, WorldStereoError
from worldstereo.generators import GenerationRequest, GeneratorLimits, StepRange
from worldstereo.inputs import LOCAL
from worldstereo.project import is_project, packed, state_of
from worldstereo.scene import Capture
from worldstereo.world import World, start

with quietly():
    from ui.inspector import agreement_picture, depth_pictures
    from ui.page.core import BUG
    from ui.page.page import Panel
    from ui.session.sessions import (
        GeneratorChoice,
        Job,
        Session,
        Sessions,
        SessionsConfig,
        Worker,
    )
    from ui.viewport.events import Selected
    from ui.viewport.viewport import Viewport

SECONDS = 180.0


class Recorded(InstantGenerator):
    """Keeps the requests it was given; every setting of the page is its business."""

    limits = GeneratorLimits(
        name="recorded",
        prompt=True,
        steps=StepRange(1, 9, 4),
        guidance=5.0,
        default_prompt="a room",
    )

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    def __call__(self, request, on_step=lambda *step: None):
        self.requests.append(request)
        return super().__call__(request, on_step)


def config(generator: Any = None, **rest: Any) -> SessionsConfig:
    made = generator or InstantGenerator()
    choice = GeneratorChoice("instant", "Instant", "", made.limits, lambda: made)
    values = {"read": lambda path, name: room_capture(2), "examples": (), "max_points": 50_000}
    return SessionsConfig(generator="instant", generators=(choice,), **(values | rest))


@contextmanager
def page_over(settings: SessionsConfig) -> Iterator[tuple[Panel, Session]]:
    """The page over real sessions, with the two-wall room open in one of them."""
    sessions = Sessions(settings)
    try:
        with quietly():
            panel = Panel(sessions)
        session = sessions.create()
        session.open(Path("room.zip"), "room.zip").result(SECONDS)
        yield panel, session
    finally:
        sessions.close_all()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def call(panel: Panel, session: Session, handler: Any, *values: Any) -> dict:
    answers = panel.guarded(handler)(session.token, *values)
    return answers if isinstance(answers, dict) else merged(answers)


def settings_of(**changes: Any) -> list[Any]:
    """`PathTab.inputs` as the page sends them."""
    values = {
        "preset": "truck", "value": 10, "start": "first", "frames": 3, "size": "320x256",
        "name": "instant", "guide": "fused",
    }  # fmt: skip
    return list((values | changes).values())


def wish_of(**changes: Any) -> list[Any]:
    """`GenerateTab.inputs` as the page sends them."""
    values = {
        "name": "instant", "size": "320x256", "seed": 7, "prompt": "a hall", "steps": 3,
        "guidance": 6.5, "negative": "fog", "mode": "", "remember": "per_frame",
    }  # fmt: skip
    return list((values | changes).values())


# ---- errors of jobs ------------------------------------------------------------------------------


class Wrong(InstantGenerator):
    error: Exception = ValueError("shapes (3, 5) and (7, 2) not aligned")

    def __call__(self, request, on_step=lambda *step: None):
        raise self.error


def test_an_internal_value_error_of_a_job_is_logged_and_the_page_says_where(caplog):
    with page_over(config(Wrong())) as (panel, session):
        call(panel, session, panel.path.on_plan, *settings_of())
        shown = call(panel, session, panel.generate.on_generate, *wish_of())
        assert BUG in text(shown[panel.message]) and "aligned" not in text(shown[panel.message])
        assert "shapes (3, 5) and (7, 2) not aligned" in caplog.text


def test_a_path_that_the_generator_cannot_make_is_said_in_its_words():
    class Short(InstantGenerator):
        limits = GeneratorLimits(name="short", min_frames=2, max_frames=3)

    with page_over(config(Short())) as (panel, session):
        call(panel, session, panel.path.on_plan, *settings_of())
        assert session.planned.path is not None
        with pytest.raises(WorldStereoError, match="at most 3 for the short generator, got 9"):
            session.explore(session.planned.path.resampled(9))
        assert session.job is not None and session.job.kind == "open"


# ---- preview and generation see the same guide ---------------------------------------------------


@pytest.mark.parametrize("guide", ["fused", "cloud"])
def test_what_the_page_previews_is_what_its_button_hands_to_the_generator(guide):
    generator = Recorded()
    with page_over(config(generator)) as (panel, session):
        call(panel, session, panel.path.on_plan, *settings_of())
        call(panel, session, panel.generate.on_guide, guide)
        shown = session.preview(1, final=True)
        previewed = session._previewed
        call(panel, session, panel.generate.on_generate, *wish_of(seed=7))
        (request,) = generator.requests
        assert previewed is not None and request.guide is previewed.guide
        assert request.guide.kind == guide and request.seed == 7
        color = (request.guide[1].color * 255 + 0.5).byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(shown.color, color)


def test_a_draft_counts_holes_and_the_final_preview_what_is_unknown():
    with page_over(config()) as (panel, session):
        call(panel, session, panel.path.on_plan, *settings_of())
        draft = call(panel, session, panel.path.on_scrub, 2)[panel.path.preview]
        final = call(panel, session, panel.path.on_rest, 2)[panel.path.preview]
        assert "% holes" in text(draft) and "unknown" not in text(draft)
        assert "% unknown" in text(final)


CONTROLS: dict[str, tuple[str, Any, Callable[[GenerationRequest], Any], Any]] = {
    "preset": ("path", "dolly", lambda r: r.trajectory.name, "dolly"),
    "value": ("path", 25, lambda r: float(r.trajectory.cameras.position[-1].norm()), None),
    "start": ("path", "newest", lambda r: r.trajectory.cameras.position[0].tolist(), None),
    "frames": ("path", 5, lambda r: len(r.trajectory), 5),
    "guide": ("path", "cloud", lambda r: r.guide.kind, "cloud"),
    "size": ("both", "480x384", lambda r: r.trajectory.cameras.width, 480),
    "seed": ("wish", 11, lambda r: r.seed, 11),
    "prompt": ("wish", "a cellar", lambda r: r.prompt, "a cellar"),
    "steps": ("wish", 5, lambda r: r.sampler.steps, 5),
    "guidance": ("wish", 2.5, lambda r: r.sampler.guidance, 2.5),
    "negative": ("wish", "rain", lambda r: r.negative_prompt, "rain"),
    "remember": ("wish", "manual", lambda r: TAKES[id(r)], True),
}
TAKES: dict[int, bool] = {}
"""Whether the clip of each request of the test below was left as a take."""


def test_every_visible_control_of_a_clip_changes_the_request():
    """Also that none is missing here: those of the tabs that the button reads."""
    generator = Recorded()
    settings = config(generator, read=lambda path, name: room_capture(3))
    with page_over(settings) as (panel, session):
        named = {panel.path: ("preset", "value", "start"), panel.clip: ("frames", "size", "guide")}
        named[panel.generate] = ("seed", "prompt", "steps", "guidance", "negative", "remember")
        read = {id(component) for component in [*panel.path.inputs, *panel.generate.inputs]}
        known = {id(getattr(part, name)) for part, names in named.items() for name in names}
        # the generator's own name and memory mode have tests with two generators
        assert read - known == {id(panel.clip.name), id(panel.generate.mode)}

        def request(name: str = "", value: Any = None, where: str = "") -> GenerationRequest:
            changed = {name: value}
            path = settings_of(**(changed if where in ("path", "both") else {}))
            wish = wish_of(**(changed if where in ("wish", "both") else {}))
            call(panel, session, panel.path.on_plan, *path)
            call(panel, session, panel.generate.on_generate, *wish)
            TAKES[id(generator.requests[-1])] = session.world.scene.clips[-1].take
            session.undo()
            return generator.requests[-1]

        plain = request()
        for name, (where, value, seen, wanted) in CONTROLS.items():
            found = seen(request(name, value, where))
            assert found != seen(plain), name
            assert wanted is None or found == wanted, name


def test_a_refused_generation_changes_no_setting():
    gate = threading.Event()

    class Held(Recorded):
        def __call__(self, request, on_step=lambda *step: None):
            assert gate.wait(SECONDS)
            return super().__call__(request, on_step)

    with page_over(config(Held())) as (panel, session):
        call(panel, session, panel.path.on_plan, *settings_of())
        assert session.planned.path is not None
        job = session.explore(session.planned.path, prompt="first", mode="full")
        before = (session.mode, session.sampler, session.prompt, session.generator)
        with pytest.raises(WorldBusy):
            session.explore(session.planned.path, prompt="second", mode="float8", steps=2)
        assert (session.mode, session.sampler, session.prompt, session.generator) == before
        gate.set()
        job.result(SECONDS)


def test_path_and_settings_change_together():
    """Two handlers at once on one session: never the path of one and the settings of the other."""
    with page_over(config()) as (panel, session):
        errors: list[str] = []
        stop = threading.Event()

        def drag(frames: int) -> None:
            while not stop.is_set():
                call(panel, session, panel.path.on_plan, *settings_of(frames=frames))

        def watch() -> None:
            while not stop.is_set():
                planned = session.planned
                if planned.path is not None and len(planned.path) != planned.settings.frames:
                    errors.append(f"{len(planned.path)} {planned.settings}")

        call(panel, session, panel.path.on_plan, *settings_of(frames=3))
        threads = [threading.Thread(target=drag, args=(n,)) for n in (3, 5)]
        threads.append(threading.Thread(target=watch))
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        stop.set()
        for thread in threads:
            thread.join(SECONDS)
        assert errors == []


# ---- imports -------------------------------------------------------------------------------------


def test_a_slow_upload_of_one_session_keeps_no_other_from_generating():
    go, reached = threading.Event(), threading.Event()

    def read(path: Path, name: str) -> Capture:
        if name == "slow.zip":
            reached.set()
            assert go.wait(SECONDS)
        return room_capture(2)

    with page_over(config(read=read)) as (panel, session):
        other = panel.sessions.create()
        slow = other.open(Path("slow.zip"), "slow.zip")
        assert reached.wait(SECONDS) and other.preparing
        call(panel, session, panel.path.on_plan, *settings_of())
        shown = call(panel, session, panel.generate.on_generate, *wish_of())
        assert shown[panel.message] == "" and len(session.world.scene.clips) == 1
        assert not slow.over
        go.set()
        assert len(slow.result(SECONDS).views) == 2


def test_a_file_that_was_read_and_waits_for_its_turn_is_cancelled_at_once():
    gate, held = threading.Event(), threading.Event()
    importing = Worker(name="import")
    worker = Worker(before=importing)

    def hold(job: Job) -> None:
        held.set()
        assert gate.wait(SECONDS)

    ran: list[str] = []
    worker.submit("a", Job("explore", hold))
    assert held.wait(SECONDS)
    job = Job("open", lambda job: ran.append(job.first_result), first=lambda job: "read")
    worker.submit("b", job)
    until(lambda: worker.waiting == 1)
    assert job.state == "waiting" and job.first_result == "read"
    job.cancel()
    assert job.over and job.first_result is None
    gate.set()
    worker.close()
    importing.close()
    assert ran == []


def test_the_time_of_an_import_is_the_one_of_its_limits(tmp_path):
    """A hosted Space lowers it; the refusal names the very time that passed."""
    rows = "0.1 0.2 0.3\n" * 400_000
    header = "ply\nformat ascii 1.0\nelement vertex 400000\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    (tmp_path / "large.ply").write_text(header + rows)
    settings = config(read=None, limits=replace(LOCAL, seconds=0.05))
    sessions = Sessions(settings)
    try:
        job = sessions.create().open(tmp_path / "large.ply", "large.ply")
        with pytest.raises(InputRefused, match=r"0\.05 s"):
            job.result(SECONDS)
    finally:
        sessions.close_all()


def test_an_uploaded_project_is_opened_by_the_import_process(tmp_path, monkeypatch):
    """The app sees only what that process wrote anew; a hostile file is refused over there."""
    upload, hostile = tmp_path / "saved.zip", tmp_path / "hostile.zip"
    world = World(InstantGenerator())
    scene = start(world, replace(room_capture(2), name="kept"))
    upload.write_bytes(packed(state_of(world)))
    with zipfile.ZipFile(hostile, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "project.json", b'{"format": "worldstereo-project", "state": ' + b"[" * 9_000
        )
    parsed, uploads = [], (str(upload), str(hostile))
    real = zipfile.ZipFile.__init__

    def watched(self, file, *rest, **named):
        parsed.extend([str(file)] if str(file) in uploads else [])
        real(self, file, *rest, **named)

    monkeypatch.setattr(zipfile.ZipFile, "__init__", watched)
    assert is_project(upload) and parsed == [str(upload)]  # this is how it would show
    parsed.clear()
    sessions = Sessions(config(read=None))
    try:
        session = sessions.create()
        session.open(upload, "saved.zip").result(SECONDS)
        assert torch.equal(session.world.scene.cloud.points, scene.cloud.points)
        assert session.world.scene.name == "kept"
        with pytest.raises(InputRefused, match="hostile.zip"):
            session.open(hostile, "hostile.zip").result(SECONDS)
        assert session.world.scene.name == "kept"
        assert parsed == []
    finally:
        sessions.close_all()


# ---- what must not grow, and what must not wait --------------------------------------------------


def test_tokens_that_nobody_has_leave_nothing_behind(tmp_path):
    sessions = Sessions(config(projects=tmp_path))
    try:
        for i in range(50):
            assert sessions.get(f"{i:043d}") is None
        assert sessions._opening == {}
    finally:
        sessions.close_all()


def test_events_are_told_and_not_kept():
    viewport = Viewport()
    try:
        event = Selected(np.arange(1000), 1)
        kept = weakref.ref(event.rows)
        viewport.emit(event)
        del event
        gc.collect()
        assert kept() is None
    finally:
        viewport.close()


def test_a_viewport_that_starts_slowly_keeps_no_other_session_waiting(monkeypatch):
    go, begun = threading.Event(), threading.Event()
    sessions = Sessions(config(max_sessions=2))
    try:
        first = sessions.create()
        original = Session.__init__

        def slow(self: Session, *values: Any) -> None:
            begun.set()
            assert go.wait(SECONDS)
            original(self, *values)

        monkeypatch.setattr(Session, "__init__", slow)
        thread = threading.Thread(target=sessions.create)
        thread.start()
        assert begun.wait(SECONDS)
        assert sessions.get("A" * 43) is None and sessions.get(first.token) is first
        assert sessions.tidy() == 0
        with pytest.raises(WorldStereoError, match="All 2 worlds"):  # its place is taken already
            sessions.create()
        go.set()
        thread.join(SECONDS)
        assert sessions.stats["sessions"] == 2
    finally:
        go.set()
        sessions.close_all()


def test_a_viewport_prints_nothing_and_silences_nobody(capsys):
    viewport = Viewport()
    try:
        assert capsys.readouterr().out == ""
        rich.print("mine")
        assert capsys.readouterr().out == "mine\n"
    finally:
        viewport.close()
        capsys.readouterr()


def test_the_film_of_a_clip_stands_in_the_viewports_place_until_the_world_changes():
    with page_over(config()) as (panel, session):
        call(panel, session, panel.path.on_plan, *settings_of())
        answers = list(
            panel.guarded(panel.generate.on_generate)(session.token, *wish_of(size="320x256"))
        )
        screens = [answer[panel.film.screen] for answer in answers if panel.film.screen in answer]
        film = screens[-1]
        assert 'data-frames="data:image/jpeg' in film and film.count("data:image") == 3 + 1
        first = next(i for i, view in enumerate(session.world.scene.views) if view.step == 1)
        assert f'data-first="{first}"' in film
        list(panel.film.on_continue(session, {}, *settings_of()))
        assert session.planned.path is not None  # from the last frame on
        end = session.world.scene.views[-1].cameras.position
        assert float((session.planned.path.cameras.position[0] - end).norm()) < 1e-5
        undone = panel.on_undo(session, {})
        assert undone[panel.film.screen] == ""


def test_a_take_is_compared_then_kept_or_discarded():
    """No memory knows a take; of two along one path the difference can be seen beside either."""
    with page_over(config()) as (panel, session):
        call(panel, session, panel.path.on_plan, *settings_of())
        points, views = len(session.world.scene.cloud), len(session.world.scene.views)
        for seed in (7, 8):
            wish = wish_of(remember="manual", seed=seed)
            shown = call(panel, session, panel.generate.on_generate, *wish)
        assert (len(session.world.scene.cloud), len(session.world.scene.views)) == (points, views)
        assert shown[panel.film.screen].count('data-send="keep"') == 1
        listed = panel.generate.refresh(session)[panel.generate.takes]
        assert listed.count('class="take"') == 2 and "seed 8" in listed
        for side in ("source", "depth", "clip 0", "difference 0"):
            beside = panel.film.on_watch(session, {"clip": "1", "key": side})[panel.film.screen]
            assert beside.count("data:image/jpeg") == 2 * (3 + 1), side
        with pytest.raises(WorldStereoError, match="cannot be shown beside"):
            panel.film.on_watch(session, {"clip": 1, "key": "difference 1"})
        list(panel.film.on_keep(session, {"clip": "0"}))
        assert len(session.world.scene.views) == views + 3
        assert [clip.take for clip in session.world.scene.clips] == [False, True]
        with pytest.raises(WorldStereoError, match="not a take"):
            panel.film.on_discard(session, {"clip": 0})
        panel.film.on_discard(session, {"clip": 1})
        assert len(session.world.scene.clips) == 1 and len(session.world.scene.views) == views + 3
        session.undo()
        assert [clip.take for clip in session.world.scene.clips] == [False, True]


def test_pictures_of_a_clip_say_what_they_mean():
    """Found cells turn blue, contradicted ones red, cells without evidence stay grey; near is
    bright, and one depth has one brightness in every frame."""
    color_u8 = torch.full((3, 24, 32), 128, dtype=torch.uint8)
    cells = torch.zeros(12, 16, dtype=torch.uint8)
    cells[0, 0], cells[0, 15] = 255, 1
    out = agreement_picture(color_u8, cells).astype(int)
    assert out[0, 0, 2] > out[0, 0, 0] + 40 and out[0, 31, 0] > out[0, 31, 2] + 40
    assert len(set(out[12, 12])) == 1
    depth = torch.linspace(1, 3, 24 * 32).reshape(1, 1, 24, 32).repeat(2, 1, 1, 1)
    depth[1] += 0.5
    depth[:, :, 5, 5] = 0
    first, second = depth_pictures(depth)
    assert first[5, 5].max() == 0
    assert (np.diff(first[0, :, 0].astype(int)) <= 0).all()
    at = int((depth[0, 0].flatten() - 1.5).abs().argmin())
    assert abs(int(first.reshape(-1, 3)[at, 0]) - int(second[0, 0, 0])) <= 1
