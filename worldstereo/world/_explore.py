"""The main job, top to bottom: `start()` a world from a capture, `explore()` it along a path.

    world = World(WarpGenerator())
    start(world, read("livingroom1/"))
    clip = explore(world, Trajectory.preset("orbit", world.scene.views[0].cameras, distance=2.0))

Every function here is one step of the world: on any error the world is as it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo.cameras import Cameras, look_at
from worldstereo.errors import InputRefused, WorldStereoError
from worldstereo.generators import (
    EmptyRegion,
    Frame,
    GenerationRequest,
    Generator,
    Inventor,
    OnState,
    SamplerConfig,
)
from worldstereo.guide import Guide, splat_cloud
from worldstereo.memory.geometric import UPDATE_FREQUENCIES
from worldstereo.memory.stereo.agreement import FrameAgreement, Witnesses, agreement
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Capture, Clip, Origin, Scene, View
from worldstereo.trajectory import Trajectory
from worldstereo.views.intake import keyframes
from worldstereo.world._invent import (
    empty_regions,
    fold_inventions,
    forget_inventions,
    left_empty,
    packed,
    scene_of,
    visited,
)
from worldstereo.world._remember import forget, remember_cloud, remember_generated, remember_given
from worldstereo.world._takes import make_room
from worldstereo.world._world import Draft, World

CHECKED = 8
"""Frames of a clip compared with the keypoint level, where the generator is not a learned one."""
OnFrame = Callable[[int, Frame], None]
"""`(index, frame)`: called as each frame is made, in the worker's thread."""


def ignore_frame(index: int, frame: Frame) -> None:
    """An `OnFrame` that does nothing."""


def start(
    world: World,
    capture: Capture,
    *,
    register: bool = True,
    relocalize: bool = True,
    write_geometry: bool = True,
    write_stereo: bool = True,
    on_step: OnStep = ignore,
) -> Scene:
    """Fill an empty or used world with a capture; what it held before can be undone back to.

    Views are cleaned, registered to each other and completed (`intake`); the cloud of the global
    memory is built from their depth, the stereo memory's features from their pixels. A memory that
    is not to be written (`write_geometry`, `write_stereo`) stays empty. Views whose given poses
    agree with nobody are found by their keypoints, if the others hold them (`relocalize`).

    Raises:
        InputRefused: the capture holds neither a view nor a point.
        Cancelled: `on_step` raised it.
    """
    if not capture.views and capture.cloud is None:
        raise InputRefused(f"{capture.name}: holds no picture and no point. Nothing was changed.")
    with world.step(f"open {capture.name}") as draft:
        views, left_out = _keyframes(capture.views, on_step)
        draft.step = 0
        draft.write_geometry, draft.write_stereo = write_geometry, write_stereo
        forget(draft)
        draft.changes |= {
            "name": capture.name,
            "notices": (*capture.notices, *left_out),
            "rough_depth": capture.rough_depth,
            "metres_per_unit": capture.metres_per_unit,
            "origin": capture.origin,
        }
        if capture.cloud is not None:
            remember_cloud(draft, capture.cloud)
        if views:
            remember_given(
                draft,
                views,
                world.generator,
                register,
                on_step,
                capture.cloud,
                relocalize=relocalize,
            )
        if capture.up is not None:
            draft.changes["up"] = capture.up
        elif capture.views:
            draft.changes["up"] = sky_of(capture.views)
        draft.details |= {"capture": capture.name, "kind": capture.kind}
    return world.scene


def _keyframes(
    views: tuple[View, ...], on_step: OnStep
) -> tuple[tuple[View, ...], tuple[str, ...]]:
    """The views that carry what all of them show, and a line about the others."""
    kept = keyframes(
        views, on_view=lambda i: on_step(i, len(views), f"Choosing keyframes of {len(views)} views")
    )
    if len(kept) == len(views):
        return views, ()
    line = f"{len(views)} views: {len(kept)} keyframes are kept; the others show nothing more."
    return tuple(views[i] for i in kept), (line,)


