"""Colour of a mesh from the views that see it, per vertex or as a texture; and drawing it.

Colours are harmonised by each view's exposure gain. A point asks every view that is not hidden by
the mesh itself; the sharpest views weigh most, and weights fall to 0 towards depth edges and the
rim of the picture, so that views change over without a seam.

Source: Lempitsky & Ivanov, Seamless mosaicing of image-based texture maps, CVPR 2007 (the trade
between sharp and seamless); charts and packing by xatlas.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldstereo._core.parallel import parallel_for, spans
from worldstereo.cameras import Cameras
from worldstereo.progress import OnStep, ignore
from worldstereo.reconstruct._charts import charts, corners_of
from worldstereo.reconstruct._mesh import Mesh, Texture, vertex_normals
from worldstereo.reconstruct._raster_kernels import draw, gather, texels
from worldstereo.scene import View, to_bytes

POWER = 6.0  # of a view's sharpness: one that sees twice as sharply weighs 64 times as much
FEATHER = 12  # pixels from a depth edge or rim within which a view's weight falls
PADDING = 2  # texels between charts, besides those that bilinear reading needs
PACKINGS = 4  # tries at packing, each with the scale that the one before suggests
PIECE = 1 << 16  # points that one thread colours between two looks at "cancel"


class Drawn(NamedTuple):
    """A mesh seen by one camera."""

    color: Float[Tensor, "3 H W"]
    depth: Float[Tensor, "1 H W"]
    """0 where there is no surface."""
    face: Int[Tensor, "1 H W"]
    """Number of the face, -1 where there is none."""


def render_mesh(mesh: Mesh, camera: Cameras, texture: Texture | None = None) -> Drawn:
    """The mesh with its texture, else its vertex colours, else grey; black where there is none.

    Raises:
        ValueError: more than one camera.
    """
    if camera.c2w.ndim != 2:
        raise ValueError(f"camera must be a single one, got a batch of {camera.batch_shape}.")
    depth, face, weights = zbuffer(mesh, camera)
    seen = face >= 0
    rows = mesh.faces.numpy()[face[seen]]
    w = weights[seen][:, :, None]
    color = np.zeros((*face.shape, 3), np.float32)
    if texture is not None and mesh.uv is not None:
        color[seen] = _sampled(texture.image.numpy(), (mesh.uv.numpy()[rows] * w).sum(1)) / 255
    elif mesh.colors is not None:
        color[seen] = (mesh.colors.numpy()[rows] * w).sum(1)
    else:
        color[seen] = 0.5
    return Drawn(
        torch.from_numpy(color).permute(2, 0, 1).contiguous(),
        torch.from_numpy(np.where(seen, depth, 0).astype(np.float32))[None],
        torch.from_numpy(face)[None],
    )


def _sampled(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear samples of a picture whose first row is at v = 1."""
    h, w = image.shape[:2]
    x = np.clip(uv[:, 0] * w - 0.5, 0, w - 1)
    y = np.clip((1 - uv[:, 1]) * h - 0.5, 0, h - 1)
    x0, y0 = np.minimum(x.astype(int), w - 2), np.minimum(y.astype(int), h - 2)
    a, b = (x - x0)[:, None], (y - y0)[:, None]
    top = image[y0, x0] * (1 - a) + image[y0, x0 + 1] * a
    return top * (1 - b) + (image[y0 + 1, x0] * (1 - a) + image[y0 + 1, x0 + 1] * a) * b


