"""PLY: points, meshes and Gaussian splats (as points), ASCII and binary of both byte orders.

The header is believed only as far as the bytes behind it go: counts are compared with them before
anything is allocated.
"""

import posixpath
import re
from dataclasses import dataclass

import numpy as np

from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.limits import Limits, refusal, shown
from worldstereo.inputs.surface import Surface, checked

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_SH0 = 0.28209479177387814  # the constant spherical harmonic


@dataclass(frozen=True)
class _Property:
    name: str
    kind: str
    count: str | None = None
    """Type of the length of a list; None for a single value."""


@dataclass(frozen=True)
class _Element:
    name: str
    rows: int
    properties: tuple[_Property, ...]


_Columns = dict[str, np.ndarray]


def read(name: str, data: bytes, limits: Limits) -> Surface:
    """The points or mesh of a PLY file.

    Raises:
        InputRefused: a header that is cut, lies about its counts or declares no vertices.
    """
    order, elements, start = _header(name, data)
    vertex = next((e for e in elements if e.name == "vertex"), None)
    if vertex is None or vertex.rows == 0:
        raise refusal(name, "declares 0 vertices", "A PLY with points or a mesh is accepted")
    for element in elements:
        most = limits.points if element.name == "vertex" else limits.faces
        if element.rows > max(most, limits.faces):
            raise refusal(
                name,
                f"declares {element.rows} rows of {shown(element.name, 16)}",
                f"At most {most} are accepted",
            )
    if vertex.rows > limits.points:
        raise refusal(
            name, f"declares {vertex.rows} points", f"At most {limits.points} are accepted"
        )
    names = {p.name for p in vertex.properties if p.count is None}
    if not {"x", "y", "z"} <= names:
        raise refusal(name, "the vertices have no x, y, z", "A PLY with x, y and z is accepted")
    _check_room(name, order, elements, len(data) - start)
    body = _Ascii(name, data[start:]) if order == "" else _Binary(name, data, start, order)
    columns: dict[str, _Columns] = {}
    faces = np.zeros((0, 3), np.int64)
    for element in elements:
        if element.name == "face":
            faces = _faces(name, body, element, limits)
        else:
            columns[element.name] = body.rows(element)
    return _surface(columns["vertex"], faces)


def points_of(bundle: Bundle, member: str) -> tuple[np.ndarray, np.ndarray]:
    """Sparse points beside a capture: (N, 3) float64 and (N, 3) uint8 colours, grey without."""
    name = posixpath.basename(member)
    surface = checked(name, read(name, bundle.read(member), bundle.limits))
    points = surface.vertices
    colors = np.full(points.shape, 0.5) if surface.colors is None else surface.colors
    return points, np.clip(colors * 255 + 0.5, 0, 255).astype(np.uint8)


def _header(name: str, data: bytes) -> tuple[str, list[_Element], int]:
    if not re.match(rb"ply\r?\n|ply\r", data):
        raise refusal(name, 'does not begin with "ply"', "A PLY file is accepted")
    end = re.search(rb"(?:^|[\r\n])[ \t]*end_header[ \t]*(\r\n|\n|\r)", data[: 1 << 20])
    if end is None:
        raise refusal(name, "the header has no end_header", "Export it again as PLY")
    lines = re.split(r"[\r\n]+", data[: end.start()].decode("latin-1"))
    order: str | None = None
    elements: list[_Element] = []
    for number, line in enumerate(lines[1:], 2):
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        wrong = refusal(
            name, f'header line {number} "{shown(line, 40)}" is not understood', "Export it again"
        )
        if words[0] == "format" and len(words) == 3 and order is None:
            if words[1] not in _FORMATS:
                raise refusal(
                    name, f"format {shown(words[1], 24)}", "ascii and binary PLY are accepted"
                )
            order = _FORMATS[words[1]]
        elif words[0] == "element" and len(words) == 3 and re.fullmatch(r"\d{1,18}", words[2]):
            if any(e.name == words[1] for e in elements):
                raise refusal(
                    name,
                    f"declares {shown(words[1], 24)} twice",
                    "One element of a name is accepted",
                )
            elements.append(_Element(words[1], int(words[2]), ()))
        elif words[0] == "property" and elements:
            prop = _property(words)
            if prop is None:
                raise wrong
            last = elements[-1]
            if any(p.name == prop.name for p in last.properties):
                raise refusal(
                    name, f"declares property {shown(prop.name, 24)} twice", "Export it again"
                )
            elements[-1] = _Element(last.name, last.rows, (*last.properties, prop))
        else:
            raise wrong
    if order is None:
        raise refusal(name, "the header names no format", "ascii and binary PLY are accepted")
    for element in elements:
        if element.rows and not element.properties:
            raise refusal(
                name,
                f"{element.rows} rows of {shown(element.name, 16)} have no properties",
                "Export it again",
            )
    return order, elements, end.end()


