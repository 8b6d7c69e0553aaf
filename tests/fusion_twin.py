"""The kernels of `fusion` once more in plain torch: the oracle of tests, and batched on CUDA.

Same conventions as the compiled loops (array indices, disparity, u); results agree within
float32 rounding, except where rounding moves a sample across a limit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from worldstereo.views.fusion import WIDE

EMPTY = 1e30


def surfel_warp(
    d: Tensor,
    gx: Tensor,
    gy: Tensor,
    Kr: Tensor,
    Kt: Tensor,
    T: Tensor,
    size: tuple[int, int],
    *,
    half: float,
    max_stretch: float,
    min_area: float,
    near: float,
) -> Tensor:
    """(H, W) z-buffer of planar patches, `EMPTY` where none fell. Cost: pixels x largest patch."""
    H, W = d.shape
    high, wide = size
    y, x = torch.meshgrid(
        torch.arange(H, device=d.device, dtype=torch.float64),
        torch.arange(W, device=d.device, dtype=torch.float64),
        indexing="ij",
    )
    known = d > 0
    c, a, b, x, y = (v[known].double() for v in (d, gx, gy, x, y))
    fx, fy, cx, cy = Kr.tolist()
    ux, uy, vx, vy = Kt.tolist()
    rays = torch.stack([(x - cx) / fx, (y - cy) / fy, torch.ones_like(x)], -1)
    T = T.to(rays)
    q = rays @ T[:, :3].mT + T[:, 3] * c[:, None]
    iz = 1 / q[:, 2]
    px, py = ux * q[:, 0] * iz + vx, uy * q[:, 1] * iz + vy
    du = T[:, 0] / fx + T[:, 3] * a[:, None]
    dv = T[:, 1] / fy + T[:, 3] * b[:, None]
    jxu = ux * (du[:, 0] - q[:, 0] * iz * du[:, 2]) * iz
    jxv = ux * (dv[:, 0] - q[:, 0] * iz * dv[:, 2]) * iz
    jyu = uy * (du[:, 1] - q[:, 1] * iz * du[:, 2]) * iz
    jyv = uy * (dv[:, 1] - q[:, 1] * iz * dv[:, 2]) * iz
    facing = (ux * uy) ** 0.5 / (fx * fy) ** 0.5 * iz
    det = jxu * jyv - jxv * jyu
    ex, ey = (jxu.abs() + jxv.abs()) * half, (jyu.abs() + jyv.abs()) * half
    good = (q[:, 2] > near * c) & (det > min_area * facing * facing)
    good &= torch.maximum(ex, ey) <= max_stretch * half * facing
    x0, x1 = (px - ex).ceil().clamp_min(0), (px + ex).floor().clamp_max(wide - 1)
    y0, y1 = (py - ey).ceil().clamp_min(0), (py + ey).floor().clamp_max(high - 1)
    good &= (x1 >= x0) & (y1 >= y0)
    out = torch.full((high * wide,), EMPTY, device=d.device)
    if not bool(good.any()):
        return out.reshape(high, wide)
    columns = int((x1 - x0)[good].max()) + 1
    rows = int((y1 - y0)[good].max()) + 1
    for j in range(rows):
        for i in range(columns):
            use = good & (x0 + i <= x1) & (y0 + j <= y1)
            xx, yy = (x0 + i)[use], (y0 + j)[use]
            ox, oy, inverse = xx - px[use], yy - py[use], 1 / det[use]
            s = (jyv[use] * ox - jxv[use] * oy) * inverse
            t = (jxu[use] * oy - jyu[use] * ox) * inverse
            dd = c[use] + a[use] * s + b[use] * t
            z = (q[use, 2] + du[use, 2] * s + dv[use, 2] * t) / dd
            hit = (s.abs() <= half) & (t.abs() <= half) & (dd > 1e-3 * c[use]) & (z > near)
            at = (yy * wide + xx).long()[hit]
            out.scatter_reduce_(0, at, z[hit].float(), "amin")
    return out.reshape(high, wide)


def fuse_depth(
    Z: Tensor,
    weight: Tensor,
    vote: Tensor,
    min_depth_3x3: list[Tensor],
    Kr: Tensor,
    back: Tensor,
    Kt: Tensor,
    *,
    tau: float,
    free: float,
    near: float,
    steep: Tensor | None = None,
    least: float = 0.0,
) -> Tensor:
    """Front-most supported hypothesis per pixel; see the compiled loop for the arguments."""
    n, H, W = Z.shape
    z, order = Z.double().sort(dim=0, stable=True)
    w = weight.double()[order]
    count = (z < EMPTY).sum(0)
    rank = torch.arange(n, device=Z.device)[:, None, None]
    steep = torch.zeros(n, device=Z.device) if steep is None else steep
    said = w * _said_by(z, back[order], steep.double()[order], Kt)
    said = torch.where(z < EMPTY, said, 0)
    start = torch.zeros(H, W, dtype=torch.long, device=Z.device)
    best = torch.zeros(H, W, dtype=torch.float64, device=Z.device)
    best_score = torch.full_like(best, -1e30)
    done = count == 0
    while not bool(done.all()):
        front = z.gather(0, start.clamp_max(n - 1)[None])[0]
        member = (rank >= start) & (rank < count) & (z <= front * (1 + tau))
        sw = (w * member).sum(0)
        mean = (w * torch.where(member, z, 0)).sum(0) / sw.clamp_min(1e-30)
        only = member.sum(0) == count
        share = (said * member).sum(0)
        sensed = (member & (steep[order] <= 0)).any(0)
        score = torch.where((share < least * said.sum(0)) & ~sensed, 0.0, sw)
        if free > 0:
            score = score - _looking_through(mean, vote, min_depth_3x3, Kr, back, Kt, free, near)
        better = ~done & (only | (score > best_score))
        best = torch.where(better, mean, best)
        best_score = torch.where(better, score, best_score)
        start = start + member.sum(0)
        done = done | only | (score > 0) | (start >= count)
    return best.float()


def _said_by(z: Tensor, back: Tensor, steep: Tensor, Kt: Tensor) -> Tensor:
    points = torch.stack([_points(plane, Kt) for plane in z])
    T = back.to(points)
    away = points + (T[..., :3].mT @ T[..., 3:])[..., 0]
    lengths = points.norm(dim=-1) * away.norm(dim=-1)
    cosine = (points * away).sum(-1) / lengths.clamp_min(1e-12)
    return 1 / (1 + 2 * steep**2 * (1 - cosine).clamp_min(0))


def _looking_through(
    z: Tensor,
    vote: Tensor,
    min_depth_3x3: list[Tensor],
    Kr: Tensor,
    back: Tensor,
    Kt: Tensor,
    free: float,
    near: float,
) -> Tensor:
    points = _points(z, Kt)
    out = torch.zeros_like(z)
    for i, low in enumerate(min_depth_3x3):
        q = points @ back[i, :, :3].to(z).mT + back[i, :, 3].to(z)
        u = (Kr[i, 0] * q[..., 0] / q[..., 2] + Kr[i, 2] + 0.5).floor()
        v = (Kr[i, 1] * q[..., 1] / q[..., 2] + Kr[i, 3] + 0.5).floor()
        h, w = low.shape
        ok = (q[..., 2] > near) & (u >= 1) & (v >= 1) & (u < w - 1) & (v < h - 1)
        seen = low[torch.where(ok, v, 0).long(), torch.where(ok, u, 0).long()]
        out = out + (ok & (seen > q[..., 2] * (1 + free))) * vote[i]
    return out


class Attended(NamedTuple):
    """What `attend` says about every pixel of a target."""

    confirms: Tensor
    """(H, W) bool."""
    pixels: Tensor
    """(H, W, 2) array indices in the view."""
    color: Tensor
    """(H, W, 3), 0..255."""
    agreement: Tensor
    """(H, W): stored confidence x depth agreement x border x edge."""
    weight: Tensor
    """(H, W): agreement times the falloff with the angle, for measured depth."""


def attend(
    target: Tensor,
    Kt: Tensor,
    color: Tensor,
    depth: Tensor,
    edge_distance: Tensor,
    trust: Tensor,
    K: Tensor,
    T: Tensor,
    *,
    agree: float,
    feather: float,
    near: float,
) -> Attended:
    """One view attended to from every pixel of a target of depth `target` (H, W)."""
    points = _points(target.double(), Kt)
    T = T.to(points)
    q = points @ T[:, :3].mT + T[:, 3]
    u, v = K[0] * q[..., 0] / q[..., 2] + K[2], K[1] * q[..., 1] / q[..., 2] + K[3]
    H, W = depth.shape
    ok = (target > 0) & (q[..., 2] > near) & (u >= 0) & (v >= 0) & (u <= W - 1) & (v <= H - 1)
    iu = torch.where(ok, u, 0).long().clamp_max(W - 2)
    iv = torch.where(ok, v, 0).long().clamp_max(H - 2)
    fu, fv = u - iu, v - iv
    total = torch.zeros_like(u)
    sums = torch.zeros(*u.shape, 5, dtype=u.dtype, device=u.device)
    nearest = torch.full_like(u, EMPTY)
    for b in (0, 1):
        for a in (0, 1):
            zn = depth[iv + b, iu + a].double()
            e = (zn - q[..., 2]).abs() / q[..., 2]
            use = ok & (zn > 0) & (e <= agree)
            w = ((fu if a else 1 - fu) * (fv if b else 1 - fv) + 1e-4) * use
            sample = torch.cat(
                [
                    color[iv + b, iu + a].double(),
                    edge_distance[iv + b, iu + a, None].double(),
                    trust[iv + b, iu + a, None].double(),
                ],
                -1,
            )
            sums += w[..., None] * sample
            total += w
            nearest = torch.where(use, torch.minimum(nearest, e), nearest)
    confirms = total > 0
    mean = sums / total.clamp_min(1e-30)[..., None]
    margin = torch.minimum(torch.minimum(u, v), torch.minimum(W - 1 - u, H - 1 - v))
    agreement = mean[..., 4] * torch.exp(-((nearest / (0.5 * agree)) ** 2))
    agreement = agreement * ((margin + 1) / feather).clamp_max(1)
    agreement = agreement * ((mean[..., 3] + 0.25) / 3).clamp_max(1)
    centre = -T[:, :3].mT @ T[:, 3]
    away = points - centre
    cosine = (points * away).sum(-1) / (points.norm(dim=-1) * away.norm(dim=-1)).clamp_min(1e-12)
    angle = cosine.clamp(-1, 1).acos()
    agreement = torch.where(confirms, agreement, 0.0)
    return Attended(
        confirms,
        torch.stack([u, v], -1),
        torch.where(confirms[..., None], mean[..., :3], 0.0),
        agreement,
        agreement / (1 + angle / WIDE) ** 6,
    )


def _points(z: Tensor, K: Tensor) -> Tensor:
    """(H, W, 3) points of a depth image in its own axes."""
    H, W = z.shape
    y = torch.arange(H, device=z.device, dtype=z.dtype)[:, None].expand(H, W)
    x = torch.arange(W, device=z.device, dtype=z.dtype)[None].expand(H, W)
    return torch.stack([(x - K[2]) / K[0] * z, (y - K[3]) / K[1] * z, z], -1)
