"""Camera paths as files: JSON (lossless), COLMAP text, OpenCV XML or YAML.

A file that is read is foreign: sizes are bounded, XML with a document type or entities is refused,
NaN and names that come twice are refused, and whatever goes wrong is one line. Poses of COLMAP and
OpenCV are world to camera; OpenCV counts pixels from the first pixel's centre, so half a pixel is
added to its principal point on reading and subtracted on writing.
"""

import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor

from worldstereo._core.atomic import write_together
from worldstereo.cameras import Cameras
from worldstereo.errors import ExportError, InputRefused
from worldstereo.rotations import exp, log, matrices, quaternions
from worldstereo.trajectory._dense import MAX_FRAMES, Trajectory
from worldstereo.trajectory._keyed import CameraIntrinsics, CameraPose, CameraTrajectory

FORMATS = {"json": (".json",), "colmap": (".txt",), "opencv": (".xml", ".yml", ".yaml")}
FORMAT, VERSION = "worldstereo-camera-trajectory", 1
MAX_BYTES = 64_000_000  # bytes of a file that is read at all
FIELDS = ("format", "version", "poses", "num_frames", "interpolation", "fps", "intrinsics")
POSE_FIELDS = ("position", "rotation", "frame_index", "fov")
LENS_FIELDS = ("focal_length", "principal_point", "width", "height", "distortion")
PINHOLES = {
    "SIMPLE_PINHOLE": (0, 0, 1, 2, ()),
    "PINHOLE": (0, 1, 2, 3, ()),
    "SIMPLE_RADIAL": (0, 0, 1, 2, (3,)),
    "RADIAL": (0, 0, 1, 2, (3, 4)),
    "OPENCV": (0, 1, 2, 3, (4, 5, 6, 7)),
}
"""COLMAP's camera models: where fx, fy, cx, cy and the distortion k1, k2, p1, p2 stand."""


