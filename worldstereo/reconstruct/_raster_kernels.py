"""Compiled triangle rasteriser and colour gathering. Pixel centres at (0.5, 0.5)."""

import math

import numpy as np

from worldstereo._core.compiled import kernel


@kernel(error_model="numpy")
def draw(points, faces, lens, near, depth, index, weights):
    """Nearest face of each pixel: depth, its number (-1: none) and the perspective-correct weights
    of its three corners. `points` are in the camera's frame. Both sides of a face are drawn; a face
    that comes nearer than `near` is left out. Equal depths go to the first face.
    """
    h, w = depth.shape
    fx, fy, cx, cy = lens[0], lens[1], lens[2], lens[3]
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        za, zb, zc = points[a, 2], points[b, 2], points[c, 2]
        if not (za > near and zb > near and zc > near):
            continue
        xa, ya = fx * points[a, 0] / za + cx - 0.5, fy * points[a, 1] / za + cy - 0.5
        xb, yb = fx * points[b, 0] / zb + cx - 0.5, fy * points[b, 1] / zb + cy - 0.5
        xc, yc = fx * points[c, 0] / zc + cx - 0.5, fy * points[c, 1] / zc + cy - 0.5
        left, right = min(xa, min(xb, xc)), max(xa, max(xb, xc))
        top, bottom = min(ya, min(yb, yc)), max(ya, max(yb, yc))
        if not (right >= 0 and bottom >= 0 and left <= w - 1 and top <= h - 1):
            continue
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if area == 0:
            continue
        x0, x1 = max(0, int(math.ceil(left))), min(w - 1, int(math.floor(right)))
        y0, y1 = max(0, int(math.ceil(top))), min(h - 1, int(math.floor(bottom)))
        ia, ib, ic = 1.0 / za, 1.0 / zb, 1.0 / zc
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                wa = ((xb - x) * (yc - y) - (xc - x) * (yb - y)) / area
                wb = ((xc - x) * (ya - y) - (xa - x) * (yc - y)) / area
                wc = 1.0 - wa - wb
                if wa < -1e-6 or wb < -1e-6 or wc < -1e-6:
                    continue
                d = wa * ia + wb * ib + wc * ic
                z = 1.0 / d
                if z < depth[y, x]:
                    depth[y, x] = z
                    index[y, x] = f
                    weights[y, x, 0] = wa * ia * z
                    weights[y, x, 1] = wb * ib * z
                    weights[y, x, 2] = wc * ic * z


@kernel(error_model="numpy")
def gather(points, normals, first, last, w2c, lens, color, gain, depth, feather, slack, power,
           footprint, mean, total):  # fmt: skip
    """Add what one view says about the colour of `points[first:last]`.

    Weight: (cos / z * footprint)^power times the feather of the pixel, so that the views that see
    a point most sharply decide and change over without a seam. Occlusion: the mesh drawn from the
    view must not lie before the point by more than `slack`.
    """
    _, h, w = color.shape
    cx = -(w2c[0, 0] * w2c[0, 3] + w2c[1, 0] * w2c[1, 3] + w2c[2, 0] * w2c[2, 3])
    cy = -(w2c[0, 1] * w2c[0, 3] + w2c[1, 1] * w2c[1, 3] + w2c[2, 1] * w2c[2, 3])
    cz = -(w2c[0, 2] * w2c[0, 3] + w2c[1, 2] * w2c[1, 3] + w2c[2, 2] * w2c[2, 3])
    for p in range(first, last):
        x, y, z0 = points[p, 0], points[p, 1], points[p, 2]
        z = w2c[2, 0] * x + w2c[2, 1] * y + w2c[2, 2] * z0 + w2c[2, 3]
        if z <= 0:
            continue
        u = lens[0] * (w2c[0, 0] * x + w2c[0, 1] * y + w2c[0, 2] * z0 + w2c[0, 3]) / z + lens[2]
        v = lens[1] * (w2c[1, 0] * x + w2c[1, 1] * y + w2c[1, 2] * z0 + w2c[1, 3]) / z + lens[3]
        u -= 0.5
        v -= 0.5
        if not (u >= 0 and v >= 0 and u <= w - 1 and v <= h - 1):
            continue
        ui, vi = int(u + 0.5), int(v + 0.5)
        f = feather[vi, ui]
        if f <= 0:
            continue
        dx, dy, dz = cx - x, cy - y, cz - z0
        length = math.sqrt(dx * dx + dy * dy + dz * dz)
        cosine = (normals[p, 0] * dx + normals[p, 1] * dy + normals[p, 2] * dz) / length
        if cosine < 0.05:
            continue
        # on an oblique surface depth changes within the pixel
        if z - depth[vi, ui] > slack + 1.5 * z / lens[0] / cosine:
            continue
        sharp = (cosine * footprint / (z / lens[0])) ** power
        share = sharp * f
        x0, y0 = min(int(u), w - 2), min(int(v), h - 2)
        a, b = u - x0, v - y0
        for k in range(3):
            value = (1 - b) * ((1 - a) * color[k, y0, x0] + a * color[k, y0, x0 + 1]) + b * (
                (1 - a) * color[k, y0 + 1, x0] + a * color[k, y0 + 1, x0 + 1]
            )
            mean[p, k] += share * value * gain[k] / 255.0
        total[p] += share


