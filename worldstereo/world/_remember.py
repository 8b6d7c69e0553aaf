"""What goes into the two memories: a given view, a generated view, a foreign cloud.

Called inside a step of the world, with its draft. A view's points join the global cloud, its
patches join the feature bank, each with the 3D points it corresponds to.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from worldstereo._core.resident import release, tensors_in
from worldstereo.generators import Frame, Generator, as_view
from worldstereo.guide import Guide
from worldstereo.memory.localize import relocalize as found_again
from worldstereo.memory.stereo import RefineResult, SpatialStereoMemory
from worldstereo.memory.stereo.agreement import FrameAgreement
from worldstereo.memory.stereo.keypoints import surface_normals
from worldstereo.progress import OnStep
from worldstereo.scene import DepthKind, Origin, PointCloud, View
from worldstereo.views.intake import as_estimated, as_measured, cloud_from, preprocess_views
from worldstereo.world._original import Original, PackedDepth
from worldstereo.world._world import Draft


def forget(draft: Draft) -> None:
    draft.views.clear()
    draft.clips.clear()
    draft.registration = draft.original = None
    draft.geometry.initialize(torch.zeros(0, 3))
    draft.stereo.clear()
    draft.keypoints.clear()


def remember_cloud(draft: Draft, cloud: PointCloud) -> None:
    """A capture's own cloud, into the empty global memory."""
    at = draft.geometry.device
    if draft.write_geometry:
        draft.geometry.initialize(
            cloud.points.to(at),
            colors=cloud.colors.to(at),
            normals=cloud.normals.to(at),
            radii=cloud.radii.to(at),
            confidence=cloud.confidence.to(at),
            source=-1,
        )
    draft.points_added = draft.geometry.num_points
    centre = cloud.points.median(dim=0).values
    draft.changes["unit"] = max(float((cloud.points - centre).norm(dim=1).median()), 1e-6)


def remember_given(
    draft: Draft,
    views: Sequence[View],
    generator: Generator,
    register: bool,
    on_step: OnStep,
    cloud: PointCloud | None = None,
    deleted: Sequence[Bool[Tensor, "1 H W"]] | None = None,
    *,
    relocalize: bool = True,
) -> None:
    """Views as they were given.

    Args:
        cloud: the capture's own; its points help to measure photos that have no depth.
        deleted: of each view, the pixels that a person deleted: they stay unknown.
        relocalize: find views whose poses agree with nobody by their keypoints; with `register`.
    """
    points = None if cloud is None else cloud.points
    entered = as_estimated(views)
    if entered is None:
        entered = preprocess_views(
            views,
            register=register,
            points=points,
            relocalize=found_again if relocalize else None,
            on_step=on_step,
        )
        draft.original = Original(
            tuple(PackedDepth.of(as_measured(view).depth).spilled() for view in views), cloud
        )
    draft.registration = entered.registration
    draft.changes |= {"unit": entered.unit, "camera_fixed": entered.camera_fixed}
    notices = draft.changes.get("notices", draft.scene.notices)
    draft.changes["notices"] = tuple(dict.fromkeys((*notices, *entered.notices)))
    draft.changes["checks"] = entered.checks
    for index, view in enumerate(entered.views):
        on_step(index, len(entered.views), f"Remembering view {index + 1} of {len(entered.views)}")
        whole = view if deleted is None else without_pixels(view, deleted[index])
        remember_view(draft, whole, generator)
        release(tensors_in(draft.views[-1]))  # else all pictures are in memory at the end


def without_pixels(view: View, gone: Bool[Tensor, "1 H W"]) -> View:
    """The view with some of its depth forgotten; its picture stays."""
    if not bool(gone.any()):
        return view
    return replace(
        view,
        depth=view.depth.masked_fill(gone, 0.0),
        kind=view.kind.masked_fill(gone, int(DepthKind.UNKNOWN)),
        confidence_u8=view.confidence_u8.masked_fill(gone, 0),
    )


def remember_generated(
    draft: Draft,
    frame: Frame,
    judge: Guide,
    index: int,
    generator: Generator,
    said: FrameAgreement | None = None,
) -> None:
    """A generated frame: it adds only what neither memory showed, whatever it says of itself.

    Args:
        said: the frame's agreement with the keypoint level; cells that contradict it add nothing.
    """
    camera = judge.trajectory.cameras[index]
    if said is not None:
        wrong = said.contradicted(camera.height, camera.width) & (
            frame.origin != int(Origin.CAMERA_FIXED)
        )
        frame = frame._replace(depth=frame.depth.masked_fill(wrong, 0.0))
    claimed = frame.origin == int(Origin.INVENTED)
    shown = claimed & ~judge.unseen(index).to(claimed.device) if bool(claimed.any()) else claimed
    origin = frame.origin.masked_fill(shown, int(Origin.GLOBAL))
    remember_view(
        draft, as_view(frame._replace(origin=origin), camera, draft.step, index), generator
    )


