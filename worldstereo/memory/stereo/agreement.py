"""Does a generated frame show what the memory knows? Keypoint entries are searched in it.

Each entry that a frame should show is looked for where the entry's point projects: the source
view's window around it, carried over by the surface's plane, is compared with the frame around the
projection. The share of entries that answer is the frame's agreement; a cell of the picture in
which entries were expected and none answers is contradicted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldstereo.memory.stereo.keypoints import KeypointMemory, expected_entries
from worldstereo.scene import View

HALF = 7
"""Half the side of a window in pixels."""
REACH = 3
"""How far from its projection an entry may be found, pixels."""
ALIKE = 0.8
"""Correlation from which on a window shows the same surface detail."""
ENOUGH = 2
"""Expected entries that a cell needs before it can be contradicted."""
CELLS = (12, 16)
MAX_ENTRIES = 400
"""Entries searched in one frame, those of the highest confidence."""
FLAT = 3.0
"""Standard deviation of a window in grey levels below which it shows nothing to find again."""


class FrameAgreement(NamedTuple):
    """What the entries of the memory say about one frame."""

    expected: int
    answered: int
    drift_px: float
    """Median distance of what answered from where it was expected."""
    map: UInt8[Tensor, "12 16"]
    """Of each cell 1 + 254 x the share that answered; 0 where nothing was expected."""

    @property
    def share(self) -> float:
        """In [0, 1]; 1 where nothing was expected."""
        return self.answered / self.expected if self.expected else 1.0

    def contradicted(self, height: int, width: int) -> Bool[Tensor, "1 H W"]:
        """Pixels of cells in which entries were expected and none answered."""
        bad = (self.map == 1).float()[None, None]
        return torch.nn.functional.interpolate(bad, (height, width), mode="nearest")[0] > 0.5


def agreement(
    memory: KeypointMemory,
    color: Float[Tensor, "3 H W"],
    depth: Float[Tensor, "1 H W"],
    view: View,
    views: Sequence[View],
) -> FrameAgreement:
    """Searches a frame for the entries that it should show.

    Args:
        color, depth: the frame; its depth says what is in front.
        view: the frame's camera, as a view.
        views: the remembered views, whose pictures the entries come from.
    """
    nothing = FrameAgreement(0, 0, 0.0, torch.zeros(CELLS, dtype=torch.uint8))
    slots, pixels = expected_entries(memory, view, depth, views)
    if len(slots) == 0:
        return nothing
    sure = memory.confidence[torch.from_numpy(slots), 0].numpy()
    order = np.argsort(-sure, kind="stable")[:MAX_ENTRIES]
    slots, pixels = slots[order], pixels[order]
    meta = memory.metadata
    rows = torch.from_numpy(slots)
    source = meta["frame"][rows].numpy()
    at = meta["pixel"][rows].double().numpy()
    points = memory.correspondences[rows, 0].double().numpy()
    normals = meta["normal"][rows].double().numpy()
    frame = _gray(color)
    wanted = np.zeros((len(slots), 2 * HALF + 1, 2 * HALF + 1), np.float32)
    for number in np.unique(source):
        if not 0 <= number < len(views):
            continue
        here = source == number
        wanted[here] = _windows(
            _gray(views[number].color),
            at[here],
            _affine(points[here], normals[here], view, views[number]),
            HALF,
        )
    textured = wanted.std((1, 2)) > FLAT
    slots, pixels, wanted = slots[textured], pixels[textured], wanted[textured]
    if len(slots) == 0:
        return nothing
    shown = _windows(frame, pixels, np.tile(np.eye(2), (len(pixels), 1, 1)), HALF + REACH)
    best, drift = _search(wanted, shown)
    answers = best >= ALIKE
    h, w = frame.shape
    row = np.clip((pixels[:, 1] / h * CELLS[0]).astype(int), 0, CELLS[0] - 1)
    column = np.clip((pixels[:, 0] / w * CELLS[1]).astype(int), 0, CELLS[1] - 1)
    cell = row * CELLS[1] + column
    count = np.bincount(cell, minlength=CELLS[0] * CELLS[1])
    good = np.bincount(cell, answers, minlength=len(count))
    said = np.where(count >= ENOUGH, 1 + np.rint(254 * good / np.maximum(count, 1)), 0)
    return FrameAgreement(
        len(slots),
        int(answers.sum()),
        float(np.median(drift[answers])) if answers.any() else 0.0,
        torch.from_numpy(said.astype(np.uint8).reshape(CELLS)),
    )


def _gray(color: Float[Tensor, "3 H W"]) -> np.ndarray:
    weight = torch.tensor([0.299, 0.587, 0.114])
    return (torch.einsum("chw,c->hw", color.cpu().float(), weight) * 255).numpy()


def _affine(points: np.ndarray, normals: np.ndarray, frame: View, source: View) -> np.ndarray:
    """(N, 2, 2): how a step of one pixel in the frame moves in the source, on each plane."""
    K, c2w = (getattr(frame.cameras, n).double().numpy() for n in ("K", "c2w"))
    toward = c2w[:3, 3] - points
    far = np.linalg.norm(toward, axis=1, keepdims=True)
    known = normals.any(1, keepdims=True)
    normal = np.where(known, normals, toward / np.maximum(far, 1e-12))
    centre = _projected(points, frame)
    out = np.zeros((len(points), 2, 2))
    base = _projected(points, source)
    for axis in range(2):
        moved = centre.copy()
        moved[:, axis] += 1
        ray = np.concatenate([moved, np.ones((len(moved), 1))], 1) @ np.linalg.inv(K).T
        ray = ray @ c2w[:3, :3].T
        along = (normal * (points - c2w[:3, 3])).sum(1) / _away_from_zero((normal * ray).sum(1))
        out[:, :, axis] = _projected(c2w[:3, 3] + ray * along[:, None], source) - base
    return np.clip(np.nan_to_num(out), -4, 4)


def _away_from_zero(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < 1e-9, 1e-9, values)


def _projected(points: np.ndarray, view: View) -> np.ndarray:
    K, c2w = (getattr(view.cameras, n).double().numpy() for n in ("K", "c2w"))
    q = (points - c2w[:3, 3]) @ c2w[:3, :3] @ K.T
    return q[:, :2] / _away_from_zero(q[:, 2:])


def _windows(gray: np.ndarray, at: np.ndarray, affine: np.ndarray, half: int) -> np.ndarray:
    """(N, 2 half + 1, 2 half + 1) windows around pixels, stepped through by an affine map."""
    import cv2

    side = 2 * half + 1
    step = np.arange(-half, half + 1, dtype=np.float64)
    v, u = np.meshgrid(step, step, indexing="ij")
    x = (
        at[:, 0, None, None]
        - 0.5
        + affine[:, 0, 0, None, None] * u
        + affine[:, 0, 1, None, None] * v
    )
    y = (
        at[:, 1, None, None]
        - 0.5
        + affine[:, 1, 0, None, None] * u
        + affine[:, 1, 1, None, None] * v
    )
    return cv2.remap(
        gray.astype(np.float32),
        x.reshape(-1, side).astype(np.float32),
        y.reshape(-1, side).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    ).reshape(-1, side, side)


def _search(wanted: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best correlation of each window within the reach, and how far from the middle it lies."""
    n, side = wanted.shape[:2]
    a = wanted.reshape(n, -1)
    a = a - a.mean(1, keepdims=True)
    a /= np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-6)
    best, drift = np.full(n, -1.0), np.zeros(n)
    for dy in range(2 * REACH + 1):
        for dx in range(2 * REACH + 1):
            b = shown[:, dy : dy + side, dx : dx + side].reshape(n, -1)
            b = b - b.mean(1, keepdims=True)
            length = np.linalg.norm(b, axis=1)
            score = (a * b).sum(1) / np.maximum(length, FLAT * side / 2)
            better = score > best
            best = np.where(better, score, best)
            drift = np.where(better, np.hypot(dx - REACH, dy - REACH), drift)
    return best, drift
