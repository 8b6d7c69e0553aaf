"""PCD clouds: ASCII, binary and compressed.

Source: https://pointclouds.org/documentation/tutorials/pcd_file_format.html
"""

import re
import struct

import numpy as np

from worldstereo.inputs.limits import Limits, refusal, shown
from worldstereo.inputs.surface import Surface, color_share, stretched

_TYPES = {("F", 4): "f4", ("F", 8): "f8", **{("U", n): f"u{n}" for n in (1, 2, 4, 8)},
          **{("I", n): f"i{n}" for n in (1, 2, 4, 8)}}  # fmt: skip
_AGAIN = "Export it again as PCD or PLY"


def is_pcd(head: bytes) -> bool:
    return re.match(rb"\s*(#[^\n]*PCD[^\n]*\n\s*)?(VERSION\s|FIELDS\s)", head[:400]) is not None


def read_pcd(name: str, data: bytes, limits: Limits) -> Surface:
    """The points of a PCD; those that are not finite are left out.

    Raises:
        InputRefused: a header that is cut or whose counts the bytes do not hold.
    """
    match = re.search(rb"(?:^|\n)DATA[ \t]+(\w+)[ \t]*\r?\n", data[: 1 << 16])
    if match is None:
        raise refusal(name, "the header has no DATA line", _AGAIN)
    fields: dict[str, list[str]] = {}
    for line in data[: match.start() + 1].decode("latin-1").splitlines():
        words = line.split("#", 1)[0].split()
        if words:
            fields[words[0].upper()] = words[1:]
    names = [n.lower() for n in fields.get("FIELDS", [])]
    n_fields = len(names)
    try:
        sizes = [int(v) for v in fields.get("SIZE", ["4"] * n_fields)]
        counts = [int(v) for v in fields.get("COUNT", ["1"] * n_fields)]
        kinds = [_TYPES[(t, s)] for t, s in zip(fields.get("TYPE", []), sizes, strict=True)]
        n = (
            int(fields["POINTS"][0])
            if "POINTS" in fields
            else int(fields["WIDTH"][0]) * int(fields["HEIGHT"][0])
        )
    except (KeyError, ValueError, IndexError):
        raise refusal(name, "the header is damaged", _AGAIN) from None
    good = len(kinds) == len(counts) == n_fields and 0 < n_fields < 256
    if not good or not {"x", "y", "z"} <= set(names) or not all(0 < c < 65536 for c in counts):
        raise refusal(name, f"its fields are {shown(' '.join(names), 40)}", "x, y and z are needed")
    if not 0 < n <= limits.points:
        raise refusal(name, f"declares {n} points", f"1 to {limits.points} are accepted")
    form = match.group(1).decode("latin-1").lower()
    body = data[match.end() :]
    columns = _columns(name, form, body, names, kinds, counts, n)
    return _surface(columns)


def _columns(
    name: str, form: str, body: bytes, names: list[str], kinds: list[str], counts: list[int], n: int
) -> dict[str, np.ndarray]:
    row = np.dtype([(f"f{i}", k, (c,)) for i, (k, c) in enumerate(zip(kinds, counts, strict=True))])
    if form == "ascii":
        width = sum(counts)
        words = body.split()
        if len(words) < n * width:
            raise _short(name, n, len(words) // width)
        starts = np.cumsum([0, *counts])
        try:
            table = np.array(words[: n * width]).astype(np.float64).reshape(n, width)
        except ValueError:
            raise refusal(name, "something is not a number", _AGAIN) from None
        with np.errstate(invalid="ignore"):
            return {
                key: table[:, start].astype(kind)
                for key, start, kind in zip(names, starts[:-1], kinds, strict=True)
            }
    if form == "binary":
        if len(body) < n * row.itemsize:
            raise _short(name, n, len(body) // row.itemsize)
        rows = np.frombuffer(body, dtype=row, count=n)
        return {key: rows[f"f{i}"][:, 0] for i, key in enumerate(names)}
    if form != "binary_compressed":
        raise refusal(name, f"DATA {shown(form, 16)}", "ascii, binary and binary_compressed")
    if len(body) < 8:
        raise _short(name, n, 0)
    packed, size = struct.unpack_from("<II", body)
    if size != n * row.itemsize or packed > len(body) - 8:
        raise _short(name, n, size // row.itemsize)
    plain = _unpacked(name, body[8 : 8 + packed], size)
    out, at = {}, 0
    for key, kind, count in zip(names, kinds, counts, strict=True):
        length = n * count * np.dtype(kind).itemsize
        out[key] = np.frombuffer(plain, kind, n * count, at).reshape(n, count)[:, 0]
        at += length
    return out


def _unpacked(name: str, data: bytes, size: int) -> bytes:
    """LZF. Source: liblzf by Marc Lehmann, `lzf_d.c`."""
    out, at, end = bytearray(), 0, len(data)
    try:
        while at < end:
            control = data[at]
            at += 1
            if control < 32:
                out += data[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += data[at]
                at += 1
            start = len(out) - ((control & 31) << 8) - data[at] - 1
            at += 1
            if start < 0 or len(out) + length + 2 > size:
                break
            length += 2
            if start + length <= len(out):
                out += out[start : start + length]
            else:
                for i in range(length):
                    out.append(out[start + i])
    except IndexError:
        pass
    if len(out) != size:
        raise refusal(name, f"unpacks to {len(out)} bytes of {size}", _AGAIN)
    return bytes(out)


def _short(name: str, n: int, held: int):
    return refusal(name, f"the header says {n} points, the file holds {held}", _AGAIN)


def _surface(columns: dict[str, np.ndarray]) -> Surface:
    with np.errstate(invalid="ignore"):
        points = np.stack([columns[k].astype(np.float64) for k in "xyz"], axis=1)
    normals = colors = None
    keys = ("normal_x", "normal_y", "normal_z")
    if all(k in columns for k in keys):
        normals = np.stack([columns[k].astype(np.float64) for k in keys], axis=1)
    notices: tuple[str, ...] = ()
    packed = columns.get("rgb", columns.get("rgba"))
    if packed is not None:
        if packed.dtype.kind == "f":
            bits = np.ascontiguousarray(packed.astype("<f4")).view("<u4")
        else:
            bits = packed.astype(np.int64).astype(np.uint32)
        colors = np.stack([(bits >> s) & 255 for s in (16, 8, 0)], axis=1) / 255.0
    elif all(k in columns for k in "rgb"):
        colors = color_share(np.stack([columns[k].astype(float) for k in "rgb"], axis=1))
    elif "intensity" in columns:
        grey = stretched(columns["intensity"].astype(np.float64))
        colors = np.repeat(grey[:, None], 3, axis=1)
        notices = ("The file holds no colours; its intensity is shown as grey.",)
    return Surface(points, np.zeros((0, 3), np.int64), colors, normals, notices=notices)
