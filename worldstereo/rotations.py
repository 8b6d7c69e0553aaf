"""Rotations in float64: matrices, quaternions (w, x, y, z), rotation vectors (radians).

The rotation is that of `x_rotated = R @ x`; quaternions are of unit length.
"""

import torch
from jaxtyping import Float
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
