"""What a mesh or point file holds, and its conversion to coloured points.

Meshes are sampled evenly by area; every point carries the normal of its face and half the spacing
of the samples as its radius, so that the cloud can be drawn as a surface.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from worldstereo.inputs.assemble import LOCAL_ORIGIN_ABOVE, evenly
from worldstereo.inputs.limits import Limits, refusal
from worldstereo.scene import PointCloud

SAMPLES = 400_000  # points drawn from a mesh, unless the limits keep fewer
MAX_COORDINATE = 1e12
USUAL = 98  # percentile of colours that says on which scale they are
ABOVE_ONE = 2.0  # shares of 1 may overshoot: light above white is cut
UNTOLD = 0.45  # linear grey of faces without a colour beside coloured ones


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture that faces show, and how it goes on beyond its borders."""

    pixels: np.ndarray
    """(H, W, 4) uint8."""
    wrap: tuple[str, str] = ("repeat", "repeat")
    """"repeat", "mirror" or "clamp", along u and v."""
    cutoff: float | None = None
    """Alpha below which nothing is there; None: alpha means nothing."""

    def at(self, uv: np.ndarray) -> np.ndarray:
        """Colours and alpha (N, 4) in [0, 1] at coordinates (N, 2), v down."""
        height, width = self.pixels.shape[:2]
        column = _wrapped(uv[:, 0], width, self.wrap[0])
        row = _wrapped(uv[:, 1], height, self.wrap[1])
        return self.pixels[row, column] / 255.0


