"""Compiled loop of `choice`: coarse depth of a target from a view's."""

import numpy as np

from worldstereo._core.compiled import kernel


@kernel
def splat(coarse, K, height, width, T, target, h, w, least, out):
    """Nearest depth of a view's blocks in each cell of a grid over the target.

    Args:
        coarse: depth of blocks of the view, whose size is height x width; 0 where unknown.
        K, target: index intrinsics of the view and of the target, whose size is h x w.
        T: (3, 4) from the view's axes to the target's.
        least: depth in the target from which on a block counts.
        out: (rows, columns) float64; lowered.
    """
    rows, columns = out.shape
    for i in range(coarse.shape[0]):
        V = ((i + 0.5) * height / coarse.shape[0] - 0.5 - K[3]) / K[1]
        for j in range(coarse.shape[1]):
            z = np.float64(coarse[i, j])
            if z <= 0:
                continue
            X, Y = ((j + 0.5) * width / coarse.shape[1] - 0.5 - K[2]) / K[0] * z, V * z
            q = T[2, 0] * X + T[2, 1] * Y + T[2, 2] * z + T[2, 3]
            if q <= least:
                continue
            p0 = T[0, 0] * X + T[0, 1] * Y + T[0, 2] * z + T[0, 3]
            p1 = T[1, 0] * X + T[1, 1] * Y + T[1, 2] * z + T[1, 3]
            x = (target[0] * p0 / q + target[2] + 0.5) * columns / w
            y = (target[1] * p1 / q + target[3] + 0.5) * rows / h
            if 0 <= x < columns and 0 <= y < rows:
                out[int(y), int(x)] = min(out[int(y), int(x)], q)
