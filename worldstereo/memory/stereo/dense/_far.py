"""Colour of holes far from anything known: the interpolant's, drawn towards the picture's mean."""

import numpy as np

__all__ = ["drawn_to_mean"]

BEGINS, ENDS = 0.05, 0.25
"""Distance from the known, over the picture's diagonal, where the mean begins to count and where it
counts in full."""

SHARE = 0.5
"""How much it counts there. These follow the regression of the truth on interpolant and mean, by
distance, in photos that are no development captures and in rendered scenes (`bench/README.md`)."""


def drawn_to_mean(interpolant: np.ndarray, known: np.ndarray) -> np.ndarray:
    """A picture whose holes were filled by an interpolant, with their far parts nearer to its mean.

    An interpolant carries the colours of a hole's rim across it, however far. But what two places
    have in common fades with their distance, until the mean says as much about one as the other.

    Args:
        interpolant: (H, W, 3) float32, known pixels and filled ones.
        known: (H, W) bool, some of them true.

    Returns:
        (H, W, 3) float32; known pixels are the interpolant's own.
    """
    import cv2

    hole = (~known).astype(np.uint8)
    distance = cv2.distanceTransform(hole, cv2.DIST_L2, 5) / np.float32(np.hypot(*known.shape))
    if distance.max() <= BEGINS:
        return interpolant
    part = np.clip((distance - BEGINS) / (ENDS - BEGINS), 0, 1)
    share = (SHARE * part * part * (3 - 2 * part))[..., None]
    mean = np.array(cv2.mean(interpolant, known.astype(np.uint8))[:3], np.float32)
    return np.where(hole[..., None] > 0, interpolant + share * (mean - interpolant), interpolant)
