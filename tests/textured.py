"""A room with texture and exact depth, for tests of what keypoints carry: three turned walls."""

import functools

import numpy as np
import torch

from worldstereo.cameras import Cameras, look_at
from worldstereo.scene import View

WALLS = (
    (np.array([0.0, 0.0, 4.0]), np.array([0.0, 0.0, -1.0])),
    (np.array([-2.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0])),
    (np.array([0.0, 1.2, 0.0]), np.array([0.0, -1.0, 0.0])),
)
SIZE = (320, 240)


@functools.cache
def texture(seed: int) -> np.ndarray:
    """(1024, 1024, 3) uint8: blobs of many sizes, nothing twice."""
    import cv2

    rng = np.random.default_rng(seed)
    out = np.zeros((1024, 1024, 3), np.float32)
    for scale in (4, 8, 16, 64):
        small = rng.random((1024 // scale, 1024 // scale, 3)).astype(np.float32)
        out += cv2.resize(small, (1024, 1024), interpolation=cv2.INTER_CUBIC) / 4
    return (np.clip((out - 0.5) * 2 + 0.5, 0, 1) * 255).astype(np.uint8)


def camera_at(eye: tuple[float, float, float], to: tuple[float, float, float]) -> Cameras:
    K = torch.tensor([[260.0, 0.0, 161.0], [0.0, 262.0, 118.0], [0.0, 0.0, 1.0]])
    up = torch.tensor([0.0, -1.0, 0.0])
    return Cameras(K, look_at(torch.tensor(eye), torch.tensor(to), up), *SIZE)


def view_of(camera: Cameras, seed: int = 0, name: str = "") -> View:
    """What a camera sees of the room: each pixel's ray meets the nearest wall."""
    import cv2

    pixels = camera.pixel_grid().double().numpy()
    K, c2w = camera.K.double().numpy(), camera.c2w.double().numpy()
    rays = np.concatenate([pixels, np.ones((len(pixels), 1))], 1) @ np.linalg.inv(K).T
    world = rays @ c2w[:3, :3].T
    depth = np.full(len(rays), np.inf)
    color = np.zeros((len(rays), 3), np.uint8)
    for number, (point, normal) in enumerate(WALLS):
        z = ((point - c2w[:3, 3]) @ normal) / np.minimum(world @ normal, -1e-9)
        hit = (z > 0) & (z < depth) & (world @ normal < -1e-6)
        where = c2w[:3, 3] + world * np.where(hit, z, 1)[:, None]
        a, b = (axis for axis in range(3) if abs(normal[axis]) < 0.5)
        x, y = (where[:, a] * 150 + 512) % 1024, (where[:, b] * 150 + 512) % 1024
        sample = cv2.remap(
            texture(10 * seed + number),
            x.astype(np.float32).reshape(camera.height, camera.width),
            y.astype(np.float32).reshape(camera.height, camera.width),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        ).reshape(-1, 3)
        color[hit] = sample[hit]
        depth[hit] = z[hit]
    shape = (camera.height, camera.width)
    depth = np.where(np.isfinite(depth) & (depth < 50), depth, 0).reshape(1, *shape)
    image = torch.from_numpy(color.reshape(*shape, 3).transpose(2, 0, 1).copy()).float() / 255
    return View.of(image, torch.from_numpy(depth).float(), camera, name=name)


def views(n: int = 4, seed: int = 0) -> list[View]:
    """Views along an arc through the room, all towards its corner."""
    out = []
    for i in range(n):
        t = i / max(1, n - 1)
        camera = camera_at((-0.6 + 1.6 * t, -0.2 * t, 0.3 * t), (-0.8 + 0.5 * t, 0.3, 4.0))
        out.append(view_of(camera, seed, f"view {i}"))
    return out
