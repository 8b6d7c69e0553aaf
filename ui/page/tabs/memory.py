"""The Memory tab: where a pixel comes from, who remembers it, and how much each view says.

Frames of the published model have one thing more to show: what the model itself attended to.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from worldstereo.errors import Cancelled, WorldBusy, WorldStereoError
from worldstereo.scene import Origin, Scene

from ... import inspector
from ...inspector import Inspection, Target
from ...session.session import PREPARING
from ...session.sessions import Session
from ...viewport.overlays import MatchLine
from .. import html
from ..action import Action
from ..catalogue import told, tr, trn
from ..core import Core, Part, Updates, html_block, segmented, status_line
from ..hud import Hud
from ..matches_svg import matches_svg
from ..settings import parse_float, parse_int, scale_of, unit_of

if TYPE_CHECKING:
    from worldstereo.generators.diffusion.attention_inspection import AttentionRow

MODES = ("Pixel", "References", "Sources")
ATTENTION = "Attention"
EMPTY = "Click a pixel in this picture, or a point in the viewport, to see where it comes from."
COMING = (
    "A new world is being prepared: its views can be looked into when their memory is finished."
)


class MemoryTab(Part):
    def __init__(self, core: Core, action: Action, hud: Hud, thumbnails: html.Thumbnails) -> None:
        self.core, self.action, self.hud, self.thumbnails = core, action, hud, thumbnails

    def build(self) -> None:
        register = self.core.register
        self.mode = register(segmented(modes(), "Pixel", tr("Show"), "mode"))
        self.view = register(gr.Slider(1, 2, 1, step=1, label=tr("View"), elem_id="memory-view"))
        with gr.Row():
            self.layer = register(
                gr.Slider(1, 2, 1, step=1, label=tr("Layer"), visible=False, elem_id="layer")
            )
            self.step = register(
                gr.Slider(1, 2, 1, step=1, label=tr("Step"), visible=False, elem_id="at-step")
            )
        self.card = register(html_block(html.empty(tr(EMPTY)), elem_id="card"))
        with gr.Row():
            self.u = register(
                gr.Number(
                    0,
                    label=tr("Pixel from the left"),
                    precision=0,
                    minimum=0,
                    min_width=100,
                    elem_id="u",
                )
            )
            self.v = register(
                gr.Number(
                    0,
                    label=tr("Pixel from the top"),
                    precision=0,
                    minimum=0,
                    min_width=100,
                    elem_id="v",
                )
            )
        self.problem = register(status_line())

    def wire(self) -> None:
        on = self.core.on
        where = [self.view, self.u, self.v, self.mode, self.layer, self.step]
        on(self.mode.input, self.on_mode, where, says=self.problem)
        on(self.view.release, self.on_view, where, says=self.problem)
        on(self.u.submit, self.on_inspect, where, says=self.problem)
        on(self.v.submit, self.on_inspect, where, says=self.problem)
        on(self.layer.release, self.on_inspect, where, says=self.problem)
        on(self.step.release, self.on_inspect, where, says=self.problem)
        self.core.bridge(
            "pixel",
            self.on_pixel,
            [self.view, self.mode, self.layer, self.step],
            says=self.problem,
        )

    def refresh(self, session: Session) -> Updates:
        count = len(session.world.scene.views)
        if session.loader.sketch is not None:
            return {self.card: html.empty(tr(COMING))}
        updates: Updates = {self.view: gr.update(maximum=max(2, count))}
        if not count:
            updates[self.card] = html.empty(tr("No views yet. Open an example first."))
        return updates

    def why_not(self, session: Session) -> dict[str, str]:
        if session.loader.sketch is None:
            return {}
        return dict.fromkeys(("#memory-view", "#mode", "#u", "#v"), PREPARING)

    def preparing(self, session: Session) -> Updates:
        return self.refresh(session)

    # ---- handlers ----------------------------------------------------------------------------

    def on_mode(self, session: Session, *where: Any) -> Updates:
        return self._show(session, *self._checked(session, where))

    def on_view(self, session: Session, *where: Any) -> Updates:
        view, _, mode = self._checked(session, where)
        return self._show(session, view, None, mode)

    def on_inspect(self, session: Session, *where: Any) -> Iterator[Updates]:
        view, pixel, mode = self._checked(session, where)
        yield self._show(session, view, pixel, mode)
        if mode == ATTENTION and pixel is not None:
            yield from self._attend(session, view, pixel, *where[4:6])

    def on_pixel(
        self, session: Session, data: dict[str, Any], view: Any, mode: Any, *at: Any
    ) -> Iterator[Updates]:
        """A click in a picture: the event carries the view and the place as shares of its sides."""
        scene = session.world.scene
        if not scene.views:
            raise WorldStereoError("There is no view to inspect yet. Open an example first.")
        sent = data["view"] if "view" in data else parse_int(view, "view", 1, 100_000) - 1
        index = parse_int(sent, "view", 0, len(scene.views) - 1)
        camera = scene.views[index].cameras
        x = parse_float(data.get("x"), "the place in the picture", -1, 2)
        y = parse_float(data.get("y"), "the place in the picture", -1, 2)
        pixel = (
            min(max(x * camera.width, 0.5), camera.width - 0.5),
            min(max(y * camera.height, 0.5), camera.height - 0.5),
        )
        attends = mode == ATTENTION and self._attends(session, index)
        yield self._show(session, index, pixel, ATTENTION if attends else "Pixel")
        if attends:
            yield from self._attend(session, index, pixel, *at)

    def at_point(self, session: Session, point: Any, mode: str) -> Updates:
        """A click in the viewport: the view that shows the point best."""
        if not isinstance(point, Sequence) or len(point) != 3:
            raise WorldStereoError("The click hit nothing.")
        place = [parse_float(value, "a coordinate") for value in point]
        camera = session.viewport.camera()
        found = inspector.locate(session.world.scene, place, camera)
        if found is None:
            raise WorldStereoError("No stored view shows that point; only the cloud has it.")
        return self._show(session, *found, "Pixel") | {self.core.tabs: gr.update(selected="memory")}

    def choose(self, session: Session, view: int) -> Updates:
        """Another view, without a pixel yet; the tab in front stays where it is."""
        return self._show(session, view, None, "Pixel")

    def newest(self, session: Session) -> Updates:
        """The middle of the newest clip, or else the first view, is ready to be clicked."""
        views = session.world.scene.views
        made = [i for i, view in enumerate(views) if view.step > 0]
        if not made:
            first = self._show(session, 0, None, "Pixel") if views else {}
            return self.refresh(session) | first
        newest = max(views[i].step for i in made)
        first = min(i for i in made if views[i].step == newest)
        last = max(i for i in made if views[i].step == newest)
        return self.refresh(session) | self._show(session, (first + last) // 2, None, "Pixel")

    def _checked(
        self, session: Session, where: Sequence[Any]
    ) -> tuple[int, tuple[float, float] | None, str]:
        view, u, v, mode = where[:4]
        count = len(session.world.scene.views)
        if not count:
            raise WorldStereoError("There is no view to inspect yet. Open an example first.")
        if mode not in (*MODES, ATTENTION):
            raise WorldStereoError(f"Memory shows one of {', '.join(MODES)}.")
        index = min(count, parse_int(view, "view", 1, 100_000)) - 1
        x, y = parse_float(u or 0, "pixel", 0, 1e5), parse_float(v or 0, "pixel", 0, 1e5)
        return index, (None if x == 0 and y == 0 else (int(x) + 0.5, int(y) + 0.5)), str(mode)

    # ---- what is shown -----------------------------------------------------------------------

    def _show(
        self, session: Session, view: int, pixel: tuple[float, float] | None, mode: str
    ) -> Updates:
        scene = session.world.scene
        if session.loader.sketch is not None:
            raise WorldBusy(PREPARING)
        updates: Updates = {
            self.view: gr.update(value=view + 1, maximum=max(2, len(scene.views))),
            self.problem: "",
            self.u: int(pixel[0]) if pixel else 0,
            self.v: int(pixel[1]) if pixel else 0,
        }
        attends = self._attends(session, view)
        mode = "Pixel" if mode == ATTENTION and not attends else mode
        updates[self.mode] = gr.update(choices=modes(attends), value=mode)
        updates |= self._depths(session, view, mode)
        if mode == "Pixel" and pixel is not None:
            found = inspector.inspect(scene, view, pixel)
            self._draw(session, found)
            updates[self.card] = self._pixel(found, scene)
            updates |= self.hud.legend()
            return updates
        session.viewport.show_matches(None)
        updates |= self.hud.line(session)
        target = inspector.target_of(scene, view)
        if mode == ATTENTION:
            updates[self.card] = self._clickable(target, scene) + self._attention_help(
                session, view
            )
        elif mode == "References":
            updates[self.card] = self._references(target, scene) + self._votes(session, target)
        elif mode == "Sources":
            updates[self.card] = self._sources(target, scene)
        else:
            updates[self.card] = self._clickable(target, scene) + html.empty(tr(EMPTY))
        return updates

    # ---- the published model's attention -----------------------------------------------------

    def _attends(self, session: Session, view: int) -> bool:
        """Whether the published model made this frame."""
        clip = inspector.clip_of(session.world.scene, session.world.scene.views[view])
        return clip is not None and clip.generator.startswith("worldstereo-")

    def _depths(self, session: Session, view: int, mode: str) -> Updates:
        """The sliders for layer and denoising step; there is nothing to choose elsewhere."""
        try:
            asked = session.attention.of(session.world.scene, view) if mode == ATTENTION else None
        except WorldStereoError:
            asked = None
        layers, steps = (asked.layers, asked.steps) if asked else (1, 1)
        return {
            self.layer: gr.update(maximum=max(2, layers), visible=asked is not None),
            self.step: gr.update(maximum=max(2, steps), visible=asked is not None and steps > 1),
        }

    def _attention_help(self, session: Session, view: int) -> str:
        try:
            session.attention.of(session.world.scene, view)
        except WorldStereoError as error:
            return html.empty(str(error))
        return html.empty(
            tr(
                "Click a pixel to see which pixels of the references the model attended to for it. "
                "The model runs again up to the chosen step."
            )
        )

    def _attend(
        self, session: Session, view: int, pixel: tuple[float, float], *at: Any
    ) -> Iterator[Updates]:
        """Runs the model up to the step, and shows the row of the pixel's token."""
        asked = session.attention.of(session.world.scene, view)
        layer = min(asked.layers, parse_int(at[0] if at else 1, "layer", 1, 1000))
        step = min(asked.steps, parse_int(at[1] if at else 1, "denoising step", 1, 1000))
        job = session.look(view, pixel, layer=layer - 1, step=step - 1)
        scene, target = session.world.scene, inspector.target_of(session.world.scene, view)
        picture = self._clickable(target, scene)
        for now in job:
            shown = html.progress(now.step, now.total, now.message, now.seconds_left)
            yield {self.card: picture + shown} | self.action.refresh(session)
        done = self.action.refresh(session)
        try:
            row = job.result()
        except Cancelled:
            text = tr("Cancelled. Click a pixel to look again.")
            yield {self.card: picture + html.empty(text)} | done
        except WorldStereoError:
            yield {self.card: picture} | done
            raise
        else:
            yield {self.card: picture + self._row(row, scene, view, pixel)} | done

    def _row(self, row: "AttentionRow", scene: Scene, view: int, pixel: tuple[float, float]) -> str:
        """Share inside the window as one number, then a heat map over each reference."""
        share, mass = 100 * row.share, 100 * row.reference_mass
        where = tr(
            "Pixel {x}, {y}: layer {layer}, step {step}",
            x=int(pixel[0]),
            y=int(pixel[1]),
            layer=row.layer + 1,
            step=row.step + 1,
        )
        if bool(row.window.any()):
            meaning = tr(
                "of the attention on references falls where they show the same place in 3D "
                "(outlined in white)."
            )
            figure = f"{share:.0f} %"
        else:
            meaning = tr("No reference shows this place: there is no matching region.")
            figure = ""
        peak, side = float(row.weights.max()), 680 // min(3, len(row.views))
        tiles = []
        for k, index in enumerate(row.views):
            known = 0 <= index < len(scene.views)
            name = tr("view {n}", n=index + 1) if known else tr("the start picture")
            color_u8 = scene.views[index].color_u8 if known else self._start(scene, view)
            image = inspector.attention_picture(color_u8, row.weights[k], row.window[k], peak)
            percent = 100 * float(row.weights[k].sum())
            tiles.append((html.picture(image, side, 84), name, percent))
        return html.render(
            "memory.html",
            "attention",
            where=where,
            mass=f"{mass:.0f}",
            figure=figure,
            meaning=meaning,
            columns=min(3, len(row.views)),
            tiles=tiles,
        )

    def _start(self, scene: Scene, view: int) -> Any:
        """The first frame of the clip behind a view: its start picture."""
        clip = inspector.clip_of(scene, scene.views[view])
        assert clip is not None
        return clip.color_u8[0]

    # ---- a pixel of any view -----------------------------------------------------------------

    def _draw(self, session: Session, found: Inspection) -> None:
        """The matches as lines in the viewport."""
        views = session.world.scene.views
        lines = []
        for match in found.matches:
            x, y, z = (float(value) for value in views[match.view].cameras.position)
            lines.append(MatchLine((x, y, z), match.weight, not match.refused))
        session.viewport.show_matches(found.point, lines)

    def _pixel(self, found: Inspection, scene: Scene) -> str:
        target, views = found.target, scene.views
        drawing = matches_svg(found, views, self.thumbnails)
        away = html.length(found.distance * scale_of(scene), tr(unit_of(scene)))
        at = tr("pixel {x}, {y}", x=int(found.pixel[0]), y=int(found.pixel[1]))
        place = f"{caption(target, scene)}, {at}"
        point = ""
        if found.point:
            x, y, z = (value * scale_of(scene) for value in found.point)
            point = tr("3D point")
            point += f" {x:.3f}, {y:.3f}, {z:.3f} {tr(unit_of(scene))}"
        rows = [
            (tr("view {n}", n=m.view + 1), m.weight, "var(--stereo)", f"{100 * m.weight:.0f} %")
            for m in found.accepted
        ]
        return html.render(
            "memory.html",
            "pixel",
            drawing=drawing,
            place=place,
            away=tr("{length} away", length=away) if found.point else tr("no depth here"),
            origin=self._origin(found),
            matched=bool(found.matches),
            rows=rows,
            refused=found.refused,
            point=point,
        )

    def _origin(self, found: Inspection) -> str:
        if found.origin is None:
            return html.muted(tr("An input view: observed."), "10px 0 0")
        names = {
            Origin.GLOBAL: ("global", "global memory: known from the point cloud only"),
            Origin.STEREO: ("stereo", "stereo memory: confirmed by stored views"),
            Origin.INVENTED: ("invented", "inpainted: not covered by either memory"),
            Origin.CAMERA_FIXED: ("refused", "fixed to the camera"),
        }
        kind, text = names[found.origin]
        sure = found.confidence or 0.0
        bar = [(tr("confidence"), sure, f"var(--{kind})", f"{100 * sure:.0f} %")]
        return html.render("memory.html", "origin", kind=kind, text=tr(text), bar=bar)

    def _references(self, target: Target, scene: Scene) -> str:
        """Who served the frame, how much of it, and where in it."""
        scored = inspector.references(scene, target.view)
        if not scored:
            text = (
                tr("No other view sees this one.")
                if not target.generated
                else tr("Rendered from the point cloud only.")
            )
            return self._clickable(target, scene) + html.empty(text)
        maps = inspector.weight_maps(scene, target)
        rows, tiles = [], []
        for reference in scored:
            name, share = tr("view {n}", n=reference.view + 1), f"{100 * reference.share:.0f} %"
            rows.append((name, reference.share, "var(--stereo)", share))
            weights = maps[target.references.index(reference.view)]
            image = html.picture(inspector.heat_picture(target, weights), 240, 82)
            covered = tr("{percent} % of the frame", percent=f"{100 * reference.covered:.0f}")
            tiles.append((reference.view, image, share, covered))
        picture = self._clickable(target, scene)
        return html.render("memory.html", "references", picture=picture, rows=rows, tiles=tiles)

    def _votes(self, session: Session, target: Target) -> str:
        """Which views the keypoint entries in the frame would choose, and where they lie."""
        try:
            voted = inspector.votes(session.world, target)
        except WorldBusy:
            return html.empty(
                tr("The keypoints' votes are shown when the running step is finished.")
            )
        if not voted:
            return html.empty(tr("No keypoint entry of another view lies in this picture."))
        rows, tiles = [], []
        for votes in voted:
            entries = trn("{n} entry", "{n} entries", len(votes.entries))
            name = tr("view {n}", n=votes.view + 1)
            rows.append((name, votes.votes, "var(--stereo)", entries))
            image = html.picture(inspector.votes_picture(target, votes), 240, 82)
            tiles.append((votes.view, image, entries))
        return html.render("memory.html", "votes", rows=rows, tiles=tiles)

    def _sources(self, target: Target, scene: Scene) -> str:
        """The frame by origin, and how sure it is."""
        if not target.generated:
            parts = inspector.depths(scene.views[target.view])
            rows = [
                (told(name), part, "var(--global)", f"{100 * part:.0f} %")
                for name, part in parts.items()
            ]
            picture = self._clickable(target, scene)
            return html.render("memory.html", "depths", picture=picture, rows=rows)
        part = inspector.shares(target)
        rows = [
            (tr(name), part[name], f"var(--{name})", f"{100 * part[name]:.0f} %")
            for name in ("stereo", "global", "invented")
        ]
        origin = html.picture(inspector.origin_picture(target), 680)
        sure = html.picture(inspector.confidence_picture(target), 680)
        mean = float(target.confidence.mean()) if target.confidence is not None else 1.0
        return html.render(
            "memory.html",
            "sources",
            picture=_clickable(
                origin, target, tr("{view}, by source", view=caption(target, scene))
            ),
            rows=rows,
            confidence=sure,
            mean=tr("mean {percent} %", percent=f"{100 * mean:.0f}"),
        )

    def _clickable(self, target: Target, scene: Scene) -> str:
        image = html.picture(inspector.pixels_of(target.color_u8), 960)
        return _clickable(image, target, caption(target, scene))


def _clickable(image: str, target: Target, text: str) -> str:
    """A picture in which a click chooses a pixel."""
    return html.render("memory.html", "clickable", image=image, view=target.view, caption=text)


def caption(target: Target, scene: Scene) -> str:
    view = scene.views[target.view]
    if view.step == 0:
        return tr("View {n}, input view", n=target.view + 1)
    return tr(
        "View {n}, step {step}, frame {frame}",
        n=target.view + 1,
        step=view.step,
        frame=view.frame + 1,
    )


def modes(attention: bool = False) -> list[tuple[str, str]]:
    """What the tab can show, as (label, value)."""
    return [(tr(mode), mode) for mode in (*MODES, *([ATTENTION] if attention else []))]
