"""Which exporters there are. Adding one: a file with a writer, and one `register` line.

    register(Exporter("mine", "Mine", ".mine", "What is in it.", write_mine, group="use"))

A package registers by an entry point of the group `worldstereo.exporters`, whose value is such an
`Exporter`. Command line, page, the tables of README and docs, and tests read this list.
"""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

from worldstereo._core.lazy import installed, loaded
from worldstereo.scene import Scene

GROUP = "worldstereo.exporters"
log = logging.getLogger(__name__)

Group = Literal["use", "continue", "show"]
GROUPS: dict[Group, str] = {
    "use": "Use in 3D software",
    "continue": "Continue elsewhere",
    "show": "Show",
}


class Estimate(NamedTuple):
    """What an export will give and take; a guess before the click, not a promise."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class Exporter:
    """One way to export a world."""

    name: str
    label: str
    suffix: str
    """Of the file, with its dot."""
    describes: str
    """One line: what is in it and which programs read it."""
    writer: Callable[..., bytes] | str
    """`writer(scene, **options) -> bytes`, or "module:function", imported when first needed. One
    that takes long has an option `on_step`."""
    needs: tuple[str, ...] = ()
    """What the scene must hold: "points", "views", "depth", "clips"."""
    group: Group = "use"
    estimate: Callable[..., Estimate] | str | None = None
    """`estimate(scene)`; one whose size depends on an option of the writer takes it by name."""
    requires: str = ""
    """A package that is not always installed."""

    @property
    def write(self) -> Callable[..., bytes]:
        """The writer, imported."""
        return loaded(self.writer)

    @property
    def options(self) -> dict[str, Any]:
        """The writer's options with their defaults."""
        parameters = list(inspect.signature(self.write).parameters.values())[1:]
        return {p.name: p.default for p in parameters if p.name != "on_step"}

    @property
    def slow(self) -> bool:
        """Whether the writer reports progress and can be cancelled."""
        return "on_step" in inspect.signature(self.write).parameters

    def estimated(self, scene: Scene, **options: Any) -> Estimate:
        """Size and seconds for a scene that holds what the exporter needs, with these options."""
        if self.estimate is None:
            return Estimate(0, 0.0)
        guess = loaded(self.estimate)
        known = inspect.signature(guess).parameters
        return guess(scene, **{k: v for k, v in options.items() if k in known})


_registered: dict[str, Exporter] = {}


def register(exporter: Exporter) -> None:
    """Offer an exporter, in the order of registration.

    Raises:
        ValueError: the name is taken, or the group is none of `GROUPS`.
    """
    if exporter.name in _registered:
        raise ValueError(f"exporter {exporter.name!r} is registered already; choose another name.")
    if exporter.group not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {exporter.group!r}.")
    _registered[exporter.name] = exporter


def unregister(name: str) -> None:
    """Take an exporter out of the list again; nothing happens where it is not there."""
    _registered.pop(name, None)


def exporters() -> dict[str, Exporter]:
    """Every exporter under its name. A foreign one that fails to load is left out and logged."""
    return _registered | {k: v for k, v in _foreign().items() if k not in _registered}


@cache
def _foreign() -> dict[str, Exporter]:
    found = {}
    for point in installed(GROUP):
        try:
            found[point.name] = point.load()
        except Exception:  # a foreign package must not keep the app from starting
            log.exception("exporter %r cannot be offered", point.name)
    return found


_E = "worldstereo.exports."


def _points(name: str, label: str, suffix: str, describes: str, **rest: str) -> Exporter:
    writer = f"{_E}{rest.pop('home')}"
    size = f"{_E}estimates:{rest.pop('size', 'points')}"
    return Exporter(name, label, suffix, describes, writer, ("points",), "use", size, **rest)


def _mesh(name: str, label: str, suffix: str, describes: str, writer: str, needs: str = "") -> None:
    size = f"{_E}estimates:mesh"
    register(
        Exporter(
            name, label, suffix, describes, f"{_E}{writer}", ("depth",), "use", size, requires=needs
        )
    )


