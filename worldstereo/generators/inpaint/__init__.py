"""The generator around any inpainting model: painters, keyframes of invention, their depth."""

from worldstereo.generators.inpaint.generator import InpaintGenerator, InpaintOptions
from worldstereo.generators.inpaint.painters import (
    OpenCVPainter,
    Painter,
    PainterFailed,
    PainterLimits,
    PaintRequest,
    StepwisePainter,
    painter_named,
    painter_names,
    register_painter,
    unregister_painter,
)
from worldstereo.generators.inpaint.pipelines import (
    DiffusersPainter,
    Offer,
    download,
    find_model,
    offer,
)

__all__ = [
    "DiffusersPainter",
    "InpaintGenerator",
    "InpaintOptions",
    "Offer",
    "OpenCVPainter",
    "Painter",
    "PainterFailed",
    "PainterLimits",
    "StepwisePainter",
    "PaintRequest",
    "download",
    "find_model",
    "offer",
    "painter_named",
    "painter_names",
    "register_painter",
    "unregister_painter",
]
