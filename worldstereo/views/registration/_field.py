"""The correction of poses as a field over the space of poses, known at the registered views.

Kriging (Gaussian process regression with constant mean) over position and 0.16 u x rotation vector,
in world axes; the kernel is chosen by leaving one view out, judged by the motion of the image
because rotation and translation partly cancel.

Source: Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, section 2.7.
"""

import numpy as np

from worldstereo.views.fusion import RADIAN, REFERENCE_DEPTH

NUGGET = 0.01
CLEARLY = 0.85  # a smoother kernel must leave at most this share of the error to be taken


def exp6(twist: np.ndarray) -> np.ndarray:
    """4x4 transform of a rotation vector and a translation."""
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation(twist[:3]), twist[3:]
    return out


def log6(M: np.ndarray) -> np.ndarray:
    """Rotation vector and translation of a rigid transform."""
    return np.concatenate([rotation_vector(M[:3, :3]), M[:3, 3]])


def rotation(vector: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.Rodrigues(np.asarray(vector, np.float64))[0]


def rotation_vector(R: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.Rodrigues(np.asarray(R, np.float64))[0][:, 0]


class CorrectionField:
    """Corrections `before -> after` of some poses, and what follows for any pose between them."""

    def __init__(self, before: np.ndarray, after: np.ndarray, focal: float, depth: float) -> None:
        """`before`, `after`: (n, 4, 4) poses in u; `focal` in pixels, `depth` the scene's, in u."""
        self.first = before[0][:3, :3]
        self.at = np.array([self._coordinate(M) for M in before])
        self.moves = np.array(
            [_world_move(a, b) for a, b in zip(before, after, strict=True)]
        )  # (n, 6): rotation vector and displacement in world axes
        self.kernel = self._choose(before, focal, depth)

    def __call__(self, c2w: np.ndarray) -> np.ndarray:
        """One pose, moved."""
        if not self.moves.any():
            return c2w
        m = _predict(self.at, self.moves, self._coordinate(c2w), self.kernel)
        R = c2w[:3, :3]
        return c2w @ exp6(np.concatenate([R.T @ m[:3], R.T @ m[3:]]))

    def _coordinate(self, c2w: np.ndarray) -> np.ndarray:
        turn = rotation_vector(c2w[:3, :3] @ self.first.T)
        return np.concatenate([c2w[:3, 3], RADIAN * turn])

    def _choose(self, before: np.ndarray, focal: float, depth: float) -> float:
        """Length of the kernel in u: negative exponential, positive Matern 3/2."""
        best, least = -3.0 / REFERENCE_DEPTH, np.inf
        if len(before) < 4:
            return best
        grid = np.array([[x, y, 1] for x in (-0.4, 0, 0.4) for y in (-0.3, 0, 0.3)]) * depth
        for length in (-3.0 / REFERENCE_DEPTH, 1.0 / REFERENCE_DEPTH, 3.0 / REFERENCE_DEPTH):
            errors = []
            for i, c2w in enumerate(before):
                others = np.arange(len(before)) != i
                guess = _predict(self.at[others], self.moves[others], self.at[i], length)
                errors.append(image_motion(c2w, guess - self.moves[i], grid, focal))
            mean = float(np.mean(errors))
            if mean < (CLEARLY if best < 0 and np.isfinite(least) else 1.0) * least:
                best, least = length, mean
        return best


def image_motion(c2w: np.ndarray, move: np.ndarray, grid: np.ndarray, focal: float) -> float:
    """Mean motion in pixels of points `grid` (camera axes) when a camera moves a little."""
    R = c2w[:3, :3]
    motion = np.cross(R.T @ move[:3], grid) + R.T @ move[3:]
    z = grid[:, 2:]
    plane = motion[:, :2] - grid[:, :2] / z * motion[:, 2:]
    return float((focal * np.linalg.norm(plane, axis=1) / z[:, 0]).mean())


def _world_move(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    e = log6(np.linalg.inv(a) @ b)
    return np.concatenate([a[:3, :3] @ e[:3], a[:3, :3] @ e[3:]])


def _predict(at: np.ndarray, moves: np.ndarray, x: np.ndarray, length: float) -> np.ndarray:
    distance = np.linalg.norm(at[:, None] - at[None], axis=2)
    inverse = np.linalg.inv(_kernel(distance, length) + NUGGET * np.eye(len(at)))
    mean = (inverse.sum(0) @ moves) / inverse.sum()
    return mean + _kernel(np.linalg.norm(at - x, axis=1), length) @ inverse @ (moves - mean)


def _kernel(distance: np.ndarray, length: float) -> np.ndarray:
    if length < 0:
        return np.exp(distance / length)
    scaled = 3**0.5 * distance / length
    return (1 + scaled) * np.exp(-scaled)
