"""Compiled exact search: a dense grid of cells, and the box tree for what the grid cannot settle.

Distances are float64 sums of squares in the order x, y, z, as a plain loop forms them, and equal
ones are ordered by row; no fastmath, or ties would depend on the path that found them.
"""

import numpy as np

from worldstereo._core.compiled import kernel
from worldstereo._core.morton import FAN, LEAF

FAR = 1e34
"""Squared distance no real point reaches (`_morton.REACH`) and every removed one exceeds."""
NOBODY = np.int64(1 << 62)
SHELLS = 5
"""Cells between a query and the farthest place the grid looks at; then it is off the surface."""
COUNTED = 512
"""Candidates up to here are ordered by counting, which is quadratic but has no branch."""


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
    slack = (0.01 + 1e-6 * i) * h  # of the float32 position in cells, which grows with it
    near = 0.0
    if i > 0:
        near = max(near, low + i * h - value - slack)
    if i < cells - 1:
        near = max(near, value - low - (i + 1) * h - slack)
    return near


@kernel(inline="always")
def collect(px, py, pz, start, stop, x, y, z, within, near, at, found):
    """Appends the points of a run that lie within a squared distance; without a branch."""
    for i in range(start, stop):
        dx = np.float64(px[i]) - x
        dy = np.float64(py[i]) - y
        dz = np.float64(pz[i]) - z
        d = dx * dx + dy * dy + dz * dz
        near[found] = d
        at[found] = i
        if d <= within:
            found += 1
    return found


@kernel(inline="always")
def place(near, at, found, order, k, sorted_d, sorted_at, best, who):
    """Writes the `k` nearest of a list in order: each goes where the number of nearer ones says.

    Counting has no branch to mispredict, which an insertion has at every step. Equal distances
    count to the same place; then, and in long lists, an insertion decides and looks at the rows.
    """
    if found <= COUNTED:
        total = 0
        for i in range(found):
            d = near[i]
            rank = 0
            for j in range(found):
                rank += near[j] < d
            sorted_d[rank] = d
            sorted_at[rank] = at[i]
            total += rank
        if total == found * (found - 1) // 2:  # no two share a place
            for j in range(k):
                best[j] = sorted_d[j]
                who[j] = order[sorted_at[j]]
            return
    for j in range(k):
        best[j] = FAR
        who[j] = NOBODY
    for i in range(found):
        offer(near[i], np.int64(order[at[i]]), k, best, who)


@kernel(inline="always")
def thin(near, at, found, limit, k):
    """Keeps what lies within a squared distance, unless that is fewer than `k`; how many stay."""
    count = 0
    for i in range(found):
        count += near[i] <= limit
    if count < k:
        return found
    kept = 0
    for i in range(found):
        d, w = near[i], at[i]
        near[kept] = d
        at[kept] = w
        if d <= limit:
            kept += 1
    return kept


@kernel
def grid_search(
    queries, turn, px, py, pz, order, starts, low, h, nx, ny, nz, k, room,
    distance, rows, open_, start, stop,
):  # fmt: skip
    """Settles the queries `turn[start:stop]` whose answer is near; marks the others in `open_`.

    All points in a ball are collected, at most `room`; where it holds at least `k`, the nearest of
    them are the answer. The first ball follows from how far the queries before had to look.
    """
    inverse = np.float32(1.0 / h)
    near, sorted_d = np.empty(room, np.float64), np.empty(room, np.float64)
    at, sorted_at = np.empty(room, np.int32), np.empty(room, np.int32)
    wanted = k + 2.0 + 1.3 * np.sqrt(k)  # k and what chance takes away, once in twenty queries
    widest = (SHELLS * h) ** 2
    usual = min(0.5 * k * h * h, widest)
    lost = False
    ox, oy = np.float64(low[0]), np.float64(low[1])
    for t in range(start, stop):
        q = turn[t]
        x, y, z = np.float64(queries[q, 0]), np.float64(queries[q, 1]), np.float64(queries[q, 2])
        within = usual
        settled = False
        found = 0
        for attempt in range(4):
            r = np.sqrt(within) * 1.000001
            x0 = cell_of(np.float32(x - r), low[0], inverse, nx)
            x1 = cell_of(np.float32(x + r), low[0], inverse, nx)
            y0 = cell_of(np.float32(y - r), low[1], inverse, ny)
            y1 = cell_of(np.float32(y + r), low[1], inverse, ny)
            z0 = cell_of(np.float32(z - r), low[2], inverse, nz)
            z1 = cell_of(np.float32(z + r), low[2], inverse, nz)
            found = 0
            full = False
            for i in range(x0, x1 + 1):
                ex = gap(x, ox, h, i, nx)
                for j in range(y0, y1 + 1):
                    ey = gap(y, oy, h, j, ny)
                    if ex * ex + ey * ey > within:
                        continue
                    line = (i * ny + j) * nz
                    a, b = starts[line + z0], starts[line + z1 + 1]
                    if found + b - a >= room:
                        full = True
                        break
                    found = collect(px, py, pz, a, b, x, y, z, within, near, at, found)
                if full:
                    break
            if full:
                within *= 0.25
                usual = within
                continue
            if found >= k:
                settled = True
                break
            if within >= widest or (found == 0 and (lost or attempt == 1)):
                break
            within = min(within * min(max(1.3 * wanted / max(found, 1), 1.5), 4.0), widest)
        open_[q] = not settled
        lost = not settled
        if settled:
            if found > 2 * wanted:  # on a surface the number grows with the squared distance
                found = thin(near, at, found, within * wanted / found, k)
            best = distance[q]
            place(near, at, found, order, k, sorted_d, sorted_at, best, rows[q])
            usual = min(0.7 * usual + 0.3 * best[k - 1] * wanted / k, widest)


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
