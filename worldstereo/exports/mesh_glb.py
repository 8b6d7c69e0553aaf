"""A textured mesh as glTF 2.0, in one binary file or as .gltf with its parts beside it.

glTF is +Y up, in metres, with the first texel at the upper left. Vertices stay in the world's own
frame; one root node turns up to +Y and scales to metres where they are known.
"""

import json
import struct
from typing import Any

import numpy as np

from worldstereo.exports.archive import array
from worldstereo.exports.conventions import to_file
from worldstereo.exports.mesh import Body, body_of, colors_u8, marks, picture_of
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Scene

FLOAT, UBYTE, UINT, VERTICES, INDICES = 5126, 5121, 5125, 34962, 34963


def write_mesh_glb(
    scene: Scene,
    *,
    generated: bool = True,
    quality: str = "standard",
    texture: int = 2048,
    fill_holes: bool = False,
    on_step: OnStep = ignore,
) -> bytes:
    """Raises ExportError: no view has depth, or an unknown quality."""
    body = body_of(
        scene, on_step, generated=generated, quality=quality, texture=texture, fill_holes=fill_holes
    )
    return glb(body)


def glb(body: Body) -> bytes:
    """One binary file with its pictures inside."""
    fields, binary, pictures = _fields(body)
    for name, content in pictures.items():
        view = {"buffer": 0, "byteOffset": len(binary), "byteLength": len(content)}
        fields["bufferViews"].append(view)
        entry = {"name": name, "mimeType": "image/png"}
        fields["images"].append({**entry, "bufferView": len(fields["bufferViews"]) - 1})
        binary += content + b"\0" * (-len(content) % 4)
    fields["buffers"] = [{"byteLength": len(binary)}]
    text = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    chunks += struct.pack("<II", len(binary), 0x004E4942) + bytes(binary)
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def gltf(body: Body, name: str) -> dict[str, bytes]:
    """`name.gltf`, `name.bin` and its pictures."""
    fields, binary, pictures = _fields(body)
    files = {f"{name}_{key}.png": content for key, content in pictures.items()}
    fields["images"] += [{"uri": file} for file in files]
    fields["buffers"] = [{"byteLength": len(binary), "uri": f"{name}.bin"}]
    text = json.dumps(fields, indent=1, allow_nan=False).encode() + b"\n"
    return {f"{name}.gltf": text, f"{name}.bin": bytes(binary), **files}


def _fields(body: Body) -> tuple[dict[str, Any], bytearray, dict[str, bytes]]:
    mesh, albedo = body.mesh, body.albedo
    binary, accessors, views = bytearray(), [], []

    def accessor(values: np.ndarray, component: int, kind: str, target: int, **rest: Any) -> int:
        data = np.ascontiguousarray(values).tobytes()
        view = {"buffer": 0, "byteOffset": len(binary), "byteLength": len(data), "target": target}
        views.append(view)
        binary.extend(data + b"\0" * (-len(data) % 4))
        entry = {"bufferView": len(views) - 1, "componentType": component, "type": kind}
        accessors.append({**entry, "count": len(values), **rest})
        return len(accessors) - 1

    xyz = array(mesh.vertices).astype("<f4")
    box = {"min": xyz.min(axis=0).tolist(), "max": xyz.max(axis=0).tolist()}
    attributes = {
        "POSITION": accessor(xyz, FLOAT, "VEC3", VERTICES, **box),
        "NORMAL": accessor(array(mesh.normals).astype("<f4"), FLOAT, "VEC3", VERTICES),
    }
    material: dict[str, Any] = {"name": "surface", "extensions": {"KHR_materials_unlit": {}}}
    look: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    pictures: dict[str, bytes] = {}
    textures: list[dict[str, Any]] = []
    if albedo is not None and mesh.uv is not None:
        uv = array(mesh.uv).astype("<f4").copy()
        uv[:, 1] = 1 - uv[:, 1]
        attributes["TEXCOORD_0"] = accessor(uv, FLOAT, "VEC2", VERTICES)
        keys = {"albedo": "baseColorTexture", "roughness": "metallicRoughnessTexture"}
        for name, texture in body.textures.items():
            if name == "normal":
                material["normalTexture"] = {"index": len(textures)}
            else:
                look[keys[name]] = {"index": len(textures)}
            textures.append({"source": len(textures), "sampler": 0})
            pictures[name] = picture_of(texture)
    else:
        rgba = np.full((len(xyz), 4), 255, np.uint8)
        rgba[:, :3] = colors_u8(mesh)
        attributes["COLOR_0"] = accessor(rgba, UBYTE, "VEC4", VERTICES, normalized=True)
    attributes["_INVENTED"] = accessor(marks(mesh).astype("<f4"), FLOAT, "SCALAR", VERTICES)
    indices = accessor(array(mesh.faces).astype("<u4").ravel(), UINT, "SCALAR", INDICES)
    material["pbrMetallicRoughness"] = look
    matrix = np.eye(4)
    matrix[:3, :3] = to_file(body.scene, (0, 1, 0))
    notes = body.notes(
        "glb mesh",
        node_axes="vertices are in the world's frame; the root node turns up to +Y",
        invented_surface="attribute _INVENTED is 1 where no given view measured the surface",
    )
    part = {"attributes": attributes, "indices": indices, "material": 0, "mode": 4}
    fields: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": notes["written_by"], "extras": notes},
        "scene": 0,
        "scenes": [{"nodes": [1]}],
        "nodes": [
            {"name": "surface", "mesh": 0},
            {"name": "world", "matrix": matrix.T.reshape(-1).tolist(), "children": [0]},
        ],
        "meshes": [{"name": "surface", "primitives": [part]}],
        "materials": [material],
        "extensionsUsed": ["KHR_materials_unlit"],
        "accessors": accessors,
        "bufferViews": views,
    }
    if textures:
        fields["textures"] = textures
        fields["samplers"] = [
            {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}
        ]
        fields["images"] = []
    return fields, binary, pictures
