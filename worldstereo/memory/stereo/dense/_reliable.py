"""Which known pixels a hole may be continued from: not those that mix two surfaces."""

from collections.abc import Sequence

import numpy as np

from worldstereo.views.fusion import Pose, ViewArrays, parallel_for, relative

__all__ = ["reliable_pixels"]

CLEAR = 3.0  # pixels from a depth edge at which a view's colours count in full, as in the blend


def reliable_pixels(
    depth: np.ndarray, known: np.ndarray, target: Pose, views: Sequence[ViewArrays], agree: float
) -> np.ndarray:
    """Known pixels without those at the rim of a hole whose colour may be mixed.

    A photograph mixes both surfaces at a depth edge, and that is where a hole begins behind
    something near. Where it begins only because no view reached further, its rim is as good as any
    other pixel. So a pixel at the rim stays if some view shows its point away from depth edges.

    Args:
        depth: (H, W) float32 of the target in u.
        known: (H, W) bool.
        views: all that were blended.
        agree: relative depth within which a view shows the point.

    Returns:
        (H, W) bool; all of `known` if nothing else is left.
    """
    import cv2

    from worldstereo.memory.stereo.dense import _hole_kernels as kernels

    square = np.ones((3, 3), np.uint8)
    inner = cv2.erode(known.astype(np.uint8), square)
    solid = cv2.dilate(inner, square) > 0  # no specks and no threads
    y, x = map(np.ascontiguousarray, np.nonzero(solid & known & (inner == 0)))
    clear = np.zeros((len(views), len(y)), bool)

    def one(i: int) -> None:
        view = views[i]
        kernels.clear_of_edges(
            y, x, depth, target.K, view.depth, view.edge_distance, view.pose.K,
            relative(target, view.pose), agree, CLEAR, clear[i],
        )  # fmt: skip

    parallel_for(len(views), one)
    reliable = inner > 0
    reliable[y, x] = clear.any(0)
    return reliable if reliable.any() else known
