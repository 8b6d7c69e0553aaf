"""The arrays that the kernels of `multiview` read, and the steps over them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldstereo._core.parallel import parallel_for, spans
from worldstereo.cameras import Cameras


@dataclass(frozen=True, eq=False)
class MatchView:
    """One picture to be matched with others."""

    color: Float[Tensor, "3 H W"]
    cameras: Cameras
    """The single camera that took it."""
    depth: Float[Tensor, "1 H W"] | None = None
    """Depth that can be trusted, 0 elsewhere; None where it was not measured."""
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


@dataclass(frozen=True, eq=False)
class Job:
    """The arrays that the kernels read: one reference and its neighbours at the matched size."""

    image: np.ndarray
    grey: np.ndarray
    soft: np.ndarray
    """The picture blurred by the window."""
    K: np.ndarray
    greys: np.ndarray
    softs: np.ndarray
    sizes: np.ndarray
    Ks: np.ndarray
    Ts: np.ndarray
    Ps: np.ndarray
    depths: np.ndarray
    """(n, H, W); 0 unknown, below 0 fixed to the camera."""
    asked: np.ndarray
    """(h, w) int64: one bit for each view that a pixel compares itself with."""
    options: MatchOptions
    geometric: float

    @property
    def fixed(self) -> tuple[object, ...]:
        return (
            self.image, self.grey, self.soft, self.K, self.greys, self.softs, self.sizes, self.Ks,
            self.Ts, self.Ps, self.depths, self.asked, self.options.radius, 2, self.geometric,
        )  # fmt: skip


def job_of(
    view: MatchView,
    others: Sequence[MatchView],
    options: MatchOptions,
    geometric: float,
    depths: Sequence[np.ndarray | None] | None = None,
) -> Job:
    image, K = _matched(view, options.scale)
    pictures = [_matched(other, options.scale) for other in others]
    n = len(others)
    H = max((p.shape[0] for p, _ in pictures), default=1)
    W = max((p.shape[1] for p, _ in pictures), default=1)
    greys, softs = np.zeros((n, H, W), np.float32), np.zeros((n, H, W, 3), np.float32)
    z = np.zeros((n, H, W), np.float32)
    sizes = np.zeros((n, 2), np.int64)
    for q, (picture, _) in enumerate(pictures):
        h, w = picture.shape[:2]
        greys[q, :h, :w], softs[q, :h, :w] = _grey_of(picture), _blurred(picture, options.radius)
        sizes[q] = h, w
        other = others[q]
        own = depths[q] if depths is not None else None
        if own is not None:
            z[q, :h, :w] = own
        elif other.depth is not None and depths is None:
            z[q, :h, :w] = nearest(other.depth, h, w)
        if other.blocked is not None:
            fixed = nearest(other.blocked[None].float(), h, w) > 0.5
            z[q, :h, :w][fixed] = -1
    w2c = [other.cameras.w2c.double() for other in others]
    Ts = [(m @ view.cameras.c2w.double()).cpu().numpy() for m in w2c]
    Ps = [_projection(T, K, k) for T, (_, k) in zip(Ts, pictures, strict=True)]
    return Job(
        image=image,
        grey=_grey_of(image),
        soft=_blurred(image, options.radius),
        K=K,
        greys=greys,
        softs=softs,
        sizes=sizes,
        Ks=np.stack([k for _, k in pictures]) if pictures else np.zeros((0, 4)),
        Ts=np.stack(Ts) if Ts else np.zeros((0, 4, 4)),
        Ps=np.stack(Ps) if Ps else np.zeros((0, 3, 4)),
        depths=z,
        asked=np.full(image.shape[:2], 2**n - 1, np.int64),
        options=options,
        geometric=geometric,
    )


def _matched(view: MatchView, scale: float) -> tuple[np.ndarray, np.ndarray]:
    H, W = view.cameras.height, view.cameras.width
    h, w = max(4, round(H * scale)), max(4, round(W * scale))
    image = resized(view.color, h, w).cpu().permute(1, 2, 0).contiguous().numpy()
    K = view.cameras.scaled(w, h).K.double().cpu()
    # The kernels count whole pixels from 0; a pixel's centre is at + 0.5.
    values = [float(K[0, 0]), float(K[1, 1]), float(K[0, 2]) - 0.5, float(K[1, 2]) - 0.5]
    return image.astype(np.float32, copy=False), np.array(values)


def _projection(T: np.ndarray, K: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(3, 4) from (x, y, 1, d) of one picture to the homogeneous pixel of another."""
    inverse = np.array([[1 / K[0], 0, -K[2] / K[0]], [0, 1 / K[1], -K[3] / K[1]], [0, 0, 1]])
    project = np.array([[other[0], 0, other[2]], [0, other[1], other[3]], [0, 0, 1]])
    return project @ np.hstack([T[:3, :3] @ inverse, T[:3, 3:]])


