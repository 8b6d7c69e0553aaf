"""How much of a card the model takes: modes, a preflight before the click, and how to apply them.

Sizes of weights are exact (counted on an empty model). Activations and seconds are estimates made
from the operations of one forward pass; `python -m bench diffusion` measures them on a card.
"""

import importlib.util
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from worldstereo.errors import WeightsMissing
from worldstereo.generators import MemoryModeFit
from worldstereo.generators.diffusion.loading import kept_float32
from worldstereo.generators.diffusion.transformer import WorldStereoModel

log = logging.getLogger(__name__)

GIB = 2**30
CONTEXT = 1.5 * GIB
"""What a CUDA context and the libraries' workspaces take before any tensor."""
VAE_BYTES_PER_PIXEL = 6_000
"""Decoding one keyframe in half precision, per output pixel; tiles bring it to 512 x 512."""


@dataclass(frozen=True)
class Mode:
    """One way to hold the weights."""

    name: str
    label: str
    weight_bytes: float = 2.0
    """Bytes per weight of the blocks' linear layers."""
    offload: str = "none"
    """"none", "group" (a block at a time is on the card) or "sequential" (a layer at a time)."""
    needs: str = ""
    """A library beyond the model's own requirements."""
    tiled_vae: bool = False


MODES = {
    mode.name: mode
    for mode in (
        Mode("full", "all weights on the card, half precision"),
        Mode("float8", "8-bit float weights on the card", 1.0, tiled_vae=True),
        Mode("int8", "8-bit integer weights on the card", 1.0, needs="torchao", tiled_vae=True),
        Mode("int4", "4-bit weights on the card", 0.56, needs="torchao", tiled_vae=True),
        Mode(
            "group",
            "weights in main memory, one block at a time on the card",
            offload="group",
            tiled_vae=True,
        ),
        Mode(
            "sequential",
            "weights in main memory, one layer at a time",
            offload="sequential",
            tiled_vae=True,
        ),
    )
}
"""From the fastest to the smallest."""


