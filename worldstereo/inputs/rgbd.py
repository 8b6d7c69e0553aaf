"""RGB-D captures: `frames.json`, Open3D `.log`, TUM text, Replica, one matrix a frame.

The text forms put the centre of the first pixel at integer coordinates: half a pixel is added to
cx and cy. Poses are camera-to-world with OpenCV axes.
"""

import contextlib
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo.inputs import calibration, colmap, images, jsonfile, masks, ply, poses
from worldstereo.inputs.archive import Bundle, natural
from worldstereo.inputs.assemble import Shot, assemble, cloud_of
from worldstereo.inputs.calibration import Calibration
from worldstereo.inputs.capture import captured
from worldstereo.inputs.lens import MODELS, Lens, lens_of
from worldstereo.inputs.limits import Losses, refusal, shown
from worldstereo.scene import Capture

COLOR_FOLDERS = ("color", "colour", "rgb", "image", "images", "results", "frames", "rgbd", "imgs",
                 "frames/color", "frames/rgb", "frames/rgb/camera_0", "rgb/camera_0", "image_left",
                 "color_images", "lowres_wide", "vga_wide", "")  # fmt: skip
DEPTH_FOLDERS = ("depth", "depths", "depth_images", "frames/depth", "frames/depth/camera_0",
                 "depth/camera_0", "depth_left", "lowres_depth", "results", "rgbd", "frames",
                 "")  # fmt: skip
POSE_FOLDERS = ("pose", "poses", "extrinsics", "c2w", "camera_poses", "frames/pose")
RAY_WORDS = ("ray", "distance", "euclidean", "range", "along_ray", "radial")
MILLIMETRE, TUM_UNIT, TENTH = 0.001, 0.0002, 0.0001
REPLICA_UNIT, CENTIMETRE = 1 / 6553.5, 0.01
NEAR = 0.03  # seconds between stamps of one moment


def find_frames(bundle: Bundle) -> list[str]:
    return bundle.named("frames.json")


def read_frames(bundle: Bundle, member: str) -> Capture:
    """`frames.json`: one camera, a 4x4 `c2w` for each frame, depth optional."""
    limits = bundle.limits
    name = posixpath.basename(member)
    root = jsonfile.Node(jsonfile.parse(name, bundle.read(member), limits, True), name)
    base = posixpath.dirname(member)
    half = 0.5 - (root.at("pixel_center").number(0, 0.5) if root.has("pixel_center") else 0.5)
    unit, ray = 1.0, False
    if root.has("depth"):
        depth = root.at("depth")
        unit = depth.at("metres_per_unit").number(1e-9, 1e3)
        ray = depth.has("kind") and str(depth.at("kind").value).lower() in RAY_WORDS
    shared = _lens(root.at("camera"), half) if root.has("camera") else None
    shots, losses = [], Losses("frames")
    for node in root.at("frames").items(limits.images, "frames"):
        with losses.row():
            image = bundle.inside(base, node.at("image").text(), name, node.place)
            node.place = f"{node.place} ({shown(node.at('image').text(), 32)})"
            depth, mask = None, None
            if node.has("depth"):
                depth = bundle.inside(base, node.at("depth").text(), name, node.place)
            if node.has("mask"):
                mask = bundle.inside(base, node.at("mask").text(), name, node.place)
            c2w = poses.pose(name, node.place, node.at("c2w").array(4, 4))
            lens = _lens(node.at("camera"), half) if node.has("camera") else shared
            if lens is None:
                raise root.refuse(
                    '"camera" is missing', "Width, height, fx, fy, cx and cy are needed"
                )
            shots.append(Shot(node.place, image, c2w, lens, depth, unit, mask=mask, along_ray=ray))
    losses.settle(len(shots))
    kind = "rgbd" if any(shot.depth for shot in shots) else "photos"
    assembled, cloud = assemble(name, bundle, masks.given(bundle, shots), losses), None
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
        raise node.refuse(f"camera model {shown(model, 24)}", "COLMAP's models are accepted")
    both = node.at("f").number() if node.has("f") else None
    fx = node.at("fx").number() if both is None else both
    fy = node.at("fy").number() if both is None else both
    cx, cy = (node.at(k).number() + half for k in ("cx", "cy"))
    K = poses.intrinsics(node.name, node.place, fx, fy, cx, cy, width, height)
    names = [n for n in MODELS[model].split() if n not in ("f", "fx", "fy", "cx", "cy")]
    extra = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2") if model == "PINHOLE" else ()
    bent = {k: node.at(k).number(-100, 100) for k in {*names, *extra} if node.has(k)}
    return lens_of("FULL_OPENCV" if extra and bent else model, bent, K, width, height)


