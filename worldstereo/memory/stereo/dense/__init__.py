"""One target from remembered views: fuse depth, fetch at correspondences, weigh, fill, mark.

The dense path of the spatial-stereo memory: each pixel of the target attends to the remembered
pixels that correspond to it in 3D and to nothing else. What no view confirms comes from the cloud
of the global memory; what neither knows is continued from the background around it and marked as
invented.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.memory.stereo.dense._choice import LIMIT, MADE, ViewIndex, choose_views
from worldstereo.memory.stereo.dense._confidence import confidence_of
from worldstereo.memory.stereo.dense._far import drawn_to_mean
from worldstereo.memory.stereo.dense._planes import continued
from worldstereo.memory.stereo.dense._reliable import reliable_pixels
from worldstereo.render import RenderResult
from worldstereo.scene import Origin, View
from worldstereo.views import fusion
from worldstereo.views.fusion import (
    REFERENCE_DEPTH,
    Pose,
    SourceCameras,
    ViewArrays,
    invert,
    pose_distance,
    pose_of,
)

__all__ = [
    "Contribution",
    "Synthesis",
    "SynthesisOptions",
    "ViewIndex",
    "choose_views",
    "continued",
    "explain",
    "synthesize",
    "weights_map",
]


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """Which steps a target passes; all of them unless a measurement leaves one out."""

    weighted: bool = True
    """Weigh views by agreement, border, edge and angle; else a plain mean of those that agree."""

    free_space: bool = True
    """A surface that other views look through does not count."""

    exposure: bool = True
    """Harmonise colours towards the views nearest to the target."""

    antialias: bool = True
    """Mix both surfaces at depth edges, as a lens does."""

    background: bool = True
    """Fill holes from the background side; else with the nearest pixel."""

    mean: bool = True
    """Draw the far parts of large holes towards the picture's mean colour; else their rims reach
    across them."""

    rims: bool = True
    """Fill holes from their very rim where its colours are pure; else from a pixel further in."""

    planes: bool = True
    """Continue the depth of walls and floors into holes; else from the background side alone."""

    nearest: bool = True
    """What the nearest views know they paint, the others the rest; else all alike."""

    agree: float = 0.03
    """Relative depth within which a remembered pixel confirms a point."""

    slip: float = fusion.SLIP
    """Pixels by which a remembered pixel may be displaced and still confirm a point, however wrong
    its depth: seen from nearby, depth moves little."""


SEEN = 1e-12  # weight from which on a pixel counts as confirmed


class Synthesis(NamedTuple):
    """A target's picture with what is known about every pixel."""

    color: Float[Tensor, "3 H W"]
    depth: Float[Tensor, "1 H W"]
    """Scene units; filled in holes too, 0 only where nothing at all is known."""
    origin: UInt8[Tensor, "1 H W"]
    """`Origin` of each pixel."""
    confidence: Float[Tensor, "1 H W"]
    """In [0, 1]; its ranking predicts the error."""
    known: Bool[Tensor, "1 H W"]
    """True where a memory knows the surface, that is before holes were filled."""
    stereo_weight: Float[Tensor, "1 H W"]
    """Share of the remembered pixels in the colour; the rest is the cloud's or the fill's."""
    made: Bool[Tensor, "1 H W"]
    """True where only generated views or points show the surface."""


class Contribution(NamedTuple):
    """What one view has to say about one pixel of the target."""

    view: int
    pixel: tuple[float, float]
    """Where the view shows the point, (u, v); outside its image where `reason` says so."""
    point: tuple[float, float, float]
    """The point in the world."""
    weight: float
    """Share of the blend, in [0, 1]; all views together 1, or 0 where none confirms."""
    reason: str | None
    """Why it weighs little or nothing: "outside", "unknown", "looked through", "behind", "angle",
    "edge", "border"; None for a view that counts in full."""


