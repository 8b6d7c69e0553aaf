"""A textured mesh as USD: a text layer with its picture, or a USDZ package.

The stage is Y up in metres; vertices stay in the world's frame below one transform.
"""

import io
import struct
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo.errors import ExportError
from worldstereo.exports.archive import EPOCH, array, as_json, packed
from worldstereo.exports.conventions import to_file
from worldstereo.exports.mesh import Body, body_of, colors_u8, marks, picture_of
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Scene


def write_usdz(
    scene: Scene,
    *,
    generated: bool = True,
    quality: str = "standard",
    texture: int = 2048,
    fill_holes: bool = False,
    on_step: OnStep = ignore,
) -> bytes:
    """Raises ExportError: no view has depth, an unknown quality, or usd-core is missing."""
    body = body_of(
        scene, on_step, generated=generated, quality=quality, texture=texture, fill_holes=fill_holes
    )
    return usdz(body)


def write_usda(
    scene: Scene,
    *,
    generated: bool = True,
    quality: str = "standard",
    texture: int = 2048,
    fill_holes: bool = False,
    on_step: OnStep = ignore,
) -> bytes:
    """A zip of `mesh.usda`, `mesh.png` and `conventions.json`; raises as `write_usdz`."""
    body = body_of(
        scene, on_step, generated=generated, quality=quality, texture=texture, fill_holes=fill_holes
    )
    files = usda(body, "mesh")
    files["conventions.json"] = as_json(body.notes("usda"))
    return packed(files)


def usda(body: Body, name: str) -> dict[str, bytes]:
    """`name.usda` and, with a texture, `name.png`."""
    stage = _stage(body, name)  # a layer lives as long as its stage
    files = {f"{name}.usda": stage.GetRootLayer().ExportToString().encode()}
    if body.albedo is not None:
        files[f"{name}.png"] = picture_of(body.albedo)
    return files


def usdz(body: Body) -> bytes:
    """A zip without compression whose files begin at multiples of 64 bytes.

    Source: https://openusd.org/release/spec_usdz.html
    """
    stage = _stage(body, "mesh")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mesh.usdc"
        stage.GetRootLayer().Export(str(path))
        files = {"mesh.usdc": path.read_bytes()}
    if body.albedo is not None:
        files["mesh.png"] = picture_of(body.albedo)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            gap = -(stream.tell() + 30 + len(name) + 4) % 64
            entry.extra = struct.pack("<HH", 0x1986, gap) + b"\0" * gap
            archive.writestr(entry, content)
    return stream.getvalue()


def _stage(body: Body, name: str) -> Any:
    try:
        names = ("Gf", "Sdf", "Usd", "UsdGeom", "UsdShade", "Vt")
        Gf, Sdf, Usd, UsdGeom, UsdShade, Vt = (import_module(f"pxr.{n}") for n in names)
    except ImportError:
        raise ExportError("USD needs the package usd-core: pip install usd-core.") from None
    mesh = body.mesh
    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, "/world")
    stage.SetDefaultPrim(root.GetPrim())
    matrix = np.eye(4)
    matrix[:3, :3] = to_file(body.scene, (0, 1, 0))
    root.AddTransformOp().Set(Gf.Matrix4d(*matrix.T.ravel().tolist()))
    root.GetPrim().SetCustomDataByKey("writtenBy", body.notes("usd")["written_by"])
    shape = UsdGeom.Mesh.Define(stage, "/world/surface")
    xyz = array(mesh.vertices).astype(np.float32)
    shape.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(xyz))
    shape.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh), 3, np.int32)))
    faces = array(mesh.faces).astype(np.int32).ravel()
    shape.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(faces))
    shape.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(array(mesh.normals).astype(np.float32)))
    shape.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    shape.CreateExtentAttr([Gf.Vec3f(*xyz.min(0).tolist()), Gf.Vec3f(*xyz.max(0).tolist())])
    more = UsdGeom.PrimvarsAPI(shape)
    marked = more.CreatePrimvar("invented", Sdf.ValueTypeNames.IntArray, UsdGeom.Tokens.vertex)
    marked.Set(Vt.IntArray.FromNumpy(marks(mesh).astype(np.int32)))
    material = UsdShade.Material.Define(stage, "/world/material")
    shader = UsdShade.Shader.Define(stage, "/world/material/preview")
    shader.CreateIdAttr("UsdPreviewSurface")
    shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(1.0)
    color = shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
    if body.albedo is not None and mesh.uv is not None:
        uv = more.CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex)
        uv.Set(Vt.Vec2fArray.FromNumpy(array(mesh.uv).astype(np.float32)))
        reader = UsdShade.Shader.Define(stage, "/world/material/st")
        reader.CreateIdAttr("UsdPrimvarReader_float2")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
        out = reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)
        picture = UsdShade.Shader.Define(stage, "/world/material/albedo")
        picture.CreateIdAttr("UsdUVTexture")
        picture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath(f"{name}.png"))
        picture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set("sRGB")
        picture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(out)
        color.ConnectToSource(picture.CreateOutput("rgb", Sdf.ValueTypeNames.Float3))
    else:
        shown = Vt.Vec3fArray.FromNumpy(colors_u8(mesh).astype(np.float32) / 255)
        primvar = shape.CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex)
        primvar.Set(shown)
        reader = UsdShade.Shader.Define(stage, "/world/material/color")
        reader.CreateIdAttr("UsdPrimvarReader_float3")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("displayColor")
        color.ConnectToSource(reader.CreateOutput("result", Sdf.ValueTypeNames.Float3))
    surface = shader.CreateOutput("surface", Sdf.ValueTypeNames.Token)
    material.CreateSurfaceOutput().ConnectToSource(surface)
    UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(material)
    return stage
