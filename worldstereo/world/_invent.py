"""Inventions: painted cameras become part of both memories before the frames of a path are made."""

import base64
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.errors import InvalidRequest
from worldstereo.generators import (
    EmptyRegion,
    Frame,
    GenerationRequest,
    as_view,
)
from worldstereo.guide import Guide
from worldstereo.progress import OnStep
from worldstereo.scene import Origin, Scene
from worldstereo.trajectory import Trajectory
from worldstereo.world._remember import remember_view, without_pixels
from worldstereo.world._world import Draft, StepRecord, World, published_cloud

log = logging.getLogger(__name__)

SAME = 0.1
"""Relative depth within which a surface is the one that a camera shows."""
STORED = 160
"""Pixels along the longer side of a region's mask in a world's history."""


def scene_of(draft: Draft) -> Scene:
    """What would be published if the step ended now."""
    cloud = published_cloud(draft.geometry, draft.views)
    return replace(draft.scene, views=tuple(draft.views), cloud=cloud, **draft.changes)


def fold_inventions(
    draft: Draft, scene: Scene, generator: Any, request: GenerationRequest, on_step: OnStep
) -> GenerationRequest:
    """The request with the guide of the world that remembers all that was painted for its path.

    Args:
        scene: what the world knows before.
        generator: an `Inventor`.
    """
    kind = request.guide.kind if request.guide.kind in ("fused", "cloud") else "fused"
    flags = {"stereo": request.guide.stereo, "geometry": request.guide.geometry}

    def look(path: Trajectory) -> Guide:
        return Guide(scene, path, kind, **flags)

    painted: list[int] = []
    for invention in generator.invent(request, look, on_step):
        camera = request.trajectory.cameras[invention.index]
        view = as_view(invention.frame, camera, draft.step, invention.index)
        remember_view(draft, view, generator, merge=False)
        scene = scene_of(draft)
        painted.append(invention.index)
    draft.details["keyframes"] = painted
    whole = request.guide if not painted else look(request.trajectory)
    return replace(request, guide=whole, views=tuple(draft.views))


def visited(history: Sequence[StepRecord], path: Trajectory) -> bool:
    """Whether this path was painted, and nothing was taken away or found since.

    What its keyframes left unknown then is not painted on a second visit, which is to be the same.
    """
    wanted = path.to_json()
    for record in reversed(history):
        details = record.details
        if "trajectory" not in details:
            return False
        if details["trajectory"] == wanted and "keyframes" in details and "take" not in details:
            return True
        if "again" in details or "empty" in details:
            return False
    return False


def leave_empty(world: World, camera: Cameras, mask: Bool[Tensor, "H W"]) -> int:
    """Keep what a camera sees under a mask empty: inventions there go, and none come again.

    Returns how many points of the cloud were removed. One step, which can be undone.

    Raises:
        ValueError: the mask has another size than the camera's picture, or marks nothing that is
            unknown or was invented.
    """
    region = region_of(camera, mask)
    with world.step("leave empty") as draft:
        removed = forget_inventions(draft, region)
        draft.details["empty"] = packed(region)
    return removed


def region_of(camera: Cameras, mask: Bool[Tensor, "H W"]) -> EmptyRegion:
    """A region from what a person marked in a camera's picture.

    Raises:
        ValueError: the mask has another size than the camera's picture, or marks nothing.
    """
    size = (camera.height, camera.width)
    if camera.batch_shape != () or tuple(mask.shape) != size:
        raise ValueError(
            f"mask must be {size} like the picture of a single camera, got {tuple(mask.shape)}."
        )
    if not bool(mask.any()):
        raise ValueError("mask marks no pixel; at least one is needed.")
    return EmptyRegion(camera, mask)


