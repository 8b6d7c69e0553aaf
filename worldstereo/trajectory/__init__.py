"""Camera paths: dense ones for generators, sparse keyed ones for people, and their files."""

from worldstereo.trajectory._dense import MAX_FRAMES, PRESETS, Parameter, Preset, Trajectory
from worldstereo.trajectory._keyed import (
    CameraIntrinsics,
    CameraPose,
    CameraTrajectory,
    interpolate_poses,
)
from worldstereo.trajectory._keyed_files import load_trajectory, save_trajectory

__all__ = [
    "MAX_FRAMES",
    "PRESETS",
    "CameraIntrinsics",
    "CameraPose",
    "CameraTrajectory",
    "Parameter",
    "Preset",
    "Trajectory",
    "interpolate_poses",
    "load_trajectory",
    "save_trajectory",
]
