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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from plyfile import PlyData, PlyParseError

from worldstereo.inputs import images, splats
from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.limits import Limits, refusal, shown
from worldstereo.inputs.meshes import Fetch
from worldstereo.inputs.surface import Surface, Texture, checked, color_share, stretched

log = logging.getLogger(__name__)

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_FORMATS = ("ascii", "binary_little_endian", "binary_big_endian")
INDICES = ("vertex_indices", "vertex_index")
_MAX_PARTS = 2000  # elements, or properties of one: their reading is quadratic
POINTS = ("vertex", "vertices", "point", "points")


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


def read_ply(name: str, data: bytes, limits: Limits, beside: Fetch | None = None) -> Surface:
    """The points or mesh of a PLY file; Gaussian splats as a cloud with opacity and size.

    `beside` gives the bytes of a texture that a comment of the header names.

    Raises:
        InputRefused: a header that is cut, lies about its counts or declares no vertices.
    """
    order, elements, start, comments = _header(name, data)
    vertex = next((e for e in elements if e.name in POINTS), None)
    if vertex is None or vertex.rows == 0:
        raise refusal(name, "declares 0 vertices", "A PLY with points or a mesh is accepted")
    for element in elements:
        most = limits.points if element.name in POINTS else limits.faces
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
    packed = names >= splats.PACKED
    if not {"x", "y", "z"} <= names and not packed:
        raise refusal(name, "the vertices have no x, y, z", "A PLY with x, y and z is accepted")
    _check_room(name, order, elements, len(data) - start, vertex)
    loaded = _load(name, data, order, elements, start)
    rows = loaded[vertex.name]
    if packed:
        chunks = loaded.get("chunk")
        if chunks is None:
            raise refusal(name, "packed splats without chunks", "Export it again")
        return splats.unpacked(name, rows, chunks)
    faces, polygons = _triangles(name, loaded, elements)
    surface = _surface(rows, faces)
    if len(faces) and beside is not None and surface.colors is None:
        surface = _textured(name, surface, loaded, polygons, comments, limits, beside)
    return surface


def up_of(data: bytes) -> tuple[float, float, float] | None:
    """The sky in the files of programs that say who they are; splats: as their photos had it."""
    head = data[: 1 << 16].split(b"end_header", 1)[0].lower()
    if b"f_dc_0" in head or b"packed_position" in head:
        return (0.0, -1.0, 0.0)
    if b"y up" in head or b"y-up" in head:
        return (0.0, 1.0, 0.0)
    if any(word in head for word in (b"blender", b"cloudcompare", b"z up", b"z-up", b"pdal")):
        return (0.0, 0.0, 1.0)
    return None


def points_of(bundle: Bundle, member: str) -> tuple[np.ndarray, np.ndarray]:
    """Sparse points beside a capture: (N, 3) float64 and (N, 3) uint8 colours, grey without."""
    name = posixpath.basename(member)
    surface = checked(name, read_ply(name, bundle.read(member), bundle.limits))
    points = surface.vertices
    colors = np.full(points.shape, 0.5) if surface.colors is None else surface.colors
    return points, np.clip(colors * 255 + 0.5, 0, 255).astype(np.uint8)


