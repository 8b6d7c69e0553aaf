"""The published model: what each memory mode costs on a card, and what constraints cost.

`diffusion` needs a CUDA device: it builds the full-size memory transformer with random weights
(nothing is downloaded) and measures one forward pass at 21 keyframes of 480 x 832 with 8
references, per memory mode: seconds and peak memory on the card. Without a card it prints the
preflight's estimates, which are not measurements, and says so.
"""

import sys
import time
from typing import Any

import torch

from bench.harness import Context, Row

FULL = {
    "conv_out_dim": 5120,
    "dim": 1024,
    "num_heads": 16,
    "num_layers": 20,
    "ffn_dim": 4096,
    "time_embed_dim": 5120,
    "add_channels": 7,
    "mid_channels": 256,
    "mask_downsample": 1,
    "update_ref": True,
    "main_camera_embedding": True,
    "camera_embedding_dim": 7,
}


def empty_full_size() -> Any:
    """The full-size memory transformer without memory for its weights."""
    from accelerate import init_empty_weights

    from worldstereo.diffusion import WorldStereoRefSModel

    with init_empty_weights(include_buffers=False):
        return WorldStereoRefSModel(controlnet_cfg=FULL).eval().requires_grad_(False)


def fill(model: Any, device: torch.device, control: torch.dtype) -> None:
    """Random weights in the types that loading gives them."""
    from worldstereo.diffusion.loading import set_parameter, target_type

    for name, parameter in list(model.named_parameters()):
        kind = target_type(name, torch.bfloat16, control)
        tensor = torch.empty(parameter.shape, dtype=kind, device=device)
        tensor.normal_(0, 0.02) if tensor.ndim > 1 else tensor.fill_(1.0)
        set_parameter(model, name, tensor)


def clip_inputs(device: torch.device, frames: int, height: int, width: int, references: int) -> Any:
    h, w = height // 8, width // 8
    made = torch.Generator(device).manual_seed(0)

    def noise(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=made, device=device, dtype=dtype)

    return {
        "hidden_states": noise(1, 36, frames, h, w),
        "timestep": torch.full((1,), 700.0, device=device),
        "encoder_hidden_states": noise(1, 512, 4096),
        "encoder_hidden_states_image": noise(1, 257, 1280),
        "render_latent": noise(1, 16, frames, h, w),
        "render_mask": torch.zeros(1, 1, frames, height, width, device=device),
        "camera_embedding": noise(1, 6, frames, height, width),
        "reference_latent": noise(1, 36, references, h, w),
        "ref_index": torch.arange(references, device=device),
        "camera_qt": noise(1, frames, 7),
        "camera_qt_ref": noise(1, references, 7),
    }


def memory_modes(context: Context) -> list[Row]:
    """Seconds and peak memory per step of the full-size model, per memory mode (needs CUDA)."""
    from worldstereo.diffusion import ClipSize, ModelSize, preflight
    from worldstereo.diffusion.memory_modes import GIB, MODES, Card, apply_mode, free

    size, clip = ModelSize.of(empty_full_size()), ClipSize()
    if not torch.cuda.is_available() or context.quick:
        print("unmeasured: no CUDA device at hand; estimates of the preflight follow")
        for gib, rate in ((80, 400.0), (48, 120.0), (24, 120.0), (16, 120.0)):
            print(f"a card of {gib} GiB:")
            for fit in preflight(size, clip, Card(f"{gib} GiB", gib * GIB, tflops=rate)):
                print(f"  {fit}")
        return []
    device, rows = torch.device("cuda"), []
    card = Card.at(device)
    given = clip_inputs(device, clip.frames, clip.height, clip.width, clip.references)
    for fit in preflight(size, clip, card):
        mode = MODES[fit.mode]
        row = Row(f"one step, 21 x 480 x 832, 8 references, {card.name}", fit.mode, 21, 0, 0, 0)
        try:
            if not fit.fits:
                raise RuntimeError(fit.why)
            model = empty_full_size()
            straight = fit.mode == "full"
            fill(
                model,
                device if straight else torch.device("cpu"),
                torch.float32 if straight else torch.bfloat16,
            )
            if not straight:
                apply_mode(model, mode, device)
            torch.cuda.reset_peak_memory_stats()
            times = []
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                for _ in range(3):
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                    model(**given)
                    torch.cuda.synchronize()
                    times.append(time.perf_counter() - began)
            row.wall_ms, row.rounds = 1e3 * min(times[1:]), len(times) - 1
            row.extra = {
                "peak_gib": torch.cuda.max_memory_allocated() / GIB,
                "estimated_gib": fit.gib,
                "estimated_s": fit.seconds / clip.steps,
            }
            print(f"{fit.mode}: {row.wall_ms / 1e3:.2f} s a step, {row.extra}")
            rows.append(row)
        except (RuntimeError, ImportError) as error:  # OutOfMemoryError is a RuntimeError
            print(f"{fit.mode}: not measured, {str(error).splitlines()[0]}", file=sys.stderr)
        model = None
        free(device)
    return rows


