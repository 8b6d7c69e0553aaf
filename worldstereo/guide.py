"""Asks both memories for one camera path: the `Guide`, frame by frame, and the per-pixel blend.

Hole-to-detail precedence is decided here and nowhere else: where remembered pixels correspond,
the spatial-stereo memory paints; where only the cloud knows a surface, the global memory does;
the rest is filled from its surroundings and marked as invented. A guide is computed from a
published scene, so the frame that a person sees in the preview is the frame a model is given.
"""

from collections.abc import Iterator
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from worldstereo._core.cache import ByteCache
from worldstereo._core.resident import in_memory, tensors_in
from worldstereo.cameras import Cameras
from worldstereo.memory.stereo.dense import ViewIndex, synthesize
from worldstereo.render import RenderResult, render_points, tree_bytes
from worldstereo.scene import Origin, PointCloud, Scene
from worldstereo.trajectory import Trajectory


class GuideFrame(NamedTuple):
    """What both memories know about one camera."""

    camera: Cameras
    color: Float[Tensor, "3 H W"]
    """Filled everywhere; `mask` says where it is known."""
    depth: Float[Tensor, "1 H W"]
    mask: Bool[Tensor, "1 H W"]
    """True where a memory knows the surface."""
    index: Int[Tensor, "1 H W"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """The point of the cloud seen at each pixel, -1 in the cloud's holes."""
    origin: UInt8[Tensor, "1 H W"]
    confidence: Float[Tensor, "1 H W"]
    stereo_weight: Float[Tensor, "1 H W"]
    """Share of the spatial-stereo memory in the blend; the rest is the global memory's."""
    references: tuple[int, ...]
    made: Bool[Tensor, "1 H W"] | None = None
    """True where what is known was invented by an earlier step; None where that is not known."""

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self if isinstance(value, Tensor))

    @property
    def unknown(self) -> float:
        """Share of the pixels that no memory knows, in [0, 1]."""
        return float((~self.mask).float().mean())


FRAMES = ByteCache(192 * 2**20)
"""Frames of all guides together: some 18 of 640x480. Others are computed again when asked for."""


RADIUS = 1.75
"""Half width of the splats of a cloud that was thinned, in half spacings: its points lie
irregularly, and what went is at most two half spacings away."""


class StackedGuide(NamedTuple):
    """A whole guide at once, for models that make a clip in one go."""

    color: Float[Tensor, "T 3 H W"]
    depth: Float[Tensor, "T 1 H W"]
    mask: Bool[Tensor, "T 1 H W"]
    origin: UInt8[Tensor, "T 1 H W"]
    confidence: Float[Tensor, "T 1 H W"]
    references: tuple[tuple[int, ...], ...]


class Guide:
    """The guide of one path through one published scene; frames are computed when asked for.

    `kind="fused"` lets both memories paint; `"cloud"` shows the global memory's splat alone.
    Each memory can be switched off (`stereo=False`, `geometry=False`). Safe to read from several
    threads: the same frame asked for twice is the same tensor while it is cached.
    """

    def __init__(
        self,
        scene: Scene,
        trajectory: Trajectory,
        kind: str = "fused",
        *,
        stereo: bool = True,
        geometry: bool = True,
    ) -> None:
        if kind not in ("fused", "cloud"):
            raise ValueError(f'guide must be "fused" or "cloud", got {kind!r}.')
        self.scene, self.trajectory, self.kind = scene, trajectory, kind
        self.stereo, self.geometry = stereo, geometry
        self._index = ViewIndex(scene.views)
        self._unseen: dict[int, bytes] = {}  # 38 KB a frame of 640x480, kept for all
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.trajectory)

    def __iter__(self) -> Iterator[GuideFrame]:
        return (self[t] for t in range(len(self)))

    def __getitem__(self, t: int) -> GuideFrame:
        if not -len(self) <= t < len(self):
            raise IndexError(f"frame {t} is outside a guide of {len(self)} frames.")
        t %= len(self)
        with self._lock:
            frame = FRAMES.get(self, t)
            if frame is None:
                frame = self._compute(self.trajectory.cameras[t])
                FRAMES.put(self, t, frame, frame.nbytes)
                self._unseen[t] = np.packbits(_invented(frame).cpu().numpy()).tobytes()
            return frame

    @property
    def nbytes(self) -> int:
        """Bytes that this guide keeps now; the limit is one for all guides."""
        return FRAMES.bytes_of(self) + sum(map(len, self._unseen.values()))

    def unseen(self, t: int) -> Bool[Tensor, "1 H W"]:
        """True where no given view and no given point shows anything: all that may be added."""
        bits = self._unseen.get(t % len(self))
        if bits is None:
            return _invented(self[t])
        cameras = self.trajectory.cameras
        count = cameras.height * cameras.width
        mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(bool)
        return torch.from_numpy(mask.reshape(1, cameras.height, cameras.width))

    def stacked(self) -> StackedGuide:
        """Every frame at once; memory follows the number of frames."""
        frames = list(self)
        color, depth, mask, origin, confidence = (
            torch.stack([getattr(frame, name) for frame in frames])
            for name in ("color", "depth", "mask", "origin", "confidence")
        )
        references = tuple(frame.references for frame in frames)
        return StackedGuide(color, depth, mask, origin, confidence, references)

    def _compute(self, camera: Cameras) -> GuideFrame:
        fused = self.kind == "fused" and self.stereo
        index = self._index if fused else None
        return guide_frame(self.scene, camera, index, geometry=self.geometry)


