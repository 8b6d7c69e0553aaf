"""Depth from several posed pictures: a plane sweep in torch, PatchMatch with plane hypotheses.

Depth is z in scene units, 0 where unknown; inside, hypotheses live in disparity d = 1/z, where
steps mean pixels. Nothing depends on the scale of the scene. Pictures should be harmonised in
exposure before they come here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldstereo._parallel import parallel_for, spans
from worldstereo.cameras import Cameras

OnStep = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class MatchView:
    """One picture to be matched with others."""

    color: Float[Tensor, "3 H W"]
    cameras: Cameras
    """The single camera that took it."""
    depth: Float[Tensor, "1 H W"] | None = None
    """Depth that can be trusted, 0 elsewhere; None where nobody measured."""
    blocked: Bool[Tensor, "H W"] | None = None
    """True where the picture shows something fixed to the camera."""


@dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """How PatchMatch walks."""

    scale: float = 0.5
    """Size at which pictures are matched."""

    radius: int = 4
    """Half the window, pixels of the matched size; every second pixel is looked at."""

    sweeps: int = 4
    """Red-black passes over the picture."""

    prior: float = 0.1
    """What a hypothesis far from the guessed depth costs at most."""

    accept: float = 0.4
    """Highest cost of an accepted pixel."""

    better: float = 0.05
    """How much an accepted pixel must beat the guess."""

    geometric: float = 0.2
    """Cost of depth that the neighbours' own depth contradicts, in the second round for photos."""

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ValueError(f"options.scale must be above 0 and at most 1, got {self.scale}.")
        if self.radius < 1 or self.sweeps < 1:
            raise ValueError(
                f"options.radius and options.sweeps must be at least 1, got {self.radius} and "
                f"{self.sweeps}."
            )


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
    image = _resized(reference.color, h, w)
    sources = []
    for other in others:
        size = (
            max(4, round(other.cameras.height * scale)),
            max(4, round(other.cameras.width * scale)),
        )
        sources.append((_resized(other.color, *size), other.cameras.scaled(size[1], size[0])))
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


@dataclass(frozen=True, eq=False)
class _Job:
    """The arrays that the kernels read: one reference and its neighbours at the matched size."""

    image: np.ndarray
    K: np.ndarray
    images: np.ndarray
    sizes: np.ndarray
    Ks: np.ndarray
    Ts: np.ndarray
    depths: np.ndarray
    """(n, H, W); 0 unknown, below 0 fixed to the camera."""
    options: MatchOptions
    geometric: float

    @property
    def fixed(self) -> tuple[object, ...]:
        return (
            self.image, self.K, self.images, self.sizes, self.Ks, self.Ts, self.depths,
            self.options.radius, 2, self.geometric,
        )  # fmt: skip


