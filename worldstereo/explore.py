"""The main job, top to bottom: `start()` a world from a capture, `explore()` it along a path.

    world = World(WarpGenerator())
    start(world, read("livingroom1/"))
    clip = explore(world, Trajectory.preset("orbit", world.scene.views[0].cameras, distance=2.0))

Every function here is one step of the world: on any error the world is as it was.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.control import Guide, GuideKind
from worldstereo.errors import InputRefused, WorldStereoError
from worldstereo.generator import (
    Frame,
    GenerationRequest,
    Generator,
    OnStep,
    SamplerConfig,
    ignore,
)
from worldstereo.intake import cloud_from, enter, generated
from worldstereo.scene import Capture, Clip, DepthKind, Scene, View
from worldstereo.trajectory import Trajectory
from worldstereo.world import Draft, World

OnFrame = Callable[[int, Frame], None]
"""`(index, frame)`: called as each frame is made, in the worker's thread."""


def ignore_frame(index: int, frame: Frame) -> None:
    """An `OnFrame` that does nothing."""


def start(
    world: World, capture: Capture, *, register: bool = True, on_step: OnStep = ignore
) -> Scene:
    """Fill an empty or used world with a capture; what it held before can be undone back to.

    Views are cleaned, registered to each other and completed (`intake`); the cloud of the global
    memory is built from their depth, the stereo memory's features from their pixels.

    Raises:
        InputRefused: the capture holds neither a view nor a point.
        Cancelled: `on_step` raised it.
    """
    if not capture.views and capture.cloud is None:
        raise InputRefused(f"{capture.name}: holds no picture and no point. Nothing was changed.")
    with world.step(f"open {capture.name}") as draft:
        draft.step = 0
        _forget(draft)
        draft.changes |= {
            "name": capture.name,
            "notices": capture.notices,
            "rough_depth": capture.rough_depth,
        }
        if capture.cloud is not None:
            _remember_cloud(draft, capture)
        if capture.views:
            _remember_given(draft, capture.views, world.generator, register, on_step)
        if capture.up is not None:
            draft.changes["up"] = capture.up
        elif capture.views:
            draft.changes["up"] = sky_of(capture.views)
        draft.details |= {"capture": capture.name, "kind": capture.kind}
    return world.scene


def explore(
    world: World,
    trajectory: Trajectory,
    *,
    seed: int = 0,
    prompt: str = "",
    negative_prompt: str = "",
    guide: GuideKind | Guide = "fused",
    sampler: SamplerConfig | None = None,
    generator: Generator | None = None,
    on_step: OnStep = ignore,
    on_frame: OnFrame = ignore_frame,
) -> Clip:
    """Generate the views of a path and fold what nobody had seen into both memories.

    Args:
        trajectory: in the world's (registered) frame; its cameras' size is the frames' size.
        guide: its kind, or the very guide that was previewed.
        generator: another one than the world's own, if the memories fit it.

    Raises:
        WorldStereoError: the world is empty.
        ValueError: the generator cannot make such a path; the text says which it can.
        WorldBusy, Cancelled: another step runs; `on_step` raised it.
    """
    generator = generator or world.generator
    generator.limits.check(trajectory)
    scene = world.scene
    if not scene.views and len(scene.cloud) == 0:
        raise WorldStereoError("The world is empty. Open an example or a capture first.")
    with world.step(f"explore {trajectory.name}") as draft:
        if not isinstance(guide, Guide):
            guide = Guide(draft.scene, trajectory, guide, seed=seed)
        request = GenerationRequest(
            start=trajectory.cameras[0],
            trajectory=trajectory,
            guide=guide,
            geometry=draft.geometry,
            stereo=draft.stereo,
            views=tuple(draft.views),
            unit=scene.unit,
            step=draft.step,
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            sampler=sampler or SamplerConfig(),
        )
        frames: list[Frame] = []
        for frame in generator(request, on_step):
            _remember_generated(
                draft, frame, trajectory.cameras[len(frames)], len(frames), generator
            )
            on_frame(len(frames), frame)
            frames.append(frame)
        clip = _clip(frames, request, generator, draft)
        draft.clips.append(clip)
        draft.details |= {
            "trajectory": trajectory.to_json(),
            "seed": seed,
            "prompt": prompt,
            "generator": generator.limits.name,
            "guide": guide.kind,
        }
    return clip


