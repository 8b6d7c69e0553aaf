"""Edits of a world that are not exploration: delete, up, scale, registration on or off.

Every function here is one step of the world: on any error the world is as it was, and every one
of them can be undone.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.errors import WorldStereoError
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Clip, DepthKind, Scene, View
from worldstereo.views.intake import as_measured
from worldstereo.views.registration import Registration
from worldstereo.world._remember import (
    forget,
    remember_cloud,
    remember_given,
    remember_view,
    without_pixels,
)
from worldstereo.world._world import Draft, StepRecord, World


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
        draft.keypoints.forget_pixels(draft.views)
        original = draft.original
        if original is not None and original.cloud is not None:
            left = original.cloud.rows(~_near(original.cloud.points, gone, reach))
            draft.original = replace(original, cloud=left)
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
        given = _given_views(draft)
        made = [view for view in draft.views if view.step != 0]
        if len(given) < 2:
            raise WorldStereoError("Registration needs at least two given views.")
        if draft.scene.rough_depth:
            raise WorldStereoError("Registration needs measured depth; here it is a rough guess.")
        before, original, clips = draft.registration, draft.original, list(draft.clips)
        now = [view for view in draft.views if view.step == 0]
        deleted = [_deleted(view, raw) for view, raw in zip(now, given, strict=True)]
        homes = _homes(world.history, before)
        forget(draft)
        cloud = None if original is None else original.cloud
        if cloud is not None:
            remember_cloud(draft, cloud)
        remember_given(draft, given, world.generator, on, on_step, cloud, deleted)
        after = draft.registration
        for view in made:
            cameras = _carried(view, homes, before, after)
            remember_view(draft, replace(view, cameras=cameras), world.generator)
        draft.clips[:] = [_moved(clip, draft.views, before, after) for clip in clips]
    return world.scene


def moved(
    cameras: Cameras, revision: int, before: Registration | None, after: Registration | None
) -> Cameras:
    """Cameras of the world before `set_registration` in the one after it.

    Args:
        revision: the world they are in, 0 where the views were as given.
        before, after: what `world.registration` was and is.
    """
    if after is not None:
        return after.correct(cameras, min(revision, after.revision))
    if before is not None and revision > 0:
        return before.as_given(cameras)
    return cameras


def _given_views(draft: Draft) -> list[View]:
    """The given views before intake: their own depth alone, at the poses they came with."""
    views = [view for view in draft.views if view.step == 0]
    if draft.original is None:  # a world from a file keeps what intake made of it
        return [as_measured(view) for view in views]
    return [
        View.of(view.color, packed.depth(), view.given, frame=view.frame, name=view.name)
        for view, packed in zip(views, draft.original.depth, strict=True)
    ]


def _deleted(view: View, given: View) -> Bool[Tensor, "1 H W"]:
    """Pixels that a person deleted: intake leaves none unknown where it knows any."""
    unknown = view.kind == int(DepthKind.UNKNOWN)
    return unknown & bool(view.mask.any() or given.mask.any())


def _homes(history: Sequence[StepRecord], now: Registration | None) -> dict[int, int]:
    """The registration revision in which each step made its views."""
    return {
        record.step: int(record.details["registration"])
        for record in history
        if "registration" in record.details
    }


def _carried(
    view: View, homes: dict[int, int], before: Registration | None, after: Registration | None
) -> Cameras:
    """The camera of a generated view in the world after: from where it was made, so that going
    there and back ends at the same bits."""
    now = 0 if after is None else after.revision
    home = homes.get(view.step)
    if home is None:
        return moved(view.cameras, 0 if before is None else before.revision, before, after)
    if home == now:
        return view.given
    if now > home or before is not None:
        return moved(view.given, home, before, after)
    return view.cameras


def _without(view: View, gone: Float[Tensor, "M 3"], reach: Float[Tensor, "M"]) -> View:
    """The view with the pixels forgotten whose surface lies within reach of a deleted point."""
    mask = view.mask[0]
    if not bool(mask.any()):
        return view
    pixels = view.cameras.pixel_grid().reshape(view.height, view.width, 2)[mask]
    hit = torch.zeros_like(mask)
    hit[mask] = _near(view.cameras.unproject(pixels, view.depth[0][mask]), gone, reach)
    return without_pixels(view, hit[None])


def _near(
    points: Float[Tensor, "N 3"], gone: Float[Tensor, "M 3"], reach: Float[Tensor, "M"]
) -> Bool[Tensor, "N"]:
    """True for points within reach of a deleted one."""
    from scipy.spatial import KDTree

    distance, nearest = KDTree(gone.numpy()).query(
        points.numpy(), distance_upper_bound=float(reach.max()), workers=2
    )
    near = torch.from_numpy(nearest).clamp_max(len(gone) - 1)
    return torch.from_numpy(distance) <= reach[near]


def _moved(
    clip: Clip, views: Sequence[View], before: Registration | None, after: Registration | None
) -> Clip:
    """A clip whose path lies where its views now are."""
    own = {v.frame: v.cameras for v in views if v.step == clip.step and v.step > 0}
    cameras = clip.trajectory.cameras
    if sorted(own) == list(range(len(clip))):  # else its views are some keyframes only, or gone
        c2w = torch.stack([own[t].c2w for t in range(len(clip))])
        cameras = replace(cameras, c2w=c2w.to(cameras.c2w))
    else:
        cameras = moved(cameras, clip.registration, before, after)
    revision = 0 if after is None else after.revision
    path = replace(clip.trajectory, cameras=cameras, registration=revision)
    return replace(clip, trajectory=path, registration=revision)
