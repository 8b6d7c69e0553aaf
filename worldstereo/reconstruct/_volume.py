"""Views -> surface: truncated signed distances in sparse blocks, one region at a time.

Only the blocks near measured surfaces exist, and of these only a region of 64 cells is held at
once, so memory follows the size of the mesh and not that of the world. Every view that looks
through a sample votes, not only the ones that measured a surface there: that carves floaters.
Where the sensors' noise, estimated from the depth itself and averaged over the views that agree, is
larger than the truncation, there is no surface: it would be made of layers of noise.

Source: Curless & Levoy, A volumetric method for building complex models, SIGGRAPH 1996;
Lewiner et al., Efficient implementation of marching cubes' cases, 2003.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldstereo._core.parallel import parallel_for
from worldstereo.progress import interruptible
from worldstereo.reconstruct._mesh import Mesh
from worldstereo.reconstruct._volume_kernels import (
    BLOCK,
    OCTAVES,
    OFFSET,
    block_keys,
    crossing_cells,
    disparity_noise,
    facing,
    integrate_region,
)
from worldstereo.scene import NO_PART, DepthKind, View

REGION = 8  # blocks along each side of a region
TEAR = 0.05  # relative depth step between neighbours above which they are two surfaces
SECOND_DIFFERENCE = (np.pi / 2 / 6) ** 0.5  # standard deviation of noise over its mean |a - 2b + c|
NARROW = 3.0  # the least truncation in voxels: less leaves no sample on both sides of a slope


@dataclass(frozen=True, eq=False)
class Frames:
    """What the kernels read of each view; depth is the view's own memory, never a copy."""

    depths: list[np.ndarray]
    weights: list[np.ndarray]
    """Confidence in 1/255; 0 where the pixel is left out."""
    angles: list[np.ndarray]
    """|cos| between ray and surface in 1/255."""
    noise: np.ndarray
    """(N, OCTAVES) standard deviation of measured disparity, 1 / scene units, by depth."""
    lens: np.ndarray
    """(N, 4) fx, fy, cx, cy."""
    w2c: np.ndarray
    c2w: np.ndarray
    unit: float

    def __len__(self) -> int:
        return len(self.depths)


def frames_of(views: Sequence[View], unit: float, *, generated: bool, completed: bool) -> Frames:
    """The pixels that count: measured and matched ones, and the kinds that were asked for."""
    left_out = [int(DepthKind.UNKNOWN), *NO_PART]
    left_out += [] if generated else [int(DepthKind.GENERATED)]
    left_out += [] if completed else [int(DepthKind.INPAINTED), int(DepthKind.LEARNED)]
    table = np.ones(256, np.uint8)
    table[left_out] = 0
    depths = [np.ascontiguousarray(v.depth[0].numpy(), np.float32) for v in views]
    weights: list[Any] = [None] * len(views)
    angles: list[Any] = [None] * len(views)
    noise = np.zeros((len(views), OCTAVES))
    lens = np.array([[*_lens(v)] for v in views], np.float64).reshape(-1, 4)

    def one(i: int) -> None:
        weights[i] = views[i].confidence_u8[0].numpy() * table[views[i].kind[0].numpy()]
        angles[i] = np.empty(depths[i].shape, np.uint8)
        facing(depths[i], lens[i], angles[i])
        noise[i] = _noise(depths[i], weights[i])

    parallel_for(len(views), one)
    c2w = np.stack([v.cameras.c2w.double().numpy() for v in views])
    return Frames(depths, weights, angles, noise, lens, np.linalg.inv(c2w), c2w, unit)


def _noise(depth: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(OCTAVES,) noise of disparity by depth; an octave without samples has the nearer one's."""
    total, count = np.zeros(OCTAVES), np.zeros(OCTAVES, np.int64)
    disparity_noise(depth, weight, TEAR, total, count)
    last = np.maximum.accumulate(np.where(count > 0, np.arange(OCTAVES), 0))
    return (SECOND_DIFFERENCE * total / np.maximum(count, 1))[last]


def _lens(view: View) -> tuple[float, float, float, float]:
    K = view.cameras.K
    return float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])


def footprint(frames: Frames) -> float:
    """Median size of a pixel on the surface it shows, scene units; 0 where nothing is measured."""
    sizes = []
    for depth, weight, lens in zip(frames.depths, frames.weights, frames.lens, strict=True):
        known = depth[::7, ::7][(weight[::7, ::7] > 0) & (depth[::7, ::7] > 0)]
        sizes.append(known / np.sqrt(lens[0] * lens[1]))
    sizes = np.concatenate(sizes) if sizes else np.zeros(0)
    return float(np.median(sizes)) if len(sizes) else 0.0


def occupied(frames: Frames, voxel: float, reach: float) -> np.ndarray:
    """Sorted keys of the blocks within `reach` of a measured surface."""
    found: list[Any] = [None] * len(frames)

    def one(i: int) -> None:
        depth, lens = frames.depths[i], frames.lens[i]
        known = depth[depth > 0]
        if len(known) == 0:
            found[i] = np.zeros(0, np.int64)
            return
        # two rays a block, so that none falls between them even where the surface is oblique
        apart = BLOCK * voxel * max(lens[0], lens[1]) / float(np.percentile(known, 90))
        stride = max(1, min(8, int(apart / 4)))
        size = 4 * (depth.size // stride**2 + depth.shape[0] + depth.shape[1])
        while True:
            out = np.empty(size, np.int64)
            n = block_keys(depth, frames.weights[i], lens, frames.c2w[i], voxel, reach, stride, out)
            if n >= 0:
                break
            size *= 4
        found[i] = np.unique(out[:n])

    parallel_for(len(frames), one)
    return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))


