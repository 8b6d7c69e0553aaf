"""How noise becomes keyframe latents: UniPC on flow matching, or a few Euler steps.

The multistep solver is diffusers' own. Only the spacing of its noise levels is set here, because
it changed between diffusers 0.36 (with which the release was made) and newer versions, visibly.
"""

from typing import Any, Literal

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

Spacing = Literal["release", "current"]


def flow_unipc(flow_shift: float | int = 3.0, **config: Any) -> UniPCMultistepScheduler:
    """The solver of the camera and memory variants; the base repository's config wins over this."""
    options = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "num_train_timesteps": 1000,
        "flow_shift": flow_shift,
    }
    return UniPCMultistepScheduler(**(options | config))


def set_steps(
    scheduler: UniPCMultistepScheduler,
    steps: int,
    spacing: Spacing = "release",
    device: torch.device | str | None = None,
) -> Tensor:
    """Prepares `scheduler` for a new clip and returns its timesteps, highest first.

    "release" spaces the noise levels as diffusers 0.36 did, "current" as the installed one does.

    Raises:
        ValueError: `steps` or `spacing` is not accepted.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number >= 1, got {steps!r}.")
    if spacing not in ("release", "current"):
        raise ValueError(f"spacing must be release or current, got {spacing!r}.")
    scheduler.set_timesteps(steps, device=device or "cpu")
    if spacing == "release":
        config: Any = scheduler.config
        total, shift = config.num_train_timesteps, config.flow_shift
        noise = 1.0 - np.linspace(1, 1 / total, steps + 1)
        sigmas = np.flip(shift * noise / (1 + (shift - 1) * noise))[:-1].copy()
        timesteps = (sigmas * total).copy()
        levels = np.concatenate([sigmas, [0.0]]).astype(np.float32)
        scheduler.sigmas = torch.from_numpy(levels)
        scheduler.timesteps = torch.from_numpy(timesteps).to(
            device=device or "cpu", dtype=torch.int64
        )
    return scheduler.timesteps


class FlowEuler:
    """Plain Euler steps down a shifted schedule, for the distilled variant: no re-noising.

    Args:
        start: lowest timestep before the shift.
        end: number of training steps, and the highest timestep.
        shift: s in s t / (1 + (s - 1) t).
        steps: how many.
    """

    def __init__(
        self, start: float | int = 250, end: int = 1000, shift: float | int = 1.0, steps: int = 4
    ) -> None:
        if not 0 <= start <= end:
            raise ValueError(f"start must be 0 .. {end} (end), got {start}.")
        if not shift > 0:
            raise ValueError(f"shift must be above 0, got {shift}.")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be a whole number >= 1, got {steps!r}.")
        self.end, self.shift, self.steps = end, shift, steps
        t = torch.linspace(start, end, steps, dtype=torch.float32).flip(0) / end
        self.timesteps = shift * t / (1 + (shift - 1) * t) * end
        """(steps,) floats, highest first."""
        self.sigmas = torch.cat([self.timesteps / end, torch.zeros(1)])

    def step(self, velocity: Tensor, index: int, sample: Tensor) -> Tensor:
        """The sample after step `index` (0-based)."""
        sigma, following = self.sigmas[index : index + 2].to(sample.device)
        return sample + (following - sigma) * velocity

    def add_noise(self, original: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Samples (B, ...) at the noise level of `timesteps` (B,)."""
        sigma = (timesteps / self.end).reshape(-1, *[1] * (original.ndim - 1)).to(original)
        return (1 - sigma) * original + sigma * noise
