"""PLY: points, meshes and Gaussian splats (as points), ASCII and binary of both byte orders.

plyfile reads the rows. The header is looked at before it does, and believed only as far as the
bytes behind it go: counts are compared with them before anything is allocated.
"""

import contextlib
import io
import logging
import posixpath
import re
import tempfile
from dataclasses import dataclass

import numpy as np
from plyfile import PlyData, PlyParseError
from trimesh.geometry import triangulate_quads

from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.limits import Limits, refusal, shown
from worldstereo.inputs.surface import Surface, checked

log = logging.getLogger(__name__)

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_FORMATS = ("ascii", "binary_little_endian", "binary_big_endian")
INDICES = ("vertex_indices", "vertex_index")
_MOST_PARTS = 2000  # elements, or properties of one: their reading is quadratic
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
    loaded = _load(name, data, order, elements, start)
    return _surface(loaded["vertex"].data, _triangles(name, loaded, elements))


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
            order = words[1]
        elif words[0] == "element" and len(words) == 3 and re.fullmatch(r"\d{1,18}", words[2]):
            if any(e.name == words[1] for e in elements):
                raise refusal(
                    name,
                    f"declares {shown(words[1], 24)} twice",
                    "One element of a name is accepted",
                )
            if len(elements) == _MOST_PARTS:
                raise refusal(
                    name,
                    f"declares more than {_MOST_PARTS} elements",
                    "Export it with fewer",
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
            if len(last.properties) == _MOST_PARTS:
                raise refusal(
                    name,
                    f"declares more than {_MOST_PARTS} properties of {shown(last.name, 24)}",
                    "Export it with fewer",
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
            need += element.rows * (2 if order == "ascii" else np.dtype(kind).itemsize)
    if need - (1 if order == "ascii" else 0) > room:
        vertex = next(e for e in elements if e.name == "vertex")
        raise refusal(
            name,
            f"the header says {vertex.rows} points, which need {need} bytes; {room} bytes follow",
            "Export it again",
        )


def _load(name: str, data: bytes, order: str, elements: list[_Element], start: int) -> PlyData:
    """The rows as plyfile reads them, behind a header of our own that says what was checked."""
    lines = ["ply", f"format {order} 1.0"]
    for element in elements:
        lines.append(f"element {element.name} {element.rows}")
        for p in element.properties:
            kind = p.kind if p.count is None else f"list {p.count} {p.kind}"
            lines.append(f"property {kind} {p.name}")
    head = "\n".join([*lines, "end_header", ""]).encode("ascii", "replace")
    lists = {e.name: [p.name for p in e.properties if p.count is not None] for e in elements}
    try:
        if order == "ascii":
            return PlyData.read(io.StringIO((head + data[start:]).decode("latin-1"), None))
        # A file and not a buffer: only from a file plyfile takes rows of one size all at once.
        with tempfile.TemporaryFile() as file:
            file.write(head)
            file.write(memoryview(data)[start:])
            file.flush()
            if any(lists.values()):
                for corners in (3, 4):  # all lists of one length, as in most meshes
                    known = {e: dict.fromkeys(keys, corners) for e, keys in lists.items()}
                    with contextlib.suppress(PlyParseError):
                        file.seek(0)
                        return PlyData.read(file, known_list_len=known)
            file.seek(0)
            return PlyData.read(file)
    except PlyParseError as error:
        wrong = str(error)
    except Exception:  # numbers that do not fit their type
        log.debug("plyfile", exc_info=True)
        wrong = "something is not a number of the declared type"
    raise refusal(
        name, f"the rows do not fit the header ({shown(wrong, 80)})", "Copy or export it again"
    )


def _triangles(name: str, ply: PlyData, elements: list[_Element]) -> np.ndarray:
    """Triangles; polygons become fans around their first corner."""
    none = np.zeros((0, 3), np.int64)
    element = next((e for e in elements if e.name == "face" and e.rows), None)
    keys = [p for p in element.properties if p.name in INDICES] if element is not None else []
    if not keys:
        return none
    if keys[0].count is None or keys[0].kind[0] == "f":
        raise refusal(
            name, f"{keys[0].name} is not a list of whole numbers", "Export it again as PLY"
        )
    polygons = ply["face"].data[keys[0].name]
    if polygons.dtype == object:
        polygons = [p.tolist() for p in polygons if len(p) >= 3]
    faces = triangulate_quads(polygons, dtype=np.int64) if len(polygons) else none
    return np.asarray(faces, dtype=np.int64).reshape(-1, 3)


def _surface(vertex: np.ndarray, faces: np.ndarray) -> Surface:
    def stacked(*names: str) -> np.ndarray | None:
        known = vertex.dtype.names or ()
        if not all(n in known and vertex[n].dtype.kind in "iuf" for n in names):
            return None
        with np.errstate(invalid="ignore"):  # NaNs are counted and refused, or become grey, later
            return np.stack([vertex[n].astype(np.float64) for n in names], axis=1)

    points = stacked("x", "y", "z")
    assert points is not None  # checked in `read`
    normals = stacked("nx", "ny", "nz")
    splat = stacked("f_dc_0", "f_dc_1", "f_dc_2")
    if splat is not None and stacked("opacity") is not None and not len(faces):
        with np.errstate(over="ignore", invalid="ignore"):
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
