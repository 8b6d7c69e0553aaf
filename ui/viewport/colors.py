"""What the colour of a point can say: its photo, its step, its confidence, its age, its view.

Colours other than the photo's keep the photo's brightness, so that the place stays readable.
"""

from typing import Literal, get_args

import numpy as np

from worldstereo.scene import PointCloud

ColorMode = Literal["photo", "step", "confidence", "age", "source", "coverage"]
COLOR_MODES: tuple[ColorMode, ...] = get_args(ColorMode)

# Okabe and Ito 2008, without black and without the blue that is close to the accent.
PALETTE = np.array(
    [
        [190, 196, 204],
        [230, 159, 0],
        [86, 180, 233],
        [0, 158, 115],
        [204, 121, 167],
        [240, 228, 66],
        [213, 94, 0],
    ],
    np.float32,
)
# Cividis (Nunez et al. 2018) at six stops, from low to high.
RAMP = np.array(
    [[0, 34, 78], [49, 68, 107], [102, 104, 112], [149, 143, 120], [203, 186, 105], [255, 234, 70]],
    np.float32,
)


def color_points(
    cloud: PointCloud, mode: ColorMode, rows: np.ndarray, covered: np.ndarray | None = None
) -> np.ndarray:
    """(n, 3) uint8 for these rows of the cloud.

    Args:
        covered: (N, 3) colours of `Coverage`, 0 to 1; grey where it is not known yet.

    Raises:
        ValueError: an unknown mode.
    """
    photo = cloud.colors.detach().cpu().numpy()[rows] * 255
    if mode == "photo":
        return np.clip(photo + 0.5, 0, 255).astype(np.uint8)
    if mode == "step":
        tint = palette(cloud.step.detach().cpu().numpy()[rows])
    elif mode == "source":
        if cloud.source is None:
            tint = np.broadcast_to(PALETTE[0], photo.shape)
        else:
            source = cloud.source.detach().cpu().numpy()[rows]
            tint = np.where((source >= 0)[:, None], palette(source + 1), PALETTE[0])
    elif mode == "coverage":
        grey = np.broadcast_to(PALETTE[0], photo.shape)
        tint = grey if covered is None or len(covered) != len(cloud) else covered[rows] * 255
    elif mode == "confidence":
        tint = ramp(cloud.confidence.detach().cpu().numpy()[rows] ** 0.5)
    elif mode == "age":
        newest = max(int(cloud.step.max()), 1) if len(cloud) else 1
        tint = ramp(cloud.step.detach().cpu().numpy()[rows] / newest)
    else:
        raise ValueError(f"color_by takes one of {', '.join(COLOR_MODES)}, got {mode!r}.")
    light = photo @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    return np.clip(tint * (0.3 + 0.9 * light[:, None]), 0, 255).astype(np.uint8)


def palette(index: np.ndarray) -> np.ndarray:
    """A colour per whole number: 0 grey, then six that colour-blind eyes tell apart, repeating."""
    return PALETTE[np.where(index == 0, 0, (index - 1) % (len(PALETTE) - 1) + 1)]


def ramp(value: np.ndarray) -> np.ndarray:
    """A colour per number in [0, 1], dark blue to yellow."""
    at = np.clip(value, 0, 1) * (len(RAMP) - 1)
    low = np.minimum(at.astype(int), len(RAMP) - 2)
    part = (at - low)[:, None].astype(np.float32)
    return RAMP[low] * (1 - part) + RAMP[low + 1] * part
