"""`DiffusionGenerator`: the published model behind the project's `Generator` protocol.

A clip is made in one go and its frames are yielded after it. The model is told what the person
previewed: the same guide, the same path, references from the same views. Where the memories know
a surface the frame keeps their depth and origin; elsewhere it is marked as invented.
"""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from worldstereo.depth import DepthEstimator, align
from worldstereo.errors import InvalidRequest, OutOfMemory
from worldstereo.generators import (
    Frame,
    GenerationRequest,
    GeneratorLimits,
    MemoryModeFit,
    StepRange,
    WarpGenerator,
    patch_features,
)
from worldstereo.generators.diffusion import distributed, memory_modes
from worldstereo.generators.diffusion.attention import (
    CONSTRAINTS,
    AttentionProbe,
    ReferenceConstraint,
)
from worldstereo.generators.diffusion.attention_inspection import (
    AttentionRow,
    TokenGrid,
    attention_row,
)
from worldstereo.generators.diffusion.conditioning import (
    References,
    conditions,
    gather_references,
    start_picture,
)
from worldstereo.generators.diffusion.config import DEFAULT_PROMPT
from worldstereo.generators.diffusion.constraint import constraint_of, correspondence_pairs
from worldstereo.generators.diffusion.folders import pick_variant
from worldstereo.generators.diffusion.loading import discard
from worldstereo.generators.diffusion.memory_transformer import WorldStereoRefSModel
from worldstereo.generators.diffusion.pipeline import SampleInputs, sample
from worldstereo.generators.diffusion.published import Published, load_published
from worldstereo.generators.diffusion.samplers import FlowEuler, Spacing, flow_unipc
from worldstereo.generators.diffusion.survey import Survey, device_named
from worldstereo.guide import Guide, StackedGuide
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Origin

log = logging.getLogger(__name__)

AGREEMENT = 10.0
"""How fast confidence falls with the colour difference between a frame and its guide."""


