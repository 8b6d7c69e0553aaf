"""The main job's own figures: start-up, one view, the scrubber, cancel, growth, determinism.

Each is measured the way a person meets it: fresh processes for start-up, the example world for the
rest. Targets are those that the first release was built for; a figure that falls short is printed
like any other.
"""

import gc
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from bench.harness import Context, Row

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "assets" / "examples" / "living-room"


def start_up(context: Context) -> list[Row]:
    """`--help` and `app.py` to listening, in fresh processes."""
    rounds = 2 if context.quick else 5
    help_seconds = [_run([sys.executable, "-m", "worldstereo", "--help"]) for _ in range(rounds)]
    listening = [_listening() for _ in range(1 if context.quick else 3)]
    return [
        _row("start-up", "python -m worldstereo --help", help_seconds, target="<= 1.0 s"),
        _row("start-up", "python app.py, listening", listening, target="<= 5 s"),
    ]


def one_view(context: Context) -> list[Row]:
    """One generated 640x480 view of the example world with all its maps, folded back included."""
    from worldstereo import Trajectory
    from worldstereo.world import default_view, explore, pivot_distance

    world, opening = _example_world()
    start = default_view(world.scene)
    path = Trajectory.preset(
        "orbit",
        start,
        distance=pivot_distance(world.scene, start),
        frames=4 if context.quick else 13,
    )
    stamps: list[float] = []
    explore(world, path, on_frame=lambda i, frame: stamps.append(time.perf_counter()))
    seconds = [b - a for a, b in zip(stamps, stamps[1:], strict=False)]
    return [
        _row("opening", "six 640x480 views, cleaned, registered, completed", [opening]),
        _row("one view", "640x480, example world", seconds, target="<= 1.0 s median"),
    ]


def scrub(context: Context) -> list[Row]:
    """One frame of the draft guide of a world of a million points."""
    import torch

    from worldstereo import Cameras, PointCloud, Scene
    from worldstereo.guide import splat_cloud

    n = 100_000 if context.quick else 1_000_000
    g = torch.Generator().manual_seed(0)
    points = torch.rand(n, 3, generator=g) * torch.tensor([4.0, 3.0, 4.0])
    points[torch.arange(n), torch.randint(3, (n,), generator=g)] = 0.0
    scene = Scene(cloud=PointCloud.of(points - torch.tensor([2.0, 1.5, -1.0])))
    K = torch.tensor([[525.0, 0, 320], [0, 525.0, 240], [0, 0, 1]])
    camera = Cameras(K, torch.eye(4), 640, 480)
    splat_cloud(scene, camera)
    seconds = [_timed(lambda: splat_cloud(scene, camera)) for _ in range(9)]
    return [_row("scrub", f"640x480 frame, {n:,} points", seconds, target="<= 60 ms")]


def cancel(context: Context) -> list[Row]:
    """From the flag to an idle, unchanged world."""
    from worldstereo import Cancelled, Trajectory
    from worldstereo.world import default_view, explore

    world, _ = _example_world()
    path = Trajectory.preset("truck", default_view(world.scene), distance=2.0, frames=25)
    seconds = []
    for after in range(1, 3 if context.quick else 8):
        flag: list[float] = []

        def stop(step: int, total: int, message: str, flag: list[float] = flag) -> None:
            if flag:
                raise Cancelled("stopped")

        def press(i: int, frame: object, flag: list[float] = flag, after: int = after) -> None:
            if i + 1 == after:
                flag.append(time.perf_counter())

        before = world.scene
        try:
            explore(world, path, on_step=stop, on_frame=press)
        except Cancelled:
            seconds.append(time.perf_counter() - flag[0])
        assert world.scene is before
    return [_row("cancel", "pressed to idle, world unchanged", seconds, target="<= 1 s")]


def determinism(context: Context) -> list[Row]:
    """The same seed twice on the CPU: frames and cloud bit for bit."""
    import torch

    from worldstereo import Trajectory
    from worldstereo.world import default_view, explore

    runs = []
    for _ in range(2):
        world, _ = _example_world()
        path = Trajectory.preset("crane", default_view(world.scene), distance=2.0, frames=3)
        clip = explore(world, path, seed=3)
        runs.append((clip.color_u8, clip.depth, clip.origin, world.scene.cloud.points))
    equal = all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    row = _row("determinism", "same seed twice, frames and cloud", [0.0])
    row.extra["bit-identical"] = equal
    return [row]


def growth(context: Context) -> list[Row]:
    """Thirty generations in one session: resident memory against what the world holds."""
    import psutil

    from worldstereo import Trajectory
    from worldstereo.world import default_view, explore

    world, _ = _example_world()
    process, start = psutil.Process(), default_view(world.scene)
    resident, held = [], []
    names = ("orbit", "truck", "pan", "crane", "dolly")
    for step in range(3 if context.quick else 30):
        path = Trajectory.preset(
            names[step % 5], start, distance=2.0, frames=3, amount=0.3 + 0.05 * step
        )
        explore(world, path.scaled(320, 240), seed=step)
        gc.collect()
        resident.append(process.memory_info().rss / 2**20)
        held.append(_held(world) / 2**20)
    row = _row("growth", f"{len(resident)} generations of 3 views 320x240", [0.0])
    row.extra |= {
        "resident MiB, first to last": f"{resident[0]:.0f} to {resident[-1]:.0f}",
        "held MiB, first to last": f"{held[0]:.0f} to {held[-1]:.0f}",
        "points": len(world.scene.cloud),
    }
    return [row]


