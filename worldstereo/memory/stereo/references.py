"""Which remembered views serve a target, by votes of the keypoint entries that it should show.

An entry that lies in the target's picture and is not hidden there votes for the views that saw it:
the more, the more alike the angle and the scale under which they saw it, and the surer its
position. Votes are counted by cells of the target, so that a textured corner does not outvote the
rest of the picture; views whose exposure is far from that of the others weigh less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.memory.stereo.keypoints import AGREE, KeypointTable
from worldstereo.scene import View

CELLS = (12, 16)
WIDE = 50.0
"""Degrees between two rays to a point from which on one says nothing about the other."""
OCCLUDED = 2 * AGREE
"""An entry that lies so much behind what the target shows is hidden, relatively."""
MIN_GAIN = 0.002
"""Share of the target that a further view must add to what is served already."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A remembered view that serves a target, with the entries that voted for it."""

    view: int
    """Its index among the remembered views."""
    votes: float
    """Mean over the target's cells of its best entry's weight, in [0, 1]."""
    entries: np.ndarray
    """(n,) rows of the table that voted for it, the strongest first."""
    weights: np.ndarray
    """(n,) in [0, 1], what each vote weighs."""
    pixels: np.ndarray
    """(n, 2) where the target should show them."""


def references(
    table: KeypointTable,
    camera: Cameras,
    views: Sequence[View],
    *,
    depth: Float[Tensor, "1 H W"] | None = None,
    limit: int = 8,
    without: Sequence[int] = (),
) -> tuple[Reference, ...]:
    """The views that serve a camera, those that add most to what others serve first.

    Args:
        table: `KeypointMemory.table(...)` of the views.
        depth: what is known of the target's depth, any size, 0 where unknown: entries behind it do
            not vote.
        limit: most views.
        without: views that are not to serve, as the target itself.

    Returns:
        Empty where no entry lies in the picture: there the geometric index has to choose.
    """
    rows, pixels = _shown(table, camera, depth)
    if len(rows) == 0 or limit < 1 or len(views) == 0:
        return ()
    weight, seen_by = _weights(table, rows, camera, views)
    h, w = camera.height, camera.width
    cell = (pixels[:, 1] / h * CELLS[0]).astype(int).clip(0, CELLS[0] - 1) * CELLS[1]
    cell += (pixels[:, 0] / w * CELLS[1]).astype(int).clip(0, CELLS[1] - 1)
    value = np.zeros((len(views), CELLS[0] * CELLS[1]))
    for k in range(seen_by.shape[1]):
        use = seen_by[:, k] >= 0
        np.maximum.at(value, (seen_by[use, k], cell[use]), weight[use, k])
    value *= _exposure(views, value.sum(1))[:, None]
    value[list(without)] = 0
    out = []
    for view in _chosen(value, limit):
        row, column = ((seen_by == view) & (weight > 0)).nonzero()
        order = np.argsort(-weight[row, column], kind="stable")
        row, column = row[order], column[order]
        out.append(
            Reference(view, float(value[view].mean()), rows[row], weight[row, column], pixels[row])
        )
    return tuple(out)


def _shown(
    table: KeypointTable, camera: Cameras, depth: Float[Tensor, "1 H W"] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the entries that a camera shows, and where: in its picture, facing it, not hidden."""
    K, c2w = (getattr(camera, n).double().cpu().numpy() for n in ("K", "c2w"))
    q = (table.points - c2w[:3, 3]) @ c2w[:3, :3]
    z = np.where(q[:, 2] > 0, q[:, 2], np.inf)
    pixels = (q @ K.T)[:, :2] / z[:, None]
    inside = (q[:, 2] > 0) & (pixels >= 0).all(1) & (pixels < [camera.width, camera.height]).all(1)
    toward = c2w[:3, 3] - table.points
    inside &= ~table.normals.any(1) | ((table.normals * toward).sum(1) > 0)
    rows = inside.nonzero()[0]
    if depth is not None and len(rows):
        known = depth[0].cpu().numpy()
        at = pixels[rows] * [known.shape[1] / camera.width, known.shape[0] / camera.height]
        shown = known[at[:, 1].astype(int), at[:, 0].astype(int)]
        rows = rows[(shown <= 0) | (z[rows] < shown * (1 + OCCLUDED))]
    return rows, pixels[rows]


def _weights(
    table: KeypointTable, rows: np.ndarray, camera: Cameras, views: Sequence[View]
) -> tuple[np.ndarray, np.ndarray]:
    """(n, S) what each vote weighs for each view that saw its entry, and those views, -1: none."""
    centre = np.stack([v.cameras.position.double().cpu().numpy() for v in views])
    focal = np.array([float(v.cameras.K[0, 0]) for v in views])
    place, focal_here = camera.position.double().cpu().numpy(), float(camera.K[0, 0])
    points = table.points[rows]
    seen_by = np.where(table.seen_by[rows] < len(views), table.seen_by[rows], -1)
    ray = points - place
    far = np.linalg.norm(ray, axis=1)
    ray /= np.maximum(far, 1e-12)[:, None]
    other = points[:, None] - centre[seen_by]
    away = np.linalg.norm(other, axis=2)
    cosine = np.einsum("nd,nsd->ns", ray, other) / np.maximum(away, 1e-12)
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    # Pixels that a length on the surface takes in the view, over those it takes in the target. A
    # view that shows more detail than the target needs serves it as well.
    detail = (focal[seen_by] / np.maximum(away, 1e-12)) / (focal_here / np.maximum(far, 1e-12))[
        :, None
    ]
    weight = np.clip(1 - angle / WIDE, 0, 1) * np.minimum(detail, 1)
    weight *= table.confidence[rows, None]
    return np.where(seen_by >= 0, weight, 0.0), seen_by


def _exposure(views: Sequence[View], votes: np.ndarray) -> np.ndarray:
    """(V,) factors: views near the exposure of those that got most votes weigh most."""
    gain = np.stack([v.log_gain.double().cpu().numpy() for v in views])
    common = (votes[:, None] * gain).sum(0) / max(float(votes.sum()), 1e-12)
    return np.exp(-np.abs(gain - common).mean(1))


def _chosen(value: np.ndarray, limit: int) -> list[int]:
    """Views one after the other for what is not served yet, then by all that they serve."""
    covered = np.zeros(value.shape[1])
    chosen: list[int] = []
    while len(chosen) < limit:
        gain = np.maximum(value - covered, 0).sum(1)
        gain[chosen] = -1
        best = int(gain.argmax())
        if gain[best] <= MIN_GAIN * value.shape[1]:
            break
        chosen.append(best)
        covered = np.maximum(covered, value[best])
    worth = value.sum(1)
    rest = [int(k) for k in np.argsort(-worth, kind="stable") if k not in chosen and worth[k] > 0]
    return chosen + rest[: limit - len(chosen)]
