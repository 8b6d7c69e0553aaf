"""From checked poses and file names to views: decode, compare sizes, undistort, scale, thin.

Every posed reader ends here, so that all of them treat a missing picture, a depth map of another
size or a capture above capacity alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from worldstereo.cameras import Cameras
from worldstereo.inputs import images
from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.lens import Lens, undistorted
from worldstereo.inputs.limits import Losses, refusal, shown
from worldstereo.scene import KIND_CONFIDENCE, DepthKind, PointCloud, View

LOCAL_ORIGIN_ABOVE = 1e4  # scene units from the origin above which float32 wants a local origin
MAX_DEPTH = 1e12  # scene units of depth: its square is still a float32
SHAPE = 0.01  # two sizes have one shape when their ratios differ by less
ONE_SURFACE = 0.1  # neighbours whose inverse depth differs by less lie on one surface


@dataclass(frozen=True, eq=False)
class Shot:
    """One frame of a capture before its pixels are read."""

    where: str
    """The frame in the words of its pose file: `frame 3`."""
    image: str
    """Member of the bundle."""
    c2w: np.ndarray
    """4x4 float64, OpenCV axes, checked."""
    lens: Lens
    """Intrinsics, first pixel's centre at 0.5."""
    depth: str | None = None
    depth_unit: float = 0.001
    """Scene units of one step of the depth picture."""
    generated: bool = False
    """True: this program made the picture up, in an earlier world."""
    invented: str | None = None
    """A mask of what was made up, 0 there; without one, all of a generated picture was."""
    mask: str | None = None
    """A mask of what is hidden (people, sky): black there."""
    hides_white: bool = False
    """The mask is white where something is hidden."""
    depth_lens: Lens | None = None
    """Intrinsics of the depth picture where they differ from the picture's."""
    along_ray: bool = False
    """Depth is the distance to the camera's centre, not z."""
    float_unit: float | None = None
    """Scene units of depth that is stored as floats, where another unit than that of whole ones."""


@dataclass(frozen=True, eq=False)
class Assembled:
    views: tuple[View, ...]
    origin: np.ndarray
    """What was subtracted from all positions; zeros for most captures."""
    notices: tuple[str, ...]


def assemble(
    source: str, bundle: Bundle, shots: Sequence[Shot], losses: Losses | None = None
) -> Assembled:
    """Views of all shots, evenly thinned to capacity; `losses` are rows left out before.

    Raises:
        InputRefused: too few shots are left whose picture is there and fits its camera and depth.
    """
    limits, notices = bundle.limits, []
    if len(shots) > limits.images:
        raise refusal(source, f"{len(shots)} pictures", f"At most {limits.images} are accepted")
    losses = Losses("pictures") if losses is None else losses
    undeep = Losses("depth maps")
    shots = _present(source, bundle, shots, losses, undeep)
    origin = _origin(np.array([shot.c2w[:3, 3] for shot in shots]))
    if len(shots) > limits.views:
        kept = evenly(len(shots), limits.views)
        notices.append(f"{len(shots)} pictures are more than {limits.views}; thinned evenly.")
        shots = [shots[i] for i in kept]
    views, done, did = [], [], {"scaled": 0, "resized": 0, "turned": 0, "grown": 0, "masked": 0}
    for frame, shot in enumerate(shots):
        with losses.row():
            view, marks = _view(source, bundle, shot, origin, frame)
            views.append(view.spilled())
            done.append(shot)
            for mark in marks:
                did[mark] += 1
    losses.settle(len(views))
    notices += [*losses.notices(len(views)), *undeep.notices(len(views) - undeep.count)]
    if origin.any():
        at = ", ".join(f"{v:.0f}" for v in origin)
        notices.append(f"The capture lies far from its origin; ({at}) was subtracted.")
    if did["scaled"]:
        side = limits.view_side
        notices.append(f"Pictures above {side} px were scaled down to {side} px.")
    if did["resized"]:
        notices.append("Pictures and calibration differ in size; the calibration was scaled.")
    if did["turned"]:
        notices.append(f"{did['turned']} pictures were turned upright after their EXIF tags.")
    if did["grown"]:
        notices.append("Depth maps of another size than their pictures were brought to theirs.")
    if did["masked"]:
        notices.append(f"Masks hide parts of {did['masked']} pictures; they are left out.")
    if made_up := sum(shot.generated for shot in done):
        notices.append(f"{made_up} pictures were generated earlier; what they invented stays so.")
    empty = sum(
        shot.depth is not None and not bool((view.depth > 0).any())
        for shot, view in zip(done, views, strict=True)
    )
    if empty:
        notices.append(f"{empty} of {len(views)} depth pictures hold no measured pixel.")
    return Assembled(tuple(views), origin, tuple(notices))


