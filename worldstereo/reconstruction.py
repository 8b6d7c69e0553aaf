"""The documented reconstruction API: frames with a camera path -> `ReconstructedScene` -> files.

    scene = reconstruct_scene("clip.mp4", trajectory, "result/", method="mvs")
    export_mesh(scene, "room.glb")

It stands on `views.intake` (depth of posed frames) and `reconstruct` (surface and texture).
"""

import json
import struct
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldstereo._core.atomic import write_together
from worldstereo.cameras import Cameras
from worldstereo.depth import best_estimator
from worldstereo.errors import ExportError, InputRefused, WorldStereoError
from worldstereo.exports import REFUSED, las, mesh_glb, mesh_ply, obj, pcd, ply, stl, usd, xyz
from worldstereo.exports.archive import as_json
from worldstereo.exports.mesh import Body, picture_of, resized
from worldstereo.inputs import read
from worldstereo.inputs.sandbox.worker import ImportWorker
from worldstereo.progress import OnStep, ignore
from worldstereo.reconstruct import (
    Drawn,
    Mesh,
    Surface,
    SurfaceOptions,
    Texture,
    at_typical_exposure,
    reconstruct_surface,
    refined,
    render_mesh,
    voxel_for,
)
from worldstereo.scene import Clip, DepthKind, Origin, PointCloud, Scene, View
from worldstereo.trajectory import Trajectory
from worldstereo.views.intake import IntakeOptions, cloud_from, preprocess_views

METHODS = ("neural", "mvs", "hybrid")
DENSITY = {"low": 4, "medium": 2, "high": 1}
"""Every so many pixels become a point."""
FILES = ("mesh.glb", "point_cloud.ply", "cameras.json", "metadata.json")


@dataclass(frozen=True, eq=False)
class ReconstructedScene:
    """What `reconstruct_scene` found."""

    mesh: Mesh
    point_cloud: PointCloud
    textures: dict[str, Texture]
    """"albedo"; "normal" and "roughness" where they could be told."""
    cameras: list[Cameras]
    metadata: dict[str, Any] = field(default_factory=dict)
    """Arguments, seconds, counts and measures of quality."""

    def as_scene(self) -> Scene:
        """Points, up and units as exporters read them."""
        up = torch.tensor([float(v) for v in self.metadata.get("up", (0.0, -1.0, 0.0))])
        name = str(self.metadata.get("name", ""))
        metres = self.metadata.get("metres_per_unit")
        return Scene(name=name, cloud=self.point_cloud, up=up, metres_per_unit=metres)

    def render(self, cameras: Cameras) -> Drawn:
        """The textured mesh from one camera."""
        return render_mesh(self.mesh, cameras, self.textures.get("albedo"))

    def export_mesh(self, output_path: str | Path, **options: Any) -> Path:
        """See `export_mesh`."""
        return export_mesh(self, output_path, **options)

    def export_point_cloud(self, output_path: str | Path, **options: Any) -> Path:
        """See `export_point_cloud`."""
        return export_point_cloud(self, output_path, **options)

    def save(self, folder: str | Path) -> Path:
        """Mesh, points, textures, cameras and metadata in a folder, made if absent; all of it
        appears or nothing does.

        Raises:
            ExportError: the folder cannot be written.
        """
        folder = Path(folder)
        body = Body(self.mesh, self.textures, self.as_scene())
        paths = [
            Trajectory(Cameras.stack([c]), f"camera {i}", 24.0) for i, c in enumerate(self.cameras)
        ]
        files = {
            "mesh.glb": mesh_glb.glb(body),
            "point_cloud.ply": ply.write_ply(body.scene),
            **{f"textures/{n}.png": picture_of(t) for n, t in self.textures.items()},
            "cameras.json": as_json([json.loads(p.to_json()) for p in paths]),
            "metadata.json": as_json(self.metadata),
        }
        try:
            write_together(
                {folder / name: content for name, content in files.items()}, parents=True
            )
        except OSError as error:
            raise ExportError(f"{folder} could not be written: {error.strerror}.") from error
        return folder

    @staticmethod
    def load(folder: str | Path) -> "ReconstructedScene":
        """What `save` wrote.

        Raises:
            InputRefused: a file is missing or is not what `save` writes.
        """
        folder = Path(folder)
        for name in FILES:
            if not (folder / name).is_file():
                raise InputRefused(f"{folder.name}: has no {name}; a saved reconstruction does.")
        cloud = read(folder / "point_cloud.ply").cloud
        try:
            metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
            poses = json.loads((folder / "cameras.json").read_text("utf-8"))
            cameras = [Trajectory.from_json(json.dumps(p)).cameras[0] for p in poses]
            mesh = _mesh_of((folder / "mesh.glb").read_bytes())
            textures = {p.stem: _texture(p) for p in sorted((folder / "textures").glob("*.png"))}
        except (ValueError, KeyError, IndexError, TypeError, OSError, struct.error) as error:
            raise InputRefused(f"{folder.name}: is no saved reconstruction ({error}).") from error
        if cloud is None:
            raise InputRefused(f"{folder.name}: point_cloud.ply holds no points.")
        return ReconstructedScene(mesh, cloud, textures, cameras, metadata)


