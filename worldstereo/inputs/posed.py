"""Posed photos: COLMAP models, `transforms.json`, `cameras.json`, projection matrices, examples.

`transforms.json` and Blender's cameras look along -z with +y up; columns y and z are flipped here.
The photos come out without depth, unless the file names depth pictures.
"""

import math
import posixpath
import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from worldstereo.cameras import Cameras
from worldstereo.depth import DepthEstimator, LayoutDepth, best_estimator
from worldstereo.inputs import colmap, images, jsonfile, masks, ply, poses
from worldstereo.inputs.archive import Bundle
from worldstereo.inputs.assemble import Assembled, Shot, assemble, cloud_of, with_depth
from worldstereo.inputs.capture import captured
from worldstereo.inputs.lens import FISHEYES, MODELS, Lens, lens_of
from worldstereo.inputs.limits import Losses, refusal, shown, size_text
from worldstereo.scene import Capture, DepthKind
from worldstereo.trajectory import Trajectory

RAY_WORDS = ("ray", "distance", "euclidean", "range", "along_ray", "radial")
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
OWN_MARK = "WorldStereo"


def find_transforms(bundle: Bundle) -> list[str]:
    """Every `transforms.json`; without one the lists of a split capture, training before tests."""
    plain = bundle.named("transforms.json")
    if plain:
        return plain
    form = re.compile(r"transforms?[_-].*\.json")
    found = [n for n in bundle.names if form.fullmatch(posixpath.basename(n).lower())]
    return sorted(found, key=lambda n: ("train" not in posixpath.basename(n).lower(), n))


def find_colmap(bundle: Bundle) -> list[str]:
    """The first model, or the part of one without which it cannot be read."""
    for folder, suffix in colmap.models(bundle):
        return [posixpath.join(folder, f"images.{suffix}")]
    for name in bundle.named("images.bin", "images.txt", "cameras.bin", "cameras.txt"):
        binary = name.lower().endswith(".bin")
        if binary or _is_model(bundle, name):
            return [name]
    return []


def read_colmap(bundle: Bundle, member: str) -> Capture:
    capture = colmap.read_best(bundle)
    if capture is not None:
        return capture
    base = posixpath.basename(member).lower()
    other = {"images": "cameras", "cameras": "images"}[base[:-4]] + base[-4:]
    raise refusal(bundle.name, f"a COLMAP model without {other}", "Add it, or export again")


def _is_model(bundle: Bundle, member: str) -> bool:
    if bundle.sizes[member] >= bundle.limits.json_bytes:
        return False
    text = bundle.read(member)[:4096]
    if b"QW" in text or b"CAMERA_ID" in text:
        return True
    for line in text.decode("utf-8", errors="replace").splitlines():
        words = line.split()
        if words and not line.startswith("#"):  # "1 PINHOLE 640 480 ..." or a line of a picture
            return len(words) >= 4 and (words[1] in MODELS or len(words) == 10)
    return False


# ---- transforms.json ---------------------------------------------------------------------------

_USED_WORDS = (
    "frames file_path transform_matrix depth_file_path depth_path mask_path camera_model fl_x "
    "fl_y cx cy w h width height k1 k2 k3 k4 k5 k6 p1 p2 camera_angle_x camera_angle_y x_fov "
    "y_fov fov is_fisheye depth_unit_scale_factor integer_depth_scale ply_file_path generated "
    "invented_mask_path is_euclidean_depth depth_type fl_unit transform_matrix_start "
)
_USED = frozenset(_USED_WORDS.split())
_HARMLESS_WORDS = (
    "sharpness aabb aabb_scale scale offset up applied_transform applied_scale colmap_im_id "
    "step frame rotation train_filenames val_filenames test_filenames orientation_override "
    "timestamp blur_score camera_id camera_idx name id version trainer n_extra_learnable_dims "
    "enable_depth_loading from_na white_transparent black_transparent fix_premult time "
    "mask_color auto_scale_poses_factor scene_scale sharpness_score date "
)
_HARMLESS = frozenset(_HARMLESS_WORDS.split())
_NO_PINHOLE = {
    "EQUIRECTANGULAR": "a 360-degree camera", "ORTHOPHOTO": "an orthographic camera",
    "OMNIDIRECTIONALSTEREO_L": "a stereo panorama", "OMNIDIRECTIONALSTEREO_R": "a stereo panorama",
    "VR180_L": "a VR180 camera", "VR180_R": "a VR180 camera", "FISHEYE624": "a FISHEYE624 lens",
}  # fmt: skip


