"""The Path tab: presets, keyframes, flights, and a preview of what the generator will see."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from worldstereo.cameras import Cameras
from worldstereo.errors import WorldStereoError
from worldstereo.trajectory import PRESETS, Trajectory

from ...inspector import tinted
from ...session.session import PREPARING
from ...session.sessions import Session
from .. import html
from ..action import Action
from ..catalogue import tr, trn
from ..clip_controls import ClipControls
from ..core import BUSY, Core, Part, Updates, html_block, segmented, status_line
from ..hud import Hud
from ..settings import (
    FIRST_PRESET,
    FLIGHT,
    KEYFRAMES,
    STARTS,
    UNSEEN,
    Settings,
    parameter,
    parse_int,
    path_named,
    plan_path,
)
from ..strip import Strip

UNITS = {"deg": "degrees", "%": "% of the distance", "x": "times"}
OF_THIS_PATH = ("#presets", "#amount", "#start", "#add-keyframe", "#remove-keyframe")
OF_THIS_PATH += ("#clear-keyframes", "#record", "#frame", "#look")
WAITING = {
    KEYFRAMES: "No path yet. Fly somewhere and press K, fly on and press K again.",
    FLIGHT: "No path yet. Press F, fly through the viewport, press F again.",
}


class PathTab(Part):
    def __init__(
        self, core: Core, action: Action, strip: Strip, hud: Hud, clip: ClipControls
    ) -> None:
        self.core, self.action, self.strip, self.hud, self.clip = core, action, strip, hud, clip

    def build(self) -> None:
        register = self.core.register
        gr.Markdown("## " + tr("Path"))
        tiles = [(tr("Unseen"), UNSEEN)]
        tiles += [(tr(name.replace("_", " ").capitalize()), name) for name in PRESETS]
        tiles += [(tr("Keyframes"), KEYFRAMES), (tr("My flight"), FLIGHT)]
        self.preset = register(
            gr.Radio(
                tiles,
                value=UNSEEN,  # as the first path of most worlds is: nothing jumps when it comes
                label=tr("Path"),
                show_label=False,
                container=False,
                elem_classes="presets",
                elem_id="presets",
            )
        )
        self.about = register(html_block(self._about(UNSEEN)))
        self.look = register(
            gr.Button(
                tr("Show where most is unseen"),
                size="sm",
                icon=str(html.ICONS / "crosshair.svg"),
                elem_classes="tint",
                elem_id="look",
            )
        )
        hidden: dict[str, Any] = {}
        hidden.update(slider_of(FIRST_PRESET), visible=False)
        self.value = register(gr.Slider(**hidden, elem_id="amount"))
        starts = [(tr(label), key) for key, label in STARTS.items()]
        self.start = register(
            segmented(starts, "first", tr("From"), "start", titled=True, visible=False)
        )
        with gr.Row(visible=False) as tools:
            icons = html.ICONS
            add = gr.Button(
                tr("Keyframe here"),
                size="sm",
                icon=str(icons / "plus.svg"),
                elem_classes="tint",
                elem_id="add-keyframe",
                min_width=120,
            )
            self.back = gr.Button(
                tr("Remove last"),
                size="sm",
                elem_id="remove-keyframe",
                min_width=80,
            )
            clear = gr.Button(
                tr("Clear"),
                size="sm",
                elem_id="clear-keyframes",
                min_width=60,
            )
            self.add, self.clear = register(add), register(clear)
            register(self.back)
            self.record = register(
                gr.Button(
                    tr("Record"),
                    size="sm",
                    icon=str(icons / "circle-dot.svg"),
                    elem_classes="tint",
                    elem_id="record",
                    min_width=80,
                )
            )
        self.tools = register(tools)
        self.keys = register(status_line())
        gr.Markdown("## " + tr("Preview"))
        self.preview = register(
            html_block(html.empty(tr("The preview appears with the path.")), elem_id="preview")
        )
        self.frame = register(gr.Slider(1, 25, 1, step=1, label=tr("Frame"), elem_id="frame"))
        self.problem = register(status_line())

    @property
    def inputs(self) -> list[Any]:
        """What `Settings.of` takes, in its order."""
        return [self.preset, self.value, self.start, *self.clip.inputs]

    def wire(self) -> None:
        on, bridge = self.core.on, self.core.bridge
        on(self.preset.input, self.on_preset, lambda: self.inputs, says=self.problem)
        on(self.start.input, self.on_plan, lambda: self.inputs, says=self.problem)
        on(self.value.input, self.on_drag, lambda: self.inputs, says=self.problem, latest=True)
        on(self.value.release, self.on_plan, lambda: self.inputs, says=self.problem)
        on(self.frame.input, self.on_scrub, [self.frame], says=self.problem, latest=True)
        on(self.frame.release, self.on_rest, [self.frame], says=self.problem)
        on(self.add.click, self.on_keyframe, lambda: self.inputs, says=self.problem)
        on(self.look.click, self.on_look, says=self.problem)
        on(self.back.click, self.on_back, lambda: self.inputs, says=self.problem)
        on(self.clear.click, self.on_clear, lambda: self.inputs, says=self.problem)
        on(self.record.click, self.on_record, lambda: self.inputs, says=self.problem)
        bridge("ghost", self.on_ghost, self.inputs, says=self.problem)
        bridge("keyframe", self.on_key_keyframe, self.inputs, says=self.problem)
        bridge("record", self.on_key_record, self.inputs, says=self.problem)
        bridge("scrub", self.on_step, [self.frame], says=self.problem)

    def refresh(self, session: Session) -> Updates:
        frames = len(session.planned.path) if session.planned.path else 25
        return {
            self.frame: gr.update(maximum=max(2, frames)),
            self.keys: self._keyframes(session),
            self.record: gr.update(
                value=tr("Stop") if session.viewport.recording else tr("Record")
            ),
        }

    def opened(self, session: Session) -> Updates:
        """A page that opens on a planned path: its tile, slider and start as they were left."""
        settings = session.planned.settings
        updates: Updates = {self.clip.guide: session.planned.guide}
        if session.planned.path is None or not isinstance(settings, Settings):
            return updates
        updates |= {self.preset: settings.preset, self.start: settings.start}
        updates |= self._looks(settings.preset)
        if parameter(settings.preset) is not None:
            slider: dict[str, Any] = slider_of(settings.preset) | {"value": settings.value}
            updates[self.value] = gr.update(**slider)
            updates[self.start] = gr.update(value=settings.start, visible=True)
        return updates | {self.clip.frames: len(session.planned.path)}

    def why_not(self, session: Session) -> dict[str, str]:
        why = {}
        if session.preparing:
            return dict.fromkeys(OF_THIS_PATH, PREPARING)
        if not session.viewport.keyframes:
            why["#clear-keyframes"] = why["#remove-keyframe"] = "There are no keyframes yet."
        if session.busy:
            why["#look"] = BUSY
        elif not session.matchable:
            why["#look"] = "This world has no input views to start from."
        if session.planned.path is None:
            why["#frame"] = "Plan a path first."
        return why

    def preparing(self, session: Session) -> Updates:
        """Another world is on its way: what the last one's path showed is no preview of it."""
        if not session.preparing:
            return {}
        text = "The preview appears when the world is ready: it shows what the generator will see."
        return {self.preview: html.empty(tr(text))}

    # ---- planning ----------------------------------------------------------------------------

    def first_plan(self, session: Session) -> Updates:
        """A sensible path for a world that has just been opened; {} where there is no world."""
        scene = session.world.scene
        if not scene.views and not len(scene.cloud):
            return {}
        default = parameter(FIRST_PRESET)
        assert default is not None
        settings = Settings(FIRST_PRESET, default.default, "first", 25, "", session.generator)
        first = FIRST_PRESET
        try:  # the first clip shall show something new
            plan_path(session, replace(settings, preset=UNSEEN, value=0.0))
            first = UNSEEN
        except WorldStereoError:  # a cloud without views, or a place that is known all around
            try:
                plan_path(session, settings)
            except WorldStereoError:
                session.set_plan(None, settings=settings)
        return {
            self.preset: first,
            **self._looks(first),
            self.start: gr.update(value="first", visible=first != UNSEEN),
            self.frame: gr.update(maximum=25, value=1),
            self.problem: "",
        }

    def on_preset(self, session: Session, *values: Any) -> Iterator[Updates]:
        """A tile: its own slider at its default, and the path at once."""
        preset = path_named(values[0])
        slider = parameter(preset)
        yield self._looks(preset) | {self.problem: ""}
        few = preset == KEYFRAMES and len(session.viewport.keyframes) < 2
        if few or (preset == FLIGHT and session.flight is None):
            yield self._waiting(session, preset)
            return
        value = slider.default if slider else 0.0
        yield from self.on_plan(session, preset, value, *values[2:])

    def on_plan(self, session: Session, *values: Any) -> Iterator[Updates]:
        """Something settled: the path, its cost, and the final preview of its first frame."""
        settings = Settings.of(*values)
        plan_path(session, settings)
        yield self._planned(session)
        yield self.show_preview(session, 0)

    def on_drag(self, session: Session, *values: Any) -> Updates:
        """A slider being dragged: path and a draft of its last frame, where most changes."""
        settings = Settings.of(*values)
        path = plan_path(session, settings)
        return self._planned(session) | self.show_preview(session, len(path) - 1, final=False)

    def _planned(self, session: Session) -> Updates:
        assert session.planned.path is not None
        return (
            {
                self.frame: gr.update(maximum=max(2, len(session.planned.path)), value=1),
                self.keys: self._keyframes(session),
                self.problem: "",
            }
            | self.action.refresh(session)
            | self.hud.refresh_map(session)
        )

    def _waiting(self, session: Session, preset: str) -> Updates:
        """Nothing to make this path of yet: no plan, and the preview says what to do."""
        session.set_plan(None, settings=session.planned.settings, guide=session.planned.guide)
        return (
            {
                self.preview: html.empty(tr(WAITING[preset])),
                self.frame: gr.update(maximum=2, value=1),
                self.keys: self._keyframes(session),
            }
            | self.strip.refresh(session)
            | self.action.refresh(session)
            | self.hud.refresh_map(session)
        )

    def on_look(self, session: Session) -> Iterator[Updates]:
        """Ghost cameras where most can be learned; a click on one plans a path there."""
        job = session.look_for_unseen()
        for _ in job:
            yield self.action.refresh(session)
        found = job.result()
        if found:
            text = "Purple cameras show where most is unseen. Click one to plan a path to it."
        else:
            text = "Nothing unseen borders on what this world knows."
        yield {self.problem: html.info(tr(text))} | self.action.refresh(session)

    def on_ghost(self, session: Session, data: dict[str, Any], *values: Any) -> Iterator[Updates]:
        """A proposed camera was clicked: the path leads there."""
        count = len(session.unseen.views)
        chosen = parse_int(data.get("index"), "camera", 0, max(0, count - 1))
        session.unseen = replace(session.unseen, chosen=chosen)
        yield {self.preset: UNSEEN, self.core.tabs: gr.update(selected="path")}
        yield from self.on_preset(session, UNSEEN, *values[1:])

    # ---- preview -----------------------------------------------------------------------------

    def on_scrub(self, session: Session, frame: Any) -> Updates:
        return self.show_preview(session, self._frame(session, frame), final=False)

    def on_rest(self, session: Session, frame: Any) -> Updates:
        return self.show_preview(session, self._frame(session, frame))

    def on_step(self, session: Session, data: dict[str, Any], frame: Any) -> Updates:
        """The keys [ and ]."""
        last = len(session.planned.path) if session.planned.path else 1
        by = 1 if data.get("by", 1) in (1, "1") else -1
        wanted = max(1, min(last, parse_int(frame, "frame", 1, 100_000) + by))
        return {self.frame: wanted} | self.show_preview(session, wanted - 1, final=True)

    def show_preview(self, session: Session, frame: int, *, final: bool = True) -> Updates:
        """One frame of the path: a draft while something moves, what the generator gets at rest."""
        if session.planned.path is None:
            raise WorldStereoError("Plan a path first.")
        shown = session.preview(frame, final=final)
        card = html.render(
            "path.html",
            "preview",
            image=html.picture(tinted(shown.color, shown.known), 680),
            frame=frame + 1,
            total=len(session.planned.path),
            percent=f"{100 * shown.unknown:.0f}",
            final=final,  # two measures of what is unknown: the final one counts both memories
            warnings=shown.warnings,
        )
        return {self.preview: card}

    def _frame(self, session: Session, value: Any) -> int:
        if session.planned.path is None:
            raise WorldStereoError("Plan a path first.")
        return min(len(session.planned.path), parse_int(value, "frame", 1, 100_000)) - 1

    # ---- keyframes and flights ---------------------------------------------------------------

    def on_keyframe(self, session: Session, *values: Any) -> Iterator[Updates]:
        if not session.viewport.add_keyframe():
            raise WorldStereoError(
                "The viewport is not connected yet. Wait a moment and try again."
            )
        yield {self.preset: KEYFRAMES, self.problem: ""} | self._looks(KEYFRAMES)
        yield from self._through(session, *values)

    def on_back(self, session: Session, *values: Any) -> Iterator[Updates]:
        session.viewport.remove_keyframe()
        yield from self._through(session, *values)

    def _through(self, session: Session, *values: Any) -> Iterator[Updates]:
        """The path through the keyframes there are now."""
        if len(session.viewport.keyframes) < 2:
            yield self._waiting(session, KEYFRAMES)
            return
        yield from self.on_plan(session, KEYFRAMES, 0, *values[2:])

    def on_clear(self, session: Session, *values: Any) -> Updates:
        session.viewport.clear_keyframes()
        return self._waiting(session, KEYFRAMES)

    def on_record(self, session: Session, *values: Any) -> Iterator[Updates]:
        """Start recording, or stop and plan along what was flown."""
        if not session.viewport.recording:
            session.record(True)
            yield self.refresh(session) | self.hud.refresh(session)
            return
        flight = session.record(False)
        yield self.refresh(session) | self.hud.refresh(session)
        if flight is None:
            raise WorldStereoError("The camera did not move, so nothing was recorded. Try again.")
        yield {self.preset: FLIGHT, self.problem: ""} | self._looks(FLIGHT)
        yield from self.on_plan(session, FLIGHT, 0, *values[2:])

    def on_key_keyframe(
        self, session: Session, data: dict[str, Any], *values: Any
    ) -> Iterator[Updates]:
        yield from self.on_keyframe(session, *values)

    def on_key_record(
        self, session: Session, data: dict[str, Any], *values: Any
    ) -> Iterator[Updates]:
        yield from self.on_record(session, *values)

    def keyframes_changed(self, session: Session, data: dict[str, Any], *values: Any) -> Updates:
        """A keyframe was moved by its gizmo: the path through them all follows, and the preview
        is of the frame that was moved."""
        keys = session.viewport.keyframes
        if len(keys) < 2 or keys is session.planned.keyframes:  # planned by whoever added it
            return {self.keys: self._keyframes(session)}
        path = plan_path(session, Settings.of(KEYFRAMES, 0, *values[2:]))
        frame = frame_at(path, keys, data.get("active"))
        updates = {self.preset: KEYFRAMES} | self._looks(KEYFRAMES) | self._planned(session)
        updates[self.frame] = gr.update(maximum=max(2, len(path)), value=frame + 1)
        return updates | self.show_preview(session, frame, final=bool(data.get("settled")))

    # ---- pieces ------------------------------------------------------------------------------

    def _looks(self, preset: str) -> Updates:
        return {
            self.value: gr.update(**slider_of(preset)),
            self.start: gr.update(visible=parameter(preset) is not None),
            self.look: gr.update(visible=preset == UNSEEN),
            self.tools: gr.update(visible=preset in (KEYFRAMES, FLIGHT)),
            self.add: gr.update(visible=preset == KEYFRAMES),
            self.back: gr.update(visible=preset == KEYFRAMES),
            self.clear: gr.update(visible=preset == KEYFRAMES),
            self.record: gr.update(visible=preset == FLIGHT),
            self.about: self._about(preset),
        }

    def _about(self, preset: str) -> str:
        texts = {
            UNSEEN: "From the nearest view to where most of the unseen borders on what is known.",
            KEYFRAMES: "A smooth path through the cameras you place with K. Drag a placed one "
            "by its handles; click another to get them there.",
            FLIGHT: "Press F, fly through the viewport, press F again.",
        }
        return html.muted(tr(texts[preset] if preset in texts else PRESETS[preset].description))

    def _keyframes(self, session: Session) -> str:
        count = len(session.viewport.keyframes)
        if not count:
            return ""
        return html.muted(trn("{n} keyframe", "{n} keyframes", count), figures=True)


def frame_at(path: Trajectory, keys: Sequence[Cameras], active: Any) -> int:
    """The frame of a path that stands where one of its keyframes does; 0 for none of them."""
    if not isinstance(active, int) or not 0 <= active < len(keys):
        return 0
    if active in (0, len(keys) - 1):
        return 0 if active == 0 else len(path) - 1
    far = (path.cameras.position - keys[active].position).norm(dim=-1)
    return int(far.argmin())


def slider_of(preset: str) -> dict[str, Any]:
    """Arguments of the slider that belongs to a preset; hidden where it has none."""
    slider = parameter(preset)
    if slider is None:
        return {"visible": False}
    unit = UNITS.get(slider.unit, slider.unit)
    fine = 0.05 if slider.unit == "x" else 1
    return {
        "minimum": slider.min,
        "maximum": slider.max,
        "value": slider.default,
        "step": fine,
        "label": f"{tr(slider.label)}, {tr(unit)}",
        "visible": True,
    }
