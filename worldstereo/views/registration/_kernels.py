"""Compiled inner loops of registration. Conventions as in `worldstereo/views/fusion/kernels.py`."""

import math

from worldstereo._core.compiled import kernel

FLAGS = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}
MIN_DEPTH = 1e-3  # u; what lies nearer, or behind the camera, pulls at nothing


@kernel(**FLAGS)
def fetch_grey(depth, Kp, grey, other, Kq, T, tolerance, out, known):
    """The grey picture of one view at the depth of another.

    Args:
        depth: (H, W) of the view that is asked, in u, 0 where unknown.
        grey, other: grey picture (uint8) and depth of the view that answers.
        T: (3, 4) from the first view's axes to the second's.
        tolerance: relative depth within which a sample shows the point.
        out, known: (H, W) uint8; the grey value, and 1 where any sample around shows the point.
            Pixels of `out` that no sample answers for are left as they are.
    """
    H, W = depth.shape
    h, w = other.shape
    for y in range(H):
        ry = (y - Kp[3]) / Kp[1]
        for x in range(W):
            known[y, x] = 0
            z = depth[y, x]
            if z <= 0:
                continue
            rx = (x - Kp[2]) / Kp[0]
            q = z * (T[2, 0] * rx + T[2, 1] * ry + T[2, 2]) + T[2, 3]
            if q <= MIN_DEPTH:
                continue
            u = Kq[0] * (z * (T[0, 0] * rx + T[0, 1] * ry + T[0, 2]) + T[0, 3]) / q + Kq[2]
            v = Kq[1] * (z * (T[1, 0] * rx + T[1, 1] * ry + T[1, 2]) + T[1, 3]) / q + Kq[3]
            if not (u >= 0 and v >= 0 and u <= w - 1 and v <= h - 1):
                continue
            iu, iv = min(int(u), w - 2), min(int(v), h - 2)
            fu, fv = u - iu, v - iv
            low, high = q * (1 - tolerance), q * (1 + tolerance)
            total = shares = 0.0
            for b in range(2):
                for a in range(2):
                    seen = other[iv + b, iu + a]
                    if low < seen < high:
                        share = (fu if a == 1 else 1 - fu) * (fv if b == 1 else 1 - fv) + 1e-4
                        shares += share
                        total += share * grey[iv + b, iu + a]
            if shares > 0:
                out[y, x] = int(total / shares + 0.5)
                known[y, x] = 1


@kernel(**FLAGS)
def normal_equations(points, pixels, chosen, T, K, huber, reject, A, b):
    """Adds robust normal equations of a motion of the points, in their own axes, to A and b.

    Args:
        points, pixels: (n, 3) and (n, 2): where they are, and where the second view shows them.
        chosen: (n,) bool.
        T: (4, 4) from their axes to the second view's.
        huber, reject: pixels beyond which a residual counts less, and not at all.
        A, b: (6, 6) and (6,): sums of w J'J and w J'r by a twist (rotation, translation).
    """
    J = [0.0] * 12
    for n in range(len(points)):
        if not chosen[n]:
            continue
        X, Y, Z = points[n, 0], points[n, 1], points[n, 2]
        z = T[2, 0] * X + T[2, 1] * Y + T[2, 2] * Z + T[2, 3]
        if z <= MIN_DEPTH:
            continue
        x = (T[0, 0] * X + T[0, 1] * Y + T[0, 2] * Z + T[0, 3]) / z
        y = (T[1, 0] * X + T[1, 1] * Y + T[1, 2] * Z + T[1, 3]) / z
        ru, rv = K[0] * x + K[2] - pixels[n, 0], K[1] * y + K[3] - pixels[n, 1]
        size = math.sqrt(ru * ru + rv * rv)
        if size >= reject:
            continue
        weight = min(1.0, huber / max(size, 1e-9))
        for row in range(2):
            f, at = (K[0] / z, x) if row == 0 else (K[1] / z, y)
            p0 = f * (T[row, 0] - at * T[2, 0])
            p1 = f * (T[row, 1] - at * T[2, 1])
            p2 = f * (T[row, 2] - at * T[2, 2])
            k = 6 * row
            J[k], J[k + 1], J[k + 2] = Y * p2 - Z * p1, Z * p0 - X * p2, X * p1 - Y * p0
            J[k + 3], J[k + 4], J[k + 5] = p0, p1, p2
        for i in range(6):
            b[i] += weight * (J[i] * ru + J[6 + i] * rv)
            for j in range(i + 1):
                A[i, j] += weight * (J[i] * J[j] + J[6 + i] * J[6 + j])
    for i in range(6):
        for j in range(i):
            A[j, i] = A[i, j]
