"""All parts of one published variant: transformer, VAE, encoders and scheduler, loaded together."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from torch import nn

from worldstereo.diffusion import distributed, memory_modes
from worldstereo.diffusion.config import ModelConfig
from worldstereo.diffusion.encoders import (
    ImageEncoder,
    TextEncoder,
    load_image_encoder,
    load_text_encoder,
)
from worldstereo.diffusion.loading import (
    LoadReport,
    base_part,
    find_base,
    find_variant,
    half_type,
    load_transformer,
)
from worldstereo.diffusion.transformer import WorldStereoModel
from worldstereo.diffusion.vae import KeyframeVae
from worldstereo.errors import WeightsMissing

OnStep = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Published:
    """The parts of one loaded variant."""

    config: ModelConfig
    transformer: WorldStereoModel
    vae: KeyframeVae
    text: TextEncoder
    image: ImageEncoder
    scheduler: dict[str, Any]
    """Config of the base's multistep scheduler."""
    report: LoadReport


def load_published(
    repo_or_folder: str | Path,
    variant: str,
    *,
    mode: str,
    device: torch.device,
    base: str | Path | None,
    dtype: torch.dtype | None,
    offline: bool,
    on_step: OnStep,
) -> tuple[Published, str]:
    """All parts of a variant, and the mode that was used."""
    from diffusers import AutoencoderKLWan

    half = dtype or half_type(device)
    devices = distributed.join() if distributed.wanted() else None
    straight = mode == "full" or device.type == "cpu" or devices is not None
    if devices is not None:  # weights are shared out instead: the other modes are for one card
        mode, device = "full", devices.device
    transformer, config, report = load_transformer(
        repo_or_folder,
        variant,
        device=device if straight else "cpu",
        dtype=half,
        control_dtype=torch.float32 if straight else half,
        base=base,
        offline=offline,
        place=distributed.shard_place(devices, half, torch.float32) if devices else None,
        on_step=on_step,
    )
    if devices is not None:
        distributed.split_tokens(transformer, devices)
    if mode == "auto":
        size = memory_modes.ModelSize.of(transformer)
        height, width = config.sizes[0]
        clip = memory_modes.ClipSize(config.nframe, height, width)
        mode = (
            "full"
            if device.type == "cpu"
            else memory_modes.choose_mode(size, clip, memory_modes.Card.at(device))
        )
    chosen = memory_modes.mode_named(mode)
    if not straight or mode != "full":
        memory_modes.apply_mode(transformer, chosen, device)
    root = find_base(config, find_variant(repo_or_folder, variant, offline=offline), base)

    def part(name: str) -> Path:
        return base_part(root, name, offline=offline)

    on_step(0, 1, "Loading text and image encoders")
    encoder_type = torch.float32 if device.type == "cpu" else half
    text = load_text_encoder(part("text_encoder"), part("tokenizer"), encoder_type)
    image = load_image_encoder(part("image_encoder"), part("image_processor"), encoder_type)
    try:
        vae = AutoencoderKLWan.from_pretrained(
            part("vae"), torch_dtype=half, use_safetensors=True, local_files_only=True
        )
        scheduler = UniPCMultistepScheduler.load_config(part("scheduler"))
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsMissing(f"the base model in {root} cannot be loaded: {reason}") from error
    nn.Module.to(vae.eval().requires_grad_(False), device)
    if chosen.tiled_vae:
        vae.enable_tiling()
        vae.enable_slicing()
    settings: Any = scheduler[0] if isinstance(scheduler, tuple) else scheduler
    settings = {k: v for k, v in settings.items() if not k.startswith("_")}
    keyframes = KeyframeVae(vae, batch=1 if chosen.tiled_vae else 4)
    return Published(config, transformer, keyframes, text, image, settings, report), mode