@dataclass(frozen=True)
class _Pair:
    color: str
    depth: str | None


_LISTS = ("groundtruth.txt", "poses.txt", "pose.txt", "trajectory.txt", "camera_trajectory.txt",
          "traj.txt", "keyframetrajectory.txt", "cameratrajectory.txt", "camera_poses.txt",
          "stamped_groundtruth.txt", "traj_est.txt", "livingroom.gt.freiburg",
          "traj.freiburg")  # fmt: skip


def find_text(bundle: Bundle) -> list[str]:
    """The pose file of each capture in a text form: one of a folder, its first matrix, a list."""
    out: dict[str, str] = {}
    for name in sorted(bundle.names, key=lambda n: (n.count("/"), natural(n))):
        if _form(bundle, name) is not None:
            out.setdefault(_base(bundle, name), name)
    return list(out.values())


def _base(bundle: Bundle, member: str) -> str:
    """The folder that pictures and depth of a pose file lie in or below."""
    base = posixpath.dirname(member)
    if _form(bundle, member) == "matrix" and posixpath.basename(base).lower() in POSE_FOLDERS:
        base = posixpath.dirname(base)
    return base


def _form(bundle: Bundle, name: str) -> str | None:
    low = posixpath.basename(name).lower()
    if low.endswith(".log"):
        return "log" if re.match(rb"\s*\d+\s+-?\d+\s+-?\d+\s*\n", _head(bundle, name)) else None
    if low in _LISTS or low.endswith(".freiburg"):
        return "list"
    if low == "cam.info.txt":
        return "info"
    if not low.endswith(".txt") or re.search(r"intrinsic|calib", low):
        return None
    folder = posixpath.basename(posixpath.dirname(name)).lower()
    if (
        re.search(r"(pose|extrinsic)s?[._-]?(\d*)\.txt$", low)
        and folder not in calibration.FOLDERS[1:]
    ):
        return "matrix"
    return "matrix" if folder in POSE_FOLDERS and re.search(r"\d", low) else None


def read_text(bundle: Bundle, member: str) -> Capture:
    """Poses in one of the text forms, beside a folder of pictures and one of depth."""
    form, base = _form(bundle, member), _base(bundle, member)
    pairs = _pairs(bundle, base, member)
    name, losses = posixpath.basename(member), Losses("frames")
    unit = MILLIMETRE
    if form == "log":
        found = _counted(name, pairs, _log(bundle, name, member))
    elif form == "list":
        found, unit = _list(bundle, name, member, base, pairs, losses)
    elif form == "info":
        found, unit = _info(bundle, name, member, pairs), TENTH
    else:
        found = _matrices(bundle, base, pairs, losses)
    losses.settle(len(found))
    if not found:
        raise refusal(name, "no picture has a pose", "One pose a picture is accepted")
    first = found[0][0].color
    width, height = images.size(first, bundle.read(first), bundle.limits)
    lens, depth_lens, mirrored, said, own = _calibration(bundle, base, member, form, width, height)
    unit = own or _usual_unit(name, base, pairs) or unit
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    shots = []
    for i, (pair, m) in enumerate(found):
        with losses.row():
            if mirrored:  # an image whose y axis runs up: conjugate, so that the usual axes hold
                m = flip @ m @ flip
            c2w = poses.pose(name, f"frame {i}", m)
            shots.append(Shot(f"frame {i}", pair.color, c2w, lens, pair.depth, unit,
                              depth_lens=depth_lens, float_unit=1.0))  # fmt: skip
    losses.settle(len(shots))
    shots = masks.given(bundle, shots)
    kind = "rgbd" if any(shot.depth for shot in shots) else "photos"
    if kind == "photos":
        said = (*said, "There is no depth beside the pictures; it is measured from them.")
    # All text forms give positions in metres and depth in a fixed part of a metre.
    assembled = assemble(name, bundle, shots, losses)
    return captured(bundle, kind, assembled, notices=said, metres_per_unit=1.0)


