"""Calibrations beside RGB-D pictures: matrices, key-value text, YAML-like text and JSON.

A calibration that is there but cannot be read is refused with its place, never replaced by a
guess. Centres of pixels are at whole numbers in all of these; half a pixel is added here.
"""

import posixpath
import re
from dataclasses import dataclass

import numpy as np

from worldstereo.inputs import jsonfile, poses
from worldstereo.inputs.archive import Bundle, natural
from worldstereo.inputs.lens import Lens
from worldstereo.inputs.limits import refusal, shown

FOLDERS = (
    "",
    "intrinsic",
    "intrinsics",
    "calibration",
    "calib",
    "camera",
    "cameras",
    "sensor",
    "_info",
)
_SURE = re.compile(
    r"(intrinsic|calib|camera[_-]?(param|matrix|info)|cam_params|^k\.txt$|^_?info\.txt$)"
)
_MAYBE = re.compile(r"(^|[_-])camera?s?([_-]|\.|$)|^scene\d+_\d+\.txt$|^sensor\.ya?ml$")
_POSES = re.compile(r"(extrinsic|pose|traj|imu|odometry|timestamp|times)")
_SUFFIXES = (".txt", ".json", ".yaml", ".yml", ".csv", ".cfg", ".ini")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FX = {"fx": ("fx", "fx_color", "camera1.fx", "camera.fx", "rgb.fx", "fl_x", "focal_length_x"),
       "fy": ("fy", "fy_color", "camera1.fy", "camera.fy", "rgb.fy", "fl_y",
              "focal_length_y"),
       "cx": ("cx", "mx_color", "camera1.cx", "camera.cx", "rgb.cx", "ppx", "cx_color"),
       "cy": ("cy", "my_color", "camera1.cy", "camera.cy", "rgb.cy", "ppy",
              "cy_color")}  # fmt: skip
_SIZE = {"w": ("width", "w", "camera.width", "colorwidth", "camera.w", "image_width"),
         "h": ("height", "h", "camera.height", "colorheight", "camera.h",
               "image_height")}  # fmt: skip
_BENT = {f"{a}{i}": (f"{a}{i}", f"camera1.{a}{i}", f"camera.{a}{i}") for a, i in
         (("k", 1), ("k", 2), ("k", 3), ("p", 1), ("p", 2))}  # fmt: skip
