"""The trained generator against the weight-free one: the same frames, the same memories.

    python -m bench.mini [--root FOLDER] [--weights FOLDER] [--quick]

For each capture: the weight-free view, the mini generator's with both branches, without the stereo
branch, and as the prior alone. Pull-push and OpenCV's fills of the same splat stand beside them.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from bench.harness import Context, Row
from bench.views import SETS, Bench, Remembered, found_folders, image_of
from worldstereo._mini.inputs import make_inputs
from worldstereo.mini import FOLDER, MiniGenerator
from worldstereo.scene import View


def compare(bench: Bench, weights: Path) -> None:
    """Scores every variant on one capture's targets."""
    memory = bench.remember()
    variants = {
        "mini": MiniGenerator(weights),
        "mini, stereo branch off": MiniGenerator(weights, stereo=False),
        "mini, prior alone": MiniGenerator(weights, stereo=False, geometric=False),
    }
    bench.score("warp (weight-free)", lambda k, t: image_of(memory[k](t)))
    for name, generator in variants.items():
        bench.score(name, lambda k, t, g=generator: refined(memory[k], t, g))
    for name, flag in (("Telea", cv2.INPAINT_TELEA), ("Navier-Stokes", cv2.INPAINT_NS)):
        bench.score(f"splat + {name}", lambda k, t, f=flag: inpainted(memory[k], t, f))


def refined(memory: Remembered, target: View, generator: MiniGenerator) -> np.ndarray:
    """What the generator makes of the weight-free view of a target."""
    camera = memory.camera(target)
    splat = memory.splat(target)
    chosen = memory.index.choose(camera, splat)
    base = memory(target)
    views = [memory.views[i] for i in chosen]
    maps = make_inputs(
        camera,
        base.color,
        base.depth,
        base.confidence,
        base.known,
        views,
        splat,
        memory.intake.unit,
    )
    estimate, _ = generator.estimate(maps)
    color = ((estimate.color[0] + 1) / 2).clamp(0, 1)
    rig = memory.intake.rig
    if rig is not None and tuple(rig[0].shape) == tuple(color.shape[-2:]):
        color = torch.where(rig[0], rig[1], color)
    return color.permute(1, 2, 0).numpy()


def inpainted(memory: Remembered, target: View, flag: int) -> np.ndarray:
    """OpenCV's fill of the cloud's splat."""
    splat = memory.splat(target)
    color = (splat.color.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    hole = (splat.mask[0].numpy() < 0.5).astype(np.uint8)
    return cv2.inpaint(color, hole, 3, flag).astype(np.float32) / 255


def mini(context: Context) -> list[Row]:
    """The table as rows of the harness; skipped by name without data or weights."""
    import os

    root = os.environ.get("WORLDSTEREO_DATA")
    if not root or not (FOLDER / "config.json").is_file():
        print("mini: skipped, WORLDSTEREO_DATA or the weights are missing")
        return []
    rows = []
    for result in measure(Path(root), FOLDER, context.quick):
        name, what = result.pop("set"), result.pop("what")
        seconds, cpu = result.pop("s_target"), result.pop("cpu_target")
        extra = {k: round(v, 3) for k, v in result.items()}
        rows.append(Row(f"mini {name}", what, 0, cpu * 1e3, seconds * 1e3, 1, extra))
    return rows


def measure(root: Path, weights: Path, quick: bool) -> list[dict]:
    """Every variant on every capture found below `root`."""
    rows: list[dict] = []
    for name, folder in found_folders(root, SETS).items():
        bench = Bench(name, folder, root.parent / "fixtures", quick)
        compare(bench, weights)
        rows += bench.rows
    return rows


BENCHMARKS = {"mini": mini}


def main() -> None:
    """Prints the table and writes it as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=FOLDER)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = measure(options.root, options.weights, options.quick)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
