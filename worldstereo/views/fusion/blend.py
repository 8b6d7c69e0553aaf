"""Compiled inner loop of the blend: one view attended to from the pixels of a target.

`attend` decides everything about one (target pixel, view) pair: where the view shows the point, how
much it weighs and, if nothing, why. The blend, the heat map and the explanation of a pixel all call
it, so that what the inspector shows is what was used. Conventions as in `_fusion/kernels.py`.
"""

import math
from typing import Any

import numpy as np

from worldstereo._core.compiled import kernel
from worldstereo.views.fusion._angle import SHARP, WIDE

FLAGS = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}
INLINED: Any = FLAGS | {"forceinline": True}

LOOSEST = 0.2  # relative depth beyond which two samples never show one surface

SCRATCH, SPAN = 16, 128  # rows of intermediate values, and for how many pixels: they stay in cache

# float32, of which a vector holds twice as many: a Python float makes float64 of what it meets.
ROUNDING = np.float32(1e-3)  # px: beyond the border of a picture this far is float32's own error
ZERO, HALF, ONE, HUGE = np.float32(0), np.float32(0.5), np.float32(1), np.float32(1e30)
PI, ROOT = np.float32(math.pi), np.float32(math.exp(-0.5))
NARROW, BROAD, LOOSE = np.float32(1 / SHARP), np.float32(1 / WIDE), np.float32(1 / LOOSEST)
HUNDREDTH, SHARE_LEAST = np.float32(0.01), np.float32(1e-4)
RIM, RIM_LEAST = np.float32(1 / 3), np.float32(0.25)
LUMINANCE = tuple(np.float32(c) for c in (0.3, 0.6, 0.1))
ARC = tuple(np.float32(c) for c in (
    -0.3333314528, 0.1999355085, -0.1420889944, 0.1065626393, -0.0752896400, 0.0429096138,
    -0.0161657367, 0.0028662257,
))  # fmt: skip
SERIES = tuple(np.float32(1 / math.factorial(n)) for n in range(8))
NEXT = np.uintp(1)

TINY = 1e-30

CONFIRMS, OUTSIDE, UNKNOWN, LOOKED_THROUGH, BEHIND = 0, 1, 2, 3, 4


@kernel(**INLINED)
def falloff(angle, steep):
    """Weight in (0, 1] of a view whose ray meets the target's at `angle` radians."""
    far = ONE + angle * (NARROW if steep > ZERO else BROAD)
    square = far * far
    return ONE / (square if steep > ZERO else square * square * square)


@kernel(**INLINED)
def angle_of(sine, cosine):
    """Angle in [0, pi] from its sine and cosine times any length, float32.

    Abramowitz and Stegun 1964, 4.4.49; unlike the library's it runs on vectors.
    """
    x = abs(cosine)
    t = min(sine, x) / max(max(sine, x), np.float32(1e-30))
    p = t * t
    series = ARC[6] + p * ARC[7]
    series = ARC[4] + p * (ARC[5] + p * series)
    series = ARC[2] + p * (ARC[3] + p * series)
    series = ARC[0] + p * (ARC[1] + p * series)
    angle = t * (ONE + p * series)
    angle = HALF * PI - angle if sine > x else angle
    return angle if cosine >= ZERO else PI - angle


@kernel(**INLINED)
def exponential(x):
    """exp(-4 x) for x in [0, 1], float32, to 1e-6 relatively; it runs on vectors."""
    y = HALF - x
    series = SERIES[5] + y * (SERIES[6] + y * SERIES[7])
    series = SERIES[2] + y * (SERIES[3] + y * (SERIES[4] + y * series))
    root = ROOT * (SERIES[0] + y * (SERIES[1] + y * series))
    root *= root
    return root * root


