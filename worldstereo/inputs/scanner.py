"""Exports of phone scanners: Polycam, 3D Scanner App, Record3D, ARKitScenes, Stray Scanner.

ARKit's cameras are OpenGL's (+y up, looking along -z) in a world whose y axis is up; depth is in
millimetres, smaller than the pictures and aligned with them. Confidence pictures hide nothing.
"""

import posixpath
import re

import numpy as np

from worldstereo.inputs import images, jsonfile, masks, poses
from worldstereo.inputs.archive import Bundle, natural
from worldstereo.inputs.assemble import Shot, assemble
from worldstereo.inputs.capture import captured
from worldstereo.inputs.lens import Lens
from worldstereo.inputs.limits import Losses, refusal, shown
from worldstereo.scene import Capture

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_CAMERAS = ("corrected_cameras", "cameras")  # Polycam: after and before its own adjustment
_IMAGES = ("corrected_images", "images")
_STREAMS = ("rgb", "color", "images")
_STAMP = 0.05  # seconds between a picture of ARKitScenes and its pose, which come at 10 a second


def _folder(bundle: Bundle, base: str, name: str) -> bool:
    start = f"{posixpath.join(base, name)}/".lower()
    return any(n.lower().startswith(start) for n in bundle.names)


def _read_json(bundle: Bundle, member: str) -> jsonfile.Node:
    name = posixpath.basename(member)
    return jsonfile.Node(jsonfile.parse(name, bundle.read(member), bundle.limits, True), name)


def _beside(
    bundle: Bundle, base: str, folder: str, stem: str, suffixes: tuple[str, ...]
) -> str | None:
    for suffix in suffixes:
        member = bundle.found(posixpath.join(base, folder, stem + suffix))
        if member is not None:
            return member
    return None


def _done(
    bundle: Bundle, source: str, shots: list[Shot], losses: Losses, notices: tuple[str, ...] = ()
) -> Capture:
    losses.settle(len(shots))
    if not shots:
        raise refusal(source, "holds 0 frames", "At least 1 is accepted")
    assembled = assemble(source, bundle, masks.given(bundle, shots), losses)
    kind = "rgbd" if any(shot.depth for shot in shots) else "photos"
    meshes = bundle.child(".glb", ".obj", ".ply", ".usdz")
    if meshes:
        mesh = shown(posixpath.basename(meshes[0]), 32)
        said = f"The mesh {mesh} beside the pictures was left aside."
        notices = (*notices, said)
    return captured(bundle, kind, assembled, notices=notices, metres_per_unit=1.0)


# ---- Polycam -----------------------------------------------------------------------------------


def find_polycam(bundle: Bundle) -> list[str]:
    """The first camera of each `keyframes/`, the corrected ones where they are there."""
    out: dict[str, str] = {}
    for folder in _CAMERAS:
        for name in sorted(bundle.names, key=natural):
            match = re.search(rf"^(.*/)?keyframes/{folder}/[^/]+\.json$", name.lower())
            if match:
                out.setdefault(posixpath.dirname(posixpath.dirname(name)), name)
    return list(out.values())


