"""Generators: the protocol, what a request holds, and the weight-free generator.

The published model is in `worldstereo.generators.diffusion`, which needs packages of its own.
"""

from worldstereo.generators.base import (
    Closable,
    EmptyRegion,
    Frame,
    GenerationRequest,
    Generator,
    GeneratorLimits,
    Inspectable,
    Invention,
    Inventor,
    Look,
    MemoryModeFit,
    OnState,
    SamplerConfig,
    StepRange,
    as_view,
    patch_features,
)
from worldstereo.generators.warp import WarpGenerator

__all__ = [
    "Closable",
    "EmptyRegion",
    "MemoryModeFit",
    "Frame",
    "GenerationRequest",
    "Generator",
    "GeneratorLimits",
    "Inspectable",
    "Invention",
    "Inventor",
    "Look",
    "OnState",
    "SamplerConfig",
    "StepRange",
    "WarpGenerator",
    "as_view",
    "patch_features",
]