@kernel(**INLINED)
def camera_of(view, K, T, centre):
    """Intrinsics (4), rows of `T` (12), centre (3) and focal length of a view, for the registers.

    Read from their arrays they would be read again for each pixel: for all the compiler knows,
    what is written may have changed them. float32, of which a vector holds twice as many.
    """
    f = np.float32
    return (
        f(K[view, 0]), f(K[view, 1]), f(K[view, 2]), f(K[view, 3]),
        f(T[view, 0, 0]), f(T[view, 0, 1]), f(T[view, 0, 2]), f(T[view, 0, 3]),
        f(T[view, 1, 0]), f(T[view, 1, 1]), f(T[view, 1, 2]), f(T[view, 1, 3]),
        f(T[view, 2, 0]), f(T[view, 2, 1]), f(T[view, 2, 2]), f(T[view, 2, 3]),
        f(centre[view, 0]), f(centre[view, 1]), f(centre[view, 2]),
        f(math.sqrt(K[view, 0] * K[view, 1])),
    )  # fmt: skip


@kernel(**INLINED)
def limits_of(agree, feather, near, steep, slip):
    """float32 of: 1 / agree, 1 / feather, near, steep, 1 / slip (large without slip)."""
    f = np.float32
    return f(1.0 / agree), f(1.0 / feather), f(near), f(steep), f(1.0 / max(slip, 1e-30))


@kernel(**INLINED)
def on_border(u, last):
    """A coordinate that rounding alone put outside [0, last], on its border; others as given."""
    u = ZERO if (u < ZERO) & (u >= -ROUNDING) else u
    return last if (u > last) & (u <= last + ROUNDING) else u


@kernel(**INLINED)
def locate(X, Y, Z, camera, limits, height, width):
    """Where a view shows a point: whether it does, u, v, 1 / depth, angle, and strictness.

    A sample confirms the point there within a relative depth of 1 / strictness.
    """
    k0, k1, k2, k3, t00, t01, t02, t03, t10, t11, t12, t13, t20, t21, t22, t23 = camera[:16]
    c0, c1, c2, focal = camera[16:]
    tightest, _, near, _, rigid = limits
    q = t20 * X + t21 * Y + t22 * Z + t23
    inverse = ONE / max(q, near)
    u = k0 * (t00 * X + t01 * Y + t02 * Z + t03) * inverse + k2
    v = k1 * (t10 * X + t11 * Y + t12 * Z + t13) * inverse + k3
    u, v = on_border(u, width), on_border(v, height)
    shown = (q > near) & (u >= ZERO) & (v >= ZERO) & (u <= width) & (v <= height)
    across0, across1, across2 = Y * c2 - Z * c1, Z * c0 - X * c2, X * c1 - Y * c0
    across = math.sqrt(across0 * across0 + across1 * across1 + across2 * across2)
    angle = angle_of(across, X * (X - c0) + Y * (Y - c1) + Z * (Z - c2))
    # The tolerance of slip / (focal * angle) lies between `agree` and `LOOSEST`.
    strictness = min(tightest, max(LOOSE, focal * angle * rigid))
    return shown, u, v, inverse, angle, strictness


@kernel(**INLINED)
def agreeing(z, share, inverse, strictness):
    """A neighbour's weight, 0 unless its depth agrees with 1 / inverse, and by how much it is off.

    The difference of depth is over the tolerance, and `HUGE` where it does not agree.
    """
    off = abs((z * inverse - ONE) * strictness)
    agrees = (z > ZERO) & (off <= ONE)
    return share + SHARE_LEAST if agrees else ZERO, off if agrees else HUGE


@kernel(**INLINED)
def corner(u, v, shape):
    """Indices of the neighbour of (u, v) above and left of it, and where it lies beyond that."""
    iu, iv = min(np.int32(u), np.int32(shape[1] - 2)), min(np.int32(v), np.int32(shape[0] - 2))
    return np.uintp(iv), np.uintp(iu), v - np.float32(iv), u - np.float32(iu)


@kernel(**INLINED)
def neighbours(values, y, x):
    """The four neighbours that begin at (y, x)."""
    return values[y, x], values[y, x + NEXT], values[y + NEXT, x], values[y + NEXT, x + NEXT]


@kernel(**INLINED)
def mixed(w, values):
    """Sum of four values by their weights."""
    return w[0] * values[0] + w[1] * values[1] + w[2] * values[2] + w[3] * values[3]


@kernel(**INLINED)
def channel(color, y, x, c):
    """Four neighbours of one channel, float32."""
    f = np.float32
    return (
        f(color[y, x, c]), f(color[y, x + NEXT, c]),
        f(color[y + NEXT, x, c]), f(color[y + NEXT, x + NEXT, c]),
    )  # fmt: skip