def read_polycam(bundle: Bundle, member: str) -> Capture:
    """`keyframes/cameras/STAMP.json` with `t_00` to `t_23`, beside images/ and depth/."""
    folder, base = posixpath.dirname(member), posixpath.dirname(posixpath.dirname(member))
    corrected = posixpath.basename(folder).lower() == _CAMERAS[0]
    losses, shots = Losses("frames"), []
    for file in bundle.child(".json", folder=folder):
        with losses.row():
            node = _read_json(bundle, file)
            stem = posixpath.splitext(posixpath.basename(file))[0]
            folders = _IMAGES if corrected else _IMAGES[1:]
            found = (_beside(bundle, base, f, stem, images.SUFFIXES) for f in folders)
            image = next((f for f in found if f is not None), None)
            if image is None:
                raise node.refuse(f"images/{stem} is missing", "Put the picture there")
            matrix = np.array([[node.at(f"t_{r}{c}").number() for c in range(4)] for r in range(3)])
            c2w = poses.pose(node.name, "", matrix) @ OPENGL
            width, height = (node.at(k).integer(1, 1 << 20) for k in ("width", "height"))
            fx, fy, cx, cy = (node.at(k).number() for k in ("fx", "fy", "cx", "cy"))
            K = poses.intrinsics(node.name, "", fx, fy, cx, cy, width, height)
            depth = _beside(bundle, base, "depth", stem, images.DEPTH_SUFFIXES)
            shots.append(Shot(node.name, image, c2w, Lens(K, width, height), depth, float_unit=1.0))
    return _done(bundle, "keyframes", shots, losses)


# ---- 3D Scanner App ----------------------------------------------------------------------------


def find_arkit(bundle: Bundle) -> list[str]:
    out: dict[str, str] = {}
    for name in sorted(bundle.names, key=natural):
        if re.search(r"(^|/)frame_\d+\.json$", name.lower()) and bundle.sizes[name] < 1 << 20:
            folder = posixpath.dirname(name)
            if folder not in out and b"cameraPoseARFrame" in bundle.read(name):
                out[folder] = name
    return list(out.values())


def read_arkit(bundle: Bundle, member: str) -> Capture:
    """`frame_00000.json` with `cameraPoseARFrame` and `intrinsics`, beside its picture."""
    folder = posixpath.dirname(member)
    losses, shots = Losses("frames"), []
    without = 0
    for file in bundle.child(".json", folder=folder):
        stem = posixpath.splitext(posixpath.basename(file))[0]
        if not re.fullmatch(r"frame_\d+", stem.lower()):
            continue
        image = _beside(bundle, folder, "", stem, images.SUFFIXES)
        if image is None:  # the app writes more poses than pictures
            without += 1
            continue
        with losses.row():
            node = _read_json(bundle, file)
            c2w = poses.pose(node.name, "", node.at("cameraPoseARFrame").matrix()) @ OPENGL
            flat = node.at("intrinsics").array(9)
            width, height = images.size(image, bundle.read(image), bundle.limits)
            K = poses.intrinsics(node.name, "", flat[0], flat[4], flat[2], flat[5], width, height)
            number = stem[len("frame_") :]
            depth = _beside(bundle, folder, "", f"depth_{number}", images.DEPTH_SUFFIXES)
            shots.append(Shot(node.name, image, c2w, Lens(K, width, height), depth, float_unit=1.0))
    said = (f"{without} poses come without a picture.",) if without else ()
    return _done(bundle, "frames", shots, losses, said)


# ---- Record3D ----------------------------------------------------------------------------------


def find_record3d(bundle: Bundle) -> list[str]:
    out = []
    for name in bundle.named("metadata.json", "metadata"):
        if bundle.sizes[name] <= bundle.limits.json_bytes:
            text = bundle.read(name)
            if b'"poses"' in text and (b'"K"' in text or b"perFrameIntrinsicCoeffs" in text):
                out.append(name)
    return out