def remember_view(draft: Draft, view: View, generator: Generator, *, merge: bool = True) -> None:
    """One view into both memories: its points into the cloud, its patches into the feature bank.

    Args:
        merge: False leaves the points that are there untouched, however near the new ones are.
    """
    view = view.spilled()
    draft.views.append(view if draft.write_stereo else unseen(view))
    number = len(draft.views) - 1
    cloud = cloud_from(view, unit=draft.changes.get("unit", draft.scene.unit))
    if len(cloud.points) > 0 and draft.write_geometry:
        at = draft.geometry.device
        result = draft.geometry.update(
            cloud.to(at),
            view.cameras.c2w.to(at),
            source=number,
            merge_threshold=cloud_spacing(view) if merge else 0.0,
        )
        draft.points_added += result.num_added
        draft.points_merged += result.num_merged
    if draft.write_stereo:
        said = remember_entries(draft.stereo, view, generator, number, refine=True)
        counts = {} if said is None else {"refined": said.num_blended, "pruned": said.num_pruned}
        if view.step == 0:
            cycle = draft.keypoints.observe(view, number, draft.views)
            counts |= {"keypoints_matched": cycle.matched, "keypoints_added": cycle.added}
            counts["keypoints_pruned"] = cycle.pruned
        for name, count in counts.items():
            draft.details[name] = draft.details.get(name, 0) + count


def remember_entries(
    stereo: SpatialStereoMemory,
    view: View,
    generator: Generator,
    frame: int,
    *,
    refine: bool = False,
) -> RefineResult | None:
    """The patches of a view with depth into a feature bank; `frame` is kept with each.

    Args:
        refine: entries that the view sees again follow it, by what the view is worth; those that
            keep contradicting it go. Patches that brought an entry up to date are not stored again.
    """
    found = entries_of(view, generator, stereo.num_correspondences)
    features, points, confidence, pixels = (column.to(stereo.device) for column in found)
    if len(features) == 0:
        return None
    normals = surface_normals(view, pixels.cpu().numpy())
    seen_by = torch.full((len(features), stereo.num_correspondences), -1, dtype=torch.int64)
    seen_by[:, 0] = frame
    said = None
    new = torch.ones(len(features), dtype=torch.bool, device=stereo.device)
    if refine:
        at = view.cameras.to(stereo.device)
        said = stereo.refine(features, points[:, 0].contiguous(), at, confidence.amax(dim=1))
        new = ~said.matched
    stereo.add_to_memory(
        features[new],
        points[new],
        confidence[new],
        metadata={
            "frame": frame,
            "pixel": pixels[new],
            "level": 0,
            "normal": torch.from_numpy(normals).float().to(stereo.device)[new],
            "seen_by": seen_by.to(stereo.device)[new],
        },
    )
    return said


def unseen(view: View) -> View:
    """The picture alone: without depth nothing corresponds to it."""
    return without_pixels(view, torch.ones_like(view.depth, dtype=torch.bool))


def cloud_spacing(view: View) -> float:
    """Merge distance for a view's points: half a pixel's width on its median surface."""
    depth = view.depth[view.depth > 0]
    if len(depth) == 0:
        return 0.0
    return 0.5 * float(depth.median()) / float(view.cameras.K[0, 0])


def entries_of(
    view: View, generator: Generator, count: int = 8
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Feature bank entries of a view, one per cell of the generator's feature grid.

    Returns:
        features (N, D), correspondences (N, count, 3), their confidence (N, count), pixel (N, 2):
        the 3D points of pixels spread over the cell, at most eight different ones, the middle
        first; a pixel without depth has confidence 0.
    """
    features = generator.encode(view.color[None])[0]
    h, w = features.shape[-2:]
    height, width = view.height, view.width
    centre = view.cameras.pixel_grid(h, w)
    step = torch.tensor([width / w, height / h])
    spread = (
        torch.tensor([[0, 0], [-1, -1], [1, -1], [-1, 1], [1, 1], [-1, 0], [1, 0], [0, 1]]) * 0.35
    )
    spread = spread[torch.arange(count) % len(spread)]
    pixels = centre[:, None] + spread * step  # (N, count, 2)
    u = pixels[..., 0].floor().long().clamp(0, width - 1)
    v = pixels[..., 1].floor().long().clamp(0, height - 1)
    depth, confidence = view.depth[0][v, u], view.confidence[0][v, u]
    points = view.cameras.unproject(pixels.reshape(-1, 2), depth.reshape(-1)).reshape(*u.shape, 3)
    known = depth > 0
    some = known.any(dim=1)
    # A pixel without depth repeats one that has it, with confidence 0: finite, and never used.
    first = known.float().argmax(dim=1)
    points = torch.where(
        known[..., None], points, points[torch.arange(len(points)), first][:, None]
    )
    confidence = torch.where(known, confidence, 0.0)
    return features.flatten(1).T[some], points[some], confidence[some], centre[some]
