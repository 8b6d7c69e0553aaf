"""RGB-D captures: `frames.json`, Open3D `.log`, TUM text, one matrix a frame.

The text forms put the centre of the first pixel at integer coordinates: half a pixel is added to
cx and cy. Poses are camera-to-world with OpenCV axes.
"""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo.errors import InputRefused
from worldstereo.inputs import colmap, images, jsonfile, ply, poses
from worldstereo.inputs.archive import Bundle, natural
from worldstereo.inputs.assemble import Shot, assemble, cloud_of
from worldstereo.inputs.capture import captured
from worldstereo.inputs.lens import MODELS, Lens
from worldstereo.inputs.limits import refusal, shown
from worldstereo.scene import Capture

COLOR_FOLDERS = ("color", "colour", "rgb", "image", "images")
DEPTH_FOLDERS = ("depth", "depths")
MILLIMETRE, TUM_UNIT, TENTH = 0.001, 0.0002, 0.0001


def read_frames(bundle: Bundle, member: str) -> Capture:
    """`frames.json`: one camera, a 4x4 `c2w` for each frame, depth optional."""
    limits = bundle.limits
    name = posixpath.basename(member)
    root = jsonfile.Node(jsonfile.parse(name, bundle.read(member), limits), name)
    base = posixpath.dirname(member)
    half = 0.5 - (root.at("pixel_center").number(0, 0.5) if root.has("pixel_center") else 0.5)
    unit = 1.0
    if root.has("depth"):
        unit = root.at("depth").at("metres_per_unit").number(1e-9, 1e3)
    shared = _lens(root.at("camera"), half) if root.has("camera") else None
    shots = []
    for node in root.at("frames").items(limits.images, "frames"):
        image = bundle.inside(base, node.at("image").text(), name, node.place)
        node.place = f"{node.place} ({shown(node.at('image').text(), 32)})"
        depth = None
        if node.has("depth"):
            depth = bundle.inside(base, node.at("depth").text(), name, node.place)
        c2w = poses.pose(name, node.place, node.at("c2w").array(4, 4))
        lens = _lens(node.at("camera"), half) if node.has("camera") else shared
        if lens is None:
            raise root.refuse('"camera" is missing', "Width, height, fx, fy, cx and cy are needed")
        shots.append(Shot(node.place, image, c2w, lens, depth, unit))
    kind = "rgbd" if any(shot.depth for shot in shots) else "photos"
    assembled, cloud = assemble(name, bundle, shots), None
    if root.has("points"):
        given = root.at("points").text()
        points = bundle.inside(base, given, name, "points")
        if points not in bundle:
            raise refusal(name, f"{shown(given, 40)} is missing", "Put the file there")
        cloud = cloud_of(*ply.points_of(bundle, points), assembled.origin)
    elif (sparse := colmap.points_beside(bundle, base)) is not None:
        cloud = cloud_of(*sparse, assembled.origin)
    return captured(bundle, kind, assembled, cloud=cloud, metres_per_unit=_metres(root))


def _metres(root: jsonfile.Node) -> float | None:
    """1 where `units` says metre, or where only the depth does; None for any other unit."""
    if root.has("units"):
        word = str(root.at("units").value).strip().lower()
        return 1.0 if word in ("m", "metre", "metres", "meter", "meters") else None
    return 1.0 if root.has("depth") else None


def _lens(node: jsonfile.Node, half: float) -> Lens:

    width, height = (node.at(k).integer(1, 1 << 20) for k in ("width", "height"))
    model = node.at("model").text() if node.has("model") else "PINHOLE"
    if model not in MODELS:
        raise node.refuse(f"camera model {shown(model, 24)}", f"{', '.join(MODELS)} are accepted")
    both = node.at("f").number() if node.has("f") else None
    fx = node.at("fx").number() if both is None else both
    fy = node.at("fy").number() if both is None else both
    cx, cy = (node.at(k).number() + half for k in ("cx", "cy"))
    K = poses.intrinsics(node.name, node.place, fx, fy, cx, cy, width, height)
    fisheye = model == "OPENCV_FISHEYE"
    ks = tuple(node.at(k).number(-100, 100) if node.has(k) else 0.0 for k in
               ("k1", "k2", "k3", "k4", "k5", "k6"))  # fmt: skip
    p = tuple(node.at(k).number(-100, 100) if node.has(k) else 0.0 for k in ("p1", "p2"))
    return Lens(K, width, height, ks[:4] if fisheye else ks, (p[0], p[1]), fisheye)


