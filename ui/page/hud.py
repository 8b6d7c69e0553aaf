"""What floats in the viewport: the line at the bottom, and the tools at the right."""

from typing import Any

from ..session.sessions import Session
from . import html
from .catalogue import tr
from .core import BUSY, Core, Part, Updates, fresh, html_block
from .map_svg import map_svg

WAIT = "The world is being prepared."


class Hud(Part):
    def __init__(self, core: Core) -> None:
        self.core = core

    def build(self) -> None:
        html_block(html.hint(), elem_id="hint")
        self.chip = self.core.register(html_block("", elem_id="hud"))
        self.tools = self.core.register(html_block(tools(None), elem_id="tools"))
        self.map = self.core.register(html_block("", elem_id="map"))

    def refresh(self, session: Session) -> Updates:
        return self.line(session) | self.toolbar(session)

    def line(self, session: Session) -> Updates:
        return {self.chip: fresh(lambda: status(session))}

    def toolbar(self, session: Session) -> Updates:
        return {self.tools: fresh(lambda: tools(session))}

    def refresh_map(self, session: Session) -> Updates:
        """The place from above; drawn again only when it or the path has changed."""
        return {
            self.map: ""
            if session.loader.sketch
            else map_svg(session.world.scene, session.planned.path)
        }

    def say(self, *facts: tuple[str, str]) -> Updates:
        """Facts in the line at the bottom, until something else happens."""
        return {self.chip: fresh(lambda: html.hud(*facts))}

    def legend(self) -> Updates:
        """What the colours of the matches mean, in the line at the bottom."""
        return {self.chip: fresh(html.legend)}


def status(session: Session) -> str:
    """What is going on, or how the cloud is drawn."""
    viewport, job = session.viewport, session.job
    if session.loader.sketch is not None and job is not None:
        now = job.progress
        return html.preparing(now.step, now.total, now.message, now.seconds_left)
    if viewport.measuring:
        return html.hud((tr("measure"), tr("click two points")))
    if viewport.selecting:
        return html.hud((tr("select"), tr("draw a box around points")))
    if viewport.recording:
        return html.hud((tr("recording"), tr("fly; F stops")))
    if viewport.live:
        share = viewport.live_unknown
        unknown = "" if share is None else f"{100 * share:.0f} %"
        return html.hud((tr("drawing"), tr("live")), (tr("unknown"), unknown))
    if viewport.color_mode == "coverage":
        return html.render("stage.html", "coverage")
    return html.hud((tr("colour"), tr(viewport.color_mode)), (tr("drawing"), tr(viewport.drawing)))


def tools(session: Session | None) -> str:
    """The tools; those that cannot work now say why. None: the page has no world yet."""
    off = dict.fromkeys(("playing", "recording", "measuring", "selecting", "live"), False)
    if session is None:
        every = ("play", "record", "keyframe", "measure", "select", "home", "watch", "live", "here")
        return html.tools(**off, why=dict.fromkeys(every, "No world yet."))
    if session.loader.sketch is not None:
        some = ("play", "record", "keyframe", "measure", "select", "watch", "live", "here")
        return html.tools(**off, why=dict.fromkeys(some, WAIT))
    viewport, scene = session.viewport, session.world.scene
    why: dict[str, Any] = {} if session.planned.path else {"play": "Plan a path first, under Path."}
    if not scene.clips:
        why["watch"] = "Generate a clip first."
    if session.busy:
        why["here"] = BUSY
    if not len(scene.cloud):
        why |= dict.fromkeys(("measure", "select", "record", "keyframe"), "No world yet.")
        if not scene.views:
            why |= dict.fromkeys(("home", "live", "here"), "No world yet.")
    return html.tools(
        playing=viewport.playing,
        recording=viewport.recording,
        measuring=viewport.measuring,
        selecting=viewport.selecting,
        live=viewport.live,
        why=why,
    )