def forget_inventions(draft: Draft, region: EmptyRegion) -> int:
    """Forget the invented surfaces that a region's camera shows under its mask.

    Given surfaces stay. Returns how many points of the cloud were removed.

    Raises:
        InvalidRequest: all that is marked is known from what was given.
    """
    frame = Guide(scene_of(draft), Trajectory(Cameras.stack([region.camera])))[0]
    free = ~frame.mask if frame.made is None else ~frame.mask | frame.made
    if not bool((free[0].to(region.mask.device) & region.mask).any()):
        raise InvalidRequest(
            "Nothing that is marked was invented; what was captured stays as it is. Mark a part "
            "that was painted."
        )
    depth = frame.depth[0]
    marked = torch.where(region.mask, depth, 0.0)

    def shown(points: Tensor) -> Tensor:
        pixels, q = region.camera.project(points)
        inside = (q > 0) & (pixels >= 0).all(1)
        inside &= (pixels[:, 0] < region.camera.width) & (pixels[:, 1] < region.camera.height)
        u = torch.where(inside, pixels[:, 0], 0.0).long()
        v = torch.where(inside, pixels[:, 1], 0.0).long()
        d = marked[v, u]
        return inside & (d > 0) & ((q - d).abs() < SAME * d)

    for i, view in enumerate(draft.views):
        if view.step == 0 or not bool(view.mask.any()):
            continue
        gone = torch.zeros_like(view.mask)
        known = view.mask[0]
        pixels = view.cameras.pixel_grid().reshape(view.height, view.width, 2)[known]
        gone[0][known] = shown(view.cameras.unproject(pixels, view.depth[0][known]))
        draft.views[i] = without_pixels(view, gone)
    cloud = published_cloud(draft.geometry, draft.views)
    made = cloud.step > 0
    gone = torch.zeros_like(made)
    gone[made] = shown(cloud.points[made])
    return draft.geometry.prune(keep=~gone) if bool(gone.any()) else 0


def empty_regions(history: Sequence[StepRecord]) -> tuple[EmptyRegion, ...]:
    """The regions that a person wants to stay empty, oldest first."""
    found = []
    for record in history:
        if "empty" in record.details:
            try:
                found.append(_unpacked(record.details["empty"]))
            except (KeyError, TypeError, ValueError) as error:  # an edited or damaged file
                log.warning("step %d: its empty region is left out: %s", record.step, error)
    return tuple(found)


def left_empty(frame: Frame, camera: Cameras, regions: Sequence[EmptyRegion]) -> Frame:
    """A frame without the surfaces that it invents where a person wants none."""
    inside = torch.zeros_like(frame.depth, dtype=torch.bool)
    for region in regions:
        inside |= region.covers(camera, frame.depth)
    inside &= frame.origin == int(Origin.INVENTED)
    return frame._replace(depth=frame.depth.masked_fill(inside, 0.0))


def packed(region: EmptyRegion) -> dict[str, Any]:
    """A region as a world's history keeps it, its mask small."""
    h, w = region.mask.shape
    scale = min(1.0, STORED / max(h, w))
    size = max(1, round(w * scale)), max(1, round(h * scale))
    small = torch.nn.functional.interpolate(
        region.mask[None, None].float(), size[::-1], mode="area"
    )
    bits = np.packbits((small[0, 0] >= 0.5).numpy() if scale < 1 else region.mask.numpy())
    path = Trajectory(Cameras.stack([region.camera.scaled(*size)]), "empty")
    return {"camera": path.to_json(), "mask": base64.b64encode(bits.tobytes()).decode()}


def _unpacked(kept: dict[str, Any]) -> EmptyRegion:
    camera = Trajectory.from_json(kept["camera"])[0]
    bits = np.frombuffer(base64.b64decode(kept["mask"], validate=True), np.uint8)
    count = camera.width * camera.height
    if len(bits) != -(-count // 8):
        raise ValueError(f"mask holds {len(bits)} bytes for {count} pixels")
    mask = np.unpackbits(bits, count=count).astype(bool).reshape(camera.height, camera.width)
    return EmptyRegion(camera, torch.from_numpy(mask.copy()))
