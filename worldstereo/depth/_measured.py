"""Learned depth where nothing was measured, where held-out measurements confirm it."""

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldstereo.depth._base import align

_BLOCK = 24  # pixels: neighbours of a measured pixel say the same, so whole blocks are held out
_CLOSE = 0.05  # of the depth: as near as sensors and stereo agree between views
_SHARE = 0.7  # of the held-out pixels around that must be so near
_ENOUGH = 20


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

    Scale and shift of its inverse are fitted to four fifths of the measured blocks; the rest says,
    around every pixel, whether it holds there. What no held-out pixel is near to is not believed.
    The depth returned is then fitted to all that was measured.
    """
    known = (measured > 0) & (depth > 0)
    H, W = known.shape[-2:]
    rows, columns = -(-H // _BLOCK), -(-W // _BLOCK)
    generator = torch.Generator().manual_seed(seed)
    held = torch.rand(rows, columns, generator=generator) < 0.2
    held = held.repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)[:H, :W][None]
    held = held.to(known.device)
    nothing = torch.zeros_like(known)
    if int((known & ~held).sum()) < 16 or int((known & held).sum()) < _ENOUGH:
        return depth, nothing
    fitted = _fitted(depth, measured, known & ~held, generator)
    off = (fitted / measured.clamp_min(1e-9) - 1).abs()
    error = torch.where(known, off, torch.zeros_like(depth))
    test = (known & held)[0].cpu().numpy().astype(np.float32)
    good = test * (error[0].cpu().numpy() < _CLOSE)
    reach = max(H, W) / 8  # how far a confirmation carries
    size = int(reach) * 2 + 1
    there = cv2.boxFilter(test, -1, (size, size), normalize=False, borderType=cv2.BORDER_CONSTANT)
    right = cv2.boxFilter(good, -1, (size, size), normalize=False, borderType=cv2.BORDER_CONSTANT)
    believed = (there >= _ENOUGH) & (right >= _SHARE * there)
    final = _fitted(depth, measured, known, generator)
    return final, torch.from_numpy(believed)[None].to(known.device) & (final > 0)
