"""glTF 2.0 and GLB: triangles and points of the default scene, vertex colours and base textures.

Everything lies inside the file: buffers and pictures that are other files or addresses are refused.
Lengths, accessor bounds, indices and the node tree are checked before they are followed.
"""

import base64
import binascii
import json
import re
import struct
from typing import Any

import numpy as np

from worldstereo.inputs import images, jsonfile
from worldstereo.inputs.limits import Limits, refusal, shown
from worldstereo.inputs.surface import Surface

_KINDS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_READ = {"KHR_materials_unlit", "KHR_mesh_quantization", "KHR_texture_transform"}
_IGNORED = re.compile(r"KHR_(materials|lights|texture_transform)|EXT_(texture_webp)")
_LIMIT_PARTS = 4096
_AGAIN = "Export it again as one file (.glb)"


def read(name: str, data: bytes, limits: Limits) -> Surface:
    """The triangles and points of the default scene in world coordinates, y up.

    Raises:
        InputRefused: cut or contradictory structure, an outside reference, a required extension
            that is not read, a node that contains itself, an index past the last vertex.
    """
    if data.startswith(b"glTF"):
        text, binary = _chunks(name, data)
    elif data.lstrip()[:1] == b"{":
        text, binary = data, None
    else:
        raise refusal(name, "is neither GLB nor glTF JSON", "glTF 2.0 is accepted")
    root = jsonfile.parse(name, text, limits)
    if not isinstance(root, dict):
        raise refusal(name, "holds no JSON object", "glTF 2.0 is accepted")
    return _Document(name, root, binary, limits).surface()


def _chunks(name: str, data: bytes) -> tuple[bytes, bytes | None]:
    if len(data) < 20:
        raise refusal(name, f"a GLB of {len(data)} bytes is cut off", "Copy it again")
    _, version, length = struct.unpack_from("<4sII", data)
    if version != 2:
        raise refusal(name, f"GLB version {version}", "Version 2 is accepted")
    if length != len(data):
        raise refusal(
            name, f"the header says {length} bytes, the file holds {len(data)}", "Copy it again"
        )
    text: bytes | None = None
    binary: bytes | None = None
    at = 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<II", data, at)
        if at + 8 + size > length:
            raise refusal(name, f"a chunk of {size} bytes runs past the end", "Copy it again")
        body = data[at + 8 : at + 8 + size]
        if kind == 0x4E4F534A and text is None and at == 12:
            text = body
        elif kind == 0x004E4942 and binary is None:
            binary = body
        at += 8 + size
    if text is None or at != length:
        raise refusal(name, "its first chunk is not JSON or a chunk is cut", _AGAIN)
    return text, binary


