"""The published model as it is offered: which weights there are, and what fits this machine."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from worldstereo.errors import WorldStereoError
from worldstereo.generators.base import Generator, MemoryModeFit, SamplerConfig
from worldstereo.generators.registry import GeneratorChoice, GeneratorSettings
from worldstereo.progress import OnStep, ignore

if TYPE_CHECKING:
    from worldstereo.generators.diffusion.survey import Survey

NO_WEIGHTS = "It needs --model FOLDER with its weights; the README says which."


def choose(settings: GeneratorSettings) -> GeneratorChoice:
    """The published model, or why it cannot run. Only headers are read here."""

    def make(mode: str = "auto", on_step: OnStep | None = None) -> Generator:
        from worldstereo.generators.diffusion.generator import DiffusionGenerator

        return DiffusionGenerator.from_pretrained(
            settings.model or "",
            settings.variant,
            mode=mode,
            device=settings.device,
            base=settings.base,
            constraint=settings.constraint,
            offline=settings.offline,
            on_step=on_step or ignore,
        )

    @cache
    def survey() -> "Survey":
        from worldstereo.generators.diffusion.survey import Survey

        return Survey.of(
            settings.model or "",
            settings.variant,
            device=settings.device,
            base=settings.base,
            offline=settings.offline,
        )

    def modes(
        frames: int, width: int, height: int, sampler: SamplerConfig
    ) -> Sequence[MemoryModeFit]:
        return survey().modes(frames, width, height, sampler)

    limits, why = None, NO_WEIGHTS
    if settings.model is not None and not settings.offline and not Path(settings.model).is_dir():
        why = ""  # a hub id: what it holds is known once it is there
    elif settings.model is not None:
        from worldstereo.generators.diffusion.folders import limits_of

        try:
            limits, why = limits_of(settings.model, settings.variant), ""
        except (WorldStereoError, ValueError) as error:
            why = str(error)
    about = "The published video model, steered by both memories. Needs a GPU."
    return GeneratorChoice("diffusion", "WorldStereo 2.0", about, limits, make, why, modes)
