"""The World tab: where a world comes from, how it is shown, what it holds, how its views agree."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from worldstereo.depth import SUGGESTED_LABEL
from worldstereo.errors import Cancelled, WorldStereoError
from worldstereo.inputs import readers
from worldstereo.inputs.registry import CLOUDS
from worldstereo.scene import DepthKind, Scene
from worldstereo.world import AddedPhoto, AddReport

from ...session.session import NO_VIEWS, PREPARING
from ...session.sessions import Session
from ...viewport.colors import COLOR_MODES
from .. import html
from ..action import Action
from ..catalogue import figures, told, tr, trn
from ..core import BUSY, Core, Part, Updates, html_block, segmented, status_line
from ..follow import Follow
from ..hud import Hud
from ..settings import parse_float, scale_of, unit_of

ROWS = 60  # of the registration table
ANOTHER_WORLD: tuple[str, ...] = ("#upload", "#add-photos", "[data-send=example]")
ON_THIS_WORLD: tuple[str, ...] = (
    "#add-photos",
    "#registered",
    "#scale",
    "#set-scale",
    "#measure",
    "#set-up",
    "#select",
    "#delete",
)


class WorldTab(Part):
    def __init__(self, core: Core, action: Action, hud: Hud, follow: Follow) -> None:
        self.core, self.action, self.hud, self.follow = core, action, hud, follow
        self._switching = threading.Lock()  # of two quick keys none is lost

    def build(self) -> None:
        register, icons = self.core.register, html.ICONS
        gr.Markdown("## " + tr("Start from"))
        html_block(self._examples())
        self.upload = gr.UploadButton(
            tr("Your photos, video, capture, mesh or cloud"),  # of any name: the reader decides
            file_count="multiple",
            size="sm",
            icon=str(icons / "upload.svg"),
            elem_classes="tint",
            elem_id="upload",
        )
        html_block(html.muted(_accepted()))
        self.problem = register(status_line())
        self.model_line = register(status_line())
        with gr.Row():
            self.get_model = register(
                gr.Button(
                    told(SUGGESTED_LABEL), size="sm", elem_classes="tint", elem_id="get-depth",
                    visible=False,
                )
            )  # fmt: skip
            self.stop_model = register(
                gr.Button(
                    tr("Stop the download"), size="sm", elem_classes="tint", elem_id="stop-depth",
                    visible=False,
                )
            )  # fmt: skip
        gr.Markdown("## " + tr("Show"), elem_classes="gap-top")
        drawings = [(tr("Surface"), "surface"), (tr("Points"), "points"), (tr("Live"), "live")]
        self.drawing = register(segmented(drawings, "points", tr("Draw as"), "drawing"))
        colors = [(tr(mode.capitalize()), mode) for mode in COLOR_MODES]
        self.color = register(segmented(colors, "photo", tr("Colour by"), "color"))
        with gr.Row():
            self.views = gr.Checkbox(True, label=tr("Remembered views"), min_width=100)
            self.path = gr.Checkbox(True, label=tr("Planned path"), min_width=100)
        gr.Markdown("## " + tr("This world"), elem_classes="gap-top")
        self.facts = register(status_line())
        self.more = register(
            gr.UploadButton(
                tr("Add photos to this world"),  # of any name, as above
                file_count="multiple",
                size="sm",
                icon=str(icons / "upload.svg"),
                elem_classes="tint gap-top",
                elem_id="add-photos",
                visible=False,
            )
        )
        self.placed = register(status_line())
        gr.Markdown("## " + tr("Registration"), elem_classes="gap-top")
        self.registered = register(
            gr.Checkbox(
                True, label=tr("Register the input views to each other"), elem_id="registered"
            )
        )
        self.table = register(status_line())
        gr.Markdown("## " + tr("Scale and sky"), elem_classes="gap-top")
        with gr.Row():
            self.scale = register(
                gr.Number(
                    1.0,
                    label=tr("Metres in one unit"),
                    minimum=1e-6,
                    elem_id="scale",
                    min_width=120,
                )
            )
            self.apply_scale = gr.Button(
                tr("Set scale"), size="sm", elem_id="set-scale", min_width=90
            )
        with gr.Row():
            self.measure = gr.Button(
                tr("Measure"),
                size="sm",
                icon=str(icons / "ruler.svg"),
                elem_classes="tint",
                elem_id="measure",
                min_width=90,
            )
            self.sky = gr.Button(
                tr("Up as in my view"),
                size="sm",
                icon=str(icons / "move-vertical.svg"),
                elem_classes="tint",
                elem_id="set-up",
                min_width=110,
            )
        self.measured_text = register(status_line())
        gr.Markdown("## " + tr("Points"), elem_classes="gap-top")
        with gr.Row():
            self.select = gr.Button(
                tr("Box-select"),
                size="sm",
                icon=str(icons / "square-dashed-mouse-pointer.svg"),
                elem_classes="tint",
                elem_id="select",
                min_width=90,
            )
            self.delete = register(
                gr.Button(
                    tr("Delete selected"),
                    size="sm",
                    icon=str(icons / "trash-2.svg"),
                    elem_classes="tint",
                    elem_id="delete",
                    interactive=False,
                    min_width=110,
                )  # fmt: skip
            )

    def wire(self) -> None:
        on, bridge = self.core.on, self.core.bridge
        bridge("example", self.on_example, says=self.problem)
        on(self.upload.upload, self.on_upload, [self.upload], says=self.problem)
        on(self.get_model.click, self.on_get_model, says=self.model_line)
        on(self.stop_model.click, self.on_stop_model, says=self.model_line)
        on(self.more.upload, self.on_photos, [self.more], says=self.placed)
        on(self.drawing.input, self.on_drawing, [self.drawing])
        on(self.color.input, self.on_color, [self.color])
        on(self.views.input, self.on_views, [self.views])
        on(self.path.input, self.on_path, [self.path])
        on(self.registered.input, self.on_registered, [self.registered], says=self.table)
        on(self.apply_scale.click, self.on_scale, [self.scale], says=self.measured_text)
        on(self.sky.click, self.on_sky, says=self.measured_text)
        on(self.measure.click, self.on_measure)
        on(self.select.click, self.on_select)
        on(self.delete.click, self.on_delete)
        bridge("delete", self.on_key_delete)
        bridge("measure", self.on_key_measure)
        bridge("select", self.on_key_select)
        bridge("live", self.on_live)

    def refresh(self, session: Session) -> Updates:
        scene = session.world.scene
        viewport = session.viewport
        return {
            self.facts: self._facts(session),
            self.table: self._table(session),
            self.registered: gr.update(
                value=session.world.registration is not None,
                interactive=not _why_not_registered(scene),
            ),
            self.drawing: "live" if viewport.live else viewport.drawing,
            self.color: viewport.color_mode,
            self.scale: self._scale(session),
            self.measured_text: "",
            self.delete: self._delete_button(session),
            self.problem: "",
            self.more: gr.update(visible=_some(scene)),
            self.placed: self._placed(session),
        } | self._model(session)

    def why_not(self, session: Session) -> dict[str, str]:
        why: dict[str, str] = dict.fromkeys(ANOTHER_WORLD, BUSY) if session.busy else {}
        if session.preparing:
            return why | dict.fromkeys(ON_THIS_WORLD, PREPARING)
        if not session.matchable:
            why.setdefault("#add-photos", NO_VIEWS)
        if not session.selected:
            why["#delete"] = tr("Select points first: Box-select, then draw a box.")
        if reason := _why_not_registered(session.world.scene):
            why["#registered"] = reason
        return why

    def preparing(self, session: Session) -> Updates:
        """Another world is on its way: nothing of the last one is told as if it were that one."""
        return {self.facts: self._facts(session), self.table: self._table(session)}

    # ---- a new world -------------------------------------------------------------------------

    def on_example(self, session: Session, data: dict[str, Any]) -> Iterator[Updates]:
        key = str(data.get("key", ""))
        if key not in [example.key for example in self.core.sessions.examples]:
            raise WorldStereoError(f"There is no example named {key[:40]!r}.")
        session.example(key)
        yield {self.problem: ""}
        yield from self.follow.job(session)

    def on_upload(self, session: Session, given: Any) -> Iterator[Updates]:
        """Any accepted kind; the import worker decides by content and refuses in one line."""
        files = _arrived([given] if isinstance(given, str) else given)
        if len(files) == 1:
            session.open(files[0], files[0].name)
        else:
            session.open(files, tr("{n} photos", n=len(files)))
        yield {self.problem: ""}
        yield from self.follow.job(session)

    # ---- the depth model ---------------------------------------------------------------------

    def on_get_model(self, session: Session) -> Iterator[Updates]:
        """The press is the consent: one download, which anybody here may follow or stop."""
        job = session.shared.depth_model.get()
        yield self._model(session)
        for now in job:
            if job.over:
                break
            shown = html.progress(now.step, now.total, now.message, now.seconds_left)
            yield {self.model_line: shown}
        try:
            job.result()
        except Cancelled:
            said = html.info(tr("Stopped. The next download goes on from there."))
            yield self._model(session) | {self.model_line: said}
        except WorldStereoError as error:
            yield self._model(session) | {self.model_line: html.failed(str(error))}
        else:
            yield self._model(session)

    def on_stop_model(self, session: Session) -> Updates:
        session.shared.depth_model.stop()
        return {self.stop_model: gr.update(visible=False)}

    def _model(self, session: Session) -> Updates:
        """Which depth a photo gets here, and the button while there is a better one to be had."""
        model = session.shared.depth_model
        if model.busy:
            words = tr("The depth model is being downloaded.")
        elif model.name:
            words = tr("Depth of single photos: {name}.", name=model.name)
        else:
            words = tr("Depth of single photos: rough layout.")
        return {
            self.model_line: html.info(words),
            self.get_model: gr.update(visible=model.offered and not model.busy),
            self.stop_model: gr.update(visible=model.busy),
        }

    # ---- photos for this world ---------------------------------------------------------------

    def on_photos(self, session: Session, given: Any) -> Iterator[Updates]:
        """Photos without poses: the session finds their places, or says why not."""
        session.add(_arrived(given))
        yield {self.placed: ""}
        yield from self.follow.job(session)

    def _placed(self, session: Session) -> str:
        """What became of the photos of the last job, as long as the world holds them."""
        job = session.job
        if job is None or job.kind != "add" or job.state != "done":
            return ""
        report: AddReport = job.result()
        views = len(session.world.scene.views)
        if any(photo.view is not None and photo.view >= views for photo in report.photos):
            return ""  # undone since
        lines = placed_lines(report)
        if len(lines) > ROWS:
            lines = [*lines[:ROWS], tr("and {n} more.", n=len(lines) - ROWS)]
        return html.render("world.html", "placed", lines=lines)

    # ---- showing -----------------------------------------------------------------------------

    def on_drawing(self, session: Session, mode: Any) -> Updates:
        if mode not in ("surface", "points", "live"):
            raise WorldStereoError("The place can be drawn as surface, as points, or live.")
        session.set_drawing(mode, by_hand=True)
        return self.hud.refresh(session)

    def on_live(self, session: Session, data: dict[str, Any]) -> Updates:
        """The viewport's own switch between the live view and the cloud."""
        with self._switching:
            mode = session.viewport.drawing if session.viewport.live else "live"
            return {self.drawing: mode} | self.on_drawing(session, mode)

    def on_color(self, session: Session, mode: Any) -> Updates:
        if mode not in COLOR_MODES:
            raise WorldStereoError(f"Colour by one of {', '.join(COLOR_MODES)}.")
        session.viewport.color_by(mode)
        return self.hud.refresh(session)

    def on_views(self, session: Session, visible: Any) -> Updates:
        session.viewport.show_views(bool(visible))
        return {}

    def on_path(self, session: Session, visible: Any) -> Updates:
        session.viewport.show_path(bool(visible))
        return {}

    # ---- registration, scale, sky ------------------------------------------------------------

    def on_registered(self, session: Session, wanted: Any) -> Iterator[Updates]:
        session.set_registration(bool(wanted))
        yield from self.follow.job(session)

    def on_scale(self, session: Session, value: Any) -> Updates:
        factor = parse_float(value, "metres", 1e-6, 1e6)
        if session.viewport.measuring and session.measured:
            factor /= session.measured
        session.rescale(factor / scale_of(session.world.scene))
        return self.follow.refresh(session) | {
            self.measured_text: html.info(tr("One unit is {n} m now.", n=figures(f"{factor:.4g}")))
        }

    def _scale(self, session: Session) -> Any:
        """The field of the scale: of a measured length while there is one, else of one unit."""
        scale = scale_of(session.world.scene)
        if session.viewport.measuring and session.measured:
            length = float(f"{session.measured * scale:.4g}")
            return gr.update(value=length, label=tr("Real length, metres"))
        return gr.update(value=scale, label=tr("Metres in one unit"))

    def on_sky(self, session: Session) -> Updates:
        session.set_up("camera")
        return self.follow.refresh(session) | {
            self.measured_text: html.info(tr("The world's up axis is now the camera's."))
        }

    def on_measure(self, session: Session) -> Updates:
        session.measured = None
        with self._switching:
            session.viewport.measure(not session.viewport.measuring)
        return self.hud.refresh(session) | self.measuring(session)

    def on_key_measure(self, session: Session, data: dict[str, Any]) -> Updates:
        return self.on_measure(session)

    def on_key_select(self, session: Session, data: dict[str, Any]) -> Updates:
        return self.on_select(session)

    def measuring(self, session: Session) -> Updates:
        """Measuring was switched on or off."""
        says = tr("Click two points in the viewport.") if session.viewport.measuring else ""
        return {
            self.measured_text: html.info(says) if says else "",
            self.scale: self._scale(session),
        }

    def measured(self, session: Session, data: dict[str, Any]) -> Updates:
        length, unit = data.get("length"), str(data.get("unit", "m"))[:8]
        if not isinstance(length, int | float):
            return {}
        long = html.length(float(length), tr(unit))
        text = tr("Measured {length}. Enter its real length to set the scale.", length=long)
        return {
            self.measured_text: html.info(text),
            self.scale: self._scale(session),
        } | self.hud.say((tr("measured"), long))

    # ---- deleting ----------------------------------------------------------------------------

    def on_select(self, session: Session) -> Updates:
        with self._switching:
            session.viewport.select(not session.viewport.selecting)
        return self.hud.refresh(session)

    def selected(self, session: Session) -> Updates:
        count = session.selected
        updates = {self.delete: self._delete_button(session)} | self.action.refresh(session)
        if not count:
            return updates
        text = trn("{n} point; Delete removes it", "{n} points; Delete removes them", count)
        return updates | self.hud.say((tr("selected"), text))

    def on_key_delete(self, session: Session, data: dict[str, Any]) -> Updates:
        if not session.selected:
            raise WorldStereoError("Select points first: press B, then draw a box.")
        return self.on_delete(session)

    def on_delete(self, session: Session) -> Updates:
        count = session.delete_selection()
        text = trn(
            "{n} point deleted; Undo brings it back.",
            "{n} points deleted; Undo brings them back.",
            count,
        )
        return self.follow.refresh(session) | {self.core.message: html.info(text)}

    def _delete_button(self, session: Session) -> Any:
        count = session.selected
        label = tr("Delete {n}", n=figures(f"{count:,}")) if count else tr("Delete selected")
        return gr.update(value=label, interactive=count > 0)

    # ---- pieces ------------------------------------------------------------------------------

    def _examples(self) -> str:
        tiles = []
        for example in self.core.sessions.examples:
            image = ""
            if example.thumbnail is not None:
                import numpy as np
                from PIL import Image

                with Image.open(example.thumbnail) as opened:
                    image = html.picture(np.asarray(opened.convert("RGB")), 240, 82)
            tiles.append((example, image))
        return html.render("world.html", "examples", tiles=tiles)

    def _facts(self, session: Session) -> str:
        scene = session.world.scene
        some = _some(scene)
        if session.preparing:
            name = session.loader.sketch.name if session.loader.sketch else tr("A new world")
            kept = scene.name if some else ""
            frames = [] if session.job is None else list(session.job.frames[:ROWS])
            read = [html.picture(frame, 160, 80) for frame in frames]
            return html.render("world.html", "coming", name=name, kept=kept, read=read)
        if not some:
            return html.empty(tr("Open an example or a file: its numbers appear here."))
        rows = [
            (
                tr("Points"),
                tr(
                    "{n} of {total}",
                    n=figures(f"{len(scene.cloud):,}"),
                    total=figures(f"{session.world.max_points:,}"),
                ),
            ),
            (tr("Views"), f"{len(scene.views)}"),
            (tr("Generated clips"), f"{len(scene.clips)}"),
            (tr("Memory used"), html.size(session.nbytes)),
            (tr("Size"), extent(scene)),
            (tr("Median depth"), html.length(scene.unit * scale_of(scene), tr(unit_of(scene)))),
        ]
        notes = [*scene.notices, *session.notices, *session.viewport.notices, *scene.checks]
        if scene.rough_depth:
            notes.insert(0, tr("Depth is a rough estimate from one photo."))
        if session.saving.path is not None:
            kept = self.core.sessions.config.keep
            notes.append(tr("Saved after each step. Kept here: {n}; oldest deleted first.", n=kept))
        left_out = [
            (html.picture(left.thumbnail.permute(1, 2, 0).numpy(), 160, 80), left.name, left.why)
            for left in session.left_out
        ]
        notes = list(dict.fromkeys(notes))
        return html.render("world.html", "facts", pairs=rows, notes=notes, left_out=left_out)

    def _table(self, session: Session) -> str:
        scene, registration = session.world.scene, session.world.registration
        given = [view for view in scene.views if view.step == 0]
        if session.preparing:
            return html.muted(tr("Shown when the new world is ready."))
        if len(given) < 2:
            text = tr("Registration needs at least two views.") if given else tr("No views yet.")
            return html.muted(text)
        if registration is None:
            text = _why_not_registered(scene) or tr("Off: original poses.")
            return html.muted(text)
        moved = list(zip(registration.moved_px.tolist(), registration.agrees, strict=True))
        return html.render(
            "world.html",
            "registration",
            rows=moved[:ROWS],
            more=max(0, len(moved) - ROWS),
            notes=registration.notices,
        )


