"""The place of the one button: what it will make, how far it is, and what cannot be pressed now."""

from collections.abc import Sequence

import gradio as gr

from ..session.sessions import Job, Session
from . import html
from .catalogue import told, tr
from .core import Core, Part, Updates, html_block


class Action(Part):
    """The status line, Generate and Cancel below the tabs, on every tab.

    Args:
        parts: the parts of the page, asked which of their controls cannot work now. The page
            completes the list after this part was made.
    """

    def __init__(self, core: Core, parts: Sequence[Part]) -> None:
        self.core, self.parts = core, parts

    def build(self) -> None:
        core = self.core
        with gr.Column(elem_id="action"):
            core.message = core.register(html_block("", elem_id="message", elem_classes="line"))
            self.status = core.register(html_block(html.opening(), elem_id="status"))
            # Which of the two buttons is there follows from the status line, by the stylesheet:
            # one update, so that they cannot disagree.
            self.go = gr.Button(
                tr("Generate along the path"), variant="primary", elem_id="generate"
            )
            stop = gr.Button(
                tr("Cancel"),
                icon=str(html.ICONS / "square.svg"),
                elem_id="cancel",
                elem_classes="tint",
            )
            self.stop = core.register(stop)

    def build_reasons(self) -> None:
        """Out of sight, after all the controls that it talks about."""
        opening = {"#generate": "The world is being opened."}
        self.why = self.core.register(html_block(html.reasons(opening)))

    def wire(self) -> None:
        self.core.on(self.stop.click, self.on_cancel)
        self.core.after_error = self.refresh

    def on_cancel(self, session: Session) -> Updates:
        job = session.job
        if job is not None:
            job.cancel()
        return {self.stop: gr.update(interactive=False, value=tr("Stopping after this view …"))}

    def refresh(self, session: Session) -> Updates:
        """What it will make, or how far it is."""
        job = session.job
        if session.busy and job is not None:
            status = progress(job)
        elif session.planned.path is None:
            status = html.info(self._no_path(session))
        else:
            status = self._cost(session)
        return {
            self.status: status,
            self.stop: gr.update(interactive=True, value=tr("Cancel")),
        } | self.reasons(session)

    def reasons(self, session: Session) -> Updates:
        """Controls that cannot work now, and why."""
        why: dict[str, str] = {}
        if not session.world.scene.views and not len(session.world.scene.cloud):
            why["#generate"] = "Open an example or your own file first."
        elif session.planned.path is None:
            why["#generate"] = "Plan a path first, under Path."
        for part in self.parts:
            why |= part.why_not(session)
        return {self.why: html.reasons(why)}

    def _no_path(self, session: Session) -> str:
        if not session.world.scene.views and not len(session.world.scene.cloud):
            return tr("No world yet: open an example or a file under World.")
        if session.planned.settings is None:
            return tr("Planning a path …")  # the first one: see `Follow.settle`
        return tr("No path yet: choose one under Path.")

    def _cost(self, session: Session) -> str:
        plan = session.planned.path
        assert plan is not None
        name = plan_generator(session)
        width, height = plan.cameras.width, plan.cameras.height
        seconds = session.estimate(name, len(plan), width, height)
        label = told(session.shared.generators[name].label)
        measured = session.pace_of(name) in self.core.sessions.shared.pace
        return html.cost(len(plan), width, height, label, seconds, measured)


def progress(job: Job) -> str:
    """How far it is, in the place of the one button."""
    now = job.progress
    return html.progress(now.step, now.total, now.message, now.seconds_left)


def plan_generator(session: Session) -> str:
    """The generator that the session will use next: the last one chosen."""
    usable = [key for key, choice in session.shared.generators.items() if not choice.why_not]
    return session.generator if session.generator in usable else usable[0]
