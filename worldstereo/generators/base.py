"""The `Generator` protocol, its request and answer, and the weight-free `WarpGenerator`.

A generator keeps no state between calls: everything a session remembers travels in the request.
Frames come one by one; the caller folds each into the memories before it asks for the next.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnnecessaryIsInstance=false
# torch's own stubs leave much unknown; run-time checks of argument types stay.

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.errors import InvalidRequest
from worldstereo.guide import Guide
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import View
from worldstereo.trajectory import Trajectory
from worldstereo.views.intake import generated

OnState = Callable[[int, int, Tensor], None]
"""`(step, total, state)`: after each denoising step, counted from 1, with the state
(1, T, c, h, w), detached and not to be written to."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a generator walks from noise to frames."""

    steps: int | None = None
    """Denoising steps; None for as many as the generator was made for (4 distilled, 40 full)."""

    guidance: float = 5.0
    """Classifier-free guidance scale; 1 switches it off and halves the time."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"sampler.steps must be at least 1, got {self.steps}.")
        if not self.guidance >= 1:
            raise ValueError(f"sampler.guidance must be at least 1, got {self.guidance}.")


class StepRange(NamedTuple):
    """Denoising steps that a generator accepts."""

    min: int
    max: int
    default: int


@dataclass(frozen=True, kw_only=True)
class GeneratorLimits:
    """What a generator accepts; the app offers nothing else."""

    name: str
    min_frames: int = 1
    max_frames: int = 1000
    frame_step: int = 1
    """Accepted frame counts are `min_frames + k * frame_step`."""
    size_multiple: int = 1
    """Width and height must be multiples of this many pixels."""
    max_pixels: int = 1920 * 1088
    prompt: bool = False
    default_prompt: str = ""
    """What to begin with where no prompt was written."""
    steps: StepRange | None = None
    """Denoising steps; None where there are none."""
    guidance: float | None = None
    """The guidance scale to begin with; None where there is no guidance, nor a negative prompt."""
    negative_prompt: str = ""
    """What guidance leads away from by default."""
    seconds_per_frame: float = 0.5
    """A first guess for 640x480 on two cores; the app replaces it by what it measures."""

    def check(self, trajectory: Trajectory) -> None:
        """Raises `InvalidRequest`, naming the way out, where it cannot make such a path."""
        frames = len(trajectory)
        width, height = trajectory.cameras.width, trajectory.cameras.height
        over = (frames - self.min_frames) % self.frame_step
        if not self.min_frames <= frames <= self.max_frames or over:
            low = max(self.min_frames, min(self.max_frames, frames - over))
            high = min(self.max_frames, low + self.frame_step)
            raise InvalidRequest(
                f"frames must be {self.min_frames} + a multiple of {self.frame_step} and at most "
                f"{self.max_frames} for the {self.name} generator, got {frames}. "
                f"Use {low} or {high}."
            )
        if width % self.size_multiple or height % self.size_multiple:
            raise InvalidRequest(
                f"width and height must be multiples of {self.size_multiple} for the "
                f"{self.name} generator, got {width} x {height}."
            )
        if width * height > self.max_pixels:
            raise InvalidRequest(
                f"{width} x {height} px is above the {self.max_pixels / 1e6:.1f} Mpx of the "
                f"{self.name} generator. Choose a smaller size."
            )


class Frame(NamedTuple):
    """One generated view, with what is known about every pixel."""

    color: Float[Tensor, "3 H W"]
    depth: Float[Tensor, "1 H W"]
    origin: UInt8[Tensor, "1 H W"]
    """`Origin`: global, stereo, invented or fixed to the camera."""
    confidence: Float[Tensor, "1 H W"]
    """In [0, 1]; its ranking predicts the error."""
    stereo_weight: Float[Tensor, "1 H W"]
    references: tuple[int, ...]
    """The remembered views that served it, as indices into the request's views."""


