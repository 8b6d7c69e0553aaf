"""Compiled truncated signed distances in sparse blocks. Distances in units of the truncation.

A block is 8 x 8 x 8 samples; sample (i, j, k) lies at `voxel * (i, j, k)` in the world. A sample's
value depends on the views in their order and on nothing else: neither on threads nor on regions.
"""

import math

import numpy as np

from worldstereo._core.compiled import kernel

BLOCK = 8
OFFSET = 1 << 20  # block coordinates from -2^20 to 2^20 - 1, 21 bits each
MADE = 64  # confidence in 1/255 below which depth was generated or completed, not measured
OCTAVES = 64  # rows of a table of noise, by the power of two above the depth


@kernel
def block_keys(depth, weight, K, c2w, voxel, reach, stride, out):
    """Keys of the blocks that rays cross within `reach` of their depth, twins in a row dropped."""
    n = 0
    size = voxel * BLOCK
    h, w = depth.shape
    last = np.int64(-1)
    for y in range(stride // 2, h, stride):
        for x in range(stride // 2, w, stride):
            z = depth[y, x]
            if z <= 0 or weight[y, x] == 0:
                continue
            rx = (x + 0.5 - K[2]) / K[0]
            ry = (y + 0.5 - K[3]) / K[1]
            length = math.sqrt(rx * rx + ry * ry + 1.0)
            steps = int(math.ceil(4 * reach / size)) + 1
            for s in range(steps + 1):
                t = z + (2.0 * s / steps - 1.0) * reach / length
                px = c2w[0, 0] * rx * t + c2w[0, 1] * ry * t + c2w[0, 2] * t + c2w[0, 3]
                py = c2w[1, 0] * rx * t + c2w[1, 1] * ry * t + c2w[1, 2] * t + c2w[1, 3]
                pz = c2w[2, 0] * rx * t + c2w[2, 1] * ry * t + c2w[2, 2] * t + c2w[2, 3]
                i = np.int64(math.floor(px / size)) + OFFSET
                j = np.int64(math.floor(py / size)) + OFFSET
                k = np.int64(math.floor(pz / size)) + OFFSET
                if min(i, j, k) < 0 or max(i, j, k) >= 2 * OFFSET:
                    continue
                key = (i << 42) | (j << 21) | k
                if key != last:
                    last = key
                    if n == len(out):
                        return -1
                    out[n] = key
                    n += 1
    return n


@kernel
def facing(depth, K, out):
    """|cos| between ray and surface in 1/255, from neighbours that belong to the same surface.

    Slopes are differences of disparity, which is linear on a plane; of two neighbours the one that
    is nearer in disparity counts. 0 depth gives 0.
    """
    h, w = depth.shape
    for y in range(h):
        for x in range(w):
            z = depth[y, x]
            out[y, x] = 0
            if z <= 0:
                continue
            d = 1.0 / z
            a = _slope(depth, y, x, 0, 1, d)
            b = _slope(depth, y, x, 1, 0, d)
            u = x + 0.5 - K[2]
            v = y + 0.5 - K[3]
            nx = a * K[0]
            ny = b * K[1]
            nz = d - a * u - b * v
            rx = u / K[0]
            ry = v / K[1]
            dot = abs(nx * rx + ny * ry + nz)
            norm = math.sqrt((nx * nx + ny * ny + nz * nz) * (rx * rx + ry * ry + 1.0))
            out[y, x] = max(1, int(255.0 * dot / max(norm, 1e-30) + 0.5))


@kernel
def _slope(depth, y, x, dy, dx, d):
    """Per pixel change of disparity; the smaller of both sides, 0 without a neighbour."""
    h, w = depth.shape
    best = np.inf
    for sign in (-1, 1):
        # two steps where they can be had: half the noise of one
        for reach in (2, 1):
            yy = y + sign * reach * dy
            xx = x + sign * reach * dx
            if 0 <= yy < h and 0 <= xx < w and depth[yy, xx] > 0:
                s = sign * (1.0 / depth[yy, xx] - d) / reach
                if abs(s) < abs(best):
                    best = s
                break
    return best if best < np.inf else 0.0


@kernel
def disparity_noise(depth, weight, tear, total, count):
    """Adds to `total` the absolute second differences of disparity of what was measured, to `count`
    how many they are, both (OCTAVES,) by depth.

    Disparity is linear on a plane, so that only noise and the sensor's steps remain. Three pixels
    that a depth edge tears apart are left out.
    """
    h, w = depth.shape
    for y in range(1, h - 1):
        for x in range(1, w - 1):
            z = depth[y, x]
            if z <= 0 or weight[y, x] < MADE:
                continue
            for axis in range(2):
                a = depth[y - axis, x - 1 + axis]
                b = depth[y + axis, x + 1 - axis]
                low, high = min(a, b, z), max(a, b, z)
                sure = min(weight[y - axis, x - 1 + axis], weight[y + axis, x + 1 - axis]) >= MADE
                if low > 0 and sure and high - low < tear * low:
                    total[octave(z)] += abs(1.0 / a - 2.0 / z + 1.0 / b)
                    count[octave(z)] += 1


@kernel
def octave(depth):
    """Row of the noise table for a depth in scene units."""
    return min(max(math.frexp(depth)[1] + OCTAVES // 2, 0), OCTAVES - 1)


@kernel(error_model="numpy")
def integrate_region(
    keys, low, samples, voxel, reach, depths, weights, angles, noise, lens, w2c, unit, tear,
    value, total, made, resolved,
):  # fmt: skip
    """Fill `value` (mean distance / reach), `total` (weight), `made` (weight of what a generator or
    a completion said) and `resolved` (see below) for the samples low .. low + samples - 1 of the
    blocks `keys`.

    A view adds to a sample what its depth at the sample's pixel says: within `reach` in front of or
    behind the surface the distance to the tangent plane, before it "free". Weight: confidence
    squared, angle, and the inverse square of depth. A pixel whose disparity is torn from its
    neighbours is read without interpolation and carves only what all four neighbours look through.

    `resolved` is the inverse variance of what was measured within `reach`, in units of 1 / reach^2:
    below 1 the views together do not know a surface there to within `reach`.
    """
    n = len(depths)
    half = 0.5 * voxel * (BLOCK - 1)
    radius = half * math.sqrt(3.0)
    for b in range(len(keys)):
        key = keys[b]
        bi = ((key >> 42) - OFFSET) * BLOCK
        bj = (((key >> 21) & (2 * OFFSET - 1)) - OFFSET) * BLOCK
        bk = ((key & (2 * OFFSET - 1)) - OFFSET) * BLOCK
        i0, i1 = max(0, bi - low[0]), min(samples, bi - low[0] + BLOCK)
        j0, j1 = max(0, bj - low[1]), min(samples, bj - low[1] + BLOCK)
        k0, k1 = max(0, bk - low[2]), min(samples, bk - low[2] + BLOCK)
        cx = voxel * bi + half
        cy = voxel * bj + half
        cz = voxel * bk + half
        for f in range(n):
            T = w2c[f]
            fx, fy, u0, v0 = lens[f, 0], lens[f, 1], lens[f, 2], lens[f, 3]
            z = T[2, 0] * cx + T[2, 1] * cy + T[2, 2] * cz + T[2, 3]
            if z < -radius:
                continue
            depth = depths[f]
            h, w = depth.shape
            if z > radius:  # wholly outside of one side of the picture?
                x = T[0, 0] * cx + T[0, 1] * cy + T[0, 2] * cz + T[0, 3]
                y = T[1, 0] * cx + T[1, 1] * cy + T[1, 2] * cz + T[1, 3]
                left, right = -u0 / fx, (w - u0) / fx
                top, bottom = -v0 / fy, (h - v0) / fy
                if (
                    x - left * z < -radius * math.sqrt(1 + left * left)
                    or x - right * z > radius * math.sqrt(1 + right * right)
                    or y - top * z < -radius * math.sqrt(1 + top * top)
                    or y - bottom * z > radius * math.sqrt(1 + bottom * bottom)
                ):
                    continue
            weight, angle = weights[f], angles[f]
            for i in range(i0, i1):
                px = voxel * (low[0] + i)
                for j in range(j0, j1):
                    py = voxel * (low[1] + j)
                    for k in range(k0, k1):
                        pz = voxel * (low[2] + k)
                        z = T[2, 0] * px + T[2, 1] * py + T[2, 2] * pz + T[2, 3]
                        if z <= 0.05 * voxel:
                            continue
                        xn = (T[0, 0] * px + T[0, 1] * py + T[0, 2] * pz + T[0, 3]) / z
                        yn = (T[1, 0] * px + T[1, 1] * py + T[1, 2] * pz + T[1, 3]) / z
                        u = fx * xn + u0 - 0.5
                        v = fy * yn + v0 - 0.5
                        if not (u > -0.5 and v > -0.5 and u < w - 0.5 and v < h - 0.5):
                            continue
                        ui = min(max(int(u + 0.5), 0), w - 1)
                        vi = min(max(int(v + 0.5), 0), h - 1)
                        near = depth[vi, ui]
                        q = weight[vi, ui]
                        if near <= 0 or q == 0:
                            continue
                        length = math.sqrt(xn * xn + yn * yn + 1.0)
                        # cheap ends first: far in front is free, far behind is unknown
                        if (near - z) * length < -8.0 * reach:
                            continue
                        x0 = min(max(int(math.floor(u)), 0), w - 2)
                        y0 = min(max(int(math.floor(v)), 0), h - 2)
                        d00, d01 = depth[y0, x0], depth[y0, x0 + 1]
                        d10, d11 = depth[y0 + 1, x0], depth[y0 + 1, x0 + 1]
                        lo = min(min(d00, d01), min(d10, d11))
                        hi = max(max(d00, d01), max(d10, d11))
                        whole = lo > 0 and hi - lo < tear * lo
                        surface = near
                        if whole:  # disparity is linear on a plane
                            a = min(max(u - x0, 0.0), 1.0)
                            c = min(max(v - y0, 0.0), 1.0)
                            surface = 1.0 / (
                                (1 - c) * ((1 - a) / d00 + a / d01) + c * ((1 - a) / d10 + a / d11)
                            )
                        cosine = angle[vi, ui] / 255.0
                        distance = (surface - z) * length * max(cosine, 0.1)
                        if distance < -reach:
                            continue
                        certain = (q / 255.0) * (q / 255.0) * (unit / near) * (unit / near)
                        share = certain * cosine
                        if distance >= reach:
                            if not whole and (lo <= 0 or (lo - z) * length < reach):
                                continue
                            distance = reach
                        elif distance < -0.5 * reach:  # behind a surface, less and less is known
                            share *= 2.0 * (1.0 + distance / reach)
                        if not whole:
                            share *= 0.25
                        value[i, j, k] += share * distance / reach
                        total[i, j, k] += share
                        if q < MADE:
                            made[i, j, k] += share
                        if distance < reach:
                            spread = noise[f, octave(near)] * near * near
                            sure = 1.0 if q < MADE else min(reach / max(spread, 1e-30), 1.0)
                            resolved[i, j, k] += sure * sure
    for i in range(samples):
        for j in range(samples):
            for k in range(samples):
                if total[i, j, k] > 0:
                    s = value[i, j, k] / total[i, j, k]
                    # never exactly 0: a vertex lies inside an edge, and neighbours agree on which
                    if abs(s) < 1e-3:
                        s = 1e-3 if s >= 0 else -1e-3
                    value[i, j, k] = s


@kernel
def crossing_cells(value, total, resolved, out):
    """(n, n, n) cells whose eight corners are known and do not all lie on one side, and of which
    the views resolved one."""
    n = value.shape[0] - 1
    found = 0
    for i in range(n):
        for j in range(n):
            for k in range(n):
                low = np.inf
                high = -np.inf
                known = True
                sure = 0.0
                for c in range(8):
                    a, b, d = i + (c >> 2), j + ((c >> 1) & 1), k + (c & 1)
                    if total[a, b, d] <= 0:
                        known = False
                        break
                    sure = max(sure, resolved[a, b, d])
                    s = value[a, b, d]
                    low = min(low, s)
                    high = max(high, s)
                # a jump from free to deep inside is no surface: none was measured between
                inside = known and low < 0 < high and sure >= 1.0
                out[i, j, k] = inside
                found += inside
    return found
