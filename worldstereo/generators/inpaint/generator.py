"""`InpaintGenerator`: invent once at a few keyframes, remember it, show all frames from memory.

A picture model forgets at once; the two memories do not. What a painter invents at a keyframe gets
a depth and becomes part of both memories as generated. Every frame of the path, the keyframes too,
is then what the memories show: the same surface from its own side, on every visit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldstereo.depth import DepthEstimator, best_estimator
from worldstereo.errors import InvalidRequest
from worldstereo.generators.base import (
    Closable,
    EmptyRegion,
    Frame,
    GenerationRequest,
    GeneratorLimits,
    Invention,
    Look,
    as_view,
    patch_features,
)
from worldstereo.generators.inpaint import keyframes
from worldstereo.generators.inpaint.compose import painted, worth_painting
from worldstereo.generators.inpaint.depth import painted_depth
from worldstereo.generators.inpaint.painters import Painter, PainterLimits, PaintRequest, limits_of
from worldstereo.generators.warp import WarpGenerator
from worldstereo.guide import Guide, GuideFrame
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Origin, Scene
from worldstereo.trajectory import Trajectory

MAX_PROMPT = 2000
"""Characters of a prompt that are passed on: models read some 77 to 512 words."""
SURE = 0.5
"""Confidence of what was painted, where the fill's own is lower."""


@dataclass(frozen=True, kw_only=True)
class InpaintOptions:
    """How much is invented, and how long a painter may take."""

    keyframes: int = 4
    """Most painter calls for one path."""

    seconds: float = 600.0
    """Time after which a painter that does not answer is left."""

    def __post_init__(self) -> None:
        if self.keyframes < 0:
            raise ValueError(f"keyframes must be at least 0, got {self.keyframes}.")
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}.")


