"""How both memories enter the compact backbone: two control branches on the same tokens.

The global memory adds what it shows in each patch (`inject_to_latent`); the spatial memory answers
each patch by `constrained_attention` at the surface seen there. Both look at the same tokens, side
by side, and both end in projections built as zeros: a fresh model is the same bits with and
without memories. Stored points and entries receive no gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldstereo.cameras import Cameras
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.render import RenderResult, render_points


class Surfaces(NamedTuple):
    """Where the middle of each patch meets a remembered surface."""

    points: Float[Tensor, "T N 3"]
    """World points; the camera's own position where nothing is remembered."""
    seen: Bool[Tensor, "T N"]
    render: RenderResult


def surfaces(
    geometry: GlobalGeometricMemory | None,
    stereo: SpatialStereoMemory | None,
    cameras: Cameras,
    rows: int,
    columns: int,
) -> Surfaces:
    """The surface in each patch: of the cloud, or with that switched off of the bank's own points.

    Of the pixels of a patch the one nearest to its middle that shows a surface decides.
    """
    with torch.no_grad():
        if geometry is not None and not geometry.is_empty:
            render = geometry.render(cameras)
        else:
            render = render_points(*_bank_points(stereo, cameras), cameras)
        T, p = len(cameras), cameras.height // rows
        depth = render.depth.reshape(T, rows, p, columns, p).transpose(2, 3).flatten(3)
        offset = torch.arange(p, device=depth.device) - (p - 1) / 2
        away = (offset[:, None] ** 2 + offset**2).flatten()
        pick = (away + (depth <= 0) * 1e6).argmin(dim=-1, keepdim=True)
        depth = depth.gather(-1, pick)[..., 0].reshape(T, -1)
        pixels = cameras.pixel_grid(rows, columns).expand(T, -1, 2)
        points = cameras.unproject(pixels, depth.to(pixels))
        return Surfaces(points.float(), depth > 0, render)


def _bank_points(stereo: SpatialStereoMemory | None, cameras: Cameras) -> tuple[Tensor, Tensor]:
    points = torch.zeros(0, 3, device=cameras.c2w.device)
    if stereo is not None and stereo.size > 0:
        sure = stereo.confidence >= stereo.correspondence_threshold
        points = stereo.correspondences[sure].to(cameras.c2w.device)
    return points, torch.zeros_like(points)


class MemoryBranches(nn.Module):
    """The learned ends of the spatial branch; those of the global one live in its memory.

    Args:
        dim: width of the backbone's tokens.
        feature_dim: channels of an entry of the spatial memory.
    """

    def __init__(self, dim: int, feature_dim: int) -> None:
        super().__init__()
        self.ask = nn.Linear(dim, feature_dim)
        self.answer = nn.Linear(feature_dim + 1, dim, bias=False)
        nn.init.zeros_(self.answer.weight)

    def forward(
        self,
        tokens: Float[Tensor, "B T D h w"],
        cameras: Sequence[Cameras],
        geometry: GlobalGeometricMemory | None,
        stereo: SpatialStereoMemory | None,
        seen: Sequence[Surfaces],
    ) -> Float[Tensor, "B T D h w"]:
        """Tokens with what both memories add; a memory that is None is switched off."""
        if geometry is not None and geometry.is_empty:
            geometry = None
        if stereo is not None and stereo.size == 0:
            stereo = None
        out = []
        for b, camera in enumerate(cameras):
            both = one = tokens[b : b + 1]
            if geometry is not None:
                both = geometry.inject_to_latent(one, camera)
            if stereo is not None:
                both = both + self.attended(one[0], camera, stereo, seen[b])[None]
            out.append(both)
        return torch.cat(out)

    def attended(
        self,
        tokens: Float[Tensor, "T D h w"],
        cameras: Cameras,
        stereo: SpatialStereoMemory,
        seen: Surfaces,
    ) -> Float[Tensor, "T D h w"]:
        """What the spatial memory adds to the tokens of one clip."""
        answer, found = answers(self.ask(tokens.flatten(2).mT), cameras, stereo, seen)
        change = self.answer(torch.cat([answer, found[..., None].to(answer)], dim=-1))
        return change.mT.reshape(tokens.shape)


def answers(
    queries: Float[Tensor, "T N F"], cameras: Cameras, stereo: SpatialStereoMemory, seen: Surfaces
) -> tuple[Float[Tensor, "T N F"], Bool[Tensor, "T N"]]:
    """Constrained attention at the surfaces seen, and which patches found anything."""
    T, N = seen.seen.shape
    output, (pairs, _) = stereo.constrained_attention(
        queries, seen.points, cameras, return_weights="sparse", occluder=seen.render
    )
    found = torch.zeros(T, N, dtype=torch.bool, device=output.device)
    found[pairs[0], pairs[1]] = True
    found &= seen.seen
    return output * found[..., None], found


def patch_grid(height: int, width: int, patch: int, budget: int) -> tuple[int, int]:
    """Rows and columns of the entries of one frame: four for each patch side, or what fits."""
    step = max(1, patch // 4)
    while (height // step) * (width // step) > max(1, budget) and step < max(height, width):
        step += 1
    return max(1, height // step), max(1, width // step)


def patch_entries(
    color: Float[Tensor, "T 3 H W"], rows: int, columns: int, patch: int, feature_dim: int
) -> Float[Tensor, "T F rows columns"]:
    """The pixels around each cell's middle, centred on 0, as the channels of an entry.

    Patches overlap where the grid is finer than they are. Where `feature_dim` is smaller than a
    patch has numbers, the patch is averaged to fewer cells; channels left over are 0.
    """
    T, C, H, W = color.shape
    side = max(s for s in range(1, patch + 1) if s == 1 or C * s * s <= feature_dim)
    v = (torch.arange(rows, device=color.device) + 0.5) * (H / rows)
    u = (torch.arange(columns, device=color.device) + 0.5) * (W / columns)
    inside = ((torch.arange(side, device=color.device) + 0.5) / side - 0.5) * patch
    y = (v[:, None] + inside).reshape(-1) / H * 2 - 1
    x = (u[:, None] + inside).reshape(-1) / W * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).to(color)
    blurred = F.avg_pool2d(color, patch // side, 1) if side * 2 <= patch else color
    looked = F.grid_sample(
        blurred - 0.5,
        grid[None].expand(T, -1, -1, -1),
        padding_mode="border",
        align_corners=False,
    )
    cells = looked.reshape(T, C, rows, side, columns, side).permute(0, 1, 3, 5, 2, 4)
    flat = cells.reshape(T, C * side * side, rows, columns)[:, :feature_dim]
    return F.pad(flat, (0, 0, 0, 0, 0, feature_dim - flat.shape[1]))
