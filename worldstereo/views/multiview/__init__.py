"""Depth from several posed pictures: a plane sweep in torch, PatchMatch with plane hypotheses.

Depth is z in scene units, 0 where unknown; inside, hypotheses live in disparity d = 1/z, where
steps mean pixels. Nothing depends on the scale of the scene. Pictures should be harmonised in
exposure before they come here.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras
from worldstereo.progress import OnStep
from worldstereo.views.multiview import _photos as photos
from worldstereo.views.multiview._choice import choose_neighbours, depth_range_of
from worldstereo.views.multiview.arrays import (
    MatchOptions,
    MatchView,
    depth_of,
    enlarged,
    gradients,
    improve,
    inverse,
    job_of,
    judge,
    median,
    nearest,
    resized,
)

__all__ = [
    "Filled", "MatchOptions", "MatchView", "StereoDepth", "choose_neighbours", "depth_range_of",
    "fill_unmeasured", "photo_depth", "plane_sweep",
]  # fmt: skip


PHOTO_SIDE = 480  # long side at which photos are matched; 360 costs 0.4 dB on lund-door


class StereoDepth(NamedTuple):
    depth: Float[Tensor, "1 H W"]
    """0 where nothing could be matched."""
    confidence: Float[Tensor, "1 H W"]
    """In [0, 1]; its order predicts the error."""


class Filled(NamedTuple):
    depth: Float[Tensor, "1 H W"]
    """The completed depth, replaced where PatchMatch did better."""
    accepted: Bool[Tensor, "1 H W"]
    """Where stereo decided, or confirmed the guess."""
    cost: Float[Tensor, "1 H W"]


# ---- plane sweep -------------------------------------------------------------------------------


def plane_sweep(
    reference: MatchView,
    others: Sequence[MatchView],
    *,
    near: float,
    far: float,
    planes: int = 64,
    scale: float = 0.5,
    window: int = 7,
) -> StereoDepth:
    """Depth by fronto-parallel planes, evenly spaced in disparity from 1/far to 1/near.

    Time and memory of one plane at a time; the three best costs around the minimum give depth
    between planes. Confidence falls with the cost and with a second minimum elsewhere.

    Source: Collins, A space-sweep approach to true multi-image matching, CVPR 1996.

    Raises:
        ValueError: no other view, or a range that is empty or not above 0.
    """
    _check_range(near, far)
    if len(others) == 0 or planes < 3:
        raise ValueError(
            f"plane_sweep needs at least 1 other view and 3 planes, got {len(others)} and {planes}."
        )
    H, W = reference.cameras.height, reference.cameras.width
    h, w = max(4, round(H * scale)), max(4, round(W * scale))
    image = resized(reference.color, h, w)
    sources = []
    for other in others:
        size = (
            max(4, round(other.cameras.height * scale)),
            max(4, round(other.cameras.width * scale)),
        )
        sources.append((resized(other.color, *size), other.cameras.scaled(size[1], size[0])))
    camera = reference.cameras.scaled(w, h)
    disparity = torch.linspace(1 / far, 1 / near, planes, dtype=torch.float64).to(image)
    grid = torch.cat([camera.pixel_grid(), torch.ones(h * w, 1).to(image)], 1)
    rays = grid @ torch.linalg.inv(camera.K).mT.to(image)
    volume = torch.empty(planes, h, w).to(image)
    stats = _moments(image, window)
    moved = [other_camera.w2c @ camera.c2w for _, other_camera in sources]
    for i, d in enumerate(disparity):
        costs = [
            _plane_cost(image, stats, source, source_camera, T, rays, d, window)
            for (source, source_camera), T in zip(sources, moved, strict=True)
        ]
        stacked = torch.stack(costs)
        best = stacked.topk(min(2, len(costs)), dim=0, largest=False).values
        volume[i] = torch.where(best[-1] < 1e3, best.mean(0), best[0] + 0.1)
    return _winner(volume, disparity, H, W)


def _moments(image: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    grey = _grey(image)
    mean = _box(grey, window)
    return grey, mean, _box(grey * grey, window) - mean * mean


def _plane_cost(
    image: Tensor,
    stats: tuple[Tensor, Tensor, Tensor],
    source: Tensor,
    camera: Cameras,
    T: Tensor,
    rays: Tensor,
    d: Tensor,
    window: int,
) -> Tensor:
    """0.6 (1 - NCC) + 0.4 min(1, colour / 0.12); 1e4 where the view does not see the plane."""
    _, h, w = image.shape
    points = rays @ T[:3, :3].mT.to(rays) + T[:3, 3].to(rays) * d
    uvw = points @ camera.K.mT.to(rays)
    ahead = uvw[:, 2] > 0.02
    uv = uvw[:, :2] / uvw[:, 2:].clamp_min(0.02)
    size = torch.tensor([camera.width, camera.height]).to(uv)
    seen = (ahead & (uv >= 0.5).all(1) & (uv <= size - 0.5).all(1)).reshape(h, w)
    warped = functional.grid_sample(
        source[None], (uv / size * 2 - 1).reshape(1, h, w, 2), align_corners=False,
        padding_mode="border",
    )[0]  # fmt: skip
    grey, mean, variance = stats
    other = _grey(warped)
    other_mean = _box(other, window)
    other_variance = _box(other * other, window) - other_mean**2
    covariance = _box(grey * other, window) - mean * other_mean
    ncc = (covariance + 2e-5) / (
        (variance.clamp_min(0) + 1e-4) * (other_variance.clamp_min(0) + 1e-4)
    ).sqrt()
    color = _box((image - warped), window).abs().mean(0)
    cost = 0.6 * (1 - ncc.clamp(-1, 1)) + 0.4 * (color / 0.12).clamp_max(1)
    return torch.where(seen, cost, 1e4)


def _winner(volume: Tensor, disparity: Tensor, H: int, W: int) -> StereoDepth:
    planes = len(disparity)
    cost, index = volume.min(0)
    middle = index.clamp(1, planes - 2)
    left, centre, right = (volume.gather(0, (middle + k)[None])[0] for k in (-1, 0, 1))
    bend = left - 2 * centre + right
    shift = torch.where((bend > 1e-6) & (index == middle), 0.5 * (left - right) / bend, 0.0)
    spacing = disparity[1] - disparity[0]
    d = disparity[index] + shift.clamp(-0.5, 0.5) * spacing
    apart = (torch.arange(planes, device=d.device)[:, None, None] - index[None]).abs() > max(
        2, planes // 24
    )
    second = torch.where(apart, volume, 1e4).amin(0)
    unique = ((second - cost) / (second + 0.05)).clamp(0, 1)
    confidence = (1 - cost / 0.8).clamp(0, 1) * (0.25 + 0.75 * unique)
    known = cost < 0.9
    depth = torch.where(known, d.reciprocal(), 0.0)
    confidence = torch.where(known, confidence, 0.0)
    up = functional.interpolate(torch.stack([depth, confidence])[None], (H, W), mode="nearest")[0]
    return StereoDepth(up[:1], up[1:])


# ---- PatchMatch --------------------------------------------------------------------------------


def fill_unmeasured(
    view: MatchView,
    others: Sequence[MatchView],
    completed: Float[Tensor, "1 H W"],
    unknown: Bool[Tensor, "1 H W"],
    *,
    seed: int = 0,
    options: MatchOptions | None = None,
) -> Filled:
    """Depth of unmeasured pixels, where other pictures know better than the completion.

    `completed` is a depth above 0 at every pixel worth trying (harmonic fill or far); hypotheses
    stay within a factor of 3 of it. A view whose measured depth lies behind a hypothesis looks
    through it, one whose depth lies before it cannot judge. Accepted: a cost below `options.accept`
    that beats the completion's own by `options.better`, or a completion that already is below it.
    Deterministic for a seed, whatever the number of threads.
    """
    options = options or MatchOptions()
    H, W = view.cameras.height, view.cameras.width
    nothing = torch.zeros(1, H, W, dtype=torch.bool)
    if len(others) == 0 or not bool(unknown.any()):
        return Filled(completed, nothing, torch.full((1, H, W), 0.9))
    job = job_of(view, others, options, 0.0)
    h, w = job.image.shape[:2]
    d = nearest(inverse(completed), h, w)
    active = nearest(unknown.float(), h, w) > 0.5
    if view.blocked is not None:
        active &= nearest(view.blocked[None].float(), h, w) < 0.5
    active &= d > 0
    gx, gy = gradients(d)
    plane = np.stack([d, gx, gy], axis=-1).astype(np.float32)
    cost = np.where(active, 9.0, 0.0).astype(np.float32)
    start = judge(job, plane, cost, active, d, options.prior)
    improve(job, plane, cost, active, 0.3 * d, 3 * d, d, options.prior, options.sweeps, seed)
    better = active & (cost < options.accept) & (cost < start - options.better)
    confirmed = active & (start < options.accept)
    out = np.where(better, plane[..., 0], d).astype(np.float32)
    out = np.where(active, median(out), out)
    accepted = enlarged((better | confirmed).astype(np.float32), H, W) > 0.5
    accepted &= unknown
    depth = torch.where(accepted, inverse(enlarged(out, H, W)), completed.cpu())
    return Filled(depth.to(completed), accepted, enlarged(cost, H, W))


def photo_depth(
    views: Sequence[MatchView],
    *,
    depth_range: tuple[float, float] | None = None,
    points: Float[Tensor, "N 3"] | None = None,
    neighbours: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    options: MatchOptions | None = None,
    on_step: OnStep | None = None,
) -> list[StereoDepth]:
    """Depth and confidence of photos that have none, consistent over several views.

    At half the matched size a plane sweep and the nearest of the known `points` start PatchMatch; a
    second round adds what the neighbours' depth says; a third refines at the matched size. A pixel
    is kept where at least one other view returns to it within 1 px and 1 % depth, or two within
    2 px and 2 %. A view without a neighbour stays unknown.

    Args:
        depth_range: Nearest and farthest depth; default: from `points`, else from the cameras.
        points: Points of a reconstruction, world.
        options: Default: matched at a long side of `PHOTO_SIDE` pixels, windows of radius 3.
        neighbours: For each view the views it is matched with; default `choose_neighbours`.

    Source: Schönberger et al., Pixelwise view selection, ECCV 2016 (geometric consistency).
    """
    cameras = [view.cameras for view in views]
    side = max((max(c.width, c.height) for c in cameras), default=1)
    options = options or MatchOptions(scale=min(1.0, PHOTO_SIDE / side), radius=3)
    ranges = [depth_range or depth_range_of(camera, cameras, points) for camera in cameras]
    if neighbours is None:
        neighbours = choose_neighbours(cameras, ranges, points=points)
    linked = [i for i in range(len(views)) if len(neighbours[i]) > 0]
    around = {i: [views[j] for j in neighbours[i]] for i in linked}
    state: dict[int, photos.Planes] = {}
    small = photos.coarse(options)
    rounds = (
        ("Measuring depth from photos", small, None),
        ("Comparing depth between photos", small, photos.COARSE_ASKED),
        ("Refining depth of photos", options, photos.FINE_ASKED),
    )
    tell = on_step or (lambda step, total, message: None)
    for number, (message, chosen, asked) in enumerate(rounds):
        depth = {i: depth_of(planes) for i, (planes, _) in state.items()}
        for step, i in enumerate(linked):
            tell(step, len(linked), message)
            if asked is None:
                state[i] = photos.searched(views[i], around[i], ranges[i], points, chosen, seed)
                continue
            known = [depth.get(j) for j in neighbours[i]]
            state[i] = photos.compared(
                views[i], around[i], ranges[i], state[i], known, chosen, seed + number, asked
            )
    final = {i: depth_of(planes) for i, (planes, _) in state.items()}
    out = []
    for i, view in enumerate(views):
        if i not in state:
            zero = torch.zeros(1, view.cameras.height, view.cameras.width)
            out.append(StereoDepth(zero, zero))
            continue
        tell(i, len(views), "Confirming depth of photos")
        known = [final.get(j) for j in neighbours[i]]
        out.append(StereoDepth(*photos.kept(view, around[i], state[i], known, options)))
    return out


def _grey(image: Tensor) -> Tensor:
    return 0.3 * image[0:1] + 0.6 * image[1:2] + 0.1 * image[2:3]


def _box(values: Tensor, window: int) -> Tensor:
    pooled = functional.avg_pool2d(values[None], window, 1, window // 2, count_include_pad=False)[0]
    return pooled[0] if pooled.shape[0] == 1 else pooled


def _check_range(near: float, far: float) -> None:
    if not (0 < near < far and math.isfinite(far)):
        raise ValueError(f"near and far must be 0 < near < far, got {near} and {far}.")
