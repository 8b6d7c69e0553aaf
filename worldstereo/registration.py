"""Registers remembered views to each other, and moves cameras of other frames along.

Pairs of overlapping views are matched by optical flow on what depth and poses predict; a pair
enters the solution only if a rigid motion explains matches that were held out; then all poses are
solved for together, the first view fixed. A view that agrees with nobody keeps its pose and is
named.

Sources: Triggs et al. 2000 (bundle adjustment), Huber 1964 (robust weights), Kroeger et al. 2016
(DIS optical flow).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo._registration_field import CorrectionField, exp6, log6
from worldstereo._registration_matches import Match, chosen_pairs, match, project
from worldstereo.cameras import Cameras
from worldstereo.fusion import METRES, Working, make_working, parallel_for
from worldstereo.scene import View

HUBER = 1.0  # pixels
REJECT = 20.0  # pixels
PRIOR = 200.0  # px^2 per radian^2
PRIOR_LENGTH = PRIOR * METRES**2  # px^2 per u^2
FALL = 0.8  # the held-out residual must fall to this share of what it was
AGREED = 0.5  # pixels; below this a pair agrees already and has nothing to fall
NEIGHBOURS = 8
ROUNDS = 2  # of matching; each starts from the poses of the one before

OnStep = Callable[[int, int, str], None]


def ignore(step: int, total: int, message: str) -> None:
    """An `on_step` that does nothing."""


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
        start = self.given if revision == 0 else self.earlier[revision - 1]
        n = min(len(start), len(self.corrected))
        trusted = [i for i in range(n) if self.agrees[i]] or list(range(n))
        before, after = (_poses(c, self.unit)[trusted] for c in (start, self.corrected))
        field = CorrectionField(before, after, float(start.K[0, 0, 0]), 1.0)
        c2w = cameras.c2w.detach().cpu().double().reshape(-1, 4, 4).numpy().copy()
        c2w[:, :3, 3] /= self.unit
        moved = np.stack([field(M) for M in c2w])
        moved[:, :3, 3] *= self.unit
        pose = torch.from_numpy(moved).to(cameras.c2w).reshape(cameras.c2w.shape)
        return Cameras(cameras.K, pose, cameras.width, cameras.height)


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
    workings = [make_working(view, u) for view in views]
    return register_workings(
        workings, [view.given for view in views], u, previous=previous, on_step=on_step
    )


def register_workings(
    views: Sequence[Working],
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
    solved, agrees, notices = _solve(views, start, old, on_step)
    if previous is not None:
        agrees = [a or (i < old and previous.agrees[i]) for i, a in enumerate(agrees)]
    moved = [_moved_px(views[i], views[i].pose.c2w, solved[i]) for i in range(n)]
    given_all = _batch(given, None)
    return Registration(
        revision=1 if previous is None else previous.revision + 1,
        given=given_all,
        corrected=_batch(given, solved, unit),
        moved_px=torch.tensor(moved, dtype=torch.float32),
        agrees=tuple(agrees),
        notices=tuple(notices),
        unit=unit,
        earlier=() if previous is None else (*previous.earlier, previous.corrected),
    )


def registered(views: Sequence[View], registration: Registration) -> tuple[View, ...]:
    """The views with their corrected cameras."""
    from dataclasses import replace

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


# ---- the solution ----------------------------------------------------------------------------


def _solve(
    views: Sequence[Working], start: np.ndarray, old: int, on_step: OnStep
) -> tuple[np.ndarray, list[bool], list[str]]:
    """Poses of all views (the first `old` and view 0 stay), who agrees, and what to say."""
    n = len(views)
    if n < 2:
        return start, [True] * n, []
    new = list(range(max(old, 0), n))
    poses = start.copy()
    free = np.array([i >= max(old, 1) for i in range(n)])
    accepted: list[Match] = []
    rounds = ROUNDS
    for turn in range(rounds):
        placed = [v.moved(_with_c2w(v, poses[i])) for i, v in enumerate(views)]
        if turn == 0:
            pairs = chosen_pairs(placed, new, NEIGHBOURS)
        else:
            pairs = [(m.i, m.j) for m in accepted]
        found = _all_matches(placed, pairs, on_step, turn, rounds)
        accepted = [m for m in found if _explained(m, views, start)]
        accepted = _solve_poses(views, start, poses, accepted, free)
        if not accepted:
            break
    agreeing = {k for m in accepted for k in (m.i, m.j)}
    agrees = [i in agreeing for i in range(n)]
    for i in range(n):
        if not agrees[i]:
            poses[i] = start[i]
    return poses, agrees, _notices(agrees, new)


def _all_matches(
    placed: Sequence[Working],
    pairs: list[tuple[int, int]],
    on_step: OnStep,
    turn: int,
    rounds: int,
) -> list[Match]:
    found: list[Match | None] = [None] * len(pairs)
    chunk = 8
    for begin in range(0, len(pairs), chunk):
        on_step(turn * len(pairs) + begin, rounds * len(pairs), "Registering views")
        part = pairs[begin : begin + chunk]

        def one(k: int, begin: int = begin) -> None:
            found[begin + k] = match(placed, *pairs[begin + k])

        parallel_for(len(part), one)
    return [m for m in found if m is not None]


def _explained(m: Match, views: Sequence[Working], start: np.ndarray) -> bool:
    """True if one rigid motion of the pair explains matches that had no say in it."""
    T = np.linalg.inv(start[m.j]) @ start[m.i]
    K = views[m.j].pose.K
    before = _residual(m, T, K, m.held)
    if before < AGREED:
        return True
    for _ in range(5):
        r, J = _jacobian(m.points[~m.held], m.pixels[~m.held], T, K)
        w = _huber(r)[:, None, None]
        H = np.einsum("nai,naj->ij", J * w, J) + np.diag([PRIOR] * 3 + [PRIOR_LENGTH] * 3)
        T = T @ exp6(-np.linalg.solve(H, np.einsum("nai,na->i", J * w, r)))
    return _residual(m, T, K, m.held) <= FALL * before


def _residual(m: Match, T: np.ndarray, K: np.ndarray, which: np.ndarray) -> float:
    """Median distance in pixels between model and matches."""
    u, v, _ = project(m.points[which], T[:3], K)
    return float(np.median(np.hypot(u - m.pixels[which, 0], v - m.pixels[which, 1])))


def _huber(r: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(r, axis=1)
    return np.minimum(1, HUBER / np.maximum(size, 1e-9)) * (size < REJECT)


def _jacobian(
    points: np.ndarray, pixels: np.ndarray, T: np.ndarray, K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (n, 2) and their derivative (n, 2, 6) by a twist of the first camera's axes."""
    q = points @ T[:3, :3].T + T[:3, 3]
    z = np.where(q[:, 2] > 1e-3, q[:, 2], 1e-3)
    r = np.stack([K[0] * q[:, 0] / z + K[2], K[1] * q[:, 1] / z + K[3]], 1) - pixels
    P = np.zeros((len(q), 2, 3))
    P[:, 0, 0], P[:, 0, 2] = K[0] / z, -K[0] * q[:, 0] / z**2
    P[:, 1, 1], P[:, 1, 2] = K[1] / z, -K[1] * q[:, 1] / z**2
    PR = P @ T[:3, :3]
    J = np.concatenate([-PR @ _skew(points), PR], axis=2)
    J[q[:, 2] <= 1e-3] = 0
    r[q[:, 2] <= 1e-3] = 0
    return r, J