@dataclass(frozen=True)
class _Pair:
    color: str
    depth: str


def find_text(bundle: Bundle) -> tuple[str, str] | None:
    """The pose file of a text form and which form it is; None when there is none."""
    for name in sorted(bundle.names, key=lambda n: (n.count("/"), natural(n))):
        low = posixpath.basename(name).lower()
        if low.endswith(".log") and re.match(rb"\s*\d+\s+-?\d+\s+-?\d+\s*\n", _head(bundle, name)):
            return name, "log"
        if low in (
            "groundtruth.txt",
            "poses.txt",
            "pose.txt",
            "trajectory.txt",
            "camera_trajectory.txt",
        ):
            return name, "tum"
        if low == "cam.info.txt":
            return name, "info"
        if re.search(r"(pose|extrinsic)s?[._-]?(\d*)\.txt$", low) or re.fullmatch(
            r"(.*/)?(pose|poses|extrinsics|c2w)/[^/]*\d+\.txt", name.lower()
        ):
            return name, "matrix"
    return None


def read_text(bundle: Bundle, member: str, form: str) -> Capture:
    """Poses in one of the text forms, beside a folder of pictures and one of depth."""
    base = posixpath.dirname(member)
    if form == "matrix" and posixpath.basename(base).lower() in (
        "pose",
        "poses",
        "extrinsics",
        "c2w",
    ):
        base = posixpath.dirname(base)
    pairs = _pairs(bundle, base, member)
    name = posixpath.basename(member)
    if form == "log":
        c2w, unit = _log(bundle, name, member), MILLIMETRE
        pairs = _counted(name, pairs, len(c2w))
    elif form == "tum":
        pairs, c2w = _tum(bundle, name, member, pairs)
        unit = TUM_UNIT
    elif form == "info":
        pairs, c2w = _info(bundle, name, member, pairs)
        unit = TENTH
    else:
        pairs, c2w = _matrices(bundle, base, pairs)
        unit = MILLIMETRE
    width, height = images.size(pairs[0].color, bundle.read(pairs[0].color), bundle.limits)
    lens, mirrored, notices = _calibration(bundle, base, member, form, width, height)
    if mirrored:  # an image whose y axis runs up: conjugate, so that the usual axes hold
        flip = np.diag([1.0, -1.0, 1.0, 1.0])
        c2w = [flip @ m @ flip for m in c2w]
    shots = [
        Shot(f"frame {i}", pair.color, poses.pose(name, f"frame {i}", m), lens, pair.depth, unit)
        for i, (pair, m) in enumerate(zip(pairs, c2w, strict=True))
    ]
    # All text forms give positions in metres and depth in a fixed part of a metre.
    return captured(
        bundle, "rgbd", assemble(name, bundle, shots), notices=notices, metres_per_unit=1.0
    )


def _head(bundle: Bundle, name: str) -> bytes:
    return bundle.read(name)[:200] if bundle.sizes[name] <= bundle.limits.json_bytes else b""


def _lines(bundle: Bundle, name: str, member: str) -> list[tuple[int, str]]:
    """Lines with their numbers, without comments and blanks."""
    if bundle.sizes[member] > bundle.limits.json_bytes:
        raise bundle.too_large(name, bundle.sizes[member])
    text = bundle.read(member).decode("utf-8", errors="replace")
    rows = ((i, line.strip()) for i, line in enumerate(text.splitlines(), 1))
    return [(i, line) for i, line in rows if line and not line.startswith("#")]


