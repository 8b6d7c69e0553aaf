"""One keyframe's picture: what a painter is shown, and how its answer joins what was known.

Known pixels are never the painter's: its answer is used in the hole alone, with its colours moved
so that they meet the rim, and with the rim's noise where it is smoother.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from worldstereo.generators.inpaint.painters import Painter, PaintRequest, call, limits_of
from worldstereo.progress import OnStep

SPECK = 2.0
"""Radius in pixels below which a hole is a crack, which the smooth fill closes as well."""
RIM = 10
"""Width in pixels of the known rim that colours and noise are compared on."""
HOLES = 16
"""Largest holes with an exposure of their own; the others share that of all rims."""
MAX_GAIN = 0.15
"""Largest difference in colour that is taken out; beyond it the two show different things."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What a painter is given of one keyframe."""

    image: np.ndarray
    """(h, w, 3) uint8, holes filled smoothly."""
    mask: np.ndarray
    """(h, w) bool, closed and grown."""


def worth_painting(unknown: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The holes that are more than cracks."""
    import cv2

    if not unknown.any():
        return unknown
    padded = np.pad(unknown.astype(np.uint8), 1, mode="edge")
    core = (cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1] >= SPECK).astype(np.uint8)
    count, found = cv2.connectedComponents(unknown.astype(np.uint8), connectivity=8)
    label = np.asarray(found, np.int64)
    wide = np.zeros(count, bool)
    wide[np.unique(label[core > 0])] = True
    wide[0] = False
    return wide[label]


def shown_to(
    painter: Painter, color: Float[np.ndarray, "H W 3"], hole: Bool[np.ndarray, "H W"]
) -> Shown:
    """The picture and mask at the size that a painter works best with."""
    import cv2

    limits = limits_of(painter)
    h, w = hole.shape
    scale = 1.0 if limits.side is None else limits.side / (h * w) ** 0.5
    size = tuple(max(limits.multiple, round(n * scale / limits.multiple) * limits.multiple)
                 for n in (w, h))  # fmt: skip
    image = (color.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    mask = hole.astype(np.uint8)
    if size != (w, h):
        smaller = size[0] < w
        image = cv2.resize(
            image, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        )
        mask = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
        mask = mask.astype(np.uint8)
    if limits.grow > 0:
        k = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * limits.grow + 1,) * 2)
        cut = 2 * limits.grow
        padded = np.pad(mask, cut, mode="edge")
        closed = cv2.dilate(cv2.morphologyEx(padded, cv2.MORPH_CLOSE, k), k)
        mask = closed[cut:-cut, cut:-cut]
    return Shown(image, mask > 0)


def painted(
    painter: Painter,
    color: Float[np.ndarray, "H W 3"],
    hole: Bool[np.ndarray, "H W"],
    *,
    prompt: str,
    seed: int,
    options: PaintRequest,
    on_step: OnStep,
    seconds: float,
) -> Float[np.ndarray, "H W 3"]:
    """The picture with its hole painted; outside it every pixel is the very one that was given.

    Raises:
        PainterFailed: it gave no usable picture.
        Cancelled: `on_step` raised it.
    """
    import cv2

    shown = shown_to(painter, color, hole)
    answer = call(painter, shown.image, shown.mask, prompt, seed, options, on_step, seconds)
    out = answer.astype(np.float32) / 255
    if out.shape[:2] != hole.shape:
        smaller = out.shape[0] > hole.shape[0]
        how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        out = cv2.resize(out, hole.shape[::-1], interpolation=how).clip(0, 1)
    out = harmonised(out, color, hole, seed)
    return np.where(hole[..., None], out, color)


def harmonised(
    out: Float[np.ndarray, "H W 3"],
    color: Float[np.ndarray, "H W 3"],
    hole: Bool[np.ndarray, "H W"],
    seed: int,
) -> Float[np.ndarray, "H W 3"]:
    """A painted picture whose holes have the exposure and the noise of their rims.

    The exposure is the median difference over a hole's rim: where a depth edge borders it, or the
    known is displaced, rim and painting rightly differ, and a smoother correction would carry that
    into the hole.
    """
    import cv2

    distance = cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, 5)
    rim = ~hole & (distance <= RIM)
    if not rim.any():
        return out
    _, found = cv2.connectedComponents(hole.astype(np.uint8), connectivity=8)
    label = np.asarray(found, np.int64)
    sizes = np.bincount(label.ravel())
    sizes[0] = 0
    apart = color - out
    shift = np.tile(np.median(apart[rim], axis=0), (len(sizes), 1))
    for one in np.argsort(-sizes, kind="stable")[:HOLES].tolist():
        if sizes[one] < RIM * RIM:
            break
        around = cv2.dilate((label == one).astype(np.uint8), np.ones((2 * RIM + 1,) * 2, np.uint8))
        shift[one] = np.median(apart[rim & (around > 0)], axis=0)
    shift = shift.clip(-MAX_GAIN, MAX_GAIN).astype(np.float32)
    out = out + np.where(hole[..., None], shift[label], 0)
    missing = _noise(color, rim) ** 2 - _noise(out, hole) ** 2
    if missing > 0:
        grain = np.random.default_rng([seed, 1]).standard_normal(hole.shape).astype(np.float32)
        out = out + np.where(hole, np.float32(missing**0.5) * grain, 0)[..., None]
    return out.clip(0, 1).astype(np.float32)


def _noise(color: np.ndarray, where: np.ndarray) -> float:
    """Standard deviation of the noise, from the median so that texture counts little.

    Source: Immerkaer, Fast noise variance estimation, CVIU 1996.
    """
    import cv2

    inside = cv2.erode(where.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    if inside.sum() < 64:
        return 0.0
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    high = cv2.filter2D(color.mean(2), cv2.CV_32F, kernel, borderType=cv2.BORDER_REPLICATE)
    return float(np.median(np.abs(high[inside]))) / 0.6745 / 6.0
