"""Runs the compiled splat: frames of a batch in parallel, one frame in strips of blocks."""

import threading
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from worldstereo._core import parallel as _parallel
from worldstereo._core.morton import BLOCK, MAX_COUNT, REACH, MortonTree, reach
from worldstereo.cameras import Cameras
from worldstereo.render import _kernels as kernels
from worldstereo.render._plain import (
    FAR,
    Footprint,
    RenderResult,
    camera_rows,
    focal_lengths,
    halves,
    minimum_filter,
    nearest_words,
    render_torch,
    unpack,
)

SORTED = 20_000  # points from which culling can pay
WORTH = 3  # frames of one tensor from which sorting it first pays (bench/README.md)
FILTERED = 4  # radius up to which the compiled filter is used; above, doubling windows in torch

KEPT = 32 << 20  # bytes of working memory that a thread keeps, so that frames fault no pages in

_lock = threading.Lock()
_scratch = threading.local()
_trees: Any = WeakTensorKeyDictionary()  # tensor -> (version, frames drawn, tree or None)


def render_compiled(
    points: Float[Tensor, "N 3"],
    colors: Float[Tensor, "N 3"] | None,
    cameras: Cameras,
    radius: int,
    near: float | int,
    tree: MortonTree | None,
    radii: Float[Tensor, "N"] | None = None,
) -> RenderResult:
    """`render_points` on the CPU, bit for bit what `render_torch` gives."""
    n, rows = len(points), camera_rows(cameras).numpy()
    array = points.detach().contiguous().numpy()
    if n == 0 or n >= MAX_COUNT or not np.abs(rows[:, 4]).max() < REACH:
        return render_torch(points, colors, cameras, radius, near, radii)
    if tree is None:
        tree = known_tree(points, array, len(rows))
    if tree is None and not reach(array) < REACH:  # a tree has none farther
        return render_torch(points, colors, cameras, radius, near, radii)
    if tree is None:
        x, y, z = (np.ascontiguousarray(array[:, axis]) for axis in range(3))
        cloud = Cloud(x, y, z, np.arange(n, dtype=np.int32), n, None)
    else:
        cloud = Cloud(tree.x, tree.y, tree.z, tree.order, tree.n, tree)
    shades = np.full((n, 3), 0.5, np.float32) if colors is None else colors.contiguous().numpy()
    if radii is not None:
        return _of_all_widths(cloud, colors, cameras, rows, radius, near, radii)
    footprint = Footprint.of(cameras.width, cameras.height, radius)
    shape = (len(rows), cameras.height, cameras.width)
    color = np.empty((shape[0], 3, *shape[1:]), np.float32)
    depth, mask = np.empty(shape, np.float32), np.empty(shape, np.float32)
    index = np.empty(shape, np.int64)

    def frame(t: int, pieces: int) -> None:
        buffer = cloud.splat(rows[t], footprint, near, pieces)
        out = (color[t], depth[t], mask[t], index[t])
        _finish(buffer, footprint, shades, out, pieces)

    if len(rows) == 1:
        frame(0, _parallel.threads())
    else:
        _parallel.parallel_for(len(rows), lambda t: frame(t, 1))
    batch = cameras.batch_shape
    return RenderResult(
        torch.from_numpy(color).reshape(*batch, 3, *shape[1:]),
        torch.from_numpy(depth).reshape(*batch, 1, *shape[1:]),
        torch.from_numpy(mask).reshape(*batch, 1, *shape[1:]),
        torch.from_numpy(index).reshape(*batch, 1, *shape[1:]),
    )


def _of_all_widths(
    cloud: "Cloud",
    colors: Tensor | None,
    cameras: Cameras,
    rows: np.ndarray,
    radius: int,
    near: float | int,
    radii: Float[Tensor, "N"],
) -> RenderResult:
    """Splats of their own radius: a z-buffer for each half width, and the nearest of all."""
    size = cameras.width, cameras.height
    prints = [Footprint.of(*size, half) for half in halves(radius, radii)]
    focal = focal_lengths(cameras)

    def frame(t: int) -> Int[Tensor, "H W"]:
        reach = (radii.detach() * focal[t]).numpy()
        buffers = cloud.splat_widths(rows[t], prints, near, reach)
        return nearest_words(buffers, prints)

    words: list[Tensor | None] = [None] * len(rows)
    _parallel.parallel_for(len(rows), lambda t: words.__setitem__(t, frame(t)))
    stacked = torch.stack([frame for frame in words if frame is not None])
    return unpack(stacked.reshape(*cameras.batch_shape, *size[::-1]), colors)


def known_tree(points: Tensor, array: np.ndarray, frames: int) -> MortonTree | None:
    """A tree of a tensor that has been, or is about to be, drawn in several frames.

    None where sorting does not pay or a coordinate is beyond reach. It is kept as long as the
    tensor lives and is not written to.
    """
    if len(array) < SORTED:
        return None
    with _lock:
        version, drawn, tree = _trees.get(points, (points._version, 0, None))
        if version != points._version:
            version, drawn, tree = points._version, 0, None
        drawn += frames
        _trees[points] = (version, drawn, tree)
    if tree is None and drawn >= WORTH and reach(array) < REACH:
        tree = MortonTree(array)
        with _lock:
            _trees[points] = (version, drawn, tree)
    return tree


