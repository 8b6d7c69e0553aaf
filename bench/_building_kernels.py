"""Ray casting of boxes for `_building`, compiled."""

import numpy as np
from numba import njit


@njit(cache=True)
def _hash(x, y, z, k):
    h = (
        np.uint32(np.int64(x) & 0xFFFFFFFF) * np.uint32(374761393)
        + np.uint32(np.int64(y) & 0xFFFFFFFF) * np.uint32(668265263)
        + np.uint32(np.int64(z) & 0xFFFFFFFF) * np.uint32(2246822519)
        + np.uint32(k) * np.uint32(3266489917)
    )
    h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
    h = h ^ (h >> np.uint32(16))
    return np.float64(h & np.uint32(0xFFFF)) / 65535.0


@njit(cache=True)
def trace(boxes, f, cx, cy, R, eye, color, depth):
    """Nearest box of each pixel from outside, or of the shell from inside; noise as paint."""
    height, width = depth.shape
    for v in range(height):
        for u in range(width):
            a, b = (u + 0.5 - cx) / f, (v + 0.5 - cy) / f
            d0 = R[0, 0] * a + R[0, 1] * b + R[0, 2]
            d1 = R[1, 0] * a + R[1, 1] * b + R[1, 2]
            d2 = R[2, 0] * a + R[2, 1] * b + R[2, 2]
            i0 = 1 / (d0 if abs(d0) > 1e-9 else 1e-9)
            i1 = 1 / (d1 if abs(d1) > 1e-9 else 1e-9)
            i2 = 1 / (d2 if abs(d2) > 1e-9 else 1e-9)
            best, who, face = 1e30, -1, 0
            for i in range(len(boxes)):
                t0, t1 = (boxes[i, 0] - eye[0]) * i0, (boxes[i, 3] - eye[0]) * i0
                near, far, side = min(t0, t1), max(t0, t1), 0
                t0, t1 = (boxes[i, 1] - eye[1]) * i1, (boxes[i, 4] - eye[1]) * i1
                if min(t0, t1) > near:
                    near, side = min(t0, t1), 1
                far = min(far, max(t0, t1))
                t0, t1 = (boxes[i, 2] - eye[2]) * i2, (boxes[i, 5] - eye[2]) * i2
                if min(t0, t1) > near:
                    near, side = min(t0, t1), 2
                far = min(far, max(t0, t1))
                if near <= far and near > 1e-3 and near < best:
                    best, who, face = near, i, side
            if who < 0:
                continue
            depth[v, u] = best
            x, y, z = eye[0] + best * d0, eye[1] + best * d1, eye[2] + best * d2
            tint = 0.35 + 0.4 * _hash(who, 7, face, 1)
            shade = 0.75 + 0.25 * (face == 1) - 0.1 * (face == 2)
            grain = 0.0
            for level in range(4):
                s = 2.0 * 3.0**level
                grain += (_hash(np.floor(x * s), np.floor(y * s), np.floor(z * s), level) - 0.5) / (
                    1.0 + 0.6 * level
                )
            for c in range(3):
                base = tint + 0.25 * (_hash(who, c, face, 2) - 0.5)
                value = shade * (base + 0.3 * grain)
                color[v, u, c] = np.uint8(min(max(value, 0.0), 1.0) * 255)
