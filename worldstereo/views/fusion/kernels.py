"""Compiled inner loops of `fusion`: they release the GIL and work on a band of rows or on one view.

Arrays count pixels by index here, so pixel (x, y) is centred at index (x, y): `index_intrinsics` of
`fusion` takes the half pixel off the principal point on the way in. `d` is disparity 1/z (0 where
unknown), `T` a 3x4 rigid transform, lengths are in units of u. The twins in plain torch are in
`_fusion/twin.py`; both are tested against each other.
"""

import math
from typing import Any

import numpy as np

from worldstereo._core.compiled import kernel

FLAGS = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}
INLINED: Any = FLAGS | {"forceinline": True}  # else copies in several callers round differently
EMPTY = np.float32(1e30)
NOWHERE = 1e30
ROOT_BACK = math.exp(-0.5)
SPAN = 128  # pixels of a row whose intermediate values stay in cache


@kernel(**INLINED)
def axis_gradient(c, before, has_before, after, has_after, cut):
    """Gradient of disparity along one axis, and whether a neighbour there is beyond an edge."""
    back, forth = np.float64(c - before), np.float64(after - c)
    near_back = has_before & (before > 0) & (abs(back) <= cut * min(c, before))
    near_forth = has_after & (after > 0) & (abs(forth) <= cut * min(c, after))
    best = forth if near_forth & (not near_back or abs(forth) < abs(back)) else back
    mean = (back + forth) * 0.5
    smooth = near_back & near_forth & (abs(mean - best) < 0.25 * cut * c)
    best = mean if smooth else best
    edge = (has_before & (not near_back)) | (has_after & (not near_forth))
    return (best if near_back | near_forth else 0.0), edge


@kernel(**INLINED)
def pixel_gradient(d, y, x, above, below, left, right, cut, gx, gy, edge):
    """`disparity_gradients` of one pixel; a neighbour that is the pixel itself is none."""
    c = d[y, x]
    across, edge_across = axis_gradient(c, d[y, left], left != x, d[y, right], right != x, cut)
    down, edge_down = axis_gradient(c, d[above, x], above != y, d[below, x], below != y, cut)
    gx[y, x] = across if c > 0 else 0.0
    gy[y, x] = down if c > 0 else 0.0
    edge[y, x] = np.uint8(1) if (c <= 0) | edge_across | edge_down else np.uint8(0)


@kernel(**FLAGS)
def disparity_gradients(d, cut, y0, y1, gx, gy, edge):
    """One-sided, edge-aware gradients of disparity (planes are linear in 1/z), and an edge flag."""
    H, W = d.shape
    for y in range(y0, y1):
        above, below = max(y - 1, 0), min(y + 1, H - 1)
        for x in range(1, W - 1):  # on vectors: nothing depends on the border but the row
            pixel_gradient(d, y, x, above, below, x - 1, x + 1, cut, gx, gy, edge)
        pixel_gradient(d, y, 0, above, below, 0, min(1, W - 1), cut, gx, gy, edge)
        pixel_gradient(d, y, W - 1, above, below, max(W - 2, 0), W - 1, cut, gx, gy, edge)


@kernel(**INLINED)
def exponential(x):
    """exp(-x) for x in [0, 16], to 1e-8 relatively; unlike the library's it runs on vectors."""
    y = 0.5 - x / 16
    series = 1.0 + y * (1.0 + y * (1 / 2 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (
        1 / 720 + y * (1 / 5040 + y * (1 / 40320 + y * (1 / 362880)))))))))  # fmt: skip
    root = ROOT_BACK * series
    root *= root
    root *= root
    root *= root
    return root * root


@kernel(**INLINED)
def parted(c, o, cut):
    """Whether two disparities are of two surfaces, or one of them is unknown."""
    return (c <= 0) | (o <= 0) | (abs(o - c) > cut * min(c, o))