def read_transforms(bundle: Bundle, member: str) -> Capture:
    """nerfstudio's and instant-ngp's `transforms.json`, and Blender's.

    Source: https://docs.nerf.studio/quickstart/data_conventions.html and instant-ngp's
    `docs/nerf_dataset_tips.md`.
    """
    name, base = posixpath.basename(member), posixpath.dirname(member)
    root = jsonfile.Node(jsonfile.parse(name, bundle.read(member), bundle.limits, True), name)
    whole, real = 0.001, None
    if root.has("depth_unit_scale_factor"):
        whole = root.at("depth_unit_scale_factor").number(1e-12, 1e6)
    elif root.has("integer_depth_scale"):
        whole = root.at("integer_depth_scale").number(1e-12, 1e6)
        real = 1.0
    ray = root.has("is_euclidean_depth") and root.at("is_euclidean_depth").value is True
    if root.has("depth_type"):
        ray = str(root.at("depth_type").value).lower() in RAY_WORDS
    losses, shots, half_told = Losses("frames"), [], [False]
    nodes = root.at("frames").items(bundle.limits.images, "frames")
    for node in nodes:
        with losses.row():
            shot = _frame(bundle, base, root, node, whole, half_told)
            shots.append(replace(shot, float_unit=real, along_ray=ray))
    losses.settle(len(shots))
    assembled = assemble(name, bundle, masks.given(bundle, shots), losses)
    cloud, notices = None, _unused(root, nodes)
    if half_told[0]:
        notices = (*notices, "A rolling shutter is not modelled; the start of each frame is used.")
    if root.has("ply_file_path"):
        given = root.at("ply_file_path").text()
        points = bundle.inside(base, given, name, "ply_file_path")
        if points not in bundle:
            raise refusal(name, f"{shown(given, 40)} is missing", "Put the file there")
        cloud = cloud_of(*ply.points_of(bundle, points), assembled.origin)
    kind = "rgbd" if any(shot.depth for shot in shots) else "photos"
    capture = captured(bundle, kind, assembled, cloud=cloud, notices=notices)
    return _own(bundle, base, capture)


def _frame(
    bundle: Bundle, base: str, root: jsonfile.Node, node: jsonfile.Node, unit: float,
    rolling: list[bool],
) -> Shot:  # fmt: skip
    name = root.name
    given = node.at("file_path").text()
    image = _with_suffix(bundle, base, given, name, node.place)
    node.place = f"{node.place} ({shown(given, 32)})"
    key = "transform_matrix"
    if not node.has(key) and node.has("transform_matrix_start"):
        key, rolling[0] = "transform_matrix_start", True
    c2w = poses.pose(name, node.place, node.at(key).matrix()) @ OPENGL
    depth = None
    for key in ("depth_file_path", "depth_path"):
        if depth is None and node.has(key):
            depth = bundle.inside(base, node.at(key).text(), name, node.place)
    lens = _nerf_lens(bundle, root, node, image)
    generated, mask, hidden = node.value.get("generated") is True, None, None
    for key in ("invented_mask_path", "mask_path") if generated else ():
        if mask is None and node.has(key):
            mask = bundle.inside(base, node.at(key).text(), name, node.place)
    if node.has("mask_path") and not generated:
        hidden = bundle.inside(base, node.at("mask_path").text(), name, node.place)
    return Shot(node.place, image, c2w, lens, depth, unit, generated, mask, mask=hidden)


def _unused(root: jsonfile.Node, nodes: list[jsonfile.Node]) -> tuple[str, ...]:
    """Fields that say something which is not understood here, by name."""
    keys = set(root.value)
    for node in nodes:
        keys |= set(node.value) if isinstance(node.value, dict) else set()
    odd = sorted(k for k in keys - _USED - _HARMLESS if not k.startswith(("_", "comment")))
    if not odd:
        return ()
    return (f"Fields that were not used: {shown(', '.join(odd), 90)}.",)


