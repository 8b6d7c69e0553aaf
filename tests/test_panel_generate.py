"""The Generate tab with a tiny random-weight model: memory modes, prompts, a full card."""

import gc
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fake_session import quietly
from tests.model_page import choose, generate, merged, model_choice, page_with, text
from tests.tiny_model import write_tiny_model
from worldstereo.errors import OutOfMemory, WorldStereoError
from worldstereo.generators import MemoryModeFit, SamplerConfig

with quietly():
    from ui.page.page import Panel
    from ui.session.sessions import GeneratorChoice, Session, Sessions, SessionsConfig
    from worldstereo.generators.registry import GeneratorSettings
    from worldstereo.generators.registry import choice as offered


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def page(folder, request) -> Iterator[tuple[Panel, Session]]:
    with page_with(model_choice(folder, getattr(request, "param", "worldstereo-memory-dmd"))) as it:
        yield it


def test_choosing_the_model_offers_what_fits_before_anything_is_loaded(page):
    panel, session = page
    shown = choose(panel, session)
    modes = shown[panel.generate.mode]
    assert modes["visible"] and modes["value"] == session.mode == "full"
    labels = {mode: label for label, mode in modes["choices"]}
    assert re.fullmatch(r"Full: \d+\.\d GiB, about \d+ s", labels["full"])
    assert labels["group"] == "Group: only with a CUDA card"
    why = panel.generate.why_not(session)
    place = list(labels).index("group") + 1
    assert "only with a CUDA card" in why[f"#memory-mode label:nth-child({place})"]
    assert "#memory-mode label:nth-child(1)" not in why and "#generate" not in why
    assert shown[panel.generate.prompt]["value"] == "a room with a table"  # came with the file
    assert shown[panel.generate.steps]["value"] == 4
    assert not shown[panel.generate.guidance]["visible"]  # the distilled variant has none
    assert session.shared._made.keys() == {"warp"}  # nothing was loaded
    refused = merged(panel.guarded(panel.generate.on_mode)(session.token, "group"))
    assert "only with a CUDA card" in text(refused[panel.message]) and session.mode == "full"
    session.set_plan(None)
    assert panel.generate.why_not(session).keys() == why.keys()  # without a path: the largest clip


@pytest.mark.parametrize("page", ["worldstereo-memory"], indirect=True)
def test_the_full_variant_brings_guidance_and_its_negative_prompt(page):
    panel, session = page
    session.prompt = ""
    shown = choose(panel, session)
    assert (
        shown[panel.generate.guidance] | {"value": 5.0, "visible": True}
        == (shown[panel.generate.guidance])
    )
    assert "overexposed" in shown[panel.generate.negative]["value"]
    assert shown[panel.generate.steps]["value"] == 40
    assert shown[panel.generate.prompt]["value"].startswith("A photorealistic place")
    assert "value" not in choose(panel, session, "my own words")[panel.generate.prompt]
    slow = merged([panel.generate.on_sampler(session, 80, 5)])
    assert session.sampler == SamplerConfig(steps=80, guidance=5)
    assert slow[panel.generate.mode]["choices"]
    shown = panel.generate.opened(session)
    assert shown[panel.generate.negative]["visible"]


def test_frames_are_made_in_the_chosen_mode_and_another_mode_replaces_the_model(page):
    panel, session = page
    choose(panel, session)
    shown = generate(panel, session)
    assert shown[panel.message] == ""
    assert len(session.world.scene.clips[-1]) == 3
    assert session.world.scene.clips[-1].generator == "worldstereo-memory-dmd"
    first = session.shared.generator("diffusion")
    weights = weakref.ref(first.published.transformer.blocks[0].ffn.net[0].proj.weight)
    assert first.mode == "full" and weights() is not None
    merged(panel.guarded(panel.generate.on_mode)(session.token, "float8"))
    assert session.mode == "float8" and session.shared.generator("diffusion") is first
    assert generate(panel, session)[panel.message] == ""
    second = session.shared.generator("diffusion")
    assert second is not first and second.mode == "float8"
    gc.collect()
    assert weights() is None  # gone before the second was loaded, though `first` is still held
    assert session.pace_of("diffusion") in session.shared.pace
    assert "about" in text(panel.action.refresh(session)[panel.action.status])


