"""Compiled loops of `planes` and `rims`. Disparity `d` is 0 where unknown; `K` counts by index."""

import math

import numpy as np

from worldstereo._core.compiled import kernel


@kernel
def support(planes, x, y, d, tolerance, out):
    """How many samples lie on each of some planes; on vectors, since nothing branches."""
    for k in range(len(planes)):
        a, b, c = planes[k, 0], planes[k, 1], planes[k, 2]
        n = 0
        for i in range(len(d)):
            n += abs(a * x[i] + b * y[i] + c - d[i]) < tolerance * d[i]
        out[k] = n


@kernel
def fit(plane, x, y, d, free, normal, tolerance, tilt, member):
    """Least squares over the free samples on a plane, repeated; `member` is those in the end.

    `plane` is moved; `normal` is that of the surface around each sample.
    """
    for turn in range(5):
        slack = tolerance * (2.0 if turn < 2 else 1.5 if turn == 2 else 1.0)
        n = 0
        xx, xy, yy, sx, sy = 0.0, 0.0, 0.0, 0.0, 0.0
        dx, dy, sd = 0.0, 0.0, 0.0
        for i in range(len(d)):
            if free[i]:
                e = plane[0] * x[i] + plane[1] * y[i] + plane[2] - d[i]
                if abs(e) < slack * d[i]:
                    n += 1
                    xx += x[i] * x[i]
                    xy += x[i] * y[i]
                    yy += y[i] * y[i]
                    sx += x[i]
                    sy += y[i]
                    dx += d[i] * x[i]
                    dy += d[i] * y[i]
                    sd += d[i]
        if n < 10:
            break
        mx, my, md = sx / n, sy / n, sd / n
        xx, xy, yy = xx / n - mx * mx, xy / n - mx * my, yy / n - my * my
        dx, dy = dx / n - md * mx, dy / n - md * my
        det = xx * yy - xy * xy
        if det < 1e-6 * (xx + yy) * (xx + yy):  # samples on a line
            break
        plane[0] = (dx * yy - dy * xy) / det
        plane[1] = (dy * xx - dx * xy) / det
        plane[2] = md - plane[0] * mx - plane[1] * my
    size = math.sqrt(plane[0] ** 2 + plane[1] ** 2 + plane[2] ** 2)
    for i in range(len(d)):
        e = plane[0] * x[i] + plane[1] * y[i] + plane[2] - d[i]
        facing = plane[0] * normal[i, 0] + plane[1] * normal[i, 1] + plane[2] * normal[i, 2]
        member[i] = free[i] and abs(e) < tolerance * d[i] and facing > tilt * size


@kernel
def surroundings(
    d, distance, hole, K, planes, near, far, agree, behind, size, ring, edge, on, beyond
):
    """Counts for each hole: its pixels, what is known around it, and how that lies to each plane.

    Args:
        distance, hole: of every known pixel to the nearest hole, and which that is.
        near, far: in pixels, up to where a pixel belongs to the edge and to the ring.
    """
    H, W = d.shape
    for r in range(H):
        for s in range(W):
            h = hole[r, s]
            if distance[r, s] == 0:
                size[h] += 1
                continue
            if distance[r, s] > far or d[r, s] <= 0:
                continue
            ring[h] += 1
            close = distance[r, s] <= near
            if close:
                edge[h] += 1
            x, y, own = (s - K[2]) / K[0], (r - K[3]) / K[1], d[r, s]
            for i in range(len(planes)):
                q = planes[i, 0] * x + planes[i, 1] * y + planes[i, 2]
                if close and abs(q - own) < agree * own:
                    on[h, i] += 1
                if own < q * (1 - behind):
                    beyond[h, i] += 1


