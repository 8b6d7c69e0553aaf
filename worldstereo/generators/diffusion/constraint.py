"""Which reference tokens correspond to which target tokens in 3D, by the project's own mask.

A token stands for 16 x 16 pixels; its point is that of its middle pixel. Reference tokens become
entries of a `SpatialStereoMemory`, target tokens its queries, so the rules (window, depth
agreement, confidence) are those of the memory and are written nowhere again.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.generators.diffusion.attention import ReferenceConstraint
from worldstereo.memory.stereo import SpatialStereoMemory

TOKEN = 16
WINDOW = 48.0
"""Side of the correspondence window in pixels of the target: a token and its neighbours."""


def token_points(
    depth: Float[Tensor, "T 1 H W"], cameras: Cameras
) -> tuple[Float[Tensor, "T P 3"], Float[Tensor, "T P"]]:
    """World point and depth of each token's middle pixel, row by row; depth 0 where unknown."""
    height, width = depth.shape[-2:]
    rows = torch.arange(TOKEN // 2, height, TOKEN)
    columns = torch.arange(TOKEN // 2, width, TOKEN)
    z = depth[:, 0][:, rows][:, :, columns].flatten(1)
    v, u = torch.meshgrid(rows + 0.5, columns + 0.5, indexing="ij")
    pixels = torch.stack([u, v], dim=-1).reshape(1, -1, 2).to(depth).expand(len(depth), -1, -1)
    return cameras.unproject(pixels, z), z


def correspondence_pairs(
    depth: Float[Tensor, "F 1 H W"],
    cameras: Cameras,
    reference_depth: Float[Tensor, "N 1 H W"],
    reference_cameras: Cameras,
    window: float = WINDOW,
) -> Int[Tensor, "2 P"]:
    """Sparse (target token, reference token) pairs that show the same place.

    Args:
        depth: of the targets, scene units; 0 where no memory knows the surface (no pairs there).
        cameras: (F,) at the size of the frames.
        reference_depth: of the references, at the same size.
        reference_cameras: (N,).

    Tokens are numbered frame by frame, row by row, as in the model.
    """
    points, z = token_points(depth, cameras)
    entries, known = token_points(reference_depth, reference_cameras)
    known = known.flatten() > 0
    slots = torch.nonzero(known).flatten()
    if len(slots) == 0:
        return torch.zeros(2, 0, dtype=torch.int64)
    memory = SpatialStereoMemory(
        memory_size=len(slots), feature_dim=1, num_correspondences=1, attention_window=window
    )
    memory.add_to_memory(
        torch.zeros(len(slots), 1),
        entries.flatten(0, 1)[slots][:, None].float(),
        torch.ones(len(slots), 1),
    )
    batch, query, slot = memory.correspondence_mask(points.float(), cameras)
    seen = (z > 0)[batch, query]
    target = batch * points.shape[1] + query
    return torch.stack([target[seen], slots[slot[seen]]])


def constraint_of(
    mode: str, pairs: Int[Tensor, "2 P"], strength: float = 4.0
) -> ReferenceConstraint | None:
    """The constraint for the model; None for "none", which is the released behaviour bit by bit."""
    constraint = ReferenceConstraint(mode, pairs, strength)
    return None if mode == "none" else constraint
