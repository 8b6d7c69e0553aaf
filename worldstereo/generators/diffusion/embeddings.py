"""Position tables: the Wan rotary embedding, and its stitched form for reference views.

Tokens are numbered frame-major, then by row, then by column. Tables repeat each value for the two
members of a rotated pair, as diffusers' Wan attention expects, and are float32 buffers that no
checkpoint holds.
"""

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn


class StitchedRotary(WanRotaryPosEmbed):
    """Rotary tables for target tokens and for reference tokens stitched to their right.

    Reference k takes the columns behind the target's last one, and the frame `ref_index[k] + 1`:
    it stands beside one target frame in position space only.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: Tensor, ref_index: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Cosine and sine of (1, tokens, 1, head width) for targets, then for references if any.

        Args:
            hidden_states: latents (B, C, F, h, w); only the size is read.
            ref_index: (N,) integers, the slot of each reference; None without references.
        """
        tables: tuple[Tensor, ...] = tuple(super().forward(hidden_states))
        if ref_index is None:
            return tables
        _, rows, columns = self.grid(hidden_states)
        frames = ref_index.to(hidden_states.device).long() + 1
        return *tables, *self.at(frames, rows, columns, columns)

    def grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Frames, token rows and token columns of latents (B, C, F, h, w)."""
        f, h, w = latents.shape[-3:]
        p_t, p_h, p_w = self.patch_size
        return f // p_t, h // p_h, w // p_w

    def at(
        self, frames: Tensor, rows: int, columns: int, first_column: int
    ) -> tuple[Tensor, Tensor]:
        """Tables of (1, frames * rows * columns, 1, width) for any frames and a shifted column."""
        last = int(frames.max()) if len(frames) else 0
        if max(last, rows - 1, first_column + columns - 1) >= self.max_seq_len:
            raise ValueError(
                f"positions must stay below {self.max_seq_len}, got frame {last}, "
                f"row {rows - 1} and column {first_column + columns - 1}."
            )
        found = []
        for name in ("freqs_cos", "freqs_sin"):
            table = self.get_buffer(name)
            t, h, w = table.split([self.t_dim, self.h_dim, self.w_dim], dim=1)
            shape = (len(frames), rows, columns, -1)
            parts = [
                t[frames.to(t.device)][:, None, None].expand(shape),
                h[:rows][None, :, None].expand(shape),
                w[first_column : first_column + columns][None, None].expand(shape),
            ]
            found.append(torch.cat(parts, dim=-1).flatten(0, 2)[None, :, None])
        return found[0], found[1]


class TokenEntry(nn.Module):
    """Where tokens enter the blocks: does nothing, but parallel plans can split here."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


def pose_embedding(camera_dim: int, width: int) -> nn.Sequential:
    """The MLP that turns a pose vector into one token-wide vector per frame."""
    half = width // 2
    layers = [nn.Linear(camera_dim, half), nn.SiLU(), nn.Linear(half, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, width))