def _texture(path: Path) -> Texture:
    from PIL import Image

    with Image.open(path) as picture:
        return Texture(torch.from_numpy(np.array(picture)), path.stem)


def _mesh_of(data: bytes) -> Mesh:
    """A mesh from a GLB that `save` wrote; no other layout."""
    size = struct.unpack_from("<I", data, 12)[0]
    fields = json.loads(data[20 : 20 + size])
    binary = memoryview(data)[28 + size :]
    kinds = {5126: "<f4", 5125: "<u4", 5121: "u1"}
    widths = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}

    def values(index: int) -> np.ndarray:
        entry = fields["accessors"][index]
        width = widths[entry["type"]]
        at = fields["bufferViews"][entry["bufferView"]]["byteOffset"]
        kind = kinds[entry["componentType"]]
        flat = np.frombuffer(binary, kind, entry["count"] * width, at)
        return flat.reshape(-1, width) if width > 1 else flat

    part = fields["meshes"][0]["primitives"][0]
    names = part["attributes"]
    rest: dict[str, Tensor] = {}
    if "TEXCOORD_0" in names:
        uv = values(names["TEXCOORD_0"]).copy()
        uv[:, 1] = 1 - uv[:, 1]
        rest["uv"] = torch.from_numpy(uv)
    if "COLOR_0" in names:
        rest["colors"] = torch.from_numpy(values(names["COLOR_0"])[:, :3].astype(np.float32) / 255)
    return Mesh(
        torch.from_numpy(values(names["POSITION"]).copy()),
        torch.from_numpy(values(part["indices"]).reshape(-1, 3).astype(np.int64)),
        torch.from_numpy(values(names["NORMAL"]).copy()),
        invented=torch.from_numpy(values(names["_INVENTED"]) > 0.5),
        **rest,
    )


