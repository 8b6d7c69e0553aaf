"""What a mesh or point file holds, and its conversion to coloured points.

Meshes are sampled evenly by area; every point carries the normal of its face and half the spacing
of the samples as its radius, so that the cloud can be drawn as a surface.
"""

from dataclasses import dataclass

import numpy as np
import torch

from worldstereo.inputs.assemble import BIG, evenly
from worldstereo.inputs.limits import Limits, refusal
from worldstereo.scene import PointCloud

SAMPLES = 400_000  # points drawn from a mesh, unless the limits keep fewer
LARGEST = 1e12


@dataclass(frozen=True, eq=False)
class Surface:
    """Vertices, and triangles between them; no triangles: a point cloud."""

    vertices: np.ndarray
    """(N, 3) float64."""
    faces: np.ndarray
    """(M, 3) int64."""
    colors: np.ndarray | None = None
    """(N, 3) float in [0, 1] of the vertices."""
    normals: np.ndarray | None = None
    """(N, 3) of the vertices, any length."""
    uv: np.ndarray | None = None
    """(N, 2) texture coordinates, v down."""
    texture: np.ndarray | None = None
    """(H, W, 3) uint8."""
    notices: tuple[str, ...] = ()


def checked(name: str, surface: Surface, what: str = "vertex") -> Surface:
    """The surface with finite coordinates and indices that exist.

    Raises:
        InputRefused: no vertex at all, a coordinate that is not finite or absurd, an index outside.
    """
    vertices, faces = surface.vertices, surface.faces
    if len(vertices) == 0:
        raise refusal(name, "holds 0 points", "At least 1 point or face is accepted")
    good = np.asarray(np.isfinite(vertices).all(axis=1))
    if not good.all():
        row = int(np.argmin(good))
        value = vertices[row][~np.isfinite(vertices[row])][0]
        raise refusal(
            name,
            f"{what} {row} holds {value} ({int((~good).sum())} of {len(vertices)} do so)",
            "Only finite coordinates are accepted. Remove such points",
        )
    if np.abs(vertices).max() > LARGEST:
        row = int(np.abs(vertices).max(axis=1).argmax())
        raise refusal(
            name,
            f"{what} {row} is {np.abs(vertices).max():.3g} units away",
            f"Coordinates up to {LARGEST:.0e} are accepted",
        )
    if len(faces):
        bad = (faces < 0) | (faces >= len(vertices))
        if bad.any():
            row = int(bad.any(axis=1).argmax())
            raise refusal(
                name,
                f"face {row} names vertex {int(faces[row][bad[row]][0])} of {len(vertices)}",
                "Indices of vertices in the file are accepted",
            )
    if surface.colors is not None and not np.isfinite(surface.colors).all():
        colors = np.nan_to_num(surface.colors, nan=0.5, posinf=1.0, neginf=0.0)
        said = "Some colours are not numbers; grey was used."
        return Surface(vertices, faces, colors, surface.normals, surface.uv, surface.texture,
                       (*surface.notices, said))  # fmt: skip
    return surface


def cloud_of(name: str, surface: Surface, limits: Limits) -> tuple[PointCloud, tuple[str, ...]]:
    """Coloured points: the vertices of a cloud, or samples of a mesh; thinned evenly."""
    surface = checked(name, surface)
    notices = list(surface.notices)
    if len(surface.faces):
        points, colors, normals, radius = _sampled(name, surface, min(SAMPLES, limits.kept_points))
        notices.append(
            f"A mesh of {len(surface.vertices)} vertices and {len(surface.faces)} faces was "
            f"sampled to {len(points)} points."
        )
        radii = np.full(len(points), radius)
    else:
        keep = evenly(len(surface.vertices), limits.kept_points)
        if len(keep) < len(surface.vertices):
            notices.append(
                f"{len(surface.vertices)} points were thinned evenly to {limits.kept_points}."
            )
        points = surface.vertices[keep]
        colors = None if surface.colors is None else surface.colors[keep]
        normals = _unit(surface.normals[keep]) if surface.normals is not None else None
        normals = np.zeros_like(points) if normals is None else normals
        radii = np.zeros(len(points))
    if colors is None and normals.any():
        colors = shaded(normals)
        notices.append("The file holds no colours; grey is shown, shaded by the shape.")
    elif colors is None:
        notices.append("The file holds no colours; grey is shown.")
    far = np.abs(points).max()
    middle = np.round((points.min(axis=0) + points.max(axis=0)) / 2)
    if far > BIG and far > 4 * np.ptp(points, axis=0).max():
        points = points - middle
        at = ", ".join(f"{v:.0f}" for v in middle)
        notices.append(f"The points lie far from their origin; ({at}) was subtracted.")
    columns = {
        "normals": torch.from_numpy(normals.astype(np.float32)),
        "radii": torch.from_numpy(radii.astype(np.float32)),
    }
    tint = None if colors is None else torch.from_numpy(np.clip(colors, 0, 1).astype(np.float32))
    cloud = PointCloud.of(torch.from_numpy(points.astype(np.float32)), tint, **columns)
    return cloud, tuple(notices)


