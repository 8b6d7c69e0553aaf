"""The film: what is generated, seen large in the viewport's place; it plays once when it is done.

The page's script plays it from the frames in its element; nothing here counts time. A take, which
no memory holds yet, is kept or discarded from here, and any clip can be seen beside what is known
of it: where each pixel comes from, its depth, where it agrees, or another take of the same path.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from worldstereo.errors import WorldStereoError
from worldstereo.scene import Clip, Scene
from worldstereo.world import compare, region_of

from .. import inspector
from ..session.sessions import Session
from . import html
from .catalogue import figures, tr
from .core import BUSY, Core, Part, Updates, html_block
from .follow import Follow
from .settings import FIRST_PRESET, parameter, parse_float, parse_int, path_named
from .tabs.generate import GenerateTab
from .tabs.path import PathTab

SIDE = 960  # px of a frame on the page
MAX_STROKES, MAX_POINTS = 400, 40_000  # of one brushing
PAIR = 640  # px of each of two frames side by side


class Film(Part):
    def __init__(self, core: Core, path: PathTab, follow: Follow, generate: GenerateTab) -> None:
        self.core, self.path, self.follow, self.generate = core, path, follow, generate

    def build(self) -> None:
        self.screen = self.core.register(html_block("", elem_id="screen"))

    def wire(self) -> None:
        bridge = self.core.bridge
        bridge("watch", self.on_watch)
        bridge("beside", self.on_watch)
        bridge("continue", self.on_continue, self.path.inputs)
        bridge("keep", self.on_keep)
        bridge("discard", self.on_discard)
        bridge("brushed", self.on_brushed, self.generate.inputs)

    def refresh(self, session: Session) -> Updates:
        """Another scene: the film of the last one leaves."""
        return {self.screen: ""}

    def arriving(self, session: Session, frames: Sequence[np.ndarray], total: int) -> Updates:
        if not frames or total == 1:  # a single view is seen where it was made
            return {}
        image = html.picture(frames[-1], SIDE, 84)
        return {
            self.screen: html.making(image, len(frames), total, len(session.world.scene.clips) + 1)
        }

    def made(self, session: Session) -> Updates:
        clips = session.world.scene.clips
        return self.on_watch(session, {}) if clips and len(clips[-1]) > 1 else {}

    def on_watch(self, session: Session, data: dict[str, Any]) -> Updates:
        """A clip, by default the newest, from its first frame; `key` says what is beside it."""
        scene = session.world.scene
        index = _clip_index(scene, data.get("clip", -1))
        clip = scene.clips[index]
        sides = sides_of(scene, index)
        side = str(data.get("key", ""))
        if side not in [key for key, _ in sides]:
            raise WorldStereoError("That cannot be shown beside the film.")
        own = [i for i, v in enumerate(scene.views) if v.step == clip.step]
        first = own[0] if len(own) == len(clip) else -1  # some generators keep keyframes only
        size = PAIR if side else SIDE
        return {
            self.screen: html.player(
                [html.picture(frame, size, 84) for frame in frames_of(clip)],
                clip.trajectory.fps,
                -1 if clip.take else first,
                serial=f"{index + 1} {side}".strip(),  # chosen beside it: another film, which plays
                clip=index,
                agreement=agreement_of(clip),
                take=clip.take,
                sides=sides,
                side=side,
                beside=[html.picture(f, PAIR, 84) for f in beside(scene, index, side)],
                why=BUSY if session.busy else "",
            )
        }

    def on_keep(self, session: Session, data: dict[str, Any]) -> Iterator[Updates]:
        """A take becomes part of both memories."""
        session.keep(_take(session.world.scene, data))
        yield from self.follow.job(session)

    def on_discard(self, session: Session, data: dict[str, Any]) -> Updates:
        session.discard(_take(session.world.scene, data))
        said = html.info(tr("The take is discarded; Undo brings it back."))
        return self.follow.refresh(session) | {self.core.message: said}

    def on_brushed(self, session: Session, data: dict[str, Any], *values: Any) -> Iterator[Updates]:
        """A part of a frame that a person brushed over: paint it again, or leave it empty.

        The path is generated again, as one step: what was captured, or invented elsewhere, is
        shown as it was.
        """
        scene = session.world.scene
        clip = scene.clips[_clip_index(scene, data.get("clip"))]
        if clip.take:
            raise WorldStereoError("A take is not remembered yet. Keep it, then brush.")
        now = session.world.registration.revision if session.world.registration else 0
        if clip.registration != now:
            raise WorldStereoError("The views were registered since. Generate the clip again.")
        frame = parse_int(data.get("frame"), "frame", 0, len(clip) - 1)
        camera = clip.trajectory.cameras[frame]
        mask = brushed(data.get("strokes"), data.get("width"), camera.width, camera.height)
        region = region_of(camera, torch.from_numpy(mask))
        options: dict[str, Any] = self.generate.form(session, values).options | {"update": None}
        if data.get("kind") == "again":
            others = [other.seed for other in scene.clips if same_path(clip, other)]
            options |= {"again": region, "seed": (max(others) + 1) % 2**31}
        elif data.get("kind") == "empty":
            options |= {"empty": region, "seed": clip.seed}
        else:
            raise WorldStereoError("A brushed part is painted again or left empty.")
        session.explore(clip.trajectory, **options)
        yield {self.screen: "", self.core.message: ""}
        yield from self.follow.job(session)

    def on_continue(
        self, session: Session, data: dict[str, Any], *values: Any
    ) -> Iterator[Updates]:
        """The next path starts where the film ends."""
        yield {self.screen: "", self.path.start: "newest"}
        if parameter(path_named(values[0])) is None:  # keyframes and flights have their own start
            values = (FIRST_PRESET, *values[1:])
            yield {self.path.preset: FIRST_PRESET}
            yield from self.path.on_preset(session, *values[:2], "newest", *values[3:])
        else:
            yield from self.path.on_plan(session, *values[:2], "newest", *values[3:])


def frames_of(clip: Clip) -> Iterator[np.ndarray]:
    """8-bit (H, W, 3), one by one."""
    return (frame.permute(1, 2, 0).cpu().numpy() for frame in clip.color_u8)


def sides_of(scene: Scene, index: int) -> list[tuple[str, str]]:
    """Key and label of what can be shown beside a clip."""
    clip = scene.clips[index]
    sides = [
        ("", tr("Film alone")),
        ("source", tr("Beside: source")),
        ("depth", tr("Beside: depth")),
    ]
    if clip.agreement_map is not None and len(clip.agreement_frames) > 0:
        sides.append(("agreement", tr("Beside: agreement")))
    for i, other in enumerate(scene.clips):
        if i != index and same_path(clip, other):
            name = tr("take {n}", n=i + 1) if other.take else tr("clip {n}", n=i + 1)
            sides += [
                (f"clip {i}", tr("Beside: {name}", name=name)),
                (f"difference {i}", tr("Difference: {name}", name=name)),
            ]
    return sides


def beside(scene: Scene, index: int, side: str) -> Iterator[np.ndarray]:
    """The frames of one of `sides_of`, 8-bit (H, W, 3), one by one."""
    clip = scene.clips[index]
    kind, _, other = side.partition(" ")
    if kind == "source":
        for t in range(len(clip)):
            yield inspector.sources_picture(clip.color_u8[t], clip.origin[t])
    elif kind == "depth":
        yield from inspector.depth_pictures(clip.depth)
    elif kind == "agreement":
        assert clip.agreement_map is not None
        compared = np.array(clip.agreement_frames)
        for t in range(len(clip)):
            nearest = int(np.abs(compared - t).argmin())
            yield inspector.agreement_picture(clip.color_u8[t], clip.agreement_map[nearest])
    elif kind == "clip":
        yield from frames_of(scene.clips[int(other)])
    elif kind == "difference":
        for shown, error in zip(clip.color_u8, compare(clip, scene.clips[int(other)]), strict=True):
            yield inspector.heated(shown, (4 * error[0]).clamp(0, 1))


def same_path(a: Clip, b: Clip) -> bool:
    """Two clips along the same cameras, so that their frames can be compared one by one."""
    return a.color_u8.shape == b.color_u8.shape and torch.equal(
        a.trajectory.cameras.c2w, b.trajectory.cameras.c2w
    )


def agreement_of(clip: Clip) -> str:
    """How much of what is remembered was found in the frames, and how far off, in words."""
    if clip.agreement is None:
        return ""
    off = figures(f"{clip.drift_px:.1f}")
    return tr("Agreement {percent} %, {off} px", percent=f"{100 * clip.agreement:.0f}", off=off)


def brushed(strokes: Any, width: Any, columns: int, rows: int) -> np.ndarray:
    """(rows, columns) bool: the pixels under strokes, whose points and width are shares of a
    picture's sides; the width is one of its width.

    Raises:
        WorldStereoError: no strokes, or values that no brush makes.
    """
    import cv2

    if not isinstance(strokes, list) or not 0 < len(strokes) <= MAX_STROKES:
        raise WorldStereoError("Brush over a part of the picture first.")
    mask = np.zeros((rows, columns), np.uint8)
    thick = max(1, round(parse_float(width, "width of the brush", 0.001, 0.5) * columns))
    points = 0
    for stroke in strokes:
        try:
            line = np.asarray(stroke, np.float64)
        except (TypeError, ValueError):
            line = np.zeros(0)
        points += len(line)
        known = line.ndim == 2 and line.shape[1:] == (2,) and bool(np.isfinite(line).all())
        if not known or len(line) == 0 or points > MAX_POINTS:
            raise WorldStereoError("These strokes cannot be read. Brush again.")
        pixels = np.rint(line.clip(0, 1) * (columns - 1, rows - 1)).astype(np.int32)
        cv2.polylines(mask, [pixels.reshape(-1, 1, 2)], False, 1, thick)
        for end in (pixels[0], pixels[-1]):
            cv2.circle(mask, end.tolist(), thick // 2, 1, -1)
    return mask > 0


def _clip_index(scene: Scene, value: Any) -> int:
    if not scene.clips:
        raise WorldStereoError("There is no clip yet. Generate one first.")
    try:
        index = int(value)
    except (TypeError, ValueError, OverflowError):
        raise WorldStereoError("That clip is not known here; reload the page.") from None
    if not -1 <= index < len(scene.clips):
        raise WorldStereoError(f"Clip {index + 1} is gone; there are {len(scene.clips)}.")
    return index % len(scene.clips)


def _take(scene: Scene, data: dict[str, Any]) -> Clip:
    clip = scene.clips[_clip_index(scene, data.get("clip"))]
    if not clip.take:
        raise WorldStereoError("That clip is not a take; Undo takes it back.")
    return clip