def reconstruct_scene(
    video_path: Any,
    camera_trajectory: Any = None,
    output_path: str | Path | None = None,
    method: str = "neural",
    resolution: int = 512,
    depth_estimation: bool = True,
    point_cloud_density: str = "medium",
    *,
    fill_holes: bool = True,
    texture_resolution: int = 2048,
    seed: int = 0,
    register: bool = True,
    on_step: OnStep = ignore,
) -> ReconstructedScene:
    """Mesh, textures and points from a video whose camera path is known.

    Args:
        video_path: a video file, frames as (T, 3, H, W) or (T, H, W, 3) or a list of pictures, a
            `Clip`, or a world's `Scene`, whose views bring their cameras.
        camera_trajectory: one camera a frame: `Trajectory`, `Cameras`, or anything with
            `cameras(width, height)`.
        output_path: folder for the result; None saves nothing.
        method: "mvs" fuses matched depth into a distance field; "hybrid" then refines the texture
            by rendering it into the frames. "neural" needs a trained field, which is not there:
            it says so once and does "hybrid".
        resolution: cells along the longest side of what was seen, 16 to 2048.
        depth_estimation: compare depth between frames and complete what they leave open; False
            takes it as matched.
        fill_holes: completed surfaces too, marked in `Mesh.invented`.

    Raises:
        ValueError: an argument outside of what it accepts, or counts of frames and cameras differ.
        TypeError: an argument of another type.
        InputRefused: the video cannot be read.
        WorldStereoError: the frames give no depth.
        ExportError: the folder cannot be written.
        Cancelled: `on_step` raised it.
    """
    if method not in METHODS:
        raise ValueError(f"method must be neural, mvs or hybrid, got {method!r}.")
    if point_cloud_density not in tuple(DENSITY):
        raise ValueError(
            f"point_cloud_density must be low, medium or high, got {point_cloud_density!r}."
        )
    _check_whole("resolution", resolution)
    if not 16 <= resolution <= 2048:
        raise ValueError(f"resolution must be from 16 to 2048 cells, got {resolution!r}.")
    _check_whole("texture_resolution", texture_resolution)
    if not (texture_resolution == 0 or 64 <= texture_resolution <= 8192):
        raise ValueError(
            f"texture_resolution must be 0 or from 64 to 8192 pixels, got {texture_resolution}."
        )
    _check_whole("seed", seed)
    if output_path is not None and Path(output_path).exists() and not Path(output_path).is_dir():
        raise ExportError(f"{output_path}: is a file; output_path must be a folder.")
    used = method
    if method == "neural":
        warnings.warn(
            'method "neural" needs a trained field, which this package lacks; "hybrid" is used.',
            UserWarning,
            stacklevel=2,
        )
        used = "hybrid"
    begun = time.perf_counter()
    scene, rough = _entered(
        video_path, camera_trajectory, depth_estimation, register, seed, on_step
    )
    voxel = voxel_for(scene, resolution)
    options = SurfaceOptions(
        voxel=voxel, texture=texture_resolution, fill_holes=fill_holes or rough, faces=200_000
    )
    surface = reconstruct_surface(scene, options, on_step=on_step)
    if used == "hybrid":
        surface = refined(surface, scene.views, on_step)
    stride = DENSITY[point_cloud_density]
    cloud = _together([cloud_from(v, stride=stride, unit=scene.unit) for v in scene.views])
    quality = _quality(surface, scene.views)
    mesh = surface.mesh
    marked = float(mesh.invented.float().mean()) if mesh.invented is not None else 0.0
    metadata = {
        "method": method,
        "method_used": used,
        "resolution": resolution,
        "voxel": voxel,
        "depth_estimation": depth_estimation,
        "point_cloud_density": point_cloud_density,
        "fill_holes": fill_holes,
        "texture_resolution": texture_resolution,
        "seed": seed,
        "frames": len(scene.views),
        "vertices": len(mesh.vertices),
        "faces": len(mesh),
        "points": len(cloud),
        "invented_share": round(marked, 6),
        "rough_depth": rough or scene.rough_depth,
        "roughness": "1.0: how brightness changes with the angle is not estimated",
        "seconds": round(time.perf_counter() - begun, 2),
        "units": "scene units" if scene.metres_per_unit is None else "metres known",
        "metres_per_unit": scene.metres_per_unit,
        "up": [float(v) for v in scene.up],
        "name": scene.name,
        **quality,
    }
    textures = dict(surface.textures)
    if textures:
        side = min(64, texture_resolution)
        textures["roughness"] = Texture(_rough(side), "roughness")
    cameras = [v.cameras for v in scene.views]
    result = ReconstructedScene(mesh, cloud, textures, cameras, metadata)
    if output_path is not None:
        result.save(output_path)
    return result


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")


def _rough(side: int) -> Tensor:
    """Roughness 1.0 in the G channel, metalness 0 in the B channel, as glTF reads them."""
    image = torch.zeros(side, side, 3, dtype=torch.uint8)
    image[..., 1] = 255
    return image


def _together(clouds: Sequence[PointCloud]) -> PointCloud:
    names = ("points", "colors", "confidence", "step", "normals", "radii")
    columns = {n: torch.cat([getattr(c, n) for c in clouds]) for n in names}
    source = torch.cat([torch.full((len(c),), i) for i, c in enumerate(clouds)])
    return PointCloud(**columns, source=source)