@kernel(**INLINED)
def weights_of(z, fv, fu, inverse, strictness):
    """Bilinear weights of four neighbours, those that agree, and the smallest difference."""
    w0, e0 = agreeing(z[0], (ONE - fu) * (ONE - fv), inverse, strictness)
    w1, e1 = agreeing(z[1], fu * (ONE - fv), inverse, strictness)
    w2, e2 = agreeing(z[2], (ONE - fu) * fv, inverse, strictness)
    w3, e3 = agreeing(z[3], fu * fv, inverse, strictness)
    return (w0, w1, w2, w3), min(min(e0, e1), min(e2, e3))


@kernel(**INLINED)
def factors(u, v, angle, edge, conf, best, limits, height, width):
    """The four factors of a weight, from the means of the neighbours."""
    _, sharpness, _, steep, _ = limits
    matching = conf * exponential(min(best * best, ONE))
    margin = min(min(u, v), min(width - u, height - v))
    border = min(ONE, (margin + ONE) * sharpness)
    rimmed = min(ONE, (edge + RIM_LEAST) * RIM)
    # A guessed depth displaces what is seen by its error times the angle: near views err least.
    off = steep * (ONE - conf) * angle
    facing = falloff(angle, steep) * max(HUNDREDTH, ONE / (ONE + off * off))
    return matching, border, rimmed, facing


@kernel(**INLINED)
def attend(X, Y, Z, camera, color, depth, edge_distance, trust, limits):
    """One point of the target seen by one view.

    Args:
        X, Y, Z: the point in the target's axes, in u, float32.
        camera: the view's, as `camera_of` gives it.
        color, depth, edge_distance, trust: the view's 8-bit colours, depth, distance to a depth
            edge and stored confidence.
        limits: as `limits_of` gives them.

    Returns:
        status, u, v (array indices), and the four factors of the weight: stored confidence with
        depth agreement, border, edge, and angle, each in [0, 1].
    """
    right, bottom = np.float32(depth.shape[1] - 1), np.float32(depth.shape[0] - 1)
    shown, u, v, inverse, angle, strictness = locate(X, Y, Z, camera, limits, bottom, right)
    if not shown:
        return OUTSIDE, u, v, ZERO, ZERO, ZERO, ZERO
    y, x, fv, fu = corner(u, v, depth.shape)
    z = neighbours(depth, y, x)
    w, best = weights_of(z, fv, fu, inverse, strictness)
    sw = (w[0] + w[1]) + (w[2] + w[3])
    if sw <= ZERO:
        front = back = False
        for k in range(4):
            front |= (z[k] > ZERO) & (z[k] * inverse < ONE)
            back |= (z[k] > ZERO) & (z[k] * inverse > ONE)
        status = BEHIND if front else LOOKED_THROUGH if back else UNKNOWN
        return status, u, v, ZERO, ZERO, ZERO, ZERO
    edge, conf = mixed(w, neighbours(edge_distance, y, x)), mixed(w, neighbours(trust, y, x))
    matching, border, rimmed, facing = factors(
        u, v, angle, edge / sw, conf / sw, best, limits, bottom, right
    )
    return CONFIRMS, u, v, matching, border, rimmed, facing


