"""Pinhole cameras. OpenCV frame: +x right, +y down, +z forward.

Poses are `c2w = [R | t]`: `x_world = R @ x_cam + t`; extrinsics `w2c` are the inverse. `K` is
in pixels of the image, whose first pixel has its centre at (0.5, 0.5). Other conventions are
converted where they enter or leave (`inputs/`, `export.py`, `ui/viewport.py`) and nowhere else.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyright: reportUnnecessaryIsInstance=false
# torch's own stubs leave much unknown; run-time checks of argument types stay.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 1e-3  # how far R @ R.T may be off the identity, and det(R) off 1


@dataclass(frozen=True, eq=False)  # eq=False: tensors compare elementwise, values by identity
class Cameras:
    """One camera, or many that share an image size; batched over leading dimensions."""

    K: Float[Tensor, "*B 3 3"]
    c2w: Float[Tensor, "*B 4 4"]
    width: int
    height: int

    def __post_init__(self) -> None:
        _check_field("c2w", self.c2w, (4, 4))
        _check_field("K", self.K, (3, 3))
        if self.K.dtype != self.c2w.dtype or self.K.device != self.c2w.device:
            raise ValueError(
                f"K is {self.K.dtype} on {self.K.device} and c2w {self.c2w.dtype} on "
                f"{self.c2w.device}; both must be the same."
            )
        if self.K.shape[:-2] != self.c2w.shape[:-2]:
            raise ValueError(
                f"K has batch shape {tuple(self.K.shape[:-2])} and c2w "
                f"{tuple(self.c2w.shape[:-2])}; both must be the same."
            )
        for name, size in (("width", self.width), ("height", self.height)):
            if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
                raise ValueError(f"{name} must be a positive whole number of pixels, got {size!r}.")
        _check_intrinsics(self.K.reshape(-1, 3, 3))
        _check_poses(self.c2w.reshape(-1, 4, 4))

    # ---- shape -------------------------------------------------------------------------------

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return tuple(self.c2w.shape[:-2])

    def __len__(self) -> int:
        if self.c2w.ndim == 2:
            raise TypeError("a single camera has no length; index or stack a batch of cameras.")
        return self.c2w.shape[0]

    def __getitem__(self, index: Any) -> "Cameras":
        if self.c2w.ndim == 2:
            raise TypeError("a single camera cannot be indexed; it is the only one.")
        return _unchecked(self.K[index], self.c2w[index], self.width, self.height)

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras with their tensors on a device."""
        return _unchecked(self.K.to(device), self.c2w.to(device), self.width, self.height)

    @staticmethod
    def stack(cameras: Sequence["Cameras"]) -> "Cameras":
        """Cameras of one size and batch shape along a new first dimension.

        Raises:
            ValueError: none at all, or image sizes differ.
        """
        if len(cameras) == 0:
            raise ValueError("cameras must hold at least one camera, got none.")
        sizes = {(camera.width, camera.height) for camera in cameras}
        if len(sizes) > 1:
            raise ValueError(f"cameras must share one image size, got {sorted(sizes)}.")
        K, c2w = torch.stack([c.K for c in cameras]), torch.stack([c.c2w for c in cameras])
        return _unchecked(K, c2w, cameras[0].width, cameras[0].height)

    # ---- geometry ----------------------------------------------------------------------------

    @property
    def w2c(self) -> Float[Tensor, "*B 4 4"]:
        """World to camera. The inverse of a rigid transform: `[R.T | -R.T t]`."""
        R, t = self.c2w[..., :3, :3], self.c2w[..., :3, 3:]
        top = torch.cat([R.mT, -R.mT @ t], dim=-1)
        return torch.cat([top, self.c2w[..., 3:, :]], dim=-2)

    @property
    def position(self) -> Float[Tensor, "*B 3"]:
        return self.c2w[..., :3, 3]

    @property
    def forward(self) -> Float[Tensor, "*B 3"]:
        return self.c2w[..., :3, 2]

    @property
    def fov(self) -> Float[Tensor, "*B 2"]:
        """Horizontal and vertical field of view of each camera in radians, float64."""
        focal = self.K.diagonal(dim1=-2, dim2=-1)[..., :2].double()
        size = torch.tensor([self.width, self.height], dtype=torch.float64, device=focal.device)
        return 2 * torch.atan(size / 2 / focal)

    def project(
        self, points: Float[Tensor, "*B N 3"]
    ) -> tuple[Float[Tensor, "*B N 2"], Float[Tensor, "*B N"]]:
        """World points to pixels.

        Returns:
            Pixels, and depth along the optical axis in scene units. A point behind the camera
            keeps its negative depth and its pixel means nothing: look at depth first.

        Source: Hartley & Zisserman, Multiple View Geometry, 2nd ed., section 6.1.
        """
        R, t = self.c2w[..., :3, :3], self.c2w[..., None, :3, 3]
        x_cam = (points - t) @ R  # row vectors: R.T @ (x - t), transposed
        uvw = x_cam @ self.K.mT
        return uvw[..., :2] / uvw[..., 2:], x_cam[..., 2]

    def unproject(
        self, pixels: Float[Tensor, "*B N 2"], depth: Float[Tensor, "*B N"]
    ) -> Float[Tensor, "*B N 3"]:
        """Pixels with depth along the optical axis (scene units) to world points."""
        homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
        x_cam = (homogeneous @ torch.linalg.inv(self.K).mT) * depth[..., None]
        R, t = self.c2w[..., :3, :3], self.c2w[..., None, :3, 3]
        return x_cam @ R.mT + t

    def rays(
        self, downsample: int = 1
    ) -> tuple[Float[Tensor, "*B h w 3"], Float[Tensor, "*B h w 3"]]:
        """Origin and unit direction in the world of the ray through every (downsampled) pixel.

        Raises:
            ValueError: `downsample` is below 1 or larger than the image.
        """
        if downsample < 1 or downsample > min(self.width, self.height):
            raise ValueError(
                f"downsample must be between 1 and {min(self.width, self.height)}, "
                f"got {downsample}."
            )
        return self._rays(self.height // downsample, self.width // downsample)

    def plucker(self, h: int, w: int) -> Float[Tensor, "*B 6 h w"]:
        """Plücker coordinates of an `h` x `w` grid of rays laid over the image.

        Returns:
            Unit direction (3 channels), then the moment origin x direction (3, scene units), in
            the world.

        Raises:
            ValueError: `h` or `w` is below 1.

        Source: Plücker 1865; as camera conditioning in Sitzmann et al., arXiv:2106.02634.
        """
        if h < 1 or w < 1:
            raise ValueError(f"h and w must be at least 1, got {h} and {w}.")
        origins, directions = self._rays(h, w)
        moment = torch.linalg.cross(origins, directions, dim=-1)
        return torch.cat([directions, moment], dim=-1).movedim(-1, -3)

    def scaled(self, width: int, height: int) -> "Cameras":
        """The same cameras with `K` for another image size in pixels (each axis on its own).

        Raises:
            ValueError: a size below 1.
        """
        scale = torch.tensor([width / self.width, height / self.height, 1.0])
        return Cameras(self.K * scale.to(self.K)[:, None], self.c2w, width, height)

    def pixel_grid(self, h: int | None = None, w: int | None = None) -> Float[Tensor, "n 2"]:
        """Pixel centres (u, v), row by row, of this image or of an `h` x `w` grid laid over it."""
        h, w = h or self.height, w or self.width
        K = self.K
        v = (torch.arange(h, dtype=K.dtype, device=K.device) + 0.5) * (self.height / h)
        u = (torch.arange(w, dtype=K.dtype, device=K.device) + 0.5) * (self.width / w)
        return torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1).reshape(-1, 2)

    def _rays(self, h: int, w: int) -> tuple[Tensor, Tensor]:
        pixels = self.pixel_grid(h, w)
        homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=-1)
        x_cam = homogeneous @ torch.linalg.inv(self.K).mT
        directions = torch.nn.functional.normalize(x_cam @ self.c2w[..., :3, :3].mT, dim=-1)
        directions = directions.reshape(*self.batch_shape, h, w, 3)
        origins = self.position[..., None, None, :].expand_as(directions)
        return origins, directions


