"""Invention with an oracle: how well two memories keep what a painter invents at a few keyframes.

    python -m bench.inpaint [--turn | --depth] [--sets a,b] [--frames N] [--sheets FOLDER]

A run of consecutive views of a capture is held out, and of the others every second one, so that
part of what the held-out views see is unknown. Their found cameras are the path. The painter
answers from the held-out pictures, through the interface of a model, at its resolution, noisy. It
is told which camera it paints, which no model is. The truth reaches nothing else.

With `--depth` an oracle stands in for a depth model, too: held-out depth at a wrong scale, noisy.
With `--turn` a single view of the capture is kept and the place is completed around it. There the
painter answers with what a world that knows the whole capture shows at the camera it is asked for.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from bench.views_sets import load
from worldstereo import Guide, Trajectory, WarpGenerator, World
from worldstereo.cameras import Cameras
from worldstereo.depth import DepthEstimate, DepthEstimator, relative_depth
from worldstereo.generators import Frame, GenerationRequest
from worldstereo.generators.inpaint import InpaintGenerator, PainterLimits
from worldstereo.guide import GuideFrame
from worldstereo.progress import OnStep
from worldstereo.scene import Capture, Clip, DepthKind, Origin, View
from worldstereo.views.fusion import nearest_fill
from worldstereo.world import complete, completion_budget, explore, start

SETS = ("livingroom1", "icl-nuim-5", "holo-office", "tum-rpy")
SIDE, NOISE = 512, 2.0
"""The painter's resolution and the noise that it adds, grey levels."""
DEPTH_SIDE, DEPTH_ERROR, WAVES = 256, 0.05, (12, 16)
"""The depth oracle's resolution along the longer side, and its relative error, smooth between so
many independent values (rows, columns): 4 % in the mean, as good models report of rooms."""
RENDERED = ("livingroom1", "icl-nuim-5")
"""Sets without a sensor: what has no depth there is sky and hills, infinitely far."""
MOST = 24
"""Keyframes that a turn may take; it ends by itself when nothing is worth another one."""


MARK = torch.tensor([1.0, 0.0, 1.0])[None, :, None, None]
"""Colour of the unknown in a sheet."""


class Teller(InpaintGenerator):
    """Tells its painter which camera is painted, which no painter is told otherwise."""

    def __init__(self, painter: "Oracle", estimator: DepthEstimator | None = None) -> None:
        super().__init__(painter, estimator=estimator)
        self.oracle = painter

    def keyframe(
        self, shown: GuideFrame, request: GenerationRequest, index: int, on_step: OnStep
    ) -> Frame | None:
        self.oracle.index, self.oracle.camera = index, shown.camera
        return super().keyframe(shown, request, index, on_step)


