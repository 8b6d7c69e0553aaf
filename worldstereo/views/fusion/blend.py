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
from worldstereo.views.fusion.kernels import exponential

FLAGS = {"cache": True, "fastmath": True, "nogil": True, "error_model": "numpy"}
INLINED: Any = FLAGS | {"forceinline": True}

LOOSEST = 0.2  # relative depth beyond which two samples never show one surface

SCRATCH, SPAN = 14, 128  # rows of intermediate values, and for how many pixels: they stay in cache

TINY = 1e-30
EVERY = 1e30  # a level of detail that no pixel reaches

CONFIRMS, OUTSIDE, UNKNOWN, LOOKED_THROUGH, BEHIND = 0, 1, 2, 3, 4


@kernel(**INLINED)
def falloff(angle, steep):
    """Weight in (0, 1] of a view whose ray meets the target's at `angle` radians."""
    far = 1.0 + angle / (SHARP if steep > 0 else WIDE)
    square = far * far
    return 1.0 / (square if steep > 0 else square * square * square)


@kernel(**INLINED)
def angle_of(sine, cosine):
    """Angle in [0, pi] from its sine and cosine times any length, to 2e-8 radians.

    Abramowitz and Stegun 1964, 4.4.49; unlike the library's it runs on vectors.
    """
    x = abs(cosine)
    t = min(sine, x) / max(max(sine, x), 1e-30)
    p = t * t
    angle = t * (1.0 + p * (-0.3333314528 + p * (0.1999355085 + p * (-0.1420889944 + p * (
        0.1065626393 + p * (-0.0752896400 + p * (0.0429096138 + p * (
        -0.0161657367 + p * 0.0028662257))))))))  # fmt: skip
    angle = 0.5 * math.pi - angle if sine > x else angle
    return angle if cosine >= 0 else math.pi - angle


@kernel(**INLINED)
def camera_of(view, K, T, centre):
    """Intrinsics (4), rows of `T` (12), centre (3) and focal length of a view, for the registers.

    Read from their arrays they would be read again for each pixel: for all the compiler knows,
    what is written may have changed them.
    """
    return (
        K[view, 0], K[view, 1], K[view, 2], K[view, 3],
        T[view, 0, 0], T[view, 0, 1], T[view, 0, 2], T[view, 0, 3],
        T[view, 1, 0], T[view, 1, 1], T[view, 1, 2], T[view, 1, 3],
        T[view, 2, 0], T[view, 2, 1], T[view, 2, 2], T[view, 2, 3],
        centre[view, 0], centre[view, 1], centre[view, 2],
        math.sqrt(K[view, 0] * K[view, 1]),
    )  # fmt: skip


@kernel(**INLINED)
def locate(X, Y, Z, camera, agree, near, slip, height, width):
    """Where a view shows a point: whether it does, u, v, 1 / depth, angle, and strictness.

    A sample confirms the point there within a relative depth of 1 / strictness.
    """
    k0, k1, k2, k3, t00, t01, t02, t03, t10, t11, t12, t13, t20, t21, t22, t23 = camera[:16]
    c0, c1, c2, focal = camera[16:]
    q = t20 * X + t21 * Y + t22 * Z + t23
    inverse = 1.0 / max(q, near)
    u = k0 * (t00 * X + t01 * Y + t02 * Z + t03) * inverse + k2
    v = k1 * (t10 * X + t11 * Y + t12 * Z + t13) * inverse + k3
    shown = (q > near) & (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)
    across0, across1, across2 = Y * c2 - Z * c1, Z * c0 - X * c2, X * c1 - Y * c0
    across = math.sqrt(across0 * across0 + across1 * across1 + across2 * across2)
    angle = angle_of(across, X * (X - c0) + Y * (Y - c1) + Z * (Z - c2))
    # The tolerance of slip / (focal * angle) lies between `agree` and `LOOSEST`.
    strictness = min(1.0 / agree, max(1.0 / LOOSEST, focal * angle / max(slip, 1e-30)))
    return shown, u, v, inverse, angle, strictness