def _usual_unit(name: str, base: str, pairs: list[_Pair]) -> float | None:
    """The unit of well-known data sets that write it nowhere: by their own file names."""
    first = pairs[0]
    if first.depth is not None and re.search(r"(^|/)results/depth\d+\.png$", first.depth):
        return REPLICA_UNIT
    if first.depth is not None and re.search(
        r"(^|/)camera_\d/depth_\d+\.png$", first.depth.lower()
    ):
        return CENTIMETRE  # Virtual KITTI 2
    return None


def _head(bundle: Bundle, name: str) -> bytes:
    return bundle.read(name)[:200] if bundle.sizes[name] <= bundle.limits.json_bytes else b""


def _lines(bundle: Bundle, name: str, member: str) -> list[tuple[int, str]]:
    """Lines with their numbers, without comments and blanks."""
    if bundle.sizes[member] > bundle.limits.json_bytes:
        raise bundle.too_large(name, bundle.sizes[member])
    text = bundle.read(member).decode("utf-8-sig", errors="replace")
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


Found = list[tuple[_Pair, np.ndarray]]


def _list(
    bundle: Bundle, name: str, member: str, base: str, pairs: list[_Pair], losses: Losses
) -> tuple[Found, float]:
    """A pose a line: TUM's `[time] tx ty tz qx qy qz qw`, or a matrix in 12 or 16 numbers."""
    lines = _lines(bundle, name, member)
    if not lines:
        raise refusal(name, "holds 0 poses", "Lines of tx ty tz qx qy qz qw are accepted")
    width = max(_widths(lines), key=_widths(lines).count)
    if width in (12, 13, 16, 17):
        return _flat(name, lines, width, pairs, losses), MILLIMETRE
    if width == 4 and len(lines) == 4 * len(pairs):  # matrices one below the other
        blocks = [lines[i : i + 4] for i in range(0, len(lines), 4)]
        return _counted(name, pairs, [_matrix(name, block) for block in blocks]), MILLIMETRE
    widths = set(_widths(lines))
    if widths == {7, 8}:
        raise refusal(
            name, "some lines have a time and some not", "7 or 8 numbers a line, all alike"
        )
    stamps = _stamps(bundle, base)
    times = [_time(pair.color, stamps) for pair in pairs]
    timed = width == 8 and not any(t is None for t in times)
    if timed and len(lines) == len(pairs) and not stamps and max(t or 0 for t in times) < 1e6:
        timed = False  # pictures that are merely numbered
    if not timed and len(lines) != len(pairs):
        _counted(name, pairs, [np.eye(4)] * len(lines))
    rows: list[tuple[float, np.ndarray | None]] = []
    for line, text in lines:
        matrix = None
        with losses.row() if not timed else Losses("").row():  # a longer stream has others
            v = numbers(name, line, text, (8, 7))
            matrix = _tum_matrix(name, line, v)
        parts = text.replace(",", " ").split()
        rows.append((_seconds(parts[0]) if timed else 0.0, matrix))
    if not timed:
        return [(p, m) for p, (_, m) in zip(pairs, rows, strict=True) if m is not None], TUM_UNIT
    good = [(t, m) for t, m in rows if m is not None and np.isfinite(t)]
    if not good:
        losses.settle(0)
        raise refusal(name, "holds 0 poses", "Lines of time tx ty tz qx qy qz qw are accepted")
    known = np.array([t for t, _ in good])
    found: Found = []
    far = 0
    for pair, t in zip(pairs, times, strict=True):
        assert t is not None
        best = int(np.abs(known - t).argmin())
        if abs(known[best] - t) <= NEAR:
            found.append((pair, good[best][1]))
        else:
            far += 1
    if not found:
        raise refusal(
            name, f"no picture is within {NEAR} s of its {len(rows)} poses", "Check the time stamps"
        )
    if far:
        why = refusal(name, f"no pose within {NEAR} s of their pictures", "Check the time stamps")
        losses.lost(why, far)
    return found, TUM_UNIT


