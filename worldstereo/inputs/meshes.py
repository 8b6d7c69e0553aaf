"""OBJ; STL and OFF by trimesh, from text that was looked through first.

trimesh guesses where a line is odd (numbers missing); so every line is compared with its grammar
before, and only the lines that hold geometry are handed on. What an OBJ shows lies in files beside
it: they are read where the OBJ came in a folder or an archive with them.
"""

import io
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from worldstereo.inputs import images
from worldstereo.inputs.limits import Limits, refusal, shown, size_text
from worldstereo.inputs.surface import Surface, Texture, color_share

if TYPE_CHECKING:  # it takes half a second to import, and few captures are meshes
    import trimesh

log = logging.getLogger(__name__)

Fetch = Callable[[str], bytes | None]
"""The bytes of a file beside a model by the name the model uses; None where it is missing."""

_AGAIN = "Export it again"
_NUMBER = re.compile(r"[+-]?(?:\d{1,64}\.?\d{0,64}|\.\d{1,64})(?:[eE][+-]?\d{1,4})?", re.ASCII)
_CORNER = re.compile(r"([+-]?\d{1,18})(?:/[+-]?\d*){0,2}", re.ASCII)


@dataclass(frozen=True, eq=False)
class Look:
    """A material of an MTL file."""

    color: tuple[float, float, float] = (0.7, 0.7, 0.7)
    texture: Texture | None = None
    told: bool = False


class Closed:
    """A resolver of trimesh with nothing outside the file: whatever it asks for is refused."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get(self, key: str) -> bytes:
        raise refusal(
            self.name,
            f'asks for another file or address, "{shown(str(key), 32)}"',
            "Nothing outside the file is opened",
        )

    def write(self, name: str, data: bytes) -> None:
        self.get(name)

    def namespaced(self, namespace: str) -> "Closed":
        return self

    def keys(self) -> list[str]:
        return []


def loaded(name: str, data: bytes, kind: str, **options: Any) -> "trimesh.Scene":
    """What trimesh reads from bytes that were checked; any failure of it is one line.

    Raises:
        InputRefused: trimesh cannot read it after all.
    """
    import trimesh

    closed: Any = Closed(name)
    try:
        return trimesh.load_scene(
            io.BytesIO(data), file_type=kind, resolver=closed, process=False, **options
        )
    except MemoryError:
        raise
    except Exception:
        log.debug("trimesh", exc_info=True)
        raise refusal(name, "its parts do not fit together", _AGAIN) from None


def _surface(name: str, text: str, kind: str, **options: Any) -> Surface:
    """Vertices and faces of everything in a checked text."""
    return _gathered(name, loaded(name, text.encode("ascii"), kind, **options))


def _gathered(name: str, scene: "trimesh.Scene") -> Surface:
    points, faces, start = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    for part in scene.geometry.values():
        points.append(np.asarray(part.vertices, dtype=np.float64))
        triangles = np.asarray(getattr(part, "faces", ()), dtype=np.int64).reshape(-1, 3)
        faces.append(triangles + start)
        start += len(points[-1])
    return Surface(np.concatenate(points), np.concatenate(faces))


def text_of(name: str, data: bytes) -> str:
    """Text in UTF-8, or UTF-16 where a byte order mark or its zero bytes say so."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    head = data[:64]
    if len(head) >= 4 and head[::2].count(0) > len(head) // 3:
        return data.decode("utf-16-be", errors="replace")
    if len(head) >= 4 and head[1::2].count(0) > len(head) // 3:
        return data.decode("utf-16-le", errors="replace")
    if b"\0" in data[:4096]:
        raise refusal(name, "holds binary data where text belongs", _AGAIN)
    return data.decode("utf-8-sig", errors="replace")


