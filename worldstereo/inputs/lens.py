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
    "OPENCV_FISHEYE": "fx fy cx cy k1 k2 k3 k4",
    "FULL_OPENCV": "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6",
    "FOV": "fx fy cx cy omega",
    "SIMPLE_RADIAL_FISHEYE": "f cx cy k1",
    "RADIAL_FISHEYE": "f cx cy k1 k2",
    "THIN_PRISM_FISHEYE": "fx fy cx cy k1 k2 p1 p2 k3 k4 s1 s3",
    "RAD_TAN_THIN_PRISM_FISHEYE": "fx fy cx cy k1 k2 k3 k4 k5 k6 p1 p2 s1 s2 s3 s4",
    "SIMPLE_DIVISION": "f cx cy k1",
    "DIVISION": "fx fy cx cy k1",
    "SIMPLE_FISHEYE": "f cx cy",
    "FISHEYE": "fx fy cx cy",
}
"""Camera models that are read, with the order of their parameters; COLMAP's numbers in order."""

FISHEYES = frozenset(name for name in MODELS if "FISHEYE" in name)


@dataclass(frozen=True, eq=False)
class Lens:
    """Intrinsics of one picture size, with radial and tangential distortion."""

    K: np.ndarray
    width: int
    height: int
    k: tuple[float, ...] = ()
    """k1 k2 k3, then the denominator k4 k5 k6; for a fisheye k1 to k6 of its polynomial."""
    p: tuple[float, float] = (0.0, 0.0)
    fisheye: bool = False
    s: tuple[float, ...] = ()
    """Thin prism of a fisheye: s1 s2 along x, s3 s4 along y, for the 2nd and 4th power."""
    k8: float = 0.0
    """Coefficient of the 8th power of a lens that is no fisheye (nerfstudio's k4)."""
    omega: float = 0.0
    """Field-of-view model (Devernay & Faugeras): above 0 it replaces k and p."""
    division: float = 0.0
    """Division model (Fitzgibbon): other than 0 it replaces k and p."""
    joint: bool = False
    """Tangential terms of a fisheye on top of its bent coordinates (RAD_TAN_THIN_PRISM)."""

    @property
    def distorted(self) -> bool:
        bent = any(self.k) or any(self.p) or any(self.s)
        return bent or self.fisheye or bool(self.k8 or self.omega or self.division)

    def scaled(self, width: int, height: int) -> "Lens":
        scale = np.diag([width / self.width, height / self.height, 1.0])
        return replace(self, K=scale @ self.K, width=width, height=height)

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normalised coordinates of a pinhole to those of this lens.

        Source: Brown 1966 as in OpenCV `calib3d`; Kannala & Brandt 2006; Devernay & Faugeras 2001;
        Fitzgibbon 2001; the thin prisms as in COLMAP's `sensor/models.h`.
        """
        if self.omega:
            r = np.maximum(np.hypot(x, y), 1e-12)
            bent = np.arctan(2 * r * np.tan(self.omega / 2)) / self.omega
            return x * bent / r, y * bent / r
        if self.division:
            root = 1 - 4 * self.division * (x * x + y * y)
            with np.errstate(invalid="ignore"):  # no pixel shows such a ray
                scale = 2 / (1 + np.sqrt(root))
            return x * scale, y * scale
        if self.fisheye:
            return self._fisheye(x, y)
        k = (*self.k, *(0.0,) * (6 - len(self.k)))
        r2 = x * x + y * y
        with np.errstate(divide="ignore", invalid="ignore"):  # a pole: no pixel is there
            radial = (1 + r2 * (k[0] + r2 * (k[1] + r2 * (k[2] + r2 * self.k8)))) / (
                1 + r2 * (k[3] + r2 * (k[4] + r2 * k[5]))
            )
        p1, p2 = self.p
        return (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        )

    def _fisheye(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r = np.maximum(np.hypot(x, y), 1e-12)
        theta = np.arctan(r)
        x, y = x * theta / r, y * theta / r
        t2 = theta * theta
        bend = np.zeros_like(t2)
        for k in reversed(self.k):
            bend = t2 * (k + bend)
        u, v = x * (1 + bend), y * (1 + bend)
        if not (any(self.p) or any(self.s)):
            return u, v
        a, b = (u, v) if self.joint else (x, y)
        r2 = a * a + b * b
        p1, p2 = self.p if not self.joint else self.p[::-1]
        s1, s2, s3, s4 = (*self.s, *(0.0,) * (4 - len(self.s)))
        return (
            u + 2 * p1 * a * b + p2 * (r2 + 2 * a * a) + r2 * (s1 + r2 * s2),
            v + 2 * p2 * a * b + p1 * (r2 + 2 * b * b) + r2 * (s3 + r2 * s4),
        )


def lens_of(model: str, given: dict[str, float], K: np.ndarray, width: int, height: int) -> Lens:
    """The lens of a model in `MODELS` from its named parameters."""
    one = {key: given.get(key, 0.0) for key in (*(f"k{i}" for i in range(1, 7)), "p1", "p2",
                                                *(f"s{i}" for i in range(1, 5)))}  # fmt: skip
    if model == "FOV":
        return Lens(K, width, height, omega=given.get("omega", 0.0))
    if model in ("DIVISION", "SIMPLE_DIVISION"):
        return Lens(K, width, height, division=one["k1"])
    names = ("k1", "k2", "k3", "k4", "k5", "k6")
    fisheye = model in FISHEYES
    if fisheye and model != "RAD_TAN_THIN_PRISM_FISHEYE":
        names = names[:4]
    k, s = tuple(one[n] for n in names), tuple(one[f"s{i}"] for i in range(1, 5))
    joint = model == "RAD_TAN_THIN_PRISM_FISHEYE"
    return Lens(K, width, height, k, (one["p1"], one["p2"]), fisheye, s if any(s) else (),
                joint=joint)  # fmt: skip


def undistorted(
    pixels: np.ndarray, depth: np.ndarray, lens: Lens, hidden: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, Lens, np.ndarray | None]:
    """The same picture through a pinhole, enlarged just enough that no pixel is left empty."""
    import cv2

    h, w = lens.height, lens.width
    zoom = _zoom(lens)
    K = lens.K.copy()
    K[0, 0], K[1, 1] = K[0, 0] * zoom, K[1, 1] * zoom
    v, u = np.mgrid[0:h, 0:w] + 0.5
    mx, my = (np.nan_to_num(m, nan=-1e4) for m in _source(lens, K, u, v))
    mx, my = (mx - 0.5).astype(np.float32), (my - 0.5).astype(np.float32)
    color = cv2.remap(pixels, mx, my, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    z = cv2.remap(depth, mx, my, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    if hidden is not None:
        hidden = cv2.remap(hidden.astype(np.uint8), mx, my, cv2.INTER_NEAREST) > 0
    return color, z, Lens(K, w, h), hidden


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
