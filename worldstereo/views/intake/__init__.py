"""What happens to a view when it enters memory: its depth is cleaned, registered and completed.

Order: camera-fixed mask, cleaning, registration, contradiction, depth by others,
exposure, completion.
Registration comes first among the stages that compare views: before it, good points of a drifted
view would be deleted. Given poses and measured pixels are always kept apart from what is added
here, by `View.given` and `View.kind`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from worldstereo._core.resident import release, tensors_in
from worldstereo.cameras import Cameras
from worldstereo.depth import DepthEstimator, learned_estimator
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import KIND_CONFIDENCE, NO_PART, DepthKind, Origin, PointCloud, View
from worldstereo.views.fusion import (
    RADIAN,
    Pose,
    ViewArrays,
    make_view_arrays,
    parallel_for,
    pose_of,
)
from worldstereo.views.intake import _depth as stages
from worldstereo.views.intake._camera_fixed import find_camera_fixed
from worldstereo.views.intake._exposure import exposure_gains
from worldstereo.views.intake._judge import Decision, Judge
from worldstereo.views.intake._keyframes import keyframes as keyframes
from worldstereo.views.intake._learned import fill_by_model
from worldstereo.views.intake._memory import are_many, put_away, windows
from worldstereo.views.intake._stereo import (
    at_size_of,
    camera_fixed_layer,
    fill_by_stereo,
    measure_photos,
    photo_view_arrays,
    rescaled,
    unmatched,
)
from worldstereo.views.registration import (
    Registration,
    continued,
    doubts,
    median_depth,
    register_new,
    register_view_arrays,
    registered,
    with_relocalized,
)

Relocalize = Callable[[Sequence[View], Sequence[View], float], Mapping[int, Cameras]]
"""Registered views, views whose poses agree with nobody, u in scene units: cameras found for some
of the latter by their pictures, by index."""

STAGES = 6
SMALL = 24  # up to so many views a newcomer that agrees with no other is worth a global pass
PHOTO_NEIGHBOURS = 4  # photos that a new one is measured together with
CAMERA_FIXED_GAIN = 0.05  # dB on views left out that a camera-fixed mask must bring: a strong claim
NEIGHBOURS = 12  # other views that one view's depth is compared with


@dataclass(frozen=True, kw_only=True)
class IntakeOptions:
    """Which stages a view passes; all of them unless a measurement leaves one out."""

    camera_fixed: bool = True
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
    """Inpaint unmeasured depth: harmonic fill, or infinity."""

    stereo: bool = True
    """Measure unmeasured regions by PatchMatch."""

    learned: bool = True
    """Complete by the depth model, where there is one and measured depth confirms it."""

    judged: bool = True
    """Leave out the stages that make views left out of the capture worse; else do them all."""


@dataclass(frozen=True, eq=False)
class PreprocessedViews:
    """Given views ready to be remembered, and what was found on the way."""

    views: tuple[View, ...]
    registration: Registration | None
    camera_fixed: tuple[Bool[Tensor, "H W"], Float[Tensor, "3 H W"]] | None
    unit: float
    """u in scene units."""
    notices: tuple[str, ...] = ()
    up: Float[Tensor, "3"] | None = None
    decisions: tuple[Decision, ...] = ()
    """What the self-check found out about each stage, in order; `Decision.words` is one line."""

    @property
    def checks(self) -> tuple[str, ...]:
        """A line about each decision that the capture took itself, registration first."""
        first = "" if self.registration is None else self.registration.check
        return tuple(line for line in (first, *(d.words for d in self.decisions)) if line)


def preprocess_views(
    views: Sequence[View],
    *,
    register: bool = True,
    previous: PreprocessedViews | None = None,
    points: Float[Tensor, "N 3"] | None = None,
    estimator: DepthEstimator | None = None,
    relocalize: Relocalize | None = None,
    seed: int = 0,
    on_step: OnStep = ignore,
    options: IntakeOptions = IntakeOptions(),  # noqa: B008  (frozen)
) -> PreprocessedViews:
    """Prepare given views for the memories.

    Args:
        views: step-0 views. Only their measured pixels count; what an earlier intake added is made
            anew.
        register: solve for the poses; without it, and for photos whose depth was measured from
            their poses, the given ones are used.
        previous: intake of the first views of `views`: those stay where they are, and only what
            lies near the new ones is looked at again. Leave it out now and then for a global pass.
        points: points of the reconstruction that the poses come from, in the frame of the given
            poses. Photos without any depth are measured with their help; otherwise unused.
        estimator: completes depth where measured depth confirms it; default: the depth model in
            use, none where there is none.
        relocalize: finds views whose given poses agree with nobody; they are taken to the places
            found if they agree with another view there. Asked in a global pass with `register`.

    Raises:
        ValueError: no views, or generated ones among them.
    """
    if not views:
        raise ValueError("views must hold at least one view, got none.")
    if any(view.step != 0 for view in views):
        raise ValueError("views must be given ones (step 0); generated views enter as they are.")
    many = are_many(views)
    measured = []
    for view in _told(views, on_step, "Reading depth"):
        measured.append(as_measured(view).spilled() if many else as_measured(view))
        release(tensors_in(view))
    run = _Run(options, seed, on_step, points, estimator, relocalize)
    if previous is None or not any(bool(view.mask.any()) for view in measured):
        return _whole(measured, register, run, previous)
    if len(previous.views) >= len(views):
        return replace(previous, views=previous.views[: len(views)])
    return _added(measured, previous, register, run)


def preprocess_new_views(
    new: Sequence[View],
    remembered: Sequence[View],
    unit: float,
    *,
    points: Float[Tensor, "N 3"] | None = None,
    seed: int = 0,
    on_step: OnStep = ignore,
) -> tuple[View, ...]:
    """Views whose cameras are known, prepared beside remembered ones, which stay as they are.

    Depth comes from what the views around them measured and from multi-view stereo; depth that a
    new view brings is kept. In a world of photos, where nothing was measured, each new photo is
    measured together with those around it.

    Args:
        new: their `cameras` are where they were taken, in the world.
        remembered: the given views of the world.
        unit: u in scene units.
        points: world points that help to measure photos.
    """
    old = len(remembered)
    raw = [as_measured(view) for view in (*remembered, *new)]
    raw = [
        replace(bare, cameras=view.cameras, given=view.cameras)
        for bare, view in zip(raw, (*remembered, *new), strict=True)
    ]
    poses = [pose_of(view.cameras, unit) for view in raw]
    photos = not any(bool(view.mask.any()) for view in raw)
    count = PHOTO_NEIGHBOURS if photos else NEIGHBOURS
    local = _around(poses, range(old, len(raw)), count)
    run = _Run(IntakeOptions(camera_fixed=False, judged=False), seed, on_step, points)
    on_step(0, STAGES, "Preparing photos")
    if photos:
        work = [photo_view_arrays(raw[i], unit) for i in local]
        scaled = None if points is None else points / unit
        work = measure_photos(work, scaled, seed=seed, on_step=on_step)
        run = replace(run, options=replace(run.options, by_others=False, stereo=False))
    else:
        work = [make_view_arrays(raw[i], unit) for i in local]
    fresh = [k for k, i in enumerate(local) if i >= old]
    if not photos:
        work = stages.apply(stages.clean, work, fresh)
    fixed = np.full((len(work), 3), np.nan)
    for k, i in enumerate(local):
        if i < old:
            fixed[k] = remembered[i].log_gain.double().numpy()
    work, gains, _ = _compared_and_completed(work, fresh, fixed, run)
    on_step(STAGES, STAGES, "Photos are ready")
    return tuple(
        replace(
            _finished(raw[local[k]], work[k], gains[k], raw[local[k]].cameras, unit),
            given=new[local[k] - old].given,
        )
        for k in fresh
    )


@dataclass(frozen=True)
class _Run:
    options: IntakeOptions
    seed: int
    on_step: OnStep
    points: Float[Tensor, "N 3"] | None
    estimator: DepthEstimator | None = None
    relocalize: Relocalize | None = None
    completion: stages.Completion = stages.Completion()

    def model(self) -> DepthEstimator | None:
        return (self.estimator or learned_estimator()) if self.options.learned else None


def _whole(
    measured: list[View], register: bool, run: _Run, previous: PreprocessedViews | None = None
) -> PreprocessedViews:
    """A global pass over all views."""
    options, on_step, many = run.options, run.on_step, are_many(measured)
    unit = median_depth(measured)
    photos = len(measured) > 1 and not any(bool(view.mask.any()) for view in measured)
    prepare = photo_view_arrays if photos else make_view_arrays
    what = "Preparing photos" if photos else "Preparing depth"
    work = []
    for view in _told(measured, on_step, what):
        work.append(prepare(view, unit))
        if many:
            work[-1].spill()
            release(tensors_in(view))
    notices: list[str] = []
    if photos and options.stereo:
        work, unit = _measured_photos(work, unit, run)
        notices += unmatched(measured, work)
    camera_fixed = find_camera_fixed(work) if options.camera_fixed else None
    judge = Judge(work)
    decisions: list[Decision] = []
    if camera_fixed is not None:
        masked = _without_camera_fixed(work, camera_fixed[0], range(len(work)))
        if _keeps(
            judge,
            run,
            "camera_fixed",
            work,
            masked,
            decisions,
            layer=camera_fixed,
            least=CAMERA_FIXED_GAIN,
        ):
            work = masked
        else:
            camera_fixed = None
    if options.clean and not photos:
        on_step(1, STAGES, "Cleaning depth")
        work = stages.apply(stages.clean, work, range(len(work)))
    registration = None
    if len(work) > 1 and not photos:
        notices += doubts(work)
    # Depth that was measured from the poses carries their errors and cannot judge them.
    if register and len(work) > 1 and not photos:
        given = [view.given for view in measured]
        registration = register_view_arrays(work, given, unit, on_step=on_step)
        work = _moved(work, registration)
        again = _relocalized(measured, work, registration, run)
        if again is not registration:
            registration, work = again, _moved(work, again)
        registration = continued(registration, None if previous is None else previous.registration)
        notices += registration.notices
    if photos:  # their depth is stereo already, and what it did not find is unmeasured
        run = replace(run, options=replace(options, by_others=False, stereo=False))
    work, gains, decided = _compared_and_completed(work, range(len(work)), None, run)
    decisions += decided
    on_step(STAGES, STAGES, "Views are ready")
    cameras = [_camera(view, registration, i) for i, view in enumerate(measured)]
    done = []
    for i, (view, w) in enumerate(zip(measured, work, strict=True)):
        finished = _finished(view, w, gains[i], cameras[i], unit)
        done.append(finished.spilled() if many else finished)
        w.let_go()
    notices += _learned_said(done)
    layer = None
    if camera_fixed is not None:
        layer = camera_fixed_layer(camera_fixed, measured[0])
    return PreprocessedViews(
        tuple(done), registration, layer, unit, tuple(notices), decisions=tuple(decisions)
    )


def _moved(work: Sequence[ViewArrays], registration: Registration) -> list[ViewArrays]:
    """All views at the poses of a registration."""
    c2w, unit = registration.corrected.c2w, registration.unit
    return [w.moved(_at(w.pose, c2w[i], unit)) for i, w in enumerate(work)]


def _relocalized(
    measured: Sequence[View], work: Sequence[ViewArrays], registration: Registration, run: _Run
) -> Registration:
    """The registration with views that agreed with nobody where their pictures found them."""
    fine = [i for i, agrees in enumerate(registration.agrees) if agrees]
    lost = [i for i, agrees in enumerate(registration.agrees) if not agrees]
    if run.relocalize is None or not lost or len(fine) < 2:
        return registration
    run.on_step(2, STAGES, "Finding views whose poses agree with no other")
    world = registered(measured, registration)
    found = run.relocalize([world[i] for i in fine], [measured[i] for i in lost], registration.unit)
    places = {lost[k]: camera for k, camera in found.items()}
    return with_relocalized(work, registration, places, run.on_step) if places else registration


def _learned_said(views: Sequence[View]) -> list[str]:
    """A sentence about what a depth model completed, if it completed anything."""
    total = sum(view.kind.numel() for view in views)
    pixels = sum(int((view.kind == int(DepthKind.LEARNED)).sum()) for view in views)
    if not pixels:
        return []
    share = 100 * pixels / total
    return [
        f"Depth of {share:.1f} % of the pixels comes from the depth model, where measured depth "
        f"confirms it."
    ]


def _added(
    measured: list[View], previous: PreprocessedViews, register: bool, run: _Run
) -> PreprocessedViews:
    """New views beside those of `previous`: only what lies near them is looked at again."""
    n, old, unit = len(measured), len(previous.views), previous.unit
    before = previous.registration
    placed = [view.cameras for view in previous.views]
    placed += [
        view.given if before is None else before.correct(view.given) for view in measured[old:]
    ]
    poses = [pose_of(camera, unit) for camera in placed]
    local = _around(poses, range(old, n), 2 * NEIGHBOURS)
    work = [make_view_arrays(measured[i], unit).moved(poses[i]) for i in local]
    new = [k for k, i in enumerate(local) if i >= old]
    if previous.camera_fixed is not None:
        mask = previous.camera_fixed[0].numpy()
        work = _without_camera_fixed(work, mask, new)
    elif (
        run.options.camera_fixed
        and find_camera_fixed([make_view_arrays(v, unit) for v in measured]) is not None
    ):
        return _whole(measured, register, run, previous)  # found now: stored views are masked too
    if run.options.clean:
        work = stages.apply(stages.clean, work, new)
    registration, notices = before, list(previous.notices)
    if register and n > 1:
        given = [view.given for view in measured]
        registration = register_new(
            work, local, given, unit, before, placed, old=old, on_step=run.on_step
        )
        if n <= SMALL and not all(registration.agrees[old:]):
            return _whole(measured, register, run, previous)
        notices += registration.notices
        work = [
            w.moved(_at(w.pose, registration.corrected.c2w[i], unit))
            for w, i in zip(work, local, strict=True)
        ]
    near = _neighbours(work)
    redo = [k for k in range(len(work)) if k in new or set(near[k]) & set(new)]
    fixed = np.full((len(work), 3), np.nan)
    for k, i in enumerate(local):
        if i < old:
            fixed[k] = previous.views[i].log_gain.double().numpy()
    # What did not help the capture so far is not done now: the next global pass judges again.
    dropped = {
        d.stage: False for d in previous.decisions if not d.kept and d.stage != "camera_fixed"
    }
    run = replace(run, options=replace(run.options, judged=False, **dropped))
    work, gains, _ = _compared_and_completed(work, redo, fixed, run)
    done = list(previous.views) + measured[old:]
    for k in redo:
        i = local[k]
        camera = _camera(measured[i], registration, i) if i >= old else placed[i]
        done[i] = _finished(measured[i], work[k], gains[k], camera, unit)
    run.on_step(STAGES, STAGES, "Views are ready")
    return PreprocessedViews(
        tuple(done), registration, previous.camera_fixed, unit, tuple(dict.fromkeys(notices)),
        decisions=previous.decisions,
    )  # fmt: skip


def _compared_and_completed(
    work: list[ViewArrays], redo: Sequence[int], fixed: np.ndarray | None, run: _Run
) -> tuple[list[ViewArrays], np.ndarray, list[Decision]]:
    """The stages after registration, on the views `redo`; gains that are `fixed` stay."""
    options, on_step = run.options, run.on_step
    near = _neighbours(work)
    judge, decisions = Judge(work), []
    gains = np.zeros((len(work), 3))
    if len(work) > 1:
        on_step(3, STAGES, "Comparing depth")
        for name, stage in (
            ("contradict", stages.uncontradicted),
            ("by_others", stages.measured_by),
        ):
            if getattr(options, name):
                after = _compared(stage, work, near, redo)
                work = after if _keeps(judge, run, name, work, after, decisions) else work
    if options.exposure and len(work) > 1:
        on_step(4, STAGES, "Comparing exposure")
        pairs = sorted({(min(i, j), max(i, j)) for i in redo for j in near[i]})
        solved, _ = exposure_gains(work, pairs, fixed)
        if _keeps(judge, run, "exposure", work, work, decisions, gains=(gains, solved)):
            gains = solved
    if options.complete:
        on_step(5, STAGES, "Completing depth")
        work = _completed(judge, run, work, near, redo, gains, decisions)
        if options.stereo:
            after = fill_by_stereo(work, gains, redo, seed=run.seed, on_step=on_step)
            changed = any(a is not w for a, w in zip(after, work, strict=True))
            if changed and _keeps(
                judge, run, "stereo", work, after, decisions, gains=(gains, gains)
            ):
                work = after
        model = run.model()
        if model is not None:
            after = fill_by_model(work, redo, model, on_step=on_step)
            changed = any(a is not w for a, w in zip(after, work, strict=True))
            if changed and _keeps(
                judge, run, "learned", work, after, decisions, gains=(gains, gains)
            ):
                work = after
    return work, gains, decisions


def _completed(
    judge: Judge,
    run: _Run,
    work: list[ViewArrays],
    near: list[list[int]],
    redo: Sequence[int],
    gains: np.ndarray,
    decisions: list[Decision],
) -> list[ViewArrays]:
    """Depth where no sensor measured it, completed in the way that predicts left-out views best."""
    how = run.completion
    ready: dict[int, ViewArrays] = {}
    asked = [i for i in judge.used() if i in set(redo)] if run.options.judged else []
    if asked and not all(work[i].guessed for i in asked):
        holes: dict[int, stages.Unmeasured] = {}

        def look(k: int) -> None:
            holes[asked[k]] = stages.Unmeasured(work[asked[k]], [work[j] for j in near[asked[k]]])

        parallel_for(len(asked), look)
        # ways that differ in nothing for a view share its result
        made: dict[tuple, ViewArrays] = {}
        tried = {}
        for way in stages.COMPLETIONS:
            after = list(work)
            for i in asked:
                key = (i, *holes[i].matters(way))
                if key not in made:
                    made[key] = work[i].with_depth(*holes[i].completed(way))
                after[i] = made[key]
            tried[way] = (after, gains)
        decision, how = judge.best("completion", tried)
        ready = {i: tried[how][0][i] for i in asked}
        decisions += [] if decision is None else [decision]

    def stage(view: ViewArrays, others: Sequence[ViewArrays]) -> tuple[np.ndarray, np.ndarray]:
        return stages.Unmeasured(view, others).completed(how)

    return _compared(stage, work, near, redo, ready)


def _keeps(
    judge: Judge,
    run: _Run,
    stage: str,
    before: list[ViewArrays],
    after: list[ViewArrays],
    decisions: list[Decision],
    *,
    gains: tuple[np.ndarray, np.ndarray] | None = None,
    **how: Any,
) -> bool:
    """Whether the capture keeps a stage; what was found out is noted in `decisions`."""
    if not run.options.judged:
        return True
    none = np.zeros((len(before), 3))
    old, new = gains or (none, none)
    decision = judge.decide(stage, (before, old), (after, new), **how)
    if decision is None:
        return True
    decisions.append(decision)
    return decision.kept


def _measured_photos(
    work: list[ViewArrays], unit: float, run: _Run
) -> tuple[list[ViewArrays], float]:
    """Depth of photos from each other, and u, which only that depth can tell."""
    points = None if run.points is None else run.points / unit
    work = measure_photos(work, points, seed=run.seed, on_step=run.on_step)
    known = [w.depth[w.depth > 0][::13] for w in work if (w.depth > 0).any()]
    if not known:
        return work, unit
    factor = float(np.median(np.concatenate(known)))
    return [rescaled(w, factor) for w in work], unit * factor


def _without_camera_fixed(
    work: list[ViewArrays], mask: np.ndarray, which: Sequence[int]
) -> list[ViewArrays]:
    work = [
        replace(w, camera_fixed=mask if w.camera_fixed is None else mask | w.camera_fixed)
        if w.pose.shape == mask.shape
        else w
        for w in work
    ]
    masked = [i for i in which if work[i].camera_fixed is not None]
    return stages.apply(lambda w: stages.mask_camera_fixed(w, mask), work, masked)


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
    """A generated frame as a view: it keeps its picture, and depth only where no view saw anything.

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


