"""The inpainting generator as it is offered: with which painter, and what that takes here."""

from collections.abc import Sequence
from pathlib import Path

from worldstereo.errors import WorldStereoError
from worldstereo.generators.base import Generator, MemoryModeFit, SamplerConfig
from worldstereo.generators.inpaint.generator import (
    InpaintGenerator,
    InpaintOptions,
    generator_limits,
)
from worldstereo.generators.inpaint.keyframes import choose as cover
from worldstereo.generators.inpaint.keyframes import some_of
from worldstereo.generators.inpaint.painters import limits_of, painter_named, painter_names
from worldstereo.generators.inpaint.pipelines import (
    INDEX,
    DiffusersPainter,
    find_model,
    model_of_environment,
)
from worldstereo.generators.registry import GeneratorChoice, GeneratorSettings
from worldstereo.guide import Guide
from worldstereo.progress import OnStep
from worldstereo.scene import Scene
from worldstereo.trajectory import Trajectory

DEFAULT = "telea"
LABEL = "Inpaint"


def choose(settings: GeneratorSettings) -> GeneratorChoice:
    """Inpainting with the painter that the settings name, or why it cannot run."""
    name = wanted(settings)
    if name in painter_names():
        painter = painter_named(name, settings)

        def simple() -> Generator:
            return InpaintGenerator(painter)

        about = (
            f"Paints unseen areas at a few keyframes ({name}) and remembers them. A learned model "
            f"(--painter FOLDER) would invent detail; this one continues the surroundings."
        )
        limits = generator_limits(limits_of(painter))
        return GeneratorChoice(
            "inpaint", LABEL, about, limits, simple, adds=ADDS, keyframes=about_how_many
        )
    try:
        model = DiffusersPainter(find_model(name), settings.device)
    except (WorldStereoError, ValueError) as error:
        return GeneratorChoice("inpaint", LABEL, ABOUT, None, _never, str(error))

    def make(mode: str = "auto", on_step: OnStep | None = None) -> Generator:
        return InpaintGenerator(model)

    def modes(
        frames: int, width: int, height: int, sampler: SamplerConfig
    ) -> Sequence[MemoryModeFit]:
        """What a clip takes: the most keyframes that are painted for one."""
        assert model.limits.steps is not None
        steps = sampler.steps or model.limits.steps.default
        count = min(max(frames, 1), InpaintOptions().keyframes)
        return [model.survey.fit(count, steps, sampler.guidance > 1, model.device)]

    about = f"{ABOUT} {model.survey.kind}, on {model.device.type}."
    limits = generator_limits(model.limits)
    return GeneratorChoice(
        "inpaint", LABEL, about, limits, make, "", modes, adds=ADDS, keyframes=about_how_many
    )


ADDS = "Paints the {share} of this path that no memory knows"
ABOUT = "Paints unseen areas at a few keyframes with an inpainting model and remembers them."


def about_how_many(scene: Scene, path: Trajectory) -> int:
    """Keyframes that would be painted for a path, judged by some of its cameras and the cloud."""
    guide = Guide(scene, some_of(path), "cloud")
    return len(cover(list(guide), limit=InpaintOptions().keyframes))


def wanted(settings: GeneratorSettings) -> str:
    """The painter's name, folder or hub id: as set, of the environment, of `model`, else Telea."""
    if settings.painter != "auto":
        return settings.painter
    if model_of_environment():
        return model_of_environment()
    if settings.model is not None and (Path(settings.model).expanduser() / INDEX).is_file():
        return str(settings.model)
    return DEFAULT


def _never() -> Generator:
    raise AssertionError("a choice that says why not is never made")
