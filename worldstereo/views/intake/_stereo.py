"""Depth by stereo where it is unmeasured: regions of RGB-D views, and photos without any depth."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras
from worldstereo.progress import OnStep
from worldstereo.scene import KIND_CONFIDENCE, DepthKind, View
from worldstereo.views.fusion import Pose, ViewArrays, invert, make_view_arrays, pose_distances
from worldstereo.views.intake._depth import INFINITY, interpolated
from worldstereo.views.intake._memory import are_many, put_away
from worldstereo.views.multiview import PHOTO_SIDE, MatchView, fill_unmeasured, photo_depth
from worldstereo.views.multiview.arrays import enlarged_by_color, nearest, resized

STEREO = KIND_CONFIDENCE[DepthKind.STEREO]
SURE = KIND_CONFIDENCE[DepthKind.REPROJECTED]  # confidence from which on depth may judge hypotheses
SHARE = 0.03  # of a view that must be unmeasured for stereo to be worth its time
OTHERS = 5  # pictures that one view is matched with
PICTURES = 24  # held ready: neighbours are matched with each other


def match_view(view: ViewArrays, gain: np.ndarray, *, trusted: bool = True) -> MatchView:
    """A working view as `multiview` takes it, colours harmonised."""
    color = np.clip(view.color.astype(np.float32) / 255 * np.exp(gain).astype(np.float32), 0, 1)
    depth = np.where(view.confidence >= SURE, view.depth, 0).astype(np.float32)
    return MatchView(
        color=torch.from_numpy(color).permute(2, 0, 1).contiguous(),
        cameras=cameras_of(view.pose),
        depth=torch.from_numpy(depth)[None] if trusted else None,
        blocked=None if view.camera_fixed is None else torch.from_numpy(view.camera_fixed),
    )


def fill_by_stereo(
    views: list[ViewArrays],
    gains: np.ndarray,
    which: Sequence[int],
    *,
    seed: int,
    on_step: OnStep,
) -> list[ViewArrays]:
    """Unmeasured regions that other pictures explain better than the harmonic fill did.

    What stereo does not confirm is interpolated again, now from what it did confirm. Regions that
    were put at infinity stay there.
    """
    if len(views) < 3:
        return views
    out, poses = list(views), [view.pose for view in views]
    many = are_many(poses)
    pictures: dict[int, MatchView] = {}

    def picture(i: int) -> MatchView:
        pictures[i] = pictures.pop(i, None) or match_view(views[i], gains[i])
        if len(pictures) > PICTURES:  # the one used longest ago
            del pictures[next(iter(pictures))]
        return pictures[i]

    for i in which:
        view = views[i]
        unknown = (view.confidence < SURE) & (view.disparity > 2 * INFINITY)
        if view.camera_fixed is not None:
            unknown &= ~view.camera_fixed
        if unknown.mean() < SHARE:
            continue
        on_step(i, len(views), "Measuring depth from other pictures")
        apart = pose_distances(poses, view.pose)
        apart[i] = np.inf
        nearest = np.argsort(apart, kind="stable")[: min(OTHERS, len(views) - 1)].tolist()
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
            d = np.where(rest, interpolated(view, d, known), d)
        out[i] = view.with_depth(d, np.where(accepted, STEREO, view.confidence))
        if many:
            put_away([out[i]], [view, *(views[j] for j in nearest)])
    return out


def measure_photos(
    views: list[ViewArrays],
    points: Float[Tensor, "N 3"] | None,
    *,
    seed: int,
    on_step: OnStep,
) -> list[ViewArrays]:
    """Depth of photos that have none, from each other and from known points in the same unit."""
    pictures = [match_view(view, np.zeros(3), trusted=False) for view in views]
    found = photo_depth(pictures, points=points, seed=seed, on_step=on_step)
    out = []
    for view, depth in zip(views, found, strict=True):
        d = invert(depth.depth[0].numpy())
        out.append(view.with_depth(d, np.where(d > 0, STEREO, 0)))
    return out


def photo_view_arrays(view: View, unit: float) -> ViewArrays:
    """The working form of a photo at the size its depth is measured at, without any depth."""
    longest = max(view.width, view.height)
    if longest <= PHOTO_SIDE:
        return make_view_arrays(view, unit)
    w, h = (max(8, round(n * PHOTO_SIDE / longest)) for n in (view.width, view.height))
    empty = torch.zeros(1, h, w)
    kind = torch.from_numpy(nearest(view.kind.float(), h, w)).to(torch.uint8)[None]
    small = View.of(resized(view.color, h, w), empty, view.given.scaled(w, h), kind=kind)
    return make_view_arrays(small, unit)


def at_size_of(
    view: View, work: ViewArrays
) -> tuple[Float[Tensor, "1 H W"], Float[Tensor, "1 H W"], Bool[Tensor, "H W"] | None]:
    """Depth in u, confidence and camera-fixed mask of a working view at the size of its photo."""
    h, w = view.height, view.width
    camera_fixed = None if work.camera_fixed is None else torch.from_numpy(work.camera_fixed)
    depth, confidence = torch.from_numpy(work.depth), torch.from_numpy(work.confidence)
    if work.depth.shape == (h, w):
        return depth[None], confidence[None], camera_fixed
    if camera_fixed is not None:
        camera_fixed = torch.from_numpy(nearest(camera_fixed[None].float(), h, w) > 0.5)
    image = np.ascontiguousarray(view.color_u8.numpy().transpose(1, 2, 0))
    z, sure = enlarged_by_color(work.depth, work.confidence, work.color, image)
    return torch.from_numpy(z)[None], torch.from_numpy(sure)[None], camera_fixed


def camera_fixed_layer(
    found: tuple[np.ndarray, np.ndarray], view: View
) -> tuple[Bool[Tensor, "H W"], Float[Tensor, "3 H W"]]:
    """Mask and mean colour of what is fixed to the camera, at the size of the views."""
    mask, color = torch.from_numpy(found[0]), torch.from_numpy(found[1]).permute(2, 0, 1)
    h, w = view.height, view.width
    if tuple(mask.shape) == (h, w):
        return mask, color.contiguous()
    larger = functional.interpolate(color[None], (h, w), mode="bilinear", align_corners=False)[0]
    return torch.from_numpy(nearest(mask[None].float(), h, w) > 0.5), larger


def unmatched(views: Sequence[View], work: Sequence[ViewArrays]) -> list[str]:
    """A sentence about the photos in which no depth was found, if there are any."""
    lost = [
        view.name or f"photo {i + 1}"
        for i, (view, w) in enumerate(zip(views, work, strict=True))
        if not (w.depth > 0).any()
    ]
    if not lost:
        return []
    named = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    verb = "has" if len(lost) == 1 else "have"
    return [
        f"{len(lost)} of {len(work)} photos {verb} no measured depth, as no other shows the same "
        f"from near by: {named}."
    ]


def cameras_of(pose: Pose) -> Cameras:
    """A working pose as a camera, the half pixel back in place."""
    fx, fy, cx, cy = pose.K
    K = torch.tensor([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]], dtype=torch.float64)
    return Cameras(K, torch.from_numpy(pose.c2w), pose.width, pose.height)


def rescaled(view: ViewArrays, factor: float) -> ViewArrays:
    """The same view with lengths divided by `factor`, once u is known from measured photos."""
    c2w = view.pose.c2w.copy()
    c2w[:3, 3] /= factor
    pose = Pose(view.pose.K, c2w, view.pose.width, view.pose.height)
    moved = replace(view, pose=pose, depth=view.depth, disparity=view.disparity)
    return moved.with_depth(view.disparity * np.float32(factor), view.confidence)
