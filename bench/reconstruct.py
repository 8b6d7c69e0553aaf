"""Surfaces of captures against their sensors, ours beside Open3D's, and what each part brings.

    python -m bench.reconstruct --root DATA [--sets NAME ...] [--every N] [--parts NAME ...]

Every 8th frame from the 5th on is left out (of five frames each in turn), the rest is fused in
cells of 1 cm. The mesh is drawn at the cameras left out and compared with what their sensor saw:

- error: median difference of depth in mm, of the pixels that both know; again where the picture
  was found (`views_poses`), which does not blame the mesh for the pose of the camera left out;
- 2 cm: share of the sensor's pixels where the mesh is within 2 cm, uncovered ones are misses;
- floaters: share of the mesh's area farther than 5 cm from every measured point of all frames;
- PSNR, sharpness: of the drawn colours where the mesh is, at the pose found from the picture;
  sharpness is gradient energy over the true picture's.

Open3D (`ScalableTSDFVolume`, truncation of 4 cells; optional) gets the same frames: the sensor's
depth at the given poses, as one would call it, and again at the poses that we found. Its colours
are those of its vertices, ours a texture of 2,048 pixels. Version 0.20.0 returns an empty volume
for any depth, also for a flat wall; 0.19.0 works.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bench._peers import module
from bench.views_poses import FoundPoses, sharpness
from bench.views_sets import picture
from worldstereo.cameras import Cameras
from worldstereo.exports import export
from worldstereo.inputs import read
from worldstereo.reconstruct import (
    Mesh,
    Surface,
    SurfaceOptions,
    reconstruct_surface,
    render_mesh,
)
from worldstereo.scene import PointCloud, Scene, View
from worldstereo.views.intake import (
    IntakeOptions,
    PreprocessedViews,
    cloud_from,
    preprocess_views,
)

SETS = ("livingroom1", "icl-nuim-5", "tum-rpy", "workshop")
VOXEL = 0.01
NEAR = 0.02
FLOATS = 0.05
SAMPLES = 100_000  # of the mesh's surface, for floaters


@dataclass(frozen=True, eq=False)
class Split:
    """Views to fuse, views to ask for, and how the world places what it was given."""

    kept: list[View]
    out: list[View]


def splits(views: Sequence[View]) -> list[Split]:
    if len(views) <= 6:
        return [Split([v for v in views if v is not t], [t]) for t in views]
    return [Split([v for i, v in enumerate(views) if i % 8 != 4], list(views[4::8]))]


class World:
    """The kept views of a split after intake, and the cameras of all in its frame."""

    def __init__(self, split: Split, *, register: bool, options: IntakeOptions) -> None:
        began = time.process_time()
        self.intake: PreprocessedViews = preprocess_views(
            split.kept, register=register, options=options
        )
        self.seconds = time.process_time() - began
        views = self.intake.views
        self.scene = Scene(views=views, unit=self.intake.unit, metres_per_unit=1.0)
        self.split = split
        found = FoundPoses(views, self.intake.unit)
        self.given = [self.placed(v.given) for v in split.out]
        pairs = [found(v, c) for v, c in zip(split.out, self.given, strict=True)]
        self.found = [camera if ok else None for camera, ok in pairs]

    def placed(self, camera: Cameras) -> Cameras:
        registration = self.intake.registration
        return camera if registration is None else registration.correct(camera)

    def measured_points(self) -> np.ndarray:
        """Middles of the cells of 1 cm that any frame's sensor measured, placed in this world.

        All pixels: far away or on an oblique floor every fifth is farther than 5 cm from the next.
        """
        cells = []
        for view in (*self.split.kept, *self.split.out):
            camera, depth = self.placed(view.given), view.depth.flatten()
            sure = depth > 0
            points = camera.unproject(camera.pixel_grid()[sure], depth[sure]).numpy()
            cells.append(np.unique(np.floor(points / 0.01).astype(np.int64), axis=0))
        return np.unique(np.concatenate(cells), axis=0) * 0.01 + 0.005


def measures(surface: Surface, world: World, pictures: Path | None = None) -> dict[str, Any]:
    """Sums and lists over the held-out views, to be pooled by `pooled`."""
    out: dict[str, Any] = {
        "error": [],
        "found": [],
        "near": 0,
        "covered": 0,
        "asked": 0,
        "psnr": [],
        "sharp": [],
    }
    texture = surface.textures.get("albedo")
    for i, view in enumerate(world.split.out):
        drawn = render_mesh(surface.mesh, world.given[i])
        sensor, mesh = view.depth[0], drawn.depth[0]
        both = (sensor > 0) & (mesh > 0)
        apart = (sensor - mesh).abs()
        out["error"].append(apart[both].numpy()[::7])
        out["near"] += int((both & (apart < NEAR)).sum())
        out["covered"] += int(both.sum())
        out["asked"] += int((sensor > 0).sum())
        camera = world.found[i]
        if camera is None:
            continue
        drawn = render_mesh(surface.mesh, camera, texture)
        seen = (drawn.face[0] >= 0).numpy()
        if seen.mean() < 0.05:
            continue
        both = (sensor > 0) & (drawn.depth[0] > 0)
        out["found"].append((sensor - drawn.depth[0]).abs()[both].numpy()[::7])
        image, truth = drawn.color.permute(1, 2, 0).numpy(), picture(view)
        out["psnr"].append(-10 * np.log10(((image - truth)[seen] ** 2).mean()))
        out["sharp"].append(sharpness(image, truth, seen))
        if pictures is not None:
            save(pictures.with_name(f"{pictures.name}-{i}.png"), truth, image, sensor, mesh)
    out["floating"], out["area"] = floating(surface.mesh, world.measured_points())
    return out


def pooled(parts: Sequence[dict[str, Any]]) -> dict[str, float]:
    total = {k: sum(p[k] for p in parts) for k in ("near", "covered", "asked", "floating", "area")}
    error, found = (
        np.concatenate([e for p in parts for e in (*p[k], [])]) for k in ("error", "found")
    )
    psnr, sharp = ([x for p in parts for x in p[k]] for k in ("psnr", "sharp"))
    return {
        "error mm": 1000 * float(np.median(error)) if len(error) else float("nan"),
        "mm, found pose": 1000 * float(np.median(found)) if len(found) else float("nan"),
        "2 cm": total["near"] / total["asked"],
        "covered": total["covered"] / total["asked"],
        "floaters": total["floating"] / max(total["area"], 1e-12),
        "PSNR": float(np.mean(psnr)) if psnr else float("nan"),
        "sharpness": float(np.mean(sharp)) if sharp else float("nan"),
        "area m2": total["area"],
    }


def floating(mesh: Mesh, points: np.ndarray) -> tuple[float, float]:
    """Area farther than 5 cm from every point, and area."""
    from scipy.spatial import KDTree

    area = mesh.areas().double().numpy()
    draw = np.random.default_rng(0)
    face = draw.choice(len(area), SAMPLES, p=area / area.sum())
    a, b = np.sqrt(draw.random(SAMPLES)), draw.random(SAMPLES)
    corners = mesh.vertices.numpy()[mesh.faces.numpy()[face]]
    at = np.stack([1 - a, a * (1 - b), a * b], 1)[:, :, None]
    far = KDTree(points).query((corners * at).sum(1), distance_upper_bound=FLOATS)[0]
    return float(np.isinf(far).mean() * area.sum()), float(area.sum())


def save(path: Path, truth: np.ndarray, image: np.ndarray, sensor: Any, mesh: Any) -> None:
    """True and drawn picture, measured and drawn depth."""
    import cv2

    top = max(float(sensor.max()), 1e-6)
    shade = [
        cv2.applyColorMap((d.numpy() / top * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_TURBO)
        for d in (sensor, mesh)
    ]
    colors = [(c[..., ::-1] * 255).clip(0, 255).astype(np.uint8) for c in (truth, image)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack([np.hstack(colors), np.hstack(shade)]))


# ---- who builds a mesh -----------------------------------------------------------------------


def ours(world: World) -> Surface:
    return reconstruct_surface(world.scene, SurfaceOptions(voxel=VOXEL))


def open3d_surface(views: Sequence[View], cameras: Sequence[Cameras]) -> Surface:
    """Open3D's legacy scalable volume of the sensor's depth."""
    o3d = module("open3d")
    volume = o3d.pipelines.integration.ScalableTSDFVolume(
        voxel_length=VOXEL,
        sdf_trunc=4 * VOXEL,
        color_type=o3d.pipelines.integration.TSDFVolumeColorType.RGB8,
    )
    for view, camera in zip(views, cameras, strict=True):
        K = camera.K.double().numpy()
        frame = o3d.geometry.RGBDImage.create_from_color_and_depth(
            o3d.geometry.Image(np.ascontiguousarray(view.color_u8.permute(1, 2, 0).numpy())),
            o3d.geometry.Image(np.ascontiguousarray(view.depth[0].numpy().astype(np.float32))),
            depth_scale=1.0,
            depth_trunc=1000.0,
            convert_rgb_to_intensity=False,
        )
        # its first pixel's centre is (0, 0)
        lens = o3d.camera.PinholeCameraIntrinsic(
            view.width, view.height, K[0, 0], K[1, 1], K[0, 2] - 0.5, K[1, 2] - 0.5
        )
        volume.integrate(frame, lens, camera.w2c.double().numpy())
    mesh = volume.extract_triangle_mesh()
    if len(mesh.triangles) == 0:
        raise SystemExit(f"Open3D {o3d.__version__} returned an empty volume; use 0.19.0.")
    vertices = torch.from_numpy(np.asarray(mesh.vertices, np.float32))
    faces = torch.from_numpy(np.asarray(mesh.triangles, np.int64))
    colors = torch.from_numpy(np.asarray(mesh.vertex_colors, np.float32))
    return Surface(Mesh.of(vertices, faces, colors=colors))


# ---- tables ----------------------------------------------------------------------------------


BARE = {"contradict": False, "by_others": False, "complete": False, "stereo": False,
        "exposure": False, "judged": False}  # fmt: skip
"""Intake without what a view learns from the other remembered views."""
WAYS: dict[str, tuple[bool, dict[str, bool]]] = {
    "worldstereo": (True, {}),
    "without registration": (False, {}),
    "without memory": (True, BARE),
    "without both": (False, BARE),
}
"""Whether views are registered, and intake options."""
OPEN3D = {"worldstereo": "Open3D, our poses", "without both": "Open3D, given poses"}
"""Worlds whose cameras Open3D gets too."""


def compare(
    name: str, parts: Sequence[Split], ways: Sequence[str], pictures: Path | None
) -> dict[str, dict]:
    """Ours, what registration and memory bring to it, and Open3D."""
    found: dict[str, list[dict[str, Any]]] = {}
    seconds: dict[str, float] = {}

    def one(who: str, make: Callable[[], Surface], world: World, k: int) -> None:
        began = time.process_time()
        surface = make()
        seconds[who] = seconds.get(who, 0.0) + time.process_time() - began
        at = None if pictures is None else pictures / f"{name}-{who.replace(' ', '-')}-{k}"
        found.setdefault(who, []).append(measures(surface, world, at))

    for who in ways:
        register, options = WAYS[who]
        for k, split in enumerate(parts):
            world = World(split, register=register, options=IntakeOptions(**options))
            one(who, lambda w=world: ours(w), world, k)
            if who in OPEN3D and module("open3d") is not None:
                views = split.kept
                cameras = [v.cameras for v in world.intake.views]
                one(OPEN3D[who], lambda v=views, c=cameras: open3d_surface(v, c), world, k)
    return {who: pooled(parts) | {"CPU s": seconds[who]} for who, parts in found.items()}


def cost(views: Sequence[View]) -> dict[str, dict[str, float]]:
    """Seconds and peak memory beyond what was there before, of up to 50 frames."""
    views = list(views)[:50]
    intake = preprocess_views(views)
    scene = Scene(views=intake.views, unit=intake.unit, metres_per_unit=1.0)
    few = Scene(views=intake.views[:2], unit=intake.unit, metres_per_unit=1.0)
    cameras = [v.given for v in views]
    plain = SurfaceOptions(voxel=VOXEL, texture=0, faces=0)
    full = SurfaceOptions(voxel=VOXEL)
    who: dict[str, Callable[[], Any]] = {
        "worldstereo, mesh alone": lambda: reconstruct_surface(scene, plain),
        "worldstereo, 200,000 faces and a texture": lambda: reconstruct_surface(scene, full),
    }
    reconstruct_surface(few, full)  # compiled once
    if module("open3d") is not None:
        who["Open3D, mesh alone"] = lambda: open3d_surface(views, cameras)
    out = {}
    for name, work in who.items():
        before = resident(reset=True)
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        out[name] = {
            "CPU s": time.process_time() - cpu,
            "wall s": time.perf_counter() - wall,
            "peak MB": (resident() - before) / 1e6,
            "faces": len(result.mesh),
        }
    return out


def page(views: Sequence[View]) -> dict[str, dict[str, float]]:
    """The page of 400,000 points in headless Chromium with software GL, 1280x720, offline."""
    from playwright.sync_api import sync_playwright

    intake = preprocess_views(list(views)[::2])
    clouds = [cloud_from(v, stride=4, unit=intake.unit) for v in intake.views]
    names = ("points", "colors", "confidence", "step", "normals", "radii")
    cloud = PointCloud(
        **{n: torch.cat([getattr(c, n) for c in clouds]) for n in names},
        source=torch.cat([torch.full((len(c),), i) for i, c in enumerate(clouds)]),
    )
    scene = Scene(views=intake.views, unit=intake.unit, metres_per_unit=1.0, cloud=cloud)
    data = export(scene, "html")
    arguments = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder, "world.html")
        path.write_bytes(data)
        browser = playwright.chromium.launch(
            executable_path=which("chromium"), args=[*arguments, "--enable-unsafe-swiftshader"]
        )
        tab = browser.new_context(viewport={"width": 1280, "height": 720}, offline=True).new_page()
        tab.goto(path.as_uri())
        while not tab.evaluate("() => document.body.dataset.ready"):
            time.sleep(0.05)
        ready = int(tab.evaluate("() => document.body.dataset.ready")) / 1000
        tab.keyboard.down("ArrowLeft")  # turns on and on
        tab.wait_for_timeout(5000)  # the page finds how much it can draw
        before, began = tab.evaluate("() => worldstereo.frames()"), time.perf_counter()
        tab.wait_for_timeout(10_000)
        frames = tab.evaluate("() => worldstereo.frames()") - before
        seconds, coarse = time.perf_counter() - began, tab.evaluate("() => worldstereo.coarse()")
        browser.close()
    row = {"points": min(len(cloud), 400_000), "MB": len(data) / 1e6, "first picture s": ready}
    return {"Chromium": row | {"frames/s": frames / seconds, "every n-th point": coarse}}


def resident(reset: bool = False) -> float:
    """Peak resident bytes since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))


def shown(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"\n| {title} | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for who, row in rows.items():
        cells = [f"{row[c]:.3g}" if abs(row[c]) < 1000 else f"{row[c]:,.0f}" for c in columns]
        print(f"| {who} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--parts", nargs="*", default=["compare", "cost"], help="and page")
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--every", type=int, default=1, help="use every so many frames")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name in options.sets:
        views = read(options.root / "rgbd" / name).views
        if "compare" in options.parts:
            parts = splits(views[:: options.every])
            results[name] = compare(name, parts, options.ways, options.pictures)
            shown(name, results[name])
        if "cost" in options.parts and name == "livingroom1":
            results["cost"] = cost(views)
            shown("50 frames", results["cost"])
        if "page" in options.parts and name == "livingroom1":
            results["page"] = page(views)
            shown("page, software GL", results["page"])
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
