"""`generate_video` and `generate_multi_view`: pictures in, films out, through one world.

Everything is checked before anything long begins. A call is `start` (unless the memories are kept)
and `explore` on the model's world; a call that fails is undone, and files appear whole or not.
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.depth import align, best_estimator
from worldstereo.errors import ExportError
from worldstereo.generators import Frame, Generator, OnState, SamplerConfig
from worldstereo.guide import Guide
from worldstereo.inputs import LOCAL, panorama
from worldstereo.model import _arguments as arguments
from worldstereo.render import render_points
from worldstereo.scene import (
    KIND_CONFIDENCE,
    Capture,
    Clip,
    DepthKind,
    PointCloud,
    Scene,
    View,
    to_bytes,
)
from worldstereo.trajectory import CameraTrajectory, Trajectory
from worldstereo.world import World, explore, remember_view, start

log = logging.getLogger(__name__)

OUTPUTS = ("tensor", "numpy", "pil", "video")
Progress = Callable[[int, int, Tensor], None]
"""`(step, total_steps, latent)`, steps counted from 1."""


@dataclass(frozen=True)
class Plan:
    """A checked call: nothing in it can be refused any more."""

    world: World
    generator: Generator
    capture: Capture | None
    """What the world starts from; None continues the memories."""
    trajectory: Trajectory
    sampler: SamplerConfig
    seed: int
    geometry: bool
    stereo: bool
    prompt: str
    negative_prompt: str


def generate_video(
    model: Any,
    condition_image: Any,
    camera_trajectory: Any,
    num_frames: int | None = 16,
    height: int = 512,
    width: int = 512,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    point_cloud: Any = None,
    use_geometric_memory: bool = True,
    use_spatial_memory: bool = True,
    seed: int | None = None,
    output_format: str = "tensor",
    save_path: str | Path | None = None,
    progress_callback: Progress | None = None,
    *,
    prompt: str = "",
    negative_prompt: str = "",
    condition_camera: Any = None,
    projection: str = "auto",
    reset_memory: bool = True,
    return_clip: bool = False,
) -> Any:
    """The film of one path from one picture.

    Args:
        model: a `WorldStereo`; any `Generator` or a `World` is taken too.
        condition_image: a path, PIL image, array or tensor; what frame 0 of the path sees.
        camera_trajectory: one viewpoint a frame.
        num_frames: the length of the path; None takes it from there.
        point_cloud: (N, 3) or (N, 6), in the world of the path; without one the picture's depth is
            estimated, and its scale is rough.
        use_geometric_memory, use_spatial_memory: off means neither read nor written by this call.
        output_format: "tensor" (T, C, H, W), "numpy" (T, H, W, C), "pil" or "video" (MP4 file).
        save_path: required for "video"; with other formats the MP4 is written as well.
        progress_callback: `(step, total_steps, latent)` after each step; an exception stops.
        condition_camera: where the picture was taken, if not at frame 0.
        reset_memory: False continues what the model remembers.
        return_clip: the `Clip` with depth, origin and confidence instead of pictures.

    Raises:
        ValueError, TypeError: an argument is not accepted; nothing has run and nothing changed.
        InputRefused: the picture's file cannot be read; ExportError: `save_path` cannot be written.
    """
    target = _target(output_format, save_path)
    clip = one_clip(
        model,
        condition_image,
        camera_trajectory,
        num_frames=num_frames,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        point_cloud=point_cloud,
        seed=seed,
        prompt=prompt,
        negative_prompt=negative_prompt,
        use_geometric_memory=use_geometric_memory,
        use_spatial_memory=use_spatial_memory,
        reset_memory=reset_memory,
        condition_camera=condition_camera,
        projection=projection,
        callback=progress_callback,
    )
    return _delivered(clip, output_format, target, return_clip)


def generate_multi_view(
    model: Any,
    condition_image: Any,
    camera_trajectories: Sequence[Any],
    num_frames: int | Sequence[int | None] | None = 16,
    height: int = 512,
    width: int = 512,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    point_cloud: Any = None,
    use_geometric_memory: bool = True,
    use_spatial_memory: bool = True,
    share_memory: bool = True,
    seed: int | None = None,
    output_format: str = "tensor",
    save_path: str | Path | Sequence[str | Path] | None = None,
    progress_callback: Progress | None = None,
    *,
    prompt: str = "",
    negative_prompt: str = "",
    condition_camera: Any = None,
    projection: str = "auto",
    reset_memory: bool = True,
    return_clip: bool = False,
) -> list[Any]:
    """One film for each path, in one world; the picture belongs to frame 0 of the first.

    Args:
        num_frames: for all paths, or a list with one for each.
        share_memory: later paths see what earlier ones made; False starts each from the picture.
        save_path: a folder (view_000.mp4 and so on), or a list of files.
        progress_callback: counts over all paths.

    Raises:
        As `generate_video`; the message says which path it was, earlier files stay, and the
        memories are as before the call.
    """
    if isinstance(camera_trajectories, str) or not isinstance(camera_trajectories, Sequence):
        raise TypeError("camera_trajectories must be a list of trajectories.")
    paths = list(camera_trajectories)
    if not paths:
        raise ValueError("camera_trajectories must hold at least one path, got none.")
    counts = list(num_frames) if isinstance(num_frames, Sequence) else [num_frames] * len(paths)
    if len(counts) != len(paths):
        raise ValueError(f"num_frames must hold {len(paths)} counts, got {len(counts)}.")
    files = _files(save_path, output_format, len(paths))
    world = _world_of(model)
    first = arguments.path_of(paths[0], width, height).cameras[0]
    seed = arguments.seed_of(seed)
    where = first if condition_camera is None else condition_camera
    plans = []
    for i, path in enumerate(paths):
        with _told(i, len(paths)):
            plans.append(
                _planned(
                    model, condition_image, path, counts[i], height, width, num_inference_steps,
                    guidance_scale, point_cloud, derived_seed(seed, i), prompt, negative_prompt,
                    use_geometric_memory, use_spatial_memory,
                    (reset_memory and i == 0) or not share_memory, where, projection,
                )
            )  # fmt: skip
    total = sum(_steps(plan) for plan in plans)
    done = 0
    steps_before = len(world.history)
    results = []
    for i, plan in enumerate(plans):
        count = done

        def report(step: int, _: int, latent: Tensor, count: int = count) -> None:
            if progress_callback is not None:
                progress_callback(count + step, total, latent)

        try:
            with _told(i, len(plans)):
                clip = _run(plan, report)
                results.append(_delivered(clip, output_format, files[i], return_clip))
        except BaseException:
            _undo_to(world, steps_before)
            raise
        done += _steps(plan)
    if hasattr(model, "last_seed"):
        model.last_seed = seed
    return results


def derived_seed(seed: int, index: int) -> int:
    """The seed of the path at `index`; that of the first is the seed itself."""
    return seed if index == 0 else (seed + 0x9E3779B97F4A7C15 * index) % 2**63


def one_clip(
    model: Any,
    condition_image: Any,
    camera_trajectory: Any,
    *,
    num_frames: int | None,
    height: int | None,
    width: int | None,
    num_inference_steps: int,
    guidance_scale: float,
    point_cloud: Any,
    seed: int | None,
    prompt: str,
    negative_prompt: str,
    use_geometric_memory: bool,
    use_spatial_memory: bool,
    reset_memory: bool,
    condition_camera: Any,
    projection: str,
    callback: OnState | None,
) -> Clip:
    """Checks a call and runs it; the one way from a picture and a path to a clip."""
    plan = _planned(
        model, condition_image, camera_trajectory, num_frames, height, width, num_inference_steps,
        guidance_scale, point_cloud, arguments.seed_of(seed), prompt, negative_prompt,
        use_geometric_memory, use_spatial_memory, reset_memory, condition_camera, projection,
    )  # fmt: skip
    before = len(plan.world.history)
    try:
        return _run(plan, callback)
    except BaseException:
        _undo_to(plan.world, before)
        raise


def _planned(
    model: Any,
    condition_image: Any,
    path: Any,
    num_frames: int | None,
    height: int | None,
    width: int | None,
    steps: int,
    guidance: float,
    point_cloud: Any,
    seed: int,
    prompt: str,
    negative_prompt: str,
    geometry: bool,
    stereo: bool,
    reset: bool,
    condition_camera: Any,
    projection: str,
) -> Plan:
    world = _world_of(model)
    generator = world.generator
    for name, flag in (("use_geometric_memory", geometry), ("use_spatial_memory", stereo)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}.")
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a text, got {type(text).__name__}.")
    arguments.check_projection(projection)
    width, height = _size(path, width, height)
    trajectory = arguments.path_of(path, width, height)
    _check_size(generator, width, height)
    if num_frames is not None and num_frames != len(trajectory):
        raise ValueError(
            f"num_frames is {num_frames} and camera_trajectory has {len(trajectory)} frames; both "
            f"must be the same, or num_frames None."
        )
    generator.limits.check(trajectory)
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"num_inference_steps must be a whole number, got {steps!r}.")
    if steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {steps}.")
    if isinstance(guidance, bool) or not isinstance(guidance, int | float):
        raise TypeError(f"guidance_scale must be a number, got {guidance!r}.")
    if not guidance >= 1 or guidance == float("inf"):
        raise ValueError(
            f"guidance_scale must be at least 1 and finite, got {guidance}; 1 switches it off."
        )
    if generator.limits.name == "warp" and not (geometry or stereo):
        raise ValueError(
            'The "warp" backbone draws from the memories alone; switch at least one of '
            "use_geometric_memory and use_spatial_memory on."
        )
    if generator.limits.steps is None and (steps != 50 or guidance != 7.5):
        log.info("The %s generator takes no steps and no guidance.", generator.limits.name)
    if not generator.limits.prompt and (prompt.strip() or negative_prompt.strip()):
        log.warning("The %s generator reads no prompt.", generator.limits.name)
    cloud = None if point_cloud is None else arguments.cloud(point_cloud)
    image = arguments.picture("condition_image", condition_image)
    sphere = arguments.sphere("condition_image", condition_image, image, projection)
    capture = None
    if reset or (not world.scene.views and len(world.scene.cloud) == 0):
        capture = condition_capture(image, sphere, trajectory.cameras[0], condition_camera, cloud)
    elif cloud is not None:
        raise ValueError("point_cloud belongs to a fresh world; leave it out or reset_memory.")
    if hasattr(model, "last_seed"):
        model.last_seed = seed
    log.info("seed %d", seed)
    prompt = prompt.strip() or generator.limits.default_prompt
    own = generator.limits.steps is not None and generator.limits.guidance is None
    if own:
        log.info("%s is distilled: it takes its own steps, no guidance.", generator.limits.name)
    sampler = SamplerConfig(steps=None if own else steps, guidance=guidance)
    return Plan(
        world, generator, capture, trajectory, sampler, seed, geometry, stereo, prompt,
        negative_prompt,
    )  # fmt: skip


def condition_capture(
    image: Float[Tensor, "3 h w"],
    sphere: panorama.Sphere | None,
    first: Cameras,
    condition_camera: Any,
    cloud: arguments.Cloud | None,
) -> Capture:
    """The picture as remembered views, with estimated depth in the units of the path.

    A panorama is cut into views from one place; its middle column looks along the camera's +z.
    With a cloud, depth is the cloud's where it shows a surface, and the estimate is fitted to it.
    """
    camera = first
    if condition_camera is not None:
        camera = arguments.one_camera("condition_camera", condition_camera, first)
    if sphere is None:
        image = arguments.fitted(image, camera.height, camera.width)
        estimate = best_estimator()(image, camera)
        kind = int(DepthKind.INPAINTED if estimate.rough else DepthKind.LEARNED)
        kinds = torch.full_like(estimate.depth, kind, dtype=torch.uint8)
        views = (View.of(image, estimate.depth, camera, kind=kinds),)
        rough = estimate.rough
    else:
        pixels = to_bytes(image).permute(1, 2, 0).numpy()
        whole = panorama.read_panorama("condition", pixels, sphere, LOCAL)
        rough, views = whole.rough_depth, tuple(_seen_from(v, camera) for v in whole.views)
    points, notices = None, ()
    if cloud is not None:
        views = tuple(_fitted_to(view, cloud) for view in views)
        points = PointCloud.of(cloud.points, cloud.colors)
    elif rough:
        notices = ("Depth was guessed from one picture; its scale is rough.",)
        log.info(notices[0])
    return Capture(
        "condition",
        "photo" if sphere is None else "panorama",
        views,
        points,
        rough_depth=rough and cloud is None,
        notices=notices,
    )


def _seen_from(view: View, camera: Cameras) -> View:
    """A view of a panorama whose frame is that of a camera."""
    c2w = (camera.c2w.double() @ view.cameras.c2w.double()).to(view.cameras.c2w)
    placed = Cameras(view.cameras.K, c2w, view.width, view.height)
    return replace(view, cameras=placed, given=placed)


def _fitted_to(view: View, cloud: arguments.Cloud) -> View:
    """The view with the depth of a cloud where that shows a surface, its own fitted to it."""
    shown = render_points(cloud.points, torch.zeros_like(cloud.points), view.cameras)
    there = shown.mask.bool()
    depth = torch.where(there, shown.depth, align(view.depth, shown.depth, there))
    measured = torch.tensor(int(DepthKind.MEASURED), dtype=torch.uint8)
    kind = torch.where(there, measured, view.kind)
    return View.of(view.color, depth, view.cameras, kind=kind, frame=view.frame, name=view.name)


def remembered(model: Any, frames: Any, cameras: Any, depth: Any = None) -> None:
    """Folds frames into both memories of a model, as one step that can be undone.

    Frames count as generated: they are marked so, and given views are never replaced by them.

    Args:
        frames: (T, 3, H, W) floats in [0, 1], or (T, H, W, 3) bytes.
        cameras: T of them: a trajectory or `Cameras`.
        depth: (T, H, W) or (T, 1, H, W), z in world units, 0 where unknown; estimated and fitted to
            what the global memory shows where None.

    Raises:
        ValueError, TypeError: shapes that do not fit; nothing has changed then.
    """
    pictures = [arguments.picture(f"frames[{t}]", frame) for t, frame in enumerate(frames)]
    if not pictures:
        raise ValueError("frames must hold at least one frame, got none.")
    if len({p.shape for p in pictures}) > 1:
        raise ValueError("frames must share one size.")
    height, width = pictures[0].shape[-2:]
    path = arguments.path_of(cameras, width, height, "cameras").cameras
    if len(path) != len(pictures):
        raise ValueError(f"cameras must be {len(pictures)} like the frames, got {len(path)}.")
    given = None
    if depth is not None:
        given = torch.as_tensor(depth).detach().cpu().float()
        given = given[:, None] if given.ndim == 3 else given
        if given.shape != (len(pictures), 1, height, width):
            raise ValueError(
                f"depth must be ({len(pictures)}, {height}, {width}), got {tuple(given.shape)}."
            )
        if not bool(torch.isfinite(given).all()) or float(given.min()) < 0:
            raise ValueError("depth must be finite and at least 0.")
    world = _world_of(model)
    with world.step("update memory") as draft:
        for t, color in enumerate(pictures):
            camera = path[t]
            if given is None:
                shown = render_points(
                    draft.geometry.points.cpu(), draft.geometry.colors.cpu(), camera
                )
                z = align(best_estimator()(color, camera).depth, shown.depth, shown.mask.bool())
            else:
                z = given[t]
            kind = (z > 0).to(torch.uint8) * int(DepthKind.GENERATED)
            confidence = (z > 0).float() * KIND_CONFIDENCE[DepthKind.GENERATED]
            view = View.of(
                color, z, camera, kind=kind, confidence=confidence, step=draft.step, frame=t
            )
            remember_view(draft, view, world.generator)


def _run(plan: Plan, callback: OnState | None) -> Clip:
    world = plan.world
    if plan.capture is not None:
        start(
            world,
            plan.capture,
            register=False,
            write_geometry=plan.geometry,
            write_stereo=plan.stereo,
        )
    scene: Scene = world.scene
    guide = Guide(
        scene,
        plan.trajectory,
        stereo=plan.stereo,
        geometry=plan.geometry,
    )
    total = len(plan.trajectory)
    steps_inside = plan.generator.limits.steps is not None

    def on_frame(index: int, frame: Frame) -> None:
        if callback is not None and not steps_inside:
            callback(index + 1, total, frame.color[None, None])

    return explore(
        world,
        plan.trajectory,
        seed=plan.seed,
        prompt=plan.prompt,
        negative_prompt=plan.negative_prompt,
        guide=guide,
        sampler=plan.sampler,
        generator=plan.generator,
        on_frame=on_frame,
        on_state=callback if steps_inside else None,
        write_geometry=plan.geometry,
        write_stereo=plan.stereo,
    )


def _steps(plan: Plan) -> int:
    """How often the callback is called for one path."""
    limits = plan.generator.limits
    if limits.steps is None:
        return len(plan.trajectory)
    asked = plan.sampler.steps or limits.steps.default
    return min(asked, limits.steps.max)


def _world_of(model: Any) -> World:
    if isinstance(getattr(model, "world", None), World):
        return model.world
    if isinstance(model, World):
        return model
    if isinstance(model, Generator):
        return World(model)
    raise TypeError(
        f"model must be a WorldStereo, a World or a Generator, got {type(model).__name__}."
    )


def _undo_to(world: World, steps: int) -> None:
    while len(world.history) > steps and world.undo():
        pass


def _size(path: Any, width: int | None, height: int | None) -> tuple[int, int]:
    for name, size in (("width", width), ("height", height)):
        if size is None:
            continue
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} must be a whole number of pixels, got {size!r}.")
        if size < 1:
            raise ValueError(f"{name} must be at least 1 pixel, got {size}.")
    own = (512, 512)
    if isinstance(path, Trajectory):
        own = (path.cameras.width, path.cameras.height)
    elif isinstance(path, Cameras):
        own = (path.width, path.height)
    elif isinstance(path, CameraTrajectory) and path.intrinsics is not None:
        own = (path.intrinsics.width or 512, path.intrinsics.height or 512)
    return width or own[0], height or own[1]


def _check_size(generator: Generator, width: int, height: int) -> None:
    step = generator.limits.size_multiple
    for name, size in (("width", width), ("height", height)):
        if size % step:
            low = max(step, size // step * step)
            raise ValueError(
                f"{name} must be a multiple of {step} for the {generator.limits.name} generator, "
                f"got {size}. Use {low} or {size // step * step + step}."
            )


# ---- what is handed back -------------------------------------------------------------------------


def _target(output_format: str, save_path: Any) -> Path | None:
    if output_format not in OUTPUTS:
        raise ValueError(
            f"output_format must be one of {', '.join(OUTPUTS)}, got {output_format!r}."
        )
    if save_path is None:
        if output_format == "video":
            raise ValueError('save_path must name the MP4 file for output_format "video".')
        return None
    if not isinstance(save_path, str | os.PathLike):
        raise TypeError(f"save_path must be a path, got {type(save_path).__name__}.")
    path = Path(save_path)
    if not path.parent.is_dir():
        raise ExportError(f"{path.name}: the folder {path.parent.name!r} does not exist.")
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise ExportError(f"{path.name}: cannot be written there.")
    return path


def _files(save_path: Any, output_format: str, count: int) -> list[Path | None]:
    if save_path is None:
        return [_target(output_format, None)] * count
    if isinstance(save_path, str | os.PathLike):
        folder = Path(save_path)
        if not folder.parent.is_dir() or (folder.exists() and not folder.is_dir()):
            raise ExportError(f"{folder.name}: is no folder that can be written.")
        save_path = [folder / f"view_{i:03d}.mp4" for i in range(count)]
        if not folder.is_dir():  # it comes with its first film
            _target(output_format, folder)
            return [*save_path]
    if len(save_path) != count:
        raise ValueError(f"save_path must hold {count} files, got {len(save_path)}.")
    return [_target(output_format, path) for path in save_path]


def _delivered(clip: Clip, output_format: str, target: Path | None, whole: bool) -> Any:
    if target is not None:
        from worldstereo.exports import write

        target.parent.mkdir(exist_ok=True)
        write(Scene(clips=(clip,)), "mp4", target)
    if whole:
        return clip
    if output_format == "tensor":
        return clip.color
    if output_format == "numpy":
        return clip.color.permute(0, 2, 3, 1).contiguous().numpy()
    if output_format == "pil":
        from PIL import Image

        return [Image.fromarray(f.permute(1, 2, 0).numpy()) for f in clip.color_u8]
    return str(target)


@contextmanager
def _told(index: int, count: int):  # noqa: ANN202
    """Errors of one path of several say which it was."""
    try:
        yield
    except (ValueError, TypeError, ExportError) as error:
        if count == 1 or len(error.args) != 1:
            raise
        raise type(error)(f"camera_trajectories[{index}]: {error}") from error