def numbers(name: str, line: int, text: str, count: Sequence[int]) -> np.ndarray:
    """The numbers of one line of text.

    Raises:
        InputRefused: another count, or an entry that is no number.
    """
    parts = text.replace(",", " ").split()
    if len(parts) not in count:
        wanted = " or ".join(map(str, count))
        raise refusal(
            name, f"line {line} holds {len(parts)} entries", f"{wanted} numbers are accepted"
        )
    try:
        return np.array([float(p) for p in parts])
    except ValueError:
        raise refusal(
            name,
            f'line {line}: "{shown(text, 32)}" is not numbers',
            f"{count[0]} numbers are accepted",
        ) from None


def _matrix(name: str, rows: list[tuple[int, str]]) -> np.ndarray:
    return np.stack([numbers(name, i, text, (4,)) for i, text in rows])


def _log(bundle: Bundle, name: str, member: str) -> list[np.ndarray]:
    """Open3D: a line of three integers, then four rows of a matrix, for each frame."""
    rows = _lines(bundle, name, member)
    if not rows or len(rows) % 5:
        raise refusal(
            name,
            f"{len(rows)} lines are not whole frames",
            "5 lines a frame are accepted: ids, then 4x4",
        )
    if len(rows) // 5 > bundle.limits.images:
        raise refusal(
            name, f"{len(rows) // 5} frames", f"At most {bundle.limits.images} are accepted"
        )
    return [_matrix(name, rows[i + 1 : i + 5]) for i in range(0, len(rows), 5)]


def _tum(
    bundle: Bundle, name: str, member: str, pairs: list[_Pair]
) -> tuple[list[_Pair], list[np.ndarray]]:
    """TUM: `[time] tx ty tz qx qy qz qw` a line; with a time, frames are matched by their names."""
    rows = [(i, numbers(name, i, text, (8, 7))) for i, text in _lines(bundle, name, member)]
    if not rows:
        raise refusal(name, "holds 0 poses", "Lines of tx ty tz qx qy qz qw are accepted")

    def matrix(line: int, v: np.ndarray) -> np.ndarray:
        x, y, z, w = v[3:]
        if not np.isfinite(v).all():
            raise refusal(name, f"line {line} holds {v[~np.isfinite(v)][0]}",
                          "Only finite numbers are accepted")  # fmt: skip
        R = poses.quaternion(name, f"line {line}", np.array([w, x, y, z]))
        return poses.rigid(R, v[:3])

    timed = len(rows[0][1]) == 8
    if any((len(v) == 8) != timed for _, v in rows):
        raise refusal(
            name, "some lines have a time and some not", "7 or 8 numbers a line, all alike"
        )
    times = [_time(pair.color) for pair in pairs]
    if not timed or any(t is None for t in times):
        if len(rows) != len(pairs):
            _counted(name, pairs, len(rows))
        return pairs, [matrix(i, v[-7:]) for i, v in rows]
    stamps = np.array([v[0] for _, v in rows])
    kept, out = [], []
    for pair, t in zip(pairs, times, strict=True):
        best = int(np.abs(stamps - t).argmin())
        if abs(stamps[best] - t) <= 0.03:
            line, v = rows[best]
            kept.append(pair)
            out.append(matrix(line, v[1:]))
    if not kept:
        raise refusal(
            name, f"no picture is within 0.03 s of its {len(rows)} poses", "Check the time stamps"
        )
    return kept, out


def _time(name: str) -> float | None:
    stem = posixpath.splitext(posixpath.basename(name))[0]
    return float(stem) if re.fullmatch(r"\d+(\.\d+)?", stem) else None