Camera = Cameras
"""The documented name of a single camera; there is no second class."""


def look_at(
    eye: Float[Tensor, "3"], target: Float[Tensor, "3"], up: Float[Tensor, "3"]
) -> Float[Tensor, "4 4"]:
    """The pose `c2w` of a camera at `eye` that looks at `target` with `up` towards the top.

    Raises:
        ValueError: `eye` and `target` coincide, or the line of sight is parallel to `up`.
    """
    forward = target - eye
    right = torch.linalg.cross(forward, up)
    if float(forward.norm()) < 1e-9 or float(right.norm()) < 1e-9 * float(forward.norm()):
        raise ValueError("eye and target must differ, and the line of sight must not run along up.")
    forward, right = forward / forward.norm(), right / right.norm()
    c2w = torch.eye(4, dtype=eye.dtype, device=eye.device)
    c2w[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    c2w[:3, 3] = eye
    return c2w


def _unchecked(K: Tensor, c2w: Tensor, width: int, height: int) -> Cameras:
    """Parts of cameras that were checked before: skips the checks, which cost a sync on CUDA."""
    cameras = object.__new__(Cameras)
    for name, value in (("K", K), ("c2w", c2w), ("width", width), ("height", height)):
        object.__setattr__(cameras, name, value)
    return cameras


def _check_field(name: str, value: Tensor, tail: tuple[int, int]) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a tensor of floats, got {kind}.")
    if value.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be of float32 or float64, got {value.dtype}.")
    if tuple(value.shape[-2:]) != tail:
        raise ValueError(f"{name} must end in shape {tail}, got {tuple(value.shape)}.")
    bad = torch.nonzero(~torch.isfinite(value).reshape(-1, *tail).all(dim=-1).all(dim=-1)).flatten()
    if len(bad) > 0:
        matrix = value.reshape(-1, *tail)[bad[0]]
        entry = matrix[~torch.isfinite(matrix)][0]
        raise ValueError(
            f"{name}[{bad[0]}]: holds {float(entry)}; only finite numbers are accepted."
        )


def _check_intrinsics(K: Float[Tensor, "n 3 3"]) -> None:
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], dim=-1)
    bad = torch.nonzero(~(focal > 0).all(dim=-1)).flatten()
    if len(bad) > 0:
        value = float(focal[bad[0]].min())
        raise ValueError(f"K[{bad[0]}]: the focal length is {value:.6g}; it must be above 0.")
    last = torch.tensor([0.0, 0.0, 1.0]).to(K)
    bad = torch.nonzero(~((K[:, 2] - last).abs().amax(dim=-1) <= TOLERANCE)).flatten()
    if len(bad) > 0:
        row = [round(v, 6) for v in K[bad[0], 2].tolist()]
        raise ValueError(f"K[{bad[0]}]: the last row is {row}; it must be [0, 0, 1].")
    bad = torch.nonzero(~(K[:, 1, 0].abs() <= TOLERANCE * K[:, 0, 0])).flatten()
    if len(bad) > 0:
        value = float(K[bad[0], 1, 0])
        raise ValueError(f"K[{bad[0]}]: row 1 begins with {value:.6g}; K is upper triangular.")