@kernel(**FLAGS)
def depth_edges(d, cut, y0, y1, edge):
    """The edge flag of `disparity_gradients` alone."""
    H, W = d.shape
    for y in range(y0, y1):
        above, below = max(y - 1, 0), min(y + 1, H - 1)
        for x in range(1, W - 1):
            c = d[y, x]
            edge[y, x] = (
                parted(c, d[y, x - 1], cut)
                | parted(c, d[y, x + 1], cut)
                | parted(c, d[above, x], cut)
                | parted(c, d[below, x], cut)
            )
        for x in (0, W - 1):
            c = d[y, x]
            edge[y, x] = (
                parted(c, d[y, max(x - 1, 0)], cut)
                | parted(c, d[y, min(x + 1, W - 1)], cut)
                | parted(c, d[above, x], cut)
                | parted(c, d[below, x], cut)
            )


@kernel(**FLAGS)
def surfel_warp(d, gx, gy, Kr, Kt, T, half, max_stretch, min_area, near, out):
    """z-buffer of planar patches, one a pixel of the reference; `out` stays EMPTY where none fell.

    Stretch and area are measured against a patch that faces both cameras, so that distance alone
    never drops a surface.
    """
    H, W = d.shape
    Ho, Wo = out.shape
    fx, fy, cx, cy = Kr[0], Kr[1], Kr[2], Kr[3]
    ux, uy, vx, vy = Kt[0], Kt[1], Kt[2], Kt[3]
    t00, t01, t02, t03 = T[0, 0], T[0, 1], T[0, 2], T[0, 3]
    t10, t11, t12, t13 = T[1, 0], T[1, 1], T[1, 2], T[1, 3]
    t20, t21, t22, t23 = T[2, 0], T[2, 1], T[2, 2], T[2, 3]
    zoom = math.sqrt(ux * uy) / math.sqrt(fx * fy)
    s = np.empty((13, SPAN))
    for y in range(H):
        ry = (y - cy) / fy
        for x0 in range(0, W, SPAN):
            n = min(SPAN, W - x0)
            for i in range(n):  # on vectors: nothing is looked up
                c, a, b = d[y, x0 + i], gx[y, x0 + i], gy[y, x0 + i]
                rx = (x0 + i - cx) / fx
                q2 = t20 * rx + t21 * ry + t22 + t23 * c
                q0 = t00 * rx + t01 * ry + t02 + t03 * c
                q1 = t10 * rx + t11 * ry + t12 + t13 * c
                before = (c > 0) & (q2 > near * c)  # depth in the target is q2 / c
                iz = 1.0 / (q2 if before else 1.0)
                px, py = ux * q0 * iz + vx, uy * q1 * iz + vy
                du2, dv2 = t20 / fx + t23 * a, t21 / fy + t23 * b
                jxu = ux * ((t00 / fx + t03 * a) - q0 * iz * du2) * iz
                jxv = ux * ((t01 / fy + t03 * b) - q0 * iz * dv2) * iz
                jyu = uy * ((t10 / fx + t13 * a) - q1 * iz * du2) * iz
                jyv = uy * ((t11 / fy + t13 * b) - q1 * iz * dv2) * iz
                facing = zoom * iz  # size of a patch that faces both cameras
                det = jxu * jyv - jxv * jyu
                ex, ey = (abs(jxu) + abs(jxv)) * half, (abs(jyu) + abs(jyv)) * half
                shows = before & (det > min_area * facing * facing)  # not from behind or edge-on
                shows &= max(ex, ey) <= max_stretch * half * facing
                shows &= (px + ex >= 0) & (py + ey >= 0) & (px - ex <= Wo - 1) & (py - ey <= Ho - 1)
                inverse = 1.0 / (det if shows else 1.0)
                s[0, i] = px if shows else NOWHERE
                s[1, i] = py
                s[2, i] = max(0.0, np.ceil(px - ex))
                s[3, i] = min(Wo - 1.0, np.floor(px + ex))
                s[4, i] = max(0.0, np.ceil(py - ey))
                s[5, i] = min(Ho - 1.0, np.floor(py + ey))
                s[6, i] = jyv * inverse
                s[7, i] = jxv * inverse
                s[8, i] = jxu * inverse
                s[9, i] = jyu * inverse
                s[10, i] = q2
                s[11, i] = du2
                s[12, i] = dv2
            for i in range(n):
                px = s[0, i]
                if px >= NOWHERE:
                    continue
                c, a, b = d[y, x0 + i], gx[y, x0 + i], gy[y, x0 + i]
                py = s[1, i]
                x1, x2, y1, y2 = int(s[2, i]), int(s[3, i]), int(s[4, i]), int(s[5, i])
                for yy in range(y1, y2 + 1):
                    for xx in range(x1, x2 + 1):
                        ox, oy = xx - px, yy - py
                        du = s[6, i] * ox - s[7, i] * oy
                        dv = s[8, i] * oy - s[9, i] * ox
                        if abs(du) > half or abs(dv) > half:
                            continue
                        dd = c + a * du + b * dv
                        if dd <= 1e-3 * c:
                            continue
                        z = (s[10, i] + s[11, i] * du + s[12, i] * dv) / dd
                        if near < z < out[yy, xx]:
                            out[yy, xx] = z


