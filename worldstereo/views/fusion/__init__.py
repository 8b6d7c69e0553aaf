"""Kernels on views: surfel warp, depth fusion, fetch at correspondences, gaps, harmonic fill.

Everything here works on `ViewArrays` views (numpy, lengths in u) and on one `Pose` as target. The
compiled loops lie in `_fusion/kernels.py` and `_fusion/blend.py`; each runs over bands of rows, or
one view a task, on the threads of `_parallel`.

Sources: Shade et al. 1998 (layered warping), Merrell et al. 2007 (visibility-based fusion of depth
maps), Zwicker et al. 2001 (surface splatting); constants from the team's own measurements.
"""

from collections.abc import Callable, Sequence

import numpy as np

from worldstereo.views.fusion._angle import WIDE
from worldstereo.views.fusion._view_arrays import (
    AGREE,
    CACHE,
    Pose,
    ViewArrays,
    invert,
    make_view_arrays,
    pose_of,
    relative,
    stacked_minima,
    view_arrays,
)

__all__ = [
    "AGREE",
    "CACHE",
    "INFINITY",
    "WIDE",
    "Pose",
    "ViewArrays",
    "background_trust",
    "clean_disparity",
    "fetch",
    "fused_depth",
    "invert",
    "make_view_arrays",
    "harmonic_fill",
    "nearest_fill",
    "nearest_known",
    "pose_distance",
    "pose_distances",
    "pose_of",
    "relative",
    "stacked_minima",
    "unproject",
    "view_arrays",
]

REFERENCE_DEPTH = 1.9
"""How many metres one u was in the captures the constants below were measured on."""

INFINITY = 0.01 * REFERENCE_DEPTH
"""Disparity in 1/u of what lies beyond all parallax: a backdrop, not a surface."""

RADIAN = 0.3 / REFERENCE_DEPTH
"""Distance in u that counts like one radian when poses are compared."""

NEAR = 0.02 / REFERENCE_DEPTH
FOOTPRINT = (
    0.56  # half the side of a surfel in pixels of its view: a little over 1/2 leaves no crack
)
STRETCH = 14.0  # longest side of a surfel over that of one facing both cameras
EDGE_ON = 0.02  # smallest area of a surfel over that of one facing both cameras
STEEP = 30.0  # per radian: how much more the angle counts in photos, whose depth is a guess
MIN_SUPPORT_SHARE = (
    0.1  # share of what is said about a pixel that a surface only photos show must have
)
PAINTERS = 2  # nearest views that paint what they know
HANDOVER = 4.0  # power of the distance by which the others count less; twice that for depth
MIN_STANDING = 1e-3
NOISE = 3.0  # measures of agreement within which the heavier of two surfaces is no noise
SLIP = 1.0  # pixels by which a sample may be displaced and still show the point
FREE = 0.04  # a view contradicts a surface if it sees so much farther, relatively


def parallel_for(n: int, task: Callable[[int], None]) -> None:
    """Run `task(0) ... task(n - 1)` on the threads of the library."""
    from worldstereo._core import parallel as _parallel

    _parallel.parallel_for(n, task)


def bands(height: int, count: int = 8) -> list[tuple[int, int]]:
    """`height` rows in about `count` bands, the same whatever the number of threads."""
    cuts = np.linspace(0, height, min(count, height) + 1).astype(int)
    return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))