def _jacobian_second(J: np.ndarray, points: np.ndarray, T: np.ndarray) -> np.ndarray:
    """The derivative by a twist of the second camera's axes, from the one by the first's.

    With c2w_j moved by exp(e), T becomes exp(-e) T: a motion -e in the axes of j.
    """
    PR = J[:, :, 3:]
    P = PR @ T[:3, :3].T
    q = points @ T[:3, :3].T + T[:3, 3]
    return np.concatenate([P @ _skew(q), -P], axis=2)


def _skew(x: np.ndarray) -> np.ndarray:
    out = np.zeros((len(x), 3, 3))
    out[:, 0, 1], out[:, 0, 2], out[:, 1, 2] = -x[:, 2], x[:, 1], -x[:, 0]
    out[:, 1, 0], out[:, 2, 0], out[:, 2, 1] = x[:, 2], -x[:, 1], x[:, 0]
    return out


def _solve_poses(
    views: Sequence[Working],
    start: np.ndarray,
    poses: np.ndarray,
    matches: list[Match],
    free: np.ndarray,
) -> list[Match]:
    """Gauss-Newton over the free poses, written into `poses`; returns the matches that held.

    A pair whose held-out matches the joint solution does not fit better is left out, and the rest
    is solved again without it.
    """
    first = poses.copy()
    while matches:
        poses[:] = first
        for _ in range(6):
            _gauss_newton_step(views, start, poses, matches, free)
        worse = [m for m in matches if not _fits(m, views, start, poses)]
        if not worse:
            break
        matches = [m for m in matches if not any(m is w for w in worse)]
    if not matches:
        poses[:] = first
    return matches