def kept_tree(points: Tensor) -> MortonTree | None:
    """The tree that `known_tree` keeps of a tensor."""
    with _lock:
        return _trees.get(points, (0, 0, None))[2]


def scratch(name: str, shape: tuple[int, int]) -> Int[np.ndarray, "m n"]:
    """Words to work in, unset: the calling thread's own until it asks for the same name again."""
    size = shape[0] * shape[1]
    held = getattr(_scratch, name, None)
    if held is None or held.size < size:
        held = np.empty(size, np.int64)
        if held.nbytes <= KEPT:
            setattr(_scratch, name, held)
    return held[:size].reshape(shape)


class Cloud:
    """Columns of a cloud in some order, with the tree of that order if there is one."""

    def __init__(self, x, y, z, order, n: int, tree: MortonTree | None) -> None:
        self.columns, self.n, self.tree = (x, y, z, order), n, tree

    def blocks(
        self, rows: Float[np.ndarray, "5 3"], footprint: Footprint, near: float | int
    ) -> np.ndarray:
        """Numbers of the blocks of `BLOCK` points that may reach the image."""
        blocks = -(-self.n // BLOCK)
        if self.tree is None or len(self.tree.level) < 3:
            return np.arange(blocks)
        out = np.empty(blocks, np.int64)
        planes = frustum(rows, footprint, near)
        first = int(self.tree.level[1])
        position = rows[4].astype(np.float64)
        return out[: kernels.visible_blocks(self.tree.box, first, blocks, planes, position, out)]

    def splat(
        self, rows: Float[np.ndarray, "5 3"], footprint: Footprint, near: float | int, pieces: int
    ) -> np.ndarray:
        """The padded z-buffer of one camera."""
        blocks = self.blocks(rows, footprint, near)
        spans = _parallel.spans(len(blocks), min(pieces, 1 + len(blocks) // 64)) or [(0, 0)]
        h, w = footprint.padded
        buffers = scratch("buffers", (len(spans), h * w + 1))
        size = (footprint.width, footprint.height, footprint.radius, footprint.x, footprint.y)

        def piece(i: int) -> None:
            buffers[i].fill(FAR)
            kernels.splat_blocks(
                *self.columns,
                self.n,
                blocks,
                *spans[i],
                BLOCK,
                rows,
                *size,
                np.float32(near),
                buffers[i],
            )

        _parallel.parallel_for(len(spans), piece)
        if len(spans) > 1:
            strips = _parallel.spans(h * w, pieces)
            _parallel.parallel_for(len(strips), lambda i: kernels.merge(buffers, *strips[i]))
        return buffers[0, :-1].reshape(h, w)

    def splat_widths(
        self,
        rows: Float[np.ndarray, "5 3"],
        prints: list[Footprint],
        near: float | int,
        reach: Float[np.ndarray, "N"],
    ) -> list[Tensor]:
        """The padded z-buffer of each half width for one camera."""
        sizes = [footprint.padded for footprint in prints]
        starts = np.cumsum([0, *(h * w for h, w in sizes)])
        buffer = np.full(starts[-1], FAR, np.int64)
        kernels.splat_widths(
            *self.columns,
            self.n,
            self.blocks(rows, prints[-1], near),
            BLOCK,
            rows,
            reach,
            np.array([(f.radius, f.x, f.y) for f in prints], np.int64),
            np.array([w for _, w in sizes], np.int64),
            starts,
            prints[0].width,
            prints[0].height,
            np.float32(near),
            buffer,
        )
        words = torch.from_numpy(buffer)
        return [
            words[start : start + h * w].view(h, w)
            for start, (h, w) in zip(starts, sizes, strict=False)
        ]


def frustum(
    rows: Float[np.ndarray, "5 3"], footprint: Footprint, near: float | int
) -> Float[np.ndarray, "5 4"]:
    """Planes relative to the camera's position, inside where `a x + b y + c z + d >= 0`."""
    a, b, axis = (rows[i].astype(np.float64) for i in (0, 1, 3))
    R = footprint.radius
    sides = [axis, a + R * axis, (footprint.width + R) * axis - a]
    sides += [b + R * axis, (footprint.height + R) * axis - b]
    planes = np.zeros((5, 4))
    planes[:, :3] = sides
    planes[0, 3] = -near
    return planes


def _finish(buffer, footprint: Footprint, shades, out, pieces: int) -> None:
    """Filter and unpack one picture."""
    color, depth, mask, index = out
    H, W, R = footprint.height, footprint.width, footprint.radius
    if footprint.x != R or footprint.y != R or R > FILTERED:
        words = minimum_filter(torch.from_numpy(buffer), footprint)
        result = unpack(words, torch.from_numpy(shades))
        color[:], depth[:], mask[:], index[:] = (
            result.color.numpy(), result.depth[0].numpy(), result.mask[0].numpy(),
            result.index[0].numpy(),
        )  # fmt: skip
        return
    lines = scratch("lines", (len(buffer), W))
    strips = _parallel.spans(len(buffer), pieces)
    _parallel.parallel_for(
        len(strips), lambda i: kernels.filter_rows(buffer, W, R, lines, *strips[i])
    )
    strips = _parallel.spans(H, pieces)
    _parallel.parallel_for(
        len(strips),
        lambda i: kernels.finish(lines, R, shades, color, depth, mask, index, *strips[i]),
    )
