"""What the published model attended to: a clip's request is kept, a row is computed from it again.

Nothing is stored of the model's attention. As long as the app runs, the last few clips keep what
they were made from; a row runs the sampler up to the step that is asked for.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from worldstereo.errors import OutOfMemory, WorldStereoError
from worldstereo.generators import Frame, GenerationRequest, Generator, Inspectable
from worldstereo.guide import Guide
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Clip, Scene

from ..inspector import clip_of
from .shared import Shared

if TYPE_CHECKING:
    from worldstereo.generators.diffusion.attention_inspection import AttentionRow

KEPT = 4  # clips: each holds the scene that it began with


class RequestRecorder:
    """A generator that passes everything on and remembers what it was asked last."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.limits = generator.limits
        self.new_memories, self.encode = generator.new_memories, generator.encode
        self.request: GenerationRequest | None = None

    def __call__(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        self.request = request
        return self.generator(request, on_step)


@dataclass(frozen=True, eq=False)
class ClipRecord:
    """What a clip was made from."""

    clip: Clip
    request: GenerationRequest
    generator: str
    mode: str
    layers: int
    steps: int


class Attention:
    """The clips of one session that can be looked into."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._kept: deque[ClipRecord] = deque(maxlen=KEPT)

    def keep(self, clip: Clip, made_by: RequestRecorder, generator: str, mode: str) -> None:
        """After a clip was made; does nothing where its generator has no attention to show."""
        model = made_by.generator
        layers = model.layers if isinstance(model, Inspectable) else 0
        request = made_by.request
        steps = made_by.limits.steps
        if not layers or request is None or steps is None:
            return
        if type(request.guide) is Guide:  # without the frames that it has computed
            guide = request.guide
            again = Guide(
                guide.scene,
                guide.trajectory,
                guide.kind,
                stereo=guide.stereo,
                geometry=guide.geometry,
            )
            request = replace(request, guide=again)
        count = request.sampler.steps or steps[2]
        self._kept.append(ClipRecord(clip, request, generator, mode, layers, count))

    def of(self, scene: Scene, view: int) -> ClipRecord:
        """What the frame behind a view was made from.

        Raises:
            WorldStereoError: no such view, it was given, or its clip was not made by the
                published model since the app was started.
        """
        if not 0 <= view < len(scene.views):
            raise WorldStereoError(f"View {view + 1} is gone; there are {len(scene.views)}.")
        clip = clip_of(scene, scene.views[view])
        if clip is None:
            raise WorldStereoError("A given view: no model made it. Choose a generated one.")
        found = next((asked for asked in self._kept if asked.clip is clip), None)
        if found is None:
            raise WorldStereoError(why_not(clip))
        return found

    def row(
        self,
        asked: ClipRecord,
        frame: int,
        pixel: tuple[float, float],
        layer: int,
        step: int,
        on_step: OnStep = ignore,
    ) -> "AttentionRow":
        """The row of the token under a pixel of a frame; on the worker's thread.

        Raises:
            WorldStereoError: layer, step or pixel is outside; the card is too small now.
        """
        model: Any = self._shared.generator(asked.generator, asked.mode, on_step)
        try:
            return model.inspect(
                asked.request, layer=layer, step=step, frame=frame, pixel=pixel, on_step=on_step
            )
        except OutOfMemory:
            self._shared.forget(asked.generator)
            raise
        except ValueError as error:
            raise WorldStereoError(str(error)) from error


def why_not(clip: Clip) -> str:
    """Why a clip's attention cannot be looked into, in one line."""
    if clip.generator == "worldstereo-camera":
        return "worldstereo-camera takes no references: there is no attention on them to look at."
    if clip.generator.startswith("worldstereo-"):
        return "Made before the app was started, or many clips ago: generate it again to look."
    return (
        f"Made by {clip.generator or 'another generator'}: only the published model has attention."
    )