def _fits(m: Match, views: Sequence[Working], before: np.ndarray, after: np.ndarray) -> bool:
    K = views[m.j].pose.K
    old, new = (_residual(m, np.linalg.inv(p[m.j]) @ p[m.i], K, m.held) for p in (before, after))
    return new < AGREED or new <= FALL * old


def _gauss_newton_step(
    views: Sequence[Working],
    start: np.ndarray,
    poses: np.ndarray,
    matches: list[Match],
    free: np.ndarray,
) -> None:
    n = len(poses)
    prior = np.array([PRIOR] * 3 + [PRIOR_LENGTH] * 3)
    H = np.diag(np.tile(prior, n))
    g = np.concatenate(
        [prior * log6(np.linalg.inv(s) @ p) for s, p in zip(start, poses, strict=True)]
    )
    for m in matches:
        T = np.linalg.inv(poses[m.j]) @ poses[m.i]
        keep = ~m.held
        r, Ji = _jacobian(m.points[keep], m.pixels[keep], T, views[m.j].pose.K)
        J = np.concatenate([Ji, _jacobian_second(Ji, m.points[keep], T)], axis=2)
        w = _huber(r)[:, None, None]
        at = np.r_[6 * m.i : 6 * m.i + 6, 6 * m.j : 6 * m.j + 6]
        H[np.ix_(at, at)] += np.einsum("nai,naj->ij", J * w, J)
        g[at] += np.einsum("nai,na->i", J * w, r)
    moving = np.repeat(free, 6)
    if not moving.any():
        return
    step = np.zeros(6 * n)
    step[moving] = -np.linalg.solve(H[np.ix_(moving, moving)], g[moving])
    for i in np.nonzero(free)[0]:
        poses[i] = poses[i] @ exp6(step[6 * i : 6 * i + 6])


def _notices(agrees: list[bool], new: list[int]) -> list[str]:
    alone = [i for i in new if not agrees[i]]
    if not alone:
        return []
    if len(alone) == len(agrees):
        return [
            "No two views agree with each other: their poses may be inverted or far off, or they "
            "share no surface. The given poses are kept."
        ]
    names = ", ".join(str(i + 1) for i in alone[:12]) + (" ..." if len(alone) > 12 else "")
    if len(alone) == 1:
        return [f"View {names} of {len(agrees)} agrees with no other; its given pose is kept."]
    return [f"Views {names} of {len(agrees)} agree with no other; their given poses are kept."]


def _with_c2w(view: Working, c2w: np.ndarray):  # noqa: ANN202
    from worldstereo.fusion import Pose

    return Pose(view.pose.K, c2w, view.pose.width, view.pose.height)


def _moved_px(view: Working, before: np.ndarray, after: np.ndarray) -> float:
    known = view.depth[view.depth > 0]
    depth = float(np.median(known)) if len(known) else 1.0
    h, w = view.depth.shape
    u, v = np.meshgrid(np.linspace(0, w - 1, 5), np.linspace(0, h - 1, 4))
    u, v = u.ravel(), v.ravel()
    fx, fy, cx, cy = view.pose.K
    points = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(len(u))], 1) * depth
    x, y, _ = project(points, (np.linalg.inv(after) @ before)[:3], view.pose.K)
    return float(np.hypot(x - u, y - v).mean())


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
