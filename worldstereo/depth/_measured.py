"""Learned depth where nothing was measured, where held-out measurements confirm it."""

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldstereo.depth._base import align

_BLOCKS = 27  # along the longer side: neighbours say the same, so whole blocks are held out
_FOLDS = 5
_CLOSE = 0.05  # of the depth: as near as sensors and stereo agree between views
_SHARE = 0.7  # of the held-out pixels around that must be so near
_MIN_SAMPLES = 20
_BETTER = 0.5  # of the error of one plane that faces the camera: what fits no better knows nothing


def _fitted(depth: Tensor, measured: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """As `align`, begun from the pair of pixels that most others agree with.

    Where a model is wrong it is so in one piece, far from the rest: a fit to all begins too near.

    Source: Rousseeuw, Least median of squares regression, JASA 1984.
    """
    x, y = depth[mask].double().reciprocal(), measured[mask].double().reciprocal()
    some = torch.randint(len(x), (min(2000, 4 * len(x)),), generator=generator)
    xs, ys = x[some], y[some]
    first, second = torch.randint(len(xs), (2, 300), generator=generator)
    run = xs[first] - xs[second]
    a = (ys[first] - ys[second]) / torch.where(run.abs() > 1e-12, run, torch.inf)
    b = ys[first] - a * xs[first]
    off = ((a[:, None] * xs + b[:, None]) / ys - 1).abs()
    off[a <= 0] = torch.inf
    best = off.kthvalue(max(1, int(0.6 * len(xs))), dim=1).values.argmin()
    inverse = a[best] / depth.double().clamp_min(1e-9) + b[best]
    near = (inverse * measured.double() - 1).abs() < 2 * _CLOSE
    agreed = mask & near
    return align(depth, measured, agreed if int(agreed.sum()) >= 16 else mask)


def confirmed(
    depth: Float[Tensor, "1 H W"], measured: Float[Tensor, "1 H W"], *, seed: int = 0
) -> tuple[Float[Tensor, "1 H W"], Bool[Tensor, "1 H W"]]:
    """`depth` in the units of what was measured, and where to believe it.

    Each fifth of the measured blocks is held out once: scale and shift of the inverse are fitted to
    the others, and how well that fifth is met says, around every pixel, whether the depth holds
    there. What no measured pixel is near to is not believed, and nothing where the depth explains
    the measurements hardly better than one plane that faces the camera. The depth returned is then
    fitted to all that was measured.
    """
    known = (measured > 0) & (depth > 0)
    H, W = known.shape[-2:]
    side = max(4, round(max(H, W) / _BLOCKS))
    rows, columns = -(-H // side), -(-W // side)
    generator = torch.Generator().manual_seed(seed)
    fold = torch.randperm(rows * columns, generator=generator).reshape(rows, columns) % _FOLDS
    fold = fold.repeat_interleave(side, 0).repeat_interleave(side, 1)[:H, :W][None]
    fold = fold.to(known.device)
    error = torch.full_like(measured, torch.inf)
    for k in range(_FOLDS):
        rest, held = known & (fold != k), known & (fold == k)
        if int(rest.sum()) < 16 or int(held.sum()) < _MIN_SAMPLES:
            return depth, torch.zeros_like(known)
        fitted = _fitted(depth, measured, rest, generator)
        error[held] = (fitted[held] / measured[held] - 1).abs()
    flat = (measured[known].median() / measured[known] - 1).abs()
    if float(error[known].median()) > _BETTER * float(flat.median()):
        return depth, torch.zeros_like(known)
    good = known & (error < _CLOSE)
    reach = max(H, W) / 8  # how far a confirmation carries
    size = int(reach) * 2 + 1
    there, right = (
        cv2.boxFilter(
            mask[0].cpu().numpy().astype(np.float32), -1, (size, size),
            normalize=False, borderType=cv2.BORDER_CONSTANT,
        )
        for mask in (known, good)
    )  # fmt: skip
    believed = (there >= _MIN_SAMPLES) & (right >= _SHARE * there)
    final = _fitted(depth, measured, known, generator)
    return final, torch.from_numpy(believed)[None].to(known.device) & (final > 0)
