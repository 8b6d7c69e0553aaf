"""`StagedProgress`: one total for work of several stages, each of which counts in its own way.

Opening a capture reports (3 of 6), then (0 of 45), then (0 of 12): as many bars, were they shown as
they come. The stages and what each costs are known beforehand, so a person sees one bar.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from worldstereo.progress import OnStep
from worldstereo.scene import View
from worldstereo.views.intake import as_estimated

WHOLE = 1000  # steps of every course


@dataclass(frozen=True)
class ProgressStage:
    says: str
    """How its messages begin."""
    share: float
    """Of the time, in any unit."""
    counts: bool = True
    """False where its reports tell the stage's own number, not how far it is."""


LEARNED = ProgressStage("Completing depth by the depth model", 15)
ONE_BY_ONE = ProgressStage("Remembering view", 12)
# Shares as measured: five and six RGB-D views of 640 x 480; twelve photos near 960 x 640.
MEASURED = (
    ProgressStage("Reading depth", 3),
    ProgressStage("Preparing depth", 8),
    ProgressStage("Cleaning depth", 2, counts=False),
    ProgressStage("Registering views", 25),
    ProgressStage("Comparing depth", 7, counts=False),
    ProgressStage("Comparing exposure", 6, counts=False),
    ProgressStage("Completing depth", 5, counts=False),
    ProgressStage("Measuring depth from other pictures", 40),
    LEARNED,
    ProgressStage("Views are ready", 7, counts=False),
    ONE_BY_ONE,
)
PHOTOS = (
    ProgressStage("Reading depth", 3),
    ProgressStage("Preparing photos", 4),
    ProgressStage("Measuring depth from photos", 31),
    ProgressStage("Comparing depth between photos", 11),
    ProgressStage("Refining depth of photos", 30),
    ProgressStage("Confirming depth of photos", 8),
    ProgressStage("Comparing depth", 2, counts=False),
    ProgressStage("Comparing exposure", 2, counts=False),
    ProgressStage("Completing depth", 1, counts=False),
    LEARNED,
    ProgressStage("Views are ready", 5, counts=False),
    ONE_BY_ONE,
)

ADDED = (ProgressStage("Finding photo", 20), *PHOTOS[:-1], ProgressStage("Remembering photo", 12))


def stages_of(views: Sequence[View], *, register: bool = True) -> tuple[ProgressStage, ...]:
    """What given views will pass before they are remembered."""
    if not views or as_estimated(views) is not None:
        return (ONE_BY_ONE,)
    if len(views) > 1 and not any(bool(view.mask.any()) for view in views):
        return PHOTOS
    if register and len(views) > 1:
        return MEASURED
    return tuple(stage for stage in MEASURED if stage.says != "Registering views")


class StagedProgress:
    """An `OnStep` that passes reports on with one total; it never shrinks and never goes back.

    A stage that was entered is over when a later one begins. One that is left out gives its share
    to those that follow, so that nothing jumps. Other messages are told where the course is.
    """

    def __init__(self, on_step: OnStep, stages: Sequence[ProgressStage]) -> None:
        self._on_step, self._stages = on_step, stages
        self._at = -1
        self._begin, self._width, self._inside = 0.0, 0.0, 0.0

    def __call__(self, step: int, total: int, message: str) -> None:
        index = self._stage_of(message)
        if index > self._at:
            self._begin += self._width
            self._width = self._width_of(index)
            self._at, self._inside = index, 0.0
        if index == self._at >= 0 and self._stages[index].counts and total > 0:
            self._inside = max(self._inside, min(1.0, step / total))
        self._on_step(int(WHOLE * (self._begin + self._width * self._inside)), WHOLE, message)

    def _width_of(self, index: int) -> float:
        """Of the whole bar: what is left, by the shares; one step is never more than its share."""
        stage, rest = self._stages[index], sum(stage.share for stage in self._stages[index:])
        width = (1 - self._begin) * stage.share / rest
        whole = sum(stage.share for stage in self._stages)
        return width if stage.counts else min(width, stage.share / whole)

    def _stage_of(self, message: str) -> int:
        """The stage whose beginning is the longest that fits; -1 for none."""
        fits = [i for i, stage in enumerate(self._stages) if message.startswith(stage.says)]
        return max(fits, key=lambda i: len(self._stages[i].says), default=-1)
