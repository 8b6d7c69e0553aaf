"""WorldStereo: novel views from captures and photos, steered by a geometric and a stereo memory.

Each public name is imported from its own module when it is first used (PEP 562), so that importing
the package is quick, prints nothing and needs no optional dependency.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from worldstereo._core.version import __version__ as __version__

if TYPE_CHECKING:
    from worldstereo.cameras import Camera as Camera
    from worldstereo.cameras import Cameras as Cameras
    from worldstereo.cameras import look_at as look_at
    from worldstereo.depth import DepthEstimator as DepthEstimator
    from worldstereo.errors import Cancelled as Cancelled
    from worldstereo.errors import ExportError as ExportError
    from worldstereo.errors import InputRefused as InputRefused
    from worldstereo.errors import WeightsMissing as WeightsMissing
    from worldstereo.errors import WorldBusy as WorldBusy
    from worldstereo.errors import WorldStereoError as WorldStereoError
    from worldstereo.generators import Frame as Frame
    from worldstereo.generators import GenerationRequest as GenerationRequest
    from worldstereo.generators import Generator as Generator
    from worldstereo.generators import SamplerConfig as SamplerConfig
    from worldstereo.generators import WarpGenerator as WarpGenerator
    from worldstereo.guide import Guide as Guide
    from worldstereo.inputs import read as read
    from worldstereo.memory.geometric import GlobalGeometricMemory as GlobalGeometricMemory
    from worldstereo.memory.stereo import SpatialStereoMemory as SpatialStereoMemory
    from worldstereo.model import ModelOutput as ModelOutput
    from worldstereo.model import WorldStereo as WorldStereo
    from worldstereo.model import generate_multi_view as generate_multi_view
    from worldstereo.model import generate_video as generate_video
    from worldstereo.reconstruct import Mesh as Mesh
    from worldstereo.reconstruct import Texture as Texture
    from worldstereo.reconstruction import ReconstructedScene as ReconstructedScene
    from worldstereo.reconstruction import export_mesh as export_mesh
    from worldstereo.reconstruction import export_point_cloud as export_point_cloud
    from worldstereo.reconstruction import reconstruct_scene as reconstruct_scene
    from worldstereo.render import RenderResult as RenderResult
    from worldstereo.render import render_points as render_points
    from worldstereo.scene import Capture as Capture
    from worldstereo.scene import Clip as Clip
    from worldstereo.scene import DepthKind as DepthKind
    from worldstereo.scene import Origin as Origin
    from worldstereo.scene import PointCloud as PointCloud
    from worldstereo.scene import Scene as Scene
    from worldstereo.scene import View as View
    from worldstereo.trajectory import CameraIntrinsics as CameraIntrinsics
    from worldstereo.trajectory import CameraPose as CameraPose
    from worldstereo.trajectory import CameraTrajectory as CameraTrajectory
    from worldstereo.trajectory import Trajectory as Trajectory
    from worldstereo.trajectory import interpolate_poses as interpolate_poses
    from worldstereo.trajectory import load_trajectory as load_trajectory
    from worldstereo.trajectory import save_trajectory as save_trajectory
    from worldstereo.world import World as World
    from worldstereo.world import add as add
    from worldstereo.world import default_view as default_view
    from worldstereo.world import explore as explore
    from worldstereo.world import locate as locate
    from worldstereo.world import propose_path as propose_path
    from worldstereo.world import start as start

_HOME = {
    "Camera": "cameras",
    "CameraIntrinsics": "trajectory",
    "CameraPose": "trajectory",
    "CameraTrajectory": "trajectory",
    "Cameras": "cameras",
    "Cancelled": "errors",
    "Capture": "scene",
    "Clip": "scene",
    "DepthEstimator": "depth",
    "DepthKind": "scene",
    "ExportError": "errors",
    "Frame": "generators",
    "GenerationRequest": "generators",
    "Generator": "generators",
    "GlobalGeometricMemory": "memory.geometric",
    "Guide": "guide",
    "InputRefused": "errors",
    "Mesh": "reconstruct",
    "ModelOutput": "model",
    "Origin": "scene",
    "PointCloud": "scene",
    "ReconstructedScene": "reconstruction",
    "RenderResult": "render",
    "SamplerConfig": "generators",
    "Scene": "scene",
    "SpatialStereoMemory": "memory.stereo",
    "Texture": "reconstruct",
    "Trajectory": "trajectory",
    "View": "scene",
    "WarpGenerator": "generators",
    "WeightsMissing": "errors",
    "World": "world",
    "WorldBusy": "errors",
    "WorldStereo": "model",
    "WorldStereoError": "errors",
    "default_view": "world",
    "explore": "world",
    "export_mesh": "reconstruction",
    "export_point_cloud": "reconstruction",
    "generate_multi_view": "model",
    "generate_video": "model",
    "interpolate_poses": "trajectory",
    "load_trajectory": "trajectory",
    "add": "world",
    "locate": "world",
    "look_at": "cameras",
    "propose_path": "world",
    "read": "inputs",
    "reconstruct_scene": "reconstruction",
    "render_points": "render",
    "save_trajectory": "trajectory",
    "start": "world",
}

__all__ = sorted(_HOME)  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]


if not TYPE_CHECKING:  # an editor must not believe that every name exists

    def __getattr__(name: str) -> object:
        """The public name `name`, imported when first asked for."""
        if name not in _HOME:
            raise AttributeError(f"module 'worldstereo' has no attribute {name!r}")
        value = getattr(import_module(f"worldstereo.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
