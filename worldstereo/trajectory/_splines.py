"""Smooth curves through camera poses: Hermite segments, in float64.

Every function commutes with a rigid motion of the world: positions are combined affinely and
rotations through rates in the camera's own frame, which no motion of the world can see.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnnecessaryIsInstance=false
# torch's own stubs leave much unknown; run-time checks of argument types stay.

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldstereo.rotations import (
    conjugate,
    exp,
    log,
    matrices,
    quaternions,
    slerp,
    times_quaternion,
)


def sample(
    knots: Float[Tensor, "n"],
    values: Float[Tensor, "n d"],
    R: Float[Tensor, "n 3 3"],
    at: Float[Tensor, "m"],
    *,
    closed: bool = False,
    smooth: bool = True,
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m 3 3"]]:
    """Values and rotations at the parameters `at`, which lie within the strictly rising `knots`.

    `smooth` gives C1 curves through every key: Catmull-Rom with the knots' own spacing for values
    (centripetal when the knots are), and Bezier segments of quaternions for rotations whose end
    rates follow the same rule. Otherwise straight lines and great arcs. With `closed` the last key
    repeats the first and the rates join there.

    Source: Barry & Goldman 1988 (Catmull-Rom with knots); Shoemake 1985 (quaternion Bezier).
    """
    q = quaternions(R)
    if len(knots) == 1:
        return values.expand(len(at), -1).clone(), R.expand(len(at), 3, 3).clone()
    i = (torch.searchsorted(knots, at, right=True) - 1).clamp(0, len(knots) - 2)
    h = knots[1:] - knots[:-1]
    s = (at - knots[i]) / h[i]
    if not smooth or len(knots) == 2:
        moved = values[i] + s[:, None] * (values[i + 1] - values[i])
        return moved, matrices(slerp(q[i], q[i + 1], s))
    slope = (values[1:] - values[:-1]) / h[:, None]
    spin = log(times_quaternion(conjugate(q[:-1]), q[1:])) / h[:, None]
    m, w = _rates(slope, h, closed), _rates(spin, h, closed)
    return _hermite(values, m, h, i, s), matrices(_bezier(q, w, h, i, s))


def _rates(step: Float[Tensor, "n d"], h: Float[Tensor, "n"], closed: bool) -> Tensor:
    """Rate at each of the n + 1 keys from the mean rate of the n segments beside it."""
    a, b, ha, hb = step[:-1], step[1:], h[:-1, None], h[1:, None]
    inner = (a * hb + b * ha) / (ha + hb)
    if closed:
        seam = (step[-1] * h[0] + step[0] * h[-1]) / (h[0] + h[-1])
        return torch.cat([seam[None], inner, seam[None]])
    # natural ends: the second derivative vanishes there
    first, last = 1.5 * step[0] - 0.5 * inner[0], 1.5 * step[-1] - 0.5 * inner[-1]
    return torch.cat([first[None], inner, last[None]])


def _hermite(
    values: Float[Tensor, "n d"],
    rates: Float[Tensor, "n d"],
    h: Float[Tensor, "k"],
    i: Int[Tensor, "m"],
    s: Float[Tensor, "m"],
) -> Float[Tensor, "m d"]:
    s, width = s[:, None], h[i, None]
    ease = s * s * (3 - 2 * s)
    bend = (1 - s) * width * rates[i] - s * width * rates[i + 1]
    return values[i] + ease * (values[i + 1] - values[i]) + s * (1 - s) * bend


def _bezier(
    q: Float[Tensor, "n 4"],
    rates: Float[Tensor, "n 3"],
    h: Float[Tensor, "k"],
    i: Int[Tensor, "m"],
    s: Float[Tensor, "m"],
) -> Float[Tensor, "m 4"]:
    """De Casteljau on the sphere of quaternions."""
    third = h[i, None] / 3
    row = [
        q[i],
        times_quaternion(q[i], exp(third * rates[i])),
        times_quaternion(q[i + 1], exp(-third * rates[i + 1])),
        q[i + 1],
    ]
    while len(row) > 1:
        row = [slerp(a, b, s) for a, b in zip(row[:-1], row[1:], strict=True)]
    return torch.nn.functional.normalize(row[0], dim=-1)
