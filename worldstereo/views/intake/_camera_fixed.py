"""What is fixed to the camera (a gripper, a bonnet), found by motion that did not happen.

A pixel may be called camera-fixed only where the scene should have moved: the motion that depth and
poses predict there exceeds several pixels in most of the compared pairs, and the image neither
changed nor followed it. Plain surfaces look the same wherever the camera stands, so only structure
is evidence: texture that stays in place and does not follow the motion, in enough pairs, confirmed
by most of the views. Plain parts of it are found as what hangs together with such texture.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from worldstereo.views.fusion import ViewArrays, parallel_for, relative

MIN_VIEWS = 4
MAX_VIEWS = 16
MAX_PAIRS = 48
WIDTH = 320  # pixels; pictures are compared at about this width
MOTION = 5.0  # pixels of a picture 640 wide that the scene must have moved
CHANGE = 0.06  # mean colour difference below which the image did not change
PAIRS = 0.6  # share of the compared pairs that must say so
GROW = 0.4  # share down to which a region that holds such pixels continues (noise, sparkle)
LIKE, UNLIKE = 0.6, 0.4  # correlation of texture that stayed; of texture that did not follow
NOISE = 0.015  # standard deviation below which what varies in a window is no texture
STRUCTURE = 0.05  # share of a region that must be such texture
CONFIRMED = 0.6  # share of the views, and 3 at least, that must confirm a region


def find_camera_fixed(views: Sequence[ViewArrays]) -> tuple[np.ndarray, np.ndarray] | None:
    """Mask (H, W) and mean colour (H, W, 3) of the camera-fixed pixels, or None."""
    import cv2

    if len(views) < MIN_VIEWS or len({v.pose.shape for v in views}) > 1:
        return None
    pick = np.unique(np.rint(np.linspace(0, len(views) - 1, min(len(views), MAX_VIEWS))))
    chosen = [views[int(i)] for i in pick]
    known = [v.depth[v.depth > 0] for v in chosen]
    known = [k for k in known if len(k)]
    if not known:
        return None
    depth = float(np.median([np.median(k) for k in known]))
    full = chosen[0].pose.shape
    factor = max(1, round(full[1] / WIDTH))
    h, w = full[0] // factor, full[1] // factor
    images = [
        cv2.GaussianBlur(
            cv2.resize(v.color, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255,
            (0, 0), 0.7,
        )
        for v in chosen
    ]  # fmt: skip
    pairs = _pairs(len(chosen))
    still, said, tested = (np.empty((len(pairs), h, w), bool) for _ in range(3))

    def one(k: int) -> None:
        a, b = pairs[k]
        still[k], said[k], tested[k] = _compared(
            chosen[a], chosen[b], images[a], images[b], depth, w / full[1], h / full[0]
        )

    parallel_for(len(pairs), one)
    stack = np.stack(images)
    share = cv2.GaussianBlur(still.mean(0, dtype=np.float32), (0, 0), 1.5)
    reliable = said.sum(0) > PAIRS * np.maximum(tested.sum(0), 1)
    reliable &= _per_view(tested, pairs, len(chosen)).sum(0) >= 3
    mask = _confirmed(_grown(share), reliable, _per_view(said, pairs, len(chosen)))
    mask = _at_the_border(mask, stack)
    if not mask.any():
        return None
    mask = cv2.resize(mask, full[::-1], interpolation=cv2.INTER_NEAREST)
    side = max(3, round(25 * full[1] / 640)) | 1
    # The default border of OpenCV counts for nothing here: the mask continues beyond the image.
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((side, side), np.uint8))
    mask = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0
    mean = np.mean([v.color.astype(np.float32) / 255 for v in chosen], axis=0)
    return mask, mean.astype(np.float32)


def _pairs(n: int) -> list[tuple[int, int]]:
    """All pairs of a few views; of many the nearest in number, each view in as many."""
    every = sorted(combinations(range(n), 2), key=lambda p: (p[1] - p[0], p))
    return sorted(every[:MAX_PAIRS])


def _per_view(said: np.ndarray, pairs: Sequence[tuple[int, int]], n: int) -> np.ndarray:
    """(n, H, W): some pair with that view says so."""
    out = np.zeros((n, *said.shape[1:]), bool)
    for k, (a, b) in enumerate(pairs):
        out[a] |= said[k]
        out[b] |= said[k]
    return out


def _compared(
    a: ViewArrays,
    b: ViewArrays,
    image: np.ndarray,
    other: np.ndarray,
    depth: float,
    sx: float,
    sy: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One pair, where the scene at `depth` must have moved.

    Returns:
        where the image stood still instead, where its texture proves that, and where there was
        texture to prove anything.
    """
    import cv2

    h, w = image.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    (fx, fy, cx, cy), (gx, gy, dx, dy) = (
        (K[0] * sx, K[1] * sy, (K[2] + 0.5) * sx - 0.5, (K[3] + 0.5) * sy - 0.5)
        for K in (a.pose.K, b.pose.K)
    )
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1) * depth
    T = relative(a.pose, b.pose)
    q = rays @ T[:, :3].T + T[:, 3]
    z = np.maximum(q[..., 2], 1e-3)
    u = (gx * q[..., 0] / z + dx).astype(np.float32)
    v = (gy * q[..., 1] / z + dy).astype(np.float32)
    must_move = (np.hypot(u - x, v - y) > MOTION * w / 640) & (q[..., 2] > 0)
    same = cv2.GaussianBlur(np.abs(image - other).mean(2), (0, 0), 1) < CHANGE
    moved = cv2.remap(other, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (u >= 0) & (v >= 0) & (u <= w - 1) & (v <= h - 1)
    differs = cv2.GaussianBlur(np.abs(image - moved).mean(2), (0, 0), 1) >= CHANGE
    still = must_move & same & (differs | ~inside)
    grey, there, followed = (i.mean(2) for i in (image, other, moved))
    stayed, textured = _correlation(grey, there)
    tested = must_move & inside & textured
    said = tested & (stayed > LIKE) & (_correlation(grey, followed)[0] < UNLIKE)
    return still, said, tested


def _correlation(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation in windows of sigma 3, noise discounted, and where `a` has texture."""
    import cv2

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (0, 0), 3)

    ma, mb = blur(a), blur(b)
    va, vb = blur(a * a) - ma * ma, blur(b * b) - mb * mb
    floor = NOISE**2
    c = (blur(a * b) - ma * mb) / np.sqrt((va + floor) * (vb + floor)).clip(floor)
    return c, va > floor


def _grown(share: np.ndarray) -> np.ndarray:
    """Regions above `GROW` that hold pixels above `PAIRS` (hysteresis), uint8."""
    import cv2

    weak = cv2.morphologyEx(
        (share > GROW).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)
    )
    _, label = cv2.connectedComponents(weak)
    reliable = np.unique(label[(share > PAIRS) & (weak > 0)])
    return (np.isin(label, reliable) & (weak > 0)).astype(np.uint8)


def _confirmed(mask: np.ndarray, reliable: np.ndarray, by_view: np.ndarray) -> np.ndarray:
    """Regions with enough texture that stayed, each said by most of the views."""
    import cv2

    count, label = cv2.connectedComponents(mask)
    out = np.zeros_like(mask)
    for i in range(1, count):
        region = label == i
        proof = region & reliable
        if proof.sum() < STRUCTURE * region.sum():
            continue
        said = [float(view[proof].mean()) > 0.5 for view in by_view]
        if sum(said) >= max(3, CONFIRMED * len(said)):
            out[region] = 1
    return out


def _at_the_border(mask: np.ndarray, stack: np.ndarray) -> np.ndarray:
    """Components that touch the border, are no speck and have more texture than change."""
    import cv2

    h, w = mask.shape
    change = cv2.GaussianBlur(stack.std(0).mean(2), (0, 0), 1)
    middle = np.median(stack, 0).astype(np.float32)
    texture = cv2.GaussianBlur(middle**2, (0, 0), 2) - cv2.GaussianBlur(middle, (0, 0), 2) ** 2
    texture = np.sqrt(np.maximum(texture, 0)).mean(2)
    count, label, stats, _ = cv2.connectedComponentsWithStats(mask)
    out = np.zeros_like(mask)
    for i in range(1, count):
        x, y, wide, high, area = (int(s) for s in stats[i])
        inside = label == i
        touches = x == 0 or y == 0 or x + wide == w or y + high == h
        textured = np.median(texture[inside]) > 0.7 * np.median(change[inside])
        if touches and area > 0.01 * h * w and textured:
            out[inside] = 1
    return out
