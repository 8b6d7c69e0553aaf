"""From a click to what is drawn: where a pixel comes from, who remembers it, how much each says.

Pure functions over a published scene; no state, no widgets. Weights and refusals come from
`synthesis.explain`, that is from the very weights that blend the views, never from a second model.
Pixels are (u, v) with the first pixel's centre at (0.5, 0.5); lengths are scene units.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldstereo.cameras import Cameras
from worldstereo.errors import WorldStereoError
from worldstereo.memory.stereo import dense as synthesis
from worldstereo.memory.stereo.references import Reference as Votes
from worldstereo.scene import Clip, DepthKind, Origin, Scene, View
from worldstereo.world import World

from . import palette

COARSE = 160
"""Pixels across at which shares over a whole frame are measured; more would change no figure."""

REFUSED = 0.02
"""A reference with less of a say than this is drawn as refused."""

REASONS = {
    "looked through": "that view sees past this point",
    "behind": "hidden behind a nearer surface",
    "angle": "seen at too different an angle",
    "edge": "at a depth edge there",
    "border": "at the border of that picture",
    "outside": "outside that picture",
    "unknown": "depth unknown there",
}
DEPTHS = {
    DepthKind.MEASURED: "measured",
    DepthKind.REPROJECTED: "from other views",
    DepthKind.STEREO: "multi-view stereo",
    DepthKind.LEARNED: "depth model",
    DepthKind.INPAINTED: "estimated",
    DepthKind.GENERATED: "generated",
    DepthKind.CAMERA_FIXED: "fixed to the camera",
    DepthKind.MASKED: "masked",
    DepthKind.UNKNOWN: "unknown",
}
"""Where the depth of a pixel comes from, in words."""
ORIGIN_COLORS = {
    Origin.GLOBAL: palette.GLOBAL,
    Origin.STEREO: palette.STEREO,
    Origin.INVENTED: palette.INVENTED,
    Origin.CAMERA_FIXED: palette.CAMERA_FIXED,
}


@dataclass(frozen=True, eq=False)
class Target:
    """A picture under inspection, with what its step kept about every pixel."""

    view: int
    """Index into `Scene.views`."""
    camera: Cameras
    color_u8: UInt8[Tensor, "3 H W"]
    depth: Float[Tensor, "1 H W"]
    origin: UInt8[Tensor, "1 H W"] | None
    """None for a view that was given: every pixel of it was seen."""
    confidence: Float[Tensor, "1 H W"] | None
    references: tuple[int, ...]
    """The views it is explained by, as indices into `Scene.views`."""

    @property
    def generated(self) -> bool:
        return self.origin is not None


@dataclass(frozen=True)
class PointMatch:
    """What one reference says about the inspected pixel."""

    view: int
    pixel: tuple[float, float]
    weight: float
    """Share of the blend in [0, 1]; all matches together 1, or 0 where none confirms."""
    reason: str | None
    """Why it weighs little or nothing, in plain words; None where it counts in full."""
    inside: bool
    """False: the pixel lies outside the reference's picture."""

    @property
    def refused(self) -> bool:
        return self.weight < REFUSED


@dataclass(frozen=True, eq=False)
class Inspection:
    """Everything known about one pixel."""

    target: Target
    pixel: tuple[float, float]
    point: tuple[float, float, float] | None
    """In the world; None where the pixel has no depth."""
    distance: float
    """From the camera's centre; 0 without a point."""
    origin: Origin | None
    confidence: float | None
    matches: tuple[PointMatch, ...]
    """Heaviest first, refused ones last."""

    @property
    def accepted(self) -> tuple[PointMatch, ...]:
        return tuple(match for match in self.matches if not match.refused)

    @property
    def refused(self) -> tuple[PointMatch, ...]:
        return tuple(match for match in self.matches if match.refused)


@dataclass(frozen=True)
class Reference:
    """How much a remembered view served a whole frame."""

    view: int
    share: float
    """Mean share of the blend over the pixels that any reference confirms, in [0, 1]."""
    covered: float
    """Part of the frame's pixels in which it has a say, in [0, 1]."""


# ---- what is looked at ---------------------------------------------------------------------------


def target_of(scene: Scene, view: int) -> Target:
    """The picture of one remembered view, with its clip's maps where a step made it.

    Raises:
        WorldStereoError: the scene has no such view.
    """
    if not 0 <= view < len(scene.views):
        raise WorldStereoError(f"View {view + 1} is gone; there are {len(scene.views)}.")
    seen = scene.views[view]
    clip = clip_of(scene, seen)
    if clip is None:
        references = _others(scene, view)
        return Target(view, seen.cameras, seen.color_u8, seen.depth, None, None, references)
    t = seen.frame
    made_with = clip.references[t] if t < len(clip.references) else ()
    references = tuple(i for i in made_with if 0 <= i < len(scene.views) and i != view)
    return Target(
        view=view,
        camera=seen.cameras,
        color_u8=clip.color_u8[t],
        depth=clip.depth[t],
        origin=clip.origin[t],
        confidence=clip.confidence[t],
        references=references,
    )


