"""Compiled kernels of `multiview`: the cost of a plane, a sweep of planes, a PatchMatch pass.

Arrays are numpy. A hypothesis is (d, gx, gy): disparity 1/z at the pixel and its change per pixel.
Intrinsics here are (fx, fy, cx, cy) for integer pixel indices; `Ts[q]` takes camera coordinates of
the reference to those of view q, `Ps[q]` (x, y, 1, d) to its homogeneous pixel. Views of different
sizes are padded; `sizes[q]` is (height, width). Bit q of `asked` says that a pixel compares itself
with view q.
"""

import math
from typing import Any

import numpy as np

from worldstereo._core.compiled import kernel

# Weights of the cost: notes 3.1.8.
NCC, COLOR, COLOR_SCALE = 0.6, 0.4, 0.12
THROUGH, SINGLE, PRIOR_SCALE = 0.6, 0.1, 0.15
NOTHING = 0.9  # the cost of a hypothesis that no view can judge
SAME = 2e-4  # relative disparity below which two hypotheses are one
LIKE = 40.0  # summed difference of 8-bit colours that halves a vote's weight, about
BEHIND, BEFORE = 1.05, 0.95  # depth ratios that mean hidden and looked through


# Kernels that others call become part of each caller: one left outside would be there in several
# copies, rounded differently, and which of them runs would depend on what was compiled before.
INLINED: Any = {"fastmath": True, "error_model": "numpy", "forceinline": True}


@kernel(**INLINED)
def hashed(x, y, k):
    """A number in [-1, 1) from three integers, the same on every machine."""
    h = (np.int64(x) * 73856093) ^ (np.int64(y) * 19349663) ^ (np.int64(k) * 83492791)
    h = (h & 0xFFFFFFFF) * 2654435761 & 0xFFFFFFFF
    h = (h ^ (h >> 15)) * 2246822519 & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * 3266489917 & 0xFFFFFFFF
    h = h ^ (h >> 16)
    return h / 2147483648.0 - 1.0


@kernel(**INLINED)
def support(x, y, image, grey, radius, step, weight, patch):
    """Colour weights exp(-L1 / 0.25) of the window around a pixel, 0 outside, and its greys."""
    H, W = grey.shape
    r, g, b = image[y, x, 0], image[y, x, 1], image[y, x, 2]
    i = 0
    for bb in range(-radius, radius + 1, step):
        for aa in range(-radius, radius + 1, step):
            xx, yy = x + aa, y + bb
            weight[i] = 0.0
            patch[0, i] = 0.0
            patch[1, i], patch[2, i] = aa, bb
            if 0 <= xx < W and 0 <= yy < H:
                pixel = image[yy, xx]
                apart = abs(pixel[0] - r) + abs(pixel[1] - g) + abs(pixel[2] - b)
                near = math.exp(-4.0 * apart)
                weight[i] = near if near >= 0.002 else 0.0
                patch[0, i] = grey[yy, xx]
            i += 1


