"""Does a generated frame show what the memory knows? Keypoint entries are searched in it.

Each entry that a frame should show is looked for where its point projects. What the window around
it should look like is taken from the views that saw the entry: each pixel of the window is carried
into the view by the frame's own depth and counts only where that view shows the same surface, so
that windows across depth edges are compared where both pictures show the same and nowhere else.
The share of entries that answer is the frame's agreement; a cell of the picture in which entries
were expected and none answers is contradicted.

Windows are compared after a small affine motion that takes out what a little error of depth bends.
Only entries whose depth was measured are asked: where the memory completed or invented a depth it
does not know where the entry belongs. Nor are entries asked that another given view contradicts:
where the given views dispute with each other, a frame cannot agree with both.
"""

from collections.abc import Iterator, Sequence
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
ALIKE = 0.75
"""Correlation from which on an aligned window shows the same surface detail."""
BENT = 1.0
"""Most pixels by which aligning may move any pixel of a window against its whole-pixel place."""
ALIGNING = 4
"""Steps of the alignment."""
DAMPING = 1e-3
"""Share of the mean curvature that holds back motion along which a window shows nothing."""
WITNESSES = 6
"""Given views asked about the entries of a frame, those that see them most as the frame does."""
ROOM = REACH + 2
"""Pixels around a window that are kept for searching and aligning."""
BLUR = 1.0
"""Standard deviation in pixels of the smoothing of both pictures: a warped frame is softer than the
view it came from."""
SAME_SURFACE = 0.04
"""Relative difference of depth within which a view shows the frame's surface."""
SHARED = 0.5
"""Share of a window that a view must show of the same surfaces."""
TRUSTED = 0.25
"""Entries below this confidence have no measured depth."""
FINE = 3
"""Coarsest level of an entry that a window can show: beyond it the entry's blob is wider."""
MIN_VOTES = 2
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


class Witnesses:
    """What the given views say about each other's entries.

    An entry that another given view should show and does not (a reflection, what moved, depth or a
    pose that is wrong) is disputed, and tells nothing about a generated frame. Answers are kept for
    the frames of a clip.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self.views = tuple(views)
        self._given = [number for number, view in enumerate(views) if view.step == 0]
        self._grays: dict[int, np.ndarray] = {}
        self._denied: dict[tuple[float, ...], bool] = {}

    def gray(self, number: int) -> np.ndarray:
        """A view's picture as windows are compared in it."""
        if number not in self._grays:
            self._grays[number] = _smoothed(self.views[number].color)
        return self._grays[number]

    def disputed(self, memory: KeypointMemory, slots: np.ndarray, view: View) -> np.ndarray:
        """(P,) bool: entries that one of the given views nearest to the frame contradicts."""
        out = np.zeros(len(slots), bool)
        source, pixels = _sources(memory, slots)
        keys = [(int(s), *p) for s, p in zip(source, pixels.tolist(), strict=True)]
        points = memory.correspondences[torch.from_numpy(slots), 0].double().numpy()
        for number in self._nearest(points, view):
            new = [
                i
                for i, key in enumerate(keys)
                if key[0] != number and (number, *key) not in self._denied
            ]
            if new:
                denied = self._denies(memory, number, slots[new])
                self._denied.update(
                    ((number, *keys[i]), bool(no)) for i, no in zip(new, denied, strict=True)
                )
            out |= [self._denied.get((number, *key), False) for key in keys]
        return out

    def _denies(self, memory: KeypointMemory, number: int, slots: np.ndarray) -> np.ndarray:
        """(P,) bool: entries that a given view should show and does not."""
        view, out = self.views[number], np.zeros(len(slots), bool)
        shown, pixels = expected_entries(memory, view, view.depth, self.views, slots)
        if len(shown):
            bare = np.zeros((view.height, view.width), bool)
            usable, best, _ = _compare(
                memory, shown, pixels, self.gray(number), view.depth, bare, view, self, number
            )
            out = np.isin(slots, shown[usable & (best < ALIKE)])
        return out

    def _nearest(self, points: np.ndarray, view: View) -> list[int]:
        """Given views that see the entries most as the frame does."""
        middle = np.median(points, axis=0) if len(points) else np.zeros(3)
        eyes = [self.views[number].cameras.position for number in self._given]
        rays = torch.stack([view.cameras.position, *eyes]).double().cpu().numpy() - middle
        rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
        order = np.argsort(-(rays[1:] @ rays[0]), kind="stable")[:WITNESSES]
        return [self._given[k] for k in order]