def _info(
    bundle: Bundle, name: str, member: str, pairs: list[_Pair]
) -> tuple[list[_Pair], list[np.ndarray]]:
    """Matrices in one commented file: `# Camera-to-world ... for frame-000000`, then four rows."""
    text = bundle.read(member).decode("utf-8", errors="replace").splitlines()
    found: dict[str, np.ndarray] = {}
    for i, line in enumerate(text):
        match = re.search(r"camera-to-world.*for\s+(\S+)", line, re.IGNORECASE)
        if match:
            rows = [(j + 1, text[j]) for j in range(i + 1, min(i + 5, len(text)))]
            if len(rows) < 4:
                raise refusal(name, f"line {i + 1}: the matrix is cut off", "4 rows are accepted")
            found[match.group(1)] = _matrix(name, rows)
    stems = [_stem(pair.color) for pair in pairs]
    for stem in stems:
        if stem not in found:
            raise refusal(
                name, f"holds no pose for {shown(stem, 32)}", "One pose a picture is accepted"
            )
    for stem in found:
        if stem not in stems:
            raise refusal(
                name, f"{shown(stem, 32)} has a pose and no picture", "Put the picture there"
            )
    return pairs, [found[stem] for stem in stems]


def _matrices(
    bundle: Bundle, base: str, pairs: list[_Pair]
) -> tuple[list[_Pair], list[np.ndarray]]:
    """One 4x4 text file a frame, its name holding the number or the stem of the picture."""
    files: dict[str, str] = {}
    for n in bundle.child(".txt"):
        low = posixpath.basename(n).lower()
        in_folder = posixpath.basename(posixpath.dirname(n)).lower() in (
            "pose",
            "poses",
            "extrinsics",
            "c2w",
        )
        if in_folder or re.search(r"(pose|extrinsic)", low):
            digits = re.findall(r"\d+", low)
            if digits:
                files[str(int(digits[-1]))] = n
    out = []
    for pair in pairs:
        digits = re.findall(r"\d+", _stem(pair.color))
        key = str(int(digits[-1])) if digits else ""
        if key not in files:
            raise refusal(
                bundle.name,
                f"{shown(pair.color, 40)} has no pose file",
                "One 4x4 text file a picture",
            )
        name = posixpath.basename(files[key])
        rows = _lines(bundle, name, files[key])
        if len(rows) not in (3, 4):
            raise refusal(name, f"holds {len(rows)} rows", "4 rows of 4 numbers are accepted")
        matrix = _matrix(name, rows)
        if len(matrix) == 3:
            matrix = np.concatenate([matrix, [[0, 0, 0, 1.0]]])
        out.append(poses.pose(name, "", matrix))
    return pairs, out


def _stem(name: str) -> str:
    stem = posixpath.basename(name).rsplit(".", 1)[0]
    return re.sub(r"\.(color|rgb|depth)$", "", stem)


def _pairs(bundle: Bundle, base: str, member: str) -> list[_Pair]:
    """Pictures and depth maps in natural order, one of each a frame."""

    def members(folders: tuple[str, ...], suffixes: tuple[str, ...]) -> list[str]:
        for folder in folders:
            for name in {posixpath.dirname(n) for n in bundle.names}:
                if name.lower() == posixpath.join(base, folder).lower():
                    return bundle.child(*suffixes, folder=name)
        return []

    color = members(COLOR_FOLDERS, images.SUFFIXES)
    depth = members(DEPTH_FOLDERS, images.DEPTH_SUFFIXES)
    if not color and not depth:  # 7-Scenes: frame-000000.color.png beside frame-000000.depth.png
        both = bundle.child(*images.SUFFIXES, folder=base)
        color = [n for n in both if re.search(r"[.-_](color|rgb)\.\w+$", n.lower())]
        depth = [n for n in both if re.search(r"[.-_]depth\.\w+$", n.lower())]
    name = posixpath.basename(member)
    if not color:
        raise refusal(
            name, "there is no folder of pictures beside it", "color/ and depth/ are accepted"
        )
    if not depth:
        raise refusal(
            name, "there is no folder of depth beside it", "color/ and depth/ are accepted"
        )
    if len(color) != len(depth):
        at = _unmatched(color, depth)
        if at is None:
            raise refusal(
                bundle.name,
                f"{len(color)} pictures and {len(depth)} depth maps",
                "One depth map a picture is accepted",
            )
        color, depth = at
    return [_Pair(c, d) for c, d in zip(color, depth, strict=True)]


