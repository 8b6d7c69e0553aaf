"""Compiled kernels of `multiview`: the cost of a plane, a sweep of planes, a PatchMatch pass.

Arrays are numpy. A hypothesis is (d, gx, gy): disparity 1/z at the pixel and its change per pixel.
Intrinsics here are (fx, fy, cx, cy) for integer pixel indices; `Ts[q]` takes camera coordinates of
the reference to those of view q. Views of different sizes are padded; `sizes[q]` is (height,
width). Bit q of `asked` says that a pixel compares itself with view q.
"""

import math

import numpy as np

from worldstereo._compiled import kernel

# Weights of the cost: notes 3.1.8.
NCC, COLOR, COLOR_SCALE = 0.6, 0.4, 0.12
THROUGH, SINGLE, PRIOR_SCALE = 0.6, 0.1, 0.15
NOTHING = 0.9  # the cost of a hypothesis that no view can judge
SAME = 2e-4  # relative disparity below which two hypotheses are one
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
def support(x, y, image, grey, radius, step, weight, patch):
    """Colour weights exp(-L1 / 0.25) of the window around a pixel, 0 outside, and its greys."""
    H, W = grey.shape
    r, g, b = image[y, x, 0], image[y, x, 1], image[y, x, 2]
    i = 0
    for bb in range(-radius, radius + 1, step):
        for aa in range(-radius, radius + 1, step):
            xx, yy = x + aa, y + bb
            weight[i] = 0.0
            patch[i] = 0.0
            if 0 <= xx < W and 0 <= yy < H:
                pixel = image[yy, xx]
                apart = abs(pixel[0] - r) + abs(pixel[1] - g) + abs(pixel[2] - b)
                weight[i] = math.exp(-4.0 * apart)
                patch[i] = grey[yy, xx]
            i += 1


@kernel(fastmath=True)
def view_cost(
    q, x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, depths,
    weight, patch, radius, step, geometric,
):  # fmt: skip
    """What view q says against a plane, in [0, 2.4]; below 0 where it cannot judge.

    Structure is compared by the weighted NCC of greys over the window, colour by pictures that were
    blurred by the window before.
    """
    rx, ry = (x - K[2]) / K[0], (y - K[3]) / K[1]
    sx, sy = 1.0 / K[0], 1.0 / K[1]
    T, Kq = Ts[q], Ks[q]
    hq, wq = sizes[q, 0], sizes[q, 1]
    # Homogeneous pixel of view q, linear in the window offset: A + aa B + bb C.
    A2 = T[2, 0] * rx + T[2, 1] * ry + T[2, 2] + T[2, 3] * d
    if A2 <= 0.02:
        return -1.0
    A0 = Kq[0] * (T[0, 0] * rx + T[0, 1] * ry + T[0, 2] + T[0, 3] * d) + Kq[2] * A2
    A1 = Kq[1] * (T[1, 0] * rx + T[1, 1] * ry + T[1, 2] + T[1, 3] * d) + Kq[3] * A2
    u, v = A0 / A2, A1 / A2
    if not (u >= 1.5 and v >= 1.5 and u < wq - 2.5 and v < hq - 2.5):
        return -1.0
    iu, iv = int(u + 0.5), int(v + 0.5)
    c = 0.0
    zq = depths[q, iv, iu]
    if zq < 0:  # camera-fixed there
        return -1.0
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
            return -1.0
        elif z < BEFORE * zq:
            c += THROUGH
    B2, C2 = T[2, 0] * sx + T[2, 3] * gx, T[2, 1] * sy + T[2, 3] * gy
    B0 = Kq[0] * (T[0, 0] * sx + T[0, 3] * gx) + Kq[2] * B2
    B1 = Kq[1] * (T[1, 0] * sx + T[1, 3] * gx) + Kq[3] * B2
    C0 = Kq[0] * (T[0, 1] * sy + T[0, 3] * gy) + Kq[2] * C2
    C1 = Kq[1] * (T[1, 1] * sy + T[1, 3] * gy) + Kq[3] * C2
    picture = greys[q]
    s = sa = sb = saa = sbb = sab = 0.0
    i = -1
    for bb in range(-radius, radius + 1, step):
        for aa in range(-radius, radius + 1, step):
            i += 1
            w = weight[i]
            p2 = A2 + aa * B2 + bb * C2
            if w < 0.002 or p2 <= 0.02:
                continue
            inverse = 1.0 / p2
            uu = (A0 + aa * B0 + bb * C0) * inverse
            vv = (A1 + aa * B1 + bb * C1) * inverse
            if not (uu >= 0 and vv >= 0 and uu < wq - 1 and vv < hq - 1):
                continue
            ju, jv = int(uu), int(vv)
            fu, fv = uu - ju, vv - jv
            top = picture[jv, ju] + fu * (picture[jv, ju + 1] - picture[jv, ju])
            low = picture[jv + 1, ju] + fu * (picture[jv + 1, ju + 1] - picture[jv + 1, ju])
            e = top + fv * (low - top)
            a = patch[i]
            wa, we = w * a, w * e
            s += w
            sa += wa
            sb += we
            saa += wa * a
            sbb += we * e
            sab += wa * e
    if s < 1.0:
        return -1.0
    inv = 1.0 / s
    va, vb = saa * inv - (sa * inv) ** 2, sbb * inv - (sb * inv) ** 2
    ncc = (sab * inv - sa * sb * inv * inv + 2e-5) / math.sqrt(
        (max(va, 0.0) + 1e-4) * (max(vb, 0.0) + 1e-4)
    )
    ju, jv = int(u), int(v)
    fu, fv = u - ju, v - jv
    w00, w01 = (1 - fu) * (1 - fv), fu * (1 - fv)
    w10, w11 = (1 - fu) * fv, fu * fv
    color = 0.0
    for k in range(3):
        e = (
            w00 * softs[q, jv, ju, k] + w01 * softs[q, jv, ju + 1, k]
            + w10 * softs[q, jv + 1, ju, k] + w11 * softs[q, jv + 1, ju + 1, k]
        )  # fmt: skip
        color += abs(soft[y, x, k] - e)
    c += NCC * (1 - min(max(ncc, -1.0), 1.0)) + COLOR * min(1.0, color / (3 * COLOR_SCALE))
    return c


