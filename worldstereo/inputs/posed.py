"""Posed photos: COLMAP models, `transforms.json`, `cameras.json`, projection matrices, examples.

`transforms.json` and Blender's cameras look along -z with +y up; columns y and z are flipped here.
The photos come out without depth, unless the file names depth pictures.
"""

import math
import posixpath
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from worldstereo.cameras import Cameras
from worldstereo.depth import DepthEstimator, LayoutDepth, best_estimator
from worldstereo.inputs import colmap, images, jsonfile, ply, poses
from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.assemble import Assembled, Shot, assemble, cloud_of, with_depth
from worldstereo.inputs.capture import captured
from worldstereo.inputs.lens import Lens
from worldstereo.inputs.limits import refusal, shown, size_text
from worldstereo.scene import Capture, DepthKind
from worldstereo.trajectory import Trajectory

Find = Callable[..., list[str]]
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
OWN_MARK = "WorldStereo"


def read(bundle: Bundle, find: Find) -> Capture | None:
    """The capture when the bundle holds poses in one of the known forms, else None."""
    if found := find("transforms.json", "transforms_train.json"):
        return _transforms(bundle, found[0])
    if found := find("images.bin", "images.txt"):
        suffix = found[0][-3:]
        folder = posixpath.dirname(found[0])
        if posixpath.join(folder, f"cameras.{suffix}") in bundle:
            return colmap.read(bundle, folder, suffix)
        if suffix == "bin" or _is_model(bundle, found[0]):
            raise refusal(
                bundle.name, f"a COLMAP model without cameras.{suffix}", "Add it, or export again"
            )
    if found := find("cameras.bin", "cameras.txt"):
        kind = found[0][-3:]
        raise refusal(
            bundle.name, f"a COLMAP model without images.{kind}", "Add it, or export again"
        )
    if found := find("cameras.json"):
        return _cameras_json(bundle, found[0])
    if found := find("camera.json"):
        example = _example(bundle, found)
        if example is not None:
            return example
    return _projections(bundle)


def _is_model(bundle: Bundle, member: str) -> bool:
    return bundle.sizes[member] < bundle.limits.json_bytes and b"QW" in bundle.read(member)[:2048]


# ---- transforms.json ---------------------------------------------------------------------------


def _transforms(bundle: Bundle, member: str) -> Capture:
    name, base = posixpath.basename(member), posixpath.dirname(member)
    root = jsonfile.Node(jsonfile.parse(name, bundle.read(member), bundle.limits), name)
    unit = 0.001
    if root.has("depth_unit_scale_factor"):
        unit = root.at("depth_unit_scale_factor").number(1e-12, 1e6)
    shots = []
    for node in root.at("frames").items(bundle.limits.images, "frames"):
        given = node.at("file_path").text()
        image = _with_suffix(bundle, bundle.inside(base, given, name, node.place))
        node.place = f"{node.place} ({shown(given, 32)})"
        c2w = poses.pose(name, node.place, node.at("transform_matrix").array(4, 4)) @ OPENGL
        depth = None
        if node.has("depth_file_path"):
            depth = bundle.inside(base, node.at("depth_file_path").text(), name, node.place)
        lens = _nerf_lens(bundle, root, node, image)
        generated, mask = node.value.get("generated") is True, None
        for key in ("invented_mask_path", "mask_path") if generated else ():
            if mask is None and node.has(key):
                mask = bundle.inside(base, node.at(key).text(), name, node.place)
        shots.append(Shot(node.place, image, c2w, lens, depth, unit, generated, mask))
    assembled = assemble(name, bundle, shots)
    cloud = None
    if root.has("ply_file_path"):
        given = root.at("ply_file_path").text()
        points = bundle.inside(base, given, name, "ply_file_path")
        if points not in bundle:
            raise refusal(name, f"{shown(given, 40)} is missing", "Put the file there")
        cloud = cloud_of(*ply.points_of(bundle, points), assembled.origin)
    kind = "rgbd" if any(shot.depth for shot in shots) else "photos"
    capture = captured(bundle, kind, assembled, cloud=cloud)
    return _own(bundle, base, capture)


