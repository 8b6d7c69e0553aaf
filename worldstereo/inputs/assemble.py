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
from worldstereo.inputs.limits import refusal, shown
from worldstereo.scene import KIND_CONFIDENCE, DepthKind, PointCloud, View

BIG = 1e4  # scene units from the origin above which float32 wants a local origin
FARTHEST = 1e12  # scene units of depth: its square is still a float32


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


@dataclass(frozen=True, eq=False)
class Assembled:
    views: tuple[View, ...]
    origin: np.ndarray
    """What was subtracted from all positions; zeros for most captures."""
    notices: tuple[str, ...]


def assemble(source: str, bundle: Bundle, shots: Sequence[Shot]) -> Assembled:
    """Views of all shots, evenly thinned to capacity.

    Raises:
        InputRefused: a picture is missing, damaged or of another shape than its camera or depth.
    """
    limits, notices = bundle.limits, []
    if len(shots) > limits.images:
        raise refusal(source, f"{len(shots)} pictures", f"At most {limits.images} are accepted")
    for shot in shots:
        for member in (shot.image, shot.depth):
            if member is not None and member not in bundle:
                raise refusal(
                    source,
                    f"{shot.where}: {shown(member, 40)} is missing",
                    "Put the file there or remove the frame",
                )
    origin = _origin(np.array([shot.c2w[:3, 3] for shot in shots]))
    if origin.any():
        at = ", ".join(f"{v:.0f}" for v in origin)
        notices.append(f"The capture lies far from its origin; ({at}) was subtracted.")
    if len(shots) > limits.views:
        kept = evenly(len(shots), limits.views)
        notices.append(f"{len(shots)} pictures are more than {limits.views}; thinned evenly.")
        shots = [shots[i] for i in kept]
    views, scaled, resized, empty = [], 0, 0, 0
    for frame, shot in enumerate(shots):
        view, was_scaled, was_resized = _view(source, bundle, shot, origin, frame)
        views.append(view)
        scaled, resized = scaled + was_scaled, resized + was_resized
        empty += shot.depth is not None and not bool((view.depth > 0).any())
    if scaled:
        side = limits.view_side
        notices.append(f"Pictures above {side} px were scaled down to {side} px.")
    if resized:
        notices.append("Pictures and calibration differ in size; the calibration was scaled.")
    if made_up := sum(shot.generated for shot in shots):
        notices.append(f"{made_up} pictures were generated earlier; what they invented stays so.")
    if empty:
        notices.append(f"{empty} of {len(views)} depth pictures hold no measured pixel.")
    return Assembled(tuple(views), origin, tuple(notices))


def _view(
    source: str, bundle: Bundle, shot: Shot, origin: np.ndarray, frame: int
) -> tuple[View, bool, bool]:
    limits, lens = bundle.limits, shot.lens
    pixels = images.color(shot.image, bundle.read(shot.image), limits)
    height, width = pixels.shape[:2]
    resized = (lens.width, lens.height) != (width, height)
    if resized:
        sx, sy = width / lens.width, height / lens.height
        if abs(sx / sy - 1) > 0.01:
            raise refusal(
                source,
                f"{shot.where}: {shown(shot.image, 40)} is {width} x {height} px, "
                f"its camera {lens.width} x {lens.height}",
                "The size or shape of its camera is accepted",
            )
        lens = lens.scaled(width, height)
    depth = np.zeros((height, width), np.float32)
    if shot.depth is not None:
        raw = images.depth(shot.depth, bundle.read(shot.depth), limits)
        if raw.shape != (height, width):
            raise refusal(
                source,
                f"{shot.where}: depth {shown(shot.depth, 32)} is {raw.shape[1]} x {raw.shape[0]}, "
                f"its picture {width} x {height}",
                "One depth value a pixel is accepted",
            )
        if float(raw.max()) * shot.depth_unit > FARTHEST:
            raise refusal(
                source,
                f"{shot.where}: depth {shown(shot.depth, 32)} reaches "
                f"{float(raw.max()) * shot.depth_unit:.3g} units",
                f"Up to {FARTHEST:.0e} is accepted",
            )
        depth = raw * np.float32(shot.depth_unit)
    if shot.generated:
        depth = np.where(_made_up(bundle, shot, depth.shape), -depth, depth)  # the sign travels
    if lens.distorted:
        pixels, depth, lens = undistorted(pixels, depth, lens)
    long_side = max(width, height)
    scaled = long_side > limits.view_side
    if scaled:
        size = fitted(width, height, limits.view_side)
        pixels, depth, lens = shrunk(pixels, *size), nearest(depth, *size), lens.scaled(*size)
    c2w = shot.c2w.copy()
    c2w[:3, 3] -= origin
    return view_of(pixels, depth, lens.K, c2w, frame=frame, name=shot.image), scaled, resized


def _made_up(bundle: Bundle, shot: Shot, shape: tuple[int, ...]) -> np.ndarray:
    if shot.invented is None or shot.invented not in bundle:
        return np.ones(shape, dtype=bool)
    mask = images.color(shot.invented, bundle.read(shot.invented), bundle.limits)[..., 0]
    return mask < 128 if mask.shape == shape else np.ones(shape, dtype=bool)


def view_of(
    pixels: np.ndarray, depth: np.ndarray, K: np.ndarray, c2w: np.ndarray, *, frame: int, name: str
) -> View:
    """A view from (H, W, 3) uint8 pixels and (H, W) depth, scene units; measured where above 0.

    Depth below 0 is depth that a generator made up.
    """
    height, width = depth.shape
    cameras = Cameras(
        torch.tensor(K, dtype=torch.float32), torch.tensor(c2w, dtype=torch.float32), width, height
    )
    z = torch.from_numpy(np.ascontiguousarray(depth, dtype=np.float32))[None]
    made_up, z = z < 0, z.abs()
    known = (z > 0).to(torch.uint8)
    sure = round(255 * KIND_CONFIDENCE[DepthKind.GENERATED])
    return View(
        color8=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
        depth=z,
        confidence8=torch.where(made_up, sure, known * 255).to(torch.uint8),
        kind=torch.where(made_up, int(DepthKind.GENERATED), known * int(DepthKind.MEASURED)).to(
            torch.uint8
        ),
        gain=torch.zeros(3),
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
        confidence8=known * round(255 * confidence),
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
    """Colours averaged over what one smaller pixel covers."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    return np.array(picture.resize((width, height), Image.Resampling.BOX), dtype=np.uint8)


def nearest(depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """Depth at the pixel centres of another size; never an average of two surfaces."""
    h, w = depth.shape
    v = np.minimum((np.arange(height) + 0.5) * (h / height), h - 1).astype(int)
    u = np.minimum((np.arange(width) + 0.5) * (w / width), w - 1).astype(int)
    return depth[v[:, None], u[None]]


def _origin(positions: np.ndarray) -> np.ndarray:
    if len(positions) == 0 or np.abs(positions).max() <= BIG:
        return np.zeros(3)
    return np.round(np.median(positions, axis=0))