def guide_frame(
    scene: Scene, camera: Cameras, index: ViewIndex | None, *, geometry: bool = True
) -> GuideFrame:
    """What both memories of a published scene know about one camera.

    Args:
        index: of the scene's views; None leaves the spatial-stereo memory out.
        geometry: False leaves the global memory out.
    """
    splat = splat_cloud(scene, camera)
    given, made = _splats(scene, camera, splat)
    chosen: tuple[int, ...] = ()
    if index is not None and scene.views:
        chosen = index.choose(camera, given)
    result = synthesize(
        camera,
        [scene.views[i] for i in chosen],
        splat=given if geometry else None,
        splat_made=made if geometry else None,
        camera_fixed=scene.camera_fixed,
        unit=scene.unit,
    )
    return GuideFrame(
        camera=camera,
        color=result.color,
        depth=result.depth,
        mask=result.known,
        index=splat.index,
        origin=_still_invented(result.origin, result.made),
        confidence=result.confidence,
        stereo_weight=result.stereo_weight,
        references=chosen,
        made=result.made & (result.origin != int(Origin.CAMERA_FIXED)),
    )


def _invented(frame: GuideFrame) -> Bool[Tensor, "1 H W"]:
    return frame.origin == int(Origin.INVENTED)


def splat_cloud(scene: Scene, camera: Cameras, radius: int = 1) -> RenderResult:
    """The published cloud at one camera: the draft of the guide, shown while scrubbing.

    Points of a cloud that was thinned are as wide as what they stand for.
    """
    return _drawn(scene.cloud, scene, camera, radius)


def _drawn(cloud: PointCloud, scene: Scene, camera: Cameras, radius: int = 1) -> RenderResult:
    """The scene's cloud, or a part of it, at one camera."""
    radii = RADIUS * cloud.radii if scene.stretch > 1 else None
    return render_points(cloud.points, cloud.colors, camera, radius=radius, radii=radii)


def _splats(
    scene: Scene, camera: Cameras, splat: RenderResult
) -> tuple[RenderResult, RenderResult | None]:
    """The given and the generated part of the cloud at one camera, each drawn by itself.

    What was generated must not cover what was given, however close it lies.
    """
    seen = splat.index[splat.index >= 0]
    if len(seen) == 0 or not bool((scene.cloud.step[seen] > 0).any()):
        return splat, None
    parts = _parts(scene.cloud)
    given, made = (_drawn(part, scene, camera) for part in parts)
    return given, made


PARTS = ByteCache(256 * 2**20)
"""The given and the generated points of clouds, by cloud: split once, then drawn in each frame."""


def parts_bytes(cloud: PointCloud) -> int:
    """Bytes that are kept ready to draw a cloud's given and generated points apart."""
    parts = PARTS.get(cloud, "parts") or ()
    return PARTS.bytes_of(cloud) + sum(tree_bytes(part.points) for part in parts)


def _parts(cloud: PointCloud) -> tuple[PointCloud, PointCloud]:
    parts = PARTS.get(cloud, "parts")
    if parts is None:
        made = cloud.step > 0
        parts = cloud.rows(~made), cloud.rows(made)
        PARTS.put(cloud, "parts", parts, in_memory(tensors_in(parts)))
    return parts


def _still_invented(
    origin: UInt8[Tensor, "1 H W"], made: Bool[Tensor, "1 H W"]
) -> UInt8[Tensor, "1 H W"]:
    """A point that an earlier step invented stays invented, however often it is seen again."""
    again = made & (origin == int(Origin.GLOBAL))
    return torch.where(again, int(Origin.INVENTED), origin).to(origin.dtype)
