"""Compiled search for the entries that correspond to each query, without any (N, M) table.

Queries are listed in the image cells that their windows touch; every correspondence is projected
once and tested against the queries of its cell. Blocks of entries whose box cannot reach a query
are skipped. All arithmetic is double precision and elementwise in the order of the torch twin
(`_stereo_memory.matches.torch_matches`), so both give the same pairs.
"""

import math

import numpy as np

from worldstereo._core.compiled import kernel

BLOCK = 64  # entries that share one bounding box
MAX_CELLS = 1024  # image cells a block is looked up in; testing its points costs as much


@kernel
def block_boxes(points, confidence, threshold, size, block, boxes):
    """Bounds of the accepted correspondences of the listed blocks; an empty one gets min > max."""
    for n in range(block.size):
        b = block[n]
        for axis in range(3):
            boxes[b, axis] = np.inf
            boxes[b, 3 + axis] = -np.inf
        for i in range(b * BLOCK, min(size, (b + 1) * BLOCK)):
            for s in range(points.shape[1]):
                if confidence[i, s] >= threshold:
                    for axis in range(3):
                        x = points[i, s, axis]
                        boxes[b, axis] = min(boxes[b, axis], x)
                        boxes[b, 3 + axis] = max(boxes[b, 3 + axis], x)


@kernel
def list_queries(cells, gw, ptr, listed, low, high, z_low, z_high):
    """Writes each query into the cells `cells[q] = (u0, u1, v0, v1)`; ptr and depth range per cell.

    Called first with an empty `listed` to count, then with one of the counted size.
    """
    fill = listed.size > 0
    for q in range(cells.shape[0]):
        for y in range(cells[q, 2], cells[q, 3] + 1):
            for x in range(cells[q, 0], cells[q, 1] + 1):
                c = y * gw + x
                if fill:
                    listed[ptr[c]] = q
                    ptr[c] += 1
                else:
                    ptr[c + 1] += 1
                    z_low[c] = min(z_low[c], low[q])
                    z_high[c] = max(z_high[c], high[q])


@kernel
def _block_is_out(box, camera, reach, grid, z_low, z_high):
    """Whether nothing inside the box can meet a query: by pixels and depths, then cell by cell."""
    if not box[0] <= box[3]:
        return True
    ulo, uhi = np.inf, -np.inf
    vlo, vhi = np.inf, -np.inf
    zlo, zhi = np.inf, -np.inf
    behind = False
    for corner in range(8):
        dx = box[0 if corner & 1 else 3] - camera[9]
        dy = box[1 if corner & 2 else 4] - camera[10]
        dz = box[2 if corner & 4 else 5] - camera[11]
        x = camera[0] * dx + camera[3] * dy + camera[6] * dz
        y = camera[1] * dx + camera[4] * dy + camera[7] * dz
        z = camera[2] * dx + camera[5] * dy + camera[8] * dz
        zlo = min(zlo, z)
        zhi = max(zhi, z)
        if z > 0:
            u = (camera[12] * x + camera[13] * y) / z + camera[14]
            v = camera[15] * y / z + camera[16]
            ulo, uhi = min(ulo, u), max(uhi, u)
            vlo, vhi = min(vlo, v), max(vhi, v)
        else:
            behind = True
    slip = 1e-6 * max(abs(zlo), abs(zhi))  # rounding must never lose a point
    zlo, zhi = zlo - slip, zhi + slip
    if zhi < reach[4] or zlo > reach[5] or zhi <= 0:
        return True
    if behind:
        return False
    edge = 1e-3
    ulo, uhi, vlo, vhi = ulo - edge, uhi + edge, vlo - edge, vhi + edge
    if uhi < reach[0] or ulo > reach[1] or vhi < reach[2] or vlo > reach[3]:
        return True
    x0, x1 = _cell(ulo, grid[0], grid[2], grid[3]), _cell(uhi, grid[0], grid[2], grid[3])
    y0, y1 = _cell(vlo, grid[1], grid[2], grid[4]), _cell(vhi, grid[1], grid[2], grid[4])
    if (x1 - x0 + 1) * (y1 - y0 + 1) > MAX_CELLS:
        return False
    for y in range(y0, y1 + 1):
        for x in range(x0, x1 + 1):
            c = y * int(grid[3]) + x
            if zhi >= z_low[c] and zlo <= z_high[c]:
                return False
    return True  # a surface hides it from every query, or it lies before all of them


@kernel(inline="always")
def _cell(value, start, side, cells):
    return int(min(max((value - start) / side, 0.0), cells - 1.0))