def _accepted() -> str:
    """What can be opened, in one sentence."""
    clouds = [r.suffixes[0] for r in readers() if r.group == CLOUDS and r.suffixes]
    return tr(
        "Photos, a video, a mesh or point cloud ({kinds}), a folder or zip of pictures, "
        "or a saved project.",
        kinds=", ".join(suffix[1:].upper() for suffix in clouds),
    )


def placed_lines(report: AddReport) -> list[str]:
    """How many photos were placed, then each that was not, with its reason."""
    count = len(report.photos)
    head = trn(
        "{placed} of {n} photo placed.",
        "{placed} of {n} photos placed.",
        count,
        placed=len(report.added),
    )
    left = [
        tr("{name}: left out, {why}", name=photo.name, why=_why_left_out(photo))
        for photo in report.left_out
    ]
    return [head, *left, *report.notices]


def _why_left_out(photo: AddedPhoto) -> str:
    if photo.status == "copy":
        return tr("it {what}", what=told(photo.reason))
    doubtful = photo.status == "doubtful"
    what = tr("its place is uncertain") if doubtful else tr("no place found")
    return f"{what} ({told(photo.reason)})"


def _some(scene: Scene) -> bool:
    return len(scene.cloud) > 0 or len(scene.views) > 0


def _arrived(given: Any) -> list[Path]:
    """The files of an upload, as Gradio names them."""
    whole = isinstance(given, list) and all(
        isinstance(path, str) and Path(path).is_file() for path in given
    )
    if not whole or not given:
        raise WorldStereoError("The upload did not arrive. Try again.")
    return [Path(path) for path in given]


def _why_not_registered(scene: Scene) -> str:
    given = [view for view in scene.views if view.step == 0]
    if len(given) < 2:
        return tr("Registration needs at least two input views.")
    if scene.rough_depth:
        return tr("Registration needs measured depth; here it is estimated.")
    if not any(bool((view.kind == int(DepthKind.MEASURED)).any()) for view in given):
        return tr("This depth was measured from the poses themselves and cannot correct them.")
    return ""


# ---- numbers about a scene -----------------------------------------------------------------------


def extent(scene: Scene) -> str:
    """Sides of the box around the middle 96 % of what was measured, along the world's axes."""
    import numpy as np

    cloud = scene.cloud
    points = cloud.points[cloud.confidence >= 0.25]  # what was completed may lie anywhere
    if not len(points):
        points = cloud.points
    if not len(points):
        return tr("empty")
    step = max(1, len(points) // 50_000)
    low, high = np.percentile(points[::step].cpu().numpy(), [2, 98], axis=0)
    sides = (high - low) * scale_of(scene)
    shown = " × ".join(f"{side:.2g}" if side < 10 else f"{side:.0f}" for side in sides)
    return f"{figures(shown)} {tr(unit_of(scene))}"
