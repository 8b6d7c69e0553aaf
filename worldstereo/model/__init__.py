"""The documented interface: `WorldStereo` and the functions that make films with it.

`WorldStereo` holds a video diffusion backbone and the two memories as one torch module; calls work
through `World`, `start` and `explore` like everything else in the package.
"""

from worldstereo.model._inference import generate_multi_view, generate_video
from worldstereo.model._model import WorldStereo
from worldstereo.model._output import ModelOutput

__all__ = ["ModelOutput", "WorldStereo", "generate_multi_view", "generate_video"]