def surface(frames: Frames, voxel: float, reach: float, on_step: Any) -> Mesh:
    """The zero crossing of the fused distances. Vertices carry `invented`."""
    import numba.typed

    on_step(0, 1, "Finding surfaces")
    with interruptible(lambda: on_step(0, 1, "Finding surfaces")):
        blocks = occupied(frames, voxel, reach)
    regions, members = _regions(blocks)
    make: Any = numba.typed.List
    depths, weights, angles = (make(x) for x in (frames.depths, frames.weights, frames.angles))
    parts: list[Any] = [None] * len(regions)
    done = [0]

    def one(r: int) -> None:
        low = regions[r] * (REGION * BLOCK)
        parts[r] = _region(blocks[members[r]], low, frames, (depths, weights, angles), voxel, reach)
        done[0] += 1

    def tell() -> None:
        on_step(done[0], max(1, len(regions)), "Fusing depth")

    with interruptible(tell):
        parallel_for(len(regions), one)
    on_step(len(regions), max(1, len(regions)), "Joining surfaces")
    return _joined([p for p in parts if p is not None], voxel)


def _regions(blocks: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Corners of the regions in regions, and for each the rows of the blocks it needs: its own and
    those whose first samples lie on its far sides."""
    ijk = np.stack(
        [(blocks >> 42), (blocks >> 21) & (2 * OFFSET - 1), blocks & (2 * OFFSET - 1)], 1
    )
    ijk = ijk - OFFSET
    own = ijk // REGION
    rows, where = [], []
    for corner in np.ndindex(
        2, 2, 2
    ):  # a block at the near side of a region also serves the one before
        on_side = np.ones(len(ijk), bool)
        for axis in range(3):
            if corner[axis]:
                on_side &= ijk[:, axis] % REGION == 0
        rows.append(np.flatnonzero(on_side))
        where.append(own[on_side] - np.array(corner))
    rows, where = np.concatenate(rows), np.concatenate(where)
    if len(rows) == 0:
        return np.zeros((0, 3), np.int64), []
    regions, number = np.unique(where, axis=0, return_inverse=True)
    order = np.lexsort((rows, number.ravel()))
    cuts = np.flatnonzero(np.diff(number.ravel()[order])) + 1
    return regions, np.split(rows[order], cuts)


def _region(
    keys: np.ndarray, low: np.ndarray, frames: Frames, lists: tuple, voxel: float, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Vertices in samples of the world's grid, faces and which vertices are invented."""
    from skimage.measure import marching_cubes

    samples = REGION * BLOCK + 1
    value, total, made, resolved = (np.zeros((samples,) * 3, np.float32) for _ in range(4))
    depths, weights, angles = lists
    integrate_region(
        keys, low.astype(np.int64), samples, voxel, reach, depths, weights, angles, frames.noise,
        frames.lens, frames.w2c, frames.unit, TEAR, value, total, made, resolved,
    )  # fmt: skip
    mask = np.zeros(value.shape, bool)
    if crossing_cells(value, total, resolved, mask[1:, 1:, 1:]) == 0:
        return None
    # the distance is positive in front of a surface: faces turn towards the cameras
    vertices, faces, _, _ = marching_cubes(
        value, 0.0, gradient_direction="descent", mask=mask, allow_degenerate=False
    )
    if len(faces) == 0:
        return None
    near = np.rint(vertices).astype(np.int64)
    of_it = made[tuple(near.T)] > 0.5 * total[tuple(near.T)]
    return vertices.astype(np.float64) + low, faces.astype(np.int64), of_it


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], voxel: float) -> Mesh:
    """One mesh: a vertex lies inside a grid edge, and the edge is its name across regions."""
    if not parts:
        return Mesh.of(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    counts = np.cumsum([0, *(len(p[0]) for p in parts)])
    vertices = np.concatenate([p[0] for p in parts])
    faces = np.concatenate([p[1] + n for p, n in zip(parts, counts, strict=False)])
    of_it = np.concatenate([p[2] for p in parts])
    near = np.rint(vertices)
    axis = np.abs(vertices - near).argmax(axis=1)
    edge = near.astype(np.int64)
    rows = np.arange(len(vertices))
    edge[rows, axis] = np.floor(vertices[rows, axis]).astype(np.int64)
    edge -= edge.min(axis=0)
    wide = edge.max(axis=0) + 1
    key = ((edge[:, 0] * wide[1] + edge[:, 1]) * wide[2] + edge[:, 2]) * 3 + axis
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    faces = number.ravel()[faces]
    proper = (
        (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    )
    points = torch.from_numpy((vertices[first] * voxel).astype(np.float32))
    mesh = Mesh.of(points, torch.from_numpy(faces[proper]), invented=torch.from_numpy(of_it[first]))
    return mesh.kept(torch.ones(len(mesh.faces), dtype=torch.bool))


def without_specks(mesh: Mesh, area: float) -> Mesh:
    """Without connected parts whose surface is smaller than `area` (square scene units)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if len(mesh.faces) == 0:
        return mesh
    f = mesh.faces.numpy()
    ones = np.ones(2 * len(f), np.int8)
    links = coo_matrix(
        (ones, (f[:, [0, 1]].T.ravel(), f[:, [1, 2]].T.ravel())), (len(mesh.vertices),) * 2
    )
    _, part = connected_components(links, directed=False)
    part = part[f[:, 0]]
    size = np.bincount(part, mesh.areas().double().numpy())
    return mesh.kept(torch.from_numpy(size[part] >= area))
