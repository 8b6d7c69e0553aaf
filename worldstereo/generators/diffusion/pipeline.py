"""From pictures, guide and text embeddings to keyframes: what every variant's sampler shares.

`sample` is a function of tensors; the encoders that make the embeddings are in `encoders.py`, and
`generator.py` turns the app's requests into these inputs.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from worldstereo.generators.diffusion.config import MAX_REFERENCES
from worldstereo.generators.diffusion.memory_transformer import WorldStereoRefSModel, check_slots
from worldstereo.generators.diffusion.samplers import FlowEuler, Spacing, set_steps
from worldstereo.generators.diffusion.transformer import WorldStereoModel
from worldstereo.generators.diffusion.vae import SPATIAL, TEMPORAL, KeyframeVae
from worldstereo.progress import OnStep, ignore


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleInputs:
    """What a clip is made from; pictures in [-1, 1]; F keyframes of H x W pixels.

    B clips, usually 1, can be made together where they share `ref_index`.
    """

    image: Tensor
    """The start picture (B, 3, H, W)."""
    prompt_embeds: Tensor
    """(B, 512, text width); zeros behind the true length."""
    image_embeds: Tensor
    """CLIP tokens of the start picture (B, tokens, width)."""
    render_video: Tensor
    """The guide (B, 3, F, H, W); mid grey in holes. Without references also a whole video of
    4 (F - 1) + 1 frames, which then goes through the temporal VAE."""
    render_mask: Tensor
    """(B, 1, Fp, H, W); 1 = hole. Fp is F for checkpoints whose `mask_downsample` is 1."""
    camera_embedding: Tensor
    """Rays (B, 6, Fp, H, W)."""
    negative_prompt_embeds: Tensor | None = None
    """Needed for guidance above 1."""
    reference_video: Tensor | None = None
    """Reference pictures (B, 3, N, H, W), for the memory variants."""
    ref_index: Tensor | None = None
    """(N,) slots."""
    camera_qt: Tensor | None = None
    """(B, F, 7)"""
    camera_qt_ref: Tensor | None = None
    """(B, N, 7)"""
    extrinsics: Tensor | None = None
    intrinsics: Tensor | None = None


class SampleResult:
    """Latents (B, 16, F, h, w), pictures (B, F, 3, H, W) in [0, 1], and the steps if kept."""

    def __init__(self, latents: Tensor, video: Tensor | None, trace: list[Tensor]) -> None:
        self.latents, self.video, self.trace = latents, video, trace


def latent_frames(num_frames: int = 81) -> int:
    """Keyframes for the release's frame counter: n becomes 4 floor(n/4) + 1, then (n-1)/4 + 1.

    Raises:
        ValueError: not a whole number of at least 1.
    """
    if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1:
        raise ValueError(f"num_frames must be a whole number >= 1, got {num_frames!r}.")
    if num_frames % TEMPORAL != 1:
        num_frames = num_frames // TEMPORAL * TEMPORAL + 1
    return (max(num_frames, 1) - 1) // TEMPORAL + 1


def to_signed(image_uint8_hwc: np.ndarray | Tensor) -> Tensor:
    """An 8-bit picture (H, W, 3) as (1, 3, H, W) in [-1, 1]."""
    pixels = torch.as_tensor(np.array(image_uint8_hwc))
    return (pixels.permute(2, 0, 1)[None].float() / 255) * 2 - 1


@torch.no_grad()
def sample(
    transformer: WorldStereoModel,
    vae: KeyframeVae,
    inputs: SampleInputs,
    *,
    scheduler: UniPCMultistepScheduler | FlowEuler,
    latent_cond_mode: str,
    num_frames: int | None = None,
    steps: int = 40,
    guidance: float | int = 5.0,
    spacing: Spacing = "release",
    seed: int = 1024,
    latents: Tensor | None = None,
    device: torch.device | str | None = None,
    on_step: OnStep = ignore,
    on_velocity: Callable[[int, Tensor], None] | None = None,
    on_state: Callable[[int, int, Tensor], None] | None = None,
    decode: bool = True,
    keep_trace: bool = False,
) -> SampleResult:
    """Denoises one clip and decodes its keyframes.

    Args:
        scheduler: `flow_unipc(...)` for the camera and memory variants, `FlowEuler` for the
            distilled one (which brings its own steps and takes no guidance).
        num_frames: the release's frame counter (`latent_frames`); None for one keyframe per frame
            of the guide.
        latents: the noise (B, 16, F, h, w); drawn from `seed` on the CPU where None.
        on_step: `(step, total, message)` before each step and each decoded frame; may raise.
        on_state: `(step, total, state)` after each step, the state (B, F, 16, h, w).
        keep_trace: keeps the latents after every step.

    Raises:
        ValueError: an input is missing or of another size; nothing has run by then.
    """
    euler = scheduler if isinstance(scheduler, FlowEuler) else None
    frames = inputs.render_video.shape[2] if num_frames is None else latent_frames(num_frames)
    keyframed = isinstance(transformer, WorldStereoRefSModel) and euler is None
    check_inputs(transformer, inputs, frames, guidance if euler is None else 1, keyframed)
    device = torch.device(device) if device is not None else transformer.device
    timesteps = (
        scheduler.timesteps.to(device)
        if isinstance(scheduler, FlowEuler)
        else set_steps(scheduler, steps, spacing, device)
    )
    total = len(timesteps)
    on_step(0, total, "Encoding the guide")
    state = prepare_latents(inputs, frames, seed, latents, device)
    constant = _encoded(transformer, vae, inputs, frames, latent_cond_mode, device)
    condition = constant.pop("condition")
    dtype = transformer.patch_embedding.weight.dtype  # never quantised, never stored narrower
    half = _autocast(device, transformer)
    guided = euler is None and guidance > 1
    trace: list[Tensor] = []
    for i, t in enumerate(timesteps):
        on_step(i, total, f"Denoising step {i + 1} of {total}")
        model_input = torch.cat([state, condition], dim=1).to(dtype)
        with half:
            velocity = _velocity(transformer, model_input, t, inputs.prompt_embeds, constant)
            if guided:
                assert inputs.negative_prompt_embeds is not None
                free = _velocity(
                    transformer, model_input, t, inputs.negative_prompt_embeds, constant
                )
                velocity = free + guidance * (velocity - free)
        if on_velocity is not None:
            on_velocity(i, velocity)
        if euler is not None:
            state = euler.step(velocity, i, state)
        else:
            state = scheduler.step(velocity, t, state, return_dict=False)[0]  # pyright: ignore
        if on_state is not None:
            on_state(i + 1, total, state.detach().transpose(1, 2))
        if keep_trace:
            trace.append(state.clone())
    video = None
    if decode:
        video = vae.decode(
            state, lambda done, of: on_step(total, total, f"Decoding {done} of {of}")
        )
        video = (video.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    return SampleResult(state, video, trace)


def prepare_latents(
    inputs: SampleInputs, frames: int, seed: int, latents: Tensor | None, device: torch.device
) -> Tensor:
    """Float32 noise (B, 16, F, h, w); the same seed is the same noise on every device.

    Raises:
        ValueError: `latents` are given in another shape.
    """
    height, width = inputs.image.shape[-2:]
    shape = (len(inputs.image), 16, frames, height // SPATIAL, width // SPATIAL)
    if latents is None:
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(shape, generator=generator, dtype=torch.float32)
    elif tuple(latents.shape) != shape:
        raise ValueError(f"latents must be {shape}, got {tuple(latents.shape)}.")
    return latents.to(device, torch.float32)


def check_inputs(
    transformer: WorldStereoModel,
    inputs: SampleInputs,
    frames: int,
    guidance: float | int,
    keyframed: bool = False,
) -> None:
    """Raises `ValueError`, naming argument, value and what is accepted, before anything runs.

    Args:
        frames: keyframes F of the clip.
        keyframed: only a guide of F keyframes is accepted, no whole video.
    """
    batch, _, height, width = inputs.image.shape
    if height % 16 or width % 16:
        raise ValueError(f"height and width must be multiples of 16, got {height} x {width}.")
    video = inputs.render_video.shape[2]
    if video != frames and (keyframed or video != TEMPORAL * (frames - 1) + 1):
        whole = "" if keyframed else f" or {TEMPORAL * (frames - 1) + 1}"
        raise ValueError(f"render_video must hold {frames}{whole} frames, got {video}.")
    for name, tensor, channels in (
        ("render_video", inputs.render_video, 3),
        ("render_mask", inputs.render_mask, 1),
        ("camera_embedding", inputs.camera_embedding, 6),
    ):
        expected = (batch, channels, frames, height, width)
        if name == "render_video" or transformer.control_config.mask_downsample > 1:
            expected = (batch, channels, tensor.shape[2], height, width)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must be {expected}, got {tuple(tensor.shape)}.")
    if inputs.prompt_embeds.shape[1] != 512:
        raise ValueError(
            f"prompt_embeds must hold 512 tokens, got {inputs.prompt_embeds.shape[1]}."
        )
    if guidance > 1 and inputs.negative_prompt_embeds is None:
        raise ValueError(f"guidance {guidance} needs negative_prompt_embeds; 1 switches it off.")
    if isinstance(transformer, WorldStereoRefSModel):
        count = 0 if inputs.reference_video is None else inputs.reference_video.shape[2]
        if not 1 <= count <= MAX_REFERENCES:
            raise ValueError(f"references must be 1 to {MAX_REFERENCES}, got {count}.")
        check_slots(inputs.ref_index, count, frames)
        for name, tensor, expected in (
            ("reference_video", inputs.reference_video, (batch, 3, count, height, width)),
            ("camera_qt", inputs.camera_qt, (batch, frames, 7)),
            ("camera_qt_ref", inputs.camera_qt_ref, (batch, count, 7)),
        ):
            if tensor is not None and tuple(tensor.shape) != expected:
                raise ValueError(f"{name} must be {expected}, got {tuple(tensor.shape)}.")


def _encoded(
    transformer: WorldStereoModel,
    vae: KeyframeVae,
    inputs: SampleInputs,
    frames: int,
    mode: str,
    device: torch.device,
) -> dict[str, Any]:
    """What stays the same over all steps and both guidance passes."""
    keyframed = inputs.render_video.shape[2] == frames
    encode = vae.encode if keyframed else vae.encode_video
    constant: dict[str, Any] = {
        "condition": vae.condition(inputs.image, frames, mode).to(device),
        "encoder_hidden_states_image": inputs.image_embeds.to(device),
        "render_latent": encode(inputs.render_video).to(device),
        "render_mask": inputs.render_mask.to(device),
        "camera_embedding": inputs.camera_embedding.to(device),
        "extrinsics": inputs.extrinsics,
        "intrinsics": inputs.intrinsics,
    }
    if isinstance(transformer, WorldStereoRefSModel):
        assert inputs.reference_video is not None and inputs.ref_index is not None
        constant["reference_latent"] = vae.references(inputs.reference_video).to(device)
        constant["ref_index"] = inputs.ref_index.to(device)
        for name in ("camera_qt", "camera_qt_ref"):
            value = getattr(inputs, name)
            constant[name] = None if value is None else value.to(device)
    return constant


def _velocity(
    transformer: WorldStereoModel,
    model_input: Tensor,
    timestep: Tensor,
    text: Tensor,
    constant: dict[str, Any],
) -> Tensor:
    options = dict(constant)
    image = options.pop("encoder_hidden_states_image")
    out = transformer(
        hidden_states=model_input,
        timestep=timestep.expand(len(model_input)),
        encoder_hidden_states=text.to(model_input.device, model_input.dtype),
        encoder_hidden_states_image=image.to(model_input.dtype),
        return_dict=False,
        **options,
    )
    return out[0].float()


def _autocast(device: torch.device, transformer: WorldStereoModel) -> Any:
    """Half precision around the model on CUDA, as in the release; nothing elsewhere."""
    if device.type != "cuda":
        return nullcontext()
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in transformer.parameters())
    return torch.autocast("cuda", dtype=dtype) if half else nullcontext()
