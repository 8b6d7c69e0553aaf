"""Views -> surface: a mesh with vertex colours or a texture, and drawing it.

    result = reconstruct_surface(world.scene, SurfaceOptions(quality="standard"))
    result.mesh, result.textures["albedo"]

What a generator made or a completion guessed is marked in `Mesh.invented`, or left out.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from worldstereo.errors import WorldStereoError
from worldstereo.progress import OnStep, ignore
from worldstereo.reconstruct._color import (
    Drawn,
    at_typical_exposure,
    bake,
    cut_to,
    decimated,
    refined_texture,
    render_mesh,
    unwrapped,
    with_vertex_colors,
)
from worldstereo.reconstruct._mesh import Mesh, Texture
from worldstereo.reconstruct._volume import (
    NARROW,
    Frames,
    footprint,
    frames_of,
    occupied,
    surface,
    without_specks,
)
from worldstereo.scene import Scene, View

__all__ = [
    "Drawn", "Mesh", "QUALITIES", "Surface", "SurfaceEstimate", "SurfaceOptions", "Texture",
    "at_typical_exposure", "cut_to", "estimate_surface", "reconstruct_surface",
    "refined", "render_mesh", "voxel_for",
]  # fmt: skip

QUALITIES = ("draft", "standard", "fine")
VOXEL = {"draft": 5.0, "standard": 2.5, "fine": 1.5}
"""Size of a cell in pixels' size on the surface (median): the samples bear no finer one."""
FACES = {"draft": 50_000, "standard": 200_000, "fine": 500_000}
MAX_BLOCKS = 1_500_000  # about 8 GB of raw triangles: refused, with the size that fits
BYTES_PER_BLOCK = 5_600  # peak of joining: about 45 triangles a block with their vertices
VOXELS_PER_SECOND = 30e6  # one sample asks one view, two cores


@dataclass(frozen=True, kw_only=True)
class SurfaceOptions:
    """What a reconstruction should be."""

    quality: str = "standard"
    """Size of a cell and number of triangles."""

    voxel: float | None = None
    """Size of a cell in scene units instead of the quality's."""

    faces: int | None = None
    """At most so many triangles instead of the quality's; 0 keeps all."""

    generated: bool = True
    """With the surfaces that a generator made, marked."""

    fill_holes: bool = False
    """With surfaces that were not measured but completed from their surroundings, marked."""

    texture: int = 2048
    """Side of the texture in pixels; 0 for vertex colours only."""

    def __post_init__(self) -> None:
        if self.quality not in QUALITIES:
            raise ValueError(f"quality must be draft, standard or fine, got {self.quality!r}.")
        if self.voxel is not None and not (self.voxel > 0 and math.isfinite(self.voxel)):
            raise ValueError(f"voxel must be above 0 scene units, got {self.voxel}.")
        if self.faces is not None and self.faces < 0:
            raise ValueError(f"faces must be at least 0, got {self.faces}.")
        if self.texture and not 64 <= self.texture <= 8192:
            raise ValueError(f"texture must be 0 or from 64 to 8192 pixels, got {self.texture}.")


@dataclass(frozen=True)
class SurfaceEstimate:
    """What a reconstruction will cost, before it is begun."""

    voxel: float
    """Scene units."""
    blocks: int
    seconds: float
    """On two cores; a wide guess."""
    bytes: int
    """Memory beyond the world."""
    file_bytes: int
    """Of a GLB with its texture."""


@dataclass(frozen=True, eq=False)
class Surface:
    """A reconstructed mesh, its textures, and how it was made."""

    mesh: Mesh
    textures: dict[str, Texture] = field(default_factory=dict)
    voxel: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)


