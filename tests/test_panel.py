"""The page's handlers as plain functions, its HTML, and what it promises to browsers."""

import asyncio
import html
import importlib
import json
import re
import sys
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from tests.fake_session import (
    HEIGHT,
    WIDTH,
    FakeJob,
    FakeSession,
    FakeSessions,
    quietly,
    small_scene,
)
from worldstereo import exports
from worldstereo.cameras import Cameras
from worldstereo.errors import Cancelled, ExportError, WorldBusy, WorldStereoError
from worldstereo.generators import GeneratorLimits, WarpGenerator
from worldstereo.generators.registry import GeneratorChoice
from worldstereo.reconstruct import QUALITIES
from worldstereo.scene import DepthKind, LeftOut, PointCloud, Scene
from worldstereo.trajectory import PRESETS
from worldstereo.world import AddedPhoto, AddReport, NextView

with quietly():
    import gradio as gr
    from gradio.state_holder import SessionState

    from ui.page import html as page_html
    from ui.page.core import BUG, BUSY, EXPIRED
    from ui.page.page import Panel
    from ui.page.settings import Settings, accepted_frames, plan_path, reframed, sizes
    from ui.session.depth_model import DepthModel

UI = Path(__file__).resolve().parent.parent / "ui"


@pytest.fixture(scope="module")
def panel() -> Panel:
    with quietly():
        return Panel(FakeSessions())  # type: ignore[arg-type]


@pytest.fixture
def session(panel: Panel) -> FakeSession:
    session = FakeSession()
    panel.sessions.known["token"] = session  # type: ignore[attr-defined]
    return session


def settings_of(session: FakeSession, preset: str = "orbit", **changes: Any) -> Settings:
    values = {"value": 20, "start": "first", "frames": 5, "size": "", "generator": "warp"}
    return Settings.of(preset, *(values | changes).values())


def text_of(update: Any) -> str:
    value = update["value"] if isinstance(update, dict) and "value" in update else update
    return html.unescape(re.sub(r"<[^>]+>", " ", str(value)))


# ---- the whole page ------------------------------------------------------------------------------


def test_no_event_of_the_page_is_public(panel):
    for function in panel.demo.fns.values():
        assert function.api_visibility == "private"


def test_every_control_has_a_label(panel):
    """A control that is only an icon gets its words from the script."""
    import gradio as gr

    named = (gr.Slider, gr.Radio, gr.Number, gr.Textbox, gr.Checkbox, gr.Dropdown)
    for block in panel.demo.blocks.values():
        if isinstance(block, named):
            assert block.label and not block.label.endswith(":")
        if isinstance(block, gr.Button):
            assert block.value