@kernel(**INLINED)
def sample(u, v, inverse, strictness, color, depth, edge_distance, trust):
    """Bilinear sums over the neighbours of (u, v) whose depth agrees with 1 / inverse.

    Returns:
        sums of weight, edge distance, trust, red, green and blue; the smallest difference of
        depth over the tolerance; how many neighbours lie farther and nearer than that.
    """
    iu, iv = min(int(u), depth.shape[1] - 2), min(int(v), depth.shape[0] - 2)
    fu, fv = u - iu, v - iv
    best = 1e30
    sw = sr = sg = sb = edge = conf = 0.0
    farther = nearer = 0
    for b in range(2):
        for a in range(2):
            y, x = np.uintp(iv + b), np.uintp(iu + a)
            zn = depth[y, x]
            e = (zn * inverse - 1.0) * strictness
            known, far, near = zn > 0, e > 1, e < -1
            farther += known & far
            nearer += known & near
            agrees = known & (not far) & (not near)
            best = min(best, abs(e) if agrees else 1e30)
            w = (fu if a == 1 else 1 - fu) * (fv if b == 1 else 1 - fv) + 1e-4
            w = w if agrees else 0.0
            sw += w
            edge += w * edge_distance[y, x]
            conf += w * trust[y, x]
            sr += w * color[y, x, 0]
            sg += w * color[y, x, 1]
            sb += w * color[y, x, 2]
    return sw, edge, conf, sr, sg, sb, best, farther, nearer


@kernel(**INLINED)
def factors(u, v, angle, edge, conf, best, height, width, feather, steep):
    """The four factors of a weight, from the means of `sample`."""
    matching = conf * exponential(4.0 * min(best * best, 1.0))
    margin = min(min(u, v), min(width - 1 - u, height - 1 - v))
    border = min(1.0, (margin + 1) / feather)
    rimmed = min(1.0, (edge + 0.25) / 3.0)
    # A guessed depth displaces what is seen by its error times the angle: near views err least.
    off = steep * (1 - conf) * angle
    facing = falloff(angle, steep) * max(0.01, 1.0 / (1.0 + off * off))
    return matching, border, rimmed, facing


@kernel(**INLINED)
def attend(X, Y, Z, camera, color, depth, edge_distance, trust, agree, feather, near, steep, slip):
    """One point of the target seen by one view.

    Args:
        X, Y, Z: the point in the target's axes, in u.
        camera: the view's, as `camera_of` gives it.
        color, depth, edge_distance, trust: the view's 8-bit colours, depth, distance to a depth
            edge and stored confidence.
        agree: relative depth within which a sample confirms the point.
        slip: pixels by which a sample may be displaced and still confirm the point, up to a
            relative depth of `LOOSEST`: seen from nearby, wrong depth moves nothing.
        feather: distance to the border, in pixels, at which a sample has its full weight.
        steep: by how much the angle counts more where depth is a guess (0: not at all), per radian.

    Returns:
        status, u, v (array indices), and the four factors of the weight: stored confidence with
        depth agreement, border, edge, and angle, each in [0, 1].
    """
    H, W = depth.shape
    shown, u, v, inverse, angle, strictness = locate(X, Y, Z, camera, agree, near, slip, H, W)
    if not shown:
        return OUTSIDE, u, v, 0.0, 0.0, 0.0, 0.0
    sw, edge, conf, _, _, _, best, farther, nearer = sample(
        u, v, inverse, strictness, color, depth, edge_distance, trust
    )
    if sw <= 0:
        status = BEHIND if nearer > 0 else LOOKED_THROUGH if farther > 0 else UNKNOWN
        return status, u, v, 0.0, 0.0, 0.0, 0.0
    matching, border, rimmed, facing = factors(
        u, v, angle, edge / sw, conf / sw, best, H, W, feather, steep
    )
    return CONFIRMS, u, v, matching, border, rimmed, facing


