"""The diffusion process of the compact backbone: noise levels, targets, deterministic steps.

Every schedule is two numbers per timestep, `x_t = signal * x_0 + noise * epsilon`, and every kind
of prediction is turned into the pair (x_0, epsilon) by solving that equation; a step is then the
same for all of them: DDIM with eta 0 for the variance-preserving schedules, Euler for "flow".

Sources: Ho et al. 2020 (linear); Nichol & Dhariwal 2021 (cosine); Salimans & Ho 2022 (v); Song et
al. 2021 (DDIM); Lipman et al. 2023 (flow matching).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

SCHEDULES = ("linear", "scaled_linear", "cosine", "flow")
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")
MIN_SIGNAL = 1e-3  # below it, noise says nothing about the picture


class Levels(NamedTuple):
    """Signal and noise of timesteps, shaped to multiply (B, T, C, H, W)."""

    signal: Float[Tensor, "B 1 1 1 1"]
    noise: Float[Tensor, "B 1 1 1 1"]


class Process:
    """Noise levels 0 .. num_timesteps - 1 and what a network's prediction means at each."""

    def __init__(self, num_timesteps: int, noise_schedule: str, prediction_type: str) -> None:
        self.num_timesteps, self.prediction = num_timesteps, prediction_type
        signal, noise = _schedule(noise_schedule, num_timesteps)
        self._signal, self._noise = signal, noise

    def levels(self, timesteps: Int[Tensor, "B"]) -> Levels:
        at = timesteps.cpu()
        columns = (self._signal[at].float(), self._noise[at].float())
        return Levels(*(c.to(timesteps.device)[:, None, None, None, None] for c in columns))

    def noisy(self, clean: Tensor, noise: Tensor, levels: Levels) -> Tensor:
        return levels.signal * clean + levels.noise * noise

    def target(self, clean: Tensor, noise: Tensor, levels: Levels) -> Tensor:
        """What the network is to predict."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        if self.prediction == "flow":
            return noise - clean
        return levels.signal * noise - levels.noise * clean

    def solved(self, predicted: Tensor, state: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
        """The clean picture and the noise that a prediction implies."""
        a, s = levels
        if self.prediction == "epsilon":
            return (state - s * predicted) / a.clamp_min(MIN_SIGNAL), predicted
        if self.prediction == "sample":
            return predicted, (state - a * predicted) / s.clamp_min(MIN_SIGNAL)
        if self.prediction == "flow":
            clean = (state - s * predicted) / (a + s)
            return clean, clean + predicted
        power = a * a + s * s
        return (a * state - s * predicted) / power, (s * state + a * predicted) / power

    def steps(self, count: int) -> list[int]:
        """At most `count` timesteps, strictly falling, from pure noise; none is asked for twice."""
        count = min(count, self.num_timesteps)
        at = [round(self.num_timesteps * (count - i) / count) - 1 for i in range(count)]
        return sorted(set(at), reverse=True)

    def step(self, clean: Tensor, noise: Tensor, following: int | None) -> Tensor:
        """The state at the `following` timestep; None is the clean picture itself."""
        if following is None:
            return clean
        a, s = float(self._signal[following]), float(self._noise[following])
        return a * clean + s * noise


def _schedule(name: str, count: int) -> tuple[Tensor, Tensor]:
    if name == "flow":
        noise = (torch.arange(count, dtype=torch.float64) + 1) / count
        return 1 - noise, noise
    if name == "cosine":
        at = torch.arange(count + 1, dtype=torch.float64) / count
        kept = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
        kept = kept / kept[0]
        beta = (1 - kept[1:] / kept[:-1]).clamp_max(0.999)
    else:
        # The usual end points belong to 1000 steps; fewer steps take proportionally larger ones.
        low, high = (min(b * 1000 / count, 0.999) for b in (1e-4, 0.02))
        if name == "scaled_linear":
            low, high = (min(b * 1000 / count, 0.999) for b in (8.5e-4, 0.012))
            beta = torch.linspace(low**0.5, high**0.5, count, dtype=torch.float64) ** 2
        else:
            beta = torch.linspace(low, high, count, dtype=torch.float64)
    kept = torch.cumprod(1 - beta, dim=0)
    return kept.sqrt(), (1 - kept).sqrt()