def test_the_page_asks_nothing_of_the_outside():
    for name in ("page/page.css", "page/page.js"):
        text = (UI / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|@import|//[a-z]+\.", text.replace("http://www.w3.org", ""))
    from ui.page.theme import theme

    assert theme()._stylesheets == []


def test_the_stylesheet_has_no_comma_inside_a_selector_function():
    """Gradio puts its prefix at every comma of a selector, also inside :is() and :has()."""
    sheet = (UI / "page" / "page.css").read_text(encoding="utf-8")
    css = re.sub(r"/\*.*?\*/", "", sheet, flags=re.S)
    selectors = re.findall(r"([^{}]+)\{", css)
    assert len(selectors) > 100
    assert not [s for s in selectors if re.search(r":(is|has|not|where)\([^()]*,", s)]
    assert css.count("\n") < 150


def test_icons_of_the_page_exist_with_their_licence():
    texts = [path.read_text(encoding="utf-8") for path in page_html.TEMPLATES.iterdir()]
    used = set(re.findall(r'icon(?:_button)?\("([a-z0-9-]+)"', "".join(texts)))
    assert len(used) > 9
    for name in used:
        assert page_html.icon(name).startswith("<svg")
    assert "ISC License" in (page_html.ICONS / "LICENSE-lucide").read_text(encoding="utf-8")
    for file in page_html.ICONS.glob("*.svg"):
        assert len(ElementTree.parse(file).getroot()) > 0, file.name


def test_a_key_of_the_map_is_bound_by_the_script():
    script = (UI / "page" / "page.js").read_text(encoding="utf-8")
    table = script[script.index("const keys = {") : script.index("const arrows")]
    bound = set(re.findall(r"(?:^|[\s,])'?([^\s',]+?)'?: \(\) =>", table))
    told = {one for key, _ in page_html.KEYS for one in re.split(r",? ", key)}
    flying = set("WASDQE") | {"drag", "wheel", "Shift", "to", "1", "5"}  # viser's own, and tabs
    bound = {key.lower().replace("escape", "esc") for key in bound}
    assert {key.lower() for key in told - flying} == bound


# ---- text that came from somebody ----------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_a_name_never_becomes_markup(text):
    """Neither HTML nor a mark of Gradio's templates survives, and the text itself does."""
    page = page_html.header(text, 1, 1, 0, "saved", "", "")
    plain = page_html.header("room", 1, 1, 0, "saved", "", "")
    parsed, expected = Tags(), Tags()
    parsed.feed(page)
    expected.feed(plain)
    assert parsed.tags == expected.tags
    assert "${" not in page and "{{" not in page
    assert html.unescape(page_html.esc(text)) == text


HOSTILE = '<img src=x onerror="alert(1)">\' ${alert(1)} {{7*7}} `'


def test_a_template_lacks_nothing():
    """A value that is missing, and one that no piece takes, are errors and not empty text."""
    with pytest.raises(UndefinedError):
        page_html.render("parts.html", "said")
    with pytest.raises(TypeError):
        page_html.render("parts.html", "said", text="x", colour="y")


def test_hostile_names_stay_text_everywhere_on_the_page(panel, session):
    """Names of capture, views, photos, files and clips, notices, errors: none becomes a tag."""

    def page(text: str) -> list[str]:
        """Everything the page shows of a session in which every name is this text."""
        views = tuple(replace(view, name=text) for view in small_scene().views)
        clips = tuple(replace(clip, prompt=text) for clip in small_scene().clips)
        named = {"views": views, "clips": clips, "notices": (text,)}
        session.scene = replace(small_scene(), name=text, **named)
        session.saving.state, session.notices, session.viewport.notices = text, (text,), (text,)
        small = torch.zeros((3, 5, 7), dtype=torch.uint8)
        session.job = FakeJob("add", reports=0)
        session.job.state = "done"
        photos = [AddedPhoto(text, status, text, small) for status in ("not found", "copy")]
        session.job.report = AddReport(tuple(photos), (text,))
        session.registration = SimpleNamespace(
            moved_px=torch.ones(5), agrees=[True, False] * 2 + [True], notices=(text,)
        )
        shown = [part.refresh(session) for part in panel.parts]
        for view in (0, len(views) - 1):
            for mode in ("Pixel", "References", "Sources"):
                shown.append(panel.memory._show(session, view, (20.5, 15.5), mode))
        session.sketch = replace(session.world.scene, name=text)
        session.job = FakeJob("open")
        shown += [part.preparing(session) for part in panel.parts]
        session.sketch, session.job = None, None

        def refuses(session: Any) -> dict:
            raise WorldStereoError(text)

        shown.append(panel.guarded(refuses)("token"))
        why = json.dumps({"#a": text})
        pieces = [
            page_html.progress(1, 2, text, None),
            page_html.preparing(1, 2, text, 3.0),
            page_html.cost(1, 2, 3, text, None, False),
            page_html.header(text, 1, 1, 1, text, text, text),
            page_html.hud(("measured", text)),
            page_html.tools(
                playing=False,
                recording=False,
                measuring=False,
                selecting=False,
                live=False,
                why={"play": text},
            ),
            page_html.reasons({why: text}),
            page_html.muted(text),
            page_html.empty(text),
            page_html.render("export.html", "progress", text=text),
            page_html.render("export.html", "written", serial=1, text=text),
            page_html.render(
                "generate.html",
                "about",
                name=text,
                rows=[
                    (GeneratorChoice(text, text, text, None, WarpGenerator), text),
                    (GeneratorChoice("off", text, text, None, WarpGenerator, text), ""),
                ],
                known=False,
            ),
            page_html.render("generate.html", "takes_up_to", keyframes=2, about=text),
            page_html.render(
                "world.html",
                "examples",
                tiles=[(SimpleNamespace(key=text, label=text, credit=text), "")],
            ),
        ]
        values = [value for updates in shown for value in updates.values()]
        return [value for value in values if isinstance(value, str)] + pieces

    hostile, harmless = page(HOSTILE), page("a name")
    assert sum("onerror" in text for text in hostile) > 15  # it is there, as text
    assert len(hostile) == len(harmless)
    for bad, good in zip(hostile, harmless, strict=True):
        found, expected = Tags(), Tags()
        found.feed(str.__str__(bad))
        expected.feed(str.__str__(good))
        assert found.tags == expected.tags and not found.handlers
        assert not re.search(r"\$\{|\{\{|`", bad)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (17.4, "17 s"), (100, "2 min"), (7200, "2.0 h")]
)
def test_durations_have_units(seconds, text):
    assert page_html.duration(seconds) == text


def test_reasons_survive_their_attribute():
    why = {'#a[b="c"]': "It isn't <there> & {never} was."}
    page = page_html.reasons(why)
    found = re.search(r'data-why="([^"]*)"', page)
    assert found is not None
    assert json.loads(html.unescape(found.group(1))) == why


def test_the_strip_shows_given_made_and_what_comes():
    scene = small_scene()
    thumbnails = page_html.Thumbnails()
    strip = page_html.film(scene.views, thumbnails, newest_step=1, planned=25)
    assert strip.count("<img") == len(scene.views)
    assert strip.count('class="pic new"') == 2
    assert "given" in strip and "step 1" in strip and "25 planned" in strip
    frames = [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 3
    running = page_html.film(scene.views, thumbnails, making=frames, total=11)
    assert "view 4 of 11" in running
    assert "Views appear here" in page_html.film((), thumbnails)


def test_thumbnails_do_not_keep_their_views():
    import gc

    thumbnails = page_html.Thumbnails()
    scene = small_scene()
    assert thumbnails(scene.views[0]) == thumbnails(scene.views[0])
    del scene
    gc.collect()
    assert len(thumbnails._made) == 0


# ---- the guard -----------------------------------------------------------------------------------


def test_an_unknown_token_gets_one_line(panel):
    answer = panel.guarded(panel.action.on_cancel)("nobody")
    assert html.escape(EXPIRED) in answer[panel.message]


def test_what_was_written_for_the_reader_is_shown_and_a_bug_is_not(panel, session, caplog):
    def refuses(session: Any) -> dict:
        raise WorldStereoError("The <file> is empty.")

    def breaks(session: Any) -> dict:
        raise ZeroDivisionError("secret path /home/x")

    shown = panel.guarded(refuses)("token")[panel.message]
    assert "The &lt;file&gt; is empty." in shown
    shown = panel.guarded(breaks)("token")[panel.message]
    assert page_html.esc(BUG) in shown and "secret" not in shown
    assert "secret" in caplog.text  # the log has it


def test_a_handler_that_changes_nothing_still_answers(panel, session):
    assert len(panel.guarded(lambda session: {})("token")) == 1


# ---- planning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_each_tile_plans_a_path_of_the_size_and_length_asked_for(session, preset):
    default = PRESETS[preset].parameter.default
    size = sizes(session.world.scene, None)[1][1]
    path = plan_path(session, settings_of(session, preset, value=default, size=size, frames=7))
    assert len(path) == 7
    assert f"{path.cameras.width}x{path.cameras.height}" == size


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "teleport"}, "no path named"),
        ({"value": float("nan")}, "between"),
        ({"value": 4000}, "between"),
        ({"value": None}, "must be a number"),
        ({"frames": 2.5}, "whole number"),
        ({"frames": 0}, "between"),
        ({"start": "there"}, "no start"),
        ({"preset": "keyframes"}, "at least 2 keyframes"),
        ({"preset": "flight"}, "Record a flight"),
    ],
)
def test_a_value_out_of_range_is_refused_in_the_words_of_the_page(session, changes, words):
    with pytest.raises(WorldStereoError, match=words) as refusal:
        plan_path(session, settings_of(session, **changes))
    assert "\n" not in str(refusal.value)