def _header(name: str, data: bytes) -> tuple[str, list[_Element], int, list[str]]:
    if not re.match(rb"ply\r?\n|ply\r", data):
        raise refusal(name, 'does not begin with "ply"', "A PLY file is accepted")
    end = re.search(rb"(?:^|[\r\n])[ \t]*end_header[ \t]*(\r\n|\n|\r)", data[: 1 << 20])
    if end is None:
        raise refusal(name, "the header has no end_header", "Export it again as PLY")
    lines = re.split(r"[\r\n]+", data[: end.start()].decode("latin-1"))
    order: str | None = None
    elements: list[_Element] = []
    comments: list[str] = []
    for number, line in enumerate(lines[1:], 2):
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            comments.append(line.strip())
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
            if len(elements) == _MAX_PARTS:
                raise refusal(
                    name,
                    f"declares more than {_MAX_PARTS} elements",
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
            if len(last.properties) == _MAX_PARTS:
                raise refusal(
                    name,
                    f"declares more than {_MAX_PARTS} properties of {shown(last.name, 24)}",
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
    return order, elements, end.end(), comments


def _property(words: list[str]) -> _Property | None:
    if len(words) == 3 and words[1] in _TYPES:
        name = words[2].lower() if words[2] in ("X", "Y", "Z", "Red", "Green", "Blue") else words[2]
        return _Property(name, _TYPES[words[1]])
    whole = len(words) == 5 and words[1] == "list" and words[2] in _TYPES and words[3] in _TYPES
    if whole and _TYPES[words[2]][0] in "iu":
        return _Property(words[4], _TYPES[words[3]], _TYPES[words[2]])
    return None


def _check_room(
    name: str, order: str, elements: list[_Element], room: int, vertex: _Element
) -> None:
    """Every declared row needs at least its fixed bytes, or two characters a value in ASCII."""
    need = 0
    for element in elements:
        for p in element.properties:
            kind = p.kind if p.count is None else p.count
            need += element.rows * (2 if order == "ascii" else np.dtype(kind).itemsize)
    if need - (1 if order == "ascii" else 0) > room:
        raise refusal(
            name,
            f"the header says {vertex.rows} points, which need {need} bytes; {room} bytes follow",
            "Export it again",
        )


def _load(
    name: str, data: bytes, order: str, elements: list[_Element], start: int
) -> dict[str, np.ndarray]:
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
            text = data[start:].decode("latin-1")
            try:
                return _data(PlyData.read(io.StringIO(head.decode("ascii") + text, None)))
            except (PlyParseError, ValueError):
                rows = _words(elements, text)  # rows may go over several lines, or share one
                if rows is not None:
                    return rows
                raise
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
                        return _data(PlyData.read(file, known_list_len=known))
            file.seek(0)
            return _data(PlyData.read(file))
    except PlyParseError as error:
        wrong = str(error)
    except Exception:  # numbers that do not fit their type
        log.debug("plyfile", exc_info=True)
        wrong = "something is not a number of the declared type"
    raise refusal(
        name, f"the rows do not fit the header ({shown(wrong, 80)})", "Copy or export it again"
    )


def _data(ply: PlyData) -> dict[str, np.ndarray]:
    return {element.name: element.data for element in ply.elements}


def _words(elements: list[_Element], text: str) -> dict[str, np.ndarray] | None:
    """The values of ASCII rows counted one by one; None where they do not come out even."""
    words, at = text.split(), 0
    out: dict[str, np.ndarray] = {}
    for element in elements:
        dtype = np.dtype(
            [(p.name, p.kind if p.count is None else object) for p in element.properties]
        )
        rows = np.empty(element.rows, dtype)
        width = len(element.properties)
        if all(p.count is None for p in element.properties):
            if at + width * element.rows > len(words):
                return None
            try:
                table = np.array(words[at : at + width * element.rows], dtype=np.float64)
            except ValueError:
                return None
            for k, p in enumerate(element.properties):
                column = table.reshape(element.rows, width)[:, k]
                if p.kind[0] != "f" and not _fit(column, p.kind):
                    return None
                rows[p.name] = column
            at += width * element.rows
            out[element.name] = rows
            continue
        for row in range(element.rows):
            for p in element.properties:
                size = 1
                if p.count is not None:
                    if at >= len(words) or not re.fullmatch(r"[0-9]{1,9}", words[at]):
                        return None
                    size, at = int(words[at]), at + 1
                if at + size > len(words):
                    return None
                try:
                    values = np.array(words[at : at + size], dtype=np.float64)
                except ValueError:
                    return None
                if p.kind[0] != "f" and not _fit(values, p.kind):
                    return None
                rows[row][p.name] = values.astype(p.kind) if p.count is not None else values[0]
                at += size
        out[element.name] = rows
    return out if at == len(words) else None


def _fit(values: np.ndarray, kind: str) -> bool:
    """Whether numbers are whole and within their declared type."""
    info = np.iinfo(kind)
    good = np.isfinite(values) & (values == np.round(values))
    return bool((good & (values >= info.min) & (values <= info.max)).all())


def _triangles(
    name: str, ply: dict[str, np.ndarray], elements: list[_Element]
) -> tuple[np.ndarray, Any]:
    """Triangles, polygons as fans around their first corner; and the rows they came from."""
    from trimesh.geometry import triangulate_quads

    none = np.zeros((0, 3), np.int64)
    element = next((e for e in elements if e.name == "face" and e.rows), None)
    keys = [p for p in element.properties if p.name in INDICES] if element is not None else []
    if not keys:
        return none, None
    if keys[0].count is None or keys[0].kind[0] == "f":
        raise refusal(
            name, f"{keys[0].name} is not a list of whole numbers", "Export it again as PLY"
        )
    rows = ply["face"][keys[0].name]
    polygons = rows
    if polygons.dtype == object:
        polygons = [p.tolist() for p in polygons if len(p) >= 3]
    faces = triangulate_quads(polygons, dtype=np.int64) if len(polygons) else none
    return np.asarray(faces, dtype=np.int64).reshape(-1, 3), rows


def _textured(
    name: str, surface: Surface, ply: dict[str, np.ndarray], polygons: Any, comments: list[str],
    limits: Limits, beside: Fetch,
) -> Surface:  # fmt: skip
    """The mesh with the picture that `comment TextureFile` names, by vertex or by corner."""
    files = [
        c.split(None, 2)[2] for c in comments if re.match(r"comment\s+texturefile\s", c.lower())
    ]
    if not files or polygons is None:
        return surface
    vertex, face = ply.get("vertex"), ply["face"]
    pairs = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))
    known = () if vertex is None else vertex.dtype.names or ()
    pair = next((p for p in pairs if set(p) <= set(known)), None)
    uv = None
    if vertex is not None and pair is not None:
        both = np.stack([vertex[pair[0]], vertex[pair[1]]], axis=1).astype(np.float64)
        uv = both[surface.faces]
    elif "texcoord" in (face.dtype.names or ()):
        flat = face["texcoord"]
        if all(len(p) == 3 for p in polygons) and all(len(t) == 6 for t in flat):
            uv = np.array([np.asarray(t, dtype=np.float64) for t in flat]).reshape(-1, 3, 2)
    if uv is None or len(uv) != len(surface.faces):
        return surface
    textures = []
    for file in files:
        data = beside(file)
        if data is None:
            said = f'The texture "{shown(file, 40)}" is missing.'
            return replace(surface, notices=(*surface.notices, said))
        textures.append(Texture(images.texture(f"{shown(file, 32)} of {name}", data, limits)))
    which = np.zeros(len(surface.faces), np.int64)
    if "texnumber" in (face.dtype.names or ()) and len(face) == len(which):
        which = np.clip(face["texnumber"].astype(np.int64), 0, len(textures) - 1)
    uv = np.stack([uv[..., 0], 1 - uv[..., 1]], axis=-1)
    return replace(surface, uv=uv, textures=tuple(textures), face_texture=which)


