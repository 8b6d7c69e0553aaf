"""Compiled kernels of `multiview`: the cost of a plane hypothesis, and one red-black PatchMatch pass.

Arrays are numpy. A hypothesis is (d, gx, gy): disparity 1/z at the pixel and its change per pixel.
Intrinsics here are (fx, fy, cx, cy) for integer pixel indices; `Ts[q]` takes camera coordinates of
the reference to those of view q. Views of different sizes are padded; `sizes[q]` is (height,
width). The torch twin is `_multiview_torch.py`.
"""

import math

import numpy as np

from worldstereo._compiled import kernel

# Weights of the cost: notes 3.1.8.
NCC, COLOR, COLOR_SCALE = 0.6, 0.4, 0.12
THROUGH, SINGLE, PRIOR_SCALE = 0.6, 0.1, 0.15
NOTHING = 0.9  # the cost of a hypothesis that no view can judge
BEHIND, BEFORE = 1.05, 0.95  # depth ratios that mean hidden and looked through


@kernel(fastmath=True)
def hashed(x, y, k):
    """A number in [-1, 1) from three integers, the same on every machine."""
    h = (np.int64(x) * 73856093) ^ (np.int64(y) * 19349663) ^ (np.int64(k) * 83492791)
    h = (h & 0xFFFFFFFF) * 2654435761 & 0xFFFFFFFF
    h = (h ^ (h >> 15)) * 2246822519 & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * 3266489917 & 0xFFFFFFFF
    h = h ^ (h >> 16)
    return h / 2147483648.0 - 1.0


@kernel(fastmath=True)
def support(x, y, image, radius, step, weight):
    """Colour weights of the window around a pixel: exp(-L1 / 0.25), 0 outside the picture."""
    H, W = image.shape[0], image.shape[1]
    r, g, b = image[y, x, 0], image[y, x, 1], image[y, x, 2]
    i = 0
    for bb in range(-radius, radius + 1, step):
        for aa in range(-radius, radius + 1, step):
            xx, yy = x + aa, y + bb
            if xx < 0 or yy < 0 or xx >= W or yy >= H:
                weight[i] = 0.0
            else:
                difference = (
                    abs(image[yy, xx, 0] - r)
                    + abs(image[yy, xx, 1] - g)
                    + abs(image[yy, xx, 2] - b)
                )
                weight[i] = math.exp(-difference / 0.25)
            i += 1