def test_no_path_without_a_world():
    with pytest.raises(WorldStereoError, match="There is no world yet"):
        plan_path(FakeSession(Scene()), settings_of(FakeSession(Scene())))  # type: ignore[arg-type]


@given(st.integers(1, 200), st.integers(1, 17), st.integers(1, 40), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_the_frames_on_offer_are_accepted(least, step, extra, wanted):
    limits = GeneratorLimits(name="x", min_frames=least, max_frames=least + extra, frame_step=step)
    frames = accepted_frames(wanted, limits)
    assert least <= frames <= least + extra and (frames - least) % step == 0


def test_the_sizes_on_offer_fit_the_generator_and_the_first_view(session):
    limits = GeneratorLimits(name="x", size_multiple=16, max_pixels=640 * 512)
    offered = [tuple(map(int, value.split("x"))) for _, value in sizes(session.world.scene, limits)]
    assert offered
    for width, height in offered:
        assert width % 16 == 0 and height % 16 == 0 and width * height <= limits.max_pixels
        assert abs(width / height - WIDTH / HEIGHT) < 0.1


def test_another_shape_is_cropped_and_never_stretched(session):
    """A pixel of the new picture looks where the same pixel of the old one did."""
    camera = session.world.scene.views[0].cameras
    wide = reframed(camera, 2 * WIDTH, HEIGHT)
    assert float(wide.K[0, 0] / wide.K[1, 1]) == pytest.approx(
        float(camera.K[0, 0] / camera.K[1, 1])
    )
    middle = camera.unproject(camera.K.new_tensor([[WIDTH / 2, HEIGHT / 2]]), camera.K.new_ones(1))
    pixels, _ = wide.project(middle)
    assert pixels[0].tolist() == pytest.approx([WIDTH, HEIGHT / 2], abs=1e-3)


# ---- handlers ------------------------------------------------------------------------------------


def plan_inputs(**changes: Any) -> list[Any]:
    values = {
        "preset": "orbit",
        "value": 20,
        "start": "first",
        "frames": 5,
        "size": "",
        "name": "warp",
    }
    return list((values | changes).values())


def test_a_tile_moves_the_slider_plans_and_previews(panel, session):
    *_, last = list(panel.guarded(panel.path.on_preset)("token", *plan_inputs(preset="dolly")))
    assert session.planned.path is not None and session.planned.path.name == "dolly"
    assert "20 % unknown" not in text_of(last[panel.path.preview])
    assert "% unknown" in text_of(last[panel.path.preview])
    assert "Too close." in text_of(last[panel.path.preview])
    assert session.asked[-1] == ("preview", (0,), {"final": True})


def test_sliding_shows_a_draft_and_resting_the_final(panel, session):
    list(panel.guarded(panel.path.on_plan)("token", *plan_inputs()))
    panel.guarded(panel.path.on_scrub)("token", 3)
    assert session.asked[-1] == ("preview", (2,), {"final": False})
    panel.guarded(panel.path.on_rest)("token", 3)
    assert session.asked[-1] == ("preview", (2,), {"final": True})
    panel.guarded(panel.path.on_rest)("token", 999)  # the path became shorter meanwhile
    assert session.asked[-1] == ("preview", (4,), {"final": True})


def test_a_tile_that_there_is_not_is_refused(panel, session):
    with pytest.raises(WorldStereoError, match="no path named 'spiral of'"):
        list(panel.path.on_preset(session, "spiral of", 20, "first", 5, "", "warp"))


def test_two_keyframes_make_a_path(panel, session):
    list(panel.guarded(panel.path.on_keyframe)("token", *plan_inputs()))
    assert session.planned.path is None
    list(panel.guarded(panel.path.on_keyframe)("token", *plan_inputs()))
    assert session.planned.path is not None and len(session.planned.path) == 5


@pytest.mark.parametrize("active", [0, 1, 2, -1, None, "x", 99])
def test_a_dragged_keyframe_is_what_the_preview_shows(panel, session, active):
    for _ in range(3):
        session.viewport.add_keyframe()
    keys, data = session.viewport.keyframes, {"active": active, "settled": True}
    answer = panel.path.keyframes_changed(session, data, *plan_inputs())
    shown = session.asked[-1][1][0]
    assert answer[panel.path.frame]["value"] == shown + 1
    wanted = active if active in (1, 2) else 0
    torch.testing.assert_close(
        session.planned.path.cameras.position[shown], keys[wanted].position, atol=0.05, rtol=0
    )
    assert panel.path.keyframes_changed(session, data, *plan_inputs()).keys() == {panel.path.keys}


def test_the_registration_switch_is_off_with_its_reason_where_it_cannot_help(panel, session):
    switch = panel.world.registered
    assert panel.world.refresh(session)[switch]["interactive"]
    assert "#registered" not in panel.world.why_not(session)
    by_poses = tuple(
        replace(view, kind=torch.full_like(view.kind, int(DepthKind.STEREO)))
        for view in session.world.scene.views
    )
    session.scene = replace(session.world.scene, views=by_poses)
    assert not panel.world.refresh(session)[switch]["interactive"]
    assert "from the poses" in panel.world.why_not(session)["#registered"]
    assert "from the poses" in text_of(panel.world.refresh(session)[panel.world.table])


def test_a_recorded_flight_becomes_the_plan(panel, session):
    list(panel.guarded(panel.path.on_record)("token", *plan_inputs()))
    assert session.viewport.recording
    list(panel.guarded(panel.path.on_record)("token", *plan_inputs(frames=7)))
    assert (
        session.planned.path is not None
        and session.planned.path.name == "flight"
        and len(session.planned.path) == 7
    )


WISH = ["warp", "", 7, "", 4, 5]


def test_generate_starts_the_job_follows_it_and_shows_the_world(panel, session):
    list(panel.guarded(panel.path.on_plan)("token", *plan_inputs()))
    answers = list(panel.guarded(panel.generate.on_generate)("token", *WISH))
    name, values, named = next(asked for asked in session.asked if asked[0] == "explore")
    assert values[0] is session.planned.path and named["seed"] == 7
    assert "prompt" not in named  # this generator reads none
    strips = [answer[panel.strip.film] for answer in answers if panel.strip.film in answer]
    assert any("view 2 of 2" in strip or "pic new" in strip for strip in strips)
    busy = [
        "progressbar" in answer[panel.action.status]
        for answer in answers
        if panel.action.status in answer
    ]
    assert busy[0] is True and busy[-1] is False


@pytest.mark.parametrize(
    ("index", "value", "words"),
    [
        (0, "magic", "no generator named"),
        (0, "diffusion", "No weights found"),
        (2, -1, "seed must be between"),
        (2, 0.5, "seed must be a whole number"),
    ],
)
def test_a_bad_wish_is_refused_before_anything_starts(panel, session, index, value, words):
    list(panel.guarded(panel.path.on_plan)("token", *plan_inputs()))
    wish = [*WISH]
    wish[index] = value
    answers = list(panel.guarded(panel.generate.on_generate)("token", *wish))
    assert words in text_of(answers[-1][panel.message])
    assert session.job is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Cancelled("stopped"), "The world is unchanged"),
        (WorldStereoError("room.zip: holds no picture."), "holds no picture"),
        (MemoryError("secret"), BUG),
    ],
)
def test_a_job_that_ends_badly_leaves_one_line(panel, session, error, words):
    list(panel.guarded(panel.path.on_plan)("token", *plan_inputs()))
    session.next_error = error
    answers = list(panel.guarded(panel.generate.on_generate)("token", *WISH))
    lines = [text_of(a[panel.message]) for a in answers if panel.message in a]
    assert words in lines[-1] and "secret" not in lines[-1]


