"""Which stored entries correspond to a query seen by a camera: the rules, and a search in torch.

A correspondence `p` of an entry, with confidence c, meets a query point x when, in this order,

    confidence  c >= threshold
    window      |u_p - u_x| <= h_u and |v_p - v_x| <= h_v, pixels of the current camera
    depth       |z_p - z_x| <= r z_x
    occluded    not: z_p > (1 + r) times the depth that the global memory shows at p's pixel

with h = attention_window / 2 . (1 + (1 - c) / 2) . min(1 + level / 4, 2) (larger where uncertain,
smaller for fine levels; level 0 or unknown counts as finest) and r = 0.05 (1 + (1 - c) / 2). Where
the entry has a normal, h_u and h_v shrink to the extents of a tilted disc seen along the ray, by no
more than 0.35 and not below min(h, 1 px), and r grows by the slope of that surface across the
window, h / f . tan(angle), at most 0.1. Both points must lie in front of the camera; the image
border does not matter, and a correspondence outside the occluder's picture is not occluded.

Everything is computed elementwise in float64; the compiled search gives the same pairs.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.memory.attention import has_numba

TOLERANCE = 0.05
SLACK = 0.5
LEVEL_GAIN, LEVEL_CAP = 0.25, 2.0
FLATTEST = 0.35
SLOPE_CAP = 0.1
ACCEPTED = 5
EXPANDED = 1 << 22  # pairs tested at once by the torch search
BLOCK = 64  # entries that share one bounding box; as in the kernels


class Entries(NamedTuple):
    """What the search needs to know of the stored entries (M of them, S correspondences each)."""

    points: Tensor
    """(M, S, 3)"""
    confidence: Tensor
    """(M, S)"""
    normal: Tensor
    """(M, 3), zeros where unknown; (0, 3) when no entry has one."""
    level: Tensor
    """(M,) pyramid level, -1 where unknown; (0,) when no entry has one."""
    boxes: Tensor
    """(blocks, 6) bounds of the accepted correspondences, kept by the bank."""


class Search(NamedTuple):
    """One camera's question."""

    pixels: Tensor
    """(N, 2) float64 pixels of the queries."""
    depth: Tensor
    """(N,) float64; a query that is not in front of the camera has no cell."""
    camera: Tensor
    """(17,) float64: rotation of c2w by rows, position, K00, K01, K02, K11, K12."""
    size: tuple[int, int]
    """Width and height of the image."""
    occluder: Tensor
    """(h, w) float64 depth, inf in holes; (0, 0) without."""
    half: float
    threshold: float
    misses: bool


class Matches(NamedTuple):
    """Pairs grouped by query, slots ascending."""

    offsets: Tensor
    """(N + 1,) int64"""
    column: Tensor
    """(P,) int64 slots"""
    codes: Tensor
    """(P,) int8: 5 accepted, 1 to 4 the reason of a near miss; empty unless asked for."""


def camera_numbers(cameras: Cameras, index: int) -> Tensor:
    """The 17 numbers of camera `index` in double precision; a single camera serves every index."""
    pose, K = cameras.c2w.reshape(-1, 4, 4), cameras.K.reshape(-1, 3, 3)
    index = index if len(pose) > 1 else 0
    pose, K = pose[index].double(), K[index].double()
    intrinsics = torch.stack([K[0, 0], K[0, 1], K[0, 2], K[1, 1], K[1, 2]])
    return torch.cat([pose[:3, :3].reshape(-1), pose[:3, 3], intrinsics])


