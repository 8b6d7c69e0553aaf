"""Meshes and their pictures: frozen values, as everything that leaves a world."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture that belongs to a mesh; its first row is at v = 1."""

    image: UInt8[Tensor, "H W C"]
    name: str
    """"albedo", "normal" or "roughness"."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in the world's frame and scene units; faces are counter-clockwise from outside."""

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    normals: Float[Tensor, "V 3"]
    """Unit length."""
    uv: Float[Tensor, "V 2"] | None = None
    """Texture coordinates in [0, 1], origin at the lower left."""
    colors: Float[Tensor, "V 3"] | None = None
    """sRGB in [0, 1]."""
    invented: Bool[Tensor, "V"] | None = None
    """True where no given view measured the surface: completed or generated."""

    def __post_init__(self) -> None:
        n = len(self.vertices)
        for name in ("normals", "uv", "colors", "invented"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"{name} has {len(value)} rows; the mesh has {n} vertices.")
        if len(self.faces) and (int(self.faces.min()) < 0 or int(self.faces.max()) >= n):
            raise ValueError(
                f"faces must index the {n} vertices, got {int(self.faces.min())} to "
                f"{int(self.faces.max())}."
            )

    def __len__(self) -> int:
        return len(self.faces)

    @staticmethod
    def of(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], **rest: Tensor) -> "Mesh":
        """A mesh with normals from its faces, weighted by area."""
        normals = vertex_normals(vertices.numpy(), faces.numpy())
        return Mesh(vertices, faces.long(), torch.from_numpy(normals), **rest)

    def areas(self) -> Float[Tensor, "F"]:
        """Area of each face, square scene units."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        return 0.5 * torch.linalg.cross(b - a, c - a).norm(dim=1)

    def kept(self, faces: Bool[Tensor, "F"]) -> "Mesh":
        """The faces where `faces` is True and the vertices they use."""
        rows = self.faces[faces]
        used, flat = torch.unique(rows, return_inverse=True)
        columns = {
            name: value[used]
            for name in ("vertices", "normals", "uv", "colors", "invented")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, faces=flat.reshape(-1, 3), **columns)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) float32 unit normals: the mean of the faces around, weighted by area."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    face = np.cross(b - a, c - a)
    total = np.zeros((len(vertices), 3))
    for axis in range(3):
        for corner in range(3):
            total[:, axis] += np.bincount(faces[:, corner], face[:, axis], len(vertices))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    out = np.where(length > 1e-30, total / np.maximum(length, 1e-30), (0.0, 0.0, 1.0))
    return out.astype(np.float32)
