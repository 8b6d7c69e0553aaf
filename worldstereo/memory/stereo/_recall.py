"""Recall by distance and refinement by what a new frame sees, on the rows of a `Bank`."""

from typing import NamedTuple

import torch
from torch import Tensor

from worldstereo.memory.stereo._bank import Bank
from worldstereo.memory.stereo._matches import SLACK, TOLERANCE, camera_frame, to_pixels
from worldstereo.neighbors import SpatialIndex, build_index

NEAR = 0.01  # an observation meets an entry within this share of its depth, or one pixel
AGREEMENT = 0.5
RISE = 0.25  # share of the missing confidence that one sure, equal observation restores
FALL = 0.5  # share of the confidence that one sure disagreement takes
PATIENCE = 2.0  # disagreement, summed over observations by their confidence, that removes an entry
HEAVIEST = 16.0  # evidence beyond which an entry still follows new observations


class Visible(NamedTuple):
    """One camera's view of the stored correspondences, for ranking."""

    camera: Tensor
    """(17,) as `_stereo_memory.matches.camera_numbers`."""
    size: tuple[int, int]
    occluder: Tensor
    """(h, w) depth, inf in holes; (0, 0): the entries hide each other."""


def nearest_entries(
    bank: Bank, queries: Tensor, top_k: int, view: Visible | None
) -> tuple[Tensor, Tensor]:
    """Slots (N, top_k) of the nearest distinct entries, -1 where there are fewer; and distances.

    With a view, correspondences that face away or are hidden come after all others.
    """
    owner, which, index = bank.index()
    # Enough nearest correspondences always hold `top_k` entries: each entry has `many` at most.
    enough = top_k * bank.many
    if view is None:
        return _nearest(index, owner, queries, enough, top_k)
    last = turned_away(bank, owner, which, view)
    distance, row = _ask(index, queries, 2 * enough)
    slots = owner[row]
    front, far = _first_distinct(torch.where(last[row], -1, slots), distance, top_k)
    # Rows whose nearest neighbours do not show enough good ones ask among those only.
    short = ((front < 0).any(dim=1)).nonzero()[:, 0]
    if len(short) > 0:
        parts = []
        for part in (~last, last):
            chosen = part.nonzero()[:, 0]
            among = build_index(bank.columns["points"][owner[chosen], which[chosen]])
            parts.append(_nearest(among, owner[chosen], queries[short], enough, top_k))
        both = [torch.cat(pair, dim=1) for pair in zip(*parts, strict=True)]
        front[short], far[short] = _first_distinct(both[0], both[1], top_k)
    return front, far


