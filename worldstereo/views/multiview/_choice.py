"""Which photos are matched with each other, and over which range of depth."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras

MIN_POINTS = 20  # seen points from which on they say where a camera looks


def depth_range_of(
    camera: Cameras, cameras: Sequence[Cameras], points: Float[Tensor, "N 3"] | None
) -> tuple[float, float]:
    """Nearest and farthest depth worth trying: the points it sees with a margin, else the baseline.

    Without points: where the optical axes of the cameras come closest is taken as the subject; if
    they do not meet, from 2 to 200 times the median distance to the nearest camera.
    """
    if points is not None and len(points) > 0:
        _, seen = _seen(camera, points, at_most=100_000)
        if len(seen) >= MIN_POINTS:
            low, high = torch.quantile(seen.double(),
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
    cameras: Sequence[Cameras],
    ranges: Sequence[tuple[float, float]],
    count: int = 4,
    *,
    points: Float[Tensor, "N 3"] | None = None,
) -> list[tuple[int, ...]]:
    """For each camera those that see most of what it sees under a useful angle.

    The known points that it sees (200 of them), or without enough of those each pixel of a coarse
    grid at five depths of the range, vote for the views that see them too, by
    exp(-((angle - 8) / s)^2) with s = 5 degrees below and 14 above.

    Source: the score of Yao et al., MVSNet, ECCV 2018, with other constants.
    """
    out = []
    for i, camera in enumerate(cameras):
        asked, z = _seen(camera, points)
        if len(asked) < MIN_POINTS:
            asked, z = _grid(camera, *ranges[i])
        own = functional.normalize(camera.position - asked, dim=-1)
        scores = []
        for j, other in enumerate(cameras):
            if j == i:
                scores.append(-1.0)
                continue
            uv, depth = other.project(asked)
            size = torch.tensor([other.width, other.height]).to(uv)
            seen = (depth > 0) & (uv >= 0).all(-1) & (uv <= size).all(-1)
            theirs = functional.normalize(other.position - asked, dim=-1)
            angle = torch.rad2deg(torch.acos((own * theirs).sum(-1).clamp(-1, 1)))
            spread = torch.where(angle < 8, 5.0, 14.0)
            nearness = (depth / z.clamp_min(1e-12)).clamp(1e-6, 1e6)
            vote = torch.exp(-(((angle - 8) / spread) ** 2)) * torch.minimum(nearness, 1 / nearness)
            scores.append(float((vote * seen).sum() / len(asked)))
        best = sorted(range(len(cameras)), key=lambda j: (-scores[j], j))[:count]
        out.append(tuple(j for j in best if scores[j] > 0.02))
    return out


def _seen(
    camera: Cameras, points: Float[Tensor, "N 3"] | None, at_most: int = 200
) -> tuple[Float[Tensor, "M 3"], Float[Tensor, "M"]]:
    """Points in front of the camera and inside its image, evenly thinned, and their depth."""
    if points is None:
        return camera.K.new_zeros(0, 3), camera.K.new_zeros(0)
    points = points.to(camera.K)
    uv, z = camera.project(points)
    size = torch.tensor([camera.width, camera.height]).to(uv)
    inside = torch.nonzero((z > 0) & (uv >= 0).all(-1) & (uv <= size).all(-1))[:, 0]
    inside = inside[:: max(1, -(-len(inside) // at_most))]
    return points[inside], z[inside]


def _grid(
    camera: Cameras, near: float, far: float
) -> tuple[Float[Tensor, "M 3"], Float[Tensor, "M"]]:
    """A coarse grid of pixels at five depths of a range."""
    pixels = camera.pixel_grid(6, 8)
    d = torch.linspace(0.15, 0.85, 5).to(pixels) * (1 / near - 1 / far) + 1 / far
    z = d.reciprocal()[:, None].expand(5, len(pixels)).reshape(-1)
    return camera.unproject(pixels.repeat(5, 1), z), z