def _with_suffix(bundle: Bundle, member: str) -> str:
    """Blender's files leave the suffix of pictures away."""
    if member in bundle or posixpath.splitext(member)[1]:
        return member
    return next((member + s for s in images.SUFFIXES if member + s in bundle), member)


def _nerf_lens(bundle: Bundle, root: jsonfile.Node, node: jsonfile.Node, image: str) -> Lens:
    def value(*keys: str) -> float | None:
        for owner in (node, root):
            for key in keys:
                if owner.has(key):
                    return owner.at(key).number()
        return None

    def model() -> str:
        for owner in (node, root):
            if owner.has("camera_model"):
                return owner.at("camera_model").text(64)
        return "OPENCV"

    kind = model()
    if kind not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "OPENCV_FISHEYE", "perspective"):
        raise node.refuse(f"camera model {shown(kind, 24)}",
                          "OPENCV, PINHOLE and OPENCV_FISHEYE are accepted")  # fmt: skip
    w, h = value("w"), value("h")
    if w is None or h is None:
        if image not in bundle:
            raise refusal(
                node.name, f"{node.place}: {shown(image, 40)} is missing", "Put the file there"
            )
        w, h = images.size(image, bundle.read(image), bundle.limits)
    width, height = int(w), int(h)
    if not (1 <= width <= 1 << 20 and 1 <= height <= 1 << 20):
        raise node.refuse(f"{width} x {height} px", "A size above 0 is accepted")
    fx, angle = value("fl_x"), value("camera_angle_x")
    if fx is None and angle is not None and 0.01 < angle < 3.1:
        fx = width / 2 / math.tan(angle / 2)
    if fx is None:
        raise node.refuse("no focal length", "fl_x or camera_angle_x is needed")
    fy, cx, cy = value("fl_y") or fx, value("cx"), value("cy")
    cx, cy = width / 2 if cx is None else cx, height / 2 if cy is None else cy
    K = poses.intrinsics(node.name, node.place, fx, fy, cx, cy, width, height)
    fisheye = kind == "OPENCV_FISHEYE"
    plain = kind in ("PINHOLE", "SIMPLE_PINHOLE")
    k = [0.0 if plain else value(f"k{i}") or 0.0 for i in range(1, 5 if fisheye else 7)]
    if not fisheye:  # nerfstudio's k4 of an OPENCV camera is not the denominator's
        k[3:] = [0.0, 0.0, 0.0]
    p = (0.0, 0.0) if plain else (value("p1") or 0.0, value("p2") or 0.0)
    worst = max((*k, *p), key=abs)
    if abs(worst) > 100:
        raise node.refuse(f"has distortion {worst:.3g}", "Up to 100 is accepted")
    return Lens(K, width, height, tuple(k), p, fisheye)


def _own(bundle: Bundle, base: str, capture: Capture) -> Capture:
    """An export of this program says which way is up, and that depth was rough."""
    member = posixpath.join(base, "conventions.json")
    if member not in bundle or bundle.sizes[member] > bundle.limits.json_bytes:
        return capture
    node = jsonfile.Node(
        jsonfile.parse("conventions.json", bundle.read(member), bundle.limits), "conventions.json"
    )
    written = node.value.get("written_by") if isinstance(node.value, dict) else None
    if not isinstance(written, str) or not written.startswith(OWN_MARK):
        return capture
    if node.has("up"):
        up = node.at("up").array(3)
        largest = np.abs(up).max()
        if largest > 1e-6:
            up = up / largest  # before its length: squares of large numbers overflow
            up = torch.tensor(up / np.linalg.norm(up), dtype=torch.float32)
            capture = replace(capture, up=up)
    return replace(capture, rough_depth=node.value.get("depth_is_rough") is True)


# ---- cameras.json ------------------------------------------------------------------------------


