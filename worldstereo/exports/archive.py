"""What all formats share: which views and points, pictures, zips that repeat bit for bit."""

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from worldstereo.errors import ExportError
from worldstereo.scene import NO_PART, Clip, DepthKind, Origin, PointCloud, Scene, View

EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment a zip can hold


@dataclass(frozen=True, eq=False)
class Picture:
    """A view of the scene under the name it has in an archive."""

    name: str
    """Without folder and suffix."""
    view: View
    index: int
    """In `scene.views`."""


def array(tensor: Tensor) -> np.ndarray:
    """A numpy look at a tensor; the exporters only read it."""
    return tensor.detach().cpu().numpy()


def pictures(scene: Scene, generated: bool) -> list[Picture]:
    """The views to write, with names that are unique and safe everywhere.

    Raises:
        ExportError: there is none.
    """
    chosen = [
        Picture(_picture_name(view, i), view, i)
        for i, view in enumerate(scene.views)
        if generated or view.step == 0
    ]
    if not chosen:
        more = " Turn generated views on, or" if scene.views else ""
        raise ExportError(f"The world holds no views to write.{more} Open a capture with pictures.")
    return chosen


def _picture_name(view: View, index: int) -> str:
    kind = "given" if view.step == 0 else f"step{view.step:03d}"
    return f"{index:05d}_{kind}_{view.frame:05d}"


def chosen_points(cloud: PointCloud, generated: bool, most: int | None = None) -> np.ndarray:
    """Rows of the cloud to write: finite, given only if asked, thinned evenly to at most `most`.

    Raises:
        ExportError: there is none.
    """
    keep = np.isfinite(array(cloud.points)).all(axis=1)
    if not generated:
        keep &= array(cloud.step) == 0
    rows = np.flatnonzero(keep)
    if len(rows) == 0:
        raise ExportError("The world holds no points to write. Open a capture or generate first.")
    if most is not None and len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
    return rows


def bytes_of(colors: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] to 8 bits, rounded."""
    return (np.nan_to_num(colors).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def pixels_of(color_u8: Tensor) -> np.ndarray:
    """(3, H, W) bytes to (H, W, 3)."""
    return np.ascontiguousarray(array(color_u8).transpose(1, 2, 0))


def invented_mask(scene: Scene, view: View) -> np.ndarray:
    """(H, W) True where no camera ever looked: made up by a generator."""
    clip = clip_of(scene, view)
    if clip is not None:
        return array(clip.origin[view.frame, 0]) == int(Origin.INVENTED)
    return array(view.kind[0]) == int(DepthKind.GENERATED)


def camera_fixed_mask(scene: Scene, view: View) -> np.ndarray:
    """(H, W) True where the camera sees what is fixed to it: a gripper, a bonnet."""
    clip = clip_of(scene, view)
    if clip is not None:
        return array(clip.origin[view.frame, 0]) == int(Origin.CAMERA_FIXED)
    return np.isin(array(view.kind[0]), NO_PART)


def mask_png(hidden: np.ndarray) -> bytes:
    """(H, W) as trainers read it: 0 where hidden, 255 elsewhere."""
    return png(np.where(hidden, 0, 255).astype(np.uint8))


def clip_of(scene: Scene, view: View) -> Clip | None:
    """The clip whose frame a generated view is, if the scene still holds it."""
    if view.step == 0:
        return None
    for clip in scene.clips:
        size = tuple(clip.color_u8.shape[-2:])
        if (
            clip.step == view.step
            and 0 <= view.frame < len(clip)
            and size == (view.height, view.width)
        ):
            return clip
    return None


def png(pixels: np.ndarray) -> bytes:
    """(H, W), (H, W, 3) bytes or (H, W) 16 bits as PNG, without any metadata."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """(H, W, 3) bytes as JPEG with full chroma."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def picture(pixels: np.ndarray, suffix: str) -> bytes:
    """Raises ExportError for an unknown suffix; "png" keeps every bit, "jpg" is smaller."""
    if suffix not in ("png", "jpg"):
        raise ExportError(f'images must be "png" or "jpg", got {suffix!r}.')
    return png(pixels) if suffix == "png" else jpeg(pixels)


def depth_step(depths: list[np.ndarray]) -> float:
    """Scene units per step of 16-bit depth: a thousandth, or what the range of the scene asks.

    Powers of ten of a thousandth, so that the farthest depth fits and the nearest keep 3 digits.
    """
    farthest = max((float(d.max(initial=0.0)) for d in depths), default=0.0)
    step = 1e-3
    while farthest / step > 65_000:
        step *= 10
    while 0 < farthest / step < 6_500:
        step /= 10
    return float(f"{step:.0e}")


def depth_png(depth: np.ndarray, step: float) -> bytes:
    """(H, W) scene units as 16-bit PNG; 0 where unknown, and a known depth never becomes 0."""
    steps = np.rint(np.nan_to_num(depth) / step).clip(0, 65_535).astype(np.uint16)
    steps[(depth > 0) & (steps == 0)] = 1
    return png(steps)


def packed(members: dict[str, bytes]) -> bytes:
    """A zip whose bytes follow from its members alone: sorted, without clock or owner."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            dense = name.endswith((".png", ".jpg", ".mp4"))
            entry.compress_type = zipfile.ZIP_STORED if dense else zipfile.ZIP_DEFLATED
            archive.writestr(entry, members[name], compresslevel=zlib.Z_BEST_SPEED)
    return stream.getvalue()


def as_json(value: Any) -> bytes:
    """Pretty JSON in UTF-8 that a strict reader takes: NaN never gets in.

    Raises:
        ExportError: a number is not finite.
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    except ValueError:
        raise ExportError(
            "The scene holds a number that is not finite; undo the last step."
        ) from None
    return (text + "\n").encode()
