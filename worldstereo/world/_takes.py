"""Takes: clips that wait, outside both memories, until they are kept or discarded."""

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from worldstereo.generators import Frame
from worldstereo.guide import Guide
from worldstereo.memory.stereo.agreement import FrameAgreement
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Clip, Scene
from worldstereo.world._remember import remember_generated
from worldstereo.world._world import Draft, World

MAX_TAKES = 8
"""Takes a world holds; beyond it the oldest go."""


def takes(world: World) -> tuple[Clip, ...]:
    """Clips that were made with "manual" and are neither kept nor discarded, oldest first."""
    return tuple(clip for clip in world.scene.clips if clip.take)


def keep(world: World, take: Clip, *, on_step: OnStep = ignore) -> Scene:
    """Fold a take into both memories, as one step that can be undone.

    Raises:
        ValueError: it is not one of the world's takes.
    """
    index = _place_of(world, take)
    with world.step(f"keep {take.trajectory.name}") as draft:
        judge = Guide(draft.scene, take.trajectory)
        for t in _painted(world, take):
            on_step(t, len(take), f"Remembering view {t + 1} of {len(take)}")
            frame = Frame(
                take.color[t],
                take.depth[t],
                take.origin[t],
                take.confidence[t],
                take.stereo_weight[t],
                take.references[t] if take.references else (),
            )
            remember_generated(draft, frame, judge, t, world.generator, _said_of(take, t))
        draft.clips[index] = replace(take, take=False, step=draft.step)
        draft.details |= {
            "trajectory": take.trajectory.to_json(),
            "registration": draft.registration.revision if draft.registration else 0,
        }
    return world.scene


def discard(world: World, take: Clip) -> Scene:
    """Drop a take; the memories never knew it.

    Raises:
        ValueError: it is not one of the world's takes.
    """
    index = _place_of(world, take)
    with world.step(f"discard {take.trajectory.name}") as draft:
        del draft.clips[index]
    return world.scene


def compare(a: Clip, b: Clip) -> Float[Tensor, "T 1 H W"]:
    """Mean absolute difference in colour of two takes of one path, pixel by pixel.

    Raises:
        ValueError: they have another number of frames or another size.
    """
    if a.color_u8.shape != b.color_u8.shape:
        raise ValueError(
            f"takes must have one shape, got {tuple(a.color_u8.shape)} and "
            f"{tuple(b.color_u8.shape)}."
        )
    return (a.color - b.color).abs().mean(dim=1, keepdim=True)


def _place_of(world: World, take: Clip) -> int:
    for index, clip in enumerate(world.scene.clips):
        if clip is take and clip.take:
            return index
    raise ValueError("take must be one of takes(world); it was kept or discarded before.")


def make_room(draft: Draft) -> None:
    """Drops the oldest takes beyond the limit."""
    held = [i for i, clip in enumerate(draft.clips) if clip.take]
    for i in reversed(held[:-MAX_TAKES] if len(held) > MAX_TAKES else []):
        del draft.clips[i]


def _painted(world: World, take: Clip) -> Sequence[int]:
    """The frames that add something: a take's keyframes where it was invented at some, else all."""
    made = (record for record in world.history if record.step == take.step)
    found = next((record.details.get("keyframes") for record in made), None)
    if not isinstance(found, list):
        return range(len(take))
    return [int(t) for t in found if 0 <= int(t) < len(take)]


def _said_of(clip: Clip, t: int) -> FrameAgreement | None:
    """What was found when a take's frame was made; its map is all that folding needs."""
    if clip.agreement_map is None or t not in clip.agreement_frames:
        return None
    return FrameAgreement(0, 0, 0.0, clip.agreement_map[clip.agreement_frames.index(t)])
