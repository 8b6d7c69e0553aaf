"""Registration judges itself: poses move only if matches without a part in it fit better there.

Every pair keeps a random share of its matches out of the solution. They are compared at the given
and at the moved poses, one and the same match with itself. Matches in one part of a picture err
together, so the median of each part counts, once.

Sources: Hoeffding 1963 (bound on sums of random signs), Fisher 1935 (paired randomization).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo.views.fusion import Working
from worldstereo.views.registration._matches import Match, distances

SURE = 3.0
"""Of a sum of differences over its root sum of squares. Were better and worse equally likely, more
would come by chance in less than exp(-SURE**2 / 2) = 1.1 % of captures, however they are spread."""
CANDIDATES = 64  # views asked whether the world should stay where they are


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
        return (
            f"registration: {what}, held-out matches {self.before_px:.2f} px off as given, "
            f"{self.after_px:.2f} as moved ({self.matches} matches; certainty {self.sure:.1f}, "
            f"needed {SURE:.0f})"
        )


def compared(
    views: Sequence[Working], given: np.ndarray, moved: np.ndarray, matches: Sequence[Match]
) -> Check | None:
    """A paired test over a capture; None where no pose moved or nothing was held out."""
    moving = [i for i in range(len(views)) if not np.array_equal(given[i], moved[i])]
    before, after, gains = [], [], []
    for m in matches:
        if not moving or not m.judge.any():
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
    views: Sequence[Working], given: np.ndarray, moved: np.ndarray, matches: Sequence[Match]
) -> np.ndarray:
    """(n,) bool: whether a view's held-out matches fit better where it was moved to.

    Asked with all other views where they were moved to.
    """
    gains = np.zeros(len(views))
    for m in matches:
        if not m.judge.any():
            continue
        after = _distances(m, views, moved[m.i], moved[m.j])
        gains[m.i] += _by_tile(m, _distances(m, views, given[m.i], moved[m.j]) - after).sum()
        gains[m.j] += _by_tile(m, _distances(m, views, moved[m.i], given[m.j]) - after).sum()
    return gains > 0


def certainty(gains: np.ndarray) -> float:
    """A sum of differences in units of what random signs would make of it."""
    return float(gains.sum() / max(float(np.sqrt((gains**2).sum())), 1e-12))


def anchor(
    views: Sequence[Working],
    given: np.ndarray,
    moved: np.ndarray,
    agreeing: Sequence[int],
    stays: float,
) -> int:
    """The view whose given pose the world is hung on: view 0, unless most speak against it.

    Poses are solved up to a motion of the whole world. Another view is taken where at least half
    of the agreeing ones stay within `stays` pixels of their given poses if it does, and fewer do
    if view 0 does.
    """
    if 0 not in agreeing:
        return 0
    asked = [agreeing[k] for k in _evenly(len(agreeing), CANDIDATES)]
    focal = np.array([views[j].pose.K[0] for j in asked])
    depth = np.array([_depth(views[j]) for j in asked])

    def staying(i: int) -> int:
        hung = given[i] @ np.linalg.inv(moved[i]) @ moved[asked]
        off = np.linalg.inv(given[asked]) @ hung
        cosine = (np.trace(off[:, :3, :3], axis1=1, axis2=2) - 1) / 2
        turn = np.arccos(np.clip(cosine, -1, 1))
        return int((focal * (turn + np.linalg.norm(off[:, :3, 3], axis=1) / depth) < stays).sum())

    now = staying(0)
    counts = [staying(i) for i in asked]
    best = int(np.argmax(counts))
    return asked[best] if counts[best] > now and 2 * counts[best] >= len(asked) else 0


def _distances(m: Match, views: Sequence[Working], i: np.ndarray, j: np.ndarray) -> np.ndarray:
    return distances(m, np.linalg.inv(j) @ i, views[m.j].pose.K, m.judge)


def _by_tile(m: Match, values: np.ndarray) -> np.ndarray:
    """The median of the values in each part of the picture that has any."""
    tile = m.tile[m.judge]
    return np.array([np.median(values[tile == t]) for t in np.unique(tile)])


def _depth(view: Working) -> float:
    known = view.depth[view.depth > 0]
    return float(np.median(known[::7])) if len(known) else 1.0


def _evenly(n: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int)).tolist()
