"""Fused attention over candidate lists on the CPU: scores, softmax and weighted sum in one visit.

A query's rows are read once for the scores and once (from the cache) for the sum; nothing of the
size `pairs x channels` is ever stored. The torch twin is `attention._torch_attention`.

Kernels release the GIL and work on a range of queries, so the caller decides about threads.
Compiled on first use and cached on disk.
"""

import math

import numpy as np

from worldstereo._compiled import kernel

F = np.float32


@kernel(fastmath=True)
def attend_one_head(q, k, v, offsets, column, order, span, scale, out, weight):
    """One head; four candidate rows at a time, so that four cache misses overlap."""
    channels = q.shape[1]
    width = v.shape[1]
    total = np.empty(width, np.float32)
    query = np.empty(channels, np.float32)
    for t in range(span[0], span[1]):
        i = order[t]
        a = offsets[i]
        b = offsets[i + 1]
        for x in range(channels):
            query[x] = q[i, x] * scale
        peak = F(-np.inf)
        e = a
        while e + 4 <= b:
            k0 = k[column[e]]
            k1 = k[column[e + 1]]
            k2 = k[column[e + 2]]
            k3 = k[column[e + 3]]
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
            weight[e, 0] = s0
            weight[e + 1, 0] = s1
            weight[e + 2, 0] = s2
            weight[e + 3, 0] = s3
            peak = max(peak, max(max(s0, s1), max(s2, s3)))
            e += 4
        while e < b:
            k0 = k[column[e]]
            s0 = F(0)
            for x in range(channels):
                s0 += query[x] * k0[x]
            weight[e, 0] = s0
            peak = max(peak, s0)
            e += 1
        mass = F(0)
        for e in range(a, b):
            s0 = F(math.exp(weight[e, 0] - peak))
            weight[e, 0] = s0
            mass += s0
        norm = F(1) / mass if mass > F(0) else F(0)
        for e in range(a, b):
            weight[e, 0] *= norm
        for x in range(width):
            total[x] = F(0)
        e = a
        while e + 4 <= b:
            k0 = v[column[e]]
            k1 = v[column[e + 1]]
            k2 = v[column[e + 2]]
            k3 = v[column[e + 3]]
            s0 = weight[e, 0]
            s1 = weight[e + 1, 0]
            s2 = weight[e + 2, 0]
            s3 = weight[e + 3, 0]
            for x in range(width):
                total[x] += s0 * k0[x] + s1 * k1[x] + s2 * k2[x] + s3 * k3[x]
            e += 4
        while e < b:
            k0 = v[column[e]]
            s0 = weight[e, 0]
            for x in range(width):
                total[x] += s0 * k0[x]
            e += 1
        for x in range(width):
            out[i, x] = total[x]


@kernel(fastmath=True)
def attend_heads(q, k, v, offsets, column, order, span, scale, heads, out, weight):
    """Several heads in one pass over the candidate rows.

    `weight` has a column per head, or a single one: then it takes the mean over heads, and only
    the weights of one query are kept meanwhile.
    """
    channels = q.shape[1]
    mean = weight.shape[1] < heads
    part = channels // heads
    wide = v.shape[1] // heads
    longest = 0
    for t in range(span[0], span[1]):
        longest = max(longest, offsets[order[t] + 1] - offsets[order[t]])
    local = np.empty((longest, heads), np.float32)
    total = np.empty(v.shape[1], np.float32)
    query = np.empty(channels, np.float32)
    peak = np.empty(heads, np.float32)
    norm = np.empty(heads, np.float32)
    for t in range(span[0], span[1]):
        i = order[t]
        a = offsets[i]
        n = offsets[i + 1] - a
        for x in range(channels):
            query[x] = q[i, x] * scale
        for h in range(heads):
            peak[h] = F(-np.inf)
            norm[h] = F(0)
        for e in range(n):
            row = k[column[a + e]]
            for h in range(heads):
                s = F(0)
                o = h * part
                for x in range(part):
                    s += query[o + x] * row[o + x]
                local[e, h] = s
                peak[h] = max(peak[h], s)
        for e in range(n):
            for h in range(heads):
                s = F(math.exp(local[e, h] - peak[h]))
                local[e, h] = s
                norm[h] += s
        for h in range(heads):
            norm[h] = F(1) / norm[h] if norm[h] > F(0) else F(0)
        for x in range(total.size):
            total[x] = F(0)
        for e in range(n):
            row = v[column[a + e]]
            average = F(0)
            for h in range(heads):
                s = local[e, h] * norm[h]
                o = h * wide
                for x in range(wide):
                    total[o + x] += s * row[o + x]
                average += s
                if not mean:
                    weight[a + e, h] = s
            if mean:
                weight[a + e, 0] = average / F(heads)
        for x in range(total.size):
            out[i, x] = total[x]