@kernel
def _pixel_in(X, Y, Z, T, K, height, width):
    """Column and row of a view that a point falls into, and its depth there; -1, -1 outside."""
    q = T[2, 0] * X + T[2, 1] * Y + T[2, 2] * Z + T[2, 3]
    if q <= 1e-6 * Z:
        return -1, -1, q
    p0 = T[0, 0] * X + T[0, 1] * Y + T[0, 2] * Z + T[0, 3]
    p1 = T[1, 0] * X + T[1, 1] * Y + T[1, 2] * Z + T[1, 3]
    u, v = math.floor(K[0] * p0 / q + K[2] + 0.5), math.floor(K[1] * p1 / q + K[3] + 0.5)
    if u < 0 or v < 0 or u >= width or v >= height:
        return -1, -1, q
    return int(u), int(v), q


@kernel
def _front(x, y, serves, planes, centres, reaches):
    """Disparity of the nearest plane that reaches a ray, and of the nearest that goes too far."""
    best, hidden = 0.0, 0.0
    for i in range(len(planes)):
        if not serves[i]:
            continue
        q = planes[i, 0] * x + planes[i, 1] * y + planes[i, 2]
        if q <= 0:
            continue
        apart = (
            (x / q - centres[i, 0]) ** 2
            + (y / q - centres[i, 1]) ** 2
            + (1 / q - centres[i, 2]) ** 2
        )
        if apart < reaches[i] * reaches[i]:
            best = max(best, q)
        else:
            hidden = max(hidden, q)
    return best, hidden


@kernel
def continue_planes(
    d, hole, nearest, serves, K, planes, centres, reaches, min_depth_3x3, offset, size, Kv, back,
    agree, behind, y0, y1, out,
):  # fmt: skip
    """Depth of the plane that shows in each pixel of a hole; 0 where none can be told.

    Args:
        nearest: the known pixel next to each, counted along rows.
        serves: (holes, n) whether a plane continues into a hole.
        min_depth_3x3: the views' 3x3 minima of depth, one after the other from `offset`, of `size`.
        back: (views, 3, 4) from the target's axes to theirs.
    """
    W = d.shape[1]
    for r in range(y0, y1):
        for s in range(W):
            h = hole[r, s]
            if d[r, s] > 0:
                continue
            any_plane = False
            for i in range(len(planes)):
                any_plane |= serves[h, i]
            if not any_plane:
                continue
            x, y = (s - K[2]) / K[0], (r - K[3]) / K[1]
            best, hidden = _front(x, y, serves[h], planes, centres, reaches)
            if best <= 0 or hidden > best * (1 + agree):
                continue
            Z = 1 / best
            X, Y = x * Z, y * Z
            through, looked = False, False
            for i in range(len(offset)):
                u, v, q = _pixel_in(X, Y, Z, back[i], Kv[i], size[i, 0], size[i, 1])
                if u < 0:
                    continue
                low = min_depth_3x3[offset[i] + v * size[i, 1] + u]
                if low > q * (1 + behind):
                    through = True
                elif low > 0:  # at the plane itself, or at something before it
                    looked = True
            if through:
                continue
            if not looked:
                at = nearest[r, s]
                other = d[at // W, at % W]
                x, y = (at % W - K[2]) / K[0], (at // W - K[3]) / K[1]
                there = _front(x, y, serves[h], planes, centres, reaches)[0]
                if abs(there - other) >= agree * other:
                    continue
            out[r, s] = np.float32(Z)


@kernel
def clear_of_edges(y, x, depth, K, seen, edge_distance, Kv, T, agree, least, out):
    """Whether a view shows the points of some pixels, each at least so far from depth edges.

    Args:
        seen, edge_distance: the view's depth, and its distance to the nearest depth edge in pixels.
        T: (3, 4) from the target's axes to the view's.
    """
    for k in range(len(y)):
        Z = depth[y[k], x[k]]
        if Z <= 0:
            continue
        X, Y = (x[k] - K[2]) / K[0] * Z, (y[k] - K[3]) / K[1] * Z
        u, v, q = _pixel_in(X, Y, Z, T, Kv, seen.shape[0], seen.shape[1])
        if u >= 0:
            out[k] = abs(seen[v, u] - q) < agree * q and edge_distance[v, u] >= least