def test_cancel_asks_the_job_and_says_so(panel, session):
    session.explore(None)
    answer = panel.guarded(panel.action.on_cancel)("token")
    assert session.job is not None and session.job.cancelled
    assert answer[panel.action.stop]["interactive"] is False


def test_undo_while_something_runs_is_refused_in_place(panel, session):
    session.next_error = WorldBusy("This world is being changed.")
    answer = panel.guarded(lambda s: panel.on_undo(s, {}))("token")
    assert "being changed" in text_of(answer[panel.message])


def test_a_visit_without_a_world_opens_the_first_example(panel):
    class Request:
        query_params = {"world": "lost"}

    answers = list(panel.on_load(Request()))
    token = answers[0][panel.token]
    session = panel.sessions.get(token)
    assert session.asked[0][:2] == ("example", ("room",))
    assert f"viewport/{token}/" in answers[0][panel.viewport_panel.viewport]
    assert "a new one" in text_of(answers[0][panel.message])
    again = list(panel.on_load(type("R", (), {"query_params": {"world": token}})()))
    assert again[0][panel.token] == token


def test_while_a_world_is_prepared_the_page_says_so_and_offers_nothing_of_it(panel, session):
    session.sketch = Scene(-1, "shelf", session.world.scene.views[:2], session.world.scene.cloud)
    session.job = FakeJob("open")
    session.job.reports = 9
    answers = panel.guarded(panel.on_opened)("token")
    first, second, third = next(answers), next(answers), next(answers)
    assert "shelf" in first[panel.header.bar] and "being prepared" in first[panel.header.bar]
    assert (
        "points" not in first[panel.header.bar] and first[panel.strip.film].count('class="pic') == 2
    )
    assert "Raw preview" in first[panel.hud.chip]
    assert 'role="progressbar"' in second[panel.action.status]  # in the place of the button
    assert "world is ready" in third[panel.path.preview]
    assert first[panel.hud.tools].count("disabled") == 8
    for kind in ("pick", "view", "measure", "selection"):
        assert panel.viewport_panel.on_stage(session, {"kind": kind, "index": 0}, "Pixel") == {}
    flown = panel.viewport_panel.on_fly(session, {"view": 1})
    assert flown == {} and session.viewport.named("fly_to")


