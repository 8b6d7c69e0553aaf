"""The published model: what each memory mode costs on a card, and what constraints cost.

    python -m bench.diffusion            on a machine with a CUDA card, again until it says "done"

It builds the full-size memory transformer with random weights (nothing is downloaded) and measures
one forward pass at 21 keyframes of 480 x 832 with 8 references in every memory mode that fits:
seconds and peak memory on the card. After each mode the result is kept in `bench/diffusion.json`;
a call stops before `--budget` seconds are over and the next one goes on where it stopped. The table
in the README's hardware section is rewritten from what is kept. `--tiny` runs all of it with a
small model on the CPU, which measures nothing of interest.
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.harness import Context, Row

HERE = Path(__file__).parent
KEPT, README = HERE / "diffusion.json", HERE.parent / "README.md"
BUDGET = 420.0
"""Seconds after which no further mode is begun, so that a call stays below ten minutes."""

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


TINY = FULL | {
    "conv_out_dim": 96,
    "dim": 32,
    "num_heads": 2,
    "num_layers": 2,
    "ffn_dim": 64,
    "time_embed_dim": 96,
    "mid_channels": 16,
}
TINY_BACKBONE = {
    "num_attention_heads": 2,
    "attention_head_dim": 48,
    "ffn_dim": 192,
    "num_layers": 4,
    "text_dim": 32,
    "image_dim": 20,
    "added_kv_proj_dim": 96,
}
CHECKED = {
    "full": "parity, CPU",
    "float8": "tiny model, CPU",
    "int8": "tiny model, CPU",
    "int4": "not run",
    "group": "bit-equal on the tiny model, CPU",
    "sequential": "bit-equal on the tiny model, CPU",
}


def empty_model(tiny: bool = False) -> Any:
    """The memory transformer, full-size or tiny, without memory for its weights."""
    from accelerate import init_empty_weights

    from worldstereo.generators.diffusion import WorldStereoRefSModel

    with init_empty_weights(include_buffers=False):
        if tiny:
            model = WorldStereoRefSModel(**TINY_BACKBONE, controlnet_cfg=TINY)
        else:
            model = WorldStereoRefSModel(controlnet_cfg=FULL)
    return model.eval().requires_grad_(False)


def fill(model: Any, device: torch.device, dtype: torch.dtype, control: torch.dtype) -> None:
    """Random weights in the types that loading gives them."""
    from worldstereo.generators.diffusion.loading import set_parameter, target_type

    some = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02
    some = some.to(device)  # repeated: drawing 17e9 numbers in main memory takes minutes
    for name, parameter in list(model.named_parameters()):
        tensor = torch.empty(
            parameter.shape, dtype=target_type(name, dtype, control), device=device
        )
        flat = tensor.view(-1)
        for start in range(0, flat.numel(), len(some)):
            part = flat[start : start + len(some)]
            part.copy_(some[: len(part)]) if tensor.ndim > 1 else part.fill_(1.0)
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


@dataclass(frozen=True)
class Measured:
    """One forward pass in one memory mode."""

    card: str
    mode: str
    seconds: float
    peak_gib: float
    torch: str
    tiny: bool = False
    why: str = ""
    """Why it was not measured; the figures mean nothing then."""


def kept(path: Path) -> list[Measured]:
    return [Measured(**entry) for entry in json.loads(path.read_text())] if path.exists() else []


def measure(mode_name: str, card: str, tiny: bool) -> Measured:
    """Builds the model in one mode and times one step; its memory is given back afterwards."""
    from worldstereo.generators.diffusion import ClipSize
    from worldstereo.generators.diffusion.loading import discard
    from worldstereo.generators.diffusion.memory_modes import GIB, apply_mode, free, mode_named

    device = torch.device("cpu" if tiny else "cuda")
    half = torch.float32 if tiny else torch.bfloat16
    clip = ClipSize(3, 64, 96, 2) if tiny else ClipSize()
    model = empty_model(tiny)
    try:
        mode = mode_named(mode_name)
        straight = mode_name == "full"
        fill(model, device if straight else torch.device("cpu"), half,
             torch.float32 if straight else half)  # fmt: skip
        if not straight:
            apply_mode(model, mode, device)
        given = clip_inputs(device, clip.frames, clip.height, clip.width, clip.references)
        if tiny:
            given = narrowed(given)
        else:
            torch.cuda.reset_peak_memory_stats()
        times = []
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=not tiny):
            for _ in range(3):
                began = time.perf_counter()
                out = model(**given).sample
                float(out.float().abs().mean())  # waits for the card
                times.append(time.perf_counter() - began)
        peak = 0.0 if tiny else torch.cuda.max_memory_allocated() / GIB
        return Measured(card, mode_name, min(times[1:]), peak, torch.__version__, tiny)
    except Exception as error:  # out of memory, a missing package or kernel: that is the result
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Measured(card, mode_name, 0.0, 0.0, torch.__version__, tiny, why[:120])
    finally:
        discard(model)
        free(device)


def narrowed(given: dict[str, Any]) -> dict[str, Any]:
    """Inputs of the full-size model, for the tiny one."""
    given = {k: v.float() if v.is_floating_point() else v for k, v in given.items()}
    given["encoder_hidden_states"] = given["encoder_hidden_states"][..., :32]
    given["encoder_hidden_states_image"] = given["encoder_hidden_states_image"][:, :, :20]
    return given


def run(
    *, tiny: bool, out: Path, readme: Path, budget: float, said: Callable[[str], None] = print
) -> bool:
    """Measures the modes that are not kept yet; True when none is left."""
    from worldstereo.generators.diffusion import ClipSize, ModelSize, preflight
    from worldstereo.generators.diffusion.memory_modes import MODES, Card

    began, clip = time.monotonic(), ClipSize()
    size = ModelSize.of(empty_model())
    if not tiny and not torch.cuda.is_available():
        said("unmeasured: no CUDA card at hand; estimates of the preflight follow")
        for gib, rate in ((80, 400.0), (48, 120.0), (24, 120.0), (16, 120.0)):
            said(f"a card of {gib} GiB:")
            for fit in preflight(size, clip, Card(f"{gib} GiB", gib * 2**30, tflops=rate)):
                said(f"  {fit}")
        write_table(readme, size, kept(out))
        return False
    card = Card("tiny model on this CPU", 2**60) if tiny else Card.at(torch.device("cuda"))
    done = kept(out)
    for fit in preflight(size, clip, card):
        if any((one.card, one.mode) == (card.name, fit.mode) for one in done):
            continue
        if time.monotonic() - began > budget:
            said("stopped at the budget; the same command goes on")
            write_table(readme, size, done)
            return False
        said(f"{fit.mode}: {MODES[fit.mode].label} ...")
        found = (
            measure(fit.mode, card.name, tiny)
            if fit.fits
            else Measured(card.name, fit.mode, 0.0, 0.0, torch.__version__, tiny, fit.why)
        )
        told = found.why or f"{found.seconds:.2f} s a step, peak {found.peak_gib:.1f} GiB"
        said(f"{fit.mode}: {told} (estimated {fit.gib:.1f} GiB, {fit.seconds / clip.steps:.1f} s)")
        done.append(found)
        out.write_text(json.dumps([asdict(one) for one in done], indent=1) + "\n")
    write_table(readme, size, done)
    said("done")
    return True


def table(size: Any, done: list[Measured]) -> str:
    """The README's table: estimates beside what was measured, with the card named."""
    from worldstereo.generators.diffusion import ClipSize
    from worldstereo.generators.diffusion.memory_modes import GIB, MODES, device_bytes

    cards = list(dict.fromkeys(one.card for one in done))
    head = ["mode", "weights", "card (estimate)"]
    head += [f"{card}: peak, s a step" for card in cards] or ["peak, s a step on a card"]
    lines = [
        f"| {' | '.join([*head, 'checked'])} |",
        f"| {' | '.join(['---'] * (len(head) + 1))} |",
    ]
    for mode in MODES.values():
        estimate = device_bytes(size, ClipSize(), mode) / GIB
        cells = [
            mode.name,
            mode.label,
            f"{estimate:.0f} GiB" if estimate > 10 else f"{estimate:.1f} GiB",
        ]
        for card in cards or [""]:
            one = next((m for m in done if (m.card, m.mode) == (card, mode.name)), None)
            if one is None:
                cells.append("unmeasured")
            else:
                cells.append(one.why or f"{one.peak_gib:.1f} GiB, {one.seconds:.2f} s")
        lines.append(f"| {' | '.join([*cells, CHECKED[mode.name]])} |")
    return "\n".join(lines)