def _check_poses(c2w: Float[Tensor, "n 4 4"]) -> None:
    R = c2w[:, :3, :3]
    drift = (R @ R.mT - torch.eye(3).to(R)).abs().amax(dim=(-2, -1))
    bad = torch.nonzero(~(drift <= TOLERANCE)).flatten()
    if len(bad) > 0:
        raise ValueError(
            f"c2w[{bad[0]}]: R @ R.T is off the identity by {float(drift[bad[0]]):.2g}; at most "
            f"1e-3 is accepted. Remove the scale or shear from the pose before building Cameras."
        )
    det = torch.linalg.det(R)
    bad = torch.nonzero(~((det - 1).abs() <= 3 * TOLERANCE)).flatten()
    if len(bad) > 0:
        raise ValueError(
            f"c2w[{bad[0]}]: det(R) is {float(det[bad[0]]):.3g}; only +1 is accepted. "
            f"The pose mirrors the world: flip one axis back."
        )
    last = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(c2w)
    bad = torch.nonzero(~((c2w[:, 3] - last).abs().amax(dim=-1) <= TOLERANCE)).flatten()
    if len(bad) > 0:
        row = [round(v, 6) for v in c2w[bad[0], 3].tolist()]
        raise ValueError(f"c2w[{bad[0]}]: the last row is {row}; it must be [0, 0, 0, 1].")
