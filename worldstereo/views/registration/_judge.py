"""Registration judges itself: poses move only if matches without a part in it fit better there.

Every pair keeps a random share of its matches out of the solution. They are compared at the given
and at the moved poses, one and the same match with itself. Matches in one part of a picture err
together, so the median of each part counts, once.

Sources: Hoeffding 1963 (bound on sums of random signs), Fisher 1935 (paired randomization).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo._core.evenly import evenly
from worldstereo.views.fusion import ViewArrays
from worldstereo.views.registration._matches import FlowMatch, distances, project

SURE = 3.0
"""Of a sum of differences over its root sum of squares. Were better and worse equally likely, more
would come by chance in less than exp(-SURE**2 / 2) = 1.1 % of captures, however they are spread."""
FELT = 0.1  # pixels; a view that moves by less is where it was: optical flow is no finer
ASTRAY = 0.45  # where poses drift steadily from the first view on, it is 1/2
CANDIDATES = 32  # views asked whether the world should stay where they are


@dataclass(frozen=True)
class Check:
    """What matches held out of the solution say about the poses that were solved for."""

    kept: bool
    """Whether the moved poses are kept; else the given ones are."""
    before_px: float
    """Median distance of the held-out matches at the given poses."""
    after_px: float
    """The same at the moved ones."""
    sure: float
    """How sure they are, to be compared with `SURE`."""
    matches: int
    moved: int
    views: int

    @property
    def words(self) -> str:
        """One line for a person."""
        what = f"{self.moved} of {self.views} poses moved" if self.kept else "given poses kept"
        if not self.moved:
            off = f"{self.before_px:.2f} px off ({self.matches} matches)"
            return f"registration: {what}, held-out matches {off}"
        return (
            f"registration: {what}, held-out matches {self.before_px:.2f} px off as given, "
            f"{self.after_px:.2f} as moved ({self.matches} matches; certainty {self.sure:.1f}, "
            f"needed {SURE:.0f})"
        )


def compared(
    views: Sequence[ViewArrays], given: np.ndarray, moved: np.ndarray, matches: Sequence[FlowMatch]
) -> Check | None:
    """A paired test over a capture; None where nothing was held out."""
    moving = [i for i in range(len(views)) if not np.array_equal(given[i], moved[i])]
    before, after, gains = [], [], []
    for m in matches:
        if not m.judge.any():
            continue
        a, b = (_distances(m, views, p[m.i], p[m.j]) for p in (given, moved))
        before.append(a)
        after.append(b)
        gains.append(_by_tile(m, a - b))
    if not gains:
        return None
    sure = certainty(np.concatenate(gains))
    a, b = np.concatenate(before), np.concatenate(after)
    middle = float(np.median(a)), float(np.median(b))
    return Check(sure > SURE, *middle, sure, len(a), len(moving), len(views))


def better_per_view(
    views: Sequence[ViewArrays], given: np.ndarray, moved: np.ndarray, matches: Sequence[FlowMatch]
) -> np.ndarray:
    """(n,) bool: whether a view was moved by more than nothing, to where its matches fit better.

    Asked of held-out ones, with all other views where they were moved to.
    """
    gains = np.zeros(len(views))
    for m in matches:
        if not m.judge.any():
            continue
        after = _distances(m, views, moved[m.i], moved[m.j])
        gains[m.i] += _by_tile(m, _distances(m, views, given[m.i], moved[m.j]) - after).sum()
        gains[m.j] += _by_tile(m, _distances(m, views, moved[m.i], given[m.j]) - after).sum()
    far = [motion_px(v, given[i], moved[i]) > FELT for i, v in enumerate(views)]
    return np.array(far) & (gains > 0)


def motion_px(view: ViewArrays, before: np.ndarray, after: np.ndarray) -> float:
    """How far a picture moves, in pixels at its median depth, when its camera does."""
    if np.array_equal(before, after):
        return 0.0
    known = view.depth[2::4, 2::4]
    known = known[known > 0]
    depth = float(np.median(known)) if len(known) else 1.0
    h, w = view.depth.shape
    u, v = np.meshgrid(np.linspace(0, w - 1, 5), np.linspace(0, h - 1, 4))
    u, v = u.ravel(), v.ravel()
    fx, fy, cx, cy = view.pose.K
    points = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(len(u))], 1) * depth
    x, y, _ = project(points, (np.linalg.inv(after) @ before)[:3], view.pose.K)
    return float(np.hypot(x - u, y - v).mean())


def certainty(gains: np.ndarray) -> float:
    """A sum of differences in units of what random signs would make of it."""
    return float(gains.sum() / max(float(np.sqrt((gains**2).sum())), 1e-12))


def anchor(
    views: Sequence[ViewArrays], given: np.ndarray, moved: np.ndarray, agreeing: Sequence[int]
) -> int:
    """The view whose given pose the world is hung on: view 0, unless it is off and most are not.

    Poses are solved up to a motion of the whole world. The better half of the agreeing views are
    asked how far they move at most; another view is taken where that is less than `ASTRAY` of what
    it is with view 0.
    """
    if 0 not in agreeing:
        return 0
    asked = [agreeing[k] for k in evenly(len(agreeing), CANDIDATES)]

    def far(i: int) -> float:
        hung = given[i] @ np.linalg.inv(moved[i]) @ moved[asked]
        moves = [motion_px(views[j], given[j], hung[k]) for k, j in enumerate(asked)]
        return sorted(moves)[(len(moves) - 1) // 2]

    most = [far(i) for i in asked]
    best = int(np.argmin(most))
    return asked[best] if most[best] < ASTRAY * far(0) else 0


def _distances(
    m: FlowMatch, views: Sequence[ViewArrays], i: np.ndarray, j: np.ndarray
) -> np.ndarray:
    return distances(m, np.linalg.inv(j) @ i, views[m.j].pose.K, m.judge)


def _by_tile(m: FlowMatch, values: np.ndarray) -> np.ndarray:
    """The median of the values in each part of the picture that has any."""
    tile = m.tile[m.judge]
    return np.array([np.median(values[tile == t]) for t in np.unique(tile)])