def estimate_surface(scene: Scene, options: SurfaceOptions | None = None) -> SurfaceEstimate:
    """Time and size of a reconstruction, from every eighth pixel of at most 24 views.

    Raises:
        WorldStereoError: the scene has no view with depth.
    """
    options = options or SurfaceOptions()
    chosen = _views(scene, options)
    step = max(1, len(chosen) // 24)
    few = chosen[::step]
    frames = _frames(few, scene, options)
    voxel = _voxel(frames, options)
    # blocks are counted with larger cells, where few rays suffice: surfaces grow by the square
    coarse = max(1.0, 0.02 * _extent(frames) / voxel / 8)
    blocks = int(len(occupied(frames, voxel * coarse, NARROW * voxel * coarse)) * coarse**2)
    asked = blocks * 512 * max(2.0, 0.25 * len(chosen))
    faces = min(_faces(options), 45 * blocks)
    seconds = 1 + asked / VOXELS_PER_SECOND + blocks / 4000
    texture = 0
    if options.texture:
        seconds += faces / 8_000 + options.texture**2 * len(chosen) / 2e7
        texture = options.texture**2
    pixels = sum(v.width * v.height for v in chosen)
    memory = 2 * pixels + blocks * BYTES_PER_BLOCK + 40 * texture
    return SurfaceEstimate(voxel, blocks, seconds, memory, faces * 36 + int(texture * 1.2))


def reconstruct_surface(
    scene: Scene, options: SurfaceOptions | None = None, *, on_step: OnStep = ignore
) -> Surface:
    """The surface that the registered views of a scene measured, as a mesh with colours.

    Raises:
        WorldStereoError: no view has depth, nothing is left, or the cells are too fine.
        Cancelled: `on_step` raised it.
    """
    options = options or SurfaceOptions()
    views = _views(scene, options)
    clock = _Clock()
    on_step(0, 1, "Reading depth")
    frames = _frames(views, scene, options)
    voxel = _voxel(frames, options)
    reach = NARROW * voxel
    _check_size(frames, voxel, reach)
    clock("depth")
    mesh = surface(frames, voxel, reach, on_step)
    mesh = without_specks(mesh, 100 * voxel**2)
    if len(mesh) == 0:
        raise WorldStereoError(
            "The views' depth gives no surface at this size of cell; choose a larger voxel."
        )
    clock("surface")

    def check() -> None:
        on_step(0, 1, "Simplifying the mesh")

    if _faces(options):
        mesh = decimated(mesh, _faces(options), check)
    clock("decimation")
    size = footprint(frames)
    views = at_typical_exposure(views)
    mesh = with_vertex_colors(mesh, views, max(size, 0.5 * voxel), on_step)
    clock("colour")
    textures = {}
    if options.texture:
        mesh = unwrapped(mesh, options.texture, lambda: on_step(0, 1, "Unfolding the mesh"))
        clock("atlas")
        textures["albedo"] = bake(mesh, views, options.texture, max(size, 0.5 * voxel), on_step)
        clock("texture")
    on_step(1, 1, "The mesh is ready")
    return Surface(mesh, textures, voxel, clock.laps)


def refined(surface: Surface, views: Sequence[View], on_step: OnStep = ignore) -> Surface:
    """The surface with its albedo refined by drawing it into the views; as it is without one."""
    if "albedo" not in surface.textures:
        return surface
    frames = frames_of(views, 1.0, generated=True, completed=True)
    size = max(footprint(frames), 0.5 * surface.voxel)
    pictures = at_typical_exposure(views)
    albedo = refined_texture(
        surface.mesh, surface.textures["albedo"], pictures, size, on_step=on_step
    )
    return replace(surface, textures=surface.textures | {"albedo": albedo})


def voxel_for(scene: Scene, resolution: int) -> float:
    """The cell that puts `resolution` of them along the longest side of what was seen.

    Raises:
        WorldStereoError: no view has depth.
    """
    options = SurfaceOptions(fill_holes=True)
    frames = _frames(_views(scene, options), scene, options)
    return max(_extent(frames) / resolution, 1e-9)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now


def _views(scene: Scene, options: SurfaceOptions) -> list[View]:
    chosen = [v for v in scene.views if options.generated or v.step == 0]
    if not scene.views:
        raise WorldStereoError("The world holds no views. Open a capture with pictures first.")
    if not any(bool(v.mask.any()) for v in chosen):
        raise WorldStereoError(
            f"None of the {len(chosen)} views has depth, so there is no surface to build. "
            "Open a capture with depth, or several overlapping photos."
        )
    return chosen


def _frames(views: list[View], scene: Scene, options: SurfaceOptions) -> Frames:
    return frames_of(views, scene.unit, generated=options.generated, completed=options.fill_holes)


def _voxel(frames: Frames, options: SurfaceOptions) -> float:
    if options.voxel is not None:
        return options.voxel
    size = footprint(frames)
    if size <= 0:
        raise WorldStereoError(
            "No pixel of the views was measured; turn completed surfaces on (fill_holes)."
        )
    return VOXEL[options.quality] * size


def _faces(options: SurfaceOptions) -> int:
    return FACES[options.quality] if options.faces is None else options.faces


def _extent(frames: Frames) -> float:
    """Side of the box about the middle nine tenths of what was measured."""
    points = []
    for i, depth in enumerate(frames.depths):
        known = depth[::9, ::9] > 0
        rows, columns = np.nonzero(known)
        z = torch.from_numpy(depth[::9, ::9][known]).double()
        y, x = torch.from_numpy(rows * 9), torch.from_numpy(columns * 9)
        fx, fy, cx, cy = frames.lens[i]
        local = torch.stack([(x + 0.5 - cx) / fx * z, (y + 0.5 - cy) / fy * z, z], 1)
        c2w = torch.from_numpy(frames.c2w[i])
        points.append(local @ c2w[:3, :3].T + c2w[:3, 3])
    every = torch.cat(points)
    every = every[:: max(1, len(every) // 50_000)]
    low, high = (torch.quantile(every, q, dim=0) for q in (0.05, 0.95))
    return float((high - low).max())


def _check_size(frames: Frames, voxel: float, reach: float) -> None:
    coarse = max(1.0, 0.02 * _extent(frames) / voxel / 8)
    blocks = len(occupied(frames, voxel * coarse, reach * coarse)) * coarse**2
    if blocks > MAX_BLOCKS:
        fits = voxel * math.sqrt(blocks / MAX_BLOCKS)
        raise WorldStereoError(
            f"Cells of {voxel:.3g} need {blocks:,.0f} blocks; {MAX_BLOCKS:,} are accepted. "
            f"Use cells of {fits:.3g} or larger."
        )
