"""What the published model attended to, from a click: the row, its window, its heat maps."""

import gc
import weakref

import numpy as np
import pytest
import torch

from tests.fake_session import quietly
from tests.model_page import choose, generate, merged, model_choice, page_with, text
from tests.tiny_model import write_tiny_model
from worldstereo.errors import Cancelled, OutOfMemory, WorldStereoError

with quietly():
    from ui import inspector
    from ui.session.attention import KEPT

GREY = torch.full((3, 64, 96), 120, dtype=torch.uint8)


def test_a_reference_is_warm_where_the_weights_are_and_outlined_where_the_window_is():
    weights, window = torch.zeros(4, 6), torch.zeros(4, 6, dtype=torch.bool)
    weights[1, 2] = 0.5
    window[2:4, 3:5] = True
    image = inspector.attention_picture(GREY, weights, window, peak=0.5).astype(int)
    assert image.shape == (64, 96, 3)
    warm = image[..., 0] - image[..., 2]
    v, u = np.unravel_index(warm.argmax(), warm.shape)
    assert 16 <= v < 32 and 32 <= u < 48  # the token's own 16 x 16 pixels
    white = (image == 255).all(axis=2)
    rows, columns = np.nonzero(white)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 63, 48, 79)
    assert not white[36:60, 52:76].any()  # an outline, not a patch
    half = inspector.attention_picture(GREY, weights, window, peak=1.0).astype(int)
    assert (half[..., 0] - half[..., 2]).max() < warm.max()  # the same scale for all references


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page whose world holds one clip of the memory variant, made in two steps."""
    folder = write_tiny_model(tmp_path_factory.mktemp("model"))
    with page_with(model_choice(folder)) as (panel, session):
        choose(panel, session)
        assert generate(panel, session)[panel.message] == ""
        yield panel, session


def test_a_click_shows_the_models_own_row(made):
    panel, session = made
    view = len(session.world.scene.views) - 1
    shown = merged([panel.memory.on_mode(session, view + 1, 0, 0, "Attention", 1, 1)])
    assert shown[panel.memory.mode] | {"value": "Attention"} == shown[panel.memory.mode]
    assert "Attention" in [value for _, value in shown[panel.memory.mode]["choices"]]
    assert shown[panel.memory.layer] | {"maximum": 3, "visible": True} == shown[panel.memory.layer]
    assert shown[panel.memory.step]["maximum"] == 2
    click = {"view": str(view), "x": 0.6, "y": 0.4}
    answers = list(panel.memory.on_pixel(session, click, view + 1, "Attention", 2, 2))
    assert len(answers) >= 3  # the progress is followed
    card = answers[-1][panel.memory.card]
    row = session.job.result()
    assert row.layer == 1 and row.step == 1
    assert row.token == (2, int(0.4 * 208) // 16, int(0.6 * 320) // 16)
    assert f"{100 * row.share:.0f} %" in text(card) and "the same place in 3D" in text(card)
    assert f"{100 * row.reference_mass:.0f} % on references" in text(card)
    assert card.count('alt="Attention on') == len(row.views)
    for k, reference in enumerate(row.views):
        assert f"view {reference + 1}, {100 * float(row.weights[k].sum()):.1f} %" in text(card)


def test_the_row_is_that_of_the_clip_and_not_of_the_world_since(made):
    """The same seed, references and guide as when the clip was made, whatever came after."""
    panel, session = made
    view = len(session.world.scene.views) - 1
    first = session.look(view, (50.0, 30.0), layer=0, step=1).result(60)
    generate(panel, session, seed=9, steps=2)
    again = session.look(view, (50.0, 30.0), layer=0, step=1).result(60)
    assert torch.equal(first.heads, again.heads) and first.views == again.views


def test_what_cannot_be_looked_into_says_why(made):
    panel, session = made
    views = session.world.scene.views
    with pytest.raises(WorldStereoError, match="A given view"):
        session.look(0, (5.0, 5.0))
    with pytest.raises(WorldStereoError, match="is gone"):
        session.look(len(views), (5.0, 5.0))
    newest = len(views) - 1
    for kwargs, match in (({"layer": 7}, "layer must be 0"), ({"step": 5}, "step must be 0")):
        with pytest.raises(WorldStereoError, match=match):
            session.look(newest, (5.0, 5.0), **kwargs).result(60)
    given = panel.memory.on_mode(session, 1, 0, 0, "Attention", 1, 1)
    values = [value for _, value in given[panel.memory.mode]["choices"]]
    assert values == ["Pixel", "References", "Sources"]
    assert not given[panel.memory.layer]["visible"]
    kept, session.attention._kept = session.attention._kept, type(session.attention._kept)()
    help_ = panel.memory.on_mode(session, newest + 1, 0, 0, "Attention", 1, 1)
    assert "generate it again" in text(help_[panel.memory.card])
    session.attention._kept = kept


def test_only_the_last_clips_are_kept(made):
    _, session = made
    asked = session.attention.of(session.world.scene, len(session.world.scene.views) - 1)
    for _ in range(KEPT):
        session.attention._kept.append(asked)
    assert len(session.attention._kept) == KEPT


def test_a_row_that_is_cancelled_or_too_large_leaves_nothing(made, monkeypatch):
    from worldstereo.generators.diffusion import generator as module

    panel, session = made
    view, held = len(session.world.scene.views) - 1, []

    def stopped(transformer, *args, on_step, **kwargs):
        filled = torch.zeros(1000)
        held.append(weakref.ref(filled))
        raise Cancelled("stopped")

    def full(transformer, *args, **kwargs):
        raise torch.OutOfMemoryError("out")

    click = {"view": str(view), "x": 0.6, "y": 0.4}
    monkeypatch.setattr(module, "sample", stopped)
    answers = list(panel.memory.on_pixel(session, click, view + 1, "Attention", 1, 1))
    assert "Cancelled" in text(answers[-1][panel.memory.card])
    gc.collect()
    assert held[0]() is None
    for block in session.shared.generator("diffusion").published.transformer.blocks:
        assert block.stitched.probe is None
    monkeypatch.setattr(module, "sample", full)
    with pytest.raises(OutOfMemory, match="Use mode float8"):
        list(panel.memory.on_pixel(session, click, view + 1, "Attention", 1, 1))
    assert "diffusion" not in session.shared._made  # the card is free