def test_nothing_of_the_old_world_is_told_or_done_while_a_new_one_is_prepared(panel, session):
    """Every tab says so; what a script sends past the page is refused, and changes nothing."""
    list(panel.guarded(panel.path.on_plan)("token", *plan_inputs()))
    before = panel.follow.refresh(session)
    assert "Generated clips" in before[panel.world.facts]
    session.job, path = FakeJob("open"), session.planned.path
    session.job.reports = 9
    for sketch, name in (
        (None, "A new world"),
        (Scene(-1, "shelf", session.world.scene.views), "shelf"),
    ):
        session.sketch = sketch
        shown = next(panel.follow.job(session))
        assert f"{name} is being prepared" in shown[panel.world.facts]
        assert "room is kept" in shown[panel.world.facts]
        assert "Generated clips" not in shown[panel.world.facts]
        assert "Shown when" in shown[panel.world.table]
        rows = shown[panel.export.list]
        assert rows.count(" disabled") == rows.count("<button") > 5
        why = html.unescape(shown[panel.action.why])
        for control in ("#registered", "#set-scale", "#set-up", "#delete", "#amount", "#frames"):
            assert f'"{control}": "A new world is being prepared' in why
    assert "being prepared" in shown[panel.memory.card]
    for handler, values in (
        (panel.path.on_plan, plan_inputs()),
        (panel.memory.on_mode, (1, 3, 3, "Pixel", 1, 1)),
    ):
        answers = panel.guarded(handler)("token", *values)
        answers = [answers] if isinstance(answers, dict) else list(answers)
        assert "being prepared" in text_of(answers[-1][panel.message])
    with pytest.raises(WorldBusy, match="being prepared"):
        list(panel.export.on_export(session, {"key": "ply"}, True))
    assert session.planned.path is path
    session.job.state, session.sketch = "done", None
    assert "Generated clips" in panel.follow.refresh(session)[panel.world.facts]


def test_a_quick_job_that_is_over_when_it_is_followed_keeps_its_film(panel, session):
    """A page asks two seconds after any job began; its own film may be playing by then."""
    session.job = FakeJob("explore", reports=0)
    assert list(session.job) and session.job.over
    (answer,) = panel.guarded(panel.on_follow)("token", {})
    assert panel.header.bar in answer and panel.film.screen not in answer
    session.job.kind = "open"
    (answer,) = panel.guarded(panel.on_follow)("token", {})
    assert answer[panel.film.screen] == ""


def test_a_reload_finds_path_preview_and_a_picture_to_inspect(panel, session):
    list(panel.guarded(panel.path.on_plan)("token", *plan_inputs()))
    answers = list(panel.guarded(panel.on_opened)("token"))
    shown = {key for answer in answers for key in answer}
    assert {panel.strip.film, panel.header.bar, panel.action.status, panel.path.preview} <= shown
    cards = [answer[panel.memory.card] for answer in answers if panel.memory.card in answer]
    assert 'id="pixels"' in cards[-1]


def test_uploads_must_have_arrived(panel, session, tmp_path):
    for bad in (None, 5, str(tmp_path / "none.ply"), ["a"]):
        answers = list(panel.guarded(panel.world.on_upload, panel.world.problem)("token", bad))
        assert "did not arrive" in text_of(answers[-1][panel.world.problem])
    file = tmp_path / "cloud.ply"
    file.write_bytes(b"ply")
    list(panel.guarded(panel.world.on_upload)("token", str(file)))
    opened = [values for name, values, _ in session.asked if name == "open"]
    assert opened == [(file, "cloud.ply")]
    other = tmp_path / "b.jpg"
    other.write_bytes(b"jpg")
    list(panel.guarded(panel.world.on_upload)("token", [str(file), str(other)]))
    opened = [values for name, values, _ in session.asked if name == "open"]
    assert opened[1:] == [([file, other], "2 photos")]


def test_pictures_that_were_not_placed_stand_beside_the_numbers(panel, session):
    """Name and reason of each, as text; while a file is read its pictures are seen."""
    thumbnail = torch.zeros(3, 9, 16, dtype=torch.uint8)
    session.left_out = (LeftOut("<b>.jpg", "too blurred or plain", thumbnail),)
    facts = panel.world.refresh(session)[panel.world.facts]
    assert 'id="left-out"' in facts and "&lt;b&gt;.jpg" in facts and "too blurred" in facts
    session.job = FakeJob("open")
    session.job.frames = [np.zeros((9, 16, 3), np.uint8)] * 2
    assert session.preparing
    assert panel.world.preparing(session)[panel.world.facts].count('class="tile"') == 2


def test_a_depth_model_is_had_by_one_press(panel, session, tmp_path):
    """Offered while there is none; followed, stopped, refused in one line; then it is named."""
    begun, go = threading.Event(), threading.Event()

    def download(on_step):
        on_step(1 << 20, 3 << 20, "Getting a/b: 1 of 3 MB")
        begun.set()
        while not go.wait(0.01):
            on_step(1 << 20, 3 << 20, "Getting a/b: 1 of 3 MB")
        raise WorldStereoError("a/b: the hub cannot be reached from here. Connect.")

    session.shared.depth_model = DepthModel(True, download)
    world = panel.world
    shown = world.refresh(session)
    assert shown[world.get_model]["visible"] and "rough layout" in text_of(shown[world.model_line])
    answers = []
    thread = threading.Thread(
        target=lambda: answers.extend(panel.guarded(world.on_get_model, world.model_line)("token"))
    )
    thread.start()
    assert begun.wait(10)
    assert session.shared.depth_model.get() is session.shared.depth_model.job  # once, whoever asks
    assert not world.refresh(session)[world.get_model]["visible"]
    world.on_stop_model(session)
    thread.join(10)
    assert any("1 of 3 MB" in text_of(a.get(world.model_line, "")) for a in answers)
    assert "goes on from there" in text_of(answers[-1][world.model_line])
    go.set()
    last = list(panel.guarded(world.on_get_model, world.model_line)("token"))[-1]
    assert (
        "cannot be reached" in text_of(last[world.model_line]) and last[world.get_model]["visible"]
    )
    session.shared.depth_model = DepthModel(False, download)
    assert not world.refresh(session)[world.get_model]["visible"]


