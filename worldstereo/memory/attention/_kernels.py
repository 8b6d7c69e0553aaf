"""Fused attention over candidate lists on the CPU: scores, softmax and weighted sum in one visit.

A query's rows are read once for the scores and once (from the cache) for the sum; nothing of the
size `pairs x channels` is ever stored. The torch twin is `attention._torch_attention`.

Kernels release the GIL and work on a range of queries, so the caller decides about threads.
Compiled on first use and cached on disk, the one for several heads once per width of
a head.
"""

import functools
from typing import Any

import numpy as np

from worldstereo._core.compiled import kernel
from worldstereo.memory.attention._vectors import add_rows, dot, prefetch

F = np.float32
U = np.uint32  # unsigned: no test for negative indices in the inner loops
AHEAD = 8  # rows asked for before they are needed


@kernel(inline="always")
def _ask(table, column, at, end):
    """Asks for four rows a few steps ahead; bank rows lie at random places in memory."""
    for e in range(at + AHEAD, min(at + AHEAD + 4, end)):
        for line in range(0, 4 * table.shape[1], 64):
            prefetch(table, column[e], line)


@kernel(fastmath=True, inline="always")
def _exp(x):
    """exp of x <= 0 to 2e-7 of its value, without a call, so that loops over it are vectorised.

    Source: S. Moshier, Cephes, expf.c (range reduction and polynomial).
    """
    x = max(x, F(-87.0))
    n = np.floor(x * F(1.44269504088896341) + F(0.5))
    r = x - n * F(0.693359375) + n * F(2.12194440e-4)
    p = F(1.9875691500e-4)
    p = p * r + F(1.3981999507e-3)
    p = p * r + F(8.3334519073e-3)
    p = p * r + F(4.1665795894e-2)
    p = p * r + F(1.6666665459e-1)
    p = p * r + F(5.0000001201e-1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * r * r + r + F(1.0)) * power


@kernel(fastmath=True)
def attend_one_head(q, k, v, offsets, column, span, scale, out, weight):
    """One head; four candidate rows at a time, so that four cache misses overlap."""
    channels = q.shape[1]
    width = v.shape[1]
    total = np.empty(width, np.float32)
    query = np.empty(channels, np.float32)
    longest = 0
    for i in range(span[0], span[1]):
        longest = max(longest, offsets[i + 1] - offsets[i])
    local = np.empty(longest, np.float32)
    end = offsets[span[1]]
    for i in range(span[0], span[1]):
        a = offsets[i]
        n = offsets[i + 1] - a
        for x in range(channels):
            query[x] = q[i, x] * scale
        peak = F(-np.inf)
        e = 0
        while e + 4 <= n:
            _ask(k, column, a + e, end)
            k0 = k[U(column[a + e])]
            k1 = k[U(column[a + e + 1])]
            k2 = k[U(column[a + e + 2])]
            k3 = k[U(column[a + e + 3])]
            s0 = F(0)
            s1 = F(0)
            s2 = F(0)
            s3 = F(0)
            for x in range(channels):
                y = query[x]
                s0 += y * k0[x]
                s1 += y * k1[x]
                s2 += y * k2[x]
                s3 += y * k3[x]
            local[e] = s0
            local[e + 1] = s1
            local[e + 2] = s2
            local[e + 3] = s3
            peak = max(peak, max(max(s0, s1), max(s2, s3)))
            e += 4
        while e < n:
            k0 = k[U(column[a + e])]
            s0 = F(0)
            for x in range(channels):
                s0 += query[x] * k0[x]
            local[e] = s0
            peak = max(peak, s0)
            e += 1
        mass = F(0)
        for e in range(n):
            s0 = _exp(local[e] - peak)
            local[e] = s0
            mass += s0
        norm = F(1) / mass if mass > F(0) else F(0)
        for e in range(n):
            local[e] *= norm
            weight[a + e, 0] = local[e]
        for x in range(width):
            total[x] = F(0)
        e = 0
        while e + 4 <= n:
            _ask(v, column, a + e, end)
            k0 = v[U(column[a + e])]
            k1 = v[U(column[a + e + 1])]
            k2 = v[U(column[a + e + 2])]
            k3 = v[U(column[a + e + 3])]
            s0 = local[e]
            s1 = local[e + 1]
            s2 = local[e + 2]
            s3 = local[e + 3]
            for x in range(width):
                total[x] += s0 * k0[x] + s1 * k1[x] + s2 * k2[x] + s3 * k3[x]
            e += 4
        while e < n:
            k0 = v[U(column[a + e])]
            s0 = local[e]
            for x in range(width):
                total[x] += s0 * k0[x]
            e += 1
        for x in range(width):
            out[i, x] = total[x]


