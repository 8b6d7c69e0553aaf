"""Compiled point splatting: the same bits as `render.render_torch`, several times as fast.

No fastmath here: the projection must round as the torch operators do. A word of the z-buffer is
`depth bits << 32 | row`, so one 64-bit minimum is depth test and tie-break at once.
"""

import math

import numpy as np

from worldstereo._core.compiled import kernel

FAR = np.int64(0x7FFFFFFFFFFFFFFF)
BEYOND = np.float32(1e17)
"""Depths from here on belong to removed points (`_morton.GONE`)."""


@kernel
def visible_blocks(box, first, blocks, planes, position, out):
    """Numbers of the blocks not surely outside one of the planes `a x + b y + c z + d < 0`.

    The margin covers the rounding of the projection: culling never changes a pixel.
    """
    n = 0
    for b in range(blocks):
        node = first + b
        inside = True
        for p in range(planes.shape[0]):
            total = planes[p, 3]
            scale = abs(total)
            for axis in range(3):
                slope = planes[p, axis]
                low = np.float64(box[axis, node]) - position[axis]
                high = np.float64(box[axis + 3, node]) - position[axis]
                total += slope * (high if slope > 0 else low)
                scale += abs(slope) * max(abs(low), abs(high))
            if total < -1e-5 * scale:
                inside = False
                break
        if inside:
            out[n] = b
            n += 1
    return n


@kernel
def border(c, size, radius, edge):
    """As `render._border`: centres that cover the same pixels are moved onto each other."""
    if radius == edge:
        return c
    if c + radius < size - 1:
        return c + radius - edge
    if c - radius > 0:
        return c - radius + edge
    return 0


@kernel(error_model="numpy")
def project_run(x, y, z, start, n, rows, u, v, w):
    """Pixels and depths of `n` points, rounded as the torch operators round them."""
    a0, a1, a2 = rows[0, 0], rows[0, 1], rows[0, 2]
    b0, b1, b2 = rows[1, 0], rows[1, 1], rows[1, 2]
    c0, c1, c2 = rows[3, 0], rows[3, 1], rows[3, 2]
    x0, y0, z0 = rows[4, 0], rows[4, 1], rows[4, 2]
    for j in range(n):
        dx = x[start + j] - x0
        dy = y[start + j] - y0
        dz = z[start + j] - z0
        d = c0 * dx + c1 * dy + c2 * dz
        w[j] = d
        u[j] = (a0 * dx + a1 * dy + a2 * dz) / d
        v[j] = (b0 * dx + b1 * dy + b2 * dz) / d


@kernel
def splat_blocks(
    x, y, z, order, n, blocks, first, last, size, rows, width, height, radius, ex, ey, near, buffer
):
    """The blocks `blocks[first:last]` of `size` points each, of `n` points in all.

    `buffer` has one word more than the padded image: points out of view are written there, because
    a branch that cannot be predicted costs more than a store.
    """
    u = np.empty(size, np.float32)
    v = np.empty(size, np.float32)
    w = np.empty(size, np.float32)
    pixel = np.empty(size, np.int32)
    bits = w.view(np.int32)
    left, right = np.float32(-radius), np.float32(width + radius)
    low, high = np.float32(-radius), np.float32(height + radius)
    stride = np.int32(width + 2 * ex)
    nowhere = np.int32(buffer.size - 1)
    shift_x, shift_y = np.int32(ex), np.int32(ey)
    zero = np.float32(0)
    for i in range(first, last):
        start = blocks[i] * size
        count = min(start + size, n) - start
        project_run(x, y, z, start, count, rows, u, v, w)
        if radius == ex and radius == ey:
            for j in range(count):
                seen = (w[j] > near) & (w[j] < BEYOND) & (u[j] >= left) & (u[j] < right)
                seen = seen & (v[j] >= low) & (v[j] < high)
                column = np.int32(math.floor(u[j] if seen else zero)) + shift_x
                line = np.int32(math.floor(v[j] if seen else zero)) + shift_y
                pixel[j] = line * stride + column if seen else nowhere
        else:
            for j in range(count):
                pixel[j] = nowhere
                if not (w[j] > near and w[j] < BEYOND):
                    continue
                if not (u[j] >= left and u[j] < right and v[j] >= low and v[j] < high):
                    continue
                column = border(int(math.floor(u[j])), width, radius, ex)
                line = border(int(math.floor(v[j])), height, radius, ey)
                pixel[j] = np.int32((line + ey) * stride + column + ex)
        for j in range(count):
            p = pixel[j]
            word = (np.int64(bits[j]) << 32) | np.int64(order[start + j])
            held = buffer[p]
            buffer[p] = word if word < held else held