def _cameras_json(bundle: Bundle, member: str) -> Capture:
    """3D Gaussian splatting's list of cameras, or a bank of views cut from one panorama."""
    name, base = posixpath.basename(member), posixpath.dirname(member)
    root = jsonfile.Node(jsonfile.parse(name, bundle.read(member), bundle.limits), name)
    if isinstance(root.value, dict):
        return _bank(bundle, base, root)
    shots = []
    for node in root.items(bundle.limits.images, "cameras"):
        given = node.at("img_name").text()
        node.place = f"{node.place} ({shown(given, 32)})"
        image = _named(bundle, base, given, name, node.place)
        width, height = (node.at(k).integer(1, 1 << 20) for k in ("width", "height"))
        fx, fy = node.at("fx").number(), node.at("fy").number()
        R, t = node.at("rotation").array(3, 3), node.at("position").array(3)
        c2w = poses.pose(name, node.place, poses.rigid(R, t))
        K = poses.intrinsics(name, node.place, fx, fy, width / 2, height / 2, width, height)
        shots.append(Shot(node.place, image, c2w, Lens(K, width, height)))
    assembled = assemble(name, bundle, shots)
    near = [n for n in bundle.child(".ply") if posixpath.basename(n).lower() in
            ("points3d.ply", "input.ply")]  # fmt: skip
    cloud = cloud_of(*ply.points_of(bundle, near[0]), assembled.origin) if near else None
    return captured(bundle, "photos", assembled, cloud=cloud)


def _named(bundle: Bundle, base: str, given: str, source: str, where: str) -> str:
    """A picture by its name with or without suffix, in the folder, in images/ or above."""
    bundle.inside(base, given, source, where)
    folders = [base, posixpath.dirname(base)]
    for folder in folders:
        for inner in ("images", "input", ""):
            for suffix in ("", *images.SUFFIXES, *(s.upper() for s in images.SUFFIXES)):
                candidate = posixpath.normpath(posixpath.join(folder, inner, given + suffix))
                if candidate in bundle:
                    return candidate
    return posixpath.normpath(posixpath.join(base, "images", given))


def _bank(bundle: Bundle, base: str, root: jsonfile.Node) -> Capture:
    """Views cut from one panorama: `{id: {intrinsic, extrinsic}}`, world to camera."""
    shots = []
    if len(root.value) > bundle.limits.images:
        raise root.refuse(
            f"{len(root.value)} cameras", f"At most {bundle.limits.images} are accepted"
        )
    for key in root.value:
        node = root.at(key)
        node.place = f"camera {shown(key, 24)}"
        image = _named(bundle, base, key, root.name, node.place)
        if image not in bundle:
            raise node.refuse(f"{shown(image, 40)} is missing", "Put the picture there")
        width, height = images.size(image, bundle.read(image), bundle.limits)
        c2w = poses.inverse(poses.pose(root.name, node.place, node.at("extrinsic").array(4, 4)))
        lens = _matrix_lens(node.at("intrinsic"), width, height)
        shots.append(Shot(node.place, image, c2w, lens))
    if not shots:
        raise root.refuse("holds 0 cameras", "At least 1 is accepted")
    assembled = assemble(root.name, bundle, shots)
    spots = np.array([s.c2w[:3, 3] for s in shots])
    capture = captured(
        bundle, "panorama" if np.ptp(spots, axis=0).max() == 0 else "photos", assembled
    )
    if capture.kind != "panorama" or capture.up is None:
        return capture
    return _guessed(capture, LayoutDepth(up=capture.up))


def _matrix_lens(node: jsonfile.Node, width: int, height: int) -> Lens:
    m = node.array(3, 3)
    K = poses.intrinsics(node.name, node.place, m[0, 0], m[1, 1], m[0, 2], m[1, 2], width, height)
    return Lens(K, width, height)