def _ask(index: SpatialIndex, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    distance, row = index.query(queries.detach().cpu().numpy(), count)
    return torch.from_numpy(distance).to(queries.device), torch.from_numpy(row).to(queries.device)


def _nearest(
    index: SpatialIndex, owner: Tensor, queries: Tensor, count: int, top_k: int
) -> tuple[Tensor, Tensor]:
    if len(owner) == 0 or len(queries) == 0:
        shape, device = (len(queries), top_k), queries.device
        none = torch.full(shape, -1, dtype=torch.int64, device=device)
        return none, torch.full(shape, torch.inf, dtype=torch.float64, device=device)
    distance, row = _ask(index, queries, count)
    return _first_distinct(owner[row], distance, top_k)


def _first_distinct(slots: Tensor, distance: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The first `top_k` distinct slots of each row, which comes in order of rank."""
    out = slots.new_full((len(slots), top_k), -1)
    far = distance.new_full((len(slots), top_k), torch.inf)
    for start in range(0, len(slots), 1024):
        part = slots[start : start + 1024]
        again = (part[:, :, None] == part[:, None, :]).tril(-1).any(dim=-1)
        row, column = (~again & (part >= 0)).nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(part))
        rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        kept = rank < top_k
        row, column, rank = row[kept], column[kept], rank[kept]
        out[start + row, rank] = part[row, column]
        far[start + row, rank] = distance[start + row, column]
    return out, far


def turned_away(bank: Bank, owner: Tensor, which: Tensor, view: Visible) -> Tensor:
    """Whether each correspondence faces away from the camera or is hidden from it."""
    points = bank.columns["points"][owner, which]
    normal = bank.columns["normal"][owner].double()
    toward = points.double() - view.camera[9:12]
    away = (normal * toward).sum(-1) > 0
    x, y, z = camera_frame(points, view.camera)
    u, v = to_pixels(x, y, z, view.camera)
    width, height = view.size
    shown = view.occluder
    if shown.shape[0] == 0:
        shown = _own_depth(u, v, z, width, height)
    h, w = shown.shape
    pu, pv = (u * (w / width)).floor(), (v * (h / height)).floor()
    inside = (z > 0) & (pu >= 0) & (pu < w) & (pv >= 0) & (pv < h)
    at = pv.nan_to_num().clamp(0, h - 1).long() * w + pu.nan_to_num().clamp(0, w - 1).long()
    slack = 1 + SLACK * (1 - bank.columns["confidence"][owner, which].double())
    return away | (inside & (z > shown.reshape(-1)[at] * (1 + TOLERANCE * slack)))


def _own_depth(u: Tensor, v: Tensor, z: Tensor, width: int, height: int) -> Tensor:
    """Depth of the correspondences themselves, each splatted 3x3 pixels wide; inf in holes."""
    pu, pv = u.floor(), v.floor()
    inside = (z > 0) & (pu >= 0) & (pu < width) & (pv >= 0) & (pv < height)
    at = pv[inside].long() * width + pu[inside].long()
    depth = z.new_full((height * width,), torch.inf).scatter_reduce(0, at, z[inside], "amin")
    grid = -depth.reshape(1, 1, height, width)
    return -torch.nn.functional.max_pool2d(grid, 3, stride=1, padding=1)[0, 0]


# ---- refinement --------------------------------------------------------------------------------


class Refinement(NamedTuple):
    """What a frame says about the stored entries."""

    slots: Tensor
    """Entries to blend, distinct."""
    features: Tensor
    """Their blended features."""
    mass: Tensor
    """Their evidence afterwards."""
    support: Tensor
    """In [0, 1]: how sure and how equal the observations were."""
    doubted: Tensor
    """Entries that the frame contradicts, distinct."""
    doubt: Tensor
    """In [0, 1]: how surely."""
    matched: Tensor
    """(N,) bool: the observation was blended into an entry."""


def compare(
    bank: Bank,
    features: Tensor,
    points: Tensor,
    confidence: Tensor,
    camera: Tensor,
    size: tuple[int, int],
) -> Refinement:
    """Matches observations with entries in 3D and sorts the entries into agreeing and contradicted.

    An observation meets the nearest entry within `NEAR` of its depth or one pixel on the surface.
    Features f, g agree by 2 f.g / (|f|^2 + |g|^2), which is 1 only when they are equal.
    """
    x, y, z = camera_frame(points, camera)
    seen = z > 0
    focal = 0.5 * (camera[12] + camera[15])
    radius = z * (1 / focal).clamp(min=NEAR)
    stored = bank.column("confidence") > 0
    if bool(seen.any()):  # what lies outside the observations' box, widened by a radius, meets none
        reach = radius[seen].max()
        low, high = (f(points[seen].double(), 0) for f in (torch.amin, torch.amax))
        here = bank.column("points").double()
        stored &= ((here >= low - reach) & (here <= high + reach)).all(dim=-1)
    owner, which = stored.nonzero(as_tuple=True)
    index = build_index(bank.column("points")[owner, which])
    slot, distance = _nearest(index, owner, points, bank.many, 1)
    slot, close = slot[:, 0], seen & (distance[:, 0] <= radius)
    old = bank.features(slot.clamp(min=0)) if bank.size > 0 else torch.zeros_like(features)
    both = (old * old).sum(-1) + (features * features).sum(-1)
    agreement = torch.where(both > 0, 2 * (old * features).sum(-1) / both, 1.0)
    matched = close & (agreement >= AGREEMENT)
    against = close & ~matched & (confidence > 0)

    base = slot.new_zeros(bank.size)
    hit = torch.zeros_like(base, dtype=torch.bool)
    hit[slot[matched]] = True
    slots = hit.nonzero()[:, 0]
    to_row = base.scatter(0, slots, torch.arange(len(slots), device=base.device))
    row, weight = to_row[slot[matched]], confidence[matched]
    mass = bank.columns["mass"][slots]
    total = mass.index_add(0, row, weight)
    summed = bank.features(slots) * mass[:, None]
    summed = summed.index_add(0, row, features[matched] * weight[:, None])
    share = agreement[matched].clamp(0, 1).to(weight.dtype) * weight
    support = torch.zeros_like(mass).scatter_reduce(0, row, share, "amax")

    doubt = confidence.new_zeros(bank.size)
    doubt = doubt.scatter_reduce(0, slot[against], confidence[against], "amax")
    doubt = doubt.maximum(_looked_through(bank, x, y, z, confidence, camera, size))
    doubt[hit] = 0
    doubted = (doubt > 0).nonzero()[:, 0]
    blended = torch.where(total[:, None] > 0, summed / total[:, None], bank.features(slots))
    total = total.clamp(max=HEAVIEST)
    return Refinement(slots, blended, total, support, doubted, doubt[doubted], matched)


def _looked_through(
    bank: Bank,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    confidence: Tensor,
    camera: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """How surely the frame sees something behind each entry: (M,) in [0, 1], 0 where it does not.

    The frame's depth is laid on a grid of about one observation a cell; an entry is looked through
    where it lies in front of the nearest depth of 3x3 cells by more than the tolerance.
    """
    none = confidence.new_zeros(bank.size)
    u, v = to_pixels(x, y, z, camera)
    width, height = size
    inside = (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height) & (confidence > 0)
    if not bool(inside.any()) or bank.size == 0:
        return none
    side = max((width * height / int(inside.sum())) ** 0.5, 1.0)
    across, down = int(width / side) + 1, int(height / side) + 1

    def cell(u: Tensor, v: Tensor) -> Tensor:
        cu = (u / side).nan_to_num().clamp(0, across - 1).long()
        return (v / side).nan_to_num().clamp(0, down - 1).long() * across + cu

    at = cell(u[inside], v[inside])
    depth = z.new_full((across * down,), torch.inf).scatter_reduce(0, at, z[inside], "amin")
    sure = none.new_zeros(across * down).scatter_reduce(0, at, confidence[inside], "amax")
    nearest = -torch.nn.functional.max_pool2d(-depth.reshape(1, 1, down, across), 3, 1, 1)
    # Only cells that were observed themselves have a say.
    best = bank.column("confidence").argmax(dim=1)
    points = bank.column("points")[torch.arange(bank.size, device=best.device), best]
    trust = bank.column("confidence").amax(dim=1).double()
    px, py, pz = camera_frame(points, camera)
    pu, pv = to_pixels(px, py, pz, camera)
    visible = (pz > 0) & (pu >= 0) & (pu < width) & (pv >= 0) & (pv < height)
    at = cell(pu, pv)
    behind = nearest.reshape(-1)[at]
    limit = pz * (1 + TOLERANCE * (1 + SLACK * (1 - trust)))
    through = visible & torch.isfinite(behind) & (limit < behind)
    return torch.where(through, sure[at], none)