def _present(
    source: str, bundle: Bundle, shots: Sequence[Shot], losses: Losses, undeep: Losses
) -> list[Shot]:
    """The shots whose pictures are there; a missing depth map leaves a picture without depth."""
    kept = []
    deep = sum(shot.depth is not None for shot in shots)
    for shot in shots:
        with losses.row():
            _check_there(source, bundle, shot.where, shot.image)
            if shot.depth is not None and shot.depth not in bundle:
                with undeep.row():
                    _check_there(source, bundle, shot.where, shot.depth)
                shot = replace(shot, depth=None)
            if shot.mask is not None and shot.mask not in bundle:
                shot = replace(shot, mask=None)
            kept.append(shot)
    losses.settle(len(kept))
    undeep.settle(deep - undeep.count)
    return kept


def _check_there(source: str, bundle: Bundle, where: str, member: str) -> None:
    if member not in bundle:
        raise refusal(
            source,
            f"{where}: {shown(member, 40)} is missing",
            "Put the file there or remove the frame",
        )


def _view(
    source: str, bundle: Bundle, shot: Shot, origin: np.ndarray, frame: int
) -> tuple[View, set[str]]:
    """The view of one shot, and what was done to it."""
    limits, lens, marks = bundle.limits, shot.lens, set()
    picture = images.posed(shot.image, bundle.read(shot.image), limits, lens.width, lens.height)
    pixels, hidden = picture.color, picture.hidden
    height, width = pixels.shape[:2]
    if picture.turned:
        marks.add("turned")
    if (lens.width, lens.height) != (width, height):
        marks.add("resized")
        sx, sy = width / lens.width, height / lens.height
        if abs(sx / sy - 1) > SHAPE:
            raise refusal(
                source,
                f"{shot.where}: {shown(shot.image, 40)} is {width} x {height} px, "
                f"its camera {lens.width} x {lens.height}",
                "The size or shape of its camera is accepted",
            )
        lens = lens.scaled(width, height)
    if shot.mask is not None:
        hidden = _hidden(source, bundle, shot, hidden, width, height)
    depth = np.zeros((height, width), np.float32)
    if shot.depth is not None:
        depth, grown = _depth(source, bundle, shot, lens, width, height)
        marks |= {"grown"} if grown else set()
    if shot.generated:
        depth = np.where(_made_up(bundle, shot, depth.shape), -depth, depth)  # the sign travels
    if lens.distorted:
        pixels, depth, lens, hidden = undistorted(pixels, depth, lens, hidden)
    if shot.along_ray:
        depth = depth / ray_lengths(lens)
    if max(width, height) > limits.view_side:
        marks.add("scaled")
        size = fitted(width, height, limits.view_side)
        pixels, depth, lens = shrunk(pixels, *size), nearest(depth, *size), lens.scaled(*size)
        hidden = None if hidden is None else nearest(hidden, *size)
    if hidden is not None and hidden.any():
        marks.add("masked")
    c2w = shot.c2w.copy()
    c2w[:3, 3] -= origin
    view = view_of(pixels, depth, lens.K, c2w, frame=frame, name=shot.image, hidden=hidden)
    return view, marks