@kernel
def splat_widths(
    x,
    y,
    z,
    order,
    n,
    blocks,
    size,
    rows,
    reach,
    prints,
    strides,
    starts,
    width,
    height,
    near,
    buffer,
):
    """As `splat_blocks` on all `blocks`, each point into the z-buffer of its own half width.

    Args:
        reach: radius in pixels at depth 1, by row of the cloud.
        prints: (P, 3) half width, border left and right, border above and below; ascending.
        strides: padded widths; starts: where each z-buffer begins in `buffer`.
    """
    u = np.empty(size, np.float32)
    v = np.empty(size, np.float32)
    w = np.empty(size, np.float32)
    bits = w.view(np.int32)
    widest = prints[-1, 0]
    edges = np.empty(prints.shape[0], np.float32)
    for k in range(prints.shape[0]):
        edges[k] = np.float32(prints[k, 0] - 0.5)
    for i in range(blocks.size):
        start = blocks[i] * size
        count = min(start + size, n) - start
        project_run(x, y, z, start, count, rows, u, v, w)
        for j in range(count):
            if not (w[j] > near and w[j] < BEYOND):
                continue
            if not (u[j] >= -widest and u[j] < width + widest):
                continue
            if not (v[j] >= -widest and v[j] < height + widest):
                continue
            row = order[start + j]
            k = 0
            while k + 1 < prints.shape[0] and reach[row] >= edges[k + 1] * w[j]:
                k += 1
            half, ex, ey = prints[k, 0], prints[k, 1], prints[k, 2]
            if not (u[j] >= -half and u[j] < width + half):
                continue
            if not (v[j] >= -half and v[j] < height + half):
                continue
            column = border(int(math.floor(u[j])), width, half, ex)
            line = border(int(math.floor(v[j])), height, half, ey)
            at = starts[k] + (line + ey) * strides[k] + column + ex
            word = (np.int64(bits[j]) << 32) | np.int64(row)
            if word < buffer[at]:
                buffer[at] = word


@kernel
def merge(buffers, start, stop):
    """The minimum of several z-buffers, into the first."""
    for t in range(1, buffers.shape[0]):
        for i in range(start, stop):
            buffers[0, i] = min(buffers[0, i], buffers[t, i])


@kernel
def filter_rows(buffer, width, radius, lines, start, stop):
    """Minimum along each padded line over windows of `2 radius + 1`."""
    for y in range(start, stop):
        row = buffer[y]
        out = lines[y]
        for x in range(width):
            out[x] = row[x]
        for d in range(1, 2 * radius + 1):
            for x in range(width):
                out[x] = min(out[x], row[x + d])


@kernel
def finish(lines, radius, colors, color, depth, mask, index, start, stop):
    """Minimum over `2 radius + 1` lines, and the unpacked picture, for some lines of the image."""
    width = lines.shape[1]
    word = np.empty(width, np.int64)
    bits = np.empty(width, np.int32)
    real = bits.view(np.float32)
    for y in range(start, stop):
        for x in range(width):
            word[x] = lines[y, x]
        for d in range(1, 2 * radius + 1):
            for x in range(width):
                word[x] = min(word[x], lines[y + d, x])
        for x in range(width):
            hole = word[x] == FAR
            bits[x] = np.int32(0) if hole else np.int32(word[x] >> 32)
            index[y, x] = np.int64(-1) if hole else word[x] & 0xFFFFFFFF
            mask[y, x] = np.float32(0) if hole else np.float32(1)
        for x in range(width):
            depth[y, x] = real[x]
        for x in range(width):
            i = index[y, x]
            if i >= 0:
                color[0, y, x] = colors[i, 0]
                color[1, y, x] = colors[i, 1]
                color[2, y, x] = colors[i, 2]
            else:
                color[0, y, x] = 0
                color[1, y, x] = 0
                color[2, y, x] = 0