def delete_points(world: World, selected: Bool[Tensor, "N"]) -> int:
    """Forget points of the cloud, and the remembered pixels they came from. Returns how many.

    Raises:
        ValueError: `selected` has another length than the cloud.
    """
    cloud = world.scene.cloud
    if selected.shape != (len(cloud),):
        raise ValueError(f"selected must have shape ({len(cloud)},), got {tuple(selected.shape)}.")
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
        if not given:
            raise WorldStereoError("This world has no given views to register.")
        before, clips = draft.registration, list(draft.clips)
        _forget(draft)
        _remember_given(draft, given, world.generator, on, on_step)
        move = _mover(before, draft.registration)
        for view in made:
            _remember_view(draft, replace(view, cameras=move(view.cameras)), world.generator)
        draft.clips[:] = [_moved(clip, move, draft) for clip in clips]
    return world.scene


# ---- what goes into the memories ---------------------------------------------------------------


def _forget(draft: Draft) -> None:
    draft.views.clear()
    draft.clips.clear()
    draft.registration = None
    draft.geometry.initialize(torch.zeros(0, 3))
    draft.stereo.clear()


def _remember_cloud(draft: Draft, capture: Capture) -> None:
    cloud = capture.cloud
    assert cloud is not None
    draft.geometry.initialize(
        cloud.points,
        colors=cloud.colors,
        normals=cloud.normals,
        radii=cloud.radii,
        confidence=cloud.confidence,
        source=-1,
    )
    draft.points_added = draft.geometry.num_points
    centre = cloud.points.median(dim=0).values
    draft.changes["unit"] = max(float((cloud.points - centre).norm(dim=1).median()), 1e-6)


def _remember_given(
    draft: Draft,
    views: "tuple[View, ...] | list[View]",
    generator: Generator,
    register: bool,
    on_step: OnStep,
) -> None:
    entered = enter(views, register=register, on_step=on_step)
    draft.registration = entered.registration
    draft.changes |= {"unit": entered.unit, "rig": entered.rig}
    notices = draft.changes.get("notices", draft.scene.notices)
    draft.changes["notices"] = tuple(dict.fromkeys((*notices, *entered.notices)))
    for index, view in enumerate(entered.views):
        on_step(index, len(entered.views), f"Remembering view {index + 1} of {len(entered.views)}")
        _remember_view(draft, view, generator)


def _remember_generated(
    draft: Draft, frame: Frame, camera: Cameras, index: int, generator: Generator
) -> None:
    view = generated(
        frame.color,
        frame.depth,
        frame.origin,
        frame.confidence,
        camera,
        step=draft.step,
        frame=index,
    )
    _remember_view(draft, view, generator)


def _remember_view(draft: Draft, view: View, generator: Generator) -> None:
    """One view into both memories: its points into the cloud, its patches into the feature bank."""
    draft.views.append(view)
    number = len(draft.views) - 1
    cloud = cloud_from(view)
    if len(cloud.points) > 0:
        result = draft.geometry.update(
            cloud.points,
            view.cameras.c2w,
            colors=cloud.colors,
            confidence=cloud.confidence,
            normals=cloud.normals,
            radii=cloud.radii,
            source=number,
            merge_threshold=cloud_spacing(view),
        )
        draft.points_added += result.num_added
        draft.points_merged += result.num_merged
    features, points, confidence, pixels = entries_of(view, generator)
    if len(features) > 0:
        draft.stereo.add_to_memory(
            features, points, confidence, metadata={"frame": number, "pixel": pixels}
        )


def cloud_spacing(view: View) -> float:
    """Merge distance for a view's points: half a pixel's width on its median surface."""
    depth = view.depth[view.depth > 0]
    if len(depth) == 0:
        return 0.0
    return 0.5 * float(depth.median()) / float(view.cameras.K[0, 0])


