# ruff: noqa: E501, C420 (tables of one-line files read better unwrapped)
"""Captures and models as other tools write them, each with what must come out.

Every function yields `Case(name, files or bytes, check)`; nothing is stored. A check gets the
capture and raises AssertionError. The truth is the analytic room of `room`, or closed forms.
"""

import io
import json
import struct
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.cases import room

W, H, F = 160, 120, 131.25
RAYS = room.pinhole(W, H, F, F, W / 2, H / 2)


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes
    check: Callable[[Any], None] | str
    """What must hold of the capture; a text: what the refusal must say."""


def png(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def packed(files: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            text = data if isinstance(data, str | bytes) else json.dumps(data)
            archive.writestr(name, text)
    return out.getvalue()


def picture(i: int, rays: np.ndarray = RAYS) -> tuple[np.ndarray, np.ndarray]:
    return room.shoot(room.pose(i), rays)


def gl(i: int) -> list[list[float]]:
    return (room.pose(i) @ room.OPENGL).tolist()


def rows(i: int) -> str:
    return "\n".join(" ".join(f"{v:.9g}" for v in row) for row in room.pose(i)) + "\n"


def millimetres(z: np.ndarray, unit: float = 0.001) -> bytes:
    return png(np.round(z / unit).astype(np.uint16))


def posed(n: int, said: str = "", most: float = 4.0) -> Callable[[Any], None]:
    def check(capture: Any) -> None:
        assert len(capture.views) == n, f"{len(capture.views)} views"
        worst = max(room.color_error(v) for v in capture.views)
        assert worst < most, f"colours are off by {worst:.1f}/255"
        assert said in " ".join(capture.notices), capture.notices

    return check


def deep(n: int, most: float = 0.01, said: str = "") -> Callable[[Any], None]:
    def check(capture: Any) -> None:
        posed(n, said)(capture)
        for v in capture.views:
            errors = room.depth_error(v)
            assert len(errors) > 1000, "no depth"
            assert np.quantile(errors, 0.99) < most, f"depth off by {np.quantile(errors, 0.99):.3f}"

    return check


def transforms(n: int = 4, **more: Any) -> dict[str, Any]:
    files: dict[str, Any] = {f"images/{i}.png": png(picture(i)[0]) for i in range(n)}
    frames = [{"file_path": f"images/{i}.png", "transform_matrix": gl(i)} for i in range(n)]
    files["transforms.json"] = {
        "fl_x": F, "fl_y": F, "cx": W / 2, "cy": H / 2, "w": W, "h": H, "frames": frames, **more,
    }  # fmt: skip
    return files


# ---- 1: a lens told in other words -------------------------------------------------------------


def colmap(model: str, params: list[float], rays: np.ndarray, n: int = 4) -> dict[str, Any]:
    h, w = rays.shape[:2]
    lines = []
    for i in range(n):
        R, t = room.pose(i)[:3, :3].T, -room.pose(i)[:3, :3].T @ room.pose(i)[:3, 3]
        qw = np.sqrt(1 + np.trace(R)) / 2
        q = (
            qw,
            (R[2, 1] - R[1, 2]) / 4 / qw,
            (R[0, 2] - R[2, 0]) / 4 / qw,
            (R[1, 0] - R[0, 1]) / 4 / qw,
        )
        lines.append(" ".join(map(str, [i + 1, *q, *t, 1, f"{i}.png"])))
    values = " ".join(map(str, params))
    return {
        "sparse/0/cameras.txt": f"1 {model} {w} {h} {values}\n",
        "sparse/0/images.txt": "\n\n".join(lines) + "\n\n",
        **{f"images/{i}.png": png(room.shoot(room.pose(i), rays)[0]) for i in range(n)},
    }


def bent(model: str, names: dict[str, float]) -> np.ndarray:
    """Rays of a lens by pycolmap, an independent reading of its parameters."""
    import pycolmap

    camera = pycolmap.Camera(
        camera_id=1, model=model, width=W, height=H, params=list(names.values())
    )
    u, v = room.pixels(W, H)
    flat = camera.cam_from_img(np.stack([u.ravel(), v.ravel()], axis=1))
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1).reshape(H, W, 3)


LENSES: dict[str, dict[str, float]] = {
    "SIMPLE_RADIAL_FISHEYE": {"f": 90, "cx": 80, "cy": 60, "k1": 0.02},
    "RADIAL_FISHEYE": {"f": 90, "cx": 80, "cy": 60, "k1": 0.02, "k2": -0.01},
    "OPENCV_FISHEYE": {"fx": 90, "fy": 92, "cx": 80, "cy": 60, "k1": 0.02, "k2": -0.01, "k3": 0, "k4": 0},
    "FOV": {"fx": 120, "fy": 121, "cx": 80, "cy": 60, "omega": 0.8},
    "THIN_PRISM_FISHEYE": {"fx": 90, "fy": 92, "cx": 80, "cy": 60, "k1": 0.02, "k2": 0, "p1": 0.002,
                           "p2": 0.001, "k3": 0, "k4": 0, "sx1": 0.002, "sy1": -0.001},
    "FULL_OPENCV": {"fx": 120, "fy": 121, "cx": 80, "cy": 60, "k1": -0.1, "k2": 0.02, "p1": 0.002,
                    "p2": 0.001, "k3": 0, "k4": 0.01, "k5": 0, "k6": 0},
    "SIMPLE_DIVISION": {"f": 120, "cx": 80, "cy": 60, "k": -0.08},
}  # fmt: skip


def lenses() -> Iterator[Case]:
    for model, names in LENSES.items():
        files = colmap(model, list(names.values()), bent(model, names))
        yield Case(f"colmap-{model.lower()}.zip", packed(files), posed(4))
    fish = LENSES["OPENCV_FISHEYE"]
    files = {f"images/{i}.png": png(picture(i, bent("OPENCV_FISHEYE", fish))[0]) for i in range(4)}
    told = {"fl_x": 90, "fl_y": 92, "cx": 80, "cy": 60, "w": W, "h": H, "k1": 0.02, "k2": -0.01}
    frames = [{"file_path": f"images/{i}.png", "transform_matrix": gl(i)} for i in range(4)]
    for name, extra in (
        ("flag", {"is_fisheye": True}),
        ("model", {"camera_model": "OPENCV_FISHEYE"}),
        ("word", {"camera_model": "fisheye"}),
    ):
        data = files | {"transforms.json": {**told, **extra, "frames": frames}}
        yield Case(f"transforms-fisheye-{name}.zip", packed(data), posed(4))
    each = [f | told | {"is_fisheye": True} for f in frames]
    yield Case("per-frame.zip", packed(files | {"transforms.json": {"frames": each}}), posed(4))
    degrees = transforms()
    root = degrees["transforms.json"]
    for key in ("fl_x", "fl_y", "cx", "cy"):
        del root[key]
    for key, value in (("x_fov", float(np.degrees(2 * np.arctan(W / 2 / F)))),
                       ("camera_angle_y", 2 * float(np.arctan(H / 2 / F)))):  # fmt: skip
        yield Case(
            f"{key}.zip", packed(degrees | {"transforms.json": root | {key: value}}), posed(4)
        )
    yield Case("equirectangular.zip", packed(transforms(camera_model="EQUIRECTANGULAR")),
               "EQUIRECTANGULAR is a 360-degree camera")  # fmt: skip
    yield Case("unused.zip", packed(transforms(rolling_shutter=[0, 1, 0, 0])),
               posed(4, "not used: rolling_shutter"))  # fmt: skip


def scannet(calibration: dict[str, str]) -> dict[str, Any]:
    files: dict[str, Any] = dict(calibration)
    for i in range(4):
        color, z = picture(i)
        files |= {
            f"color/{i}.png": png(color),
            f"depth/{i}.png": millimetres(z),
            f"pose/{i}.txt": rows(i),
        }
    return files


def calibrations() -> Iterator[Case]:
    square = f"{F} 0 79.5\n0 {F} 59.5\n0 0 1\n"
    wide = f"{F} 0 79.5 0\n0 {F} 59.5 0\n0 0 1 0\n0 0 0 1\n"
    for name, files in (
        ("4x4-beside", {"intrinsic.txt": wide}),
        ("4x4-folder", {"intrinsic/intrinsic_color.txt": wide}),
        ("3x3-folder", {"intrinsics/camera.txt": square}),
        ("row", {"camera_intrinsics.txt": f"{F} {F} 79.5 59.5\n"}),
        (
            "keys",
            {
                "scene0000_00.txt": f"fx_color = {F}\nfy_color = {F}\nmx_color = 79.5\nmy_color = 59.5\n"
            },
        ),
        (
            "yaml",
            {"camera.yaml": f"Camera.fx: {F}\nCamera.fy: {F}\nCamera.cx: 79.5\nCamera.cy: 59.5\n"},
        ),
        (
            "json",
            {"camera.json": {"fx": F, "fy": F, "cx": 79.5, "cy": 59.5, "width": W, "height": H}},
        ),
        ("K", {"calib.json": {"K": [[F, 0, 79.5], [0, F, 59.5], [0, 0, 1]]}}),
        ("commas", {"calibration.txt": square.replace(" ", ", ")}),
    ):
        yield Case(f"calibration-{name}.zip", packed(scannet(files)), deep(4))
    for name, text, said in (
        ("words", "to be done\n", "is not numbers"), ("empty", "", "is empty"),
        ("five", "1 2 3\n4 5\n", "holds 5 numbers in 2 lines"),
        ("nan", f"nan 0 79.5\n0 {F} 59.5\n0 0 1\n", "holds nan"),
        ("zero", "0 0 79.5\n0 0 59.5\n0 0 1\n", "focal length fx is 0"),
    ):  # fmt: skip
        yield Case(f"calibration-{name}.zip", packed(scannet({"intrinsic.txt": text})), said)


# ---- 2: one bad row ----------------------------------------------------------------------------


def rows_left_out() -> Iterator[Case]:
    for name, pose_text in (("inf", "-inf -inf -inf -inf\n" * 4), ("zeros", "0 0 0 0\n" * 4),
                            ("nan", "nan nan nan nan\n" * 4)):  # fmt: skip
        files = scannet({"intrinsic.txt": f"{F} 0 79.5\n0 {F} 59.5\n0 0 1\n"}) | {
            "pose/2.txt": pose_text
        }
        yield Case(f"scannet-{name}.zip", packed(files), deep(3, said="1 of 4 frames left out"))
    files = transforms(5)
    root = files["transforms.json"]
    root["frames"][1]["transform_matrix"] = [[float("nan")] * 4] * 4
    del files["images/3.png"]
    yield Case("transforms-two.zip", packed(files), posed(3, "2 of 5 frames left out"))
    files = transforms()
    del files["images/1.png"], files["images/2.png"]
    yield Case("transforms-most.zip", packed(files), "images/1.png is missing")
    files = transforms()
    for frame in files["transforms.json"]["frames"]:
        m = np.array(frame["transform_matrix"])
        m[:3, :3] *= 2.5
        frame["transform_matrix"] = m.tolist()
    yield Case("scaled.zip", packed(files), posed(4))
    files = colmap("PINHOLE", [F, F, 80, 60], RAYS)
    files["sparse/0/images.txt"] = files["sparse/0/images.txt"].replace("\n\n", "\n")
    yield Case("colmap-one-line.zip", packed(files), posed(4))
    files["images/2.png"] = b"\x89PNG\r\n\x1a\ncut"
    yield Case("colmap-damaged.zip", packed(files), posed(3, "1 of 4 pictures left out"))


# ---- 3: the best candidate ---------------------------------------------------------------------


def candidates() -> Iterator[Case]:
    files = colmap("PINHOLE", [F, F, 80, 60], RAYS, 5)
    small = colmap("PINHOLE", [F, F, 80, 60], RAYS, 2)
    for name in ("cameras", "images"):
        files[f"sparse/1/{name}.txt"] = files[f"sparse/0/{name}.txt"]
        files[f"sparse/0/{name}.txt"] = small[f"sparse/0/{name}.txt"]
    yield Case(
        "colmap-two-models.zip", packed(files), posed(5, "left aside: sparse/0 (2 pictures)")
    )
    both = {f"kitchen/{k}": v for k, v in transforms(3).items()}
    both |= {f"hall/{k}": v for k, v in transforms(4).items()}
    yield Case("two-captures.zip", packed(both), posed(4, "left aside: kitchen/transforms.json"))
    tum: dict[str, Any] = {"calibration.txt": f"{F} {F} 79.5 59.5"}
    lines = []
    for i in range(4):
        color, z = picture(i)
        tum[f"rgb/{1305031100 + i * 0.1:.6f}.png"] = png(color)
        tum[f"depth/{1305031100 + i * 0.1 + 0.011:.6f}.png"] = millimetres(z, 1 / 5000)
        R = room.pose(i)[:3, :3]
        qw = np.sqrt(1 + np.trace(R)) / 2
        q = (
            (R[2, 1] - R[1, 2]) / 4 / qw,
            (R[0, 2] - R[2, 0]) / 4 / qw,
            (R[1, 0] - R[0, 1]) / 4 / qw,
            qw,
        )
        for shift in (-0.004, 0.05):
            value = q if shift < 0 else (0, 0, 0, 1)
            stamp = 1305031100 + i * 0.1 + shift
            lines.append(" ".join([f"{stamp:.4f}", *map(str, (*room.pose(i)[:3, 3], *value))]))
    tum["depth/1305031100.281000.png"] = millimetres(np.full((H, W), 2.0), 1 / 5000)
    tum["groundtruth.txt"] = "# t\n" + "\n".join(lines)
    yield Case("tum-streams.zip", packed(tum), deep(4))
    mesh = b"solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\nendsolid\n"
    photos = {f"{i}.png": png(picture(i)[0]) for i in range(3)}

    def alone(capture: Any) -> None:
        assert capture.cloud is not None and "3 pictures" in " ".join(capture.notices)

    yield Case("mesh-and-photos.zip", packed({"scan.stl": mesh, **photos}), alone)


# ---- 4, 5: depth and masks ---------------------------------------------------------------------


def depths() -> Iterator[Case]:
    def with_depth(
        encode: Callable[[np.ndarray], bytes], suffix: str = "png", **more: Any
    ) -> bytes:
        files = transforms(4, **more)
        for i, frame in enumerate(files["transforms.json"]["frames"]):
            frame["depth_file_path"] = f"depth/{i}.{suffix}"
            files[frame["depth_file_path"]] = encode(picture(i)[1])
        return packed(files)

    def tiff(z: np.ndarray) -> bytes:
        return png(z.astype(np.float32), "TIFF")

    def holes(value: int) -> Callable[[np.ndarray], bytes]:
        def encode(z: np.ndarray) -> bytes:
            steps = np.round(z / 0.001).astype(np.uint16)
            steps[:, :12] = value
            return png(steps)

        return encode

    half = room.pinhole(W // 2, H // 2, F / 2, F / 2, W / 4, H / 4)
    files = transforms()
    for i, frame in enumerate(files["transforms.json"]["frames"]):
        frame["depth_file_path"] = f"depth/{i}.png"
        files[frame["depth_file_path"]] = millimetres(room.shoot(room.pose(i), half)[1])
    yield Case("depth-half.zip", packed(files), deep(4, 0.05))
    yield Case("depth-0.zip", with_depth(holes(0)), deep(4))
    yield Case("depth-65535.zip", with_depth(holes(65535)), deep(4))
    for value in (np.inf, np.nan, 65504.0, -1.0):
        encode = lambda z, v=value: tiff(np.where(np.arange(W)[None] < 12, v, z))  # noqa: E731
        yield Case(
            f"depth-{value}.zip", with_depth(encode, "tif", depth_unit_scale_factor=1), deep(4)
        )
    length = np.linalg.norm(RAYS, axis=-1)
    ray = with_depth(lambda z: millimetres(z * length), is_euclidean_depth=True)
    yield Case("depth-ray.zip", ray, deep(4))

    def npy(z: np.ndarray) -> bytes:
        out = io.BytesIO()
        np.save(out, z.astype(np.float32))
        return out.getvalue()

    yield Case("depth-npy.zip", with_depth(npy, "npy", depth_unit_scale_factor=1), deep(4))
    yield Case("depth-centimetres.zip", with_depth(lambda z: millimetres(z, 0.01),
               depth_unit_scale_factor=0.01), deep(4, 0.02))  # fmt: skip
    replica: dict[str, Any] = {"cam_params.json": {"camera": {"w": W, "h": H, "fx": F, "fy": F, "cx": 79.5,
                                                              "cy": 59.5, "scale": 6553.5}}}  # fmt: skip
    replica["traj.txt"] = "".join(
        " ".join(f"{v:.9g}" for v in room.pose(i).ravel()) + "\n" for i in range(4)
    )
    for i in range(4):
        color, z = picture(i)
        replica[f"results/frame{i:06}.png"] = png(color)
        replica[f"results/depth{i:06}.png"] = millimetres(z, 1 / 6553.5)
    yield Case("replica.zip", packed(replica), deep(4))


def hidden_columns(capture: Any) -> None:
    from worldstereo.scene import DepthKind

    for view in capture.views:
        assert bool((view.kind[0, :, :40] == int(DepthKind.MASKED)).all())
        assert float(view.depth[0, :, :40].max()) == 0
        assert float(view.depth[0, :, 48:].min()) > 0
    assert "Masks hide parts" in " ".join(capture.notices)


def masks() -> Iterator[Case]:
    shown = np.full((H, W), 255, np.uint8)
    shown[:, :44] = 0

    def based(**more: Any) -> dict[str, Any]:
        files = transforms(4, **more)
        for i, frame in enumerate(files["transforms.json"]["frames"]):
            frame["depth_file_path"] = f"depth/{i}.png"
            files[frame["depth_file_path"]] = millimetres(picture(i)[1])
        return files

    files = based()
    for i, frame in enumerate(files["transforms.json"]["frames"]):
        frame["mask_path"] = f"hide/{i}.png"
        files[f"hide/{i}.png"] = png(shown)
    yield Case("mask-path.zip", packed(files), hidden_columns)
    small = based()
    for i, frame in enumerate(small["transforms.json"]["frames"]):
        frame["mask_path"] = f"hide/{i}.png"
        small[f"hide/{i}.png"] = png(shown[::2, ::2])
    yield Case("mask-half.zip", packed(small), hidden_columns)
    for form in ("masks/{}.png", "masks/{}.png.png", "images/../masks/images/{}.png"):
        files = based() | {form.format(i).replace("images/../", ""): png(shown) for i in range(4)}
        yield Case(
            f"mask-beside-{form.count('.png')}{form.count('/')}.zip", packed(files), hidden_columns
        )
    files = based() | {f"images/dynamic_mask_{i}.png": png(255 - shown) for i in range(4)}
    yield Case("mask-dynamic.zip", packed(files), hidden_columns)
    files = based()
    for i in range(4):
        files[f"images/{i}.png"] = png(np.dstack([picture(i)[0], shown]))
    yield Case("mask-alpha.zip", packed(files), hidden_columns)


# ---- 8: names ----------------------------------------------------------------------------------


def names() -> Iterator[Case]:
    def renamed(change: Callable[[str], str], told: Callable[[str], str]) -> bytes:
        files = transforms(3)
        for frame in files["transforms.json"]["frames"]:
            frame["file_path"] = told(frame["file_path"])
        return packed({change(k): v for k, v in files.items()})

    place = lambda to: lambda k: k.replace("images", to)  # noqa: E731
    nfd = unicodedata.normalize("NFD", "Küche ñ")
    nfc = unicodedata.normalize("NFC", "Küche ñ")
    same = lambda k: k  # noqa: E731
    for name, change, told in (
        ("nfd", place(nfd), place(nfc)), ("nfc", place(nfc), place(nfd)),
        ("case", place("Images"), same), ("suffix", lambda k: k.replace(".png", ".PNG"), same),
        ("zero-width", place("ima\u200bges"), same), ("bom", place("images\ufeff"), same),
        ("windows", same, lambda k: "C:\\Users\\me\\scan\\" + k.replace("/", "\\")),
        ("unix", same, lambda k: "/home/me/scan/" + k), ("url", same, lambda k: "file:///home/me/" + k),
        ("backslash", same, lambda k: k.replace("/", "\\")), ("dot", same, lambda k: "./" + k),
        ("doubled", place("images/images"), same), ("elsewhere", place("pictures"), same),
        ("deep", lambda k: f"a/b/c/{k}", same),
    ):  # fmt: skip
        yield Case(f"names-{name}.zip", renamed(change, told), posed(3))
    litter = transforms(3) | {n: b"1" for n in (
        ".DS_Store", "__MACOSX/._a", "Icon\r", "Thumbs.db", "images/desktop.ini", "images/._0.png",
        ".Spotlight-V100/x", "$RECYCLE.BIN/x", "@eaDir/x")}  # fmt: skip
    yield Case("names-litter.zip", packed(litter), posed(3))


# ---- 9, 10: models -----------------------------------------------------------------------------


def shares(*colors: tuple[tuple[float, float, float], float]) -> Callable[[Any], None]:
    def check(capture: Any) -> None:
        given = capture.cloud.colors.numpy()
        for color, want in colors:
            share = float((np.abs(given - np.array(color)).max(axis=1) < 0.06).mean())
            assert abs(share - want) < 0.03, f"{color}: {share:.2f} instead of {want}"

    return check


def quad_glb(
    image: bytes | None, texture: dict[str, Any], slot: dict[str, Any], **more: Any
) -> bytes:
    points = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], "<f4").tobytes()
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], "<f4").tobytes()
    body = points + struct.pack("<6H", 0, 1, 2, 0, 2, 3) + uv
    views = [(0, 48), (48, 12), (60, 32)]
    colors = more.pop("colors", None)
    attributes = {"POSITION": 0, "TEXCOORD_0": 2}
    accessors = [{"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
                 {"bufferView": 1, "componentType": 5123, "count": 6, "type": "SCALAR"},
                 {"bufferView": 2, "componentType": 5126, "count": 4, "type": "VEC2"}]  # fmt: skip
    if colors is not None:
        views.append((len(body), 16))
        body += np.array(colors, "u1").tobytes()
        accessors.append({"bufferView": 3, "componentType": 5121, "count": 4, "type": "VEC4",
                          "normalized": True})  # fmt: skip
        attributes["COLOR_0"] = 3
    root: dict[str, Any] = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": 1, "material": 0}]}],
        "accessors": accessors,
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0, **slot}}}],
        "textures": [texture],
    }  # fmt: skip
    if image is not None:
        views.append((len(body), len(image)))
        root["images"] = [{"bufferView": len(views) - 1, "mimeType": "image/png"}]
        body += image
    root["bufferViews"] = [{"buffer": 0, "byteOffset": a, "byteLength": n} for a, n in views]
    root["buffers"] = [{"byteLength": len(body)}]
    root |= more
    text = json.dumps(root).encode()
    text += b" " * (-len(text) % 4)
    body += b"\0" * (-len(body) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    chunks += struct.pack("<II", len(body), 0x004E4942) + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def models() -> Iterator[Case]:
    red, green, blue = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    atlas = np.zeros((64, 64, 3), np.uint8)
    atlas[:32, :32, 0] = atlas[:32, 32:, 1] = atlas[32:, :32, 2] = 255  # red, green, blue, black
    quarters = shares((red, 0.25), (green, 0.25), (blue, 0.25), ((0, 0, 0), 0.25))
    plain = {"source": 0}
    yield Case("texture.glb", quad_glb(png(atlas), plain, {}), quarters)
    for form, extension in (("WEBP", "EXT_texture_webp"), ("AVIF", "EXT_texture_avif")):
        data = png(atlas, form, **({"lossless": True} if form == "WEBP" else {"quality": 100}))
        texture = {"extensions": {extension: {"source": 0}}}
        yield Case(f"{form.lower()}.glb", quad_glb(data, texture, {}), quarters)
    for name, moved, want in (
        ("offset", {"offset": [0.5, 0.0], "scale": [0.5, 0.5]}, green),
        ("scale", {"scale": [0.5, 0.5]}, red),
        # A quarter turn counter-clockwise around the upper left corner: (u, v) to (v, -u).
        ("turn", {"offset": [0.0, 0.5], "rotation": float(np.pi / 2), "scale": [0.5, 0.5]}, red),
        ("turned", {"offset": [0.5, 1.0], "rotation": float(np.pi / 2), "scale": [0.5, 0.5]}, (0, 0, 0)),
    ):  # fmt: skip
        slot = {"extensions": {"KHR_texture_transform": moved}}
        yield Case(f"transform-{name}.glb", quad_glb(png(atlas), plain, slot), shares((want, 1.0)))
    # Vertex colours times texture, in linear light: half of white is 188 of 255.
    half = [[128, 128, 128, 255]] * 4
    data = quad_glb(png(np.full((8, 8, 3), 255, np.uint8)), plain, {}, colors=half)
    yield Case("tinted.glb", data, shares(((0.737, 0.737, 0.737), 1.0)))
    old = {"KHR_materials_pbrSpecularGlossiness": {"diffuseTexture": {"index": 0}}}
    data = quad_glb(png(atlas), plain, {}, materials=[{"extensions": old}])
    yield Case("glossiness.glb", data, quarters)
    see = np.dstack([atlas, np.where(atlas.sum(axis=2) > 0, 255, 0).astype(np.uint8)])
    cut = [{"alphaMode": "MASK", "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]
    third = shares((red, 1 / 3), (green, 1 / 3), (blue, 1 / 3))
    yield Case("mask.glb", quad_glb(png(see), plain, {}, materials=cut), third)
    yield Case("opaque.glb", quad_glb(png(see), plain, {}), quarters)
    ktx = {"extensions": {"KHR_texture_basisu": {"source": 0}}}

    def says_ktx(capture: Any) -> None:
        assert "KTX2" in " ".join(capture.notices) and len(capture.cloud) > 100

    yield Case("ktx2.glb", quad_glb(b"\xabKTX 20\xbb\r\n\x1a\n", ktx, {}), says_ktx)
    draco = quad_glb(png(atlas), plain, {}, extensionsRequired=["KHR_draco_mesh_compression"])
    yield Case("draco.glb", draco, "Export without Draco")
    meshopt = quad_glb(png(atlas), plain, {}, extensionsRequired=["EXT_meshopt_compression"])
    yield Case("meshopt.glb", meshopt, "Export without meshopt")
    obj = ("mtllib my scan.mtl\nv -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
           "usemtl a\nf 1/1 2/2 3/3 4/4\n")  # fmt: skip
    mtl = "newmtl a\nKd 1 1 1\nmap_Kd -s 1 1 1 textures\\at las.png\n"
    files = {"m/scan.obj": obj, "m/my scan.mtl": mtl, "m/textures/at las.png": png(atlas)}
    yield Case("obj-mtl.zip", packed(files), quarters)
    plainly = {"scan.obj": obj, "my scan.mtl": "newmtl a\nKd 0 1 0\n"}
    yield Case("obj-kd.zip", packed(plainly), shares((green, 1.0)))

    def lost(capture: Any) -> None:
        assert "Not in the archive" in " ".join(capture.notices)

    yield Case("obj-lost.zip", packed({"scan.obj": obj, "my scan.mtl": mtl}), lost)


# ---- 11, 12, 13: clouds ------------------------------------------------------------------------

POINTS = np.random.default_rng(3).uniform(-1, 1, (211, 3))
TINTS = np.random.default_rng(4).integers(0, 256, (211, 3))


def same_cloud(n: int = 211, up: tuple[float, float, float] | None = None,
               colors: bool = True, moved: bool = False) -> Callable[[Any], None]:  # fmt: skip
    def check(capture: Any) -> None:
        cloud = capture.cloud
        assert len(cloud) == n, len(cloud)
        if not moved:
            assert np.abs(cloud.points.numpy() - POINTS[:n]).max() < 1e-3
        if colors:
            assert np.abs(cloud.colors.numpy() * 255 - TINTS[:n]).max() < 1.5
        if up is not None:
            assert capture.up is not None and tuple(capture.up.tolist()) == up

    return check


def ply(head: str, body: bytes, form: str = "binary_little_endian", n: int = 211) -> bytes:
    top = f"ply\nformat {form} 1.0\nelement vertex {n}\n" + head + "end_header\n"
    return top.encode() + body


def clouds() -> Iterator[Case]:
    xyz = "".join(f"property float {a}\n" for a in "xyz")
    rgb = TINTS / 255.0
    for name, kind, letters, values, dtype in (
        ("uchar", "uchar", ("red", "green", "blue"), TINTS, "u1"),
        ("float", "float", ("red", "green", "blue"), rgb, "<f4"),
        ("float255", "float", ("red", "green", "blue"), TINTS, "<f4"),
        ("ushort", "ushort", ("r", "g", "b"), TINTS * 257, "<u2"),
        ("diffuse", "uchar", ("diffuse_red", "diffuse_green", "diffuse_blue"), TINTS, "u1"),
    ):
        row = np.dtype([("p", "<f4", 3), ("c", dtype, 3)])
        data = np.zeros(211, row)
        data["p"], data["c"] = POINTS, values
        head = xyz + "".join(f"property {kind} {a}\n" for a in letters)
        yield Case(f"ply-{name}.ply", ply(head, data.tobytes()), same_cloud())
    words = [f"{v:.5f}" for v in POINTS.ravel()]
    lines = "\r\n".join(" ".join(words[i : i + 7]) for i in range(0, len(words), 7)) + "\r\n"
    yield Case("ply-broken-rows.ply", ply(xyz, lines.encode(), "ascii"), same_cloud(colors=False))
    bad = POINTS.astype("<f4").copy()
    bad[200:] = np.nan
    yield Case("ply-nan.ply", ply(xyz, bad.tobytes()), same_cloud(200, colors=False))
    splat = xyz + "".join(f"property float {a}\n" for a in (
        "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"))  # fmt: skip
    dc = (rgb - 0.5) / 0.28209479177387814
    table = np.column_stack([POINTS, dc, np.full(211, 2.0), np.full((211, 3), np.log(0.05))])

    def gaussians(capture: Any) -> None:
        same_cloud(up=(0.0, -1.0, 0.0))(capture)
        assert np.allclose(capture.cloud.radii.numpy(), 0.05, atol=1e-4)
        assert np.allclose(capture.cloud.confidence.numpy(), 1 / (1 + np.exp(-2.0)), atol=1e-4)

    yield Case("3dgs.ply", ply(splat, table.astype("<f4").tobytes()), gaussians)
    sep = {"space": " ", "comma": ",", "semicolon": ";", "tab": "\t"}
    for name, s in sep.items():
        text = "\n".join(s.join([*(f"{v:.5f}" for v in p), *map(str, c)])
                         for p, c in zip(POINTS, TINTS, strict=True))  # fmt: skip
        yield Case(f"{name}.txt", text.encode(), same_cloud(up=(0.0, 0.0, 1.0)))
    shuffled = "B,G,R,label,Z,Y,X\n" + "\n".join(
        f"{c[2]},{c[1]},{c[0]},wall,{p[2]:.5f},{p[1]:.5f},{p[0]:.5f}"
        for p, c in zip(POINTS, TINTS, strict=True)
    )
    yield Case("columns.csv", shuffled.encode(), same_cloud())
    german = "\n".join(";".join(f"{v:.5f}".replace(".", ",") for v in p) for p in POINTS)
    yield Case("decimal-commas.csv", german.encode(), same_cloud(colors=False))
    pts = "211\n" + "\n".join(
        " ".join([*(f"{v:.5f}" for v in p), "-1200", *map(str, c)])
        for p, c in zip(POINTS, TINTS, strict=True)
    )
    yield Case("leica.pts", pts.encode(), same_cloud())
    comments = "// x y z r g b\n" + "\r\n".join(
        " ".join([*(f"{v:.5f}" for v in p), *(f"{v:.6f}" for v in c)])
        for p, c in zip(POINTS, rgb, strict=True)
    )
    yield Case("named.xyz", comments.encode(), same_cloud())
    yield Case("notes.txt", b"hello there\nnothing here\n", "is no list of points")
    packed_rgb = (TINTS[:, 0] << 16 | TINTS[:, 1] << 8 | TINTS[:, 2]).astype("<u4")
    row = np.dtype([("p", "<f4", 3), ("c", "<u4")])
    data = np.zeros(211, row)
    data["p"], data["c"] = POINTS, packed_rgb
    top = ("# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
           "WIDTH 211\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 211\nDATA {}\n")  # fmt: skip
    yield Case("binary.pcd", top.format("binary").encode() + data.tobytes(), same_cloud())
    flat = (
        b"".join(np.ascontiguousarray(data["p"][:, k]).tobytes() for k in range(3))
        + packed_rgb.tobytes()
    )
    literal = b"".join(
        bytes([len(flat[i : i + 32]) - 1]) + flat[i : i + 32] for i in range(0, len(flat), 32)
    )
    body = struct.pack("<II", len(literal), len(flat)) + literal
    yield Case("packed.pcd", top.format("binary_compressed").encode() + body, same_cloud())
    text = "\n".join(
        " ".join([*(f"{v:.5f}" for v in p), str(c)])
        for p, c in zip(POINTS, packed_rgb, strict=True)
    )
    ascii_top = top.replace("TYPE F F F F", "TYPE F F F U")
    yield Case("ascii.pcd", ascii_top.format("ascii").encode() + text.encode(), same_cloud())
    shifted = room_of_survey()
    yield Case("survey.las", shifted[0], same_cloud(up=(0.0, 0.0, 1.0), moved=True))
    yield Case("survey.laz", shifted[1], same_cloud(up=(0.0, 0.0, 1.0), moved=True))
    yield Case("cut.las", shifted[0][:-40], "cut or damaged")
    over = "\n".join(f"v {p[0]:.5f} {p[1]:.5f} {p[2]:.5f} {c[0] / 255:.5f} {c[1] / 255:.5f} {c[2] / 255:.5f}"
                     for p, c in zip(POINTS, TINTS, strict=True))  # fmt: skip
    yield Case("overshoot.obj", (over + "\nv 0 0 0 1.03 0 0\n").encode(),
               lambda c: same_cloud()(_first(c, 211)))  # fmt: skip


def _first(capture: Any, n: int) -> Any:
    from dataclasses import replace

    import torch

    return replace(capture, cloud=capture.cloud.rows(torch.arange(len(capture.cloud)) < n))


def room_of_survey() -> tuple[bytes, bytes]:
    """LAS and LAZ in UTM coordinates, written by laspy."""
    import laspy

    header = laspy.LasHeader(point_format=2, version="1.2")
    header.offsets, header.scales = room.ORIGIN_UTM, [0.001] * 3
    las = laspy.LasData(header)
    las.x, las.y, las.z = (POINTS[:, k] + room.ORIGIN_UTM[k] for k in range(3))
    las.red, las.green, las.blue = (TINTS[:, k].astype(np.uint16) * 257 for k in range(3))
    out = []
    for packed_too in (False, True):
        data = io.BytesIO()
        las.write(data, do_compress=packed_too)
        out.append(data.getvalue())
    return out[0], out[1]


# ---- 14: what a container says about itself ----------------------------------------------------


def mean_of(color: tuple[int, int, int], within: float = 3.0) -> Callable[[Any], None]:
    def check(capture: Any) -> None:
        mean = capture.views[0].color_u8.float().mean((1, 2)).numpy()
        assert np.abs(mean - color).max() < within, mean

    return check


def containers() -> Iterator[Case]:
    from PIL import ImageCms

    flat = np.full((40, 60, 3), (200, 60, 60), np.uint8)
    yield Case("plain.avif", png(flat, "AVIF", quality=95), mean_of((200, 60, 60)))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Case("srgb.jpg", png(flat, "JPEG", icc_profile=srgb, quality=95), mean_of((200, 60, 60)))
    yield Case("damaged-profile.jpg", png(flat, "JPEG", icc_profile=b"nothing", quality=95),
               mean_of((200, 60, 60)))  # fmt: skip
    out = io.BytesIO()
    Image.fromarray(flat).convert("CMYK").save(out, "JPEG", quality=95)
    yield Case("cmyk.jpg", out.getvalue(), mean_of((200, 60, 60), 8))
    deep16 = np.full((40, 60), 0x8000, np.uint16)
    yield Case("grey16.png", png(deep16), mean_of((128, 128, 128)))
    turned = colmap("PINHOLE", [F, F, 60, 80], room.pinhole(H, W, F, F, 60, 80), 3)
    upright = dict(turned)
    for i in range(3):
        image = np.asarray(Image.open(io.BytesIO(turned[f"images/{i}.png"])))
        exif = Image.Exif()
        exif[0x0112] = 6
        out = io.BytesIO()
        Image.fromarray(np.rot90(image)).save(out, "JPEG", exif=exif, quality=95)
        turned[f"images/{i}.png"] = out.getvalue()
    yield Case("exif-turned.zip", packed(turned), posed(3, "turned upright"))
    yield Case("upright.zip", packed(upright), posed(3))


# ---- phone scanners ----------------------------------------------------------------------------


def scanners() -> Iterator[Case]:
    half = room.pinhole(W // 2, H // 2, F / 2, F / 2, W / 4, H / 4)
    small = lambda i: millimetres(room.shoot(room.pose(i), half)[1])  # noqa: E731
    files: dict[str, Any] = {"raw.glb": b"glTF", "mesh_info.json": {}}
    for i in range(4):
        stamp = 45123400000 + 250 * i
        camera = {"fx": F, "fy": F, "cx": W / 2, "cy": H / 2, "width": W, "height": H}
        camera |= {f"t_{r}{c}": gl(i)[r][c] for r in range(3) for c in range(4)}
        files |= {
            f"keyframes/corrected_cameras/{stamp}.json": camera, f"keyframes/cameras/{stamp}.json": {},
            f"keyframes/images/{stamp}.jpg": png(picture(i)[0], "JPEG", quality=95),
            f"keyframes/depth/{stamp}.png": small(i),
        }  # fmt: skip
    yield Case("polycam.zip", packed(files), deep(4, 0.05, "raw.glb"))
    files = {"info.json": {}, "export_refined.obj": "v 0 0 0\n"}
    for i in range(5):
        flat = [v for row in gl(i) for v in row]
        files[f"frame_{i:05}.json"] = {
            "cameraPoseARFrame": flat, "intrinsics": [F, 0, W / 2, 0, F, H / 2, 0, 0, 1], "time": i}  # fmt: skip
        if i < 4:
            files[f"frame_{i:05}.jpg"] = png(picture(i)[0], "JPEG", quality=95)
            files[f"depth_{i:05}.png"] = small(i)
    yield Case("scanner-app.zip", packed(files), deep(4, 0.05, "1 poses come without a picture"))

    def quaternion(R: np.ndarray) -> list[float]:
        qw = np.sqrt(1 + np.trace(R)) / 2
        return [
            (R[2, 1] - R[1, 2]) / 4 / qw,
            (R[0, 2] - R[2, 0]) / 4 / qw,
            (R[1, 0] - R[0, 1]) / 4 / qw,
            qw,
        ]

    # A world that is turned, so that no rotation is the identity or a half turn.
    turn = np.eye(4)
    turn[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    told = [turn @ np.array(gl(i)) for i in range(4)]

    def turned(n: int) -> Callable[[Any], None]:
        def check(capture: Any) -> None:
            from dataclasses import replace

            back = np.linalg.inv(turn)
            views = []
            for v in capture.views:
                c2w = back @ v.cameras.c2w.double().numpy()
                camera = replace(v.cameras, c2w=v.cameras.c2w.new_tensor(c2w))
                views.append(replace(v, cameras=camera))
            posed(n)(replace(capture, views=tuple(views)))

        return check

    def seven(m: np.ndarray) -> list[float]:
        from scipy.spatial.transform import Rotation

        return [*Rotation.from_matrix(m[:3, :3]).as_quat().tolist(), *m[:3, 3].tolist()]

    meta = {"K": [F, 0, 0, 0, F, 0, W / 2, H / 2, 1], "w": W, "h": H, "fps": 30,
            "poses": [seven(m) for m in told]}  # fmt: skip
    shots = {f"rgb/{i}.jpg": png(picture(i)[0], "JPEG", quality=95) for i in range(4)}
    yield Case("record3d.zip", packed({"metadata": json.dumps(meta), **shots}), turned(4))
    each = meta | {"perFrameIntrinsicCoeffs": [[F, F, W / 2, H / 2]] * 4, "K": [1.0] * 9}
    data = {"metadata.json": each, **shots, "depth/0.depth": b"bvx2"}
    yield Case("record3d-each.zip", packed(data), turned(4))
    files, lines = {}, []
    for i in range(4):
        from scipy.spatial.transform import Rotation

        w2c = np.linalg.inv(turn @ room.pose(i))
        axis = Rotation.from_matrix(w2c[:3, :3]).as_rotvec()
        lines.append(" ".join(map(str, [5000.1 + i / 10, *axis, *w2c[:3, 3]])))
        name = f"4000_{5000.102 + i / 10:.3f}"
        files[f"lowres_wide/{name}.png"] = png(picture(i)[0])
        files[f"lowres_depth/{name}.png"] = millimetres(picture(i)[1])
        files[f"lowres_wide_intrinsics/{name}.pincam"] = f"{W} {H} {F} {F} {W / 2} {H / 2}"
    files["lowres_wide.traj"] = "\n".join(lines)
    yield Case("arkitscenes.zip", packed(files), turned(4))
    lines = ["timestamp, frame, x, y, z, qx, qy, qz, qw"]
    files = {"camera_matrix.csv": f"{F}, 0.0, {W / 2}\n0.0, {F}, {H / 2}\n0.0, 0.0, 1.0\n"}
    for i in range(4):
        q = quaternion(room.pose(i)[:3, :3])
        lines.append(", ".join([str(0.1 * i), f"{i:06}", *map(str, (*room.pose(i)[:3, 3], *q))]))
        files[f"rgb/{i:06}.png"] = png(picture(i)[0])
        files[f"depth/{i:06}.png"] = millimetres(picture(i)[1])
    files["odometry.csv"] = "\n".join(lines)
    yield Case("stray.zip", packed(files), deep(4))


def scans() -> Iterator[Case]:
    """E57, where pye57 is installed."""
    import tempfile
    from pathlib import Path

    try:
        import pye57
    except ImportError:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.e57"
        file = pye57.E57(str(path), mode="w")
        data = {f"cartesian{a}": POINTS[:, k] for k, a in enumerate("XYZ")}
        data |= {
            f"color{c}": TINTS[:, k].astype(np.uint8)
            for k, c in enumerate(("Red", "Green", "Blue"))
        }
        file.write_scan_raw(data)
        file.close()
        sound = path.read_bytes()
    yield Case("scan.e57", sound, same_cloud(up=(0.0, 0.0, 1.0)))
    yield Case("cut.e57", sound[:-700], "the header says")


FAMILIES = (lenses, calibrations, rows_left_out, candidates, depths, masks, names, models, clouds,
            containers, scanners, scans)  # fmt: skip