def read_obj(name: str, data: bytes, limits: Limits, beside: Fetch | None = None) -> Surface:
    """Vertices with optional colours, faces with any index form, negative indices included.

    Materials and textures are read where `beside` gives the files that the OBJ names.
    """
    points: list[list[float]] = []
    tints: list[list[float]] = []
    uvs: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    corners_uv: list[tuple[int, int, int]] = []
    which: list[int] = []
    libraries, materials, material = [], {"": 0}, 0
    lines = text_of(name, data).replace("\\\r\n", " ").replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0] == "v":
            if len(words) not in (4, 5, 7, 8):
                raise _odd(
                    name, number, f"{len(words) - 1} numbers in a vertex", "3 or 6 are accepted"
                )
            _numbers(name, number, words[1:4])
            points.append([float(w) for w in words[1:4]])
            if len(words) >= 7:
                tints.append([_float(w) for w in words[-3:]])
        elif words[0] == "vt":
            uvs.append([*(_float(w) for w in words[1:3]), 0.0, 0.0][:2])
        elif words[0] == "f":
            if len(words) < 4:
                raise _odd(
                    name, number, f"a face of {len(words) - 1} corners", "3 or more are accepted"
                )
            ids = [_index(name, number, w, len(points)) for w in words[1:]]
            marks = [_uv_index(w, len(uvs)) for w in words[1:]]
            for k in range(1, len(ids) - 1):
                faces.append((ids[0], ids[k], ids[k + 1]))
                corners_uv.append((marks[0], marks[k], marks[k + 1]))
                which.append(material)
        elif words[0] == "mtllib":
            libraries.append(line.split("#", 1)[0].strip()[6:].strip())
        elif words[0] == "usemtl":
            key = line.split("#", 1)[0].strip()[6:].strip()
            material = materials.setdefault(key, len(materials))
        if len(points) > limits.points or len(faces) > limits.faces:
            raise refusal(
                name,
                f"more than {limits.points} vertices or {limits.faces} faces",
                "Fewer are accepted",
            )
    if not points:
        raise refusal(name, "holds 0 points", "At least 1 point or face is accepted")
    vertices = np.array(points)
    triangles = np.array(faces, dtype=np.int64).reshape(-1, 3)
    if len(triangles) and triangles.max() >= len(vertices):
        row = int((triangles >= len(vertices)).any(axis=1).argmax())
        raise refusal(
            name,
            f"face {row} names vertex {int(triangles[row].max()) + 1} of {len(vertices)}",
            "Indices of vertices in the file are accepted",
        )
    tint = color_share(np.array(tints)) if len(tints) == len(points) else None
    if not libraries or not len(triangles):
        return Surface(vertices, triangles, tint)
    looks, notices = materials_of(name, libraries, limits, beside)
    return _dressed(vertices, triangles, tint, np.array(corners_uv), np.array(uvs).reshape(-1, 2),
                    np.array(which), list(materials), looks, notices)  # fmt: skip


def _dressed(
    vertices: np.ndarray, triangles: np.ndarray, tint: np.ndarray | None, marks: np.ndarray,
    uvs: np.ndarray, which: np.ndarray, names: list[str], looks: dict[str, Look],
    notices: tuple[str, ...],
) -> Surface:  # fmt: skip
    """The surface with the materials of its faces."""
    kinds = [looks.get(n, Look()) for n in names]
    textures = [k.texture for k in kinds]
    kept = [t for t in textures if t is not None]
    number = np.array([-1 if t is None else kept.index(t) for t in textures])
    face_texture = number[which]
    if len(uvs) == 0:
        face_texture = np.full(len(triangles), -1)
    else:
        face_texture = np.where((marks >= 0).all(1) & (marks < len(uvs)).all(1), face_texture, -1)
    colors = np.array(
        [k.color if t is None else (1.0, 1.0, 1.0) for k, t in zip(kinds, textures, strict=True)]
    )
    told = any(k.told for k in kinds)
    uv = np.zeros((len(triangles), 3, 2))
    if len(uvs):
        uv = uvs[np.clip(marks, 0, len(uvs) - 1)]
        uv = np.stack([uv[..., 0], 1 - uv[..., 1]], axis=-1)  # OBJ counts v from below
    shaded = colors[which] if told and tint is None else None
    return Surface(vertices, triangles, tint, None, uv, tuple(kept), face_texture, shaded,
                   notices=notices)  # fmt: skip


def _uv_index(word: str, count: int) -> int:
    parts = word.split("/")
    if len(parts) < 2 or not re.fullmatch(r"[+-]?\d{1,18}", parts[1]):
        return -1
    index = int(parts[1])
    return index - 1 if index > 0 else count + index if index < 0 else -1


