"""The trained generator against the weight-free one: the same frames, the same memories, all gates.

    python -m bench.mini [--root FOLDER] [--sets a,b] [--weights FOLDER] [--quick] [--out FILE]

For each capture: the weight-free view as the guide has it, the mini generator with both branches,
without the stereo branch and as the prior alone; pull-push and OpenCV's fills of the same splat.
Captures are only measured, never trained on.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from bench.harness import Context, Row
from bench.perceptual import gradient_similarity, ms_ssim, pull_push
from bench.views import SETS, WHOLE, Bench, Remembered, found_folders
from bench.views_sets import mean_of, scores, sparsification
from worldstereo._mini.inputs import MiniInputs, cloud_map, make_inputs
from worldstereo.cameras import Cameras
from worldstereo.fusion import fetch, make_working
from worldstereo.generator import Frame
from worldstereo.mini import FOLDER, MiniGenerator
from worldstereo.render import RenderResult
from worldstereo.scene import View
from worldstereo.synthesis import synthesize

WARP, MINI, NO_STEREO, PRIOR = "warp", "mini", "mini, stereo branch off", "mini, prior alone"
NO_MEMORY = "mini, stereo memory off"
"""As switched off in the app: neither the branch nor the anchor sees a remembered view."""
PULL_PUSH, TELEA, NAVIER = "splat + pull-push", "splat + Telea", "splat + Navier-Stokes"


@dataclass(frozen=True, eq=False)
class Asked:
    """One target as the guide would have it, with what the network is shown."""

    camera: Cameras
    splat: RenderResult
    base: Frame
    known: torch.Tensor
    maps: MiniInputs
    rig: np.ndarray
    unit: float
    seconds: tuple[float, float]
    """Wall and CPU of the weight-free view, and of the maps on top of it."""
    cpu: tuple[float, float]


def ask(memory: Remembered, target: View, stereo: bool = True) -> Asked:
    """The guide's frame: splat, choice of views, synthesis, and the network's inputs from them.

    Without `stereo` the guide is made from the cloud alone, and there are no references.
    """
    camera = memory.camera(target)
    start = _now()
    splat = memory.splat(target)
    if stereo:
        result = memory(target, splat=splat)
    else:
        rig, unit = memory.intake.rig, memory.intake.unit
        result = synthesize(camera, [], splat=splat, rig=rig, unit=unit)
    wall, cpu = np.diff(np.array([start, _now()]), axis=0)[0].tolist()
    chosen = memory.index.choose(camera, splat) if stereo else []  # the guide has them already
    assert memory.cloud is not None
    start = _now()
    maps = make_inputs(
        camera,
        result.color,
        result.depth,
        result.confidence,
        result.known,
        [memory.views[i] for i in chosen],
        cloud_map(memory.cloud.colors, splat.index),
        memory.intake.unit,
    )
    wall_maps, cpu_maps = np.diff(np.array([start, _now()]), axis=0)[0].tolist()
    base = Frame(
        result.color,
        result.depth,
        result.origin,
        result.confidence,
        result.stereo_weight,
        tuple(chosen),
    )
    rig = memory.intake.rig
    size = tuple(splat.mask.shape[-2:])
    return Asked(
        camera,
        splat,
        base,
        result.known,
        maps,
        np.zeros(size, bool) if rig is None or tuple(rig[0].shape) != size else rig[0].numpy(),
        memory.intake.unit,
        (wall, wall_maps),
        (cpu, cpu_maps),
    )


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def answers(asked: Asked, generators: Mapping[str, MiniGenerator]) -> dict[str, tuple]:
    """By name: the frame, wall seconds and CPU seconds from nothing to the finished view."""
    made: dict[str, tuple] = {WARP: (asked.base, asked.seconds[0], asked.cpu[0])}
    for name, generator in generators.items():
        wall, cpu = time.perf_counter(), time.process_time()
        frame = generator.correct(asked.base, asked.known, asked.maps)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        made[name] = (frame, wall + sum(asked.seconds), cpu + sum(asked.cpu))
    return made


def fills(asked: Asked) -> dict[str, np.ndarray]:
    """Classical fills of the cloud's splat."""
    color = asked.splat.color.permute(1, 2, 0).numpy()
    seen = asked.splat.mask[0].numpy() > 0.5
    eight, hole = (color * 255).astype(np.uint8), (~seen).astype(np.uint8)
    inpainted = {
        name: cv2.inpaint(eight, hole, 3, flag).astype(np.float32) / 255
        for name, flag in ((TELEA, cv2.INPAINT_TELEA), (NAVIER, cv2.INPAINT_NS))
    }
    return {PULL_PUSH: pull_push(color, seen)} | inpainted


