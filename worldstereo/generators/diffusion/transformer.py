"""The camera-controlled transformer: the Wan backbone with a control branch beside it.

Built on diffusers' `WanTransformer3DModel`; the state dict has the names of the published
checkpoints, so base weights and WorldStereo weights load as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.utils import apply_lora_scale
from torch import Tensor

from worldstereo.generators.diffusion.config import ControlConfig
from worldstereo.generators.diffusion.control_branch import ControlBranch
from worldstereo.generators.diffusion.embeddings import StitchedRotary, TokenEntry

NOISE_AND_MASK = 20  # channels of the input that the control branch sees too
_split = ContextParallelInput(split_dim=1, expected_dims=4, split_output=True)
_tokens = ContextParallelInput(split_dim=1, expected_dims=3, split_output=False)


class WorldStereoModel(WanTransformer3DModel):
    """Predicts the flow velocity of keyframe latents from a guide, its holes and camera rays.

    Arguments are those of `WanTransformer3DModel` and `controlnet_cfg`, a mapping with the fields
    of `ControlConfig`.
    """

    _cp_plan = {
        "rope": {0: _split, 1: _split},
        "token_entry": {"hidden_states": _tokens},
        "controlnet.rope": {0: _split, 1: _split},
        "controlnet.token_entry": {"hidden_states": _tokens},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    _no_split_modules = ["WanTransformerBlock", "ReferenceBlock", "ControlBlock"]
    _repeated_blocks = ["WanTransformerBlock", "ReferenceBlock", "ControlBlock"]

    _skip_layerwise_casting_patterns = [
        "patch_embedding",
        "condition_embedder",
        "camera_embedding",
        "mask_embedding",
        "norm",
    ]

    @register_to_config
    def __init__(
        self,
        patch_size: Sequence[int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 36,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = 1280,
        added_kv_proj_dim: int | None = 5120,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        controlnet_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            patch_size=tuple(patch_size),
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
            cross_attn_norm=cross_attn_norm,
            qk_norm=qk_norm,
            eps=eps,
            image_dim=image_dim,
            added_kv_proj_dim=added_kv_proj_dim,
            rope_max_seq_len=rope_max_seq_len,
            pos_embed_seq_len=pos_embed_seq_len,
        )
        if controlnet_cfg is None:
            raise ValueError(
                "controlnet_cfg is required: the control branch has no default widths."
            )
        width = num_attention_heads * attention_head_dim
        self.control_config = ControlConfig.of(controlnet_cfg)
        if self.control_config.conv_out_dim != width:
            raise ValueError(
                f"controlnet_cfg.conv_out_dim must equal the backbone width {width}, "
                f"got {self.control_config.conv_out_dim}."
            )
        if self.control_config.time_embed_dim != width:
            raise ValueError(
                f"controlnet_cfg.time_embed_dim must equal the backbone width {width}, "
                f"got {self.control_config.time_embed_dim}."
            )
        patch = (int(patch_size[0]), int(patch_size[1]), int(patch_size[2]))
        self.rope = StitchedRotary(attention_head_dim, patch, rope_max_seq_len)
        self.token_entry = TokenEntry()
        self.controlnet = ControlBranch(
            self.control_config, in_channels, width, patch, rope_max_seq_len
        )
        if self.patch_embedding.weight.device.type != "meta":
            self.controlnet.controlnet_patch_embedding.load_state_dict(
                self.patch_embedding.state_dict()
            )

    @apply_lora_scale("attention_kwargs")
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        render_latent: Tensor | None = None,
        render_mask: Tensor | None = None,
        camera_embedding: Tensor | None = None,
        extrinsics: Tensor | None = None,
        intrinsics: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Flow velocity (B, 16, F, h, w).

        Args:
            hidden_states: (B, 36, F, h, w): noise (16), first-frame mask (4), condition (16).
            timestep: (B,), 0 .. 1000.
            encoder_hidden_states: text (B, 512, text width).
            encoder_hidden_states_image: CLIP tokens of the start picture (B, tokens, width).
            render_latent: the guide, keyframe-encoded and normalised (B, 16, F, h, w).
            render_mask: (B, 1, Fp, H, W), 1 = hole.
            camera_embedding: rays (B, 6, Fp, H, W), direction first, moment second.
            extrinsics, intrinsics: checked to be finite and otherwise without effect.
            attention_kwargs: `{"scale": s}` scales LoRA adapters.

        Raises:
            ValueError: a control input is missing, not finite, or of another size.
        """
        check_finite(extrinsics=extrinsics, intrinsics=intrinsics)
        self.check_latents(hidden_states, encoder_hidden_states)
        state = self.prepare(
            hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_image
        )
        residuals = self.control(hidden_states, render_latent, render_mask, camera_embedding, state)
        rotary = self.rope(hidden_states)
        tokens = self.token_entry(self.embed(hidden_states))
        for block in self.blocks:
            tokens = block(tokens, state.context, state.modulation, rotary)
            residual = next(residuals, None)
            if residual is not None:
                tokens = tokens + residual.type_as(tokens)
        return self.finish(tokens, state.temb, hidden_states, return_dict)

    # ---- steps that both classes share ---------------------------------------------------------

    def embed(self, latents: Tensor) -> Tensor:
        """Latents (B, 36, F, h, w) to tokens (B, F*R*C, D)."""
        return self.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()

    def check_latents(self, latents: Tensor, text: Tensor) -> None:
        """Raises `ValueError` for latents or text of a size that the model does not take."""
        channels = self.config["in_channels"]
        if latents.ndim != 5 or latents.shape[1] != channels:
            raise ValueError(
                f"hidden_states must be (B, {channels}, F, h, w), got {tuple(latents.shape)}."
            )
        if latents.shape[-1] % 2 or latents.shape[-2] % 2:
            raise ValueError(
                f"height and width must be multiples of 16 pixels (even latent sizes), "
                f"got latents of {latents.shape[-2]} x {latents.shape[-1]}."
            )
        if text.ndim != 3 or text.shape[1] != 512:
            raise ValueError(
                f"encoder_hidden_states must hold 512 text tokens, got {tuple(text.shape)}."
            )

    def prepare(
        self, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None
    ) -> "Conditioning":
        """Time, text and image, embedded."""
        temb, modulation, text, image = self.condition_embedder(timestep, text, image)
        context = text if image is None else torch.cat([image, text], dim=1)
        return Conditioning(temb, modulation.unflatten(1, (6, -1)), context)

    def control(
        self,
        latents: Tensor,
        render_latent: Tensor | None,
        render_mask: Tensor | None,
        camera_embedding: Tensor | None,
        state: "Conditioning",
    ) -> Iterator[Tensor]:
        """Residuals of the control branch, one per control block, each when asked for."""
        if render_latent is None or render_mask is None:
            raise ValueError("render_latent and render_mask are required: the guide and its holes.")
        if render_latent.shape[2:] != latents.shape[2:]:
            raise ValueError(
                f"render_latent must be {tuple(latents.shape[2:])} in frames and size like "
                f"hidden_states, got {tuple(render_latent.shape[2:])}."
            )
        maps = [render_mask] if camera_embedding is None else [render_mask, camera_embedding]
        add_inputs = torch.cat([m.to(latents.dtype) for m in maps], dim=1)
        expected = self.control_config.add_channels
        if add_inputs.shape[1] != expected:
            raise ValueError(
                f"render_mask and camera_embedding must give {expected} channels together, "
                f"got {add_inputs.shape[1]}."
            )
        frames, md = latents.shape[2], self.control_config.mask_downsample
        maps_frames = frames if md == 1 else md * (frames - 1) + 1
        size = (maps_frames, latents.shape[3] * 8, latents.shape[4] * 8)
        if tuple(add_inputs.shape[2:]) != size and not self.control_config.interp:
            raise ValueError(
                f"render_mask and camera_embedding must be {size} in frames, height and width, "
                f"got {tuple(add_inputs.shape[2:])}."
            )
        seen = torch.cat([latents[:, :NOISE_AND_MASK], render_latent.to(latents.dtype)], dim=1)
        return self.controlnet.stream(seen, add_inputs, state.temb)

    def finish(
        self, tokens: Tensor, temb: Tensor, latents: Tensor, return_dict: bool
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Output norm, projection and un-patching back to (B, 16, F, h, w)."""
        shift, scale = (self.scale_shift_table.to(temb.device) + temb[:, None]).chunk(2, dim=1)
        shift, scale = shift.to(tokens.device), scale.to(tokens.device)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        patches = self.proj_out(tokens)
        p_t, p_h, p_w = self.rope.patch_size
        frames, rows, columns = self.rope.grid(latents)
        patches = patches.reshape(len(latents), frames, rows, columns, p_t, p_h, p_w, -1)
        patches = patches.permute(0, 7, 1, 4, 2, 5, 3, 6)
        sample = patches.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


class Conditioning:
    """What time, text and picture say to every block."""

    def __init__(self, temb: Tensor, modulation: Tensor, context: Tensor) -> None:
        self.temb = temb
        """(B, D)"""
        self.modulation = modulation
        """(B, 6, D)"""
        self.context = context
        """(B, image tokens + 512, D)"""


def check_finite(**tensors: Tensor | None) -> None:
    for name, value in tensors.items():
        if value is not None and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must hold only finite numbers.")
