"""Generators: the protocol, what a request holds, and the weight-free generator.

The published model is in `worldstereo.generators.diffusion`, which needs packages of its own.
"""

from worldstereo.generators.base import (
    Closable,
    Fit,
    Frame,
    GenerationRequest,
    Generator,
    GeneratorLimits,
    Inspectable,
    OnState,
    SamplerConfig,
    as_view,
    patch_features,
)
from worldstereo.generators.warp import WarpGenerator

__all__ = [
    "Closable",
    "Fit",
    "Frame",
    "GenerationRequest",
    "Generator",
    "GeneratorLimits",
    "Inspectable",
    "OnState",
    "SamplerConfig",
    "WarpGenerator",
    "as_view",
    "patch_features",
]