@kernel(fastmath=True)
def plane_cost(
    x, y, d, gx, gy, image, K, images, sizes, Ks, Ts, depths, weight, radius, step, geometric
):
    """Photometric and free-space cost of a plane: the mean of the two best views, in [0, 2]."""
    H, W = image.shape[0], image.shape[1]
    rx, ry = (x - K[2]) / K[0], (y - K[3]) / K[1]
    first = second = 1e9
    judged = 0
    for q in range(len(images)):
        T, Kq = Ts[q], Ks[q]
        hq, wq = sizes[q, 0], sizes[q, 1]
        # Homogeneous pixel of view q, linear in the window offset: A + aa B + bb C.
        A2 = T[2, 0] * rx + T[2, 1] * ry + T[2, 2] + T[2, 3] * d
        if A2 <= 0.02:
            continue
        A0 = T[0, 0] * rx + T[0, 1] * ry + T[0, 2] + T[0, 3] * d
        A1 = T[1, 0] * rx + T[1, 1] * ry + T[1, 2] + T[1, 3] * d
        u, v = Kq[0] * A0 / A2 + Kq[2], Kq[1] * A1 / A2 + Kq[3]
        if not (u >= 1.5 and v >= 1.5 and u < wq - 2.5 and v < hq - 2.5):
            continue
        iu, iv = int(u + 0.5), int(v + 0.5)
        c = 0.0
        zq = depths[q, iv, iu]
        if zq < 0:  # camera-fixed there
            continue
        if zq > 0:
            z = A2 / d
            if geometric > 0:
                # There and back: where view q's own depth says this surface is seen from here.
                px, py = (u - Kq[2]) / Kq[0] * zq - T[0, 3], (v - Kq[3]) / Kq[1] * zq - T[1, 3]
                pz = zq - T[2, 3]
                bx = T[0, 0] * px + T[1, 0] * py + T[2, 0] * pz
                by = T[0, 1] * px + T[1, 1] * py + T[2, 1] * pz
                bz = T[0, 2] * px + T[1, 2] * py + T[2, 2] * pz
                if bz > 1e-9:
                    ex, ey = K[0] * bx / bz + K[2] - x, K[1] * by / bz + K[3] - y
                    c += geometric * min(3.0, math.sqrt(ex * ex + ey * ey)) / 3.0
                else:
                    c += geometric
            elif z > BEHIND * zq:
                continue
            elif z < BEFORE * zq:
                c += THROUGH
        sx, sy = 1.0 / K[0], 1.0 / K[1]
        B0, B1, B2 = (
            T[0, 0] * sx + T[0, 3] * gx,
            T[1, 0] * sx + T[1, 3] * gx,
            T[2, 0] * sx + T[2, 3] * gx,
        )
        C0, C1, C2 = (
            T[0, 1] * sy + T[0, 3] * gy,
            T[1, 1] * sy + T[1, 3] * gy,
            T[2, 1] * sy + T[2, 3] * gy,
        )
        s = sa = sb = saa = sbb = sab = 0.0
        m0 = m1 = m2 = 0.0
        i = -1
        for bb in range(-radius, radius + 1, step):
            for aa in range(-radius, radius + 1, step):
                i += 1
                w = weight[i]
                if w == 0.0:
                    continue
                p2 = A2 + aa * B2 + bb * C2
                if p2 <= 0.02:
                    continue
                inverse = 1.0 / p2
                uu = Kq[0] * (A0 + aa * B0 + bb * C0) * inverse + Kq[2]
                vv = Kq[1] * (A1 + aa * B1 + bb * C1) * inverse + Kq[3]
                if not (uu >= 0 and vv >= 0 and uu < wq - 1 and vv < hq - 1):
                    continue
                ju, jv = int(uu), int(vv)
                fu, fv = uu - ju, vv - jv
                w00, w01 = (1 - fu) * (1 - fv), fu * (1 - fv)
                w10, w11 = (1 - fu) * fv, fu * fv
                top, low = images[q, jv], images[q, jv + 1]
                e0 = (
                    w00 * top[ju, 0]
                    + w01 * top[ju + 1, 0]
                    + w10 * low[ju, 0]
                    + w11 * low[ju + 1, 0]
                )
                e1 = (
                    w00 * top[ju, 1]
                    + w01 * top[ju + 1, 1]
                    + w10 * low[ju, 1]
                    + w11 * low[ju + 1, 1]
                )
                e2 = (
                    w00 * top[ju, 2]
                    + w01 * top[ju + 1, 2]
                    + w10 * low[ju, 2]
                    + w11 * low[ju + 1, 2]
                )
                r, g, b_ = (
                    image[y + bb, x + aa, 0],
                    image[y + bb, x + aa, 1],
                    image[y + bb, x + aa, 2],
                )
                a = 0.3 * r + 0.6 * g + 0.1 * b_
                e = 0.3 * e0 + 0.6 * e1 + 0.1 * e2
                s += w
                sa += w * a
                sb += w * e
                saa += w * a * a
                sbb += w * e * e
                sab += w * a * e
                m0 += w * (r - e0)
                m1 += w * (g - e1)
                m2 += w * (b_ - e2)
        if s < 1.0:
            continue
        inv = 1.0 / s
        va, vb = saa * inv - (sa * inv) ** 2, sbb * inv - (sb * inv) ** 2
        both = max(va, 0.0) + 1e-4, max(vb, 0.0) + 1e-4
        ncc = (sab * inv - sa * sb * inv * inv + 2e-5) / math.sqrt(both[0] * both[1])
        color = (abs(m0) + abs(m1) + abs(m2)) * inv / 3.0
        c += NCC * (1 - min(max(ncc, -1.0), 1.0)) + COLOR * min(1.0, color / COLOR_SCALE)
        judged += 1
        if c < first:
            second = first
            first = c
        elif c < second:
            second = c
    if judged == 0:
        return NOTHING
    return first + SINGLE if judged == 1 else 0.5 * (first + second)


@kernel(fastmath=True)
def prior_cost(d, guess, strength):
    """Distance from a guessed disparity, up to `strength`; nothing where there is no guess."""
    if guess <= 0 or strength <= 0:
        return 0.0
    return strength * min(1.0, abs(d - guess) / (PRIOR_SCALE * guess))