@dataclass(frozen=True)
class ClipSize:
    """What one clip asks for."""

    frames: int = 21
    height: int = 480
    width: int = 832
    references: int = 8
    steps: int = 4
    guided: bool = False

    @property
    def target_tokens(self) -> int:
        return self.frames * (self.height // 16) * (self.width // 16)

    @property
    def tokens(self) -> int:
        return self.target_tokens + self.references * (self.height // 16) * (self.width // 16)


@dataclass(frozen=True)
class ModelSize:
    """Counts of parameters by what a mode does with them."""

    width: int
    ffn: int
    layers: int
    linear: int
    """In the linear layers of backbone and control blocks: what is quantised."""
    other: int
    """Embeddings, norms, projections: kept in half or full precision."""
    control: int
    """In the whole control branch."""
    control_linear: int
    largest_block: int
    control_width: int
    control_layers: int

    @staticmethod
    def of(model: WorldStereoModel) -> "ModelSize":
        linear = sum(p.numel() for n, p in model.named_parameters() if _quantised(n, p))
        total = sum(p.numel() for p in model.parameters())
        config: Any = model.config
        return ModelSize(
            width=config.num_attention_heads * config.attention_head_dim,
            ffn=config.ffn_dim,
            layers=config.num_layers,
            linear=linear,
            other=total - linear,
            control=sum(p.numel() for p in model.controlnet.parameters()),
            control_linear=sum(
                p.numel()
                for n, p in model.named_parameters()
                if n.startswith("controlnet.") and _quantised(n, p)
            ),
            largest_block=max(sum(p.numel() for p in block.parameters()) for block in model.blocks),
            control_width=model.control_config.dim,
            control_layers=model.control_config.num_layers,
        )


@dataclass(frozen=True)
class Card:
    """A device as the preflight sees it."""

    name: str
    memory: int
    """Bytes that this process can have of it."""
    tflops: float = 150.0
    """Half-precision rate that attention and matrix products reach in practice."""
    link: float = 20e9
    """Bytes per second from main memory."""
    main: int | None = None
    """Bytes of main memory; None where it is not known and not asked for."""
    cuda: bool = True

    @property
    def half(self) -> int:
        """Bytes of a weight in the type that the device computes in."""
        return 2 if self.cuda else 4

    @staticmethod
    def at(device: torch.device) -> "Card":
        import psutil

        main = psutil.virtual_memory().total
        if device.type != "cuda":
            return Card("this CPU", main, tflops=0.2, cuda=False)
        properties = torch.cuda.get_device_properties(device)
        major = properties.major
        rate = {7: 40.0, 8: 120.0, 9: 400.0}.get(major, 400.0 if major > 9 else 20.0)
        free, total = torch.cuda.mem_get_info(device)  # others may be on the card too
        mine = min(total, free + torch.cuda.memory_reserved(device))
        return Card(properties.name, mine, tflops=rate, main=main)


def device_bytes(size: ModelSize, clip: ClipSize, mode: Mode, half: int = 2) -> float:
    """Estimated peak on the card: weights there, activations of the widest moment, context.

    Args:
        half: bytes of a weight in the type that the device computes in.
    """
    activations = max(
        # hidden state, its norm in float32, q k v of both streams and their concatenation
        clip.tokens * size.width * 26,
        # hidden states of both streams, float32 norm and result, twice the inner width
        clip.tokens * size.width * 14 + clip.target_tokens * size.ffn * 4,
    )
    decoded = clip.height * clip.width
    decoded = min(decoded, 512 * 512) if mode.tiled_vae else decoded
    activations = max(activations, decoded * VAE_BYTES_PER_PIXEL)
    if mode.offload == "group":  # two blocks: the next one is fetched while one computes
        weights = 2 * size.largest_block * half + size.control * half + 0.5e9
    elif mode.offload == "sequential":
        weights = size.width * max(size.ffn, size.width) * half + 0.1e9
    elif mode.name == "full":
        weights = (size.linear + size.other) * half
        weights += size.control * (4 - half)  # it is float32, as in the release
    else:
        weights = size.linear * mode.weight_bytes + size.other * half
    return float(weights + activations + CONTEXT)


def step_flops(size: ModelSize, clip: ClipSize) -> float:
    """Floating-point operations of one forward pass: matrix products and attention."""
    backbone = 2.0 * (size.linear - size.control_linear) * clip.tokens
    backbone += 2.0 * size.control_linear * clip.target_tokens
    attention = 4 * clip.tokens**2 * size.width * size.layers
    attention += 4 * clip.target_tokens**2 * size.control_width * size.control_layers
    return backbone + attention


def clip_seconds(size: ModelSize, clip: ClipSize, mode: Mode, card: Card) -> float:
    """Estimated seconds of all steps: arithmetic, or moving the weights where that is slower."""
    passes = clip.steps * (2 if clip.guided else 1)
    compute = step_flops(size, clip) / (card.tflops * 1e12)
    if mode.name in ("float8", "int8", "int4"):
        compute *= 1.15  # widening the weights
    moved = (size.linear + size.other) * 2 / card.link if mode.offload != "none" else 0.0
    each = max(compute, moved) if mode.offload == "group" else compute + moved
    return float(passes * each)


def preflight(size: ModelSize, clip: ClipSize, card: Card) -> list[MemoryModeFit]:
    """Every mode on a card, fastest first; what does not fit says why in one line."""
    found = []
    for mode in MODES.values():
        needed = device_bytes(size, clip, mode, card.half)
        whole = (size.linear + size.other) * card.half * 1.05
        why = ""
        if not card.cuda and (mode.offload != "none" or mode.name == "int4"):
            why = "only with a CUDA card"
        elif mode.needs and importlib.util.find_spec(mode.needs) is None:
            why = f"needs the package {mode.needs}"
        elif needed > card.memory * 0.95:
            there = "the card has" if card.cuda else "this machine has"
            why = f"needs {needed / GIB:.0f} GiB, {there} {card.memory / GIB:.0f}"
        elif mode.name != "full" and card.main is not None and whole > card.main:
            why = f"needs {whole / GIB:.0f} GiB of main memory, there are {card.main / GIB:.0f}"
        seconds = clip_seconds(size, clip, mode, card)
        found.append(MemoryModeFit(mode.name, mode.label, not why, needed / GIB, seconds, why))
    return found


def choose_mode(size: ModelSize, clip: ClipSize, card: Card) -> str:
    """The quickest mode that fits.

    Raises:
        WeightsMissing: none does.
    """
    fits = [fit for fit in preflight(size, clip, card) if fit.fits]
    if not fits:
        raise WeightsMissing(
            f"no memory mode fits {card.name} with {card.memory / GIB:.0f} GiB for "
            f"{clip.frames} frames of {clip.width} x {clip.height}; choose fewer or smaller frames."
        )
    return min(fits, key=lambda fit: fit.seconds).mode


def smaller_mode(name: str) -> str | None:
    """The next mode that takes less of the card, if there is one."""
    order = [
        mode.name
        for mode in MODES.values()
        if not mode.needs or importlib.util.find_spec(mode.needs) is not None
    ]
    later = order[order.index(name) + 1 :] if name in order else []
    return later[0] if later else None


def mode_named(name: str) -> Mode:
    """The mode of that name; `ValueError` lists those there are, `WeightsMissing` what it lacks."""
    if name not in MODES:
        raise ValueError(f"mode must be auto or one of {', '.join(MODES)}, got {name!r}.")
    mode = MODES[name]
    if mode.needs and importlib.util.find_spec(mode.needs) is None:
        raise WeightsMissing(
            f"mode {name} needs the package {mode.needs}: pip install {mode.needs}."
        )
    return mode


def apply_mode(model: WorldStereoModel, mode: Mode, device: torch.device) -> None:
    """Puts a model that was loaded on the CPU into its mode; it computes on `device` from then on.

    Full modes are better loaded straight to the device; for the others main memory must hold the
    half-precision weights while this runs.
    """
    half = model.patch_embedding.weight.dtype
    if mode.name == "float8":
        model.enable_layerwise_casting(torch.float8_e4m3fn, half)
    elif mode.name in ("int8", "int4"):
        _quantize(model, mode.name, device)
    if mode.offload == "none":
        nn.Module.to(model, device)
        return
    from diffusers.hooks import apply_group_offloading

    streams = device.type == "cuda"
    if mode.offload == "group":
        apply_group_offloading(
            model, device, offload_type="block_level", num_blocks_per_group=1, use_stream=streams
        )
    else:
        apply_group_offloading(model, device, offload_type="leaf_level", use_stream=False)


def _quantised(name: str, parameter: nn.Parameter) -> bool:
    in_blocks = name.startswith(("blocks.", "controlnet.controlnet_blocks."))
    return in_blocks and parameter.ndim == 2 and not kept_float32(name)


def _quantize(model: WorldStereoModel, name: str, device: torch.device) -> None:
    """Weight-only quantisation of the blocks' linear layers, one block at a time on the device."""
    from torchao import quantization as ao  # pyright: ignore[reportMissingImports]

    if name == "int4" and device.type != "cuda":
        raise WeightsMissing("mode int4 needs a CUDA device: its kernels are there only.")
    config = ao.Int8WeightOnlyConfig(set_inductor_config=False)
    if name == "int4":  # the packing whose kernels are in torch itself
        config = ao.Int4WeightOnlyConfig(
            group_size=128, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )
    for block in [*model.blocks, *model.controlnet.controlnet_blocks]:
        ao.quantize_(block.to(device), config)


def free(device: torch.device) -> None:
    """Gives cached memory back to the card."""
    if device.type != "cuda":
        return
    import gc

    gc.collect()
    torch.cuda.empty_cache()
