"""The stage: the viewport edge to edge, and what floats on it."""

from typing import TYPE_CHECKING, Any

import gradio as gr

from worldstereo.errors import WorldStereoError
from worldstereo.world import default_view

from ..session.sessions import Session
from . import html as piece
from .core import Updates, html

if TYPE_CHECKING:
    from .page import Panel

SOFTWARE = ("swiftshader", "llvmpipe", "softpipe", "software", "basic render", "none")
WAIT = "The world is being prepared."
DARK = "WebGL is off in this browser, so the stage stays dark; all the rest works. Switch it on."
EMPTY = '<div class="empty-state">The stage opens with the page.</div>'


class Stage:
    def __init__(self, panel: "Panel") -> None:
        self.panel = panel

    def build(self) -> None:
        shown = self.panel.shown
        with gr.Column(elem_id="stage"):
            self.viewport = shown(html(EMPTY, elem_id="viewport"))
            html(piece.HINT, elem_id="hint")
            self.hud = shown(html("", elem_id="hud"))
            self.tools = shown(html(self._tools(), elem_id="tools"))

    def wire(self) -> None:
        panel = self.panel
        panel.bridge("fly", self.on_fly)
        panel.bridge("home", self.on_home)
        panel.bridge("renderer", self.on_renderer)
        panel.bridge("stage", self.on_stage, [panel.memory.mode, *panel.path.inputs])
        panel.bridge("play", self.on_play)
        panel.bridge("measure", self.on_measure)
        panel.bridge("select", self.on_select)

    def open(self, session: Session) -> Updates:
        """The frame of the viewport. Set once a page: writing it again would reload the stage."""
        source = f"viewport/{session.token}/?darkMode"
        frame = f'<iframe src="{source}" allow="fullscreen" title="3D viewport"></iframe>'
        return {self.viewport: frame}

    def refresh(self, session: Session) -> Updates:
        return {self.hud: self.told(session), self.tools: self._tools(session)}

    # ---- handlers ----------------------------------------------------------------------------

    def on_renderer(self, session: Session, data: dict[str, Any]) -> Updates:
        """The page says what draws it: discs in the surface want a real GPU."""
        name = str(data.get("name", ""))[:200].lower()
        software = any(word in name for word in SOFTWARE)
        session.viewport.renderer(software)
        session.viewport.still = data.get("still") is True
        session.set_drawing("points" if software else "surface", by_hand=False)
        session.save_unsaved()
        dark: Updates = {self.panel.message: piece.failed(DARK)} if name == "none" else {}
        return self.refresh(session) | self.panel.world.refresh(session) | dark

    def on_fly(self, session: Session, data: dict[str, Any]) -> Updates:
        """A picture in the strip: go there, and have Memory ready on it."""
        views = session.shown.views
        index = _index(data.get("view"), len(views))
        session.viewport.fly_to(views[index].cameras)
        return {} if session.sketch else self.panel.memory.choose(session, index)

    def on_home(self, session: Session, data: dict[str, Any]) -> Updates:
        scene = session.shown
        session.viewport.fly_to(scene.views[0].cameras if scene.views else default_view(scene))
        return {self.hud: self.told(session)}

    def on_stage(self, session: Session, data: dict[str, Any], mode: str, *path: Any) -> Updates:
        """What happened in the viewport, as its events socket told the page."""
        kind = data.get("kind")
        if session.sketch is not None and kind in ("pick", "view", "measure", "selection"):
            return {}  # of what is only being prepared nobody remembers anything yet
        if kind == "pick":
            return self.panel.memory.at_point(session, data.get("point"), mode)
        if kind == "view":
            views = session.world.scene.views
            return self.panel.memory.choose(session, _index(data.get("index"), len(views)))
        if kind == "keyframes":
            return self.panel.path.keyframes_changed(session, data, *path)
        if kind == "selection":
            return self.panel.world.selected(session)
        if kind == "measure":
            return self.panel.world.measured(session, data) | {self.tools: self._tools(session)}
        # Never the place of the button: whoever follows the job writes there, in the right order.
        if kind == "job":
            return self.panel.travel(session)
        if kind == "scene" and (session.job is None or session.job.over):
            return self.panel.changed(session)
        return {self.hud: self.told(session), self.tools: self._tools(session)}

    def on_play(self, session: Session, data: dict[str, Any]) -> Updates:
        viewport = session.viewport
        if viewport.playing:
            viewport.stop()
        elif session.plan is None:
            raise WorldStereoError("Plan a path first, under Path.")
        else:
            viewport.play(session.plan)
        return {self.tools: self._tools(session)}

    def on_measure(self, session: Session, data: dict[str, Any]) -> Updates:
        session.measured = None
        session.viewport.measure(not session.viewport.measuring)
        return self.refresh(session) | self.panel.world.measuring(session)

    def on_select(self, session: Session, data: dict[str, Any]) -> Updates:
        session.viewport.select(not session.viewport.selecting)
        return self.refresh(session)

    # ---- pieces ------------------------------------------------------------------------------

    def _tools(self, session: Session | None = None) -> str:
        if session is None:
            why = dict.fromkeys(
                ("play", "record", "keyframe", "measure", "select", "home"), "No world yet."
            )
            return piece.tools(
                playing=False, recording=False, measuring=False, selecting=False, why=why
            )
        viewport, scene = session.viewport, session.world.scene
        if session.sketch is not None:
            wait = dict.fromkeys(("play", "record", "keyframe", "measure", "select"), WAIT)
            return piece.tools(
                playing=False, recording=False, measuring=False, selecting=False, why=wait
            )
        why = {} if session.plan else {"play": "Plan a path first, under Path."}
        if not len(scene.cloud):
            why |= dict.fromkeys(("measure", "select", "record", "keyframe"), "No world yet.")
            if not scene.views:
                why["home"] = "No world yet."
        return piece.tools(
            playing=viewport.playing,
            recording=viewport.recording,
            measuring=viewport.measuring,
            selecting=viewport.selecting,
            why=why,
        )

    def told(self, session: Session) -> str:
        """The chip at the bottom: what is going on, or how the cloud is drawn."""
        viewport, job = session.viewport, session.job
        if session.sketch is not None and job is not None:
            now = job.progress
            return piece.preparing(now.step, now.total, now.message, now.seconds_left)
        if viewport.measuring:
            return piece.hud(measure="click two points")
        if viewport.selecting:
            return piece.hud(select="draw a box around points")
        if viewport.recording:
            return piece.hud(recording="fly; R stops")
        return piece.hud(colour=viewport.color_mode, drawing=viewport.drawing)


def _index(value: Any, count: int) -> int:
    """An index that the page sent, checked."""
    try:
        index = int(value)
    except (TypeError, ValueError, OverflowError):
        raise WorldStereoError("That picture is not known here; reload the page.") from None
    if not 0 <= index < count:
        raise WorldStereoError(f"View {index + 1} is gone; there are {count}.")
    return index
