"""Pictures without poses, and videos: placed by structure from motion, then read like any capture.

Each failure is told apart in one sentence; a pose that cannot be believed is never returned.
"""

import contextlib
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image

from worldstereo.errors import InputRefused
from worldstereo.inputs import images, panorama, sfm, upright, video
from worldstereo.inputs.archive import Bundle, Folder
from worldstereo.inputs.assemble import Shot, assemble, cloud_of, evenly, fitted, shrunk
from worldstereo.inputs.capture import captured, title
from worldstereo.inputs.limits import LOCAL, Limits, refusal, shown
from worldstereo.inputs.task import Task, current
from worldstereo.scene import Capture, LeftOut

SIDE = 1280
"""Long side of what is solved, pixels."""
FEW_SIDE = 1600
"""The same for `sfm.VERY_FEW` photos."""
SPHERE_SIDE = 2048
"""Columns of a panorama that is solved: a view of 90 degrees then has 650."""
USUAL_DISTANCE = 3.0
"""Units from a camera to what it sees: photos alone do not say how large things are."""
MAX_SHOWN = 60
"""Pictures that are shown because they could not be placed."""
_DIAGONAL_35MM = 43.27
_MISSING = (
    "placing photos needs pycolmap, which is not installed",
    'Run pip install "worldstereo[photos]", or give poses',
)


@dataclass(frozen=True, eq=False)
class _Source:
    """One picture as given: upright pixels not larger than is solved."""

    name: str
    pixels: np.ndarray
    diagonals: float | None
    """Focal length over the diagonal, from the tags."""
    model: str
    """What the camera calls itself."""
    digest: bytes
    sphere: panorama.Sphere | None = None
    """Set for a panorama: `pixels` then are as large as its views need."""


def find_photos(bundle: Bundle) -> list[str]:
    """The first of two or more pictures."""
    pictures = bundle.child(*images.SUFFIXES)
    return pictures[:1] if len(pictures) > 1 else []


def read_bundle(bundle: Bundle, member: str) -> Capture:
    """All pictures of a folder or archive; `member` is one of them."""
    return read_photos(bundle, bundle.child(*images.SUFFIXES))


def find_video(bundle: Bundle) -> list[str]:
    """The only video of a bundle without pictures: beside them, clips belong to Live Photos.

    Raises:
        InputRefused: several videos.
    """
    videos = bundle.child(*video.SUFFIXES)
    if bundle.child(*images.SUFFIXES):
        return []
    if len(videos) > 1:
        raise refusal(bundle.name, f"holds {len(videos)} videos", "One video at a time is accepted")
    return videos


def read_film(bundle: Bundle, member: str) -> Capture:
    """A video in a folder or archive."""
    return read_video(member.rsplit("/", 1)[-1], bundle.read(member), bundle.limits)


def is_film(head: bytes) -> bool:
    return video.container(head[:64]) is not None


def read_photos(bundle: Bundle, pictures: Sequence[str], task: Task | None = None) -> Capture:
    """Two or more photos without poses.

    Raises:
        InputRefused: no model that can be believed; the line says why.
        Apart: this is not the import process.
    """
    _need_pycolmap(bundle.name)
    task = task or current()
    task.solve_here()
    limits, notices = bundle.limits, []
    names = list(pictures)
    if len(names) > limits.solve_images:
        kept = evenly(len(names), limits.solve_images)
        notices.append(
            f"{len(names)} photos are more than {limits.solve_images}; thinned evenly to these."
        )
        names = [names[i] for i in kept]
    sources, said = _photos(bundle, names, task)
    notices += said
    if len(sources) > 1 and all(source.sphere is not None for source in sources):
        return _placed(bundle.name, sources, limits, task, "panoramas", tuple(notices))
    round_ = sum(source.sphere is not None for source in sources)
    if round_ and len(sources) > round_:
        notices.append(f"{round_} panoramas among photos were left out.")
        sources = [source for source in sources if source.sphere is None]
    if len(sources) < 2:
        capture = _alone(bundle, names, limits, sources)
        return replace(capture, notices=(*notices, *capture.notices))
    return _placed(bundle.name, sources, limits, task, "photos", tuple(notices))