def materials_of(
    name: str, libraries: list[str], limits: Limits, beside: Fetch | None
) -> tuple[dict[str, Look], tuple[str, ...]]:
    """The materials of the files that an OBJ names, and what of them was not found."""
    looks: dict[str, Look] = {}
    if beside is None:
        return looks, ("Materials and textures in other files were not read; give a zip of them.",)
    lost: list[str] = []
    for library in libraries:
        data = beside(library)
        if data is None:
            data = next((d for word in library.split() if (d := beside(word)) is not None), None)
        if data is None or len(data) > limits.json_bytes:
            lost.append(library)
            continue
        for key, entry in _mtl(text_of(library, data)).items():
            texture = None
            given = entry.get("map")
            if given:
                picture = beside(given)
                if picture is None:
                    lost.append(given)
                else:
                    pixels = images.texture(f"{shown(given, 32)} of {name}", picture, limits)
                    texture = Texture(pixels, cutoff=0.5 if entry.get("alpha") else None)
            looks[key] = Look(entry.get("kd", (0.7, 0.7, 0.7)), texture, bool(entry))
    if not lost:
        return looks, ()
    names = ", ".join(f'"{shown(n, 32)}"' for n in dict.fromkeys(lost[:3]))
    return looks, (f"Not in the archive: {names}.",)


def _mtl(text: str) -> dict[str, dict[str, Any]]:
    """`Kd`, `map_Kd` and `map_d` of each material. Source: paulbourke.net/dataformats/mtl."""
    out: dict[str, dict[str, Any]] = {}
    current: dict[str, Any] = {}
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        key = words[0].lower()
        rest = line.split("#", 1)[0].strip()[len(words[0]) :].strip()
        if key == "newmtl":
            current = out.setdefault(rest, {})
        elif key == "kd" and len(words) >= 4 and all(_NUMBER.fullmatch(w) for w in words[1:4]):
            r, g, b = (min(max(float(w), 0.0), 1.0) for w in words[1:4])
            current["kd"] = (r, g, b)
        elif key == "map_kd":
            current["map"] = _without_options(rest)
        elif key == "map_d":
            current["alpha"] = True
    return out


def _without_options(rest: str) -> str:
    """The file name behind options such as `-s 1 1 1` or `-clamp on`."""
    words = rest.split()
    at = 0
    while at < len(words) - 1 and words[at].startswith("-") and words[at][1:2].isalpha():
        at += 1
        while at < len(words) - 1 and (_NUMBER.fullmatch(words[at]) or words[at] in ("on", "off")):
            at += 1
    return rest.split(maxsplit=at)[at] if at and len(words) > at else rest


def _index(name: str, line: int, word: str, count: int) -> int:
    """The corner's vertex, counted from 0 on from the first vertex of the file."""
    match = _CORNER.fullmatch(word)
    index = int(match.group(1)) if match else 0
    if index == 0:
        raise _odd(
            name, line, f'the corner "{shown(word, 16)}"', "Indices from 1 up, or negative ones"
        )
    if index < 0 and -index > count:
        raise _odd(name, line, f"index {index} with {count} vertices before it", _AGAIN)
    return index - 1 if index > 0 else count + index


