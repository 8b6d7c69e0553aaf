"""Pictures from bytes: JPEG, PNG and WebP by Pillow, sizes checked before a pixel is decoded.

Only pixels leave this module: position, time and every other tag of a photo are dropped.
"""

import contextlib
import io
import threading
import warnings
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from worldstereo.inputs.limits import Limits, refusal

ACCEPTED = "JPEG, PNG and WebP pictures are accepted"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DEPTH_SUFFIXES = (".png", ".tif", ".tiff")
_opening = threading.Lock()


class Photo(NamedTuple):
    """An upright picture and what its camera wrote about the lens."""

    color: np.ndarray
    """(H, W, 3) uint8."""
    focal_35mm: float | None
    """Focal length in millimetres of a 36 x 24 mm frame, where the file says it."""


def color(name: str, data: bytes, limits: Limits) -> np.ndarray:
    """The pixels as stored, (H, W, 3) uint8; EXIF turns are for single photos only.

    Raises:
        InputRefused: another format, too many pixels, or a file that is cut or damaged.
    """
    with _open(name, data, limits, ("JPEG", "PNG", "WEBP")) as picture:
        return _rgb(_loaded(name, picture))


def photo(name: str, data: bytes, limits: Limits) -> Photo:
    """A single photo, turned upright after its EXIF orientation."""
    with _open(name, data, limits, ("JPEG", "PNG", "WEBP")) as picture:
        picture = _loaded(name, picture)
        focal = _focal_35mm(picture)
        with contextlib.suppress(Exception):  # the tags are damaged, the pixels are not
            picture = ImageOps.exif_transpose(picture) or picture
        return Photo(_rgb(picture), focal)


def depth(name: str, data: bytes, limits: Limits) -> np.ndarray:
    """A depth picture, (H, W) float32 in its own units; 0 where nothing was measured.

    Raises:
        InputRefused: as `color`; also a picture that is not one number a pixel, or one below 0.
    """
    with _open(name, data, limits, ("PNG", "TIFF")) as picture:
        if picture.mode not in ("I;16", "I;16B", "I;16L", "I", "F"):
            raise refusal(
                name,
                f"a depth picture of mode {picture.mode}",
                "16-bit grey PNG is accepted: one whole number a pixel, 0 where unknown",
            )
        values = np.asarray(_loaded(name, picture)).astype(np.float32)
    if not np.isfinite(values).all() or float(values.min()) < 0:
        raise refusal(
            name, "holds negative or infinite depth", "Depth from 0 (unknown) up is accepted"
        )
    return values


def size(name: str, data: bytes, limits: Limits) -> tuple[int, int]:
    """Width and height after the header, nothing decoded."""
    with _open(name, data, limits, ("JPEG", "PNG", "WEBP", "TIFF")) as picture:
        return picture.size


def _open(name: str, data: bytes, limits: Limits, formats: tuple[str, ...]) -> Image.Image:
    if not data:
        raise refusal(name, "the file is empty (0 bytes)", ACCEPTED)
    # Our own cap, with our own words, replaces Pillow's; `open` reads the header only.
    with _opening:
        cap, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = Image.open(io.BytesIO(data), formats=formats)
        except Exception:
            said = "TIFF or PNG depth pictures are accepted" if "TIFF" in formats else ACCEPTED
            raise refusal(
                name, f"not a picture that can be read, {_looks_like(data)}", said
            ) from None
        finally:
            Image.MAX_IMAGE_PIXELS = cap
    width, height = picture.size
    if width < 1 or height < 1:
        raise refusal(name, f"{width} x {height} px", "At least 1 x 1 px is accepted")
    if width * height > limits.pixels:
        raise refusal(
            name,
            f"{width} x {height} px is above the limit of {limits.pixels // 1_000_000} Mpx",
            "Scale it down first",
        )
    if max(width, height) > limits.side:
        raise refusal(
            name, f"{width} x {height} px", f"Sides up to {limits.side} px are accepted. Scale it"
        )
    if max(width, height) > limits.aspect * min(width, height):
        raise refusal(
            name,
            f"{width} x {height} px is too narrow a strip",
            f"Sides up to {limits.aspect:.0f} : 1 are accepted. Crop it",
        )
    return picture


def _loaded(name: str, picture: Image.Image) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
    except MemoryError:
        raise
    except Exception:
        raise refusal(
            name, "the picture is cut off or damaged", "Copy it again or save it anew"
        ) from None
    return picture


def _rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode in ("I;16", "I;16B", "I;16L", "I"):
        values = (
            np.asarray(picture).astype(np.float32) / 257.0
        )  # convert("RGB") would clip to white
        grey = np.clip(values + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in picture.mode or "transparency" in picture.info:
        over = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(over, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _focal_35mm(picture: Image.Image) -> float | None:
    """Focal length for a 36 mm wide frame, from the tags; None when they are absent or absurd."""
    try:
        tags = picture.getexif().get_ifd(ExifTags.IFD.Exif)
        given = float(tags.get(ExifTags.Base.FocalLengthIn35mmFilm) or 0)
        if not 6 <= given <= 400:
            focal = float(tags.get(ExifTags.Base.FocalLength) or 0)
            per_unit = float(tags.get(ExifTags.Base.FocalPlaneXResolution) or 0)
            unit = {2: 25.4, 3: 10.0, 4: 1.0}.get(
                int(tags.get(ExifTags.Base.FocalPlaneResolutionUnit) or 2), 0.0
            )
            across = float(tags.get(ExifTags.Base.ExifImageWidth) or picture.width)
            given = focal * 36.0 * per_unit / (across * unit) if focal and per_unit and unit else 0
    except Exception:  # tags are hints: a damaged one is no reason to refuse the photo
        return None
    return given if 6 <= given <= 400 else None


def _looks_like(data: bytes) -> str:
    for magic, what in MAGIC:
        if data.startswith(magic):
            return f"it looks like {what}"
    return f"its first bytes are {data[:4].hex(' ')}"


MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"RIFF", "a WebP picture"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"glTF", "a GLB mesh"),
    (b"ply", "a PLY file"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"8BPS", "a PSD picture"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript file"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x80\x02", "a pickle, which could run code"),
    (b"\x80\x03", "a pickle, which could run code"),
    (b"\x80\x04", "a pickle, which could run code"),
    (b"\x80\x05", "a pickle, which could run code"),
    (b"\x93NUMPY", "an array file (.npy)"),
    (b"<?xml", "an XML file"),
    (b"<svg", "an SVG drawing"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"LASF", "a LAS point cloud"),
    (b"SQLite", "a database"),
)


def looks_like(data: bytes) -> str:
    """What the first bytes say, in words for a message."""
    return _looks_like(data)
