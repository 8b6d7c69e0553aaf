"""What large captures and clouds cost: entry, opening a saved world, update and render a point.

    python -m bench.scale entry 50 200 --size 640 480 --folder DIR
    python -m bench.scale open DIR/200.world
    python -m bench.scale cloud 2 20
    python -m bench.scale batch 24 --folder DIR

`entry`: a walk through `bench._building`, each in a process of its own: CPU seconds a frame with
compiled kernels, stage by stage, peak resident memory, and the share of the frames' pixels with
depth that the cloud covers; the world is saved. `open`: from the folder to a drawn cloud.
`cloud`: millions of points through update and render, nanoseconds a point. `batch`: so many small
captures on Ray, against a loop over the same tasks in one process; wall seconds of both.
"""

import worldstereo.cli  # noqa: F401  (before NumPy, whose threads it limits as the commands do)

# isort: split
import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from bench._building import Building
from worldstereo.generators import WarpGenerator
from worldstereo.world import World, resident_bytes, start


def used() -> float:
    """CPU seconds of this process so far, all threads."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def peak() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def building(frames: int) -> Building:
    """As much of the building as a camera walks through at 9 cm a frame."""
    return Building.of(max(1, round(12 * frames / 1000)))


def entry(frames: int, size: tuple[int, int], register: bool, folder: Path) -> None:
    """One walk into a world; prints one line."""
    start(World(WarpGenerator()), Building.of(1).capture(6, 160, 120), register=register)
    house = building(frames)
    capture = house.capture(frames, *size)
    gc.collect()
    held, before, began = resident_bytes() / 1e6, used(), time.monotonic()
    stages: Counter[str] = Counter()
    last = [before, "begin"]

    def on_step(step: int, total: int, message: str) -> None:
        words = " ".join(word for word in message.split() if not word.isdigit())
        now = used()
        stages[last[1]] += now - last[0]
        last[:] = [now, words]

    world = World(WarpGenerator())
    scene = start(world, capture, register=register, on_step=on_step)
    stages[last[1]] += used() - last[0]
    cost, wall = used() - before, time.monotonic() - began
    print(f"{frames} frames of {size[0]}x{size[1]}, {house.length:.0f} m: {len(scene.views)} "
          f"views, {len(scene.cloud):,} points, stretch {scene.stretch:.2f}; {cost:.0f} CPU s, "
          f"{cost / frames:.3f} a frame, {cost / len(scene.views):.3f} a view, {wall:.0f} s; "
          f"resident {held:.0f} MB before, {resident_bytes() / 1e6:.0f} after, "
          f"peak {peak():.0f}")  # fmt: skip
    for what, seconds in stages.most_common(12):
        print(f"   {seconds:7.1f} CPU s  {what}")
    began, before = time.monotonic(), used()
    covered(world, capture.views)
    print(f"   coverage took {used() - before:.0f} CPU s")
    began, before = time.monotonic(), used()
    from worldstereo.project import save_world

    written = save_world(world, folder / f"{frames}.world")
    print(f"   saved {written / 1e6:.0f} MB in {time.monotonic() - began:.1f} s, "
          f"{used() - before:.1f} CPU s; peak {peak():.0f} MB", flush=True)  # fmt: skip


def covered(world: World, views: tuple) -> None:
    """Prints the share of pixels with measured depth that the cloud covers, of up to 100 views."""
    from worldstereo.guide import splat_cloud

    registration = world.registration
    shares, right = [], []
    for view in views[:: max(1, len(views) // 100)]:
        camera = view.cameras if registration is None else registration.correct(view.given)
        shown = splat_cloud(world.scene, camera)
        known = view.depth > 0
        off = (shown.depth - view.depth).abs() < 0.03 * view.depth + 0.03
        seen = shown.mask > 0
        shares.append(float(seen[known].float().mean()))
        right.append(float((off & seen)[known].float().mean()))
    print(f"   covered: worst {min(shares):.3f}, mean {np.mean(shares):.3f}; at the right depth: "
          f"worst {min(right):.3f}, mean {np.mean(right):.3f}; {len(shares)} views")  # fmt: skip


def opened(path: Path) -> None:
    """A saved world, until it can be flown through."""
    from worldstereo.project import load, reopen

    world = World(WarpGenerator())
    began, before = time.monotonic(), used()
    state = load(path)
    read, read_cpu = time.monotonic() - began, used() - before
    reopen(world, state)
    del state
    wall, cost = time.monotonic() - began, used() - before
    views, points = len(world.scene.views), len(world.scene.cloud)
    print(f"{path.name}: {views} views, {points:,} points: {wall:.1f} s, {cost:.1f} CPU s (reading "
          f"{read:.1f} s, {read_cpu:.1f} CPU s); peak {peak():.0f} MB", flush=True)  # fmt: skip
    from ui.viewport.viewport import Viewport

    began = time.monotonic()
    viewport = Viewport()
    viewport.renderer(False)
    viewport.follow(lambda: world.scene, world.subscribe)
    while viewport.stats["points"] < min(points, 1_000_000):
        time.sleep(0.02)
    print(f"   drawn after {time.monotonic() - began:.1f} s more; peak {peak():.0f} MB")
    viewport.close()


def clouds(millions: list[float], rounds: int) -> None:
    """Update and render at several sizes of the cloud, per point."""
    from worldstereo.cameras import Cameras, look_at
    from worldstereo.memory.geometric import GlobalGeometricMemory

    base: dict[str, float] = {}
    for size in (0.1, *millions):  # the first compiles
        count = int(size * 1e6)
        memory = GlobalGeometricMemory(max_points=int(count * 1.1))
        # a floor of constant density, entered in strips of 100,000 points as views come in
        side, step = (count / 1e4) ** 0.5, 100_000
        g = torch.Generator().manual_seed(0)
        before, entered = used(), 0
        strips = max(1, count // step)
        for strip in range(strips):
            points = torch.rand(step, 3, generator=g)
            points *= torch.tensor([side / strips, side, 0.02])
            points[:, 0] += strip * side / strips
            entered += len(points)
            memory.update(points, torch.eye(4), merge_threshold=0.002,
                          radii=torch.full((step,), 0.005))  # fmt: skip
        fill = (used() - before) / entered * 1e9
        again = []
        for turn in range(rounds):  # what is there is seen again
            at = turn * 7919 % strips
            points = torch.rand(step, 3, generator=g) * torch.tensor([side / strips, side, 0.02])
            points[:, 0] += at * side / strips
            before = used()
            memory.update(points, torch.eye(4), merge_threshold=0.002,
                          radii=torch.full((step,), 0.005))  # fmt: skip
            again.append((used() - before) / step * 1e9)
        K = torch.tensor([[500.0, 0, 320], [0, 500.0, 240], [0, 0, 1]])
        eye = torch.tensor([side / 2, side / 2, 0.9 * side])
        camera = Cameras(K, look_at(eye, torch.tensor([side / 2, side / 2, 0.0]),
                                    torch.tensor([0.0, -1.0, 0.0])), 640, 480)  # fmt: skip
        near = torch.tensor([side / 2, side / 2, 3.0])
        close = Cameras(K, look_at(near, near + torch.tensor([0.0, 0.5, -1.0]),
                                   torch.tensor([0.0, -1.0, 0.0])), 640, 480)  # fmt: skip
        whole, part = [], []
        for camera_, times in ((camera, whole), (close, part)):
            memory.render(camera_)
            for _ in range(rounds):
                before = used()
                memory.render(camera_)
                times.append((used() - before) / memory.num_points * 1e9)
        rows = {
            "fill": fill,
            "update": float(np.median(again)),
            "render all": float(np.median(whole)),
            "render near": float(np.median(part)),
        }
        if count < 1e6:
            continue
        base = base or rows
        print(f"{memory.num_points:,} points, resident {resident_bytes() / 1e6:.0f} MB")
        for name, value in rows.items():
            print(f"   {name}: {value:.1f} ns a point, {value / base[name]:.2f}x", flush=True)
        del memory
        gc.collect()


def batch(count: int, folder: Path) -> None:
    """Small captures on Ray and by hand: the example's six views, a clip of five small ones."""
    from worldstereo.cli.batch import RayPool, read_manifest, run_batch, run_task

    example = Path(__file__).resolve().parents[1] / "assets" / "examples" / "living-room"
    rows = [
        {"input": str(example), "frames": 5, "width": 320, "height": 240, "seed": k}
        for k in range(count)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks, broken = read_manifest(manifest)
    assert not broken
    (folder / "by-hand").mkdir()
    run_task(tasks[0], folder / "by-hand")  # kernels are compiled before either is timed
    began = time.monotonic()
    for task in tasks[1:]:
        run_task(task, folder / "by-hand")
    alone = (time.monotonic() - began) / (count - 1)
    began = time.monotonic()
    done = run_batch(manifest, folder / "ray", RayPool())
    took = time.monotonic() - began
    wrong = sum(result.state != "done" for result in done)
    print(
        f"{count} captures: by hand {alone:.2f} s each, on Ray {took / count:.2f} s each, "
        f"{took / count / alone:.2f}x; {wrong} failed"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    parts = options.add_subparsers(dest="what", required=True)
    one = parts.add_parser("entry")
    one.add_argument("frames", type=int, nargs="+")
    one.add_argument("--size", type=int, nargs=2, default=(640, 480))
    one.add_argument("--unregistered", action="store_true")
    one.add_argument("--folder", type=Path, required=True)
    two = parts.add_parser("open")
    two.add_argument("path", type=Path, nargs="+")
    three = parts.add_parser("cloud")
    three.add_argument("millions", type=float, nargs="+")
    three.add_argument("--rounds", type=int, default=5)
    four = parts.add_parser("batch")
    four.add_argument("count", type=int)
    four.add_argument("--folder", type=Path, required=True)
    given = options.parse_args()
    if given.what == "batch":
        batch(given.count, given.folder)
    elif given.what == "cloud":
        clouds(given.millions, given.rounds)
    elif given.what == "open":
        for path in given.path:
            opened(path)
    elif len(given.frames) == 1:
        given.folder.mkdir(parents=True, exist_ok=True)
        entry(given.frames[0], tuple(given.size), not given.unregistered, given.folder)
    else:
        for frames in given.frames:  # each in a process of its own, so that peaks are its own
            again = [str(frames), "--size", *map(str, given.size), "--folder", str(given.folder)]
            again += ["--unregistered"] if given.unregistered else []
            subprocess.run([sys.executable, "-m", "bench.scale", "entry", *again], check=True)


if __name__ == "__main__":
    main()