@kernel(fastmath=True)
def plane_cost(
    x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, depths, asked,
    weight, patch, radius, step, geometric,
):  # fmt: skip
    """Photometric and free-space cost of a plane: the mean of the two best views, in [0, 2.4].

    Only the views whose bit is set in `asked` are looked at.
    """
    first = second = 1e9
    judged = 0
    for q in range(len(greys)):
        if not (asked[y, x] >> q) & 1:
            continue
        c = view_cost(
            q, x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, depths,
            weight, patch, radius, step, geometric,
        )  # fmt: skip
        if c < 0:
            continue
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
def asked_rows(
    y0, y1, plane, asked, count,
    image, grey, soft, K, greys, softs, sizes, Ks, Ts, depths, every, radius, step, geometric,
):  # fmt: skip
    """`asked` gets the bits of the `count` views that fit the plane of each pixel best.

    A pixel that fewer views can judge keeps asking all of `every`.
    """
    taps = (2 * radius // step + 1) ** 2
    weight, patch = np.empty(taps, np.float32), np.empty(taps, np.float32)
    costs = np.empty(len(greys), np.float64)
    for y in range(y0, y1):
        for x in range(image.shape[1]):
            asked[y, x] = every[y, x]
            d, gx, gy = plane[y, x, 0], plane[y, x, 1], plane[y, x, 2]
            if d <= 0:
                continue
            support(x, y, image, grey, radius, step, weight, patch)
            judged = 0
            for q in range(len(greys)):
                costs[q] = 1e9
                if not (every[y, x] >> q) & 1:
                    continue
                c = view_cost(
                    q, x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, depths,
                    weight, patch, radius, step, geometric,
                )  # fmt: skip
                if c >= 0:
                    costs[q] = c
                    judged += 1
            if judged < count:
                continue
            bits = 0
            for _ in range(count):
                best = np.argmin(costs)
                bits |= 1 << best
                costs[best] = 1e9
            asked[y, x] = bits


@kernel(fastmath=True)
def prior_cost(d, guess, strength):
    """Distance from a guessed disparity, up to `strength`; nothing where there is no guess."""
    if guess <= 0 or strength <= 0:
        return 0.0
    return strength * min(1.0, abs(d - guess) / (PRIOR_SCALE * guess))


@kernel(fastmath=True)
def start_rows(
    y0, y1, plane, cost, active, guess, strength,
    image, grey, soft, K, greys, softs, sizes, Ks, Ts, depths, asked, radius, step, geometric,
):  # fmt: skip
    """The cost of the planes as they are, for the active pixels of some rows."""
    taps = (2 * radius // step + 1) ** 2
    weight, patch = np.empty(taps, np.float32), np.empty(taps, np.float32)
    for y in range(y0, y1):
        for x in range(image.shape[1]):
            if active[y, x]:
                support(x, y, image, grey, radius, step, weight, patch)
                d, gx, gy = plane[y, x, 0], plane[y, x, 1], plane[y, x, 2]
                cost[y, x] = plane_cost(
                    x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, depths, asked,
                    weight, patch, radius, step, geometric,
                ) + prior_cost(d, guess[y, x], strength)  # fmt: skip


@kernel(fastmath=True)
def sweep_rows(
    y0, y1, stride, disparities, best,
    image, grey, soft, K, greys, softs, sizes, Ks, Ts, depths, asked, radius, step, geometric,
):  # fmt: skip
    """Every `stride`-th pixel tries all fronto-parallel planes; `best` gets the cheapest."""
    taps = (2 * radius // step + 1) ** 2
    weight, patch = np.empty(taps, np.float32), np.empty(taps, np.float32)
    for r in range(y0, y1):
        y = min(r * stride + stride // 2, grey.shape[0] - 1)
        for column in range(best.shape[1]):
            x = min(column * stride + stride // 2, grey.shape[1] - 1)
            support(x, y, image, grey, radius, step, weight, patch)
            least = 1e9
            for d in disparities:
                e = plane_cost(
                    x, y, d, 0.0, 0.0, soft, K, greys, softs, sizes, Ks, Ts, depths, asked,
                    weight, patch, radius, step, geometric,
                )  # fmt: skip
                if e < least:
                    least = e
                    best[r, column] = d


@kernel(fastmath=True)
def improve_rows(
    y0, y1, color, turn, scale, plane, cost, active, low, high, guess, strength,
    image, grey, soft, K, greys, softs, sizes, Ks, Ts, depths, asked, radius, step, geometric,
):  # fmt: skip
    """One half of a red-black pass: pixels of one colour try their neighbours' planes and noise.

    Only pixels of `color` are written and only the others are read, so the result does not depend
    on how rows are shared out to threads. Of the neighbours 1, 5 and 11 px away in each direction
    the one that fits its own place best is tried.

    Source: Bleyer et al., PatchMatch Stereo, BMVC 2011; red-black after Galliani et al., ICCV 2015.
    """
    H, W = active.shape
    taps = (2 * radius // step + 1) ** 2
    weight, patch = np.empty(taps, np.float32), np.empty(taps, np.float32)
    for y in range(y0, y1):
        for x in range((y + color) % 2, W, 2):
            if not active[y, x]:
                continue
            support(x, y, image, grey, radius, step, weight, patch)
            for candidate in range(7):
                if candidate < 4:
                    dx = 1 if candidate == 0 else (-1 if candidate == 1 else 0)
                    dy = 1 if candidate == 2 else (-1 if candidate == 3 else 0)
                    best, bx, by = 1e9, -1, -1
                    for j in range(3):
                        far = 1 if j == 0 else (5 if j == 1 else 11)
                        xx, yy = x + dx * far, y + dy * far
                        if xx < 0 or yy < 0 or xx >= W or yy >= H or plane[yy, xx, 0] <= 0:
                            continue
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
                if candidate < 4:  # the same plane again
                    own = SAME * plane[y, x, 0]
                    if (
                        abs(d - plane[y, x, 0]) < own
                        and radius * abs(gx - plane[y, x, 1]) < own
                        and radius * abs(gy - plane[y, x, 2]) < own
                    ):
                        continue
                e = plane_cost(
                    x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, depths, asked,
                    weight, patch, radius, step, geometric,
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
