"""Pictures from bytes: JPEG, PNG, WebP, HEIC and AVIF, sizes checked before a pixel is decoded.

Pillow decodes them (HEIC through pillow-heif, where that is installed). An embedded colour profile
is converted to sRGB. Only pixels leave this module: position, time and every other tag of a photo
are dropped, and so are gain maps and the other pictures of a container.
"""

import contextlib
import io
import re
import threading
import warnings
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from worldstereo.inputs import arrays
from worldstereo.inputs.limits import Limits, refusal

ACCEPTED = "JPEG, PNG, WebP, HEIC and AVIF pictures are accepted"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".hif", ".avif")
DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
_COLOR = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF")
_HIDDEN_ALPHA = 128  # below it, a pixel of a posed picture is hidden
NOTHING_SEEN = 65535  # the largest whole number of 16 bits: saturated, or no return at all
_NOTHING_FLOAT = (65504.0, 1e10, float(np.finfo(np.float32).max))  # half floats; Blender; C++
_opening = threading.Lock()


class Photo(NamedTuple):
    """An upright picture and what its camera wrote about the lens."""

    color: np.ndarray
    """(H, W, 3) uint8."""
    focal_35mm: float | None
    """Focal length in millimetres of a 36 x 24 mm frame, where the file says it."""


class Picture(NamedTuple):
    """A picture of a capture with poses."""

    color: np.ndarray
    """(H, W, 3) uint8."""
    hidden: np.ndarray | None
    """(H, W) bool: pixels that its alpha hides; None without alpha or where it hides nothing."""
    turned: bool
    """It was stored lying, and turned after its EXIF orientation to the size of its camera."""


def color(name: str, data: bytes, limits: Limits) -> np.ndarray:
    """The pixels as stored, (H, W, 3) uint8; EXIF turns are for single photos only.

    Raises:
        InputRefused: another format, too many pixels, or a file that is cut or damaged.
    """
    with _open(name, data, limits, _COLOR) as picture:
        return _rgb(_loaded(name, picture))


def posed(name: str, data: bytes, limits: Limits, width: int, height: int) -> Picture:
    """The picture of a camera of a size: turned upright where only that fits, alpha as a mask.

    COLMAP leaves EXIF aside, most other tools turn pictures before they solve for the poses: the
    shape of the camera says which of both was done.
    """
    with _open(name, data, limits, _COLOR) as picture:
        picture = _loaded(name, picture)
        turned = _fits(width / height, picture.height / picture.width) and not _fits(
            width / height, picture.width / picture.height
        )
        if turned:
            turned = _orientation(picture) in (5, 6, 7, 8)
        if turned:
            with contextlib.suppress(Exception):
                picture = ImageOps.exif_transpose(picture) or picture
        hidden = None
        if "A" in picture.mode or "transparency" in picture.info:
            alpha = np.asarray(picture.convert("RGBA"))[..., 3]
            hidden = alpha < _HIDDEN_ALPHA
            hidden = hidden if hidden.any() else None
        return Picture(_rgb(picture), hidden, turned)


def texture(name: str, data: bytes, limits: Limits) -> np.ndarray:
    """A texture (H, W, 4) uint8 with its alpha; colour profiles mean nothing in models.

    Raises:
        InputRefused: as `color`.
    """
    with _open(name, data, limits, (*_COLOR, "BMP", "TGA", "TIFF", "GIF")) as picture:
        picture = _loaded(name, picture)
        if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
            rgb = _rgb(picture)
            return np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=2)
        return np.array(picture.convert("RGBA"), dtype=np.uint8)


def mask(name: str, data: bytes, limits: Limits) -> np.ndarray:
    """A mask (H, W) as bool: False where it is black or transparent.

    Raises:
        InputRefused: not a picture.
    """
    with _open(name, data, limits, (*_COLOR, "GIF", "BMP", "TIFF")) as picture:
        picture = _loaded(name, picture)
        if picture.mode in ("LA", "RGBA", "PA"):
            rgba = np.asarray(picture.convert("RGBA"))
            alpha = rgba[..., 3]
            if alpha.min() < _HIDDEN_ALPHA:  # colours mean nothing where it is transparent
                return alpha >= _HIDDEN_ALPHA
            return rgba[..., :3].max(axis=2) > 0 if rgba.max() <= 1 else rgba[..., 0] >= 128
        values = np.asarray(picture.convert("L") if picture.mode in ("RGB", "P") else picture)
    values = values.astype(np.float64).reshape(values.shape[0], values.shape[1], -1)[..., 0]
    return values > values.max(initial=0) / 2 if values.max(initial=0) > 0 else values > 0


def _fits(shape: float, other: float) -> bool:
    return abs(shape / other - 1) <= 0.01


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation) or 1)
    except Exception:  # damaged tags: as stored
        return 1


def is_panorama(data: bytes) -> bool:
    """True where the file's own tags (GPano) say that it shows all directions."""
    head = data[: 1 << 20]
    return (
        re.search(rb"ProjectionType(=[\"']|>)\s*equirectangular", head, re.IGNORECASE) is not None
    )


