"""A building to walk through: rooms along a corridor, seen by a depth camera on a path.

Every surface is a box; colours are noise at several scales in the surface's own coordinates, so
that registration and painting find something to hold on to. The same seed is the same building.
Frames are made when they are asked for: a thousand of them need no memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from worldstereo.cameras import Cameras
from worldstereo.scene import Capture, View

ROOM = (5.0, 2.8, 4.0)  # metres along x, up, along z
NOISE = 0.0012  # of depth squared, one sigma: a depth camera of the usual kind

REACH = 8.0  # metres that the camera measures


@dataclass(frozen=True, eq=False)
class Building:
    """Boxes (n, 6): lowest and highest corner; the camera's way through them."""

    boxes: np.ndarray
    ways: np.ndarray
    """(m, 3): corners of the camera's path."""
    seed: int

    @staticmethod
    def of(rooms: int, seed: int = 0) -> "Building":
        """Rooms in a row on both sides of a corridor, with furniture; y points down."""
        random = np.random.default_rng(seed)
        boxes, ways = [], []
        wide, high, deep = ROOM
        columns = (rooms + 1) // 2
        length, thick = columns * wide, 0.1
        for z in (-1.0 - deep, 1.0 + deep):
            boxes.append([0, -high, z - thick / 2, length, 0, z + thick / 2])
        for x in (0.0, length):
            boxes.append([x - thick / 2, -high, -1 - deep, x + thick / 2, 0, 1 + deep])
        boxes.append([0, 0.0, -1 - deep, length, 0.1, 1 + deep])
        boxes.append([0, -high - 0.1, -1 - deep, length, -high, 1 + deep])
        for column in range(columns):
            x = column * wide
            ways.append([x + wide / 2, -1.5, 0.0])
            for side in (-1, 1):
                if 2 * column + (side > 0) >= rooms:
                    continue
                door = x + wide / 2
                for a, b in ((x, door - 0.6), (door + 0.6, x + wide)):
                    boxes.append(_sorted([a, -high, side * 1.0, b, 0, side * (1.0 + thick)]))
                boxes.append(
                    _sorted([door - 0.6, -high, side, door + 0.6, -2.1, side * (1 + thick)])
                )
                if column > 0:
                    boxes.append(
                        _sorted([x - 0.05, -high, side * 1.1, x + 0.05, 0, side * (1.1 + deep)])
                    )
                for _ in range(random.integers(6, 12)):
                    size = random.uniform([0.3, 0.3, 0.3], [1.2, 1.6, 0.9])
                    cx = random.uniform(x + 0.4, x + wide - 0.4)
                    cz = side * random.uniform(1.9, 0.9 + deep)
                    if abs(cx - door) < 0.9 and abs(cz) < 3.2:
                        continue  # the way in stays free
                    boxes.append([cx - size[0] / 2, -size[1], cz - size[2] / 2,
                                  cx + size[0] / 2, 0, cz + size[2] / 2])  # fmt: skip
                for into in (1.8, 2.8, 1.8):
                    ways.append([door, -1.5, side * into])
                ways.append([door, -1.5, 0.0])
        return Building(np.array(boxes, np.float64), np.array(ways, np.float64), seed)

    @property
    def length(self) -> float:
        """Metres of the way."""
        return float(np.linalg.norm(np.diff(self.ways, axis=0), axis=1).sum())

    def cameras(self, frames: int, width: int = 640, height: int = 480) -> list[Cameras]:
        """So many cameras, evenly along the way, looking around as people do."""
        steps = np.linalg.norm(np.diff(self.ways, axis=0), axis=1)
        along = np.concatenate([[0], np.cumsum(steps)])
        at = np.linspace(0, along[-1], frames)
        position = np.stack([np.interp(at, along, self.ways[:, k]) for k in range(3)], 1)
        turn = 2 * np.pi * at / 6.0  # once around each 6 m: doors, rooms and the way back
        f = 0.82 * width
        K = torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]])
        out = []
        for p, yaw in zip(position, turn, strict=True):
            tilt = 0.12 * np.sin(3.1 * yaw)
            cy, sy, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
            R = np.array([[cy, sy * st, sy * ct], [0, ct, -st], [-sy, cy * st, cy * ct]])
            c2w = np.eye(4)
            c2w[:3, :3], c2w[:3, 3] = R, p
            out.append(Cameras(K, torch.from_numpy(c2w).float(), width, height))
        return out

    def views(self, frames: int, width: int = 640, height: int = 480) -> Iterator[View]:
        """What a depth camera records at each of them."""
        for index, camera in enumerate(self.cameras(frames, width, height)):
            random = np.random.default_rng([self.seed, index])
            color, depth = _render(self.boxes, camera)
            noisy = depth + NOISE * depth**2 * random.standard_normal(depth.shape)
            noisy = np.round(noisy, 3)  # such cameras write whole millimetres
            noisy[(depth > REACH) | (random.random(depth.shape) < 0.01)] = 0
            yield View.of(
                torch.from_numpy(color).permute(2, 0, 1).float() / 255,
                torch.from_numpy(noisy.astype(np.float32))[None],
                camera,
                frame=index,
                name=f"{index:05d}",
            )

    def capture(self, frames: int, width: int = 640, height: int = 480) -> Capture:
        """A whole walk, as a reader gives it."""
        views = tuple(view.spilled() for view in self.views(frames, width, height))
        return Capture(f"walk of {frames} frames", "rgbd", views, metres_per_unit=1.0)


def _sorted(box: list[float]) -> list[float]:
    low, high = np.minimum(box[:3], box[3:]), np.maximum(box[:3], box[3:])
    return [*low.tolist(), *high.tolist()]


def _render(boxes: np.ndarray, camera: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 colour and (H, W) float64 depth of the nearest surfaces."""
    from bench._building_kernels import trace

    K = camera.K.double().numpy()
    c2w = camera.c2w.double().numpy()
    color = np.zeros((camera.height, camera.width, 3), np.uint8)
    depth = np.zeros((camera.height, camera.width))
    middle = (boxes[:, :3] + boxes[:, 3:]) / 2
    away = np.abs(c2w[:3, 3] - middle) - (boxes[:, 3:] - boxes[:, :3]) / 2
    boxes = np.ascontiguousarray(boxes[np.linalg.norm(np.maximum(away, 0), axis=1) < REACH])
    trace(boxes, K[0, 0], K[0, 2], K[1, 2], c2w[:3, :3].copy(), c2w[:3, 3].copy(), color, depth)
    return color, depth