def zbuffer(mesh: Mesh, camera: Cameras) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth (infinite where there is none), face number and corner weights of each pixel."""
    w2c = camera.w2c.double().numpy()
    points = mesh.vertices.numpy().astype(np.float64) @ w2c[:3, :3].T + w2c[:3, 3]
    size = (camera.height, camera.width)
    depth, face = np.full(size, np.inf, np.float32), np.full(size, -1, np.int64)
    weights = np.zeros((*size, 3), np.float32)
    reach = float(points[:, 2].max(initial=0.0))
    draw(points, mesh.faces.numpy(), lens_of(camera), 1e-4 * reach, depth, face, weights)
    return depth, face, weights


def lens_of(camera: Cameras) -> np.ndarray:
    """fx, fy, cx, cy."""
    K = camera.K.double().numpy()
    return np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])


def at_typical_exposure(views: Sequence[View]) -> list[View]:
    """The views with gains towards their typical exposure instead of the first view's.

    A texture is looked at beside the pictures it was made of: the mean log gain of the given views
    is the exposure with the least squared log distance to them. The first view's may be far from
    all others, and brighter ones are cut off at white.
    """
    given = [v for v in views if v.step == 0] or list(views)
    typical = torch.stack([v.log_gain for v in given]).mean(dim=0)
    return [replace(v, log_gain=v.log_gain - typical) for v in views]


def colors_at(
    points: np.ndarray,
    normals: np.ndarray,
    mesh: Mesh,
    views: Sequence[View],
    footprint: float,
    on_step: OnStep = ignore,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) float32 colours of surface points in [0, 1] and weights, 0 where no view sees one.

    Args:
        footprint: typical size of a pixel on the surface; only scales the weights.
    """
    import cv2

    mean, total = np.zeros((len(points), 3), np.float32), np.zeros(len(points), np.float32)
    pieces = spans(len(points), max(1, len(points) // PIECE))
    batch = 8  # views whose depth is drawn at once
    for first in range(0, len(views), batch):
        on_step(first, len(views), "Colouring surfaces")
        chosen = views[first : first + batch]
        prepared: list[Any] = [None] * len(chosen)

        def prepare(i: int, chosen: Sequence[View] = chosen, out: list[Any] = prepared) -> None:
            depth, _, _ = zbuffer(mesh, chosen[i].cameras)
            z = np.where(np.isfinite(depth), depth, 0)
            low = cv2.erode(z, np.ones((3, 3)))
            high = cv2.dilate(z, np.ones((3, 3)))
            whole = (high - low < 0.05 * np.maximum(high, 1e-12)).astype(np.uint8)
            whole[[0, -1]] = 0
            whole[:, [0, -1]] = 0
            far = cv2.distanceTransform(whole, cv2.DIST_L2, 3)
            # a point that only a rim shows still gets its colour
            feather = np.clip(far / FEATHER, 1e-3, 1).astype(np.float32) ** 2
            out[i] = (depth, feather)

        parallel_for(len(chosen), prepare)

        def one(k: int, chosen: Sequence[View] = chosen, ready: list[Any] = prepared) -> None:
            for view, (depth, feather) in zip(chosen, ready, strict=True):
                gather(
                    points, normals, *pieces[k], view.cameras.w2c.double().numpy(),
                    lens_of(view.cameras), view.color_u8.numpy(),
                    np.exp(view.log_gain.numpy()).astype(np.float32), depth, feather,
                    2 * footprint, POWER, footprint, mean, total,
                )  # fmt: skip

        parallel_for(len(pieces), one)
    known = total > 0
    mean[known] /= total[known, None]
    return mean.clip(0, 1), total


def with_vertex_colors(
    mesh: Mesh, views: Sequence[View], footprint: float, on_step: OnStep = ignore
) -> Mesh:
    """The mesh with a colour at each vertex; where no view sees one, that of its surroundings."""
    color, total = colors_at(
        mesh.vertices.numpy(), mesh.normals.numpy(), mesh, views, footprint, on_step
    )
    known = total > 0
    faces = mesh.faces.numpy()
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.concatenate([edges, edges[:, ::-1]])
    for _ in range(64):  # colour spreads by one edge a round
        open_ = edges[~known[edges[:, 0]] & known[edges[:, 1]]]
        if len(open_) == 0:
            break
        count = np.bincount(open_[:, 0], minlength=len(color))
        for k in range(3):
            add = np.bincount(open_[:, 0], color[open_[:, 1], k], len(color))
            color[:, k] = np.where(count > 0, add / np.maximum(count, 1), color[:, k])
        known |= count > 0
    color[~known] = 0.5
    return replace(mesh, colors=torch.from_numpy(color.astype(np.float32)))


def unwrapped(mesh: Mesh, size: int, check: Callable[[], None] = lambda: None) -> Mesh:
    """The mesh with texture coordinates for a square picture of `size` pixels.

    Vertices are split where charts meet.
    """
    check()
    faces = mesh.faces.numpy()
    chart, flat = charts(mesh.vertices.numpy(), faces)
    old, corner = corners_of(chart, faces, len(mesh.vertices))
    uv = np.zeros((len(old), 2), np.float32)
    uv[corner.ravel()] = flat.reshape(-1, 2)
    origin, triangles, packed = _packed(uv, corner, chart, size, check)
    source = torch.from_numpy(old[origin.astype(np.int64)])
    columns = {
        name: value[source]
        for name in ("vertices", "normals", "colors", "invented")
        if (value := getattr(mesh, name)) is not None
    }
    coordinates = np.clip(packed.astype(np.float32), 0, 1)
    coordinates[:, 1] = 1 - coordinates[:, 1]
    return replace(
        mesh,
        faces=torch.from_numpy(triangles.astype(np.int64)),
        uv=torch.from_numpy(coordinates),
        **columns,
    )


def _packed(
    uv: np.ndarray, faces: np.ndarray, chart: np.ndarray, size: int, check: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Charts side by side in a square of `size` texels: source of each vertex, faces, coordinates.

    The scale is one at which the packed charts fit, so that a texel of the packer is one of the
    picture and the gap it leaves is wide enough for bilinear reading: no colour of a neighbouring
    chart is read. Charts that do not fit at any scale are shrunk together, gap and all.
    """
    import xatlas

    scale = _scale_of(uv, faces, chart, size)
    best: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None
    for _ in range(PACKINGS):
        check()
        atlas = xatlas.Atlas()
        # in texels: the packer leaves out faces below 1e-7 square units
        atlas.add_uv_mesh(
            (uv * scale).astype(np.float32), faces.astype(np.uint32),
            chart.astype(np.uint32)[:, None],
        )  # fmt: skip
        pack = xatlas.PackOptions()
        pack.padding, pack.bilinear, pack.rotate_charts = PADDING, True, False
        pack.resolution, pack.texels_per_unit = 0, 1.0
        atlas.generate(xatlas.ChartOptions(), pack)
        side = max(atlas.width, atlas.height)
        origin, triangles, coordinates = atlas.get_mesh(0)
        placed = atlas.get_mesh_vertex_assignment(0)[1] != np.iinfo(np.uint32).max
        texels = _with_left_out(
            coordinates.astype(np.float64) * (atlas.width, atlas.height), triangles, placed
        )
        fits = side <= size
        if best is None or (fits and (best[0] > size or side > best[0])) or side < best[0] > size:
            best = (side, origin, triangles, texels / max(side, size))
        if fits and side >= 0.9 * size:
            break
        scale *= 0.97 * size / side
    assert best is not None
    return best[1:]


def _with_left_out(texels: np.ndarray, faces: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Vertices that only faces without area use, which the packer left at its origin, at another
    corner of their face: no sliver is drawn across the charts in between."""
    texels = texels.copy()
    for face in faces[~placed[faces].all(axis=1)]:
        known = face[placed[face]]
        texels[face[~placed[face]]] = texels[known[0]] if len(known) else texels[face[0]]
    return texels


def _scale_of(uv: np.ndarray, faces: np.ndarray, chart: np.ndarray, size: int) -> float:
    """Texels per unit at which the boxes of all charts with their gaps fill the square."""
    order = np.argsort(chart, kind="stable")
    starts = np.flatnonzero(np.diff(chart[order], prepend=-1))
    corners = uv[faces[order]].astype(np.float64)
    low = np.minimum.reduceat(corners.min(axis=1), starts)
    wide, high = (np.maximum.reduceat(corners.max(axis=1), starts) - low).T
    gap = PADDING + 1
    # (wide s + gap) (high s + gap) summed over the charts is size^2
    a, b = float((wide * high).sum()), gap * float((wide + high).sum())
    c = gap**2 * len(starts) - float(size) ** 2
    if c >= 0 or a + b <= 0:
        return 1e-3 * size / max(float(np.ptp(uv)), 1e-12)
    return -2 * c / (b + np.sqrt(b * b - 4 * a * c))  # stable also where a is 0


def bake(
    mesh: Mesh,
    views: Sequence[View],
    size: int,
    footprint: float,
    on_step: OnStep = ignore,
) -> Texture:
    """The albedo of an unwrapped mesh: what the views show, exposure taken out."""
    import cv2

    if mesh.uv is None:
        raise ValueError("mesh has no texture coordinates; use unwrapped(mesh, size) first.")
    face, weights = texel_map(mesh, size)
    at = np.flatnonzero(face.ravel() >= 0)
    rows = mesh.faces.numpy()[face.ravel()[at]]
    w = weights.reshape(-1, 3)[at]
    points, normals = (
        np.einsum("nij,ni->nj", values.numpy()[rows], w) for values in (mesh.vertices, mesh.normals)
    )
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    color, total = colors_at(points, normals, mesh, views, footprint, on_step)
    if mesh.colors is not None:
        unseen = total <= 0
        color[unseen] = (mesh.colors.numpy()[rows[unseen]] * w[unseen][:, :, None]).sum(1)
        total[unseen] = 1
    image = np.zeros((size, size, 3), np.uint8)
    flat = image.reshape(-1, 3)
    flat[at] = to_bytes(torch.from_numpy(color)).numpy()
    hole = np.ones(size * size, bool)
    hole[at[total > 0]] = False
    return Texture(torch.from_numpy(_spread(image, hole.reshape(size, size), cv2)), "albedo")


def texel_map(mesh: Mesh, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(size, size) face of each texel, -1 where none, and its corner weights."""
    assert mesh.uv is not None
    face = np.full((size, size), -1, np.int64)
    weights = np.zeros((size, size, 3), np.float32)
    texels(
        mesh.uv.numpy().astype(np.float64), mesh.faces.numpy(), size, 0, len(mesh), face, weights
    )
    return face, weights


def _spread(image: np.ndarray, hole: np.ndarray, cv2: Any) -> np.ndarray:
    """Empty texels get the colour of the nearest one: no seam shows through filtering."""
    if hole.all() or not hole.any():
        return image
    _, label = cv2.distanceTransformWithLabels(
        hole.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    source = np.zeros(int(label.max()) + 1, np.int64)
    known = ~hole.ravel()
    source[label.ravel()[known]] = np.flatnonzero(known)
    return image.reshape(-1, 3)[source[label.ravel()]].reshape(image.shape)


def decimated(mesh: Mesh, faces: int, check: Callable[[], None] = lambda: None) -> Mesh:
    """At most `faces` triangles, by quadric error; marks come from the nearest old vertex."""
    if len(mesh) <= faces:
        return mesh
    import fast_simplification
    from scipy.spatial import KDTree

    points: Any = mesh.vertices.numpy()
    triangles: Any = mesh.faces.numpy()
    for aggression in (3, 7, 10):  # errors that it accepts grow faster; noise needs large ones
        check()
        points, triangles = fast_simplification.simplify(
            points, triangles, target_count=faces, agg=aggression
        )[:2]
        if len(triangles) <= faces:
            break
    check()
    triangles = np.asarray(triangles, np.int64)
    a, b, c = (points[triangles[:, i]].astype(np.float64) for i in range(3))
    triangles = triangles[np.linalg.norm(np.cross(b - a, c - a), axis=1) > 0]
    invented = None
    if mesh.invented is not None:
        if bool(mesh.invented.any()):
            nearest = KDTree(mesh.vertices.numpy()).query(points)[1]
            invented = mesh.invented[torch.from_numpy(nearest)]
        else:
            invented = torch.zeros(len(points), dtype=torch.bool)
    out = Mesh(
        torch.from_numpy(np.asarray(points, np.float32)),
        torch.from_numpy(triangles),
        torch.from_numpy(vertex_normals(points, triangles)),
        invented=invented,
    )
    return out.kept(torch.ones(len(triangles), dtype=torch.bool))


def cut_to(texture: Texture, size: int) -> Texture:
    """The texture with at most `size` pixels along its longer side, averaged down."""
    import cv2

    h, w = texture.image.shape[:2]
    if max(h, w) <= size:
        return texture
    factor = size / max(h, w)
    shape = (max(1, round(w * factor)), max(1, round(h * factor)))
    image = cv2.resize(texture.image.numpy(), shape, interpolation=cv2.INTER_AREA)
    return Texture(torch.from_numpy(np.ascontiguousarray(image)), texture.name)


def refined_texture(
    mesh: Mesh,
    texture: Texture,
    views: Sequence[View],
    footprint: float,
    rounds: int = 2,
    on_step: OnStep = ignore,
) -> Texture:
    """The texture after gradient steps on what it looks like in the views.

    Each round draws the mesh into every view and spreads what is missing back over the texels that
    showed it, with the weights of `bake`: the transpose of drawing, normalised by its row sums.
    A round that does not lower the error of the drawn views is dropped.

    Source: Andersen & Kak, Simultaneous algebraic reconstruction technique, 1984.
    """
    size = int(texture.image.shape[0])
    face, weights = texel_map(mesh, size)
    at = np.flatnonzero(face.ravel() >= 0)
    rows = mesh.faces.numpy()[face.ravel()[at]]
    w = weights.reshape(-1, 3)[at]
    points, normals = (
        np.einsum("nij,ni->nj", values.numpy()[rows], w) for values in (mesh.vertices, mesh.normals)
    )
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    best, least = texture, np.inf
    for step in range(rounds + 1):
        on_step(step, rounds + 1, "Refining the texture")
        missing, error = [], []
        for view in views:
            drawn = render_mesh(mesh, view.cameras, texture)
            truth = (view.color * view.log_gain.exp()[:, None, None]).clamp(0, 1)
            left = torch.where(drawn.face >= 0, truth - drawn.color, 0)
            error.append(float((left**2).mean()))
            half = to_bytes(0.5 + 0.5 * left)
            missing.append(replace(view, color_u8=half, log_gain=torch.zeros(3)))
        if np.mean(error) >= least:
            break
        best, least = texture, float(np.mean(error))
        if step == rounds:
            break
        change, total = colors_at(points, normals, mesh, missing, footprint, on_step)
        image = texture.image.numpy().copy().reshape(-1, 3)
        known = at[total > 0]
        moved = image[known].astype(np.float32) / 255 + 2 * (change[total > 0] - 128 / 255)
        image[known] = to_bytes(torch.from_numpy(moved)).numpy()
        texture = Texture(torch.from_numpy(image.reshape(size, size, 3)), texture.name)
    return best