def shaded(normals: np.ndarray) -> np.ndarray:
    """Greys (N, 3) that let a shape without colours be read: light from above and the front.

    Half-Lambert, so that what turns away from the light keeps its shape; a light between +y and
    +z is above in files of either convention.
    """
    light = np.array([0.35, 0.65, 0.67])
    grey = 0.22 + 0.56 * (0.5 + 0.5 * (normals @ (light / np.linalg.norm(light)))) ** 1.5
    return np.repeat(grey[:, None], 3, axis=1)


def _sampled(
    name: str, surface: Surface, n: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, float]:
    """`n` points spread evenly by area: one in each of n equal shares, the same every time."""
    corners = surface.vertices[surface.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(across, axis=1) / 2
    total = float(area.sum())
    if not total > 0 or not np.isfinite(total):
        raise refusal(
            name, f"all {len(area)} faces have no area", "A mesh with a surface is accepted"
        )
    n = int(min(n, max(2_000, 400 * len(area))))
    rng = np.random.default_rng(0)
    where = (np.arange(n) + rng.random(n)) * (total / n)
    face = np.minimum(np.searchsorted(np.cumsum(area), where), len(area) - 1)
    a, b = np.sqrt(rng.random(n)), rng.random(n)
    weight = np.stack([1 - a, a * (1 - b), a * b], axis=1)
    points = np.einsum("nk,nkd->nd", weight, corners[face])
    normals = across[face] / np.maximum(2 * area[face, None], 1e-300)
    colors = None
    if surface.uv is not None and surface.texture is not None:
        uv = np.einsum("nk,nkd->nd", weight, surface.uv[surface.faces[face]])
        height, width = surface.texture.shape[:2]
        uv = np.nan_to_num(uv) % 1.0
        column = np.minimum((uv[:, 0] * width).astype(int), width - 1)
        row = np.minimum((uv[:, 1] * height).astype(int), height - 1)
        colors = surface.texture[row, column] / 255.0
        if surface.colors is not None:
            colors = colors * np.einsum("nk,nkd->nd", weight, surface.colors[surface.faces[face]])
    elif surface.colors is not None:
        colors = np.einsum("nk,nkd->nd", weight, surface.colors[surface.faces[face]])
    return points, colors, normals, 0.5 * float(np.sqrt(total / n))


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    good = np.isfinite(length) & (length > 1e-12)
    return np.where(good, vectors / np.where(good, length, 1), 0.0)


def srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as it is shown. Source: IEC 61966-2-1."""
    return np.where(
        linear <= 0.0031308,
        12.92 * linear,
        1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055,
    )


def joined(parts: list[Surface], notices: tuple[str, ...]) -> Surface:
    """One surface; textures are sampled at the vertices when parts do not share one."""
    notices = tuple(dict.fromkeys(notices))
    if len(parts) == 1:
        only = parts[0]
        return Surface(only.vertices, only.faces, only.colors, None, only.uv, only.texture, notices)
    shared = parts[0].texture is not None and all(p.texture is parts[0].texture for p in parts)
    points = np.concatenate([p.vertices for p in parts])
    starts = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
    faces = np.concatenate([p.faces + s for p, s in zip(parts, starts, strict=True)])
    mixed = any(len(p.faces) == 0 for p in parts) and len(faces) > 0
    if mixed:
        notices = (*notices, "Loose points beside a mesh were left out.")
    if shared and all(p.uv is not None for p in parts):
        uv = np.concatenate([p.uv for p in parts if p.uv is not None])
        return Surface(points, faces, None, None, uv, parts[0].texture, notices)
    tints = [_vertex_colors(p) for p in parts]
    if all(t is None for t in tints):
        return Surface(points, faces, notices=notices)
    filled = [np.full((len(p.vertices), 3), 0.7) if t is None else t
              for p, t in zip(parts, tints, strict=True)]  # fmt: skip
    return Surface(points, faces, np.concatenate(filled), notices=notices)


def _vertex_colors(part: Surface) -> np.ndarray | None:
    if part.uv is None or part.texture is None:
        return part.colors
    height, width = part.texture.shape[:2]
    uv = np.nan_to_num(part.uv) % 1.0
    column = np.minimum((uv[:, 0] * width).astype(int), width - 1)
    row = np.minimum((uv[:, 1] * height).astype(int), height - 1)
    colors = part.texture[row, column] / 255.0
    return colors if part.colors is None else colors * part.colors