def depths(view: View) -> dict[str, float]:
    """Shares of a view's pixels by where their depth comes from; only what occurs."""
    count = torch.bincount(view.kind.flatten().long(), minlength=len(DepthKind))
    total = max(1, int(count.sum()))
    return {word: int(count[kind]) / total for kind, word in DEPTHS.items() if int(count[kind])}


def locate(
    scene: Scene, point: Sequence[float], camera: Cameras | None = None
) -> tuple[int, tuple[float, float]] | None:
    """The view that shows a point of the world best, and where.

    Of the views whose depth confirms the point within 3 %, the one whose line of sight is nearest
    to that of `camera` (else the newest). None where no view shows it.
    """
    at = torch.tensor([float(v) for v in point], dtype=torch.float32)
    best: tuple[float, int, tuple[float, float]] | None = None
    for i, view in enumerate(scene.views):
        cameras = view.cameras
        pixels, depth = cameras.project(at[None].to(cameras.K))
        u, v, z = float(pixels[0, 0]), float(pixels[0, 1]), float(depth[0])
        if z <= 0 or not (0 <= u < view.width and 0 <= v < view.height):
            continue
        there = float(view.depth[0, int(v), int(u)])
        if there <= 0 or abs(there - z) > 0.03 * z:
            continue
        if camera is None:
            cost = -float(i)
        else:
            ours, theirs = at - camera.position.cpu(), at - cameras.position.cpu()
            cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=0)
            cost = 1 - float(cosine) + 0.01 * abs(math.log(max(1e-6, float(theirs.norm()))))
        if best is None or cost < best[0]:
            best = (cost, i, (u, v))
    return None if best is None else best[1:]


# ---- one pixel -----------------------------------------------------------------------------------


def inspect(scene: Scene, view: int, pixel: tuple[float, float]) -> Inspection:
    """Where one pixel of a view comes from.

    Raises:
        WorldStereoError: no such view, or the pixel lies outside it.
    """
    target = target_of(scene, view)
    width, height = target.camera.width, target.camera.height
    u, v = pixel
    if not (0 <= u < width and 0 <= v < height):
        raise WorldStereoError(
            f"Pixel {u:.0f}, {v:.0f} lies outside view {view + 1}, which is {width} × {height}."
        )
    x, y = int(u), int(v)
    z = float(target.depth[0, y, x])
    point, distance = None, 0.0
    if z > 0:
        # the centre of the pixel, as the blend has it
        centre = torch.tensor([[x + 0.5, y + 0.5]]).to(target.camera.K)
        at = target.camera.unproject(centre, torch.tensor([z]).to(target.camera.K))[0]
        distance = float((at - target.camera.position).norm())
        point = (float(at[0]), float(at[1]), float(at[2]))
    views = [scene.views[i] for i in target.references]
    told = synthesis.explain(target.camera, views, target.depth, pixel, unit=scene.unit)
    matches = [_match(contribution, target.references, scene.views) for contribution in told]
    matches.sort(key=lambda match: (match.refused, -match.weight, match.view))
    return Inspection(
        target=target,
        pixel=(u, v),
        point=point,
        distance=distance,
        origin=None if target.origin is None else Origin(int(target.origin[0, y, x])),
        confidence=None if target.confidence is None else float(target.confidence[0, y, x]),
        matches=tuple(matches),
    )


def _match(
    told: synthesis.Contribution, references: tuple[int, ...], views: Sequence[View]
) -> PointMatch:
    index = references[told.view]
    u, v = told.pixel
    view = views[index]
    inside = math.isfinite(u) and math.isfinite(v) and 0 <= u < view.width and 0 <= v < view.height
    reason = None if told.reason is None else REASONS.get(told.reason, told.reason)
    if told.weight < REFUSED and reason is None:
        reason = "others say far more"
    return PointMatch(index, (u, v), told.weight, reason, inside)


# ---- a whole frame -------------------------------------------------------------------------------


def references(scene: Scene, view: int) -> tuple[Reference, ...]:
    """The references of a frame with their scores, the one that says most first."""
    target = target_of(scene, view)
    if not target.references:
        return ()
    maps = weight_maps(scene, target)
    told = maps.sum(0) > 0
    area = max(1, int(told.sum()))
    found = [
        Reference(index, float(one[told].sum()) / area, float((one > 0.02).float().mean()))
        for index, one in zip(target.references, maps, strict=True)
    ]
    return tuple(sorted(found, key=lambda reference: (-reference.share, reference.view)))


