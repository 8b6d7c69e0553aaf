"""Perceptual measures that need no downloaded weights, and the classical fills they are held to.

All take pictures as (H, W, 3) float32 in [0, 1].
"""

import cv2
import numpy as np

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Multi-scale structural similarity of the luma; 1 is equal. Pictures of at least 176 pixels.

    Source: Wang, Simoncelli, Bovik 2003, with the paper's five weights.
    """
    if min(a.shape[:2]) < 176:
        raise ValueError(f"five scales need 176 pixels a side, got {a.shape[1]} x {a.shape[0]}.")
    x, y, product = _luma(a), _luma(b), 1.0
    for i, weight in enumerate(SCALES):
        contrast, whole = _structure(x, y)
        product *= max(whole if i == len(SCALES) - 1 else contrast, 1e-6) ** weight
        x, y = (cv2.resize(z, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for z in (x, y))
    return float(product)


def _structure(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Mean contrast-structure term, and mean of the whole index, away from the border."""

    def blur(z: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(z, (11, 11), 1.5)[5:-5, 5:-5]

    mx, my = blur(x), blur(y)
    vx, vy, c = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    contrast = (2 * c + 9e-4) / (vx + vy + 9e-4)
    luminance = (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4)
    return float(contrast.mean()), float((contrast * luminance).mean())


def gradient_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Mean similarity of gradient magnitudes at half size, in [0, 1]; 1 is equal.

    Source: Xue et al. 2014, arXiv:1308.3052, its map averaged (GMSM), c = 170 / 255^2.
    """
    across = np.array([[1, 0, -1]] * 3, np.float32) / 3

    def magnitude(z: np.ndarray) -> np.ndarray:
        half = cv2.resize(_luma(z), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        return np.hypot(cv2.filter2D(half, -1, across), cv2.filter2D(half, -1, across.T))

    x, y, c = magnitude(a), magnitude(b), 170 / 255**2
    return float(((2 * x * y + c) / (x * x + y * y + c)).mean())


def _luma(a: np.ndarray) -> np.ndarray:
    return (a @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.float32)


def pull_push(color: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Holes filled from ever coarser means of what was seen around them; seen pixels stay.

    Source: Gortler et al. 1996, "The lumigraph", pull and push with saturating weights.
    """
    weight = seen.astype(np.float32)
    return _pulled(color * weight[..., None], weight)


def _pulled(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    mean = total / np.maximum(weight, 1e-6)[..., None]
    if weight.min() >= 1 or max(weight.shape) == 1:
        return mean
    h, w = weight.shape
    odd = ((0, h % 2), (0, w % 2))
    total = np.pad(total, (*odd, (0, 0)))
    weight2 = np.pad(weight, odd)
    fours = weight2.reshape((h + 1) // 2, 2, (w + 1) // 2, 2).sum((1, 3))
    sums = total.reshape((h + 1) // 2, 2, (w + 1) // 2, 2, 3).sum((1, 3))
    small = np.minimum(fours, 1)
    coarse = _pulled(sums * (small / np.maximum(fours, 1e-6))[..., None], small)
    size = (2 * coarse.shape[1], 2 * coarse.shape[0])
    wide = cv2.resize(np.ascontiguousarray(coarse), size, interpolation=cv2.INTER_LINEAR)
    wide = wide.reshape(size[1], size[0], 3)[:h, :w]
    kept = np.minimum(weight, 1)[..., None]
    return mean * kept + wide * (1 - kept)
