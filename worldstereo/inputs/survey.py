"""Clouds of surveyors: LAS and LAZ by laspy, E57 by pye57 where that is installed. z is up."""

import io
import os
import struct
import tempfile

import numpy as np

from worldstereo.errors import InputRefused
from worldstereo.inputs.limits import Limits, refusal
from worldstereo.inputs.surface import Surface, color_share, stretched

_NOISE = (7, 18)  # classes of low and high noise, ASPRS LAS 1.4
_AGAIN = "Export it again as LAS, E57 or PLY"
_PAGE, _CHECK = 1024, 4  # bytes of an E57 page, of which the last ones are its checksum


def read_las(name: str, data: bytes, limits: Limits) -> Surface:
    """The points of a LAS or LAZ file; points of the noise classes are left out.

    Raises:
        InputRefused: cut, damaged, or more points than the limits allow.
    """
    try:
        import laspy
    except ImportError:
        raise refusal(name, "a LAS cloud, which needs laspy here",
                      "Save it as PLY, or: pip install laspy lazrs") from None  # fmt: skip
    try:
        with laspy.open(io.BytesIO(data)) as file:
            n, size = file.header.point_count, file.header.point_format.size
            if not 0 < n <= limits.points:
                raise refusal(name, f"declares {n} points", f"1 to {limits.points} are accepted")
            packed = bool(file.header.are_points_compressed)
            if not packed and n * size > len(data):
                held = len(data) // size
                raise refusal(name, f"declares {n} points, the file has room for {held}", _AGAIN)
            las = file.read()
        points = np.stack([np.asarray(las.x), np.asarray(las.y), np.asarray(las.z)], axis=1)
        known = set(las.point_format.dimension_names)
        colors, notices = None, ()
        if {"red", "green", "blue"} <= known:
            colors = np.stack(
                [np.asarray(las[k], dtype=float) for k in ("red", "green", "blue")], 1
            )
            colors = color_share(colors, "u2") if colors.any() else None
        if colors is None:
            colors = np.repeat(
                stretched(np.asarray(las.intensity, dtype=float))[:, None], 3, axis=1
            )
            notices = ("The file holds no colours; its intensity is shown as grey.",)
        noise = np.isin(np.asarray(las.classification), _NOISE)
    except (InputRefused, MemoryError):
        raise
    except Exception:
        raise refusal(
            name, "the points cannot be read, the file is cut or damaged", _AGAIN
        ) from None
    if len(points) != n:
        raise refusal(name, f"declares {n} points, {len(points)} could be read", _AGAIN)
    if noise.any() and not noise.all():
        points, colors = points[~noise], colors[~noise]
        notices = (*notices, f"{int(noise.sum())} points of the noise classes were left out.")
    return Surface(points, np.zeros((0, 3), np.int64), colors, notices=notices)


def read_e57(name: str, data: bytes, limits: Limits) -> Surface:
    """All scans of an E57 file in their common frame.

    Raises:
        InputRefused: pye57 is missing, or the file is cut, damaged or too large.
    """
    try:
        import pye57
    except ImportError:
        raise refusal(name, "an E57 scan, which needs pye57 here",
                      "Save it as LAS or PLY, or: pip install pye57") from None  # fmt: skip
    _check_xml(name, data)
    parts: list[np.ndarray] = []
    tints: list[np.ndarray | None] = []
    greys: list[np.ndarray | None] = []
    handle, path = tempfile.mkstemp(suffix=".e57")  # pye57 opens files only by their name
    try:
        with os.fdopen(handle, "wb") as copy:
            copy.write(data)
        file = pye57.E57(path)
        total = sum(file.get_header(i).point_count for i in range(file.scan_count))
        if not 0 < total <= limits.points:
            raise refusal(name, f"declares {total} points", f"1 to {limits.points} are accepted")
        for i in range(file.scan_count):
            has = set(file.get_header(i).point_fields)
            color, grey = "colorRed" in has, "intensity" in has
            scan = file.read_scan(i, colors=color, intensity=grey, ignore_missing_fields=True,
                                  transform=True)  # fmt: skip
            parts.append(np.stack([scan[f"cartesian{a}"] for a in "XYZ"], axis=1))
            rgb = [scan.get(f"color{c}") for c in ("Red", "Green", "Blue")]
            full = [np.asarray(c, dtype=float) for c in rgb if c is not None]
            tints.append(np.stack(full, axis=1) if len(full) == 3 else None)
            values = scan.get("intensity")
            greys.append(None if values is None else np.asarray(values, dtype=float))
        file.close()
    except (InputRefused, MemoryError):
        raise
    except Exception:
        raise refusal(
            name, "the scans cannot be read, the file is cut or damaged", _AGAIN
        ) from None
    finally:
        os.unlink(path)
    points = np.concatenate(parts).astype(np.float64)
    none, notices = np.zeros((0, 3), np.int64), ()
    if all(t is not None for t in tints):
        colors = color_share(np.concatenate([t for t in tints if t is not None]), "u2")
    elif all(g is not None for g in greys):
        values = stretched(np.concatenate([g for g in greys if g is not None]))
        colors = np.repeat(values[:, None], 3, axis=1)
        notices = ("The file holds no colours; its intensity is shown as grey.",)
    else:
        colors = None
    if len(parts) > 1:
        notices = (*notices, f"{len(parts)} scans were joined.")
    return Surface(points, none, colors, notices=notices)


def _check_xml(name: str, data: bytes) -> None:
    """The XML part is plain: no document type, so no entity that names another file."""
    if not data.startswith(b"ASTM-E57") or len(data) < 48:
        raise refusal(name, "is no E57 file", _AGAIN)
    length, start, size = struct.unpack_from("<QQQ", data, 16)
    if length != len(data) or start >= length or size > min(length, 64 << 20):
        raise refusal(name, f"the header says {length} bytes, the file holds {len(data)}", _AGAIN)
    first = start // _PAGE * _PAGE
    last = min(length, first + (size // (_PAGE - _CHECK) + 3) * _PAGE)
    pages = (data[at : at + _PAGE - _CHECK] for at in range(first, last, _PAGE))
    text = b"".join(pages)[start - first :][:size]
    if not text.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"<?xml", b"<e57Root")):
        raise refusal(name, "its description is not XML text", _AGAIN)
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise refusal(name, "its description has a document type", "Plain E57 is accepted")