def entries_of(view: View, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Feature bank entries of a view, one per cell of the generator's feature grid.

    Returns:
        features (N, D), correspondences (N, 8, 3), their confidence (N, 8), pixel (N, 2): the 3D
        points of eight pixels spread over the cell; a pixel without depth has confidence 0.
    """
    features = generator.encode(view.color[None])[0]
    h, w = features.shape[-2:]
    height, width = view.height, view.width
    centre = view.cameras.pixel_grid(h, w)
    step = torch.tensor([width / w, height / h])
    spread = (
        torch.tensor([[0, 0], [-1, -1], [1, -1], [-1, 1], [1, 1], [-1, 0], [1, 0], [0, 1]]) * 0.35
    )
    pixels = centre[:, None] + spread * step  # (N, 8, 2)
    u = pixels[..., 0].floor().long().clamp(0, width - 1)
    v = pixels[..., 1].floor().long().clamp(0, height - 1)
    depth, confidence = view.depth[0][v, u], view.confidence[0][v, u]
    points = view.cameras.unproject(pixels.reshape(-1, 2), depth.reshape(-1)).reshape(*u.shape, 3)
    known = depth > 0
    some = known.any(dim=1)
    # A pixel without depth repeats one that has it, with confidence 0: finite, and never used.
    first = known.float().argmax(dim=1)
    points = torch.where(
        known[..., None], points, points[torch.arange(len(points)), first][:, None]
    )
    confidence = torch.where(known, confidence, 0.0)
    return features.flatten(1).T[some], points[some], confidence[some], centre[some]


# ---- helpers -----------------------------------------------------------------------------------


def _clip(
    frames: list[Frame], request: GenerationRequest, generator: Generator, draft: Draft
) -> Clip:
    stacked = (torch.stack([getattr(f, name) for f in frames]) for name in Frame._fields[:5])
    color, depth, origin, confidence, stereo_weight = stacked
    return Clip.of(
        color,
        depth,
        origin,
        confidence,
        request.trajectory,
        stereo_weight=stereo_weight,
        seed=request.seed,
        prompt=request.prompt,
        step=draft.step,
        generator=generator.limits.name,
        registration=draft.registration.revision if draft.registration else 0,
        references=tuple(frame.references for frame in frames),
    )


def as_given(view: View) -> View:
    """A given view before intake: its own measured depth alone, at the pose it came with."""
    measured = view.kind == int(DepthKind.MEASURED)
    depth = torch.where(measured, view.depth, 0.0)
    return View.of(view.color, depth, view.given, frame=view.frame, name=view.name)


def sky_of(views: "tuple[View, ...] | list[View]") -> Float[Tensor, "3"]:
    """Up as the mean of the cameras' own up: people hold cameras upright more often than not."""
    up = -torch.stack([view.cameras.c2w[:3, 1] for view in views]).mean(dim=0)
    return up / up.norm() if float(up.norm()) > 0.1 else torch.tensor([0.0, -1.0, 0.0])


def _without(view: View, gone: Float[Tensor, "M 3"], reach: Float[Tensor, "M"]) -> View:
    """The view with the pixels forgotten whose surface lies within reach of a deleted point."""
    from scipy.spatial import cKDTree

    mask = view.mask[0]
    if not bool(mask.any()):
        return view
    pixels = view.cameras.pixel_grid().reshape(view.height, view.width, 2)[mask]
    points = view.cameras.unproject(pixels, view.depth[0][mask])
    distance, nearest = cKDTree(gone.numpy()).query(
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


def _mover(before: Any, after: Any) -> Callable[[Cameras], Cameras]:
    """Carries cameras of the old registration into the new one."""
    if after is None or before is None:
        return lambda cameras: cameras
    return lambda cameras: after.correct(cameras, before.revision)


def _moved(clip: Clip, move: Callable[[Cameras], Cameras], draft: Draft) -> Clip:
    path = replace(clip.trajectory, cameras=move(clip.trajectory.cameras))
    revision = draft.registration.revision if draft.registration else 0
    return replace(clip, trajectory=path, registration=revision)