@kernel(**INLINED)
def view_cost(
    q, x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths,
    weight, patch, radius, step, geometric, limit,
):  # fmt: skip
    """What view q says against a plane, in [0, 2.4]; below 0 where it cannot judge.

    Structure is compared by the weighted NCC of greys over the window, colour by pictures that were
    blurred by the window before. From `limit` on any number at or above it may be returned.
    """
    T, P, Kq = Ts[q], Ps[q], Ks[q]
    hq, wq = sizes[q, 0], sizes[q, 1]
    # Homogeneous pixel of view q, linear in the window offset: A + aa B + bb C.
    A2 = P[2, 0] * x + P[2, 1] * y + P[2, 2] + P[2, 3] * d
    if A2 <= 0.02:
        return -1.0
    A0 = P[0, 0] * x + P[0, 1] * y + P[0, 2] + P[0, 3] * d
    A1 = P[1, 0] * x + P[1, 1] * y + P[1, 2] + P[1, 3] * d
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
    c += COLOR * min(1.0, color / (3 * COLOR_SCALE))
    if c >= limit:
        return c
    B0, B1, B2 = P[0, 0] + P[0, 3] * gx, P[1, 0] + P[1, 3] * gx, P[2, 0] + P[2, 3] * gx
    C0, C1, C2 = P[0, 1] + P[0, 3] * gy, P[1, 1] + P[1, 3] * gy, P[2, 1] + P[2, 3] * gy
    picture = greys[q]
    stride = picture.shape[1]
    flat = picture.reshape(picture.size)
    s = sa = sb = saa = sbb = sab = np.float32(0)
    a0, b0, c0 = np.float32(A0), np.float32(B0), np.float32(C0)
    a1, b1, c1 = np.float32(A1), np.float32(B1), np.float32(C1)
    a2, b2, c2 = np.float32(A2), np.float32(B2), np.float32(C2)
    right, bottom = np.float32(wq - 1), np.float32(hq - 1)
    edge = np.float32(radius)
    inside = True
    for k in range(4):
        fa, fb = edge if k & 1 else -edge, edge if k & 2 else -edge
        p2 = a2 + fa * b2 + fb * c2
        if p2 <= np.float32(0.02):
            inside = False
            break
        uu, vv = (a0 + fa * b0 + fb * c0) / p2, (a1 + fa * b1 + fb * c1) / p2
        inside &= uu >= 0 and vv >= 0 and uu < right and vv < bottom
    if inside:
        for i in range(len(weight)):
            fa, fb, w, a = patch[1, i], patch[2, i], weight[i], patch[0, i]
            inverse = np.float32(1) / (a2 + fa * b2 + fb * c2)
            uu, vv = (a0 + fa * b0 + fb * c0) * inverse, (a1 + fa * b1 + fb * c1) * inverse
            iu, iv = np.int32(uu), np.int32(vv)
            fu, fv = uu - np.float32(iu), vv - np.float32(iv)
            at = np.uint32(iv) * np.uint32(stride) + np.uint32(iu)
            e00, e01 = flat[at], flat[at + np.uint32(1)]
            at += np.uint32(stride)
            e10, e11 = flat[at], flat[at + np.uint32(1)]
            top = e00 + fu * (e01 - e00)
            low = e10 + fu * (e11 - e10)
            e = top + fv * (low - top)
            wa, we = w * a, w * e
            s += w
            sa += wa
            sb += we
            saa += wa * a
            sbb += we * e
            sab += wa * e
    else:
        i = -1
        for bb in range(-radius, radius + 1, step):
            fb = np.float32(bb)
            r0, r1, r2 = a0 + fb * c0, a1 + fb * c1, a2 + fb * c2
            for aa in range(-radius, radius + 1, step):
                i += 1
                w = weight[np.uint64(i)]
                fa = np.float32(aa)
                p2 = r2 + fa * b2
                if w <= 0 or p2 <= np.float32(0.02):
                    continue
                inverse = np.float32(1) / p2
                uu, vv = (r0 + fa * b0) * inverse, (r1 + fa * b1) * inverse
                if not (uu >= 0 and vv >= 0 and uu < right and vv < bottom):
                    continue
                ju, jv = np.uint64(np.int32(uu)), np.uint64(np.int32(vv))
                fu, fv = uu - np.float32(ju), vv - np.float32(jv)
                ku, kv = ju + np.uint64(1), jv + np.uint64(1)
                e00, e01 = picture[jv, ju], picture[jv, ku]
                e10, e11 = picture[kv, ju], picture[kv, ku]
                top = e00 + fu * (e01 - e00)
                low = e10 + fu * (e11 - e10)
                e = top + fv * (low - top)
                a = patch[0, np.uint64(i)]
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
    return c + NCC * (1 - min(max(ncc, -1.0), 1.0))


@kernel(**INLINED)
def plane_cost(
    x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths, asked,
    weight, patch, radius, step, geometric, limit,
):  # fmt: skip
    """Photometric and free-space cost of a plane: the mean of the two best views, in [0, 2.4].

    Only the views whose bit is set in `asked` are looked at. A cost of `limit` or more may come
    back as any other such number: views that cannot bring it below are not looked at to the end.
    """
    first = second = 1e9
    judged = refused = 0
    bits = asked[y, x]
    for q in range(len(greys)):
        if not (bits >> q) & 1:
            continue
        most = 2 * limit
        if bits >> (q + 1) == 0:
            if judged == 0 and refused > 0:
                return 1e9  # one view alone cannot bring the mean of two down
            if judged > 0:
                most -= first
        c = view_cost(
            q, x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths,
            weight, patch, radius, step, geometric, most,
        )  # fmt: skip
        if c < 0:
            continue
        if c >= most:
            refused += 1
            continue
        judged += 1
        if c < first:
            second = first
            first = c
        elif c < second:
            second = c
    if judged + refused == 0:
        return NOTHING
    return first + SINGLE if judged + refused == 1 else 0.5 * (first + second)