def votes(world: World, target: Target) -> tuple[Votes, ...]:
    """The views that the keypoint level would serve the frame with, and the entries that voted.

    Raises:
        WorldBusy: a step is running.
    """
    return world.references(target.camera, depth=target.depth, without=(target.view,))


def weight_maps(scene: Scene, target: Target) -> Float[Tensor, "R h w"]:
    """Share of each reference in every pixel of the frame, on a coarser grid."""
    scale = min(1.0, COARSE / target.camera.width)
    width = max(1, round(target.camera.width * scale))
    height = max(1, round(target.camera.height * scale))
    rows = ((torch.arange(height) + 0.5) * target.camera.height / height).long()
    columns = ((torch.arange(width) + 0.5) * target.camera.width / width).long()
    depth = target.depth[:, rows][:, :, columns].contiguous()
    camera = target.camera.scaled(width, height)
    views = [scene.views[i] for i in target.references]
    maps = [
        synthesis.weights_map(camera, views, depth, i, unit=scene.unit) for i in range(len(views))
    ]
    return torch.stack(maps).nan_to_num(0.0)


def shares(target: Target) -> dict[str, float]:
    """Part of the frame's pixels from each source, in [0, 1]; empty for a given view."""
    if target.origin is None:
        return {}
    count = torch.bincount(target.origin.flatten().long(), minlength=len(Origin)).double()
    total = float(count.sum())
    return {origin.name.lower(): float(count[int(origin)]) / total for origin in Origin}


# ---- pictures ------------------------------------------------------------------------------------


def pixels_of(color_u8: UInt8[Tensor, "3 H W"]) -> np.ndarray:
    """8-bit (H, W, 3) as pictures want it."""
    return color_u8.permute(1, 2, 0).cpu().numpy()


def origin_picture(target: Target) -> np.ndarray:
    """The frame in grey under the colours of where each pixel comes from, uint8 (H, W, 3)."""
    if target.origin is None:
        grey = pixels_of(target.color_u8).astype(np.float32).mean(axis=2, keepdims=True)
        return np.repeat(grey, 3, axis=2).astype(np.uint8)
    return sources_picture(target.color_u8, target.origin)


def sources_picture(color_u8: UInt8[Tensor, "3 H W"], origin: UInt8[Tensor, "1 H W"]) -> np.ndarray:
    """A picture in grey under the colours of where each pixel comes from, uint8 (H, W, 3)."""
    grey = pixels_of(color_u8).astype(np.float32).mean(axis=2, keepdims=True)
    colors = np.zeros((len(Origin), 3), np.float32)
    for kind, color in ORIGIN_COLORS.items():
        colors[int(kind)] = color
    tint = colors[origin[0].cpu().numpy()]
    return np.clip(0.55 * tint * (0.45 + grey / 255) + 0.3 * grey, 0, 255).astype(np.uint8)


