"""Registers remembered views to each other, and moves cameras of other frames along.

Pairs of overlapping views are matched by optical flow on what depth and poses predict; a pair
enters the solution only if a rigid motion explains matches that were held out; then all poses are
solved for together, the first view fixed (or another, where that leaves most in their places). A
view that agrees with no other keeps its pose and is named. The given poses are kept unless matches
held out of all this fit significantly better at the moved ones (`_judge`).

Sources: Triggs et al. 2000 (bundle adjustment), Huber 1964 (robust weights), Kroeger et al. 2016
(DIS optical flow).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo._core.evenly import evenly
from worldstereo.cameras import Cameras
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import View
from worldstereo.views.fusion import ViewArrays, make_view_arrays
from worldstereo.views.registration._field import CorrectionField
from worldstereo.views.registration._judge import motion_px
from worldstereo.views.registration._matches import overlaps
from worldstereo.views.registration._solve import notices, numbered, solve, with_c2w


@dataclass(frozen=True, eq=False)
class Registration:
    """Poses of the given views before and after, and what follows for every other camera.

    The capture's own frame is revision 0; each pass that moved the world is one more.
    """

    revision: int
    given: Cameras
    """(n,) as given. `width` and `height` are the first view's where sizes differ."""
    corrected: Cameras
    """(n,) in the current world."""
    moved_px: Float[Tensor, "n"]
    """How far each view moved, in pixels at its median depth."""
    agrees: tuple[bool, ...]
    """False: no other view confirms this one's pose; it was kept as given."""
    notices: tuple[str, ...] = ()
    unit: float = 1.0
    """u of the capture in scene units, as the field of corrections counts lengths in it."""
    earlier: tuple[Cameras, ...] = ()
    """The corrected poses of revision 1, 2, ... up to the one before this; each as long as then."""
    check: str = ""
    """What matches held out of the solution said about it, in a line; "" if they were not asked."""
    relocalized: tuple[int, ...] = ()
    """Views whose given pose agreed with nobody and that were found elsewhere by their pictures.
    What moved them says nothing about cameras around them."""

    def __len__(self) -> int:
        return len(self.agrees)

    def correct(self, cameras: Cameras, revision: int | None = None) -> Cameras:
        """Cameras given in the capture's own frame, or in an older world, in the current one.

        Args:
            cameras: one, or a batch (T,).
            revision: the world they were given in; None or 0: the capture's own frame.

        Raises:
            ValueError: a revision that this registration does not know.
        """
        revision = revision or 0
        if revision < 0 or revision > self.revision:
            raise ValueError(
                f"revision must be between 0 and {self.revision}, got {revision}. Use the revision "
                f"that the cameras were made in."
            )
        if revision == self.revision or len(self) == 0:
            return cameras
        return self._moved(cameras, lambda field, c2w: field(c2w), revision)

    def as_given(self, cameras: Cameras) -> Cameras:
        """Cameras of the current world in the capture's own frame: the inverse of `correct`."""
        if len(self) == 0:
            return cameras
        return self._moved(cameras, _undone, 0)

    def _moved(
        self,
        cameras: Cameras,
        move: Callable[[CorrectionField, np.ndarray], np.ndarray],
        revision: int,
    ) -> Cameras:
        start = self.given if revision == 0 else self.earlier[revision - 1]
        n = min(len(start), len(self.corrected))
        if torch.equal(start.c2w[:n], self.corrected.c2w[:n].to(start.c2w)):
            return cameras
        trusted = [i for i in range(n) if self.agrees[i] and i not in self.relocalized]
        trusted = trusted or list(range(n))
        before, after = (_poses(c, self.unit)[trusted] for c in (start, self.corrected))
        field = CorrectionField(before, after, float(start.K[0, 0, 0]), 1.0)
        c2w = cameras.c2w.detach().cpu().double().reshape(-1, 4, 4).numpy().copy()
        c2w[:, :3, 3] /= self.unit
        moved = np.stack([move(field, M) for M in c2w])
        moved[:, :3, 3] *= self.unit
        pose = torch.from_numpy(moved).to(cameras.c2w).reshape(cameras.c2w.shape)
        return Cameras(cameras.K, pose, cameras.width, cameras.height)


def _undone(field: CorrectionField, c2w: np.ndarray) -> np.ndarray:
    """The pose that the field moves to `c2w`: corrections change slowly, so it is soon found."""
    found = c2w
    for _ in range(30):
        step = np.linalg.inv(field(found)) @ c2w
        found = found @ step
        if np.abs(step - np.eye(4)).max() < 1e-12:
            break
    return found


def register(
    views: Sequence[View],
    *,
    previous: Registration | None = None,
    unit: float | None = None,
    on_step: OnStep = ignore,
) -> Registration:
    """Register given views to each other; with `previous`, only the views that are new move.

    Args:
        views: step-0 views with depth, at the poses they were given in (new ones) or at any pose
            (the first `len(previous)`: their corrected ones are taken from `previous`).
        previous: the registration of the first views of `views`.
        unit: u in scene units; the median depth of the views without it.
    """
    u = unit or median_depth(views)
    arrays_of_views = [make_view_arrays(view, u) for view in views]
    return register_view_arrays(
        arrays_of_views, [view.given for view in views], u, previous=previous, on_step=on_step
    )