def _with_suffix(bundle: Bundle, base: str, given: str, name: str, where: str) -> str:
    """The picture of a frame; Blender's files leave its suffix away."""
    member = bundle.inside(base, given, name, where)
    if member in bundle or posixpath.splitext(member)[1].lower() in images.SUFFIXES:
        return member
    for suffix in images.SUFFIXES:
        found = bundle.inside(base, given + suffix, name, where)
        if found in bundle:
            return found
    return member


def _nerf_lens(bundle: Bundle, root: jsonfile.Node, node: jsonfile.Node, image: str) -> Lens:
    def value(*keys: str) -> float | None:
        for owner in (node, root):
            for key in keys:
                if owner.has(key):
                    return owner.at(key).number()
        return None

    def raw(key: str) -> Any:
        return next((o.at(key).value for o in (node, root) if o.has(key)), None)

    given = raw("camera_model")
    kind = "OPENCV" if given is None else str(given).strip()
    upper = kind.upper()
    if upper in _NO_PINHOLE:
        raise node.refuse(f"camera model {shown(kind, 24)} is {_NO_PINHOLE[upper]}",
                          "Perspective and fisheye lenses are accepted")  # fmt: skip
    model = {"PERSPECTIVE": "OPENCV", "FISHEYE": "OPENCV_FISHEYE", "PINHOLE": "PINHOLE",
             "FULL_OPENCV": "FULL_OPENCV"}.get(upper, upper)  # fmt: skip
    if model not in MODELS:
        raise node.refuse(f"camera model {shown(kind, 24)}",
                          "OPENCV, PINHOLE, OPENCV_FISHEYE and others of COLMAP's")  # fmt: skip
    if raw("is_fisheye") is True and model not in FISHEYES:
        model = "OPENCV_FISHEYE"  # instant-ngp's word for it
    if any(raw(f"ftheta_p{i}") is not None for i in range(6)):
        raise node.refuse("an F-theta lens (ftheta_p0 to 5)", "Use OPENCV_FISHEYE: k1 to k4")
    w, h = value("w", "width"), value("h", "height")
    if w is None or h is None:
        if image not in bundle:
            raise refusal(
                node.name, f"{node.place}: {shown(image, 40)} is missing", "Put the file there"
            )
        w, h = images.size(image, bundle.read(image), bundle.limits)
    width, height = int(w), int(h)
    if not (1 <= width <= 1 << 20 and 1 <= height <= 1 << 20):
        raise node.refuse(f"{width} x {height} px", "A size above 0 is accepted")
    fx, fy = value("fl_x"), value("fl_y")
    for name, degrees, size in (
        ("camera_angle_x", "x_fov", width),
        ("camera_angle_y", "y_fov", height),
    ):
        angle = value(name)
        if angle is None and (angle := value(degrees)) is not None:
            angle = math.radians(angle)
        focal = size / 2 / math.tan(angle / 2) if angle is not None and 0.01 < angle < 3.1 else None
        if name.endswith("x"):
            fx = focal if fx is None else fx
        else:
            fy = focal if fy is None and fx is None else fy
    if fx is None and fy is None:
        raise node.refuse("no focal length", "fl_x or camera_angle_x is needed")
    fx, fy = fx or fy or 0.0, fy or fx or 0.0
    cx, cy = value("cx"), value("cy")
    cx, cy = width / 2 if cx is None else cx, height / 2 if cy is None else cy
    K = poses.intrinsics(node.name, node.place, fx, fy, cx, cy, width, height)
    named = {key: value(key) or 0.0 for key in ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")}
    worst = max(named.values(), key=abs)
    if abs(worst) > 100:
        raise node.refuse(f"has distortion {worst:.3g}", "Up to 100 is accepted")
    if model in ("PINHOLE", "SIMPLE_PINHOLE"):
        return Lens(K, width, height)
    if model == "OPENCV":  # nerfstudio's k4 is that of the 8th power, not of the denominator
        k = (named["k1"], named["k2"], named["k3"], 0.0, 0.0, 0.0)
        return Lens(K, width, height, k, (named["p1"], named["p2"]), k8=named["k4"])
    if model in FISHEYES:  # no tool writes p1 and p2 of these but as zeros
        named |= {"p1": 0.0, "p2": 0.0}
    return lens_of(model, named, K, width, height)


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


def find_cameras_json(bundle: Bundle) -> list[str]:
    return bundle.named("cameras.json")


def read_cameras_json(bundle: Bundle, member: str) -> Capture:
    """3D Gaussian splatting's list of cameras, or a bank of views cut from one panorama."""
    name, base = posixpath.basename(member), posixpath.dirname(member)
    root = jsonfile.Node(jsonfile.parse(name, bundle.read(member), bundle.limits, True), name)
    if isinstance(root.value, dict):
        return _bank(bundle, base, root)
    shots, losses = [], Losses("cameras")
    for node in root.items(bundle.limits.images, "cameras"):
        with losses.row():
            given = node.at("img_name").text()
            node.place = f"{node.place} ({shown(given, 32)})"
            image = _named(bundle, base, given, name, node.place)
            width, height = (node.at(k).integer(1, 1 << 20) for k in ("width", "height"))
            fx, fy = node.at("fx").number(), node.at("fy").number()
            R, t = node.at("rotation").array(3, 3), node.at("position").array(3)
            c2w = poses.pose(name, node.place, poses.rigid(R, t))
            K = poses.intrinsics(name, node.place, fx, fy, width / 2, height / 2, width, height)
            shots.append(Shot(node.place, image, c2w, Lens(K, width, height)))
    losses.settle(len(shots))
    assembled = assemble(name, bundle, masks.given(bundle, shots), losses)
    near = bundle.named("points3d.ply", "input.ply")
    cloud = cloud_of(*ply.points_of(bundle, near[0]), assembled.origin) if near else None
    return captured(bundle, "photos", assembled, cloud=cloud)


def _named(bundle: Bundle, base: str, given: str, source: str, where: str) -> str:
    """A picture by its name with or without suffix, in the folder, in images/ or above."""
    elsewhere = bundle.inside(base, given, source, where)
    folders = [base, posixpath.dirname(base)]
    for folder in folders:
        for inner in ("images", "input", ""):
            for suffix in ("", *images.SUFFIXES):
                candidate = posixpath.normpath(posixpath.join(folder, inner, given + suffix))
                if (member := bundle.found(candidate)) is not None:
                    return member
    if elsewhere in bundle:
        return elsewhere
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
    """Depth of the layout or of a model for views that no second one can measure."""
    views, rough = [], False
    layout = isinstance(estimator, LayoutDepth)
    kind = DepthKind.INPAINTED if layout else DepthKind.LEARNED
    for view in capture.views:
        estimate = estimator(view.color, view.cameras)
        rough |= estimate.rough
        views.append(with_depth(view, estimate.depth, kind, 0.2))
    said = "Depth was guessed from the pictures: a rough layout, good for small camera moves."
    said = said if layout else "Depth of the pictures comes from a depth model."
    return replace(capture, views=tuple(views), rough_depth=rough, notices=(*capture.notices, said))


# ---- a photo with a camera path ----------------------------------------------------------------


def find_examples(bundle: Bundle) -> list[str]:
    out = []
    for member in bundle.named("camera.json"):
        if bundle.sizes[member] <= bundle.limits.json_bytes:
            text = bundle.read(member)
            if b'"extrinsic"' in text and b'"intrinsic"' in text:
                out.append(member)
    return out


def read_example(bundle: Bundle, member: str) -> Capture:
    """A picture, `camera.json` with world-to-camera matrices along a path, `prompt.json`."""
    name, limits = posixpath.basename(member), bundle.limits
    root = jsonfile.Node(jsonfile.parse(name, bundle.read(member), limits), name)
    base = posixpath.dirname(member)
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
    if (n := len(find_examples(bundle))) > 1:
        notices.append(f"{n} camera paths came with the photo; the first is planned.")
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


def find_projections(bundle: Bundle) -> list[str]:
    return [n for n in bundle.child(".txt") if re.search(r"_P\.txt$", n)][:1]


def read_projections(bundle: Bundle, member: str) -> Capture:
    """One 3x4 matrix a photo, `00006_P.txt` for `00006.jpg`: world to pixels."""
    files = [n for n in bundle.child(".txt") if re.search(r"_P\.txt$", n)]
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
