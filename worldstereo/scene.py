"""The frozen values that viewers and exporters read: views, point clouds, clips, scenes.

Nothing here changes after it was built, and neither do the tensors inside: a step of the world
builds new ones. Colours are channels first. Views and clips keep colours and confidences in 8 bits
(500 views of 640x480 cost 1.4 GB and not 4); properties give them as floats in [0, 1].
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnnecessaryIsInstance=false
# torch's own stubs leave much unknown; run-time checks of argument types stay.

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from worldstereo._core.resident import on_disk
from worldstereo.cameras import Cameras
from worldstereo.trajectory import Trajectory


class DepthKind(IntEnum):
    """Where the depth of a stored pixel comes from; each kind has a stored confidence."""

    UNKNOWN = 0
    MEASURED = 1
    REPROJECTED = 2
    STEREO = 3
    INPAINTED = 4
    GENERATED = 5
    CAMERA_FIXED = 6
    """Fixed to the camera (a gripper, a bonnet): never part of the world; depth is 0."""
    MASKED = 7
    """Hidden by a mask of the capture (a passer-by, the sky): `CAMERA_FIXED` in this view only."""
    LEARNED = 8
    """A depth model's or a recorded map's; in posed views only where measured depth confirms it."""


NO_PART = (int(DepthKind.CAMERA_FIXED), int(DepthKind.MASKED))
"""Kinds of pixels that are no part of the world."""


KIND_CONFIDENCE = {
    DepthKind.UNKNOWN: 0.0,
    DepthKind.MEASURED: 1.0,
    DepthKind.REPROJECTED: 0.5,
    DepthKind.STEREO: 0.3,
    DepthKind.INPAINTED: 0.2,
    DepthKind.GENERATED: 0.02,  # times the generator's own confidence
    DepthKind.CAMERA_FIXED: 0.0,
    DepthKind.MASKED: 0.0,
    DepthKind.LEARNED: 0.25,
}


class Origin(IntEnum):
    """Where a pixel of a generated frame comes from."""

    GLOBAL = 0
    """Only the cloud knows it: no remembered view that was asked confirms it."""
    STEREO = 1
    """At least one remembered pixel confirms it in 3D."""
    INVENTED = 2
    """Neither: made up from its surroundings."""
    CAMERA_FIXED = 3
    """Fixed to the camera: pasted from the layer `Scene.camera_fixed`."""


@dataclass(frozen=True, eq=False)
class View:
    """One remembered frame. Build it with `View.of`: floats in, gaps filled."""

    color_u8: UInt8[Tensor, "3 H W"]
    depth: Float[Tensor, "1 H W"]
    """z along the optical axis in scene units; 0 where unknown."""
    confidence_u8: UInt8[Tensor, "1 H W"]
    """Stored confidence, a weight and never a threshold, in 1/255."""
    kind: UInt8[Tensor, "1 H W"]
    """`DepthKind` of each pixel."""
    log_gain: Float[Tensor, "3"]
    """Log exposure gain per channel towards the first view: `color * exp(log_gain)` agrees."""
    cameras: Cameras
    """The single camera as registered."""
    given: Cameras
    """The same camera as it was given, before registration."""
    step: int
    """0 for a view from the user, else the step that generated it."""
    frame: int
    """Position in the capture or in the clip."""
    name: str = ""

    @staticmethod
    def of(
        color: Float[Tensor, "3 H W"],
        depth: Float[Tensor, "1 H W"],
        cameras: Cameras,
        *,
        confidence: Float[Tensor, "1 H W"] | None = None,
        kind: UInt8[Tensor, "1 H W"] | None = None,
        log_gain: Float[Tensor, "3"] | None = None,
        given: Cameras | None = None,
        step: int = 0,
        frame: int = 0,
        name: str = "",
    ) -> "View":
        """A view from float colours in [0, 1] and depth; without `kind`, known depth is measured.

        Raises:
            ValueError: sizes of colour, depth and camera differ.
        """
        size = (cameras.height, cameras.width)
        if tuple(color.shape) != (3, *size) or tuple(depth.shape) != (1, *size):
            raise ValueError(
                f"color {tuple(color.shape)} and depth {tuple(depth.shape)} must be "
                f"(3, {size[0]}, {size[1]}) and (1, {size[0]}, {size[1]}) like the camera."
            )
        if kind is None:
            kind = (depth > 0).to(torch.uint8) * int(DepthKind.MEASURED)
        if confidence is None:
            table = torch.tensor([KIND_CONFIDENCE[k] for k in DepthKind], device=depth.device)
            confidence = table[kind.long()]
        return View(
            color_u8=to_bytes(color),
            depth=depth,
            confidence_u8=to_bytes(confidence),
            kind=kind,
            log_gain=torch.zeros(3) if log_gain is None else log_gain,
            cameras=cameras,
            given=cameras if given is None else given,
            step=step,
            frame=frame,
            name=name,
        )

    @property
    def color(self) -> Float[Tensor, "3 H W"]:
        return self.color_u8.float() / 255

    @property
    def confidence(self) -> Float[Tensor, "1 H W"]:
        return self.confidence_u8.float() / 255

    def spilled(self) -> "View":
        """The same view with its pixels on disk: they come into memory while they are read."""
        return _spilled(self, "color_u8", "depth", "confidence_u8", "kind")

    @property
    def mask(self) -> Bool[Tensor, "1 H W"]:
        """True where depth is usable."""
        return self.depth > 0

    @property
    def width(self) -> int:
        return self.cameras.width

    @property
    def height(self) -> int:
        return self.cameras.height


@dataclass(frozen=True, eq=False)
class PointCloud:
    """The global cloud as a viewer or exporter sees it. Rows are those of the geometric memory."""

    points: Float[Tensor, "N 3"]
    colors: Float[Tensor, "N 3"]
    confidence: Float[Tensor, "N"]
    step: Int[Tensor, "N"]
    """Which step added the point; 0 from the user."""
    normals: Float[Tensor, "N 3"]
    """Unit length, or zeros where unknown."""
    radii: Float[Tensor, "N"]
    """Half the spacing of the samples on the surface, scene units; 0 where unknown."""
    source: Int[Tensor, "N"] | None = None
    """Index of the view that added the point, -1 where none did."""

    def __len__(self) -> int:
        return len(self.points)

    @staticmethod
    def of(
        points: Float[Tensor, "N 3"],
        colors: Float[Tensor, "N 3"] | None = None,
        **rest: Tensor,
    ) -> "PointCloud":
        """A cloud with the missing columns filled: grey, confidence 1, step 0, no normals."""
        n = len(points)
        filled = {
            "colors": torch.full((n, 3), 0.5) if colors is None else colors,
            "confidence": torch.ones(n),
            "step": torch.zeros(n, dtype=torch.int64),
            "normals": torch.zeros(n, 3),
            "radii": torch.zeros(n),
        }
        return PointCloud(points=points, **(filled | rest))

    def rest(self) -> None:
        """Moves the columns to disk until they are read: the very same values, in the same cloud.

        Not a change, so readers that hold this cloud need not know.
        """
        names = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        columns = on_disk([getattr(self, name) for name in names])
        for name, column in zip(names, columns, strict=True):
            object.__setattr__(self, name, column)

    def to(self, device: torch.device | str) -> "PointCloud":
        """The cloud with its columns on a device."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: c.to(device) for k, c in columns.items() if c is not None})

    def rows(self, kept: Bool[Tensor, "N"]) -> "PointCloud":
        """The points where `kept` is True."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: c[kept] for k, c in columns.items() if c is not None})


@dataclass(frozen=True, eq=False)
class Clip:
    """The frames that one step made, and what is known of every pixel. Build it with `Clip.of`."""

    color_u8: UInt8[Tensor, "T 3 H W"]
    depth: Float[Tensor, "T 1 H W"]
    origin: UInt8[Tensor, "T 1 H W"]
    """`Origin` of each pixel."""
    confidence_u8: UInt8[Tensor, "T 1 H W"]
    stereo_u8: UInt8[Tensor, "T 1 H W"]
    """Share of the spatial-stereo memory in the blend of the two memories, in 1/255."""
    trajectory: Trajectory
    seed: int
    prompt: str = ""
    step: int = 0
    generator: str = ""
    registration: int = 0
    """Registration revision the clip was made in."""
    references: tuple[tuple[int, ...], ...] = ()
    """For each frame, the remembered views that served it, as indices into `Scene.views`."""
    agreement: float | None = None
    """Share of the remembered keypoints expected in the frames that were found there; None where
    none was expected, or nothing was compared."""
    drift_px: float = 0.0
    """How far from where they were expected those were found, median."""
    agreement_frames: tuple[int, ...] = ()
    """The frames that were compared."""
    take: bool = False
    """True while it is shown only: neither kept in the memories nor discarded."""
    agreement_map: UInt8[Tensor, "S 12 16"] | None = None
    """Of each compared frame and cell 1 + 254 x the share found; 0 where too few were expected."""

    @staticmethod
    def of(
        color: Iterable[Float[Tensor, "3 H W"]],
        depth: Iterable[Float[Tensor, "1 H W"]],
        origin: Iterable[UInt8[Tensor, "1 H W"]],
        confidence: Iterable[Float[Tensor, "1 H W"]],
        trajectory: Trajectory,
        *,
        stereo_weight: Iterable[Float[Tensor, "1 H W"]] | None = None,
        seed: int = 0,
        prompt: str = "",
        step: int = 0,
        generator: str = "",
        registration: int = 0,
        references: tuple[tuple[int, ...], ...] = (),
        agreement: float | None = None,
        drift_px: float = 0.0,
        agreement_frames: tuple[int, ...] = (),
        agreement_map: UInt8[Tensor, "S 12 16"] | None = None,
        take: bool = False,
    ) -> "Clip":
        """A clip from float colours, confidences and weights in [0, 1], of its frames in order.

        Packed frame by frame: a whole clip in floats would be a third more.
        """
        confidence_u8 = packed_frames(confidence)
        return Clip(
            color_u8=packed_frames(color),
            depth=torch.stack(tuple(depth)),
            origin=torch.stack(tuple(origin)),
            confidence_u8=confidence_u8,
            stereo_u8=torch.zeros_like(confidence_u8)
            if stereo_weight is None
            else packed_frames(stereo_weight),
            trajectory=trajectory,
            seed=seed,
            prompt=prompt,
            step=step,
            generator=generator,
            registration=registration,
            references=references,
            agreement=agreement,
            drift_px=drift_px,
            agreement_frames=agreement_frames,
            agreement_map=agreement_map,
            take=take,
        )

    def __len__(self) -> int:
        return len(self.color_u8)

    def spilled(self) -> "Clip":
        """The same clip with its frames on disk: they come into memory while they are read."""
        return _spilled(self, "color_u8", "depth", "origin", "confidence_u8", "stereo_u8")

    @property
    def color(self) -> Float[Tensor, "T 3 H W"]:
        return self.color_u8.float() / 255

    @property
    def confidence(self) -> Float[Tensor, "T 1 H W"]:
        return self.confidence_u8.float() / 255

    @property
    def stereo_weight(self) -> Float[Tensor, "T 1 H W"]:
        return self.stereo_u8.float() / 255


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A picture of a capture that did not become a view."""

    name: str
    why: str
    """As a label: "too blurred"."""
    thumbnail: UInt8[Tensor, "3 h w"]


