"""What happens to a view when it enters memory: its depth is cleaned, registered and completed.

Order: rig, cleaning, registration, contradiction, depth by other views, exposure, completion.
Registration comes first among the stages that compare views: before it, good points of a drifted
view would be deleted. Given poses and measured pixels are always kept apart from what is added
here, by `View.given` and `View.kind`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldstereo import _intake_depth as stages
from worldstereo._intake_exposure import exposure_gains
from worldstereo._intake_rig import find_rig
from worldstereo._intake_stereo import fill_by_stereo, measure_photos, rescaled
from worldstereo.cameras import Cameras
from worldstereo.fusion import Pose, Working, make_working, parallel_for, pose_distance
from worldstereo.registration import Registration, median_depth, register_workings
from worldstereo.scene import KIND_CONFIDENCE, DepthKind, Origin, PointCloud, View

OnStep = Callable[[int, int, str], None]
NEIGHBOURS = 12  # other views that one view's depth is compared with


def ignore(step: int, total: int, message: str) -> None:
    """An `on_step` that does nothing."""


@dataclass(frozen=True, kw_only=True)
class IntakeOptions:
    """Which stages a view passes; all of them unless a measurement leaves one out."""

    rig: bool = True
    """Look for what is fixed to the camera."""

    clean: bool = True
    """Drop lone samples, fill small gaps."""

    contradict: bool = True
    """Drop what more views look through than support."""

    by_others: bool = True
    """Fill from what other views measured."""

    exposure: bool = True
    """Estimate gains towards the first view."""

    complete: bool = True
    """Complete what nobody measured: membrane or infinity."""

    stereo: bool = True
    """Measure unmeasured regions by PatchMatch."""


@dataclass(frozen=True, eq=False)
class Intake:
    """Given views ready to be remembered, and what was found on the way."""

    views: tuple[View, ...]
    registration: Registration | None
    rig: tuple[Bool[Tensor, "H W"], Float[Tensor, "3 H W"]] | None
    unit: float
    """u in scene units."""
    notices: tuple[str, ...] = ()
    up: Float[Tensor, "3"] | None = None


def enter(
    views: Sequence[View],
    *,
    register: bool = True,
    previous: Intake | None = None,
    seed: int = 0,
    on_step: OnStep = ignore,
    options: IntakeOptions = IntakeOptions(),  # noqa: B008  (frozen)
) -> Intake:
    """Prepare given views for the memories.

    Args:
        views: step-0 views. Only their measured pixels count; what an earlier intake added is made
            anew.
        register: solve for the poses; without it the given ones are used.
        previous: intake of the first views of `views`: those stay where they are.

    Raises:
        ValueError: no views, or generated ones among them.
    """
    if not views:
        raise ValueError("views must hold at least one view, got none.")
    if any(view.step != 0 for view in views):
        raise ValueError("views must be given ones (step 0); generated views enter as they are.")
    total = 6
    on_step(0, total, "Reading depth")
    measured = [_as_measured(view) for view in views]
    unit = previous.unit if previous is not None else median_depth(measured)
    work: list[Working] = [make_working(view, unit) for view in measured]
    notices: list[str] = []
    photos = len(work) > 1 and not any((w.depth > 0).any() for w in work)
    if photos and options.stereo:
        work, _ = measure_photos(work, seed=seed, on_step=on_step)
        known = [w.depth[w.depth > 0] for w in work if (w.depth > 0).any()]
        if known:
            factor = float(np.median(np.concatenate(known)[::13]))
            unit *= factor
            work = [rescaled(w, factor) for w in work]
    rig = find_rig(work) if options.rig else None
    everything = list(range(len(work)))
    if rig is not None:
        work = [replace(w, rig=rig[0]) for w in work]
        work = stages.apply(lambda w: stages.mask_rig(w, rig[0]), work, everything)
    if options.clean and not photos:
        on_step(1, total, "Cleaning depth")
        work = stages.apply(stages.clean, work, everything)
    registration = None
    if register and len(work) > 1:
        registration = register_workings(
            work,
            [view.given for view in measured],
            unit,
            previous=previous.registration if previous is not None else None,
            on_step=on_step,
        )
        notices += registration.notices
        work = [
            w.moved(_moved(w.pose, registration.corrected, i, unit)) for i, w in enumerate(work)
        ]
    near = _neighbours(work)
    if len(work) > 1:
        on_step(3, total, "Comparing depth")
        if options.contradict:
            work = _compared(stages.uncontradicted, work, near)
        if options.by_others:
            work = _compared(stages.measured_by, work, near)
    gains = np.zeros((len(work), 3))
    if options.exposure and len(work) > 1:
        on_step(4, total, "Comparing exposure")
        pairs = sorted({(min(i, j), max(i, j)) for i in everything for j in near[i]})
        gains, _ = exposure_gains(work, pairs)
    if options.complete:
        on_step(5, total, "Completing depth")
        work = _compared(stages.completed, work, near)
    if options.complete and options.stereo:
        work = fill_by_stereo(work, gains, seed=seed, on_step=on_step)
    on_step(total, total, "Views are ready")
    done = [
        _finished(view, w, gains[i], registration, i, rig, unit)
        for i, (view, w) in enumerate(zip(measured, work, strict=True))
    ]
    layer = None
    if rig is not None:
        layer = (torch.from_numpy(rig[0]), torch.from_numpy(rig[1]).permute(2, 0, 1).contiguous())
    return Intake(tuple(done), registration, layer, unit, tuple(notices))


def generated(
    color: Float[Tensor, "3 H W"],
    depth: Float[Tensor, "1 H W"],
    origin: UInt8[Tensor, "1 H W"],
    confidence: Float[Tensor, "1 H W"],
    camera: Cameras,
    *,
    step: int,
    frame: int,
    name: str = "",
) -> View:
    """A generated frame as a view: it keeps its picture, and depth only where nobody saw anything.

    Those pixels weigh 0.02 times the generator's own confidence and never contradict given views.
    """
    keep = (origin == int(Origin.INVENTED)) & (depth > 0)
    kind = keep.to(torch.uint8) * int(DepthKind.GENERATED)
    share = KIND_CONFIDENCE[DepthKind.GENERATED]
    return View.of(
        color,
        torch.where(keep, depth, torch.zeros_like(depth)),
        camera,
        confidence=torch.where(keep, (share * confidence).clamp(min=1 / 255), torch.zeros(())),
        kind=kind,
        step=step,
        frame=frame,
        name=name,
    )


def cloud_from(view: View, *, stride: int = 2) -> PointCloud:
    """Points of one view for the global memory, every `stride` pixels.

    Normals come from the gradients of disparity, radii from the spacing of the samples on the
    surface, so that a viewer can draw the points as a closed surface.
    """
    work = make_working(view)
    h, w = work.depth.shape
    rows, columns = np.mgrid[stride // 2 : h : stride, stride // 2 : w : stride].reshape(2, -1)
    known = work.depth[rows, columns] > 0
    rows, columns = rows[known], columns[known]
    z = work.depth[rows, columns].astype(np.float64)
    d, a, b = 1 / z, work.slope_x[rows, columns], work.slope_y[rows, columns]
    fx, fy, cx, cy = work.pose.K
    rx, ry = (columns - cx) / fx, (rows - cy) / fy
    R = work.pose.c2w[:3, :3]
    points = np.stack([rx * z, ry * z, z], 1) @ R.T + work.pose.position
    # The plane a u + b v + c = 1/z has the normal (a fx, b fy, d - a (u - cx) - b (v - cy)).
    normal = np.stack([a * fx, b * fy, d - a * (columns - cx) - b * (rows - cy)], 1)
    normal = -normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    ray = np.stack([rx, ry, np.ones_like(rx)], 1)
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    grazing = np.clip(-(normal * ray).sum(1), 0.25, 1)
    radii = 0.5 * stride * z / (fx * fy) ** 0.5 / grazing
    index = torch.from_numpy(rows * w + columns)
    return PointCloud.of(
        torch.from_numpy(points).float(),
        view.color.reshape(3, -1)[:, index].T.contiguous(),
        confidence=view.confidence.reshape(-1)[index],
        step=torch.full((len(index),), view.step, dtype=torch.int64),
        normals=torch.from_numpy(normal @ R.T).float(),
        radii=torch.from_numpy(radii).float(),
    )


# ---- helpers ---------------------------------------------------------------------------------


def _as_measured(view: View) -> View:
    """The view as it was given: measured depth only, at the given pose."""
    measured = view.kind == int(DepthKind.MEASURED)
    depth = torch.where(measured, view.depth, torch.zeros_like(view.depth))
    depth = torch.where(torch.isfinite(depth) & (depth > 0), depth, torch.zeros_like(depth))
    return replace(
        view,
        depth=depth,
        kind=(depth > 0).to(torch.uint8) * int(DepthKind.MEASURED),
        confidence8=(depth > 0).to(torch.uint8) * 255,
        gain=torch.zeros(3),
        cameras=view.given,
    )


def _moved(pose: Pose, corrected: Cameras, i: int, unit: float) -> Pose:
    c2w = corrected.c2w[i].detach().cpu().double().numpy().copy()
    c2w[:3, 3] /= unit
    return Pose(pose.K, c2w, pose.width, pose.height)


def _neighbours(work: Sequence[Working]) -> list[list[int]]:
    """For each view the others nearest in pose, in their own order."""
    out = []
    for i, w in enumerate(work):
        others = [j for j in range(len(work)) if j != i]
        others.sort(key=lambda j: pose_distance(w.pose, work[j].pose))
        out.append(sorted(others[:NEIGHBOURS]))
    return out


def _compared(
    stage: Callable[[Working, Sequence[Working]], tuple[np.ndarray, np.ndarray]],
    work: list[Working],
    near: list[list[int]],
) -> list[Working]:
    """Run a stage that looks at other views, all of them seeing the state before it."""
    results: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(work)

    def one(i: int) -> None:
        results[i] = stage(work[i], [work[j] for j in near[i]])

    parallel_for(len(work), one)
    return [w.with_depth(*r) for w, r in zip(work, results, strict=True) if r is not None]


def _finished(
    view: View,
    work: Working,
    gain: np.ndarray,
    registration: Registration | None,
    i: int,
    rig: tuple[np.ndarray, np.ndarray] | None,
    unit: float,
) -> View:
    camera = view.given
    if registration is not None:
        c2w = registration.corrected.c2w[i].to(camera.c2w)
        camera = Cameras(camera.K, c2w, camera.width, camera.height)
    confidence = torch.from_numpy(work.confidence)
    kind = torch.zeros(confidence.shape, dtype=torch.uint8)
    for member in (DepthKind.COMPLETED, DepthKind.STEREO, DepthKind.BY_OTHERS, DepthKind.MEASURED):
        kind[confidence >= KIND_CONFIDENCE[member] - 0.01] = int(member)
    if rig is not None:
        kind[torch.from_numpy(rig[0])] = int(DepthKind.RIG)
    return replace(
        view,
        depth=torch.from_numpy(work.depth * np.float32(unit))[None],
        kind=kind[None],
        confidence8=(confidence * 255 + 0.5).to(torch.uint8)[None],
        gain=torch.from_numpy(gain).float(),
        cameras=camera,
    )
