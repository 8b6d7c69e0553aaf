"""Thirty small inputs after public bug reports of neighbouring tools: what each must give.

    python -m bench.cases FOLDER [--only b07,b46]

FOLDER holds the files `b01_....zip` and so on. One line a case: right, or what came out instead.
"R" is right, "RF" a refusal that the case allows, "W" wrong, "RX" refused though it should open.
"""

import argparse
import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.cases import room
from worldstereo.errors import InputRefused
from worldstereo.inputs import read


class Verdict(NamedTuple):
    right: bool
    seen: str


def _said(capture: Any, *words: str) -> bool:
    text = " ".join(capture.notices).lower()
    return any(word in text for word in words)


def _posed(views: int, most: float = 4.0) -> Callable[[Any], Verdict]:
    def check(capture: Any) -> Verdict:
        errors = [room.color_error(v) for v in capture.views]
        worst = max(errors, default=float("nan"))
        return Verdict(
            len(capture.views) == views and worst < most,
            f"{len(capture.views)} views, error {worst:.1f}/255",
        )

    return check


def _depths(views: int, median: float) -> Callable[[Any], Verdict]:
    def check(capture: Any) -> Verdict:
        errors = [room.depth_error(v) for v in capture.views]
        middle = max((float(np.median(e)) for e in errors if len(e)), default=float("nan"))
        good = len(capture.views) == views and middle < median and all(len(e) for e in errors)
        return Verdict(good, f"{len(capture.views)} views, median {100 * middle:.2f} cm")

    return check


def _world(capture: Any) -> Any:
    from worldstereo.generators import WarpGenerator
    from worldstereo.world import World, start

    world = World(WarpGenerator())
    start(world, capture)
    return world


def _inside(most: float) -> Callable[[Any], Verdict]:
    def check(capture: Any) -> Verdict:
        points = _world(capture).scene.cloud.points.numpy()
        share = room.outside(points)
        return Verdict(
            share < most,
            f"{100 * share:.2f} % of {len(points)} points outside, "
            f"up to {np.abs(points).max():.1f}",
        )

    return check


def _far_depth(capture: Any) -> Verdict:
    errors = np.concatenate([room.depth_error(v) for v in capture.views])
    off = float((errors > 0.05).mean())
    world = _inside(0.005)(capture)
    return Verdict(off < 0.001 and world.right, f"{100 * off:.2f} % measured off; {world.seen}")


def _scannet(capture: Any) -> Verdict:
    errors = np.concatenate([room.depth_error(v) for v in capture.views])
    near = float((errors < 0.05).mean())
    colors = max(room.color_error(v) for v in capture.views)
    return Verdict(
        near > 0.99 and colors < 4,
        f"fx {float(capture.views[0].cameras.K[0, 0]):.1f}, {100 * near:.1f} % within 5 cm, "
        f"error {colors:.1f}/255",
    )


def _masked(capture: Any) -> Verdict:
    kept = sum(int((v.depth[0] > 0).numpy()[_stranger(v)].sum()) for v in capture.views)
    cloud = _world(capture).scene.cloud
    off = np.abs(cloud.colors.numpy() - room.paint(cloud.points.numpy())).max(axis=1)
    return Verdict(
        kept == 0 and (off > 0.25).mean() < 0.002,
        f"{kept} masked pixels kept, {int((off > 0.25).sum())} points of another colour",
    )