def step_growth(context: Context) -> list[Row]:
    """One whole step (guide, retrieval, blend, fill, update, publish) as the world grows."""
    import torch

    from worldstereo import Trajectory
    from worldstereo.world import default_view, explore

    sizes = (100_000, 200_000) if context.quick else (100_000, 1_000_000, 5_000_000)
    rows, first = [], 0.0
    for size in sizes:
        world, _ = _example_world(max_points=6_000_000)
        with world.step("thin") as draft:
            keep = torch.arange(draft.geometry.num_points) % 5 == 0
            draft.geometry.prune(keep=keep)
        g = torch.Generator().manual_seed(1)
        more = size - len(world.scene.cloud)
        if more > 0:  # the walls of a hall around the room: seen behind it, and beside it
            wall = (torch.rand(more, 3, generator=g) - 0.5) * 20
            side = torch.randint(3, (more,), generator=g)
            wall[torch.arange(more), side] = torch.where(
                wall[torch.arange(more), side] > 0, 10.0, -10.0
            )
            with world.step("grow") as draft:
                draft.geometry.update(wall, torch.eye(4), merge_threshold=1e-4)
        camera = default_view(world.scene)
        path = Trajectory.preset("truck", camera, distance=1.8, frames=1, amount=0.5)
        explore(world, path)  # builds what is built once
        seconds = []
        for seed in range(3 if context.quick else 7):
            nudged = Trajectory.preset(
                "truck", camera, distance=1.8, frames=2, amount=0.1 + 0.05 * seed
            )
            seconds.append(_timed(lambda nudged=nudged: explore(world, nudged, seed=seed)))  # noqa: B023
        row = _row("step", f"2 views 640x480, {len(world.scene.cloud):,} points", seconds)
        first = first or row.wall_ms
        row.extra["against the smallest"] = round(row.wall_ms / first, 2)
        rows.append(row)
    return rows


def two_sessions(context: Context) -> list[Row]:
    """Two worlds exploring at once, each against itself alone."""
    import threading

    from worldstereo import Trajectory
    from worldstereo.world import default_view, explore

    worlds = [_example_world()[0] for _ in range(2)]
    frames = 2 if context.quick else 6
    path = Trajectory.preset("truck", default_view(worlds[0].scene), distance=1.8, frames=frames)
    explore(worlds[0], path)
    alone = [_timed(lambda: explore(worlds[0], path)) for _ in range(3)]
    together: list[float] = []

    def work(world) -> None:  # noqa: ANN001
        together.append(_timed(lambda: explore(world, path)))

    for _ in range(2):
        threads = [threading.Thread(target=work, args=(world,)) for world in worlds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    row = _row("two sessions", f"{frames} views 640x480 at once", together, target="<= 2.2x alone")
    row.extra["slower than alone"] = round(
        statistics.median(together) / statistics.median(alone), 2
    )
    return [row]


def _held(world) -> int:  # noqa: ANN001
    """Bytes of the tensors that the world must hold: memories, views, clips, cloud."""
    scene = world.scene
    total = sum(sum(t.nbytes for t in state.values()) for state in world.memories())
    for view in scene.views:
        total += view.color_u8.nbytes + view.depth.nbytes + 2 * view.kind.nbytes
    for clip in scene.clips:
        total += clip.color_u8.nbytes + clip.depth.nbytes + 3 * clip.origin.nbytes
    return total + len(scene.cloud) * 56


def _example_world(max_points: int = 2_000_000):  # noqa: ANN202
    from worldstereo import WarpGenerator, World, read
    from worldstereo.world import start

    world, capture = World(WarpGenerator(), max_points=max_points), read(EXAMPLE)
    return world, _timed(lambda: start(world, capture))


def _timed(work) -> float:  # noqa: ANN001
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _run(command: list[str]) -> float:
    return _timed(lambda: subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True))


def _listening(port: int = 7893) -> float:
    """Seconds from starting the app until its health page answers."""
    began = time.perf_counter()
    app = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while time.perf_counter() - began < 120:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1):
                    return time.perf_counter() - began
            except OSError:
                time.sleep(0.05)
        raise TimeoutError("the app did not listen within 120 s")
    finally:
        app.terminate()
        app.wait()


def _row(name: str, variant: str, seconds: list[float], target: str = "") -> Row:
    milliseconds = statistics.median(seconds) * 1e3
    extra: dict[str, object] = {"target": target} if target else {}
    if len(seconds) > 1:
        extra["slowest ms"] = round(max(seconds) * 1e3, 1)
    return Row(name, variant, 0, 0.0, milliseconds, len(seconds), extra)


BENCHMARKS = {
    "start-up": start_up,
    "view": one_view,
    "scrub": scrub,
    "cancel": cancel,
    "determinism": determinism,
    "growth": growth,
    "step": step_growth,
    "sessions": two_sessions,
}