@kernel(fastmath=True, error_model="numpy")
def asked_rows(
    y0, y1, plane, asked, count,
    image, grey, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths, every, radius, step, geometric,
):  # fmt: skip
    """`asked` gets the bits of the `count` views that fit the plane of each pixel best.

    A pixel that fewer views can judge keeps asking all of `every`.
    """
    taps = (2 * radius // step + 1) ** 2
    weight, patch = np.empty(taps, np.float32), np.empty((3, taps), np.float32)
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
                    q, x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths,
                    weight, patch, radius, step, geometric, 1e9,
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


@kernel(**INLINED)
def prior_cost(d, guess, strength):
    """Distance from a guessed disparity, up to `strength`; nothing where there is no guess."""
    if guess <= 0 or strength <= 0:
        return 0.0
    return strength * min(1.0, abs(d - guess) / (PRIOR_SCALE * guess))


@kernel(fastmath=True, error_model="numpy")
def start_rows(
    y0, y1, plane, cost, active, guess, strength,
    image, grey, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths, asked, radius, step, geometric,
):  # fmt: skip
    """The cost of the planes as they are, for the active pixels of some rows."""
    taps = (2 * radius // step + 1) ** 2
    weight, patch = np.empty(taps, np.float32), np.empty((3, taps), np.float32)
    for y in range(y0, y1):
        for x in range(image.shape[1]):
            if active[y, x]:
                support(x, y, image, grey, radius, step, weight, patch)
                # float64 as in the searches: other types would compile a second copy
                d, gx = np.float64(plane[y, x, 0]), np.float64(plane[y, x, 1])
                gy = np.float64(plane[y, x, 2])
                cost[y, x] = plane_cost(
                    x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths, asked,
                    weight, patch, radius, step, geometric, 1e9,
                ) + prior_cost(d, guess[y, x], strength)  # fmt: skip


@kernel(fastmath=True, error_model="numpy")
def sweep_rows(
    y0, y1, stride, disparities, best,
    image, grey, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths, asked, radius, step, geometric,
):  # fmt: skip
    """Every `stride`-th pixel tries all fronto-parallel planes; `best` gets the cheapest."""
    taps = (2 * radius // step + 1) ** 2
    weight, patch = np.empty(taps, np.float32), np.empty((3, taps), np.float32)
    for r in range(y0, y1):
        y = min(r * stride + stride // 2, grey.shape[0] - 1)
        for column in range(best.shape[1]):
            x = min(column * stride + stride // 2, grey.shape[1] - 1)
            support(x, y, image, grey, radius, step, weight, patch)
            least = 1e9
            for d in disparities:
                e = plane_cost(
                    x, y, d, 0.0, 0.0, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths, asked,
                    weight, patch, radius, step, geometric, least,
                )  # fmt: skip
                if e < least:
                    least = e
                    best[r, column] = d


@kernel(fastmath=True, error_model="numpy")
def improve_rows(
    y0, y1, color, turn, scale, plane, cost, active, low, high, guess, strength,
    image, grey, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths, asked, radius, step, geometric,
):  # fmt: skip
    """One half of a red-black pass: pixels of one colour try their neighbours' planes and noise.

    Only pixels of `color` are written and only the others are read, so the result does not depend
    on how rows are shared out to threads. Of the neighbours 1, 5 and 11 px away in each direction
    the one that fits its own place best is tried.

    Source: Bleyer et al., PatchMatch Stereo, BMVC 2011; red-black after Galliani et al., ICCV 2015.
    """
    H, W = active.shape
    taps = (2 * radius // step + 1) ** 2
    weight, patch = np.empty(taps, np.float32), np.empty((3, taps), np.float32)
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
                own = prior_cost(d, guess[y, x], strength)
                e = own + plane_cost(
                    x, y, d, gx, gy, soft, K, greys, softs, sizes, Ks, Ts, Ps, depths, asked,
                    weight, patch, radius, step, geometric, cost[y, x] - own,
                )  # fmt: skip
                if e < cost[y, x]:
                    cost[y, x] = e
                    plane[y, x, 0], plane[y, x, 1], plane[y, x, 2] = d, gx, gy


@kernel(fastmath=True, error_model="numpy")
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


@kernel(fastmath=True, error_model="numpy")
def enlarge_rows(y0, y1, image, small, depth, confidence, out, sure):
    """Depth at the size of `image` from that of the smaller picture `small`, edges where colours
    change.

    Of the samples around a pixel those of its colour vote; the surface (disparity within 3 %) with
    most of the vote is averaged.

    Source: Kopf et al., Joint bilateral upsampling, SIGGRAPH 2007.
    """
    h, w = depth.shape
    H, W = out.shape
    vote, value, trust = (
        np.empty(9, np.float32), np.empty(9, np.float32), np.empty(9, np.float32)
    )  # fmt: skip
    for y in range(y0, y1):
        fy = (y + 0.5) * h / H - 0.5
        iy = min(max(int(fy + 0.5), 0), h - 1)
        for x in range(W):
            fx = (x + 0.5) * w / W - 0.5
            ix = min(max(int(fx + 0.5), 0), w - 1)
            r, g, b = np.int64(image[y, x, 0]), np.int64(image[y, x, 1]), np.int64(image[y, x, 2])
            n = 0
            for v in range(max(iy - 1, 0), min(iy + 2, h)):
                for u in range(max(ix - 1, 0), min(ix + 2, w)):
                    if depth[v, u] <= 0:
                        continue
                    pixel = small[v, u]
                    apart = abs(pixel[0] - r) + abs(pixel[1] - g) + abs(pixel[2] - b)
                    far = (u - fx) * (u - fx) + (v - fy) * (v - fy)
                    vote[n] = math.exp(-1.0 * far - apart / LIKE)
                    value[n] = 1.0 / depth[v, u]
                    trust[n] = confidence[v, u]
                    n += 1
            out[y, x] = 0.0
            sure[y, x] = 0.0
            most = 0.0
            for i in range(n):
                total = disparity = mean = 0.0
                for j in range(n):
                    if abs(value[j] - value[i]) <= 0.03 * value[i]:
                        total += vote[j]
                        disparity += vote[j] * value[j]
                        mean += vote[j] * trust[j]
                if total > most:
                    most = total
                    out[y, x] = total / disparity
                    sure[y, x] = mean / total