def read_stl(name: str, data: bytes, limits: Limits) -> Surface:
    """Binary STL, known by its length, or ASCII STL."""
    count = int.from_bytes(data[80:84], "little") if len(data) >= 84 else -1
    ascii_like = data[:512].lstrip()[:5].lower() == b"solid"
    if len(data) >= 84 and (len(data) == 84 + 50 * count or not ascii_like):
        return _binary_stl(name, data, count, limits)
    if not ascii_like:
        raise refusal(
            name, f"{size_text(len(data))} are too short for an STL header of 84 bytes", _AGAIN
        )
    kept = ["solid"]
    corners = open_facet = 0
    ended = False
    for number, line in enumerate(text_of(name, data).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        key = words[0].lower()
        if key == "vertex":
            if len(words) != 4:
                raise _odd(name, number, f"{len(words) - 1} numbers in a vertex", "3 are accepted")
            _numbers(name, number, words[1:])
            corners += 1
            kept.append(f"vertex {' '.join(words[1:])}")
            if corners > 3 * limits.faces:
                raise refusal(
                    name, f"more than {limits.faces} faces", f"At most {limits.faces} are accepted"
                )
        elif key == "facet":
            open_facet += 1
        elif key == "endfacet":
            open_facet -= 1
            if corners % 3:
                raise _odd(name, number, "a facet without 3 vertices", _AGAIN)
        elif key == "endsolid":
            ended = True
        elif key not in ("solid", "outer", "endloop", "color"):
            raise _odd(name, number, f'"{shown(words[0], 16)}" is no STL word', _AGAIN)
    if open_facet or corners % 3 or not ended:
        raise refusal(name, f"ends inside facet {corners // 3}", "Copy or export it again")
    if not corners:
        raise refusal(name, "holds 0 facets", "At least 1 is accepted")
    return _surface(name, "\n".join([*kept, "endsolid", ""]), "stl")


def _binary_stl(name: str, data: bytes, count: int, limits: Limits) -> Surface:
    held = (len(data) - 84) // 50
    if count > limits.faces:
        raise refusal(name, f"declares {count} faces", f"At most {limits.faces} are accepted")
    if count != held or count == 0:
        raise refusal(name, f"the header says {count} facets, the file holds {held}", _AGAIN)
    return _gathered(name, loaded(name, data[: 84 + 50 * count], "stl"))


def read_off(name: str, data: bytes, limits: Limits) -> Surface:
    """OFF and COFF: counts, vertices, polygons, any white space between them."""
    text = re.sub(r"#[^\n]*", " ", text_of(name, data))
    head = re.match(r"\s*(ST|C|N|4|n)*OFF(?![A-Za-z])", text)
    if head is None:
        raise refusal(name, 'does not begin with "OFF"', "An OFF file is accepted")
    kind = head.group(0).strip()
    if kind not in ("OFF", "COFF"):
        raise refusal(name, f"the variant {shown(kind, 8)}", "OFF and COFF are accepted")
    words = text[head.end() :].split()
    if words and words[0] == "BINARY":
        raise refusal(name, "is binary OFF", "Text OFF is accepted")
    if len(words) < 3 or not all(re.fullmatch(r"[0-9]{1,18}", w) for w in words[:3]):
        raise refusal(name, "has no counts after OFF", "Vertices, faces, edges are expected")
    n, m = int(words[0]), int(words[1])
    if n > limits.points or m > limits.faces:
        raise refusal(
            name,
            f"declares {n} vertices and {m} faces",
            f"At most {limits.points} and {limits.faces} are accepted",
        )
    width = 7 if kind == "COFF" else 3
    need = 3 + n * width + m
    if len(words) < need:
        raise refusal(
            name,
            f"{n} vertices and {m} faces are declared; only {len(words) - 3} numbers follow",
            _AGAIN,
        )
    _numbers(name, 0, words[3 : 3 + n * width])
    rows = [words[i : i + width] for i in range(3, 3 + n * width, width)]
    kept = ["OFF", f"{n} {m} 0", *(" ".join(row[:3]) for row in rows)]
    kept += _face_lines(name, text[head.end() :], n, m) or _flat_faces(
        name, words[3 + n * width :], m
    )
    found = _surface(name, "\n".join(kept), "off")
    colors = None
    if width == 7:
        whole = all("." not in word for row in rows[:64] for word in row[3:6])
        colors = np.array([row[3:6] for row in rows], dtype=np.float64).reshape(n, 3)
        colors = color_share(colors, "i4" if whole else "")
    return Surface(found.vertices, found.faces, colors)


def _face_lines(name: str, text: str, n: int, m: int) -> list[str]:
    """Faces one a line, as OFF is written mostly (colours may follow them); else nothing."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) != 1 + n + m:
        return []
    out = []
    for row, words in enumerate(lines[1 + n :]):
        if not re.fullmatch(r"[0-9]{1,9}", words[0]) or len(words) <= int(words[0]):
            return []
        out.append(_face(name, row, words[: 1 + int(words[0])]))
    return out


def _flat_faces(name: str, words: list[str], m: int) -> list[str]:
    """Faces with other line breaks, or none: read by their counts, without colours."""
    out, at = [], 0
    for row in range(m):
        size = words[at] if at < len(words) else ""
        if not re.fullmatch(r"[0-9]{1,9}", size) or at + 1 + int(size) > len(words):
            raise refusal(name, f"face {row} is cut off", _AGAIN)
        out.append(_face(name, row, words[at : at + 1 + int(size)]))
        at += 1 + int(size)
    return out


def _face(name: str, row: int, words: list[str]) -> str:
    if len(words) < 4 or not all(re.fullmatch(r"[0-9]{1,18}", w) for w in words):
        raise refusal(name, f"face {row} has no 3 indices that are whole numbers", _AGAIN)
    return " ".join(words)


def _numbers(name: str, line: int, words: list[str]) -> None:
    """Refuses words that are not finite numbers."""
    for word in words:
        if not _NUMBER.fullmatch(word):
            where = f"line {line}" if line else "a vertex"
            raise refusal(name, f'{where}: "{shown(word, 24)}" is not a finite number', _AGAIN)


def _float(word: str) -> float:
    """A colour's number; one that is none becomes NaN, which is shown as grey with a notice."""
    return float(word) if _NUMBER.fullmatch(word) else np.nan


def _odd(name: str, line: int, wrong: str, way_out: str):
    return refusal(name, f"line {line}: {wrong}", way_out)