def _guessed(capture: Capture, estimator: DepthEstimator) -> Capture:
    """Layout depth for views that no second one can measure."""
    views = []
    for view in capture.views:
        estimate = estimator(view.color, view.cameras)
        kind = DepthKind.COMPLETED if estimate.rough else DepthKind.STEREO
        views.append(with_depth(view, estimate.depth, kind, 0.2))
    said = "Depth was guessed from the pictures: a rough layout, good for small camera moves."
    return replace(capture, views=tuple(views), rough_depth=True, notices=(*capture.notices, said))


# ---- a photo with a camera path ----------------------------------------------------------------


def _example(bundle: Bundle, found: list[str]) -> Capture | None:
    """A picture, `camera.json` with world-to-camera matrices along a path, `prompt.json`."""
    name, limits = posixpath.basename(found[0]), bundle.limits
    root = jsonfile.Node(jsonfile.parse(name, bundle.read(found[0]), limits), name)
    if not (root.has("extrinsic") and root.has("intrinsic")):
        return None
    base = posixpath.dirname(found[0])
    picture = None
    folder: str | None = base
    while picture is None and folder is not None:  # beside the path or in a folder above it
        here = bundle.child(*images.SUFFIXES, folder=folder)
        picture = here[0] if here else None
        folder = posixpath.dirname(folder) if folder else None
    if picture is None:
        raise refusal(
            name, "there is no picture beside it", "A photo and its camera path belong together"
        )
    extrinsics = root.at("extrinsic").items(limits.path_cameras, "frames")
    intrinsics = root.at("intrinsic").items(limits.path_cameras, "frames")
    if len(extrinsics) != len(intrinsics):
        raise root.refuse(f"{len(extrinsics)} extrinsics and {len(intrinsics)} intrinsics",
                          "One of each a frame is accepted")  # fmt: skip
    width, height = images.size(picture, bundle.read(picture), limits)
    w = root.at("width").integer(1, 1 << 20) if root.has("width") else width
    h = root.at("height").integer(1, 1 << 20) if root.has("height") else height
    path = [poses.inverse(poses.pose(name, n.place, n.array(4, 4))) for n in extrinsics]
    Ks = [_matrix_lens(n, w, h).K for n in intrinsics]
    lens = Lens(Ks[0], w, h)
    assembled = assemble(name, bundle, [Shot("frame 0", picture, path[0], lens)])
    view = assembled.views[0]
    cameras = Cameras(
        torch.tensor(np.array(Ks), dtype=torch.float32),
        torch.tensor(np.array([m - _shift(assembled) for m in path]), dtype=torch.float32),
        w,
        h,
    ).scaled(view.width, view.height)
    notices = []
    if len(found) > 1:
        notices.append(f"{len(found)} camera paths came with the photo; the first is planned.")
    prompt, cut = _prompt(bundle, base)
    capture = captured(bundle, "photo", assembled, notices=(*notices, *cut))
    capture = _guessed(capture, best_estimator())
    capture = _scaled_to_path(capture, path)
    label = posixpath.basename(base) or "camera path"
    return replace(capture, trajectory=Trajectory(cameras, shown(label, 40)), prompt=prompt)


def _shift(assembled: Assembled) -> np.ndarray:
    out = np.zeros((4, 4))
    out[:3, 3] = assembled.origin
    return out


def _scaled_to_path(capture: Capture, path: list[np.ndarray]) -> Capture:
    """The path circles what the first camera looks at: put the middle of the guessed depth there.

    The point nearest to all optical axes tells how far; a path that does not turn around anything
    keeps the estimator's own scale.
    """
    centres, axes = np.array([m[:3, 3] for m in path]), np.array([m[:3, 2] for m in path])
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    A, b = across.sum(axis=0), np.einsum("nij,nj->i", across, centres)
    if np.linalg.eigvalsh(A)[0] < 1e-3 * len(path):
        return capture
    distance = float((np.linalg.solve(A, b) - centres[0]) @ axes[0])
    view = capture.views[0]
    middle = float(view.depth[view.depth > 0].median())
    if not 1e-3 < distance < 1e3 or middle <= 0:
        return capture
    scaled = replace(view, depth=view.depth * (distance / middle))
    return replace(capture, views=(scaled, *capture.views[1:]))


