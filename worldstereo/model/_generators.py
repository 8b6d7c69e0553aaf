"""The model's backbones behind the `Generator` protocol; a world cannot tell them from others.

Each shares the model's two memories with the world that it is given to: what a world remembers is
what `model.global_memory` and `model.spatial_memory` hold.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from worldstereo.cameras import Cameras
from worldstereo.generators import (
    Frame,
    GenerationRequest,
    GeneratorLimits,
    StepRange,
    WarpGenerator,
    patch_features,
)
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.model._branches import patch_entries, patch_grid
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Origin

log = logging.getLogger(__name__)

AGREEMENT = 10.0  # how fast confidence falls with the difference between a frame and its guide
VIEWS_KEPT = 4  # frames whose entries the bank has room for at the finest grid


class SharedMemories:
    """A generator whose worlds use the memories of one model."""

    model: Any
    """The `WorldStereo` it belongs to, which imports this module."""

    def new_memories(
        self, max_points: int = 0
    ) -> tuple[GlobalGeometricMemory, SpatialStereoMemory]:
        """The model's own, emptied; `max_points` is that of its configuration."""
        del max_points
        self.model.global_memory.initialize(torch.zeros(0, 3, device=self.model.device))
        self.model.spatial_memory.clear()
        return self.model.global_memory, self.model.spatial_memory


class CompactGenerator(SharedMemories):
    """Denoises a clip with the compact backbone, steered by both memories."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config["vdm_config"]
        self.limits = GeneratorLimits(
            name="compact",
            max_frames=config["max_frames"],
            size_multiple=model.size_multiple,
            steps=StepRange(1, config["num_timesteps"], min(50, config["num_timesteps"])),
            guidance=7.5,
            seconds_per_frame=5.0,
        )

    def encode(self, color: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T D h w"]:
        patch = self.model.pixel_patch
        stereo = self.model.spatial_memory
        room = max(1, stereo.memory_size // VIEWS_KEPT)
        rows, columns = patch_grid(color.shape[-2], color.shape[-1], patch, room)
        return patch_entries(color, rows, columns, patch, stereo.feature_dim)

    @torch.no_grad()
    def __call__(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        self.limits.check(request.trajectory)
        model = self.model
        cameras = request.trajectory.cameras.to(model.device)
        shown = condition_of(request).to(model.device)
        steps = request.sampler.steps or (self.limits.steps or StepRange(1, 1, 1)).default
        video = model.denoised(
            shown,
            cameras,
            geometry=request.geometry if request.guide.geometry else None,
            stereo=request.stereo if request.guide.stereo else None,
            steps=steps,
            guidance=request.sampler.guidance,
            seed=request.seed,
            on_step=on_step,
            on_state=request.on_state,
        )
        for t in range(len(video)):
            yield framed(video[t].float().cpu(), request, t)


class SizedWarp(SharedMemories, WarpGenerator):
    """The weight-free generator with entries of the model's width."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, color: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T D h w"]:
        features = patch_features(color)
        room = self.model.spatial_memory.feature_dim - features.shape[1]
        return F.pad(features, (0, 0, 0, 0, 0, room))


class SharedDiffusion(SharedMemories):
    """The published model with the model's memories; everything else is its own."""

    def __init__(self, model: Any, inner: Any) -> None:
        self.model, self.inner = model, inner
        self.limits: GeneratorLimits = inner.limits

    def encode(self, color: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T D h w"]:
        features = self.inner.encode(color)
        room = self.model.spatial_memory.feature_dim - features.shape[1]
        return F.pad(features, (0, 0, 0, 0, 0, room))

    def __call__(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        return self.inner(request, on_step)


def condition_of(request: GenerationRequest) -> Float[Tensor, "3 H W"]:
    """What the first frame shows: the given view at its very camera, else the guide's."""
    first = request.trajectory.cameras[0]
    for view in request.views:
        if view.step == 0 and _same(view.cameras, first):
            return view.color
    return request.guide[0].color


def _same(a: Cameras, b: Cameras) -> bool:
    alike = (a.width, a.height) == (b.width, b.height)
    return alike and torch.allclose(a.c2w, b.c2w, atol=1e-5) and torch.allclose(a.K, b.K, rtol=1e-4)


def framed(color: Float[Tensor, "3 H W"], request: GenerationRequest, t: int) -> Frame:
    """A made picture with what the memories know of its pixels."""
    known = request.guide[t]
    apart = (color - known.color).abs().mean(dim=0, keepdim=True)
    sure = torch.where(known.mask, known.confidence * torch.exp(-AGREEMENT * apart), 0.0)
    confidence = torch.where(known.mask, sure, known.confidence)
    camera_fixed = known.origin == int(Origin.CAMERA_FIXED)
    return Frame(
        color=torch.where(camera_fixed, known.color, color),
        depth=known.depth,
        origin=known.origin,
        confidence=confidence,
        stereo_weight=(known.origin == int(Origin.STEREO)).float(),
        references=known.references,
    )