def _property(words: list[str]) -> _Property | None:
    if len(words) == 3 and words[1] in _TYPES:
        return _Property(words[2], _TYPES[words[1]])
    whole = len(words) == 5 and words[1] == "list" and words[2] in _TYPES and words[3] in _TYPES
    if whole and _TYPES[words[2]][0] in "iu":
        return _Property(words[4], _TYPES[words[3]], _TYPES[words[2]])
    return None


def _check_room(name: str, order: str, elements: list[_Element], room: int) -> None:
    """Every declared row needs at least its fixed bytes, or two characters a value in ASCII."""
    need = 0
    for element in elements:
        for p in element.properties:
            kind = p.kind if p.count is None else p.count
            need += element.rows * (2 if order == "" else np.dtype(kind).itemsize)
    if need - (1 if order == "" else 0) > room:
        vertex = next(e for e in elements if e.name == "vertex")
        raise refusal(
            name,
            f"the header says {vertex.rows} points, which need {need} bytes; {room} bytes follow",
            "Export it again",
        )


class _Binary:
    """Rows of a binary body, one element after the other."""

    def __init__(self, name: str, data: bytes, start: int, order: str) -> None:
        self.name, self.data, self.at, self.order = name, data, start, order

    def rows(self, element: _Element) -> _Columns:
        if any(p.count is not None for p in element.properties):
            return self._lists(element)
        return self._fixed(element, [(p.name, self.order + p.kind) for p in element.properties])

    def triangles(self, element: _Element, key: str) -> np.ndarray | None:
        """Indices when all rows are triangles of one layout, else None and nothing is consumed."""
        layout: list[tuple] = []
        for p in element.properties:
            if p.count is None:
                layout.append((p.name, self.order + p.kind))
            elif p.name == key:
                layout += [("#", self.order + p.count), (p.name, self.order + p.kind, (3,))]
            else:
                return None
        before = self.at
        size = np.dtype(layout).itemsize * element.rows
        if self.at + size > len(self.data):
            return None
        table = self._fixed(element, layout)
        if (table["#"] != 3).any():
            self.at = before
            return None
        return table[key].astype(np.int64)

    def _fixed(self, element: _Element, layout: list) -> _Columns:
        dtype = np.dtype(layout)
        size = dtype.itemsize * element.rows
        if self.at + size > len(self.data):
            held = (len(self.data) - self.at) // max(dtype.itemsize, 1)
            raise refusal(
                self.name,
                f"the header says {element.rows} rows of {shown(element.name, 16)}, "
                f"the file holds {held}",
                "Export it again",
            )
        table = np.frombuffer(self.data, dtype, element.rows, self.at)
        self.at += size
        return {k: table[k] for k in dtype.names or ()}

    def _lists(self, element: _Element) -> _Columns:
        """Row by row: lists of any length. Values of lists are object columns of arrays."""
        out: dict[str, list] = {p.name: [] for p in element.properties}
        counts = {
            p.name: np.dtype(self.order + p.count)
            for p in element.properties
            if p.count is not None
        }
        plan = [(p, np.dtype(self.order + p.kind), counts.get(p.name)) for p in element.properties]
        at, data = self.at, self.data
        for row in range(element.rows):
            for p, kind, count in plan:
                n = 1
                if count is not None:
                    if at + count.itemsize > len(data):
                        raise self._cut(element, row)
                    n = int(np.frombuffer(data, count, 1, at)[0])
                    at += count.itemsize
                if n < 0 or at + n * kind.itemsize > len(data):
                    raise self._cut(element, row)
                values = np.frombuffer(data, kind, n, at)
                at += n * kind.itemsize
                out[p.name].append(values[0] if count is None else values)
        self.at = at
        return _columns(element, out)

    def _cut(self, element: _Element, row: int):
        return refusal(
            self.name,
            f"the header says {element.rows} rows of {shown(element.name, 16)}, "
            f"row {row} runs past the end",
            "Export it again",
        )


