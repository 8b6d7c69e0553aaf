"""Photos and videos without poses, measured: `python -m bench.unposed PART... --root DATA`.

The pictures of captures whose poses are known are given alone, in names of their own; errors are
after a similarity onto the given poses. CPU seconds count the import process. Parts: `poses`
(several `--sets`), `video`, `failures`, `large`, `start`, `views`, `single`.
"""

import argparse
import itertools
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from bench.views_sets import image_of, picture, psnr, seen_mask, ssim
from worldstereo import Capture, View, WarpGenerator, World, read
from worldstereo.depth import LayoutDepth, RecordedDepth
from worldstereo.errors import InputRefused
from worldstereo.inputs import photo, upright
from worldstereo.inputs.limits import LOCAL
from worldstereo.memory.stereo import dense as synthesis
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Scene
from worldstereo.views import intake
from worldstereo.views.fusion import make_view_arrays
from worldstereo.world import start

POSES = ("lund-door", "lund-door/bare", "plush", "buddha", "livingroom1/4", "livingroom1",
         "icl-nuim-5", "lund-door/ends")  # fmt: skip


class Truth:
    """Pictures of one capture with the poses and the focal length that are given with them."""

    def __init__(self, root: Path, name: str) -> None:
        where = next(f for f in (root / "rgbd" / name, root / "photos-posed" / name) if f.is_dir())
        text = json.loads((where / "frames.json").read_text())
        camera = text["camera"]
        self.name = name
        self.focal = float(camera.get("f", camera.get("fx"))) / max(
            camera["width"], camera["height"]
        )
        frames = sorted(text["frames"], key=lambda f: f["image"])
        self.files = [where / f["image"] for f in frames]
        self.c2w = np.array([f["c2w"] for f in frames], np.float64)


def given(files: list[Path], folder: Path, *, bare: bool = False) -> Path:
    """The pictures alone, in order; `bare` takes their tags away."""
    folder.mkdir()
    for i, file in enumerate(files):
        target = folder / f"IMG_{i:03d}{file.suffix.lower()}"
        if bare:
            with Image.open(file) as opened:
                opened.convert("RGB").save(target, quality=97, subsampling=0)
        else:
            target.write_bytes(file.read_bytes())
    return folder


