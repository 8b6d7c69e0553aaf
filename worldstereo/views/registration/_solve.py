"""Poses from matches: pairs that a rigid motion explains, then all views together.

Analytic derivatives in camera axes: numerical ones in single precision let the whole set drift. A
motion of the second camera is one of the first by the adjoint, so each pair's matches are summed
once into 6x6 numbers.
"""

from collections.abc import Sequence

import numpy as np

from worldstereo.progress import OnStep
from worldstereo.views.fusion import REFERENCE_DEPTH, Pose, ViewArrays, parallel_for
from worldstereo.views.registration._field import exp6, log6
from worldstereo.views.registration._judge import (
    FELT,
    Check,
    anchor,
    better_per_view,
    compared,
    motion_px,
)
from worldstereo.views.registration._matches import (
    FlowMatch,
    as_given,
    chosen_pairs,
    distances,
    match,
)

HUBER = 1.0  # pixels
REJECT = 20.0  # pixels
PRIOR = 200.0  # px^2 per radian^2
PRIOR_LENGTH = PRIOR * REFERENCE_DEPTH**2  # px^2 per u^2
FALL = 0.8  # the held-out residual must fall to this share of what it was
WORST = 3.0  # pixels; a pair that fits worse in the end rests on chance matches
LIKE = 0.5  # correlation; matched pictures of the same place had .71 and more, of others .42
AGREED = 0.5  # pixels; below this a pair agrees already and has nothing to fall
SHORT = 2.0  # pixels; optical flow over less is as good as it gets
NEIGHBOURS = 8
ROUNDS = 2  # of matching; each starts from the poses of the one before


def solve(
    views: Sequence[ViewArrays],
    start: np.ndarray,
    old: int,
    on_step: OnStep,
    numbers: Sequence[int] | None = None,
    judged: np.ndarray | None = None,
) -> tuple[np.ndarray, list[bool], list[str], Check | None]:
    """Poses of all views (the first `old` and view 0 stay), who agrees, what to say, and a check.

    Every round chooses its pairs at the poses that were found so far: views that stood too far off
    to be matched, or to see that they overlap, get another chance there.

    Where most views keep their places only if view 0 moves, it is view 0 that moves. What was
    solved is kept if matches that had no part in it fit significantly better; None: nothing to
    check.

    Args:
        numbers: what each view is called in what is said; from 1 on without it.
        judged: poses whose residual must fall for a pair to count; `start` without it.
    """
    n = len(views)
    if n < 2:
        return start, [True] * n, [], None
    new = list(range(max(old, 0), n))
    poses, judged = start.copy(), start if judged is None else judged
    free = np.array([i >= max(old, 1) for i in range(n)])
    accepted: list[FlowMatch] = []
    explained: list[FlowMatch] = []
    tried: dict[tuple[int, int], np.ndarray] = {}
    for turn in range(ROUNDS):
        placed = [v.moved(with_c2w(v, poses[i])) for i, v in enumerate(views)]
        stale = {pair for pair, then in tried.items() if _moved(views, poses, pair, then)}
        # Flow that had a short way to go is right already; what was matched here stays as it is.
        near = [m for m in accepted if m.reach < SHORT or (m.i, m.j) not in stale]
        pairs = {*chosen_pairs(placed, new, NEIGHBOURS), *((m.i, m.j) for m in accepted)}
        pairs -= {(m.i, m.j) for m in near} | (tried.keys() - stale)
        tried |= {(i, j): np.linalg.inv(poses[j]) @ poses[i] for i, j in pairs}
        found = near + _all_matches(placed, sorted(pairs), on_step, turn, ROUNDS)
        found.sort(key=lambda m: (m.i, m.j))
        explained = [m for m in found if _explained(m, views, judged, start)]
        last = turn == ROUNDS - 1
        accepted = _solve_poses(views, start, judged, poses, explained, free, last)
        if not accepted:
            break
    if old == 0 and accepted:
        poses, free = _anchored(views, start, poses, accepted)
    alike = [m for m in explained if m.likeness >= LIKE]
    poses, accepted, check = _kept_if_better(views, start, judged, poses, accepted, alike, free)
    agreeing = {k for m in accepted for k in (m.i, m.j)}
    agrees = [i in agreeing for i in range(n)]
    return poses, agrees, notices(views, agrees, new, numbers), check


def _moved(
    views: Sequence[ViewArrays], poses: np.ndarray, pair: tuple[int, int], then: np.ndarray
) -> bool:
    """Whether two views stand otherwise to each other than `then`, the motion from i to j."""
    i, j = pair
    return motion_px(views[i], then, np.linalg.inv(poses[j]) @ poses[i]) > FELT


