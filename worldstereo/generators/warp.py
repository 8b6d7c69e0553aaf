"""The weight-free generator: frames painted from what is remembered, holes filled smoothly."""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo.generators.base import (
    Frame,
    GenerationRequest,
    GeneratorLimits,
    as_view,
    patch_features,
)
from worldstereo.generators.registry import GeneratorChoice, GeneratorSettings
from worldstereo.guide import GuideFrame
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.memory.stereo.dense import synthesize
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Origin, View

BEFORE = 4  # frames of a path whose inventions the next one repeats


class WarpGenerator:
    """Copies what was seen, through both memories; fills the rest smoothly and marks it invented.

    Needs neither weights nor GPU. Every frame is the guide's frame: each pixel attends to the
    remembered pixels that correspond to it in 3D (`synthesis`). Where no view saw anything, what
    earlier frames of the same path invented there is used again, so that neighbours agree. The
    same request gives the same bits on the CPU; nothing random is drawn, whatever the seed.
    """

    limits = GeneratorLimits(name="warp", seconds_per_frame=0.5)

    def new_memories(
        self, max_points: int = 2_000_000
    ) -> tuple[GlobalGeometricMemory, SpatialStereoMemory]:
        geometry = GlobalGeometricMemory(
            point_cloud_dim=16, feature_dim=48, num_neighbors=8, max_points=max_points
        )
        stereo = SpatialStereoMemory(
            memory_size=65_536, feature_dim=48, correspondence_threshold=0.0
        )
        return geometry, stereo

    def encode(self, color: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T 48 h w"]:
        return patch_features(color)

    def __call__(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        self.limits.check(request.trajectory)
        total = len(request.trajectory)
        made: deque[View] = deque(maxlen=BEFORE)  # with what blending derives from each: 20 MB
        for t in range(total):
            on_step(t, total, f"View {t + 1} of {total}, filling from memory")
            known = request.guide[t]
            frame = repeat_inventions(known, made, request.unit)
            made.append(as_view(frame, known.camera, request.step, t))
            yield frame
        on_step(total, total, f"{total} of {total} views made")


def repeat_inventions(known: GuideFrame, made: Iterable[View], unit: float) -> Frame:
    """The guide's frame, with what earlier frames of this path invented in its unknown parts."""
    color, depth = known.color, known.depth
    unknown = known.origin == int(Origin.INVENTED)
    nearest = list(made)
    if nearest and bool(unknown.any()):
        again = synthesize(known.camera, nearest, unit=unit, fill=False)
        reuse = unknown & again.known
        color = torch.where(reuse, again.color, color)
        depth = torch.where(reuse, again.depth, depth)
    return Frame(
        color, depth, known.origin, known.confidence, known.stereo_weight, known.references
    )


def choose(settings: GeneratorSettings) -> GeneratorChoice:
    """Warp as it is offered: always usable."""
    about = (
        "Copies what both memories know and fills the rest from its surroundings. "
        "No weights, any CPU."
    )
    adds = "Continues surroundings smoothly into the {share} of this path that no memory knows"
    return GeneratorChoice("warp", "Warp", about, WarpGenerator.limits, WarpGenerator, adds=adds)
