"""Panoramas: equirectangular pictures, whole or partial, cut into views from one spot.

One panorama measures no depth: its layout is made on the sphere, once, so that views agree where
they meet, and is labelled rough. Two or more are placed by structure from motion and measured.
Column 0 looks backwards, the middle column along +z; rows run from straight up to straight down.
"""

import math
import re
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from worldstereo.depth import DepthEstimator, LayoutDepth, SphereLayout, align, best_estimator
from worldstereo.inputs import images
from worldstereo.inputs.assemble import fitted, shrunk, view_of, with_depth
from worldstereo.inputs.capture import title
from worldstereo.inputs.limits import Limits, refusal
from worldstereo.scene import Capture, DepthKind, View

ROUGH = "Depth was guessed from one panorama: a rough layout, good for small camera moves."
HEAD = 1 << 16  # bytes searched for the mark of a panorama
_WIDE = 90.0  # degrees a view sees
_MAX_WIDTH = 4096  # columns kept: views have at most this over pi
_STEEP = 50.0  # degrees from the horizon that views of a partial panorama reach


class Sphere(NamedTuple):
    """Which part of the whole sphere a picture shows, in its own pixels."""

    width: int
    height: int
    """Of the whole sphere."""
    left: int
    top: int
    """Where the picture begins on it."""


class Cut(NamedTuple):
    """One view of a panorama."""

    R: np.ndarray
    """Camera to panorama."""
    K: np.ndarray
    width: int
    height: int
    label: str


def marked(data: bytes) -> Sphere | str | None:
    """What GPano tags say: the sphere, "" where they do not say how large, None without tags.

    A projection that is not equirectangular is returned by its name.
    """
    head = data[:HEAD]
    if b"GPano" not in head:
        return None
    kind = _tag(head, b"ProjectionType")
    if kind is not None and kind.strip().lower() != b"equirectangular":
        return kind.decode("ascii", "replace")[:24]
    numbers = []
    for key in (b"FullPanoWidthPixels", b"FullPanoHeightPixels",
                b"CroppedAreaLeftPixels", b"CroppedAreaTopPixels"):  # fmt: skip
        value = _tag(head, key)
        if value is None or not value.strip().isdigit():
            return "" if kind is not None else None
        numbers.append(int(value))
    return Sphere(*numbers)


def _tag(head: bytes, key: bytes) -> bytes | None:
    found = re.search(rb"GPano:" + key + rb"\s*(?:=\s*[\"']|>)\s*([^\"'<]{1,40})", head)
    return found.group(1) if found else None


def sphere_of(data: bytes, pixels: np.ndarray) -> Sphere | None:
    """The sphere of a picture that is a panorama; None for an ordinary picture.

    Without tags a picture is one if it is 2:1, its left edge goes on at its right one, and its
    first and last rows show one point each.

    Raises:
        ValueError: it says that it is a panorama of a kind that is not read; the text is the kind.
    """
    height, width = pixels.shape[:2]
    said = marked(data)
    if isinstance(said, str) and said:
        raise ValueError(said)
    if isinstance(said, Sphere):
        fits = said.width >= width and said.height >= height
        fits = fits and said.left + width <= said.width and said.top + height <= said.height
        if fits and abs(said.width / max(said.height, 1) / 2 - 1) < 0.02:
            return said
        scale = said.width / width  # exported smaller than it was taken, tags left as they were
        whole = said.left == said.top == 0 and scale >= 1
        if not whole or abs(width / height / 2 - 1) > 0.01:
            return None
        return Sphere(width, height, 0, 0)
    shape = abs(width / height / 2 - 1) <= 0.01
    if shape and (said == "" or (width >= 512 and _closes(pixels))):
        return Sphere(width, height, 0, 0)
    return None


def _closes(pixels: np.ndarray) -> bool:
    """Whether the columns go round and the rows end in points."""
    small = shrunk(pixels, 512, 256).astype(np.float32)
    steps = np.abs(np.diff(small, axis=1)).mean(axis=(0, 2))  # between neighbouring columns
    seam = float(np.abs(small[:, 0] - small[:, -1]).mean())
    # 3 px of 512 in from the border: photo editors leave a line there.
    poles = max(float(small[0].std(axis=0).mean()), float(small[-1].std(axis=0).mean()))
    middle = float(small[96:160].std(axis=1).mean())
    return seam < 2.0 * float(np.quantile(steps, 0.9)) and poles < 0.5 * middle


