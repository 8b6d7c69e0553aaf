"""The strip below the viewport: every view of the world as a picture, in order."""

from collections.abc import Sequence

import gradio as gr
import numpy as np

from ..session.sessions import Session
from . import html
from .core import Core, Part, Updates, html_block


class Strip(Part):
    def __init__(self, core: Core, thumbnails: html.Thumbnails) -> None:
        self.core, self.thumbnails = core, thumbnails

    def build(self) -> None:
        with gr.Column(elem_id="strip"):
            self.film = self.core.register(html_block(html.film((), self.thumbnails)))

    def refresh(self, session: Session) -> Updates:
        views = session.shown.views
        newest = max((view.step for view in views), default=0)
        planned = len(session.planned.path) if session.planned.path and not session.busy else 0
        strip = html.film(views, self.thumbnails, newest_step=newest, planned=planned)
        return {self.film: strip}

    def arriving(self, session: Session, frames: Sequence[np.ndarray], total: int) -> Updates:
        views = session.world.scene.views
        return {self.film: html.film(views, self.thumbnails, making=frames[-12:], total=total)}