@functools.cache
def attend_heads(part: int, wide: int) -> Any:
    """The kernel for several heads of `part` channels in q and k, and `wide` in v.

    The widths are constants of the kernel, so that short dot products and sums are written out. All
    heads are served in one pass, four candidate rows at a time. `weight` has a column per head, or
    a single one: then it takes the mean over heads.
    """

    @kernel(fastmath=True)
    def attend(q, k, v, offsets, column, span, scale, heads, out, weight):
        mean = weight.shape[1] < heads
        longest = 0
        for i in range(span[0], span[1]):
            longest = max(longest, offsets[i + 1] - offsets[i])
        local = np.empty((heads, longest + 3), np.float32)
        end = offsets[span[1]]
        total = np.empty(heads * wide, np.float32)
        query = np.empty(heads * part, np.float32)
        for i in range(span[0], span[1]):
            a = offsets[i]
            n = offsets[i + 1] - a
            last = max(a + n - 1, a)
            for x in range(query.size):
                query[x] = q[i, x] * scale
            e = 0
            while e < n:
                _ask(k, column, a + e, end)
                k0 = k[U(column[a + e])]
                k1 = k[U(column[min(a + e + 1, last)])]
                k2 = k[U(column[min(a + e + 2, last)])]
                k3 = k[U(column[min(a + e + 3, last)])]
                for h in range(heads):
                    o = h * part
                    local[h, e] = dot(query, k0, o, part)
                    local[h, e + 1] = dot(query, k1, o, part)
                    local[h, e + 2] = dot(query, k2, o, part)
                    local[h, e + 3] = dot(query, k3, o, part)
                e += 4
            if mean:
                for e in range(n):
                    weight[a + e, 0] = F(0)
            for h in range(heads):
                row = local[h]
                peak = F(-np.inf)
                for e in range(n):
                    peak = max(peak, row[e])
                mass = F(0)
                for e in range(n):
                    s0 = _exp(row[e] - peak)
                    row[e] = s0
                    mass += s0
                norm = F(1) / mass if mass > F(0) else F(0)
                for e in range(n):
                    row[e] *= norm
                    if mean:
                        weight[a + e, 0] += row[e] / F(heads)
                    else:
                        weight[a + e, h] = row[e]
                for e in range(n, n + 3):
                    row[e] = F(0)  # the rows that stand in beyond the end weigh nothing
            for x in range(total.size):
                total[x] = F(0)
            e = 0
            while e < n:
                _ask(v, column, a + e, end)
                k0 = v[U(column[a + e])]
                k1 = v[U(column[min(a + e + 1, last)])]
                k2 = v[U(column[min(a + e + 2, last)])]
                k3 = v[U(column[min(a + e + 3, last)])]
                for h in range(heads):
                    o = h * wide
                    s0 = local[h, e]
                    s1 = local[h, e + 1]
                    s2 = local[h, e + 2]
                    s3 = local[h, e + 3]
                    add_rows(total, o, wide, s0, k0, s1, k1, s2, k2, s3, k3)
                e += 4
            for x in range(total.size):
                out[i, x] = total[x]

    return attend