class Oracle:
    """Answers from held-out pictures, at a model's size, with its noise."""

    limits = PainterLimits(side=SIDE, multiple=8, grow=8, text=True)

    def __init__(self, targets: Sequence[View]) -> None:
        self.pictures = [view.color_u8.permute(1, 2, 0).numpy() for view in targets]
        self.index, self.camera = 0, targets[0].cameras
        self.calls, self.seconds = 0, 0.0

    def __call__(self, image: np.ndarray, mask: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        began = time.process_time()
        size = image.shape[1::-1]
        shown, seen = self.picture()
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
        shown = np.where(cv2.resize(seen, size)[..., None] > 0, shown, image)
        noise = np.random.default_rng(seed).normal(0, NOISE, image.shape)
        out = np.where(mask[..., None], shown + noise, image)
        self.calls += 1
        self.seconds += time.process_time() - began
        return np.clip(out, 0, 255).astype(np.uint8)

    def picture(self) -> tuple[np.ndarray, np.ndarray]:
        """What it knows of the camera, and where it knows it, 0 or 1."""
        shown = self.pictures[self.index]
        return shown, np.ones(shown.shape[:2], np.uint8)


class DepthOracle:
    """Answers as a model of relative inverse depth does, from held-out depth.

    Its scale and shift are its own, its resolution is a network's, its error smooth. Where a sensor
    measured nothing it repeats the nearest measurement; in a rendering only what was not modelled
    has no depth, and it knows that this is infinitely far.
    """

    def __init__(self, oracle: Oracle, depths: Sequence[torch.Tensor]) -> None:
        self.oracle, self.depths = oracle, depths

    def __call__(self, color: torch.Tensor, cameras: Cameras | None = None) -> DepthEstimate:
        depth = self.depth()
        inverse = np.where(depth > 0, 1 / np.maximum(depth, 1e-9), 0).astype(np.float32)
        h, w = inverse.shape
        scale = DEPTH_SIDE / max(h, w)
        small = cv2.resize(
            inverse, (round(w * scale), round(h * scale)), None, 0, 0, cv2.INTER_AREA
        )
        rng = np.random.default_rng([self.oracle.index, 1])
        error = rng.normal(0, DEPTH_ERROR, WAVES).astype(np.float32)
        small *= np.exp(cv2.resize(error, small.shape[::-1], interpolation=cv2.INTER_CUBIC))
        raw = torch.from_numpy(cv2.resize(small, (w, h), interpolation=cv2.INTER_CUBIC))[None]
        camera = self.oracle.camera if cameras is None else cameras
        found = relative_depth(raw, color)
        return DepthEstimate(found, torch.full_like(found, 0.4), True, camera)

    def depth(self) -> np.ndarray:
        """(H, W) of the camera that is painted, 0 where it is infinite."""
        return self.depths[self.oracle.index][0].numpy()


def held_out_depth(name: str, view: View) -> torch.Tensor:
    """(1, H, W) of a held-out view, 0 where it is infinite."""
    if name in RENDERED:
        return view.depth
    depth = view.depth[0].numpy()
    return torch.from_numpy(nearest_fill(depth[..., None], depth > 0)[..., 0])[None]


def split(views: list[View], frames: int) -> tuple[list[View], list[View]]:
    """Kept and held-out views: a run at the end of the capture is left out, whole."""
    n = len(views)
    if n <= 6:
        return views[:-2], views[-2:]
    run = views[max(1, n - frames) :]
    return views[: n - len(run)][::2] or views[:1], run


def measure(name: str, folder: Path, frames: int, sheets: Path | None, deep: bool = False) -> dict:
    views, points = load(folder)
    kept, targets = split(views, frames)
    world = World(WarpGenerator())
    start(world, Capture(name, "rgbd", tuple(kept)))
    registration = world.registration
    cameras = [registration.correct(v.given) if registration else v.given for v in targets]
    path = Trajectory(Cameras.stack(cameras), "held out")
    before = list(Guide(world.scene, path))
    truth = torch.stack([view.color for view in targets])
    hole = torch.stack([~frame.mask[0] for frame in before])
    smooth = torch.stack([frame.color for frame in before])

    used = time.process_time()
    warp = explore(world, path)
    warp_cpu = time.process_time() - used
    world.undo()
    oracle = Oracle(targets)
    depths = [held_out_depth(name, view) for view in targets]
    generator = Teller(oracle, DepthOracle(oracle, depths) if deep else None)
    used, began = time.process_time(), time.perf_counter()
    clip = explore(world, path, generator=generator)
    cpu, wall = time.process_time() - used, time.perf_counter() - began
    calls = oracle.calls
    keys = world.history[-1].details["keyframes"]
    world.undo()
    world.redo()
    again = explore(world, path, generator=generator)
    same = bool(torch.equal(again.color_u8, clip.color_u8) and torch.equal(again.depth, clip.depth))

    shown = torch.stack([(f.color.clamp(0, 1) * 255 + 0.5).to(torch.uint8) for f in before])
    changed = (clip.color_u8 != shown).any(dim=1) & ~hole
    result = {
        "set": name,
        "kept": len(kept),
        "frames": len(targets),
        "unknown": float(hole.float().mean()),
        "unknown worst": float(hole.float().mean(dim=(1, 2)).max()),
        "calls": calls,
        "calls on later visits": oracle.calls - calls,
        "left": float(np.mean([f.unknown for f in Guide(world.scene, path)])),
        "smooth dB": psnr(smooth, truth, hole),
        "warp dB": psnr(warp.color, truth, hole),
        "inpaint dB": psnr(clip.color, truth, hole),
        "painted frames dB": psnr(clip.color[keys], truth[keys], hole[keys]),
        "known dB": psnr(clip.color, truth, ~hole),
        "known changed": int(changed.sum()),
        "same bits": same,
        "depth smooth": depth_error(torch.stack([f.depth for f in before]), targets, hole),
        "depth": depth_error(clip.depth, targets, hole),
        "depth known": depth_error(clip.depth, targets, ~hole),
        "same point /255": consistency(clip),
        "overhead CPU s a frame": (cpu - oracle.seconds - warp_cpu) / len(targets),
        "CPU s a frame": (cpu - oracle.seconds) / len(targets),
        "wall s": wall,
        "load": os.getloadavg()[0],
    }
    if sheets is not None:
        sheets.mkdir(parents=True, exist_ok=True)
        sheet(sheets / f"{name}{'-depth' if deep else ''}.png", truth, smooth, clip, hole)
    return result


class Knowing(Oracle):
    """Answers with what a world that knows the whole capture shows at the camera it is told.

    What the capture never saw stays as it was given, filled smoothly.
    """

    def __init__(self, truth: World) -> None:
        super().__init__(truth.scene.views)
        self.truth = truth

    def picture(self) -> tuple[np.ndarray, np.ndarray]:
        shown = Guide(self.truth.scene, Trajectory(Cameras.stack([self.camera])))[0]
        return shown.color.permute(1, 2, 0).numpy() * 255, shown.mask[0].numpy().astype(np.uint8)


def turn(name: str, folder: Path, frames: int, sheets: Path | None) -> dict:
    """One view, completed all around, seen from the capture's other cameras."""
    views, _ = load(folder)
    truth = World(WarpGenerator())
    start(truth, Capture(name, "rgbd", tuple(views)))
    found = truth.registration
    placed = [
        View.of(v.color, v.depth, found.correct(v.given) if found else v.given, name=v.name)
        for v in views
    ]
    first = min(placed, key=lambda v: abs(float(v.cameras.c2w[:3, 0] @ truth.scene.up)))
    others = [view for view in placed if view is not first]
    few = np.unique(np.linspace(0, len(others) - 1, min(frames, len(others))).astype(int))
    targets = [others[i] for i in few.tolist()]
    world = World(WarpGenerator())
    start(world, Capture(name, "rgbd", (first,), up=truth.scene.up), register=False)
    seen_from = Trajectory(Cameras.stack([view.cameras for view in targets]), "the others")
    around = Trajectory.preset("pan", first.cameras, value=345, frames=24, up=world.scene.up)
    before = list(Guide(world.scene, seen_from))
    hole = torch.stack([~frame.mask[0] for frame in before])
    smooth = torch.stack([frame.color for frame in before])
    all_around = float(np.mean([frame.unknown for frame in Guide(world.scene, around)]))
    budget = completion_budget(world.scene)
    knowing = Knowing(truth)
    used, began = time.process_time(), time.perf_counter()
    complete(
        world, MOST, generator=Teller(knowing), size=(first.cameras.width, first.cameras.height)
    )
    cpu, wall = time.process_time() - used, time.perf_counter() - began
    after = list(Guide(world.scene, seen_from))
    shown = torch.stack([frame.color for frame in after])
    now = hole & torch.stack([frame.mask[0] for frame in after])
    oracle = torch.stack([frame.color for frame in Guide(truth.scene, seen_from)])
    actual = torch.stack([view.color for view in targets])
    depth = torch.stack([frame.depth for frame in after])
    again = list(Guide(world.scene, seen_from))
    left = list(Guide(world.scene, around))
    if sheets is not None:
        sheets.mkdir(parents=True, exist_ok=True)
        tiles(
            sheets / f"{name}-turn.png",
            (torch.stack([marked(frame) for frame in Guide(world.scene, around)]),),
            columns=8,
        )
        known = torch.where(hole[:, None], MARK, smooth)
        tiles(sheets / f"{name}-turn-others.png", (actual, known, smooth, shown, oracle))
    return {
        "set": name,
        "others": len(targets),
        "estimate": budget,
        "calls": knowing.calls,
        "steps": [len(record.details.get("keyframes", ())) for record in world.history[1:]],
        "unknown all around, before": all_around,
        "unknown all around": float(np.mean([frame.unknown for frame in left])),
        "unknown others, before": float(hole.float().mean()),
        "unknown others": float(np.mean([frame.unknown for frame in after])),
        "smooth dB": psnr(smooth, actual, hole),
        "inpaint dB": psnr(shown, actual, hole),
        "smooth dB, painted part": psnr(smooth, actual, now),
        "inpaint dB, painted part": psnr(shown, actual, now),
        "oracle dB, painted part": psnr(oracle, actual, now),
        "depth, painted part": depth_error(depth, targets, now),
        "same bits": all(torch.equal(a.color, b.color) for a, b in zip(after, again, strict=True)),
        "CPU s a call": (cpu - knowing.seconds) / max(1, knowing.calls),
        "wall s": wall,
        "load": os.getloadavg()[0],
    }


def marked(frame: GuideFrame) -> torch.Tensor:
    """A picture in which the unknown is magenta."""
    return torch.where(frame.mask, frame.color, MARK[0])


def psnr(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> float:
    error = ((a - b) ** 2).mean(dim=1)[where]
    return float(-10 * torch.log10(error.mean())) if len(error) else float("nan")


def depth_error(depth: torch.Tensor, targets: list[View], hole: torch.Tensor) -> float:
    """Median relative error in the hole where the held-out view measured."""
    true = torch.stack([view.depth for view in targets])
    measured = torch.stack([view.kind == int(DepthKind.MEASURED) for view in targets])
    at = hole[:, None] & measured & (true > 0) & (depth > 0)
    return float(((depth - true).abs() / true)[at].median()) if bool(at.any()) else float("nan")


def consistency(clip: Clip) -> float:
    """Median difference in colour of the same invented point in two frames, in grey levels."""
    found = []
    cameras = clip.trajectory.cameras
    for a in range(len(clip)):
        for b in range(a + 1, len(clip), max(1, len(clip) // 6)):
            made = (clip.origin[a, 0] == int(Origin.INVENTED)) & (clip.depth[a, 0] > 0)
            rows = made.nonzero()[:: max(1, int(made.sum()) // 2000)]
            if len(rows) == 0:
                continue
            pixels = rows.flip(1) + 0.5
            points = cameras[a].unproject(pixels, clip.depth[a, 0][rows[:, 0], rows[:, 1]])
            uv, z = cameras[b].project(points)
            inside = (z > 0) & (uv >= 0).all(1)
            inside &= (uv[:, 0] < cameras.width) & (uv[:, 1] < cameras.height)
            u, v = uv[inside].long().unbind(1)
            seen = (clip.depth[b, 0][v, u] / z[inside] - 1).abs() < 0.01
            seen &= clip.origin[b, 0][v, u] == int(Origin.INVENTED)
            here = clip.color[a][:, rows[inside][:, 0], rows[inside][:, 1]]
            found.append((here - clip.color[b][:, v, u]).abs().mean(0)[seen])
    every = torch.cat(found) if found else torch.zeros(0)
    return float(every.median()) * 255 if len(every) else float("nan")


def sheet(
    path: Path, truth: torch.Tensor, smooth: torch.Tensor, clip: Clip, hole: torch.Tensor
) -> None:
    """Rows: truth, known, smooth fill, inpainted; columns: frames."""
    tiles(path, (truth, torch.where(hole[:, None], MARK, smooth), smooth, clip.color))


def tiles(path: Path, rows: Sequence[torch.Tensor], columns: int = 6) -> None:
    """One row of evenly chosen pictures for each of `rows`; a single one is broken into lines."""
    count = len(rows[0]) if len(rows) == 1 else min(columns, len(rows[0]))
    few = np.unique(np.linspace(0, len(rows[0]) - 1, count).astype(int)).tolist()
    small = [[cv2.resize(row[i].permute(1, 2, 0).numpy(), (320, 240)) for i in few] for row in rows]
    if len(rows) == 1:
        small = [small[0][i : i + columns] for i in range(0, len(few), columns)]
    picture = np.concatenate([np.concatenate(line, 1) for line in small])
    cv2.imwrite(str(path), (picture * 255).clip(0, 255).astype(np.uint8)[..., ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--sheets", type=Path, default=None)
    parser.add_argument("--turn", action="store_true", help="complete the place around one view")
    parser.add_argument("--depth", action="store_true", help="a depth oracle beside the painter")
    given = parser.parse_args()
    root = given.root or Path(os.environ["WORLDSTEREO_DATA"])
    for name in given.sets.split(","):
        found = [p for p in (root / "rgbd" / name, root / "photos-posed" / name) if p.exists()]
        if not found:
            print(f"{name}: not there")
            continue
        if given.turn:
            result = turn(name, found[0], given.frames, given.sheets)
        else:
            result = measure(name, found[0], given.frames, given.sheets, given.depth)
        print(json.dumps(result, default=str), flush=True)


if __name__ == "__main__":
    main()