def agreement(
    memory: KeypointMemory,
    color: Float[Tensor, "3 H W"],
    depth: Float[Tensor, "1 H W"],
    view: View,
    views: Sequence[View],
    *,
    hidden: Bool[Tensor, "1 H W"] | None = None,
    witnesses: Witnesses | None = None,
) -> FrameAgreement:
    """Searches a frame for the entries that it should show.

    Args:
        color, depth: the frame; its depth says what is in front.
        view: the frame's camera, as a view.
        views: the remembered views, whose pictures the entries come from.
        hidden: pixels that show no part of the world: they are fixed to the camera.
        witnesses: of the same views, kept from frame to frame of a clip: no entry is asked twice.
    """
    nothing = FrameAgreement(0, 0, 0.0, torch.zeros(CELLS, dtype=torch.uint8))
    witnesses = Witnesses(views) if witnesses is None else witnesses
    barred = np.zeros((view.height, view.width), bool)
    if hidden is not None:
        barred = hidden[0].cpu().numpy()
    slots, pixels = expected_entries(memory, view, depth, views)
    u, v = pixels.astype(int).T
    open_ = ~barred[v, u]
    slots, pixels = _trusted(memory, slots[open_], pixels[open_])
    if len(slots) == 0:
        return nothing
    frame = _smoothed(color)
    expected, best, drift = _compare(memory, slots, pixels, frame, depth, barred, view, witnesses)
    expected[expected] = ~witnesses.disputed(memory, slots[expected], view)
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
    said = np.where(count >= MIN_VOTES, 1 + np.rint(254 * good / np.maximum(count, 1)), 0)
    return FrameAgreement(
        len(pixels),
        int(answers.sum()),
        float(np.median(drift[answers])) if answers.any() else 0.0,
        torch.from_numpy(said.astype(np.uint8).reshape(CELLS)),
    )