@kernel(**INLINED)
def angular_weight(X, Y, Z, centre, steep):
    """What a view's word about a point counts, in (0, 1]: a guess errs with the angle of its ray.

    Twice one less the cosine stands for the square of the angle.
    """
    if steep <= 0:
        return 1.0
    d0, d1, d2 = X - centre[0], Y - centre[1], Z - centre[2]
    lengths = math.sqrt((X * X + Y * Y + Z * Z) * (d0 * d0 + d1 * d1 + d2 * d2))
    cosine = (X * d0 + Y * d1 + Z * d2) / max(lengths, 1e-12)
    return 1.0 / (1.0 + steep * steep * 2.0 * max(0.0, 1.0 - cosine))


@kernel(**FLAGS)
def fuse_depth(
    Z, weight, vote, steep, min_depth_3x3, offset, size, Kr, back, centre, Kt, tau, free, least,
    spread, near, where, y0, y1, out,
):  # fmt: skip
    """Front-most hypothesis that is supported and not seen through: mean of its supporters.

    What only photos say stands in front of other hypotheses only with some share of what is said
    at the pixel: one that looks from the side cannot hide what photos beside the target show.

    Args:
        Z: (n, H, W) warped depth of each view, EMPTY where none.
        weight, vote: (n,) support of each view, and its say against what it looks through.
        steep: (n,) how fast a view's word loses with the angle, per radian; 0: depth of a sensor.
        min_depth_3x3: all views' 3x3 minimum of depth, flattened one after the other.
        offset, size: (n,) and (n, 2): where each view begins there, and its height and width.
        back: (n, 3, 4) target to view.
        centre: (n, 3) where each view stands, in the target's axes.
        free: how much farther than the hypothesis a view must see to contradict it; 0: no test.
        least: share of what is said that a surface of photos needs.
        spread: relative depth behind a hypothesis within which a heavier one makes it noise.
        where: (H, W) bool: pixels that are asked; 0 elsewhere.
    """
    n_views = Z.shape[0]
    W = Z.shape[2]
    depth = np.empty(n_views, np.float32)
    index = np.empty(n_views, np.int64)
    said = np.empty(n_views, np.float32)
    guesses = steep.max() > 0
    front, back_most = np.empty(W, np.float32), np.empty(W, np.float32)
    total, product = np.empty(W), np.empty(W)
    for y in range(y0, y1):
        front[:], back_most[:], total[:], product[:] = EMPTY, 0, 0, 0
        for i in range(n_views):
            w = weight[i]
            for x in range(W):
                z = Z[i, y, x]
                known = z < EMPTY
                front[x] = min(front[x], z)
                back_most[x] = max(back_most[x], z if known else 0.0)
                total[x] += w if known else 0.0
                product[x] += w * z if known else 0.0
        for x in range(W):
            out[y, x] = 0
            if not where[y, x]:
                continue
            if back_most[x] <= front[x] * (1 + tau):  # nobody, or the only hypothesis
                if total[x] > 0:
                    out[y, x] = product[x] / total[x]
                continue
            n = 0
            for i in range(n_views):
                z = Z[i, y, x]
                if z < EMPTY:
                    k = n
                    while k > 0 and depth[k - 1] > z:
                        depth[k] = depth[k - 1]
                        index[k] = index[k - 1]
                        k -= 1
                    depth[k] = z
                    index[k] = i
                    n += 1
            best_score, best = -1e30, 0.0
            needed = 0.0
            if guesses and n > 1 and depth[n - 1] > depth[0] * (1 + tau):
                for k in range(n):
                    i, z = index[k], depth[k]
                    X, Y = (x - Kt[2]) / Kt[0] * z, (y - Kt[3]) / Kt[1] * z
                    said[k] = weight[i] * angular_weight(X, Y, z, centre[i], steep[i])
                    needed += least * said[k]
            k = 0
            while k < n:
                sw, sz, j = 0.0, 0.0, k
                while j < n and depth[j] <= depth[k] * (1 + tau):
                    sw += weight[index[j]]
                    sz += weight[index[j]] * depth[j]
                    j += 1
                z = sz / sw
                if j - k == n:  # the only hypothesis
                    best = z
                    break
                score = sw
                m = k + 1
                while spread > 0 and m < n and depth[m] <= depth[k] * (1 + spread):
                    heavier, r = 0.0, m
                    while r < n and depth[r] <= depth[m] * (1 + tau):
                        heavier += weight[index[r]]
                        r += 1
                    if heavier > sw:
                        score = 0.0
                    m += 1
                if needed > 0:
                    share, sensed = 0.0, False
                    for m in range(k, j):
                        share += said[m]
                        sensed |= steep[index[m]] <= 0
                    if share < needed and not sensed:
                        score = 0.0  # as if unsupported, and still better than seen through
                if free > 0:
                    X, Y = (x - Kt[2]) / Kt[0] * z, (y - Kt[3]) / Kt[1] * z
                    for i in range(n_views):
                        if vote[i] <= 0:
                            continue
                        q = (
                            back[i, 2, 0] * X
                            + back[i, 2, 1] * Y
                            + back[i, 2, 2] * z
                            + back[i, 2, 3]
                        )
                        if q <= near:
                            continue
                        p0 = (
                            back[i, 0, 0] * X
                            + back[i, 0, 1] * Y
                            + back[i, 0, 2] * z
                            + back[i, 0, 3]
                        )
                        p1 = (
                            back[i, 1, 0] * X
                            + back[i, 1, 1] * Y
                            + back[i, 1, 2] * z
                            + back[i, 1, 3]
                        )
                        u = math.floor(Kr[i, 0] * p0 / q + Kr[i, 2] + 0.5)
                        v = math.floor(Kr[i, 1] * p1 / q + Kr[i, 3] + 0.5)
                        if u < 1 or v < 1 or u >= size[i, 1] - 1 or v >= size[i, 0] - 1:
                            continue
                        at = offset[i] + int(v) * size[i, 1] + int(u)
                        if min_depth_3x3[at] > q * (1 + free):
                            score -= vote[i]
                if score > best_score:
                    best_score, best = score, z
                if score > 0:
                    break
                k = j
            out[y, x] = best


