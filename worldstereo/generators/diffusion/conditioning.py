"""A request of the app as inputs of the published model.

Our guides say 1 = seen, the model wants 1 = hole; our colours are in [0, 1], the model's in
[-1, 1] with mid grey in holes. Poses go from c2w to w2c here and nowhere else in this package.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras
from worldstereo.generators.diffusion.camera_conditions import (
    normalize_trajectory,
    plucker_rays,
    pose_vectors,
)
from worldstereo.generators.diffusion.config import MAX_REFERENCES
from worldstereo.generators.diffusion.retrieval import MemoryBank, retrieve
from worldstereo.scene import View
from worldstereo.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class References:
    """The reference views of one clip, at the size of its frames."""

    pictures: Float[Tensor, "N 3 H W"]
    """In [0, 1]."""
    depth: Float[Tensor, "N 1 H W"]
    """Scene units, 0 where unknown."""
    cameras: Cameras
    ref_index: tuple[int, ...]
    views: tuple[int, ...]
    """Indices into the request's views; -1 for the start picture itself."""


def resized(color: Float[Tensor, "3 h w"], height: int, width: int) -> Float[Tensor, "3 H W"]:
    """Stretched, not cropped; bicubic, smoothed when it shrinks."""
    if tuple(color.shape[-2:]) == (height, width):
        return color
    return functional.interpolate(
        color[None], (height, width), mode="bicubic", antialias=True, align_corners=False
    )[0].clamp(0, 1)


def nearest_depth(depth: Float[Tensor, "1 h w"], height: int, width: int) -> Float[Tensor, "1 H W"]:
    """Depth at another size without mixing near and far."""
    return functional.interpolate(depth[None], (height, width), mode="nearest-exact")[0]


def start_picture(
    views: tuple[View, ...], trajectory: Trajectory, guide: Float[Tensor, "3 H W"]
) -> tuple[Float[Tensor, "3 H W"], int]:
    """The clean first frame, and the view it is (-1: made by the memories).

    A remembered picture where one was taken from the path's first camera (within 1 % of its
    height for position, 0.5 degrees, 1 % of focal length), else the guide's own first frame.
    """
    first = trajectory[0]
    for i in reversed(range(len(views))):
        camera = views[i].cameras.scaled(first.width, first.height)
        turned = first.c2w[:3, :3].T @ camera.c2w[:3, :3]
        angle = torch.rad2deg(torch.acos(((turned.trace() - 1) / 2).clamp(-1, 1)))
        known = views[i].depth[views[i].depth > 0]
        unit = float(known.median()) if len(known) else 1.0
        moved = float((first.position - camera.position).norm())
        zoomed = float(((first.K - camera.K).abs() / first.K[0, 0]).max())
        if float(angle) < 0.5 and moved < 0.01 * unit and zoomed < 0.01:
            return resized(views[i].color, first.height, first.width), i
    return guide, -1


def gather_references(
    views: tuple[View, ...],
    trajectory: Trajectory,
    start: Float[Tensor, "3 H W"],
    start_depth: Float[Tensor, "1 H W"],
    *,
    nframe: int = 21,
    max_references: int = MAX_REFERENCES,
) -> References:
    """The views that the release's retrieval would show for this path, 1 to 8 of them.

    Without any remembered view the start picture is the one reference, as in the release.
    """
    cameras = trajectory.cameras
    height, width = cameras.height, cameras.width
    if not views:
        return References(start[None], start_depth[None], cameras[:1], (0,), (-1,))
    scaled = [view.cameras.scaled(width, height) for view in views]
    bank = MemoryBank(
        names=tuple(f"scene/{view.step}/{view.frame:04d}" for view in views),
        K=torch.stack([camera.K for camera in scaled]).float(),
        w2c=torch.stack([camera.w2c for camera in scaled]).float(),
        width=width,
        height=height,
        pictures=tuple(view.color_u8.permute(1, 2, 0).cpu().numpy() for view in views),
    )
    found = retrieve(
        bank,
        cameras.K.float(),
        cameras.w2c.float(),
        max_references=max_references,
        nframe=nframe,
        image_features=colour_features,
    )
    chosen = [views[i] for i in found.entries]
    return References(
        pictures=torch.stack([resized(view.color, height, width) for view in chosen]),
        depth=torch.stack([nearest_depth(view.depth, height, width) for view in chosen]),
        cameras=Cameras.stack([scaled[i] for i in found.entries]),
        ref_index=found.ref_index,
        views=found.entries,
    )


def colour_features(pictures: Sequence[np.ndarray]) -> Tensor:
    """(n, 48): mean colours on a 4 x 4 grid; stands in for the release's DINOv2 features.

    Only consulted when more than 8 views win, to keep those that differ most.
    """
    rows = []
    for picture in pictures:
        color = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255
        rows.append(functional.adaptive_avg_pool2d(color, (4, 4)).flatten())
    return torch.stack(rows)


@dataclass(frozen=True, eq=False)
class Conditions:
    """Everything but text that a clip is made from, batch 1, as the model wants it."""

    image: Float[Tensor, "1 3 H W"]
    render_video: Float[Tensor, "1 3 F H W"]
    render_mask: Float[Tensor, "1 1 F H W"]
    camera_embedding: Float[Tensor, "1 6 F H W"]
    reference_video: Float[Tensor, "1 3 N H W"]
    ref_index: Tensor
    camera_qt: Float[Tensor, "1 F 7"]
    camera_qt_ref: Float[Tensor, "1 N 7"]
    picture: Image.Image


def conditions(
    trajectory: Trajectory,
    color: Float[Tensor, "F 3 H W"],
    seen: Bool[Tensor, "F 1 H W"],
    start: Float[Tensor, "3 H W"],
    references: References,
) -> Conditions:
    """Guide, rays, references and pose vectors of one path."""
    cameras = trajectory.cameras
    w2c, w2c_ref = cameras.w2c.float(), references.cameras.w2c.float()
    signed = torch.where(seen, color * 2 - 1, torch.zeros_like(color))  # holes: mid grey
    hole = (~seen).float()
    signed[0], hole[0] = start * 2 - 1, 0
    target, reference = pose_vectors(w2c, w2c_ref)
    rays = plucker_rays(cameras.K.float(), normalize_trajectory(w2c), cameras.height, cameras.width)
    pixels = (start.permute(1, 2, 0) * 255 + 0.5).clamp(0, 255).to(torch.uint8).cpu().numpy()
    return Conditions(
        image=start[None] * 2 - 1,
        render_video=signed.transpose(0, 1)[None],
        render_mask=hole.transpose(0, 1)[None],
        camera_embedding=rays,
        reference_video=(references.pictures * 2 - 1).transpose(0, 1)[None],
        ref_index=torch.tensor(references.ref_index),
        camera_qt=target,
        camera_qt_ref=reference,
        picture=Image.fromarray(pixels),
    )