def read_panorama(
    name: str,
    pixels: np.ndarray,
    sphere: Sphere,
    limits: Limits,
    estimator: DepthEstimator | None = None,
) -> Capture:
    """One panorama: views from one spot, with a layout made on the sphere, or a model's depth."""
    pixels, sphere, notices = fitted_sphere(pixels, sphere)
    cuts = cuts_of(pixels, sphere, limits)
    if not cuts:
        raise refusal(
            name,
            f"this panorama shows {360 * pixels.shape[1] / sphere.width:.0f} x "
            f"{180 * pixels.shape[0] / sphere.height:.0f} degrees",
            "At least 40 x 20 degrees is accepted",
        )
    estimator = estimator or best_estimator()
    layout = SphereLayout(_whole(pixels, sphere))
    views = []
    learned = not isinstance(estimator, LayoutDepth)
    rough = True
    for i, cut in enumerate(cuts):
        view = _view(pixels, sphere, cut, np.eye(4), i)
        depth = layout.depth(cut.R, cut.K, cut.width, cut.height)
        kind, sure = DepthKind.INPAINTED, 0.2
        if learned:
            estimate = estimator(view.color, view.cameras)
            # Where views overlap they must agree: each is fitted to what the sphere knows so far.
            depth = align(estimate.depth, depth)
            layout.replace(depth[0], cut.R, cut.K)
            rough = rough and estimate.rough
            kind = DepthKind.LEARNED
        views.append(with_depth(view, depth, kind, sure))
    if learned:
        notices.append("Depth of the panorama comes from the depth model, fitted to a layout.")
    partial = sphere.width > pixels.shape[1] or sphere.height > pixels.shape[0]
    if partial:
        notices.append(
            f"The panorama shows {360 * pixels.shape[1] / sphere.width:.0f} x "
            f"{180 * pixels.shape[0] / sphere.height:.0f} degrees of the sphere."
        )
    return Capture(
        name=title(name),
        kind="panorama",
        views=tuple(views),
        up=torch.tensor([0.0, -1.0, 0.0]),
        rough_depth=rough,
        notices=(*notices, *((ROUGH,) if rough else ())),
    )


def views_of(
    pixels: np.ndarray, sphere: Sphere, c2w: np.ndarray, limits: Limits, name: str, first: int
) -> list[View]:
    """Views of a panorama that was placed: `c2w` of the panorama; no depth."""
    pixels, sphere, _ = fitted_sphere(pixels, sphere)
    cuts = cuts_of(pixels, sphere, limits)
    views = [_view(pixels, sphere, cut, c2w, first + i) for i, cut in enumerate(cuts)]
    return [
        replace(view, name=f"{name[:60]}, {cut.label}")
        for view, cut in zip(views, cuts, strict=True)
    ]


def cuts_of(pixels: np.ndarray, sphere: Sphere, limits: Limits) -> list[Cut]:
    """14 views of 90 degrees: 4 around, thrice, and both poles; of a partial one, a row.

    The rows overlap by 55 degrees, so that no direction lies at the edge of all its views.
    """
    height, width = pixels.shape[:2]
    side = min(round(sphere.width / math.pi), limits.view_side)
    if width == sphere.width and height == sphere.height:
        K = np.array([[side / 2, 0, side / 2], [0, side / 2, side / 2], [0, 0, 1.0]])
        rows = [(0, 0), (45, 35), (0, -35)]
        turns = [(around + 90 * k, pitch) for around, pitch in rows for k in range(4)]
        turns += [(0, 90), (0, -90)]
        return [Cut(_turn(a, p), K, side, side, _label(a, p)) for a, p in turns]
    return _partial(width, height, sphere, side)


def _partial(width: int, height: int, sphere: Sphere, side: int) -> list[Cut]:
    """A row of level views that lie inside the picture as a whole, taller or lower as it is."""
    per = 360 / sphere.width
    first, last = sphere.left * per - 180, (sphere.left + width) * per - 180
    up = min(_STEEP, 90 - sphere.top * per)
    down = max(-_STEEP, 90 - (sphere.top + height) * per)
    if last - first < 40 or up - down < 20:
        return []
    wide = min(75.0, last - first)
    count = max(1, math.ceil((last - first - wide) / 45) + 1)
    if width == sphere.width:
        count, middles = 8, [45.0 * k for k in range(8)]
    else:
        low, high = first + wide / 2, last - wide / 2
        middles = [float(m) for m in np.linspace(low, high, count)] if count > 1 else [0.5 * low
                   + 0.5 * high]  # fmt: skip
    focal = side / 2 / math.tan(math.radians(wide / 2))
    above, below = (focal * math.tan(math.radians(v)) for v in (up, down))
    tall = round(above - below)
    if not 16 <= tall <= 20 * side:
        return []
    K = np.array([[focal, 0, side / 2], [0, focal, above], [0, 0, 1.0]])
    return [Cut(_turn(m, 0), K, side, tall, _label(m, 0)) for m in middles]