def _trusted(
    memory: KeypointMemory, slots: np.ndarray, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of entries and where they are expected those that are asked, the surest first: of measured
    depth, no wider than a window, and one of those that lie at one pixel of one view."""
    rows = torch.from_numpy(slots)
    sure = memory.confidence[rows, 0].numpy()
    level = memory.metadata["level"][rows].numpy()
    order = np.argsort(-sure, kind="stable")
    order = order[((sure >= TRUSTED) & (level <= FINE))[order]]
    source, at = _sources(memory, slots[order])
    _, first = np.unique(np.column_stack([source, at]), axis=0, return_index=True)
    order = order[np.sort(first)][:MAX_ENTRIES]
    return slots[order], pixels[order]


def _sources(memory: KeypointMemory, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The view that each entry came from, and its pixel there: (P,), (P, 2)."""
    metadata, rows = memory.metadata, torch.from_numpy(slots)
    return metadata["frame"][rows].numpy(), metadata["pixel"][rows].numpy()


def _compare(
    memory: KeypointMemory,
    slots: np.ndarray,
    pixels: np.ndarray,
    frame: np.ndarray,
    depth: Float[Tensor, "1 H W"],
    barred: np.ndarray,
    view: View,
    witnesses: Witnesses,
    without: int = -1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which entries a picture lets be judged, the best correlation of each with what the views that
    saw it show (all but `without`), and how far from its projection that was found."""
    views = witnesses.views
    windows = _Windows(frame, depth[0].cpu().numpy(), barred, pixels, view)
    seen_by = memory.metadata["seen_by"][torch.from_numpy(slots)].numpy()
    seen_by = np.where(seen_by == without, -1, seen_by)
    expected = np.zeros(len(slots), bool)
    best, drift = np.full(len(slots), -1.0), np.zeros(len(slots))
    for column in range(seen_by.shape[1]):
        left = (best < ALIKE) & (seen_by[:, column] >= 0) & (seen_by[:, column] < len(views))
        rows = left.nonzero()[0]
        if len(rows) == 0:
            continue
        grays = {k: witnesses.gray(k) for k in np.unique(seen_by[rows, column]).tolist()}
        wanted, shared = windows.wanted(rows, seen_by[rows, column], views, grays)
        usable, score, where = windows.search(rows, wanted, shared)
        expected[rows] |= usable
        better = usable & (score > best[rows])
        best[rows[better]], drift[rows[better]] = score[better], where[better]
    return expected, best, drift


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
        wide = np.pad(frame, HALF + ROOM, mode="edge")
        reach = np.arange(2 * (HALF + ROOM) + 1)
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
        template = _Template.of(wanted, shared)
        usable = (shared.reshape(n, -1).mean(1) >= SHARED) & template.has_detail
        best, at = np.full(n, -1.0), np.zeros((n, 2), int)
        around = self.around[rows]
        for dy in range(-REACH, REACH + 1):
            for dx in range(-REACH, REACH + 1):
                y, x = dy + ROOM, dx + ROOM
                score = template.like(around[:, y : y + side, x : x + side])
                better = score > best
                best = np.where(better, score, best)
                at[better] = dx, dy
        moved = at.astype(float)
        bent = (usable & (best < ALIKE)).nonzero()[0]
        template = template.of_rows(bent)
        for motion, window in _aligned(around[bent], at[bent], wanted[bent], shared[bent]):
            score = template.like(window)
            better = score > best[bent]
            best[bent[better]] = score[better]
            moved[bent[better]] = (at[bent] + motion)[better]
        return usable, best, np.linalg.norm(moved, axis=1)


class _Template(NamedTuple):
    """What windows should look like, where they show the same."""

    values: np.ndarray
    """(n, P) float32, mean 0 over the mask, 0 outside it."""
    mask: np.ndarray
    area: np.ndarray
    """(n,) pixels of the mask."""
    length: np.ndarray

    @staticmethod
    def of(wanted: np.ndarray, shared: np.ndarray) -> "_Template":
        mask = shared.reshape(len(shared), -1).astype(np.float32)
        count = np.maximum(mask.sum(1), 1)
        values = wanted.reshape(mask.shape)
        values = mask * (values - ((mask * values).sum(1) / count)[:, None])
        return _Template(values, mask, count, np.linalg.norm(values, axis=1))

    def of_rows(self, rows: np.ndarray) -> "_Template":
        return _Template(*(each[rows] for each in self))

    @property
    def has_detail(self) -> np.ndarray:
        return self.length > FLAT * np.sqrt(self.area)

    def like(self, windows: np.ndarray) -> np.ndarray:
        """(n,) correlation with windows; what shows nothing there is like nothing."""
        b = windows.reshape(self.mask.shape)
        masked = self.mask * b
        spread = np.einsum("np,np->n", masked, b) - masked.sum(1) ** 2 / self.area
        other = np.maximum(np.sqrt(np.maximum(spread, 0)), FLAT / 2 * np.sqrt(self.area))
        return np.einsum("np,np->n", self.values, b) / np.maximum(self.length * other, 1e-6)


def _aligned(
    around: np.ndarray, at: np.ndarray, wanted: np.ndarray, shared: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows moved by a small affine motion toward what is wanted, step by step, and the motion of
    their middle: (n, 2), (n, side, side). No pixel moves by more than `BENT`.

    Depth that is a little wrong or oblique shears a window; correlation of whole-pixel shifts takes
    that for another picture. Source: Lucas & Kanade 1981, with gain and offset of the brightness.
    """
    n, side = wanted.shape[:2]
    step = np.arange(side, dtype=np.float32) - HALF
    x, y = (grid.ravel() for grid in np.meshgrid(step, step))
    # Along either axis a pixel moves by what its window's middle does and by shares of its place.
    basis = np.stack([np.ones_like(x), x / HALF, y / HALF])
    gy, gx = np.gradient(around, axis=(1, 2))
    layers = np.stack([around, gx, gy], -1)
    mask, target = shared.reshape(n, side * side, 1), wanted.reshape(n, side * side, 1)
    motion = np.zeros((n, 2, 3), np.float32)
    row = np.arange(n)[:, None]
    for _ in range(ALIGNING + 1):
        u = at[:, :1] + x + (HALF + ROOM) + motion[:, 0] @ basis
        v = at[:, 1:] + y + (HALF + ROOM) + motion[:, 1] @ basis
        i, j = np.floor(u).astype(int), np.floor(v).astype(int)
        a, b = ((f - k)[..., None].astype(np.float32) for f, k in ((u, i), (v, j)))
        top = layers[row, j, i] * (1 - a) + layers[row, j, i + 1] * a
        low = layers[row, j + 1, i] * (1 - a) + layers[row, j + 1, i + 1] * a
        now = top * (1 - b) + low * b
        yield motion[:, :, 0].astype(float), now[..., 0].reshape(wanted.shape)
        slopes = now[..., 1:, None] * basis.T[:, None]
        J = np.concatenate(
            [now[..., :1], np.ones_like(target), slopes.reshape(n, side * side, 6)], -1
        )
        weighted = (mask * J).transpose(0, 2, 1)
        normal = (weighted @ J).astype(float)
        right = (weighted @ target).astype(float)
        diagonal = np.einsum("nkk->nk", normal)
        diagonal[:, 2:] += DAMPING * diagonal[:, 2:].mean(1, keepdims=True)
        diagonal += 1e-3  # a window without any detail
        found = np.linalg.solve(normal, right)[..., 0]
        gain = np.where(found[:, :1] > 0.1, found[:, :1], 1.0)
        motion += (found[:, 2:] / gain).reshape(n, 2, 3).astype(np.float32)
        farthest = np.linalg.norm(np.abs(motion).sum(2), axis=1)  # at most, in a corner
        motion *= np.minimum(1, BENT / np.maximum(farthest, 1e-9))[:, None, None]