class DiffusionGenerator:
    """Video diffusion steered by both memories.

    Args:
        published: the loaded parts.
        device: where the transformer computes.
        mode: the memory mode it was loaded in.
        constraint: "none" is the released behaviour; "mask" and "bias" let target tokens see only,
            or prefer, reference tokens that correspond in 3D.
        depth: estimates the depth of what was invented; without one the guide's filled depth is
            kept.
        spacing: "release" for the noise levels the release was made with.
    """

    default_prompt = DEFAULT_PROMPT
    limits = GeneratorLimits(
        name="diffusion",
        min_frames=2,
        max_frames=21,
        size_multiple=16,
        prompt=True,
        default_prompt=DEFAULT_PROMPT,
        steps=StepRange(1, 100, 4),
    )
    """Of the published checkpoints before one is loaded; an instance has its own."""

    def __init__(
        self,
        published: Published,
        *,
        device: torch.device | str = "cpu",
        mode: str = "full",
        constraint: str = "none",
        depth: DepthEstimator | None = None,
        spacing: Spacing = "release",
    ) -> None:
        if constraint not in CONSTRAINTS:
            raise ValueError(
                f"constraint must be one of {', '.join(CONSTRAINTS)}, got {constraint!r}."
            )
        self.published, self.device, self.mode = published, torch.device(device), mode
        self.constraint, self.depth = constraint, depth
        self.spacing: Spacing = spacing
        size = memory_modes.ModelSize.of(published.transformer)
        self.survey = Survey(published.config, size, self.device)
        self.limits = published.config.limits
        references = isinstance(published.transformer, WorldStereoRefSModel)
        self.layers = len(published.transformer.blocks) if references else 0
        """Layers whose attention to references can be looked at; 0 where there are none."""

    @staticmethod
    def from_pretrained(
        repo_or_folder: str | Path,
        variant: str | None = None,
        *,
        mode: str = "auto",
        device: str = "auto",
        constraint: str = "none",
        base: str | Path | None = None,
        dtype: torch.dtype | None = None,
        offline: bool = False,
        depth: DepthEstimator | None = None,
        on_step: OnStep = ignore,
    ) -> "DiffusionGenerator":
        """A generator with the weights of a folder or hub repository.

        Args:
            variant: worldstereo-camera, worldstereo-memory or worldstereo-memory-dmd; None takes
                the quickest that the folder holds.
            mode: a name of `memory_modes.MODES`, or "auto" for the quickest that fits.
            base: folder or hub id of the Wan 2.1 base model, over the config's own.

        Raises:
            ValueError: variant, mode, constraint or a config value is not accepted.
            WeightsMissing: something is absent, truncated, foreign, or fits no mode.
        """
        variant = pick_variant(repo_or_folder, variant)
        if constraint not in CONSTRAINTS:
            raise ValueError(
                f"constraint must be one of {', '.join(CONSTRAINTS)}, got {constraint!r}."
            )
        if mode != "auto":
            memory_modes.mode_named(mode)
        at = device_named(device)
        published, used = load_published(
            repo_or_folder,
            variant,
            mode=mode,
            device=at,
            base=base,
            dtype=dtype,
            offline=offline,
            on_step=on_step,
        )
        return DiffusionGenerator(
            published, device=at, mode=used, constraint=constraint, depth=depth
        )

    def new_memories(
        self, max_points: int = 2_000_000
    ) -> tuple[GlobalGeometricMemory, SpatialStereoMemory]:
        """The memories of the weight-free generator: a world can change generators as it grows."""
        return WarpGenerator().new_memories(max_points)

    def encode(self, color: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T 48 h w"]:
        return patch_features(color)

    def modes(self, *clip: Any, **options: Any) -> list[MemoryModeFit]:
        """The preflight, as in `Survey.modes`: every memory mode, and whether it fits here."""
        return self.survey.modes(*clip, **options)

    def __call__(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        """One frame per camera of the path, after the whole clip was denoised.

        Raises:
            ValueError: the path, its size or the prompt is not accepted; nothing has run.
            OutOfMemory: the card was too small; the line names the next smaller mode.
        """
        self.check(request)
        with self._card():
            video, guide, references = self._run(request, on_step)
        for t in range(len(video)):
            yield self._frame(video[t], guide, t, references)

    def inspect(
        self,
        request: GenerationRequest,
        *,
        layer: int,
        step: int,
        frame: int,
        pixel: tuple[float, float],
        on_step: OnStep = ignore,
    ) -> AttentionRow:
        """The attention row of the token under a pixel at one layer and denoising step.

        Runs the sampler up to that step again (a row is recomputed, never stored).

        Raises:
            InvalidRequest: an index is outside, or the variant takes no references.
            OutOfMemory: as when frames are made.
        """
        self.check(request)
        model = self.published.transformer
        if not isinstance(model, WorldStereoRefSModel):
            raise InvalidRequest(
                f"{self.limits.name} takes no references: there is no row to look at."
            )
        steps = self._steps(request)
        if not 0 <= step < steps:
            raise InvalidRequest(f"step must be 0 .. {steps - 1}, got {step}.")
        cameras = request.trajectory.cameras
        rows, columns = cameras.height // 16, cameras.width // 16
        grid = TokenGrid(len(cameras), 1, rows, columns)
        token = grid.target(frame, int(pixel[1]) // 16, int(pixel[0]) // 16)
        probe = AttentionProbe(layer, (token,), once=True)
        stop = _Stop()

        def watch(at: int, velocity: Tensor) -> None:
            if at == step:
                raise stop

        def report(at: int, total: int, message: str) -> None:
            on_step(at, total, message)
            if at == step and message.startswith("Denoising"):
                model.set_probe(probe)

        guide, references, pairs, constraint = self._prepared(request)
        model.set_probe(None)
        try:
            with self._card():
                self._sampled(request, guide, references, constraint, report, watch)
        except _Stop:
            pass
        finally:
            model.set_probe(None)
            model.set_constraint(None)
        grid = grid._replace(references=len(references.ref_index))
        return attention_row(probe, grid, pairs, step, constraint, references.views)

    def close(self) -> None:
        """Gives back everything that was loaded; the generator cannot be called afterwards."""
        parts = self.published
        discard(parts.transformer, parts.vae.vae, parts.text.encoder, parts.image.encoder)
        memory_modes.free(self.device)

    def check(self, request: GenerationRequest) -> None:
        """Raises `InvalidRequest` when this request cannot be run, before anything does."""
        self.limits.check(request.trajectory)
        if distributed.wanted():
            cameras, transformer = request.trajectory.cameras, self.published.transformer
            count = distributed.join().count
            size = (len(cameras), cameras.height, cameras.width)
            distributed.check_split(transformer, count, *size, 0)
        if not request.prompt.strip():
            raise InvalidRequest(
                f"prompt must describe the place for {self.limits.name}, got {request.prompt!r}. "
                f"For example: {DEFAULT_PROMPT.split('.')[0]}."
            )

    # ---- one clip -------------------------------------------------------------------------------

    def _run(
        self, request: GenerationRequest, on_step: OnStep
    ) -> tuple[Tensor, StackedGuide, References]:
        guide, references, _, constraint = self._prepared(request)
        model = self.published.transformer
        try:
            video = self._sampled(request, guide, references, constraint, on_step, None)
        finally:
            if isinstance(model, WorldStereoRefSModel):
                model.set_constraint(None)
        return video, guide, references

    def _prepared(
        self, request: GenerationRequest
    ) -> tuple[StackedGuide, References, Tensor, ReferenceConstraint | None]:
        trajectory = request.trajectory
        guide = request.guide.stacked()
        fused = guide.color[0]
        if request.guide.kind == "cloud":
            fused = Guide(request.guide.scene, trajectory, "fused")[0].color
        start, _ = start_picture(request.views, trajectory, fused)
        guide.color[0] = start
        references = gather_references(
            request.views, trajectory, start, guide.depth[0], nframe=self.published.config.nframe
        )
        known = guide.depth.masked_fill(~guide.mask, 0)
        pairs = torch.zeros(2, 0, dtype=torch.int64)
        if isinstance(self.published.transformer, WorldStereoRefSModel):
            pairs = correspondence_pairs(
                known, trajectory.cameras, references.depth, references.cameras
            )
        return guide, references, pairs, constraint_of(self.constraint, pairs)

    def _sampled(
        self,
        request: GenerationRequest,
        guide: StackedGuide,
        references: References,
        constraint: ReferenceConstraint | None,
        on_step: OnStep,
        on_velocity: Any,
    ) -> Tensor:
        parts, config = self.published, self.published.config
        memory = isinstance(parts.transformer, WorldStereoRefSModel)
        given = conditions(request.trajectory, guide.color, guide.mask, guide.color[0], references)
        negative = request.negative_prompt or config.negative_prompt
        guided = not config.variant.distilled and request.sampler.guidance > 1
        inputs = SampleInputs(
            image=given.image,
            prompt_embeds=parts.text(request.prompt),
            negative_prompt_embeds=parts.text(negative) if guided else None,
            image_embeds=parts.image(given.picture),
            render_video=given.render_video,
            render_mask=given.render_mask,
            camera_embedding=given.camera_embedding,
            reference_video=given.reference_video if memory else None,
            ref_index=given.ref_index if memory else None,
            camera_qt=given.camera_qt if memory else None,
            camera_qt_ref=given.camera_qt_ref if memory else None,
        )
        if isinstance(parts.transformer, WorldStereoRefSModel):
            parts.transformer.set_constraint(constraint)
        steps = self._steps(request)
        scheduler: UniPCMultistepScheduler | FlowEuler = (
            FlowEuler(config.dmd_start, config.dmd_end, config.dmd_shift, steps)
            if config.variant.distilled
            else flow_unipc(**parts.scheduler)
        )
        result = sample(
            parts.transformer,
            parts.vae,
            inputs,
            scheduler=scheduler,
            latent_cond_mode=config.latent_cond_mode,
            steps=steps,
            guidance=request.sampler.guidance if guided else 1.0,
            spacing=self.spacing,
            seed=request.seed,
            device=self.device,
            on_step=on_step,
            on_velocity=on_velocity,
            on_state=request.on_state,
        )
        assert result.video is not None
        return result.video[0].float().cpu()

    def _frame(
        self, color: Float[Tensor, "3 H W"], guide: StackedGuide, t: int, references: References
    ) -> Frame:
        known, depth = guide.mask[t], guide.depth[t]
        if self.depth is not None and bool((~known).any()):
            estimate = align(self.depth(color).depth, depth, known)
            depth = torch.where(known, depth, estimate)
        apart = (color - guide.color[t]).abs().mean(dim=0, keepdim=True)
        agreement = torch.exp(-AGREEMENT * apart)
        confidence = torch.where(known, guide.confidence[t] * agreement, guide.confidence[t])
        camera_fixed = guide.origin[t] == int(Origin.CAMERA_FIXED)
        color = torch.where(camera_fixed, guide.color[t], color)
        return Frame(
            color=color,
            depth=depth,
            origin=guide.origin[t],
            confidence=confidence,
            stereo_weight=(guide.origin[t] == int(Origin.STEREO)).float(),
            references=tuple(i for i in references.views if i >= 0),
        )

    def _steps(self, request: GenerationRequest) -> int:
        assert self.limits.steps is not None
        return request.sampler.steps or self.limits.steps.default

    @contextmanager
    def _card(self) -> Iterator[None]:
        """What runs on the card: whatever ends it, its tensors do not stay behind."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            log.warning("out of memory in mode %s: %s", self.mode, error)
            traceback.clear_frames(error.__traceback__)  # they hold what filled the card
            smaller = memory_modes.smaller_mode(self.mode) or ""
            way_out = f"Use mode {smaller}" if smaller else "Use fewer or smaller frames"
            raise OutOfMemory(
                f"The card ran out of memory in mode {self.mode}. {way_out}; the world is "
                f"unchanged.",
                smaller,
            ) from None
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            memory_modes.free(self.device)


class _Stop(Exception):
    """Ends a run behind the step that was to be looked at."""
