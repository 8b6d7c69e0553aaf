"""The page: its parts, put together, and the handlers that concern all of them.

No geometry, no state but the session's token. Parts know each other only through the arguments
of their constructors, in the order in which they are made here.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks at once

from .gradio_import import without_stubs

with without_stubs():
    import gradio as gr

from worldstereo.errors import WorldStereoError

from ..palette import css_variables
from ..server.launch import Address, Look
from ..server.launch import launch as serve
from ..session.sessions import Session, Sessions
from . import html
from .action import Action
from .catalogue import Localized, language, speaking, tr
from .clip_controls import ClipControls
from .core import Core, Fresh, Part, Updates, html_block, localized
from .film import Film
from .follow import Follow
from .header import Header
from .history import History
from .hud import Hud
from .strip import Strip
from .tabs.export import ExportTab
from .tabs.generate import GenerateTab
from .tabs.memory import MemoryTab
from .tabs.path import PathTab
from .tabs.world import WorldTab
from .theme import theme
from .viewport_panel import ViewportPanel

HERE = Path(__file__).resolve().parent
TABS = ("World", "Path", "Generate", "Memory", "Export")
SPOKEN = ("label", "value", "placeholder", "choices")
"""Properties of a component that hold text."""


class Page(gr.Blocks):
    """Blocks that speak the language of the request, and let the last state win.

    A piece of the page that is `Fresh` is left out of an answer where the visitor has been sent a
    later one already.

    Args:
        spoken: the components' texts in a language, by their place on the page.
    """

    def __init__(self, spoken: Callable[[str], list[dict[str, Any]]], **options: Any) -> None:
        self._spoken = spoken
        self._configs: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._sent: WeakKeyDictionary[Any, dict[int, int]] = WeakKeyDictionary()
        super().__init__(**options)

    @property
    def config(self) -> Any:
        name = language()
        if name == "en":
            return self._configs["en"]
        with self._lock:
            if name not in self._configs:
                english = self._configs["en"]
                said = self._spoken(name)
                components = [
                    part | {"props": part["props"] | texts}
                    for part, texts in zip_longest(english["components"], said, fillvalue={})
                ]
                self._configs[name] = english | {"components": components}
            return self._configs[name]

    @config.setter
    def config(self, config: Any) -> None:
        self._configs = {"en": config}

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        output = await super().postprocess_data(block_fn, predictions, state)
        # From here to the visitor's queue nothing waits: this is the order of the answers.
        sent = self._sent.setdefault(state, {}) if state is not None else {}
        for i, (block, value) in enumerate(zip(block_fn.outputs, output, strict=True)):
            if isinstance(value, Fresh):
                late = value.moment < sent.get(block._id, 0)
                output[i] = gr.skip() if late else str(value)
                sent[block._id] = max(value.moment, sent.get(block._id, 0))
        return output


class Panel(Core):
    """The page. Its handlers can be called without a browser: they are plain functions.

    Args:
        wired: binds the handlers. Without them it is only good for its texts.
    """

    def __init__(self, sessions: Sessions, *, wired: bool = True) -> None:
        super().__init__(sessions)
        self._wired = wired
        thumbnails, parts = html.Thumbnails(), list[Part]()
        self.header = Header(self)
        self.strip = Strip(self, thumbnails)
        self.hud = Hud(self)
        self.action = Action(self, parts)
        self.clip = ClipControls(self)
        self.path = PathTab(self, self.action, self.strip, self.hud, self.clip)
        self.memory = MemoryTab(self, self.action, self.hud, thumbnails)
        self.follow = Follow(
            self, parts, self.action, self.header, self.strip, self.hud, self.path, self.memory
        )
        self.generate = GenerateTab(self, self.action, self.follow, self.clip, self.path)
        self.world = WorldTab(self, self.action, self.hud, self.follow)
        self.export = ExportTab(self)
        self.film = Film(self, self.path, self.follow, self.generate)
        self.viewport_panel = ViewportPanel(
            self, self.hud, self.follow, self.memory, self.path, self.world, self.film
        )
        self.history = History(self, self.follow, thumbnails)
        self.tab_parts = (self.world, self.path, self.generate, self.memory, self.export)
        parts += [
            self.header,
            self.strip,
            self.hud,
            self.viewport_panel,
            self.film,
            self.history,
            *self.tab_parts,
            self.action,
        ]
        self.parts = tuple(parts)
        self.demo = self._build()

    # ---- layout ------------------------------------------------------------------------------

    def _build(self) -> gr.Blocks:
        with Page(
            self._spoken,
            title="WorldStereo",
            fill_width=True,
            fill_height=True,
            analytics_enabled=False,
            delete_cache=(3600, 86400),
        ) as demo:
            self.token = gr.State("")
            with gr.Column(elem_id="shell"):
                self.header.build()
                self.viewport_panel.build()
                self.strip.build()
                with gr.Column(elem_id="side"):
                    self._build_tabs()
                    self.action.build()
            html_block(html.key_map())
            html_block(html.words())
            self.history.build()
            self.action.build_reasons()
            if self._wired:
                self._wire(demo)
        demo.queue(max_size=64, default_concurrency_limit=16)
        return demo

    def _spoken(self, name: str) -> list[dict[str, Any]]:
        """What the components say in a language, in the order in which they are built."""
        with speaking(name):
            config = Panel(self.sessions, wired=False).demo.get_config_file()
        return [
            {key: value for key, value in part["props"].items() if key in SPOKEN}
            for part in config["components"]
        ]

    def _build_tabs(self) -> None:
        with gr.Tabs(elem_id="tabs", selected="path") as self.tabs:
            for name, part in zip(TABS, self.tab_parts, strict=True):
                with gr.Tab(tr(name), id=name.lower()), gr.Column():
                    part.build()
        self.register(self.tabs)

    def _wire(self, demo: gr.Blocks) -> None:
        self.bridge("undo", self.on_undo)
        self.bridge("redo", self.on_redo)
        self.bridge("follow", self.on_follow)
        for part in self.parts:
            part.wire()
        self.bind_all()
        demo.load(
            self.visited,
            None,
            [self.token, *self.outputs],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=16,
        )

    # ---- handlers ----------------------------------------------------------------------------

    def visited(self, request: gr.Request) -> Iterator[Updates]:
        """`on_load` in the visitor's language."""
        yield from localized(self.on_load(request))

    def on_load(self, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """A visit: the world in the address, or a new one with the first example in it."""
        wanted = str(request.query_params.get("world", "")) if request else ""
        session = self.sessions.get(wanted) if wanted else None
        lost = bool(wanted) and session is None
        if session is None:
            try:
                session = self.sessions.create()
            except WorldStereoError as error:
                yield {self.message: html.failed(str(error)), self.action.status: ""}
                return
            if self.sessions.examples and session.job is None:
                session.example(self.sessions.examples[0].key)
        first = {self.token: session.token} | self.viewport_panel.open(session)
        if lost:
            first[self.message] = html.failed(
                tr("The world in the address is closed; this is a new one.")
            )
        yield first
        yield from self.guarded(self.on_opened)(session.token)

    def prepare(self, session: Session | None) -> None:
        """The first visitor's world, its path and its first pictures, as far as nobody has come."""
        session = session or self.sessions.prepare()
        if session is not None and session.job is not None:
            with contextlib.suppress(WorldStereoError, TimeoutError):
                session.job.result(120)
                steps = self.follow.settle(session)
                # A visit does the same, and would wait while both are at it.
                while self.sessions.is_ahead(session) and next(steps, None) is not None:
                    self.follow.refresh(session)  # what it draws is kept with its views

    def on_opened(self, session: Session) -> Iterator[Updates]:
        """The page has its world: show it, and follow what runs in it."""
        updates = self.follow.refresh(session)
        for part in self.parts:
            updates |= part.opened(session)
        yield updates
        try:
            if session.busy:
                yield from self.follow.job(session)
            else:
                yield from self.follow.settle(session)
        finally:
            session.saving.save_unsaved()  # a world that was opened ahead: now it is somebody's

    def on_undo(self, session: Session, data: dict[str, Any]) -> Updates:
        session.undo()
        return self.follow.refresh(session) | {self.message: ""}

    def on_redo(self, session: Session, data: dict[str, Any]) -> Updates:
        session.redo()
        return self.follow.refresh(session) | {self.message: ""}

    def on_follow(self, session: Session, data: dict[str, Any]) -> Iterator[Updates]:
        """Another page of this session has started a job, or this one has a quick one behind it."""
        if session.busy:
            yield from self.follow.job(session)
            return
        updates = self.follow.refresh(session)
        if session.job is not None and session.job.kind == "explore":
            del updates[self.film.screen]  # the film of this page's own quick job plays on
        yield updates


def launch(
    sessions: Sessions,
    address: Address,
    more: Sequence[Any] = (),
    ready: Session | None = None,
) -> tuple[gr.Blocks, str, Callable[[], None]]:
    """Serves the page over these sessions; returns it, its address and what stops both.

    Args:
        more: routes to serve beside the page's own.
        ready: the session of the first visitor; prepared here without it.
    """
    panel = Panel(sessions)
    look = Look(
        theme=theme(),
        css=f".gradio-container {{{css_variables()}}}",
        css_paths=(HERE / "page.css",),
        js=(HERE / "page.js").read_text(encoding="utf-8"),
        folders=(html.ICONS,),  # else an app started from elsewhere cannot show its own
    )
    url = serve(
        panel.demo,
        address,
        look,
        viewport=sessions.viewport,
        stats=lambda: sessions.stats,
        sockets=sessions.sockets,
        more=more,
        middleware=(Localized,),
    )
    threading.Thread(target=panel.prepare, args=(ready,), name="prepare", daemon=True).start()

    def stop() -> None:
        sessions.close_all()
        panel.demo.close(verbose=False)

    return panel.demo, url, stop
