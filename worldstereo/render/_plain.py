"""The splat with torch operators alone: any device; the oracle of the compiled kernels.

The projection is written out elementwise (`_zbuffer`), so that the kernels of `kernels.py` and the
operators here round alike: their results are the same bits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldstereo.cameras import Cameras

FAR = torch.iinfo(torch.int64).max
HALVES = (0, 1, 2, 3, 4, 6, 8, 12)
"""Half widths that a splat of a given radius may have, in pixels; the largest is the limit."""
CHUNK = 1 << 16  # points projected at once by the torch path: its temporaries stay in the cache


class RenderResult(NamedTuple):
    """A splatted cloud. One camera: no leading axis; a batch (T,): a leading axis T."""

    color: Float[Tensor, "*T 3 H W"]
    """0 in holes."""
    depth: Float[Tensor, "*T 1 H W"]
    """z along the optical axis in scene units; 0 in holes."""
    mask: Float[Tensor, "*T 1 H W"]
    """1 where a point was seen, 0 in holes."""
    index: Int[Tensor, "*T 1 H W"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Row of the point that was seen; -1 in holes."""


class Footprint(NamedTuple):
    """Image size with the border that centres outside the image may occupy."""

    width: int
    height: int
    radius: int
    x: int
    """Border left and right: `min(radius, width - 1)`. A larger radius needs no wider border, as
    centres that cover the same pixels are moved onto each other."""
    y: int

    @staticmethod
    def of(width: int, height: int, radius: int) -> "Footprint":
        return Footprint(width, height, radius, min(radius, width - 1), min(radius, height - 1))

    @property
    def padded(self) -> tuple[int, int]:
        return self.height + 2 * self.y, self.width + 2 * self.x


def camera_rows(cameras: Cameras) -> Float[Tensor, "T 5 3"]:
    """Per camera what the projection multiplies by: `K R` (3 rows), its viewing axis, its position.

    Rows 0 and 1 are the first two rows of `K @ R.T`, row 2 is unused, row 3 the optical axis and
    row 4 the position; formed in float64 and rounded once.
    """
    K = cameras.K.reshape(-1, 3, 3).double()
    c2w = cameras.c2w.reshape(-1, 4, 4).double()
    R = c2w[:, :3, :3].mT
    return torch.cat([K @ R, R[:, 2:], c2w[:, None, :3, 3]], dim=1).float()


def render_torch(
    points: Float[Tensor, "N 3"],
    colors: Float[Tensor, "N 3"] | None,
    cameras: Cameras,
    radius: int = 1,
    near: float | int = 0.0,
    radii: Float[Tensor, "N"] | None = None,
) -> RenderResult:
    """`render_points` with torch operators alone: any device; the oracle of the compiled kernels.

    Memory beyond the result: a z-buffer for each half width and the temporaries of `CHUNK` points.
    """
    prints = [Footprint.of(cameras.width, cameras.height, half) for half in halves(radius, radii)]
    rows = camera_rows(cameras).to(points.device)
    columns = points.detach().unbind(dim=1)
    if radii is None:
        frames = [[_zbuffer(columns, row, prints[0], near)] for row in rows]
    else:
        frames = [
            _zbuffers(columns, radii.detach() * focal, row, prints, near)
            for row, focal in zip(rows, focal_lengths(cameras), strict=True)
        ]
    if frames:
        words = torch.stack([nearest_words(buffers, prints) for buffers in frames])
    else:
        size = (0, cameras.height, cameras.width)
        words = torch.empty(size, dtype=torch.int64, device=points.device)
    return unpack(words.reshape(*cameras.batch_shape, *words.shape[-2:]), colors)


def halves(radius: int, radii: Tensor | None) -> tuple[int, ...]:
    """Half widths of the splats of one picture: `radius` alone, or it and all wider `HALVES`."""
    return (radius,) if radii is None else (radius, *(half for half in HALVES if half > radius))


def focal_lengths(cameras: Cameras) -> list[float]:
    """Pixels that a unit spans at depth 1, per camera; rounded to float32 once."""
    K = cameras.K.reshape(-1, 3, 3).double()
    return (K[:, 0, 0] * K[:, 1, 1]).abs().sqrt().float().tolist()


def nearest_words(buffers: Sequence[Tensor], prints: Sequence[Footprint]) -> Int[Tensor, "H W"]:
    """What is seen at each pixel: the nearest of the splats of all widths.

    Args:
        buffers: padded by the border of their own footprint.
    """
    words = minimum_filter(buffers[0], prints[0])
    for buffer, footprint in zip(buffers[1:], prints[1:], strict=True):
        if bool((buffer != FAR).any()):
            words = torch.minimum(words, minimum_filter(buffer, footprint))
    return words


