"""Add photos to an open world: they find their place, get depth from the views around them, and
the world grows in one step that can be undone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.errors import WorldStereoError
from worldstereo.inputs.pictures import GUESSED, read_pictures
from worldstereo.memory.localize import Localizer, Place
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Capture, View
from worldstereo.views.intake import as_measured, preprocess_new_views
from worldstereo.views.registration import Registration
from worldstereo.world._original import PackedDepth
from worldstereo.world._remember import remember_view
from worldstereo.world._world import Draft, World

Photos = Path | str | Capture | Sequence[Path | str]
THUMBNAIL = 160
SAME = 2.0
"""Mean difference in grey levels of 16x16 cells below which two pictures are one."""


@dataclass(frozen=True, eq=False)
class AddedPhoto:
    """What became of one photo."""

    name: str
    status: str
    """"added", "doubtful", "not found" or "copy"."""
    reason: str
    """One line; "" for a photo that was added without doubt."""
    picture: UInt8[Tensor, "3 h w"]
    """Small, for a list."""
    place: Place | None = None
    view: int | None = None
    """Its index among the world's views, where it was added."""


@dataclass(frozen=True, eq=False)
class AddReport:
    """What `add` did with each photo, in the order given."""

    photos: tuple[AddedPhoto, ...]
    notices: tuple[str, ...] = ()

    @property
    def added(self) -> tuple[AddedPhoto, ...]:
        return tuple(photo for photo in self.photos if photo.view is not None)

    @property
    def left_out(self) -> tuple[AddedPhoto, ...]:
        return tuple(photo for photo in self.photos if photo.view is None)

    def lines(self) -> list[str]:
        """One line for each photo that was left out or added with doubt, and a summary first."""
        out = [f"{len(self.added)} of {len(self.photos)} photos were added."]
        out += [f"{p.name}: {p.status}, {p.reason}." for p in self.photos if p.reason]
        return [*out, *self.notices]


def add(
    world: World, photos: Photos, *, doubtful: bool = False, on_step: OnStep = ignore
) -> AddReport:
    """Find where photos were taken in an open world, and remember them as given views.

    Photos that are not found are named with the reason and left out; so are those found with
    doubt, unless `doubtful`. Photos that only show what other new photos show are tried again once
    those are remembered. Where nothing is added, the world is unchanged and no step is recorded.

    Args:
        photos: files, folders or zips of pictures, videos (their keyframes), or a capture; poses
            that come with them are not used.
        doubtful: also add photos whose place is uncertain.

    Raises:
        WorldStereoError: the world holds no given view with keypoints.
        InputRefused: no picture could be read.
        WorldBusy, Cancelled: another step runs; `on_step` raised it.
    """
    _check_world(world)
    capture = _capture_of(photos, on_step)
    search = _Search(world, capture, doubtful, on_step)
    localizer = world.localizer()
    first = search.look(localizer, range(len(capture.views)))
    if not first:
        return search.report(capture.notices)
    with world.step(f"add {capture.name}") as draft:
        found = first
        while found:
            search.remember(draft, found)
            left = [i for i, photo in enumerate(search.photos) if photo.status == "not found"]
            if not left:
                break
            table = draft.keypoints.table(draft.views, draft.scene.unit)
            found = search.look(Localizer(table), left)
        report = search.report(capture.notices)
        draft.details |= {"photos": len(report.photos), "added": len(report.added)}
    return report


def locate(world: World, photos: Photos, *, on_step: OnStep = ignore) -> list[tuple[str, Place]]:
    """Where photos were taken, by name; nothing is remembered.

    Raises:
        WorldStereoError, InputRefused, WorldBusy: as `add`.
    """
    _check_world(world)
    capture = _capture_of(photos, on_step)
    localizer = world.localizer()
    out = []
    for i, view in enumerate(capture.views):
        on_step(i, len(capture.views), f"Finding photo {i + 1} of {len(capture.views)}")
        out.append(
            (view.name or f"photo {i + 1}", localizer.find(view.color_u8, _intrinsics(view)))
        )
    return out


def _capture_of(photos: Photos, on_step: OnStep) -> Capture:
    return photos if isinstance(photos, Capture) else read_pictures(photos, on_step=on_step)


def _check_world(world: World) -> None:
    scene = world.scene
    if not any(view.step == 0 for view in scene.views):
        what = "is empty" if len(scene.cloud) == 0 else "was made from a mesh or point cloud"
        raise WorldStereoError(
            f"The world {what} and holds no keypoints to find photos by. Open a capture or photos."
        )


def _intrinsics(view: View) -> Tensor | None:
    return None if view.frame == GUESSED else view.given.K


