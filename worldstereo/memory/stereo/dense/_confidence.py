"""How much each pixel of a target is likely to be off, from what its blend and picture show.

No truth is needed: a small error of pose or depth costs as much as the picture varies there;
references that disagree, few or far ones, and holes nearby make it worse. The exponents and scales
were chosen on three captures, none of which favours them alone, to rank pixels by their error.
"""

import numpy as np
from jaxtyping import Bool, Float

from worldstereo.views.fusion import bands, parallel_for

CLOUD, INVENTED, FIXED = 0.3, 0.5, 1.0
"""The mass where a pixel shows the cloud alone, nothing, or what is fixed to the camera."""

WIDE = 64  # the wide window is the picture's width over this
STEP = 4  # wide averages are taken of a smaller picture
FIRM, RANGE = 0.02, 0.1
"""Confidence is 1 up to the first expected error and falls by a factor e with each second one."""


def confidence_of(
    color: Float[np.ndarray, "H W 3"],
    mass: Float[np.ndarray, "H W"],
    nearest: Float[np.ndarray, "H W"],
    spread: Float[np.ndarray, "H W"],
    *,
    seen: Bool[np.ndarray, "H W"],
    cloud: Bool[np.ndarray, "H W"],
    camera_fixed: Bool[np.ndarray, "H W"] | None = None,
) -> Float[np.ndarray, "H W"]:
    """Confidence in [0, 1] of every pixel; its ranking predicts the error.

    Args:
        color: the finished picture.
        mass: sum of the agreement of the views that confirm a pixel, without their angle.
        nearest: weight by the angle of the nearest of them, in (0, 1].
        spread: standard deviation of their luminance.
        seen: at least one view confirms the pixel.
        cloud: only the cloud of the global memory shows it.
        camera_fixed: pasted from what is fixed to the camera.
    """
    import cv2

    fixed = np.zeros_like(seen) if camera_fixed is None else camera_fixed
    known = seen | cloud | fixed
    hole = (~known).astype(np.uint8)
    reach = 8 * known.shape[1] / WIDE
    deep = cv2.distanceTransform(hole, cv2.DIST_L2, 3)
    grey = cv2.cvtColor(np.ascontiguousarray(color, np.float32), cv2.COLOR_RGB2GRAY)
    across, down = (cv2.Sobel(grey, cv2.CV_32F, *axes) for axes in ((1, 0), (0, 1)))
    slope = np.sqrt(across * across + down * down)
    off = np.where(seen, spread, 0)
    around = 0.25 * np.log(_wide(slope) + 0.03)
    around += 0.2 * np.log(_wide(off) + 0.005) + 1.25 * _wide(hole)
    around = cv2.resize(around, slope.shape[::-1], interpolation=cv2.INTER_LINEAR)
    slope = cv2.GaussianBlur(slope, (0, 0), 1.5)
    out = np.empty(known.shape, np.float32)
    rows = bands(len(out), len(out) // 32 + 1)

    def band(k: int) -> None:
        """Elementwise, a few rows at a time: what lies between stays in the processor's cache."""
        at = slice(*rows[k])
        said = np.sqrt(1 - np.exp(-2 * mass[at])) * (0.8 + 0.2 * nearest[at] / (nearest[at] + 0.1))
        other = np.where(fixed[at], FIXED, np.where(cloud[at], CLOUD, INVENTED))
        said = np.where(seen[at] & ~fixed[at], said, other.astype(np.float32))
        expected = np.exp(
            0.45 * np.log(slope[at] + 0.03)
            + around[at]
            + 2 * np.minimum(deep[at] / np.float32(reach), 1)
            - 0.7 * np.log(np.maximum(said, 0.05))
        )
        # What references differ by is an error that is seen, however smooth the picture is there.
        expected += 0.5 * off[at]
        out[at] = np.exp(-np.maximum(expected - FIRM, 0) / RANGE)

    parallel_for(len(rows), band)
    return out


def _wide(values: np.ndarray) -> np.ndarray:
    """Averages over windows of 1 / `WIDE` of the picture's width, one every `STEP` pixels."""
    import cv2

    h, w = values.shape
    size = (max(1, w // STEP), max(1, h // STEP))
    small = cv2.resize(np.asarray(values, np.float32), size, interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), max(w / WIDE / STEP, 0.3))
