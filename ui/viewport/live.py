"""The live view: what both memories know of exactly where the visitor is, synthesised at rest.

One thread makes one picture at a time, of the newest place only: small while the camera moves,
where that is wished, a third of the size when it rests, then the full size. Movement stops the work
between two chunks of a kernel. A picture is `guide_frame` of the published scene, which is also
what a generator is shown there.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from worldstereo.cameras import Cameras
from worldstereo.errors import Cancelled
from worldstereo.guide import guide_frame
from worldstereo.memory.stereo.dense import ViewIndex
from worldstereo.progress import interruptible
from worldstereo.scene import Scene

from ..palette import INVENTED
from .camera import Aim
from .frames import camera_of

log = logging.getLogger(__name__)

REST = 0.15  # seconds without movement after which the camera rests
LONG_SIDE = 960  # px of a full picture, at most
FIRST = 3  # the first picture at rest has this part of the full size
FRAME = 0.08  # seconds that a picture in motion may take
MIN_SIDE = 120  # px of the longer side of a picture in motion, at least
FAR = 160.0  # stage units; viser's background holds depths up to 167
STRIPE = 60  # pairs of hatching stripes along the diagonal of a picture


@dataclass(frozen=True, eq=False)
class Place:
    """Where a picture is wanted from, and of which scene."""

    scene: Scene
    aim: Aim
    size: tuple[int, int]
    """Of the viewport, px."""
    scale: float
    moment: float
    """When the camera arrived there."""
    in_motion: bool
    """A small picture at once, before the camera rests."""

    def same(self, other: "Place | None") -> bool:
        return (
            other is not None
            and self.scene is other.scene
            and self.size == other.size
            and self.scale == other.scale
            and abs(self.aim[1] - other.aim[1]) < 1e-5
            and bool(np.abs(self.aim[0] - other.aim[0]).max() < 1e-5)
        )

    def camera(self, long_side: float = LONG_SIDE) -> Cameras:
        """The camera of the viewport, with its longer side at `long_side` px or less."""
        return stage_camera(self.aim, self.size, self.scale, long_side)


@dataclass(frozen=True, eq=False)
class LivePicture:
    """One picture of a place."""

    place: Place
    color: np.ndarray
    """(H, W, 3) uint8; what no memory knows is hatched."""
    depth: np.ndarray
    """(H, W) stage units along the optical axis."""
    unknown: float
    """Share of the pixels that no memory knows."""
    seconds: float
    """From the arrival at the place to this picture."""
    full: bool
    moving: bool


class LiveView:
    """The thread that makes the pictures.

    Args:
        show: given each picture, in this thread.
    """

    def __init__(self, show: Callable[[LivePicture], None]) -> None:
        self._show = show
        self._news = threading.Condition()
        self._wanted: Place | None = None
        self._done: Place | None = None
        self._closed = False
        self._index: tuple[Scene, ViewIndex] | None = None
        self._pace = 5e-6  # seconds a pixel, as measured; a guess before
        self._thread: threading.Thread | None = None

    @property
    def wanted(self) -> Place | None:
        return self._wanted

    def want(self, place: Place | None) -> None:
        """A picture from here, in place of the one wanted before; None for none."""
        with self._news:
            self._wanted = place
            if self._thread is None and place is not None:
                self._thread = threading.Thread(target=self._run, name="live view", daemon=True)
                self._thread.start()
            self._news.notify_all()

    def close(self) -> None:
        with self._news:
            self._closed, self._wanted = True, None
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self._wanted is not self._done)
                wanted = self._wanted
                if self._closed:
                    return
            if wanted is not None:
                try:
                    for picture in self._pictures(wanted):
                        self._show(picture)
                except Cancelled:
                    continue
                except Exception:
                    log.exception("the live view could not be made")
            self._done = wanted

    def _pictures(self, place: Place) -> Iterator[LivePicture]:
        if place.in_motion:  # not stopped by movement, which would let none be finished
            side = float(np.sqrt(FRAME / self._pace * place.size[0] / max(1, place.size[1])))
            yield self._picture(place, max(MIN_SIDE, min(LONG_SIDE / FIRST, side)), moving=True)
        with self._news:
            rest = place.moment + REST - time.monotonic()
            self._news.wait_for(lambda: self._closed or self._wanted is not place, max(0.0, rest))
        with interruptible(lambda: self._check(place)):
            self._check(place)
            yield self._picture(place, LONG_SIDE / FIRST)
            self._check(place)
            yield self._picture(place, LONG_SIDE, full=True)

    def _check(self, place: Place) -> None:
        if self._closed or self._wanted is not place:
            raise Cancelled("The camera has moved on.")

    def _picture(
        self, place: Place, long_side: float, *, full: bool = False, moving: bool = False
    ) -> LivePicture:
        scene, camera = place.scene, place.camera(LONG_SIDE)
        part = min(1.0, long_side / LONG_SIDE)
        if part < 1:
            camera = camera.scaled(
                max(16, round(camera.width * part)), max(12, round(camera.height * part))
            )
        began = time.monotonic()
        if self._index is None or self._index[0] is not scene:
            self._index = (scene, ViewIndex(scene.views))
        frame = guide_frame(scene, camera, self._index[1])
        color = (frame.color.clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).cpu().numpy()
        depth = frame.depth[0].cpu().numpy() * np.float32(place.scale)
        depth = np.where(depth > 0, np.minimum(depth, FAR), FAR)
        pace = (time.monotonic() - began) / color[..., 0].size
        self._pace = 0.7 * self._pace + 0.3 * pace
        known = frame.mask[0].cpu().numpy()
        seconds = time.monotonic() - place.moment
        return LivePicture(
            place, hatched(color, known), depth, frame.unknown, seconds, full, moving
        )


def stage_camera(
    aim: Aim, size: tuple[int, int], scale: float, long_side: float = LONG_SIDE
) -> Cameras:
    """What the viewport shows, as a camera of the world of even size; every corner is a corner."""
    pose, fov = aim
    factor = min(1.0, long_side / max(size))
    width, height = (max(16, 2 * round(side * factor / 2)) for side in size)
    camera = camera_of(pose, fov, width, height, scale)
    K = camera.K.clone()
    K[0, 0] = K[1, 1] * (size[1] / size[0]) * (width / height)
    return Cameras(K, camera.c2w, width, height)


def hatched(color: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The picture with diagonal stripes in the colour of invention where nothing is known."""
    h, w = known.shape
    period = max(4.0, (h + w) / STRIPE)
    rows, columns = np.nonzero(~known)
    stripe = (rows + columns) % period < period / 2
    share = np.where(stripe, 0.42, 0.12)[:, None]
    out = np.ascontiguousarray(color).copy()
    tint = np.array(INVENTED, np.float32)
    out[rows, columns] = ((1 - share) * out[rows, columns] + share * tint).astype(np.uint8)
    return out
