"""Smooth curves through camera poses: quaternions (w, x, y, z) and Hermite segments, in float64.

Every function commutes with a rigid motion of the world: positions are combined affinely and
rotations through rates in the camera's own frame, which no motion of the world can see.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

TINY = 1e-12


def quaternions(R: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n 4"]:
    """Unit quaternions of rotation matrices, from the largest of the four squared components.

    Source: Shepperd 1978, Quaternion from rotation matrix.
    """
    r00, r11, r22 = R[:, 0, 0], R[:, 1, 1], R[:, 2, 2]
    a, b, c = R[:, 2, 1], R[:, 0, 2], R[:, 1, 0]  # below the diagonal, cyclic
    d, e, f = R[:, 1, 2], R[:, 2, 0], R[:, 0, 1]
    columns = torch.stack(
        [
            torch.stack([1 + r00 + r11 + r22, a - d, b - e, c - f], dim=-1),
            torch.stack([a - d, 1 + r00 - r11 - r22, c + f, b + e], dim=-1),
            torch.stack([b - e, c + f, 1 - r00 + r11 - r22, a + d], dim=-1),
            torch.stack([c - f, b + e, a + d, 1 - r00 - r11 + r22], dim=-1),
        ],
        dim=1,
    )
    best = columns.diagonal(dim1=1, dim2=2).argmax(dim=1)
    return torch.nn.functional.normalize(columns[torch.arange(len(R)), best], dim=-1)


def matrices(q: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3 3"]:
    """Rotation matrices of unit quaternions."""
    w, x, y, z = q.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def times_quaternion(p: Float[Tensor, "*n 4"], q: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Hamilton product `p q`: first `q`, then `p`."""
    w = p[..., :1] * q[..., :1] - (p[..., 1:] * q[..., 1:]).sum(-1, keepdim=True)
    v = p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:]
    return torch.cat([w, v + torch.linalg.cross(p[..., 1:], q[..., 1:], dim=-1)], dim=-1)


def conjugate(q: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    return torch.cat([q[..., :1], -q[..., 1:]], dim=-1)


def exp(vector: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 4"]:
    """The quaternion of a rotation vector (axis x angle, radians)."""
    half = vector / 2
    angle = half.norm(dim=-1, keepdim=True)
    return torch.cat([angle.cos(), half * torch.sinc(angle / torch.pi)], dim=-1)


def log(q: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 3"]:
    """The rotation vector of a unit quaternion, the shorter way round: at most pi long."""
    q = torch.where(q[..., :1] < 0, -q, q)
    sine = q[..., 1:].norm(dim=-1, keepdim=True)
    half = torch.atan2(sine, q[..., :1])
    return 2 * q[..., 1:] * torch.where(sine > TINY, half / sine.clamp_min(TINY), 1.0)


def slerp(
    p: Float[Tensor, "n 4"], q: Float[Tensor, "n 4"], s: Float[Tensor, "n"]
) -> Float[Tensor, "n 4"]:
    """From `p` (s = 0) to `q` (s = 1) along the great arc, the shorter way.

    Source: Shoemake 1985, Animating rotation with quaternion curves.
    """
    return times_quaternion(p, exp(s[:, None] * log(times_quaternion(conjugate(p), q))))


def turns(R: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n-1"]:
    """Angle in radians between each rotation and the next."""
    q = quaternions(R)
    return log(times_quaternion(conjugate(q[:-1]), q[1:])).norm(dim=-1)


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
