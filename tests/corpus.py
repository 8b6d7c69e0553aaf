# ruff: noqa: E501 (tables of one-line lies read better unwrapped)
"""Hundreds of sound, odd and hostile files, made here from a seed; nothing is stored.

Each `Case` says what must happen to it: "accept" (with a check of what came out), "reject" (one
line) or "either" (whatever happens, nothing but a capture or a refusal).
"""

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

ACCEPT, REJECT, EITHER = "accept", "reject", "either"


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes
    verdict: str
    check: Callable[[Any], bool] | None = None

    @property
    def label(self) -> str:
        return f"{self.verdict}-{self.name}"


def all_cases(seed: int = 0) -> list[Case]:
    rng = np.random.default_rng(seed)
    out: list[Case] = []
    for family in (pictures, clouds, meshes, gltfs, jsons, zips, models, mislabelled):
        out += [
            Case(f"{family.__name__}-{i:03d}-{c.name}", c.data, c.verdict, c.check)
            for i, c in enumerate(family(rng))
        ]
    return out


# ---- pictures ----------------------------------------------------------------------------------


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def png_header(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    """A PNG whose header promises a size and whose body is a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def jpeg_header(width: int, height: int, sound: bytes) -> bytes:
    """A sound JPEG whose frame header promises another size."""
    at = next(i for i in range(len(sound)) if sound[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
    return sound[: at + 5] + struct.pack(">HH", height, width) + sound[at + 9 :]


def pictures(rng: np.random.Generator) -> Iterator[Case]:
    pixels = rng.integers(0, 255, (41, 59, 3), dtype=np.uint8)
    one_view = lambda c: len(c.views) == 1 and c.views[0].width == 59  # noqa: E731
    for form, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")):
        sound = encoded(pixels, form)
        yield Case(f"sound.{suffix}", sound, ACCEPT, one_view)
        for share in (0.02, 0.1, 0.5, 0.9):
            cut = sound[: max(4, int(len(sound) * share))]
            yield Case(f"cut{int(share * 100)}.{suffix}", cut, REJECT)
        yield Case(f"empty.{suffix}", b"", REJECT)
        yield Case(f"zeros.{suffix}", b"\0" * 500, REJECT)
        yield Case(f"noise.{suffix}", rng.bytes(500), REJECT)
        for _ in range(6):
            broken = bytearray(sound)
            for at in rng.integers(0, len(broken), 9):
                broken[at] = rng.integers(256)
            yield Case(f"flipped.{suffix}", bytes(broken), EITHER)
    yield Case("grey.png", encoded(pixels[..., 0]), ACCEPT, one_view)
    grey16 = encoded(pixels[..., 0].astype(np.uint16) << 8)
    middle = lambda c: 0.3 < float(c.views[0].color.mean()) < 0.7  # noqa: E731
    yield Case("grey16.png", grey16, ACCEPT, middle)
    alpha = np.concatenate([pixels, pixels[..., :1]], axis=2)
    yield Case("alpha.png", encoded(alpha), ACCEPT, one_view)
    jpeg = encoded(pixels, "JPEG")
    for size in ((15000, 14000), (65535, 65535), (1 << 30, 1), (40000, 100), (1 << 31, 1 << 31)):
        yield Case(f"huge{size[0]}.png", png_header(*size), REJECT)
        if max(size) < 65536:
            yield Case(f"huge{size[0]}.jpg", jpeg_header(*size, jpeg), REJECT)
    yield Case("nothing.png", png_header(0, 0), REJECT)
    yield Case("strip.png", png_header(3000, 2), REJECT)
    for form, suffix in (("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif"), ("PPM", "ppm"),
                         ("TGA", "tga"), ("ICO", "ico")):  # fmt: skip
        data = encoded(pixels[..., 0] if form == "ICO" else pixels, form)
        yield Case(f"other.{suffix}", data, REJECT)
        yield Case(f"posing-{suffix}.png", data, REJECT)
    yield Case("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", REJECT)
    yield Case("script.png", b"%!PS\n(hello) print", REJECT)


# ---- point clouds ------------------------------------------------------------------------------

HEAD = "ply\nformat {form} 1.0\nelement vertex {n}\nproperty float x\nproperty float y\nproperty float z\n"


def ply(points: np.ndarray, form: str = "ascii", n: int | None = None, more: str = "") -> bytes:
    head = (
        HEAD.format(form=form, n=len(points) if n is None else n) + more + "end_header\n"
    ).encode()
    if form == "ascii":
        return head + "\n".join(" ".join(f"{v:g}" for v in row) for row in points).encode() + b"\n"
    order = "<f4" if "little" in form else ">f4"
    return head + points.astype(order).tobytes()


def holds(n: int) -> Callable[[Any], bool]:
    return lambda c: len(c.cloud) == n


def clouds(rng: np.random.Generator) -> Iterator[Case]:
    points = rng.normal(size=(53, 3))
    for form in ("ascii", "binary_little_endian", "binary_big_endian"):
        sound = ply(points, form)
        near = lambda c: bool(np.allclose(c.cloud.points.numpy(), points, atol=1e-4))  # noqa: E731
        yield Case(f"sound-{form}.ply", sound, ACCEPT, near)
        for n in (54, 1000, 10**9, 10**15, 10**18):
            yield Case(f"says{n}-{form}.ply", ply(points, form, n), REJECT)
        yield Case(f"says0-{form}.ply", ply(points, form, 0), REJECT)
        yield Case(f"cut-{form}.ply", sound[: len(sound) - 37], REJECT)
        yield Case(f"headless-{form}.ply", sound[20:], REJECT)
        for value in (np.nan, np.inf, -np.inf, 1e30):
            bad = points.copy()
            bad[17, 1] = value
            left = holds(52) if not np.isfinite(value) else None  # one bad row leaves out one row
            yield Case(f"{value}-{form}.ply", ply(bad, form), ACCEPT if left else REJECT, left)
        yield Case(f"allnan-{form}.ply", ply(points * np.nan, form), REJECT)
        for _ in range(8):
            broken = bytearray(sound)
            for at in rng.integers(0, len(broken), 5):
                broken[at] = rng.integers(256)
            yield Case(f"flipped-{form}.ply", bytes(broken), EITHER)
    for header in (
        "ply\n", "ply\nend_header\n", "ply\nformat ascii 1.0\nend_header\n",
        "ply\nformat ascii 1.0\nelement vertex -5\nproperty float x\nend_header\n",
        "ply\nformat ascii 1.0\nelement vertex 5\nend_header\n1 2 3\n",
        "ply\nformat martian 1.0\nelement vertex 1\nproperty float x\nend_header\n",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty quad x\nend_header\n1\n",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float x\nend_header\n1 1\n",
        "ply\nformat ascii 1.0\nproperty float x\nelement vertex 1\nend_header\n1\n",
        "ply\nformat ascii 1.0\nelement vertex 1\nelement vertex 1\nproperty float x\nend_header\n1\n",
        "ply\nformat ascii 1.0\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n3 0 1 2\n",
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nend_header\n1 2\n",
        HEAD.format(form="ascii", n=1) + "end_header\none two three\n",
        HEAD.format(form="ascii", n=3) + "property list uchar int w\nend_header\n1 2 3 999999999 1\n",
        "ply\n" + "comment x\n" * 200_000,
        HEAD.format(form="ascii", n=1) + "".join(f"property uchar p{i}\n" for i in range(2100))
        + "end_header\n" + "0 " * 2103 + "\n",
        HEAD.format(form="ascii", n=1) + "".join(f"element e{i} 0\n" for i in range(2100))
        + "end_header\n0 0 0\n",
    ):  # fmt: skip
        yield Case("header.ply", header.encode(), REJECT)
    for form in ("ascii", "binary_little_endian"):
        faces = "element face 1\nproperty list uchar int vertex_indices\n"
        body = ply(points, form, more=faces)
        for indices in ((0, 1, 99), (0, 1, -1), (0, 1, 1 << 30)):
            row = struct.pack("<B3i", 3, *indices)
            if form == "ascii":
                row = ("3 " + " ".join(map(str, indices)) + "\n").encode()
            yield Case(f"index{indices[2]}-{form}.ply", body + row, REJECT)
        long = b"250 1 2\n" if form == "ascii" else struct.pack("<B2i", 250, 1, 2)
        yield Case(f"longface-{form}.ply", body + long, REJECT)
        good = b"4 0 1 2 3\n" if form == "ascii" else struct.pack("<B4i", 4, 0, 1, 2, 3)
        yield Case(f"quad-{form}.ply", body + good, ACCEPT, lambda c: len(c.cloud) > 100)
    splat = HEAD.format(form="binary_little_endian", n=11) + "".join(
        f"property float {p}\n" for p in ("f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0")
    )
    rows = rng.normal(size=(11, 8)).astype("<f4")
    rows[:, 6] = 5
    yield Case("splats.ply", splat.encode() + b"end_header\n" + rows.tobytes(), ACCEPT, holds(11))
    rows.view("<u4")[4, 6] = 0x7FA00000  # a NaN that signals: not solid
    yield Case("nansplat.ply", splat.encode() + b"end_header\n" + rows.tobytes(), ACCEPT, holds(10))


# ---- meshes ------------------------------------------------------------------------------------

OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1/1 2/2 4/3\nf -1//1 -2//1 -3//1\n"
FACET = (
    "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"
)


def stl(n: int, said: int | None = None) -> bytes:
    row = struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0)
    return b"\0" * 80 + struct.pack("<I", n if said is None else said) + row * n


def meshes(rng: np.random.Generator) -> Iterator[Case]:
    some = lambda c: len(c.cloud) > 100  # noqa: E731
    yield Case("sound.obj", OBJ.encode(), ACCEPT, some)
    yield Case("utf16.obj", OBJ.encode("utf-16"), ACCEPT, some)
    yield Case("crlf.obj", OBJ.replace("\n", "\r\n").encode(), ACCEPT, some)
    yield Case("points.obj", b"v 0 0 0\nv 1 2 3\n", ACCEPT, holds(2))
    for text in (
        "", "nothing here", "f 1 2 3\n", "v 1 2\n", "v a b c\n", "v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
        "v inf 0 0\n", OBJ + "f 1 2 9\n", OBJ + "f 0 1 2\n", OBJ + "f 1 2 -9\n", OBJ + "f 1 2\n",
        OBJ + "f 1 2 x\n", "v 1e400 0 0\n", "v 0 0 0\nv 1 1 1\nv 2 2 2\nf 1 2 3\n", OBJ + "v 1 2 3 4 5\n",
    ):  # fmt: skip
        yield Case("wrong.obj", text.encode(), REJECT)
    yield Case("mtl.obj", b"mtllib /etc/passwd\nusemtl x\n" + OBJ.encode(), ACCEPT, some)
    yield Case("binary.obj", rng.bytes(400), REJECT)
    yield Case("sound.stl", stl(7), ACCEPT, some)
    yield Case("ascii.stl", f"solid a\n{FACET * 3}endsolid a\n".encode(), ACCEPT, some)
    for n, said in ((7, 8), (7, 6), (7, 1 << 31), (7, (1 << 32) - 1), (0, 0), (0, 5)):
        yield Case(f"says{said}.stl", stl(n, said), REJECT)
    yield Case("cut.stl", stl(7)[:-9], REJECT)
    bad = bytearray(stl(7))
    bad[84 + 12 : 84 + 16] = struct.pack("<f", float("nan"))
    yield Case("nan.stl", bytes(bad), REJECT)
    for text in ("solid a\n", "solid a\nendsolid a\n", f"solid a\n{FACET}", f"solid a\n{FACET[:-30]}",
                 f"solid a\n{FACET.replace('1 0 0', '1 0')}endsolid\n",
                 f"solid a\n{FACET.replace('1 0 0', 'inf 0 0')}endsolid\n",
                 f"solid a\n{FACET.replace('vertex', 'vortex')}endsolid\n"):  # fmt: skip
        yield Case("wrong.stl", text.encode(), REJECT)
    off = "OFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3 255 0 0\n"
    yield Case("sound.off", off.encode(), ACCEPT, some)
    yield Case("spaced.off", off.replace("\n", " \n\n").encode(), ACCEPT, some)
    for text in ("", "OFF\n", "OFF\n4 2\n", "OFF 1000000000 2 0\n", "OFF -4 2 0\n", off.replace("0 1 2", "0 1 7"),
                 off.replace("4 2 0", "9 2 0"), off.replace("4 2 0", "4 9 0"), off.replace("1 0 0", "nan 0 0"),
                 off.replace("1 0 0", "one 0 0"), "NOFF\n" + off[4:], off[: len(off) // 2],
                 off.replace("3 0 1 2", "300 0 1 2")):  # fmt: skip
        yield Case("wrong.off", text.encode(), REJECT)
    for name, sound in (("a.obj", OBJ.encode()), ("a.stl", stl(7)), ("a.off", off.encode())):
        for _ in range(12):
            broken = bytearray(sound)
            for at in rng.integers(0, len(broken), 3):
                broken[at] = rng.integers(256)
            yield Case(f"flipped-{name}", bytes(broken), EITHER)


# ---- glTF --------------------------------------------------------------------------------------


def gltf() -> tuple[dict[str, Any], bytes]:
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4").tobytes()
    body = points + struct.pack("<6H", 0, 1, 2, 0, 1, 3)
    root = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": len(body)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 48},
            {"buffer": 0, "byteOffset": 48, "byteLength": 12},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 6, "type": "SCALAR"},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }
    return root, body


def glb(root: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(root).encode()
    text += b" " * (-len(text) % 4)
    body += b"\0" * (-len(body) % 4)
    chunks = (
        struct.pack("<II", len(text), 0x4E4F534A)
        + text
        + struct.pack("<II", len(body), 0x004E4942)
        + body
    )
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def changed(root: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(root))
    node = copy
    *parents, last = path.split("/")
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    if isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value
    return copy


def gltfs(rng: np.random.Generator) -> Iterator[Case]:
    root, body = gltf()
    some = lambda c: len(c.cloud) > 100 and float(c.cloud.points.max()) <= 1.001  # noqa: E731
    sound = glb(root, body)
    inside = "data:application/octet-stream;base64," + base64.b64encode(body).decode()
    yield Case("sound.glb", sound, ACCEPT, some)
    text = json.dumps(changed(root, "buffers/0/uri", inside)).encode()
    yield Case("sound.gltf", text, ACCEPT, some)
    for uri in ("other.bin", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd",
                "http://127.0.0.1:9/x", "https://example.org/x", "data:text/plain,abc",
                "data:;base64,@@@@", "data:;base64,AAAA"):  # fmt: skip
        yield Case("uri.gltf", json.dumps(changed(root, "buffers/0/uri", uri)).encode(), REJECT)
    for path, value in (
        ("asset/version", "1.0"), ("asset", None), ("buffers/0/byteLength", 1 << 40),
        ("buffers/0/byteLength", -1), ("bufferViews/0/byteLength", 4096), ("bufferViews/0/buffer", 5),
        ("bufferViews/0/byteOffset", 1 << 50), ("accessors/0/count", 5), ("accessors/0/count", 10**9),
        ("accessors/0/count", 10**15), ("accessors/0/count", -4), ("accessors/0/count", "4"),
        ("accessors/0/componentType", 9999), ("accessors/0/type", "VEC9"), ("accessors/0/bufferView", 7),
        ("accessors/0/byteOffset", 45), ("accessors/1/count", 60), ("nodes/0/mesh", 3),
        ("nodes/0/children", [0]), ("nodes/0/children", [9]), ("nodes/0/matrix", [1, 2, 3]),
        ("nodes/0/rotation", [0, 0, 0, 0]), ("nodes/0/scale", ["a", 1, 1]), ("scenes/0/nodes", [0, 0]),
        ("scenes/0/nodes", "0"), ("scene", 4), ("meshes/0/primitives", []), ("meshes", "x"),
        ("meshes/0/primitives/0/attributes", {}), ("meshes/0/primitives/0/attributes/POSITION", 9),
        ("meshes/0/primitives/0/mode", 77), ("meshes/0/primitives/0/indices", 0),
        ("meshes/0/primitives/0/material", 0), ("extensionsRequired", ["KHR_draco_mesh_compression"]),
        ("extensionsRequired", ["EXT_meshopt_compression"]), ("extensionsRequired", "all"),
        ("images", [{"uri": "http://127.0.0.1:9/x.png"}]), ("nodes", [{"mesh": 0}] * 30_000),
    ):  # fmt: skip
        yield Case(f"{path.replace('/', '-')}.glb", glb(changed(root, path, value), body), REJECT)
    cycle = changed(root, "nodes", [{"children": [1]}, {"children": [0], "mesh": 0}])
    yield Case("cycle.glb", glb(cycle, body), REJECT)
    chain = [{"children": [i + 1]} for i in range(3000)] + [{"mesh": 0}]
    yield Case("chain.glb", glb(changed(root, "nodes", chain), body), ACCEPT, some)
    index = body[:48] + struct.pack("<6H", 0, 1, 2, 0, 1, 900)
    yield Case("index.glb", glb(root, index), REJECT)
    nan = struct.pack("<f", float("nan")) + body[4:]
    yield Case("nan.glb", glb(root, nan), REJECT)
    sparse = {"count": 2, "indices": {"bufferView": 1, "componentType": 5123},
              "values": {"bufferView": 0}}  # fmt: skip
    for n, first in ((2, 0), (10**9, 0), (0, 0)):
        case = changed(root, "accessors/0/sparse", sparse | {"count": n})
        yield Case(f"sparse{n}.glb", glb(case, body), EITHER if (n, first) == (2, 0) else REJECT)
    zeros = changed(root, "accessors/0", {"componentType": 5126, "count": 10**7, "type": "VEC3"})
    yield Case("zeros.glb", glb(zeros, body), REJECT)
    for at, value in ((0, b"glTX"), (4, struct.pack("<I", 1)), (8, struct.pack("<I", 1 << 30)),
                      (12, struct.pack("<I", 1 << 30)), (16, b"BIN\0")):  # fmt: skip
        yield Case(f"byte{at}.glb", sound[:at] + value + sound[at + 4 :], REJECT)
    for share in (0.01, 0.3, 0.6, 0.95):
        yield Case(f"cut{share}.glb", sound[: int(len(sound) * share)], REJECT)
    for path, value in (("accessors/0/componentType", {}), ("accessors/0/componentType", [5126]),
                        ("accessors/0/type", ["VEC3"])):  # fmt: skip
        yield Case(f"{path.replace('/', '-')}.glb", glb(changed(root, path, value), body), REJECT)
    for _ in range(30):
        broken = bytearray(sound)
        for at in rng.integers(12, len(broken), 4):
            broken[at] = rng.integers(256)
        yield Case("flipped.glb", bytes(broken), EITHER)


# ---- posed captures ----------------------------------------------------------------------------

EYE = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]


def packed(files: dict[str, Any], **options: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in files.items():
            text = json.dumps(data) if isinstance(data, dict | list) else data
            archive.writestr(name, text)
    return out.getvalue()


def rgbd_files(rng: np.random.Generator, n: int = 3) -> dict[str, Any]:
    files: dict[str, Any] = {}
    frames = []
    for i in range(n):
        files[f"color/{i}.png"] = encoded(rng.integers(0, 255, (29, 37, 3), dtype=np.uint8))
        files[f"depth/{i}.png"] = encoded(rng.integers(500, 900, (29, 37), dtype=np.uint16))
        pose = [row[:] for row in EYE]
        pose[0][3] = 0.1 * i
        frames.append({"id": i, "image": f"color/{i}.png", "depth": f"depth/{i}.png", "c2w": pose})
    camera = {
        "model": "PINHOLE",
        "width": 37,
        "height": 29,
        "fx": 31.0,
        "fy": 30.0,
        "cx": 18,
        "cy": 14,
    }
    files["frames.json"] = {
        "pixel_center": 0.0,
        "camera": camera,
        "depth": {"metres_per_unit": 0.001},
        "frames": frames,
    }
    return files


def jsons(rng: np.random.Generator) -> Iterator[Case]:
    files = rgbd_files(rng)
    three = lambda c: len(c.views) == 3 and float(c.views[2].cameras.position[0]) > 0.19  # noqa: E731
    yield Case("sound.zip", packed(files), ACCEPT, three)
    root = files["frames.json"]
    nan = [[float("nan"), 0, 0, 0], *EYE[1:]]
    for path, value in (
        ("frames/1/c2w", nan), ("frames/1/c2w", [[v * 2 for v in row] for row in EYE]),
        ("frames/1/c2w", [[-1, 0, 0, 0], *EYE[1:]]), ("frames/1/c2w", EYE[:3]), ("frames/1/c2w", "I"),
        ("frames/1/c2w", [[1, 0.3, 0, 0], *EYE[1:]]), ("frames/1/c2w", [[0, 0, 0, 0]] * 4),
        ("frames/1/c2w", [*EYE[:3], [0, 0, 1, 1]]), ("frames/1/c2w", [[1, 0, 0, 1e300], *EYE[1:]]),
        ("frames/1/c2w", [["1", 0, 0, 0], *EYE[1:]]), ("frames/1/c2w", [[True, 0, 0, 0], *EYE[1:]]),
        ("frames/1/image", "color/9.png"), ("frames/1/image", "../../../etc/passwd"),
        ("frames/1/image", "/etc/passwd"), ("frames/1/image", 7), ("frames/1/image", ""),
        ("frames/1/image", "http://127.0.0.1:9/a.png"), ("frames/1/image", "C:\\a.png"),
        ("frames/1/depth", "depth/9.png"), ("frames/1/depth", "color/1.png"),
        ("frames/1/depth", "frames.json"), ("frames", []), ("frames", {}), ("frames", None),
        ("frames", [5]), ("frames", [root["frames"][0]] * 20_001), ("camera", None), ("camera", []),
        ("camera/width", 38), ("camera/width", 0), ("camera/width", -37), ("camera/width", 3.5),
        ("camera/fx", 0), ("camera/fx", -31), ("camera/fx", 1e9), ("camera/fx", "31"),
        ("camera/cx", 1e7), ("camera/model", "FISHY"), ("depth/metres_per_unit", 0),
        ("depth/metres_per_unit", -1), ("depth/metres_per_unit", "mm"), ("pixel_center", 3),
        ("depth", {}),
    ):  # fmt: skip
        case = files | {"frames.json": changed(root, path, value)}
        yield Case(f"{path.replace('/', '-')}.zip", packed(case), REJECT)
    other = encoded(rng.integers(500, 900, (31, 37), dtype=np.uint16))
    yield Case("depthsize.zip", packed(files | {"depth/1.png": other}), REJECT)
    depth8 = encoded(rng.integers(0, 255, (29, 37), dtype=np.uint8))
    yield Case("depth8.zip", packed(files | {"depth/1.png": depth8}), REJECT)
    yield Case(
        "imagesize.zip",
        packed(files | {"color/1.png": encoded(np.zeros((31, 37, 3), np.uint8))}),
        REJECT,
    )
    yield Case(
        "nodepth.zip", packed({k: v for k, v in files.items() if k != "depth/2.png"}), REJECT
    )
    yield Case(
        "noimage.zip", packed({k: v for k, v in files.items() if k != "color/0.png"}), REJECT
    )
    yield Case("hugeimage.zip", packed(files | {"color/1.png": png_header(20000, 20000)}), REJECT)
    text = json.dumps(root)
    for wrong in (text[:-20], text + "}", "", "null", "[]", "7", '"x"', "[" * 100_000, "{" * 1000,
                  text.replace("0.001", "1e999"), text.replace("0.001", "Infinity"),
                  text.replace('"camera"', '"frames"'), text.replace("0.001", "9" * 5000),
                  text.encode("utf-16"), b"\xff\xfe\x00", text.replace("PINHOLE", "\ud800x")
                  if False else "\x00" + text, '{"a":' * 80 + "1" + "}" * 80):  # fmt: skip
        yield Case("text.zip", packed(files | {"frames.json": wrong}), REJECT)
    yield Case(
        "bom.zip", packed(files | {"frames.json": b"\xef\xbb\xbf" + text.encode()}), ACCEPT, three
    )
    log = "".join(
        f"{i} {i} {i + 1}\n1 0 0 {0.1 * i}\n0 1 0 0\n0 0 1 0\n0 0 0 1\n" for i in range(3)
    )
    plain = {k: v for k, v in files.items() if k != "frames.json"}
    yield Case("log.zip", packed(plain | {"trajectory.log": log}), ACCEPT, three)
    for wrong in (log[:-30], log + log, log.replace("1 0 0 ", "2 0 0 "), log.replace("0.1", "nan"),
                  log.replace("0 1 0 0", "0 1 0"), log.replace("0 1 0 0", "0 a 0 0"),
                  log.replace("0 1 0 0", "0 -1 0 0")):  # fmt: skip
        yield Case("wrong-log.zip", packed(plain | {"trajectory.log": wrong}), REJECT)
    tum = "# x\n" + "".join(f"{0.1 * i} 0 0 0 0 0 1\n" for i in range(3))
    yield Case("tum.zip", packed(plain | {"poses.txt": tum}), ACCEPT, three)
    for wrong in (tum.replace(" 1\n", " 9\n"), tum.replace("0 0 1", "0 nan 1"), tum[:-9], "", tum * 2,
                  tum.replace("0.1", "abc")):  # fmt: skip
        yield Case("wrong-tum.zip", packed(plain | {"poses.txt": wrong}), REJECT)


# ---- archives ----------------------------------------------------------------------------------


def zips(rng: np.random.Generator) -> Iterator[Case]:
    files = rgbd_files(rng)
    sound = packed(files)
    yield Case("deep.zip", packed({f"a/b/c/{k}": v for k, v in files.items()}), ACCEPT)
    yield Case("junk.zip", packed(files | {"__MACOSX/._x": b"1", ".DS_Store": b"2"}), ACCEPT)
    yield Case("windows.zip", packed({k.replace("/", "\\"): v for k, v in files.items()}), ACCEPT)
    for name in ("../../x", "/etc/x", "a/../../x", "C:/x", "..\\..\\x", "a\nb", "\u202egnp.x",
                 "x" * 3000):  # fmt: skip
        yield Case("slip.zip", packed(files | {name: b"1"}), REJECT)
    yield Case("twins.zip", packed(files | {"Color/0.png": b"1"}), REJECT)
    yield Case("nested.zip", packed(files | {"more.zip": sound}), REJECT)
    yield Case("nested-tar.zip", packed(files | {"more.tar.gz": b"1"}), REJECT)
    yield Case("filefolder.zip", packed(files | {"color": b"1"}), REJECT)
    bomb = packed(files | {"big.bin": b"\0" * (30 << 20)})
    yield Case("bomb.zip", bomb, REJECT)
    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as archive:
        for k, v in files.items():
            archive.writestr(k, json.dumps(v) if isinstance(v, dict) else v)
        info = zipfile.ZipInfo("link.png")
        info.create_system, info.external_attr = 3, (0o120777 << 16)
        archive.writestr(info, "/etc/passwd")
    yield Case("link.zip", link.getvalue(), REJECT)
    yield Case("many.zip", packed({f"{i}.txt": b"" for i in range(5001)}), REJECT)
    yield Case("empty.zip", packed({}), REJECT)
    yield Case("onlytext.zip", packed({"readme.txt": b"hello"}), REJECT)
    # copies of one photo are one photo
    yield Case("photos.zip", packed({f"{i}.png": files["color/0.png"] for i in range(3)}), ACCEPT)
    yield Case("onephoto.zip", packed({"a/photo.png": files["color/0.png"]}), ACCEPT)
    yield Case("onemesh.zip", packed({"mesh.obj": OBJ}), ACCEPT)
    yield Case("twomeshes.zip", packed({"a.obj": OBJ, "b.obj": OBJ}), REJECT)
    for share in (0.1, 0.5, 0.9, 0.999):
        yield Case(f"cut{share}.zip", sound[: int(len(sound) * share)], REJECT)
    locked = bytearray(sound)
    for at in range(len(locked) - 4):
        if locked[at : at + 4] == b"PK\x01\x02":
            locked[at + 8] |= 1
    yield Case("locked.zip", bytes(locked), REJECT)
    lying = bytearray(sound)
    at = lying.find(b"PK\x01\x02")
    lying[at + 24 : at + 28] = struct.pack("<I", 5)
    yield Case("lying.zip", bytes(lying), REJECT)
    damaged = bytearray(sound)
    damaged[60] ^= 255
    yield Case("damaged.zip", bytes(damaged), REJECT)
    for _ in range(25):
        broken = bytearray(sound)
        for at in rng.integers(0, len(broken), 4):
            broken[at] = rng.integers(256)
        yield Case("flipped.zip", bytes(broken), EITHER)
    yield Case("overlap.zip", _overlap(), REJECT)


def _overlap() -> bytes:
    """Two directory entries that share one body."""
    data = packed({"a.txt": b"x" * 100, "b.txt": b"x" * 100})
    first, second = data.find(b"PK\x01\x02"), data.rfind(b"PK\x01\x02")
    out = bytearray(data)
    out[second + 42 : second + 46] = out[first + 42 : first + 46]
    return bytes(out)


# ---- COLMAP, transforms, splats' cameras -------------------------------------------------------


def model(binary: bool, rng: np.random.Generator) -> dict[str, Any]:
    image = encoded(rng.integers(0, 255, (29, 37, 3), dtype=np.uint8))
    if not binary:
        return {
            "images/a.png": image, "images/b.png": image,
            "sparse/0/cameras.txt": "# c\n1 PINHOLE 37 29 31 30 18.5 14.5\n",
            "sparse/0/images.txt": "# i\n1 1 0 0 0 0 0 0 1 a.png\n\n2 1 0 0 0 0.1 0 0 1 b.png\n1 2 -1\n",
            "sparse/0/points3D.txt": "# p\n1 0 0 2 255 0 0 0.5 1 0\n",
        }  # fmt: skip
    entry = lambda i, x, name: (  # noqa: E731
        struct.pack("<i7di", i, 1, 0, 0, 0, x, 0, 0, 1) + name + b"\0" + struct.pack("<Q", 0)
    )
    return {
        "images/a.png": image,
        "images/b.png": image,
        "sparse/0/cameras.bin": struct.pack("<QiiQQ4d", 1, 1, 1, 37, 29, 31, 30, 18.5, 14.5),
        "sparse/0/images.bin": struct.pack("<Q", 2)
        + entry(1, 0, b"a.png")
        + entry(2, 0.1, b"b.png"),
        "sparse/0/points3D.bin": struct.pack("<QQ3d3BdQ", 1, 1, 0, 0, 2, 255, 0, 0, 0.5, 0),
    }


def models(rng: np.random.Generator) -> Iterator[Case]:
    two = lambda c: len(c.views) == 2 and len(c.cloud) == 1  # noqa: E731
    for binary in (False, True):
        files = model(binary, rng)
        yield Case(f"sound-{binary}.zip", packed(files), ACCEPT, two)
        for name in [n for n in files if n.startswith("sparse")]:
            data = files[name].encode() if isinstance(files[name], str) else files[name]
            points = "points3D" in name
            yield Case("lost.zip", packed({k: v for k, v in files.items() if k != name}),
                       EITHER if points else REJECT)  # fmt: skip
            yield Case("cut.zip", packed(files | {name: data[:-9]}), REJECT if binary else EITHER)
            yield Case(
                "emptied.zip",
                packed(files | {name: b""}),
                EITHER if points and not binary else REJECT,
            )
            yield Case("noise.zip", packed(files | {name: rng.bytes(300)}), REJECT)
            if binary:
                for n in (2**63, 2**40, 10**9, 50):
                    lie = struct.pack("<Q", n) + data[8:]
                    yield Case(f"says{n}.zip", packed(files | {name: lie}), REJECT)
                yield Case("longer.zip", packed(files | {name: data + b"12345"}), REJECT)
            for _ in range(6):
                broken = bytearray(data)
                for at in rng.integers(0, len(broken), 2):
                    broken[at] = rng.integers(256)
                yield Case("flipped.zip", packed(files | {name: bytes(broken)}), EITHER)
        yield Case(
            "lostimage.zip", packed({k: v for k, v in files.items() if k != "images/b.png"}), REJECT
        )
    files = model(False, rng)
    for name, old, new in (
        ("images.txt", "1 1 0 0 0", "1 2 0 0 0"), ("images.txt", "1 1 0 0 0", "1 nan 0 0 0"),
        ("images.txt", "0.1 0 0 1", "inf 0 0 1"), ("images.txt", "b.png", "../../../b.png"),
        ("images.txt", "b.png", "/etc/passwd"), ("images.txt", "b.png", "a.png"),
        ("images.txt", "0 0 1 b.png", "0 0 7 b.png"), ("images.txt", "1 b.png", "b.png"),
        ("cameras.txt", "PINHOLE", "MARTIAN"), ("cameras.txt", "31 30", "0 30"),
        ("cameras.txt", "31 30", "31"), ("cameras.txt", "31 30", "nan 30"),
        ("cameras.txt", "37 29", "41 29"), ("cameras.txt", "37 29", "0 29"),
        ("points3D.txt", "0 0 2", "0 nan 2"), ("points3D.txt", "0 0 2", "0 2"),
        ("points3D.txt", "0 0 2", "0 x 2"), ("points3D.txt", "0 0 2", "0 1e308 2"),
        ("points3D.txt", "0 0 2", "0 1e30 2"), ("images.txt", "1 1 0 0 0", "1 1e200 0 0 0"),
        ("images.txt", "0.1 0 0 1", "1e308 1e308 0 1"),
        ("cameras.txt", "PINHOLE 37 29 31 30 18.5 14.5", "OPENCV 37 29 31 30 18.5 14.5 0 0 1e308 0"),
    ):  # fmt: skip
        path = f"sparse/0/{name}"
        yield Case("value.zip", packed(files | {path: files[path].replace(old, new)}), REJECT)
    image = files["images/a.png"]
    frame = {"file_path": "a.png", "transform_matrix": EYE}
    nerf = {"camera_angle_x": 1.0, "frames": [frame]}
    one = lambda c: len(c.views) == 1  # noqa: E731
    yield Case("nerf.zip", packed({"transforms.json": nerf, "a.png": image}), ACCEPT, one)
    for path, value in (
        ("camera_angle_x", 0), ("camera_angle_x", "wide"), ("camera_angle_x", None),
        ("frames/0/transform_matrix", [[5.0] * 4] * 4), ("frames/0/transform_matrix", 3),
        ("frames/0/file_path", "~/a.png"), ("frames/0/file_path", "/a.png"), ("frames/0/k2", "much"),
        ("frames/0/k1", 1e9), ("frames/0/p1", 1e9),
        ("frames/0/transform_matrix", [[1e308] * 4] * 3 + [[0, 0, 0, 1]]), ("ply_file_path", "../p.ply"), ("ply_file_path", "p.ply"),
        ("frames/0/depth_file_path", "a.png"), ("depth_unit_scale_factor", -1),
    ):  # fmt: skip
        case = {"transforms.json": changed(nerf, path, value), "a.png": image}
        reject = EITHER if path == "depth_unit_scale_factor" else REJECT
        yield Case(f"nerf-{path.replace('/', '-')}.zip", packed(case), reject)
    deep = io.BytesIO()
    Image.fromarray(np.full((29, 37), 3e38, np.float32)).save(deep, "TIFF")
    far = changed(nerf, "frames/0/depth_file_path", "d.tif") | {"depth_unit_scale_factor": 1e6}
    case = {"transforms.json": far, "a.png": image, "d.tif": deep.getvalue()}
    yield Case("nerf-depth.zip", packed(case), REJECT)
    upright = lambda c: one(c) and abs(float(c.up[2]) - 0.8) < 1e-6  # noqa: E731
    own = {"written_by": "WorldStereo", "up": [0, 6e300, 8e300]}
    case = {"transforms.json": nerf, "a.png": image, "conventions.json": own}
    yield Case("nerf-up.zip", packed(case), ACCEPT, upright)
    splat = [{"id": 0, "img_name": "a", "width": 37, "height": 29, "position": [0, 0, 0],
              "rotation": [row[:3] for row in EYE[:3]], "fx": 31.0, "fy": 30.0}]  # fmt: skip
    yield Case("3dgs.zip", packed({"cameras.json": splat, "images/a.png": image}), ACCEPT, one)
    for key, value in (("rotation", [[1, 0], [0, 1]]), ("position", [0, 0]), ("width", 0), ("fx", 0),
                       ("img_name", "../../a"), ("img_name", "b"), ("height", 31),
                       ("rotation", [[-1, 0, 0], [0, 1, 0], [0, 0, 1]])):  # fmt: skip
        case = [splat[0] | {key: value}]
        yield Case(f"3dgs-{key}.zip", packed({"cameras.json": case, "images/a.png": image}), REJECT)
    P = "31 0 18.5 0\n0 30 14.5 0\n0 0 1 0\n"
    yield Case("matrix.zip", packed({"P/a_P.txt": P, "images/a.png": image}), ACCEPT, one)
    for wrong in ("", P[:-8], P.replace("31", "nan"), "0 " * 12, P.replace("31 0", "31 20"), P * 2):
        yield Case("wrong-matrix.zip", packed({"P/a_P.txt": wrong, "images/a.png": image}), REJECT)


# ---- names that lie ----------------------------------------------------------------------------


def mislabelled(rng: np.random.Generator) -> Iterator[Case]:
    image = encoded(rng.integers(0, 255, (29, 37, 3), dtype=np.uint8))
    bodies = {
        "picture": image, "zip": packed({"a.obj": OBJ}), "text": b"hello world\n",
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
        "gzip": b"\x1f\x8b\x08\x00" + rng.bytes(60), "elf": b"\x7fELF" + b"\0" * 60,
        "html": b"<!DOCTYPE html><script>alert(1)</script>",
        "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'shape': (1000000000000,)}",
    }  # fmt: skip
    for what, body in bodies.items():
        for suffix in ("ply", "glb", "gltf", "obj", "stl", "off", "png", "jpg", "zip", "safetensors",
                       "pt", "tar", "las", "", "exr", "dae"):  # fmt: skip
            sound = (what, suffix) in (("picture", "png"), ("picture", "jpg")) or what == "zip"
            loose = what == "picture" and suffix not in ("zip",)
            yield Case(f"{what}.{suffix}", body, ACCEPT if sound else EITHER if loose else REJECT)
    for name in (
        "a\x00b.ply",
        "..",
        "\u202eylp.exe",
        "x" * 400 + ".ply",
        "<b>.ply",
        " ",
        "-vf.png",
    ):
        yield Case(name, b"nothing", REJECT)
