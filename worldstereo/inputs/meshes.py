"""OBJ, STL and OFF: short formats, read strictly.

An OBJ's material file lies beside it and is not fetched: vertex colours are read, textures are not.
"""

import re

import numpy as np

from worldstereo.inputs.limits import Limits, refusal, shown, size_text
from worldstereo.inputs.surface import Surface

_NO_FACES = np.zeros((0, 3), np.int64)
_AGAIN = "Export it again"


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


def read_obj(name: str, data: bytes, limits: Limits) -> Surface:
    """Vertices with optional colours, faces with any index form, negative indices included."""
    vertices: list[list[float]] = []
    colors: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    outside = False
    lines = text_of(name, data).replace("\\\r\n", " ").replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0] == "v":
            values = _floats(name, number, words[1:])
            if len(values) not in (3, 4, 6, 7):
                raise _odd(
                    name, number, f"{len(values)} numbers in a vertex", "3 or 6 are accepted"
                )
            vertices.append(values[:3])
            if len(values) >= 6:
                colors.append(values[-3:])
            if len(vertices) > limits.points:
                raise refusal(
                    name,
                    f"more than {limits.points} vertices",
                    f"At most {limits.points} are accepted",
                )
        elif words[0] == "f":
            if len(words) < 4:
                raise _odd(
                    name, number, f"a face of {len(words) - 1} corners", "3 or more are accepted"
                )
            corners = [_index(name, number, w, len(vertices)) for w in words[1:]]
            faces += [(corners[0], corners[i], corners[i + 1]) for i in range(1, len(corners) - 1)]
            if len(faces) > limits.faces:
                raise refusal(
                    name, f"more than {limits.faces} faces", f"At most {limits.faces} are accepted"
                )
        elif words[0] in ("mtllib", "map_kd"):
            outside = True
    notices = ("Materials and textures in other files were not read.",) if outside else ()
    tint = None
    if colors and len(colors) == len(vertices):
        tint = np.array(colors)
        if np.nanmax(np.where(np.isfinite(tint), tint, 0)) > 1:
            tint = tint / 255.0
    points = np.array(vertices, dtype=np.float64).reshape(-1, 3)
    triangles = np.array(faces, dtype=np.int64).reshape(-1, 3)
    return Surface(points, triangles, tint, notices=notices)


def _index(name: str, line: int, word: str, count: int) -> int:
    first = word.split("/", 1)[0]
    if not re.fullmatch(r"[+-]?\d{1,18}", first) or int(first) == 0:
        raise _odd(
            name, line, f'the corner "{shown(word, 16)}"', "Indices from 1 up, or negative ones"
        )
    index = int(first)
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
    corners: list[list[float]] = []
    open_facet = 0
    ended = False
    for number, line in enumerate(text_of(name, data).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        key = words[0].lower()
        if key == "vertex":
            values = _floats(name, number, words[1:])
            if len(values) != 3:
                raise _odd(name, number, f"{len(values)} numbers in a vertex", "3 are accepted")
            corners.append(values)
            if len(corners) > 3 * limits.faces:
                raise refusal(
                    name, f"more than {limits.faces} faces", f"At most {limits.faces} are accepted"
                )
        elif key == "facet":
            open_facet += 1
        elif key == "endfacet":
            open_facet -= 1
            if len(corners) % 3:
                raise _odd(name, number, "a facet without 3 vertices", _AGAIN)
        elif key == "endsolid":
            ended = True
        elif key not in ("solid", "outer", "endloop", "color"):
            raise _odd(name, number, f'"{shown(words[0], 16)}" is no STL word', _AGAIN)
    if open_facet or len(corners) % 3 or not ended:
        raise refusal(name, f"ends inside facet {len(corners) // 3}", "Copy or export it again")
    if not corners:
        raise refusal(name, "holds 0 facets", "At least 1 is accepted")
    return _soup(np.array(corners, dtype=np.float64))


def _binary_stl(name: str, data: bytes, count: int, limits: Limits) -> Surface:
    held = (len(data) - 84) // 50
    if count > limits.faces:
        raise refusal(name, f"declares {count} faces", f"At most {limits.faces} are accepted")
    if count != held or count == 0:
        raise refusal(name, f"the header says {count} facets, the file holds {held}", _AGAIN)
    rows = np.frombuffer(data, np.dtype([("n", "<f4", 3), ("v", "<f4", (3, 3)), ("a", "<u2")]),
                         count, 84)  # fmt: skip
    return _soup(rows["v"].reshape(-1, 3).astype(np.float64))


def _soup(corners: np.ndarray) -> Surface:
    return Surface(corners, np.arange(len(corners), dtype=np.int64).reshape(-1, 3))


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
    if len(words) < 3 or not all(re.fullmatch(r"\d{1,18}", w) for w in words[:3]):
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
    values = np.array(_floats(name, 0, words[3 : 3 + n * width])).reshape(n, width)
    rest = words[3 + n * width :]
    faces: list[tuple[int, int, int]] = []
    at = 0
    lines = iter(_face_lines(text[head.end() :], n, m))
    for row in range(m):
        corners = next(lines, None)
        if corners is None:  # all on one line: read by counts, without colours
            corners, at = _flat_face(name, row, rest, at)
        faces += [(corners[0], corners[i], corners[i + 1]) for i in range(1, len(corners) - 1)]
    colors = None
    if width == 7:
        colors = values[:, 3:6] / (255.0 if np.nanmax(values[:, 3:6]) > 1 else 1.0)
    return Surface(values[:, :3], np.array(faces, dtype=np.int64).reshape(-1, 3), colors)


def _face_lines(text: str, n: int, m: int) -> list[list[int]]:
    """Faces one a line (colours may follow them), or nothing when it has other line breaks."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) != 1 + n + m:
        return []
    out = []
    for words in lines[1 + n :]:
        if not words[0].isdigit() or len(words) <= int(words[0]):
            return []
        corners = words[1 : 1 + int(words[0])]
        if not all(re.fullmatch(r"\d{1,18}", w) for w in corners):
            return []
        out.append([int(w) for w in corners])
    return out


def _flat_face(name: str, row: int, rest: list[str], at: int) -> tuple[list[int], int]:
    size = rest[at] if at < len(rest) else ""
    if not re.fullmatch(r"\d{1,9}", size) or at + 1 + int(size) > len(rest):
        raise refusal(name, f"face {row} is cut off", _AGAIN)
    corners = rest[at + 1 : at + 1 + int(size)]
    if not all(re.fullmatch(r"\d{1,18}", w) for w in corners):
        raise refusal(name, f"face {row} holds an index that is not a whole number", _AGAIN)
    return [int(w) for w in corners], at + 1 + int(size)


def _floats(name: str, line: int, words: list[str]) -> list[float]:
    try:
        return [float(w) for w in words]
    except ValueError:
        where = f"line {line}" if line else "a vertex"
        text = shown(" ".join(words[:4]), 24)
        raise refusal(name, f'{where}: "{text}" is not numbers', _AGAIN) from None


def _odd(name: str, line: int, wrong: str, way_out: str):
    return refusal(name, f"line {line}: {wrong}", way_out)