def test_photos_are_added_and_told_of_one_by_one(panel, session, tmp_path):
    """Each that was left out with its reason, until the step is undone; names are no markup."""
    files = [tmp_path / "hall.jpg", tmp_path / "kitchen.jpg"]
    for file in files:
        file.write_bytes(b"jpg")
    add = panel.guarded(panel.world.on_photos, panel.world.placed)
    for bad in (None, 5, str(files[0]), [str(tmp_path / "none.jpg")], [5]):
        answers = list(add("token", bad))
        assert "did not arrive" in text_of(answers[-1][panel.world.placed])
    answers = list(add("token", [str(file) for file in files]))
    assert [values for name, values, _ in session.asked if name == "add"] == [(files,)]
    small = torch.zeros((3, 5, 7), dtype=torch.uint8)
    last = len(session.world.scene.views) - 1
    session.job.report = AddReport(
        (
            AddedPhoto("hall.jpg", "added", "", small, view=last),
            AddedPhoto("kitchen.jpg", "not found", "8 matches agree on no single place", small),
            AddedPhoto("<b>.jpg", "copy", "shows the same picture as hall.jpg", small),
            AddedPhoto("far.jpg", "doubtful", "seen from far away", small),
        ),
        ("torn.jpg: is damaged.",),
    )
    shown = panel.world.refresh(session)[panel.world.placed]
    told = " ".join(text_of(shown).split())
    assert told == (
        "1 of 4 photos placed. "
        "kitchen.jpg: left out, no place found (8 matches agree on no single place) "
        "<b>.jpg: left out, it shows the same picture as hall.jpg "
        "far.jpg: left out, its place is uncertain (seen from far away) "
        "torn.jpg: is damaged."
    )
    assert "<b>" not in shown
    session.scene = replace(session.world.scene, views=session.world.scene.views[:-1])  # undone
    assert panel.world.refresh(session)[panel.world.placed] == ""


def test_photos_can_be_added_only_where_there_are_views(panel):
    def offered(session: FakeSession) -> tuple[bool, str]:
        button = panel.world.refresh(session)[panel.world.more]
        return button["visible"], panel.world.why_not(session).get("#add-photos", "")

    assert offered(FakeSession()) == (True, "")
    points = replace(small_scene(), views=())
    assert offered(FakeSession(points)) == (True, "This world has no views to match against.")
    assert offered(FakeSession(Scene()))[0] is False
    busy = FakeSession()
    busy.set_registration(True)
    assert offered(busy) == (True, BUSY)


@pytest.mark.parametrize("visited", [False, True])
def test_a_world_is_drawn_ahead_only_until_somebody_comes(panel, session, visited, monkeypatch):
    """The visit draws the same; two at once would make it wait."""
    session.job = FakeJob("open")
    session.job.state = "done"
    monkeypatch.setattr(panel.sessions, "is_ahead", lambda one: not visited, raising=False)
    panel.prepare(session)
    assert (session.planned.path is None) is visited