def errors(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Degrees, and % of the longest way between two cameras, after a similarity."""
    M = sum(t[:3, :3] @ f[:3, :3].T for f, t in zip(found, truth, strict=True))
    U, _, Vt = np.linalg.svd(M)
    R = U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt
    a, b = found[:, :3, 3], truth[:, :3, 3]
    a, b = a - a.mean(0), b - b.mean(0)
    off = np.sqrt((b**2).sum() / max((a**2).sum(), 1e-12)) * a @ R.T - b
    span = max(np.linalg.norm(p - q) for p, q in itertools.combinations(b, 2))
    turn = np.einsum("nji,jk,nki->n", truth[:, :3, :3], R, found[:, :3, :3])
    degrees = np.degrees(np.arccos(np.clip((turn - 1) / 2, -1, 1)))
    return degrees, 100 * np.linalg.norm(off, axis=1) / span


@contextmanager
def cpu(into: dict[str, float]) -> Iterator[None]:
    """Seconds of this process and of the import process, which ends inside, and its peak memory."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    before, wall = used(), time.perf_counter()
    yield
    into["CPU s"] = used() - before
    into["wall s"] = time.perf_counter() - wall
    into["peak GB"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1 << 20)


def opened(source: Path, row: dict, *, on_step: OnStep = ignore, **options) -> Capture | None:  # noqa: ANN003
    with cpu(row):
        try:
            capture = read(source, on_step=on_step, **options)
        except InputRefused as error:
            row["refused"] = str(error)
            return None
    row["notices"] = list(capture.notices)
    return capture


def scored(capture: Capture, truth: np.ndarray, focal: float, row: dict) -> None:
    found = np.array([view.cameras.c2w.double().numpy() for view in capture.views])
    index = [view.frame for view in capture.views]
    row["placed"] = len(index)
    row["points"] = 0 if capture.cloud is None else len(capture.cloud)
    if len(index) > 1:
        degrees, off = errors(found, truth[index])
        row |= {
            "rotation median": float(np.median(degrees)), "rotation worst": float(degrees.max()),
            "position median %": float(np.median(off)), "position worst %": float(off.max()),
        }  # fmt: skip
    view = capture.views[0]
    measured = float(view.cameras.K[0, 0]) / max(view.width, view.height)
    row["focal %"] = 100 * (measured / focal - 1)


def poses(root: Path, name: str) -> dict:
    base, _, how = name.partition("/")
    truth = Truth(root, base)
    row: dict = {"set": name}
    chosen = list(range(len(truth.files)))
    if how == "ends":
        chosen = [chosen[0], chosen[-1]]
    elif how.isdigit():
        chosen = chosen[:: int(how)]
    with tempfile.TemporaryDirectory() as room:
        files = [truth.files[i] for i in chosen]
        folder = given(files, Path(room) / base, bare=how == "bare")
        row["photos"] = len(files)
        capture = opened(folder, row)
    if capture is not None and capture.kind == "photos":
        scored(capture, truth.c2w[chosen], truth.focal, row)
    return row


# ---- video -------------------------------------------------------------------------------------


def film(files: list[Path], path: Path) -> list[int]:
    """69 frames of livingroom1: 22 blurred by 7 to 15 px, pauses of 12 and 6; frame to picture."""
    import av

    pictures = [np.asarray(Image.open(f).convert("RGB")) for f in files[:51]]
    order = [*range(20), *([20] * 12), *range(20, 40), *([40] * 6), *range(40, 51)]
    rng = np.random.default_rng(0)
    blurred = set(rng.choice(len(order), 22, replace=False).tolist())
    with av.open(str(path), "w") as box:
        stream = box.add_stream("mpeg4", rate=10)
        stream.width, stream.height = pictures[0].shape[1], pictures[0].shape[0]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 12_000_000
        for i, k in enumerate(order):
            pixels = pictures[k]
            if i in blurred:
                width = int(rng.integers(7, 16))
                pixels = cv2.filter2D(pixels, -1, np.full((1, width), 1 / width))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts = i
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
    return order


def video(root: Path, keyframes: int) -> dict:
    truth, row = Truth(root, "livingroom1"), {"keyframes": keyframes}
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "room.mp4"
        order = film(truth.files, path)
        capture = opened(path, row, limits=replace(LOCAL, video_frames=keyframes))
    if capture is not None:
        shown = [order[min(len(order) - 1, round(float(v.name.split()[0]) * 10))]
                 for v in capture.views]  # fmt: skip
        views = tuple(replace(v, frame=k) for v, k in zip(capture.views, shown, strict=True))
        scored(replace(capture, views=views), truth.c2w, truth.focal, row)
    return row


# ---- failures ----------------------------------------------------------------------------------


def failures(root: Path) -> list[dict]:
    """The cases of the table of failures: what is answered, and whether that is right."""
    door = [np.asarray(Image.open(f).convert("RGB")) for f in Truth(root, "lund-door").files]
    small = [cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for p in door]
    toy = [np.asarray(Image.open(f).convert("RGB")) for f in Truth(root, "plush").files[:10]]
    rng = np.random.default_rng(0)
    slope = np.linspace(-1, 1, 640)[None, :, None] * np.ones((480, 1, 1))
    wall = [
        np.clip(180 + 9 * k + (12 - 5 * k) * slope + rng.normal(0, 1, (480, 640, 3)), 0, 255)
        .astype(np.uint8)
        for k in range(6)
    ]  # fmt: skip
    line = np.full((1, 31), 1 / 31)
    blurred = [cv2.filter2D(p, -1, line) if i % 12 in (1, 4, 6, 8, 11) else p
               for i, p in enumerate(small)]  # fmt: skip
    all_blurred = [cv2.filter2D(p, -1, line) for p in small]
    ball = np.asarray(Image.open(root / "panoramas" / "st_fagans_interior_1k.jpg").convert("RGB"))
    unlike = [
        np.asarray(Image.open(root / "photos" / n).convert("RGB"))
        for n in ("coffee.png", "lake-sherburne.jpg", "orange-hallway.jpg", "roman-colosseum.jpg")
    ]
    icl = [np.asarray(Image.open(f).convert("RGB")) for f in Truth(root, "icl-nuim-5").files]
    cases: list[tuple[str, list[np.ndarray], str]] = [
        ("plain wall", wall, "too plain or blurred"),
        ("5 of 12 blurred by 31 px", blurred, "blurred"),
        ("all blurred by 31 px", all_blurred, "blurred"),
        ("camera only turns", [turned(ball, a) for a in range(0, 120, 12)], "did not move"),
        ("different things", unlike, "show the same things"),
        ("two places, 6 and 10", [*small[:6], *toy], "another place"),
        ("four copies", [small[0]] * 4, "copies"),
        ("too far apart", icl, "too few to place"),
    ]
    rows = []
    for name, pictures, word in cases:
        row: dict = {"case": name}
        with tempfile.TemporaryDirectory() as room:
            folder = Path(room) / "photos"
            folder.mkdir()
            for i, pixels in enumerate(pictures):
                Image.fromarray(pixels).save(folder / f"IMG_{i:03d}.jpg", quality=93)
            capture = opened(folder, row)
        said = row.get("refused") or " ".join(row.get("notices", ()))
        row |= {"placed": 0 if capture is None else len(capture.views), "right": word in said}
        if capture is not None and "blurred" in name:
            truth = Truth(root, "lund-door")
            scored(capture, truth.c2w, truth.focal, row)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def turned(sphere: np.ndarray, degrees: float) -> np.ndarray:
    """A view of 60 degrees from the middle of a panorama."""
    H, W = sphere.shape[:2]
    v, u = np.mgrid[0:480, 0:640] + 0.5
    f = 320 / math.tan(math.radians(30))
    x, y, z = (u - 320) / f, (v - 240) / f, np.ones_like(u)
    across = np.arctan2(x, z) + math.radians(degrees)
    down = np.arctan2(y, np.hypot(x, z))
    columns = ((across / (2 * math.pi) + 0.5) % 1 * W).astype(np.float32)
    rows = ((down / math.pi + 0.5) * H).astype(np.float32)
    return cv2.remap(sphere, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)


# ---- from the drop to a world ------------------------------------------------------------------


class Clock:
    """Seconds of each stage, by what the progress lines say."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._stage, self._since = "starting", time.perf_counter()

    def __call__(self, step: int, total: int, message: str) -> None:
        now = time.perf_counter()
        self.spent[self._stage] = self.spent.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = message.split(":")[0], now

    def end(self) -> dict[str, float]:
        self(0, 0, "end")
        return {k: round(v, 1) for k, v in self.spent.items() if v > 0.05}


def begun(root: Path, name: str) -> dict:
    """Photos to a world that can be explored."""
    truth, row, clock = Truth(root, name), {"set": name}, Clock()
    with tempfile.TemporaryDirectory() as room:
        folder = given(truth.files, Path(room) / name)
        capture = opened(folder, row, on_step=clock)
        assert capture is not None
        world, used = World(WarpGenerator()), {}
        with cpu(used):
            start(world, capture, on_step=clock)
    row |= {"intake CPU s": used["CPU s"], "intake wall s": used["wall s"], "stages": clock.end()}
    return row


def large(root: Path) -> dict:
    """60 photos of 12 Mpx: skull, enlarged."""
    row: dict = {"set": "60 x 12 Mpx"}
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "photos"
        folder.mkdir()
        for i, file in enumerate(Truth(root, "skull").files[:60]):
            with Image.open(file) as picture:
                picture.convert("RGB").resize((4240, 2830), Image.Resampling.BICUBIC).save(
                    folder / f"IMG_{i:03d}.jpg", quality=90
                )
        capture = opened(folder, row)
    row["placed"] = 0 if capture is None else len(capture.views)
    return row


# ---- views -------------------------------------------------------------------------------------


def views(root: Path, name: str) -> dict:
    """Photos predicted from the rest: poses as given, poses as found.

    Every 8th photo from the 4th at once; of fewer than 16, six of them each in turn.
    """
    truth = Truth(root, name)
    row: dict = {"set": name}
    with tempfile.TemporaryDirectory() as room:
        bare = read(given(truth.files, Path(room) / name))
    posed = read(truth.files[0].parents[1])
    by_name = {view.name.rsplit("/", 1)[-1]: view for view in posed.views}
    ours = {truth.files[view.frame].name: view for view in bare.views}
    names = [f.name for f in truth.files if f.name in by_name and f.name in ours]
    if len(names) < 16:
        folds = [[names[i]] for i in np.linspace(0, len(names) - 1, min(6, len(names))).astype(int)]
    else:
        folds = [names[4::8]]
    for label, capture, views_ in (("given", posed, by_name), ("found", bare, ours)):
        points = None if capture.cloud is None else capture.cloud.points
        scores = []
        for left_out in folds:
            kept = [views_[n] for n in names if n not in left_out]
            done = intake.preprocess_views(kept, points=points)
            index = synthesis.ViewIndex(list(done.views))
            for target in (views_[n] for n in left_out):
                camera = target.given
                chosen = [done.views[i] for i in index.choose(camera, None)]
                image = image_of(
                    synthesis.synthesize(
                        camera, chosen, camera_fixed=done.camera_fixed, unit=done.unit
                    )
                )
                truly = picture(target)
                scores.append((psnr(image, truly), float(ssim(image, truly).mean())))
        row[f"{label} dB"], row[f"{label} SSIM"] = np.mean(scores, axis=0).tolist()
        row[f"{label} each"] = [round(float(s[0]), 2) for s in scores]
    row["gain dB"] = row["found dB"] - row["given dB"]
    return row


def single(root: Path, name: str, frames: int) -> dict:
    """Held-out views from one photo: with its depth as a recorded map, and with the layout.

    The layout stands on its picture's own up, or on the one that straight lines in the photo show,
    as a photo is read. It has a scale of its own; it gets the best one, the median ratio to the
    true depth.
    """
    capture = read(root / "rgbd" / name)
    n, rows = len(capture.views), []
    for i in np.linspace(0, n - 1, frames + 2).astype(int)[1:-1]:
        view = capture.views[i]
        others = sorted(
            (v for v in capture.views if v is not view),
            key=lambda v, view=view: float(
                (v.given.c2w[:3, 3] - view.given.c2w[:3, 3]).norm()
                + 2 * (v.given.c2w[:3, :3] - view.given.c2w[:3, :3]).norm()
            ),
        )[: min(4, n - 1)]
        found = upright.one(view)
        up = None if found.guessed else view.given.c2w[:3, :3] @ torch.from_numpy(found.up).float()
        worlds = {
            "depth": of_one(view, RecordedDepth(view.depth)),
            "held level": of_one(view, LayoutDepth()),
            "layout": of_one(view, LayoutDepth(up=up)),
        }
        for target in others:
            seen = seen_mask([make_view_arrays(view)], make_view_arrays(target), None)
            row = {}
            for label, scene in worlds.items():
                image = image_of(
                    synthesis.synthesize(target.given, list(scene.views), unit=scene.unit)
                )
                truth = picture(target)
                row |= {
                    f"{label} whole": psnr(image, truth),
                    f"{label} seen": psnr(image, truth, seen),
                    f"{label} hole": psnr(image, truth, ~seen),
                }
            rows.append(row)
    return {"set": name, "views": len(rows)} | {
        k: float(np.nanmean([row[k] for row in rows])) for k in rows[0]
    }


def of_one(view: View, estimator: Callable) -> Scene:
    """The world of one photo, at the scale of its true depth."""
    pixels = view.color_u8.permute(1, 2, 0).numpy()
    guess, _ = photo.guessed(pixels, view.given, "photo", estimator)
    both = (guess.depth > 0) & (view.depth > 0)
    scale = float((view.depth[both] / guess.depth[both]).median())
    guess = replace(guess, depth=guess.depth * scale, cameras=view.given, given=view.given)
    world = World(WarpGenerator())
    start(world, Capture("photo", "photo", (guess,), up=torch.tensor([0.0, -1.0, 0.0])))
    return world.scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("poses", "video", "failures", "large", "start", "views", "single")
    parser.add_argument("parts", nargs="*", default=["poses"], choices=parts)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    root, rows = options.root, []

    def note(row: dict) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    for part in options.parts:
        if part == "failures":
            rows += failures(root)
        elif part == "large":
            note(large(root))
        elif part == "video":
            for count in (16, 24):
                note(video(root, count))
        else:
            usual = {"poses": POSES, "start": ("lund-door",), "views": ("lund-door",),
                     "single": ("livingroom1", "icl-nuim-5")}[part]  # fmt: skip
            for name in options.sets or usual:
                if part == "poses":
                    note(poses(root, name))
                elif part == "start":
                    note(begun(root, name))
                elif part == "views":
                    note(views(root, name))
                else:
                    note(single(root, name, 3 if name == "livingroom1" else 5))
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
