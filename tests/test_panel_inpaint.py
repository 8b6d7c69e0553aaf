"""The page with an inpainting generator: a painter that fails, the brush, what is offered."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.fake_session import quietly
from tests.model_page import SIZE, generate, merged, page_with, text
from worldstereo import Origin, Trajectory
from worldstereo.generators.inpaint import InpaintGenerator
from worldstereo.generators.inpaint.generator import generator_limits
from worldstereo.generators.inpaint.painters import PLAIN
from worldstereo.world import unknown_along

with quietly():
    from ui.page.core import _wants_data
    from ui.page.film import brushed
    from ui.page.page import Panel
    from ui.session.sessions import GeneratorChoice, Session, SessionsConfig
    from worldstereo.generators.inpaint.choice import ADDS
    from worldstereo.generators.registry import choice as offered


class Plain:
    """Paints one colour, which its seed decides; raises what it is told to."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.seeds: list[int] = []

    def __call__(self, image: np.ndarray, mask: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        if self.error is not None:
            raise self.error
        self.seeds.append(seed)
        out = image.copy()
        out[mask] = np.random.default_rng(seed).integers(0, 255, 3)
        return out


@pytest.fixture
def page() -> Iterator[tuple[Panel, Session, Plain]]:
    painter = Plain()

    def make(**how: Any) -> InpaintGenerator:
        return InpaintGenerator(painter)

    choice = GeneratorChoice(
        "inpaint",
        "Inpaint",
        "Paints.",
        generator_limits(PLAIN),
        make,
        adds=ADDS,
        keyframes=lambda scene, path: len(path),
    )
    with page_with(choice) as (panel, session):
        camera = session.world.scene.views[1].cameras
        session.set_plan(
            Trajectory.preset(
                "truck", camera, distance=4.0, frames=3, amount=1.5, up=session.world.scene.up
            )
        )
        yield panel, session, painter


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_a_painter_out_of_memory_is_one_line_on_the_page_and_the_world_stays(page, error):
    panel, session, painter = page
    before = session.world.scene
    painter.error = error
    line = text(generate(panel, session, name="inpaint", mode="")[panel.message])
    assert "ran out of memory" in line and "smaller size or another painter" in line
    assert session.world.scene is before
    painter.error = None
    assert generate(panel, session, name="inpaint", mode="")[panel.message] == ""
    assert len(session.world.scene.clips) == 1 and painter.seeds


def brush(panel: Panel, session: Session, **changes: Any) -> dict:
    """The click on one of the brush's buttons, with what the page sends beside it."""
    clip = session.world.scene.clips[-1]
    made = clip.origin[-1, 0] == int(Origin.INVENTED)
    v, u = (int(n.float().median()) for n in made.nonzero().unbind(1))
    at = [u / clip.color_u8.shape[-1], v / clip.color_u8.shape[-2]]
    data = {
        "kind": "again", "clip": str(len(session.world.scene.clips) - 1), "frame": len(clip) - 1,
        "width": 0.1, "strokes": [[at, [at[0], at[1] + 0.05]]],
    } | changes  # fmt: skip
    values = ("inpaint", SIZE, 3, "", 4, 5, "", "", "per_frame")
    answers = panel.guarded(_wants_data(panel.film.on_brushed))(
        SimpleNamespace(_data=data), session.token, *values
    )
    return merged(answers)


def test_a_brushed_part_is_painted_again_with_another_seed_as_one_step(page):
    """Oracle: the painter's own colour, which its seed decides, in the strokes and nowhere else."""
    panel, session, painter = page
    generate(panel, session, name="inpaint", mode="")
    (first,), steps = session.world.scene.clips, len(session.world.history)
    assert brush(panel, session)[panel.message] == ""
    second = session.world.scene.clips[-1]
    assert len(session.world.history) == steps + 1 and second.seed == first.seed + 1
    changed = (first.color_u8[-1] != second.color_u8[-1]).any(0)
    made = first.origin[-1, 0] == int(Origin.INVENTED)
    assert 50 < int(changed.sum()) < int(made.sum()) and bool(made[changed].all())
    session.undo()
    assert [clip.seed for clip in session.world.scene.clips] == [first.seed]


def test_a_brushed_part_is_left_empty_as_one_step(page):
    panel, session, painter = page
    generate(panel, session, name="inpaint", mode="")
    calls, steps = len(painter.seeds), len(session.world.history)
    before = len(session.world.scene.cloud)
    assert brush(panel, session, kind="empty")[panel.message] == ""
    assert len(painter.seeds) == calls and len(session.world.history) == steps + 1
    assert len(session.world.scene.cloud) < before
    session.undo()
    assert len(session.world.scene.cloud) == before


REFUSED = (
    ({"strokes": []}, "Brush over a part"),
    ({"strokes": "all"}, "Brush over a part"),
    ({"strokes": [[]]}, "cannot be read"),
    ({"strokes": [[[0.5]]]}, "cannot be read"),
    ({"strokes": [[["a", "b"]]]}, "cannot be read"),
    ({"strokes": [[[float("nan"), 0.5]]]}, "cannot be read"),
    ({"strokes": [[[0.5, 0.5]] * 50_000]}, "cannot be read"),
    ({"width": 4}, "width of the brush"),
    ({"frame": 99}, "frame must be between"),
    ({"clip": "7"}, "is gone"),
    ({"kind": "burn"}, "painted again or left empty"),
)


def test_strokes_that_no_brush_makes_are_refused_in_one_line(page):
    panel, session, painter = page
    generate(panel, session, name="inpaint", mode="")
    before = session.world.scene
    for changes, words in REFUSED:
        assert words in text(brush(panel, session, **changes)[panel.message])
        assert session.world.scene is before and not session.busy


def test_strokes_cover_what_they_cover():
    """Oracle: distance to the line, pixel by pixel."""
    mask = brushed([[[0.25, 0.5], [0.75, 0.5]]], 0.1, 201, 101)
    v, u = np.mgrid[:101, :201]
    away = np.hypot(np.maximum(np.abs(u - 100) - 50, 0), v - 50)
    assert mask[away < 8].all() and not mask[away > 12].any()


def test_completing_a_place_says_what_it_takes_and_begins_where_it_is_told(page):
    panel, session, painter = page
    about = panel.generate.on_budget(session, 5, SIZE, "inpaint")[panel.generate.takes_up_to]
    assert "At most 5 keyframes, about" in text(about)
    values = ("inpaint", SIZE, 3, "", 4, 5, "", "", "per_frame")
    run = panel.guarded(panel.generate.on_complete)
    refused = merged(run(session.token, *values, "here", 1))
    assert "not connected yet" in text(refused[panel.message])
    assert "Begin is one of" in text(merged(run(session.token, *values, "up", 1))[panel.message])
    camera = session.world.scene.views[1].cameras
    looking = Trajectory.preset("pan", camera, frames=2, value=35.0).cameras[-1]
    session.viewport.stage_camera = lambda: looking
    assert merged(run(session.token, *values, "here", 1))[panel.message] == ""
    clip = session.world.scene.clips[-1]
    assert torch.allclose(clip.trajectory.cameras[-1].c2w, looking.c2w.float(), atol=1e-5)
    assert len(painter.seeds) == 1


def test_generators_that_can_run_here_come_first_and_each_says_what_it_adds(page):
    panel, session, painter = page
    off = GeneratorChoice("big", "Big", "Needs a card.", None, InpaintGenerator, "no card here")
    shared = session.shared.__class__(SessionsConfig(generators=(off, offered("warp"))))
    try:
        assert list(shared.generators) == ["warp", "big"]
    finally:
        shared.close()
    shown = text(panel.generate.refresh(session)[panel.generate.about])
    unknown = round(100 * unknown_along(session.world.scene, session.planned.path))
    missing = f"the {unknown} % of this path that no memory knows"
    assert f"Paints {missing}; about 3 pictures" in shown and "on this machine" in shown
    assert f"Warp: Continues surroundings smoothly into {missing}" in shown
    assert "pictures" not in shown.split("Warp:")[1].split("Inpaint:")[0]
    assert session.generator == "warp" and "Copies" in shown and "Paints." not in shown