@kernel(error_model="numpy")
def texels(uv, faces, size, first, last, face_of, weights):
    """Face and corner weights of the texels of `faces[first:last]` in a square picture.

    A texel belongs to the face that covers its centre, else to one that comes within a texel of it,
    at that face's nearest point: a face narrower than a texel, and the rim that filtering reads,
    get their own colours and not those of a chart that happens to lie beside them. -1 elsewhere.
    """
    apart = np.ones((size, size), np.float32)  # of a texel's centre from its face
    for f in range(first, last):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        xa, ya = uv[a, 0] * size - 0.5, (1 - uv[a, 1]) * size - 0.5
        xb, yb = uv[b, 0] * size - 0.5, (1 - uv[b, 1]) * size - 0.5
        xc, yc = uv[c, 0] * size - 0.5, (1 - uv[c, 1]) * size - 0.5
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if area == 0:
            continue
        x0, x1 = max(0, int(min(xa, min(xb, xc)))), min(size - 1, int(max(xa, max(xb, xc))) + 1)
        y0, y1 = max(0, int(min(ya, min(yb, yc)))), min(size - 1, int(max(ya, max(yb, yc))) + 1)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                wa = ((xb - x) * (yc - y) - (xc - x) * (yb - y)) / area
                wb = ((xc - x) * (ya - y) - (xa - x) * (yc - y)) / area
                wc = 1.0 - wa - wb
                if wa < -1e-6 or wb < -1e-6 or wc < -1e-6:
                    continue
                face_of[y, x] = f
                apart[y, x] = 0.0
                weights[y, x, 0] = wa
                weights[y, x, 1] = wb
                weights[y, x, 2] = wc
    for f in range(first, last):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        xa, ya = uv[a, 0] * size - 0.5, (1 - uv[a, 1]) * size - 0.5
        xb, yb = uv[b, 0] * size - 0.5, (1 - uv[b, 1]) * size - 0.5
        xc, yc = uv[c, 0] * size - 0.5, (1 - uv[c, 1]) * size - 0.5
        x0, x1 = max(0, int(min(xa, min(xb, xc)))), min(size - 1, int(max(xa, max(xb, xc))) + 1)
        y0, y1 = max(0, int(min(ya, min(yb, yc)))), min(size - 1, int(max(ya, max(yb, yc))) + 1)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                for edge in range(3):
                    xp, yp, xq, yq = xa, ya, xb, yb
                    if edge == 1:
                        xp, yp, xq, yq = xb, yb, xc, yc
                    elif edge == 2:
                        xp, yp, xq, yq = xc, yc, xa, ya
                    dx, dy = xq - xp, yq - yp
                    long = dx * dx + dy * dy
                    t = 0.0
                    if long > 0:
                        t = min(max(((x - xp) * dx + (y - yp) * dy) / long, 0.0), 1.0)
                    off = math.hypot(x - xp - t * dx, y - yp - t * dy)
                    if off < apart[y, x]:
                        apart[y, x] = off
                        face_of[y, x] = f
                        weights[y, x, edge] = 1.0 - t
                        weights[y, x, (edge + 1) % 3] = t
                        weights[y, x, (edge + 2) % 3] = 0.0