@kernel(**INLINED)
def attend_span(
    target, y, x0, n, Kt, camera, color, depth, edge_distance, trust, limits, detail_low,
    detail_high, s,
):  # fmt: skip
    """`attend` for `n` pixels of a row from x0 on; on vectors, but where something is looked up.

    Writes to the rows of `s`, `SCRATCH` of `SPAN` float32 one after the other (the compiler has to
    know how far apart they lie, or it sees no vectors): 3 the angle, 7 to 9 the mean colours
    0..255, 10 to 13 the four factors of the weight; 11 and 13 are 0 where the view does not confirm
    the pixel. False, with all of them 0, where the view shows none of the pixels.

    Args:
        detail_low, detail_high: only pixels where the view has between so many samples a pixel of
            the target are asked; float32.
    """
    row = target[y, x0 : x0 + n]
    right, bottom = np.float32(depth.shape[1] - 1), np.float32(depth.shape[0] - 1)
    across, down, cx = np.float32(1.0 / Kt[0]), np.float32(1.0 / Kt[1]), np.float32(Kt[2])
    ry = np.float32((y - Kt[3]) / Kt[1])
    t20, t21, t22, t23 = camera[12:16]
    sampling, near = camera[19] * math.sqrt(across * down), limits[2]
    served = 0
    for i in range(n):
        Z = row[i]
        q = t20 * ((np.float32(x0 + i) - cx) * across * Z) + t21 * (ry * Z) + t22 * Z + t23
        detail = sampling * Z
        serves = (Z > ZERO) & (q > near) & (detail >= detail_low * q) & (detail < detail_high * q)
        s[i] = ONE if serves else -ONE
        served += serves
    if served == 0:
        s[3 * SPAN :] = ZERO
        return False
    served = 0
    for i in range(n):
        Z = row[i]
        X, Y = (np.float32(x0 + i) - cx) * across * Z, ry * Z
        shown, u, v, inverse, angle, strictness = locate(X, Y, Z, camera, limits, bottom, right)
        shown &= s[i] > ZERO
        s[i] = u if shown else -ONE
        served += shown
        s[1 * SPAN + i] = v
        s[2 * SPAN + i] = inverse
        s[3 * SPAN + i] = angle
        s[4 * SPAN + i] = strictness
    if served == 0:
        s[3 * SPAN :] = ZERO
        return False
    for i in range(n):
        z = ZERO, ZERO, ZERO, ZERO
        if s[i] >= ZERO:
            iy, ix, _, _ = corner(s[i], s[1 * SPAN + i], depth.shape)
            z = neighbours(depth, iy, ix)
        s[7 * SPAN + i], s[8 * SPAN + i], s[9 * SPAN + i], s[10 * SPAN + i] = z
    for i in range(n):
        u, v = max(s[i], ZERO), s[1 * SPAN + i]
        fu = u - min(np.float32(np.int32(u)), right - ONE)
        fv = v - min(np.float32(np.int32(v)), bottom - ONE)
        z = s[7 * SPAN + i], s[8 * SPAN + i], s[9 * SPAN + i], s[10 * SPAN + i]
        w, best = weights_of(z, fv, fu, s[2 * SPAN + i], s[4 * SPAN + i])
        s[5 * SPAN + i] = (w[0] + w[1]) + (w[2] + w[3])
        s[11 * SPAN + i] = best
        s[12 * SPAN + i], s[13 * SPAN + i], s[14 * SPAN + i], s[15 * SPAN + i] = w
    for i in range(n):
        edge = conf = r = g = b = ZERO
        if s[5 * SPAN + i] > ZERO:
            iy, ix, _, _ = corner(s[i], s[1 * SPAN + i], depth.shape)
            w = s[12 * SPAN + i], s[13 * SPAN + i], s[14 * SPAN + i], s[15 * SPAN + i]
            edge = mixed(w, neighbours(edge_distance, iy, ix))
            conf = mixed(w, neighbours(trust, iy, ix))
            r = mixed(w, channel(color, iy, ix, 0))
            g = mixed(w, channel(color, iy, ix, 1))
            b = mixed(w, channel(color, iy, ix, 2))
        s[6 * SPAN + i] = edge
        s[7 * SPAN + i] = r
        s[8 * SPAN + i] = g
        s[9 * SPAN + i] = b
        s[10 * SPAN + i] = conf
    for i in range(n):
        confirmed = s[5 * SPAN + i] > ZERO
        inverse = ONE / s[5 * SPAN + i] if confirmed else ZERO
        matching, border, rimmed, facing = factors(
            s[i], s[1 * SPAN + i], s[3 * SPAN + i], s[6 * SPAN + i] * inverse,
            s[10 * SPAN + i] * inverse, s[11 * SPAN + i], limits, bottom, right,
        )  # fmt: skip
        s[7 * SPAN + i] *= inverse
        s[8 * SPAN + i] *= inverse
        s[9 * SPAN + i] *= inverse
        s[10 * SPAN + i] = matching
        s[11 * SPAN + i] = border if confirmed else ZERO
        s[12 * SPAN + i] = rimmed
        s[13 * SPAN + i] = facing if confirmed else ZERO
    return True


