"""The Export tab: pick a form, say what goes in, and the file is on its way."""

import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr

from worldstereo import exports
from worldstereo.errors import Cancelled, ExportError, WorldBusy
from worldstereo.exports import GROUPS, Exporter, estimate, exporters, why_not
from worldstereo.project import packed, state_of
from worldstereo.reconstruct import QUALITIES
from worldstereo.scene import Scene

from ...session.session import PREPARING
from ...session.sessions import Session
from .. import html
from ..catalogue import told, tr
from ..core import Core, Part, Updates, html_block, segmented
from ..settings import parse_float

PROJECT = "project"
PAGE_MB = 15
PREVIEW = "Show the mesh in the viewport"


class ExportTab(Part):
    def __init__(self, core: Core) -> None:
        self.core = core
        self._stops: WeakKeyDictionary[Session, threading.Event] = WeakKeyDictionary()
        """Set to cancel the export that a session is writing."""
        self._asked: WeakKeyDictionary[Session, dict[str, Any]] = WeakKeyDictionary()
        """The quality and page size that each session's page shows sizes and times of."""

    def build(self) -> None:
        register = self.core.register
        gr.Markdown("## " + tr("Export"))
        self.generated = gr.Checkbox(
            True, label=tr("Include generated views and points"), elem_id="include-generated"
        )
        names = [(tr(name.capitalize()), name) for name in QUALITIES]
        self.quality = register(
            segmented(names, "standard", tr("Mesh quality"), "mesh-quality", titled=True)
        )
        self.megabytes = register(
            gr.Slider(
                5, 60, PAGE_MB, step=5, label=tr("Page size, at most MB"), elem_id="page-size"
            )
        )
        self.preview = register(
            gr.Button(tr(PREVIEW), size="sm", elem_id="mesh-preview", elem_classes="tint")
        )
        self.said = register(html_block("", elem_id="exported", elem_classes="line"))
        self.file = register(  # above the list: a long one would hide what has become of a click
            gr.DownloadButton(tr("Download again"), visible=False, size="sm", elem_id="download")
        )
        self.list = register(html_block("", elem_id="formats"))

    def wire(self) -> None:
        inputs = [self.generated, self.quality, self.megabytes]
        self.core.bridge("export", self.on_export, inputs, says=self.said)
        asked = [self.quality, self.megabytes]
        self.core.on(self.quality.input, self.on_asked, asked, says=self.said)
        self.core.on(self.megabytes.release, self.on_asked, asked, says=self.said)
        choices = [self.generated, self.quality]
        self.core.on(self.preview.click, self.on_preview, choices, says=self.said)
        self.core.bridge("export-cancel", self.on_cancel, [], says=self.said)

    def refresh(self, session: Session) -> Updates:
        return {
            self.list: self._formats(session),
            self.preview: self._preview_button(session),
        }

    def opened(self, session: Session) -> Updates:
        self._asked.pop(session, None)  # a page begins with the standard
        return self.refresh(session) | {self.quality: "standard", self.megabytes: PAGE_MB}

    def preparing(self, session: Session) -> Updates:
        return self.refresh(session)

    def on_export(
        self,
        session: Session,
        data: dict[str, Any],
        generated: Any,
        quality: Any = "standard",
        megabytes: Any = PAGE_MB,
    ) -> Iterator[Updates]:
        """One click: written from the published scene, which a running job does not touch."""
        key = str(data.get("key", ""))
        known = exporters()
        if key != PROJECT and key not in known:
            raise ExportError(f"There is no format named {key[:40]!r}.")
        if session.preparing:
            raise WorldBusy(PREPARING)
        label = tr("Project") if key == PROJECT else told(known[key].label)
        yield {
            self.said: html.info(tr("Writing {name} …", name=label)),
            self.file: gr.update(visible=False),
        }
        asked = {"generated": bool(generated), **_checked(quality, megabytes)}
        offered = {} if key == PROJECT else known[key].options
        options = {name: value for name, value in asked.items() if name in offered}
        if key == PROJECT:
            name, content = project_file(session)
        elif known[key].slow:
            name, content = exports.file_name(session.world.scene, key), b""
            write = partial(exports.export, session.world.scene, key, **options)
            for update in self._followed(session, write):
                if isinstance(update, bytes):
                    content = update
                else:
                    yield {self.said: update}
        else:
            name, content = (
                exports.file_name(session.world.scene, key),
                exports.export(session.world.scene, key, **options),
            )
        text = f"{name}, {html.size(len(content))}"
        with tempfile.TemporaryDirectory(prefix="export-") as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            yield {  # Gradio copies the file into its cache before it asks for more
                self.said: html.render("export.html", "written", serial=time.time_ns(), text=text),
                self.file: gr.update(
                    value=str(path), visible=True, label=tr("Download {name}", name=name)
                ),
            }

    def on_asked(self, session: Session, quality: Any, megabytes: Any = PAGE_MB) -> Updates:
        """Another quality or page size: what the exports will cost changes."""
        self._asked[session] = _checked(quality, megabytes)
        return self.refresh(session)

    def on_preview(self, session: Session, generated: Any, quality: Any) -> Iterator[Updates]:
        """Shows the mesh in the viewport, or the points again."""
        if session.viewport.mesh_shown:
            session.viewport.show_mesh(None)
            yield {self.said: "", self.preview: self._preview_button(session)}
            return
        if session.preparing:
            raise WorldBusy(PREPARING)
        options = {"generated": bool(generated), "quality": _checked(quality)["quality"]}
        yield {self.said: html.info(tr("Building the mesh …"))}
        for update in self._followed(session, partial(session.preview_mesh, **options)):
            if isinstance(update, str):
                yield {self.said: update}
        yield {
            self.said: html.info(tr("The mesh is in the viewport, as the mesh formats export it.")),
            self.preview: self._preview_button(session),
        }

    def _preview_button(self, session: Session) -> Any:
        why = PREPARING if session.preparing else why_not(session.world.scene, "mesh-glb")
        shown = session.viewport.mesh_shown
        label = tr("Show points in the viewport") if shown else tr(PREVIEW)
        return gr.update(value=label, interactive=not why)

    def on_cancel(self, session: Session, data: dict[str, Any]) -> Iterator[Updates]:
        """Stop the export that is being written; the world does not change either way."""
        stop = self._stops.get(session)
        if stop is not None:
            stop.set()
        yield {self.said: html.info(tr("Cancelling the export …") if stop else "")}

    def _followed(
        self, session: Session, write: Callable[..., bytes | int]
    ) -> Iterator[str | bytes | int]:
        """Progress with a cancel button, then the result. Raises what `write(on_step=)` raised."""
        if session in self._stops:
            raise WorldBusy("Another export is being written. Wait for it, or cancel it.")
        stop = self._stops[session] = threading.Event()
        told: queue.Queue[tuple[int, int, str] | None] = queue.Queue()
        outcome: list[bytes | int | BaseException] = []

        def on_step(step: int, total: int, message: str) -> None:
            if stop.is_set():
                raise Cancelled("The export was cancelled; nothing was written.")
            told.put((step, total, message))

        def work() -> None:
            try:
                outcome.append(write(on_step=on_step))
            except BaseException as error:  # raised again where the button was pressed
                outcome.append(error)
            told.put(None)

        thread = threading.Thread(target=work, name="export", daemon=True)
        thread.start()
        try:
            shown = 0.0
            while (news := told.get()) is not None:
                if time.monotonic() - shown > 0.3:
                    shown = time.monotonic()
                    yield _progress(*news)
        finally:
            stop.set()  # the tab was closed: the file is not wanted any more
            thread.join()
            del self._stops[session]
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        yield outcome[0]

    def _formats(self, session: Session) -> str:
        asked = self._asked.get(session, {})
        scene, wait = session.world.scene, PREPARING if session.preparing else ""
        some = scene.views or len(scene.cloud)
        why = "" if some else tr("The world is empty. Open a capture first.")
        about = tr("The whole world with its history; can be opened again.")
        project = {
            "key": PROJECT,
            "label": tr("Project"),
            "suffix": ".zip",
            "about": about,
            "why": wait or why,
            "cost": "",
        }
        groups = []
        for group, title in GROUPS.items():
            rows = [
                self._row(scene, key, form, wait, asked)
                for key, form in exporters().items()
                if form.group == group
            ]
            rows += [project] if group == "continue" else []
            groups.append((title, rows))
        return html.render("export.html", "formats", groups=groups)

    def _row(
        self, scene: Scene, key: str, form: Exporter, wait: str, asked: dict[str, Any]
    ) -> dict[str, str]:
        why = wait or why_not(scene, key)
        cost = ""
        if not why:
            guess = estimate(scene, key, **asked)
            cost = tr(
                "about {size}, {time}", size=html.size(guess.bytes), time=_duration(guess.seconds)
            )
        return {
            "key": key,
            "label": form.label,
            "suffix": form.suffix,
            "about": form.describes,
            "why": why,
            "cost": cost,
        }


def _checked(quality: Any, megabytes: Any = PAGE_MB) -> dict[str, Any]:
    if quality not in QUALITIES:
        raise ExportError(f"The quality of a mesh is one of {', '.join(QUALITIES)}.")
    return {"quality": quality, "megabytes": parse_float(megabytes, "Page size", 1, 200)}


def _duration(seconds: float) -> str:
    if seconds < 2:
        return tr("at once")
    return html.duration(seconds)


def _progress(step: int, total: int, message: str) -> str:
    text = f"{told(message)} ({step}/{total})" if total > 1 else told(message)
    return html.render("export.html", "progress", text=text)


def project_file(session: Session) -> tuple[str, bytes]:
    """The whole world as one file, written now: raises `WorldBusy` while a step runs."""
    name = exports.file_name(session.world.scene, "ply").rsplit(".", 1)[0]
    return f"{name}.world.zip", packed(state_of(session.world, plan=session.planned.path))
