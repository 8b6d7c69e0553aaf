"""Keypoint level of the spatial-stereo memory: RootSIFT features, each with its point in the world.

An entry is one appearance of one surface point. Its first correspondence is what its source view
measured, the others are what up to three later views measured of it; `seen_by` names those views.
`observe` is the update cycle of one view: extract, correspond (projection, depth, view angle,
descriptor), insert what is new, refine what was seen again, prune, report. Positions are fused
from all observations when a table is asked for: two rays that cross at an angle outweigh one
sensor's depth, because a ray is certain across and a depth is uncertain along it.

Sources: Lowe 2004 (SIFT), Arandjelovic & Zisserman 2012 (RootSIFT).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.memory.stereo import _usage as usage
from worldstereo.memory.stereo._bank import Bank
from worldstereo.scene import View

WIDTH = 128
OBSERVATIONS = 4
"""Correspondences of an entry: what its source and the first three other views measured of it."""
MAX_KEYPOINTS = 2500
"""Keypoints of one picture, strongest first."""
MAX_PIXELS = 1_000_000
"""Larger pictures are halved until they have fewer; pixels are those of the original."""
CONTRAST = 0.02
SEARCH = 4.0
"""Pixels around an entry's projection in which a view's keypoints may answer."""
SAME = 0.8
"""Cosine of two descriptors of one surface point; unrelated ones lie near 0.5."""
REPEATED = 0.92
"""Cosine above which a keypoint brings no new appearance of its point."""
AGREE = 0.04
"""Relative difference of depth within which an entry lies on the surface that a view shows."""
TURNED = 0.64
"""Cosine of the view angle (50 degrees) up to which a descriptor is expected to be found again."""
RESCALED = 1.0
"""Octaves between two views' scales up to which a descriptor is expected to be found again."""
PATIENCE = 3.0
"""An entry that was expected so often and never found is pruned."""
RISE, FALL = 0.25, 0.1
"""Share of the missing confidence that one agreement restores, and of it that one miss takes."""


class Keypoints(NamedTuple):
    """Keypoints of one picture."""

    pixels: np.ndarray
    """(N, 2) float64, first pixel centre at (0.5, 0.5)."""
    descriptors: np.ndarray
    """(N, 128) float32 RootSIFT, unit length."""
    level: np.ndarray
    """(N,) int32: octave of the scale pyramid, 0 the finest (twice the picture's size)."""

    def __len__(self) -> int:
        return len(self.pixels)


class CycleReport(NamedTuple):
    """What one view did to the keypoint level."""

    found: int
    """Keypoints of the view."""
    expected: int
    """Entries that the view should show: in the picture, not occluded, similar angle and scale."""
    matched: int
    """Entries that it showed."""
    added: int
    pruned: int


@dataclass(frozen=True, eq=False)
class KeypointTable:
    """The keypoint level as readers see it; rows are the slots of the memory."""

    points: np.ndarray
    """(M, 3) float64 world points, fused from all observations."""
    descriptors: np.ndarray
    """(M, 128) float32."""
    confidence: np.ndarray
    """(M,) in [0, 1]."""
    normals: np.ndarray
    """(M, 3), unit length or 0."""
    level: np.ndarray
    source: np.ndarray
    """(M,) index of the view that an entry came from."""
    pixels: np.ndarray
    """(M, 2) in its source view."""
    seen_by: np.ndarray
    """(M, 4) views that saw it, the source first, -1 where there are fewer."""
    unit: float
    """u of the scene: lengths are compared in it."""

    def __len__(self) -> int:
        return len(self.points)


