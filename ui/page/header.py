"""The bar above the page: the world's name and numbers, undo and redo."""

from ..session.sessions import Session
from . import html
from .catalogue import tr
from .core import BUSY, Core, Part, Updates, fresh, html_block


class Header(Part):
    def __init__(self, core: Core) -> None:
        self.core = core

    def build(self) -> None:
        self.bar = self.core.register(
            html_block(html.header("", 0, 0, 0, "", "", ""), elem_id="bar")
        )

    def refresh(self, session: Session) -> Updates:
        return {self.bar: fresh(lambda: self._facts(session))}

    def _facts(self, session: Session) -> str:
        scene = session.shown
        given = sum(view.step == 0 for view in scene.views)
        sketch = session.loader.sketch is not None
        count, saved = (
            (0, tr("being prepared")) if sketch else (len(scene.cloud), session.saving.state)
        )
        facts = (scene.name, count, given, len(scene.views) - given, saved)
        return html.header(*facts, *why_no_travel(session))


def why_no_travel(session: Session) -> tuple[str, str]:
    """Why undo and redo cannot work now; "" where they can."""
    if session.busy:
        return BUSY, BUSY
    undo = "" if session.can_undo else "Nothing to undo yet."
    return undo, "" if session.world.can_redo else "Nothing to redo."