def register_view_arrays(
    views: Sequence[ViewArrays],
    given: Sequence[Cameras],
    unit: float,
    *,
    previous: Registration | None = None,
    on_step: OnStep = ignore,
) -> Registration:
    """`register` on views already in working form (poses in their `pose`)."""
    n, old = len(views), len(previous) if previous is not None else 0
    start = np.stack([v.pose.c2w for v in views])
    if previous is not None and old:
        start[:old] = _poses(previous.corrected, unit)[:old]
    solved, agrees, notices, check = solve(views, start, old, on_step)
    if previous is not None:
        agrees = [a or (i < old and previous.agrees[i]) for i, a in enumerate(agrees)]
    moved = [motion_px(views[i], views[i].pose.c2w, solved[i]) for i in range(n)]
    given_all = _batch(given, None)
    corrected = _batch(given, solved, unit)
    stayed = [i for i in range(n) if np.array_equal(solved[i], start[i])]
    for i in stayed:  # to the last bit
        if previous is not None and i < old:
            corrected.c2w[i] = previous.corrected.c2w[i]
        elif np.array_equal(start[i], _pose_in_u(given[i], unit)):
            corrected.c2w[i] = given_all.c2w[i]
    return Registration(
        revision=1 if previous is None else previous.revision + 1,
        given=given_all,
        corrected=corrected,
        moved_px=torch.tensor(moved, dtype=torch.float32),
        agrees=tuple(agrees),
        notices=tuple(notices),
        unit=unit,
        earlier=() if previous is None else (*previous.earlier, previous.corrected),
        check="" if check is None else check.words,
        relocalized=() if previous is None else previous.relocalized,
    )


def register_new(
    views: Sequence[ViewArrays],
    index: Sequence[int],
    given: Sequence[Cameras],
    unit: float,
    previous: Registration | None,
    placed: Sequence[Cameras],
    *,
    old: int,
    on_step: OnStep = ignore,
) -> Registration:
    """Register new views to those around them; all the others stay where they are.

    Args:
        views: the new ones and their surroundings, at their poses in the current world.
        index: the place of each of `views` in the capture, ascending.
        given: cameras of the whole capture as given.
        previous: registration of the first views of the capture, if there was one.
        placed: cameras of the whole capture in the current world, new ones where `previous` puts
            them.
        old: how many views of the capture were there before.
    """
    start = np.stack([v.pose.c2w for v in views])
    known = sum(i < old for i in index)
    judged = start.copy()  # a new view must agree better than it did as given
    for k, i in enumerate(index):
        if i >= old:
            judged[k] = _pose_in_u(given[i], unit)
    numbers = [i + 1 for i in index]
    solved, agrees, notices, check = solve(views, start, known, on_step, numbers, judged)
    corrected = torch.stack([camera.c2w.double() for camera in placed])
    moved = torch.zeros(len(given))
    all_agree = [True] * len(given)
    if previous is not None:
        moved[: len(previous)] = previous.moved_px
        all_agree[: len(previous)] = previous.agrees
    for k, i in enumerate(index):
        all_agree[i] = agrees[k] or (i < old and all_agree[i])
        if i >= old:
            moved[i] = motion_px(views[k], judged[k], solved[k])
            if np.array_equal(solved[k], start[k]):
                continue  # where it was placed, to the last bit
            pose = torch.from_numpy(solved[k].copy())
            pose[:3, 3] *= unit
            corrected[i] = pose
    batch = _batch(given, None)
    return Registration(
        revision=1 if previous is None else previous.revision + 1,
        given=batch,
        corrected=Cameras(batch.K, corrected.to(batch.c2w), batch.width, batch.height),
        moved_px=moved,
        agrees=tuple(all_agree),
        notices=tuple(notices),
        unit=unit,
        earlier=() if previous is None else (*previous.earlier, previous.corrected),
        check="" if check is None else check.words,
        relocalized=() if previous is None else previous.relocalized,
    )


