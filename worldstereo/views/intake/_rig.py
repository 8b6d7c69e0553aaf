"""What is fixed to the camera (a gripper, a bonnet), found by motion that did not happen.

A pixel may be called camera-fixed only where the scene should have moved: the motion that depth and
poses predict there exceeds several pixels in most of the compared pairs, and the image neither
changed nor followed it.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from worldstereo.views.fusion import Working, parallel_for, relative

LEAST_VIEWS = 4
MOST_VIEWS = 16
MOTION = 5.0  # pixels that the scene must have moved
CHANGE = 0.06  # mean colour difference below which the image did not change
PAIRS = 0.6  # share of the compared pairs that must say so
GROW = 0.4  # share down to which a region that holds such pixels continues (noise, sparkle)


def find_rig(views: Sequence[Working]) -> tuple[np.ndarray, np.ndarray] | None:
    """Mask (H, W) and mean colour (H, W, 3) of the camera-fixed pixels, or None."""
    import cv2

    if len(views) < LEAST_VIEWS or len({v.pose.shape for v in views}) > 1:
        return None
    pick = np.unique(np.rint(np.linspace(0, len(views) - 1, min(len(views), MOST_VIEWS))))
    chosen = [views[int(i)] for i in pick]
    known = [v.depth[v.depth > 0] for v in chosen]
    known = [k for k in known if len(k)]
    if not known:
        return None
    depth = float(np.median([np.median(k) for k in known]))
    shape = chosen[0].pose.shape
    images = [cv2.GaussianBlur(v.color.astype(np.float32) / 255, (0, 0), 1.0) for v in chosen]
    pairs = list(combinations(range(len(chosen)), 2))
    still = np.empty((len(pairs), *shape), bool)

    def one(k: int) -> None:
        a, b = pairs[k]
        still[k] = _still(chosen[a], chosen[b], images[a], images[b], depth)

    parallel_for(len(pairs), one)
    stack = np.stack(images)
    said = still.sum(0, dtype=np.float32) / len(pairs)
    mask = _at_the_border(_grown(cv2.GaussianBlur(said, (0, 0), 3)), stack)
    if not mask.any():
        return None
    side = max(3, round(25 * shape[1] / 640)) | 1
    # The default border of OpenCV counts for nothing here: a rig continues beyond the image.
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((side, side), np.uint8))
    mask = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0
    mean = np.mean([v.color.astype(np.float32) / 255 for v in chosen], axis=0)
    return mask, mean.astype(np.float32)


def _still(
    a: Working, b: Working, image: np.ndarray, other: np.ndarray, depth: float
) -> np.ndarray:
    """Where the scene at `depth` must have moved, and the image stood still instead."""
    import cv2

    h, w = image.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    fx, fy, cx, cy = a.pose.K
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1) * depth
    T = relative(a.pose, b.pose)
    q = rays @ T[:, :3].T + T[:, 3]
    z = np.maximum(q[..., 2], 1e-3)
    u = (b.pose.K[0] * q[..., 0] / z + b.pose.K[2]).astype(np.float32)
    v = (b.pose.K[1] * q[..., 1] / z + b.pose.K[3]).astype(np.float32)
    must_move = (np.hypot(u - x, v - y) > MOTION) & (q[..., 2] > 0)
    same = cv2.GaussianBlur(np.abs(image - other).mean(2), (0, 0), 2) < CHANGE
    moved = cv2.remap(other, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (u >= 0) & (v >= 0) & (u <= w - 1) & (v <= h - 1)
    differs = cv2.GaussianBlur(np.abs(image - moved).mean(2), (0, 0), 2) >= CHANGE
    return must_move & same & (differs | ~inside)


def _grown(share: np.ndarray) -> np.ndarray:
    """Regions above `GROW` that hold pixels above `PAIRS` (hysteresis), uint8."""
    import cv2

    weak = cv2.morphologyEx(
        (share > GROW).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)
    )
    _, label = cv2.connectedComponents(weak)
    firm = np.unique(label[(share > PAIRS) & (weak > 0)])
    return (np.isin(label, firm) & (weak > 0)).astype(np.uint8)


def _at_the_border(mask: np.ndarray, stack: np.ndarray) -> np.ndarray:
    """Components that touch the border, are no speck and have more texture than change."""
    import cv2

    h, w = mask.shape
    change = cv2.GaussianBlur(stack.std(0).mean(2), (0, 0), 2)
    middle = np.median(stack, 0).astype(np.float32)
    texture = cv2.GaussianBlur(middle**2, (0, 0), 4) - cv2.GaussianBlur(middle, (0, 0), 4) ** 2
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