@kernel(**INLINED)
def add(row, more):
    """Add to each element of a row."""
    for i in range(len(row)):
        row[i] += more[i]


@kernel(**FLAGS)
def accumulate(
    target, Kt, view, color, depth, edge_distance, trust, K, T, centre, gain, agree, feather, near,
    steep, slip, share, detail_low, detail_high, y0, y1, total, weights, energy, mass, best,
):  # fmt: skip
    """Add one view to the blend of the rows y0..y1.

    Args:
        target: (H, W) depth of the target in u, 0 where unknown.
        gain: (n, 3) factors on the colours; the result is clipped to [0, 1].
        share: what the weight is multiplied by; 0: every agreeing view counts alike.
        detail_low, detail_high: only pixels where this level of the view has between so many
            samples a target pixel are added (those it serves).
        total, weights: (3, H, W) and (H, W) sums of w * colour and w.
        energy: (3, H, W) sums over w, w * luminance and w * its square, without `share`: views
            that do not paint still disagree.
        mass: sum of the agreement alone, without the angle.
        best: largest `facing` factor that contributed.
    """
    W = target.shape[1]
    camera = camera_of(view, K, T, centre)
    limits = limits_of(agree, feather, near, steep, slip)
    f = np.float32
    red, green, blue = f(gain[view, 0] / 255.0), f(gain[view, 1] / 255.0), f(gain[view, 2] / 255.0)
    part, low, high = f(share), f(detail_low), f(detail_high)
    s = np.empty(SCRATCH * SPAN, np.float32)
    for y in range(y0, y1):
        for x0 in range(0, W, SPAN):
            n = min(SPAN, W - x0)
            if not attend_span(
                target, y, x0, n, Kt, camera, color, depth, edge_distance, trust, limits, low,
                high, s,
            ):  # fmt: skip
                continue
            for i in range(n):
                agreement = s[10 * SPAN + i] * s[11 * SPAN + i] * s[12 * SPAN + i]
                alike = ONE if agreement > HUNDREDTH else ZERO
                w0 = agreement * s[13 * SPAN + i] if part > ZERO else alike
                w = w0 * part if part > ZERO else w0
                r, g, b = s[7 * SPAN + i] * red, s[8 * SPAN + i] * green, s[9 * SPAN + i] * blue
                r, g, b = min(r, ONE), min(g, ONE), min(b, ONE)
                luminance = LUMINANCE[0] * r + LUMINANCE[1] * g + LUMINANCE[2] * b
                s[i] = w * r
                s[1 * SPAN + i] = w * g
                s[2 * SPAN + i] = w * b
                s[3 * SPAN + i] = w
                s[4 * SPAN + i] = w0
                s[5 * SPAN + i] = w0 * luminance
                s[6 * SPAN + i] = w0 * luminance * luminance
                s[7 * SPAN + i] = agreement if w > ZERO else ZERO
                s[8 * SPAN + i] = s[13 * SPAN + i] if w > ZERO else ZERO
            for k in range(3):
                add(total[k, y, x0 : x0 + n], s[k * SPAN :])
                add(energy[k, y, x0 : x0 + n], s[(4 + k) * SPAN :])
            add(weights[y, x0 : x0 + n], s[3 * SPAN :])
            add(mass[y, x0 : x0 + n], s[7 * SPAN :])
            largest = best[y, x0 : x0 + n]
            for i in range(n):
                largest[i] = max(largest[i], s[8 * SPAN + i])


@kernel(**FLAGS)
def mean_color(total, weights, y0, y1, out):
    """(H, W, 3) weighted mean of the rows y0..y1."""
    for y in range(y0, y1):
        for x in range(weights.shape[1]):
            inverse = 1.0 / max(weights[y, x], TINY)
            out[y, x, 0] = total[0, y, x] * inverse
            out[y, x, 1] = total[1, y, x] * inverse
            out[y, x, 2] = total[2, y, x] * inverse


