"""Damage done to tuples while training: what registration and sensors leave over in real captures.

Tuples are made once and are better registered than a handheld capture ever is, so the network would
learn to trust every reference to a fraction of a pixel. Here each reference is moved by a smooth
field of its own, the truth by one more (the target's own pose error), exposure and noise differ by
reference, and a part of the crops is enlarged and paled, as a 640x480 frame is smoother than a
rendered one of 160x160. The anchor, being a mean of the references, follows them to first order.
Colours are inverted and exchanged at random: what is added must not depend on which colour it is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from worldstereo._mini.inputs import MiniInputs, reference_weights


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """How much is left over; lengths in pixels of the crop."""

    moved: float = 0.6
    """Share of the crops whose references are moved at all."""
    drift: float = 0.6
    """Median displacement in a moved crop of a reference seen from 0.1 rad away. What depth and
    pose leave over grows with that angle; the truth moves half as far as its nearest reference."""
    exact: float = 0.45
    """Share of the crops whose references show the truth itself, but for being interpolated. There
    the anchor is only softer than the truth, and what is right must be sharpened, not blurred."""
    exposure: float = 0.03
    """Standard deviation of a reference's log gain."""
    noise: float = 0.015
    """Largest standard deviation of the pixel noise; colours in [-1, 1]."""
    enlarged: float = 0.15
    """Share of the crops enlarged by up to 2."""
    pale: float = 0.6
    """Share of the crops whose contrast is lowered to as little as a fifth."""


def damaged(
    maps: MiniInputs, truth: Tensor, closeness: Tensor, how: Leftover, g: torch.Generator
) -> tuple[MiniInputs, Tensor, Tensor]:
    """The batch with references, anchor and truth moved apart; shapes stay, inputs are not changed.

    Args:
        maps: a batch, colours in [-1, 1].
        truth: (B, 3, H, W) true colour.
        closeness: (B, 1, H, W) true closeness, moved with the truth.
        g: every draw comes from it; it lives where the batch does.
    """
    B, R, _, H, W = maps.references.shape
    exact = torch.rand(B, generator=g, device=g.device) < how.exact
    maps = _exact(maps, truth, exact, g)
    maps, truth = _toned(maps, truth, how, g)
    length = how.drift * torch.exp(0.9 * torch.randn(B, generator=g, device=g.device))
    length = length * (torch.rand(B, generator=g, device=g.device) < how.moved)
    length = torch.where(exact, 0.2 * length, length)
    away = _apart(maps.references)
    own = _smooth(B * R, (H, W), g) * (length[:, None] * away).flatten()[:, None, None, None]
    flat = maps.references.flatten(0, 1)
    rest = _moved(flat[:, 3:], own, "nearest")
    painted = flat[:, :3] + (flat[:, 3:4] <= 0) * maps.anchor.repeat_interleave(R, 0)
    references = torch.cat([_moved(painted, own, "bicubic"), rest], 1).unflatten(0, (B, R))
    valid = references[:, :, 3:4] > 0
    gain = torch.exp(how.exposure * torch.randn(B, R, 1, 1, 1, generator=g, device=g.device))
    grain = how.noise * torch.rand(B, 1, 1, 1, 1, generator=g, device=g.device)
    grain = grain * torch.randn(B, R, 3, H, W, generator=g, device=g.device)
    color = ((references[:, :, :3] + 1) * gain - 1 + grain).clamp(-1, 1) * valid
    references = torch.cat([color, references[:, :, 3:] * valid], 2)
    both = valid & (maps.references[:, :, 3:4] > 0)
    weight = _weights(maps.references) * both
    change = (weight * (color - maps.references[:, :, :3])).sum(1) * maps.known
    there = 0.5 * (length * away.amin(1))[:, None, None, None] * _smooth(B, (H, W), g)
    truth, closeness = _moved(truth, there, "bicubic").clamp(-1, 1), _moved(closeness, there)
    maps = maps._replace(
        anchor=(maps.anchor + change).clamp(-1, 1),
        splat=_moved(maps.splat, own.unflatten(0, (B, R)).mean(1)),
        references=references,
    )
    maps = maps._replace(splat=maps.splat * (maps.splat[:, 3:] > 0.5))
    return maps, truth, closeness


def _weights(references: Float[Tensor, "B R 6 H W"]) -> Float[Tensor, "B R 1 H W"]:
    """Shares of the references in the weight-free blend; 0 where nothing corresponds."""
    weight = reference_weights(references)
    return weight / weight.sum(1, keepdim=True).clamp_min(1e-3)


