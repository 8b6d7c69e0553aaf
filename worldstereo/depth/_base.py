"""What an estimator of depth is, the camera it assumes, and how its depth is fitted to others'."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldstereo.cameras import Cameras

DEFAULT_FOV = math.radians(60.0)  # of the long side, where nothing says better

OUTLIERS = 0.02
"""Share of the known pixels that may contradict any fit: sky beside a surface, a misplaced edge."""


class DepthEstimate(NamedTuple):
    """What an estimator makes of one picture."""

    depth: Float[Tensor, "1 H W"]
    """Scene units; above 0 everywhere."""
    confidence: Float[Tensor, "1 H W"]
    """A weight in [0, 1]; never a threshold."""
    rough: bool
    """True: a layout guess that must be labelled as such."""
    cameras: Cameras
    """The single camera that was given, or the one that was assumed."""


@runtime_checkable
class DepthEstimator(Protocol):
    """Depth of one picture, deterministic."""

    def __call__(
        self, color: Float[Tensor, "3 H W"], cameras: Cameras | None = None
    ) -> DepthEstimate: ...


def default_camera(width: int, height: int, fov: float = DEFAULT_FOV) -> Cameras:
    """A camera at the origin looking along +z; `fov` in radians across the longer side."""
    focal = max(width, height) / 2 / math.tan(fov / 2)
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return Cameras(K, torch.eye(4), width, height)


def align(
    depth: Float[Tensor, "1 H W"],
    reference: Float[Tensor, "1 H W"],
    mask: Bool[Tensor, "1 H W"] | None = None,
    *,
    rounds: int = 10,
) -> Float[Tensor, "1 H W"]:
    """`depth` with scale and shift of its inverse fitted to a reference, robust to outliers.

    Minimises |a / depth + b - 1 / reference| over the pixels of `mask` with known depth on both
    sides, by reweighted least squares. When the fit would turn depth inside out, or push more than
    an outlier's share of what is known past infinity, or fewer than 16 pixels are known, only the
    median scale is used; without any pixel, depth is returned as it is.

    Source: Ranftl et al., Towards robust monocular depth estimation, TPAMI 2022, section 5.
    """
    known = (depth > 0) & (reference > 0)
    known = known if mask is None else known & mask
    if not bool(known.any()):
        return depth
    x, y = depth[known].double().reciprocal(), reference[known].double().reciprocal()
    scale_only = depth * float((x / y).median())
    if len(x) < 16:
        return scale_only
    weight = torch.ones_like(x)
    a, b = 1.0, 0.0
    for _ in range(rounds):
        total = weight.sum()
        mx, my = (weight * x).sum() / total, (weight * y).sum() / total
        spread = (weight * (x - mx) ** 2).sum()
        if float(spread) < 1e-12 * float(total) * float(mx) ** 2:
            return scale_only
        a = float((weight * (x - mx) * (y - my)).sum() / spread)
        b = float(my - a * mx)
        error = (a * x + b - y).abs()
        weight = 1 / error.clamp_min(float(error.median()) * 0.5 + 1e-9)
    inverse = torch.where(depth > 0, a / depth + b, 0.0)
    if a <= 0 or float((inverse[known] <= 0).double().mean()) > OUTLIERS:
        return scale_only
    # A pixel that the shift pushes past infinity is far: ten times the farthest that is no outlier.
    floor = float(y.kthvalue(1 + int(OUTLIERS * (len(y) - 1))).values) * 0.1
    return torch.where(depth > 0, inverse.clamp_min(floor).reciprocal(), 0.0).to(depth)
