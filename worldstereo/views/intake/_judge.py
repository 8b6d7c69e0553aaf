"""The capture is its own judge: given views left out in turn are predicted from the others.

A quarter of the size, at most `MAX_LEFT_OUT` views, each from its `OTHERS` nearest: a stage costs a
fraction of a second to judge, however many views there are. What makes the predictions worse on
this capture is not done. The prediction is a plain one (fused depth, nearest views first), so that
it judges depth, poses and gains, and not how holes are filled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldstereo.views.fusion import (
    REFERENCE_DEPTH,
    Pose,
    ViewArrays,
    fetch,
    fused_depth,
    nearest_fill,
    parallel_for,
    pose_distance,
    standing,
)

QUARTER = 2  # halvings
MAX_LEFT_OUT = 8
OTHERS = 4
MIN_VIEWS = 3
TIE = 0.05  # dB; less is no difference


@dataclass(frozen=True)
class Decision:
    """What the self-check found out about one stage on this capture."""

    stage: str
    """"camera_fixed", "contradict", "by_others", "exposure", "stereo" or "learned"."""
    kept: bool
    gain_db: float
    """PSNR of views left out, with the stage over without it; mean over `views`."""
    views: int
    """How many views were left out in turn."""
    way: str = ""
    """Which of several ways was chosen, its gain counted from the worst; "" where there is one."""

    @property
    def words(self) -> str:
        """One line for a person."""
        what = self.way or ("kept" if self.kept else "not applied")
        return f"{self.stage}: {what}, {self.gain_db:+.2f} dB on {self.views} views left out"


class Judge:
    """Which views of a capture are left out in turn, and from which others each is predicted."""

    def __init__(self, work: Sequence[ViewArrays]) -> None:
        n = len(work)
        self.possible = n >= MIN_VIEWS and len({w.pose.shape for w in work}) == 1
        self.left_out: list[int] = []
        self.others: dict[int, list[int]] = {}
        self._known: dict[tuple, float] = {}
        """Scores without a layer, by the state of the views and the gains they follow from."""
        if not self.possible:
            return
        picked = np.unique(np.rint(np.linspace(0, n - 1, min(n, MAX_LEFT_OUT))).astype(int))
        self.left_out = picked.tolist()
        for i in self.left_out:
            apart = [pose_distance(work[i].pose, w.pose) for w in work]
            order = np.argsort(apart, kind="stable").tolist()
            self.others[i] = sorted([j for j in order if j != i][:OTHERS])

    def decide(
        self,
        stage: str,
        without: tuple[Sequence[ViewArrays], np.ndarray],
        with_it: tuple[Sequence[ViewArrays], np.ndarray],
        *,
        layer: tuple[np.ndarray, np.ndarray] | None = None,
        least: float = -TIE,
    ) -> Decision | None:
        """Whether a stage is kept: its gain must be above `least`; None where nothing can be told.

        Args:
            without, with_it: views and their log gains (n, 3) before and after the stage.
            layer: mask and colour pasted over what is predicted with the stage.
        """
        if not self.possible:
            return None
        before, after = self._scores(*without, None), self._scores(*with_it, layer)
        gain = float(np.mean(after - before))
        return Decision(stage, gain > least, round(gain, 3), len(before))

    def used(self) -> list[int]:
        """The views that serve its predictions, ascending."""
        return sorted({j for i in self.left_out for j in self.others[i]})

    def best(
        self, stage: str, tried: dict[Any, tuple[Sequence[ViewArrays], np.ndarray]]
    ) -> tuple[Decision | None, Any]:
        """Which of several ways of doing a stage predicts best; of equally good ones the first.

        Args:
            tried: by way, the views and their log gains after it.
        """
        ways = list(tried)
        if not self.possible:
            return None, ways[0]
        scores = [self._scores(*tried[way], None) for way in ways]
        gains = np.array([float(np.mean(s - scores[0])) for s in scores])
        k = int(np.argmax(gains > gains.max() - TIE))
        gain = round(float(gains[k] - gains.min()), 3)
        return Decision(stage, True, gain, len(scores[0]), str(ways[k])), ways[k]

    def _scores(
        self,
        work: Sequence[ViewArrays],
        gains: np.ndarray,
        layer: tuple[np.ndarray, np.ndarray] | None,
    ) -> np.ndarray:
        """PSNR of every view left out."""
        keys = [self._key(work, gains, i) for i in self.left_out]
        asked = [k for k, key in enumerate(keys) if layer is not None or key not in self._known]
        used = sorted({j for k in asked for j in self._concerned(k)})
        small: dict[int, ViewArrays] = {}

        def reduced(k: int) -> None:
            small[used[k]] = work[used[k]].reduced(QUARTER)

        parallel_for(len(used), reduced)
        out = np.array([self._known.get(key, np.nan) for key in keys])

        def one(n: int) -> None:
            k = asked[n]
            i = self.left_out[k]
            near = [small[j] for j in self.others[i]]
            gain = [gains[j] for j in self.others[i]]
            image = _predicted(small[i].pose, near, np.stack(gain))
            if layer is not None:
                image = _pasted(image, layer)
            error = image - small[i].color.astype(np.float32) / 255
            out[k] = -10 * np.log10(max(float((error * error).mean()), 1e-6))

        parallel_for(len(asked), one)
        if layer is None:
            self._known |= {keys[k]: float(out[k]) for k in asked}
        return out

    def _concerned(self, k: int) -> tuple[int, ...]:
        """The k-th view left out, and those that predict it."""
        return self.left_out[k], *self.others[self.left_out[k]]

    def _key(self, work: Sequence[ViewArrays], gains: np.ndarray, i: int) -> tuple:
        states = tuple(work[j].state for j in (i, *self.others[i]))
        return i, states, gains[self.others[i]].tobytes()


def _predicted(pose: Pose, views: Sequence[ViewArrays], gains: np.ndarray) -> np.ndarray:
    """(H, W, 3) of a pose from some views, holes from the nearest pixel."""
    depth = fused_depth(views, pose, nearest=True)
    near = np.array(
        [1 / (0.02 / REFERENCE_DEPTH + pose_distance(pose, v.pose)) ** 2 for v in views]
    )
    factor = np.exp(gains - near @ gains / near.sum()).astype(np.float32)
    total = np.zeros((*pose.shape, 3), np.float32)
    weights = np.zeros(pose.shape, np.float32)
    for view, share, gain in zip(views, standing(views, pose), factor, strict=True):
        color, agreement, angle = fetch(depth, pose, view)
        w = (agreement * share / (0.03 + angle) ** 2).astype(np.float32)
        total += w[..., None] * np.minimum(color * gain, 1)
        weights += w
    known = weights > 1e-9
    image = total / np.maximum(weights, 1e-9)[..., None]
    return nearest_fill(image, known) if known.any() else image


def _pasted(image: np.ndarray, layer: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    import cv2

    h, w = image.shape[:2]
    mask = cv2.resize(layer[0].astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
    color = cv2.resize(layer[1], (w, h), interpolation=cv2.INTER_AREA)
    return image + mask[..., None] * (color - image)
