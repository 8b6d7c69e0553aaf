"""Depth of a model where nothing was measured, in views whose own measurements confirm it."""

from collections.abc import Sequence

import numpy as np
import torch

from worldstereo.depth import DepthEstimator, confirmed
from worldstereo.progress import OnStep
from worldstereo.scene import KIND_CONFIDENCE, DepthKind
from worldstereo.views.fusion import ViewArrays, invert
from worldstereo.views.intake._depth import INFINITY
from worldstereo.views.intake._stereo import cameras_of

LEARNED = KIND_CONFIDENCE[DepthKind.LEARNED]
SURE = KIND_CONFIDENCE[DepthKind.STEREO]  # confidence from which on depth was measured
SHARE = 0.01  # of a view that must be unmeasured for a model to be worth its time


def fill_by_model(
    views: list[ViewArrays], which: Sequence[int], estimator: DepthEstimator, *, on_step: OnStep
) -> list[ViewArrays]:
    """Pixels that no sensor, view or matching knows, where held-out measurements confirm a model.

    Scale and shift are fitted to each view. What other pictures put at infinity stays there.
    """
    out = list(views)
    for i in which:
        view = views[i]
        far = (view.disparity > 0) & (view.disparity <= 1.01 * INFINITY)
        measured = (view.confidence >= SURE - 0.01) & (view.disparity > 0)
        unknown = ~measured & ~far
        if view.camera_fixed is not None:
            unknown &= ~view.camera_fixed
        if unknown.mean() < SHARE or not measured.any():
            continue
        on_step(i, len(views), "Completing depth by the depth model")
        color = torch.from_numpy(view.color).permute(2, 0, 1).float() / 255
        estimate = estimator(color, cameras_of(view.pose))
        known = torch.from_numpy(np.where(measured, view.depth, 0).astype(np.float32))[None]
        depth, believed = confirmed(estimate.depth.float(), known)
        take = unknown & believed[0].numpy()
        if take.any():
            d = np.where(take, invert(depth[0].numpy()), view.disparity)
            out[i] = view.with_depth(d, np.where(take, LEARNED, view.confidence))
    return out
