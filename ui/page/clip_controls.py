"""The controls that a path and a generation share: generator, number of views, picture size, guide.

They stand on the Generate tab; Path reads them too, because a path is planned in the size and
length that the generator will be given.
"""

from typing import Any

import gradio as gr

from .catalogue import told, tr
from .core import Core, segmented
from .settings import GUIDES

FRAMES, MAX_FRAMES = 25, 97


class ClipControls:
    def __init__(self, core: Core) -> None:
        self.core = core

    def build_name(self) -> None:
        choices = self.core.sessions.generators
        usable = [key for key, choice in choices.items() if not choice.why_not]
        self.first = usable[0]
        offered = [(told(choice.label), key) for key, choice in choices.items()]
        self.name = self.core.register(segmented(offered, self.first, tr("Generator"), "generator"))

    def build_clip(self) -> None:
        limits = self.core.sessions.generators[self.first].limits
        self.frames = self.core.register(
            gr.Slider(
                limits.min_frames if limits else 1,
                min(limits.max_frames, MAX_FRAMES) if limits else MAX_FRAMES,
                FRAMES,
                step=limits.frame_step if limits else 1,
                label=tr("Views along the path"),
                elem_id="frames",
            )
        )
        sizes = [("320 × 240", "320x240"), ("640 × 480", "640x480")]
        self.size = self.core.register(
            segmented(sizes, "640x480", tr("Size, pixels"), "size", titled=True)
        )

    def build_guide(self) -> None:
        guides = [(tr(label), key) for key, label in GUIDES.items()]
        self.guide = self.core.register(
            segmented(guides, "fused", tr("Guide"), "guide", titled=True)
        )

    @property
    def inputs(self) -> list[Any]:
        """The last four values of `Settings.of`, in its order."""
        return [self.frames, self.size, self.name, self.guide]
