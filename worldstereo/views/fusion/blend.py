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

CONFIRMS, OUTSIDE, UNKNOWN, LOOKED_THROUGH, BEHIND = 0, 1, 2, 3, 4


@kernel(**INLINED)
def falloff(angle, steep):
    """Weight in (0, 1] of a view whose ray meets the target's at `angle` radians."""
    if steep > 0:
        near = 1.0 / (1.0 + angle / SHARP)
        return near * near
    near = 1.0 / (1.0 + angle / WIDE)
    return near * near * near * near * near * near


@kernel(**INLINED)
def attend(X, Y, Z, view, color, depth, edge_distance, trust, K, T, centre, agree, feather, near,
           steep, slip):  # fmt: skip
    """One point of the target seen by one view.

    Args:
        X, Y, Z: the point in the target's axes, in u.
        view: row of the stacked (n, ...) camera arguments `K`, `T`, `centre` that is meant.
        color, depth, edge_distance, trust: the view's 8-bit colours, depth, distance to a depth
            edge and stored confidence.
        agree: relative depth within which a sample confirms the point.
        slip: pixels by which a sample may be displaced and still confirm the point, up to a
            relative depth of `LOOSEST`: seen from nearby, wrong depth moves nothing.
        feather: distance to the border, in pixels, at which a sample has its full weight.
        steep: by how much the angle counts more where depth is a guess (0: not at all), per radian.

    Returns:
        status, u, v (array indices), red, green, blue (0..255), and the four factors of the weight:
        stored confidence with depth agreement, border, edge, and angle, each in [0, 1].
    """
    q = T[view, 2, 0] * X + T[view, 2, 1] * Y + T[view, 2, 2] * Z + T[view, 2, 3]
    if q <= near:
        return OUTSIDE, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    p0 = T[view, 0, 0] * X + T[view, 0, 1] * Y + T[view, 0, 2] * Z + T[view, 0, 3]
    p1 = T[view, 1, 0] * X + T[view, 1, 1] * Y + T[view, 1, 2] * Z + T[view, 1, 3]
    u, v = K[view, 0] * p0 / q + K[view, 2], K[view, 1] * p1 / q + K[view, 3]
    H, W = depth.shape
    if not (u >= 0 and v >= 0 and u <= W - 1 and v <= H - 1):
        return OUTSIDE, u, v, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    iu, iv = min(int(u), W - 2), min(int(v), H - 2)
    fu, fv = u - iu, v - iv
    d0, d1, d2 = X - centre[view, 0], Y - centre[view, 1], Z - centre[view, 2]
    lengths = math.sqrt((X * X + Y * Y + Z * Z) * (d0 * d0 + d1 * d1 + d2 * d2))
    cosine = (X * d0 + Y * d1 + Z * d2) / max(lengths, 1e-12)
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    tolerance = agree
    if slip > 0:
        focal = (K[view, 0] * K[view, 1]) ** 0.5
        tolerance = max(agree, min(LOOSEST, slip / (focal * max(angle, 1e-6))))
    best = 1e30
    sw = sr = sg = sb = edge = conf = 0.0
    farther = nearer = 0
    for b in range(2):
        for a in range(2):
            zn = depth[iv + b, iu + a]
            if zn <= 0:
                continue
            e = (zn - q) / q
            if e > tolerance:
                farther += 1
                continue
            if e < -tolerance:
                nearer += 1
                continue
            best = min(best, abs(e))
            w = (fu if a == 1 else 1 - fu) * (fv if b == 1 else 1 - fv) + 1e-4
            sw += w
            edge += w * edge_distance[iv + b, iu + a]
            conf += w * trust[iv + b, iu + a]
            sr += w * color[iv + b, iu + a, 0]
            sg += w * color[iv + b, iu + a, 1]
            sb += w * color[iv + b, iu + a, 2]
    if sw <= 0:
        status = UNKNOWN
        if nearer > 0:
            status = BEHIND
        elif farther > 0:
            status = LOOKED_THROUGH
        return status, u, v, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    inverse = 1.0 / sw
    ratio = best / (0.5 * tolerance)
    matching = conf * inverse * math.exp(-ratio * ratio)
    margin = min(min(u, v), min(W - 1 - u, H - 1 - v))
    border = min(1.0, (margin + 1) / feather)
    rimmed = min(1.0, (edge * inverse + 0.25) / 3.0)
    facing = falloff(angle, steep)
    # A guessed depth displaces what is seen by its error times the angle: near views err least.
    slip = steep * (1 - conf * inverse) * angle
    facing *= max(0.01, 1.0 / (1.0 + slip * slip))
    return (
        CONFIRMS, u, v, sr * inverse, sg * inverse, sb * inverse, matching, border, rimmed, facing
    )  # fmt: skip


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
        total, weights: sums of w * colour and w.
        energy: (H, W, 3) sums over w, w * luminance and w * its square, without `share`: views
            that do not paint still disagree.
        mass: sum of the agreement alone, without the angle.
        best: largest `facing` factor that contributed.
    """
    H, W = target.shape
    sampling = (K[view, 0] * K[view, 1]) ** 0.5 / (Kt[0] * Kt[1]) ** 0.5
    for y in range(y0, y1):
        for x in range(W):
            Z = target[y, x]
            if Z <= 0:
                continue
            X, Y = (x - Kt[2]) / Kt[0] * Z, (y - Kt[3]) / Kt[1] * Z
            q = T[view, 2, 0] * X + T[view, 2, 1] * Y + T[view, 2, 2] * Z + T[view, 2, 3]
            if q <= near:
                continue
            detail = sampling * Z / q
            if not (detail_low <= detail < detail_high):
                continue
            status, _, _, r, g, b, matching, border, rimmed, facing = attend(
                X,
                Y,
                Z,
                view,
                color,
                depth,
                edge_distance,
                trust,
                K,
                T,
                centre,
                agree,
                feather,
                near,
                steep,
                slip,
            )
            if status != CONFIRMS:
                continue
            agreement = matching * border * rimmed
            w0 = agreement * facing
            if share <= 0:
                w0 = 1.0 if agreement > 0.01 else 0.0
            w = w0 * share if share > 0 else w0
            if w <= 0:
                continue
            r = min(r * gain[view, 0] / 255.0, 1.0)
            g = min(g * gain[view, 1] / 255.0, 1.0)
            b = min(b * gain[view, 2] / 255.0, 1.0)
            luminance = 0.3 * r + 0.6 * g + 0.1 * b
            total[y, x, 0] += w * r
            total[y, x, 1] += w * g
            total[y, x, 2] += w * b
            weights[y, x] += w
            energy[y, x, 0] += w0
            energy[y, x, 1] += w0 * luminance
            energy[y, x, 2] += w0 * luminance * luminance
            mass[y, x] += agreement
            if facing > best[y, x]:
                best[y, x] = facing


@kernel(**FLAGS)
def weigh(target, Kt, view, color, depth, edge_distance, trust, K, T, centre, agree, feather, near,
          steep, slip, out):  # fmt: skip
    """Weight of one view at every pixel of the target, before normalisation."""
    H, W = target.shape
    for y in range(H):
        for x in range(W):
            Z = target[y, x]
            out[y, x] = 0
            if Z <= 0:
                continue
            X, Y = (x - Kt[2]) / Kt[0] * Z, (y - Kt[3]) / Kt[1] * Z
            status, _, _, _, _, _, matching, border, rimmed, facing = attend(
                X,
                Y,
                Z,
                view,
                color,
                depth,
                edge_distance,
                trust,
                K,
                T,
                centre,
                agree,
                feather,
                near,
                steep,
                slip,
            )
            if status == CONFIRMS:
                out[y, x] = matching * border * rimmed * facing


@kernel(**FLAGS)
def probe(X, Y, Z, view, color, depth, edge_distance, trust, K, T, centre, agree, feather, near,
          steep, slip):  # fmt: skip
    """`attend` for one point, callable from Python."""
    return attend(
        X, Y, Z, view, color, depth, edge_distance, trust, K, T, centre, agree, feather, near,
        steep, slip,
    )  # fmt: skip


@kernel(**FLAGS)
def fetch(target, Kt, view, color, depth, edge_distance, trust, K, T, centre, agree, feather, near,
          steep, slip, y0, y1, out, agreement, angle):  # fmt: skip
    """One view fetched at the depth of another: colours 0..255, agreement in [0, 1], angle."""
    H, W = target.shape
    for y in range(y0, y1):
        for x in range(W):
            Z = target[y, x]
            agreement[y, x] = 0
            angle[y, x] = 1
            if Z <= 0:
                continue
            X, Y = (x - Kt[2]) / Kt[0] * Z, (y - Kt[3]) / Kt[1] * Z
            status, _, _, r, g, b, matching, border, rimmed, facing = attend(
                X,
                Y,
                Z,
                view,
                color,
                depth,
                edge_distance,
                trust,
                K,
                T,
                centre,
                agree,
                feather,
                near,
                steep,
                slip,
            )
            if status != CONFIRMS:
                continue
            out[y, x, 0] = r
            out[y, x, 1] = g
            out[y, x, 2] = b
            agreement[y, x] = matching * border * rimmed
            angle[y, x] = WIDE * (facing ** (-1.0 / 6.0) - 1.0)


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
