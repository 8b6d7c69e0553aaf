"""Invention with an oracle: how well two memories keep what a painter invents at a few keyframes.

    python -m bench.inpaint [--root FOLDER] [--sets a,b] [--frames N] [--sheets FOLDER]

A run of consecutive views of a capture is held out, and of the others every second one, so that
part of what the held-out views see is unknown. Their found cameras are the path. The painter
answers from the held-out pictures, through the interface of a model, at its resolution, noisy. It
recognises which picture is asked for by the known pixels. The truth reaches nothing else.
"""

import argparse
import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from bench.views_sets import load
from worldstereo import Guide, Trajectory, WarpGenerator, World
from worldstereo.cameras import Cameras
from worldstereo.generators.inpaint import InpaintGenerator, PainterLimits
from worldstereo.scene import Capture, Clip, DepthKind, Origin, View
from worldstereo.world import explore, start

SETS = ("livingroom1", "icl-nuim-5", "holo-office", "tum-rpy")
SIDE, NOISE = 512, 2.0
"""The painter's resolution and the noise that it adds, grey levels."""


class Oracle:
    """Answers from held-out pictures, at a model's size, with its noise."""

    limits = PainterLimits(side=SIDE, multiple=8, grow=8, text=True)

    def __init__(self, targets: list[View]) -> None:
        self.pictures = [view.color8.permute(1, 2, 0).numpy() for view in targets]
        self.asked: list[int] = []
        self.seconds = 0.0

    def __call__(self, image: np.ndarray, mask: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        began = time.process_time()
        size = image.shape[1::-1]
        shown = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in self.pictures]
        off = [np.abs(p.astype(int) - image)[~mask].mean() for p in shown]
        best = int(np.argmin(off))
        self.asked.append(best)
        noise = np.random.default_rng(seed).normal(0, NOISE, image.shape)
        out = np.where(mask[..., None], shown[best] + noise, image)
        self.seconds += time.process_time() - began
        return np.clip(out, 0, 255).astype(np.uint8)


def split(views: list[View], frames: int) -> tuple[list[View], list[View]]:
    """Kept and held-out views: a run at the end of the capture is left out, whole."""
    n = len(views)
    if n <= 6:
        return views[:-2], views[-2:]
    run = views[max(1, n - frames) :]
    return views[: n - len(run)][::2] or views[:1], run


def measure(name: str, folder: Path, frames: int, sheets: Path | None) -> dict:
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
    generator = InpaintGenerator(oracle)
    used, began = time.process_time(), time.perf_counter()
    clip = explore(world, path, generator=generator)
    cpu, wall = time.process_time() - used, time.perf_counter() - began
    calls = len(oracle.asked)
    again = explore(world, path, generator=generator)
    same = bool(torch.equal(again.color8, clip.color8) and torch.equal(again.depth, clip.depth))
    world.undo()
    world.undo()
    world.redo()
    same = same and torch.equal(explore(world, path, generator=generator).color8, clip.color8)

    shown = torch.stack([(f.color.clamp(0, 1) * 255 + 0.5).to(torch.uint8) for f in before])
    changed = (clip.color8 != shown).any(dim=1) & ~hole
    result = {
        "set": name,
        "kept": len(kept),
        "frames": len(targets),
        "unknown": float(hole.float().mean()),
        "unknown worst": float(hole.float().mean(dim=(1, 2)).max()),
        "calls": calls,
        "left": float(np.mean([f.unknown for f in Guide(world.scene, path)])),
        "smooth dB": psnr(smooth, truth, hole),
        "warp dB": psnr(warp.color, truth, hole),
        "inpaint dB": psnr(clip.color, truth, hole),
        "known dB": psnr(clip.color, truth, ~hole),
        "known changed": int(changed.sum()),
        "same bits": same,
        "depth smooth": depth_error(torch.stack([f.depth for f in before]), targets, hole),
        "depth": depth_error(clip.depth, targets, hole),
        "same point /255": consistency(clip),
        "overhead CPU s a frame": (cpu - oracle.seconds - warp_cpu) / len(targets),
        "CPU s a frame": (cpu - oracle.seconds) / len(targets),
        "wall s": wall,
        "load": os.getloadavg()[0],
    }
    if sheets is not None:
        sheets.mkdir(parents=True, exist_ok=True)
        sheet(sheets / f"{name}.png", truth, smooth, clip, hole)
    return result


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
    few = np.unique(np.linspace(0, len(clip) - 1, 6).astype(int)).tolist()
    known = torch.where(hole[:, None], torch.tensor([1.0, 0.0, 1.0])[None, :, None, None], smooth)
    rows = []
    for pictures in (truth, known, smooth, clip.color):
        tiles = [cv2.resize(pictures[i].permute(1, 2, 0).numpy(), (320, 240)) for i in few]
        rows.append(np.concatenate(tiles, 1))
    picture = (np.concatenate(rows) * 255).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(path), picture[..., ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--sheets", type=Path, default=None)
    given = parser.parse_args()
    root = given.root or Path(os.environ["WORLDSTEREO_DATA"])
    for name in given.sets.split(","):
        found = [p for p in (root / "rgbd" / name, root / "photos-posed" / name) if p.exists()]
        if not found:
            print(f"{name}: not there")
            continue
        result = measure(name, found[0], given.frames, given.sheets)
        print(json.dumps(result, default=str), flush=True)


if __name__ == "__main__":
    main()
