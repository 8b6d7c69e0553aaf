"""Between the world's frame and the viewport's: scale, poses, and small line drawings of cameras.

The viewport is the world times `scale`, chosen so that viser's fixed flying speed (2 units a s)
crosses the scene's own unit of length in about a second. Poses are OpenCV on both sides.
"""

import numpy as np
import torch
import viser.transforms as vtf

from worldstereo.cameras import Cameras

COMFORT = 2.5  # stage units that one scene unit u (median depth) becomes


def stage_scale(unit: float) -> float:
    """Viewport units per scene unit for a scene whose median depth is `unit`."""
    return COMFORT / unit if np.isfinite(unit) and unit > 0 else 1.0


def wxyz(rotation: np.ndarray) -> np.ndarray:
    """Quaternion of a (3, 3) rotation, viser's order."""
    return vtf.SO3.from_matrix(np.asarray(rotation, np.float64)).wxyz


def poses(cameras: Cameras) -> np.ndarray:
    """c2w as float64 (n, 4, 4); a single camera gives n = 1."""
    return cameras.c2w.detach().cpu().double().numpy().reshape(-1, 4, 4)


def vertical_fov(cameras: Cameras) -> float:
    fy = float(cameras.K.reshape(-1, 3, 3)[0, 1, 1])
    return float(2 * np.arctan(cameras.height / 2 / fy))


def fitting_fov(cameras: Cameras, aspect: float) -> float:
    """Vertical field of view, in radians, that shows the whole frame at this aspect."""
    fx, fy = (float(v) for v in cameras.K.reshape(-1, 3, 3)[0].diagonal()[:2])
    tall, wide = cameras.height / 2 / fy, cameras.width / 2 / fx
    return float(np.clip(2 * np.arctan(max(tall, wide / max(aspect, 0.2))), 0.2, 2.4))


def camera_of(c2w: np.ndarray, fov: float, width: int, height: int, scale: float = 1.0) -> Cameras:
    """A camera of the world from a pose in the viewport and a vertical field of view in radians."""
    matrix = np.asarray(c2w, np.float64).copy()
    matrix[:3, 3] /= scale
    focal = float(height / 2 / np.tan(fov / 2))
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return Cameras(K, torch.from_numpy(matrix).float(), width, height)


def pose_matrix(quaternion: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(4, 4) from viser's quaternion and position."""
    matrix = np.eye(4)
    matrix[:3, :3] = vtf.SO3(np.asarray(quaternion, np.float64)).normalize().as_matrix()
    matrix[:3, 3] = position
    return matrix


def blend_poses(a: np.ndarray, b: np.ndarray, s: float) -> np.ndarray:
    """Between two (4, 4) poses: straight line for the position, shortest turn for the rotation."""
    if s >= 1:
        return b
    start, goal = vtf.SO3.from_matrix(a[:3, :3]), vtf.SO3.from_matrix(b[:3, :3])
    matrix = np.eye(4)
    matrix[:3, :3] = (start @ vtf.SO3.exp(s * (start.inverse() @ goal).log())).as_matrix()
    matrix[:3, 3] = (1 - s) * a[:3, 3] + s * b[:3, 3]
    return matrix


def pyramid_lines(cameras: Cameras, scale: float, size: float) -> np.ndarray:
    """Eight line segments per camera, (8 n, 2, 3) float32; `size` is their depth drawn."""
    c2w = poses(cameras)
    K = cameras.K.detach().cpu().double().numpy().reshape(-1, 3, 3)
    wide = size * cameras.width / 2 / K[:, 0, 0]
    tall = size * cameras.height / 2 / K[:, 1, 1]
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = np.stack(
        [signs[:, 0] * wide[:, None], signs[:, 1] * tall[:, None], np.full((len(c2w), 4), size)], -1
    )
    tips = c2w[:, None, :3, 3] * scale
    corners = corners @ c2w[:, :3, :3].transpose(0, 2, 1) + tips
    tips = np.broadcast_to(tips, corners.shape)
    sides = np.stack([tips, corners], axis=2)
    rim = np.stack([corners, np.roll(corners, -1, axis=1)], axis=2)
    return np.concatenate([sides, rim], axis=1).reshape(-1, 2, 3).astype(np.float32)