@dataclass(frozen=True, eq=False)
class EmptyRegion:
    """A part of the world that a person wants to stay empty: what a camera sees under a mask."""

    camera: Cameras
    mask: Bool[Tensor, "H W"]

    def covers(self, camera: Cameras, depth: Float[Tensor, "1 H W"]) -> Bool[Tensor, "1 H W"]:
        """Pixels of a camera whose surface, at `depth`, would be seen under the mask."""
        z = depth.reshape(-1)
        points = camera.unproject(camera.pixel_grid(), z)
        pixels, q = self.camera.project(points)
        inside = (z > 0) & (q > 0) & (pixels >= 0).all(1)
        inside &= (pixels[:, 0] < self.camera.width) & (pixels[:, 1] < self.camera.height)
        u = torch.where(inside, pixels[:, 0], 0.0).long()
        v = torch.where(inside, pixels[:, 1], 0.0).long()
        return (inside & self.mask[v, u]).reshape(depth.shape)


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationRequest:
    """Everything a generator is given; `guide` is what the person previewed."""

    trajectory: Trajectory
    guide: Guide
    geometry: GlobalGeometricMemory
    stereo: SpatialStereoMemory
    views: tuple[View, ...]
    start: Cameras | None = None
    """The camera of the view that the path starts from."""
    unit: float = 1.0
    step: int = 1
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 0
    sampler: SamplerConfig = SamplerConfig()
    on_state: OnState | None = None
    """Asked by generators that denoise; the others never call it."""
    empty: tuple[EmptyRegion, ...] = ()
    """What an `Inventor` leaves unknown."""
    keyframes: int | None = None
    """Most cameras that an `Inventor` paints; None for as many as it was made for."""


@dataclass(frozen=True)
class MemoryModeFit:
    """One memory mode of a generator: whether it fits this machine, and what it would take."""

    mode: str
    label: str
    fits: bool
    gib: float
    """Estimated peak on the card."""
    seconds: float
    """Estimated for all steps of one clip."""
    why: str = ""
    """One line where it does not fit."""

    def __str__(self) -> str:
        state = "fits" if self.fits else self.why
        return f"{self.mode:<11}{self.gib:6.1f} GiB  about {self.seconds:6.0f} s  {state}"


@runtime_checkable
class Generator(Protocol):
    """Makes the frames of a path from the guide and the two memories."""

    limits: GeneratorLimits

    def new_memories(self, max_points: int) -> tuple[GlobalGeometricMemory, SpatialStereoMemory]:
        """Fresh memories for one world; they share the learned weights and nothing else."""
        ...

    def encode(self, color: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T D h w"]:
        """Features of frames on a coarser grid, as the stereo memory stores them."""
        ...

    def __call__(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        """Yields one frame per camera of the path; `on_step` is asked at least once per frame."""
        ...


class Invention(NamedTuple):
    """One painted camera of a path."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    """Its frame of the path."""
    frame: Frame


Look = Callable[[Trajectory], Guide]
"""What both memories show along a path, with all that was remembered until now."""


@runtime_checkable
class Inventor(Protocol):
    """A generator that invents at a few cameras of a path and shows the rest from the memories.

    The caller folds each invention into both memories before it asks for the next; the frames are
    then the guide of the world that knows them all.
    """

    def invent(
        self, request: GenerationRequest, look: Look, on_step: OnStep = ignore
    ) -> Iterator[Invention]:
        """Paints what no memory knows."""
        ...

    def frames(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        """One frame per camera, from the request's guide alone."""
        ...


@runtime_checkable
class Inspectable(Protocol):
    """A generator whose attention can be looked into."""

    layers: int

    def inspect(
        self,
        request: GenerationRequest,
        *,
        layer: int,
        step: int,
        frame: int,
        pixel: tuple[float, float],
        on_step: OnStep = ignore,
    ) -> Any:
        """The attention row of the token under a pixel; the sampler runs again up to `step`."""
        ...


@runtime_checkable
class Closable(Protocol):
    """A generator that holds a card or large weights."""

    def close(self) -> None:
        """Gives back everything that was loaded; it cannot be called afterwards."""
        ...


PATCH = 16
"""Side in pixels of the patch that one entry of the weight-free feature bank describes."""


def patch_features(color: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T 48 h w"]:
    """Weight-free features: each 16x16 patch as its 4x4 mean colours, centred on 0.

    Two patches of the same surface have a large dot product; that is all attention needs here.
    """
    cells = torch.nn.functional.adaptive_avg_pool2d(
        color, (color.shape[-2] // PATCH * 4, color.shape[-1] // PATCH * 4)
    )
    return torch.nn.functional.pixel_unshuffle(cells - 0.5, 4)


def as_view(frame: Frame, camera: Cameras, step: int, index: int) -> View:
    """A generated frame as the memories keep it: only what was unseen before has depth."""
    return generated(
        frame.color,
        frame.depth,
        frame.origin,
        frame.confidence,
        camera,
        step=step,
        frame=index,
    )
