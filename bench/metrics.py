"""Metrics of films and geometry that need no foreign weights.

    rotation, translation and path error of cameras against a reference, after alignment
    cross-view photometric error: how well frames agree about the surfaces that they share
    temporal flicker: what changes between frames beside what the camera's motion explains
    accuracy, completeness and F-score of points against a reference surface

FVD, FID and LPIPS need foreign weights and are left to whoever has them.

Sources: Umeyama 1991 (alignment); Sturm et al. 2012 (ATE); Knapitsch et al. 2017 (F-score).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from worldstereo.cameras import Cameras
from worldstereo.neighbors import build_index

AGREES = 0.02  # of the depth: surfaces nearer to each other than this are the same one


class PoseError(NamedTuple):
    rotation: float
    """Median angle in degrees between orientations, after alignment."""
    translation: float
    """Median distance of positions, in units of the reference."""
    ate: float
    """Root mean square of those distances."""
    scale: float
    """By which the path was scaled to meet the reference."""


def pose_error(found: Cameras, reference: Cameras, *, scaled: bool = True) -> PoseError:
    """Cameras against their reference, after the best similarity (or rigid) alignment.

    A path without extent says nothing of scale or rotation of the world: it is only shifted.
    """
    if found.batch_shape != reference.batch_shape or len(found.batch_shape) != 1:
        raise ValueError(
            f"found and reference must be batches of one length, got {found.batch_shape} and "
            f"{reference.batch_shape}."
        )
    turned, wanted = found.c2w[:, :3, :3].double(), reference.c2w[:, :3, :3].double()
    a, b = found.position.double(), reference.position.double()
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    x, y = a - mean_a, b - mean_b
    R, s = torch.eye(3, dtype=torch.float64), 1.0
    if float(x.square().sum()) > 1e-18 and float(y.square().sum()) > 1e-18:
        U, D, Vt = torch.linalg.svd(y.T @ x / len(x))
        flip = torch.ones(3, dtype=torch.float64)
        flip[2] = torch.sign(torch.linalg.det(U @ Vt))
        if float(D[1]) > 1e-9 * float(D[0]):
            R = U @ torch.diag(flip) @ Vt
        else:  # positions on a line leave its axis open: the orientations decide
            R = _mean_rotation(wanted @ turned.mT)
        if scaled:
            s = float(((x @ R.T) * y).sum() / x.square().sum())
    else:
        R = _mean_rotation(wanted @ turned.mT)
    apart = (s * (x @ R.T) - y).norm(dim=1)
    turn = (R @ turned).mT @ wanted
    cosine = (turn.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2
    sine = (turn - turn.mT).square().sum(dim=(1, 2)).sqrt() / 8**0.5
    angle = torch.rad2deg(torch.atan2(sine, cosine))
    rms = float(apart.square().mean().sqrt())
    return PoseError(float(angle.median()), float(apart.median()), rms, s)


def _mean_rotation(R: Float[Tensor, "n 3 3"]) -> Float[Tensor, "3 3"]:
    U, _, Vt = torch.linalg.svd(R.double().mean(dim=0))
    flip = torch.diag(
        torch.tensor([1.0, 1.0, float(torch.sign(torch.linalg.det(U @ Vt)))]).double()
    )
    return U @ flip @ Vt


def warped(
    color: Float[Tensor, "3 H W"],
    source: Cameras,
    source_depth: Float[Tensor, "1 H W"],
    target: Cameras,
    target_depth: Float[Tensor, "1 H W"],
) -> tuple[Float[Tensor, "3 H W"], Tensor]:
    """A frame as another camera sees it, and where both see the same surface."""
    H, W = target.height, target.width
    points = target.unproject(target.pixel_grid(), target_depth.flatten())
    pixels, depth = source.project(points)
    grid = pixels / torch.tensor([source.width, source.height]) * 2 - 1
    grid = grid.reshape(1, H, W, 2)
    there = F.grid_sample(source_depth[None], grid, mode="nearest", align_corners=False)[0]
    shown = F.grid_sample(color[None], grid, mode="bilinear", align_corners=False)[0]
    depth = depth.reshape(1, H, W)
    inside = (grid[0].abs() < 1).all(dim=-1)[None]
    same = inside & (depth > 0) & (there > 0) & (target_depth > 0)
    return shown, same & ((there - depth).abs() <= AGREES * depth)


def cross_view_error(
    color: Float[Tensor, "T 3 H W"],
    depth: Float[Tensor, "T 1 H W"],
    cameras: Cameras,
    gap: int | None = None,
) -> float:
    """Mean absolute colour difference on shared surfaces of frames `gap` apart (default: a third
    of the film), in 1/255; NaN where no surface is shared."""
    T = len(color)
    gap = max(1, T // 3) if gap is None else gap
    total, count = 0.0, 0
    for t in range(T - gap):
        shown, same = warped(color[t], cameras[t], depth[t], cameras[t + gap], depth[t + gap])
        apart = (shown - color[t + gap]).abs().mean(dim=0, keepdim=True)[same]
        total, count = total + float(apart.sum()), count + len(apart)
    return 255 * total / count if count else float("nan")


def flicker(
    color: Float[Tensor, "T 3 H W"], depth: Float[Tensor, "T 1 H W"], cameras: Cameras
) -> float:
    """Mean absolute colour difference of neighbouring frames on shared surfaces, in 1/255."""
    return cross_view_error(color, depth, cameras, 1)


class MemoryModeFit(NamedTuple):
    accuracy: float
    """Median distance of the points found to the reference."""
    completeness: float
    """Median distance of the reference to the points found."""
    precision: float
    recall: float
    f_score: float


def geometry_error(
    found: Float[Tensor, "N 3"], reference: Float[Tensor, "M 3"], threshold: float
) -> MemoryModeFit:
    """Two point sets against each other; share within `threshold` counts for the F-score."""
    if len(found) == 0 or len(reference) == 0:
        raise ValueError(f"both sets must hold points, got {len(found)} and {len(reference)}.")
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}.")
    there, back = (
        torch.from_numpy(build_index(b.contiguous(), "kd_tree").query(a.numpy(), 1)[0])[:, 0]
        for a, b in ((found, reference), (reference, found))
    )
    precision, recall = (float((d <= threshold).double().mean()) for d in (there, back))
    both = precision + recall
    score = 2 * precision * recall / both if both else 0.0
    return MemoryModeFit(float(there.median()), float(back.median()), precision, recall, score)
