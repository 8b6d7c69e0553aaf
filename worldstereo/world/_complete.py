"""Complete a place: step by step toward the unknown that borders on what is known.

Each step looks for the camera that would show most such unknown, goes there from the nearest view,
and lets the generator invent what is missing. It ends when nothing is missing, or with the budget.
"""

import math

import torch

from worldstereo.errors import WorldStereoError
from worldstereo.generators import Generator, SamplerConfig
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Clip, Scene
from worldstereo.world._coverage import (
    CONTEXT,
    SPACING,
    NextView,
    next_best_views,
    propose_path,
)
from worldstereo.world._explore import explore
from worldstereo.world._world import World

FRAMES = 3
"""Frames of the path of one step: it is there to be seen; one keyframe paints."""
MIN_UNKNOWN = 0.02
"""Unknown at the edge of the known, as a share of a picture, below which a place is complete."""
SEEDS = 1009
"""Apart from each other, so that two keyframes do not invent alike."""


def completion_budget(scene: Scene) -> int:
    """Keyframes that a full turn would take: the directions that no given view shows, as pictures.

    An estimate, shown before `complete` begins.

    Raises:
        WorldStereoError: the world holds no view.
    """
    given = [view for view in scene.views if view.step == 0] or list(scene.views)
    if not given:
        raise WorldStereoError("This world holds no view to start from.")
    up = scene.up / scene.up.norm().clamp_min(1e-9)
    east = torch.linalg.cross(up, given[0].cameras.forward)
    north = torch.linalg.cross(east, up)
    seen = torch.zeros(360, dtype=torch.bool)
    field = 0.0
    for view in given:
        forward = view.cameras.forward
        heading = math.degrees(math.atan2(float(forward @ east), float(forward @ north)))
        field = math.degrees(float(view.cameras.fov[0]))
        around = (torch.arange(360) - heading + 180) % 360 - 180
        seen |= around.abs() <= field / 2
    missing = int((~seen).sum())
    # What a keyframe turns on by: candidates that still show enough that is known.
    turn = SPACING * max(1, int((1 - CONTEXT) * field / SPACING))
    return math.ceil(missing / turn)


def complete(
    world: World,
    budget: int,
    *,
    generator: Generator | None = None,
    to: NextView | None = None,
    size: tuple[int, int] = (640, 480),
    seed: int = 0,
    prompt: str = "",
    negative_prompt: str = "",
    sampler: SamplerConfig | None = None,
    on_step: OnStep = ignore,
) -> tuple[Clip, ...]:
    """Invent what surrounds the known, keyframe by keyframe; each is a step that can be undone.

    Args:
        budget: most keyframes; `completion_budget` says how many a full turn takes.
        to: where to begin; else where coverage says that most unknown borders on the known.
        size: of the frames, pixels.

    Returns:
        One clip for each step. Steps that were finished before an error or `Cancelled` stay.

    Raises:
        ValueError: the budget is below 1.
        WorldStereoError: the world holds no view, or a generator failed.
    """
    if budget < 1:
        raise ValueError(f"budget must be at least 1 keyframe, got {budget}.")
    clips: list[Clip] = []
    left = budget
    while left > 0:
        done = budget - left

        def report(step: int, total: int, message: str, done: int = done) -> None:
            part = step / total if total > 0 else 0.0
            on_step(round(100 * (done + part)), 100 * budget, f"{done + 1} of {budget}: {message}")

        goals = (
            (to,) if to is not None else next_best_views(world.scene, 1, size=size, on_step=report)
        )
        to = None
        if not goals or goals[0].gain < MIN_UNKNOWN:
            break
        path = propose_path(world.scene, frames=FRAMES, size=size, to=goals[0])
        clip = explore(
            world,
            path,
            seed=seed + SEEDS * done,
            prompt=prompt,
            negative_prompt=negative_prompt,
            sampler=sampler,
            generator=generator,
            on_step=report,
            keyframes=1,
        )
        clips.append(clip)
        painted = world.history[-1].details.get("keyframes", [0])
        if not painted:
            break  # what is missing is not worth a keyframe: it would be found again and again
        left -= len(painted)
    on_step(100 * budget, 100 * budget, f"{budget - left} keyframes painted")
    return tuple(clips)
