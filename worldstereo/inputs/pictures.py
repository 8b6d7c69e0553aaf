"""Pictures alone, to be placed in an open world: photos of a file, a folder or a zip, keyframes
of a video.

Nothing is placed here and no depth is guessed: each view has its picture and the focal length that
its tags name. Where they name none the focal length is a guess and `View.frame` is `GUESSED`.
"""

import math
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from worldstereo.depth import DEFAULT_FOV, default_camera
from worldstereo.errors import InputRefused
from worldstereo.inputs import archive, images, video
from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.assemble import fitted, shrunk
from worldstereo.inputs.capture import title
from worldstereo.inputs.limits import LOCAL, Limits, refusal, shown
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Capture, View

ACCEPTED = "Photos (JPEG, PNG, WebP), a folder or zip of them, or a video are accepted"
MAX_PHOTOS = 200
GUESSED = -1
"""`View.frame` of a picture whose focal length is a guess."""


def read_pictures(
    source: Path | str | bytes | Sequence[Path | str],
    name: str | None = None,
    limits: Limits = LOCAL,
    *,
    on_step: OnStep = ignore,
) -> Capture:
    """Every picture of one or several files, folders or zips, and the keyframes of videos; damaged
    ones become notices.

    Raises:
        InputRefused: no picture among them can be read, or more than 200.
    """
    given = [source] if isinstance(source, (str, Path, bytes)) else list(source)
    first = given[0] if given else b""
    label = name or ("upload" if isinstance(first, bytes) else Path(first).name)
    views: list[View] = []
    notices: list[str] = []
    why: InputRefused | None = None
    for item in given:
        film = _film(item, label)
        if film is not None:
            try:
                taken = video.keyframes(film, _source(item), limits, on_step=on_step)
            except InputRefused as error:
                why = why or error
                notices.append(str(error))
                continue
            views += [_frame(film, frame, limits) for frame in taken.frames]
            if len(views) > MAX_PHOTOS:
                raise refusal(label, f"more than {MAX_PHOTOS} photos", "Add them in parts")
            notices.append(
                f"{shown(film, 80)}: keyframes are {len(taken.frames)} of {taken.looked_at} frames."
            )
            continue
        for member, read in _members(item, label, limits):
            if len(views) >= MAX_PHOTOS:
                raise refusal(label, f"more than {MAX_PHOTOS} photos", "Add them in parts")
            try:
                views.append(_view(member, read(), limits))
            except InputRefused as error:
                why = why or error
                notices.append(str(error))
    if not views:
        raise why or refusal(label, "holds no picture", ACCEPTED)
    return Capture(title(label), "pictures", tuple(views), notices=tuple(notices))


def _members(
    item: Path | str | bytes, label: str, limits: Limits
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, function that gives the bytes) of each picture in a file, folder or zip."""
    if isinstance(item, bytes):
        name, data = label, item
    else:
        path = Path(item)
        name = path.name
        if path.is_dir():
            yield from _bundled(archive.Folder(path, limits, name))
            return
        try:
            data = archive.read_regular(path, name, limits)
        except FileNotFoundError:
            raise refusal(name, "there is no such file", "Check the name") from None
        except OSError:
            raise refusal(name, "the file cannot be opened", "Check that you may read it") from None
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        bundle = archive.Zip(name, data, limits)
        try:
            yield from _bundled(bundle)
        finally:
            bundle.close()
        return
    yield name, lambda: data


def _bundled(bundle: Bundle) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for member in bundle.child(*images.SUFFIXES):
        yield posixpath.basename(member), lambda member=member: bundle.read(member)


def _film(item: Path | str | bytes, label: str) -> str | None:
    """The name of a video; None where it is something else."""
    if isinstance(item, bytes):
        return label if video.is_video(label, item[:64]) else None
    path = Path(item)
    if not path.is_file():
        return None
    try:
        return path.name if video.is_video(path.name, archive.head(path, path.name)) else None
    except OSError:  # said where it is read
        return None


def _source(item: Path | str | bytes) -> Path | bytes:
    return item if isinstance(item, bytes) else Path(item)


def _frame(name: str, frame: video.Keyframe, limits: Limits) -> View:
    return _picture(f"{name} at {frame.seconds:.1f} s", frame.pixels, None, limits)


def _view(name: str, data: bytes, limits: Limits) -> View:
    photo = images.photo(name, data, limits)
    return _picture(name, photo.color, photo.focal_35mm, limits)


def _picture(name: str, pixels: np.ndarray, focal_35mm: float | None, limits: Limits) -> View:
    height, width = pixels.shape[:2]
    if max(height, width) > limits.view_side:
        width, height = fitted(width, height, limits.view_side)
        pixels = shrunk(pixels, width, height)
    fov = DEFAULT_FOV if focal_35mm is None else 2 * math.atan(18.0 / focal_35mm)
    camera = default_camera(width, height, fov)
    color_u8 = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    nothing = torch.zeros(1, height, width)
    return View(
        color_u8=color_u8,
        depth=nothing,
        confidence_u8=nothing.to(torch.uint8),
        kind=nothing.to(torch.uint8),
        log_gain=torch.zeros(3),
        cameras=camera,
        given=camera,
        step=0,
        frame=GUESSED if focal_35mm is None else 0,
        name=shown(name, 80),
    )