def _other(
    name: str, label: str, suffix: str, describes: str, writer: str, needs: str, group: Group
) -> None:
    size = f"{_E}estimates:{name.split('-')[0]}"
    register(
        Exporter(name, label, suffix, describes, f"{_E}{writer}", tuple(needs.split()), group, size)
    )


# ruff: noqa: E501  (one line an exporter)
# fmt: off
register(_points("ply", "Points (PLY)", ".ply", "Coloured points with normals, confidence and marks; CloudCompare, MeshLab, Blender.", home="ply:write_ply"))
register(_points("glb", "Points (GLB)", ".glb", "Coloured points and cameras for the web and 3D viewers; invented points apart.", home="glb:write_glb"))
_mesh("mesh-glb", "Mesh (GLB)", ".glb", "Textured mesh in one file, metres, +Y up; Blender, Unity, Unreal, Godot, three.js, Windows.", "mesh_glb:write_mesh_glb")
_mesh("mesh-obj", "Mesh (OBJ)", ".zip", "Textured mesh as OBJ, MTL and PNG; almost every 3D program.", "obj:write_obj")
_mesh("mesh-ply", "Mesh (PLY)", ".ply", "Mesh with vertex colours and marks; MeshLab, CloudCompare, Open3D.", "mesh_ply:write_mesh_ply")
_mesh("mesh-stl", "Mesh (STL)", ".stl", "Shape only, millimetres, +Z up; slicers and CAD.", "stl:write_stl")
_mesh("mesh-usdz", "Mesh (USDZ)", ".usdz", "Textured mesh in one file; iOS and macOS, Omniverse, Houdini, Maya.", "usd:write_usdz", "pxr")
_mesh("mesh-usda", "Mesh (USD, text)", ".zip", "Textured mesh as a USD text layer and PNG; Omniverse, Houdini, Maya.", "usd:write_usda", "pxr")
register(_points("pcd", "Points (PCD)", ".pcd", "Coloured points with normals; PCL, Open3D, ROS.", home="pcd:write_pcd"))
register(_points("xyz", "Points (XYZ)", ".xyz", "Text: x y z r g b nx ny nz; spreadsheets and scripts.", home="xyz:write_xyz", size="text"))
register(_points("las", "Points (LAS)", ".las", "Coloured points, metres, +Z up; QGIS, CloudCompare, ReCap.", home="las:write_las", requires="laspy"))
register(_points("laz", "Points (LAZ)", ".laz", "The same, compressed without loss.", home="las:write_laz", size="packed", requires="laspy"))
register(_points("splats", "Gaussians (3DGS PLY)", ".ply", "Surface discs as Gaussians, not trained; SuperSplat, gsplat, Unity and Unreal plugins.", home="splats:write_splats", size="splats"))
register(_points("spz", "Gaussians (SPZ)", ".spz", "The same, a tenth of the size; SuperSplat, Scaniverse, Babylon.js.", home="splats:write_spz", size="spz"))
_other("colmap", "COLMAP, binary", ".zip", "Pictures, cameras and points with tracks; COLMAP and most splatting trainers.", "colmap:write_colmap_binary", "views points", "continue")
_other("colmap-text", "COLMAP, text", ".zip", "The same model as readable text.", "colmap:write_colmap_text", "views points", "continue")
_other("transforms", "transforms.json", ".zip", "Pictures, depth, masks and cameras for nerfstudio and instant-ngp.", "transforms:write_transforms", "views", "continue")
_other("trajectory", "Camera path", ".json", "The path of the last clip, to be opened again here.", "video:write_trajectory", "clips", "continue")
_other("conventions", "Conventions", ".json", "Axes, units, pixel centre, seeds and what was invented.", "conventions:write_conventions", "", "continue")
_other("html", "Page to send (HTML)", ".html", "The world in one file for any browser, without a server or a network.", "page:write_page", "points", "show")
_other("mp4", "Video (MP4)", ".mp4", "The last clip as H.264 video.", "video:write_mp4", "clips", "show")
_other("images", "Pictures of a clip", ".zip", "Every frame with depth, where each pixel comes from, and the camera path.", "video:write_frames", "clips", "show")
# fmt: on