@kernel(fastmath=True)
def start_rows(
    y0, y1, plane, cost, active, guess, strength,
    image, K, images, sizes, Ks, Ts, depths, radius, step, geometric,
):  # fmt: skip
    """The cost of the planes as they are, for the active pixels of some rows."""
    taps = (2 * radius // step + 1) ** 2
    weight = np.empty(taps, np.float32)
    for y in range(y0, y1):
        for x in range(image.shape[1]):
            if active[y, x]:
                support(x, y, image, radius, step, weight)
                d, gx, gy = plane[y, x, 0], plane[y, x, 1], plane[y, x, 2]
                cost[y, x] = plane_cost(
                    x, y, d, gx, gy, image, K, images, sizes, Ks, Ts, depths,
                    weight, radius, step, geometric,
                ) + prior_cost(d, guess[y, x], strength)  # fmt: skip


@kernel(fastmath=True)
def improve_rows(
    y0, y1, color, turn, scale, plane, cost, active, low, high, guess, strength,
    image, K, images, sizes, Ks, Ts, depths, radius, step, geometric,
):  # fmt: skip
    """One half of a red-black pass: pixels of one colour try their neighbours' planes and noise.

    Only pixels of `color` are written and only the others are read, so the result does not depend
    on how rows are shared out to threads. Of the neighbours 1, 5 and 11 px away in each direction
    the one that fits its own place best is tried.

    Source: Bleyer et al., PatchMatch Stereo, BMVC 2011; red-black after Galliani et al., ICCV 2015.
    """
    H, W = active.shape
    taps = (2 * radius // step + 1) ** 2
    weight = np.empty(taps, np.float32)
    for y in range(y0, y1):
        for x in range((y + color) % 2, W, 2):
            if not active[y, x]:
                continue
            support(x, y, image, radius, step, weight)
            for candidate in range(7):
                if candidate < 4:
                    dx = 1 if candidate == 0 else (-1 if candidate == 1 else 0)
                    dy = 1 if candidate == 2 else (-1 if candidate == 3 else 0)
                    best, bx, by = 1e9, -1, -1
                    for j in range(3):
                        far = 1 if j == 0 else (5 if j == 1 else 11)
                        xx, yy = x + dx * far, y + dy * far
                        if 0 <= xx < W and 0 <= yy < H and plane[yy, xx, 0] > 0:
                            if cost[yy, xx] + 0.002 * far < best:
                                best, bx, by = cost[yy, xx] + 0.002 * far, xx, yy
                    if bx < 0:
                        continue
                    gx, gy = plane[by, bx, 1], plane[by, bx, 2]
                    d = plane[by, bx, 0] + gx * (x - bx) + gy * (y - by)
                else:
                    size = scale / (1 + 3 * (candidate - 4))
                    base = plane[y, x, 0]
                    k = 3 * (7 * turn + candidate)
                    d = base * (1 + 0.2 * size * hashed(x, y, k))
                    gx = plane[y, x, 1] + base * 0.005 * size * hashed(x, y, k + 1)
                    gy = plane[y, x, 2] + base * 0.005 * size * hashed(x, y, k + 2)
                if not (d >= low[y, x] and d <= high[y, x]):
                    continue
                e = plane_cost(
                    x, y, d, gx, gy, image, K, images, sizes, Ks, Ts, depths,
                    weight, radius, step, geometric,
                ) + prior_cost(d, guess[y, x], strength)  # fmt: skip
                if e < cost[y, x]:
                    cost[y, x] = e
                    plane[y, x, 0], plane[y, x, 1], plane[y, x, 2] = d, gx, gy


@kernel(fastmath=True)
def consistent_rows(y0, y1, depth, K, sizes, Ks, Ts, depths, pixels, relative, count):
    """How many views' own depth returns to this pixel within `pixels` and `relative` depth."""
    W = depth.shape[1]
    for y in range(y0, y1):
        for x in range(W):
            z = depth[y, x]
            count[y, x] = 0
            if z <= 0:
                continue
            X, Y = (x - K[2]) / K[0] * z, (y - K[3]) / K[1] * z
            for q in range(len(depths)):
                T, Kq = Ts[q], Ks[q]
                zq = T[2, 0] * X + T[2, 1] * Y + T[2, 2] * z + T[2, 3]
                if zq <= 0.02 * z:
                    continue
                u = Kq[0] * (T[0, 0] * X + T[0, 1] * Y + T[0, 2] * z + T[0, 3]) / zq + Kq[2]
                v = Kq[1] * (T[1, 0] * X + T[1, 1] * Y + T[1, 2] * z + T[1, 3]) / zq + Kq[3]
                if not (u >= 0 and v >= 0 and u <= sizes[q, 1] - 1 and v <= sizes[q, 0] - 1):
                    continue
                iu, iv = int(u + 0.5), int(v + 0.5)
                own = depths[q, iv, iu]
                if own <= 0:
                    continue
                px, py = (u - Kq[2]) / Kq[0] * own - T[0, 3], (v - Kq[3]) / Kq[1] * own - T[1, 3]
                pz = own - T[2, 3]
                bx = T[0, 0] * px + T[1, 0] * py + T[2, 0] * pz
                by = T[0, 1] * px + T[1, 1] * py + T[2, 1] * pz
                bz = T[0, 2] * px + T[1, 2] * py + T[2, 2] * pz
                if bz <= 1e-9 or abs(bz - z) > relative * z:
                    continue
                ex, ey = K[0] * bx / bz + K[2] - x, K[1] * by / bz + K[3] - y
                if ex * ex + ey * ey <= pixels * pixels:
                    count[y, x] += 1