@kernel(**INLINED)
def attend_span(
    target, y, x0, n, Kt, camera, color, depth, edge_distance, trust, agree, feather, near, steep,
    slip, detail_low, detail_high, s,
):  # fmt: skip
    """`attend` for `n` pixels of a row from x0 on; on vectors, but where something is looked up.

    Writes to the rows of `s` (`SCRATCH`, `SPAN`): 3 the angle, 7 to 9 the mean colours 0..255, 10
    to 13 the four factors of the weight; 11 and 13 are 0 where the view does not confirm the pixel.
    False, with all of them 0, where the target has no depth.

    Args:
        detail_low, detail_high: only pixels where the view has between so many samples a pixel of
            the target are asked.
    """
    farthest = np.float32(0)
    for i in range(n):
        farthest = max(farthest, target[y, x0 + i])
    if farthest <= 0:
        s[3:] = 0.0
        return False
    H, W = depth.shape
    across, down, cx = 1.0 / Kt[0], 1.0 / Kt[1], Kt[2]
    ry = (y - Kt[3]) * down
    t20, t21, t22, t23 = camera[12:16]
    sampling = camera[19] * math.sqrt(across * down)
    for i in range(n):
        Z = target[y, x0 + i]
        X, Y = (x0 + i - cx) * across * Z, ry * Z
        shown, u, v, inverse, angle, strictness = locate(X, Y, Z, camera, agree, near, slip, H, W)
        q, detail = t20 * X + t21 * Y + t22 * Z + t23, sampling * Z
        shown &= (Z > 0) & (detail >= detail_low * q) & (detail < detail_high * q)
        s[0, i] = u if shown else -1.0
        s[1, i] = v
        s[2, i] = inverse
        s[3, i] = angle
        s[4, i] = strictness
    for i in range(n):
        sw = edge = conf = r = g = b = best = 0.0
        if s[0, i] >= 0:
            sw, edge, conf, r, g, b, best, _, _ = sample(
                s[0, i], s[1, i], s[2, i], s[4, i], color, depth, edge_distance, trust
            )
        s[5, i] = sw
        s[6, i] = edge
        s[7, i] = r
        s[8, i] = g
        s[9, i] = b
        s[10, i] = conf
        s[11, i] = best
    for i in range(n):
        inverse = 1.0 / s[5, i] if s[5, i] > 0 else 0.0
        matching, border, rimmed, facing = factors(
            s[0, i], s[1, i], s[3, i], s[6, i] * inverse, s[10, i] * inverse, s[11, i],
            H, W, feather, steep,
        )  # fmt: skip
        s[7, i] *= inverse
        s[8, i] *= inverse
        s[9, i] *= inverse
        s[10, i] = matching
        s[11, i] = border if inverse > 0 else 0.0
        s[12, i] = rimmed
        s[13, i] = facing if inverse > 0 else 0.0
    return True


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
    red, green, blue = gain[view, 0] / 255.0, gain[view, 1] / 255.0, gain[view, 2] / 255.0
    s = np.empty((SCRATCH, SPAN))
    for y in range(y0, y1):
        for x0 in range(0, W, SPAN):
            n = min(SPAN, W - x0)
            if not attend_span(
                target, y, x0, n, Kt, camera, color, depth, edge_distance, trust, agree, feather,
                near, steep, slip, detail_low, detail_high, s,
            ):  # fmt: skip
                continue
            for i in range(n):
                agreement = s[10, i] * s[11, i] * s[12, i]
                alike = 1.0 if agreement > 0.01 else 0.0
                w0 = agreement * s[13, i] if share > 0 else alike
                w = w0 * share if share > 0 else w0
                r, g, b = s[7, i] * red, s[8, i] * green, s[9, i] * blue
                r, g, b = min(r, 1.0), min(g, 1.0), min(b, 1.0)
                luminance = 0.3 * r + 0.6 * g + 0.1 * b
                s[0, i] = w * r
                s[1, i] = w * g
                s[2, i] = w * b
                s[3, i] = w
                s[4, i] = w0
                s[5, i] = w0 * luminance
                s[6, i] = w0 * luminance * luminance
                s[7, i] = agreement if w > 0 else 0.0
                s[8, i] = s[13, i] if w > 0 else 0.0
            for i in range(n):
                total[0, y, x0 + i] += s[0, i]
            for i in range(n):
                total[1, y, x0 + i] += s[1, i]
            for i in range(n):
                total[2, y, x0 + i] += s[2, i]
            for i in range(n):
                weights[y, x0 + i] += s[3, i]
            for i in range(n):
                energy[0, y, x0 + i] += s[4, i]
            for i in range(n):
                energy[1, y, x0 + i] += s[5, i]
            for i in range(n):
                energy[2, y, x0 + i] += s[6, i]
            for i in range(n):
                mass[y, x0 + i] += s[7, i]
            for i in range(n):
                best[y, x0 + i] = max(best[y, x0 + i], s[8, i])


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
    s = np.empty((SCRATCH, SPAN))
    for y in range(H):
        for x0 in range(0, W, SPAN):
            n = min(SPAN, W - x0)
            attend_span(
                target, y, x0, n, Kt, camera, color, depth, edge_distance, trust, agree, feather,
                near, steep, slip, 0.0, EVERY, s,
            )  # fmt: skip
            for i in range(n):
                out[y, x0 + i] = s[10, i] * s[11, i] * s[12, i] * s[13, i]