def _surface(vertex: np.ndarray, faces: np.ndarray) -> Surface:
    def stacked(*names: str) -> np.ndarray | None:
        known = vertex.dtype.names or ()
        if not all(n in known and vertex[n].dtype.kind in "iuf" for n in names):
            return None
        with np.errstate(invalid="ignore"):  # NaNs are counted, or become grey, later
            return np.stack([vertex[n].astype(np.float64) for n in names], axis=1)

    points = stacked("x", "y", "z")
    assert points is not None  # checked in `read`
    normals = stacked("nx", "ny", "nz")
    splat = stacked("f_dc_0", "f_dc_1", "f_dc_2")
    opacity = stacked("opacity")
    if splat is not None and opacity is not None and not len(faces):
        with np.errstate(over="ignore", invalid="ignore"):
            solid = 1 / (1 + np.exp(-opacity[:, 0]))
            sizes = stacked("scale_0", "scale_1", "scale_2")
            sizes = None if sizes is None else np.exp(sizes)
        return splats.surface_of(points, 0.5 + splats.SH0 * splat, solid, sizes)
    for names in (("red", "green", "blue"), ("r", "g", "b"),
                  ("diffuse_red", "diffuse_green", "diffuse_blue")):  # fmt: skip
        colors = stacked(*names)
        if colors is not None:
            return Surface(
                points, faces, color_share(colors, vertex[names[0]].dtype.str[1:]), normals
            )
    if splat is not None:
        return Surface(points, faces, np.clip(0.5 + splats.SH0 * splat, 0, 1), normals)
    for key in ("intensity", "scalar_Intensity", "scalar_intensity", "reflectance"):
        grey = stacked(key)
        if grey is not None and not len(faces):
            shade = np.repeat(stretched(grey[:, 0])[:, None], 3, axis=1)
            said = ("The file holds no colours; its intensity is shown as grey.",)
            return Surface(points, faces, shade, normals, notices=said)
    return Surface(points, faces, None, normals)
