"""The viewport: the viewport edge to edge, and what floats on it."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from worldstereo.errors import WorldStereoError
from worldstereo.world import default_view

from ..session.sessions import Session
from . import html
from .catalogue import tr
from .core import Core, Part, Updates, html_block
from .film import Film
from .follow import Follow
from .hud import Hud
from .tabs.memory import MemoryTab
from .tabs.path import PathTab
from .tabs.world import WorldTab

SOFTWARE = ("swiftshader", "llvmpipe", "softpipe", "software", "basic render", "none")
DARK = "WebGL is off in this browser, so the viewport stays dark. Enable it; everything else works."
EMPTY = "The viewport opens with the page."


class ViewportPanel(Part):
    def __init__(
        self,
        core: Core,
        hud: Hud,
        follow: Follow,
        memory: MemoryTab,
        path: PathTab,
        world: WorldTab,
        film: Film,
    ) -> None:
        self.core, self.hud, self.follow = core, hud, follow
        self.memory, self.path, self.world, self.film = memory, path, world, film

    def build(self) -> None:
        with gr.Column(elem_id="stage"):
            self.viewport = self.core.register(
                html_block(html.empty(tr(EMPTY)), elem_id="viewport")
            )
            self.film.build()
            self.hud.build()

    def wire(self) -> None:
        bridge = self.core.bridge
        bridge("fly", self.on_fly)
        bridge("home", self.on_home)
        bridge("renderer", self.on_renderer)
        bridge("stage", self.on_stage, [self.memory.mode, *self.path.inputs])
        bridge("play", self.on_play)
        bridge("here", self.on_here)

    def open(self, session: Session) -> Updates:
        """The frame of the viewport. Set once a page: writing it again would reload it."""
        return {self.viewport: html.render("stage.html", "viewport", token=session.token)}

    # ---- handlers ----------------------------------------------------------------------------

    def on_renderer(self, session: Session, data: dict[str, Any]) -> Updates:
        """The page says what draws it: discs in the surface want a real GPU."""
        name = str(data.get("name", ""))[:200].lower()
        software = any(word in name for word in SOFTWARE)
        session.viewport.renderer(software)
        session.viewport.still = data.get("still") is True
        session.set_drawing("points" if software else "surface", by_hand=False)
        dark: Updates = {self.core.message: html.failed(DARK)} if name == "none" else {}
        return self.hud.refresh(session) | self.world.refresh(session) | dark

    def on_fly(self, session: Session, data: dict[str, Any]) -> Updates:
        """A picture in the strip: go there, and have Memory ready on it."""
        views = session.shown.views
        index = _index(data.get("view"), len(views))
        session.viewport.fly_to(views[index].cameras)
        return {} if session.loader.sketch else self.memory.choose(session, index)

    def on_home(self, session: Session, data: dict[str, Any]) -> Updates:
        scene = session.shown
        session.viewport.fly_to(scene.views[0].cameras if scene.views else default_view(scene))
        return self.hud.refresh(session)

    def on_stage(self, session: Session, data: dict[str, Any], mode: str, *path: Any) -> Updates:
        """What happened in the viewport, as its events socket told the page."""
        kind = data.get("kind")
        if session.loader.sketch is not None and kind in ("pick", "view", "measure", "selection"):
            return {}  # of what is only being prepared nothing is remembered yet
        if kind == "pick":
            return self.memory.at_point(session, data.get("point"), mode)
        if kind == "view":
            views = session.world.scene.views
            return self.memory.choose(session, _index(data.get("index"), len(views)))
        if kind == "keyframes":
            return self.path.keyframes_changed(session, data, *path)
        if kind == "selection":
            return self.world.selected(session)
        if kind == "measure":
            return self.hud.toolbar(session) | self.world.measured(session, data)
        # Never the place of the button: whoever follows the job writes there, in the right order.
        if kind == "job":
            return self.follow.header.refresh(session)
        if kind == "scene" and (session.job is None or session.job.over):
            return self.follow.changed(session)
        return self.hud.refresh(session)

    def on_here(self, session: Session, data: dict[str, Any]) -> Iterator[Updates]:
        """The view that the visitor sees, made and remembered."""
        session.view_here()
        yield from self.follow.job(session)

    def on_play(self, session: Session, data: dict[str, Any]) -> Updates:
        viewport = session.viewport
        if viewport.playing:
            viewport.stop()
        elif session.planned.path is None:
            raise WorldStereoError("Plan a path first, under Path.")
        else:
            viewport.play(session.planned.path)
        return self.hud.toolbar(session)


def _index(value: Any, count: int) -> int:
    """An index that the page sent, checked."""
    try:
        index = int(value)
    except (TypeError, ValueError, OverflowError):
        raise WorldStereoError("That picture is not known here; reload the page.") from None
    if not 0 <= index < count:
        raise WorldStereoError(f"View {index + 1} is gone; there are {count}.")
    return index
