"""Matches between two remembered views: where the model says a corner is, and where flow sees it.

View `q` is fetched at the depth of view `p`; what remains between the two pictures is the error of
the poses (and of the depth), and optical flow measures it at one corner a cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo.views.fusion import (
    Pose,
    ViewArrays,
    pose_distance,
    pose_distances,
    relative,
    unproject,
)

CELL = 12  # pixels; one match a cell
TOLERANCE = 0.06  # relative depth agreement while poses are still off
MIN_MATCHES = 30  # fewer matches than this do not carry a pair
FIT, CHOOSE = 0.7, 0.15  # shares of the cells: poses are solved from, pairs chosen by; rest: judge
SEED = 15
TILES = 4
NEAREST = 32  # other views, nearest in pose, that may overlap one
OVERLAP = 0.08  # smallest share of a view that the other must see


SHARED, SAME_DEPTH, SAME_COLOR = 0.5, 0.03, 0.02
"""Share of a view, depth and mean colour difference within which it is where it was put."""


@dataclass(eq=False)
class FlowMatch:
    """Points of view `i`, in its own axes (u), and the pixels where view `j` shows them."""

    i: int
    j: int
    points: np.ndarray
    pixels: np.ndarray
    fit: np.ndarray
    """(n,) bool: what poses are solved from; drawn by cell, so the same in every round."""
    held: np.ndarray
    """(n,) bool: kept out of the solution, to choose the pairs that enter it."""
    judge: np.ndarray
    """(n,) bool: kept out of both, to judge what came of it."""
    tile: np.ndarray
    """(n,) which of `TILES` x `TILES` parts of the picture: matches in one err together."""
    likeness: float
    """Correlation of the two pictures where they show the same surface, small details aside."""
    reach: float
    """Median length of the flow, in pixels: long flow is worth another look from better poses."""


def overlaps(views: Sequence[ViewArrays], samples: int = 300, tolerance: float = 0.1) -> np.ndarray:
    """(n, n) share of view i's measured samples that view j shows at about that depth."""
    n = len(views)
    grids = [_samples(v, samples) for v in views]
    out = np.zeros((n, n))
    poses = [v.pose for v in views]
    for i in range(n):
        apart = pose_distances(poses, poses[i])
        apart[i] = np.inf
        for j in np.argsort(apart, kind="stable")[: min(NEAREST, n - 1)].tolist():
            out[i, j] = _share(grids[i], views[i].pose, views[j], tolerance)
    return out