def photo(name: str, data: bytes, limits: Limits) -> Photo:
    """A single photo, turned upright after its EXIF orientation."""
    with _open(name, data, limits, _COLOR) as picture:
        picture = _loaded(name, picture)
        focal = _focal_35mm(picture)
        with contextlib.suppress(Exception):  # the tags are damaged, the pixels are not
            picture = ImageOps.exif_transpose(picture) or picture
        return Photo(_rgb(picture), focal)


def depth(name: str, data: bytes, limits: Limits) -> np.ndarray:
    """A depth picture, (H, W) float32 in its own units; 0 where nothing was measured.

    Nothing was measured where a file says 0, a negative number, no number, infinity, or the
    largest value that its kind of number can hold.

    Raises:
        InputRefused: as `color`; also a picture that is not one number a pixel.
    """
    if data.startswith(b"\x93NUMPY"):
        values = arrays.read_array(name, data, limits)
        if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
            values = values.squeeze(0 if values.shape[0] == 1 else 2)
        if values.ndim != 2 or values.size == 0:
            raise refusal(
                name, f"an array of shape {tuple(values.shape)}", "One value a pixel is accepted"
            )
        return measured(values)
    with _open(name, data, limits, ("PNG", "TIFF")) as picture:
        if picture.mode not in ("I;16", "I;16B", "I;16L", "I", "F"):
            raise refusal(
                name,
                f"a depth picture of mode {picture.mode}",
                "16-bit grey PNG is accepted: one whole number a pixel, 0 where unknown",
            )
        return measured(np.asarray(_loaded(name, picture)))


def measured(values: np.ndarray) -> np.ndarray:
    """Depth as float32, 0 where its numbers say that nothing was seen."""
    whole = values.dtype.kind in "iu"
    with np.errstate(over="ignore", invalid="ignore"):
        out = values.astype(np.float32)
    bad = ~np.isfinite(out) | (out < 0)
    if whole:
        most = max(int(values.max(initial=0)), 0)
        if values.dtype.itemsize == 2 or most <= NOTHING_SEEN:
            bad |= values == NOTHING_SEEN
    else:
        for value in _NOTHING_FLOAT:
            bad |= out == np.float32(value)
    return np.where(bad, np.float32(0), out)


def is_float_depth(name: str, data: bytes) -> bool:
    """True where depth is stored as floats, which text forms write in metres."""
    if data.startswith(b"\x93NUMPY"):
        return b"f" in data[10:64].split(b"descr", 1)[-1][:8]
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as picture:
            return picture.mode == "F"
    except Exception:
        return False


def size(name: str, data: bytes, limits: Limits) -> tuple[int, int]:
    """Width and height after the header, nothing decoded."""
    with _open(name, data, limits, (*_COLOR, "TIFF")) as picture:
        return picture.size


def can_read_heic() -> bool:
    """Whether HEIC can be read; its decoder is loaded on first use."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.options.THUMBNAILS = False
    pillow_heif.options.DEPTH_IMAGES = False
    pillow_heif.options.AUX_IMAGES = False
    pillow_heif.register_heif_opener()
    return True


def is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in (
        b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1",
    )  # fmt: skip


def is_avif(data: bytes) -> bool:
    if data[4:8] != b"ftyp":
        return False
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return data[8:12] in (b"avif", b"avis") or (data[8:12] == b"mif1" and b"avif" in brands)


def is_picture(data: bytes) -> bool:
    """JPEG, PNG, WebP, HEIC or AVIF after the first bytes."""
    return (
        data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
        or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")
        or is_heif(data)
        or is_avif(data)
    )


def _open(name: str, data: bytes, limits: Limits, formats: tuple[str, ...]) -> Image.Image:
    if not data:
        raise refusal(name, "the file is empty (0 bytes)", ACCEPTED)
    if is_heif(data) and not is_avif(data):
        if not can_read_heic():
            raise refusal(name, "a HEIC photo, which needs pillow-heif here",
                          "Save it as JPEG, or: pip install pillow-heif")  # fmt: skip
    else:
        formats = tuple(f for f in formats if f != "HEIF" and (f != "AVIF" or is_avif(data)))
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
            name, "the picture is cut off or damaged", "Copy it again or save it again"
        ) from None
    return picture


def _rgb(picture: Image.Image) -> np.ndarray:
    picture = _in_srgb(picture)
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


def _in_srgb(picture: Image.Image) -> Image.Image:
    """The picture in sRGB, after the colour profile that it carries; alpha stays as it is."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "RGBA", "CMYK", "L", "LA"):
        return picture
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source)
        space = str(getattr(source.profile, "xcolor_space", "")).strip()
        if (
            "srgb" in name.lower()
            or {"RGB": "R", "GRAY": "L", "CMYK": "C"}.get(space) != picture.mode[0]
        ):
            return picture
        alpha = picture.getchannel("A") if "A" in picture.mode else None
        plain = picture if alpha is None else picture.convert(picture.mode[:-1])
        turned = ImageCms.profileToProfile(
            plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    except Exception:  # a damaged profile: the pixels as they are
        return picture
    if turned is None:
        return picture
    if alpha is not None:
        turned.putalpha(alpha)
    return turned


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
    if data[4:8] == b"ftyp":
        kind = (
            "a HEIC picture" if is_heif(data) else "an AVIF picture" if is_avif(data) else "a video"
        )
        return f"it looks like {kind}"
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
