"""Depth by stereo where nobody measured: regions of RGB-D views, and photos without any depth."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo._intake.depth import INFINITY
from worldstereo.cameras import Cameras
from worldstereo.fusion import Pose, Working, invert, membrane, pose_distance
from worldstereo.multiview import MatchView, fill_unmeasured, photo_depth
from worldstereo.scene import KIND_CONFIDENCE, DepthKind

STEREO = KIND_CONFIDENCE[DepthKind.STEREO]
SURE = KIND_CONFIDENCE[DepthKind.BY_OTHERS]  # confidence from which on depth may judge hypotheses
SHARE = 0.03  # of a view that must be unmeasured for stereo to be worth its time
OTHERS = 5  # pictures that one view is matched with

OnStep = Callable[[int, int, str], None]


def match_view(view: Working, gain: np.ndarray, *, trusted: bool = True) -> MatchView:
    """A working view as `multiview` takes it, colours harmonised."""
    color = np.clip(view.color.astype(np.float32) / 255 * np.exp(gain).astype(np.float32), 0, 1)
    depth = np.where(view.confidence >= SURE, view.depth, 0).astype(np.float32)
    return MatchView(
        color=torch.from_numpy(color).permute(2, 0, 1).contiguous(),
        cameras=_cameras(view.pose),
        depth=torch.from_numpy(depth)[None] if trusted else None,
        blocked=None if view.rig is None else torch.from_numpy(view.rig),
    )


def fill_by_stereo(
    views: list[Working],
    gains: np.ndarray,
    which: Sequence[int],
    *,
    seed: int,
    on_step: OnStep,
) -> list[Working]:
    """Unmeasured regions that other pictures explain better than the membrane did.

    What stereo does not confirm is interpolated again, now from what it did confirm. Regions that
    were put at infinity stay there.
    """
    if len(views) < 3:
        return views
    out = list(views)
    pictures: dict[int, MatchView] = {}

    def picture(i: int) -> MatchView:
        if i not in pictures:
            pictures[i] = match_view(views[i], gains[i])
        return pictures[i]

    for i in which:
        view = views[i]
        unknown = (view.confidence < SURE) & (view.disparity > 2 * INFINITY)
        if view.rig is not None:
            unknown &= ~view.rig
        if unknown.mean() < SHARE:
            continue
        on_step(i, len(views), "Measuring depth from other pictures")
        nearest = sorted(
            (j for j in range(len(views)) if j != i),
            key=lambda j, pose=view.pose: pose_distance(pose, views[j].pose),
        )[:OTHERS]
        filled = fill_unmeasured(
            picture(i),
            [picture(j) for j in sorted(nearest)],
            torch.from_numpy(view.depth)[None],
            torch.from_numpy(unknown)[None],
            seed=seed,
        )
        accepted = filled.accepted[0].numpy() & unknown
        d = np.where(accepted, invert(filled.depth[0].numpy()), view.disparity)
        rest = unknown & ~accepted
        known = (view.confidence >= SURE) | accepted
        if rest.any() and known.any():
            d = np.where(rest, membrane(d.astype(np.float32), known), d)
        out[i] = view.with_depth(d, np.where(accepted, STEREO, view.confidence))
    return out


def measure_photos(
    views: list[Working],
    points: Float[Tensor, "N 3"] | None,
    *,
    seed: int,
    on_step: OnStep,
) -> list[Working]:
    """Depth of photos that have none, from each other and from known points in the same unit."""
    pictures = [match_view(view, np.zeros(3), trusted=False) for view in views]
    found = photo_depth(pictures, points=points, seed=seed, on_step=on_step)
    out = []
    for view, depth in zip(views, found, strict=True):
        d = invert(depth.depth[0].numpy())
        out.append(view.with_depth(d, np.where(d > 0, STEREO, 0)))
    return out


def _cameras(pose: Pose) -> Cameras:
    fx, fy, cx, cy = pose.K
    K = torch.tensor([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]], dtype=torch.float64)
    return Cameras(K, torch.from_numpy(pose.c2w), pose.width, pose.height)


def rescaled(view: Working, factor: float) -> Working:
    """The same view with lengths divided by `factor`, once u is known from measured photos."""
    c2w = view.pose.c2w.copy()
    c2w[:3, 3] /= factor
    pose = Pose(view.pose.K, c2w, view.pose.width, view.pose.height)
    moved = replace(view, pose=pose, depth=view.depth, disparity=view.disparity)
    return moved.with_depth(view.disparity * np.float32(factor), view.confidence)