class _Search:
    """The photos of one call and what is known of each."""

    def __init__(self, world: World, capture: Capture, doubtful: bool, on_step: OnStep) -> None:
        self.world, self.views, self.doubtful, self.on_step = (
            world,
            capture.views,
            doubtful,
            on_step,
        )
        self.photos = [
            AddedPhoto(
                view.name or f"photo {i + 1}", "not found", "was not tried", _small(view.color_u8)
            )
            for i, view in enumerate(capture.views)
        ]
        self._blocks = [_blocks(view.color_u8) for view in capture.views]

    def look(self, localizer: Localizer, which: Sequence[int]) -> list[int]:
        """Tries to find photos; returns those that may be added."""
        known = [
            (view.name or f"view {i + 1}", _blocks(view.color_u8))
            for i, view in enumerate(self.world.scene.views)
            if view.step == 0
        ]
        found = []
        for k, i in enumerate(which):
            self.on_step(k, len(which), f"Finding photo {k + 1} of {len(which)}")
            copy = self._copy_of(i, known)
            if copy:
                self._set(i, status="copy", reason=f"shows the same picture as {copy}")
                continue
            place = localizer.find(self.views[i].color_u8, _intrinsics(self.views[i]))
            status = "not found" if not place.found else "doubtful" if place.doubtful else "added"
            self._set(i, status=status, reason=place.reason, place=place)
            if status == "added" or (status == "doubtful" and self.doubtful):
                found.append(i)
        return found

    def remember(self, draft: Draft, found: Sequence[int]) -> None:
        """Gives found photos depth and remembers them as given views."""
        given = [view for view in draft.views if view.step == 0]
        unit = draft.changes.get("unit", draft.scene.unit)
        new = []
        for i in found:
            place = self.photos[i].place
            assert place is not None and place.camera is not None
            camera = place.camera
            before = camera if draft.registration is None else draft.registration.as_given(camera)
            view = replace(as_measured(self.views[i]), cameras=camera, given=before)
            new.append(replace(view, step=0, frame=len(given) + len(new)))
        table = draft.keypoints.table(draft.views, unit)
        points = torch.from_numpy(table.points[table.confidence >= 0.25]).float()
        entered = preprocess_new_views(new, given, unit, points=points, on_step=self.on_step)
        if draft.registration is not None:
            draft.registration = _extended(draft.registration, entered)
        if draft.original is not None:
            depth = tuple(PackedDepth.of(as_measured(view).depth).spilled() for view in entered)
            draft.original = replace(draft.original, depth=(*draft.original.depth, *depth))
        for k, (i, view) in enumerate(zip(found, entered, strict=True)):
            self.on_step(k, len(entered), f"Remembering photo {k + 1} of {len(entered)}")
            self._set(i, view=len(draft.views))
            remember_view(draft, view, self.world.generator)

    def report(self, notices: tuple[str, ...]) -> AddReport:
        return AddReport(tuple(self.photos), notices)

    def _set(self, i: int, **changes: object) -> None:
        self.photos[i] = replace(self.photos[i], **changes)  # pyright: ignore[reportArgumentType]

    def _copy_of(self, i: int, known: list[tuple[str, Tensor]]) -> str:
        """The name of a picture that is the same as photo `i`; "" where there is none."""
        earlier = [(p.name, b) for p, b in zip(self.photos[:i], self._blocks[:i], strict=True)]
        for name, blocks in (*known, *earlier):
            if float((blocks - self._blocks[i]).abs().mean()) < SAME:
                return name
        return ""


def _extended(registration: Registration, views: Sequence[View]) -> Registration:
    """The registration with the rows of views that were placed in its world."""

    def joined(cameras: Cameras, more: Sequence[Cameras]) -> Cameras:
        K = torch.cat([cameras.K, torch.stack([c.K for c in more]).to(cameras.K)])
        c2w = torch.cat([cameras.c2w, torch.stack([c.c2w for c in more]).to(cameras.c2w)])
        return Cameras(K, c2w, cameras.width, cameras.height)

    return replace(
        registration,
        given=joined(registration.given, [view.given for view in views]),
        corrected=joined(registration.corrected, [view.cameras for view in views]),
        moved_px=torch.cat([registration.moved_px, torch.zeros(len(views))]),
        agrees=(*registration.agrees, *(True for _ in views)),
    )


def _blocks(color: UInt8[Tensor, "3 H W"]) -> Tensor:
    """Mean grey of 16x16 cells: copies of one picture agree in it whatever their compression."""
    grey = color.float().mean(dim=0)[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(grey, (16, 16))[0, 0]


def _small(color: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "3 h w"]:
    h, w = color.shape[-2:]
    factor = max(1, round(max(h, w) / THUMBNAIL))
    small = torch.nn.functional.avg_pool2d(color.float()[None], factor)[0]
    return small.round().to(torch.uint8)