class _Ascii:
    """Rows of a text body: numbers parted by any white space."""

    def __init__(self, name: str, body: bytes) -> None:
        self.name, self.at = name, 0
        words = body.split()
        try:
            self.values = np.array(words, dtype="S32").astype(np.float64) if words else np.zeros(0)
        except (ValueError, UnicodeDecodeError):
            raise refusal(
                name, "the text after the header holds something that is not a number",
                "Export it again",
            ) from None  # fmt: skip

    def rows(self, element: _Element) -> _Columns:
        if any(p.count is not None for p in element.properties):
            return self._lists(element)
        width = len(element.properties)
        table = self._take(element, width * element.rows, width).reshape(element.rows, width)
        return {p.name: table[:, i] for i, p in enumerate(element.properties)}

    def triangles(self, element: _Element, key: str) -> np.ndarray | None:
        if len(element.properties) != 1:
            return None
        before = self.at
        if self.at + 4 * element.rows > len(self.values):
            return None
        table = self._take(element, 4 * element.rows, 4).reshape(-1, 4)
        if (table[:, 0] != 3).any():
            self.at = before
            return None
        return _whole(self.name, table[:, 1:])

    def _take(self, element: _Element, n: int, width: int) -> np.ndarray:
        if self.at + n > len(self.values):
            held = (len(self.values) - self.at) // max(width, 1)
            raise refusal(
                self.name,
                f"the header says {element.rows} rows of {shown(element.name, 16)}, "
                f"the file holds {held}",
                "Export it again",
            )
        self.at += n
        return self.values[self.at - n : self.at]

    def _lists(self, element: _Element) -> _Columns:
        out: dict[str, list] = {p.name: [] for p in element.properties}
        for _ in range(element.rows):
            for p in element.properties:
                if p.count is None:
                    out[p.name].append(self._take(element, 1, 1)[0])
                    continue
                n = self._take(element, 1, 1)[0]
                if not 0 <= n <= len(self.values) or n != int(n):
                    raise refusal(self.name, f"a list of {n:g} values", "Export it again")
                out[p.name].append(self._take(element, int(n), 1))
        return _columns(element, out)


def _columns(element: _Element, out: dict[str, list]) -> _Columns:
    columns: _Columns = {}
    for p in element.properties:
        if p.count is None:
            columns[p.name] = np.array(out[p.name])
        else:
            column = np.empty(len(out[p.name]), dtype=object)
            column[:] = out[p.name]
            columns[p.name] = column
    return columns


def _faces(name: str, body: _Binary | _Ascii, element: _Element, limits: Limits) -> np.ndarray:
    """Triangles; polygons become fans around their first corner."""
    if element.rows > limits.faces:
        raise refusal(
            name, f"declares {element.rows} faces", f"At most {limits.faces} are accepted"
        )
    keys = [p.name for p in element.properties if p.name in ("vertex_indices", "vertex_index")]
    if element.rows == 0:
        return np.zeros((0, 3), np.int64)
    if not keys:
        body.rows(element)
        return np.zeros((0, 3), np.int64)
    fast = body.triangles(element, keys[0])
    if fast is not None:
        return fast
    polygons = body.rows(element)[keys[0]]
    if polygons.dtype != object:
        raise refusal(name, f"{keys[0]} is not a list", "A list of vertex indices is accepted")
    fans = []
    for polygon in polygons:
        corners = _whole(name, np.asarray(polygon, dtype=np.float64))
        for i in range(1, len(corners) - 1):
            fans.append((corners[0], corners[i], corners[i + 1]))
    return np.array(fans, dtype=np.int64).reshape(-1, 3)


def _whole(name: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all() or (values != np.round(values)).any():
        raise refusal(name, "an index is not a whole number", "Export it again")
    return values.astype(np.int64)


def _surface(vertex: _Columns, faces: np.ndarray) -> Surface:
    def stacked(*names: str) -> np.ndarray | None:
        if not all(n in vertex and vertex[n].dtype != object for n in names):
            return None
        return np.stack([vertex[n].astype(np.float64) for n in names], axis=1)

    points = stacked("x", "y", "z")
    assert points is not None  # checked in `read`
    normals = stacked("nx", "ny", "nz")
    splat = stacked("f_dc_0", "f_dc_1", "f_dc_2")
    if splat is not None and "opacity" in vertex and not len(faces):
        with np.errstate(over="ignore"):
            opacity = 1 / (1 + np.exp(-vertex["opacity"].astype(np.float64)))
        solid = opacity > 0.1
        solid = solid if solid.any() else np.ones(len(points), dtype=bool)
        said = f"Gaussian splats were read as points: the centres of {int(solid.sum())} solid ones."
        return Surface(points[solid], faces, 0.5 + _SH0 * splat[solid], notices=(said,))
    for names in (("red", "green", "blue"), ("r", "g", "b"),
                  ("diffuse_red", "diffuse_green", "diffuse_blue")):  # fmt: skip
        colors = stacked(*names)
        if colors is not None:
            kind = vertex[names[0]].dtype
            wide = kind.kind in "iu" and kind.itemsize > 1
            high = float(np.nanmax(colors)) if len(colors) else 0.0
            scale = (
                65535.0
                if wide and high > 255
                else (255.0 if kind.kind in "iu" or high > 1 else 1.0)
            )
            return Surface(points, faces, colors / scale, normals)
    return Surface(points, faces, None, normals)