@kernel(**FLAGS)
def probe(X, Y, Z, view, color, depth, edge_distance, trust, K, T, centre, agree, feather, near,
          steep, slip):  # fmt: skip
    """`attend` for one point, callable from Python."""
    return attend(
        X, Y, Z, camera_of(view, K, T, centre), color, depth, edge_distance, trust, agree, feather,
        near, steep, slip,
    )  # fmt: skip


@kernel(**FLAGS)
def fetch(target, Kt, view, color, depth, edge_distance, trust, K, T, centre, agree, feather, near,
          steep, slip, y0, y1, out, agreement, angle):  # fmt: skip
    """One view fetched at the depth of another: colours 0..255, agreement in [0, 1], angle.

    Where the view confirms nothing the colours are 0, the agreement 0 and the angle 1.
    """
    W = target.shape[1]
    camera = camera_of(view, K, T, centre)
    s = np.empty((SCRATCH, SPAN))
    for y in range(y0, y1):
        for x0 in range(0, W, SPAN):
            n = min(SPAN, W - x0)
            attend_span(
                target, y, x0, n, Kt, camera, color, depth, edge_distance, trust, agree, feather,
                near, steep, slip, 0.0, EVERY, s,
            )  # fmt: skip
            for i in range(n):
                out[y, x0 + i, 0] = s[7, i]
                out[y, x0 + i, 1] = s[8, i]
                out[y, x0 + i, 2] = s[9, i]
            for i in range(n):
                agreement[y, x0 + i] = s[10, i] * s[11, i] * s[12, i]
            for i in range(n):
                angle[y, x0 + i] = s[3, i] if s[13, i] > 0 else 1.0


@kernel(**FLAGS)
def fetch_pixels(rows, columns, z, Kt, view, color, depth, edge_distance, trust, K, T, centre,
                 agree, feather, near, steep, slip, out, agreement):  # fmt: skip
    """`fetch` of some pixels, in rows of `out` (n, 3) and `agreement` (n,): where few are asked."""
    H, W = depth.shape
    camera = camera_of(view, K, T, centre)
    for i in range(z.size):
        X, Y, Z = (columns[i] - Kt[2]) / Kt[0] * z[i], (rows[i] - Kt[3]) / Kt[1] * z[i], z[i]
        out[i] = 0
        agreement[i] = 0
        shown, u, v, inverse, angle, strictness = locate(X, Y, Z, camera, agree, near, slip, H, W)
        if not shown:
            continue
        sw, edge, conf, r, g, b, best, _, _ = sample(
            u, v, inverse, strictness, color, depth, edge_distance, trust
        )
        if sw <= 0:
            continue
        matching, border, rimmed, _ = factors(
            u, v, angle, edge / sw, conf / sw, best, H, W, feather, steep
        )
        out[i, 0] = r / sw
        out[i, 1] = g / sw
        out[i, 2] = b / sw
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