def _zbuffers(
    columns: tuple[Tensor, ...],
    reach: Float[Tensor, "N"],
    row: Float[Tensor, "5 3"],
    prints: Sequence[Footprint],
    near: float,
) -> list[Tensor]:
    """A z-buffer for each half width, each of the points whose radius asks for it.

    A splat is the widest whose half width is at most the radius in pixels, rounded to nearest.

    Args:
        reach: radius in pixels at depth 1.
    """
    x, y, z = columns
    (x0, y0, z0), (c0, c1, c2) = row[4].tolist(), row[3].tolist()
    depth = c0 * (x - x0) + c1 * (y - y0) + c2 * (z - z0)
    which = torch.zeros(len(x), dtype=torch.int64, device=row.device)
    for wide in prints[1:]:
        which += reach >= (wide.radius - 0.5) * depth
    buffers = []
    for number, footprint in enumerate(prints):
        mine = (which == number).nonzero().flatten()
        own = _zbuffer((x[mine], y[mine], z[mine]), row, footprint, near)
        held = own != FAR
        own[held] = (own[held] & ~0xFFFFFFFF) | mine[own[held] & 0xFFFFFFFF]
        buffers.append(own)
    return buffers


def _zbuffer(
    columns: tuple[Tensor, ...], row: Float[Tensor, "5 3"], footprint: Footprint, near: float
) -> Int[Tensor, "h w"]:
    """Packed words of the nearest point per (padded) pixel, `FAR` where there is none."""
    h, w = footprint.padded
    buffer = torch.full((h * w,), FAR, dtype=torch.int64, device=row.device)
    (a0, a1, a2), (b0, b1, b2), _, (c0, c1, c2), (x0, y0, z0) = row.tolist()
    for start in range(0, len(columns[0]), CHUNK):
        x, y, z = (column[start : start + CHUNK] for column in columns)
        x, y, z = x - x0, y - y0, z - z0
        depth = c0 * x + c1 * y + c2 * z
        u = (a0 * x + a1 * y + a2 * z) / depth
        v = (b0 * x + b1 * y + b2 * z) / depth
        R = footprint.radius
        seen = (depth > near) & (u >= -R) & (u < footprint.width + R)
        seen &= (v >= -R) & (v < footprint.height + R) & (depth < torch.inf)
        where = seen.nonzero().flatten()
        column = _border(u[where].floor().long(), footprint.width, R, footprint.x)
        line = _border(v[where].floor().long(), footprint.height, R, footprint.y)
        word = (depth[where].view(torch.int32).long() << 32) | (where + start)
        pixel = (line + footprint.y) * w + (column + footprint.x)
        buffer.scatter_reduce_(0, pixel, word, "amin")
    return buffer.view(h, w)


def _border(c: Int[Tensor, "n"], size: int, radius: int, border: int) -> Int[Tensor, "n"]:
    """Centres moved so that `border` does the work of a `radius` beyond the image's own size."""
    if radius == border:
        return c
    first, last = c + radius, c - radius  # last and first pixel that the square reaches
    whole = torch.zeros_like(c)
    return torch.where(
        first < size - 1, first - border, torch.where(last > 0, last + border, whole)
    )


def minimum_filter(words: Int[Tensor, "h w"], footprint: Footprint) -> Int[Tensor, "H W"]:
    """Smallest word of each window; windows double in width, so the cost grows with log(radius)."""
    for dim, border in ((0, footprint.y), (1, footprint.x)):
        window, reach = 2 * border + 1, 1
        while 2 * reach <= window:
            n = words.shape[dim] - reach
            words = torch.minimum(words.narrow(dim, 0, n), words.narrow(dim, reach, n))
            reach *= 2
        n = words.shape[dim] - (window - reach)
        words = torch.minimum(words.narrow(dim, 0, n), words.narrow(dim, window - reach, n))
    return words


def unpack(words: Int[Tensor, "*T H W"], colors: Tensor | None) -> RenderResult:
    words = words.unsqueeze(-3)
    hole = words == FAR
    index = torch.where(hole, -1, words & 0xFFFFFFFF)
    depth = (words >> 32).int().view(torch.float32).masked_fill(hole, 0.0)
    mask = (~hole).float()
    if colors is None:
        color = mask.expand(*mask.shape[:-3], 3, *mask.shape[-2:]) * 0.5
    elif len(colors) == 0:
        color = torch.zeros_like(mask).expand(*mask.shape[:-3], 3, *mask.shape[-2:]).clone()
    else:
        seen = colors[index.squeeze(-3).clamp(min=0)].movedim(-1, -3)
        color = torch.where(hole, 0.0, seen)
    return RenderResult(color, depth, mask, index)
