"""The mini network: a flow prior, a global-geometric branch and a spatial-stereo branch.

Plain convolutions at 1/2, 1/4, 1/8 and 1/16 of the image, without normalisation and without
attention over space, so that it means the same on a training crop and on a 640x480 frame. Both
branches add residuals to the prior through zero-initialised projections: freshly built they
change nothing, and each can be left out.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from worldstereo._mini.inputs import BINS, MiniInputs, reference_weights

WIDTHS = (32, 64, 96, 128)
OUTPUTS = 5
"""Colour (3), inverse depth (1), log of the expected colour error (1)."""

Residuals = list[Tensor]
"""One per encoder level, the middle, one per decoder level, the output."""


class Estimate(NamedTuple):
    """What the network says about one target."""

    color: Float[Tensor, "B 3 H W"]
    """In [-1, 1], not clipped."""
    closeness: Float[Tensor, "B 1 H W"]
    log_scale: Float[Tensor, "B 1 H W"]
    """Log of the expected absolute error of the colour."""
    scaled: Float[Tensor, "B 5 H W"]
    """The raw answer before scaling, for the training loss."""
    linear: Float[Tensor, "B 3 H W"]
    spread: Float[Tensor, "B 1 H W"]


def zero(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The layer with weights and bias 0: a branch that ends in it changes nothing at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """A residual pair of 3x3 convolutions, modulated by the time embedding where there is one."""

    def __init__(self, inputs: int, outputs: int, time: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.modulation = zero(nn.Linear(time, 2 * outputs)) if time else None
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.first(F.silu(x))
        if self.modulation is not None and time is not None:
            scale, shift = self.modulation(time)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.second(F.silu(h))


class Pyramid(nn.Module):
    """Encoder and decoder over the four levels; the prior and the geometric branch both are one."""

    def __init__(self, channels: int, time: int = 0) -> None:
        super().__init__()
        w, n = WIDTHS, len(WIDTHS)
        self.entry = nn.Conv2d(channels * 4, w[0], 3, padding=1)
        self.encoder = nn.ModuleList([Block(c, c, time) for c in w])
        self.down = nn.ModuleList([nn.Conv2d(w[i], w[i + 1], 3, 2, 1) for i in range(n - 1)])
        self.middle = Block(w[-1], w[-1], time)
        self.up = nn.ModuleList([nn.Conv2d(w[i + 1], w[i], 1) for i in range(n - 1)])
        self.decoder = nn.ModuleList([Block(w[i], w[i], time) for i in range(n - 1)])

    def forward(
        self, x: Tensor, time: Tensor | None = None, residuals: Residuals | None = None
    ) -> list[Tensor]:
        """Hidden states after every stage: encoder levels, middle, decoder levels upwards."""
        h, states, n = self.entry(F.pixel_unshuffle(x, 2)), [], len(WIDTHS)

        def keep(h: Tensor) -> Tensor:
            if residuals is not None:
                h = h + residuals[len(states)]
            states.append(h)
            return h

        for i in range(n):
            h = keep(self.encoder[i](h, time))
            if i < n - 1:
                h = self.down[i](h)
        h = keep(self.middle(h, time))
        for i in range(n - 2, -1, -1):
            wide = F.interpolate(self.up[i](h), size=states[i].shape[-2:], mode="nearest")
            h = keep(self.decoder[i](wide + states[i], time))
        return states


STAGE_WIDTHS = (*WIDTHS, WIDTHS[-1], *WIDTHS[-2::-1])


class GeometricBranch(nn.Module):
    """The cloud's splat, holes, depth and rays -> residuals of every stage of the prior."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Pyramid(3 + 1 + 1 + 1 + 4 + 6)
        self.out = nn.ModuleList([zero(nn.Conv2d(c, c, 1)) for c in STAGE_WIDTHS])
        self.last = zero(nn.Conv2d(WIDTHS[0], OUTPUTS * 4, 3, padding=1))

    def forward(self, maps: MiniInputs) -> tuple[Residuals, Tensor]:
        """Residuals, and features at half resolution for the stereo branch's queries."""
        x = torch.cat(
            [maps.anchor, maps.known, maps.bins / BINS, maps.closeness, maps.splat, maps.rays], 1
        )
        states = self.body(x)
        residuals = [out(s) for out, s in zip(self.out, states, strict=True)]
        return [*residuals, self.last(states[-1])], states[-1]


