"""Depth from one picture: `DepthEstimator`, a layout without weights, learned models, alignment.

Depth is z along the optical axis in scene units, 0 where unknown. A single picture does not say how
large things are: `LayoutDepth` assumes a camera 1.5 units above the ground.
"""

from worldstereo.depth._base import (
    DEFAULT_FOV,
    DepthEstimate,
    DepthEstimator,
    align,
    default_camera,
)
from worldstereo.depth._download import download
from worldstereo.depth._edges import clean_edges
from worldstereo.depth._layout import LayoutDepth, SphereLayout, sky_mask
from worldstereo.depth._learned import (
    MODEL_FOLDER,
    SUGGESTED,
    SUGGESTED_LABEL,
    RecordedDepth,
    TransformersDepth,
    best_estimator,
    find,
    forget,
    learned_estimator,
    model_folder,
    relative_depth,
    use,
)
from worldstereo.depth._measured import confirmed
from worldstereo.depth.registry import Estimator, estimators, register, unregister

__all__ = [
    "DEFAULT_FOV",
    "MODEL_FOLDER",
    "SUGGESTED",
    "SUGGESTED_LABEL",
    "DepthEstimate",
    "DepthEstimator",
    "Estimator",
    "LayoutDepth",
    "RecordedDepth",
    "SphereLayout",
    "TransformersDepth",
    "align",
    "best_estimator",
    "clean_edges",
    "confirmed",
    "default_camera",
    "download",
    "estimators",
    "find",
    "forget",
    "learned_estimator",
    "model_folder",
    "register",
    "relative_depth",
    "sky_mask",
    "unregister",
    "use",
]