def depth_pictures(depth: Float[Tensor, "T 1 H W"]) -> Iterator[np.ndarray]:
    """Nearness as brightness, alike in all frames, uint8 (H, W, 3); black where there is none."""
    near = torch.where(depth > 0, 1 / depth.clamp_min(1e-9), torch.nan)
    sample = near.flatten()[:: max(1, near.numel() // 100_000)]
    sample = sample[sample.isfinite()]
    some = len(sample) > 0
    low, high = torch.quantile(sample, torch.tensor([0.02, 0.98])).tolist() if some else (0.0, 1.0)
    for frame in near:
        share = ((frame[0] - low) / max(high - low, 1e-9)).clamp(0, 1) * 0.9 + 0.1
        grey = (torch.nan_to_num(share) * 255).to(torch.uint8).cpu().numpy()
        yield np.repeat(grey[..., None], 3, axis=2)


def agreement_picture(color_u8: UInt8[Tensor, "3 H W"], cells: UInt8[Tensor, "h w"]) -> np.ndarray:
    """A picture in grey, over it the cells of `Clip.agreement_map`: found, or contradicted.

    Cells in which too little was expected to say anything stay grey.
    """
    height, width = color_u8.shape[1:]
    cell = cells.cpu().numpy()
    rows = (np.arange(height) * cell.shape[0] // height)[:, None]
    full = cell[rows, (np.arange(width) * cell.shape[1] // width)[None]].astype(np.float32)
    grey = pixels_of(color_u8).astype(np.float32).mean(axis=2, keepdims=True)
    share = ((full - 1) / 254)[..., None]
    found, lost = (np.array(color, np.float32) for color in (palette.GLOBAL, palette.REFUSED))
    tint = share * found + (1 - share) * lost
    out = np.where((full > 0)[..., None], 0.5 * grey + 0.5 * tint, 0.6 * grey)
    return np.clip(out, 0, 255).astype(np.uint8)


def confidence_picture(target: Target) -> np.ndarray:
    """Confidence as brightness, uint8 (H, W, 3): black is 0, white is 1."""
    if target.confidence is None:
        return np.full((*target.depth.shape[1:], 3), 255, np.uint8)
    values = (target.confidence[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return np.repeat(values[..., None], 3, axis=2)


def heat_picture(target: Target, weights: Float[Tensor, "h w"]) -> np.ndarray:
    """The frame, warmer where one reference has more of a say, uint8 (H, W, 3)."""
    return heated(target.color_u8, weights)


def heated(color_u8: UInt8[Tensor, "3 H W"], weights: Float[Tensor, "h w"]) -> np.ndarray:
    """A picture in grey, warmer where `weights` in [0, 1] are larger, uint8 (H, W, 3)."""
    height, width = color_u8.shape[1:]
    full = torch.nn.functional.interpolate(
        weights[None, None].float(), size=(height, width), mode="bilinear", align_corners=False
    )
    heat = full[0, 0].clamp(0, 1).cpu().numpy()[..., None]
    grey = pixels_of(color_u8).astype(np.float32).mean(axis=2, keepdims=True)
    warm = np.array(ORIGIN_COLORS[Origin.STEREO], np.float32) * (0.35 + 0.65 * grey / 255)
    return np.clip((1 - heat) * grey * 0.55 + heat * warm, 0, 255).astype(np.uint8)


def votes_picture(target: Target, votes: Votes) -> np.ndarray:
    """The frame in grey, on it the entries that voted, brighter where a vote weighs more, uint8
    (H, W, 3)."""
    height, width = target.color_u8.shape[1:]
    grey = 0.55 * pixels_of(target.color_u8).astype(np.float32).mean(axis=2, keepdims=True)
    out = np.repeat(grey, 3, axis=2)
    half = max(1, round(width / 160))
    warm = np.array(ORIGIN_COLORS[Origin.STEREO], np.float32)
    for (u, v), weight in zip(votes.pixels[::-1], votes.weights[::-1], strict=True):
        rows = slice(max(0, int(v) - half), int(v) + half + 1)
        columns = slice(max(0, int(u) - half), int(u) + half + 1)
        out[rows, columns] = (0.4 + 0.6 * weight) * warm
    return out.astype(np.uint8)


def attention_picture(
    color_u8: UInt8[Tensor, "3 H W"],
    weights: Float[Tensor, "R C"],
    window: Bool[Tensor, "R C"],
    peak: float,
) -> np.ndarray:
    """A reference under the attention that one pixel pays it, uint8 (H, W, 3).

    Args:
        weights: attention on each token of the reference.
        window: the tokens that show the same place in 3D; outlined in white.
        peak: the weight that is drawn warmest, so that references can be compared.
    """
    image = heated(color_u8, (weights / max(peak, 1e-12)).clamp(0, 1).sqrt())
    height, width = image.shape[:2]
    rows = (np.arange(height) * window.shape[0] / height).astype(int)
    columns = (np.arange(width) * window.shape[1] / width).astype(int)
    inside = window.cpu().numpy()[rows][:, columns]
    padded = np.pad(inside, 2)
    core = inside.copy()
    for v, u in ((0, 2), (4, 2), (2, 0), (2, 4)):  # two pixels inwards from every side
        core &= padded[v : v + height, u : u + width]
    image[inside & ~core] = 255
    return image


def tinted(color: UInt8[np.ndarray, "H W 3"], known: Bool[np.ndarray, "H W"]) -> np.ndarray:
    """A preview with what no memory knows in the colour of invention."""
    tint = np.array(ORIGIN_COLORS[Origin.INVENTED], np.float32)
    shown = color.copy()
    shown[~known] = (0.35 * shown[~known] + 0.65 * tint).astype(np.uint8)
    return shown


# ---- helpers -------------------------------------------------------------------------------------


def clip_of(scene: Scene, view: View) -> Clip | None:
    """The clip whose frame a view is; None for a given view, or one whose clip is gone."""
    if view.step == 0:
        return None
    for clip in reversed(scene.clips):
        if clip.step == view.step and view.frame < len(clip):
            same = tuple(clip.color_u8.shape[2:]) == (view.height, view.width)
            return clip if same else None
    return None


def _others(scene: Scene, view: int) -> tuple[int, ...]:
    """The views that see what a given view sees, without itself and without generated ones."""
    given = [i for i, other in enumerate(scene.views) if other.step == 0 and i != view]
    if not given:
        return ()
    seen = scene.views[view]
    chosen = synthesis.choose_views([scene.views[i] for i in given], seen.cameras, seen.depth)
    return tuple(given[i] for i in chosen)