def _anchored(
    views: Sequence[ViewArrays], start: np.ndarray, poses: np.ndarray, accepted: Sequence[FlowMatch]
) -> tuple[np.ndarray, np.ndarray]:
    """The poses in the frame that most of the given ones share, and who may move in it."""
    agreeing = sorted({k for m in accepted for k in (m.i, m.j)})
    fixed = anchor(views, start, poses, agreeing)
    if fixed != 0:
        poses = start[fixed] @ np.linalg.inv(poses[fixed]) @ poses
        poses[fixed] = start[fixed]
    return poses, np.arange(len(poses)) != fixed


def _kept_if_better(
    views: Sequence[ViewArrays],
    start: np.ndarray,
    judged: np.ndarray,
    poses: np.ndarray,
    accepted: list[FlowMatch],
    matches: list[FlowMatch],
    free: np.ndarray,
) -> tuple[np.ndarray, list[FlowMatch], Check | None]:
    """Poses that matches without a part in them prefer to `start`; views they do not stay there.

    Args:
        accepted: the pairs that the poses were solved from.
        matches: all pairs that may judge.
    """
    free = free.copy()
    refused: set[int] = set()
    while True:
        agreeing = {k for m in accepted for k in (m.i, m.j)}
        for i in range(len(poses)):
            if i not in agreeing or i in refused:
                poses[i] = start[i]
        better = better_per_view(views, start, poses, matches)
        worse = [i for i in agreeing - refused if free[i] and not better[i]]
        if not worse:
            break
        refused |= set(worse)
        free[worse] = False
        poses[worse] = start[worse]
        accepted = _solve_poses(views, start, judged, poses, accepted, free, True)
    check = compared(views, start, poses, matches)
    if check is None or not check.kept:
        return start.copy(), accepted, check
    free &= np.isin(np.arange(len(poses)), list(agreeing))
    for _ in range(6):  # it is decided: those that were asked may help now
        _gauss_newton_step(views, start, poses, accepted, free, everything=True)
    return poses, accepted, check


def _all_matches(
    placed: Sequence[ViewArrays],
    pairs: list[tuple[int, int]],
    on_step: OnStep,
    turn: int,
    rounds: int,
) -> list[FlowMatch]:
    found: list[FlowMatch | None] = [None] * len(pairs)
    chunk = 8
    for begin in range(0, len(pairs), chunk):
        on_step(turn * len(pairs) + begin, rounds * len(pairs), "Registering views")
        part = pairs[begin : begin + chunk]

        def one(k: int, begin: int = begin) -> None:
            found[begin + k] = match(placed, *pairs[begin + k])

        parallel_for(len(part), one)
        if begin // chunk % 8 == 7:  # pairs ascend: what lies on disk can leave memory
            for view in placed:
                view.let_go()
    return [m for m in found if m is not None]


def _explained(
    m: FlowMatch, views: Sequence[ViewArrays], judged: np.ndarray, start: np.ndarray
) -> bool:
    """True if one rigid motion of the pair, sought from `start`, explains matches that had no say
    in it better than `judged` does."""
    K = views[m.j].pose.K
    before = _residual(m, np.linalg.inv(judged[m.j]) @ judged[m.i], K, m.held)
    if before < AGREED:
        return True
    T = np.linalg.inv(start[m.j]) @ start[m.i]
    for _ in range(5):
        H, g = normal_equations(m, T, K, m.fit)
        T = T @ exp6(-np.linalg.solve(H + np.diag([PRIOR] * 3 + [PRIOR_LENGTH] * 3), g))
    return _residual(m, T, K, m.held) <= FALL * before


def _residual(m: FlowMatch, T: np.ndarray, K: np.ndarray, which: np.ndarray) -> float:
    """Median distance in pixels between model and matches."""
    if not which.any():
        return np.nan  # no evidence: such a pair does not count
    return float(np.median(distances(m, T, K, which)))