def _grey_of(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([0.3, 0.6, 0.1], np.float32)


def _blurred(picture: np.ndarray, radius: int) -> np.ndarray:
    import cv2

    size = (2 * radius + 1, 2 * radius + 1)
    return cv2.blur(picture, size, borderType=cv2.BORDER_REPLICATE)


def judge(
    job: Job,
    plane: np.ndarray,
    cost: np.ndarray,
    active: np.ndarray,
    guess: np.ndarray,
    prior: float,
) -> np.ndarray:
    """Fills `cost` of the active pixels; returns a copy."""
    from worldstereo.views.multiview import _kernels as kernels

    guess = guess.astype(np.float32, copy=False)
    bands = spans(len(plane), 16)

    def rows(i: int) -> None:
        kernels.start_rows(*bands[i], plane, cost, active, guess, prior, *job.fixed)

    parallel_for(len(bands), rows)
    return cost.copy()


def asking_best(job: Job, plane: np.ndarray, count: int) -> Job:
    """The job with each pixel asking only the `count` views that fit its plane best."""
    from worldstereo.views.multiview import _kernels as kernels

    asked = np.empty_like(job.asked)
    bands = spans(len(plane), 16)

    def rows(i: int) -> None:
        kernels.asked_rows(*bands[i], plane, asked, count, *job.fixed)

    parallel_for(len(bands), rows)
    return replace(job, asked=asked)


def improve(
    job: Job,
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
    from worldstereo.views.multiview import _kernels as kernels

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


def swept(job: Job, near: float, far: float, *, planes: int = 48, stride: int = 3) -> np.ndarray:
    """(H, W) disparity of the best fronto-parallel plane, looked for at every `stride`-th pixel."""
    from worldstereo.views.multiview import _kernels as kernels

    h, w = job.grey.shape
    disparities = np.linspace(1 / far, 1 / near, planes).astype(np.float32)
    best = np.full((-(-h // stride), -(-w // stride)), disparities[planes // 2], np.float32)
    bands = spans(len(best), 16)

    def rows(i: int) -> None:
        kernels.sweep_rows(*bands[i], stride, disparities, best, *job.fixed)

    parallel_for(len(bands), rows)
    return np.repeat(np.repeat(best, stride, axis=0), stride, axis=1)[:h, :w].copy()


def consistent(job: Job, depth: np.ndarray, pixels: float, relative: float) -> np.ndarray:
    """(H, W) how many of the job's views return to the pixel within `pixels` and `relative`."""
    from worldstereo.views.multiview import _kernels as kernels

    count = np.zeros(depth.shape, np.int32)
    bands = spans(len(depth), 16)

    def rows(i: int) -> None:
        kernels.consistent_rows(
            *bands[i], depth, job.K, job.sizes, job.Ks, job.Ts, job.depths, pixels, relative, count
        )

    parallel_for(len(bands), rows)
    return count


def gradients(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def depth_of(plane: np.ndarray) -> np.ndarray:
    d = plane[..., 0]
    return np.where(d > 0, 1 / np.maximum(d, 1e-12), 0).astype(np.float32)


def inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, values.clamp_min(1e-12).reciprocal(), 0.0)


def resized(color: Tensor, h: int, w: int) -> Tensor:
    return functional.interpolate(color[None].float(), (h, w), mode="area")[0]


def nearest(values: Tensor, h: int, w: int) -> np.ndarray:
    """(1, H, W) sampled at the pixel centres of a smaller size."""
    H, W = values.shape[-2:]
    v = ((torch.arange(h) + 0.5) * (H / h)).long().clamp_max(H - 1)
    u = ((torch.arange(w) + 0.5) * (W / w)).long().clamp_max(W - 1)
    return values[0].cpu()[v[:, None], u[None]].contiguous().numpy()


def enlarged(values: np.ndarray, H: int, W: int) -> Tensor:
    """(h, w) to (1, H, W), bilinear."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    return functional.interpolate(tensor, (H, W), mode="bilinear", align_corners=False)[0]


def upsampled(depth: Tensor, H: int, W: int) -> Tensor:
    """Depth at a larger size: bilinear in disparity inside a surface, nearest across its edges."""
    d = inverse(depth)[None, None]
    smooth = functional.interpolate(d, (H, W), mode="bilinear", align_corners=False)[0]
    near = functional.interpolate(d, (H, W), mode="nearest")[0]
    same = (near > 0) & ((smooth - near).abs() < 0.03 * near)
    return inverse(torch.where(same, smooth, near))


def enlarged_by_color(
    depth: np.ndarray, confidence: np.ndarray, small: np.ndarray, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Depth and confidence of a smaller picture at the size of `image` (H, W, 3) uint8."""
    from worldstereo.views.multiview import _kernels as kernels

    out, sure = np.empty(image.shape[:2], np.float32), np.empty(image.shape[:2], np.float32)
    bands = spans(len(out), 16)

    def rows(i: int) -> None:
        kernels.enlarge_rows(*bands[i], image, small, depth, confidence, out, sure)

    parallel_for(len(bands), rows)
    return out, sure


def median(d: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.medianBlur(np.ascontiguousarray(d), 5)


def without_specks(kept: np.ndarray, depth: np.ndarray, least: int) -> np.ndarray:
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