class InpaintGenerator:
    """Paints unseen areas at the fewest cameras that see it, with any inpainting model.

    Known pixels are never changed. The same request gives the same bits where the painter's do.

    Args:
        painter: `(image, mask, prompt, seed) -> image`.
        estimator: depth of one picture; where None, a learned model if one is here.
    """

    def __init__(
        self,
        painter: Painter,
        *,
        options: InpaintOptions = InpaintOptions(),  # noqa: B008  (frozen)
        estimator: DepthEstimator | None = None,
    ) -> None:
        self.painter, self.options, self._estimator = painter, options, estimator
        self.limits = generator_limits(limits_of(painter))

    def new_memories(
        self, max_points: int = 2_000_000
    ) -> tuple[GlobalGeometricMemory, SpatialStereoMemory]:
        return WarpGenerator().new_memories(max_points)

    def encode(self, color: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T 48 h w"]:
        return patch_features(color)

    def __call__(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        """Frames for a caller that remembers nothing in between: keyframes stay in this call."""
        scene, views = request.guide.scene, list(request.guide.scene.views)

        def look(path: Trajectory) -> Guide:
            return guide_like(request.guide, replace(scene, views=tuple(views)), path)

        for invention in self.invent(request, look, on_step):
            camera = request.trajectory.cameras[invention.index]
            views.append(as_view(invention.frame, camera, request.step, invention.index))
        seen = replace(request, guide=look(request.trajectory), views=tuple(views))
        yield from self.frames(seen, on_step)

    def plan(
        self,
        look: Look,
        path: Trajectory,
        empty: Sequence[EmptyRegion] = (),
        limit: int | None = None,
    ) -> tuple[keyframes.Keyframe, ...]:
        """The keyframes that a path needs now, in the order in which they are painted.

        Raises:
            InvalidRequest: no camera of the path sees anything that is known.
        """
        small = look(path.scaled(*keyframes.small_size(path.cameras.width, path.cameras.height)))
        frames = list(small)
        if not any(bool(frame.mask.any()) for frame in frames):
            raise InvalidRequest(
                "The path sees nothing that is known, so nothing can be continued. Begin it where "
                "the world is known."
            )
        left = [stays_empty(frame, empty) for frame in frames] if empty else []
        most = self.options.keyframes if limit is None else min(limit, self.options.keyframes)
        return keyframes.choose(frames, limit=most, empty=left)

    def invent(
        self, request: GenerationRequest, look: Look, on_step: OnStep = ignore
    ) -> Iterator[Invention]:
        """Paints keyframe after keyframe; the caller remembers each before it asks for the next.

        Args:
            look: what both memories show along a path, with all that was remembered until now.

        Raises:
            PainterFailed: the painter gave no usable picture.
            InvalidRequest: the path sees nothing that is known.
        """
        self.limits.check(request.trajectory)
        path = request.trajectory
        on_step(0, len(path), "Choosing what to paint")
        chosen = self.plan(look, path, request.empty, request.keyframes)
        for number, key in enumerate(chosen):
            label = f"Painting keyframe {number + 1} of {len(chosen)}"

            def report(step: int, total: int, message: str, label: str = label) -> None:
                on_step(0, len(path), f"{label}, {message}" if message else label)

            report(0, 0, "")
            one = replace(path, cameras=path.cameras[key.index : key.index + 1], times=None)
            frame = self.keyframe(look(one)[0], request, key.index, report)
            if frame is not None:
                yield Invention(key.index, frame)

    def keyframe(
        self, shown: GuideFrame, request: GenerationRequest, index: int, on_step: OnStep
    ) -> Frame | None:
        """One painted camera; None where nothing but cracks is unknown."""
        unknown = ~shown.mask
        if request.empty:
            unknown &= ~torch.from_numpy(stays_empty(shown, request.empty))[None]
        hole = worth_painting(unknown[0].cpu().numpy())
        if not hole.any():
            return None
        color = painted(
            self.painter,
            np.ascontiguousarray(shown.color.permute(1, 2, 0).cpu().numpy()),
            hole,
            prompt=request.prompt[:MAX_PROMPT],
            seed=(request.seed + 7919 * index) % 2**31,
            options=PaintRequest(
                negative_prompt=request.negative_prompt[:MAX_PROMPT],
                steps=request.sampler.steps,
                guidance=request.sampler.guidance,
            ),
            on_step=on_step,
            seconds=self.options.seconds,
        )
        picture = torch.from_numpy(color).permute(2, 0, 1).contiguous()
        inside = torch.from_numpy(hole)[None]
        depth = painted_depth(
            picture, shown.depth, shown.mask & ~made_of(shown), inside, shown.camera,
            request.views, self._estimator or best_estimator(), request.unit, shown.confidence,
        )  # fmt: skip
        # Only what was unknown enters the memories; a surface of an earlier step does not again.
        old = torch.where(shown.origin == int(Origin.INVENTED), int(Origin.GLOBAL), shown.origin)
        origin = torch.where(unknown, int(Origin.INVENTED), old).to(torch.uint8)
        sure = torch.where(inside, shown.confidence.clamp_min(SURE), shown.confidence)
        return Frame(picture, depth, origin, sure, shown.stereo_weight, shown.references)

    def frames(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        """Every frame as the memories show it, what was invented marked so."""
        total = len(request.trajectory)
        for t in range(total):
            on_step(t, total, f"View {t + 1} of {total}, from both memories")
            shown = request.guide[t]
            origin = torch.where(made_of(shown), int(Origin.INVENTED), shown.origin)
            yield Frame(
                shown.color,
                shown.depth,
                origin.to(torch.uint8),
                shown.confidence,
                shown.stereo_weight,
                shown.references,
            )
        on_step(total, total, f"{total} of {total} views made")

    def close(self) -> None:
        """Gives back what the painter holds."""
        if isinstance(self.painter, Closable):
            self.painter.close()


def made_of(shown: GuideFrame) -> Bool[Tensor, "1 H W"]:
    """What a guide's frame knows from earlier inventions alone."""
    return torch.zeros_like(shown.mask) if shown.made is None else shown.made


def stays_empty(shown: GuideFrame, regions: Sequence[EmptyRegion]) -> np.ndarray:
    """(H, W): pixels that lie in one of the regions."""
    out = torch.zeros_like(shown.mask)
    for region in regions:
        out |= region.covers(shown.camera, shown.depth)
    return out[0].cpu().numpy()


def guide_like(guide: Guide, scene: Scene, path: Trajectory) -> Guide:
    """A guide of the same kind through another scene; foreign kinds become both memories'."""
    kind = guide.kind if guide.kind in ("fused", "cloud") else "fused"
    return Guide(scene, path, kind, stereo=guide.stereo, geometry=guide.geometry)


def generator_limits(painter: PainterLimits) -> GeneratorLimits:
    """What the generator accepts: any path; text, steps and guidance as its painter does."""
    return GeneratorLimits(
        name="inpaint",
        prompt=painter.text,
        default_prompt="the same place, continued" if painter.text else "",
        steps=painter.steps,
        guidance=painter.guidance,
        negative_prompt="text, frame, blurry" if painter.guidance is not None else "",
        seconds_per_frame=0.6 + 0.16 * painter.seconds,
    )