@kernel(**FLAGS)
def count_votes(depth, Kr, T, Ko, theirs, min_depth_3x3, free, balance):
    """Add 1 to `balance` where another view supports a depth, take 1 where it looks through.

    Args:
        depth: (H, W) of the judged view; `T` takes its axes to the other's.
        theirs, min_depth_3x3: the other's depth and the 3x3 minimum of it.
        free: relative depth within which it supports and beyond which it looks through.
    """
    H, W = depth.shape
    h, w = theirs.shape
    for y in range(H):
        ry = (y - Kr[3]) / Kr[1]
        for x in range(W):
            c = depth[y, x]
            if c <= 0:
                continue
            X, Y = (x - Kr[2]) / Kr[0] * c, ry * c
            z = T[2, 0] * X + T[2, 1] * Y + T[2, 2] * c + T[2, 3]
            if z <= 1e-4:
                continue
            u = Ko[0] * (T[0, 0] * X + T[0, 1] * Y + T[0, 2] * c + T[0, 3]) / z + Ko[2]
            v = Ko[1] * (T[1, 0] * X + T[1, 1] * Y + T[1, 2] * c + T[1, 3]) / z + Ko[3]
            if not (u >= -0.5 and v >= -0.5 and u < w - 0.5 and v < h - 0.5):
                continue
            iu, iv = int(u + 0.5), int(v + 0.5)
            seen = theirs[iv, iu]
            if min_depth_3x3[iv, iu] > z * (1 + free):
                balance[y, x] -= 1
            if seen > 0 and abs(seen - z) < free * z:
                balance[y, x] += 1