def fill_unmeasured(
    view: MatchView,
    others: Sequence[MatchView],
    completed: Float[Tensor, "1 H W"],
    unknown: Bool[Tensor, "1 H W"],
    *,
    seed: int = 0,
    options: MatchOptions | None = None,
) -> Filled:
    """Depth of pixels that nobody measured, where other pictures know better than the completion.

    `completed` is a depth above 0 at every pixel worth trying (membrane or far); hypotheses stay
    within a factor of 3 of it. A view whose measured depth lies behind a hypothesis looks through
    it, one whose depth lies before it cannot judge. Accepted: a cost below `options.accept` that
    beats the completion's own by `options.better`, or a completion that already is below it.
    Deterministic for a seed, whatever the number of threads.
    """
    options = options or MatchOptions()
    H, W = view.cameras.height, view.cameras.width
    nothing = torch.zeros(1, H, W, dtype=torch.bool)
    if len(others) == 0 or not bool(unknown.any()):
        return Filled(completed, nothing, torch.full((1, H, W), 0.9))
    job = _job(view, others, options, 0.0)
    h, w = job.image.shape[:2]
    d = _nearest(_inverse(completed), h, w)
    active = _nearest(unknown.float(), h, w) > 0.5
    if view.blocked is not None:
        active &= _nearest(view.blocked[None].float(), h, w) < 0.5
    active &= d > 0
    gx, gy = _gradients(d)
    plane = np.stack([d, gx, gy], axis=-1).astype(np.float32)
    cost = np.where(active, 9.0, 0.0).astype(np.float32)
    start = _start(job, plane, cost, active, d, options.prior)
    _improve(job, plane, cost, active, 0.3 * d, 3 * d, d, options.prior, options.sweeps, seed)
    better = active & (cost < options.accept) & (cost < start - options.better)
    confirmed = active & (start < options.accept)
    out = np.where(better, plane[..., 0], d).astype(np.float32)
    out = np.where(active, _median(out), out)
    accepted = _enlarged((better | confirmed).astype(np.float32), H, W) > 0.5
    accepted &= unknown
    depth = torch.where(accepted, _inverse(_enlarged(out, H, W)), completed.cpu())
    return Filled(depth.to(completed), accepted, _enlarged(cost, H, W))


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

    For each view: a plane sweep starts PatchMatch; a second round adds what the neighbours' depth
    says; a pixel is kept where at least one other view returns to it within 2 px and 2 % depth,
    or two within 4 px and 4 %. A view without a neighbour stays unknown.

    Args:
        depth_range: Nearest and farthest depth; default: from `points`, else from the cameras.
        points: Points of a reconstruction, world.
        neighbours: For each view the views it is matched with; default `choose_neighbours`.

    Source: Schönberger et al., Pixelwise view selection, ECCV 2016 (geometric consistency).
    """
    options = options or MatchOptions()
    cameras = [view.cameras for view in views]
    ranges = [depth_range or depth_range_of(camera, cameras, points) for camera in cameras]
    if neighbours is None:
        neighbours = choose_neighbours(cameras, ranges)
    total = 2 * len(views)
    state: list[tuple[np.ndarray, np.ndarray] | None] = []
    for i, view in enumerate(views):
        if on_step is not None:
            on_step(i, total, "Measuring depth from photos")
        others = [views[j] for j in neighbours[i]]
        state.append(_first_round(view, others, ranges[i], options, seed) if others else None)
    first = [None if s is None else _depth_of(s[0]) for s in state]
    second: list[tuple[np.ndarray, np.ndarray] | None] = []
    for i, view in enumerate(views):
        if on_step is not None:
            on_step(len(views) + i, total, "Comparing depth between photos")
        current = state[i]
        if current is None:
            second.append(None)
            continue
        near, far = ranges[i]
        known = [first[j] for j in neighbours[i]]
        job = _job(view, [views[j] for j in neighbours[i]], options, options.geometric, known)
        plane, cost = current[0].copy(), current[1].copy()
        active = plane[..., 0] > 0
        low, high = np.full_like(cost, 1 / far), np.full_like(cost, 1 / near)
        guess = np.zeros_like(cost)
        _start(job, plane, cost, active, guess, 0.0)
        _improve(
            job, plane, cost, active, low, high, guess, 0.0, max(2, options.sweeps // 2), seed + 1
        )
        second.append((plane, cost))
    final = [None if s is None else _depth_of(s[0]) for s in second]
    return [
        _consistent(views[i], second[i], [views[j] for j in neighbours[i]],
                    [final[j] for j in neighbours[i]], options)
        for i in range(len(views))
    ]  # fmt: skip


def _first_round(
    view: MatchView,
    others: Sequence[MatchView],
    depth_range: tuple[float, float],
    options: MatchOptions,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    near, far = depth_range
    job = _job(view, others, options, 0.0)
    h, w = job.image.shape[:2]
    sweep = plane_sweep(
        view, others, near=near, far=far, planes=64, scale=options.scale / 2, window=5
    )
    d = _nearest(_inverse(sweep.depth), h, w)
    low, high = np.full((h, w), 1 / far, np.float32), np.full((h, w), 1 / near, np.float32)
    d = np.where(d > 0, d, np.float32(0.5 / near + 0.5 / far)).astype(np.float32)
    plane = np.stack([d, np.zeros_like(d), np.zeros_like(d)], axis=-1)
    active = np.ones((h, w), dtype=bool)
    if view.blocked is not None:
        active &= _nearest(view.blocked[None].float(), h, w) < 0.5
        plane[~active] = 0
    cost = np.full((h, w), 9.0, np.float32)
    guess = np.zeros_like(d)
    _start(job, plane, cost, active, guess, 0.0)
    _improve(job, plane, cost, active, low, high, guess, 0.0, options.sweeps, seed)
    return plane, cost


def _consistent(
    view: MatchView,
    state: tuple[np.ndarray, np.ndarray] | None,
    others: Sequence[MatchView],
    depths: Sequence[np.ndarray | None],
    options: MatchOptions,
) -> StereoDepth:
    H, W = view.cameras.height, view.cameras.width
    if state is None:
        zero = torch.zeros(1, H, W)
        return StereoDepth(zero, zero)
    from worldstereo import _multiview_kernels as kernels

    plane, cost = state
    z = _depth_of(plane)
    job = _job(view, others, options, 0.0, depths)
    h, w = z.shape
    counts = []
    for pixels, relative in ((2.0, 0.02), (4.0, 0.04)):
        count = np.zeros((h, w), np.int32)

        def rows(i: int, count: np.ndarray = count, p: float = pixels, r: float = relative) -> None:
            y0, y1 = bands[i]
            kernels.consistent_rows(
                y0, y1, z, job.K, job.sizes, job.Ks, job.Ts, job.depths, p, r, count
            )

        bands = spans(h, 16)
        parallel_for(len(bands), rows)
        counts.append(count)
    kept = ((counts[0] >= 1) | (counts[1] >= 2)) & (cost < 0.8)
    kept = _without_specks(kept, z, max(20, h * w // 4000))
    agree = counts[0] / max(1, len(others))
    sure = np.clip(1 - cost / 0.8, 0, 1) * (0.3 + 0.7 * agree)
    out = torch.from_numpy(np.where(kept, z, 0).astype(np.float32))[None, None]
    confidence = torch.from_numpy(np.where(kept, sure, 0).astype(np.float32))[None, None]
    depth = _upsampled(out[0, 0], H, W)
    up = functional.interpolate(confidence, (H, W), mode="nearest")[0]
    return StereoDepth(depth, torch.where(depth > 0, up, 0.0))


# ---- which views, which range ------------------------------------------------------------------


def depth_range_of(
    camera: Cameras, cameras: Sequence[Cameras], points: Float[Tensor, "N 3"] | None
) -> tuple[float, float]:
    """Nearest and farthest depth worth trying: the points it sees with a margin, else the baseline.

    Without points: where the optical axes of the cameras come closest is taken as the subject; if
    they do not meet, from 2 to 200 times the median distance to the nearest camera.
    """
    if points is not None and len(points) > 0:
        uv, z = camera.project(points.to(camera.K))
        size = torch.tensor([camera.width, camera.height]).to(uv)
        seen = z[(z > 0) & (uv >= 0).all(-1) & (uv <= size).all(-1)]
        if len(seen) >= 20:
            low, high = torch.quantile(seen.double()[:: max(1, len(seen) // 100_000)],
                                       torch.tensor([0.01, 0.99]).double()).tolist()  # fmt: skip
            return 0.7 * low, 1.6 * high
    centres = torch.stack([c.position for c in cameras]).double()
    gaps = torch.cdist(centres, centres)
    gaps = gaps + torch.eye(len(gaps)).double() * gaps.amax() * 2
    baseline = float(gaps.amin(1).median()) if len(cameras) > 1 else 1.0
    baseline = baseline if baseline > 0 else 1.0
    axes = torch.stack([c.forward for c in cameras]).double()
    across = torch.eye(3).double() - axes[:, :, None] * axes[:, None, :]
    A, b = across.sum(0), (across @ centres[..., None]).sum(0)[:, 0]
    if len(cameras) > 1 and float(torch.linalg.eigvalsh(A)[0]) > 0.02 * len(cameras):
        subject = torch.linalg.solve(A, b)
        z = float((subject - camera.position.double()) @ camera.forward.double())
        if z > baseline:
            return 0.3 * z, 6.0 * z
    return 2 * baseline, 200 * baseline


def choose_neighbours(
    cameras: Sequence[Cameras], ranges: Sequence[tuple[float, float]], count: int = 4
) -> list[tuple[int, ...]]:
    """For each camera the views that see most of what it sees under a useful angle (about 8 degrees).

    Each pixel of a coarse grid at five depths of the range votes for the views that see it, by
    exp(-((angle - 8) / s)^2) with s = 5 degrees below and 14 above.

    Source: the score of Yao et al., MVSNet, ECCV 2018, with other constants.
    """
    out = []
    for i, camera in enumerate(cameras):
        near, far = ranges[i]
        pixels = camera.pixel_grid(6, 8)
        d = torch.linspace(0.15, 0.85, 5).to(pixels) * (1 / near - 1 / far) + 1 / far
        z = d.reciprocal()[:, None].expand(5, len(pixels)).reshape(-1)
        points = camera.unproject(pixels.repeat(5, 1), z)
        own = functional.normalize(camera.position - points, dim=-1)
        scores = []
        for j, other in enumerate(cameras):
            if j == i:
                scores.append(-1.0)
                continue
            uv, depth = other.project(points)
            size = torch.tensor([other.width, other.height]).to(uv)
            seen = (depth > 0) & (uv >= 0).all(-1) & (uv <= size).all(-1)
            theirs = functional.normalize(other.position - points, dim=-1)
            angle = torch.rad2deg(torch.acos((own * theirs).sum(-1).clamp(-1, 1)))
            spread = torch.where(angle < 8, 5.0, 14.0)
            nearness = (depth / z.clamp_min(1e-12)).clamp(1e-6, 1e6)
            vote = torch.exp(-(((angle - 8) / spread) ** 2)) * torch.minimum(nearness, 1 / nearness)
            scores.append(float((vote * seen).sum() / len(points)))
        best = sorted(range(len(cameras)), key=lambda j: (-scores[j], j))[:count]
        out.append(tuple(j for j in best if scores[j] > 0.02))
    return out


# ---- arrays for the kernels --------------------------------------------------------------------


def _job(
    view: MatchView,
    others: Sequence[MatchView],
    options: MatchOptions,
    geometric: float,
    depths: Sequence[np.ndarray | None] | None = None,
) -> _Job:
    image, K = _matched(view, options.scale)
    pictures = [_matched(other, options.scale) for other in others]
    n = len(others)
    H = max((p.shape[0] for p, _ in pictures), default=1)
    W = max((p.shape[1] for p, _ in pictures), default=1)
    images = np.zeros((n, H, W, 3), np.float32)
    z = np.zeros((n, H, W), np.float32)
    sizes = np.zeros((n, 2), np.int64)
    for q, (picture, _) in enumerate(pictures):
        h, w = picture.shape[:2]
        images[q, :h, :w], sizes[q] = picture, (h, w)
        other = others[q]
        own = depths[q] if depths is not None else None
        if own is not None:
            z[q, :h, :w] = own
        elif other.depth is not None and depths is None:
            z[q, :h, :w] = _nearest(other.depth, h, w)
        if other.blocked is not None:
            fixed = _nearest(other.blocked[None].float(), h, w) > 0.5
            z[q, :h, :w][fixed] = -1
    w2c = [other.cameras.w2c.double() for other in others]
    Ts = [(m @ view.cameras.c2w.double()).cpu().numpy() for m in w2c]
    return _Job(
        image=image,
        K=K,
        images=images,
        sizes=sizes,
        Ks=np.stack([k for _, k in pictures]) if pictures else np.zeros((0, 4)),
        Ts=np.stack(Ts) if Ts else np.zeros((0, 4, 4)),
        depths=z,
        options=options,
        geometric=geometric,
    )


def _matched(view: MatchView, scale: float) -> tuple[np.ndarray, np.ndarray]:
    H, W = view.cameras.height, view.cameras.width
    h, w = max(4, round(H * scale)), max(4, round(W * scale))
    image = _resized(view.color, h, w).cpu().permute(1, 2, 0).contiguous().numpy()
    K = view.cameras.scaled(w, h).K.double().cpu()
    # The kernels count whole pixels from 0; a pixel's centre is at + 0.5.
    values = [float(K[0, 0]), float(K[1, 1]), float(K[0, 2]) - 0.5, float(K[1, 2]) - 0.5]
    return image.astype(np.float32, copy=False), np.array(values)


def _start(
    job: _Job,
    plane: np.ndarray,
    cost: np.ndarray,
    active: np.ndarray,
    guess: np.ndarray,
    prior: float,
) -> np.ndarray:
    """Fills `cost` of the active pixels; returns a copy."""
    from worldstereo import _multiview_kernels as kernels

    guess = guess.astype(np.float32, copy=False)
    bands = spans(len(plane), 16)

    def rows(i: int) -> None:
        kernels.start_rows(*bands[i], plane, cost, active, guess, prior, *job.fixed)

    parallel_for(len(bands), rows)
    return cost.copy()


def _improve(
    job: _Job,
    plane: np.ndarray,
    cost: np.ndarray,
    active: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    guess: np.ndarray,
    prior: float,
    sweeps: int,
    seed: int,
) -> None:
    from worldstereo import _multiview_kernels as kernels

    low, high, guess = (a.astype(np.float32, copy=False) for a in (low, high, guess))
    bands = spans(len(plane), 16)
    for sweep in range(sweeps):
        for color in (0, 1):
            turn = 1000 * seed + 2 * sweep + color

            def rows(
                i: int, color: int = color, turn: int = turn, scale: float = 0.7**sweep
            ) -> None:
                kernels.improve_rows(
                    *bands[i], color, turn, scale, plane, cost, active, low, high, guess, prior,
                    *job.fixed,
                )  # fmt: skip

            parallel_for(len(bands), rows)


def _gradients(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope of disparity per pixel: the smaller of the two sides, 0 where they differ in sign."""
    out = []
    for axis in (1, 0):
        step = np.diff(d, axis=axis)
        edge = np.zeros_like(d.take([0], axis=axis))
        before, after = np.concatenate([edge, step], axis), np.concatenate([step, edge], axis)
        small = np.where(np.abs(before) < np.abs(after), before, after)
        slope = np.where(before * after > 0, small, 0)
        out.append(np.where(np.abs(slope) < 0.03 * np.abs(d), slope, 0).astype(np.float32))
    return out[0], out[1]


