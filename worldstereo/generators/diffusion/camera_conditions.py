"""Cameras as the published checkpoints want them: normalised paths, rays, pose vectors.

Everything here takes `w2c` (F, 4, 4), OpenCV axes, and `K` (F, 3, 3) in pixels; float32 as in the
release. The numerics of the release are kept, oddities included, because the weights were trained
with them; each is named where it happens.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def normalize_trajectory(
    w2c: Float[Tensor, "F 4 4"], camera_scale: float | int = 2.0, legacy: bool = False
) -> Float[Tensor, "F 4 4"]:
    """The path as seen from its first camera, centred, with that camera at `camera_scale`.

    The first rotation becomes the identity. `legacy` multiplies on the other side; its result
    only ever reached an argument that the model ignores.
    """
    return unified_normalize(w2c, None, camera_scale, legacy)[0]


def unified_normalize(
    w2c: Float[Tensor, "F 4 4"],
    w2c_ref: Float[Tensor, "N 4 4"] | None,
    camera_scale: float | int = 2.0,
    legacy: bool = False,
) -> tuple[Float[Tensor, "F 4 4"], Float[Tensor, "N 4 4"]]:
    """Targets and references in the frame of the first target.

    Centre and scale come from the targets alone and serve both lists.
    """
    _check_poses("w2c", w2c)
    references = w2c[:0] if w2c_ref is None else w2c_ref
    _check_poses("w2c_ref", references)
    w2c, references = w2c.float(), references.float()
    first = torch.linalg.inv(w2c[0])
    c2w = torch.linalg.inv(first @ w2c if legacy else w2c @ first)
    c2w_ref = torch.linalg.inv(first @ references if legacy else references @ first)

    middle = c2w[:, :3, 3].median(dim=0).values  # the lower middle one for even counts
    away = (c2w[:, :3, 3] - middle).norm(dim=-1)
    limit = min(10 * float(torch.quantile(away, 0.97)), 1e6)
    centre = c2w[away <= limit, :3, 3].mean(dim=0)
    distance = float((c2w[0, :3, 3] - centre).norm())
    scale = camera_scale if distance < 1e-5 else camera_scale / distance

    out = []
    for poses in (c2w, c2w_ref):
        poses = poses.clone()
        poses[:, :3, 3] -= centre
        poses = torch.linalg.inv(poses)
        poses[:, :3, 3] *= scale
        out.append(poses)
    return out[0], out[1]


def scale_intrinsics(
    K: Float[Tensor, "*B 3 3"], source: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "*B 3 3"]:
    """`K` after a picture of `source` (height, width) is stretched to `size`; each axis alone."""
    factor = torch.tensor([size[1] / source[1], size[0] / source[0], 1.0])
    return K * factor.to(K)[:, None]


def plucker_rays(
    K: Float[Tensor, "F 3 3"], w2c: Float[Tensor, "F 4 4"], height: int, width: int
) -> Float[Tensor, "1 6 F H W"]:
    """Direction, then moment (origin x direction), of every pixel's ray; zeros if not finite.

    `K` must be in pixels of height x width. To feed a model, normalise `w2c` first.
    """
    try:
        origins, directions = camera_rays(K, w2c, height, width)
        rays = torch.cat([directions, torch.linalg.cross(origins, directions, dim=-1)], dim=-1)
    except torch.linalg.LinAlgError:  # a singular K or pose has no finite inverse
        rays = torch.full((len(w2c), height * width, 6), torch.nan, device=K.device)
    if not bool(torch.isfinite(rays).all()):
        rays = torch.zeros_like(rays)
    return rays.reshape(len(w2c), height, width, 6).permute(3, 0, 1, 2)[None]


def camera_rays(
    K: Float[Tensor, "F 3 3"], w2c: Float[Tensor, "F 4 4"], height: int, width: int
) -> tuple[Float[Tensor, "F P 3"], Float[Tensor, "F P 3"]]:
    """Origins and unit directions of all pixels, row by row.

    The column offset is minus one half and the row offset plus one half: not where pixel centres
    are, but what the weights were trained with.

    Raises:
        ValueError: height or width is below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}.")
    K, c2w = K.float(), torch.linalg.inv(w2c.float())
    rows = torch.arange(height, dtype=K.dtype, device=K.device) + 0.5
    columns = torch.arange(width, dtype=K.dtype, device=K.device) - 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)
    directions = pixels @ torch.linalg.inv(K).mT @ c2w[:, :3, :3].mT
    directions = directions / directions.norm(dim=-1, keepdim=True)
    return c2w[:, None, :3, 3].expand_as(directions), directions


def quaternions(R: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 4"]:
    """Rotations as (w, x, y, z) with w >= 0, from the largest component of each.

    Source: Shepperd 1978, "Quaternion from rotation matrix".
    """
    m = R.unbind(-2)
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(-1) for row in m)
    squares = torch.stack(
        [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], dim=-1
    )
    twice = squares.clamp_min(0).sqrt()  # 2 |w|, 2 |x|, 2 |y|, 2 |z|
    w, x, y, z = (twice[..., i] ** 2 for i in range(4))
    candidates = torch.stack(
        [
            torch.stack([w, m21 - m12, m02 - m20, m10 - m01], dim=-1),
            torch.stack([m21 - m12, x, m10 + m01, m02 + m20], dim=-1),
            torch.stack([m02 - m20, m10 + m01, y, m12 + m21], dim=-1),
            torch.stack([m10 - m01, m20 + m02, m21 + m12, z], dim=-1),
        ],
        dim=-2,
    )
    candidates = candidates / (2 * twice[..., None].clamp_min(0.1))
    best = twice.argmax(dim=-1)[..., None, None].expand(*twice.shape[:-1], 1, 4)
    found = candidates.gather(-2, best).squeeze(-2)
    return torch.where(found[..., :1] < 0, -found, found)


def pose_vectors(
    w2c: Float[Tensor, "F 4 4"], w2c_ref: Float[Tensor, "N 4 4"], camera_scale: float | int = 2.0
) -> tuple[Float[Tensor, "1 F 7"], Float[Tensor, "1 N 7"]]:
    """(qw, qx, qy, qz, tx, ty, tz) of targets and references after the unified normalisation."""
    found = unified_normalize(w2c, w2c_ref, camera_scale)
    target, reference = (
        torch.cat([quaternions(poses[:, :3, :3]), poses[:, :3, 3]], dim=-1)[None] for poses in found
    )
    return target, reference


def keyframe_indices(count: int, keyframes: int) -> list[int]:
    """Which of `count` cameras or guide frames the model sees: evenly spaced, truncated.

    Raises:
        ValueError: one of the two is below 1.
    """
    if count < 1 or keyframes < 1:
        raise ValueError(f"count and keyframes must be at least 1, got {count} and {keyframes}.")
    if count <= keyframes:
        return list(range(count))
    return torch.linspace(0, count - 1, keyframes, dtype=torch.float64).long().tolist()


def _check_poses(name: str, poses: Tensor) -> None:
    if poses.ndim != 3 or tuple(poses.shape[1:]) != (4, 4):
        raise ValueError(f"{name} must have shape (frames, 4, 4), got {tuple(poses.shape)}.")
    if name == "w2c" and len(poses) == 0:
        raise ValueError("w2c must hold at least one camera, got none.")
    bad = torch.nonzero(~torch.isfinite(poses).flatten(1).all(dim=1)).flatten()
    if len(bad) > 0:
        raise ValueError(f"{name}[{int(bad[0])}] holds a number that is not finite.")