def synthesize(
    target: Cameras,
    views: Sequence[View],
    *,
    splat: RenderResult | None = None,
    splat_made: RenderResult | None = None,
    camera_fixed: tuple[Tensor, Tensor] | None = None,
    unit: float = 1.0,
    stereo: bool = True,
    geometry: bool = True,
    fill: bool = True,
    options: SynthesisOptions = SynthesisOptions(),  # noqa: B008  (frozen)
) -> Synthesis:
    """The picture that `target` would take of what is remembered.

    Args:
        target: a single camera in the registered world.
        views: those that serve it (`choose_views`); more than 8 given ones are narrowed down.
        splat: the cloud of the global memory drawn at the target.
        splat_made: the generated part of that cloud, where `splat` is the given part alone.
        camera_fixed: mask and colour of what is fixed to the camera, pasted over the result.
        unit: u in scene units.
        stereo, geometry: False leaves one memory out.
        fill: False leaves holes black, with depth 0.

    Raises:
        ValueError: `target` is a batch of cameras, or `splat` has another size.
    """
    _check(target, splat)
    if sum(view.step == 0 for view in views) > LIMIT or len(views) > LIMIT + MADE:
        views = [views[i] for i in choose_views(views, target, splat)]
    pose = pose_of(target, unit)
    served = [fusion.view_arrays(view, unit) for view in views] if stereo else []
    given, made = [w for w in served if w.vote > 0], [w for w in served if w.vote == 0]
    cloud_depth, cloud_color = _cloud(splat if geometry else None, pose, unit)
    free = fusion.FREE if options.free_space else 0.0
    measured = fusion.fused_depth(
        given, pose, agree=options.agree, free=free, nearest=options.nearest
    )
    depth = _complete(measured, measured > 0, options.background and fill)
    blend = _Blend(pose.shape)
    blend.add_all(given, pose, depth, options)

    def opened(more: np.ndarray, part: list[ViewArrays]) -> None:
        """Surfaces that no view has shown until here."""
        nonlocal depth, measured
        open_ = (blend.weights <= SEEN) & (measured <= 0) & (more > 0)
        if open_.any():
            depth, measured = np.where(open_, more, depth), np.where(open_, more, measured)
            blend.add_all(part, pose, np.where(open_, depth, 0), options)

    def drawn(
        cloud: np.ndarray, colors: np.ndarray, known: np.ndarray, base: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Colour, `base` where known; which other pixels views confirm, and the cloud alone."""
        seen = blend.weights > SEEN
        from_cloud = ~seen & ~known & (cloud > 0)
        color = blend.color()
        color[from_cloud] = colors[from_cloud]  # few: views show most of what the cloud does
        if known.any():
            np.copyto(color, base, where=known[..., None])
        if options.antialias:
            color = _antialias(color, depth, known | seen | from_cloud)
        return color, seen & ~known, from_cloud

    opened(cloud_depth, given)
    # Without a given view only the cloud says how far the surroundings of its holes are.
    depth = _complete(depth, depth > 0, options.background and fill)
    nothing = np.zeros(pose.shape, bool)
    color, seen, from_cloud = drawn(cloud_depth, cloud_color, nothing, cloud_color)
    known = seen | from_cloud
    by_made = nothing
    # What was generated never moves what given views and points show: it continues it.
    if made or splat_made is not None:
        before, base, base_depth = known, color, depth
        more_depth, more_color = _cloud(splat_made if geometry else None, pose, unit)
        depth = measured = np.where(known, depth, 0)
        opened(np.where(known, 0, more_depth), [])
        made_depth = fusion.fused_depth(
            made, pose, agree=options.agree, free=free, nearest=options.nearest
        )
        opened(np.where(known, 0, made_depth), [])
        depth = _complete(depth, depth > 0, options.background and fill)
        blend.add_all(made, pose, np.where(known, 0, depth), options)
        color, more_seen, more_cloud = drawn(more_depth, more_color, known, base)
        by_made = more_seen | more_cloud
        color = np.where(before[..., None], base, color)
        depth = np.where(before, base_depth, depth)
        seen, from_cloud, known = seen | more_seen, from_cloud | more_cloud, known | by_made
    if fill:
        filled, reached = color, np.zeros_like(depth)

        def fill_color() -> None:
            nonlocal filled
            views_of_rims = served if options.rims else []
            reliable = reliable_pixels(depth, known, pose, views_of_rims, options.agree)
            filled = _fill(color, depth, known, reliable, options)

        def fill_depth() -> None:
            nonlocal reached
            if options.planes:
                reached = continued(depth, known, pose, given)

        fusion.parallel_for(2, lambda k: (fill_color, fill_depth)[k]())
        color, depth = filled, np.where(reached > 0, reached, depth)
    else:
        color[~known] = 0
        depth = np.where(known, depth, 0)
    origin = np.full(pose.shape, int(Origin.INVENTED), np.uint8)
    origin[from_cloud], origin[seen] = int(Origin.GLOBAL), int(Origin.STEREO)
    mask = None
    if camera_fixed is not None and tuple(camera_fixed[0].shape) == pose.shape:
        mask = camera_fixed[0].cpu().numpy()
        color = np.where(mask[..., None], camera_fixed[1].permute(1, 2, 0).cpu().numpy(), color)
        origin[mask], known = int(Origin.CAMERA_FIXED), known | mask
    confidence = confidence_of(
        color, blend.mass, blend.best, blend.spread(), seen=seen, cloud=from_cloud,
        camera_fixed=mask,
    )  # fmt: skip
    confidence[(depth <= 0) & (origin != int(Origin.CAMERA_FIXED))] = 0
    device = target.K.device
    return Synthesis(
        color=torch.from_numpy(color.clip(0, 1).astype(np.float32, copy=False))
        .permute(2, 0, 1)
        .to(device),
        depth=torch.from_numpy(depth * np.float32(unit))[None].to(device),
        origin=torch.from_numpy(origin)[None].to(device),
        confidence=torch.from_numpy(confidence)[None].to(device),
        known=torch.from_numpy(known)[None].to(device),
        stereo_weight=torch.from_numpy(seen.astype(np.float32))[None].to(device),
        made=torch.from_numpy(by_made)[None].to(device),
    )


def explain(
    target: Cameras,
    views: Sequence[View],
    depth: Float[Tensor, "1 H W"],
    pixel: tuple[float, float],
    *,
    unit: float = 1.0,
    options: SynthesisOptions = SynthesisOptions(),  # noqa: B008  (frozen)
) -> list[Contribution]:
    """What each view says about one pixel of a target, from the weights that the blend uses.

    Args:
        views: those the target was made from, in the same order.
        depth: the target's, as `synthesize` returned it.
        pixel: (u, v) in the target.

    Raises:
        ValueError: `pixel` lies outside the target.
    """
    from worldstereo.views.fusion import blend as kernels

    x, y = int(np.floor(pixel[0])), int(np.floor(pixel[1]))
    if not (0 <= x < target.width and 0 <= y < target.height):
        raise ValueError(
            f"pixel ({pixel[0]:g}, {pixel[1]:g}) lies outside the "
            f"{target.width}x{target.height} target."
        )
    Z = float(depth[0, y, x]) / unit
    pose = pose_of(target, unit)
    if Z <= 0 or not views:
        return []
    X, Y = (x - pose.K[2]) / pose.K[0] * Z, (y - pose.K[3]) / pose.K[1] * Z
    point = (pose.c2w[:3, :3] @ np.array([X, Y, Z]) + pose.position) * unit
    served = [fusion.view_arrays(view, unit) for view in views]
    fetched = SourceCameras(served, pose, options.agree, options.slip)
    share = _shares(served, pose, options)
    rows = []
    for i in range(len(served)):
        level = _level(float(_detail(fetched, i, X, Y, Z)), served[i])
        result = kernels.probe(X, Y, Z, *fetched.arguments(i, level), *fetched.limits(i, level))
        scale = 2.0 ** served[i].level(level).power
        uv = ((result[1] + 0.5) * scale, (result[2] + 0.5) * scale)
        rows.append((uv, float(np.prod(result[3:])) * share[i], _reason(result)))
    total = sum(weight for _, weight, _ in rows)
    best = max((weight for _, weight, _ in rows), default=0.0)
    return [
        Contribution(
            i, uv, tuple(point.tolist()), weight / total if total > 0 else 0.0,
            None if weight > 0.25 * best else reason,
        )
        for i, (uv, weight, reason) in enumerate(rows)
    ]  # fmt: skip


def weights_map(
    target: Cameras,
    views: Sequence[View],
    depth: Float[Tensor, "1 H W"],
    view: int,
    *,
    unit: float = 1.0,
    options: SynthesisOptions = SynthesisOptions(),  # noqa: B008  (frozen)
) -> Float[Tensor, "H W"]:
    """Share of one of `views` in every pixel of the target, in [0, 1]."""
    from worldstereo.views.fusion import blend as kernels

    pose = pose_of(target, unit)
    served = [fusion.view_arrays(v, unit) for v in views]
    fetched = SourceCameras(served, pose, options.agree, options.slip)
    z = depth[0].detach().cpu().numpy().astype(np.float32) / np.float32(unit)
    maps = np.zeros((len(served), *pose.shape), np.float32)
    standing = _shares(served, pose, options)
    y, x = np.mgrid[: pose.height, : pose.width]
    for i, work in enumerate(served):
        detail = _detail_at(fetched, i, x, y, z)
        for level, low, high in _passes(fetched, i, work, z):
            inside = (detail * 0.5**level >= low) & (detail * 0.5**level < high)
            share = np.zeros_like(z)
            kernels.weigh(
                np.where(inside, z, np.float32(0)), pose.K, *fetched.arguments(i, level),
                *fetched.limits(i, level), share,
            )  # fmt: skip
            maps[i] += share * standing[i]
    total = maps.sum(0)
    return torch.from_numpy(np.where(total > 0, maps[view] / np.maximum(total, 1e-12), 0))


# ---- the blend -------------------------------------------------------------------------------


class _Blend:
    """Weighted sums over the views that confirm each pixel."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.total = np.zeros((3, *shape), np.float32)
        self.energy = np.zeros((3, *shape), np.float32)
        self.weights, self.mass, self.best = (np.zeros(shape, np.float32) for _ in range(3))

    def add_all(
        self, views: Sequence[ViewArrays], pose: Pose, depth: np.ndarray, options: SynthesisOptions
    ) -> None:
        from worldstereo.views.fusion import blend as kernels

        if not views or not (depth > 0).any():
            return
        fetched = SourceCameras(views, pose, options.agree, options.slip)
        gain = _gains(views, pose) if options.exposure else np.ones((len(views), 3))
        share = _shares(views, pose, options)
        passes = [
            (i, level, low, high)
            for i, view in enumerate(views)
            for level, low, high in _passes(fetched, i, view, depth)
        ]
        arguments = [
            (fetched.arguments(i, level), gain, *fetched.limits(i, level), share[i], *span)
            for i, level, *span in passes
        ]
        rows = fusion.bands(pose.height)

        def band(k: int) -> None:
            for views_arguments, *rest in arguments:
                kernels.accumulate(
                    depth, pose.K, *views_arguments, *rest, *rows[k],
                    self.total, self.weights, self.energy, self.mass, self.best,
                )  # fmt: skip

        fusion.parallel_for(len(rows), band)

    def color(self) -> np.ndarray:
        """(H, W, 3) mean over the views."""
        from worldstereo.views.fusion import blend as kernels

        out = np.empty((*self.weights.shape, 3), np.float32)
        rows = fusion.bands(len(out))
        fusion.parallel_for(
            len(rows), lambda k: kernels.mean_color(self.total, self.weights, *rows[k], out)
        )
        return out

    def spread(self) -> np.ndarray:
        """(H, W) standard deviation of the views' luminance."""
        from worldstereo.views.fusion import blend as kernels

        out = np.empty(self.weights.shape, np.float32)
        rows = fusion.bands(len(out))
        fusion.parallel_for(len(rows), lambda k: kernels.deviation(self.energy, *rows[k], out))
        return out


def _shares(views: Sequence[ViewArrays], pose: Pose, options: SynthesisOptions) -> list[float]:
    """What each view's weight is multiplied by; 0: all that agree count alike.

    Generated views and given ones are ranked apart: neither moves what the others paint.
    """
    if not options.weighted:
        return [0.0] * len(views)
    share = np.ones(len(views))
    for given in (True, False) if options.nearest else ():
        rows = [i for i, v in enumerate(views) if (v.vote > 0) == given]
        share[rows] = fusion.standing([views[i] for i in rows], pose)
    return share.tolist()


def _gains(views: Sequence[ViewArrays], pose: Pose) -> np.ndarray:
    """Factors on the views' colours: exposure interpolated between the views near the target."""
    near = np.array(
        [1 / (0.02 / REFERENCE_DEPTH + pose_distance(pose, v.pose)) ** 2 for v in views]
    )
    gain = np.stack([v.log_gain for v in views])
    return np.exp(gain - near @ gain / near.sum())


def _passes(
    fetched: SourceCameras, i: int, view: ViewArrays, depth: np.ndarray
) -> list[tuple[int, float, float]]:
    """Levels of a view's pyramid that serve some pixel, each with its range of detail.

    The range counts samples of that level, whose intrinsics the kernel is given.
    """
    stride = 16
    y, x = np.nonzero(depth[::stride, ::stride] > 0)
    if len(y) == 0:  # little is asked for, between the samples
        stride = 1
        y, x = np.nonzero(depth > 0)
    y, x = y * stride, x * stride
    detail = _detail_at(fetched, i, x, y, depth[y, x])
    detail = detail[detail > 0]
    top = _level(float(detail.max()), view) if len(detail) else 0
    top = min(top, view.level(top).power)
    edges = [0.0, *(2.0 ** (k - 0.5) for k in range(1, top + 1)), np.inf]
    return [(k, edges[k] * 0.5**k, edges[k + 1] * 0.5**k) for k in range(top + 1)]


def _detail_at(
    fetched: SourceCameras, i: int, x: np.ndarray, y: np.ndarray, Z: np.ndarray
) -> np.ndarray:
    """`_detail` for pixels of the target at depth Z."""
    K = fetched.target.K
    return _detail(fetched, i, (x - K[2]) / K[0] * Z, (y - K[3]) / K[1] * Z, Z)


def _detail(fetched: SourceCameras, i: int, X, Y, Z):  # noqa: ANN001, ANN202  (floats or arrays)
    """Samples of the view per pixel of the target, along one axis; 0 behind the view."""
    T, K, Kt = fetched.T[i], fetched.K[i], fetched.target.K
    q = T[2, 0] * X + T[2, 1] * Y + T[2, 2] * Z + T[2, 3]
    scale = (K[0] * K[1]) ** 0.5 / (Kt[0] * Kt[1]) ** 0.5
    return np.where(q > fusion.NEAR, scale * Z / np.maximum(q, 1e-9), 0)


def _level(detail: float, view: ViewArrays) -> int:
    """The level of a view's pyramid that has about one sample a pixel."""
    if detail < 2**0.5:
        return 0
    return min(int(np.log2(detail) + 0.5), view.level(int(np.log2(detail) + 0.5)).power)


def _reason(result: tuple) -> str | None:
    """What a view's weight suffers from most."""
    names = {1: "outside", 2: "unknown", 3: "looked through", 4: "behind"}
    if result[0] in names:
        return names[result[0]]
    _, border, rim, facing = result[3:]
    factors = {"border": border, "edge": rim, "angle": facing}
    name = min(factors, key=lambda k: factors[k])
    return name if factors[name] < 0.5 else None


# ---- depth and colour of the unseen ------------------------------------------------------------


def _cloud(splat: RenderResult | None, pose: Pose, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth (u) and colour (H, W, 3) of the cloud; zeros without one."""
    if splat is None:
        return np.zeros(pose.shape, np.float32), np.zeros((*pose.shape, 3), np.float32)
    depth = splat.depth[0].detach().cpu().numpy().astype(np.float32) / np.float32(unit)
    return depth, splat.color.detach().cpu().permute(1, 2, 0).numpy().astype(np.float32)


def _complete(depth: np.ndarray, got: np.ndarray, background: bool) -> np.ndarray:
    """Depth with its holes continued from the background side."""
    if not background or got.all() or not got.any():
        return depth
    d = invert(depth)
    interpolant = fusion.harmonic_fill(d, got, trust=fusion.background_trust(d, got))
    return np.where(got, depth, invert(interpolant))


def _antialias(color: np.ndarray, depth: np.ndarray, known: np.ndarray) -> np.ndarray:
    """At depth edges a 3x3 Gaussian over both surfaces: a photograph mixes them."""
    import cv2

    from worldstereo.views.fusion import blend as blending
    from worldstereo.views.fusion import kernels

    if not known.any():
        return color
    d = invert(depth)
    edge = np.empty(d.shape, np.uint8)
    rows = fusion.bands(len(d))
    fusion.parallel_for(len(rows), lambda k: kernels.depth_edges(d, 0.03, *rows[k], edge))
    share = cv2.GaussianBlur(edge.astype(np.float32), (3, 3), 0.7)
    out = color.copy()
    fusion.parallel_for(len(rows), lambda k: blending.soften(color, known, share, *rows[k], out))
    return out


def _fill(
    color: np.ndarray,
    depth: np.ndarray,
    known: np.ndarray,
    reliable: np.ndarray,
    options: SynthesisOptions,
) -> np.ndarray:
    """Holes continued from the reliable pixels around them, the far side first."""
    if known.all() or not known.any():
        return color
    if not options.background:
        return fusion.nearest_fill(color, known)
    trust = fusion.background_trust(invert(depth), reliable)
    interpolant = fusion.harmonic_fill(color, reliable, trust=trust, sweeps=15, asked=~known)
    return drawn_to_mean(interpolant, known) if options.mean else interpolant


def _check(target: Cameras, splat: RenderResult | None) -> None:
    if target.batch_shape != ():
        raise ValueError(
            f"target must be a single camera, got a batch of {tuple(target.batch_shape)}."
        )
    if splat is not None and tuple(splat.depth.shape) != (1, target.height, target.width):
        raise ValueError(
            f"splat has depth of shape {tuple(splat.depth.shape)}; it must be "
            f"(1, {target.height}, {target.width}) like the target."
        )
