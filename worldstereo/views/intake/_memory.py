"""What intake holds in memory: many views lie on disk between the stages, a window of them is out.

The working form of a view takes 5 MB at 640x480, as much again while a stage runs; a building has
hundreds.
"""

from collections.abc import Iterator, Sequence

from worldstereo.scene import View
from worldstereo.views.fusion import Pose, ViewArrays

IN_MEMORY = 8_000_000
"""Pixels of all views above which they lie on disk between the stages."""
WINDOW = 16
"""Views between two looks at what may leave memory."""


def are_many(views: Sequence[View] | Sequence[Pose]) -> bool:
    """Whether views are too many to be held in memory with what each stage makes of them."""
    return sum(view.width * view.height for view in views) > IN_MEMORY


def windows(which: Sequence[int]) -> Iterator[Sequence[int]]:
    """The numbers in parts of `WINDOW`."""
    for first in range(0, len(which), WINDOW):
        yield which[first : first + WINDOW]


def put_away(made: Sequence[ViewArrays], read: Sequence[ViewArrays]) -> None:
    """What a stage made goes to disk, and what it read for that leaves memory."""
    for view in made:
        view.spill()
    for view in (*made, *read):
        view.let_go()