@dataclass(frozen=True, eq=False)
class Capture:
    """What a reader made of a user's file, before any memory has seen it."""

    name: str
    kind: str
    """"rgbd", "photos", "photo", "panorama" or "cloud"."""
    views: tuple[View, ...] = ()
    """As read; `depth` is 0 where nothing was measured."""
    cloud: PointCloud | None = None
    up: Float[Tensor, "3"] | None = None
    """Direction of the sky where the file or its geometry says so."""
    trajectory: Trajectory | None = None
    """A camera path that came with the file."""
    rough_depth: bool = False
    """Depth is a layout estimate from one photo, to be labelled rough."""
    prompt: str = ""
    notices: tuple[str, ...] = ()
    """One line each: what was thinned, converted or guessed."""
    metres_per_unit: float | None = None
    """What one unit of the file measures in metres, where the file says so."""
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """What was subtracted from all coordinates of the file (UTM lies far from its origin)."""
    left_out: tuple[LeftOut, ...] = ()
    """Pictures that could not be placed."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything a reader may see of a world; never changes. The world publishes one per step."""

    revision: int = 0
    name: str = ""
    views: tuple[View, ...] = ()
    """All remembered views, given (step 0) and generated."""
    cloud: PointCloud = field(default_factory=lambda: PointCloud.of(torch.zeros(0, 3)))
    clips: tuple[Clip, ...] = ()
    up: Float[Tensor, "3"] = field(default_factory=lambda: torch.tensor([0.0, -1.0, 0.0]))
    camera_fixed: tuple[Bool[Tensor, "H W"], Float[Tensor, "3 H W"]] | None = None
    """Mask and mean colour of what is fixed to the camera, if the capture shows such a thing."""
    unit: float = 1.0
    """u: the median measured depth of the given views, the scene's own unit of length."""
    metres_per_unit: float | None = None
    """Set by the person, from the file, or None: what one scene unit measures in metres."""
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Added to the coordinates of exports that keep their precision: see `Capture.origin`."""
    rough_depth: bool = False
    notices: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    """What the self-check of the given views decided, one line a stage."""
    stretch: float = 1.0
    """By how much a full cloud was thinned: the spacing of its points over that of their samples.
    The radii of the cloud's points are stretched already."""


def _spilled(value: Any, *names: str) -> Any:
    before = [getattr(value, name) for name in names]
    after = on_disk(before)
    if all(a is b for a, b in zip(after, before, strict=True)):
        return value
    return replace(value, **dict(zip(names, after, strict=True)))


def packed_frames(frames: Iterable[Float[Tensor, "*S"]]) -> UInt8[Tensor, "T *S"]:
    """Frames of floats in [0, 1] to 8 bits, one after the other."""
    return torch.stack([to_bytes(frame) for frame in frames])


def to_bytes(values: Float[Tensor, "*S"]) -> UInt8[Tensor, "*S"]:
    """Floats in [0, 1] to 8 bits, rounded."""
    return (values.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
