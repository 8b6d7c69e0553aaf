"""Lenses with distortion, and pictures without it.

`K` counts from the corner of the first pixel (its centre is 0.5, 0.5). Models and parameter order
as in COLMAP; normalised coordinates (x, y) = ((u - cx) / fx, (v - cy) / fy).
"""

from dataclasses import dataclass, replace

import numpy as np

MODELS: dict[str, str] = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k1",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2",
    "FULL_OPENCV": "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6",
    "OPENCV_FISHEYE": "fx fy cx cy k1 k2 k3 k4",
}
"""Camera models that are read, and the order of their parameters."""


@dataclass(frozen=True, eq=False)
class Lens:
    """Intrinsics of one picture size, with radial and tangential distortion."""

    K: np.ndarray
    width: int
    height: int
    k: tuple[float, ...] = ()
    """k1 k2 k3, then the denominator k4 k5 k6; for a fisheye k1 to k4."""
    p: tuple[float, float] = (0.0, 0.0)
    fisheye: bool = False

    @property
    def distorted(self) -> bool:
        return self.fisheye or any(self.k) or any(self.p)

    def scaled(self, width: int, height: int) -> "Lens":
        scale = np.diag([width / self.width, height / self.height, 1.0])
        return replace(self, K=scale @ self.K, width=width, height=height)

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised coordinates of a pinhole to those of this lens.

        Source: Brown 1966 as in OpenCV `calib3d`; fisheye: Kannala & Brandt 2006.
        """
        k = (*self.k, *(0.0,) * (6 - len(self.k)))
        if self.fisheye:
            r = np.maximum(np.hypot(x, y), 1e-12)
            theta = np.arctan(r)
            t2 = theta * theta
            bent = theta * (1 + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3]))))
            return x * bent / r, y * bent / r
        r2 = x * x + y * y
        with np.errstate(divide="ignore", invalid="ignore"):  # a pole: no pixel is there
            radial = (1 + r2 * (k[0] + r2 * (k[1] + r2 * k[2]))) / (
                1 + r2 * (k[3] + r2 * (k[4] + r2 * k[5]))
            )
        p1, p2 = self.p
        return (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        )


def undistorted(
    pixels: np.ndarray, depth: np.ndarray, lens: Lens
) -> tuple[np.ndarray, np.ndarray, Lens]:
    """The same picture through a pinhole, enlarged just enough that no pixel is left empty."""
    import cv2

    h, w = lens.height, lens.width
    zoom = _zoom(lens)
    K = lens.K.copy()
    K[0, 0], K[1, 1] = K[0, 0] * zoom, K[1, 1] * zoom
    v, u = np.mgrid[0:h, 0:w] + 0.5
    mx, my = _source(lens, K, u, v)
    mx, my = (mx - 0.5).astype(np.float32), (my - 0.5).astype(np.float32)
    color = cv2.remap(pixels, mx, my, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    z = cv2.remap(depth, mx, my, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return color, z, Lens(K, w, h)


def _source(
    lens: Lens, K: np.ndarray, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the distorted picture that pixels (u, v) of the pinhole `K` show."""
    x, y = lens.distort((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1])
    return x * lens.K[0, 0] + lens.K[0, 2], y * lens.K[1, 1] + lens.K[1, 2]


def _zoom(lens: Lens) -> float:
    """The smallest enlargement from 1 to 4 for which the whole border lies inside the source."""
    w, h = lens.width, lens.height
    s = np.linspace(0, 1, 65)
    u = np.concatenate([s * w, s * w, s * 0, s * 0 + w])
    v = np.concatenate([s * 0, s * 0 + h, s * h, s * h])

    def inside(zoom: float) -> bool:
        K = lens.K * np.array([[zoom, 1, 1], [1, zoom, 1], [1, 1, 1]])
        x, y = _source(lens, K, u, v)
        return bool((x >= -0.5).all() and (x <= w + 0.5).all()
                    and (y >= -0.5).all() and (y <= h + 0.5).all())  # fmt: skip

    low, high = 1.0, 4.0
    if inside(low) or not inside(high):
        return low
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if inside(middle) else (middle, high)
    return high