def constraints(context: Context) -> list[Row]:
    """Reference attention with no constraint, a mask and a bias, on a small random model."""
    from worldstereo.diffusion import ReferenceConstraint, WorldStereoRefSModel

    control = FULL | {
        "conv_out_dim": 96,
        "dim": 32,
        "num_heads": 2,
        "num_layers": 2,
        "ffn_dim": 64,
        "time_embed_dim": 96,
        "mid_channels": 16,
    }
    torch.manual_seed(0)
    model = WorldStereoRefSModel(
        num_attention_heads=2,
        attention_head_dim=48,
        ffn_dim=192,
        num_layers=4,
        text_dim=32,
        image_dim=20,
        added_kv_proj_dim=96,
        controlnet_cfg=control,
    )
    frames, height, width, references = (3, 64, 96, 2) if context.quick else (11, 160, 256, 4)
    given = clip_inputs(torch.device("cpu"), frames, height, width, references)
    given = {k: v.float() if v.is_floating_point() else v for k, v in given.items()}
    given["encoder_hidden_states"] = given["encoder_hidden_states"][..., :32]
    given["encoder_hidden_states_image"] = given["encoder_hidden_states_image"][:, :, :20]
    area = height // 16 * width // 16
    # each target token corresponds to the 3 x 3 tokens at its own place in every reference
    place = torch.arange(frames * area) % area
    pairs = []
    for reference in range(references):
        for shift in (-1, 0, 1):
            column = (place + shift).clamp(0, area - 1) + reference * area
            pairs.append(torch.stack([torch.arange(frames * area), column]))
    found = torch.cat(pairs, dim=1).unique(dim=1)
    work = {}
    for mode in ("none", "mask", "bias"):
        constraint = ReferenceConstraint(mode, found)

        @torch.no_grad()
        def run(constraint: ReferenceConstraint = constraint) -> None:
            model.set_constraint(constraint)
            model(**given)

        work[mode] = run
    timings = context.compare(work)
    tokens = (frames + references) * area
    name = f"one step of a small model, {tokens} tokens"
    return context.rows_of(name, tokens, timings, ours="mask", against="none")


BENCHMARKS = {"diffusion": memory_modes, "diffusion-constraints": constraints}


def activations(context: Context) -> list[Row]:
    """Memory of one full-size step, counted on shape-only tensors (no card needed)."""
    from bench._live_bytes import activation_peak

    sizes = [(2, 64, 96, 1)] if context.quick else [(21, 480, 832, 8), (21, 480, 832, 1)]
    for frames, height, width, references in sizes:
        weights, peak = activation_peak(frames, height, width, references)
        print(
            f"{frames} x {height} x {width}, {references} references: weights "
            f"{weights / 2**30:.1f} GiB, activations at most {peak / 2**30:.2f} GiB"
        )
    return []


BENCHMARKS["diffusion-activations"] = activations
