"""An analytic room: the colour and the depth of every ray, so that a capture can be judged.

Walls at x = -2, 2; y = -1.5, 1.5; z = -2, 3. OpenCV axes; pixels count from the corner of the
first pixel, whose centre is at (0.5, 0.5).
"""

from typing import Any

import numpy as np

ORIGIN_UTM = np.array([317785.23, 5049158.31, 40.352])
LOW, HIGH = np.array([-2.0, -1.5, -2.0]), np.array([2.0, 1.5, 3.0])
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def paint(points: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] of points on the walls: smooth, and different on each wall."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    red = 0.5 + 0.4 * np.sin(2.3 * x + 1.1 * z)
    green = 0.5 + 0.4 * np.sin(2.9 * y - 1.3 * x + 0.5)
    blue = 0.5 + 0.4 * np.cos(2.1 * z + 1.7 * y)
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 1)


def distance(origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """How many lengths of each ray fit until a wall."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(rays > 0, (HIGH - origin) / rays, (LOW - origin) / rays)
    return np.where(np.abs(rays) < 1e-12, np.inf, t).min(axis=-1)


def pose(i: int, step: float = 0.15) -> np.ndarray:
    """Camera to world of the i-th picture: along x, turned a little."""
    a = 0.06 * (i - 1.5)
    out = np.eye(4)
    out[:3, :3] = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    out[:3, 3] = [step * (i - 1.5), 0.05 * np.sin(i), -1.2 + 0.04 * i]
    return out


def pixels(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    v, u = np.mgrid[0:height, 0:width] + 0.5
    return u, v


def pinhole(width: int, height: int, fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Rays with z = 1 through the pixel centres."""
    u, v = pixels(width, height)
    return np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u)], axis=-1)


def shoot(c2w: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours (H, W, 3) uint8 and the lengths of the rays: depth, where their z is 1."""
    world = rays @ c2w[:3, :3].T
    t = distance(c2w[:3, 3], world)
    return (paint(c2w[:3, 3] + t[..., None] * world) * 255 + 0.5).astype(np.uint8), t


def color_error(view: Any) -> float:
    """Median difference, in 1/255, between a view and what its own camera sees of the room."""
    K, c2w = view.cameras.K.double().numpy(), view.cameras.c2w.double().numpy()
    rays = pinhole(view.width, view.height, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    right, _ = shoot(c2w, rays)
    given = view.color_u8.numpy().transpose(1, 2, 0).astype(float)
    return float(np.median(np.abs(given - right)))


def depth_error(view: Any) -> np.ndarray:
    """Differences between the known depth of a view and the walls, scene units."""
    K, c2w = view.cameras.K.double().numpy(), view.cameras.c2w.double().numpy()
    rays = pinhole(view.width, view.height, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    _, right = shoot(c2w, rays)
    depth = view.depth[0].double().numpy()
    return np.abs(depth - right)[depth > 0]


def outside(points: np.ndarray, margin: float = 0.1) -> float:
    """The share of points that lie outside the room."""
    far = (points < LOW - margin) | (points > HIGH + margin)
    return float(far.any(axis=1).mean())