class StereoBranch(nn.Module):
    """Each target cell attends to the references' cells at its 3D correspondence, and to a token
    that stands for "nothing found". The attention weights are the provenance the app shows."""

    def __init__(self, channels: int = 32, heads: int = 4) -> None:
        super().__init__()
        w = WIDTHS
        self.heads, self.channels = heads, channels
        self.encode = nn.Sequential(
            nn.Conv2d(9 * 4, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.key_value = nn.Conv2d(channels, 2 * channels, 1)
        self.query = nn.Sequential(
            nn.Conv2d(w[0] + 20, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 1),
        )
        self.nothing = nn.Parameter(torch.randn(2, channels) * 0.1)
        self.merge = nn.Conv2d(channels, w[0], 1)
        self.levels = nn.ModuleList([Block(c, c) for c in w[:3]])
        self.down = nn.ModuleList([nn.Conv2d(w[i], w[i + 1], 3, 2, 1) for i in range(2)])
        self.late = Block(w[0], w[0])
        self.out = nn.ModuleList([zero(nn.Conv2d(c, c, 1)) for c in (*w[:3], w[1], w[0])])
        self.last = zero(nn.Conv2d(w[0], OUTPUTS * 4, 3, padding=1))

    def forward(self, maps: MiniInputs, features: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Residuals by stage, and attention (B, R + 1, heads, h, w): the last row is "nothing"."""
        B, R = maps.references.shape[:2]
        change = (maps.references[:, :, :3] - maps.anchor[:, None]) * (
            maps.references[:, :, 3:4] > 0
        )
        shown = torch.cat([maps.references, change], 2).flatten(0, 1)
        k, v = self.key_value(F.silu(self.encode(F.pixel_unshuffle(shown, 2)))).chunk(2, dim=1)
        h, w = k.shape[-2:]
        heads, width = self.heads, self.channels // self.heads
        own = torch.cat([maps.anchor, maps.known, maps.bins / BINS], 1)
        q = self.query(torch.cat([features, F.pixel_unshuffle(own, 2)], 1)) / width**0.5
        q = q.reshape(B, 1, heads, width, h, w)
        score = (q * k.reshape(B, R, heads, width, h, w)).sum(3)
        valid = F.max_pool2d((maps.references[:, :, 3] > 0).float(), 2)[:, :, None] > 0
        score = score.masked_fill(~valid, -torch.inf)  # nothing corresponds: nothing is attended
        nothing = (q * self.nothing[0].reshape(heads, width, 1, 1)).sum(3)
        attention = torch.cat([score, nothing], 1).softmax(1)
        value = (attention[:, :R, :, None] * v.reshape(B, R, heads, width, h, w)).sum(1)
        value = value + attention[:, R, :, None] * self.nothing[1].reshape(heads, width, 1, 1)
        a = self.levels[0](self.merge(value.reshape(B, -1, h, w)))
        b = self.levels[1](self.down[0](a))
        c = self.levels[2](self.down[1](b))
        late = self.late(a)
        last_stage = len(STAGE_WIDTHS) - 1
        stages = (0, 1, 2, last_stage - 1, last_stage)
        states = (a, b, c, b, late)
        residuals = {i: out(s) for i, out, s in zip(stages, self.out, states, strict=True)}
        return residuals | {last_stage + 1: self.last(late)}, attention


class MiniNetwork(nn.Module):
    """Preconditioned denoiser around the anchor: at one step it is the anchor plus a correction.

    With z = (1 - t) x + t e and x ~ N(anchor, sigma^2), sigma by class of expected error, the
    linear estimate and its spread are known in closed form; the network predicts the rest in
    units of that spread. At t = 1 the noise has no influence, at t = 0 the answer is z.

    Source: the preconditioning of Karras et al., arXiv:2206.00364, anchored per pixel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.prior = Pyramid(3 + 3 + 1 + 1 + 1, time=128)
        self.last = zero(nn.Conv2d(WIDTHS[0], OUTPUTS * 4, 3, padding=1))
        self.geometric = GeometricBranch()
        self.stereo = StereoBranch()
        self.register_buffer("sigma", torch.linspace(0.08, 0.5, BINS))
        self.sigma: Tensor
        self.caution = 0.0
        """Of `supported`; chosen with the checkpoint, 0 while training."""

    def control(
        self, maps: MiniInputs, *, geometric: bool = True, stereo: bool = True
    ) -> tuple[Residuals | None, Tensor | None]:
        """Residuals for the prior and the stereo branch's attention; once per target."""
        if not geometric:
            return None, None  # the stereo branch asks with the geometric branch's features
        residuals, features = self.geometric(maps)
        if not stereo:
            return residuals, None
        added, attention = self.stereo(maps, features)
        merged = [r + added[i] if i in added else r for i, r in enumerate(residuals)]
        return merged, attention

    def denoise(
        self, z: Tensor, t: Float[Tensor, "B"], maps: MiniInputs, residuals: Residuals | None
    ) -> Estimate:
        """The estimate of the clean frame from a noisy one at time t in (0, 1]."""
        time = t[:, None, None, None]
        sigma2 = self.sigma[maps.bins.long()] ** 2
        total = time**2 + (1 - time) ** 2 * sigma2
        linear = (maps.anchor * time**2 + (1 - time) * sigma2 * z) / total
        spread = (sigma2 * time**2 / total).sqrt().clamp_min(0.02)
        x = torch.cat([linear, maps.anchor, maps.known, maps.bins / BINS, maps.closeness], 1)
        states = self.prior(x, self.time(_embed(t)), residuals)
        raw = self.last(states[-1])
        if residuals is not None:
            raw = raw + residuals[-1]
        scaled = F.pixel_shuffle(raw, 2).float()
        return Estimate(
            color=linear + spread * scaled[:, :3],
            closeness=maps.closeness + 0.1 * scaled[:, 3:4] * (1 - maps.known * 0.8),
            log_scale=scaled[:, 4:5] + spread.log(),
            scaled=scaled,
            linear=linear,
            spread=spread,
        )

    def sample(
        self, maps: MiniInputs, steps: int, residuals: Residuals | None, noise: Tensor
    ) -> Estimate:
        """From pure noise in 1, 2 or 4 steps: the first is a regression, the rest renew texture."""
        times = [
            1.0,
            *(
                torch.logspace(math.log10(0.5), -1, steps - 1).tolist()
                if steps > 2
                else [0.3] * (steps - 1)
            ),
            0.0,
        ]
        z, estimate = noise, None
        for now, then in zip(times, times[1:], strict=False):
            t = torch.full((len(z),), now, device=z.device)
            estimate = self.denoise(z, t, maps, residuals)
            z = estimate.color + (z - estimate.color) * (then / now)
        assert estimate is not None
        return estimate


def supported(maps: MiniInputs, color: Float[Tensor, "B 3 H W"], caution: float) -> Tensor:
    """The corrected colour, taken as far as the references' disagreement with the anchor bears it.

    With D and C the mean squares, over 9x9 pixels, of reference minus anchor (weighed as the blend
    weighs references) and of the correction, D / (D + caution C) of it is kept: where every
    reference already says what the anchor says, there is nothing to correct. Where no memory knows
    the surface, or none of the references shows it, all of it is kept.
    """
    if caution == 0:
        return color
    references, change = maps.references, color - maps.anchor
    weight = reference_weights(references).clamp_min(0)
    apart = (references[:, :, :3] - maps.anchor[:, None]).square().mean(2, keepdim=True)
    total = weight.sum(1)
    told = (weight * apart).sum(1) / total.clamp_min(1e-6)
    squares = torch.cat([told, change.square().mean(1, keepdim=True)], 1)
    squares = F.avg_pool2d(F.pad(squares, (4, 4, 4, 4), mode="replicate"), 9, 1)
    share = squares[:, :1] / (squares[:, :1] + caution * squares[:, 1:] + 1e-8)
    share = torch.where((maps.known > 0) & (total > 0), share, 1.0)
    return maps.anchor + share * change


def _embed(t: Float[Tensor, "B"]) -> Float[Tensor, "B 64"]:
    frequency = torch.exp(-math.log(1000.0) * torch.arange(32, device=t.device) / 32)
    angle = t[:, None] * 1000 * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
