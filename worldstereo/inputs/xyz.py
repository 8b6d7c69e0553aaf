"""Lists of points as text: XYZ, PTS, CSV, TXT and ASC, with or without names of their columns.

Columns are x y z, then what the line of names says; without one, three more are colours (a share
of 1 or of 255, or of 65535), a single one an intensity, and three after the colours normals.
"""

import re

import numpy as np

from worldstereo.inputs.limits import Limits, refusal, shown
from worldstereo.inputs.meshes import text_of
from worldstereo.inputs.surface import Surface, color_share, stretched

SUFFIXES = (".xyz", ".pts", ".txt", ".csv", ".asc", ".xyzrgb", ".xyzn")
LOOKED_AT = 1 << 14
_COMMENT = ("#", "//", "%")
_SPLIT = re.compile(r"[\s,;]+")
_NAMES = {
    "x": ("x", "px", "pos_x", "position_x", "x_coord", "easting", "east", "e", "coord_x"),
    "y": ("y", "py", "pos_y", "position_y", "y_coord", "northing", "north", "n", "coord_y"),
    "z": ("z", "pz", "pos_z", "position_z", "z_coord", "elevation", "height", "altitude",
          "coord_z"),
    "r": ("r", "red", "rf", "diffuse_red", "color_r"),
    "g": ("g", "green", "gf", "diffuse_green", "color_g"),
    "b": ("b", "blue", "bf", "diffuse_blue", "color_b"),
    "nx": ("nx", "normal_x", "normalx"), "ny": ("ny", "normal_y", "normaly"),
    "nz": ("nz", "normal_z", "normalz"),
    "i": ("i", "intensity", "scalar_intensity", "reflectance"),
}  # fmt: skip
_KNOWN = {word: key for key, words in _NAMES.items() for word in words}


def _split(line: str) -> list[str]:
    """Entries of a line: a comma is decimal where semicolons, tabs or blanks stand between."""
    line = line.strip()
    if ";" in line or ("\t" in line and "," in line):
        return [w.strip().replace(",", ".") for w in re.split(r"[;\t]", line) if w.strip()]
    return [w for w in _SPLIT.split(line) if w]


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def is_list(head: bytes) -> bool:
    """Whether the first lines are points: three numbers or more in a row, as many in each."""
    try:
        lines = text_of("", head).splitlines()
    except Exception:
        return False
    lines = lines[: -1 if len(head) >= LOOKED_AT else None]
    rows = [_split(line) for line in lines if line.strip() and not line.startswith(_COMMENT)]
    numeric = [len(r) for r in rows if len(r) >= 3 and all(_number(w) is not None for w in r)]
    if not numeric or len(numeric) < len(rows) - 2:
        return False
    return max(set(numeric), key=numeric.count) >= 3 and len(set(numeric)) <= 2


def read_xyz(name: str, data: bytes, limits: Limits) -> Surface:
    """The points of a list.

    Raises:
        InputRefused: no line of names and not three numbers a line, or mostly damaged lines.
    """
    lines = text_of(name, data).splitlines()
    names: list[str] | None = None
    rows: list[list[float]] = []
    width, bad, first_bad = 0, 0, 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if line.lstrip().startswith(_COMMENT):
            if not rows and names is None:
                names = _columns(_split(line.lstrip("#/% \t")))
            continue
        words = _split(line)
        values = [_number(word) for word in words]
        if None in values:
            found = None if rows else _columns(words)
            if found is not None:
                names = found
                continue
            values = _named_only(words, names) if names is not None else None
        if values is not None and len(values) == 1 and not rows:
            continue  # PTS: how many points follow
        if values is None or None in values or len(values) < 3 or (width and len(values) < width):
            bad, first_bad = bad + 1, first_bad or number
            continue
        width = width or len(values)
        rows.append([v for v in values[:width] if v is not None])
        if len(rows) > limits.points:
            raise refusal(name, f"more than {limits.points} points", "Fewer are accepted")
    if not rows or bad > len(rows):
        where = f"line {first_bad} " if first_bad else ""
        raise refusal(
            name,
            f"is no list of points: {where}holds no three numbers" if where else "holds no points",
            "Lines of x y z, with r g b after them or a line of names, are accepted",
        )
    table = np.array(rows, dtype=np.float64)
    said = (
        (f"{bad} of {bad + len(rows)} lines left out: line {first_bad} is no point.",)
        if bad
        else ()
    )
    keys = names if names is not None and len(names) >= 3 else _guessed(name, table)
    return surface_of(name, table, keys, said)


def _named_only(words: list[str], names: list[str]) -> list[float | None]:
    """A row with text in columns that have no meaning here (a label): NaN there."""
    return [
        value if (value := _number(word)) is not None or (k < len(names) and names[k]) else np.nan
        for k, word in enumerate(words)
    ]


def _columns(words: list[str]) -> list[str] | None:
    """What a line of names means, column by column; None where it names no x, y and z."""
    keys = [_KNOWN.get(w.strip().strip("\"'").lower().removeprefix("//"), "") for w in words]
    return keys if {"x", "y", "z"} <= set(keys) else None


def _guessed(name: str, table: np.ndarray) -> list[str]:
    n = table.shape[1]
    low = name.lower()
    if n >= 6 and low.endswith(".xyzn"):
        return ["x", "y", "z", "nx", "ny", "nz"]
    if n == 4:
        return ["x", "y", "z", "i"]
    if n in (6, 9) or (n > 6 and low.endswith(".xyzrgb")):
        last = table[:, 3:6]
        if (
            n == 6
            and (last < -1e-6).any()
            and np.allclose(np.linalg.norm(last, axis=1), 1, atol=0.02)
        ):
            return ["x", "y", "z", "nx", "ny", "nz"]
        return ["x", "y", "z", "r", "g", "b", "nx", "ny", "nz"][:n]
    if n == 7:  # PTS: x y z intensity r g b; CloudCompare: x y z r g b scalar
        whole = (table[:, 4:7] == np.round(table[:, 4:7])) & (table[:, 4:7] >= 0)
        if low.endswith(".pts") or not (table[:, 3] == np.round(table[:, 3])).all():
            return ["x", "y", "z", "i", "r", "g", "b"]
        inside = bool(whole.all()) and table[:, 4:7].max() <= 255 and table[:, 3].max() > 255
        return ["x", "y", "z", *(("i", "r", "g", "b") if inside else ("r", "g", "b", "i"))]
    return ["x", "y", "z"]


def surface_of(
    name: str, table: np.ndarray, keys: list[str], notices: tuple[str, ...] = ()
) -> Surface:
    """Points from columns with known meanings: x y z, r g b, nx ny nz, i."""

    def taken(*wanted: str) -> np.ndarray | None:
        if not all(k in keys for k in wanted):
            return None
        return np.stack([table[:, keys.index(k)] for k in wanted], axis=1)

    points, colors, normals = taken("x", "y", "z"), taken("r", "g", "b"), taken("nx", "ny", "nz")
    if points is None:
        raise refusal(name, f"names no x, y and z: {shown(', '.join(keys), 40)}", "Name them")
    if colors is not None:
        colors = color_share(colors)
    elif (intensity := taken("i")) is not None:
        colors = np.repeat(stretched(intensity[:, 0])[:, None], 3, axis=1)
        notices = (*notices, "The file holds no colours; its intensity is shown as grey.")
    none = np.zeros((0, 3), np.int64)
    return Surface(points, none, colors, normals, notices=notices)
