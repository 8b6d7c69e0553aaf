"""Does a generated frame show what the memory knows? Keypoint entries are searched in it.

Each entry that a frame should show is looked for where its point projects. What the window around
it should look like is taken from the views that saw the entry: each pixel of the window is carried
into the view by the frame's own depth and counts only where that view shows the same surface, so
that windows across depth edges are compared where both pictures show the same and nowhere else.
The share of entries that answer is the frame's agreement; a cell of the picture in which entries
were expected and none answers is contradicted.

Only entries whose depth was measured are asked: where the memory completed or invented a depth it
does not know where the entry belongs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldstereo.memory.stereo.keypoints import KeypointMemory, expected_entries
from worldstereo.scene import View

HALF = 10
"""Half the side of a window in pixels."""
REACH = 3
"""How far from its projection an entry may be found, pixels."""
ALIKE = 0.7
"""Correlation from which on a window shows the same surface detail: 3 to 8 % of windows of another
world reach it by chance, 93 to 99 % of windows that were warped from other views do."""
BLUR = 1.0
"""Standard deviation in pixels of the smoothing of both pictures: a warped frame is softer than the
view it came from."""
SAME_SURFACE = 0.04
"""Relative difference of depth within which a view shows the frame's surface."""
SHARED = 0.5
"""Share of a window that a view must show of the same surfaces."""
TRUSTED = 0.25
"""Entries below this confidence have no measured depth."""
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
    *,
    hidden: Bool[Tensor, "1 H W"] | None = None,
) -> FrameAgreement:
    """Searches a frame for the entries that it should show.

    Args:
        color, depth: the frame; its depth says what is in front.
        view: the frame's camera, as a view.
        views: the remembered views, whose pictures the entries come from.
        hidden: pixels that show no part of the world, as the camera's own rig.
    """
    nothing = FrameAgreement(0, 0, 0.0, torch.zeros(CELLS, dtype=torch.uint8))
    slots, pixels = expected_entries(memory, view, depth, views)
    rows = torch.from_numpy(slots)
    sure = memory.confidence[rows, 0].numpy()
    barred = np.zeros((view.height, view.width), bool)
    if hidden is not None:
        barred = hidden[0].cpu().numpy()
    u, v = pixels.astype(int).T
    asked = (sure >= TRUSTED) & ~barred[v, u]
    order = np.argsort(-sure[asked], kind="stable")[:MAX_ENTRIES]
    slots, pixels = slots[asked][order], pixels[asked][order]
    if len(slots) == 0:
        return nothing
    frame = _smoothed(color)
    windows = _Windows(frame, depth[0].cpu().numpy(), barred, pixels, view)
    seen_by = memory.metadata["seen_by"][torch.from_numpy(slots)].numpy()
    expected = np.zeros(len(slots), bool)
    best, drift = np.full(len(slots), -1.0), np.zeros(len(slots))
    grays: dict[int, np.ndarray] = {}
    for column in range(seen_by.shape[1]):
        left = (best < ALIKE) & (seen_by[:, column] >= 0) & (seen_by[:, column] < len(views))
        rows = left.nonzero()[0]
        if len(rows) == 0:
            continue
        for number in np.unique(seen_by[rows, column]).tolist():
            if number not in grays:
                grays[number] = _smoothed(views[number].color)
        wanted, shared = windows.wanted(rows, seen_by[rows, column], views, grays)
        usable, score, where = windows.search(rows, wanted, shared)
        expected[rows] |= usable
        better = usable & (score > best[rows])
        best[rows[better]], drift[rows[better]] = score[better], where[better]
    pixels, best, drift = pixels[expected], best[expected], drift[expected]
    if len(pixels) == 0:
        return nothing
    answers = best >= ALIKE
    h, w = frame.shape
    row = np.clip((pixels[:, 1] / h * CELLS[0]).astype(int), 0, CELLS[0] - 1)
    column = np.clip((pixels[:, 0] / w * CELLS[1]).astype(int), 0, CELLS[1] - 1)
    cell = row * CELLS[1] + column
    count = np.bincount(cell, minlength=CELLS[0] * CELLS[1])
    good = np.bincount(cell, answers, minlength=len(count))
    said = np.where(count >= ENOUGH, 1 + np.rint(254 * good / np.maximum(count, 1)), 0)
    return FrameAgreement(
        len(pixels),
        int(answers.sum()),
        float(np.median(drift[answers])) if answers.any() else 0.0,
        torch.from_numpy(said.astype(np.uint8).reshape(CELLS)),
    )