def with_relocalized(
    views: Sequence[ViewArrays],
    registration: Registration,
    found: Mapping[int, Cameras],
    on_step: OnStep = ignore,
) -> Registration:
    """The registration with views that agreed with nobody at the places found for them.

    A place is taken only if the view agrees with another one there; it is refined by the matches
    between them. All the others stay where they are.

    Args:
        views: all, at their corrected poses.
        found: by index, cameras in the registered world, of views that do not agree.
    """
    unit = registration.unit
    fine = [i for i, agrees in enumerate(registration.agrees) if agrees]
    tried = sorted(set(found) - set(fine))
    order = [*fine, *tried]
    placed = [views[i] for i in fine]
    for i in tried:
        pose = _pose_in_u(found[i], unit)
        placed.append(views[i].moved(with_c2w(views[i], pose)))
    start = np.stack([view.pose.c2w for view in placed])
    judged = np.stack([views[i].pose.c2w for i in order])
    solved, agrees, *_ = solve(placed, start, len(fine), on_step, judged=judged)
    taken = [i for k, i in enumerate(order) if k >= len(fine) and agrees[k]]
    if not taken:
        return registration
    c2w, moved = registration.corrected.c2w.clone(), registration.moved_px.clone()
    for i in taken:
        pose = torch.from_numpy(solved[order.index(i)].copy())
        moved[i] = motion_px(views[i], views[i].pose.c2w, pose.numpy())
        pose[:3, 3] *= unit
        c2w[i] = pose.to(c2w)
    all_agree = [agrees or i in taken for i, agrees in enumerate(registration.agrees)]
    alone = [i for i, agrees in enumerate(all_agree) if not agrees]
    return replace(
        registration,
        corrected=replace(registration.corrected, c2w=c2w),
        moved_px=moved,
        agrees=tuple(all_agree),
        notices=(*notices(views, all_agree, alone), _relocalized_notice(taken)),
        relocalized=tuple(taken),
    )


def _relocalized_notice(taken: Sequence[int]) -> str:
    names = numbered([i + 1 for i in taken])
    if len(taken) == 1:
        return f"View {names} was not where its pose says; its place was found by its picture."
    return (
        f"Views {names} were not where their poses say; their places were found by their pictures."
    )


def continued(registration: Registration, previous: Registration | None) -> Registration:
    """A new global pass as the next revision of an older registration of the same capture."""
    if previous is None:
        return registration
    return replace(
        registration,
        revision=previous.revision + 1,
        earlier=(*previous.earlier, previous.corrected),
    )


def doubts(views: Sequence[ViewArrays]) -> list[str]:
    """What the given poses and depths look like they got wrong as a whole: inversion, units.

    A mistake is named only if the views see clearly more of each other's surfaces without it.
    """
    if len(views) > 24:
        views = [views[i] for i in evenly(len(views), 24)]
    said = []
    as_given = _shared(views)
    inverted = [v.moved(with_c2w(v, np.linalg.inv(v.pose.c2w))) for v in views]
    if _clearly(_shared(inverted), as_given):
        said.append(
            "The views see more of each other if every pose is inverted: world-to-camera matrices "
            "may have been read as camera-to-world. The given poses are kept."
        )
    for factor, words in (
        (1e-3, "millimetres read as metres"),
        (1e3, "metres read as millimetres"),
    ):
        scaled = []
        for v in views:
            c2w = v.pose.c2w.copy()
            c2w[:3, 3] /= factor
            scaled.append(v.moved(with_c2w(v, c2w)))
        if _clearly(_shared(scaled), as_given):
            said.append(f"Depth does not fit the distances between the views: {words}?")
    return said


def _shared(views: Sequence[ViewArrays]) -> float:
    """How much of a view its best neighbour sees at the right depth, averaged."""
    return float(overlaps(views, tolerance=0.03).max(1).mean())


def _clearly(other: float, as_given: float) -> bool:
    return other > as_given + 0.2


def registered(views: Sequence[View], registration: Registration) -> tuple[View, ...]:
    """The views with their corrected cameras."""
    out = []
    for i, view in enumerate(views):
        c2w = registration.corrected.c2w[i].to(view.cameras.c2w)
        camera = Cameras(view.cameras.K, c2w, view.cameras.width, view.cameras.height)
        out.append(replace(view, cameras=camera))
    return tuple(out)


def median_depth(views: Sequence[View]) -> float:
    """u: the median measured depth of all views; 1 where nothing was measured."""
    samples = [view.depth[view.depth > 0][::97] for view in views]
    samples = [s if len(s) else v.depth[v.depth > 0] for s, v in zip(samples, views, strict=True)]
    depth = torch.cat(samples) if samples else torch.zeros(0)
    return float(depth.median()) if len(depth) else 1.0


def _pose_in_u(camera: Cameras, unit: float) -> np.ndarray:
    return _poses(Cameras(camera.K[None], camera.c2w[None], camera.width, camera.height), unit)[0]


def _poses(cameras: Cameras, unit: float) -> np.ndarray:
    c2w = cameras.c2w.detach().cpu().double().numpy().copy()
    c2w[:, :3, 3] /= unit
    return c2w


def _batch(given: Sequence[Cameras], poses: np.ndarray | None, unit: float = 1.0) -> Cameras:
    K = torch.stack([c.K for c in given])
    c2w = torch.stack([c.c2w for c in given])
    if poses is not None:
        scaled = poses.copy()
        scaled[:, :3, 3] *= unit
        c2w = torch.from_numpy(scaled).to(c2w)
    return Cameras(K, c2w, given[0].width, given[0].height)