def _depth(
    source: str, bundle: Bundle, shot: Shot, lens: Lens, width: int, height: int
) -> tuple[np.ndarray, bool]:
    """Depth in scene units at the size of the picture, and whether that was another one."""
    assert shot.depth is not None
    data = bundle.read(shot.depth)
    raw, unit = images.depth(shot.depth, data, bundle.limits), shot.depth_unit
    if shot.float_unit is not None and images.is_float_depth(shot.depth, data):
        unit = shot.float_unit
    far = float(raw.max(initial=0)) * unit
    if far > MAX_DEPTH:
        raise refusal(
            source,
            f"{shot.where}: depth {shown(shot.depth, 32)} reaches {far:.3g} units",
            f"Up to {MAX_DEPTH:.0e} is accepted",
        )
    depth = raw * np.float32(unit)
    h, w = depth.shape
    own = shot.depth_lens
    if own is not None and (own.width, own.height) != (w, h):
        own = own.scaled(w, h)
    if own is not None and (h, w) == (height, width) and np.allclose(own.K, lens.K):
        own = None
    if own is None and (h, w) == (height, width):
        return depth, False
    if own is None:
        # What one pixel is of the smaller side: sizes are rounded to whole pixels.
        if abs(w / width / (h / height) - 1) > max(SHAPE, 1.0 / min(h, w)):
            raise refusal(
                source,
                f"{shot.where}: depth {shown(shot.depth, 32)} is {w} x {h}, "
                f"its picture {width} x {height}",
                "Depth of the size or the shape of its picture is accepted",
            )
        v = (np.arange(height) + 0.5) * (h / height)
        u = (np.arange(width) + 0.5) * (w / width)
    else:
        v = (np.arange(height) + 0.5 - lens.K[1, 2]) / lens.K[1, 1] * own.K[1, 1] + own.K[1, 2]
        u = (np.arange(width) + 0.5 - lens.K[0, 2]) / lens.K[0, 0] * own.K[0, 0] + own.K[0, 2]
    return sampled(depth, u, v), True