def _stranger(view: Any) -> np.ndarray:
    """Pixels that do not show the room."""
    K, c2w = view.cameras.K.double().numpy(), view.cameras.c2w.double().numpy()
    rays = room.pinhole(view.width, view.height, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    right, _ = room.shoot(c2w, rays)
    given = view.color_u8.numpy().transpose(1, 2, 0).astype(int)
    return np.abs(given - right.astype(int)).max(axis=2) > 60


def _export(capture: Any) -> Verdict:
    from worldstereo.exports.transforms import write_transforms

    with zipfile.ZipFile(io.BytesIO(write_transforms(_world(capture).scene))) as archive:
        frames = json.loads(archive.read("transforms.json"))["frames"]
    n = sum("depth_file_path" in frame for frame in frames)
    return Verdict(n in (0, len(frames)), f"{n} of {len(frames)} frames have depth_file_path")


def _shares(*colors: tuple[tuple[int, int, int], float]) -> Callable[[Any], Verdict]:
    def check(capture: Any) -> Verdict:
        given = capture.cloud.colors.numpy() * 255
        shares = [float((np.abs(given - c).max(axis=1) < 30).mean()) for c, _ in colors]
        good = all(abs(s - want) < 0.03 for s, (_, want) in zip(shares, colors, strict=True))
        return Verdict(good, ", ".join(f"{s:.2f}" for s in shares))

    return check


def _halves(capture: Any) -> Verdict:
    """Half red, half green, whatever their exact shades are."""
    c = capture.cloud.colors.numpy()
    red, green = float((c[:, 0] > c[:, 1] + 0.3).mean()), float((c[:, 1] > c[:, 0] + 0.3).mean())
    return Verdict(abs(red - 0.5) < 0.03 and abs(green - 0.5) < 0.03, f"{red:.2f}, {green:.2f}")


def _quarters(capture: Any) -> Verdict:
    colors, counts = np.unique(
        (capture.cloud.colors.numpy() * 8).round(), axis=0, return_counts=True
    )
    shares = sorted(counts / counts.sum())[::-1]
    good = len(colors) >= 4 and all(abs(s - 0.25) < 0.03 for s in shares[:4])
    return Verdict(good, ", ".join(f"{s:.2f}" for s in shares[:5]))


def _mostly_blue(capture: Any) -> Verdict:
    c = capture.cloud.colors.numpy()
    share = float(((c[:, 2] > 0.5) & (c[:, 0] < 0.5)).mean())
    return Verdict(share > 0.99, f"blue {share:.2f}")


def _mean(value: float) -> Callable[[Any], Verdict]:
    def check(capture: Any) -> Verdict:
        mean = float(capture.cloud.colors.mean())
        return Verdict(abs(mean - value) < 0.02, f"mean {mean:.4f}")

    return check


def _points(n: int, color: tuple[int, int, int] | None = None) -> Callable[[Any], Verdict]:
    def check(capture: Any) -> Verdict:
        cloud = capture.cloud
        right = len(cloud) == n
        mean = cloud.colors.mean(0).numpy() * 255
        right &= color is None or bool(np.abs(mean - color).max() < 2)
        return Verdict(right, f"{len(cloud)} points, mean colour {mean.round().astype(int)}")

    return check


def _nan(capture: Any) -> Verdict:
    said = _said(capture, "325")
    return Verdict(len(capture.cloud) == 875 and said, f"{len(capture.cloud)} points, said: {said}")


def _photo(color: tuple[int, int, int]) -> Callable[[Any], Verdict]:
    def check(capture: Any) -> Verdict:
        mean = capture.views[0].color_u8.float().mean((1, 2)).numpy()
        return Verdict(bool(np.abs(mean - color).max() < 3), f"mean {mean.round().astype(int)}")

    return check


def _panorama(capture: Any) -> Verdict:
    good = capture.kind == "panorama" or _said(capture, "panorama")
    return Verdict(good, f"{capture.kind}; {' '.join(capture.notices)[:90]}")


def _opens(capture: Any) -> Verdict:
    return Verdict(len(capture.views) == 1, f"{len(capture.views)} view {capture.views[0].width}")


def _missing(capture: Any) -> Verdict:
    said = _said(capture, "left out", "missing")
    shown = _posed(3)(capture)
    return Verdict(shown.right and said, f"{shown.seen}, said: {said}")


def _up(capture: Any) -> Verdict:
    world = _world(capture)
    up = world.scene.up.numpy().round(2)
    return Verdict(bool(np.allclose(up, (0, 1, 0), atol=0.01)), f"up {tuple(up.tolist())}")


def _scanner(capture: Any) -> Verdict:
    shown = _posed(3)(capture)
    said = _said(capture, "picture")
    return Verdict(shown.right or said, f"{shown.seen}; {' '.join(capture.notices)[:80]}")


CASES: dict[str, tuple[Callable[[Any], Verdict], tuple[str, ...]]] = {
    "b01": (_posed(3), ()),
    "b03": (_posed(3), ()),
    "b04": (_posed(6), ("images.txt",)),
    "b06": (_depths(4, 0.01), ()),
    "b07": (_far_depth, ()),
    "b09": (_scannet, ()),
    "b11": (_posed(4), ()),
    "b12": (_missing, ()),
    "b15": (_masked, ()),
    "b16": (_export, ()),
    "b17": (_posed(2), ()),
    "b19": (_posed(2), ()),
    "b21": (_mostly_blue, ()),
    "b23": (_quarters, ()),
    "b24": (_halves, ()),
    "b26": (_halves, ()),
    "b28": (_mean(0.56), ()),
    "b30": (_points(256), ("compressed",)),
    "b31": (_nan, ()),
    "b32": (_points(50, (200, 100, 50)), ()),
    "b34": (_points(200, (200, 100, 50)), ("point list",)),
    "b35": (_photo((217, 42, 52)), ()),
    "b36": (_panorama, ()),
    "b37": (_opens, ("HEIC",)),
    "b39": (_posed(3), ()),
    "b41": (_posed(3), ()),
    "b42": (_points(90), ()),
    "b43": (_up, ()),
    "b46": (_inside(0.005), ()),
    "b48": (_scanner, ()),
}
"""For each case the check of a capture, and words by which an allowed refusal names the format."""


def judged(path: Path) -> tuple[str, str, float]:
    """Verdict, what was seen, and the seconds that reading took."""
    check, words = CASES[path.name[:3]]
    began = time.perf_counter()
    try:
        capture = read(path)
    except InputRefused as error:
        clear = any(word in str(error) for word in words)
        return "RF" if clear else "RX", str(error), time.perf_counter() - began
    seconds = time.perf_counter() - began
    right, seen = check(capture)
    return "R" if right else "W", seen, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="a comma-separated list of cases")
    arguments = parser.parse_args()
    wanted = [w for w in arguments.only.split(",") if w]
    counts: dict[str, int] = {}
    for path in sorted(arguments.folder.glob("b[0-9][0-9]_*")):
        if path.name[:3] not in CASES or (wanted and path.name[:3] not in wanted):
            continue
        verdict, seen, seconds = judged(path)
        counts[verdict] = counts.get(verdict, 0) + 1
        print(f"{path.name[:3]} {verdict:2} {seconds:5.2f} s  {seen}", flush=True)
    print(", ".join(f"{verdict}: {n}" for verdict, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