def camera_frame(points: Tensor, camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """World points (…, 3) to x, y, z in the camera frame, elementwise in float64."""
    d = points.double() - camera[9:12]
    dx, dy, dz = d[..., 0], d[..., 1], d[..., 2]
    x = camera[0] * dx + camera[3] * dy + camera[6] * dz
    y = camera[1] * dx + camera[4] * dy + camera[7] * dz
    z = camera[2] * dx + camera[5] * dy + camera[8] * dz
    return x, y, z


def to_pixels(x: Tensor, y: Tensor, z: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
    u = (camera[12] * x + camera[13] * y) / z + camera[14]
    v = camera[15] * y / z + camera[16]
    return u, v


def extents(entries: Entries, slot: Tensor, sure: Tensor, xyz: tuple[Tensor, ...], s: Search):
    """Half window (h_u, h_v) in pixels and relative depth tolerance of each correspondence."""
    slack = 1.0 + SLACK * (1.0 - sure.double())
    wide = s.half * slack
    if len(entries.level) > 0:
        wide = wide * (1.0 + LEVEL_GAIN * entries.level[slot].clamp(min=0)).clamp(max=LEVEL_CAP)
    relative = TOLERANCE * slack
    if len(entries.normal) == 0:
        return wide, wide, relative
    camera, (x, y, z) = s.camera, xyz
    n = entries.normal[slot].double()
    nx, ny, nz = n[:, 0], n[:, 1], n[:, 2]
    a = camera[0] * nx + camera[3] * ny + camera[6] * nz
    e = camera[1] * nx + camera[4] * ny + camera[7] * nz
    c = camera[2] * nx + camera[5] * ny + camera[8] * nz
    length = (x * x + y * y + z * z).sqrt()
    rx, ry, rz = x / length, y / length, z / length
    along = a * rx + e * ry + c * rz
    ax = (a - rx * along) / (1.0 - rx * rx).clamp(min=1e-12).sqrt()
    ay = (e - ry * along) / (1.0 - ry * ry).clamp(min=1e-12).sqrt()
    least = wide.clamp(max=1.0)
    hu = (wide * (1.0 - ax * ax).clamp(min=0).sqrt().clamp(min=FLATTEST)).maximum(least)
    hv = (wide * (1.0 - ay * ay).clamp(min=0).sqrt().clamp(min=FLATTEST)).maximum(least)
    steep = (1.0 - along * along).clamp(min=0).sqrt() / along.abs().clamp(min=1e-6)
    focal = 0.5 * (camera[12] + camera[15])
    sloped = relative + (wide / focal * steep).clamp(max=SLOPE_CAP)
    known = (n != 0).any(dim=1)
    return (
        torch.where(known, hu, wide),
        torch.where(known, hv, wide),
        torch.where(known, sloped, relative),
    )


class Cells(NamedTuple):
    """The grid of image cells in which queries are listed."""

    rectangle: Tensor
    """(N, 4) int64: first and last cell across, then down, of each query's window."""
    u0: float
    v0: float
    side: float
    across: int
    down: int
    reach: Tensor
    """(6,) float64: the pixels and depths any query can reach."""
    low: Tensor
    """(N,) float64: the nearest depth that can agree with each query; and the farthest."""
    high: Tensor


def lay_cells(entries: Entries, s: Search) -> Cells:
    """Cells of half a window over the image and one image around it; windows beyond are clamped."""
    widest = s.half * (1.0 + SLACK)
    if len(entries.level) > 0:
        top = int(entries.level.amax())
        widest *= min(1.0 + LEVEL_GAIN * max(top, 0), LEVEL_CAP)
    sloppy = TOLERANCE * (1.0 + SLACK) + (SLOPE_CAP if len(entries.normal) > 0 else 0.0)
    widest = widest * (2.0 if s.misses else 1.0) * (1 + 1e-9)
    sloppy = sloppy * (1 + 1e-9)
    width, height = s.size
    n = len(s.pixels)
    side = max(widest / (2 if n <= 50_000 else 1), 0.5, (9 * width * height / 1e6) ** 0.5)
    across, down = int(3 * width / side) + 1, int(3 * height / side) + 1
    u0, v0 = -float(width), -float(height)
    front = (s.depth > 0) & torch.isfinite(s.pixels).all(dim=1)

    def cell(x: Tensor, start: float, count: int) -> Tensor:
        return ((x - start) / side).clamp(0, count - 1).nan_to_num().long()

    u, v = s.pixels[:, 0], s.pixels[:, 1]
    rectangle = torch.stack(
        [
            cell(u - widest, u0, across),
            cell(u + widest, u0, across),
            cell(v - widest, v0, down),
            cell(v + widest, v0, down),
        ],
        dim=1,
    )
    rectangle[~front] = torch.tensor([0, -1, 0, -1], device=rectangle.device)
    low, high = s.depth * (1 - sloppy), s.depth * (1 + sloppy)
    reach = torch.tensor([0.0, -1.0, 0.0, -1.0, 0.0, -1.0], dtype=torch.float64)
    if bool(front.any()):
        bounds = [u[front] - widest, u[front] + widest, v[front] - widest, v[front] + widest]
        reach[:4] = torch.stack(
            [b.amin() if i % 2 == 0 else b.amax() for i, b in enumerate(bounds)]
        )
        reach[4], reach[5] = low[front].amin(), high[front].amax()
        if s.misses:
            reach[4], reach[5] = 0.0, torch.inf
            low, high = torch.zeros_like(low), torch.full_like(high, torch.inf)
    return Cells(rectangle, u0, v0, side, across, down, reach, low, high)


def refresh_boxes(entries: Entries, threshold: float, block: Tensor) -> None:
    """Writes the bounds of the given blocks' accepted correspondences into `entries.boxes`."""
    if not has_numba():
        return  # only the compiled search looks at them
    from worldstereo.memory.stereo import _kernels as kernels

    points, confidence = entries.points.numpy(), entries.confidence.numpy()
    boxes: Any = entries.boxes.numpy()
    kernels.block_boxes(points, confidence, threshold, len(points), block.numpy(), boxes)


def matches(entries: Entries, s: Search) -> Matches:
    """The pairs of one camera, by the path that fits the device."""
    if len(s.pixels) == 0 or len(entries.points) == 0:
        none = torch.zeros(0, dtype=torch.int64, device=s.pixels.device)
        return Matches(none.new_zeros(len(s.pixels) + 1), none, none.to(torch.int8))
    compiled = s.pixels.device.type == "cpu" and has_numba()
    return compiled_matches(entries, s) if compiled else torch_matches(entries, s)


def compiled_matches(entries: Entries, s: Search) -> Matches:
    """The search on the CPU; blocks of entries run on the library's threads."""
    from worldstereo._core.parallel import parallel_for, spans
    from worldstereo.memory.stereo import _kernels as kernels

    n = len(s.pixels)
    cells = lay_cells(entries, s)
    count = cells.across * cells.down
    ptr, none = np.zeros(count + 2, np.int64), np.zeros(0, np.int32)
    z_low, z_high = np.full(count, np.inf), np.full(count, -np.inf)
    listing: Any = (cells.low.numpy(), cells.high.numpy(), z_low, z_high)
    rectangle = cells.rectangle.numpy()
    kernels.list_queries(rectangle, cells.across, ptr[1:], none, *listing)
    np.cumsum(ptr, out=ptr)
    listed = np.empty(max(int(ptr[-1]), 1), np.int32)
    kernels.list_queries(rectangle, cells.across, ptr[1:], listed, *listing)
    ptr = ptr[:-1]

    height, width = s.occluder.shape
    grid = np.array(
        [cells.u0, cells.v0, cells.side, cells.across, cells.down]
        + [width / s.size[0], height / s.size[1]]
    )
    rules = np.array(
        [s.half, s.threshold, TOLERANCE, SLACK, LEVEL_GAIN, LEVEL_CAP, FLATTEST, SLOPE_CAP]
    )
    u, v = s.pixels[:, 0].contiguous().numpy(), s.pixels[:, 1].contiguous().numpy()
    search: Any = (s.camera.numpy(), rules, cells.reach.numpy(), grid, ptr, listed, z_low, z_high)
    queries: Any = (u, v, s.depth.numpy(), s.occluder.contiguous().numpy())
    bank: Any = [t.numpy() for t in entries]
    parts = spans(len(entries.boxes), 16)
    counts = np.zeros((len(parts), n), np.int64)
    found: list[Any] = [None] * len(parts)

    def work(i: int) -> None:
        found[i] = kernels.match_entries(*bank, parts[i], *search, *queries, counts[i], s.misses)

    parallel_for(len(parts), work)
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(counts.sum(0), out=offsets[1:])
    column = np.empty(int(offsets[-1]), np.int64)
    codes = np.empty(len(column) if s.misses else 0, np.int8)
    starts = offsets[:-1] + np.cumsum(counts, axis=0) - counts

    def place(i: int) -> None:
        kernels.place_pairs(*found[i], starts[i], column, codes)

    parallel_for(len(parts), place)
    return Matches(*(torch.from_numpy(x) for x in (offsets, column, codes)))


def torch_matches(entries: Entries, s: Search) -> Matches:
    """The same search in torch operators: oracle, and the path on CUDA or without a compiler."""
    device, m = s.pixels.device, len(entries.confidence)
    n, cells = len(s.pixels), lay_cells(entries, s)
    ptr, listed = _list_queries(cells, n)
    reach = cells.reach.to(device)
    trusted = entries.confidence.double() >= s.threshold
    x, y, z = camera_frame(entries.points, s.camera)
    u, v = to_pixels(x, y, z, s.camera)
    keep = (z > 0) & (z >= reach[4]) & (z <= reach[5])
    keep &= (u >= reach[0]) & (u <= reach[1]) & (v >= reach[2]) & (v <= reach[3])
    if not s.misses:
        keep &= trusted
    slot, which = keep.nonzero(as_tuple=True)
    x, y, z, u, v = (t[slot, which] for t in (x, y, z, u, v))
    sure, trusted = entries.confidence[slot, which], trusted[slot, which]
    hu, hv, relative = extents(entries, slot, sure, (x, y, z), s)
    hidden = _hidden(u, v, z, relative, s)
    across = ((u - cells.u0) / cells.side).clamp(0, cells.across - 1).long()
    down = ((v - cells.v0) / cells.side).clamp(0, cells.down - 1).long()
    cell = down * cells.across + across
    length = ptr[cell + 1] - ptr[cell]
    keys, codes = [], []
    near = 2.0 if s.misses else 1.0
    for part in _pieces(length):
        c = part.repeat_interleave(length[part])
        first = (length[part].cumsum(0) - length[part]).repeat_interleave(length[part])
        rank = torch.arange(len(c), device=device) - first
        q = listed[ptr[cell[c]] + rank]
        du, dv = (u[c] - s.pixels[q, 0]).abs(), (v[c] - s.pixels[q, 1]).abs()
        inside = (du <= hu[c]) & (dv <= hv[c])
        agrees = (z[c] - s.depth[q]).abs() <= s.depth[q] * relative[c]
        code = torch.full_like(c, ACCEPTED)
        code[hidden[c]] = 4
        code[~agrees] = 3
        code[~inside] = 2
        code[~trusted[c]] = 1
        close = (du <= hu[c] * near) & (dv <= hv[c] * near)
        close &= (code == ACCEPTED) | s.misses
        keys.append(q[close] * m + slot[c[close]])
        codes.append(code[close])
    none = torch.zeros(0, dtype=torch.int64, device=device)
    key, back = torch.unique(torch.cat([none, *keys]), return_inverse=True)
    best = torch.zeros_like(key).scatter_reduce(0, back, torch.cat([none, *codes]), "amax")
    counts = torch.bincount(key // max(m, 1), minlength=n)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return Matches(offsets, key % max(m, 1), best.to(torch.int8) if s.misses else best[:0])


def _hidden(u: Tensor, v: Tensor, z: Tensor, relative: Tensor, s: Search) -> Tensor:
    height, width = s.occluder.shape
    if height == 0:
        return torch.zeros_like(z, dtype=torch.bool)
    pu, pv = (u * (width / s.size[0])).floor(), (v * (height / s.size[1])).floor()
    inside = (pu >= 0) & (pu < width) & (pv >= 0) & (pv < height)
    at = pv.clamp(0, height - 1).long() * width + pu.clamp(0, width - 1).long()
    return inside & (z > s.occluder.reshape(-1)[at] * (1.0 + relative))


def _list_queries(cells: Cells, n: int) -> tuple[Tensor, Tensor]:
    """Queries by cell: `listed[ptr[c]:ptr[c + 1]]`."""
    r = cells.rectangle
    wide, tall = r[:, 1] - r[:, 0] + 1, r[:, 3] - r[:, 2] + 1
    area = wide * tall
    q = torch.arange(n, device=r.device).repeat_interleave(area)
    rank = torch.arange(len(q), device=r.device) - (area.cumsum(0) - area)[q]
    cell = (r[q, 2] + rank // wide[q]) * cells.across + r[q, 0] + rank % wide[q]
    count = torch.bincount(cell, minlength=cells.across * cells.down)
    ptr = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    return ptr, q[torch.argsort(cell, stable=True)]


def _pieces(length: Tensor) -> list[Tensor]:
    """Runs of candidates that expand to about `EXPANDED` pairs each."""
    index = torch.arange(len(length), device=length.device)
    if len(index) == 0:
        return []
    group = (length.cumsum(0) - length) // EXPANDED
    return list(index.split(torch.bincount(group).tolist()))