def _unmatched(color: list[str], depth: list[str]) -> tuple[list[str], list[str]] | None:
    """Pictures and depth by nearest time stamp, as TUM records them; None without stamps."""
    tc, td = [_time(n) for n in color], [_time(n) for n in depth]
    if any(t is None or t < 1e6 for t in tc + td):
        return None
    stamps = np.array(td, dtype=float)
    keep = [(c, depth[int(np.abs(stamps - t).argmin())]) for c, t in zip(color, tc, strict=True)
            if np.abs(stamps - t).min() <= 0.03]  # fmt: skip
    return ([c for c, _ in keep], [d for _, d in keep]) if keep else None


def _counted(name: str, pairs: list[_Pair], n: int) -> list[_Pair]:
    if len(pairs) != n:
        raise refusal(
            name, f"{n} poses for {len(pairs)} pictures", "One pose a picture is accepted"
        )
    return pairs


def _calibration(
    bundle: Bundle, base: str, member: str, form: str, width: int, height: int
) -> tuple[Lens, bool, tuple[str, ...]]:
    """Intrinsics from the files beside the poses; those of a Kinect when there are none."""
    found = _calibration_values(bundle, base, member, form)
    notices: tuple[str, ...] = ()
    if found is None:
        focal = 525.0 * max(width, height) / 640
        found = ("", np.array([focal, focal, width / 2 - 0.5, height / 2 - 0.5]), (width, height))
        notices = (
            f"No camera calibration was found; a focal length of {focal:.0f} px was assumed.",
        )
    name, (fx, fy, cx, cy), size = found
    w, h = size or (width, height)
    K = poses.intrinsics(name or bundle.name, "", fx, abs(fy), cx + 0.5, cy + 0.5, w, h)
    return Lens(K, w, h), bool(fy < 0), notices


def _calibration_values(
    bundle: Bundle, base: str, member: str, form: str
) -> tuple[str, np.ndarray, tuple[int, int] | None] | None:
    if form == "info":
        text = bundle.read(member).decode("utf-8", errors="replace").splitlines()
        for i, line in enumerate(text):
            if re.search(r"color camera intrinsic", line, re.IGNORECASE):
                name = posixpath.basename(member)
                rows = [
                    numbers(name, j + 1, text[j], (3,)) for j in range(i + 1, min(i + 4, len(text)))
                ]
                if len(rows) == 3:
                    K = np.stack(rows)
                    return name, K[[0, 1, 0, 1], [0, 1, 2, 2]], None
    for path in bundle.child(".json", ".txt", folder=base):
        name = posixpath.basename(path)
        low = name.lower()
        if not re.search(r"(camera|intrinsic|calib)", low) or path == member:
            continue
        if low.endswith(".json"):
            node = jsonfile.Node(jsonfile.parse(name, bundle.read(path), bundle.limits), name)
            size = None
            if node.has("width") and node.has("height"):
                size = (node.at("width").integer(1, 1 << 20), node.at("height").integer(1, 1 << 20))
            if node.has("intrinsic_matrix"):
                m = node.at("intrinsic_matrix").array(9)  # column-major
                return name, m[[0, 4, 6, 7]], size
            if node.has("fx"):
                return name, np.array([node.at(k).number() for k in ("fx", "fy", "cx", "cy")]), size
            continue
        try:
            rows = _lines(bundle, name, path)
            if len(rows) == 3:
                K = np.stack([numbers(name, i, text, (3,)) for i, text in rows])
                return name, K[[0, 1, 0, 1], [0, 1, 2, 2]], None
            values = numbers(name, rows[0][0], rows[0][1], (4, 6, 9)) if rows else np.zeros(0)
        except InputRefused:
            continue  # another text file whose name only sounds like a calibration
        if len(values) == 9:
            return name, values[[0, 4, 2, 5]], None
        if len(values) == 6:
            return name, values[2:], (int(values[0]), int(values[1]))
        if len(values) == 4:
            return name, values, None
    return None