def explore(
    world: World,
    trajectory: Trajectory,
    *,
    seed: int = 0,
    prompt: str = "",
    negative_prompt: str = "",
    guide: str | Guide = "fused",
    sampler: SamplerConfig | None = None,
    generator: Generator | None = None,
    on_step: OnStep = ignore,
    update: str | None = None,
    on_frame: OnFrame = ignore_frame,
    on_state: OnState | None = None,
    write_geometry: bool = True,
    write_stereo: bool = True,
    again: EmptyRegion | None = None,
    empty: EmptyRegion | None = None,
    keyframes: int | None = None,
) -> Clip:
    """Generate the views of a path and fold what was unseen into both memories.

    `world.update_frequency` decides when: "per_frame" before the next frame is asked for,
    "per_step" after the clip; "manual" makes a take, which waits for `keep` or `discard`. Frames
    are compared with the keypoint level (`Clip.agreement`), and cells that contradict it add
    nothing.

    Args:
        trajectory: in the world's (registered) frame; its cameras' size is the frames' size.
        guide: its kind, or the very guide that was previewed.
        generator: another one than the world's own, if the memories fit it.
        on_state: called after each denoising step by generators that have such steps.
        write_geometry, write_stereo: False leaves that memory as it is.
        update: another frequency than the world's own for this clip.
        keyframes: most cameras that a generator which invents may paint.
        again: a region (`region_of`) whose inventions are forgotten first, to be painted again.
        empty: a region whose inventions are forgotten, and which stays empty from now on.

    Raises:
        WorldStereoError: the world is empty.
        ValueError: the generator cannot make such a path, a region holds no invention, or a take
            is asked for with a region to stay empty; the text says which.
        WorldBusy, Cancelled: another step runs; `on_step` raised it.
    """
    generator = generator or world.generator
    generator.limits.check(trajectory)
    update = update or world.update_frequency
    if update not in UPDATE_FREQUENCIES:
        raise ValueError(f"update must be one of {', '.join(UPDATE_FREQUENCIES)}, got {update!r}.")
    if update == "manual" and empty is not None:
        raise ValueError("a region cannot be left empty by a take, which is not remembered.")
    scene = world.scene
    if not scene.views and len(scene.cloud) == 0:
        raise WorldStereoError("The world is empty. Open an example or a capture first.")
    with world.step(f"explore {trajectory.name}") as draft:
        draft.write_geometry, draft.write_stereo = write_geometry, write_stereo
        scene = draft.scene
        known = _Held(draft) if update == "manual" else None
        for region in (again, empty):
            if region is not None:
                forget_inventions(draft, region)
                scene, guide = scene_of(draft), guide.kind if isinstance(guide, Guide) else guide
        regions = empty_regions(world.history)
        if empty is not None:
            regions = (*regions, empty)
            draft.details["empty"] = packed(empty)
        if not isinstance(guide, Guide):
            guide = Guide(scene, trajectory, guide)
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
            on_state=on_state,
            empty=regions,
            keyframes=keyframes,
        )
        judge = _judge(guide, scene, trajectory)
        check = _Check(draft, generator, trajectory)
        frames: list[Frame] = []
        if isinstance(generator, Inventor):
            if again is None and empty is None and visited(world.history, trajectory):
                request = replace(request, keyframes=0)
            request = fold_inventions(draft, scene, generator, request, on_step)
            made, update_frames = generator.frames(request, on_step), ""
        else:
            made, update_frames = generator(request, on_step), update
        for frame in made:
            if regions and not isinstance(generator, Inventor):
                frame = left_empty(frame, trajectory.cameras[len(frames)], regions)
            said = check(frame, len(frames))
            if update_frames == "per_frame":
                remember_generated(draft, frame, judge, len(frames), generator, said)
            on_frame(len(frames), frame)
            frames.append(frame)
        if update_frames == "per_step":
            for t, frame in enumerate(frames):
                on_step(t, len(frames), f"Remembering view {t + 1} of {len(frames)}")
                remember_generated(draft, frame, judge, t, generator, check.said.get(t))
        clip = _clip(frames, request, generator, draft, check, update == "manual")
        draft.clips.append(clip)
        draft.details |= {
            "trajectory": trajectory.to_json(),
            "seed": seed,
            "prompt": prompt,
            "generator": generator.limits.name,
            "guide": guide.kind,
            "registration": clip.registration,
            "update_frequency": update,
            **({"take": True} if update == "manual" else {}),
            **({"again": True} if again is not None else {}),
        }
        if update == "manual":
            assert known is not None
            known.restore()  # what was painted for a take is not remembered either
            make_room(draft)
    return clip


class _Held:
    """The memories as a step found them, for a take: its inventions stay in its pictures."""

    def __init__(self, draft: Draft) -> None:
        self.draft, self.views = draft, list(draft.views)
        self.geometry, self.stereo = draft.geometry.snapshot(), draft.stereo.snapshot()
        self.keypoints = draft.keypoints.snapshot()

    def restore(self) -> None:
        self.draft.geometry.restore(self.geometry)
        self.draft.stereo.restore(self.stereo)
        self.draft.keypoints.restore(self.keypoints)
        self.draft.views[:] = self.views
        self.draft.points_added = self.draft.points_merged = 0