def picture_of(frame: Frame) -> np.ndarray:
    return np.ascontiguousarray(frame.color.permute(1, 2, 0).numpy())


def figures(image: np.ndarray, truth: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """The scores of `bench.views`, and two perceptual ones."""
    more = {"ms_ssim": ms_ssim(image, truth), "gms": gradient_similarity(image, truth)}
    return scores(image, truth, seen) | more


def depth_error(depth: torch.Tensor, truth: torch.Tensor, known: torch.Tensor) -> float:
    """Median relative error of the depth where no memory knew one; nan where none was measured."""
    where = ~known & (truth > 0) & (depth > 0)
    if not bool(where.any()):
        return float("nan")
    return float(((depth - truth).abs() / truth)[where].median())


def second_visit(
    first: Frame, second: Frame, here: Asked, there: Asked
) -> tuple[float, float, float]:
    """Median colour difference of two made views, one fetched at the other's depth.

    Returns:
        Everywhere that both show, where both were remembered, where either was invented.
    """
    image = View.of(first.color, first.depth, here.camera)
    other = make_working(View.of(second.color, second.depth, there.camera), there.unit)
    color, agreement, _ = fetch(other.depth, other.pose, make_working(image, here.unit), 0.02)
    difference = np.abs(color - picture_of(second)).mean(2)
    both = (agreement > 0) & ~here.rig
    invented = ~there.known[0].numpy()
    parts = (both, both & ~invented, both & invented)
    whole, known, made = (
        float(np.median(difference[where])) if where.any() else float("nan") for where in parts
    )
    return whole, known, made


def measure_set(bench: Bench, generators: Mapping[str, MiniGenerator]) -> list[dict]:
    """Rows of one capture, a line for each generator and fill."""
    memory = bench.remember()
    found: dict[str, list[dict[str, float]]] = {}
    before: tuple[int, Asked, dict[str, tuple]] | None = None
    for k, target, truth, seen in bench.targets:
        asked = ask(memory[k], target)
        made = answers(asked, generators)
        for name, (frame, wall, cpu) in made.items():
            image = picture_of(frame)
            row = figures(image, truth, seen) | {"s": wall, "cpu": cpu}
            error = np.abs(image - truth).mean(2)
            row["sparsification"] = sparsification(error, frame.confidence[0].numpy())
            row["hole_depth"] = depth_error(frame.depth, target.depth, asked.known)
            visit = (float("nan"),) * 3
            if before is not None and before[0] == k:
                visit = second_visit(before[2][name][0], frame, before[1], asked)
            row |= dict(zip(("second", "second_known", "second_made"), visit, strict=True))
            found.setdefault(name, []).append(row)
        smooth = memory[k](target, replace(WHOLE, planes=False), splat=asked.splat)
        for name in made:
            found[name][-1]["smooth_depth"] = depth_error(smooth.depth, target.depth, asked.known)
        alone = ask(memory[k], target, stereo=False)
        silent = generators[NO_STEREO].correct(alone.base, alone.known, alone.maps)
        found.setdefault(NO_MEMORY, []).append(figures(picture_of(silent), truth, seen))
        for name, image in fills(asked).items():
            found.setdefault(name, []).append(figures(image, truth, seen))
        before = (k, asked, made)
    rows = [{"set": bench.name, "what": name} | mean_of(parts) for name, parts in found.items()]
    for row in rows:
        print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()))
    return rows


def measure(
    root: Path, weights: Path, quick: bool = False, sets: tuple[str, ...] = SETS
) -> list[dict]:
    """Every variant on every capture found below `root`."""
    generators = {
        MINI: MiniGenerator(weights),
        NO_STEREO: MiniGenerator(weights, stereo=False),
        PRIOR: MiniGenerator(weights, stereo=False, geometric=False),
    }
    rows: list[dict] = []
    for name, folder in found_folders(root, sets).items():
        rows += measure_set(Bench(name, folder, root.parent / "fixtures", quick), generators)
    return rows


