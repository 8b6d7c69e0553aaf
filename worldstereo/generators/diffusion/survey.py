"""What a checkpoint would need here, before it is loaded: the preflight from headers alone."""

from dataclasses import dataclass
from pathlib import Path

import torch

from worldstereo.generators import GeneratorLimits, MemoryModeFit, SamplerConfig
from worldstereo.generators.diffusion.config import ModelConfig
from worldstereo.generators.diffusion.folders import pick_variant
from worldstereo.generators.diffusion.loading import open_checkpoint
from worldstereo.generators.diffusion.memory_modes import Card, ClipSize, ModelSize, preflight


def device_named(name: str) -> torch.device:
    """A device by its name; "auto" is the GPU where there is one."""
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, eq=False)
class Survey:
    """One variant on one device: what it accepts, and how it would fit."""

    config: ModelConfig
    size: ModelSize
    device: torch.device

    @staticmethod
    def of(
        repo_or_folder: str | Path,
        variant: str | None = None,
        *,
        device: str = "auto",
        base: str | Path | None = None,
        offline: bool = False,
    ) -> "Survey":
        """Reads headers and configs; no weight.

        Raises:
            ValueError: the variant, the config or a width is not accepted.
            WeightsMissing: a file is absent, truncated, foreign or incomplete.
        """
        name = pick_variant(repo_or_folder, variant)
        checkpoint = open_checkpoint(repo_or_folder, name, base=base, offline=offline)
        size = ModelSize.of(checkpoint.model)
        return Survey(checkpoint.config, size, device_named(device))

    @property
    def limits(self) -> GeneratorLimits:
        return self.config.limits

    def clip(
        self,
        frames: int | None = None,
        width: int | None = None,
        height: int | None = None,
        sampler: SamplerConfig | None = None,
    ) -> ClipSize:
        """What a clip asks for; the largest one at the first of the model's sizes by default."""
        config, limits, sampler = self.config, self.limits, sampler or SamplerConfig()
        rows, columns = config.sizes[0]
        assert limits.steps is not None
        return ClipSize(
            frames=frames or config.nframe,
            height=height or rows,
            width=width or columns,
            references=8 if config.variant.references else 0,
            steps=sampler.steps or limits.steps.default,
            guided=limits.guidance is not None and sampler.guidance > 1,
        )

    def modes(
        self,
        frames: int | None = None,
        width: int | None = None,
        height: int | None = None,
        sampler: SamplerConfig | None = None,
    ) -> list[MemoryModeFit]:
        """The preflight of a clip: every memory mode on the device, fastest first."""
        clip = self.clip(frames, width, height, sampler)
        return preflight(self.size, clip, Card.at(self.device))
