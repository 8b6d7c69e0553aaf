"""All parts of one published variant: transformer, VAE, encoders and scheduler, loaded together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from torch import nn

from worldstereo.generators.diffusion import distributed, memory_modes
from worldstereo.generators.diffusion.config import ModelConfig
from worldstereo.generators.diffusion.encoders import (
    ImageEncoder,
    TextEncoder,
    load_image_encoder,
    load_text_encoder,
    readable,
)
from worldstereo.generators.diffusion.folders import base_part
from worldstereo.generators.diffusion.loading import (
    Checkpoint,
    LoadReport,
    discard,
    half_type,
    open_checkpoint,
    read_weights,
)
from worldstereo.generators.diffusion.memory_modes import ModelSize
from worldstereo.generators.diffusion.survey import Survey
from worldstereo.generators.diffusion.transformer import WorldStereoModel
from worldstereo.generators.diffusion.vae import KeyframeVae
from worldstereo.progress import OnStep


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
    """All parts of a variant, and the mode that was used; nothing stays of a load that fails.

    Raises:
        ValueError: the variant, the config or a width is not accepted.
        WeightsMissing: a part is absent, truncated or foreign, or no mode fits.
    """
    checkpoint = open_checkpoint(repo_or_folder, variant, base=base, offline=offline)
    devices = distributed.join() if distributed.wanted() else None
    if devices is not None:  # weights are shared out instead: the other modes are for one card
        mode, device = "full", devices.device
    elif mode == "auto":
        survey = Survey(checkpoint.config, ModelSize.of(checkpoint.model), device)
        mode = memory_modes.choose_mode(survey.size, survey.clip(), memory_modes.Card.at(device))
    chosen = memory_modes.mode_named(mode)
    held: list[nn.Module] = [checkpoint.model]
    try:
        return _loaded(checkpoint, held, chosen, device, devices, dtype, offline, on_step), mode
    except BaseException:
        discard(*held)
        raise


def _loaded(
    checkpoint: Checkpoint,
    held: list[nn.Module],
    mode: memory_modes.Mode,
    device: torch.device,
    devices: distributed.Devices | None,
    dtype: torch.dtype | None,
    offline: bool,
    on_step: OnStep,
) -> Published:
    """The parts; each goes into `held` as soon as it takes memory."""
    from diffusers import AutoencoderKLWan

    half, model = dtype or half_type(device), checkpoint.model
    straight = mode.name == "full"  # the other modes rearrange weights that main memory holds
    report = read_weights(
        checkpoint,
        device=device if straight else "cpu",
        dtype=half,
        control_dtype=torch.float32 if straight else half,
        place=distributed.shard_place(devices, half, torch.float32) if devices else None,
        on_step=on_step,
    )
    if devices is not None:
        distributed.split_tokens(model, devices)
    elif not straight:
        memory_modes.apply_mode(model, mode, device)
    root = checkpoint.base

    def part(name: str) -> Path:
        return base_part(root, name, offline=offline)

    on_step(0, 3, "Loading the text encoder")
    encoder_type = torch.float32 if device.type == "cpu" else half
    text = load_text_encoder(part("text_encoder"), part("tokenizer"), encoder_type)
    held.append(text.encoder)
    on_step(1, 3, "Loading the image encoder")
    image = load_image_encoder(part("image_encoder"), part("image_processor"), encoder_type)
    held.append(image.encoder)
    on_step(2, 3, "Loading the VAE")
    with readable(f"base model in {root}"):
        scheduler = UniPCMultistepScheduler.load_config(part("scheduler"))
        vae = AutoencoderKLWan.from_pretrained(
            part("vae"), torch_dtype=half, use_safetensors=True, local_files_only=True
        )
        held.append(vae)
        nn.Module.to(vae.eval().requires_grad_(False), device)
        if mode.tiled_vae:
            vae.enable_tiling()
            vae.enable_slicing()
        settings: Any = scheduler[0] if isinstance(scheduler, tuple) else scheduler
        settings = {k: v for k, v in settings.items() if not k.startswith("_")}
        keyframes = KeyframeVae(vae, batch=1 if mode.tiled_vae else 4)
    return Published(checkpoint.config, model, keyframes, text, image, settings, report)