def read_record3d(bundle: Bundle, member: str) -> Capture:
    """`metadata.json` with `K` (column-major) and `poses` (qx qy qz qw x y z), beside rgb/.

    Source: https://github.com/marek-simonik/record3d
    """
    root, base = _read_json(bundle, member), posixpath.dirname(member)
    pictures = []
    for folder in ("rgb", "rgbd", "images", "color"):
        pictures = pictures or bundle.child(*images.SUFFIXES, folder=posixpath.join(base, folder))
    if not pictures:
        raise root.refuse("there is no rgb/ beside it", "Export it with its pictures")
    given = root.at("poses").items(bundle.limits.path_cameras, "poses")
    each = root.at("perFrameIntrinsicCoeffs").value if root.has("perFrameIntrinsicCoeffs") else None
    losses, shots, packed = Losses("frames"), [], 0
    for image in pictures:
        with losses.row():
            stem = posixpath.splitext(posixpath.basename(image))[0]
            digits = re.findall(r"\d+", stem)
            i = int(digits[-1]) if digits else len(shots)
            if i >= len(given):
                raise root.refuse(f"no pose {i} for {shown(stem, 24)}", "One a picture is accepted")
            v = given[i].array(7)
            R = poses.quaternion(root.name, f"pose {i}", np.array([v[3], v[0], v[1], v[2]]))
            c2w = poses.pose(root.name, f"pose {i}", poses.rigid(R, v[4:])) @ OPENGL
            width, height = images.size(image, bundle.read(image), bundle.limits)
            w = root.at("w").integer(1, 1 << 20) if root.has("w") else width
            h = root.at("h").integer(1, 1 << 20) if root.has("h") else height
            if isinstance(each, list) and i < len(each):
                fx, fy, cx, cy = jsonfile.Node(each[i], root.name, f"coefficients {i}").array(4)
            else:
                flat = root.at("K").array(9)
                fx, fy, cx, cy = flat[0], flat[4], flat[6], flat[7]
            K = poses.intrinsics(root.name, "", fx, fy, cx, cy, w, h)
            depth = _beside(bundle, base, "depth", stem, images.DEPTH_SUFFIXES)
            packed += (
                depth is None and _beside(bundle, base, "depth", stem, (".depth",)) is not None
            )
            shots.append(Shot(f"frame {i}", image, c2w, Lens(K, w, h), depth, float_unit=1.0))
    said = (f"{packed} depth maps are packed with LZFSE (.depth), which is not read here.",)
    return _done(bundle, root.name, shots, losses, said if packed else ())


# ---- ARKitScenes -------------------------------------------------------------------------------


def find_arkitscenes(bundle: Bundle) -> list[str]:
    return [n for n in bundle.names if n.lower().endswith(".traj")
            and any(p.lower().endswith(".pincam") for p in bundle.names)]  # fmt: skip