@kernel(**FLAGS)
def fill_gaps(d, agree, radius, least, y0, y1, out):
    """Interpolate small gaps by a regularised local plane, where the samples around agree."""
    H, W = d.shape
    quadrant = np.zeros(4, np.int64)
    for y in range(y0, y1):
        for x in range(W):
            out[y, x] = d[y, x]
            if d[y, x] > 0:
                continue
            n = 0
            low, high = 1e30, 0.0
            quadrant[:] = 0
            s = sx = sy = sxx = sxy = syy = sd = sxd = syd = 0.0
            for b in range(-radius, radius + 1):
                for a in range(-radius, radius + 1):
                    yy, xx = y + b, x + a
                    if yy < 0 or xx < 0 or yy >= H or xx >= W:
                        continue
                    v = d[yy, xx]
                    if v <= 0:
                        continue
                    n += 1
                    quadrant[(1 if a > 0 else 0) + (2 if b > 0 else 0)] += 1
                    low, high = min(low, v), max(high, v)
                    w = 1.0 / (0.5 + a * a + b * b)
                    s += w
                    sx += w * a
                    sy += w * b
                    sxx += w * a * a
                    sxy += w * a * b
                    syy += w * b * b
                    sd += w * v
                    sxd += w * a * v
                    syd += w * b * v
            sides = 0
            for k in range(4):
                sides += 1 if quadrant[k] > 0 else 0
            if n < least or sides < 3 or high - low > agree * high * radius:
                continue
            sxx += 0.3 * s
            syy += 0.3 * s
            a11, a12, a22 = sxx - sx * sx / s, sxy - sx * sy / s, syy - sy * sy / s
            b1, b2 = sxd - sx * sd / s, syd - sy * sd / s
            det = a11 * a22 - a12 * a12
            slope_x, slope_y = (a22 * b1 - a12 * b2) / det, (a11 * b2 - a12 * b1) / det
            v = (sd - slope_x * sx - slope_y * sy) / s
            out[y, x] = min(max(v, low), high)


@kernel(**FLAGS)
def drop_lonely(d, radius, agree, least, y0, y1, out):
    """Drop samples that fewer than `least` of the window (itself included) agree with."""
    H, W = d.shape
    for y in range(y0, y1):
        for x in range(W):
            out[y, x] = d[y, x]
            if d[y, x] <= 0:
                continue
            same = 0
            for yy in range(max(0, y - radius), min(H, y + radius + 1)):
                for xx in range(max(0, x - radius), min(W, x + radius + 1)):
                    v = d[yy, xx]
                    if v > 0 and abs(v - d[y, x]) < agree * d[y, x]:
                        same += 1
            if same < least:
                out[y, x] = 0


@kernel(**FLAGS)
def trust_behind(d, far, known, y0, y1, out):
    """1 where known disparity is the lowest near by, down to 1e-3 in front of that; 1 elsewhere."""
    for y in range(y0, y1):
        for x in range(d.shape[1]):
            nearer = 6.0 * (d[y, x] / max(far[y, x], 1e-6) - 1.0)
            trust = max(exponential(min(nearer, 16.0)), 1e-3)
            out[y, x] = trust if known[y, x] else 1.0


@kernel(**FLAGS)
def relax(values, unknown, red, trust, sweeps, omega):
    """Red-black over-relaxation of the harmonic fill at the unknown pixels only.

    Args:
        values: (h + 2, w + 2) with a border of copies whose weight is not read.
        unknown: (n,) flat indices into `values`, the first `red` of one parity.
        trust: like `values`; 0 on the border. The weight of a link is the product of its ends.
    """
    wide = values.shape[1]
    v, t = values.ravel(), trust.ravel()
    n = len(unknown)
    for _ in range(sweeps):
        for part in range(2):
            begin, end = (0, red) if part == 0 else (red, n)
            for k in range(begin, end):
                i = unknown[k]
                a, b, c, d = t[i - 1], t[i + 1], t[i - wide], t[i + wide]
                total = a + b + c + d
                if total > 0:
                    mean = a * v[i - 1] + b * v[i + 1] + c * v[i - wide] + d * v[i + wide]
                    v[i] += omega * (mean / total - v[i])