def _exact(maps: MiniInputs, truth: Tensor, chosen: Tensor, g: torch.Generator) -> MiniInputs:
    """The chosen crops as perfect depth and poses would show them: each reference is the truth,
    interpolated once; the anchor is their mean where one corresponds, else what it was."""
    pick = chosen.nonzero().flatten()
    if len(pick) == 0:
        return maps
    held = maps.references[pick]
    (n, R), (H, W) = held.shape[:2], held.shape[-2:]
    there = 2 * torch.rand(n * R, 2, 1, 1, generator=g, device=g.device) - 1
    there = there + 0.5 * _smooth(n * R, (H, W), g)
    source = _moved(truth[pick].repeat_interleave(R, 0), -there, "bicubic")
    color = _moved(source, there).unflatten(0, (n, R))
    valid = held[:, :, 3:4] > 0
    mean = (_weights(held) * color).sum(1)
    shown = maps.known[pick] * valid.any(1)
    anchor, references = maps.anchor.clone(), maps.references.clone()
    anchor[pick] = torch.where(shown > 0, mean, maps.anchor[pick]).clamp(-1, 1)
    references[pick] = torch.cat([color.clamp(-1, 1) * valid, held[:, :, 3:]], 2)
    return maps._replace(anchor=anchor, references=references)


def _apart(references: Float[Tensor, "B R 6 H W"]) -> Float[Tensor, "B R"]:
    """How far each reference may be displaced: 1 at 0.1 rad from the target, and where unknown."""
    valid = (references[:, :, 3] > 0).float()
    count = valid.sum((2, 3))
    angle = (references[:, :, 4].abs() * valid).sum((2, 3)) / count.clamp_min(1)
    return torch.where(count > 0, 0.15 + 0.85 * (angle / 0.1).clamp_max(3), 1.0)


def _toned(maps: MiniInputs, truth: Tensor, how: Leftover, g: torch.Generator):  # noqa: ANN202
    """Contrast, sign and order of the channels changed alike in everything that has a colour."""
    B = len(truth)
    lower = torch.rand(B, generator=g, device=g.device) < how.pale
    contrast = torch.where(lower, 0.2 + 0.8 * torch.rand(B, generator=g, device=g.device), 1.0)
    room = (1 - contrast)[:, None].expand(B, 3)
    middle = room * (2 * torch.rand(B, 3, generator=g, device=g.device) - 1)
    sign = torch.where(torch.rand(B, generator=g, device=g.device) < 0.5, -1.0, 1.0)
    scale = (contrast * sign)[:, None, None, None]
    middle = middle[:, :, None, None]
    order = torch.stack([torch.randperm(3, generator=g, device=g.device) for _ in range(B)])

    def tone(x: Tensor) -> Tensor:
        return torch.stack([one[p] for one, p in zip(x, order, strict=True)]) * scale + middle

    valid = maps.references[:, :, 3:4] > 0
    shown = torch.stack([tone(x) for x in maps.references[:, :, :3].unbind(1)], 1) * valid
    maps = maps._replace(
        anchor=tone(maps.anchor),
        splat=torch.cat([tone(maps.splat[:, :3]) * maps.splat[:, 3:], maps.splat[:, 3:]], 1),
        references=torch.cat([shown, maps.references[:, :, 3:]], 2),
    )
    return maps, tone(truth)


def _smooth(n: int, size: tuple[int, int], g: torch.Generator) -> Float[Tensor, "n 2 H W"]:
    """Displacements that vary over a third of the crop; their median length is about 1."""
    whole = torch.randn(n, 2, 1, 1, generator=g, device=g.device)
    local = torch.randn(n, 2, 4, 4, generator=g, device=g.device)
    return F.interpolate(0.7 * whole + 0.5 * local, size, mode="bicubic", align_corners=True)


def _moved(
    x: Float[Tensor, "n c H W"], by: Float[Tensor, "n 2 H W"], mode: str = "bilinear"
) -> Float[Tensor, "n c H W"]:
    """What is found `by` pixels away, the border repeated.

    Colours are moved bicubically: bilinear would blur the truth, and teach to blur. Agreement and
    angle are those of the nearest pixel, so that no border is half valid.
    """
    H, W = x.shape[-2:]
    rows = torch.linspace(-1, 1, H, device=x.device)[None, :, None] + by[:, 1] * (2 / (H - 1))
    columns = torch.linspace(-1, 1, W, device=x.device)[None, None, :] + by[:, 0] * (2 / (W - 1))
    grid = torch.stack([columns, rows], -1)
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=True)


WHOLE_NUMBERS = ("known", "bins")


def enlarged(batch: dict[str, Tensor], crop: int) -> dict[str, Tensor]:
    """Packed maps of a smaller crop at `crop` pixels: colours bicubic, masks and classes nearest.

    Agreement of a reference is kept from the nearest pixel, so that no border is half valid.
    """
    if batch["truth"].shape[-1] == crop:
        return batch
    out = {}
    for name, maps in batch.items():
        flat = maps.float().reshape(-1, 1, *maps.shape[-2:])
        if name in WHOLE_NUMBERS or name == "reference_rest":
            big = F.interpolate(flat, (crop, crop), mode="nearest")
        else:
            big = F.interpolate(flat, (crop, crop), mode="bicubic", align_corners=False)
        big = big.round().clamp(0, 255) if not maps.is_floating_point() else big
        out[name] = big.reshape(*maps.shape[:-2], crop, crop).to(maps.dtype)
    return out
