"""The memory transformer: the same backbone, with reference views stitched into self-attention.

Despite the module names of the release nothing is sparse: each block runs one dense softmax over
all reference tokens followed by all target tokens. `constraint` narrows it on request.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from worldstereo.generators.diffusion.attention import (
    AttentionProbe,
    ReferenceConstraint,
    StitchedAttnProcessor,
)
from worldstereo.generators.diffusion.config import MAX_REFERENCES
from worldstereo.generators.diffusion.embeddings import TokenEntry, pose_embedding
from worldstereo.generators.diffusion.transformer import (
    WorldStereoModel,
    _split,
    _tokens,
    check_finite,
)


class ReferenceBlock(WanTransformerBlock):
    """A Wan block over two token streams that share every weight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stitched = StitchedAttnProcessor()
        self.attn1.set_processor(self.stitched)  # pyright: ignore[reportArgumentType]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        reference_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Target tokens (B, S, D) and reference tokens (B, Sr, D) after this block.

        References take part in self-attention and feed-forward but see no text and no picture.
        """
        e = (self.scale_shift_table + temb.float()).chunk(6, dim=1)
        target = modulated(self.norm1, hidden_states, e[0], e[1])
        reference = modulated(self.norm1, reference_states, e[0], e[1])
        seen, seen_reference = self.stitched(self.attn1, target, reference, rotary_emb)
        hidden_states = gated(hidden_states, seen, e[2])
        reference_states = gated(reference_states, seen_reference, e[2])

        normed = self.norm2(hidden_states.float()).type_as(hidden_states)
        hidden_states = hidden_states + self.attn2(normed, encoder_hidden_states, None, None)

        out = self.ffn(modulated(self.norm3, hidden_states, e[3], e[4]))
        hidden_states = gated(hidden_states, out.float(), e[5])
        out = self.ffn(modulated(self.norm3, reference_states, e[3], e[4]))
        return hidden_states, gated(reference_states, out.float(), e[5])


class WorldStereoRefSModel(WorldStereoModel):
    """The camera class with reference views and pose vectors.

    `controlnet_cfg` may also hold `update_ref`, `main_camera_embedding`, `camera_embedding_dim` and
    `ref_embedding` (a table that the forward pass never reads).
    """

    _cp_plan = {
        **WorldStereoModel._cp_plan,
        "rope": {0: _split, 1: _split, 2: _split, 3: _split},
        "reference_entry": {"hidden_states": _tokens},
    }

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
            patch_size=patch_size,
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
            controlnet_cfg=controlnet_cfg,
        )
        width = num_attention_heads * attention_head_dim
        for i in range(num_layers):
            self.blocks[i] = ReferenceBlock(
                width,
                ffn_dim,
                num_attention_heads,
                qk_norm,
                cross_attn_norm,
                eps,
                added_kv_proj_dim,
            )
        self.reference_entry = TokenEntry()
        control = self.control_config
        if control.main_camera_embedding:
            assert control.camera_embedding_dim is not None
            self.camera_embedding = pose_embedding(control.camera_embedding_dim, width)
        else:
            self.camera_embedding = None
        if control.ref_embedding:
            self.ref_index_embedding = nn.Embedding(21, width)

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
        reference_latent: Tensor | None = None,
        ref_index: Tensor | None = None,
        camera_qt: Tensor | None = None,
        camera_qt_ref: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Flow velocity (B, 16, F, h, w).

        Args:
            reference_latent: (B, 36, N, h, w): latent (16), ones (4), the same latent (16).
            ref_index: (N,) integers 0 .. F-2, the slot of each reference: it stands beside target
                frame `ref_index + 1`.
            camera_qt: pose vectors of the targets (B, F, 7); may be absent.
            camera_qt_ref: pose vectors of the references (B, N, 7); may be absent.

        The other arguments are those of `WorldStereoModel.forward`.

        Raises:
            ValueError: no reference, more than 8, or one of another size.
        """
        check_finite(extrinsics=extrinsics, intrinsics=intrinsics)
        self.check_latents(hidden_states, encoder_hidden_states)
        reference_latent, ref_index = self._references(hidden_states, reference_latent, ref_index)
        state = self.prepare(
            hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_image
        )
        residuals = self.control(hidden_states, render_latent, render_mask, camera_embedding, state)
        rotary = self.rope(hidden_states, ref_index)
        tokens = self.placed("camera_qt", self.embed(hidden_states), camera_qt, hidden_states)
        first = self.embed(reference_latent.to(hidden_states.dtype))
        first = self.placed("camera_qt_ref", first, camera_qt_ref, reference_latent)
        tokens, first = self.token_entry(tokens), self.reference_entry(first)
        reference = first
        for block in self.blocks:
            tokens, updated = block(tokens, reference, state.context, state.modulation, rotary)
            reference = updated if self.control_config.update_ref else first
            residual = next(residuals, None)
            if residual is not None:
                tokens = tokens + residual.type_as(tokens)
        return self.finish(tokens, state.temb, hidden_states, return_dict)

    def placed(
        self, name: str, tokens: Tensor, pose_vectors: Tensor | None, latents: Tensor
    ) -> Tensor:
        """Adds to all tokens of a frame the embedding of its pose vector (B, frames, 7)."""
        if self.camera_embedding is None or pose_vectors is None:
            return tokens
        frames, width = latents.shape[2], self.control_config.camera_embedding_dim
        if pose_vectors.ndim != 3 or tuple(pose_vectors.shape[1:]) != (frames, width):
            raise ValueError(
                f"{name} must be (B, {frames}, {width}), one vector per frame, got "
                f"{tuple(pose_vectors.shape)}."
            )
        weight = next(self.camera_embedding.parameters())
        embedded = self.camera_embedding(pose_vectors.to(weight.dtype)).type_as(tokens)
        return tokens + embedded.repeat_interleave(tokens.shape[1] // frames, dim=1)

    def set_constraint(self, constraint: ReferenceConstraint | None) -> None:
        """Applies a correspondence constraint in every block; None is the released behaviour."""
        for block in self._blocks():
            block.stitched.constraint = constraint

    def set_probe(self, probe: AttentionProbe | None) -> None:
        """Lets the probe's layer keep its q rows and keys in the next forward; None removes it.

        Raises:
            ValueError: the model has no such layer.
        """
        if probe is not None and not 0 <= probe.layer < len(self.blocks):
            raise ValueError(f"layer must be 0 .. {len(self.blocks) - 1}, got {probe.layer}.")
        for i, block in enumerate(self._blocks()):
            block.stitched.probe = probe if probe is not None and probe.layer == i else None

    def _blocks(self) -> list[ReferenceBlock]:
        return [block for block in self.blocks if isinstance(block, ReferenceBlock)]

    def _references(
        self, latents: Tensor, references: Tensor | None, ref_index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        count = 0 if references is None else references.shape[2]
        if references is None or not 1 <= count <= MAX_REFERENCES:
            raise ValueError(f"references must be 1 to {MAX_REFERENCES}, got {count}.")
        ref_index = check_slots(ref_index, count, latents.shape[2])
        if references.shape[1] != latents.shape[1] or references.shape[3:] != latents.shape[3:]:
            raise ValueError(
                f"reference_latent must be (B, {latents.shape[1]}, N, {latents.shape[3]}, "
                f"{latents.shape[4]}), got {tuple(references.shape)}."
            )
        return references, ref_index


def check_slots(ref_index: Tensor | None, count: int, frames: int) -> Tensor:
    """One slot for each reference; slot s stands beside keyframe s + 1, which must be there."""
    if ref_index is None or ref_index.ndim != 1 or len(ref_index) != count:
        given = "none" if ref_index is None else tuple(ref_index.shape)
        raise ValueError(
            f"ref_index must hold one slot for each of {count} references, got {given}."
        )
    last, slots = max(frames - 2, 0), ref_index.tolist()
    if ref_index.is_floating_point() or not all(0 <= slot <= last for slot in slots):
        raise ValueError(
            f"ref_index must hold whole slots 0 .. {last} for {frames} keyframes, got {slots}."
        )
    return ref_index


def modulated(norm: nn.Module, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (norm(tokens.float()) * (1 + scale) + shift).type_as(tokens)


def gated(tokens: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    return (tokens.float() + update * gate).type_as(tokens)