def _depth_of(plane: np.ndarray) -> np.ndarray:
    d = plane[..., 0]
    return np.where(d > 0, 1 / np.maximum(d, 1e-12), 0).astype(np.float32)


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, values.clamp_min(1e-12).reciprocal(), 0.0)


def _resized(color: Tensor, h: int, w: int) -> Tensor:
    return functional.interpolate(color[None].float(), (h, w), mode="area")[0]


def _nearest(values: Tensor, h: int, w: int) -> np.ndarray:
    """(1, H, W) sampled at the pixel centres of a smaller size."""
    H, W = values.shape[-2:]
    v = ((torch.arange(h) + 0.5) * (H / h)).long().clamp_max(H - 1)
    u = ((torch.arange(w) + 0.5) * (W / w)).long().clamp_max(W - 1)
    return values[0].cpu()[v[:, None], u[None]].contiguous().numpy()


def _enlarged(values: np.ndarray, H: int, W: int) -> Tensor:
    """(h, w) to (1, H, W), bilinear."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    return functional.interpolate(tensor, (H, W), mode="bilinear", align_corners=False)[0]


def _upsampled(depth: Tensor, H: int, W: int) -> Tensor:
    """Depth at a larger size: bilinear in disparity inside a surface, nearest across its edges."""
    d = _inverse(depth)[None, None]
    smooth = functional.interpolate(d, (H, W), mode="bilinear", align_corners=False)[0]
    near = functional.interpolate(d, (H, W), mode="nearest")[0]
    same = (near > 0) & ((smooth - near).abs() < 0.03 * near)
    return _inverse(torch.where(same, smooth, near))


def _median(d: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.medianBlur(np.ascontiguousarray(d), 5)


def _without_specks(kept: np.ndarray, depth: np.ndarray, least: int) -> np.ndarray:
    """Drops connected pieces of fewer than `least` pixels; neighbours 4 % apart do not connect."""
    import cv2

    d = np.where(kept, np.log(np.maximum(depth, 1e-12)), 0).astype(np.float32)
    torn = np.zeros_like(kept)
    torn[:, 1:] |= np.abs(np.diff(d, axis=1)) > 0.04
    torn[1:] |= np.abs(np.diff(d, axis=0)) > 0.04
    count, label, stats, _ = cv2.connectedComponentsWithStats(
        (kept & ~torn).astype(np.uint8), connectivity=4
    )
    large = np.zeros(count, dtype=bool)
    large[1:] = stats[1:, cv2.CC_STAT_AREA] >= least
    inside = large[np.asarray(label, dtype=np.int64)].astype(np.uint8)
    return kept & (cv2.dilate(inside, np.ones((3, 3), np.uint8)) > 0)


def _grey(image: Tensor) -> Tensor:
    return 0.3 * image[0:1] + 0.6 * image[1:2] + 0.1 * image[2:3]


def _box(values: Tensor, window: int) -> Tensor:
    pooled = functional.avg_pool2d(values[None], window, 1, window // 2, count_include_pad=False)[0]
    return pooled[0] if pooled.shape[0] == 1 else pooled


def _check_range(near: float, far: float) -> None:
    if not (0 < near < far and math.isfinite(far)):
        raise ValueError(f"near and far must be 0 < near < far, got {near} and {far}.")