def detect(color: UInt8[Tensor, "3 H W"] | np.ndarray, limit: int = MAX_KEYPOINTS) -> Keypoints:
    """RootSIFT keypoints of a picture, uint8 channels first, strongest `limit` of them."""
    import cv2

    image = color if isinstance(color, np.ndarray) else color.cpu().numpy()
    gray = cv2.cvtColor(np.ascontiguousarray(image.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    factor = 1
    while height * width > MAX_PIXELS * factor * factor:
        factor *= 2
    if factor > 1:
        small = (max(1, width // factor), max(1, height // factor))
        gray = cv2.resize(gray, small, interpolation=cv2.INTER_AREA)
    sift = cv2.SIFT_create(limit, contrastThreshold=CONTRAST)  # pyright: ignore[reportAttributeAccessIssue]
    points, raw = sift.detectAndCompute(gray, None)
    if raw is None or len(points) == 0:
        return Keypoints(np.zeros((0, 2)), np.zeros((0, WIDTH), np.float32), np.zeros(0, np.int32))
    scale = np.array([width / gray.shape[1], height / gray.shape[0]])
    pixels = (cv2.KeyPoint.convert(points).astype(np.float64) + 0.5) * scale
    octave = np.array([p.octave & 255 for p in points])
    level = np.where(octave > 127, octave - 256, octave) + 1 + (factor.bit_length() - 1)
    root = np.sqrt(raw / np.maximum(raw.sum(1, keepdims=True), 1e-9))
    return Keypoints(pixels, root.astype(np.float32), level.astype(np.int32))


class KeypointMemory(SpatialStereoMemory):
    """`SpatialStereoMemory` of RootSIFT entries with 8-bit descriptors; see the module.

    Args:
        memory_size: most entries; beyond it those of the lowest importance go.
    """

    def __init__(self, memory_size: int = 100_000) -> None:
        super().__init__(
            memory_size=memory_size,
            feature_dim=WIDTH,
            num_correspondences=OBSERVATIONS,
            correspondence_threshold=0.0,
            update_strategy="importance_based",
            storage_dtype="int8",
        )

    def observe(
        self,
        view: View,
        number: int,
        views: Sequence[View] = (),
        *,
        depth: Float[Tensor, "1 H W"] | None = None,
        found: Keypoints | None = None,
    ) -> CycleReport:
        """One view through the update cycle.

        Args:
            number: its index among the remembered views.
            views: the remembered views, from whose distance follows at which scale an entry is
                expected; without them any scale is.
            depth: of its whole picture, where the view keeps less (a generated one).
            found: its keypoints, where they were detected before.
        """
        found = detect(view.color_u8) if found is None else found
        measured = _measured(view, found)
        shown = view.depth if depth is None else depth
        match = find_entries(self, view, shown, found, views)
        repeated = self._refine(view, number, found, measured, match)
        pruned = self._doubt(view, match)
        fresh = (measured.depth > 0) & ~repeated
        self._insert(view, number, found, measured, fresh)
        return CycleReport(
            len(found), int(match.expected.sum()), len(match.slots), int(fresh.sum()), pruned
        )

    def table(self, views: Sequence[View], unit: float = 1.0) -> KeypointTable:
        """What is stored, with positions fused from the rays of the views that saw each entry."""
        column = self._bank.column
        points = column("points").double().numpy()
        confidence = column("confidence").double().numpy()
        seen_by = column("seen_by").numpy().astype(np.int64)
        fused = _fused(points, confidence, seen_by, column("level").numpy(), views)
        return KeypointTable(
            points=fused,
            descriptors=self._bank.features().numpy(),
            confidence=confidence[:, 0].astype(np.float32),
            normals=column("normal").numpy().copy(),
            level=column("level").numpy().copy(),
            source=column("frame").numpy().astype(np.int64),
            pixels=column("pixel").numpy().copy(),
            seen_by=seen_by,
            unit=unit,
        )

    def forget_pixels(self, views: Sequence[View]) -> int:
        """Removes entries whose source pixel no longer has depth; returns how many."""
        column = self._bank.column
        gone = np.zeros(self.size, bool)
        source, pixels = column("frame").numpy(), column("pixel").numpy().astype(int)
        for number, view in enumerate(views):
            here = (source == number).nonzero()[0]
            u = pixels[here, 0].clip(0, view.width - 1)
            v = pixels[here, 1].clip(0, view.height - 1)
            gone[here] = view.depth[0].cpu().numpy()[v, u] <= 0
        slots = torch.from_numpy(gone.nonzero()[0])
        usage.remove(self._bank, slots)
        return len(slots)

    # ---- inside ------------------------------------------------------------------------------

    def _insert(
        self, view: View, number: int, found: Keypoints, measured: "_Measured", fresh: np.ndarray
    ) -> None:
        count = int(fresh.sum())
        if count == 0:
            return
        points = torch.from_numpy(measured.points[fresh]).float()
        confidence = torch.zeros(count, OBSERVATIONS)
        confidence[:, 0] = torch.from_numpy(measured.confidence[fresh])
        seen_by = torch.full((count, OBSERVATIONS), -1, dtype=torch.int64)
        seen_by[:, 0] = number
        self.add_to_memory(
            torch.from_numpy(found.descriptors[fresh]),
            points[:, None].expand(-1, OBSERVATIONS, -1).contiguous(),
            confidence,
            metadata={
                "camera": number,
                "frame": number,
                "pixel": torch.from_numpy(found.pixels[fresh]).float(),
                "normal": torch.from_numpy(measured.normals[fresh]).float(),
                "level": torch.from_numpy(found.level[fresh].astype(np.int64)),
                "seen_by": seen_by,
            },
        )

    def _refine(
        self, view: View, number: int, found: Keypoints, measured: "_Measured", match: "_Match"
    ) -> np.ndarray:
        """Adds what the view measured of known entries; (N,) keypoints that bring nothing new."""
        repeated = np.zeros(len(found), bool)
        repeated[match.keypoints[match.likeness >= REPEATED]] = True
        if len(match.slots) == 0:
            return repeated
        bank, slots = self._bank, torch.from_numpy(match.slots)
        columns = bank.columns
        points, confidence = columns["points"][slots].clone(), columns["confidence"][slots].clone()
        seen_by = columns["seen_by"][slots].clone()
        k = match.keypoints
        ray_only = measured.depth[k] <= 0
        where = np.where(ray_only[:, None], match.predicted, measured.points[k])
        sure = np.where(ray_only, 0.02, measured.confidence[k]).astype(np.float32)
        mine = seen_by == number
        free = (confidence == 0) | (seen_by < 0)
        free[:, 0] = False
        spot = torch.where(free.any(1) & ~mine.any(1), free.float().argmax(1), -1)
        rows = (spot >= 0).nonzero()[:, 0]
        points[rows, spot[rows]] = torch.from_numpy(where).float()[rows]
        confidence[rows, spot[rows]] = torch.from_numpy(sure)[rows]
        seen_by[rows, spot[rows]] = number
        support = torch.from_numpy((match.likeness * np.sqrt(sure)).astype(np.float32))
        confidence[:, 0] += (1 - confidence[:, 0]) * RISE * support
        scalars = bank.scalars
        bank.write(
            slots,
            points=points,
            confidence=confidence,
            seen_by=seen_by,
            mass=columns["mass"][slots] + 1,
            doubt=torch.zeros(len(slots)),
            last_used=torch.full_like(slots, scalars.clock + 1),
        )
        return repeated

    def _doubt(self, view: View, match: "_Match") -> int:
        """Entries that a given view should have shown and did not; returns how many were pruned."""
        bank = self._bank
        missed = match.expected.copy()
        missed[match.slots] = False
        if view.step > 0:  # a generated view is no witness against what was given
            made = bank.column("confidence")[:, 0].numpy() <= 0.03
            missed &= made
        slots = torch.from_numpy(missed.nonzero()[0])
        if len(slots) == 0:
            return 0
        confidence = bank.columns["confidence"][slots].clone()
        confidence[:, 0] *= 1 - FALL
        doubt = bank.columns["doubt"][slots] + 1
        bank.write(slots, confidence=confidence, doubt=doubt)
        never = bank.columns["seen_by"][slots][:, 1] < 0
        pruned = slots[never & (doubt >= PATIENCE)]
        usage.remove(bank, pruned)
        return len(pruned)


class _Measured(NamedTuple):
    """What a view's depth says about its keypoints."""

    depth: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    confidence: np.ndarray


def _measured(view: View, found: Keypoints) -> _Measured:
    """Depth at sub-pixel positions, on the plane of the four pixels around where they agree."""
    n = len(found)
    d, c = view.depth[0].cpu().numpy(), view.confidence[0].cpu().numpy()
    h, w = d.shape
    x = np.clip(found.pixels[:, 0] - 0.5, 0, w - 1)
    y = np.clip(found.pixels[:, 1] - 0.5, 0, h - 1)
    if n == 0 or w < 2 or h < 2:
        nothing = np.zeros(n)
        return _Measured(nothing, np.zeros((n, 3)), np.zeros((n, 3)), nothing.astype(np.float32))
    x0 = np.minimum(x.astype(int), w - 2)
    y0 = np.minimum(y.astype(int), h - 2)
    a, b = x - x0, y - y0
    corners = np.stack([d[y0, x0], d[y0, x0 + 1], d[y0 + 1, x0], d[y0 + 1, x0 + 1]], 1)
    weight = np.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b], 1)
    known = corners > 0
    inverse = np.where(known, 1 / np.where(known, corners, 1), 0)
    low = np.where(known, corners, np.inf).min(1)
    flat = known.all(1) & (corners.max(1) < low * (1 + AGREE))
    # At a depth edge the corner belongs to what is in front.
    front = np.where(low < np.inf, low, 0)
    smooth = 1 / np.maximum((inverse * weight).sum(1), 1e-12)
    z = np.where(flat, smooth, front)
    xi, yi = np.rint(x).astype(int), np.rint(y).astype(int)
    sure = np.where(flat, c[yi, xi], 0.5 * c[yi, xi]).astype(np.float32)
    K = view.cameras.K.double().numpy()
    c2w = view.cameras.c2w.double().numpy()
    ray = _rays(found.pixels, K)
    points = (ray * z[:, None]) @ c2w[:3, :3].T + c2w[:3, 3]
    normals = _normals(d, xi, yi, z, ray, K) @ c2w[:3, :3].T
    return _Measured(z, points, normals, np.where(z > 0, sure, 0).astype(np.float32))


def surface_normals(view: View, pixels: np.ndarray) -> np.ndarray:
    """(N, 3) world normals of the surface at pixels of a view, toward it; 0 at depth edges."""
    d = view.depth[0].cpu().numpy()
    h, w = d.shape
    if len(pixels) == 0 or min(h, w) < 2:
        return np.zeros((len(pixels), 3))
    x = np.clip(pixels[:, 0].astype(int), 0, w - 1)
    y = np.clip(pixels[:, 1].astype(int), 0, h - 1)
    K, c2w = (getattr(view.cameras, name).double().cpu().numpy() for name in ("K", "c2w"))
    at = np.stack([x + 0.5, y + 0.5], 1)
    return _normals(d, x, y, d[y, x], _rays(at, K), K) @ c2w[:3, :3].T


def _normals(
    d: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, ray: np.ndarray, K: np.ndarray
) -> np.ndarray:
    """Normals in the camera's axes from disparity two pixels to each side; 0 at depth edges."""
    h, w = d.shape
    left, right = np.maximum(x - 2, 0), np.minimum(x + 2, w - 1)
    up, down = np.maximum(y - 2, 0), np.minimum(y + 2, h - 1)
    around = np.stack([d[y, left], d[y, right], d[up, x], d[down, x]], 1)
    ok = (around > 0).all(1) & (z > 0)
    ok &= np.abs(around - z[:, None]).max(1) < 4 * AGREE * np.maximum(z, 1e-12)
    inverse = 1 / np.where(around > 0, around, 1)
    gu = (inverse[:, 1] - inverse[:, 0]) / np.maximum(right - left, 1)
    gv = (inverse[:, 3] - inverse[:, 2]) / np.maximum(down - up, 1)
    fx, fy = K[0, 0], K[1, 1]
    # The plane gu u + gv v + c = 1/z has the normal (gu fx, gv fy, 1/z - gu x fx - gv y fy).
    last = 1 / np.maximum(z, 1e-12) - gu * ray[:, 0] * fx - gv * ray[:, 1] * fy
    normal = -np.stack([gu * fx, gv * fy, last], 1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    return np.where(ok[:, None], normal, 0)


def _rays(pixels: np.ndarray, K: np.ndarray) -> np.ndarray:
    """(N, 3) directions in the camera's axes with z = 1."""
    y = (pixels[:, 1] - K[1, 2]) / K[1, 1]
    x = (pixels[:, 0] - K[0, 2] - K[0, 1] * y) / K[0, 0]
    return np.stack([x, y, np.ones_like(x)], 1)


class _Match(NamedTuple):
    """Entries that a view shows, and those that it should show."""

    expected: np.ndarray
    """(M,) bool."""
    slots: np.ndarray
    keypoints: np.ndarray
    likeness: np.ndarray
    predicted: np.ndarray
    """(P, 3) where each matched keypoint's ray meets the entry's depth, in the world."""
    drift: np.ndarray
    """(P,) pixels between where an entry was expected and where it was found."""
    pixels: np.ndarray
    """(M, 2) projections of all entries."""


def find_entries(
    memory: KeypointMemory,
    view: View,
    depth: Float[Tensor, "1 H W"],
    found: Keypoints,
    views: Sequence[View] = (),
) -> _Match:
    """Which entries a picture should show, and which of them its keypoints answer."""
    from scipy.spatial import KDTree

    bank = memory._bank
    none = np.zeros(0, np.int64)
    seen = _visible(memory, view, depth, views)
    candidates, pixels, expected, z = seen.slots, seen.pixels, seen.expected, seen.depth
    K = view.cameras.K.double().numpy()
    c2w = view.cameras.c2w.double().numpy()
    if len(candidates) == 0 or len(found) == 0:
        return _Match(expected, none, none, np.zeros(0), np.zeros((0, 3)), np.zeros(0), pixels)
    _, near = KDTree(found.pixels).query(
        pixels[candidates], k=min(6, len(found)), distance_upper_bound=SEARCH
    )
    near = near.reshape(len(candidates), -1)
    row, column = (near < len(found)).nonzero()
    if len(row) == 0:
        return _Match(expected, none, none, np.zeros(0), np.zeros((0, 3)), np.zeros(0), pixels)
    k = near[row, column]
    features = bank.features(torch.from_numpy(candidates)).numpy()
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    likeness = np.einsum("pd,pd->p", features[row], found.descriptors[k])
    best = np.lexsort((k, -likeness, row))
    first = np.concatenate([[True], row[best][1:] != row[best][:-1]])
    best = best[first]
    best = best[likeness[best] >= SAME]
    slots, k = candidates[row[best]], k[best]
    ray = _rays(found.pixels[k], K)
    predicted = (ray * z[slots][:, None]) @ c2w[:3, :3].T + c2w[:3, 3]
    drift = np.linalg.norm(found.pixels[k] - pixels[slots], axis=1)
    return _Match(expected, slots, k, likeness[best], predicted, drift, pixels)


def expected_entries(
    memory: KeypointMemory,
    view: View,
    depth: Float[Tensor, "1 H W"],
    views: Sequence[View] = (),
    among: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Slots of the entries that a picture should show, and where: (P,), (P, 2) pixels.

    `among`: the only slots that are asked about, in order; else all are.
    """
    seen = _visible(memory, view, depth, views, among)
    rows = seen.expected.nonzero()[0]
    return (rows if among is None else among[rows]), seen.pixels[rows]


class _Seen(NamedTuple):
    slots: np.ndarray
    """Entries in the picture and on the surface that it shows."""
    expected: np.ndarray
    """(M,) bool: those of them that it shows from a similar angle and distance."""
    pixels: np.ndarray
    depth: np.ndarray


def _visible(
    memory: KeypointMemory,
    view: View,
    depth: Float[Tensor, "1 H W"],
    views: Sequence[View],
    among: np.ndarray | None = None,
) -> _Seen:
    """Of all entries, or of those `among`; rows are theirs."""
    bank = memory._bank
    chosen = slice(None) if among is None else torch.from_numpy(among)
    points = bank.column("points")[chosen, 0].double().numpy()
    sure = bank.column("confidence")[chosen, 0].numpy()
    size = len(points)
    K = view.cameras.K.double().numpy()
    c2w = view.cameras.c2w.double().numpy()
    q = (points - c2w[:3, 3]) @ c2w[:3, :3]
    z = np.where(q[:, 2] > 0, q[:, 2], np.inf)
    pixels = (q @ K.T)[:, :2] / z[:, None]
    h, w = depth.shape[-2:]
    margin = 2 * SEARCH
    inside = (q[:, 2] > 0) & (pixels > margin).all(1) & (pixels < [w - margin, h - margin]).all(1)
    at = np.where(inside[:, None], pixels, 0).astype(int)
    shown = depth[0].cpu().numpy()[at[:, 1], at[:, 0]] if size else np.zeros(0)
    slack = AGREE + 0.02 * (1 - sure)
    slots = (inside & (shown > 0) & (np.abs(z - shown) < slack * z)).nonzero()[0]
    expected = np.zeros(size, bool)
    if len(slots):
        at = slots if among is None else among[slots]
        expected[slots] = _expected(bank, at, points[slots], c2w, K, views)
    return _Seen(slots, expected, pixels, z)


def _expected(
    bank: Bank,
    slots: np.ndarray,
    points: np.ndarray,
    c2w: np.ndarray,
    K: np.ndarray,
    views: Sequence[View],
) -> np.ndarray:
    """Whether the view shows each entry under an angle and a scale like those it is known by."""
    columns = bank.columns
    rows = torch.from_numpy(slots)
    normal = columns["normal"][rows].double().numpy()
    toward = c2w[:3, 3] - points
    toward /= np.maximum(np.linalg.norm(toward, axis=1, keepdims=True), 1e-12)
    facing = (normal * toward).sum(1)
    shown = ~normal.any(1) | (facing > TURNED)
    if len(views) == 0:
        return shown
    centre = np.stack([v.cameras.c2w[:3, 3].double().numpy() for v in views])
    focal = np.array([float(v.cameras.K[0, 0]) for v in views])
    source = columns["frame"][rows].long().clamp(0, len(views) - 1).numpy()
    before = np.linalg.norm(points - centre[source], axis=1) / focal[source]
    now = np.linalg.norm(points - c2w[:3, 3], axis=1) / K[0, 0]
    octaves = np.log2(np.maximum(now, 1e-12) / np.maximum(before, 1e-12))
    left = columns["level"][rows].numpy() - octaves  # the level at which it would be found now
    return shown & (np.abs(octaves) <= RESCALED) & (left >= 0)


def _fused(
    points: np.ndarray,
    confidence: np.ndarray,
    seen_by: np.ndarray,
    level: np.ndarray,
    views: Sequence[View],
) -> np.ndarray:
    """(M, 3): the most likely position, each observation a Gaussian along its own ray."""
    first = points[:, 0].copy()
    several = ((seen_by >= 0) & (confidence > 0)).sum(1) > 1
    rows = several.nonzero()[0]
    if len(rows) == 0 or not views:
        return first
    centre = np.stack([v.cameras.c2w[:3, 3].double().numpy() for v in views])
    focal = np.array([float(v.cameras.K[0, 0]) for v in views])
    information = np.zeros((len(rows), 3, 3))
    sum_ = np.zeros((len(rows), 3))
    for j in range(points.shape[1]):
        use = (seen_by[rows, j] >= 0) & (confidence[rows, j] > 0)
        use &= seen_by[rows, j] < len(views)
        r = use.nonzero()[0]
        view, p = seen_by[rows[r], j], points[rows[r], j]
        ray = p - centre[view]
        far = np.linalg.norm(ray, axis=1)
        ray /= np.maximum(far, 1e-12)[:, None]
        across = 0.5 * 2.0 ** (level[rows[r]] - 1) * far / focal[view]
        # A sensor's depth is known to about 1 %; less the less its kind is trusted.
        along = np.maximum(0.01 * far / np.maximum(confidence[rows[r], j], 1e-3), across)
        wa, wl = 1 / across**2, 1 / along**2
        outer = ray[:, :, None] * ray[:, None, :]
        matrix = wa[:, None, None] * (np.eye(3) - outer) + wl[:, None, None] * outer
        information[r] += matrix
        sum_[r] += np.einsum("nij,nj->ni", matrix, p)
    first[rows] = np.linalg.solve(information, sum_[..., None])[..., 0]
    return first
