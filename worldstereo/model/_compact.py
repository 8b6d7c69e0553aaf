"""The compact backbone: a small video transformer on the patch grid, trained from scratch here.

Each token is one patch of one frame. A block is attention within the frame, attention over time at
the same patch, and a feed-forward layer. The condition image and the camera rays enter as extra
channels; the two memories enter through `branches`, which the model passes in: the backbone knows
nothing of them and trains without them.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from worldstereo.cameras import Cameras

RAYS = 6
Branches = Callable[[Tensor], Tensor]
"""`(B, T, D, rows, columns)` tokens to the same with what the memories add."""


class CompactBackbone(nn.Module):
    """Predicts noise (or what `prediction_type` says) for (B, T, C, H, W).

    Args:
        channels: of the state, which are those of the images or of latents.
        hidden_dim: width of a token; num_heads must divide it.
        patch_size: side of a patch in pixels of the state.
    """

    def __init__(
        self,
        *,
        channels: int,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        patch_size: int,
        temporal_attention: bool,
    ) -> None:
        super().__init__()
        self.channels, self.patch_size, self.hidden_dim = channels, patch_size, hidden_dim
        width = 2 * channels + 1 + RAYS
        self.enter = nn.Conv2d(width, hidden_dim, patch_size, patch_size)
        self.time = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.blocks = nn.ModuleList(
            Block(hidden_dim, num_heads, temporal_attention) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.leave = nn.Linear(hidden_dim, channels * patch_size**2)

    def forward(
        self,
        state: Float[Tensor, "B T C H W"],
        timesteps: Int[Tensor, "B"],
        condition: Float[Tensor, "B C H W"] | None,
        cameras: list[Cameras],
        branches: Branches | None = None,
    ) -> Float[Tensor, "B T C H W"]:
        """
        Args:
            condition: the clean first frame; None where it is withheld (guidance).
            cameras: one batch (T,) for each clip.
        """
        B, T, C, H, W = state.shape
        p, D = self.patch_size, self.hidden_dim
        rows, columns = H // p, W // p
        shown = torch.zeros_like(state[:, 0]) if condition is None else condition
        first = torch.zeros(B, T, 1, H, W, device=state.device, dtype=state.dtype)
        if condition is not None:
            first[:, 0] = 1
        rays = torch.stack([relative_rays(each, H, W) for each in cameras]).to(state)
        shown = shown[:, None].expand(B, T, C, H, W)
        tokens = self.enter(torch.cat([state, shown, first, rays], dim=2).flatten(0, 1))
        when = self.time(waves(timesteps.to(state), D))
        place = waves_2d(rows, columns, D).to(state)
        order = waves(torch.arange(T, device=state.device).to(state), D)[:, :, None, None]
        tokens = tokens.unflatten(0, (B, T)) + when[:, None, :, None, None]
        tokens = tokens + place + order
        if branches is not None:
            tokens = branches(tokens)
        x = tokens.flatten(3).movedim(2, 3)  # (B, T, N, D)
        for block in self.blocks:
            x = block(x)
        out = self.leave(self.norm(x)).reshape(B * T, rows * columns, -1)
        return F.fold(out.mT, (H, W), p, stride=p).unflatten(0, (B, T))


class Block(nn.Module):
    """Attention in space, attention in time, feed-forward; each with its own norm and residual."""

    def __init__(self, dim: int, heads: int, temporal: bool) -> None:
        super().__init__()
        self.space = Attention(dim, heads)
        self.time = Attention(dim, heads) if temporal else None
        self.norm = nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        B, T, N, _ = x.shape
        x = x + self.space(x.flatten(0, 1)).unflatten(0, (B, T))
        if self.time is not None:
            x = x + self.time(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (B, N)).transpose(1, 2)
        return x + self.feed(self.norm(x))


class Attention(nn.Module):
    """Softmax self-attention over the second axis."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "S N D"]) -> Float[Tensor, "S N D"]:
        S, N, D = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(S, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(S, N, D))


def relative_rays(cameras: Cameras, H: int, W: int) -> Float[Tensor, "T 6 H W"]:
    """Plücker rays in the frame of the first camera: moving the whole world changes nothing."""
    c2w = torch.linalg.inv(cameras.c2w[:1].double()) @ cameras.c2w.double()
    return Cameras(cameras.K.double(), c2w, cameras.width, cameras.height).plucker(H, W).float()


def waves(at: Float[Tensor, "n"], dim: int) -> Float[Tensor, "n dim"]:
    """Sines and cosines of a number, periods from 2 pi up to about 10 000."""
    half = max(1, dim // 2)
    rate = torch.exp(-math.log(1e4) * torch.arange(half, device=at.device, dtype=at.dtype) / half)
    angle = at[:, None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=-1), (0, dim))[:, :dim]


def waves_2d(rows: int, columns: int, dim: int) -> Float[Tensor, "dim rows columns"]:
    """The place of a patch in its frame: half of the channels for the row, half for the column."""
    down = waves(torch.arange(rows, dtype=torch.float32), dim // 2)
    across = waves(torch.arange(columns, dtype=torch.float32), dim - dim // 2)
    grid = [down[:, None].expand(rows, columns, -1), across[None].expand(rows, columns, -1)]
    return torch.cat(grid, dim=-1).movedim(-1, 0)
