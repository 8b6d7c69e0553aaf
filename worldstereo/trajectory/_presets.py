"""Camera moves relative to a view: name, range and the poses as a function of one number.

Directions are the viewer's: positive is right, up, closer, or around to the right. Each move
starts exactly at the given pose. All are built from the pose, the pivot and `up` alone, so a rigid
motion of all three moves the result with them.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnnecessaryIsInstance=false
# torch's own stubs leave much unknown; run-time checks of argument types stay.

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from worldstereo.rotations import exp, matrices, quaternions

Moved = tuple[Tensor, Tensor]
"""Rotations (n, 3, 3) and positions (n, 3)."""


@dataclass(frozen=True)
class Parameter:
    """The one number of a preset, as a slider shows it."""

    label: str
    unit: str
    """"deg", "%" (of the distance to the pivot) or "x"."""
    min: float
    max: float
    default: float
    """The value at `amount = 1`."""


@dataclass(frozen=True)
class Preset:
    """A camera move that needs no drawing."""

    name: str
    description: str
    parameter: Parameter

    def value(self, amount: float) -> float:
        """The parameter at a strength: 0 stands still, 1 is the default, -1 goes the other way."""
        if self.parameter.unit == "x":
            return self.parameter.default**amount
        return self.parameter.default * amount


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "orbit",
            "Circle around the pivot and keep looking at it.",
            Parameter("Angle", "deg", -360.0, 360.0, 40.0),
        ),
        Preset(
            "dolly",
            "Move towards the pivot (negative: away from it).",
            Parameter("Way", "%", -100.0, 95.0, 30.0),
        ),
        Preset(
            "truck",
            "Slide to the right without turning.",
            Parameter("Way", "%", -100.0, 100.0, 30.0),
        ),
        Preset(
            "crane",
            "Rise and keep the pivot in view.",
            Parameter("Height", "%", -100.0, 100.0, 30.0),
        ),
        Preset(
            "pan",
            "Turn to the right on the spot.",
            Parameter("Angle", "deg", -360.0, 360.0, 45.0),
        ),
        Preset(
            "tilt",
            "Look up on the spot.",
            Parameter("Angle", "deg", -90.0, 90.0, 20.0),
        ),
        Preset(
            "spiral",
            "Two widening and closing turns around the line of sight, back to the start.",
            Parameter("Radius", "%", -50.0, 50.0, 12.0),
        ),
        Preset(
            "zoom",
            "Change the focal length and stay in place.",
            Parameter("Factor", "x", 0.25, 4.0, 1.6),
        ),
        Preset(
            "look_around",
            "Look right, left, up and down on the spot, back to the start.",
            Parameter("Angle", "deg", -90.0, 90.0, 25.0),
        ),
    )
}

Move = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def move(
    name: str,
    c2w: Float[Tensor, "4 4"],
    pivot: Float[Tensor, "3"],
    up: Float[Tensor, "3"],
    s: Float[Tensor, "n"],
    value: float,
) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3"], Float[Tensor, "n"]]:
    """Rotations, positions and factors of the focal length at the parameters `s` in [0, 1]."""
    if name == "zoom":
        return *_stay(c2w, s), torch.tensor(value, dtype=s.dtype) ** s
    return *_MOVES[name](c2w, pivot, up, s, value), torch.ones_like(s)


def _turn(axis: Float[Tensor, "3"], angle: Float[Tensor, "n"]) -> Float[Tensor, "n 3 3"]:
    return matrices(exp(angle[:, None] * axis))


def _stay(c2w: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return c2w[:3, :3].expand(len(s), 3, 3), c2w[:3, 3].expand(len(s), 3)


def _toward(direction: Tensor, moved: Tensor) -> Tensor:
    """The smallest rotations that turn one direction into the others, (n, 3, 3)."""
    a, b = direction / direction.norm(), moved / moved.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    cross = torch.linalg.cross(a.expand_as(b), b, dim=-1)
    w = 1 + (a * b).sum(-1, keepdim=True)
    q = torch.nn.functional.normalize(torch.cat([w, cross], dim=-1), dim=-1)
    still = torch.zeros_like(q)
    still[:, 0] = 1
    return matrices(torch.where(w > 1e-9, q, still))  # opposite: no smallest one, do not turn


def _orbit(c2w: Tensor, pivot: Tensor, up: Tensor, s: Tensor, value: float) -> Moved:
    R = _turn(up, s * math.radians(value))
    return R @ c2w[:3, :3], pivot + (R @ (c2w[:3, 3] - pivot))


def _dolly(c2w: Tensor, pivot: Tensor, up: Tensor, s: Tensor, value: float) -> Moved:
    R, x = _stay(c2w, s)
    return R, x + s[:, None] * (value / 100) * (pivot - x)


def _truck(c2w: Tensor, pivot: Tensor, up: Tensor, s: Tensor, value: float) -> Moved:
    R, x = _stay(c2w, s)
    return R, x + s[:, None] * (value / 100) * (pivot - x).norm(dim=-1, keepdim=True) * c2w[:3, 0]


def _crane(c2w: Tensor, pivot: Tensor, up: Tensor, s: Tensor, value: float) -> Moved:
    way = pivot - c2w[:3, 3]
    x = c2w[:3, 3] + s[:, None] * (value / 100) * way.norm() * up
    return _toward(way, pivot - x) @ c2w[:3, :3], x


def _pan(c2w: Tensor, pivot: Tensor, up: Tensor, s: Tensor, value: float) -> Moved:
    R, x = _stay(c2w, s)
    return _turn(up, -s * math.radians(value)) @ R, x


def _tilt(c2w: Tensor, pivot: Tensor, up: Tensor, s: Tensor, value: float) -> Moved:
    R, x = _stay(c2w, s)
    return _turn(c2w[:3, 0], s * math.radians(value)) @ R, x


def _spiral(c2w: Tensor, pivot: Tensor, up: Tensor, s: Tensor, value: float) -> Moved:
    way = pivot - c2w[:3, 3]
    radius = (value / 100) * way.norm() * torch.sin(math.pi * s)
    right, down = c2w[:3, 0], c2w[:3, 1]
    angle = 4 * math.pi * s
    across = angle.cos()[:, None] * right - angle.sin()[:, None] * down
    x = c2w[:3, 3] + radius[:, None] * across
    return _toward(way, pivot - x) @ c2w[:3, :3], x


def _look_around(c2w: Tensor, pivot: Tensor, up: Tensor, s: Tensor, value: float) -> Moved:
    R, x = _stay(c2w, s)
    angle = math.radians(value)
    side = _turn(up, -angle * torch.sin(2 * math.pi * s))
    rise = _turn(c2w[:3, 0], angle / 2 * torch.sin(4 * math.pi * s))
    return side @ rise @ R, x


_MOVES: dict[str, Move] = {
    "orbit": _orbit,
    "dolly": _dolly,
    "truck": _truck,
    "crane": _crane,
    "pan": _pan,
    "tilt": _tilt,
    "spiral": _spiral,
    "look_around": _look_around,
}


def straightened(R: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n 3 3"]:
    """The same rotations, orthonormal to the last bit that their type holds."""
    return matrices(quaternions(R))
