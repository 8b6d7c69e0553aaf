"""The Export tab: pick a form, say what goes in, and the file is on its way."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from worldstereo.errors import ExportError, WorldBusy
from worldstereo.exports import FORMATS, why_not
from worldstereo.project import packed, state_of

from ...session.session import PREPARING
from ...session.sessions import Session
from .. import html as piece
from ..core import Core, Part, Updates, html

PROJECT = "project"


class ExportTab(Part):
    def __init__(self, core: Core) -> None:
        self.core = core

    def build(self) -> None:
        shown = self.core.shown
        gr.Markdown("#### Export")
        self.generated = gr.Checkbox(
            True, label="Include generated views and points", elem_id="include-generated"
        )
        self.said = shown(html("", elem_id="exported", elem_classes="line"))
        self.file = shown(  # above the list: a long one would hide what has become of a click
            gr.DownloadButton("Download again", visible=False, size="sm", elem_id="download")
        )
        self.list = shown(html("", elem_id="formats"))

    def wire(self) -> None:
        self.core.bridge("export", self.on_export, [self.generated], says=self.said)

    def refresh(self, session: Session) -> Updates:
        return {self.list: self._formats(session)}

    def preparing(self, session: Session) -> Updates:
        return self.refresh(session)

    def on_export(
        self, session: Session, data: dict[str, Any], generated: Any
    ) -> Iterator[Updates]:
        """One click: written from the published scene, which a running job does not touch."""
        key = str(data.get("key", ""))
        if key != PROJECT and key not in FORMATS:
            raise ExportError(f"There is no format named {key[:40]!r}.")
        if session.preparing:
            raise WorldBusy(PREPARING)
        label = "Project" if key == PROJECT else FORMATS[key].label
        yield {self.said: piece.said(f"Writing {label} …"), self.file: gr.update(visible=False)}
        options: dict[str, Any] = {}
        if key != PROJECT and "generated" in FORMATS[key].options:
            options["generated"] = bool(generated)
        if key == PROJECT:
            name, content = project_file(session)
        else:
            name, content = session.export_name(key), session.export(key, **options)
        text = f"{name}, {piece.size(len(content))}"
        with tempfile.TemporaryDirectory(prefix="export-") as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            yield {  # Gradio copies the file into its cache before it asks for more
                self.said: f'<div data-download="{time.time_ns()}">{piece.said(text)}</div>',
                self.file: gr.update(value=str(path), visible=True, label=f"Download {name}"),
            }

    def _formats(self, session: Session) -> str:
        scene, wait = session.world.scene, PREPARING if session.preparing else ""
        rows = []
        for key, form in FORMATS.items():
            why = wait or why_not(scene, key)
            rows.append(_row(key, form.label, form.suffix, form.describes, why))
        why = "" if scene.views or len(scene.cloud) else "The world is empty. Open a capture first."
        about = "The whole world with its history; can be opened again."
        rows.append(_row(PROJECT, "Project", ".zip", about, wait or why))
        return f'<div role="list">{"".join(rows)}</div>'


def project_file(session: Session) -> tuple[str, bytes]:
    """The whole world as one file, written now: raises `WorldBusy` while a step runs."""
    name = session.export_name("ply").rsplit(".", 1)[0]
    return f"{name}.world.zip", packed(state_of(session.world, plan=session.plan))


def _row(key: str, label: str, suffix: str, about: str, why: str) -> str:
    marks = piece.attributes(
        type="button",
        class_="item",
        id=f"export-{key}",
        title=why or f"Download {label}",
        disabled=bool(why),
        data_send="export",
        data_key=key,
    )
    return (
        f"<button{marks}><span><b>{piece.esc(label)}</b> "
        f'<span class="tag">{piece.esc(suffix.lstrip("."))}</span><br>'
        f'<span class="muted">{piece.esc(about)}</span></span>{piece.icon("download")}</button>'
    )