@kernel(**FLAGS)
def deviation(energy, y0, y1, out):
    """(H, W) standard deviation of the views' luminance, of the rows y0..y1."""
    for y in range(y0, y1):
        for x in range(energy.shape[2]):
            inverse = 1.0 / max(energy[0, y, x], TINY)
            mean = energy[1, y, x] * inverse
            out[y, x] = math.sqrt(max(energy[2, y, x] * inverse - mean * mean, 0.0))


@kernel(**INLINED)
def mirrored(i, n):
    """An index one beyond the border, mirrored at its last pixel."""
    i = abs(i)
    return max(0, 2 * (n - 1) - i) if i >= n else i


@kernel(**INLINED)
def beside(known, y, x):
    """A known pixel at or next to (y, x), diagonal ones last; (y, x) if there is none."""
    H, W = known.shape
    for b, a in ((0, 0), (-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)):
        if 0 <= y + b < H and 0 <= x + a < W and known[y + b, x + a]:
            return y + b, x + a
    return y, x


@kernel(**FLAGS)
def soften(color, known, share, y0, y1, out):
    """Mix a 3x3 Gaussian of standard deviation 1 into known pixels, as much as `share` says.

    An unknown neighbour counts as the known pixel next to it. `out` holds the colours, and keeps
    them elsewhere.
    """
    H, W = share.shape
    side = math.exp(-0.5) / (1.0 + 2.0 * math.exp(-0.5))
    for y in range(y0, y1):
        for x in range(W):
            part = share[y, x]
            if part <= 0 or not known[y, x]:
                continue
            r = g = b = 0.0
            for j in range(-1, 2):
                for i in range(-1, 2):
                    weight = (side if j != 0 else 1.0 - 2.0 * side) * (
                        side if i != 0 else 1.0 - 2.0 * side
                    )
                    yy, xx = beside(known, mirrored(y + j, H), mirrored(x + i, W))
                    r += weight * color[yy, xx, 0]
                    g += weight * color[yy, xx, 1]
                    b += weight * color[yy, xx, 2]
            out[y, x, 0] = color[y, x, 0] * (1.0 - part) + part * r
            out[y, x, 1] = color[y, x, 1] * (1.0 - part) + part * g
            out[y, x, 2] = color[y, x, 2] * (1.0 - part) + part * b


@kernel(**FLAGS)
def weigh(target, Kt, view, color, depth, edge_distance, trust, K, T, centre, agree, feather, near,
          steep, slip, out):  # fmt: skip
    """Weight of one view at every pixel of the target, before normalisation."""
    H, W = target.shape
    camera = camera_of(view, K, T, centre)
    limits = limits_of(agree, feather, near, steep, slip)
    s = np.empty(SCRATCH * SPAN, np.float32)
    for y in range(H):
        for x0 in range(0, W, SPAN):
            n = min(SPAN, W - x0)
            attend_span(
                target, y, x0, n, Kt, camera, color, depth, edge_distance, trust, limits, ZERO,
                HUGE, s,
            )  # fmt: skip
            for i in range(n):
                out[y, x0 + i] = (
                    s[10 * SPAN + i] * s[11 * SPAN + i] * s[12 * SPAN + i] * s[13 * SPAN + i]
                )


@kernel(**FLAGS)
def probe(X, Y, Z, view, color, depth, edge_distance, trust, K, T, centre, agree, feather, near,
          steep, slip):  # fmt: skip
    """`attend` for one point, callable from Python."""
    return attend(
        np.float32(X), np.float32(Y), np.float32(Z), camera_of(view, K, T, centre), color, depth,
        edge_distance, trust, limits_of(agree, feather, near, steep, slip),
    )  # fmt: skip


