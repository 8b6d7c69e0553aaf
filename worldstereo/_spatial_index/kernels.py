"""Compiled exact search: a dense grid of cells, and the box tree for what the grid cannot settle.

Distances are float64 sums of squares in the order x, y, z, as a plain loop forms them, and equal
ones are ordered by row; no fastmath, or ties would depend on the path that found them.
"""

import numpy as np

from worldstereo._compiled import kernel
from worldstereo._morton import FAN, LEAF

FAR = 1e34
"""Squared distance no real point reaches (`_morton.REACH`) and every removed one exceeds."""
NOBODY = np.int64(1 << 62)
SHELLS = 5
"""Shells of cells around a query before the tree takes over: it is off the surface."""


@kernel
def cell_keys(points, low, inverse, nx, ny, nz, key, start, stop):
    """Sort words of points: cell and row. Points outside the grid go to the nearest border cell."""
    for i in range(start, stop):
        cx = cell_of(points[i, 0], low[0], inverse, nx)
        cy = cell_of(points[i, 1], low[1], inverse, ny)
        cz = cell_of(points[i, 2], low[2], inverse, nz)
        key[i] = (np.uint64((cx * ny + cy) * nz + cz) << np.uint64(25)) | np.uint64(i)


@kernel(inline="always")
def cell_of(value, low, inverse, cells):
    c = (value - low) * inverse
    return np.int64(min(max(c, np.float32(0)), np.float32(cells - 1)))


@kernel
def cell_starts(key, starts):
    """First sorted position of each cell."""
    c = 0
    for i in range(key.size):
        cell = np.int64(key[i] >> np.uint64(25))
        while c <= cell:
            starts[c] = i
            c += 1
    while c < starts.size:
        starts[c] = key.size
        c += 1


@kernel(inline="always")
def offer(d, row, k, distance, rows):
    """Takes a candidate into the sorted list of the `k` best."""
    if d > distance[k - 1] or (d == distance[k - 1] and row > rows[k - 1]):
        return
    p = k - 1
    while p > 0 and (distance[p - 1] > d or (distance[p - 1] == d and rows[p - 1] > row)):
        distance[p] = distance[p - 1]
        rows[p] = rows[p - 1]
        p -= 1
    distance[p] = d
    rows[p] = row


@kernel(inline="always")
def scan(px, py, pz, order, start, stop, x, y, z, k, distance, rows):
    worst = distance[k - 1]
    for i in range(start, stop):
        dx = np.float64(px[i]) - x
        dy = np.float64(py[i]) - y
        dz = np.float64(pz[i]) - z
        d = dx * dx + dy * dy + dz * dz
        if d <= worst:
            offer(d, np.int64(order[i]), k, distance, rows)
            worst = distance[k - 1]


@kernel(inline="always")
def gap(value, low, h, i, cells):
    """How far a value is from cell `i`, a little less for rounding; border cells have no end."""
    slack = 0.01 * h
    near = 0.0
    if i > 0:
        near = max(near, low + i * h - value - slack)
    if i < cells - 1:
        near = max(near, value - low - (i + 1) * h - slack)
    return near


@kernel
def grid_search(
    queries, turn, px, py, pz, order, starts, low, h, nx, ny, nz, k, budget,
    distance, rows, open_, start, stop,
):  # fmt: skip
    """Settles the queries `turn[start:stop]` whose answer is near; marks the others in `open_`."""
    inverse = np.float32(1.0 / h)
    have = False
    lx = ly = lz = last = 0.0
    for t in range(start, stop):
        q = turn[t]
        x, y, z = np.float64(queries[q, 0]), np.float64(queries[q, 1]), np.float64(queries[q, 2])
        cx = cell_of(queries[q, 0], low[0], inverse, nx)
        cy = cell_of(queries[q, 1], low[1], inverse, ny)
        cz = cell_of(queries[q, 2], low[2], inverse, nz)
        ox, oy, oz = np.float64(low[0]), np.float64(low[1]), np.float64(low[2])
        best, who = distance[q], rows[q]
        bound = FAR
        if have:  # the k-th neighbour is at most as far as from the last query, plus the way here
            reach = np.sqrt((x - lx) ** 2 + (y - ly) ** 2 + (z - lz) ** 2) + np.sqrt(last)
            bound = min(bound, reach * reach * 1.000001)
        for j in range(k):
            best[j] = bound
            who[j] = NOBODY
        looked = 0
        settled = False
        for s in range(SHELLS + 1):
            x0, x1, y0, y1 = cx - s, cx + s, cy - s, cy + s
            z0, z1 = max(cz - s, 0), min(cz + s, nz - 1)
            for i in range(max(x0, 0), min(x1, nx - 1) + 1):
                ex = gap(x, ox, h, i, nx)
                for j in range(max(y0, 0), min(y1, ny - 1) + 1):
                    ey = gap(y, oy, h, j, ny)
                    if ex * ex + ey * ey > best[k - 1]:
                        continue
                    line = (i * ny + j) * nz
                    if abs(i - cx) == s or abs(j - cy) == s:
                        a, b = starts[line + z0], starts[line + z1 + 1]
                        looked += b - a
                        if looked > budget:
                            break
                        scan(px, py, pz, order, a, b, x, y, z, k, best, who)
                    else:
                        if cz - s >= 0:
                            a, b = starts[line + cz - s], starts[line + cz - s + 1]
                            looked += b - a
                            if looked > budget:
                                break
                            scan(px, py, pz, order, a, b, x, y, z, k, best, who)
                        if cz + s < nz:
                            a, b = starts[line + cz + s], starts[line + cz + s + 1]
                            looked += b - a
                            if looked > budget:
                                break
                            scan(px, py, pz, order, a, b, x, y, z, k, best, who)
                if looked > budget:
                    break
            if looked > budget:
                break
            edge = np.inf
            if x0 > 0:
                edge = min(edge, x - (ox + x0 * h))
            if x1 < nx - 1:
                edge = min(edge, ox + (x1 + 1) * h - x)
            if y0 > 0:
                edge = min(edge, y - (oy + y0 * h))
            if y1 < ny - 1:
                edge = min(edge, oy + (y1 + 1) * h - y)
            if cz - s > 0:
                edge = min(edge, z - (oz + (cz - s) * h))
            if cz + s < nz - 1:
                edge = min(edge, oz + (cz + s + 1) * h - z)
            edge -= 0.01 * h
            if edge > 0 and best[k - 1] < edge * edge:
                settled = True
                break
            if s == 2 and who[0] == NOBODY:
                break
        open_[q] = not settled
        if settled:
            have = True
            last, lx, ly, lz = best[k - 1], x, y, z


