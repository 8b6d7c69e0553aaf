"""The Gradio page: layout and thin handlers. No geometry, no state but the session's token.

The header, the stage with its viewport, the strip of views and the one primary button live here;
each tab has a module of its own (`tabs.world`, `tabs.path`, ...). A job outlives the page that
started it: `follow` attaches to whatever runs, after a click as after a reload.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks at once

from .gradio_import import without_stubs

with without_stubs():
    import gradio as gr
    from gradio.utils import get_upload_folder

from worldstereo.errors import Cancelled, WorldStereoError

from ..server.proxy import routes
from ..server.request_filter import UploadedOnly
from ..session.sessions import Job, Session, Sessions
from . import html as piece
from .core import BUG, EXPIRED, Core, Updates, html
from .settings import accepted_frames, chosen_size
from .stage import Stage
from .tabs.export import ExportTab
from .tabs.generate import GenerateTab
from .tabs.memory import MemoryTab
from .tabs.path import PathTab
from .tabs.world import BUSY, WorldTab
from .theme import theme

HERE = Path(__file__).resolve().parent
TABS = ("World", "Path", "Generate", "Memory", "Export")


class Address(Protocol):
    """Where the page is served; `AppConfig` is one."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def max_upload(self) -> str: ...


class Panel(Core):
    """The page. Its handlers can be called without a browser: they are plain functions."""

    def __init__(self, sessions: Sessions) -> None:
        super().__init__(sessions)
        self.thumbnails = piece.Thumbnails()
        self.world = WorldTab(self)
        self.path = PathTab(self)
        self.generate = GenerateTab(self)
        self.memory = MemoryTab(self)
        self.export = ExportTab(self)
        self.stage = Stage(self)
        self.demo = self._build()

    # ---- layout ------------------------------------------------------------------------------

    def _build(self) -> gr.Blocks:
        with gr.Blocks(
            title="WorldStereo",
            fill_width=True,
            fill_height=True,
            analytics_enabled=False,
            delete_cache=(3600, 86400),
        ) as demo:
            self.token = gr.State("")
            with gr.Column(elem_id="shell"):
                self.header = self.shown(html(piece.header("", 0, 0, 0, "", "", ""), elem_id="bar"))
                self.stage.build()
                with gr.Column(elem_id="strip"):
                    self.film = self.shown(html(piece.film((), self.thumbnails)))
                with gr.Column(elem_id="side"):
                    self._build_tabs()
                    self._build_action()
            html(piece.key_map())
            opening = {"#generate": "The world is being opened."}
            self.why = self.shown(html(piece.reasons(opening)))
            self._wire(demo)
        demo.queue(max_size=64, default_concurrency_limit=16)
        return demo

    def _build_tabs(self) -> None:
        with gr.Tabs(elem_id="tabs", selected="path") as self.tabs:
            parts = (self.world, self.path, self.generate, self.memory, self.export)
            for name, part in zip(TABS, parts, strict=True):
                with gr.Tab(name, id=name.lower()), gr.Column():
                    part.build()
        self.shown(self.tabs)

    def _build_action(self) -> None:
        with gr.Column(elem_id="action"):
            self.message = self.shown(html("", elem_id="message", elem_classes="line"))
            self.status = self.shown(html(piece.opening(), elem_id="status"))
            # Which of the two buttons is there follows from the status line, by the stylesheet:
            # one update, so that they cannot disagree.
            self.go = gr.Button("Generate along the path", variant="primary", elem_id="generate")
            stop = gr.Button(
                "Cancel",
                icon=str(piece.ICONS / "square.svg"),
                elem_id="cancel",
                elem_classes="tint",
            )
            self.stop = self.shown(stop)

    def _wire(self, demo: gr.Blocks) -> None:
        self.on(self.go.click, self.on_generate, self.generate.inputs)
        self.on(self.stop.click, self.on_cancel)
        self.bridge("undo", self.on_undo)
        self.bridge("redo", self.on_redo)
        self.bridge("follow", self.on_follow)
        for part in (self.stage, self.world, self.path, self.generate, self.memory, self.export):
            part.wire()
        self.bind_all()
        demo.load(
            self.on_load,
            None,
            [self.token, *self.outputs],
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=16,
        )

    # ---- what the page shows -----------------------------------------------------------------

    def refresh(self, session: Session) -> Updates:
        """Everything that follows from the world, for the page of this session."""
        updates = self.changed(session)
        for part in (self.stage, self.world, self.path, self.generate, self.memory, self.export):
            updates |= part.refresh(session)
        return updates | self.action(session)

    def changed(self, session: Session) -> Updates:
        """Header and strip: what another page of this session may have changed at any moment."""
        scene = session.shown
        newest = max((view.step for view in scene.views), default=0)
        planned = len(session.plan) if session.plan and not running(session) else 0
        strip = piece.film(scene.views, self.thumbnails, newest_step=newest, planned=planned)
        return {self.film: strip} | self.travel(session)

    def action(self, session: Session) -> Updates:
        """The place of the one button: what it will make, or how far it is."""
        job = session.job
        busy = running(session)
        why = self._why_not(session)
        if busy and job is not None:
            status = progress(job)
        elif session.plan is None:
            status = piece.said(self._no_path(session))
        else:
            status = self._cost(session)
        return {
            self.status: status,
            self.stop: gr.update(interactive=True, value="Cancel"),
            self.why: piece.reasons(why),
        }

    def after_error(self, session: Session) -> Updates:
        return self.action(session)

    def _no_path(self, session: Session) -> str:
        if not session.scene.views and not len(session.scene.cloud):
            return "No world yet: open an example or a file under World."
        if session.settings is None:
            return "Planning a path …"  # the first one: see `settle`
        return "No path yet: choose one under Path."

    def _cost(self, session: Session) -> str:
        plan = session.plan
        assert plan is not None
        name = plan_generator(session)
        width, height = plan.cameras.width, plan.cameras.height
        seconds = session.estimate(name, len(plan), width, height)
        label = session.generators[name].label
        measured = session.pace_of(name) in self.sessions.shared.pace
        return piece.cost(len(plan), width, height, label, seconds, measured)

    def _why_not(self, session: Session) -> dict[str, str]:
        """Controls that cannot work now, and why."""
        why: dict[str, str] = {}
        if not session.world.scene.views and not len(session.world.scene.cloud):
            why["#generate"] = "Open an example or your own file first."
        elif session.plan is None:
            why["#generate"] = "Plan a path first, under Path."
        for part in (self.world, self.path, self.generate, self.memory, self.export):
            why |= part.why_not(session)
        return why

    def _why_no_travel(self, session: Session) -> tuple[str, str]:
        if running(session):
            return BUSY, BUSY
        undo = "" if session.can_undo else "Nothing to undo yet."
        return undo, "" if session.world.can_redo else "Nothing to redo."

    # ---- handlers ----------------------------------------------------------------------------

    def on_load(self, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """A visit: the world in the address, or a new one with the first example in it."""
        wanted = str(request.query_params.get("world", "")) if request else ""
        session = self.sessions.get(wanted) if wanted else None
        lost = bool(wanted) and session is None
        if session is None:
            try:
                session = self.sessions.create()
            except WorldStereoError as error:
                yield {self.message: piece.failed(str(error)), self.status: ""}
                return
            if self.sessions.examples and session.job is None:
                session.example(self.sessions.examples[0].key)
        first = {self.token: session.token} | self.stage.open(session)
        if lost:
            first[self.message] = piece.failed(
                "The world in the address is closed; this is a new one."
            )
        yield first
        yield from self.guarded(self.on_opened)(session.token)

    def prepare(self) -> None:
        """The first visitor's world, its path and its first pictures, before the visit."""
        session = self.sessions.prepare()
        if session is not None and session.job is not None:
            with contextlib.suppress(WorldStereoError, TimeoutError):
                session.job.result(120)
                for _ in self.settle(session):
                    self.refresh(session)  # what it draws is kept with the views it was drawn of

    def on_opened(self, session: Session) -> Iterator[Updates]:
        """The page has its world: show it, and follow what runs in it."""
        opened = self.generate.opened(session)
        yield self.refresh(session) | self.path.restore(session) | opened
        if running(session):
            yield from self.follow(session)
        else:
            yield from self.settle(session)

    def on_generate(self, session: Session, *values: Any) -> Iterator[Updates]:
        """The one button: start the step and follow it. The job outlives this page."""
        wish = self.generate.wish(session, values)
        if session.plan is None:
            raise WorldStereoError("Plan a path first, under Path.")
        path = session.plan
        choice = session.generators[wish.generator]
        size = chosen_size(wish.size, session.world.scene, choice.limits)
        if choice.limits is not None and accepted_frames(len(path), choice.limits) != len(path):
            path = path.resampled(accepted_frames(len(path), choice.limits))
        session.explore(path, width=size[0], height=size[1], **wish.options)
        yield {self.message: ""}
        yield from self.follow(session)

    def on_cancel(self, session: Session) -> Updates:
        job = session.job
        if job is not None:
            job.cancel()
        return {self.stop: gr.update(interactive=False, value="Stopping after this view …")}

    def on_undo(self, session: Session, data: dict[str, Any]) -> Updates:
        session.undo()
        return self.refresh(session) | {self.message: ""}

    def on_redo(self, session: Session, data: dict[str, Any]) -> Updates:
        session.redo()
        return self.refresh(session) | {self.message: ""}

    def on_follow(self, session: Session, data: dict[str, Any]) -> Iterator[Updates]:
        """Another page of this session has started a job."""
        if running(session):
            yield from self.follow(session)
        else:
            yield self.refresh(session)

    def follow(self, session: Session) -> Iterator[Updates]:
        """Progress of the running job until it ends, then what has become of the world."""
        job = session.job
        if job is None:
            return
        coming = self.preparing(session) if job.kind == "open" else {}
        yield self.action(session) | self.travel(session) | coming
        shown, sketch = -1, None
        for _ in job:
            if job.over:
                break
            updates: Updates = {self.status: progress(job)}
            if job.kind == "explore" and len(job.frames) != shown:
                shown = len(job.frames)
                updates |= self._arriving(session, job)
            elif job.kind == "open":
                if session.sketch is not sketch:
                    sketch = session.sketch
                    updates |= self.changed(session) | self.preparing(session)
                updates |= self.stage.refresh(session)
            yield updates
        yield from self._ended(session, job)

    def preparing(self, session: Session) -> Updates:
        """Another world is on its way: what each tab says of it, and that nothing can be done."""
        updates = {self.why: piece.reasons(self._why_not(session))}
        for part in (self.world, self.path):
            updates |= part.preparing(session)
        return updates | self.memory.refresh(session) | self.export.refresh(session)

    def _arriving(self, session: Session, job: Job) -> Updates:
        frames = list(job.frames)
        scene = session.world.scene
        made = piece.film(
            scene.views, self.thumbnails, making=frames[-12:], total=job.progress.total
        )
        return {self.film: made} | self.generate.arriving(frames)

    def _ended(self, session: Session, job: Job) -> Iterator[Updates]:
        try:
            job.result()
        except Cancelled:
            yield self.refresh(session) | {
                self.message: piece.said("Cancelled. The world is unchanged.")
            }
        except WorldStereoError as error:  # written for this reader; any other error is a bug
            yield self.refresh(session) | {self.message: piece.failed(str(error))}
        except Exception:  # the job has logged it with its place
            yield self.refresh(session) | {self.message: piece.failed(BUG)}
        else:
            brought = self.generate.opened(session) if job.kind == "open" else {}
            yield self.refresh(session) | {self.message: ""} | brought
        yield from self.settle(session)

    def settle(self, session: Session) -> Iterator[Updates]:
        """Once nothing runs: a path if there is none, its preview, a picture under Memory."""
        if session.plan is None:
            yield from self.path.first_plan(session)
        elif not running(session):
            yield self.action(session) | self.changed(session) | self.memory.newest(session)
            with contextlib.suppress(WorldStereoError):
                yield self.path.show_preview(session, 0)

    def travel(self, session: Session) -> Updates:
        """The header alone."""
        scene = session.shown
        given = sum(view.step == 0 for view in scene.views)
        sketch = session.sketch is not None
        count, saved = (0, "being prepared") if sketch else (len(scene.cloud), session.saved)
        facts = (scene.name, count, given, len(scene.views) - given, saved)
        return {self.header: piece.header(*facts, *self._why_no_travel(session))}


def running(session: Session) -> bool:
    return session.job is not None and not session.job.over


def progress(job: Job) -> str:
    """How far it is, in the place of the one button."""
    now = job.progress
    return piece.progress(now.step, now.total, now.message, now.seconds_left)


def plan_generator(session: Session) -> str:
    """The generator that the session will use next: the last one chosen."""
    usable = [key for key, choice in session.generators.items() if not choice.why_not]
    return session.generator if session.generator in usable else usable[0]


def build(sessions: Sessions) -> gr.Blocks:
    """The page over these sessions."""
    return Panel(sessions).demo


def launch(
    sessions: Sessions, address: Address, *, quiet: bool = False
) -> tuple[gr.Blocks, str, Callable[[], None]]:
    """Serves page, viewports and events on one port; returns the page, its address and the stop.

    A mounted app would start too, but hosts that hook `Blocks.launch` would never see it.
    """
    panel = Panel(sessions)
    demo = panel.demo
    takes = {index: len(fn.inputs) for index, fn in demo.fns.items()}
    _, url, _ = demo.launch(
        server_name=address.host,
        server_port=address.port,
        prevent_thread_lock=True,
        ssr_mode=False,  # its Node front has no websocket upgrade: no viewport
        share=False,
        show_error=False,
        quiet=True,
        max_file_size=address.max_upload,
        allowed_paths=[str(piece.ICONS)],  # else an app started from elsewhere cannot show its own
        app_kwargs={
            "routes": routes(
                sessions.viewport, stats=lambda: sessions.stats, sockets=sessions.sockets
            ),
            "middleware": [(UploadedOnly, (get_upload_folder, takes), {})],
        },
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css_paths=[HERE / "page.css"],
        js=(HERE / "page.js").read_text(encoding="utf-8"),
    )
    # uvicorn reads these per connection, and launch() has no arguments for them
    config = demo.server.config
    config.ws_per_message_deflate = False  # compressing a million points blocks every session 0.8 s
    config.ws_ping_timeout = 120.0  # a slow line would be cut and replayed for ever
    config.ws_max_size = 64 << 20
    threading.Thread(target=panel.prepare, name="prepare", daemon=True).start()

    def stop() -> None:
        sessions.close_all()
        demo.close(verbose=False)

    return demo, url, stop


__all__ = ["EXPIRED", "Panel", "build", "launch"]