def _turn(around: float, pitch: float) -> np.ndarray:
    """Camera to panorama: turned right by `around`, then up by `pitch`, degrees."""
    a, p = math.radians(around), math.radians(pitch)
    yaw = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, math.cos(p), -math.sin(p)], [0, math.sin(p), math.cos(p)]])
    return yaw @ tilt


def _label(around: float, pitch: float) -> str:
    if abs(pitch) == 90:
        return "up" if pitch > 0 else "down"
    side = f"{around % 360:.0f} degrees right"
    return side if pitch == 0 else f"{side}, {abs(pitch):.0f} {'up' if pitch > 0 else 'down'}"


def fitted_sphere(pixels: np.ndarray, sphere: Sphere) -> tuple[np.ndarray, Sphere, list[str]]:
    """Not larger than the views need."""
    if sphere.width <= _MAX_WIDTH:
        return pixels, sphere, []
    scale = _MAX_WIDTH / sphere.width
    height, width = pixels.shape[:2]
    size = fitted(width, height, max(16, round(max(width, height) * scale)))
    whole = (width, height) == (sphere.width, sphere.height)
    small = shrunk(pixels, *size)
    if whole:
        return small, Sphere(*size, 0, 0), [f"The panorama was scaled down to {size[0]} px."]
    scaled = Sphere(*(round(v * size[0] / width) for v in sphere))
    return small, scaled, [f"The panorama was scaled down to {size[0]} px."]


def _view(pixels: np.ndarray, sphere: Sphere, cut: Cut, c2w: np.ndarray, frame: int) -> View:
    pose = np.eye(4)
    pose[:3, :3] = c2w[:3, :3] @ cut.R
    pose[:3, 3] = c2w[:3, 3]
    color = _sampled(pixels, sphere, cut)
    empty = np.zeros((cut.height, cut.width), np.float32)
    return view_of(color, empty, cut.K, pose, frame=frame, name=cut.label)


def _sampled(pixels: np.ndarray, sphere: Sphere, cut: Cut) -> np.ndarray:
    """What the view sees, 2 x 2 samples a pixel, so that fine detail does not flicker."""
    import cv2

    v, u = np.mgrid[0 : 2 * cut.height, 0 : 2 * cut.width] / 2 + 0.25
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(cut.K).T @ cut.R.T
    x, y = positions(rays, sphere.width, sphere.height)
    height, width = pixels.shape[:2]
    x = x - sphere.left
    if width == sphere.width:  # goes round: two columns more on either side
        pixels = np.concatenate([pixels[:, -2:], pixels, pixels[:, :2]], axis=1)
        x = x % width + 2
    out = cv2.remap(
        pixels,
        (x - 0.5).astype(np.float32),
        (y - sphere.top - 0.5).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cv2.resize(out, (cut.width, cut.height), interpolation=cv2.INTER_AREA)


def positions(rays: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Where rays (..., 3) meet an equirectangular picture; its first pixel's centre is 0.5, 0.5."""
    around = np.arctan2(rays[..., 0], rays[..., 2])
    down = np.arctan2(rays[..., 1], np.hypot(rays[..., 0], rays[..., 2]))
    return (around / (2 * math.pi) + 0.5) * width, (down / math.pi + 0.5) * height


def _whole(pixels: np.ndarray, sphere: Sphere) -> torch.Tensor:
    """A small picture of the whole sphere (3, h, w); what is not shown is a copy of the edge."""
    height, width = pixels.shape[:2]
    scale = 256 / sphere.width
    w, h = max(8, round(width * scale)), max(4, round(height * scale))
    small = shrunk(pixels, min(w, 256), min(h, 128))
    left, top = round(sphere.left * scale), round(sphere.top * scale)
    pad = [(min(top, 128 - small.shape[0]), 0), (min(left, 256 - small.shape[1]), 0), (0, 0)]
    pad[0] = (pad[0][0], 128 - small.shape[0] - pad[0][0])
    pad[1] = (pad[1][0], 256 - small.shape[1] - pad[1][0])
    full = np.pad(small, pad, mode="edge")
    return torch.from_numpy(np.ascontiguousarray(full.transpose(2, 0, 1))).float() / 255


def read_picture(name: str, data: bytes, limits: Limits) -> Capture:
    """One picture: a panorama, or else a photo."""
    from worldstereo.inputs import photo

    pixels = images.photo(name, data, limits).color
    try:
        sphere = sphere_of(data, pixels)
    except ValueError as kind:
        raise refusal(
            name, f"a panorama of kind {kind}", "Equirectangular panoramas are accepted"
        ) from None
    return (
        photo.read_photo(name, data, limits)
        if sphere is None
        else read_panorama(name, pixels, sphere, limits)
    )