@kernel(**FLAGS)
def fetch(target, Kt, view, color, depth, edge_distance, trust, K, T, centre, agree, feather, near,
          steep, slip, y0, y1, out, agreement, angle):  # fmt: skip
    """One view fetched at the depth of another: colours 0..255, agreement in [0, 1], angle.

    Where the view confirms nothing the colours are 0, the agreement 0 and the angle 1.
    """
    W = target.shape[1]
    camera = camera_of(view, K, T, centre)
    limits = limits_of(agree, feather, near, steep, slip)
    s = np.empty(SCRATCH * SPAN, np.float32)
    for y in range(y0, y1):
        for x0 in range(0, W, SPAN):
            n = min(SPAN, W - x0)
            attend_span(
                target, y, x0, n, Kt, camera, color, depth, edge_distance, trust, limits, ZERO,
                HUGE, s,
            )  # fmt: skip
            colors, likely = out[y, x0 : x0 + n], agreement[y, x0 : x0 + n]
            angles = angle[y, x0 : x0 + n]
            for i in range(n):
                colors[i, 0] = s[7 * SPAN + i]
                colors[i, 1] = s[8 * SPAN + i]
                colors[i, 2] = s[9 * SPAN + i]
            for i in range(n):
                likely[i] = s[10 * SPAN + i] * s[11 * SPAN + i] * s[12 * SPAN + i]
            for i in range(n):
                angles[i] = s[3 * SPAN + i] if s[13 * SPAN + i] > ZERO else ONE


@kernel(**FLAGS)
def fetch_pixels(rows, columns, z, Kt, view, color, depth, edge_distance, trust, K, T, centre,
                 agree, feather, near, steep, slip, out, agreement):  # fmt: skip
    """`fetch` of some pixels, in rows of `out` (n, 3) and `agreement` (n,): where few are asked."""
    right, bottom = np.float32(depth.shape[1] - 1), np.float32(depth.shape[0] - 1)
    camera, limits = camera_of(view, K, T, centre), limits_of(agree, feather, near, steep, slip)
    for i in range(z.size):
        X = np.float32((columns[i] - Kt[2]) / Kt[0]) * z[i]
        Y = np.float32((rows[i] - Kt[3]) / Kt[1]) * z[i]
        out[i] = ZERO
        agreement[i] = ZERO
        shown, u, v, inverse, angle, strictness = locate(X, Y, z[i], camera, limits, bottom, right)
        if not shown:
            continue
        y, x, fv, fu = corner(u, v, depth.shape)
        w, best = weights_of(neighbours(depth, y, x), fv, fu, inverse, strictness)
        sw = (w[0] + w[1]) + (w[2] + w[3])
        if sw <= ZERO:
            continue
        edge, conf = mixed(w, neighbours(edge_distance, y, x)), mixed(w, neighbours(trust, y, x))
        matching, border, rimmed, _ = factors(
            u, v, angle, edge / sw, conf / sw, best, limits, bottom, right
        )
        for c in range(3):
            out[i, c] = mixed(w, channel(color, y, x, c)) / sw
        agreement[i] = matching * border * rimmed


@kernel(**FLAGS)
def halve(
    color, depth, edge_distance, trust, agree, color_out, depth_out, edge_distance_out, trust_out
):
    """The next smaller level of a view: 2x2 blocks, averaged over what agrees with their front."""
    H, W = depth_out.shape
    for y in range(H):
        for x in range(W):
            front = np.float32(1e30)
            for b in range(2):
                for a in range(2):
                    z = depth[2 * y + b, 2 * x + a]
                    if 0 < z < front:
                        front = z
            sw = sr = sg = sb = sz = se = st = 0.0
            for b in range(2):
                for a in range(2):
                    z = depth[2 * y + b, 2 * x + a]
                    if front < 1e29 and not (0 < z <= front * (1 + agree)):
                        continue
                    sw += 1
                    sr += color[2 * y + b, 2 * x + a, 0]
                    sg += color[2 * y + b, 2 * x + a, 1]
                    sb += color[2 * y + b, 2 * x + a, 2]
                    sz += 1.0 / z if z > 0 else 0.0
                    se += edge_distance[2 * y + b, 2 * x + a]
                    st += trust[2 * y + b, 2 * x + a]
            color_out[y, x, 0] = np.uint8(sr / sw + 0.5)
            color_out[y, x, 1] = np.uint8(sg / sw + 0.5)
            color_out[y, x, 2] = np.uint8(sb / sw + 0.5)
            depth_out[y, x] = sw / sz if sz > 0 else 0.0
            edge_distance_out[y, x] = 0.5 * se / sw
            trust_out[y, x] = st / sw
