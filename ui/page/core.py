"""How the page's handlers are called: one guard around all, and the bridges from the script.

A handler is a plain function `(session, *values) -> {component: update}`, or a generator of such
dictionaries; the guard finds the session by its token and turns errors into one line.
"""

import inspect
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.context import LocalContext

from worldstereo.errors import WorldStereoError

from ..session.sessions import Session, Sessions
from . import html
from .catalogue import preferred, speaking

log = logging.getLogger(__name__)

Updates = dict[Any, Any]
"""Component to its new value, or to `gr.update(...)`."""

Handler = Callable[..., Updates | Iterator[Updates]]

EXPIRED = "This world was closed after a time without visitors. Reload the page to open a new one."
BUG = "An internal error occurred; the world is unchanged. Details are in the app's log."
BUSY = "Wait for the running step, or cancel it."


class Fresh(str):
    """A piece of the page that shows a state, and how late that state was looked at."""

    moment: int


_moments = itertools.count(1)


def fresh(read: Callable[[], str]) -> Fresh:
    """What `read` says of a state.

    Handlers run beside each other, and the later one may answer first. The number is drawn before
    the state is read: of two answers the one with the higher number knows all that the other knew.
    """
    moment = next(_moments)
    said = Fresh(read())
    said.moment = moment
    return said


def html_block(value: str = "", **options: Any) -> gr.HTML:
    """A piece of the page that is ours from the first pixel: without Gradio's styles for prose."""
    return gr.HTML(value, apply_default_css=False, **options)


def status_line() -> gr.HTML:
    """Room for one line where something happens; takes none while it is empty."""
    return html_block("", elem_classes="line")


def segmented(
    choices: Iterable[Any],
    value: str,
    label: str,
    elem_id: str,
    *,
    titled: bool = False,
    visible: bool = True,
) -> gr.Radio:
    """A row of exclusive choices drawn as one control.

    Args:
        titled: shows the label above it; otherwise only screen readers have it.
    """
    return gr.Radio(
        list(choices),
        value=value,
        label=label,
        show_label=titled,
        container=titled,
        elem_classes="segmented",
        elem_id=elem_id,
        visible=visible,
    )


class Part:
    """A part of the page. Each method has an answer for parts that have nothing to say."""

    def wire(self) -> None:
        """Bind the handlers, once every component of the page exists."""

    def refresh(self, session: Session) -> Updates:
        """Everything this part shows of a session."""
        return {}

    def why_not(self, session: Session) -> dict[str, str]:
        """CSS selectors of controls that cannot work now, and why."""
        return {}

    def preparing(self, session: Session) -> Updates:
        """Another world is being opened: what to show instead of the old one's facts."""
        return {}

    def arriving(self, session: Session, frames: Sequence[np.ndarray], total: int) -> Updates:
        """The running generation has made these frames so far, of `total`."""
        return {}

    def made(self, session: Session) -> Updates:
        """A clip was generated."""
        return {}

    def opened(self, session: Session) -> Updates:
        """A page has opened on this session, or a world in it: values of the controls."""
        return {}