def load_trajectory(path: str | Path, format: str | None = None) -> CameraTrajectory:
    """The camera path in a file.

    Args:
        format: "json", "colmap" or "opencv"; by the extension where None.

    Raises:
        ValueError: an unknown format.
        InputRefused: the file is absent, too large, or not what its name promises; one line.
    """
    path = Path(path)
    kind = _kind(path, format, InputRefused)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputRefused(f"{path.name}: cannot be opened ({error.strerror}).") from None
    if len(data) > MAX_BYTES:
        raise InputRefused(f"{path.name}: above {MAX_BYTES // 1_000_000} MB; a path is smaller.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputRefused(f"{path.name}: not a text file; {kind} is text in UTF-8.") from None
    try:
        if kind == "json":
            return _from_json(text)
        if kind == "colmap":
            return _from_colmap(text, path)
        return _from_opencv(text, path.suffix.lower())
    except InputRefused as error:
        line = str(error)
        raise InputRefused(line if line.startswith(path.name) else f"{path.name}: {line}") from None
    except (ValueError, TypeError, OverflowError, RecursionError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputRefused(f"{path.name}: {reason}") from None


def save_trajectory(
    trajectory: CameraTrajectory | Trajectory, path: str | Path, format: str = "json"
) -> Path:
    """Writes a path, atomically, and returns where. JSON keeps keys as keys; the other formats hold
    one pose a frame.

    Raises:
        TypeError: not a camera path. ValueError: an unknown format, or a changing lens that the
            format cannot hold.
        ExportError: the folder is absent or cannot be written.
    """
    if isinstance(trajectory, Trajectory):
        trajectory = CameraTrajectory.from_trajectory(trajectory)
    if not isinstance(trajectory, CameraTrajectory):
        raise TypeError(f"trajectory must be a CameraTrajectory, got {type(trajectory).__name__}.")
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {str(format)[:40]!r}.")
    beside: dict[Path, str] = {}
    if format == "json":
        text = _to_json(trajectory)
    elif format == "colmap":
        text, lenses = _to_colmap(trajectory)
        beside[path.with_name("cameras.txt")] = lenses
    else:
        text = _to_opencv(trajectory, path.suffix.lower())
    if path.name == "cameras.txt" and format == "colmap":
        raise ValueError("path: cameras.txt is where the lens goes; images.txt holds the poses.")
    try:
        write_together(
            {where: content.encode() for where, content in (beside | {path: text}).items()}
        )
    except OSError as error:
        raise ExportError(f"{path.name}: cannot be written ({error.strerror}).") from None
    return path


def _kind(path: Path, format: str | None, refused: type[Exception]) -> str:
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
        return format
    for name, suffixes in FORMATS.items():
        if path.suffix.lower() in suffixes:
            return name
    known = ", ".join(s for suffixes in FORMATS.values() for s in suffixes)
    raise refused(f"{path.name}: the extension says no format; {known} do, or name the format.")


# ---- JSON ----------------------------------------------------------------------------------------


def _to_json(path: CameraTrajectory) -> str:
    lens = path.intrinsics
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "num_frames": path.num_frames,
        "interpolation": path.interpolation,
        "fps": path.fps,
        "intrinsics": None if lens is None else {n: getattr(lens, n) for n in LENS_FIELDS},
        "poses": [{n: getattr(pose, n) for n in POSE_FIELDS} for pose in path.poses],
    }
    return json.dumps(fields, allow_nan=False, indent=1) + "\n"


def _from_json(text: str) -> CameraTrajectory:
    try:
        fields = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_no_twins)
    except RecursionError:
        raise ValueError("nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"not sound JSON ({str(error)[:120]}).") from None
    if isinstance(fields, dict) and fields.get("format") == "worldstereo-trajectory":
        return CameraTrajectory.from_trajectory(Trajectory.from_json(text))
    if isinstance(fields, dict) and {"extrinsic", "intrinsic"} <= set(fields):
        return _from_example(fields)
    _known(fields, FIELDS, "the file")
    if fields.get("format", FORMAT) != FORMAT:
        raise ValueError(f'"format" must be "{FORMAT}".')
    version = fields.get("version", VERSION)
    if version != VERSION or isinstance(version, bool):
        raise ValueError(f"version {str(version)[:20]} is not known here; {VERSION} is read.")
    rows = fields.get("poses")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_FRAMES:
        raise ValueError(f'"poses" must be a list of 1 to {MAX_FRAMES} poses.')
    poses = []
    for i, row in enumerate(rows):
        _known(row, POSE_FIELDS, f"poses[{i}]")
        if "position" not in row:
            raise ValueError(f'poses[{i}]: "position" is missing.')
        try:
            poses.append(CameraPose(**({"frame_index": i} | row)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"poses[{i}]: {error}") from None
    lens = fields.get("intrinsics")
    if lens is not None:
        _known(lens, LENS_FIELDS, "intrinsics")
        if "focal_length" not in lens:
            raise ValueError('intrinsics: "focal_length" is missing.')
        lens = CameraIntrinsics(**lens)
    last = max(pose.frame_index for pose in poses)
    return CameraTrajectory(
        poses,
        fields.get("num_frames", last + 1),
        fields.get("interpolation", "linear"),
        fields.get("fps", 24),
        intrinsics=lens,
    )


def _from_example(fields: dict[str, Any]) -> CameraTrajectory:
    """An official example's camera.json: world-to-camera matrices and K in pixels, one a frame."""
    w2c, K = (torch.tensor(fields[n], dtype=torch.float64) for n in ("extrinsic", "intrinsic"))
    if w2c.ndim != 3 or w2c.shape[1:] != (4, 4) or K.shape != (len(w2c), 3, 3):
        raise ValueError("extrinsic must be N matrices 4x4 and intrinsic as many 3x3.")
    width = fields.get("width", round(2 * float(K[0, 0, 2])))
    height = fields.get("height", round(2 * float(K[0, 1, 2])))
    c2w = torch.linalg.inv(w2c)
    cameras = Cameras(K, c2w, width, height)
    return CameraTrajectory.from_trajectory(Trajectory(cameras))


def _known(value: Any, names: Sequence[str], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object with names.")
    odd = sorted(str(key) for key in value if key not in names)
    if odd:
        raise ValueError(f"{where}: {odd[0][:40]!r} is not known; {', '.join(names)} are.")


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number that is accepted")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name appears twice in one object")
    return fields


# ---- COLMAP text ---------------------------------------------------------------------------------


def _to_colmap(path: CameraTrajectory) -> tuple[str, str]:
    """images.txt and cameras.txt; a field of view that changes gets a camera a frame."""
    cameras, size = _dense64(path), _size(path)
    K, c2w = cameras
    lines = [
        "# worldstereo camera path, world to camera, OpenCV axes",
        f"# fps {path.fps:g}",
        f"# size {size[0]} {size[1]}",
        "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
    ]
    lenses = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    R, t = c2w[:, :3, :3].mT, -(c2w[:, :3, :3].mT @ c2w[:, :3, 3:])[..., 0]
    q = quaternions(R)
    bent = path.intrinsics.distortion if path.intrinsics else (0.0,) * 5
    if bent[4]:
        raise ValueError("intrinsics.distortion: k3 has no place in a COLMAP OPENCV camera.")
    number: dict[tuple[float, ...], int] = {}
    for i in range(len(K)):
        lens = (*K[i].diagonal()[:2].tolist(), *K[i, :2, 2].tolist())
        if lens not in number:
            number[lens] = len(number) + 1
            model = "OPENCV" if any(bent) else "PINHOLE"
            values = [*lens, *bent[:4]] if any(bent) else lens
            written = " ".join(repr(float(v)) for v in values)
            lenses.append(f"{number[lens]} {model} {size[0]} {size[1]} {written}")
        row = " ".join(repr(float(v)) for v in (*q[i].tolist(), *t[i].tolist()))
        lines += [f"{i + 1} {row} {number[lens]} frame_{i:05d}.png", ""]
    return "\n".join(lines) + "\n", "\n".join(lenses) + "\n"


def _from_colmap(text: str, path: Path) -> CameraTrajectory:
    lines = text.splitlines()
    rows = [(i, line.split()) for i, line in enumerate(lines) if not line.startswith("#")]
    filled = [(i, row) for i, row in rows if row]
    if not filled:
        raise ValueError("holds no pose.")
    notes = dict(re.findall(r"^#\s*(fps|size)\s+(.+)$", text, re.MULTILINE))
    fps = float(notes.get("fps", 24))
    size = [int(v) for v in notes["size"].split()] if "size" in notes else [512, 512]
    if all(len(row) == 8 for _, row in filled):
        return _from_tum(filled, fps)
    poses: list[tuple[str, int, list[float]]] = []
    at = 0
    while at < len(rows):
        line, row = rows[at]
        if not row:
            at += 1
            continue
        if len(row) < 10:
            raise ValueError(f"line {line + 1}: 10 entries are expected, got {len(row)}.")
        poses.append((" ".join(row[9:]), int(row[8]), _line(row[1:8], line)))
        at += 2  # the line after a pose holds its 2D points, or nothing
    if len(poses) > MAX_FRAMES:
        raise ValueError(f"{len(poses)} poses; at most {MAX_FRAMES} are read.")
    poses.sort(key=lambda pose: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", pose[0])])
    numbers = torch.tensor([values for _, _, values in poses], dtype=torch.float64)
    c2w = _c2w_from(numbers[:, :4], numbers[:, 4:])
    lenses = _lenses_beside(path)
    used = [lenses.get(camera) for _, camera, _ in poses]
    found = [lens for lens in used if lens is not None]
    if len(found) < len(used):
        if lenses:
            raise ValueError(f"cameras.txt has no camera {poses[used.index(None)][1]}.")
        warnings.warn(
            f"{path.name}: no cameras.txt beside it; a field of view of 60 degrees is assumed.",
            UserWarning,
            stacklevel=4,
        )
        K = torch.eye(3).double()
        K[0, 0] = K[1, 1] = size[0] / 2 / math.tan(math.radians(30))
        K[0, 2], K[1, 2] = size[0] / 2, size[1] / 2
        cameras = Cameras(K.repeat(len(c2w), 1, 1), c2w, size[0], size[1])
        return CameraTrajectory.from_trajectory(Trajectory(cameras, fps=fps))
    if len(set(map(id, found))) == 1:
        made = [CameraPose(m[:3, 3], m[:3, :3], i) for i, m in enumerate(c2w)]
        return CameraTrajectory(made, len(made), fps=fps, intrinsics=found[0])
    if any(lens.distorted for lens in found):
        raise ValueError("several distorted cameras; one lens for the whole path is accepted.")
    first = found[0]
    assert first.width is not None and first.height is not None
    K = torch.stack([lens.K for lens in found])
    cameras = Cameras(K, c2w, first.width, first.height)
    return CameraTrajectory.from_trajectory(Trajectory(cameras, fps=fps))


def _from_tum(rows: list[tuple[int, list[str]]], fps: float) -> CameraTrajectory:
    """`t x y z qx qy qz qw`, camera to world, a line a frame."""
    values = torch.tensor([_line(row, i) for i, row in rows], dtype=torch.float64)
    q = values[:, [7, 4, 5, 6]]
    _check_unit(q)
    R = matrices(torch.nn.functional.normalize(q, dim=-1))
    gaps = values[1:, 0] - values[:-1, 0]
    if len(gaps) and float(gaps.median()) > 0:
        fps = max(1.0, round(1 / float(gaps.median()), 3))
    poses = [CameraPose(v[1:4], R[i], i) for i, v in enumerate(values)]
    return CameraTrajectory(poses, len(poses), fps=fps)


def _lenses_beside(path: Path) -> dict[int, CameraIntrinsics]:
    beside = path.with_name("cameras.txt")
    if not beside.is_file() or beside.stat().st_size > MAX_BYTES or beside == path:
        return {}
    found: dict[int, CameraIntrinsics] = {}
    for i, line in enumerate(beside.read_text("utf-8", errors="replace").splitlines()):
        row = line.split()
        if not row or line.startswith("#"):
            continue
        if len(row) < 5 or row[1] not in PINHOLES:
            known = ", ".join(PINHOLES)
            raise InputRefused(f"cameras.txt: line {i + 1}: {known} cameras are read.")
        values = _line(row[2:], i)
        fx, fy, cx, cy, bent = PINHOLES[row[1]]
        params = values[2:]
        if len(params) < 1 + max(fx, fy, cx, cy, *bent):
            raise InputRefused(f"cameras.txt: line {i + 1}: too few parameters for {row[1]}.")
        found[int(row[0])] = CameraIntrinsics(
            (params[fx], params[fy]),
            (params[cx], params[cy]),
            int(values[0]),
            int(values[1]),
            [params[k] for k in bent],
        )
    return found


def _line(words: Sequence[str], line: int) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"line {line + 1}: numbers are expected.") from None
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"line {line + 1}: only finite numbers are accepted.")
    return values


def _check_unit(q: Tensor) -> None:
    bad = torch.nonzero(~((q.norm(dim=-1) - 1).abs() <= 0.01)).flatten()
    if len(bad) > 0:
        length = float(q[bad[0]].norm())
        raise ValueError(f"pose {int(bad[0])}: the quaternion has length {length:.4g}, not 1.")


def _c2w_from(q: Tensor, t: Tensor) -> Tensor:
    """World-to-camera quaternions and translations to poses."""
    _check_unit(q)
    return _inverted(matrices(torch.nn.functional.normalize(q, dim=-1)), t)


def _inverted(R: Tensor, t: Tensor) -> Tensor:
    c2w = torch.eye(4, dtype=torch.float64).repeat(len(R), 1, 1)
    c2w[:, :3, :3] = R.mT
    c2w[:, :3, 3:] = -R.mT @ t[..., None]
    return c2w


# ---- OpenCV --------------------------------------------------------------------------------------


def _to_opencv(path: CameraTrajectory, suffix: str) -> str:
    K, c2w = _dense64(path)
    width, height = _size(path)
    if bool((K - K[:1]).abs().amax() > 1e-9 * K.abs().amax()):
        raise ValueError(
            "the field of view changes along the path; an OpenCV file holds one camera_matrix. "
            "Use json or colmap."
        )
    lens = K[0].clone()
    lens[:2, 2] -= 0.5
    R, t = c2w[:, :3, :3].mT, -(c2w[:, :3, :3].mT @ c2w[:, :3, 3:])[..., 0]
    rows = torch.cat([log(quaternions(R)), t], dim=1)
    bent = path.intrinsics.distortion if path.intrinsics else (0.0,) * 5
    found: list[tuple[str, Any]] = [
        ("image_width", width),
        ("image_height", height),
        ("fps", path.fps),
        ("camera_matrix", lens),
        ("distortion_coefficients", torch.tensor([bent], dtype=torch.float64).T),
        ("extrinsic_parameters", rows),
    ]
    xml = suffix not in (".yml", ".yaml")
    out = ['<?xml version="1.0"?>', "<opencv_storage>"] if xml else ["%YAML:1.0", "---"]
    for name, value in found:
        if not isinstance(value, Tensor):
            out.append(f"<{name}>{value:g}</{name}>" if xml else f"{name}: {value:g}")
            continue
        numbers = [repr(float(v)) for v in value.flatten()]
        count, columns = value.shape
        if xml:
            out += [
                f'<{name} type_id="opencv-matrix">',
                f"  <rows>{count}</rows><cols>{columns}</cols><dt>d</dt>",
                "  <data>" + " ".join(numbers) + f"</data></{name}>",
            ]
        else:
            out += [f"{name}: !!opencv-matrix", f"   rows: {count}", f"   cols: {columns}"]
            out += ["   dt: d", "   data: [ " + ", ".join(numbers) + " ]"]
    return "\n".join([*out, "</opencv_storage>"] if xml else out) + "\n"


def _from_opencv(text: str, suffix: str) -> CameraTrajectory:
    yaml = suffix in (".yml", ".yaml") or text.lstrip().startswith("%YAML")
    found = _yaml_storage(text) if yaml else _xml_storage(text)
    rows = _matrix(found, "extrinsic_parameters", None, 6)
    if not 1 <= len(rows) <= MAX_FRAMES:
        raise ValueError(f"extrinsic_parameters must hold 1 to {MAX_FRAMES} rows.")
    K = _matrix(found, "camera_matrix", 3, 3)
    if float(K[0, 1]) or float(K[1, 0]) or float(K[2, 2]) != 1:
        raise ValueError("camera_matrix must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]].")
    width, height = (_scalar(found, n) for n in ("image_width", "image_height"))
    for name, size in (("image_width", width), ("image_height", height)):
        if size != int(size) or not 1 <= size <= 1 << 20:
            raise ValueError(f"{name} must be a whole number of pixels, got {size:g}.")
    bent = [0.0] * 5
    if "distortion_coefficients" in found:
        bent = _matrix(found, "distortion_coefficients", None, None).flatten().tolist()
    lens = CameraIntrinsics(
        (float(K[0, 0]), float(K[1, 1])), K[:2, 2] + 0.5, int(width), int(height), bent
    )
    c2w = _inverted(matrices(exp(rows[:, :3])), rows[:, 3:])
    poses = [CameraPose(m[:3, 3], m[:3, :3], i) for i, m in enumerate(c2w)]
    fps = _scalar(found, "fps") if "fps" in found else 24.0
    return CameraTrajectory(poses, len(poses), fps=fps, intrinsics=lens)


def _xml_storage(text: str) -> dict[str, Any]:
    """Top-level names of a FileStorage: text, or (rows, cols, numbers)."""
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise ValueError("a document type or entity is not accepted; OpenCV writes none.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not sound XML ({error}).") from None
    if root.tag != "opencv_storage":
        raise ValueError(f"<opencv_storage> is expected, got <{str(root.tag)[:40]}>.")
    found: dict[str, Any] = {}
    for node in root:
        if node.tag in found:
            raise ValueError(f"{node.tag[:40]} appears twice.")
        if node.get("type_id") == "opencv-matrix":
            parts = {child.tag: (child.text or "").strip() for child in node}
            if not {"rows", "cols", "data"} <= set(parts):
                raise ValueError(f"{node.tag[:40]}: rows, cols or data is missing.")
            found[node.tag] = (parts["rows"], parts["cols"], parts["data"].split())
        else:
            found[node.tag] = (node.text or "").strip()
    return found


def _yaml_storage(text: str) -> dict[str, Any]:
    """The same from the YAML that OpenCV writes; nothing else of YAML is understood."""
    found: dict[str, Any] = {}
    matrix = re.compile(
        r"^(\w+):\s*!!opencv-matrix\s*\n\s+rows:\s*(\d+)\s*\n\s+cols:\s*(\d+)\s*\n\s+dt:\s*\"?\w+"
        r"\"?\s*\n\s+data:\s*\[([^\]]*)\]",
        re.MULTILINE,
    )
    for name, rows, columns, data in matrix.findall(text):
        if name in found:
            raise ValueError(f"{name[:40]} appears twice.")
        found[name] = (rows, columns, data.replace(",", " ").split())
    for name, value in re.findall(r"^(\w+):[ \t]*([-+.\w]+)[ \t]*$", text, re.MULTILINE):
        if name in found:
            raise ValueError(f"{name[:40]} appears twice.")
        found[name] = value
    return found


def _matrix(found: dict[str, Any], name: str, rows: int | None, columns: int | None) -> Tensor:
    value = found.get(name)
    if not isinstance(value, tuple):
        raise ValueError(f"{name} is missing or no matrix.")
    try:
        shape = (int(value[0]), int(value[1]))
        numbers = torch.tensor([float(v) for v in value[2]], dtype=torch.float64)
    except ValueError:
        raise ValueError(f"{name} must hold numbers.") from None
    right = (rows in (None, shape[0])) and (columns in (None, shape[1]))
    if not right or min(shape) < 1 or len(numbers) != shape[0] * shape[1]:
        raise ValueError(f"{name} has {len(numbers)} numbers for {shape[0]} x {shape[1]}.")
    if not bool(torch.isfinite(numbers).all()):
        raise ValueError(f"{name} holds a number that is not finite.")
    return numbers.reshape(shape)


def _scalar(found: dict[str, Any], name: str) -> float:
    value = found.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing.")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {value[:40]!r}.") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number.")
    return number


# ---- both ----------------------------------------------------------------------------------------


def _size(path: CameraTrajectory) -> tuple[int, int]:
    lens = path.intrinsics
    if lens is None:
        return 512, 512
    assert lens.width is not None and lens.height is not None
    return lens.width, lens.height


def _dense64(path: CameraTrajectory) -> tuple[Tensor, Tensor]:
    """K and c2w of every frame in float64, the lens as it is even where it is distorted."""
    moved, R = path._dense()
    c2w = torch.eye(4, dtype=torch.float64).repeat(path.num_frames, 1, 1)
    c2w[:, :3, :3], c2w[:, :3, 3] = matrices(quaternions(R)), moved[:, :3]
    if path.intrinsics is not None:
        return path.intrinsics.K.repeat(path.num_frames, 1, 1), c2w
    width, height = _size(path)
    K = torch.eye(3, dtype=torch.float64).repeat(path.num_frames, 1, 1)
    K[:, 0, 0] = K[:, 1, 1] = width / 2 * moved[:, 3].exp()
    K[:, 0, 2], K[:, 1, 2] = width / 2, height / 2
    return K, c2w