@kernel
def tree_search(
    queries, turn, px, py, pz, order, box, lowest, level, k, distance, rows, start, stop
):
    """Settles the queries `turn[start:stop]`; consecutive ones should be neighbours in space."""
    top = level.size - 2
    far = np.empty(192, np.float64)
    node = np.empty(192, np.int64)
    depth = np.empty(192, np.int64)
    child = np.empty(FAN, np.float64)
    have = False
    lx = ly = lz = last = 0.0
    for t in range(start, stop):
        q = turn[t]
        x, y, z = np.float64(queries[q, 0]), np.float64(queries[q, 1]), np.float64(queries[q, 2])
        best, who = distance[q], rows[q]
        bound = FAR
        if have:  # the k-th neighbour is at most as far as from the last query, plus the way here
            reach = np.sqrt((x - lx) ** 2 + (y - ly) ** 2 + (z - lz) ** 2) + np.sqrt(last)
            bound = min(bound, reach * reach * 1.000001)
        for j in range(k):
            best[j] = bound
            who[j] = NOBODY
        far[0] = 0.0
        node[0] = 0
        depth[0] = top + 1
        waiting = 1
        while waiting > 0:
            waiting -= 1
            at, rank = node[waiting], depth[waiting]
            if far[waiting] > best[k - 1]:
                continue
            if (
                rank <= top
                and far[waiting] == best[k - 1]
                and lowest[level[rank] + at] > who[k - 1]
            ):
                continue
            if rank == 0:
                scan(px, py, pz, order, at * LEAF, at * LEAF + LEAF, x, y, z, k, best, who)
                continue
            rank -= 1
            first = level[rank] + at * FAN
            for j in range(FAN):
                c = first + j
                dx = max(max(np.float64(box[0, c]) - x, x - np.float64(box[3, c])), 0.0)
                dy = max(max(np.float64(box[1, c]) - y, y - np.float64(box[4, c])), 0.0)
                dz = max(max(np.float64(box[2, c]) - z, z - np.float64(box[5, c])), 0.0)
                child[j] = dx * dx + dy * dy + dz * dz
            base = waiting
            worst = best[k - 1]
            for j in range(FAN):
                d = child[j]
                if d <= worst and d < FAR:
                    # Nearest on top of the stack; among equals the one with the lowest row.
                    p = waiting
                    low = lowest[first + j]
                    while p > base and (
                        far[p - 1] < d
                        or (far[p - 1] == d and lowest[level[rank] + node[p - 1]] < low)
                    ):
                        far[p] = far[p - 1]
                        node[p] = node[p - 1]
                        p -= 1
                    far[p] = d
                    node[p] = at * FAN + j
                    waiting += 1
            for p in range(base, waiting):
                depth[p] = rank
        if who[k - 1] != NOBODY:
            have = True
            last, lx, ly, lz = best[k - 1], x, y, z


@kernel
def merge_lists(square, rows, names, other, other_rows, other_names, out, out_rows):
    """The best of two sorted lists per query; rows are looked up in `names` of their list first."""
    k = out.shape[1]
    for q in range(out.shape[0]):
        i = j = 0
        for p in range(k):
            a, b = FAR, FAR
            ra, rb = NOBODY, NOBODY
            if i < square.shape[1] and rows[q, i] != NOBODY:
                a, ra = square[q, i], np.int64(names[rows[q, i]])
            if j < other.shape[1] and other_rows[q, j] != NOBODY:
                b, rb = other[q, j], np.int64(other_names[other_rows[q, j]])
            if a < b or (a == b and ra <= rb):
                out[q, p], out_rows[q, p] = a, ra
                i += 1
            else:
                out[q, p], out_rows[q, p] = b, rb
                j += 1