def read_video(
    name: str, source: Path | bytes, limits: Limits, task: Task | None = None
) -> Capture:
    """A video: its keyframes, placed.

    Raises:
        InputRefused: it cannot be decoded within the limits, or its frames cannot be placed.
        Apart: this is not the import process.
    """
    _need_pycolmap(name)
    task = task or current()
    task.solve_here()
    found = video.keyframes(name, source, limits, side=SIDE, on_step=task.on_step)
    frames = found.frames
    for frame in frames:
        task.on_picture(frame.pixels)
    notices = []
    if found.hdr:
        notices.append("High dynamic range was mapped to standard range.")
    if len(frames) < 2:
        what = "1 frame" if found.looked_at < 2 else "a picture that does not move"
        capture = _one(next(iter(frames)).pixels, name, limits)
        notices.append(f"The video holds {what}: it was opened as one photo.")
        return replace(capture, notices=(*notices, *capture.notices))
    sources = [
        _Source(f"{frame.seconds:.1f} s", frame.pixels, None, "video", bytes([i % 256, i // 256]))
        for i, frame in enumerate(frames)
    ]
    notices.append(f"{len(sources)} keyframes were taken from {found.seconds:.0f} s of video.")
    return _placed(name, sources, limits, task, "video", tuple(notices))


def _need_pycolmap(name: str) -> None:
    if not sfm.available():
        raise refusal(name, *_MISSING)


# ---- reading -----------------------------------------------------------------------------------


def _photos(bundle: Bundle, names: Sequence[str], task: Task) -> tuple[list[_Source], list[str]]:
    """Photos that can be read, copies dropped; and what was left out."""
    side = FEW_SIDE if len(names) <= sfm.VERY_FEW else SIDE
    found: list[_Source] = []
    damaged: list[str] = []
    why: InputRefused | None = None
    for i, name in enumerate(names):
        try:
            data = bundle.read(name)
            photo = images.photo(name, data, bundle.limits)
        except InputRefused as error:
            damaged.append(name)
            why = why or error
            continue
        model, focal = _lens_tags(data, photo.focal_35mm)
        pixels = photo.color
        try:
            sphere = panorama.sphere_of(data, pixels)
        except ValueError:  # of another kind: it cannot be placed, and is no photo
            damaged.append(name)
            continue
        if sphere is not None and pixels.shape[1] != sphere.width:
            damaged.append(name)  # a partial panorama is no pinhole and no whole sphere
            continue
        if sphere is not None:
            pixels, sphere, _ = panorama.fitted_sphere(pixels, sphere)
        elif max(pixels.shape) > side:
            pixels = shrunk(pixels, *fitted(pixels.shape[1], pixels.shape[0], side))
        diagonals = focal / _DIAGONAL_35MM if focal else None
        digest = hashlib.sha256(data).digest()
        found.append(_Source(name, pixels, diagonals, model, digest, sphere))
        task.on_picture(pixels)
        task.on_step(i + 1, len(names), f"Reading photos: {i + 1} of {len(names)}")
    if why is not None and len(found) < 2:
        raise why
    notices = []
    if damaged:
        notices.append(f"{_counted(len(damaged))} could not be read: {_named(damaged)}.")
    copies = _copies(found)
    if copies:
        notices.append(f"{_counted(len(copies))} are copies of others and were left out.")
    return [s for i, s in enumerate(found) if i not in copies], notices


def _copies(sources: Sequence[_Source]) -> set[int]:
    """Pictures that show pixel for pixel what an earlier one shows, up to their compression."""
    import cv2

    small = np.array(
        [cv2.resize(s.pixels, (64, 64), interpolation=cv2.INTER_AREA) for s in sources], np.float32
    ).reshape(len(sources), -1)
    sizes = [s.pixels.shape[1] / s.pixels.shape[0] for s in sources]
    found: set[int] = set()
    for i in range(len(sources)):
        for j in range(i):
            if j in found or abs(sizes[i] / sizes[j] - 1) > 0.01:
                continue
            same = sources[i].digest == sources[j].digest
            if same or float(np.abs(small[i] - small[j]).mean()) < 1.0:
                found.add(i)
                break
    return found


def _lens_tags(data: bytes, focal: float | None) -> tuple[str, float | None]:
    """The camera's name and 35 mm focal length over the diagonal of 36 x 24 mm."""
    with contextlib.suppress(Exception):  # tags are hints
        with Image.open(io.BytesIO(data)) as picture:
            tags = picture.getexif()
            exif = tags.get_ifd(ExifTags.IFD.Exif)
        model = f"{tags.get(ExifTags.Base.Make, '')} {tags.get(ExifTags.Base.Model, '')}"
        lens = str(exif.get(ExifTags.Base.LensModel, ""))
        return f"{model} {lens}"[:200], focal
    return "", focal


def _alone(
    bundle: Bundle, names: Sequence[str], limits: Limits, sources: Sequence[_Source]
) -> Capture:
    """What is left when all are copies of one."""
    from worldstereo.inputs import photo

    if not sources:
        raise refusal(bundle.name, "0 pictures that can be read", images.ACCEPTED)
    return photo.read_photo(sources[0].name, bundle.read(sources[0].name), limits)


def _one(pixels: np.ndarray, name: str, limits: Limits) -> Capture:
    """One picture from memory as a photo."""
    from worldstereo.inputs import photo

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return replace(photo.read_photo("frame.png", data.getvalue(), limits), name=title(name))


# ---- placing -----------------------------------------------------------------------------------


def _placed(
    name: str,
    sources: Sequence[_Source],
    limits: Limits,
    task: Task,
    kind: Literal["photos", "video", "panoramas"],
    notices: tuple[str, ...],
) -> Capture:
    room = task.solve_here()
    folder, work = room / "photos", room / "work"
    for path in (folder, work):
        if not path.is_dir():
            path.mkdir()
    pictures = _written(sources, folder)
    try:
        structure = sfm.solve(
            pictures,
            folder,
            work,
            kind=kind,
            seconds=0.8 * limits.solve_seconds,
            on_step=task.on_step,
        )
    except sfm.NotPlaced as error:
        raise refusal(name, error.wrong, error.way_out) from None
    if kind == "panoramas":
        return _around(name, structure, sources, limits, notices)
    return _capture(name, structure, sources, pictures, folder, limits, notices)


def _written(sources: Sequence[_Source], folder: Path) -> list[sfm.Picture]:
    out = []
    for i, source in enumerate(sources):
        pixels = source.pixels
        if source.sphere is not None and pixels.shape[1] > SPHERE_SIDE:
            pixels = shrunk(pixels, *fitted(pixels.shape[1], pixels.shape[0], SPHERE_SIDE))
        file = folder / f"{i:05d}.jpg"
        height, width = pixels.shape[:2]
        if not file.exists():
            part = folder / "part.jpg"
            Image.fromarray(pixels).save(part, "JPEG", quality=95, subsampling=0)
            part.rename(file)
        focal = source.diagonals and source.diagonals * math.hypot(width, height)
        lens = (source.model, source.diagonals, *sorted((width, height)), width < height)
        out.append(sfm.Picture(file.name, width, height, focal, lens))
    return out


def _capture(
    name: str,
    structure: sfm.Structure,
    sources: Sequence[_Source],
    pictures: Sequence[sfm.Picture],
    folder: Path,
    limits: Limits,
    notices: tuple[str, ...],
) -> Capture:
    order = sorted(structure.c2w)
    vector = upright.from_looks(
        [structure.c2w[i] for i in order],
        lambda k: _look(structure, pictures[order[k]], order[k], folder),
    )
    turn = turned_upright(vector.up)
    scale = USUAL_DISTANCE / float(np.median(structure.distances))
    middle = np.mean([structure.c2w[i][:3, 3] for i in order], axis=0)
    shots = []
    for i in order:
        c2w = np.eye(4)
        c2w[:3, :3] = turn @ structure.c2w[i][:3, :3]
        c2w[:3, 3] = scale * turn @ (structure.c2w[i][:3, 3] - middle)
        lens = structure.lenses[i]
        assert lens is not None
        shots.append(Shot(shown(sources[i].name, 40), pictures[i].name, c2w, lens))
    points = scale * (structure.points - middle) @ turn.T
    # Ours, and written at the size that was solved: the limits of foreign files do not matter.
    bundle = Folder(folder, LOCAL, name)
    bundle.limits = replace(LOCAL, view_side=limits.view_side, views=limits.views)
    assembled = assemble(name, bundle, shots)
    names = {f"{i:05d}.jpg": (sources[i].name, i) for i in order}
    views = tuple(
        replace(view, name=shown(names[view.name][0], 80), frame=names[view.name][1])
        for view in assembled.views
    )
    scaled = [n for n in assembled.notices if not n.startswith("Pictures above")]
    capture = captured(
        bundle,
        "photos",
        replace(assembled, views=views, notices=tuple(scaled)),
        cloud=cloud_of(points, structure.colors, assembled.origin),
        notices=(*notices, *_said(structure, sources, pictures, vector)),
    )
    sky = None if vector.up is None else torch.tensor([0.0, -1.0, 0.0])
    return replace(capture, name=title(name), up=sky, left_out=_shown_left_out(structure, sources))


def _around(
    name: str,
    structure: sfm.Structure,
    sources: Sequence[_Source],
    limits: Limits,
    notices: tuple[str, ...],
) -> Capture:
    """Panoramas that were placed, each as views from its spot. They stand upright as stitched."""
    order = sorted(structure.c2w)
    up = -np.mean([structure.c2w[i][:3, 1] for i in order], axis=0)
    turn = turned_upright(up / np.linalg.norm(up))
    scale = USUAL_DISTANCE / float(np.median(structure.distances))
    middle = np.mean([structure.c2w[i][:3, 3] for i in order], axis=0)
    views = []
    for i in order:
        c2w, sphere = np.eye(4), sources[i].sphere
        assert sphere is not None
        c2w[:3, :3] = turn @ structure.c2w[i][:3, :3]
        c2w[:3, 3] = scale * turn @ (structure.c2w[i][:3, 3] - middle)
        views += panorama.views_of(
            sources[i].pixels, sphere, c2w, limits, sources[i].name, len(views)
        )
    points = scale * (structure.points - middle) @ turn.T
    said = [f"{len(order)} of {len(sources)} panoramas were placed and cut into views."]
    said += _left_out(structure, sources)
    said.append("The photos do not say how large things are: 3 units is the usual distance here.")
    return Capture(
        name=title(name),
        kind="photos",
        views=tuple(views),
        cloud=cloud_of(points, structure.colors, np.zeros(3)),
        up=torch.tensor([0.0, -1.0, 0.0]),
        notices=(*notices, *said),
        left_out=_shown_left_out(structure, sources),
    )


def turned_upright(up: np.ndarray | None) -> np.ndarray:
    """The rotation that takes `up` to -y, and leaves headings alone as far as it can."""
    if up is None:
        return np.eye(3)
    y = -np.asarray(up, np.float64)
    z = np.array([0.0, 0.0, 1.0]) if abs(y[2]) < 0.9 else np.array([1.0, 0.0, 0.0])
    x = np.cross(y, z)
    x /= np.linalg.norm(x)
    return np.stack([x, y, np.cross(x, y)])


def _look(structure: sfm.Structure, picture: sfm.Picture, i: int, folder: Path) -> upright.Look:
    with Image.open(folder / picture.name, formats=("JPEG",)) as image:
        grey = np.asarray(image.convert("L"))
    lens = structure.lenses[i]
    assert lens is not None
    return upright.Look(grey, lens.K, structure.c2w[i])


# ---- what is said ------------------------------------------------------------------------------


def _said(
    structure: sfm.Structure,
    sources: Sequence[_Source],
    pictures: Sequence[sfm.Picture],
    vector: upright.Upright,
) -> list[str]:
    """What was found, what was left out and why, and every reason to doubt it."""
    n, placed = len(sources), len(structure.c2w)
    out = []
    if placed < n:
        out.append(f"{placed} of {n} photos were placed.")
    out += _left_out(structure, sources)
    out += _soft(structure, sources)
    if structure.cut:
        out.append("The time for placing photos was over before every photo was tried.")
    out += _doubts(structure, pictures)
    out += _lens_said(structure, pictures)
    out.append("The photos do not say how large things are: 3 units is the usual distance here.")
    return out


_WHY = {  # sort of failure: label of a photo, sentence about one, about several
    "elsewhere": ("another place", "shows another place and was left out",
                  "show another place and were left out"),
    "blurred": ("too blurred or plain", "is too blurred or plain to place",
                "are too blurred or plain to place"),
    "apart": ("shows nothing that others show", "shows nothing that others show",
              "show nothing that others show"),
    "unfit": ("does not fit the others", "could not be fitted to the others",
              "could not be fitted to the others"),
}  # fmt: skip


def _missing(structure: sfm.Structure, sources: Sequence[_Source]) -> dict[int, str]:
    """Why each picture that was not placed was not: a key of `_WHY`."""
    counts = structure.counts
    usual = float(np.median(counts.features))
    elsewhere = {i for part in structure.parts for i in part if len(part) > 1}
    held = {i for pair in counts.held for i in pair}
    out = {}
    for i in range(len(sources)):
        if i in structure.c2w:
            continue
        if i in elsewhere:
            out[i] = "elsewhere"
        elif counts.features[i] < min(300.0, usual / 3):
            out[i] = "blurred"
        else:
            out[i] = "unfit" if i in held else "apart"
    return out


def _left_out(structure: sfm.Structure, sources: Sequence[_Source]) -> list[str]:
    missing, out = _missing(structure, sources), []
    for why in dict.fromkeys(missing.values()):
        which = [i for i, w in missing.items() if w == why]
        said = _WHY[why][1 if len(which) == 1 else 2]
        out.append(f"{_counted(len(which))} {said}: {_named([sources[i].name for i in which])}.")
    return out


def _soft(structure: sfm.Structure, sources: Sequence[_Source]) -> list[str]:
    """Placed, but so few features that they are blurred beside the others."""
    features = structure.counts.features
    usual = float(np.median(features))
    which = [i for i in sorted(structure.c2w) if features[i] < usual / 3]
    if not which:
        return []
    verb = "looks" if len(which) == 1 else "look"
    named = _named([sources[i].name for i in which])
    return [f"{_counted(len(which))} {verb} blurred beside the others: {named}."]


def _shown_left_out(structure: sfm.Structure, sources: Sequence[_Source]) -> tuple[LeftOut, ...]:
    """The pictures that were not placed, small, each with its reason."""
    out = []
    for i, why in list(_missing(structure, sources).items())[:MAX_SHOWN]:
        pixels = sources[i].pixels
        small = shrunk(pixels, *fitted(pixels.shape[1], pixels.shape[0], 160))
        thumbnail = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))
        out.append(LeftOut(shown(sources[i].name.rsplit("/", 1)[-1], 40), _WHY[why][0], thumbnail))
    return tuple(out)


def _doubts(structure: sfm.Structure, pictures: Sequence[sfm.Picture]) -> list[str]:
    out = []
    if len(structure.c2w) < 0.8 * len(pictures):
        share = 100 * len(structure.c2w) / len(pictures)
        out.append(f"Doubtful: only {share:.0f} % of the photos could be placed.")
    if structure.angle < 3.0:
        out.append(
            f"Doubtful depth: the camera moved little ({structure.angle:.1f} degrees between the "
            f"usual two rays)."
        )
    if len(pictures) == 2 and (0, 1) in structure.counts.flat:
        out.append("Doubtful poses: both photos share one flat surface, which two motions explain.")
    if structure.contradicted > sfm.CONTRADICTED:
        way = "contradict the poses"
        if structure.sure:
            way = f"fit no poses; the {structure.sure} pairs with the most placed the photos"
        out.append(
            f"Doubtful poses: things seem to repeat, as equal tiles or windows do; "
            f"{100 * structure.contradicted:.0f} % of the matches between photos {way}."
        )
    if structure.error > 1.5:
        out.append(f"Doubtful poses: points miss their pixels by {structure.error:.1f} px.")
    if structure.rough:
        out.append("Rough: so few photos do not show the focal length; a usual one was taken.")
    return out


def _lens_said(structure: sfm.Structure, pictures: Sequence[sfm.Picture]) -> list[str]:
    out, first = [], min(structure.c2w)
    lens, picture = structure.lenses[first], pictures[first]
    if lens is None:
        return out
    focal, side = float(lens.K[0, 0]), max(lens.width, lens.height)
    lied = [
        i
        for i in structure.c2w
        if (given := pictures[i].focal) and (solved := structure.lenses[i]) is not None
        and not 1 / 1.2 < solved.K[0, 0] / given < 1.2
    ]  # fmt: skip
    if lied:
        i = lied[0]
        given, solved = pictures[i].focal, structure.lenses[i]
        assert given and solved
        out.append(
            f"{_counted(len(lied))} name a focal length of {given:.0f} px in their tags; measured "
            f"from the photos it is {solved.K[0, 0]:.0f} px, which was taken."
        )
    elif picture.focal is None and not structure.rough:
        degrees = 2 * math.degrees(math.atan(side / 2 / focal))
        out.append(f"The lens was measured: {degrees:.0f} degrees across the long side.")
        if not 0.5 * side <= focal <= 2.5 * side:
            out.append("Doubtful lens: few cameras see so much or so little.")
    return out


def _counted(n: int) -> str:
    return "1 photo" if n == 1 else f"{n} photos"


def _named(names: Sequence[str]) -> str:
    some = [shown(name.rsplit("/", 1)[-1], 24) for name in names[:5]]
    return ", ".join(some) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