def _widths(lines: list[tuple[int, str]]) -> list[int]:
    return [len(text.replace(",", " ").split()) for _, text in lines]


def _tum_matrix(name: str, line: int, v: np.ndarray) -> np.ndarray:
    x, y, z, w = v[-4:]
    if not np.isfinite(v).all():
        raise refusal(name, f"line {line} holds {v[~np.isfinite(v)][0]}",
                      "Only finite numbers are accepted")  # fmt: skip
    R = poses.quaternion(name, f"line {line}", np.array([w, x, y, z]))
    return poses.rigid(R, v[-7:-4])


def _flat(
    name: str, lines: list[tuple[int, str]], width: int, pairs: list[_Pair], losses: Losses
) -> Found:
    """Matrices of 3x4 (KITTI) or 4x4 (Replica) numbers in one line, a time or number in front."""
    if len(lines) != len(pairs):
        keys = [_key(pair.color) for pair in pairs]
        if any(k is None or k >= len(lines) for k in keys):
            _counted(name, pairs, [np.eye(4)] * len(lines))
        lines = [lines[k] for k in keys if k is not None]
    found: Found = []
    for pair, (line, text) in zip(pairs, lines, strict=True):
        with losses.row():
            v = numbers(name, line, text, (width,))[width % 4 :]
            m = v.reshape(-1, 4)
            m = np.concatenate([m, [[0, 0, 0, 1.0]]]) if len(m) == 3 else m
            found.append((pair, poses.pose(name, f"line {line}", m)))
    return found


def _stamps(bundle: Bundle, base: str) -> dict[str, float]:
    """Times of pictures and depth maps from TUM's lists `rgb.txt` and `depth.txt`."""
    out: dict[str, float] = {}
    for list_name in (
        "rgb.txt",
        "depth.txt",
        "associations.txt",
        "associate.txt",
        "association.txt",
    ):
        member = bundle.found(posixpath.join(base, list_name))
        if member is None:
            continue
        for _, text in _lines(bundle, list_name, member):
            words = text.split()
            for stamp, file in zip(words[::2], words[1::2], strict=False):
                with contextlib.suppress(ValueError):
                    found = bundle.found(posixpath.join(base, file))
                    if found is not None:
                        out[found] = _seconds(stamp)
    return out


def _seconds(text: str) -> float:
    """A stamp in seconds: longer whole numbers are milli-, micro- or nanoseconds."""
    value = float(text) if re.fullmatch(r"[-+\d.eE]+", text) else float("nan")
    for size, factor in ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3)):
        if abs(value) >= size:
            return value * factor
    return value


def _time(name: str, stamps: dict[str, float] | None = None) -> float | None:
    if stamps and name in stamps:
        return stamps[name]
    stem = posixpath.splitext(posixpath.basename(name))[0]
    match = re.fullmatch(r"(?:[A-Za-z_-]*[_-])?(\d+(\.\d+)?)", stem)
    return _seconds(match.group(1)) if match else None


def _info(bundle: Bundle, name: str, member: str, pairs: list[_Pair]) -> Found:
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
    return [(pair, found[stem]) for pair, stem in zip(pairs, stems, strict=True)]


