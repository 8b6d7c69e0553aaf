"""What the mini network is shown for one target: one path for training and for use.

Everything comes from the two memories: the weight-free view of the target with its confidence
(the anchor), the cloud's splat, and the reference views fetched at the target's 3D points.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldstereo import fusion
from worldstereo.cameras import Cameras
from worldstereo.scene import View

REFERENCES = 3
"""Reference views the network attends to; fewer are padded with empty ones."""

BINS = 16
"""Classes of expected error: eight of confidence where known, eight of distance in holes."""


class MiniInputs(NamedTuple):
    """Maps of one target, or of a batch of them; colours in [-1, 1]."""

    anchor: Float[Tensor, "*B 3 H W"]
    known: Float[Tensor, "*B 1 H W"]
    bins: Float[Tensor, "*B 1 H W"]
    """Class of expected error, a whole number in 0 .. BINS - 1."""
    closeness: Float[Tensor, "*B 1 H W"]
    """Median depth over depth, minus 1; at most 9."""
    splat: Float[Tensor, "*B 4 H W"]
    """The cloud's colour, and 1 where it was seen."""
    rays: Float[Tensor, "*B 6 H W"]
    """Plücker rays in the first reference's frame, lengths in median depths."""
    references: Float[Tensor, "*B R 6 H W"]
    """Colour, agreement in [0, 1], angle in radians, distance of the camera in median depths."""


def make_inputs(
    target: Cameras,
    color: Float[Tensor, "3 H W"],
    depth: Float[Tensor, "1 H W"],
    confidence: Float[Tensor, "1 H W"],
    known: Bool[Tensor, "1 H W"],
    views: Sequence[View],
    cloud: Float[Tensor, "4 H W"] | None,
    unit: float,
) -> MiniInputs:
    """The maps of one target; of `views` the nearest serve as references.

    Args:
        cloud: what the global memory's points show there (`cloud_map`); None leaves it out.
        depth: scene units; 0 or not finite: unknown.
        unit: length that depths are counted in while fetching; scene units.
    """
    h, w = target.height, target.width
    depth = torch.where(torch.isfinite(depth), depth, 0.0)  # as intake: not finite is not measured
    seen = depth[depth > 0]
    middle = float(seen.median()) if len(seen) > 0 else unit
    closeness = (middle / depth.clamp_min(0.1 * middle) - 1).where(depth > 0, torch.tensor(0.0))
    pose = fusion.pose_of(target, unit)
    z = depth[0].numpy().astype(np.float32) / np.float32(unit)
    near = sorted(
        (fusion.working(view, unit) for view in views),
        key=lambda work: fusion.pose_distance(pose, work.pose),
    )[:REFERENCES]
    common = np.mean([work.gain for work in near], axis=0) if near else np.zeros(3)
    maps = []
    for work in near:
        fetched, agreement, angle = fusion.fetch(z, pose, work)
        fetched = np.clip(fetched * np.exp(work.gain - common), 0, 1)
        far = float(np.linalg.norm(work.pose.position - pose.position)) * unit / middle
        valid = agreement > 0
        rest = np.stack([agreement, np.where(valid, angle, 0), valid * min(far, 2.0)])
        colors = np.where(valid[..., None], fetched * 2 - 1, 0).transpose(2, 0, 1)
        maps.append(torch.from_numpy(np.concatenate([colors, rest]).astype(np.float32)))
    while len(maps) < REFERENCES:
        maps.append(torch.zeros(6, h, w))
    return MiniInputs(
        anchor=color * 2 - 1,
        known=known.float(),
        bins=error_bins(confidence, known),
        closeness=closeness.clamp(-1, 9),
        splat=torch.zeros(4, h, w) if cloud is None else cloud,
        rays=_rays(target, views[0].cameras if len(views) > 0 else target, middle),
        references=torch.stack(maps),
    )


def reference_weights(references: Float[Tensor, "B R 6 H W"]) -> Float[Tensor, "B R 1 H W"]:
    """What each reference weighs in the weight-free blend where depth was measured, up to a common
    factor; 0 where nothing corresponds."""
    return references[:, :, 3:4] / (1 + references[:, :, 4:5].abs() / fusion.WIDE) ** 6


def cloud_map(colors: Float[Tensor, "N 3"], index: Int[Tensor, "1 H W"]) -> Float[Tensor, "4 H W"]:
    """Colour in [-1, 1] of the point seen at each pixel, and 1 where there is one.

    The guide already knows which point that is: nothing is drawn a second time.
    """
    seen = (index >= 0).float()
    if len(colors) == 0:
        return torch.zeros(4, *index.shape[-2:])
    color = colors[index[0].clamp_min(0)].permute(2, 0, 1)
    return torch.cat([(color * 2 - 1) * seen, seen])


def error_bins(
    confidence: Float[Tensor, "1 H W"], known: Bool[Tensor, "1 H W"]
) -> Float[Tensor, "1 H W"]:
    """Class of expected error: falling confidence where known, growing distance in holes."""
    import cv2

    hole = (~known[0]).numpy().astype(np.uint8)
    distance = torch.from_numpy(cv2.distanceTransform(hole, cv2.DIST_L2, 3))[None]
    sure = (7 - (confidence * 8).floor()).clamp(0, 7)
    return torch.where(known, sure, 8 + distance.clamp_min(1).log2().floor().clamp(0, 7))


def _rays(target: Cameras, first: Cameras, unit: float) -> Float[Tensor, "6 H W"]:
    """Rays of the target in another camera's frame: the network never sees the world's axes."""
    motion = first.w2c @ target.c2w
    motion = torch.cat(
        [motion[:, :3], motion[:, 3:] / torch.tensor([unit, unit, unit, 1])[:, None]], 1
    )
    here = Cameras(target.K, motion, target.width, target.height)
    return here.plucker(target.height, target.width)


def batched(items: Sequence[MiniInputs]) -> MiniInputs:
    """Several targets of one size as a batch."""
    return MiniInputs(*(torch.stack(maps) for maps in zip(*items, strict=True)))