def _prompt(bundle: Bundle, base: str) -> tuple[str, tuple[str, ...]]:
    """The longest of the known texts of `prompt.json`, here or above; empty when there is none."""
    folder: str | None = base
    while folder is not None:
        for file in ("prompt.json", "traj_caption.json"):
            member = posixpath.join(folder, file)
            if member in bundle:
                value = jsonfile.parse(file, bundle.read(member), bundle.limits)
                for key in ("prompt", "long caption", "medium caption", "short caption"):
                    text = value.get(key) if isinstance(value, dict) else None
                    if isinstance(text, str) and text.strip():
                        most = bundle.limits.prompt
                        cut = (
                            (f"The prompt was cut to {most} characters.",)
                            if len(text) > most
                            else ()
                        )
                        return text.strip()[:most], cut
        folder = posixpath.dirname(folder) if folder else None
    return "", ()


# ---- projection matrices -----------------------------------------------------------------------


def _projections(bundle: Bundle) -> Capture | None:
    """One 3x4 matrix a photo, `00006_P.txt` for `00006.jpg`: world to pixels."""
    files = [n for n in bundle.child(".txt") if re.search(r"_P\.txt$", n)]
    if not files:
        return None
    pictures = {
        posixpath.splitext(posixpath.basename(n))[0]: n for n in bundle.child(*images.SUFFIXES)
    }
    shots = []
    for member in files:
        name = posixpath.basename(member)
        stem = name[: -len("_P.txt")]
        match = next((p for s, p in pictures.items() if s == stem or s.rstrip("._c") == stem), None)
        if match is None:
            raise refusal(
                name, f"there is no picture {shown(stem, 32)}", "One photo a matrix is accepted"
            )
        if bundle.sizes[member] > 1 << 16:
            raise refusal(name, size_text(bundle.sizes[member]), "12 numbers are accepted")
        words = bundle.read(member).decode("utf-8", errors="replace").split()
        try:
            P = np.array([float(w) for w in words]).reshape(3, 4)
        except ValueError:
            raise refusal(
                name, f"holds {len(words)} entries", "3 rows of 4 numbers are accepted"
            ) from None
        width, height = images.size(match, bundle.read(match), bundle.limits)
        K, c2w = _decomposed(name, P, width, height)
        shots.append(Shot(shown(stem, 24), match, c2w, Lens(K, width, height)))
    return captured(bundle, "photos", assemble(bundle.name, bundle, shots))


def _decomposed(name: str, P: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """K and camera-to-world of a projection matrix, up to its free sign.

    Source: Hartley & Zisserman, Multiple View Geometry, 2nd ed., section 6.2.4.
    """
    M = P[:, :3]
    size = np.abs(P).max() if np.isfinite(P).all() else float("nan")
    if not size > 0 or not abs(np.linalg.det(M / size)) > 1e-12:
        raise refusal(name, "the matrix is not finite or has no inverse", "K [R | t] is accepted")
    P = P / size * np.sign(np.linalg.det(M / size))
    M = P[:, :3]
    flip = np.eye(3)[::-1]
    Q, U = np.linalg.qr((flip @ M).T)
    K, R = flip @ U.T @ flip, flip @ Q.T
    signs = np.diag(np.sign(np.diag(K)))
    K, R = K @ signs, signs @ R
    t = np.linalg.solve(K, P[:, 3])
    K = K / K[2, 2]
    if abs(K[0, 1]) > 0.01 * K[0, 0]:
        raise refusal(
            name, f"the pixels are skewed by {K[0, 1] / K[0, 0]:.2g}", "Up to 0.01 is accepted"
        )
    checked = poses.intrinsics(name, "", K[0, 0], K[1, 1], K[0, 2], K[1, 2], width, height)
    return checked, poses.pose(name, "", poses.inverse(poses.rigid(R, t)))
