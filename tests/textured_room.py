"""A box with painted walls, traced: what a camera anywhere in it sees, with its true depth.

World axes as a photographer would draw them, turned: up is (0, 0, 1). Upright edges are painted on
the walls so that straight lines tell where up is.
"""

from functools import cache

import cv2
import numpy as np

LOW, HIGH = np.array([-2.5, -2.0, 0.0]), np.array([2.5, 2.0, 2.6])
UP = np.array([0.0, 0.0, 1.0])


@cache
def painting(seed: int, tiles: int = 0) -> np.ndarray:
    """(512, 512, 3) uint8: patches, lines and grain; with `tiles`, one small motif repeated."""
    rng = np.random.default_rng(seed)
    n = 512 // tiles if tiles else 512
    canvas = np.full((n, n, 3), 128, np.uint8)
    for _ in range(12 if tiles else 260):
        x, y = (int(v) for v in rng.integers(0, n, 2))
        w, h = (int(v) for v in rng.integers(n // 40 + 2, n // 8 + 4, 2))
        color = tuple(int(v) for v in rng.integers(0, 255, 3))
        cv2.rectangle(canvas, (x, y), (x + w, y + h), color, -1)
        cv2.circle(canvas, (y, x), max(2, w // 3), color[::-1], -1)
    grain = rng.normal(0, 12, canvas.shape)
    canvas = np.clip(canvas + grain, 0, 255).astype(np.uint8)
    return np.tile(canvas, (tiles, tiles, 1)) if tiles else canvas


def seen(eye: np.ndarray, rays: np.ndarray, tiles: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Colours (H, W, 3) uint8 and distances in multiples of the rays (H, W, 3)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(rays > 0, (HIGH - eye) / rays, (LOW - eye) / rays)
    t = np.where(np.abs(rays) < 1e-12, np.inf, t)
    axis, near = t.argmin(-1), t.min(-1)
    points = eye + rays * near[..., None]
    out = np.zeros((*rays.shape[:2], 3), np.uint8)
    for k in range(3):
        for side in (False, True):
            hit = (axis == k) & ((np.take(rays, k, -1) > 0) == side)
            u, v = (i for i in range(3) if i != k)
            size = HIGH - LOW
            scale = 512 / size.max()
            x = ((points[..., u] - LOW[u]) * scale).astype(np.float32)
            y = ((points[..., v] - LOW[v]) * scale).astype(np.float32)
            picture = cv2.remap(painting(2 * k + side, tiles), x, y, cv2.INTER_LINEAR,
                                borderMode=cv2.BORDER_REFLECT)  # fmt: skip
            out[hit] = picture[hit]
    return out, near


def looking(eye: np.ndarray, at: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """c2w of a camera held level, then rolled."""
    z = (at - eye) / np.linalg.norm(at - eye)
    x = np.cross(z, UP)
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    c, s = np.cos(roll), np.sin(roll)
    out = np.eye(4)
    out[:3, :3] = np.stack([c * x + s * y, c * y - s * x, z], 1)
    out[:3, 3] = eye
    return out


def photo(c2w: np.ndarray, width: int, height: int, focal: float, tiles: int = 0) -> np.ndarray:
    """What a pinhole sees, averaged over 2 x 2 rays a pixel."""
    v, u = np.mgrid[0 : 2 * height, 0 : 2 * width] / 2 + 0.25
    rays = np.stack([(u - width / 2) / focal, (v - height / 2) / focal, np.ones_like(u)], -1)
    picture, _ = seen(c2w[:3, 3], rays @ c2w[:3, :3].T, tiles)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def depth(c2w: np.ndarray, width: int, height: int, focal: float) -> np.ndarray:
    v, u = np.mgrid[0:height, 0:width] + 0.5
    rays = np.stack([(u - width / 2) / focal, (v - height / 2) / focal, np.ones_like(u)], -1)
    return seen(c2w[:3, 3], rays @ c2w[:3, :3].T)[1]


def panorama(c2w: np.ndarray, width: int) -> np.ndarray:
    """The whole sphere, the camera's forward in the middle."""
    v, u = np.mgrid[0:width, 0 : 2 * width] / 2 + 0.25
    lon, lat = (u / width - 0.5) * 2 * np.pi, (v / (width / 2) - 0.5) * np.pi
    rays = np.stack([np.sin(lon) * np.cos(lat), np.sin(lat), np.cos(lon) * np.cos(lat)], -1)
    picture, _ = seen(c2w[:3, 3], rays @ c2w[:3, :3].T)
    return cv2.resize(picture, (width, width // 2), interpolation=cv2.INTER_AREA)


def walk(n: int, step: float = 0.25) -> list[np.ndarray]:
    """Cameras along a line, looking across it and a little down, held level."""
    out = []
    for i in range(n):
        s = (i - (n - 1) / 2) * step
        eye = np.array([s, -1.0 + 0.05 * np.sin(2.0 * i), 1.5])
        out.append(looking(eye, np.array([-0.4 * s, 2.0, 1.1])))
    return out