def sampled(depth: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Depth at columns `u` and rows `v` (first pixel's centre at 0.5): (len(v), len(u)) float32.

    Inverse depth is linear on a plane, so it is what is blended; but only between neighbours of
    one surface, never across an edge or beside a hole: there the nearest one counts.
    """
    h, w = depth.shape
    inside = ((v >= 0) & (v <= h))[:, None] & ((u >= 0) & (u <= w))[None]
    x, y = np.clip(u - 0.5, 0, w - 1), np.clip(v - 0.5, 0, h - 1)
    x0, y0 = np.minimum(x.astype(int), max(w - 2, 0)), np.minimum(y.astype(int), max(h - 2, 0))
    x1, y1 = np.minimum(x0 + 1, w - 1), np.minimum(y0 + 1, h - 1)
    fx, fy = (x - x0)[None], (y - y0)[:, None]
    d = np.divide(1, depth, out=np.zeros(depth.shape, np.float64), where=depth > 0)
    a, b = d[y0[:, None], x0[None]], d[y0[:, None], x1[None]]
    c, e = d[y1[:, None], x0[None]], d[y1[:, None], x1[None]]
    low = np.minimum(np.minimum(a, b), np.minimum(c, e))
    high = np.maximum(np.maximum(a, b), np.maximum(c, e))
    blend = (1 - fy) * ((1 - fx) * a + fx * b) + fy * ((1 - fx) * c + fx * e)
    near = d[np.rint(y).astype(int)[:, None], np.rint(x).astype(int)[None]]
    value = np.where((low > 0) & (high < low * (1 + ONE_SURFACE)), blend, near)
    value = np.where(inside, value, 0)
    return np.divide(1, value, out=np.zeros_like(value), where=value > 0).astype(np.float32)


def ray_lengths(lens: Lens) -> np.ndarray:
    """Lengths (H, W) of the rays with z = 1 through the pixel centres of a pinhole."""
    v, u = np.mgrid[0 : lens.height, 0 : lens.width] + 0.5
    x, y = (u - lens.K[0, 2]) / lens.K[0, 0], (v - lens.K[1, 2]) / lens.K[1, 1]
    return np.sqrt(1 + x * x + y * y).astype(np.float32)


def _hidden(
    source: str, bundle: Bundle, shot: Shot, hidden: np.ndarray | None, width: int, height: int
) -> np.ndarray:
    assert shot.mask is not None
    kept = images.mask(shot.mask, bundle.read(shot.mask), bundle.limits)
    kept = ~kept if shot.hides_white else kept
    h, w = kept.shape
    if abs(w / width / (h / height) - 1) > max(SHAPE, 1.0 / min(h, w)):
        raise refusal(
            source,
            f"{shot.where}: mask {shown(shot.mask, 32)} is {w} x {h}, "
            f"its picture {width} x {height}",
            "A mask of the size or the shape of its picture is accepted",
        )
    if (h, w) != (height, width):
        kept = nearest(kept, width, height)
    return ~kept if hidden is None else ~kept | hidden


def _made_up(bundle: Bundle, shot: Shot, shape: tuple[int, ...]) -> np.ndarray:
    if shot.invented is None or shot.invented not in bundle:
        return np.ones(shape, dtype=bool)
    mask = images.color(shot.invented, bundle.read(shot.invented), bundle.limits)[..., 0]
    return mask < 128 if mask.shape == shape else np.ones(shape, dtype=bool)


def view_of(
    pixels: np.ndarray,
    depth: np.ndarray,
    K: np.ndarray,
    c2w: np.ndarray,
    *,
    frame: int,
    name: str,
    hidden: np.ndarray | None = None,
) -> View:
    """A view from (H, W, 3) uint8 pixels and (H, W) depth, scene units; measured where above 0.

    Depth below 0 is depth that a generator made up. What is `hidden` is no part of the world.
    """
    height, width = depth.shape
    if hidden is not None:
        depth = np.where(hidden, 0, depth)
    cameras = Cameras(
        torch.tensor(K, dtype=torch.float32), torch.tensor(c2w, dtype=torch.float32), width, height
    )
    z = torch.from_numpy(np.ascontiguousarray(depth, dtype=np.float32))[None]
    made_up, z = z < 0, z.abs()
    known = (z > 0).to(torch.uint8)
    sure = round(255 * KIND_CONFIDENCE[DepthKind.GENERATED])
    kind = torch.where(made_up, int(DepthKind.GENERATED), known * int(DepthKind.MEASURED))
    if hidden is not None:
        kind[torch.from_numpy(hidden)[None]] = int(DepthKind.MASKED)
    return View(
        color_u8=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
        depth=z,
        confidence_u8=torch.where(made_up, sure, known * 255).to(torch.uint8),
        kind=kind.to(torch.uint8),
        log_gain=torch.zeros(3),
        cameras=cameras,
        given=cameras,
        step=0,
        frame=frame,
        name=shown(name, 80),
    )


def with_depth(view: View, depth: torch.Tensor, kind: DepthKind, confidence: float) -> View:
    """The view with another depth map (1, H, W), all of one kind."""
    known = (depth > 0).to(torch.uint8)
    return replace(
        view,
        depth=depth,
        kind=known * int(kind),
        confidence_u8=known * round(255 * confidence),
    )


def cloud_of(points: np.ndarray, colors: np.ndarray, origin: np.ndarray) -> PointCloud | None:
    """The sparse points of a reconstruction: float64 (N, 3) and uint8 (N, 3)."""
    if len(points) == 0:
        return None
    return PointCloud.of(
        torch.from_numpy((points - origin).astype(np.float32)),
        torch.from_numpy(colors.astype(np.float32) / 255),
    )


def evenly(n: int, kept: int) -> list[int]:
    """`kept` of `n` positions, evenly, the first and the last among them."""
    if kept >= n:
        return list(range(n))
    return sorted({round(v) for v in np.linspace(0, n - 1, kept)})


def fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """The size with this long side and the same shape."""
    factor = side / max(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def shrunk(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """A smaller picture, low-pass filtered, with everything where it was.

    A box filter averages whole pixels only: at sizes that do not divide evenly it moves what is
    seen by up to half a pixel, which poses and depth then measure.
    """
    from PIL import Image

    picture = Image.fromarray(pixels)
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.uint8)


def nearest(depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """Depth at the pixel centres of another size; never an average of two surfaces."""
    h, w = depth.shape
    v = np.minimum((np.arange(height) + 0.5) * (h / height), h - 1).astype(int)
    u = np.minimum((np.arange(width) + 0.5) * (w / width), w - 1).astype(int)
    return depth[v[:, None], u[None]]


def _origin(positions: np.ndarray) -> np.ndarray:
    if len(positions) == 0 or np.abs(positions).max() <= LOCAL_ORIGIN_ABOVE:
        return np.zeros(3)
    return np.round(np.median(positions, axis=0))
