"""WorldStereo: explore a capture or a photo as a growing 3D world, steered by two memories."""

from importlib import import_module

_HOME = {
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
    "Origin": "scene",
    "PointCloud": "scene",
    "RenderResult": "render",
    "SamplerConfig": "generators",
    "Scene": "scene",
    "SpatialStereoMemory": "memory.stereo",
    "Trajectory": "trajectory",
    "View": "scene",
    "WarpGenerator": "generators",
    "WeightsMissing": "errors",
    "World": "world",
    "WorldBusy": "errors",
    "WorldStereoError": "errors",
    "look_at": "cameras",
    "read": "inputs",
    "render_points": "render",
}

__all__ = sorted(_HOME)  # noqa: PLE0605
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Each name from its own module when first asked for (PEP 562): `--help` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'worldstereo' has no attribute {name!r}")
    value = getattr(import_module(f"worldstereo.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