_SCALES = ("depth_scale", "depthmapfactor", "rgbd.depthmapfactor", "depth_factor", "depthscale",
           "png_depth_scale", "depthshift", "m_depthshift", "depth_shift", "scale", "camera.scale",
           "depth_unit", "metres_per_unit", "meters_per_unit")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a file says of one camera."""

    name: str
    values: np.ndarray
    """fx fy cx cy, centres of pixels at whole numbers; fy below 0: the y axis runs up."""
    size: tuple[int, int] | None = None
    bent: dict[str, float] | None = None
    unit: float | None = None
    """Metres of one step of the depth pictures, where the file says it."""

    def lens(self, width: int, height: int) -> Lens:
        fx, fy, cx, cy = self.values
        w, h = self.size or (width, height)
        K = poses.intrinsics(self.name, "", fx, abs(fy), cx + 0.5, cy + 0.5, w, h)
        bent = self.bent or {}
        k = tuple(bent.get(f"k{i}", 0.0) for i in (1, 2, 3))
        return Lens(K, w, h, k if any(k) else (), (bent.get("p1", 0.0), bent.get("p2", 0.0)))


def candidates(bundle: Bundle, base: str, *words: str) -> list[str]:
    """Files that may hold the calibration of a capture, the likeliest first."""
    folders = {posixpath.join(base, f).rstrip("/").lower() for f in FOLDERS}
    parent = posixpath.dirname(base) if base else None
    out: list[tuple[int, str]] = []
    for name in sorted(bundle.names, key=natural):
        low = posixpath.basename(name).lower()
        folder = posixpath.dirname(name).lower()
        if not low.endswith(_SUFFIXES) or _POSES.search(low) or low.startswith("extrinsic"):
            continue
        own = posixpath.basename(folder) in FOLDERS[1:]
        sure = _SURE.search(low) is not None or (own and folder != base.lower())
        if not sure and not _MAYBE.search(low):
            continue
        if folder not in folders and not (parent is not None and folder == parent.lower()):
            continue
        rank = (0 if sure else 2) + (folder not in folders)
        if words and any(w in low for w in words):
            rank -= 4
        elif "depth" in low or "ir" in re.split(r"[_.-]", low):
            rank += 8
        out.append((rank, name))
    return [name for _, name in sorted(out, key=lambda pair: pair[0])]


def beside(bundle: Bundle, base: str, exclude: str, *words: str) -> Calibration | None:
    """The calibration of the pictures of a capture; None where no file speaks of one.

    Raises:
        InputRefused: a file that is a calibration by its name and cannot be understood.
    """
    for path in candidates(bundle, base, *words):
        if path == exclude:
            continue
        low = posixpath.basename(path).lower()
        if not words and ("depth" in low or "ir" in re.split(r"[_.-]", low)):
            continue
        sure = _SURE.search(low) is not None
        found = read_calibration(bundle, path, sure)
        if found is not None:
            return found
    return None


def read_calibration(bundle: Bundle, path: str, sure: bool) -> Calibration | None:
    """The calibration in a file; None where it speaks of something else and is not `sure`."""
    name = posixpath.basename(path)
    if bundle.sizes[path] > bundle.limits.json_bytes:
        raise bundle.too_large(name, bundle.sizes[path])
    data = bundle.read(path)
    if path.lower().endswith(".json"):
        return _json(bundle, name, data, sure)
    text = data.decode("utf-8", errors="replace")
    if "\0" in text or (sure and not text.strip()):
        what = "is empty" if not text.strip() else "is not text"
        raise refusal(name, f"the calibration {what}", "fx fy cx cy, or a 3x3 or 4x4 matrix")
    return _keyed(name, text) or _rows(name, text, sure)


def _json(bundle: Bundle, name: str, data: bytes, sure: bool) -> Calibration | None:
    node = jsonfile.Node(jsonfile.parse(name, data, bundle.limits), name)
    for key in ("camera", "color", "rgb", "intrinsics", "intrinsic", "K", "cameraMatrix"):
        if not isinstance(node.value, dict) or node.has("fx") or node.has("intrinsic_matrix"):
            break
        if node.has(key) and isinstance(node.at(key).value, dict):
            node = node.at(key)
    size, unit = None, None
    if not isinstance(node.value, dict):
        if sure:
            raise node.refuse(
                "is no object with fx, fy, cx and cy", "Such a calibration is accepted"
            )
        return None
    for w, h in (("width", "height"), ("w", "h"), ("image_width", "image_height")):
        if node.has(w) and node.has(h):
            size = (node.at(w).integer(1, 1 << 20), node.at(h).integer(1, 1 << 20))
    for key in ("depth_scale", "scale", "depth_factor", "depth_unit"):
        if node.has(key) and unit is None:
            unit = unit_of(node.at(key).number(1e-9, 1e9))
    bent = {k: node.at(k).number(-100, 100) for k in _BENT if node.has(k)}
    if node.has("intrinsic_matrix"):
        given = node.at("intrinsic_matrix")
        if isinstance(given.value, list) and len(given.value) == 3:
            K = given.array(3, 3)
            return Calibration(name, K[[0, 1, 0, 1], [0, 1, 2, 2]], size, bent, unit)
        m = given.array(9)  # column-major, as Open3D writes it
        return Calibration(name, m[[0, 4, 6, 7]], size, bent, unit)
    for key in ("K", "camera_matrix", "cameraMatrix", "intrinsics", "intrinsic", "matrix"):
        if node.has(key) and isinstance(node.at(key).value, list):
            given, rows = node.at(key), node.at(key).value
            if len(rows) == 4 and not isinstance(rows[0], list):
                return Calibration(name, given.array(4), size, bent, unit)
            K = given.array(9).reshape(3, 3) if len(rows) == 9 else given.array(3, 3)
            return Calibration(name, K[[0, 1, 0, 1], [0, 1, 2, 2]], size, bent, unit)
    if node.has("fx"):
        values = np.array([node.at(k).number() for k in ("fx", "fy", "cx", "cy")])
        return Calibration(name, values, size, bent, unit)
    if sure and not node.has("frames"):
        raise node.refuse("names no fx, fy, cx and cy", "Such a calibration is accepted")
    return None


def unit_of(scale: float) -> float:
    """Metres of one step: tools write steps of a metre (1000), or metres of a step (0.001)."""
    return 1.0 / scale if scale > 1 else scale


def _keyed(name: str, text: str) -> Calibration | None:
    """`fx = 525.0`, `Camera.fx: 525.0`, `m_calibrationColorIntrinsic = 16 numbers`."""
    pairs = {
        m.group(1).strip().lower(): m.group(2).strip()
        for m in re.finditer(r"^\s*\"?([A-Za-z_][\w .-]*?)\"?\s*[:=]\s*(.+?)\s*,?\s*$", text, re.M)
    }
    if not pairs:
        return None
    numbers = {k: float(v) for k, v in pairs.items() if re.fullmatch(_NUMBER, v)}

    def first(keys: tuple[str, ...]) -> float | None:
        return next((numbers[k] for k in keys if k in numbers), None)

    size_w, size_h = first((*_SIZE["w"], "m_colorwidth")), first((*_SIZE["h"], "m_colorheight"))
    size = (int(size_w), int(size_h)) if size_w and size_h else None
    scale = first(_SCALES)
    unit = unit_of(scale) if scale is not None and scale > 0 else None
    whole = pairs.get("m_calibrationcolorintrinsic") or pairs.get("colorintrinsic")
    if whole is not None:
        K = _square(name, 0, whole.split(), 16).reshape(4, 4)
        return Calibration(name, K[[0, 1, 0, 1], [0, 1, 2, 2]], size, None, unit)
    listed = re.search(r"intrinsics\s*:\s*\[([^\]]*)\]", text)
    if listed is not None:  # EuRoC's sensor.yaml
        values = _square(name, 0, re.split(r"[\s,]+", listed.group(1).strip()), 4)
        return Calibration(name, values, size, None, unit)
    values = [first(_FX[k]) for k in ("fx", "fy", "cx", "cy")]
    if values[0] is None or values[2] is None or values[3] is None:
        return None
    values[1] = values[0] if values[1] is None else values[1]
    bent = {k: v for k, keys in _BENT.items() if (v := first(keys)) is not None}
    return Calibration(name, np.array(values, dtype=float), size, bent, unit)


def _rows(name: str, text: str, sure: bool) -> Calibration | None:
    """Numbers alone: a matrix of 3x3, 3x4 or 4x4, `fx fy cx cy`, or `w h fx fy cx cy`."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"[\[\],;]", " ", line.split("#", 1)[0]).split()
        if not words:
            continue
        try:
            rows.append([float(w) for w in words])
        except ValueError:
            if not sure:
                return None
            raise refusal(
                name, f'line {number}: "{shown(line, 32)}" is not numbers',
                "fx fy cx cy, or a 3x3 or 4x4 matrix, is accepted",
            ) from None  # fmt: skip
    flat = np.array([v for row in rows for v in row])
    square = len(rows) in (3, 4) and len({len(r) for r in rows}) == 1 and len(rows[0]) in (3, 4)
    K = np.array(rows) if square else None
    if K is None and len(flat) in (9, 12, 16):
        K = flat.reshape(-1, 3 if len(flat) == 9 else 4)
    if not sure and (K is None or not _is_camera(K)) and len(rows) != 1:
        return None
    if not np.isfinite(flat).all():
        raise refusal(name, f"the calibration holds {flat[~np.isfinite(flat)][0]}",
                      "Only finite numbers are accepted")  # fmt: skip
    if K is not None:
        return Calibration(name, K[[0, 1, 0, 1], [0, 1, 2, 2]])
    if len(flat) == 4:
        return Calibration(name, flat)
    if len(flat) == 6:
        return Calibration(name, flat[2:], (int(flat[0]), int(flat[1])))
    if len(flat) in (5, 8, 9) and len(rows) == 1:
        return Calibration(name, flat[:4])
    if sure:
        raise refusal(name, f"the calibration holds {len(flat)} numbers in {len(rows)} lines",
                      "fx fy cx cy, or a 3x3 or 4x4 matrix, is accepted")  # fmt: skip
    return None


def _is_camera(K: np.ndarray) -> bool:
    zeros = (K[0, 1], K[1, 0], K[2, 0], K[2, 1])
    return K[0, 0] > 1 and abs(K[1, 1]) > 1 and K[2, 2] == 1 and not any(zeros[1:])


def _square(name: str, line: int, words: list[str], n: int) -> np.ndarray:
    try:
        values = np.array([float(w) for w in words])
    except ValueError:
        values = np.zeros(0)
    if len(values) < n or not np.isfinite(values).all():
        raise refusal(name, f"the calibration holds {len(words)} entries", f"{n} are accepted")
    return values[:n]