def _wrapped(t: np.ndarray, size: int, how: str) -> np.ndarray:
    t = np.nan_to_num(t, nan=0.0, posinf=0.0, neginf=0.0)
    if how == "mirror":
        t = 1 - np.abs(1 - t % 2.0)
    elif how != "clamp":
        t = t % 1.0
    return np.clip((t * size).astype(np.int64), 0, size - 1)


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
    """(M, 3, 2) texture coordinates of the corners of each face, v down."""
    textures: tuple[Texture, ...] = ()
    face_texture: np.ndarray | None = None
    """(M,) which texture a face shows; -1: none."""
    face_colors: np.ndarray | None = None
    """(M, 3) the colour of the material of each face; it multiplies all others."""
    linear: bool = False
    """Vertex and material colours are linear light (glTF), else as they are shown (sRGB)."""
    radii: np.ndarray | None = None
    """(N,) of the points, where the file says their size."""
    confidence: np.ndarray | None = None
    """(N,) in [0, 1] of the points, where the file says how solid they are."""
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
        wrong = f"{what} {row} holds {value} ({int((~good).sum())} of {len(vertices)} do so)"
        used = np.zeros(len(good), bool)
        used[faces[(faces >= 0) & (faces < len(good))]] = True
        if (used & ~good).any() or not good.any():
            raise refusal(name, wrong, "Only finite coordinates are accepted. Remove such points")
        surface = _without(surface, good)
        vertices, faces = surface.vertices, surface.faces
    if np.abs(vertices).max() > MAX_COORDINATE:
        row = int(np.abs(vertices).max(axis=1).argmax())
        raise refusal(
            name,
            f"{what} {row} is {np.abs(vertices).max():.3g} units away",
            f"Coordinates up to {MAX_COORDINATE:.0e} are accepted",
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
        return replace(surface, colors=colors, notices=(*surface.notices, said))
    return surface


def _without(surface: Surface, good: np.ndarray) -> Surface:
    """The surface with the good vertices only; no face names one of the others."""
    lost, total = int((~good).sum()), len(good)
    number = np.cumsum(good) - 1
    columns = {
        key: None if (value := getattr(surface, key)) is None else value[good]
        for key in ("colors", "normals", "radii", "confidence")
    }
    said = f"{lost} of {total} points left out: their coordinates are not finite."
    return replace(
        surface,
        vertices=surface.vertices[good],
        faces=number[surface.faces] if len(surface.faces) else surface.faces,
        notices=(*surface.notices, said),
        **columns,
    )


def color_share(values: np.ndarray, kind: str = "") -> np.ndarray:
    """Colours as shares of 1, after their type (as numpy names it) and their usual size.

    Bytes are shares of 255. Wider numbers and text may be shares of 1, of 255 or of 65535: what
    most of them are decides, so that a single stray value does not darken a whole cloud.
    """
    if kind in ("u1", "i1"):
        return values / 255.0
    good = values[np.isfinite(values) & (values > 0)]
    if len(good) == 0:
        return values
    usual = float(np.percentile(good, USUAL))
    whole = kind[:1] in ("u", "i") or bool((good == np.round(good)).mean() > 0.99)
    if usual <= (1 if whole else ABOVE_ONE):
        scale = 255.0 if kind[:1] in ("u", "i") else 1.0
    else:
        scale = 65535.0 if usual > 255 * ABOVE_ONE else 255.0
    return values / scale


def stretched(values: np.ndarray) -> np.ndarray:
    """Intensities from the 2nd to the 98th percentile as 0.05 to 0.95."""
    good = np.isfinite(values)
    if not good.any():
        return np.full(len(values), 0.5)
    low, high = np.percentile(values[good], (2, 98))
    if high <= low:
        return np.full(len(values), 0.5)
    return np.clip(0.05 + 0.9 * (values - low) / (high - low), 0, 1)


def cloud_of(
    name: str, surface: Surface, limits: Limits
) -> tuple[PointCloud, tuple[str, ...], tuple[float, float, float]]:
    """Coloured points: the vertices of a cloud, or samples of a mesh; thinned evenly.

    The last value is what was subtracted from coordinates far from their origin.
    """
    surface = checked(name, surface)
    notices = list(surface.notices)
    confidence = None
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
        if colors is not None and surface.linear:
            colors = srgb(np.clip(colors, 0, 1))
        normals = _unit(surface.normals[keep]) if surface.normals is not None else None
        normals = np.zeros_like(points) if normals is None else normals
        radii = np.zeros(len(points)) if surface.radii is None else surface.radii[keep]
        radii = np.nan_to_num(radii, nan=0.0, posinf=0.0)
        if surface.confidence is not None:
            confidence = np.clip(np.nan_to_num(surface.confidence[keep]), 0, 1)
    if colors is None and normals.any():
        colors = shaded(normals)
        notices.append("The file holds no colours; grey is shown, shaded by the shape.")
    elif colors is None:
        notices.append("The file holds no colours; grey is shown.")
    far = np.abs(points).max()
    middle = np.round((points.min(axis=0) + points.max(axis=0)) / 2)
    origin = (0.0, 0.0, 0.0)
    if far > LOCAL_ORIGIN_ABOVE and far > 4 * np.ptp(points, axis=0).max():
        points = points - middle
        origin = (float(middle[0]), float(middle[1]), float(middle[2]))
        at = ", ".join(f"{v:.0f}" for v in middle)
        notices.append(f"The points lie far from their origin; ({at}) was subtracted.")
    columns = {
        "normals": torch.from_numpy(normals.astype(np.float32)),
        "radii": torch.from_numpy(radii.astype(np.float32)),
    }
    if confidence is not None:
        columns["confidence"] = torch.from_numpy(confidence.astype(np.float32))
    tint = None if colors is None else torch.from_numpy(np.clip(colors, 0, 1).astype(np.float32))
    cloud = PointCloud.of(torch.from_numpy(points.astype(np.float32)), tint, **columns)
    return cloud, tuple(notices), origin


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
    texels = sum(t.pixels.shape[0] * t.pixels.shape[1] for t in surface.textures)
    n = int(min(n, max(2_000, 400 * len(area), texels)))
    rng = np.random.default_rng(0)
    where = (np.arange(n) + rng.random(n)) * (total / n)
    face = np.minimum(np.searchsorted(np.cumsum(area), where), len(area) - 1)
    a, b = np.sqrt(rng.random(n)), rng.random(n)
    weight = np.stack([1 - a, a * (1 - b), a * b], axis=1)
    points = np.einsum("nk,nkd->nd", weight, corners[face])
    normals = across[face] / np.maximum(2 * area[face, None], 1e-300)
    colors, seen = _colors_at(surface, face, weight)
    if seen is not None and seen.any():  # transparent parts of textures are not there
        points, normals = points[seen], normals[seen]
        colors = None if colors is None else colors[seen]
    return points, colors, normals, 0.5 * float(np.sqrt(total / n))


def _colors_at(
    surface: Surface, face: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Colours (n, 3) of points on faces, and where alpha leaves something; None: no colours."""
    n = len(face)
    shown, seen = np.ones((n, 3)), None
    told = False
    if surface.colors is not None:
        shown = np.einsum("nk,nkd->nd", weight, surface.colors[surface.faces[face]])
        told = True
    if surface.face_colors is not None:
        shown, told = shown * surface.face_colors[face], True
    if surface.uv is not None and surface.face_texture is not None:
        uv, which = np.einsum("nk,nkd->nd", weight, surface.uv[face]), surface.face_texture[face]
        for i, texture in enumerate(surface.textures):
            rows = np.nonzero(which == i)[0]
            if not len(rows):
                continue
            texel, told = texture.at(uv[rows]), True
            shown[rows] *= linear_light(texel[:, :3]) if surface.linear else texel[:, :3]
            if texture.cutoff is not None:
                seen = np.ones(n, bool) if seen is None else seen
                seen[rows] = texel[:, 3] >= texture.cutoff
    if not told:
        return None, seen
    return (srgb(np.clip(shown, 0, 1)) if surface.linear else shown), seen


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


def linear_light(shown: np.ndarray) -> np.ndarray:
    """The inverse of `srgb`."""
    return np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)


def joined(parts: list[Surface], notices: tuple[str, ...]) -> Surface:
    """One surface of several, each face with its own texture and material."""
    notices = tuple(dict.fromkeys((*notices, *(n for p in parts for n in p.notices))))
    points = np.concatenate([p.vertices for p in parts])
    starts = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
    faces = np.concatenate([p.faces + s for p, s in zip(parts, starts, strict=True)])
    if any(len(p.faces) == 0 for p in parts) and len(faces) > 0:
        notices = (*notices, "Loose points beside a mesh were left out.")

    def rows(values: np.ndarray | None, n: int, width: int, fill: float) -> np.ndarray:
        return np.full((n, width), fill) if values is None else values

    colors = uv = which = tints = None
    if any(p.colors is not None for p in parts):
        colors = np.concatenate([rows(p.colors, len(p.vertices), 3, 1.0) for p in parts])
    if any(p.face_colors is not None for p in parts):
        tints = np.concatenate([rows(p.face_colors, len(p.faces), 3, 1.0) for p in parts])
    textures: list[Texture] = []
    if any(p.textures for p in parts):
        numbers = []
        for p in parts:
            n = len(p.faces)
            if p.face_texture is None:
                numbers.append(np.full(n, -1))
                continue
            numbers.append(np.where(p.face_texture < 0, -1, p.face_texture + len(textures)))
            textures += p.textures
        which = np.concatenate(numbers)
        uv = np.concatenate(
            [np.zeros((len(p.faces), 3, 2)) if p.uv is None else p.uv for p in parts]
        )
    grey = UNTOLD if parts[0].linear else float(srgb(np.array([UNTOLD]))[0])
    if colors is not None or tints is not None or textures:
        # Parts that say nothing are grey beside those that do.
        tints = np.ones((len(faces), 3)) if tints is None else tints
        told = np.concatenate([
            np.full(len(p.faces), p.colors is not None or p.face_colors is not None)
            | (np.zeros(len(p.faces), bool) if p.face_texture is None else p.face_texture >= 0)
            for p in parts
        ])  # fmt: skip
        tints = np.where(told[:, None], tints, grey)
    return Surface(points, faces, colors, None, uv, tuple(textures), which, tints,
                   parts[0].linear, notices=notices)  # fmt: skip