def _quality(surface: Surface, views: Sequence[View]) -> dict[str, Any]:
    """PSNR and SSIM of re-rendered frames, and how far their depth is from the mesh."""
    from skimage.metrics import structural_similarity

    errors, likeness, apart, shown = [], [], [], []
    for view in at_typical_exposure(views)[:: max(1, len(views) // 8)]:
        drawn = render_mesh(surface.mesh, view.cameras, surface.textures.get("albedo"))
        truth = (view.color * view.log_gain.exp()[:, None, None]).clamp(0, 1)
        seen = drawn.face[0] >= 0
        shown.append(float(seen.float().mean()))
        if not bool(seen.any()):
            continue
        errors.append(float(((drawn.color - truth) ** 2)[:, seen].mean()))
        if min(view.width, view.height) >= 7:
            pair = (drawn.color.numpy(), truth.numpy())
            likeness.append(structural_similarity(*pair, channel_axis=0, data_range=1.0))
        both = seen & (view.depth[0] > 0) & (view.kind[0] != int(DepthKind.INPAINTED))
        if bool(both.any()):
            apart.append(((drawn.depth - view.depth)[0][both].abs() / view.depth[0][both]).median())
    mean = float(np.mean(errors)) if errors else 1.0
    return {
        "psnr": round(-10 * float(np.log10(max(mean, 1e-10))), 3),
        "ssim": round(float(np.mean(likeness)), 4) if likeness else None,
        "median_depth_disagreement": round(float(np.median(apart)), 6) if apart else None,
        "pixels_explained": round(float(np.mean(shown)), 4) if shown else 0.0,
    }


def _entered(
    source: Any, path: Any, compare: bool, register: bool, seed: int, on_step: OnStep
) -> tuple[Scene, bool]:
    """Views with depth, and whether that depth is only a layout."""
    if isinstance(source, Scene):
        if not source.views:
            raise WorldStereoError("The world holds no views. Open a capture with pictures first.")
        return source, source.rough_depth
    if isinstance(source, Clip):
        return _of_clip(source), False
    frames = _frames_of(source, on_step)
    cameras = _cameras_of(path, frames.shape[-1], frames.shape[-2])
    if len(cameras) != len(frames):
        raise ValueError(
            f"video_path has {len(frames)} frames and camera_trajectory {len(cameras)} cameras; "
            "both must be the same."
        )
    nothing = torch.zeros(1, *frames.shape[-2:])
    views = [View.of(c, nothing, cameras[i], frame=i) for i, c in enumerate(frames)]
    options = IntakeOptions() if compare else IntakeOptions(contradict=False, complete=False)
    intake = preprocess_views(views, register=register, seed=seed, on_step=on_step, options=options)
    measured = [int(DepthKind.MEASURED), int(DepthKind.STEREO), int(DepthKind.REPROJECTED)]
    kinds = torch.tensor(measured, dtype=torch.uint8)
    matched = sum(int(torch.isin(v.kind, kinds).sum()) for v in intake.views)
    views, rough = list(intake.views), False
    if matched < 0.02 * frames.shape[0] * frames.shape[-1] * frames.shape[-2]:
        rough, estimator = True, best_estimator()
        views = []
        for i, color in enumerate(frames):
            on_step(i, len(frames), "Estimating depth")
            depth = estimator(color, cameras[i]).depth
            kind = (depth > 0).to(torch.uint8) * int(DepthKind.INPAINTED)
            views.append(View.of(color, depth, cameras[i], kind=kind, frame=i))
    known = torch.cat([v.depth[v.depth > 0][::17] for v in views])
    unit = float(known.median()) if len(known) else 1.0
    up = -torch.stack([v.cameras.c2w[:3, 1] for v in views]).mean(dim=0).float()
    up = up / up.norm() if float(up.norm()) > 0.1 else torch.tensor([0.0, -1.0, 0.0])
    return Scene(views=tuple(views), unit=unit, up=up, rough_depth=rough), rough


def _of_clip(clip: Clip) -> Scene:
    made = clip.origin == int(Origin.INVENTED)
    kind = torch.where(made, int(DepthKind.GENERATED), int(DepthKind.REPROJECTED)).to(torch.uint8)
    kind[clip.depth <= 0] = int(DepthKind.UNKNOWN)
    cameras = clip.trajectory.cameras
    views = [
        View.of(clip.color[i], clip.depth[i], cameras[i], kind=kind[i], frame=i, step=clip.step)
        for i in range(len(clip))
    ]
    known = clip.depth[clip.depth > 0]
    return Scene(views=tuple(views), unit=float(known[::7].median()) if len(known) else 1.0)


def _cameras_of(path: Any, width: int, height: int) -> Cameras:
    if isinstance(path, Cameras):
        cameras = path if path.c2w.ndim == 3 else Cameras.stack([path])
    elif isinstance(path, Trajectory):
        cameras = path.cameras
    elif callable(getattr(path, "cameras", None)):
        cameras = path.cameras(width, height)
    else:
        raise TypeError(
            f"camera_trajectory must be a CameraTrajectory, a Trajectory or Cameras, got "
            f"{type(path).__name__}."
        )
    return (
        cameras
        if (cameras.width, cameras.height) == (width, height)
        else cameras.scaled(width, height)
    )


def _frames_of(source: Any, on_step: OnStep) -> Tensor:
    """(T, 3, H, W) float32 in [0, 1]."""
    if isinstance(source, str | Path):
        return _decoded(Path(source), on_step)
    if isinstance(source, list | tuple):
        if len(source) == 0:
            raise ValueError("video_path holds no frame.")
        pictures = [np.asarray(p.detach() if isinstance(p, Tensor) else p) for p in source]
        odd = next((i for i, p in enumerate(pictures) if p.dtype.kind not in "fiu"), None)
        if odd is not None:
            raise TypeError(f"video_path[{odd}] must be a picture, got {source[odd]!r:.40}.")
        shapes = {p.shape: i for i, p in reversed([*enumerate(pictures)])}
        if len(shapes) > 1:
            one, two, *_ = sorted(shapes.items(), key=lambda item: item[1])
            raise ValueError(
                f"video_path must hold pictures of one size, got {one[0]} and {two[0]} at {two[1]}."
            )
        source = np.stack(pictures)
    if isinstance(source, np.ndarray):
        source = torch.from_numpy(np.ascontiguousarray(source))
    if not isinstance(source, Tensor):
        raise TypeError(
            f"video_path must be a path, frames, a Clip or a Scene, got {type(source).__name__}."
        )
    frames = source.detach()
    if frames.ndim == 4 and frames.shape[1] != 3 and frames.shape[-1] == 3:
        frames = frames.permute(0, 3, 1, 2)
    if frames.ndim != 4 or frames.shape[1] != 3 or len(frames) == 0:
        raise ValueError(f"frames must be (T, 3, H, W) or (T, H, W, 3), got {tuple(source.shape)}.")
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    if not frames.is_floating_point():
        raise ValueError(f"frames must be of uint8 or of floats in [0, 1], got {frames.dtype}.")
    frames = frames.float().contiguous()
    if not bool(torch.isfinite(frames).all()) or float(frames.min()) < 0 or float(frames.max()) > 1:
        raise ValueError("frames must lie in [0, 1]; divide 8-bit values by 255.")
    return frames


def _decoded(path: Path, on_step: OnStep) -> Tensor:
    """Frames of a video, decoded in the import process: a file is foreign even if we wrote it."""
    if not path.is_file():
        wrong = "is a folder, not a video" if path.is_dir() else "there is no such file"
        raise InputRefused(f"{path.name}: {wrong}.")
    with ImportWorker(processes=1, warm=False) as worker:
        views = worker.read(path, on_step=on_step, frames=True).views
    return torch.stack([view.color_u8 for view in views]).float() / 255


MESH_SUFFIXES = {
    "obj": (".obj",),
    "ply": (".ply",),
    "gltf": (".glb", ".gltf"),
    "stl": (".stl",),
    "usd": (".usdz", ".usda", ".usd"),
    "fbx": (".fbx",),
}
POINT_SUFFIXES = {"ply": (".ply",), "pcd": (".pcd",), "xyz": (".xyz",), "las": (".las", ".laz")}


def mesh_format(path: Path | str, format: str | None = None) -> str:
    """The format of a mesh file.

    Raises:
        ValueError: unknown, or format and suffix contradict each other.
        ExportError: FBX.
    """
    chosen = _format(Path(path), format, MESH_SUFFIXES)
    if chosen == "fbx":
        raise ExportError(REFUSED["fbx"])
    return chosen


def export_mesh(
    scene: Any,
    output_path: str | Path,
    format: str | None = None,
    include_textures: bool = True,
    texture_resolution: int = 2048,
    *,
    context: Scene | None = None,
) -> Path:
    """Write a mesh as OBJ, PLY, glTF, STL or USD; the suffix decides where `format` is not given.

    Args:
        scene: a `ReconstructedScene`, a `Surface` or a `Mesh`.
        texture_resolution: textures are averaged down to at most so many pixels.
        context: up direction and units of a bare mesh.

    Raises:
        ValueError: unknown format, or it contradicts the suffix.
        ExportError: there is no mesh, FBX was asked for, or the file cannot be written.
    """
    path = Path(output_path)
    chosen = mesh_format(path, format)
    _check_whole("texture_resolution", texture_resolution)
    if texture_resolution < 1:
        raise ValueError(f"texture_resolution must be at least 1 pixel, got {texture_resolution}.")
    body = _body(scene, context)
    if not include_textures:
        body = Body(body.mesh, {}, body.scene)
    else:
        body = resized(body, texture_resolution)
    name, suffix = path.stem, path.suffix.lower()
    files: dict[str, bytes]
    if chosen == "obj":
        files = obj.obj(body, name)
        files[f"{name}.conventions.json"] = as_json(obj.notes_of(body))
    elif chosen == "ply":
        files = {path.name: mesh_ply.ply(body)}
    elif chosen == "stl":
        files = {path.name: stl.stl(body)}
    elif chosen == "usd" and suffix == ".usdz":
        files = {path.name: usd.usdz(body)}
    elif chosen == "usd":
        files = usd.usda(body, name)
        files[path.name] = files.pop(f"{name}.usda")
    elif suffix == ".gltf":
        files = mesh_glb.gltf(body, name)
    else:
        files = {path.name: mesh_glb.glb(body)}
    _write(path, files)
    return path


def export_point_cloud(
    scene: Any,
    output_path: str | Path,
    format: str | None = None,
    include_colors: bool = True,
    include_normals: bool = True,
) -> Path:
    """Write points as PLY, PCD, XYZ, LAS or LAZ; the suffix decides where `format` is not given.

    `scene` is a `ReconstructedScene`, a `PointCloud` or a world's `Scene`. LAS has no place for
    normals; PLY without colours or normals leaves those columns out.

    Raises:
        ValueError: unknown format, or it contradicts the suffix.
        ExportError: there are no points, or the file cannot be written.
    """
    path = Path(output_path)
    chosen = _format(path, format, POINT_SUFFIXES)
    if isinstance(scene, ReconstructedScene):
        world = scene.as_scene()
    elif isinstance(scene, PointCloud):
        world = Scene(cloud=scene)
    elif isinstance(scene, Scene):
        world = scene
    else:
        raise TypeError(
            f"scene must be a ReconstructedScene, a PointCloud or a Scene, got "
            f"{type(scene).__name__}."
        )
    if len(world.cloud) == 0:
        raise ExportError("The scene holds no points. Make some with reconstruct_scene(...).")
    writers: dict[str, Callable[[], bytes]] = {
        "ply": lambda: ply.write_ply(world, colors=include_colors, normals=include_normals),
        "pcd": lambda: pcd.write_pcd(world, colors=include_colors, normals=include_normals),
        "xyz": lambda: xyz.write_xyz(world, colors=include_colors, normals=include_normals),
        "las": lambda: las.write_las(
            world, colors=include_colors, compress=path.suffix.lower() == ".laz"
        ),
    }
    _write(path, {path.name: writers[chosen]()})
    return path


def _format(path: Path, format: str | None, table: dict[str, tuple[str, ...]]) -> str:
    suffix = path.suffix.lower()
    by_suffix = next((name for name, ends in table.items() if suffix in ends), None)
    if format is None:
        if by_suffix is None:
            every = ", ".join(end for ends in table.values() for end in ends)
            raise ValueError(f"output_path must end in one of {every}, got {path.name!r}.")
        return by_suffix
    wanted = {"glb": "gltf", "usdz": "usd", "usda": "usd", "laz": "las"}.get(format, format)
    if wanted not in table:
        raise ValueError(f"format must be one of {', '.join(table)}, got {format!r}.")
    if by_suffix != wanted:
        raise ValueError(
            f"format {format!r} and the suffix {suffix or 'none'!r} of output_path contradict each "
            f"other; use one of {', '.join(table[wanted])}."
        )
    return wanted


def _body(scene: Any, context: Scene | None) -> Body:
    if isinstance(scene, ReconstructedScene):
        mesh, textures, world = scene.mesh, scene.textures, scene.as_scene()
    elif isinstance(scene, Surface):
        mesh, textures, world = scene.mesh, scene.textures, Scene()
    elif isinstance(scene, Mesh):
        mesh, textures, world = scene, {}, Scene()
    else:
        raise ExportError(
            f"{type(scene).__name__} holds no mesh. Make one with reconstruct_scene(...)."
        )
    if len(mesh) == 0:
        raise ExportError("The mesh has no faces. Make one with reconstruct_scene(...).")
    if not bool(np.isfinite(mesh.vertices.numpy()).all()):
        raise ExportError("The mesh holds a vertex that is not finite.")
    return Body(mesh, textures, world if context is None else context)


def _write(path: Path, files: dict[str, bytes]) -> None:
    """All files of a result; the one that names the others comes last."""
    order = sorted(files, key=lambda name: (name == path.name, name))
    try:
        write_together({path.with_name(name): files[name] for name in order}, parents=True)
    except OSError as error:
        raise ExportError(f"{path.name} could not be written: {error.strerror}.") from error
