"""Depth of one picture to coloured points, as the release prepares its render guide.

Kept for comparison with the release; this project's own memories make better guides.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

SHARPNESS, THRESHOLD, FAR = 10.0, 0.35, 8.0
MIN_POINTS = 9


def lift_depth(
    depth: Float[Tensor, "H W"],
    image: Float[Tensor, "3 H W"],
    K: Float[Tensor, "3 3"],
    w2c: Float[Tensor, "4 4"],
    invalid: Bool[Tensor, "H W"] | None = None,
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """World points and their colours, row by row, without invalid pixels and depth edges.

    Args:
        depth: z along the optical axis, scene units; not positive or not finite means unknown.
        image: colours, in whatever range they are wanted back.
        invalid: True where the depth model says so.

    Returns:
        No points at all where fewer than 9 would be left.
    """
    unknown = ~torch.isfinite(depth) | (depth <= 0)
    if invalid is not None:
        unknown = unknown | invalid
    depth = contract_depth(depth.masked_fill(unknown, 0))
    disparity = 1 / (depth + 1e-7)  # 1e7 where unknown: flattens the rest, as in the release
    keep = ~unknown & ~depth_edges(disparity[None, None])[0, 0]
    if int(keep.sum()) < MIN_POINTS:
        return depth.new_zeros(0, 3), image.new_zeros(0, 3)
    rows, columns = torch.nonzero(keep, as_tuple=True)
    pixels = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows)], dim=-1).to(depth)
    c2w = torch.linalg.inv(w2c.float())
    x_cam = (pixels @ torch.linalg.inv(K.float()).mT) * depth[keep][:, None]
    return x_cam @ c2w[:3, :3].mT + c2w[:3, 3], image[:, keep].mT


def contract_depth(depth: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    """Pulls what lies beyond eight median depths towards twice that distance."""
    known = depth[depth > 0]
    if len(known) == 0:
        return depth
    limit = FAR * known.median()
    far = 2 * limit - limit**2 / (depth + 1e-6)
    return torch.where(depth > limit, far, depth)


def depth_edges(
    disparity: Float[Tensor, "B 1 H W"], threshold: float = THRESHOLD
) -> Bool[Tensor, "B 1 H W"]:
    """True where disparity, scaled to 0 .. 1 over the picture, changes too steeply.

    Source: the Sobel operator (un-normalised, border replicated), then exp(-10 g) < threshold.
    """
    low = disparity.amin(dim=(-2, -1), keepdim=True)
    high = disparity.amax(dim=(-2, -1), keepdim=True)
    scaled = (disparity - low) / (high - low + 1e-6)
    x = scaled.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([x, x.mT])[:, None]
    gradient = functional.conv2d(functional.pad(scaled, (1, 1, 1, 1), mode="replicate"), kernels)
    steep = gradient.square().sum(dim=1, keepdim=True).sqrt()
    return torch.exp(-SHARPNESS * steep) < threshold