def normal_equations(
    m: FlowMatch, T: np.ndarray, K: np.ndarray, which: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(6, 6) and (6,): what some matches say about a twist of the first camera's axes."""
    from worldstereo.views.registration import _kernels

    A, b = np.zeros((6, 6)), np.zeros(6)
    _kernels.normal_equations(m.points, m.pixels, which, T, K, HUBER, REJECT, A, b)
    return A, b


def second(T: np.ndarray) -> np.ndarray:
    """(6, 6): the twist of the first camera's axes that does what one of the second's does.

    With c2w_j moved by exp(e), T becomes exp(-e) T = T exp(-Ad(inv(T)) e).
    """
    R, t = T[:3, :3].T, T[:3, 3]
    out = np.zeros((6, 6))
    out[:3, :3] = out[3:, 3:] = -R
    out[3:, :3] = R @ np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    return out


def _solve_poses(
    views: Sequence[ViewArrays],
    start: np.ndarray,
    judged: np.ndarray,
    poses: np.ndarray,
    matches: list[FlowMatch],
    free: np.ndarray,
    last: bool,
) -> list[FlowMatch]:
    """Gauss-Newton over the free poses, written into `poses`; returns the matches that held.

    A pair whose held-out matches the joint solution does not fit better is left out, and the rest
    is solved again without it.
    """
    first = poses.copy()
    while matches:
        poses[:] = first
        for _ in range(6):
            _gauss_newton_step(views, start, poses, matches, free)
        worse = [m for m in matches if not _fits(m, views, judged, poses, last)]
        if not worse:
            break
        matches = [m for m in matches if not any(m is w for w in worse)]
    if not matches:
        poses[:] = first
    return matches


def _fits(
    m: FlowMatch, views: Sequence[ViewArrays], before: np.ndarray, after: np.ndarray, last: bool
) -> bool:
    """True if held-out matches fit better than before, and in the last round well."""
    K = views[m.j].pose.K
    old, new = (_residual(m, np.linalg.inv(p[m.j]) @ p[m.i], K, m.held) for p in (before, after))
    if last and (new > WORST or m.likeness < LIKE):
        return False
    return new < AGREED or new <= FALL * old


def _gauss_newton_step(
    views: Sequence[ViewArrays],
    start: np.ndarray,
    poses: np.ndarray,
    matches: list[FlowMatch],
    free: np.ndarray,
    *,
    everything: bool = False,
) -> None:
    """One step, from the matches that poses are solved from, or from all."""
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import spsolve

    n = len(poses)
    moving = np.nonzero(np.repeat(free, 6))[0]
    if not len(moving):
        return
    prior = np.array([PRIOR] * 3 + [PRIOR_LENGTH] * 3)
    g = np.concatenate(
        [prior * log6(np.linalg.inv(s) @ p) for s, p in zip(start, poses, strict=True)]
    )
    # Few pairs of views meet: H is sparse, and each pair adds its 12x12 numbers to it.
    rows, columns, values = [np.arange(6 * n)], [np.arange(6 * n)], [np.tile(prior, n)]
    for m in matches:
        T = np.linalg.inv(poses[m.j]) @ poses[m.i]
        A, b = normal_equations(m, T, views[m.j].pose.K, m.fit | everything)
        both = np.concatenate([np.eye(6), second(T)], 1)
        at = np.r_[6 * m.i : 6 * m.i + 6, 6 * m.j : 6 * m.j + 6]
        g[at] += both.T @ b
        rows.append(np.repeat(at, 12))
        columns.append(np.tile(at, 12))
        values.append((both.T @ A @ both).ravel())
    where = np.concatenate(rows), np.concatenate(columns)
    H = coo_array((np.concatenate(values), where), shape=(6 * n, 6 * n)).tocsr()
    step = np.zeros(6 * n)
    step[moving] = -spsolve(H[moving][:, moving].tocsc(), g[moving], permc_spec="MMD_AT_PLUS_A")
    for i in np.nonzero(free)[0]:
        poses[i] = poses[i] @ exp6(step[6 * i : 6 * i + 6])


def notices(
    views: Sequence[ViewArrays],
    agrees: Sequence[bool],
    new: Sequence[int],
    numbers: Sequence[int] | None = None,
) -> list[str]:
    """What to say of the views `new` that agree with no other."""
    alone = [i for i in new if not agrees[i]]
    smooth = [i for i in alone if as_given(views[i], [v for k, v in enumerate(views) if k != i])]
    alone = [i for i in alone if i not in smooth]
    if not alone:
        if not smooth:
            return []
        return [
            f"{len(smooth)} of {len(agrees)} pictures are too smooth to refine their poses; depth "
            "and colours confirm the given ones."
        ]
    if len(alone) == len(agrees) and len(alone) > 1:
        return [
            "No two views agree with each other: their poses may be inverted or far off, or they "
            "share no surface. The given poses are kept."
        ]
    names = numbered([i + 1 if numbers is None else numbers[i] for i in alone])
    if len(alone) == 1:
        return [f"View {names} agrees with no other; its given pose is kept."]
    return [f"Views {names} agree with no other; their given poses are kept."]


def numbered(numbers: Sequence[int]) -> str:
    """Some numbers of views, the first dozen of many."""
    return ", ".join(str(k) for k in numbers[:12]) + (" ..." if len(numbers) > 12 else "")


def with_c2w(view: ViewArrays, c2w: np.ndarray) -> Pose:
    return Pose(view.pose.K, c2w, view.pose.width, view.pose.height)