def _matrices(bundle: Bundle, base: str, pairs: list[_Pair], losses: Losses) -> Found:
    """One 4x4 text file a frame, its name holding the number or the stem of the picture."""
    files: dict[str, str] = {}
    inside = f"{base}/" if base else ""
    for n in bundle.child(".txt"):
        if n.startswith(inside) and _form(bundle, n) == "matrix" and _base(bundle, n) == base:
            key = _key(n)
            if key is not None:
                files[str(key)] = n
            files[_stem(n)] = n
    found: Found = []
    for pair in pairs:
        with losses.row():
            stem, key = _stem(pair.color), _key(pair.color)
            file = files.get(stem) or files.get(str(key))
            if file is None:
                raise refusal(
                    bundle.name,
                    f"{shown(pair.color, 40)} has no pose file",
                    "One 4x4 text file a picture",
                )
            name = posixpath.basename(file)
            rows = _lines(bundle, name, file)
            if len(rows) == 1:
                matrix = numbers(name, rows[0][0], rows[0][1], (16, 12)).reshape(-1, 4)
            elif len(rows) in (3, 4):
                matrix = _matrix(name, rows)
            else:
                raise refusal(name, f"holds {len(rows)} rows", "4 rows of 4 numbers are accepted")
            found.append((pair, poses.pose(name, "", matrix)))
    return found


def _stem(name: str) -> str:
    stem = posixpath.basename(name).rsplit(".", 1)[0]
    return re.sub(r"[._-](color|rgb|depth|pose)$", "", stem, flags=re.IGNORECASE)


def _key(name: str) -> int | None:
    """The number of a frame: the last one in its name."""
    digits = re.findall(r"\d+", _stem(name))
    return int(digits[-1]) if digits and len(digits[-1]) < 19 else None


def _pairs(bundle: Bundle, base: str, member: str) -> list[_Pair]:
    """Pictures with their depth maps, in natural order."""
    color, depth = _streams(bundle, base)
    name = posixpath.basename(member)
    if not color:
        raise refusal(
            name, "there is no folder of pictures beside it", "color/ and depth/ are accepted"
        )
    if not depth:
        return [_Pair(c, None) for c in color]
    keys_c, keys_d = [_key(n) for n in color], [_key(n) for n in depth]
    if len(color) == len(depth) and (keys_c == keys_d or len(set(keys_d)) < len(depth)):
        return [_Pair(c, d) for c, d in zip(color, depth, strict=True)]
    stamps = _stamps(bundle, base)
    times = [_time(n, stamps) for n in color], [_time(n, stamps) for n in depth]
    if all(t is not None and t > 1e6 for side in times for t in side) or stamps:
        paired = _by_time(color, depth, *times)
        if paired:
            return paired
    at: dict[int | None, str] = {k: d for k, d in zip(keys_d, depth, strict=True) if k is not None}
    both = [_Pair(c, at.get(k)) for c, k in zip(color, keys_c, strict=True)]
    if sum(p.depth is not None for p in both) * 2 > min(len(color), len(depth)):
        return [p for p in both if p.depth is not None]
    if len(color) == len(depth):
        return [_Pair(c, d) for c, d in zip(color, depth, strict=True)]
    raise refusal(
        bundle.name,
        f"{len(color)} pictures and {len(depth)} depth maps",
        "One depth map a picture is accepted",
    )


def _streams(bundle: Bundle, base: str) -> tuple[list[str], list[str]]:
    """The pictures and the depth maps of a capture, by folder or by their names."""
    folders = {posixpath.dirname(n) for n in bundle.names}

    def members(names: tuple[str, ...], suffixes: tuple[str, ...], deep: bool) -> list[str]:
        for wanted in names:
            path = posixpath.join(base, wanted).rstrip("/").lower()
            for folder in folders:
                if folder.lower() != path:
                    continue
                found = bundle.child(*suffixes, folder=folder)
                own = [n for n in found if _says(n, "depth") == deep and not _says(n, "other")]
                if deep and wanted and posixpath.basename(wanted).startswith(("depth", "lowres_d")):
                    own = [n for n in found if not _says(n, "other")]
                if own and (wanted or not deep):
                    return own
                if own and deep:
                    return own
        return []

    color = members(COLOR_FOLDERS, images.SUFFIXES, False)
    depth = members(DEPTH_FOLDERS, images.DEPTH_SUFFIXES, True)
    return color, depth


