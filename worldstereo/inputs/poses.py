"""Foreign matrices to cameras: checked, so that a refusal names file, frame and value."""

import numpy as np

from worldstereo.cameras import TOLERANCE
from worldstereo.inputs.limits import refusal

FAR = 1e7  # scene units; beyond this, float32 points fall apart


def pose(name: str, where: str, matrix: np.ndarray) -> np.ndarray:
    """A rigid 4x4 transform in float64; accepts 3x4. A uniform scale of its axes is divided out:
    Blender and ARKit write the scale of the camera object there, and it moves no pixel.

    Raises:
        InputRefused: not finite, not a rotation, mirrored, or absurdly far away.
    """
    if matrix.shape == (3, 4):
        matrix = np.concatenate([matrix, [[0.0, 0.0, 0.0, 1.0]]])
    at = f"{where}: " if where else ""
    if not np.isfinite(matrix).all():
        entry = matrix[~np.isfinite(matrix)][0]
        raise refusal(name, f"{at}the pose holds {entry}", "Only finite numbers are accepted")
    R, last = matrix[:3, :3], matrix[3]
    if np.abs(last - [0, 0, 0, 1]).max() > TOLERANCE:
        row = ", ".join(f"{v:.4g}" for v in last)
        raise refusal(name, f"{at}the last row is {row}", "It must be 0, 0, 0, 1")
    with np.errstate(over="ignore", invalid="ignore"):  # then it is infinite, or no number
        drift = float(np.abs(R @ R.T - np.eye(3)).max())
    if not drift <= TOLERANCE and (scale := _scale(R)) is not None:
        R = R / scale
        matrix = matrix.copy()
        matrix[:3, :3], drift = R, 0.0
    if not drift <= TOLERANCE:
        raise refusal(
            name,
            f"{at}R @ R.T is off the identity by {drift:.2g}; at most {TOLERANCE} is accepted",
            "Remove the scale or shear",
        )
    if np.linalg.det(R) < 0:
        raise refusal(
            name, f"{at}det(R) is -1, the pose mirrors the world", "Flip one axis back to get +1"
        )
    if np.abs(matrix[:3, 3]).max() > FAR:
        raise refusal(
            name,
            f"{at}the camera is at {np.abs(matrix[:3, 3]).max():.3g} units",
            f"At most {FAR:.0e} is accepted. Move the capture to the origin",
        )
    return matrix.astype(np.float64)


def _scale(R: np.ndarray) -> float | None:
    """The one factor by which a rotation was scaled; None for any other matrix."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = R @ R.T
        scale = float(np.sqrt(np.trace(square) / 3))
        if not 1e-6 < scale < 1e6:
            return None
        drift = float(np.abs(square / scale**2 - np.eye(3)).max())
    return scale if drift <= TOLERANCE else None


def quaternion(name: str, where: str, wxyz: np.ndarray) -> np.ndarray:
    """The rotation of a quaternion (w, x, y, z) of about unit length.

    Source: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """
    with np.errstate(over="ignore"):
        length = float(np.linalg.norm(wxyz)) if np.isfinite(wxyz).all() else float("nan")
    if not abs(length - 1) <= 0.01:
        raise refusal(
            name,
            f"{where}: the quaternion has length {length:.3g}",
            "Length 1 within 0.01 is accepted",
        )
    w, x, y, z = wxyz / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def rigid(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = R, t
    return out


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a rigid transform."""
    R, t = matrix[:3, :3], matrix[:3, 3]
    with np.errstate(over="ignore", invalid="ignore"):  # `pose` refuses what is not finite
        return rigid(R.T, -R.T @ t)


def intrinsics(
    name: str, where: str, fx: float, fy: float, cx: float, cy: float, width: int, height: int
) -> np.ndarray:
    """K in pixels (first pixel's centre at 0.5), checked to be a possible lens."""
    at = f"{where}: " if where else ""
    values = np.array([fx, fy, cx, cy], dtype=np.float64)
    if not np.isfinite(values).all():
        raise refusal(name, f"{at}the intrinsics hold {values[~np.isfinite(values)][0]}",
                      "Only finite numbers are accepted")  # fmt: skip
    side = max(width, height)
    for label, focal in (("fx", fx), ("fy", fy)):
        if not 0.02 * side <= focal <= 100 * side:
            raise refusal(
                name,
                f"{at}the focal length {label} is {focal:.6g} px for {width} x {height} px",
                f"From {0.02 * side:.0f} to {100 * side:.0f} px is accepted",
            )
    if not (-2 * width <= cx <= 3 * width and -2 * height <= cy <= 3 * height):
        raise refusal(
            name,
            f"{at}the principal point is {cx:.6g}, {cy:.6g} for {width} x {height} px",
            "A point in or near the picture is accepted",
        )
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