def _smoothed(color: Float[Tensor, "3 H W"]) -> np.ndarray:
    import cv2

    weight = torch.tensor([0.299, 0.587, 0.114])
    gray = (torch.einsum("chw,c->hw", color.cpu().float(), weight) * 255).numpy()
    return cv2.GaussianBlur(gray, (0, 0), BLUR)


class _Windows:
    """Windows of a frame around the pixels nearest to the entries' projections."""

    def __init__(
        self,
        frame: np.ndarray,
        depth: np.ndarray,
        barred: np.ndarray,
        pixels: np.ndarray,
        view: View,
    ) -> None:
        h, w = frame.shape
        x, y = np.floor(pixels).astype(int).T
        step = np.arange(-HALF, HALF + 1)
        u = (x[:, None, None] + step[None, None, :]).clip(0, w - 1)
        v = (y[:, None, None] + step[None, :, None]).clip(0, h - 1)
        u, v = np.broadcast_arrays(u, v)
        self.depth = depth[v, u]
        self.shown = (self.depth > 0) & ~barred[v, u]
        K, c2w = (getattr(view.cameras, n).double().cpu().numpy() for n in ("K", "c2w"))
        ray = np.stack([u + 0.5, v + 0.5, np.ones(u.shape)], -1) @ np.linalg.inv(K).T
        self.points = (ray * self.depth[..., None]) @ c2w[:3, :3].T + c2w[:3, 3]
        wide = np.pad(frame, HALF + REACH, mode="edge")
        reach = np.arange(2 * (HALF + REACH) + 1)
        self.around = wide[(y[:, None] + reach)[:, :, None], (x[:, None] + reach)[:, None, :]]

    def wanted(
        self,
        rows: np.ndarray,
        source: np.ndarray,
        views: Sequence[View],
        grays: dict[int, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """What one view each shows at the points of the windows, and where it shows them."""
        import cv2

        shape = (len(rows), 2 * HALF + 1, 2 * HALF + 1)
        wanted, shared = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for number in np.unique(source).tolist():
            here = source == number
            view, at = views[number], rows[here]
            K, c2w = (getattr(view.cameras, n).double().cpu().numpy() for n in ("K", "c2w"))
            q = (self.points[at] - c2w[:3, 3]) @ c2w[:3, :3]
            z = q[..., 2]
            pixel = (q @ K.T)[..., :2] / np.where(z > 0, z, np.inf)[..., None]
            size = (view.width - 1, view.height - 1)
            inside = (z > 0) & (pixel >= 1).all(-1) & (pixel < size).all(-1)
            pixel = np.where(inside[..., None], pixel, 1.0)
            own = view.depth[0].cpu().numpy()
            own = own[pixel[..., 1].astype(int), pixel[..., 0].astype(int)]
            same = (own > 0) & (np.abs(own - z) < SAME_SURFACE * z)
            shared[here] = inside & same & self.shown[at]
            place = (pixel - 0.5).astype(np.float32).reshape(-1, shape[2], 2)
            wanted[here] = cv2.remap(
                grays[number], place[..., 0], place[..., 1], cv2.INTER_LINEAR
            ).reshape(-1, *shape[1:])
        return wanted, shared

    def search(
        self, rows: np.ndarray, wanted: np.ndarray, shared: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whether each window can be judged, its best correlation within the reach over shared
        pixels, and how far from the middle that lies."""
        n, side = wanted.shape[:2]
        mask = shared.reshape(n, -1).astype(np.float32)
        count = np.maximum(mask.sum(1), 1)
        a = wanted.reshape(n, -1)
        a = mask * (a - ((mask * a).sum(1) / count)[:, None])
        length = np.linalg.norm(a, axis=1)
        usable = (mask.mean(1) >= SHARED) & (length > FLAT * np.sqrt(count))
        best, drift = np.full(n, -1.0), np.zeros(n)
        around, floor = self.around[rows], FLAT / 2 * np.sqrt(count)
        for dy in range(2 * REACH + 1):
            for dx in range(2 * REACH + 1):
                b = around[:, dy : dy + side, dx : dx + side].reshape(n, -1)
                masked = mask * b
                spread = np.einsum("np,np->n", masked, b) - masked.sum(1) ** 2 / count
                other = np.maximum(np.sqrt(np.maximum(spread, 0)), floor)
                score = np.einsum("np,np->n", a, b) / np.maximum(length * other, 1e-6)
                better = score > best
                best = np.where(better, score, best)
                drift = np.where(better, np.hypot(dx - REACH, dy - REACH), drift)
        return usable, best, drift