def _samples(view: ViewArrays, count: int) -> np.ndarray:
    """About `count` points of a view spread over the image, in its own axes."""
    h, w = view.depth.shape
    step = max(1, int((h * w / count) ** 0.5))
    y, x = (a.ravel() for a in np.mgrid[step // 2 : h : step, step // 2 : w : step])
    z = view.depth[y, x]
    fx, fy, cx, cy = view.pose.K
    points = np.stack([(x - cx) / fx * z, (y - cy) / fy * z, z], 1).astype(np.float32)
    return points[z > 0]


def _share(points: np.ndarray, pose: Pose, other: ViewArrays, tolerance: float) -> float:
    if len(points) == 0:
        return 0.0
    u, v, z = project(points, relative(pose, other.pose), other.pose.K)
    h, w = other.depth.shape
    iu, iv = np.rint(u).astype(int), np.rint(v).astype(int)
    inside = (z > 0) & (iu >= 0) & (iv >= 0) & (iu < w) & (iv < h)
    seen = other.depth[np.where(inside, iv, 0), np.where(inside, iu, 0)]
    return float((inside & (np.abs(seen - z) < tolerance * z)).mean())


def as_given(view: ViewArrays, others: Sequence[ViewArrays]) -> bool:
    """Whether some other view shows this one's surface at its depth and in its colours as posed.

    Smooth pictures have no details to match; depth and colours still say that the pose is right.
    """
    h, w = view.depth.shape
    step = max(1, int((h * w / 1200) ** 0.5))
    cut = (slice(step // 2, None, step), slice(step // 2, None, step))
    points = unproject(view.pose, view.depth)[cut].reshape(-1, 3)
    colors = view.color[cut].reshape(-1, 3).astype(np.float32) / 255
    known = points[:, 2] > 0
    points, colors = points[known], colors[known]
    if len(points) < 100:
        return False
    near = sorted(others, key=lambda o: pose_distance(view.pose, o.pose))[:8]
    for other in near:
        u, v, z = project(points, relative(view.pose, other.pose), other.pose.K)
        H, W = other.depth.shape
        iu, iv = np.rint(u).astype(int), np.rint(v).astype(int)
        inside = (z > 0) & (iu >= 0) & (iv >= 0) & (iu < W) & (iv < H)
        at = np.where(inside, iv, 0), np.where(inside, iu, 0)
        same = inside & (np.abs(other.depth[at] - z) < SAME_DEPTH * z)
        if same.mean() < SHARED:
            continue
        theirs = other.color[at].astype(np.float32) / 255
        off = (colors - theirs)[same]
        if float(np.abs(off - np.median(off, axis=0)).mean()) < SAME_COLOR:
            return True
    return False


def project(
    points: np.ndarray, T: np.ndarray, K: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points under `T` into array indices (u, v) and depth."""
    q = points @ T[:, :3].T + T[:, 3]
    z = np.where(np.abs(q[:, 2]) > 1e-9, q[:, 2], 1e-9)
    return K[0] * q[:, 0] / z + K[2], K[1] * q[:, 1] / z + K[3], q[:, 2]


def distances(m: FlowMatch, T: np.ndarray, K: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Pixels between where matches are and where the motion `T` from i to j puts them."""
    u, v, _ = project(m.points[which], T[:3], K)
    return np.hypot(u - m.pixels[which, 0], v - m.pixels[which, 1])


def chosen_pairs(
    views: Sequence[ViewArrays], new: Sequence[int], neighbours: int
) -> list[tuple[int, int]]:
    """For each new view its best-overlapping neighbours, every pair once."""
    share = overlaps(views)
    mutual = np.minimum(share, share.T)
    pairs = set()
    for i in new:
        best = np.argsort(-mutual[i], kind="stable")[:neighbours]
        pairs |= {(min(i, int(j)), max(i, int(j))) for j in best if j != i and mutual[i, j] > 0.04}
    return sorted(pairs)


def match(views: Sequence[ViewArrays], i: int, j: int) -> FlowMatch | None:
    """Matches of one pair, or None where the views share too little."""
    import cv2

    from worldstereo.views.registration import _kernels

    p, q = views[i], views[j]
    here, other = (cv2.cvtColor(view.color, cv2.COLOR_RGB2GRAY) for view in (p, q))
    there, known = here.copy(), np.empty(here.shape, np.uint8)
    _kernels.fetch_grey(
        p.depth, p.pose.K, other, q.depth, q.pose.K, relative(p.pose, q.pose), TOLERANCE, there,
        known,
    )  # fmt: skip
    known = known > 0
    if known.mean() < OVERLAP:
        return None
    flow, residual = flow_both_ways(here, there)
    inner = cv2.erode(
        known.astype(np.uint8),
        np.ones((15, 15), np.uint8),
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    strength = np.minimum(cv2.cornerMinEigenVal(here, 9), cv2.cornerMinEigenVal(there, 9))
    strength = np.where((inner > 0) & (residual < 1.0) & (p.edge_distance > 2), strength, 0)
    y, x = best_per_cell(strength)
    row, column = y // CELL, x // CELL
    if len(x) < MIN_MATCHES:
        return None
    fx, fy = flow[y, x].T
    d = p.disparity[y, x]
    moved = d + p.slope_x[y, x] * fx + p.slope_y[y, x] * fy
    u, v, _ = project(_ray(p.pose, x + fx, y + fy, moved), relative(p.pose, q.pose), q.pose.K)
    drawn = _drawn(strength.shape, i, j)[row, column]
    fit, judge = drawn < FIT, drawn >= FIT + CHOOSE
    held = ~fit & ~judge
    likeness = _likeness(here, there, known)
    reach = float(np.median(np.hypot(fx, fy)))
    points, pixels = _ray(p.pose, x, y, d), np.stack([u, v], 1)
    h, w = strength.shape
    tile = y * TILES // h * TILES + x * TILES // w
    return FlowMatch(i, j, points, pixels, fit, held, judge, tile, likeness, reach)


def _drawn(shape: tuple[int, int], i: int, j: int) -> np.ndarray:
    """A number in [0, 1) for each cell of view `i` when it is matched with view `j`."""
    size = shape[0] // CELL + 1, shape[1] // CELL + 1
    return np.random.default_rng((SEED, i, j)).random(size)


def _likeness(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Mean correlation in windows of sigma 12 px, of pictures without details below sigma 2 px.

    Asked at a quarter of the size, where such details are gone.
    """
    import cv2

    h, w = max(1, a.shape[0] // 4), max(1, a.shape[1] // 4)

    def small(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (0, 0), 3)

    inside = small(where) > 0.5
    share = np.maximum(blur(inside.astype(np.float32)), 1e-3)
    x, y = (cv2.GaussianBlur(small(image), (3, 3), 0.5) * inside for image in (a, b))
    mx, my = blur(x) / share, blur(y) / share
    vx = blur(x * x) / share - mx * mx
    vy = blur(y * y) / share - my * my
    c = blur(x * y) / share - mx * my
    textured = inside & (vx > 4) & (vy > 4)
    if not textured.any():
        return 0.0
    return float(np.mean(c[textured] / np.sqrt(vx[textured] * vy[textured])))


def flow_both_ways(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flow from a to b and how far the way back misses, in pixels."""
    import cv2

    flow = cv2.DISOpticalFlow_create(1)  # pyright: ignore[reportAttributeAccessIssue]  (FAST)
    forth = flow.calc(a, b, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
    back = flow.calc(b, a, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
    y, x = np.mgrid[: a.shape[0], : a.shape[1]].astype(np.float32)
    returned = cv2.remap(back, x + forth[..., 0], y + forth[..., 1], cv2.INTER_LINEAR)
    u, v = forth[..., 0] + returned[..., 0], forth[..., 1] + returned[..., 1]
    return forth, np.sqrt(u * u + v * v)


def best_per_cell(strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    h, w = strength.shape[0] // CELL, strength.shape[1] // CELL
    if h == 0 or w == 0:
        return np.zeros(0, int), np.zeros(0, int)
    cells = strength[: h * CELL, : w * CELL].reshape(h, CELL, w, CELL).transpose(0, 2, 1, 3)
    cells = cells.reshape(h * w, -1)
    best, cell = cells.argmax(1), np.arange(h * w)
    good = cells[cell, best] > 2e-5
    y = (cell // w * CELL + best // CELL)[good]
    x = (cell % w * CELL + best % CELL)[good]
    return y, x


def _ray(pose: Pose, u: np.ndarray, v: np.ndarray, d: np.ndarray) -> np.ndarray:
    fx, fy, cx, cy = pose.K
    points = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(len(u))], 1)
    return points / np.maximum(d, 1e-6)[:, None]