class _Document:
    def __init__(self, name: str, root: dict, binary: bytes | None, limits: Limits) -> None:
        self.name, self.root, self.binary, self.limits = name, root, binary, limits
        self.buffers: dict[int, bytes] = {}
        self.pictures: dict[int, np.ndarray] = {}
        self.notices: list[str] = []

    def refuse(self, wrong: str, way_out: str = _AGAIN):
        return refusal(self.name, wrong, way_out)

    def surface(self) -> Surface:
        asset = self.entry(self.root.get("asset"), "asset")
        if not str(asset.get("version", "")).startswith("2."):
            raise self.refuse(f"glTF version {shown(str(asset.get('version')), 8)}",
                              "Version 2.0 is accepted")  # fmt: skip
        for extension in self.list_of(self.root, "extensionsRequired"):
            if not isinstance(extension, str) or not (
                extension in _READ or _IGNORED.match(extension)
            ):
                short = re.sub(r"^KHR_|_mesh_compression$", "", shown(str(extension)))
                raise self.refuse(
                    f"needs {shown(str(extension), 40)}, which is not read here",
                    f"Export without {shown(short, 24)}",
                )
        self._check_references()
        parts = [p for mesh, world in self._instances() for p in self._mesh(mesh, world)]
        if not parts:
            raise self.refuse("holds no triangle or point", "A scene with a mesh is accepted")
        return _joined(parts, tuple(self.notices))

    # ---- JSON ---------------------------------------------------------------------------------

    def entry(self, value: Any, what: str) -> dict:
        if not isinstance(value, dict):
            raise self.refuse(f"{what} is not an object")
        return value

    def list_of(self, parent: dict, key: str) -> list:
        value = parent.get(key, [])
        if not isinstance(value, list):
            raise self.refuse(f"{key} is not a list")
        return value

    def item(self, key: str, index: Any) -> dict:
        entries = self.list_of(self.root, key)
        whole = isinstance(index, int) and not isinstance(index, bool)
        if not whole or not 0 <= index < len(entries):
            raise self.refuse(
                f"{key} {shown(str(index), 12)} does not exist ({len(entries)} are there)"
            )
        return self.entry(entries[index], f"{key} {index}")

    def whole(self, value: Any, what: str, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self.refuse(f"{what} is {shown(json.dumps(value), 20)}")
        return value

    def numbers(self, value: Any, n: int, what: str) -> np.ndarray:
        good = isinstance(value, list) and len(value) == n
        if not good or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
            raise self.refuse(f"{what} is not {n} numbers")
        out = np.array(value, dtype=np.float64)
        if not np.isfinite(out).all() or np.abs(out).max() > 1e15:
            raise self.refuse(f"{what} holds {out[np.abs(out).argmax()]:.3g}")
        return out

    def _check_references(self) -> None:
        for kind in ("buffers", "images"):
            for i, value in enumerate(self.list_of(self.root, kind)):
                uri = self.entry(value, f"{kind} {i}").get("uri")
                if uri is not None and (not isinstance(uri, str) or not uri.startswith("data:")):
                    raise self.refuse(
                        f'{kind} {i} is another file or address, "{shown(str(uri), 32)}"',
                        "Pack it into one .glb; nothing outside the file is opened",
                    )

    # ---- bytes --------------------------------------------------------------------------------

    def _data(self, uri: str, what: str) -> bytes:
        head, _, body = uri.partition(",")
        if not head.endswith(";base64"):
            raise self.refuse(f"{what} has a data URI that is not base64")
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise self.refuse(f"{what} has damaged base64") from None

    def buffer(self, index: int) -> bytes:
        if index not in self.buffers:
            entry = self.item("buffers", index)
            if "uri" in entry:
                data = self._data(entry["uri"], f"buffer {index}")
            elif index == 0 and self.binary is not None:
                data = self.binary
            else:
                raise self.refuse(f"buffer {index} has no data")
            length = self.whole(entry.get("byteLength"), f"buffer {index} byteLength", 1 << 40)
            if length > len(data):
                raise self.refuse(f"buffer {index} says {length} bytes, {len(data)} are there")
            self.buffers[index] = data[:length]
        return self.buffers[index]

    def view(self, index: Any) -> tuple[bytes, int]:
        entry = self.item("bufferViews", index)
        data = self.buffer(self.whole(entry.get("buffer"), f"bufferView {index} buffer", 1 << 20))
        start = self.whole(entry.get("byteOffset", 0), f"bufferView {index} byteOffset", 1 << 40)
        size = self.whole(entry.get("byteLength"), f"bufferView {index} byteLength", 1 << 40)
        if start + size > len(data):
            raise self.refuse(f"bufferView {index} ends at {start + size} of {len(data)} bytes")
        return data[start : start + size], self.whole(
            entry.get("byteStride", 0), f"bufferView {index} byteStride", 252
        )

    def accessor(self, index: Any, what: str, shapes: tuple[str, ...]) -> np.ndarray:
        """(count, width) float64, normalised integers already in [0, 1] or [-1, 1]."""
        entry = self.item("accessors", index)
        kind, shape = entry.get("componentType"), entry.get("type")
        if kind not in _KINDS or shape not in shapes:
            raise self.refuse(
                f"{what}: accessor {index} has type {shown(str(shape), 12)} of {kind}"
            )
        count = self.whole(entry.get("count"), f"accessor {index} count", 1 << 40)
        if count < 1 or count > max(self.limits.points, 3 * self.limits.faces):
            raise self.refuse(f"{what}: accessor {index} declares {count} values",
                              f"1 to {self.limits.points} are accepted")  # fmt: skip
        dtype, width = np.dtype(_KINDS[kind]), _WIDTHS[shape]
        if entry.get("bufferView") is None:
            if "sparse" not in entry:
                raise self.refuse(f"{what}: accessor {index} has no data")
            if count > 16 * sum(len(b) for b in (self.binary or b"",)) + 65536:
                raise self.refuse(f"{what}: accessor {index} declares {count} zeros")
            values = np.zeros((count, width), dtype)
        else:
            data, stride = self.view(entry["bufferView"])
            start = self.whole(entry.get("byteOffset", 0), f"accessor {index} byteOffset", 1 << 40)
            values = self._strided(data, start, stride, count, width, dtype, f"accessor {index}")
        if "sparse" in entry:
            values = self._sparse(self.entry(entry["sparse"], "sparse"), values.copy(), index)
        out = values.astype(np.float64)
        if entry.get("normalized") and dtype.kind in "iu":
            out = np.maximum(out / np.iinfo(dtype).max, -1.0)
        return out

    def _strided(
        self,
        data: bytes,
        start: int,
        stride: int,
        count: int,
        width: int,
        dtype: np.dtype,
        what: str,
    ) -> np.ndarray:
        row = width * dtype.itemsize
        step = stride or row
        if step < row or start + step * (count - 1) + row > len(data):
            held = max(0, len(data) - start) // max(step, 1)
            raise self.refuse(f"{what} declares {count} values, its bytes hold {held}")
        raw = np.frombuffer(data, np.uint8)
        rows = np.lib.stride_tricks.as_strided(
            raw[start:], (count, row), (step, 1), writeable=False
        )
        return np.ascontiguousarray(rows).view(dtype).reshape(count, width)

    def _sparse(self, sparse: dict, values: np.ndarray, index: Any) -> np.ndarray:
        n = self.whole(sparse.get("count"), f"accessor {index} sparse count", len(values))
        where = self.entry(sparse.get("indices"), "sparse indices")
        what = self.entry(sparse.get("values"), "sparse values")
        kind = where.get("componentType")
        if n < 1 or kind not in (5121, 5123, 5125):
            raise self.refuse(f"accessor {index} has sparse indices of type {shown(str(kind), 8)}")
        data, stride = self.view(where.get("bufferView"))
        start = self.whole(where.get("byteOffset", 0), "sparse byteOffset", 1 << 40)
        rows = self._strided(data, start, stride, n, 1, np.dtype(_KINDS[kind]), "sparse")[:, 0]
        if int(rows.max()) >= len(values) or (np.diff(rows.astype(np.int64)) <= 0).any():
            raise self.refuse(f"accessor {index} has sparse indices out of order or range")
        data, stride = self.view(what.get("bufferView"))
        start = self.whole(what.get("byteOffset", 0), "sparse byteOffset", 1 << 40)
        values[rows] = self._strided(
            data, start, stride, n, values.shape[1], values.dtype, "sparse"
        )
        return values

    # ---- scene --------------------------------------------------------------------------------

    def _instances(self) -> list[tuple[int, np.ndarray]]:
        """Meshes of the default scene with their world transforms; a node may appear once."""
        nodes = self.list_of(self.root, "nodes")
        if len(nodes) > self.limits.nodes:
            raise self.refuse(f"{len(nodes)} nodes", f"At most {self.limits.nodes} are accepted")
        scenes = self.list_of(self.root, "scenes")
        if scenes:
            roots = self.list_of(self.item("scenes", self.root.get("scene", 0)), "nodes")
        elif nodes:
            children = {c for n in nodes if isinstance(n, dict) for c in n.get("children", [])
                        if isinstance(c, int)}  # fmt: skip
            roots = [i for i in range(len(nodes)) if i not in children]
            if not roots:
                raise self.refuse("node 0 contains itself")
        else:
            return [(i, np.eye(4)) for i in range(len(self.list_of(self.root, "meshes")))]
        out: list[tuple[int, np.ndarray]] = []
        seen: set[int] = set()
        todo = [(r, np.eye(4)) for r in reversed(roots)]
        while todo:
            index, parent = todo.pop()
            node = self.item("nodes", index)
            if index in seen:
                raise self.refuse(f"node {index} has two parents or contains itself")
            seen.add(index)
            world = parent @ self._local(node, index)
            if not np.isfinite(world).all():
                raise self.refuse(f"the transforms above node {index} overflow")
            if node.get("mesh") is not None:
                out.append((node["mesh"], world))
            todo += [(c, world) for c in reversed(self.list_of(node, "children"))]
        return out

    def _local(self, node: dict, index: int) -> np.ndarray:
        if node.get("matrix") is not None:
            return self.numbers(node["matrix"], 16, f"node {index} matrix").reshape(4, 4).T
        out = np.eye(4)
        if node.get("rotation") is not None:
            x, y, z, w = self.numbers(node["rotation"], 4, f"node {index} rotation")
            n = x * x + y * y + z * z + w * w
            if n < 1e-12:
                raise self.refuse(f"node {index} rotation has length 0")
            s = 2 / n
            out[:3, :3] = [
                [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
                [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
                [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
            ]
        if node.get("scale") is not None:
            out[:3, :3] = out[:3, :3] * self.numbers(node["scale"], 3, f"node {index} scale")
        if node.get("translation") is not None:
            out[:3, 3] = self.numbers(node["translation"], 3, f"node {index} translation")
        return out

    def _mesh(self, index: Any, world: np.ndarray) -> list[Surface]:
        mesh = self.item("meshes", index)
        primitives = self.list_of(mesh, "primitives")
        if len(primitives) > _LIMIT_PARTS:
            raise self.refuse(f"mesh {index} has {len(primitives)} parts",
                              f"At most {_LIMIT_PARTS} are accepted")  # fmt: skip
        parts = [self._part(self.entry(p, f"mesh {index} part"), index, world) for p in primitives]
        return [p for p in parts if p is not None]

    def _part(self, part: dict, mesh: Any, world: np.ndarray) -> Surface | None:
        what = f"mesh {mesh}"
        extensions = part.get("extensions") or {}
        packed = isinstance(extensions, dict) and "KHR_draco_mesh_compression" in extensions
        attributes = self.entry(part.get("attributes"), f"{what} attributes")
        mode = part.get("mode", 4)
        if mode in (1, 2, 3):
            self.notices.append("Lines were left out.")
            return None
        if mode not in (0, 4, 5, 6):
            raise self.refuse(f"{what} has mode {shown(str(mode), 8)}")
        if "POSITION" not in attributes:
            raise self.refuse(f"{what} has no positions")
        points = self.accessor(attributes["POSITION"], what, ("VEC3",))
        if packed and not len(points):
            raise self.refuse("needs KHR_draco_mesh_compression", "Export without Draco")
        bad = ~np.isfinite(points).all(axis=1)
        if bad.any():
            raise self.refuse(f"{what}: vertex {int(bad.argmax())} is not finite",
                              "Only finite coordinates are accepted")  # fmt: skip
        n = len(points)
        if part.get("indices") is not None:
            order = self.accessor(part["indices"], what, ("SCALAR",))[:, 0].astype(np.int64)
            if int(order.max()) >= n or int(order.min()) < 0:
                raise self.refuse(f"{what}: index {int(order.max())} of {n} vertices")
        else:
            order = np.arange(n)
        faces = _triangles(order, mode)
        if mode != 0 and len(faces) == 0:
            raise self.refuse(f"{what}: {len(order)} indices make no triangle")
        if len(faces) > self.limits.faces:
            raise self.refuse(f"{len(faces)} faces", f"At most {self.limits.faces} are accepted")
        colors = None
        if "COLOR_0" in attributes:
            colors = self._rows(attributes["COLOR_0"], what, ("VEC3", "VEC4"), n)[:, :3]
        uv, texture, tint = self._material(part, attributes, what, n)
        if colors is not None:
            colors = _srgb(np.clip(colors, 0, 1))
        if not np.allclose(tint, 1):
            base = np.ones((n, 3)) if colors is None else colors
            colors = base * _srgb(tint)
        moved = points @ world[:3, :3].T + world[:3, 3]
        if mode == 0:
            moved, colors = moved[order], None if colors is None else colors[order]
        return Surface(moved, faces, colors, None, uv, texture)

    def _rows(self, index: Any, what: str, shapes: tuple[str, ...], n: int) -> np.ndarray:
        values = self.accessor(index, what, shapes)
        if len(values) != n:
            raise self.refuse(f"{what}: {len(values)} attribute values for {n} vertices")
        return values

    def _material(
        self, part: dict, attributes: dict, what: str, n: int
    ) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray]:
        plain = np.ones(3)
        if part.get("material") is None:
            return None, None, plain
        material = self.item("materials", part["material"])
        base = self.entry(material.get("pbrMetallicRoughness") or {}, "pbrMetallicRoughness")
        if base.get("baseColorFactor") is not None:
            plain = np.clip(self.numbers(base["baseColorFactor"], 4, "baseColorFactor")[:3], 0, 1)
        if base.get("baseColorTexture") is None:
            return None, None, plain
        slot = self.entry(base["baseColorTexture"], "baseColorTexture")
        texture = self.item("textures", slot.get("index"))
        key = f"TEXCOORD_{slot.get('texCoord', 0)}"
        if key not in attributes or texture.get("source") is None:
            return None, None, plain
        uv = self._rows(attributes[key], what, ("VEC2",), n)
        return uv, self._picture(texture["source"]), plain

    def _picture(self, index: Any) -> np.ndarray:
        entry = self.item("images", index)
        if index not in self.pictures:
            if entry.get("uri") is not None:
                data = self._data(entry["uri"], f"image {index}")
            else:
                data = self.view(entry.get("bufferView"))[0]
            self.pictures[index] = images.color(f"image {index} of {self.name}", data, self.limits)
        return self.pictures[index]


def _triangles(order: np.ndarray, mode: int) -> np.ndarray:
    if mode == 4:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if mode == 5 and len(order) >= 3:
        strip = np.stack([order[:-2], order[1:-1], order[2:]], axis=1)
        strip[1::2] = strip[1::2][:, [1, 0, 2]]
        return strip
    if mode == 6 and len(order) >= 3:
        first = np.full(len(order) - 2, order[0])
        return np.stack([first, order[1:-1], order[2:]], axis=1)
    return np.zeros((0, 3), np.int64)


def _srgb(linear: np.ndarray) -> np.ndarray:
    """Source: IEC 61966-2-1."""
    return np.where(
        linear <= 0.0031308,
        12.92 * linear,
        1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055,
    )


def _joined(parts: list[Surface], notices: tuple[str, ...]) -> Surface:
    """One surface; textures are sampled at the vertices when parts do not share one."""
    notices = tuple(dict.fromkeys(notices))
    if len(parts) == 1:
        only = parts[0]
        return Surface(only.vertices, only.faces, only.colors, None, only.uv, only.texture, notices)
    shared = parts[0].texture is not None and all(p.texture is parts[0].texture for p in parts)
    points = np.concatenate([p.vertices for p in parts])
    starts = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
    faces = np.concatenate([p.faces + s for p, s in zip(parts, starts, strict=True)])
    mixed = any(len(p.faces) == 0 for p in parts) and len(faces) > 0
    if mixed:
        notices = (*notices, "Loose points beside a mesh were left out.")
    if shared and all(p.uv is not None for p in parts):
        uv = np.concatenate([p.uv for p in parts if p.uv is not None])
        return Surface(points, faces, None, None, uv, parts[0].texture, notices)
    tints = [_vertex_colors(p) for p in parts]
    if all(t is None for t in tints):
        return Surface(points, faces, notices=notices)
    filled = [np.full((len(p.vertices), 3), 0.7) if t is None else t
              for p, t in zip(parts, tints, strict=True)]  # fmt: skip
    return Surface(points, faces, np.concatenate(filled), notices=notices)


def _vertex_colors(part: Surface) -> np.ndarray | None:
    if part.uv is None or part.texture is None:
        return part.colors
    height, width = part.texture.shape[:2]
    uv = np.nan_to_num(part.uv) % 1.0
    column = np.minimum((uv[:, 0] * width).astype(int), width - 1)
    row = np.minimum((uv[:, 1] * height).astype(int), height - 1)
    colors = part.texture[row, column] / 255.0
    return colors if part.colors is None else colors * part.colors