def _says(name: str, what: str) -> bool:
    """Whether the name of a picture calls it depth, or something that is no picture at all."""
    words = set(re.split(r"[._\d-]+", posixpath.basename(name).lower()))
    if what == "depth":
        return bool(words & {"depth", "d", "disparity"})
    return bool(words & {"mask", "normal", "normals", "label", "labels", "semantic", "instance",
                         "conf", "confidence", "thumbnail", "preview", "vis"})  # fmt: skip


def _by_time(
    color: list[str], depth: list[str], tc: list[float | None], td: list[float | None]
) -> list[_Pair]:
    """Pictures and depth by nearest time stamp, as TUM records them."""
    known = [(t, d) for t, d in zip(td, depth, strict=True) if t is not None]
    if not known:
        return []
    stamps = np.array([t for t, _ in known])
    out = []
    for c, t in zip(color, tc, strict=True):
        if t is not None and np.abs(stamps - t).min() <= NEAR:
            out.append(_Pair(c, known[int(np.abs(stamps - t).argmin())][1]))
    return out


def _counted(name: str, pairs: list[_Pair], matrices: list[np.ndarray]) -> Found:
    if len(pairs) != len(matrices):
        raise refusal(
            name,
            f"{len(matrices)} poses for {len(pairs)} pictures",
            "One pose a picture is accepted",
        )
    return list(zip(pairs, matrices, strict=True))


def _calibration(
    bundle: Bundle, base: str, member: str, form: str | None, width: int, height: int
) -> tuple[Lens, Lens | None, bool, tuple[str, ...], float | None]:
    """Lens of the pictures and of depth, whether y runs up, notices, and the unit of depth."""
    found = _info_values(bundle, member) if form == "info" else None
    found = found or calibration.beside(bundle, base, member)
    if found is None:
        focal = 525.0 * max(width, height) / 640
        values = np.array([focal, focal, width / 2 - 0.5, height / 2 - 0.5])
        said = (f"No camera calibration was found; a focal length of {focal:.0f} px was assumed.",)
        return Calibration("", values, (width, height)).lens(width, height), None, False, said, None
    lens = found.lens(width, height)
    deep = _depth_calibration(bundle, base, member)
    return lens, deep, bool(found.values[1] < 0), (), found.unit


def _depth_calibration(bundle: Bundle, base: str, member: str) -> Lens | None:
    """The lens of depth where a file of its own names one and depth has another size."""
    for path in calibration.candidates(bundle, base, "depth"):
        low = posixpath.basename(path).lower()
        if "depth" not in low or path == member:
            continue
        found = calibration.read_calibration(bundle, path, True)
        depth = _streams(bundle, base)[1]
        if found is None or not depth or depth[0].lower().endswith(".npy"):
            return None
        w, h = images.size(depth[0], bundle.read(depth[0]), bundle.limits)
        return found.lens(w, h)
    return None


def _info_values(bundle: Bundle, member: str) -> Calibration | None:
    text = bundle.read(member).decode("utf-8", errors="replace").splitlines()
    name = posixpath.basename(member)
    for i, line in enumerate(text):
        if re.search(r"color camera intrinsic", line, re.IGNORECASE):
            rows = [
                numbers(name, j + 1, text[j], (3,)) for j in range(i + 1, min(i + 4, len(text)))
            ]
            if len(rows) == 3:
                K = np.stack(rows)
                return Calibration(name, K[[0, 1, 0, 1], [0, 1, 2, 2]])
    return None