class Core:
    """What every part uses: the token, the message line, the tabs, binding of events."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.token: gr.State
        self.message: gr.HTML
        self.tabs: gr.Tabs
        self.outputs: list[Component] = []
        self.after_error: Callable[[Session], Updates] = lambda session: {}
        """What else changes on the page when a handler has refused."""
        self._later: list[Callable[[], None]] = []

    def register(self, component: Any) -> Any:
        """Registers a component that handlers may change; returns it."""
        self.outputs.append(component)
        return component

    def on(
        self,
        event: Callable[..., Any],
        handler: Handler,
        inputs: Sequence[Component] | Callable[[], Sequence[Component]] = (),
        *,
        says: Component | None = None,
        latest: bool = False,
    ) -> None:
        """Binds a handler to an event once the whole page is built.

        Args:
            event: such as `button.click`.
            says: where an error is written; below the tabs where None.
            latest: of events that pile up only the last is handled (sliders being dragged).
        """

        def bind() -> None:
            components = inputs() if callable(inputs) else inputs
            file = any(isinstance(component, gr.UploadButton) for component in components)
            event(
                self.guarded(handler, says),
                [self.token, *components],
                self.outputs,
                show_progress="hidden",
                api_visibility="private",
                trigger_mode="always_last" if latest else "multiple",
                # Handlers check every value themselves, and say so in place. Gradio would answer
                # with a notice of its own to what was on offer when the event was sent.
                preprocess=file,
                concurrency_limit=16,
            )

        self._later.append(bind)

    def bridge(
        self, kind: str, handler: Handler, inputs: Sequence[Component] = (), **options: Any
    ) -> None:
        """Lets the script send events of a kind: `handler(session, data, *inputs)`."""
        script = f"(window.worldstereo ??= {{}})[{kind!r}] = trigger;"
        component = html_block(visible="hidden", js_on_load=script)
        self.on(component.input, _wants_data(handler), inputs, **options)

    def bind_all(self) -> None:
        for bind in self._later:
            bind()
        self._later.clear()

    # ---- the guard ---------------------------------------------------------------------------

    def guarded(self, handler: Handler, says: Component | None = None) -> Callable[..., Any]:
        """The handler as Gradio calls it, with the token first (and an event's data before it)."""
        streams = inspect.isgeneratorfunction(inspect.unwrap(handler))

        def answers(token: str, values: Sequence[Any]) -> Iterator[Updates]:
            line = self.message if says is None else says
            session = self.sessions.get(token) if isinstance(token, str) else None
            if session is None:
                yield {line: html.failed(EXPIRED)}
                return
            try:
                result = handler(session, *values)
                for updates in (result,) if isinstance(result, dict) else result:
                    yield updates or {line: gr.skip()}
            except WorldStereoError as error:
                yield self.after_error(session) | {line: html.failed(str(error))}
            except Exception:  # a bug: its place is the log, never the page
                log.exception("the handler %s failed", getattr(handler, "__name__", handler))
                yield self.after_error(session) | {line: html.failed(BUG)}

        if getattr(handler, "wants_data", False):

            def stream_event(event: gr.EventData, token: str, *values: Any) -> Iterator[Updates]:
                yield from localized(answers(token, (_data_of(event), *values)))

            def call_event(event: gr.EventData, token: str, *values: Any) -> Updates:
                return _merged(localized(answers(token, (_data_of(event), *values))))

            return stream_event if streams else call_event

        def stream(token: str, *values: Any) -> Iterator[Updates]:
            yield from localized(answers(token, values))

        def call(token: str, *values: Any) -> Updates:
            return _merged(localized(answers(token, values)))

        return stream if streams else call


def _wants_data(handler: Handler) -> Handler:
    """The handler, marked as one that is given an event's data after its session."""

    def streamed(*values: Any) -> Iterator[Updates]:
        yield from handler(*values)

    def called(*values: Any) -> Any:
        return handler(*values)

    wrapped: Any = streamed if inspect.isgeneratorfunction(handler) else called
    wrapped.__name__ = getattr(handler, "__name__", "handler")
    wrapped.wants_data = True
    return wrapped


def _data_of(event: gr.EventData) -> dict[str, Any]:
    """What the script sent, as a dictionary of text and numbers and nothing else."""
    data = getattr(event, "_data", None)
    return dict(data) if isinstance(data, dict) else {}


def localized(answers: Iterator[Updates]) -> Iterator[Updates]:
    """The answers to an event, each written in the language of the visitor who caused it."""
    request: Any = LocalContext.request.get(None)
    if request is None:  # a test, or a thread of our own
        yield from answers
        return
    chosen = str(request.query_params.get("lang", ""))
    name = preferred(chosen, str(request.headers.get("accept-language", "")))
    while True:
        with speaking(name):  # each step of a generator may run in another thread
            updates = next(answers, None)
        if updates is None:
            return
        yield updates


def _merged(answers: Iterator[Updates]) -> Updates:
    """All that a handler answered, as one answer."""
    merged: Updates = {}
    for answer in answers:
        merged |= answer
    return merged
