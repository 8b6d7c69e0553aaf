"""What all mesh formats share: the reconstructed surface of a scene, built once for all of them."""

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from worldstereo.errors import Cancelled, ExportError, WorldStereoError
from worldstereo.exports.archive import array, bytes_of, png
from worldstereo.exports.conventions import conventions
from worldstereo.progress import OnStep
from worldstereo.reconstruct import (
    Mesh,
    Surface,
    SurfaceOptions,
    Texture,
    cut_to,
    reconstruct_surface,
)
from worldstereo.scene import Scene

_built: WeakKeyDictionary[Scene, tuple[SurfaceOptions, Surface]] = WeakKeyDictionary()
"""The last surface of each published scene, for as long as that scene lives."""


@dataclass(frozen=True, eq=False)
class Body:
    """A mesh as a writer needs it."""

    mesh: Mesh
    textures: dict[str, Texture]
    scene: Scene
    """Up, units and what the notes say."""

    @property
    def albedo(self) -> Texture | None:
        return self.textures.get("albedo") if self.mesh.uv is not None else None

    def notes(self, form: str, **details: Any) -> dict[str, Any]:
        mesh = self.mesh
        marked = 0 if mesh.invented is None else int(mesh.invented.sum())
        return conventions(
            self.scene,
            form,
            vertices=len(mesh.vertices),
            faces=len(mesh),
            invented_vertices=marked,
            **details,
        )


def body_of(
    scene: Scene,
    on_step: OnStep,
    *,
    generated: bool,
    quality: str,
    voxel: float | None = None,
    texture: int = 0,
    fill_holes: bool = False,
) -> Body:
    """Raises ExportError where no surface can be built; Cancelled passes through."""
    try:
        options = SurfaceOptions(
            quality=quality,
            voxel=voxel,
            generated=generated,
            texture=texture,
            fill_holes=fill_holes,
        )
        known = _built.get(scene)
        if known is None or known[0] != options:
            known = (options, reconstruct_surface(scene, options, on_step=on_step))
            _built[scene] = known
    except Cancelled:
        raise
    except (ValueError, WorldStereoError) as error:
        raise ExportError(str(error)) from error
    return Body(known[1].mesh, known[1].textures, scene)


def resized(body: Body, size: int) -> Body:
    """With textures of at most `size` pixels."""
    textures = {name: cut_to(texture, size) for name, texture in body.textures.items()}
    return replace(body, textures=textures)


def picture_of(texture: Texture) -> bytes:
    """As PNG."""
    return png(np.ascontiguousarray(texture.image.numpy()))


def placed(body: Body, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and normals in a file's axes and units."""
    points = array(body.mesh.vertices).astype(np.float64) @ matrix.T
    turned = matrix / np.cbrt(np.linalg.det(matrix))
    if not np.isfinite(points.astype(np.float32)).all():
        raise ExportError("A vertex is too far away for a mesh file. Rescale the world first.")
    return points, array(body.mesh.normals).astype(np.float64) @ turned.T


def colors_u8(mesh: Mesh) -> np.ndarray:
    """(V, 3) bytes; grey where the mesh has no colours."""
    if mesh.colors is None:
        return np.full((len(mesh.vertices), 3), 128, np.uint8)
    return bytes_of(array(mesh.colors))


def marks(mesh: Mesh) -> np.ndarray:
    """(V,) 1 where invented."""
    if mesh.invented is None:
        return np.zeros(len(mesh.vertices), np.uint8)
    return array(mesh.invented).astype(np.uint8)