@dataclass(frozen=True)
class Gate:
    """One line of the gate table: a difference or a ratio, and its floor."""

    name: str
    values: dict[str, float]
    """By capture."""
    floor: float
    at_most: bool = False

    @property
    def mean(self) -> float:
        kept = [v for v in self.values.values() if np.isfinite(v)]
        return float(np.mean(kept)) if kept else float("nan")

    @property
    def passed(self) -> bool:
        """On every capture that can say something."""
        kept = [v for v in self.values.values() if np.isfinite(v)]
        right = [v <= self.floor if self.at_most else v >= self.floor for v in kept]
        return bool(kept) and all(right)


def gates(rows: list[dict]) -> list[Gate]:
    """The floors of the design from the rows of `measure`."""
    table = {(row["set"], row["what"]): row for row in rows}
    names = list(dict.fromkeys(row["set"] for row in rows))

    def over(figure: str, one: str, *others: str) -> dict[str, float]:
        return {
            n: table[n, one][figure] - max(table[n, other][figure] for other in others)
            for n in names
        }

    def ratio(figure: str, over: str) -> dict[str, float]:
        return {n: table[n, MINI][figure] / max(table[n, WARP][over], 1e-9) for n in names}

    return [
        Gate("holes over pull-push, dB", over("hole", MINI, PULL_PUSH), 1.0),
        Gate("holes over Telea and Navier-Stokes, dB", over("hole", MINI, TELEA, NAVIER), 1.0),
        Gate("seen over warp, dB", over("seen", MINI, WARP), 0.5),
        Gate("whole over warp, dB", over("psnr", MINI, WARP), 0.5),
        Gate("stereo branch on over off, seen, dB", over("seen", MINI, NO_STEREO), 0.5),
        Gate("stereo memory on over off, seen, dB", over("seen", MINI, NO_MEMORY), 0.5),
        Gate("second visit, ratio to warp", ratio("second", "second"), 1.0, at_most=True),
        Gate(
            "depth error in holes, ratio to the smooth fill",
            ratio("hole_depth", "smooth_depth"),
            0.999,
            True,
        ),
        Gate(
            "calibration, 0 random, 1 oracle",
            {n: table[n, MINI]["sparsification"] for n in names},
            0.0,
        ),
        Gate("seconds a 640x480 view", {n: table[n, MINI]["s"] for n in names}, 1.5, True),
    ]


def mini(context: Context) -> list[Row]:
    """The table as rows of the harness; skipped by name without data or weights."""
    root = os.environ.get("WORLDSTEREO_DATA")
    if not root or not (FOLDER / "config.json").is_file():
        print("mini: skipped, WORLDSTEREO_DATA or the weights are missing")
        return []
    found = measure(Path(root), FOLDER, context.quick, SETS[:1] if context.quick else SETS)
    rows = []
    for gate in gates(found):
        extra = {n: round(v, 3) for n, v in gate.values.items()}
        extra |= {"floor": gate.floor, "passed": gate.passed}
        rows.append(Row("mini, gate", gate.name, 0, 0, 0, 1, extra))
    for figure in found:
        name, what = figure.pop("set"), figure.pop("what")
        cpu, wall = (1e3 * figure.pop(k, 0.0) for k in ("cpu", "s"))
        rounded = {k: round(v, 3) for k, v in figure.items() if np.isfinite(v)}
        rows.append(Row(f"mini {name}", what, 0, cpu, wall, 1, rounded))
    return rows


BENCHMARKS = {"mini": mini}


def main() -> None:
    """Prints rows and gates, and writes the rows as JSON when asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.mini", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("WORLDSTEREO_DATA", ".")))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--weights", type=Path, default=FOLDER)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=Path, nargs="*", help="rows written before: gates alone")
    chosen = parser.parse_args()
    if chosen.rows:
        rows = [row for path in chosen.rows for row in json.loads(path.read_text())]
    else:
        sets = tuple(chosen.sets.split(","))
        rows = measure(chosen.root, chosen.weights, chosen.quick, sets)
    for gate in gates(rows):
        line = ", ".join(f"{name} {value:+.3f}" for name, value in gate.values.items())
        verdict = "reached" if gate.passed else "missed"
        print(f"{gate.name}: floor {gate.floor}: {line}; mean {gate.mean:+.3f}: {verdict}")
    if chosen.out:
        chosen.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