@pytest.fixture
def written(monkeypatch) -> list[tuple[str, dict[str, Any]]]:
    """Formats and options that exports were asked for; nothing is written."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def export(scene: Scene, fmt: str, *, on_step: Any = None, **options: Any) -> bytes:
        calls.append((fmt, options))
        return b"content"

    monkeypatch.setattr(exports, "export", export)
    return calls


def test_an_export_is_written_once_and_its_folder_removed(panel, session, written):
    stream = panel.guarded(lambda s, *v: panel.export.on_export(s, *v))(
        "token", {"key": "ply"}, False
    )
    answers = list(stream) if not isinstance(stream, dict) else [stream]
    named = [a[panel.export.file] for a in answers if panel.export.file in a]
    assert Path(named[-1]["value"]).name == exports.file_name(session.world.scene, "ply")
    assert not Path(named[-1]["value"]).exists()
    assert written == [("ply", {"generated": False})]


def test_the_mesh_is_shown_in_the_viewport_and_hidden_again(panel, session):
    """With the options that the mesh formats would be written with; progress can be cancelled."""
    tab = panel.export
    texts = [a[tab.said] for a in tab.on_preview(session, False, "fine") if tab.said in a]
    assert session.asked[-1] == ("preview_mesh", (), {"generated": False, "quality": "fine"})
    assert session.viewport.mesh_shown and any("export-cancel" in text for text in texts)
    assert tab.refresh(session)[tab.preview]["value"] == "Show points in the viewport"
    list(tab.on_preview(session, False, "fine"))
    assert not session.viewport.mesh_shown and session.asked[-1][0] == "preview_mesh"
    empty = FakeSession(Scene())
    assert tab.refresh(empty)[tab.preview]["interactive"] is False


def test_a_quality_changes_what_a_mesh_will_cost(panel, session):
    """Draft is smaller than fine; points cost what they did; an unknown one is refused."""
    tab = panel.export
    n = len(session.world.scene.cloud)
    cloud = replace(session.world.scene.cloud, radii=torch.full((n,), 0.03))
    session = FakeSession(replace(session.world.scene, cloud=cloud))
    sizes = [exports.estimate(session.world.scene, "mesh-glb", quality=q).bytes for q in QUALITIES]
    assert sizes[0] < sizes[1] < sizes[2]
    draft, fine = (tab.on_asked(session, q)[tab.list] for q in ("draft", "fine"))
    assert draft != fine
    one = exports.estimate(session.world.scene, "ply", quality="fine")
    assert one == exports.estimate(session.world.scene, "ply")
    with pytest.raises(ExportError, match="one of draft, standard, fine"):
        tab.on_asked(session, "perfect")


def test_the_page_to_send_is_as_large_as_asked(panel, session, written):
    """The slider reaches the writer and the size that is told before; other formats ignore it."""
    tab = panel.export
    n = 2_000_000
    cloud = PointCloud.of(torch.zeros(n, 3), torch.zeros(n, 3))
    large = FakeSession(replace(session.world.scene, cloud=cloud))
    small, usual = (exports.estimate(large.world.scene, "html", megabytes=m).bytes for m in (5, 15))
    assert small == 5e6 < usual <= 15e6
    assert (
        tab.on_asked(large, "standard", 5)[tab.list]
        != tab.on_asked(large, "standard", 15)[tab.list]
    )
    list(tab.on_export(session, {"key": "html"}, True, "standard", 5))
    assert written[-1] == ("html", {"generated": True, "megabytes": 5.0})
    list(tab.on_export(session, {"key": "ply"}, True, "standard", 5))
    assert written[-1][0] == "ply" and "megabytes" not in written[-1][1]
    for wrong in (0, 1e9, "x", None, float("nan")):
        with pytest.raises(WorldStereoError, match="Page size"):
            tab.on_asked(large, "standard", wrong)


def test_formats_that_cannot_be_written_say_why(panel):
    empty = panel.export._formats(FakeSession(Scene()))
    full = panel.export._formats(FakeSession())
    assert empty.count("disabled") > full.count("disabled")
    assert "Generate one first" in empty and "Generate one first" not in full


# ---- what the page sends -------------------------------------------------------------------------


@pytest.mark.parametrize("data", [{}, {"view": 99}, {"view": "x"}, {"view": None}, {"view": -1}])
def test_a_picture_that_is_not_there_is_refused(panel, session, data):
    with pytest.raises(WorldStereoError):
        panel.viewport_panel.on_fly(session, data)


def test_flying_goes_to_the_view_itself(panel, session):
    panel.viewport_panel.on_fly(session, {"view": "2"})
    assert session.viewport.named("fly_to")[0][0] is session.world.scene.views[2].cameras


@pytest.mark.parametrize(
    ("renderer", "drawing"),
    [
        ("ANGLE (Google, Vulkan 1.3.0 (SwiftShader Device), SwiftShader driver)", "points"),
        ("llvmpipe (LLVM 15.0.7, 256 bits)", "points"),
        ("ANGLE (NVIDIA, NVIDIA GeForce RTX 3060, OpenGL 4.5)", "surface"),
        ("Apple M2", "surface"),
        ("none", "points"),
    ],
)
def test_the_renderer_chooses_the_drawing(panel, session, renderer, drawing):
    for still in (True, False):
        answer = panel.viewport_panel.on_renderer(session, {"name": renderer, "still": still})
        assert session.viewport.still is still
    assert ("WebGL is off" in text_of(answer.get(panel.message, ""))) == (renderer == "none")
    assert ("set_drawing", (drawing,), {"by_hand": False}) in session.asked


def test_a_click_in_the_stage_opens_memory_on_the_point(panel, session):
    view = session.world.scene.views[0]
    at = view.cameras.unproject(
        view.cameras.K.new_tensor([[20.5, 17.5]]), view.depth[0, 17, 20][None]
    )[0]
    answer = panel.viewport_panel.on_stage(session, {"kind": "pick", "point": at.tolist()}, "Pixel")
    assert answer[panel.tabs]["selected"] == "memory"
    assert "<line" in answer[panel.memory.card] or "Attention" in answer[panel.memory.card]
    with pytest.raises(WorldStereoError, match="No stored view"):
        panel.viewport_panel.on_stage(session, {"kind": "pick", "point": [1e3, 1e3, -1e3]}, "Pixel")
    with pytest.raises(WorldStereoError):
        panel.viewport_panel.on_stage(session, {"kind": "pick", "point": [1, 2]}, "Pixel")
    with pytest.raises(WorldStereoError, match="not known here"):
        panel.viewport_panel.on_stage(session, {"kind": "view", "index": float("inf")}, "Pixel")


def test_a_click_in_a_picture_lands_on_that_pixel(panel, session):
    [answer] = panel.memory.on_pixel(session, {"view": "3", "x": 0.5, "y": 0.25}, 1, "Pixel")
    assert answer[panel.memory.u] == WIDTH // 2 and answer[panel.memory.v] == HEIGHT // 4
    assert answer[panel.memory.view]["value"] == 4
    card = answer[panel.memory.card]
    assert "confidence" in card and 'id="attention"' in card
    assert session.viewport.named("show_matches")[-1][0] is not None
    with pytest.raises(WorldStereoError, match="place in the picture"):
        list(panel.memory.on_pixel(session, {"view": "3", "x": "nan", "y": 0}, 1, "Pixel"))
    for view in ("NaN", float("nan"), None, 10**400):
        with pytest.raises(WorldStereoError, match="view must be"):
            list(panel.memory.on_pixel(session, {"x": 0.5, "y": 0.25}, view, "Pixel"))
    empty: Any = FakeSession(Scene())
    with pytest.raises(WorldStereoError, match="no view to inspect"):
        list(panel.memory.on_pixel(empty, {"x": 0.5, "y": 0.25}, 1, "Pixel"))


@pytest.mark.parametrize("mode", ["References", "Sources", "Pixel"])
def test_each_mode_of_memory_shows_the_view(panel, session, mode):
    answer = panel.memory.on_mode(session, 4, 0, 0, mode)
    assert 'id="pixels"' in answer[panel.memory.card] and "View 4" in answer[panel.memory.card]
    given = panel.memory.on_mode(session, 1, 0, 0, mode)
    assert "input view" in given[panel.memory.card].lower()


def test_the_memory_tab_shows_which_keypoint_entries_voted_for_a_reference(panel, session):
    """A view with its count, or one line where nobody voted or a step is running."""
    assert (
        "No keypoint entry"
        in panel.memory.on_mode(session, 1, 0, 0, "References")[panel.memory.card]
    )
    many = np.arange(3)
    pixels = np.array([[3.5, 4.5], [10.5, 8.5], [20.5, 15.5]])
    session.voted = (
        SimpleNamespace(view=2, votes=0.4, entries=many, weights=np.ones(3), pixels=pixels),
        SimpleNamespace(view=1, votes=0.1, entries=many[:1], weights=np.ones(1), pixels=pixels[:1]),
    )
    card = panel.memory.on_mode(session, 1, 0, 0, "References")[panel.memory.card]
    assert 'id="votes"' in card and "view 3, 3 entries" in card and "view 2, 1 entry" in card

    def busy() -> None:
        raise WorldBusy("A step is running.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ui.inspector.votes", lambda *_: busy())
        card = panel.memory.on_mode(session, 1, 0, 0, "References")[panel.memory.card]
    assert "when the running step is finished" in card


def test_an_unknown_event_of_the_stage_changes_nothing_of_note(panel, session):
    answer = panel.viewport_panel.on_stage(session, {"kind": "surprise"}, "Pixel")
    assert set(answer) == {panel.hud.chip, panel.hud.tools}


def test_of_two_keys_the_later_state_stays_on_the_page(panel, session):
    """M twice within milliseconds, and the answer to the first comes last."""
    line, tools = panel.hud.chip, panel.hud.tools
    function = next(f for f in panel.demo.fns.values() if line in f.outputs)
    on, off = panel.world.on_measure(session), panel.world.on_measure(session)
    assert "click two points" in text_of(on[line]) and "click two" not in text_of(off[line])

    def sent(updates: Any, state: SessionState) -> list[Any]:
        outputs = asyncio.run(panel.demo.postprocess_data(function, updates, state))
        return [outputs[function.outputs.index(part)] for part in (line, tools)]

    page, other = SessionState(panel.demo), SessionState(panel.demo)
    assert sent(on, page) == [on[line], on[tools]]
    assert sent(off, page) == [off[line], off[tools]]
    assert sent(on, page) == [gr.skip(), gr.skip()]
    assert sent(on, other) == [on[line], on[tools]]  # it was sent nothing later


def test_a_path_to_the_unseen_has_the_size_that_is_asked_for(panel, session):
    scene = session.world.scene
    K = scene.views[0].cameras.K
    K = K * torch.tensor([[2.0], [2.0], [1.0]])
    camera = Cameras(K, scene.views[0].cameras.c2w, 2 * WIDTH, 2 * HEIGHT)
    session.unseen = type(session.unseen)(scene, (NextView(camera, 0.5, 0.5),))
    for size in [entry[1] for entry in sizes(scene, None)]:
        plan_path(session, settings_of(session, "unseen", size=size))
        path = session.planned.path.cameras
        assert f"{path.width}x{path.height}" == size
        larger = max(path.width / camera.width, path.height / camera.height)
        assert float(path.K[0, 0, 0]) == pytest.approx(float(larger * K[0, 0]), rel=1e-5)


def test_gradio_is_imported_whole_but_writes_no_stubs(tmp_path, monkeypatch):
    from gradio import component_meta

    from ui.page import gradio_import as panel_import

    assert hasattr(component_meta, panel_import.STUBS)  # or there is nothing left to leave out
    text = f"def {panel_import.STUBS}(*_):\n    raise OSError\nother = 7\n"
    (tmp_path / "stubby.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(panel_import, "MODULE", "stubby")
    finders = list(sys.meta_path)
    with panel_import.without_stubs():
        stubby = importlib.import_module("stubby")
    assert stubby.other == 7 and getattr(stubby, panel_import.STUBS)(1, 2) is None
    assert sys.meta_path == finders


def test_a_choice_that_is_no_longer_on_offer_reaches_the_handler(panel, session):
    """Another world has other sizes; a page that has not heard of them yet gets no notice."""
    from gradio.state_holder import SessionState

    tab, view = panel.generate, panel.memory.view
    stale = {
        panel.clip.size: "13x7",
        panel.clip.frames: 2000,
        tab.seed: -4,
        panel.clip.guide: "?",
        view: 999,
    }
    seen = 0
    for fn in panel.demo.fns.values():
        asked = [i for i, component in enumerate(fn.inputs) if component in stale]
        values = [stale.get(c, "token" if c is panel.token else c.value) for c in fn.inputs]
        if asked:
            with quietly():
                got = asyncio.run(panel.demo.preprocess_data(fn, values, SessionState(panel.demo)))
            assert [got[i] for i in asked] == [values[i] for i in asked]
            seen += 1
    assert seen > 12


@pytest.mark.parametrize("hosted", [False, True])
def test_a_hosted_space_takes_less_from_strangers(hosted: bool, monkeypatch: pytest.MonkeyPatch):
    from ui import __main__ as app
    from worldstereo.inputs.limits import LOCAL, SPACE

    monkeypatch.delenv("SPACE_ID", raising=False)
    if hosted:
        monkeypatch.setenv("SPACE_ID", "someone/worldstereo")
    assert app.sessions_config(app.AppConfig()).limits is (SPACE if hosted else LOCAL)