def cloud_from(view: View, *, stride: int = 2, unit: float = 1.0) -> PointCloud:
    """Points of one view for the global memory, every `stride` pixels; u is `unit` scene units.

    Normals come from the gradients of disparity, radii from the spacing of the samples on the
    surface, so that a viewer can draw the points as a closed surface.
    """
    work = make_view_arrays(view)
    w = work.depth.shape[1]
    far = 2 * stages.INFINITY / unit
    cut = (slice(stride // 2, None, stride),) * 2
    # What lies beyond all parallax serves views as a backdrop; it has no place in the cloud.
    completed = view.kind[0].cpu().numpy()[cut] == int(DepthKind.INPAINTED)
    known = (work.depth[cut] > 0) & ~(completed & (work.disparity[cut] <= far))
    rows, columns = (stride // 2 + stride * a for a in np.nonzero(known))
    z = work.depth[cut][known].astype(np.float64)
    d, a, b = 1 / z, work.slope_x[cut][known], work.slope_y[cut][known]
    fx, fy, cx, cy = work.pose.K
    u, v = columns - cx, rows - cy
    rx, ry = u / fx, v / fy
    R = work.pose.c2w[:3, :3]
    points = np.stack([rx * z, ry * z, z], 1) @ R.T + work.pose.position
    # The plane a u + b v + c = 1/z has the normal (a fx, b fy, d - a (u - cx) - b (v - cy)).
    nx, ny, nz = -a * fx, -b * fy, a * u + b * v - d
    length = np.maximum(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-12)
    normal = np.stack([nx / length, ny / length, nz / length], 1)
    along = -(nx * rx + ny * ry + nz) / (length * np.sqrt(rx * rx + ry * ry + 1))
    radii = 0.5 * stride * z / (fx * fy) ** 0.5 / np.clip(along, 0.25, 1)
    index = torch.from_numpy(rows * w + columns)
    return PointCloud.of(
        torch.from_numpy(points).float(),
        view.color_u8.reshape(3, -1)[:, index].T.float() / 255,
        confidence=view.confidence_u8.reshape(-1)[index].float() / 255,
        step=torch.full((len(index),), view.step, dtype=torch.int64),
        normals=torch.from_numpy(normal @ R.T).float(),
        radii=torch.from_numpy(radii).float(),
    )


# ---- helpers ---------------------------------------------------------------------------------


def _told(views: Sequence[View], on_step: OnStep, message: str) -> Iterator[View]:
    """The views one by one, each after a word about it: pictures of a camera take their time."""
    for index, view in enumerate(views):
        on_step(index, len(views), message)
        yield view


def as_measured(view: View) -> View:
    """The view as it was given: measured depth only, at the given pose."""
    measured = view.kind == int(DepthKind.MEASURED)
    nothing = torch.zeros_like(view.depth)
    depth = torch.where(measured & torch.isfinite(view.depth), view.depth, nothing)
    known = (depth > 0).to(torch.uint8)
    hidden = view.kind == int(DepthKind.MASKED)
    return replace(
        view,
        depth=depth.clamp(min=0),
        kind=torch.where(hidden, view.kind, known * int(DepthKind.MEASURED)),
        confidence_u8=known * 255,
        log_gain=torch.zeros(3),
        cameras=view.given,
    )


def as_estimated(views: Sequence[View]) -> PreprocessedViews | None:
    """Views whose depth is an estimate, the only one there is: they enter as they are.

    One photo, or pictures from one place: nothing was measured and no second view can. None where
    a view holds measured depth, or none holds any.
    """
    if any(bool((view.kind == int(DepthKind.MEASURED)).any()) for view in views):
        return None
    if not any(bool(view.mask.any()) for view in views):
        return None
    return PreprocessedViews(tuple(views), None, None, median_depth(views))


def _at(pose: Pose, c2w: Tensor, unit: float) -> Pose:
    moved = c2w.detach().cpu().double().numpy().copy()
    moved[:3, 3] /= unit
    return Pose(pose.K, moved, pose.width, pose.height)


def _camera(view: View, registration: Registration | None, i: int) -> Cameras:
    if registration is None:
        return view.given
    c2w = registration.corrected.c2w[i].to(view.given.c2w)
    return Cameras(view.given.K, c2w, view.given.width, view.given.height)


def _neighbours(work: Sequence[ViewArrays]) -> list[list[int]]:
    """For each view the others nearest in pose, in their own order."""
    poses = [w.pose for w in work]
    return [[j for j in _around(poses, [i], NEIGHBOURS) if j != i] for i in range(len(poses))]


def _around(poses: Sequence[Pose], centres: Sequence[int], count: int) -> list[int]:
    """The given poses and for each the `count` nearest others, in ascending order."""
    position = np.stack([p.position for p in poses])
    rotation = np.stack([p.c2w[:3, :3] for p in poses])
    out = set(centres)
    for i in centres:
        turn = np.einsum("nij,ij->n", rotation, rotation[i])
        angle = np.arccos(np.clip((turn - 1) / 2, -1, 1))
        distance = np.linalg.norm(position - position[i], axis=1) + RADIAN * angle
        distance[i] = np.inf
        out |= {int(j) for j in np.argsort(distance, kind="stable")[:count] if j != i}
    return sorted(out)


def _compared(
    stage: Callable[[ViewArrays, Sequence[ViewArrays]], tuple[np.ndarray, np.ndarray]],
    work: list[ViewArrays],
    near: list[list[int]],
    redo: Sequence[int],
    ready: Mapping[int, ViewArrays] = MappingProxyType({}),
) -> list[ViewArrays]:
    """Run a stage that looks at other views, all of them seeing the state before it.

    Args:
        ready: views that were made already, by their place in `work`.
    """
    results: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    many = are_many([w.pose for w in work])

    def one(i: int) -> None:
        if i not in ready:
            results[i] = stage(work[i], [work[j] for j in near[i]])

    out = list(work)
    for part in windows(redo):
        parallel_for(len(part), lambda k, part=part: one(part[k]))
        for i in part:
            out[i] = ready[i] if i in ready else work[i].with_depth(*results.pop(i))
        if many:  # out of core: what is done goes to disk, what was read is let go
            put_away([out[i] for i in part], work)
    return out


def _finished(view: View, work: ViewArrays, gain: np.ndarray, camera: Cameras, unit: float) -> View:
    depth, confidence, camera_fixed = at_size_of(view, work)
    kind = torch.zeros(confidence.shape, dtype=torch.uint8)
    for member in (
        DepthKind.INPAINTED,
        DepthKind.STEREO,
        DepthKind.REPROJECTED,
        DepthKind.MEASURED,
    ):
        kind[confidence >= KIND_CONFIDENCE[member] - 0.01] = int(member)
    # Not by the enlarged confidence: between two kinds it takes every value.
    learned = np.abs(work.confidence - KIND_CONFIDENCE[DepthKind.LEARNED]) < 0.005
    if learned.any():
        at = torch.from_numpy(learned)[None, None].float()
        at = functional.interpolate(at, kind.shape[-2:], mode="nearest-exact")[0] > 0
        kind[at & (kind == int(DepthKind.INPAINTED))] = int(DepthKind.LEARNED)
    if camera_fixed is not None:
        kind[camera_fixed[None]] = int(DepthKind.CAMERA_FIXED)
    kind[view.kind == int(DepthKind.MASKED)] = int(DepthKind.MASKED)
    hidden = torch.isin(kind, torch.tensor(NO_PART, dtype=torch.uint8))
    depth = torch.where(hidden, torch.zeros_like(depth), depth)
    return replace(
        view,
        depth=depth * unit,
        kind=kind,
        confidence_u8=(confidence * 255 + 0.5).to(torch.uint8),
        log_gain=torch.from_numpy(gain).float(),
        cameras=camera,
    )
