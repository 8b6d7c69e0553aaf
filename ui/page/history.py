"""The history: every state that undo and redo reach, with its picture; a click returns to it."""

from typing import Any

from worldstereo.errors import WorldStereoError
from worldstereo.scene import Scene
from worldstereo.world import StepRecord

from ..session.sessions import Session
from . import html
from .catalogue import told, tr, trn
from .core import BUSY, Core, Part, Updates, html_block
from .follow import Follow

DID = {
    "open": "Opened",
    "explore": "Generated",
    "add": "Added",
    "delete": "Deleted",
    "keep": "Kept the take",
    "discard": "Discarded the take",
}


class History(Part):
    def __init__(self, core: Core, follow: Follow, thumbnails: html.Thumbnails) -> None:
        self.core, self.follow, self.thumbnails = core, follow, thumbnails

    def build(self) -> None:
        self.list = self.core.register(html_block(html.history(())))

    def wire(self) -> None:
        self.core.bridge("goto", self.on_goto)

    def refresh(self, session: Session) -> Updates:
        rows, now, before = [], session.world.undo_steps, Scene()
        for number, (record, scene) in enumerate(session.world.states):
            if record is not None:  # else nothing was opened yet: nothing to return to
                row = {"number": number, "image": self._picture(before, scene), "did": did(record)}
                row |= {"changed": changed(record), "why": BUSY if session.busy else ""}
                rows.append(row | {"now": number == now, "undone": number > now})
            before = scene
        return {self.list: html.history(rows[::-1])}

    def on_goto(self, session: Session, data: dict[str, Any]) -> Updates:
        try:
            state = int(data.get("state", -1))
        except (TypeError, ValueError, OverflowError):
            raise WorldStereoError("That state is not known here; reload the page.") from None
        session.go_to(state)
        return self.follow.refresh(session) | {self.core.message: ""}

    def _picture(self, before: Scene, scene: Scene) -> str:
        """The newest view of a step that added some, or else the world's first."""
        if not scene.views:
            return ""
        added = before.views and len(scene.views) > len(before.views)
        return self.thumbnails(scene.views[-1 if added else 0])


def did(record: StepRecord) -> str:
    """What a step did, in words."""
    verb, _, rest = record.label.partition(" ")
    return f"{tr(DID.get(verb, verb.capitalize()))} {told(rest)}".strip()


def changed(record: StepRecord) -> str:
    """What it added."""
    facts = []
    if record.views_added:
        facts.append(trn("{n} view", "{n} views", record.views_added))
    if record.points_added:
        facts.append(trn("{n} point", "{n} points", record.points_added))
    return ", ".join(facts)