@kernel
def match_entries(
    points, confidence, normal, level, boxes, span, camera, rules, reach,
    grid, ptr, listed, z_low, z_high, uq, vq, zq, occluder, counts, misses,
):  # fmt: skip
    """Pairs (query, slot, code) of the blocks `span`; code 5 is accepted, 1 to 4 a near miss.

    Args:
        rules: half window, threshold, depth tolerance, slack, level gain, level cap, flattest,
            slope cap; see `_stereo_memory.matches`.
        reach: pixels and depths that any query can reach: u_min, u_max, v_min, v_max, z_min, z_max.
        grid: u and v of the first cell, cell size, cells across, cells down.
        occluder: (h, w) depth, inf in holes; and its pixels per image pixel in `grid[5:7]`.
        counts: (N,) incremented per query.
        misses: also report correspondences within twice the window that are refused.
    """
    half, threshold, tolerance, slack_gain = rules[0], rules[1], rules[2], rules[3]
    level_gain, level_cap, flattest, slope_cap = rules[4], rules[5], rules[6], rules[7]
    u0, v0, side = grid[0], grid[1], grid[2]
    gw, gh = int(grid[3]), int(grid[4])
    focal = 0.5 * (camera[12] + camera[15])
    near = 2.0 if misses else 1.0
    room = 1024
    out_q = np.empty(room, np.int32)
    out_slot = np.empty(room, np.int32)
    out_code = np.empty(room if misses else 0, np.int8)
    found = 0
    stamp = np.full(uq.size, -1, np.int32)  # the last entry this query was paired with, and where
    place = np.zeros(uq.size if misses else 0, np.int64)
    oriented, levelled = normal.shape[0] > 0, level.shape[0] > 0
    size = points.shape[0]
    for b in range(span[0], span[1]):
        if not misses and _block_is_out(boxes[b], camera, reach, grid, z_low, z_high):
            continue
        for i in range(b * BLOCK, min(size, (b + 1) * BLOCK)):
            for s in range(points.shape[1]):
                sure = np.float64(confidence[i, s])
                trusted = confidence[i, s] >= threshold
                if not trusted and not misses:
                    continue
                dx = points[i, s, 0] - camera[9]
                dy = points[i, s, 1] - camera[10]
                dz = points[i, s, 2] - camera[11]
                z = camera[2] * dx + camera[5] * dy + camera[8] * dz
                if not (z > 0 and z >= reach[4] and z <= reach[5]):
                    continue
                x = camera[0] * dx + camera[3] * dy + camera[6] * dz
                y = camera[1] * dx + camera[4] * dy + camera[7] * dz
                u = (camera[12] * x + camera[13] * y) / z + camera[14]
                v = camera[15] * y / z + camera[16]
                if not (u >= reach[0] and u <= reach[1] and v >= reach[2] and v <= reach[3]):
                    continue
                cell = _cell(v, v0, side, gh) * gw + _cell(u, u0, side, gw)
                if z < z_low[cell] or z > z_high[cell]:
                    continue
                slack = 1.0 + slack_gain * (1.0 - sure)
                wide = half * slack
                if levelled:
                    wide = wide * min(1.0 + level_gain * max(level[i], 0), level_cap)
                hu, hv, relative = wide, wide, tolerance * slack
                if oriented:
                    nx = np.float64(normal[i, 0])
                    ny = np.float64(normal[i, 1])
                    nz = np.float64(normal[i, 2])
                    if nx != 0 or ny != 0 or nz != 0:
                        # The unit disc of the surface, seen along the ray, in image directions.
                        a = camera[0] * nx + camera[3] * ny + camera[6] * nz
                        e = camera[1] * nx + camera[4] * ny + camera[7] * nz
                        c = camera[2] * nx + camera[5] * ny + camera[8] * nz
                        length = math.sqrt(x * x + y * y + z * z)
                        rx, ry, rz = x / length, y / length, z / length
                        along = a * rx + e * ry + c * rz
                        ax = (a - rx * along) / math.sqrt(max(1.0 - rx * rx, 1e-12))
                        ay = (e - ry * along) / math.sqrt(max(1.0 - ry * ry, 1e-12))
                        least = min(wide, 1.0)
                        hu = max(wide * max(math.sqrt(max(1.0 - ax * ax, 0.0)), flattest), least)
                        hv = max(wide * max(math.sqrt(max(1.0 - ay * ay, 0.0)), flattest), least)
                        steep = math.sqrt(max(1.0 - along * along, 0.0)) / max(abs(along), 1e-6)
                        relative = relative + min(wide / focal * steep, slope_cap)
                seen, hidden = False, False
                for e in range(ptr[cell], ptr[cell + 1]):
                    q = listed[e]
                    du, dv = abs(u - uq[q]), abs(v - vq[q])
                    if not (du <= hu * near and dv <= hv * near):
                        continue
                    inside = du <= hu and dv <= hv
                    agrees = abs(z - zq[q]) <= zq[q] * relative
                    if not misses and not (inside and agrees):
                        continue
                    if not seen:
                        seen = True
                        if occluder.shape[0] > 0:
                            pu, pv = math.floor(u * grid[5]), math.floor(v * grid[6])
                            if 0 <= pu < occluder.shape[1] and 0 <= pv < occluder.shape[0]:
                                hidden = z > occluder[int(pv), int(pu)] * (1.0 + relative)
                    if hidden and not misses:
                        break
                    code = 5
                    if not trusted:
                        code = 1
                    elif not inside:
                        code = 2
                    elif not agrees:
                        code = 3
                    elif hidden:
                        code = 4
                    if stamp[q] == i:
                        if misses:
                            out_code[place[q]] = max(out_code[place[q]], code)
                        continue
                    stamp[q] = i
                    if found == room:
                        room *= 2
                        out_q = _grown(out_q, room)
                        out_slot = _grown(out_slot, room)
                        if misses:
                            out_code = _grown(out_code, room)
                    out_q[found] = q
                    out_slot[found] = i
                    if misses:
                        out_code[found] = code
                        place[q] = found
                    counts[q] += 1
                    found += 1
    return out_q[:found], out_slot[:found], out_code[:found] if misses else out_code


@kernel
def _grown(array, room):
    bigger = np.empty(room, array.dtype)
    bigger[: array.size] = array
    return bigger


@kernel
def place_pairs(q, slot, code, start, column, codes):
    """Scatters the pairs of one chunk to their rows; `start[q]` is where its part begins."""
    for e in range(q.size):
        at = start[q[e]]
        start[q[e]] += 1
        column[at] = slot[e]
        if codes.size > 0:
            codes[at] = code[e]
