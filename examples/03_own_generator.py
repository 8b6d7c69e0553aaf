"""A generator of one's own: what is known as it is, what is unknown in one plain color.

After `register`, the command line and the page offer it beside the others.
"""

from collections.abc import Iterator

import torch

from worldstereo import Frame, GenerationRequest, Origin, WarpGenerator
from worldstereo.generators import GeneratorLimits
from worldstereo.generators.registry import GeneratorChoice, GeneratorSettings, register
from worldstereo.progress import OnStep, ignore


class Plain(WarpGenerator):
    """Inherits the memories and their features; paints its own frames."""

    limits = GeneratorLimits(name="plain", seconds_per_frame=0.3)

    def __call__(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        total = len(request.trajectory)
        magenta = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
        for t in range(total):
            on_step(t, total, f"View {t + 1} of {total}")  # may raise Cancelled
            known = request.guide[t]
            unknown = known.origin == int(Origin.INVENTED)
            color = torch.where(unknown, magenta, known.color)
            yield Frame(color, known.depth, known.origin, known.confidence, known.stereo_weight, ())


def choose(settings: GeneratorSettings) -> GeneratorChoice:
    return GeneratorChoice("plain", "Plain", "Shows unseen areas in magenta.", Plain.limits, Plain)


register("plain", choose)
