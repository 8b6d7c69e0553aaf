"""One bar for a capture that is prepared: one total, forwards only, with the stage's own words."""

import time
from dataclasses import replace

import pytest
import torch

from tests.conftest import room, turned_cameras
from ui.session.jobs import Job
from ui.session.progress import MEASURED, PHOTOS, WHOLE, ProgressStage, StagedProgress, stages_of
from worldstereo._core import parallel as _parallel
from worldstereo.errors import Cancelled
from worldstereo.generators import WarpGenerator
from worldstereo.scene import Capture, DepthKind, View
from worldstereo.world import World, start


def follow(stages):
    seen = []
    return seen, StagedProgress(lambda *report: seen.append(report), stages)


def test_stages_that_count_differently_make_one_bar():
    seen, course = follow(
        [ProgressStage("a", 1), ProgressStage("b", 2, counts=False), ProgressStage("c", 1)]
    )
    for report in [(0, 2, "a"), (1, 2, "a"), (3, 6, "b"), (0, 5, "c"), (4, 5, "c")]:
        course(*report)
    assert [step for step, _, _ in seen] == [0, 125, 250, 750, 950]
    assert {total for _, total, _ in seen} == {WHOLE}
    assert [message for _, _, message in seen] == ["a", "a", "b", "c", "c"]


def test_a_stage_that_is_left_out_makes_no_jump():
    seen, course = follow([ProgressStage("a", 1), ProgressStage("b", 2), ProgressStage("c", 1)])
    for report in [(0, 1, "a"), (0, 4, "c"), (2, 4, "c")]:
        course(*report)
    assert [step for step, _, _ in seen] == [0, 250, 625]  # "c" has the three quarters now


def test_one_step_never_takes_more_than_its_share():
    stages = [
        ProgressStage("a", 1),
        ProgressStage("b", 5),
        ProgressStage("c", 2, counts=False),
        ProgressStage("d", 2),
    ]
    seen, course = follow(stages)
    for report in [(0, 1, "a"), (3, 6, "c"), (0, 2, "d"), (1, 2, "d")]:
        course(*report)
    assert [step for step, _, _ in seen] == [0, 100, 300, 650]  # not 0, 100, 550, 775


def test_nothing_goes_back():
    """A second round with another count, a stage named again, words of no stage."""
    seen, course = follow([ProgressStage("a", 1), ProgressStage("b", 1)])
    for report in [(6, 8, "a"), (2, 12, "a"), (0, 4, "b"), (0, 8, "a"), (9, 9, "?"), (2, 4, "b")]:
        course(*report)
    assert [step for step, _, _ in seen] == [375, 375, 500, 500, 500, 750]


def test_the_longest_beginning_names_the_stage():
    seen, course = follow([ProgressStage("Comparing", 1), ProgressStage("Comparing photos", 1)])
    course(1, 2, "Comparing photos")
    assert seen[0][0] == WHOLE // 2


def posed(count, *, depth):
    cameras = turned_cameras(count, 64, 48)
    color, far = room(cameras)
    if not depth:
        far = torch.zeros_like(far)
    return tuple(View.of(color[i], far[i], cameras[i], name=f"{i}") for i in range(count))


@pytest.mark.parametrize(("depth", "stages"), [(True, MEASURED), (False, PHOTOS)])
def test_opening_names_only_stages_that_are_known(depth, stages):
    """The library's own reports: each begins with a stage's words, in the order of the stages."""
    views, told = posed(5, depth=depth), []
    assert stages_of(views) == stages
    start(
        World(WarpGenerator()),
        Capture("x", "posed", views),
        on_step=lambda *report: told.append(report),
    )
    known = [max(stages, key=lambda s: m.startswith(s.says) * len(s.says)) for _, _, m in told]
    assert all(m.startswith(stage.says) for (_, _, m), stage in zip(told, known, strict=True))
    places = [stages.index(stage) for stage in known]
    assert places == sorted(places) and len(set(places)) >= 8
    seen, course = follow(stages)
    for report in told:
        course(*report)
    steps = [step for step, _, _ in seen]
    assert steps == sorted(steps) and steps[-1] > 0.9 * WHOLE
    assert {total for _, total, _ in seen} == {WHOLE}


def test_an_estimated_photo_is_only_remembered():
    view = posed(1, depth=True)[0]
    rough = replace(view, kind=view.kind.clone().fill_(int(DepthKind.INPAINTED)))
    assert [stage.says for stage in stages_of([rough])] == ["Remembering view"]


def test_cancel_stops_a_kernel_between_two_reports():
    """Chunks after the cancel are not begun; what restores the world afterwards is not stopped."""
    done, restored = [], []

    def chunk(i):
        done.append(i)
        if len(done) == 3:
            job.cancel()
        time.sleep(0.001)  # as a kernel does, it lets the other threads run

    def work(job):
        with job.stopping():
            try:
                _parallel.parallel_for(1000, chunk)
            except Cancelled:
                _parallel.parallel_for(7, restored.append)
                raise
        return "all"

    job = Job("open", work)
    job.run()
    assert job.state == "cancelled" and 3 <= len(done) < 20
    assert sorted(restored) == list(range(7))
    _parallel.parallel_for(3, restored.append)  # nothing is left behind in this thread
    assert len(restored) == 10
