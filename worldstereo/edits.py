"""Edits of a world that are not exploration: delete, up, scale, registration on or off.

Every function here is one step of the world: on any error the world is as it was, and every one
of them can be undone.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.errors import WorldStereoError
from worldstereo.generator import OnStep, ignore
from worldstereo.registration import Registration
from worldstereo.remember import forget, remember_given, remember_view
from worldstereo.scene import Clip, DepthKind, Scene, View
from worldstereo.world import Draft, World


def delete_points(world: World, selected: Bool[Tensor, "N"]) -> int:
    """Forget points of the cloud, and the remembered pixels they came from. Returns how many.

    Raises:
        ValueError: `selected` has another length than the cloud.
    """
    cloud = world.scene.cloud
    if selected.shape != (len(cloud),):
        raise ValueError(f"selected must have shape ({len(cloud)},), got {tuple(selected.shape)}.")
    if not bool(selected.any()):
        return 0  # nothing to undo later
    with world.step("delete points") as draft:
        gone = cloud.points[selected]
        removed = draft.geometry.prune(keep=~selected)
        reach = 2.5 * cloud.radii[selected].clamp_min(1e-3 * draft.scene.unit)
        draft.views[:] = [_without(view, gone, reach) for view in draft.views]
        draft.details["points_removed"] = removed
    return removed


def set_up(world: World, up: Float[Tensor, "3"]) -> None:
    """Say where the sky is; paths and the viewport follow.

    Raises:
        ValueError: `up` is not finite or has no length.
    """
    length = float(up.norm())
    if not 1e-9 < length < float("inf"):
        raise ValueError(f"up must be a finite direction with a length, got {up.tolist()}.")
    with world.step("set the up axis") as draft:
        draft.changes["up"] = up / length


def set_scale(world: World, metres_per_unit: float) -> None:
    """Say what one scene unit measures; measurements and exports follow, nothing moves.

    Raises:
        ValueError: the scale is not a positive finite number.
    """
    if not 0 < metres_per_unit < float("inf"):
        raise ValueError(f"metres_per_unit must be positive and finite, got {metres_per_unit}.")
    with world.step("set the scale") as draft:
        draft.changes["metres_per_unit"] = metres_per_unit


def set_registration(world: World, on: bool, *, on_step: OnStep = ignore) -> Scene:
    """Register the given views to each other, or put them back where they were given.

    The cloud is built again; generated views and clips move with the given ones around them.
    """
    with world.step("register views" if on else "use the given poses") as draft:
        given = [as_given(view) for view in draft.views if view.step == 0]
        made = [view for view in draft.views if view.step != 0]
        if len(given) < 2:
            raise WorldStereoError("Registration needs at least two given views.")
        if draft.scene.rough_depth:
            raise WorldStereoError("Registration needs measured depth; here it is a rough guess.")
        before, clips = draft.registration, list(draft.clips)
        points = draft.geometry.points[draft.geometry.sources < 0]  # the capture's own cloud
        forget(draft)
        remember_given(draft, given, world.generator, on, on_step, points)
        move = _mover(before, draft.registration)
        for view in made:
            remember_view(draft, replace(view, cameras=move(view.cameras)), world.generator)
        draft.clips[:] = [_moved(clip, move, draft) for clip in clips]
    return world.scene


def as_given(view: View) -> View:
    """A given view before intake: its own measured depth alone, at the pose it came with."""
    measured = view.kind == int(DepthKind.MEASURED)
    depth = torch.where(measured, view.depth, 0.0)
    return View.of(view.color, depth, view.given, frame=view.frame, name=view.name)


def _without(view: View, gone: Float[Tensor, "M 3"], reach: Float[Tensor, "M"]) -> View:
    """The view with the pixels forgotten whose surface lies within reach of a deleted point."""
    from scipy.spatial import KDTree

    mask = view.mask[0]
    if not bool(mask.any()):
        return view
    pixels = view.cameras.pixel_grid().reshape(view.height, view.width, 2)[mask]
    points = view.cameras.unproject(pixels, view.depth[0][mask])
    distance, nearest = KDTree(gone.numpy()).query(
        points.numpy(), distance_upper_bound=float(reach.max()), workers=2
    )
    near = torch.from_numpy(nearest).clamp_max(len(gone) - 1)
    hit = torch.from_numpy(distance) <= reach[near]
    if not bool(hit.any()):
        return view
    depth, kind = view.depth.clone(), view.kind.clone()
    rows, columns = mask.nonzero(as_tuple=True)
    depth[0, rows[hit], columns[hit]] = 0.0
    kind[0, rows[hit], columns[hit]] = int(DepthKind.UNKNOWN)
    confidence8 = torch.where(kind == int(DepthKind.UNKNOWN), 0, view.confidence8).to(torch.uint8)
    return replace(view, depth=depth, kind=kind, confidence8=confidence8)


def _mover(before: Registration | None, after: Registration | None) -> Callable[[Cameras], Cameras]:
    """Carries cameras of the old registration into the new one."""
    if after is None or before is None:
        return lambda cameras: cameras
    return lambda cameras: after.correct(cameras, before.revision)


def _moved(clip: Clip, move: Callable[[Cameras], Cameras], draft: Draft) -> Clip:
    path = replace(clip.trajectory, cameras=move(clip.trajectory.cameras))
    revision = draft.registration.revision if draft.registration else 0
    return replace(clip, trajectory=path, registration=revision)
