"""What floats on the viewport: the line at the bottom, and the tools at the right."""

from typing import Any

from ..session.sessions import Session
from . import html as piece
from .core import Core, Part, Updates, html

WAIT = "The world is being prepared."


class Hud(Part):
    def __init__(self, core: Core) -> None:
        self.core = core

    def build(self) -> None:
        html(piece.hint(), elem_id="hint")
        self.chip = self.core.shown(html("", elem_id="hud"))
        self.tools = self.core.shown(html(tools(None), elem_id="tools"))

    def refresh(self, session: Session) -> Updates:
        return {self.chip: status(session), self.tools: tools(session)}

    def say(self, **facts: str) -> Updates:
        """Facts in the line at the bottom, until something else happens."""
        return {self.chip: piece.hud(**facts)}


def status(session: Session) -> str:
    """What is going on, or how the cloud is drawn."""
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


def tools(session: Session | None) -> str:
    """The tools; those that cannot work now say why. None: the page has no world yet."""
    off = {"playing": False, "recording": False, "measuring": False, "selecting": False}
    if session is None:
        every = ("play", "record", "keyframe", "measure", "select", "home", "watch")
        return piece.tools(**off, why=dict.fromkeys(every, "No world yet."))
    if session.sketch is not None:
        some = ("play", "record", "keyframe", "measure", "select", "watch")
        return piece.tools(**off, why=dict.fromkeys(some, WAIT))
    viewport, scene = session.viewport, session.scene
    why: dict[str, Any] = {} if session.plan else {"play": "Plan a path first, under Path."}
    if not scene.clips:
        why["watch"] = "Generate a clip first."
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
