"""The film: what is generated, seen large in the viewport's place; it plays once when it is done.

The page's script plays it from the frames in its element; nothing here counts time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from worldstereo.errors import WorldStereoError
from worldstereo.scene import Clip

from ..session.sessions import Session
from . import html as piece
from .core import Core, Part, Updates, html
from .settings import FIRST_PRESET, parameter, path_named
from .tabs.path import PathTab

SIDE = 960  # px of a frame on the page


class Film(Part):
    def __init__(self, core: Core, path: PathTab) -> None:
        self.core, self.path = core, path

    def build(self) -> None:
        self.screen = self.core.shown(html("", elem_id="screen"))

    def wire(self) -> None:
        self.core.bridge("watch", self.on_watch)
        self.core.bridge("continue", self.on_continue, self.path.inputs)

    def refresh(self, session: Session) -> Updates:
        """Another scene: the film of the last one leaves."""
        return {self.screen: ""}

    def arriving(self, session: Session, frames: Sequence[np.ndarray], total: int) -> Updates:
        if not frames:
            return {}
        image = piece.picture(frames[-1], SIDE, 84)
        return {self.screen: piece.making(image, len(frames), total, len(session.scene.clips) + 1)}

    def made(self, session: Session) -> Updates:
        return self.on_watch(session, {}) if session.scene.clips else {}

    def on_watch(self, session: Session, data: dict[str, Any]) -> Updates:
        """The newest clip, from its first frame."""
        if not session.scene.clips:
            raise WorldStereoError("There is no clip yet. Generate one first.")
        clip = session.scene.clips[-1]
        own = [i for i, v in enumerate(session.scene.views) if v.step == clip.step]
        first = own[0] if len(own) == len(clip) else -1  # some generators keep keyframes only
        pictures = [piece.picture(frame, SIDE, 84) for frame in frames_of(clip)]
        return {
            self.screen: piece.player(
                pictures, clip.trajectory.fps, first, len(session.scene.clips)
            )
        }

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
    return (frame.permute(1, 2, 0).cpu().numpy() for frame in clip.color8)