def read_arkitscenes(bundle: Bundle, member: str) -> Capture:
    """`lowres_wide.traj`: time, axis-angle and translation from world to camera; `.pincam` each.

    Source: https://github.com/apple/ARKitScenes
    """
    name, base = posixpath.basename(member), posixpath.dirname(member)
    rows = []
    losses = Losses("frames")
    for i, line in enumerate(bundle.read(member).decode("utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        with losses.row():
            try:
                v = np.array([float(w) for w in words])
            except ValueError:
                v = np.zeros(0)
            if len(v) != 7 or not np.isfinite(v).all():
                raise refusal(name, f"line {i} is no pose", "A time and 6 numbers are accepted")
            w2c = poses.rigid(_rotation(v[1:4]), v[4:])
            rows.append((v[0], poses.pose(name, f"line {i}", poses.inverse(w2c))))
    if not rows:
        losses.settle(0)
        raise refusal(name, "holds 0 poses", "A time and 6 numbers a line are accepted")
    times = np.array([t for t, _ in rows])
    stream = next(
        (s for s in ("vga_wide", "lowres_wide", "wide") if _folder(bundle, base, s)), None
    )
    if stream is None:
        raise refusal(name, "there is no lowres_wide/ beside it", "Add the pictures")
    shots, far = [], 0
    for image in bundle.child(*images.SUFFIXES, folder=posixpath.join(base, stream)):
        stem = posixpath.splitext(posixpath.basename(image))[0]
        match = re.search(r"(\d+\.\d+)$", stem)
        pincam = _beside(bundle, base, f"{stream}_intrinsics", stem, (".pincam",))
        best = int(np.abs(times - float(match.group(1))).argmin()) if match else -1
        if match is None or abs(times[best] - float(match.group(1))) > _STAMP:
            far += 1
            continue
        with losses.row():
            if pincam is None:
                raise refusal(
                    name, f"{shown(stem, 32)} has no .pincam", "One a picture is accepted"
                )
            words = bundle.read(pincam).decode("utf-8", errors="replace").split()
            try:
                w, h, fx, fy, cx, cy = (float(v) for v in words)
            except ValueError:
                raise refusal(
                    posixpath.basename(pincam),
                    f"holds {len(words)} entries",
                    "6 numbers are accepted",
                ) from None
            K = poses.intrinsics(posixpath.basename(pincam), "", fx, fy, cx, cy, int(w), int(h))
            depth = _beside(bundle, base, "lowres_depth", stem, images.DEPTH_SUFFIXES)
            shots.append(Shot(stem, image, rows[best][1], Lens(K, int(w), int(h)), depth))
    said = (f"{far} pictures have no pose within {_STAMP} s and were left out.",) if far else ()
    return _done(bundle, name, shots, losses, said)


def _rotation(axis: np.ndarray) -> np.ndarray:
    """Rodrigues' formula."""
    angle = float(np.linalg.norm(axis))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = axis / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


# ---- Stray Scanner -----------------------------------------------------------------------------


def find_stray(bundle: Bundle) -> list[str]:
    found = bundle.named("odometry.csv")
    return [n for n in found if any(_folder(bundle, posixpath.dirname(n), f) for f in _STREAMS)]


def read_stray(bundle: Bundle, member: str) -> Capture:
    """`odometry.csv` (time, frame, x y z, qx qy qz qw) and `camera_matrix.csv`, beside rgb/."""
    name, base = posixpath.basename(member), posixpath.dirname(member)
    text = bundle.read(member).decode("utf-8", errors="replace").splitlines()
    head = [w.strip() for w in text[0].split(",")] if text else []
    want = ("frame", "x", "y", "z", "qx", "qy", "qz", "qw")
    if not set(want) <= set(head):
        raise refusal(name, f"its columns are {shown(', '.join(head), 40)}", ", ".join(want))
    matrix = bundle.found(posixpath.join(base, "camera_matrix.csv"))
    if matrix is None:
        raise refusal(name, "there is no camera_matrix.csv beside it", "Add it")
    words = bundle.read(matrix).decode("utf-8", errors="replace").replace(",", " ").split()
    try:
        K3 = np.array([float(w) for w in words]).reshape(3, 3)
    except ValueError:
        raise refusal(
            "camera_matrix.csv", f"holds {len(words)} entries", "3 x 3 are accepted"
        ) from None
    folder = next(f for f in _STREAMS if _folder(bundle, base, f))
    losses, shots = Losses("frames"), []
    for i, line in enumerate(text[1:], 2):
        values = dict(zip(head, line.split(","), strict=False))
        stem = str(values.get("frame", "")).strip()
        image = _beside(bundle, base, folder, stem, images.SUFFIXES) if stem else None
        if image is None:
            continue
        with losses.row():
            try:
                v = np.array([float(values[k]) for k in want[1:]])
            except (KeyError, ValueError):
                raise refusal(name, f"line {i} is no pose", "7 numbers are accepted") from None
            R = poses.quaternion(name, f"line {i}", v[[6, 3, 4, 5]])
            c2w = poses.pose(name, f"line {i}", poses.rigid(R, v[:3]))
            width, height = images.size(image, bundle.read(image), bundle.limits)
            K = poses.intrinsics("camera_matrix.csv", "", K3[0, 0], K3[1, 1], K3[0, 2], K3[1, 2],
                                 width, height)  # fmt: skip
            depth = _beside(bundle, base, "depth", stem, images.DEPTH_SUFFIXES)
            shots.append(Shot(f"frame {stem}", image, c2w, Lens(K, width, height), depth))
    return _done(bundle, name, shots, losses)