def rotation_angle(a: Pose, b: Pose) -> float:
    """Angle in radians between two orientations."""
    trace = float(np.sum(a.c2w[:3, :3] * b.c2w[:3, :3]))
    return float(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def pose_distance(a: Pose, b: Pose) -> float:
    """Distance of two poses in u; a radian counts like `RADIAN`."""
    return float(np.linalg.norm(a.position - b.position)) + RADIAN * rotation_angle(a, b)


def pose_distances(poses: Sequence[Pose], target: Pose) -> np.ndarray:
    """(n,) `pose_distance` of each of some poses from one."""
    c2w = np.stack([p.c2w for p in poses])
    trace = np.einsum("nij,ij->n", c2w[:, :3, :3], target.c2w[:3, :3])
    angle = np.arccos(np.clip((trace - 1) / 2, -1, 1))
    return np.linalg.norm(c2w[:, :3, 3] - target.position, axis=1) + RADIAN * angle


def standing(views: Sequence[ViewArrays], target: Pose, power: float = HANDOVER) -> np.ndarray:
    """(n,) in (0, 1]: how much each view counts beside the `PAINTERS` nearest ones, which count 1.

    Falls with the distance of the pose over that of the last painter's, so what the nearest know
    they paint, the others paint the rest, and sources change gradually along a path.
    """
    if len(views) <= PAINTERS:
        return np.ones(len(views))
    apart = np.array([0.02 / REFERENCE_DEPTH + pose_distance(v.pose, target) for v in views])
    last = np.sort(apart)[PAINTERS - 1]
    return np.maximum(np.minimum(1, last / apart) ** power, MIN_STANDING)


def unproject(pose: Pose, depth: np.ndarray) -> np.ndarray:
    """(H, W, 3) points in the camera's own axes."""
    y, x = np.mgrid[: depth.shape[0], : depth.shape[1]].astype(np.float32)
    fx, fy, cx, cy = pose.K.astype(np.float32)
    return np.stack([(x - cx) / fx * depth, (y - cy) / fy * depth, depth], -1)


def warp(view: ViewArrays, target: Pose, out: np.ndarray | None = None) -> np.ndarray:
    """Depth of one view as the target would see it, EMPTY where nothing falls; into `out`."""
    from worldstereo.views.fusion import kernels

    out = np.empty(target.shape, np.float32) if out is None else out
    out.fill(kernels.EMPTY)
    kernels.surfel_warp(
        view.disparity, view.slope_x, view.slope_y, view.pose.K, target.K,
        relative(view.pose, target), FOOTPRINT, STRETCH, EDGE_ON, NEAR, out,
    )  # fmt: skip
    return out


def fused_depth(
    views: Sequence[ViewArrays],
    target: Pose,
    *,
    agree: float = AGREE,
    free: float = FREE,
    nearest: bool = False,
    where: np.ndarray | None = None,
) -> np.ndarray:
    """Depth of the target from all given views, in u; 0 where none of them knows.

    What photos say, whose depth is a guess, counts less the more their rays differ from the
    target's, as in the blend.

    Args:
        agree: relative depth within which views support one surface.
        free: how much farther a view must see to look through a surface; 0 leaves the test out.
        nearest: far views neither move surfaces that near ones have nor put their noise in front.
        where: (H, W) bool: pixels that are asked; 0 elsewhere. All without it.
    """
    from worldstereo.views.fusion import kernels

    out = np.zeros(target.shape, np.float32)
    if not views:
        return out
    warped = np.empty((len(views), *target.shape), np.float32)

    def one(i: int) -> None:
        warp(views[i], target, warped[i])

    parallel_for(len(views), one)
    min_depth_3x3, offset, sizes = stacked_minima(views)
    weight = np.array([1 / (0.05 / REFERENCE_DEPTH + pose_distance(v.pose, target)) for v in views])
    if nearest:
        weight *= standing(views, target, 2 * HANDOVER)
    weight = (weight / weight.max()).astype(np.float32)
    vote = weight * np.array([v.vote for v in views], np.float32)
    weight = weight * np.array([v.vote if v.vote > 0 else 0.05 for v in views], np.float32)
    K = np.stack([v.pose.K for v in views])
    back = np.stack([relative(target, v.pose) for v in views])
    centre = np.stack([-T[:, :3].T @ T[:, 3] for T in back])
    steep = np.array([STEEP if v.guessed else 0.0 for v in views])
    asked = np.ones(target.shape, bool) if where is None else where
    rows = bands(target.height)

    def band(i: int) -> None:
        kernels.fuse_depth(
            warped, weight, vote, steep, min_depth_3x3, offset, sizes, K, back, centre, target.K,
            agree, free, MIN_SUPPORT_SHARE,
            NOISE * agree if nearest else 0.0, NEAR, asked, *rows[i], out,
        )  # fmt: skip

    parallel_for(len(rows), band)
    return out


class SourceCameras:
    """Cameras of some views stacked against one target, as the blend kernels want them."""

    def __init__(
        self, views: Sequence[ViewArrays], target: Pose, agree: float = AGREE, slip: float = 0.0
    ) -> None:
        self.views, self.target, self.agree, self.slip = views, target, agree, slip
        self.K = np.stack([v.pose.K for v in views])
        self.T = np.stack([relative(target, v.pose) for v in views])
        self.centre = np.stack([-T[:, :3].T @ T[:, 3] for T in self.T])
        self.feather = np.array([24 / 640 * v.pose.width for v in views])

    def arguments(self, i: int, level: int = 0) -> tuple:
        """What `attend` wants to know about view `i`, from its row number on."""
        layer = self.views[i].level(level)
        K = self.K
        if layer.power > 0:
            K = K.copy()
            K[i] = layer.intrinsics(K[i])
        return (
            i, layer.color, layer.depth, layer.edge_distance, layer.confidence, K, self.T,
            self.centre,
        )  # fmt: skip

    def limits(self, i: int, level: int = 0) -> tuple[float, ...]:
        """Agreement, feather of the border, near plane and `steep` for view `i`."""
        view = self.views[i]
        feather = max(1.0, float(self.feather[i]) * 0.5 ** view.level(level).power)
        return self.agree, feather, NEAR, STEEP if view.guessed else 0.0, self.slip


def fetch(
    depth: np.ndarray, target: Pose, view: ViewArrays, agree: float = AGREE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One view fetched at the depth of another camera.

    Returns:
        colours in [0, 1] (H, W, 3), agreement in [0, 1] (0: does not correspond) and the angle
        between the two rays in radians.
    """
    from worldstereo.views.fusion import blend

    color = np.zeros((*depth.shape, 3), np.float32)
    agreement = np.zeros(depth.shape, np.float32)
    angle = np.ones(depth.shape, np.float32)
    fetched = SourceCameras([view], target, agree)
    blend.fetch(
        depth, target.K, *fetched.arguments(0), *fetched.limits(0)[:3], 0.0, 0.0, 0, depth.shape[0],
        color, agreement, angle,
    )  # fmt: skip
    return color / np.float32(255), agreement, angle


def fetch_pixels(
    rows: np.ndarray,
    columns: np.ndarray,
    depth: np.ndarray,
    target: Pose,
    view: ViewArrays,
    agree: float = AGREE,
) -> tuple[np.ndarray, np.ndarray]:
    """`fetch` of some pixels of a camera, whose depth (n,) is above 0: colours (n, 3) in [0, 1]
    and agreement (n,).
    """
    from worldstereo.views.fusion import blend

    color = np.empty((len(depth), 3), np.float32)
    agreement = np.empty(len(depth), np.float32)
    fetched = SourceCameras([view], target, agree)
    blend.fetch_pixels(
        rows, columns, depth, target.K, *fetched.arguments(0), *fetched.limits(0)[:3], 0.0, 0.0,
        color, agreement,
    )  # fmt: skip
    return color / np.float32(255), agreement


# ---- depth images ----------------------------------------------------------------------------


def fill_gaps(d: np.ndarray, radius: int, least: int, agree: float = 0.02) -> np.ndarray:
    """Disparity with small gaps filled where the samples around lie on one surface."""
    from worldstereo.views.fusion import kernels

    out = np.empty_like(d)
    rows = bands(len(d))
    parallel_for(len(rows), lambda i: kernels.fill_gaps(d, agree, radius, least, *rows[i], out))
    return out


def clean_disparity(d: np.ndarray) -> np.ndarray:
    """Measured disparity without lone samples and islands, small gaps filled on single surfaces."""
    import cv2

    from worldstereo.views.fusion import kernels

    if not (d > 0).any():
        return d
    filled = fill_gaps(fill_gaps(d, 1, 3), 2, 5)
    kept = np.empty_like(d)
    rows = bands(len(d))
    parallel_for(len(rows), lambda i: kernels.drop_lonely(filled, 2, 0.03, 6, *rows[i], kept))
    known = kept > 0
    if not known.any():
        return kept
    top = float(kept.max())
    levels = np.where(known, kept / top * 30000, -16).astype(np.int16)
    step = int(0.03 * float(np.median(kept[known])) / top * 30000)
    cv2.filterSpeckles(levels, -16, 80, max(step, 1))
    return fill_gaps(np.where(levels > 0, kept, 0).astype(np.float32), 2, 5)


def harmonic_fill(
    values: np.ndarray,
    known: np.ndarray,
    *,
    trust: np.ndarray | None = None,
    sweeps: int = 40,
    asked: np.ndarray | None = None,
) -> np.ndarray:
    """Unknown values of an image interpolated by a harmonic function, coarse to fine.

    Args:
        values: (H, W) or (H, W, C) float32.
        known: (H, W) bool.
        trust: (H, W) in (0, 1], how much each known pixel pulls; all alike without.
        asked: (H, W) bool, unknown pixels of an image with channels that are wanted; the others
            keep their values. All without it.
    """
    if known.all() or not known.any():
        return values
    planes = values[None] if values.ndim == 2 else np.ascontiguousarray(np.moveaxis(values, -1, 0))
    interpolant: np.ndarray | None = None
    for level, fixed, weight in reversed(_pyramid(planes, known, trust)):
        interpolant = _relaxed(_coarser(interpolant, level, fixed), level, fixed, weight, sweeps)
    assert interpolant is not None
    if values.ndim == 2:
        return interpolant[0]
    out = values.copy()
    y, x = np.nonzero(~known if asked is None else asked)
    out[y, x] = interpolant[:, y, x].T
    return out


def _coarser(interpolant: np.ndarray | None, level: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """(C, h, w) to begin with: the interpolant of the next smaller level, else the mean."""
    import cv2

    if interpolant is None:
        mean = level[:, fixed].mean(1) if fixed.any() else np.zeros(len(level), np.float32)
        return np.broadcast_to(mean[:, None, None], level.shape)
    out = np.empty(level.shape, np.float32)
    for plane, smaller in zip(out, interpolant, strict=True):
        cv2.resize(smaller, plane.shape[::-1], dst=plane, interpolation=cv2.INTER_LINEAR)
    return out


def _pyramid(
    planes: np.ndarray, known: np.ndarray, trust: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Levels of (value (C, h, w), known, trust), finest first."""
    import cv2

    def halved(a: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.resize(a, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))

    share = known.astype(np.float32)
    pull = share if trust is None else share * trust
    levels = [(planes.astype(np.float32, copy=False), known, pull + (1 - share))]
    total, weight = planes * pull, pull
    while min(share.shape) >= 16 and len(levels) < 6:
        total = np.stack([halved(plane) for plane in total])
        weight, share = halved(weight), halved(share)
        known = share > 0
        mean = np.where(known, total / np.maximum(weight, 1e-9), 0).astype(np.float32)
        link = np.where(known, weight / np.maximum(share, 1e-9), 1).astype(np.float32)
        levels.append((mean, known, link))
    return levels


def _relaxed(
    interpolant: np.ndarray, level: np.ndarray, fixed: np.ndarray, weight: np.ndarray, sweeps: int
) -> np.ndarray:
    """(C, h, w) with the fixed pixels of a level, the others relaxed from the interpolant."""
    from worldstereo.views.fusion import kernels

    h, w = fixed.shape
    y, x = np.divmod(np.flatnonzero(~fixed), w)
    if len(y) == 0:
        return level
    odd = (y + x) & 1 == 1
    y, x = (np.concatenate([a[~odd], a[odd]]) for a in (y, x))
    unknown, red = (y + 1) * (w + 2) + x + 1, len(y) - int(odd.sum())
    trust = np.zeros((h + 2, w + 2), np.float32)
    trust[1:-1, 1:-1] = weight
    padded = np.zeros((len(level), h + 2, w + 2), np.float32)

    def plane(c: int) -> None:
        padded[c, 1:-1, 1:-1] = level[c]
        padded[c].ravel()[unknown] = interpolant[c, y, x]
        kernels.relax(padded[c], unknown, red, trust, sweeps, 1.6)

    parallel_for(len(padded), plane)
    return padded[:, 1:-1, 1:-1]


def background_trust(d: np.ndarray, known: np.ndarray, radius: int = 20) -> np.ndarray:
    """1 on the farthest known surface within `radius` pixels, falling towards 0 on nearer ones."""
    import cv2

    from worldstereo.views.fusion import kernels

    side = 2 * radius + 1
    far = np.where(known, d, 1e9).astype(np.float32)
    far = cv2.erode(far, np.ones((side, 1), np.uint8), borderValue=1e9)
    far = cv2.erode(far, np.ones((1, side), np.uint8), borderValue=1e9)
    trust = np.empty(d.shape, np.float32)
    rows = bands(len(d))
    parallel_for(len(rows), lambda i: kernels.trust_behind(d, far, known, *rows[i], trust))
    return trust


def nearest_known(known: np.ndarray) -> np.ndarray:
    """(H, W) int64: the nearest known pixel of each, counted along rows; some must be known."""
    import cv2

    _, label = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label = np.asarray(label, np.int64)
    source = np.zeros(int(label.max()) + 1, np.int64)
    source[label[known]] = np.flatnonzero(known)
    return source[label]


def nearest_fill(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(H, W, C) with every unknown pixel copied from the nearest known one."""
    if known.all() or not known.any():
        return image
    return image.reshape(-1, image.shape[-1])[nearest_known(known)]
