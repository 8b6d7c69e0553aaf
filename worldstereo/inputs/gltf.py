"""glTF 2.0 and GLB: triangles and points of the default scene, vertex colours and base textures.

trimesh reads the arrays and walks the tree, but of a document that is written again here: it holds
only what was checked before (lengths, accessor bounds, the node tree, required extensions) and
nothing that is outside the file. Pictures are decoded by `images`, with its limits.
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from worldstereo.inputs import images, jsonfile
from worldstereo.inputs.limits import Limits, refusal, shown
from worldstereo.inputs.meshes import loaded
from worldstereo.inputs.surface import Surface, Texture, joined

if TYPE_CHECKING:
    import trimesh

_KINDS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_READ = {"KHR_materials_unlit", "KHR_mesh_quantization", "KHR_texture_transform",
         "EXT_texture_webp", "EXT_texture_avif"}  # fmt: skip
_IGNORED = re.compile(
    r"KHR_(materials|lights|animation|xmp|node_visibility)|MSFT_lod|EXT_mesh_feat"
)
_PLAIN_NAMES = {
    "KHR_draco_mesh_compression": "Draco", "EXT_meshopt_compression": "meshopt",
    "KHR_meshopt_compression": "meshopt", "KHR_texture_basisu": "KTX2 textures",
    "EXT_mesh_gpu_instancing": "GPU instances", "KHR_gaussian_splatting": "Gaussian splats",
}  # fmt: skip
_WRAP = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
_SOURCES = (("EXT_texture_webp", "source"), ("EXT_texture_avif", "source"),
            ("MSFT_texture_dds", ""), ("KHR_texture_basisu", ""))  # fmt: skip
_LIMIT_PARTS = 4096
_LIMIT_STEPS = 400_000  # nodes above all instances together: what walking the tree costs
_AGAIN = "Export it again as one file (.glb)"


def read_gltf(
    name: str, data: bytes, limits: Limits, beside: Callable[[str], bytes | None] | None = None
) -> Surface:
    """The triangles and points of the default scene in world coordinates, y up.

    `beside` gives the bytes of a file of the same archive by the name that the document uses.

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
    return _Document(name, root, binary, limits, beside).surface()


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
    """One file: its JSON, checked piece by piece, and the document that trimesh is given."""

    def __init__(
        self,
        name: str,
        root: dict,
        binary: bytes | None,
        limits: Limits,
        beside: Callable[[str], bytes | None] | None,
    ) -> None:
        self.name, self.root, self.binary, self.limits = name, root, binary, limits
        self.beside = beside
        self.buffers: dict[int, bytes] = {}
        self.pictures: dict[int, np.ndarray | None] = {}
        self.notices: list[str] = []
        self.body = bytearray()
        self.starts: dict[int, int] = {}
        self.copied: dict[int, int] = {}
        self.out: dict[str, list] = {"bufferViews": [], "accessors": [], "meshes": [], "nodes": []}
        self.parts: dict[str, dict] = {}
        self.sizes: list[tuple[int, int]] = []  # vertices and faces of each part
        self.points = self.faces = self.steps = 0

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
                short = _PLAIN_NAMES.get(str(extension)) or shown(str(extension), 24)
                raise self.refuse(
                    f"needs {shown(str(extension), 40)}, which is not read here",
                    f"Export without {short}",
                )
        self._check_references()
        meshes = [self._mesh(i) for i in range(len(self.list_of(self.root, "meshes")))]
        scene = self._loaded(self._tree(meshes))
        parts = []
        for node in sorted(scene.graph.nodes_geometry, key=int):
            world, key = scene.graph[node]
            parts.append(self._part(str(key), scene.geometry[key], np.asarray(world)))
        if not parts:
            raise self.refuse("holds no triangle or point", "A scene with a mesh is accepted")
        return joined(parts, tuple(self.notices))

    def _loaded(self, roots: list[int]) -> "trimesh.Scene":
        """What trimesh makes of the checked document."""
        if not self.out["meshes"]:
            raise self.refuse("holds no triangle or point", "A scene with a mesh is accepted")
        document = {
            "asset": {"version": "2.0"},
            "buffers": [{"byteLength": len(self.body)}],
            "scenes": [{"nodes": roots}],
            "scene": 0,
            **self.out,
        }
        text = json.dumps(document).encode()
        text += b" " * (-len(text) % 4)
        body = bytes(self.body) + b"\0" * (-len(self.body) % 4)
        head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(body))
        chunks = (head, struct.pack("<II", len(text), 0x4E4F534A), text,
                  struct.pack("<II", len(body), 0x004E4942), body)  # fmt: skip
        return loaded(self.name, b"".join(chunks), "glb")

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

    def numbers(self, value: Any, n: int, what: str) -> list[float]:
        good = isinstance(value, list) and len(value) == n
        if not good or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
            raise self.refuse(f"{what} is not {n} numbers")
        for v in value:
            if not abs(v) <= 1e15:
                raise self.refuse(f"{what} holds {v:.3g}")
        return [float(v) for v in value]

    def _check_references(self) -> None:
        for kind in ("buffers", "images"):
            for i, value in enumerate(self.list_of(self.root, kind)):
                uri = self.entry(value, f"{kind} {i}").get("uri")
                if uri is None or (isinstance(uri, str) and uri.startswith("data:")):
                    continue
                if self.beside is None or not isinstance(uri, str) or "://" in uri:
                    raise self.refuse(
                        f'{kind} {i} is another file or address, "{shown(str(uri), 32)}"',
                        "Give a zip of the folder, or one .glb; nothing outside is opened",
                    )

    # ---- bytes --------------------------------------------------------------------------------

    def _data(self, uri: str, what: str) -> bytes:
        if not uri.startswith("data:"):
            data = None if self.beside is None else self.beside(unquote(uri))
            if data is None:
                raise self.refuse(f'{what}, "{shown(uri, 40)}", is missing', "Put the file there")
            return data
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
                extensions = entry.get("extensions")
                if isinstance(extensions, dict) and any("meshopt" in str(k) for k in extensions):
                    raise self.refuse("is packed with meshopt", "Export without meshopt")
                raise self.refuse(f"buffer {index} has no data")
            length = self.whole(entry.get("byteLength"), f"buffer {index} byteLength", 1 << 40)
            if length > len(data):
                raise self.refuse(f"buffer {index} says {length} bytes, {len(data)} are there")
            self.buffers[index] = data[:length]
        return self.buffers[index]

    def view(self, index: Any) -> tuple[int, int, int, int]:
        """Buffer, first byte, number of bytes and stride (0: none) of a buffer view."""
        entry = self.item("bufferViews", index)
        buffer = self.whole(entry.get("buffer"), f"bufferView {index} buffer", 1 << 20)
        start = self.whole(entry.get("byteOffset", 0), f"bufferView {index} byteOffset", 1 << 40)
        size = self.whole(entry.get("byteLength"), f"bufferView {index} byteLength", 1 << 40)
        held = len(self.buffer(buffer))
        if start + size > held:
            raise self.refuse(f"bufferView {index} ends at {start + size} of {held} bytes")
        stride = self.whole(entry.get("byteStride", 0), f"bufferView {index} byteStride", 252)
        return buffer, start, size, stride

    def accessor(self, index: Any, what: str, shapes: tuple[str, ...], n: int | None = None) -> int:
        """The accessor in the checked document, once everything that it names was found there."""
        entry = self.item("accessors", index)
        kind, shape = entry.get("componentType"), entry.get("type")
        if not isinstance(kind, int) or kind not in _KINDS or shape not in shapes:
            raise self.refuse(
                f"{what}: accessor {index} has type {shown(str(shape), 12)} of "
                f"{shown(str(kind), 12)}"
            )
        count = self.whole(entry.get("count"), f"accessor {index} count", 1 << 40)
        if count < 1 or count > max(self.limits.points, 3 * self.limits.faces):
            raise self.refuse(f"{what}: accessor {index} declares {count} values",
                              f"1 to {self.limits.points} are accepted")  # fmt: skip
        if n is not None and count != n:
            raise self.refuse(f"{what}: {count} attribute values for {n} vertices")
        if "sparse" in entry or entry.get("bufferView") is None:
            raise self.refuse(f"{what}: accessor {index} is sparse or has no data",
                              "Export it again without sparse accessors")  # fmt: skip
        if index not in self.copied:
            row = _WIDTHS[shape] * np.dtype(_KINDS[kind]).itemsize
            buffer, first, size, stride = self.view(entry["bufferView"])
            start = self.whole(entry.get("byteOffset", 0), f"accessor {index} byteOffset", 1 << 40)
            step = stride or row
            if step < row or start + step * (count - 1) + row > size:
                held = max(0, size - start) // max(step, 1)
                raise self.refuse(
                    f"accessor {index} declares {count} values, its bytes hold {held}"
                )
            if buffer not in self.starts:
                self.starts[buffer] = len(self.body)
                self.body += self.buffer(buffer)
            at = self.starts[buffer] + first + start
            view = {"buffer": 0, "byteOffset": at, "byteLength": step * (count - 1) + row}
            if step != row:
                view["byteStride"] = step
            self.copied[index] = len(self.out["accessors"])
            self.out["bufferViews"].append(view)
            self.out["accessors"].append(
                {"bufferView": len(self.out["bufferViews"]) - 1, "componentType": kind,
                 "count": count, "type": shape}
            )  # fmt: skip
        return self.copied[index]

    # ---- meshes -------------------------------------------------------------------------------

    def _mesh(self, index: int) -> list[int]:
        """The parts of a mesh as meshes of the checked document."""
        primitives = self.list_of(self.item("meshes", index), "primitives")
        if len(primitives) > _LIMIT_PARTS:
            raise self.refuse(f"mesh {index} has {len(primitives)} parts",
                              f"At most {_LIMIT_PARTS} are accepted")  # fmt: skip
        kept = (self._primitive(self.entry(p, f"mesh {index} part"), index) for p in primitives)
        return [i for i in kept if i is not None]

    def _primitive(self, part: dict, mesh: int) -> int | None:
        what = f"mesh {mesh}"
        extensions = part.get("extensions") or {}
        if isinstance(extensions, dict) and "KHR_draco_mesh_compression" in extensions:
            raise self.refuse("needs KHR_draco_mesh_compression", "Export without Draco")
        attributes = self.entry(part.get("attributes"), f"{what} attributes")
        mode = part.get("mode", 4)
        if mode in (1, 2, 3):
            self.notices.append("Lines were left out.")
            return None
        if mode not in (0, 4, 5):
            raise self.refuse(f"{what} has mode {shown(str(mode), 8)}",
                              "Triangles, strips of triangles and points are accepted")  # fmt: skip
        if "POSITION" not in attributes:
            raise self.refuse(f"{what} has no positions")
        kept = {"POSITION": self.accessor(attributes["POSITION"], what, ("VEC3",))}
        n = self.item("accessors", attributes["POSITION"])["count"]
        checked: dict[str, Any] = {"attributes": kept, "mode": mode}
        corners = n
        if part.get("indices") is not None:
            order = self.item("accessors", part["indices"])
            if order.get("componentType") not in (5121, 5123, 5125):
                raise self.refuse(f"{what} has indices that are not whole numbers")
            checked["indices"] = self.accessor(part["indices"], what, ("SCALAR",))
            corners = order["count"]
        if mode and (corners < 3 or (mode == 4 and corners % 3)):
            raise self.refuse(f"{what}: {corners} indices make no whole triangles")
        if "COLOR_0" in attributes:
            colors = self.accessor(attributes["COLOR_0"], what, ("VEC3", "VEC4"), n)
            kept["_COLOR" if mode else "COLOR_0"] = colors
        name = f"part{len(self.parts)}"
        position = self.item("accessors", attributes["POSITION"])
        look = self._material(part, attributes)
        if look.uv is not None and mode:
            kept["_UV"] = self.accessor(look.uv, what, ("VEC2",), n)
        scale = 1.0
        if position.get("normalized") and position["componentType"] != 5126:
            scale = 1.0 / np.iinfo(_KINDS[position["componentType"]]).max
        self.parts[name] = {"look": look, "scale": scale, "what": what}
        for key, source in (("_UV", look.uv), ("_COLOR", attributes.get("COLOR_0"))):
            if source is not None:
                accessor = self.item("accessors", source)
                self.parts[name][key] = bool(accessor.get("normalized"))
        self.sizes.append((n, (0, 0, 0, 0, corners // 3, corners - 2)[mode]))
        self.out["meshes"].append({"name": name, "primitives": [checked]})
        return len(self.out["meshes"]) - 1

    def _material(self, part: dict, attributes: dict) -> "_Look":
        """Base texture, base colour (linear) and the accessor of the texture's coordinates."""
        if part.get("material") is None:
            return _Look()
        material = self.item("materials", part["material"])
        extensions = self.entry(material.get("extensions") or {}, "material extensions")
        old = extensions.get("KHR_materials_pbrSpecularGlossiness")
        if old is not None:
            base = self.entry(old, "KHR_materials_pbrSpecularGlossiness")
            factor, slot = base.get("diffuseFactor"), base.get("diffuseTexture")
        else:
            base = self.entry(material.get("pbrMetallicRoughness") or {}, "pbrMetallicRoughness")
            factor, slot = base.get("baseColorFactor"), base.get("baseColorTexture")
        tint, told = np.ones(3), factor is not None
        if factor is not None:
            tint = np.clip(np.array(self.numbers(factor, 4, "baseColorFactor")[:3]), 0, 1)
        if slot is None and not tint.any() and material.get("emissiveTexture") is not None:
            slot, tint = material["emissiveTexture"], np.ones(3)  # baked light on black
        cutoff = None
        mode = material.get("alphaMode", "OPAQUE")
        if mode in ("MASK", "BLEND"):
            given = material.get("alphaCutoff", 0.5) if mode == "MASK" else 0.5
            cutoff = float(given) if isinstance(given, int | float) else 0.5
        if slot is None:
            return _Look(tint=tint, told=told)
        slot = self.entry(slot, "baseColorTexture")
        texture = self.item("textures", slot.get("index"))
        more = self.entry(slot.get("extensions") or {}, "texture extensions")
        moved = self.entry(more.get("KHR_texture_transform") or {}, "KHR_texture_transform")
        uv = attributes.get(f"TEXCOORD_{moved.get('texCoord', slot.get('texCoord', 0))}")
        pixels = self._texels(texture) if uv is not None else None
        if uv is None or pixels is None:
            return _Look(tint=tint, told=told)
        wrap = ("repeat", "repeat")
        if texture.get("sampler") is not None:
            sampler = self.item("samplers", texture["sampler"])
            wrap = tuple(_WRAP.get(sampler.get(k) or 0, "repeat") for k in ("wrapS", "wrapT"))
        return _Look(Texture(pixels, (wrap[0], wrap[1]), cutoff), tint, True, uv,
                     self._transform(moved))  # fmt: skip

    def _transform(self, given: dict) -> np.ndarray:
        """KHR_texture_transform as a 2 x 3 matrix: offset, then rotation, then scale."""
        ox, oy = self.numbers(given.get("offset", [0, 0]), 2, "texture offset")
        sx, sy = self.numbers(given.get("scale", [1, 1]), 2, "texture scale")
        (turn,) = self.numbers([given.get("rotation", 0)], 1, "texture rotation")
        c, s = np.cos(turn), np.sin(turn)
        return np.array([[c * sx, s * sy, ox], [-s * sx, c * sy, oy]])

    def _texels(self, texture: dict) -> np.ndarray | None:
        """The picture of a texture: WebP or AVIF where an extension names one, else its source."""
        extensions = self.entry(texture.get("extensions") or {}, "texture extensions")
        source = texture.get("source")
        for key, where in _SOURCES:
            if key not in extensions:
                continue
            if where:
                source = self.entry(extensions[key], key).get(where)
                break
            if source is None:
                what = "KTX2 (KHR_texture_basisu)" if "basisu" in key else "DDS"
                self.notices.append(
                    f"Its textures are {what}, which is not read here; export them as PNG or JPEG."
                )
                return None
        return None if source is None else self._picture(source)

    def _picture(self, index: Any) -> np.ndarray | None:
        entry = self.item("images", index)
        if index not in self.pictures:
            uri = entry.get("uri")
            self.pictures[index] = None
            if uri is not None and not uri.startswith("data:"):
                found = None if self.beside is None else self.beside(unquote(uri))
                if found is None:
                    self.notices.append(f'The texture "{shown(uri, 40)}" is missing.')
                    return None
                data = found
            elif uri is not None:
                data = self._data(uri, f"image {index}")
            else:
                buffer, first, size, _ = self.view(entry.get("bufferView"))
                data = self.buffer(buffer)[first : first + size]
            if data.startswith(b"\xabKTX 20\xbb"):
                self.notices.append(
                    "Its textures are KTX2, which is not read here; export them as PNG or JPEG."
                )
                return None
            self.pictures[index] = images.texture(
                f"image {index} of {self.name}", data, self.limits
            )
        return self.pictures[index]

    # ---- tree ---------------------------------------------------------------------------------

    def _tree(self, meshes: list[list[int]]) -> list[int]:
        """Writes the nodes of the default scene; each is met once, each part gets its own node."""
        nodes = self.list_of(self.root, "nodes")
        if len(nodes) > self.limits.nodes:
            raise self.refuse(f"{len(nodes)} nodes", f"At most {self.limits.nodes} are accepted")
        scenes = self.list_of(self.root, "scenes")
        if scenes:
            roots = self.list_of(self.item("scenes", self.root.get("scene", 0)), "nodes")
        elif nodes:
            children = {c for n in nodes if isinstance(n, dict)
                        for c in self.list_of(n, "children") if isinstance(c, int)}  # fmt: skip
            roots = [i for i in range(len(nodes)) if i not in children]
            if not roots:
                raise self.refuse("node 0 contains itself")
        else:
            return [self._leaf(part, 1) for parts in meshes for part in parts]
        out = self.out["nodes"]
        seen: dict[int, int] = {}
        tops: list[int] = []
        todo: list[tuple[Any, list[int], int]] = [(r, tops, 1) for r in reversed(roots)]
        while todo:
            index, siblings, depth = todo.pop()
            node = self.item("nodes", index)
            if index in seen:
                raise self.refuse(f"node {index} has two parents or contains itself")
            seen[index] = len(out)
            siblings.append(len(out))
            below: list[int] = []
            out.append(self._local(node, index) | {"name": str(len(out)), "children": below})
            if node.get("mesh") is not None:
                self.item("meshes", node["mesh"])
                below += [self._leaf(part, depth + 1) for part in meshes[node["mesh"]]]
            todo += [(c, below, depth + 1) for c in reversed(self.list_of(node, "children"))]
        return tops

    def _leaf(self, part: int, depth: int) -> int:
        """A node that shows one part; all of them together are within the limits."""
        points, faces = self.sizes[part]
        self.points, self.faces = self.points + points, self.faces + faces
        self.steps += depth
        if self.points > self.limits.points or self.faces > self.limits.faces:
            raise self.refuse(
                f"its scene shows {self.points} points and {self.faces} faces or more",
                f"At most {self.limits.points} and {self.limits.faces} are accepted",
            )
        if self.steps > _LIMIT_STEPS:
            raise self.refuse("the node tree is too deep", "A flatter tree is accepted")
        self.out["nodes"].append({"name": str(len(self.out["nodes"])), "mesh": part})
        return len(self.out["nodes"]) - 1

    def _local(self, node: dict, index: int) -> dict[str, Any]:
        if node.get("matrix") is not None:
            return {"matrix": self.numbers(node["matrix"], 16, f"node {index} matrix")}
        out: dict[str, Any] = {}
        for key, n in (("translation", 3), ("rotation", 4), ("scale", 3)):
            if node.get(key) is not None:
                out[key] = self.numbers(node[key], n, f"node {index} {key}")
        if "rotation" in out and sum(v * v for v in out["rotation"]) < 1e-12:
            raise self.refuse(f"node {index} rotation has length 0")
        return out

    def _part(self, key: str, geometry: Any, world: np.ndarray) -> Surface:
        """One instance in world coordinates, with colours as they are shown (sRGB)."""
        part = self.parts[key]
        points = np.asarray(geometry.vertices, dtype=np.float64)
        bad = ~np.isfinite(points).all(axis=1)
        if bad.any():
            raise self.refuse(f"{part['what']}: vertex {int(bad.argmax())} is not finite",
                              "Only finite coordinates are accepted")  # fmt: skip
        faces = np.asarray(getattr(geometry, "faces", ()), dtype=np.int64).reshape(-1, 3)
        if len(faces) and not 0 <= int(faces.min()) <= int(faces.max()) < len(points):
            raise self.refuse(f"{part['what']}: index {int(faces.max())} of {len(points)} vertices")
        if not np.isfinite(world).all():
            raise self.refuse(f"the transforms above {part['what']} overflow")
        more = getattr(geometry, "vertex_attributes", {})
        look, colors, uv = part["look"], None, None
        if "_COLOR" in more:
            colors = np.clip(_shares(more["_COLOR"], True)[:, :3], 0, 1)
        elif not len(faces) and len(getattr(geometry, "colors", ())) == len(points):
            colors = _shares(np.asarray(geometry.colors), True)[:, :3]
        if "_UV" in more:
            uv = _shares(more["_UV"], part.get("_UV", False))
            uv = np.concatenate([uv, np.ones((len(uv), 1))], axis=1) @ look.moved.T
        moved = points * part["scale"] @ world[:3, :3].T + world[:3, 3]
        if not len(faces):
            if look.told:
                colors = (np.ones((len(points), 3)) if colors is None else colors) * look.tint
            return Surface(moved, faces, colors, linear=True)
        tints = np.tile(look.tint, (len(faces), 1)) if look.told else None
        if uv is None or look.texture is None:
            return Surface(moved, faces, colors, face_colors=tints, linear=True)
        which = np.zeros(len(faces), np.int64)
        return Surface(moved, faces, colors, None, uv[faces], (look.texture,), which, tints, True)


@dataclass(frozen=True, eq=False)
class _Look:
    """What the faces of one part show."""

    texture: Texture | None = None
    tint: np.ndarray = field(default_factory=lambda: np.ones(3))
    told: bool = False
    """The material says a colour or a texture."""
    uv: Any = None
    """Index of the accessor of the texture coordinates."""
    moved: np.ndarray = field(default_factory=lambda: np.eye(3)[:2])
    """2 x 3: what KHR_texture_transform does to them."""


def _shares(values: np.ndarray, normalized: bool) -> np.ndarray:
    """Floats as they are; whole numbers as shares of the largest of their kind, if they are."""
    values = np.asarray(values)
    whole = values.dtype.kind in "iu" and normalized
    most = np.iinfo(values.dtype).max if whole else 1.0
    return np.maximum(values.astype(np.float64) / most, -1.0) if whole else values.astype(float)