def test_an_empty_prompt_is_refused_in_one_line(page):
    panel, session = page
    choose(panel, session)
    before = session.world.scene
    shown = generate(panel, session, prompt=" ")
    assert "The prompt is empty; WorldStereo 2.0 needs one." in text(shown[panel.message])
    assert session.world.scene is before


def test_a_full_card_keeps_the_world_and_moves_on_to_the_next_smaller_mode(page, monkeypatch):
    from worldstereo.generators.diffusion import generator as module

    panel, session = page
    choose(panel, session)
    held: list[weakref.ref] = []

    def full(transformer: Any, *args: Any, **kwargs: Any) -> None:
        filled = torch.zeros(1000)
        held.append(weakref.ref(filled))
        held.append(weakref.ref(transformer.blocks[0].ffn.net[0].proj.weight))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(module, "sample", full)
    before = session.world.scene
    shown = generate(panel, session)
    line = text(shown[panel.message])
    assert "ran out of memory in mode full. Use mode float8; the world is unchanged" in line
    assert session.world.scene is before
    assert session.mode == "float8" == shown[panel.generate.mode]["value"]
    assert isinstance(session.job._error, OutOfMemory)  # held, and yet nothing is held by it
    gc.collect()
    assert len(held) == 2 and not any(ref() is not None for ref in held)
    monkeypatch.undo()
    assert generate(panel, session)[panel.message] == ""
    assert session.shared.generator("diffusion").mode == "float8"


def test_a_checkpoint_that_cannot_be_used_is_off_with_its_reason(folder, tmp_path):
    choice = offered("diffusion", GeneratorSettings(model=tmp_path, device="cpu"))
    assert "holds none of worldstereo-camera" in choice.why_not
    assert "not a folder" in offered("diffusion", GeneratorSettings(model=tmp_path / "no")).why_not
    assert "--model FOLDER" in offered("diffusion", GeneratorSettings()).why_not
    odd = offered("diffusion", GeneratorSettings(model=folder, variant="big"))
    assert odd.why_not.startswith("variant")


def test_nothing_that_does_not_fit_can_be_asked_for():
    small = MemoryModeFit(
        "full", "all on the card", False, 41.0, 9.0, "needs 41 GiB, the card has 16"
    )
    made: list[str] = []

    def make(**how: Any) -> Any:
        made.append("x")

    choice = GeneratorChoice("diffusion", "Model", "", None, make, modes=lambda *clip: [small])
    with page_with(choice) as (panel, session):
        shown = choose(panel, session)
        assert shown[panel.generate.mode]["choices"] == [
            ("Full: needs 41 GiB, the card has 16", "full")
        ]
        assert "No memory mode fits" in panel.generate.why_not(session)["#generate"]
        line = text(generate(panel, session, mode="full")[panel.message])
        assert "needs 41 GiB, the card has 16" in line and made == []
        with pytest.raises(WorldStereoError, match="no memory mode 'huge'"):
            panel.generate.form(session, ["diffusion", "", 0, "", 4, 5, "", "huge"])


def test_an_official_example_brings_its_path_and_its_prompt(folder, data):
    """Opened as any file: 21 keyframes of its 81 cameras are planned, its long caption is there."""
    from worldstereo.inputs import read

    example = data / "worldstereo" / "images" / "photorealistic-indoor-dining_spaces-030"
    sessions = Sessions(
        SessionsConfig(
            generators=(offered("warp"), model_choice(folder)),
            examples=(),
            read=lambda path, name: read(path, name),
        )
    )
    try:
        with quietly():
            panel = Panel(sessions)
        session = sessions.create()
        session.open(example, example.name).result(120)
        capture = read(example, example.name)
        assert capture.trajectory is not None and len(capture.trajectory) == 81
        assert session.planned.path is not None and len(session.planned.path) == 21
        for k in (0, 1, 20):  # frames 0, 4 and 80, as the release takes them
            there = capture.trajectory.cameras[4 * k].c2w
            assert torch.allclose(session.planned.path.cameras[k].c2w, there, atol=1e-4)
        session.generator = "diffusion"
        shown = panel.generate.opened(session)[panel.generate.prompt]["value"]
        assert shown == capture.prompt and len(shown) > 100
    finally:
        sessions.close_all()