class _Check:
    """Compares frames of a clip with the keypoint level: all of a learned generator's, eight of a
    generator's that copies what the memories show."""

    def __init__(self, draft: Draft, generator: Generator, trajectory: Trajectory) -> None:
        self.memory, self.views = draft.keypoints, tuple(draft.views)
        self.cameras, self.step = trajectory.cameras, draft.step
        learned = generator.limits.steps is not None and not isinstance(generator, Inventor)
        self.every = 1 if learned else max(1, -(-len(trajectory) // CHECKED))
        self.said: dict[int, FrameAgreement] = {}
        self.witnesses = Witnesses(self.views)

    def __call__(self, frame: Frame, t: int) -> FrameAgreement | None:
        if t % self.every or self.memory.size == 0:
            return None
        view = View.of(frame.color, torch.zeros_like(frame.depth), self.cameras[t], step=self.step)
        hidden = frame.origin == int(Origin.CAMERA_FIXED)
        self.said[t] = agreement(
            self.memory,
            frame.color,
            frame.depth,
            view,
            self.views,
            hidden=hidden,
            witnesses=self.witnesses,
        )
        return self.said[t]

    def fields(self) -> dict[str, Any]:
        """The fields of a clip."""
        expected = sum(said.expected for said in self.said.values())
        if expected == 0:
            return {}
        answered = sum(said.answered for said in self.said.values())
        drift = [said.drift_px for said in self.said.values() if said.answered]
        return {
            "agreement": answered / expected,
            "drift_px": float(torch.tensor(drift).median()) if drift else 0.0,
            "agreement_frames": tuple(self.said),
            "agreement_map": torch.stack([said.map for said in self.said.values()]),
        }


def _judge(guide: Guide, scene: Scene, trajectory: Trajectory) -> Guide:
    """The guide that says what both memories show, whatever a generator was given or claims."""
    whole = type(guide) is Guide and guide.kind == "fused" and guide.stereo and guide.geometry
    if not whole or guide.scene is not scene or len(guide) != len(trajectory):
        return Guide(scene, trajectory)
    a, b = guide.trajectory.cameras, trajectory.cameras
    same = (a.width, a.height) == (b.width, b.height)
    same = same and torch.equal(a.c2w, b.c2w) and torch.equal(a.K, b.K)
    return guide if same else Guide(scene, trajectory)


def _clip(
    frames: list[Frame],
    request: GenerationRequest,
    generator: Generator,
    draft: Draft,
    check: "_Check",
    take: bool,
) -> Clip:
    clip = Clip.of(
        [frame.color for frame in frames],
        [frame.depth for frame in frames],
        [frame.origin for frame in frames],
        [frame.confidence for frame in frames],
        request.trajectory,
        stereo_weight=[frame.stereo_weight for frame in frames],
        seed=request.seed,
        prompt=request.prompt,
        step=draft.step,
        generator=generator.limits.name,
        registration=draft.registration.revision if draft.registration else 0,
        references=tuple(frame.references for frame in frames),
        take=take,
        **check.fields(),
    )
    return clip.spilled()


def sky_of(views: Sequence[View]) -> Float[Tensor, "3"]:
    """Up as the mean of the cameras' own up: people hold cameras upright more often than not."""
    up = -torch.stack([view.cameras.c2w[:3, 1] for view in views]).mean(dim=0)
    return up / up.norm() if float(up.norm()) > 0.1 else torch.tensor([0.0, -1.0, 0.0])


def default_view(scene: Scene) -> Cameras:
    """Where a first path starts: the middle given view, or a camera that sees all points."""
    given = [view for view in scene.views if view.step == 0] or list(scene.views)
    if given:
        return given[len(given) // 2].cameras
    points = scene.cloud.points
    if len(points) == 0:
        raise WorldStereoError("The world is empty. Open an example or a capture first.")
    # The middle four fifths: a few points of sky, seen through a window, must not hide the room.
    low, high = (
        torch.quantile(points[:: max(1, len(points) // 100_000)], q, dim=0) for q in (0.1, 0.9)
    )
    centre, reach = (low + high) / 2, 1.2 * float((high - low).norm())
    side = torch.tensor([0.0, 0.0, 1.0])
    if float(torch.linalg.cross(side, scene.up).norm()) < 0.1:
        side = torch.tensor([1.0, 0.0, 0.0])
    across = torch.linalg.cross(torch.linalg.cross(scene.up, side), scene.up)
    across = across / across.norm()
    K = torch.tensor([[554.0, 0.0, 320.0], [0.0, 554.0, 240.0], [0.0, 0.0, 1.0]])
    eye = centre + reach * (across + 0.35 * scene.up)
    return Cameras(K, look_at(eye, centre, scene.up), 640, 480)


def pivot_distance(scene: Scene, start: Cameras) -> float:
    """How far in front of a camera the surface is that a path should turn about, scene units."""
    depth = splat_cloud(scene, start.scaled(64, 48)).depth
    h, w = depth.shape[-2:]
    centre = depth[:, h // 4 : h - h // 4, w // 4 : w - w // 4]
    seen = centre[centre > 0]
    return float(seen.median()) if len(seen) > 0 else scene.unit
