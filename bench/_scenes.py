"""Clouds to measure on: four furnished rooms, sampled at random or as depth frames in order."""

import numpy as np
import torch

from worldstereo.cameras import Cameras, look_at
from worldstereo.render import render_points

WIDTH, HEIGHT = 832, 480


def rooms(n: int, seed: int = 0, noise: float = 0.003) -> np.ndarray:
    """Points on walls, floors, ceilings, boxes and balls of four 5x4x3 m rooms, in random order."""
    g, layout = np.random.default_rng(seed), np.random.default_rng(12345)
    faces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    balls: list[tuple[np.ndarray, float]] = []

    def box(p: np.ndarray, size: np.ndarray) -> None:
        x, y, z = np.diag(size)
        faces.extend([(p, x, y), (p + z, x, y), (p, x, z)])
        faces.extend([(p + y, x, z), (p, y, z), (p + x, y, z)])

    for rx in (0.0, 5.0):
        for ry in (0.0, 4.0):
            origin = np.array([rx, ry, 0.0])
            box(origin, np.array([5.0, 4.0, 3.0]))
            for _ in range(10):
                size = layout.uniform(0.2, 1.2, 3)
                box(origin + layout.uniform(0.1, 1, 3) * [3.5, 2.5, 0.0], size)
            for _ in range(4):
                centre = origin + layout.uniform(0.2, 0.8, 3) * [5, 4, 3]
                balls.append((centre, layout.uniform(0.1, 0.4)))
    area = [np.linalg.norm(np.cross(u, v)) for _, u, v in faces]
    area += [4 * np.pi * r * r for _, r in balls]
    which = g.choice(len(area), n, p=np.array(area) / np.sum(area))
    corner, u, v = (np.array([face[i] for face in faces]) for i in range(3))
    points = np.empty((n, 3), np.float32)
    flat = which < len(faces)
    w = which[flat]
    points[flat] = corner[w] + g.random((len(w), 1)) * u[w] + g.random((len(w), 1)) * v[w]
    w = which[~flat] - len(faces)
    way = g.normal(size=(len(w), 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    centres, radii = np.array([c for c, _ in balls]), np.array([r for _, r in balls])
    points[~flat] = centres[w] + radii[w][:, None] * way
    return points + g.normal(scale=noise, size=points.shape).astype(np.float32)


def walk(frames: int) -> Cameras:
    """A walk through the first rooms, turning a quarter."""
    K = torch.tensor([[600.0, 0.0, 416.0], [0.0, 600.0, 240.0], [0.0, 0.0, 1.0]])
    poses = []
    for i in np.linspace(0, 1, frames):
        angle = np.pi / 2 * i + 0.3
        eye = torch.tensor([1.2 + 1.5 * i, 1.5 + 0.8 * i, 1.5], dtype=torch.float32)
        ahead = torch.tensor([np.cos(angle), np.sin(angle), -0.15], dtype=torch.float32)
        poses.append(look_at(eye, eye + ahead, torch.tensor([0.0, 0.0, 1.0])))
    return Cameras(K.expand(frames, 3, 3), torch.stack(poses), WIDTH, HEIGHT)


class Scanner:
    """Depth frames of the rooms, unprojected: the order in which real captures arrive."""

    def __init__(self, density: int = 2_000_000) -> None:
        self._cloud = torch.from_numpy(rooms(density, 77))

    def frame(self, camera: Cameras, step: int, seed: int = 0) -> np.ndarray:
        depth = render_points(self._cloud, None, camera, radius=2).depth[0, ::step, ::step]
        g = torch.Generator().manual_seed(seed)
        noise = 0.003 * torch.randn(depth.shape, generator=g)
        v, u = torch.meshgrid(
            torch.arange(0, HEIGHT, step) + 0.5, torch.arange(0, WIDTH, step) + 0.5, indexing="ij"
        )
        seen = depth > 0.05
        pixels = torch.stack([u[seen], v[seen]], dim=-1)
        return camera.unproject(pixels, (depth + noise)[seen]).numpy()