BEGIN, END = "<!-- modes: written by python -m bench.diffusion -->", "<!-- end of modes -->"


def write_table(readme: Path, size: Any, done: list[Measured]) -> None:
    """Rewrites the table between its marks; a README without them stays as it is."""
    text = readme.read_text(encoding="utf-8")
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    fresh = f"{BEGIN}\n{table(size, done)}\n{END}"
    readme.write_text(re.sub(pattern, lambda _: fresh, text, flags=re.S), encoding="utf-8")


def memory_modes(context: Context) -> list[Row]:
    """Seconds and peak memory per step of the full-size model, per memory mode (needs CUDA)."""
    if context.quick:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            readme = Path(folder, "README.md")
            readme.write_text(f"{BEGIN}\n{END}\n")
            run(tiny=True, out=Path(folder, "kept.json"), readme=readme, budget=BUDGET)
            print(readme.read_text())
        return []
    run(tiny=False, out=KEPT, readme=README, budget=BUDGET)
    return []


def constraints(context: Context) -> list[Row]:
    """Reference attention with no constraint, a mask and a bias, on a small random model."""
    from worldstereo.generators.diffusion import ReferenceConstraint, WorldStereoRefSModel

    torch.manual_seed(0)
    model = WorldStereoRefSModel(**TINY_BACKBONE, controlnet_cfg=TINY)
    frames, height, width, references = (3, 64, 96, 2) if context.quick else (11, 160, 256, 4)
    given = narrowed(clip_inputs(torch.device("cpu"), frames, height, width, references))
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
        size = {"frames": frames, "height": height, "width": width, "references": references}
        weights, peak = activation_peak(FULL, partial(clip_inputs, **size), references)
        print(
            f"{frames} x {height} x {width}, {references} references: weights "
            f"{weights / 2**30:.1f} GiB, activations at most {peak / 2**30:.2f} GiB"
        )
    return []


BENCHMARKS["diffusion-activations"] = activations


def main(arguments: list[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(prog="python -m bench.diffusion", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--out", type=Path, default=KEPT, help="JSON that results are kept in")
    parser.add_argument("--readme", type=Path, default=README, help="whose table is rewritten")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds of one call")
    given = parser.parse_args(arguments)
    return run(tiny=given.tiny, out=given.out, readme=given.readme, budget=given.budget)


if __name__ == "__main__":
    main()
