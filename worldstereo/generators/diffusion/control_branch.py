"""The control branch: shows the rendered guide, its holes and the camera rays to the backbone.

Fresh from `ControlBranch(...)` its output projections and the second mask convolution are zero, so
it changes nothing until weights are loaded. Names of modules are those of the published
checkpoints.
"""

from collections.abc import Iterator

from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn
from torch.nn import functional

from worldstereo.generators.diffusion.config import ControlConfig
from worldstereo.generators.diffusion.embeddings import StitchedRotary, TokenEntry


class MaskEmbedding(nn.Module):
    """Hole mask and camera rays, at pixel resolution, to one token per 16 x 16 pixels."""

    def __init__(
        self,
        add_channels: int,
        mid_channels: int,
        conv_out_dim: int,
        mask_downsample: int = 4,
        interp: bool = False,
    ) -> None:
        super().__init__()
        self.mask_downsample, self.interp = mask_downsample, interp
        kernel = (mask_downsample, 8, 8)
        self.mask_proj = nn.Sequential(
            nn.Conv3d(add_channels, mid_channels, kernel_size=kernel, stride=kernel),
            nn.GroupNorm(mid_channels // 8, mid_channels, eps=1e-5),
            nn.SiLU(),
        )
        self.mask_zero_proj = nn.Conv3d(
            mid_channels, conv_out_dim, kernel_size=(1, 2, 2), stride=(1, 2, 2)
        )
        nn.init.zeros_(self.mask_zero_proj.weight)
        nn.init.zeros_(self.mask_zero_proj.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, add_inputs: Tensor) -> Tensor:
        """(B, add_channels, Fp, H, W) to (B, F * H/16 * W/16, conv_out_dim)."""
        if self.mask_downsample > 1:  # the first frame stands alone, as in the temporal VAE
            add_inputs = functional.pad(add_inputs, (0, 0, 0, 0, 3, 3 if self.interp else 0))
        return self.mask_zero_proj(self.mask_proj(add_inputs)).flatten(2).transpose(1, 2)


class ModulatedNorm(nn.Module):
    """Layer norm whose shift and scale, and a gate for the branch behind it, come from time."""

    def __init__(self, dim: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(time_embed_dim, 3 * dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, tokens: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        modulation = self.linear(functional.silu(temb))[:, None]
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return self.norm(tokens) * (1 + scale) + shift, gate


class ControlBlock(nn.Module):
    """Gated self-attention over all tokens of all frames, then a gated feed-forward; no text."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, time_embed_dim: int) -> None:
        super().__init__()
        self.norm1 = ModulatedNorm(dim, time_embed_dim)
        self.self_attn = WanAttention(
            dim, heads=heads, dim_head=dim // heads, eps=1e-6, processor=WanAttnProcessor()
        )
        self.norm2 = ModulatedNorm(dim, time_embed_dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim)
        )

    def forward(self, hidden_states: Tensor, temb: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """(B, S, dim) with `temb` (B, time_embed_dim) before its SiLU, and rotary tables."""
        tokens, gate = self.norm1(hidden_states, temb)
        hidden_states = hidden_states + gate * self.self_attn(tokens, rotary_emb=rotary)
        tokens, gate = self.norm2(hidden_states, temb)
        return hidden_states + gate * self.ffn(tokens)


class ControlBranch(nn.Module):
    """Patch and mask tokens through narrow blocks; one residual for each of the first blocks."""

    def __init__(
        self,
        config: ControlConfig,
        in_channels: int,
        out_dim: int,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        max_seq_len: int = 1024,
    ) -> None:
        super().__init__()
        dim, width = config.dim, config.conv_out_dim
        self.controlnet_patch_embedding = nn.Conv3d(
            in_channels, width, kernel_size=patch_size, stride=patch_size
        )
        self.controlnet_mask_embedding = MaskEmbedding(
            config.add_channels, config.mid_channels, width, config.mask_downsample, config.interp
        )
        self.proj_in = nn.Linear(width, dim) if width != dim else nn.Identity()
        self.rope = StitchedRotary(dim // config.num_heads, patch_size, max_seq_len)
        self.token_entry = TokenEntry()
        self.controlnet_blocks = nn.ModuleList(
            ControlBlock(dim, config.ffn_dim, config.num_heads, config.time_embed_dim)
            for _ in range(config.num_layers)
        )
        self.proj_out = nn.ModuleList(nn.Linear(dim, out_dim) for _ in range(config.num_layers))
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, control_input: Tensor, add_inputs: Tensor, temb: Tensor) -> list[Tensor]:
        """All residuals at once; see `stream`."""
        return list(self.stream(control_input, add_inputs, temb))

    def stream(self, control_input: Tensor, add_inputs: Tensor, temb: Tensor) -> Iterator[Tensor]:
        """Residuals (B, F*R*C, out_dim), one for each block of the branch, each when asked for.

        Twenty residuals of a full-size clip are 6.7 GB in half precision; one at a time is 0.3.

        Args:
            control_input: (B, 36, F, h, w): noise, first-frame mask, latent of the guide.
            add_inputs: (B, 1 or 7, Fp, H, W): hole mask (1 = hole), then camera rays.
            temb: (B, time_embed_dim), the time embedding before its six-way projection.
        """
        dtype = self.controlnet_patch_embedding.weight.dtype  # float32 beside a half backbone
        control_input, add_inputs, temb = (x.to(dtype) for x in (control_input, add_inputs, temb))
        rotary = self.rope(control_input)
        tokens = self.controlnet_patch_embedding(control_input).flatten(2).transpose(1, 2)
        tokens = self.proj_in(tokens + self.controlnet_mask_embedding(add_inputs))
        tokens = self.token_entry(tokens)
        for block, project in zip(self.controlnet_blocks, self.proj_out, strict=True):
            tokens = block(tokens, temb, rotary)
            yield project(tokens)
