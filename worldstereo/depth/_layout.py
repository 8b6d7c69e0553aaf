"""Depth without weights: a stage set of ground, walls and sky, of one picture or of a sphere.

Source: after Hoiem, Efros & Hebert, Automatic photo pop-up, SIGGRAPH 2005, without learning.
"""

import math

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras
from worldstereo.depth._base import DepthEstimate, default_camera


class LayoutDepth:
    """A rough stage set without any weights: ground, things that stand on it, sky far away.

    A seam across the picture, found by dynamic programming on horizontal edges, separates the
    ground from what stands on it; everything above the seam stands upright where the seam meets
    the ground. Smooth bright regions that reach the upper border are put far away.

    Source: after Hoiem, Efros & Hebert, Automatic photo pop-up, SIGGRAPH 2005, without learning.
    """

    def __init__(
        self, *, height: float = 1.5, reach: float = 12.0, up: Float[Tensor, "3"] | None = None
    ) -> None:
        """`height` of the camera above the ground and `reach` of the set, scene units; `up` in
        the world, default: the picture's own upward direction."""
        if not (height > 0 and reach > height):
            raise ValueError(f"reach must be above height and both above 0, got {reach}, {height}.")
        self.height, self.reach, self.up = height, reach, up

    def on(self, up: Float[Tensor, "3"]) -> "LayoutDepth":
        """The same for a picture whose up in the world is known."""
        return LayoutDepth(height=self.height, reach=self.reach, up=up)

    def __call__(
        self, color: Float[Tensor, "3 H W"], cameras: Cameras | None = None
    ) -> DepthEstimate:
        _, H, W = color.shape
        cameras = default_camera(W, H) if cameras is None else cameras
        if (cameras.width, cameras.height) != (W, H):
            raise ValueError(
                f"cameras are {cameras.width} x {cameras.height} px and color {W} x {H}; "
                f"both must be the same."
            )
        # A small picture decides the layout; 128 columns are plenty for a stage set.
        factor = min(1.0, 128 / max(H, W))
        h, w = max(8, round(H * factor)), max(8, round(W * factor))
        small = functional.interpolate(color[None], (h, w), mode="area")[0].cpu()
        fall = self._fall(cameras, h, w)  # how fast a ray sinks, per unit of depth
        depth = self._stage(small, fall)
        sky = _sky(small) & (fall < 0.02)
        depth = torch.where(sky, 3 * self.reach, depth)
        depth = _smoothed(depth, small)
        full = functional.interpolate(depth.reciprocal()[None, None], (H, W), mode="bilinear")
        depth = full[0].clamp_min(1e-6).reciprocal().to(color)
        confidence = torch.where(depth < 2 * self.reach, 0.25, 0.1)
        return DepthEstimate(depth, confidence, True, cameras)

    def _fall(self, cameras: Cameras, h: int, w: int) -> Float[Tensor, "h w"]:
        """Downward component of the ray with z = 1 through each cell."""
        R = cameras.c2w[:3, :3].detach().cpu().float()
        down = torch.tensor([0.0, 1.0, 0.0]) if self.up is None else R.T @ -self.up.cpu().float()
        down = functional.normalize(down, dim=0)
        pixels = cameras.pixel_grid(h, w).cpu().float()
        rays = torch.cat([pixels, torch.ones(len(pixels), 1)], 1)
        rays = rays @ torch.linalg.inv(cameras.K.cpu().float()).mT
        return (rays @ down).reshape(h, w)

    def _stage(
        self, small: Float[Tensor, "3 h w"], fall: Float[Tensor, "h w"]
    ) -> Float[Tensor, "h w"]:
        h, w = fall.shape
        ground = self.height / fall.clamp_min(self.height / self.reach)
        if float((fall[-1] - fall[0]).min()) <= 0:  # looking straight down or turned: ground only
            return ground
        seam = _seam(small, fall, self.height / self.reach)
        rows = torch.arange(h)[:, None].expand(h, w)
        stands = ground.gather(0, seam[None])
        return torch.where(rows >= seam[None], ground, stands)


class SphereLayout:
    """The same stage set around a panorama, made once on the sphere: its views agree.

    The floor lies `height` below the camera. Where no sky is seen there is a ceiling, as high as
    the upper edge of the walls says.
    """

    def __init__(
        self, color: Float[Tensor, "3 h w"], *, height: float = 1.5, reach: float = 12.0
    ) -> None:
        """`color`: a small equirectangular picture, from straight up to straight down."""
        _, h, w = color.shape
        rise = (0.5 - (torch.arange(h) + 0.5) / h) * math.pi
        fall = torch.sin(-rise)[:, None].expand(h, w)
        floor = _around(_seam, color, fall, height / reach)
        walls = height / torch.tan(-rise[floor].clamp(max=-math.atan(height / reach)))
        walls = _median_around(walls.clamp(0.3, reach), 9)
        sky = _sky(color) & (fall < 0)
        radial = walls[None] / torch.cos(rise)[:, None].clamp_min(1e-3)
        if not bool(sky.any()):
            upper = h - 1 - _around(_seam, color.flip(1), fall, height / reach)
            rises = walls * torch.tan(rise[upper].clamp(min=math.atan(0.3 / reach)))
            ceiling = float(rises.median().clamp(0.4 * height, 3 * height))
            radial = torch.minimum(radial, ceiling / (-fall).clamp_min(1e-6))
        radial = torch.minimum(radial, height / fall.clamp_min(1e-6)).clamp_max(3 * reach)
        radial = torch.where(sky, 3 * reach, radial)
        self._near = radial.reciprocal().numpy().astype(np.float32)  # inverse distance
        self._h, self._w = h, w

    def depth(self, R: np.ndarray, K: np.ndarray, width: int, height: int) -> Tensor:
        """(1, height, width) depth along the axis of a view; `R`: camera to panorama."""
        rays = _rays(K, width, height)
        x, y = self._cells(rays @ R.T)
        padded = np.concatenate([self._near[:, -2:], self._near, self._near[:, :2]], axis=1)
        near = cv2.remap(
            padded,
            (x % self._w + 1.5).astype(np.float32),
            (y - 0.5).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        z = 1 / (np.maximum(near, 1e-6) * np.linalg.norm(rays, axis=-1))
        return torch.from_numpy(z.astype(np.float32))[None]

    def replace(self, depth: Float[Tensor, "H W"], R: np.ndarray, K: np.ndarray) -> None:
        """What a view with this depth sees takes the place of the layout there."""
        v, u = np.mgrid[0 : self._h, 0 : self._w] + 0.5
        lon, lat = (u / self._w - 0.5) * 2 * math.pi, (0.5 - v / self._h) * math.pi
        directions = np.stack(
            [np.sin(lon) * np.cos(lat), -np.sin(lat), np.cos(lon) * np.cos(lat)], -1
        )
        seen = directions @ R
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = seen @ K.T
            x, y = pixels[..., 0] / pixels[..., 2], pixels[..., 1] / pixels[..., 2]
        height, width = depth.shape
        inside = (seen[..., 2] > 1e-6) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        at = y[inside].astype(int), x[inside].astype(int)
        radial = depth.numpy()[at] / seen[inside][:, 2]
        self._near[inside] = np.where(radial > 0, 1 / np.maximum(radial, 1e-6), self._near[inside])

    def _cells(self, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        around = np.arctan2(rays[..., 0], rays[..., 2])
        down = np.arctan2(rays[..., 1], np.hypot(rays[..., 0], rays[..., 2]))
        return (around / (2 * math.pi) + 0.5) * self._w, (down / math.pi + 0.5) * self._h


def _rays(K: np.ndarray, width: int, height: int) -> np.ndarray:
    v, u = np.mgrid[0:height, 0:width] + 0.5
    return np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T


def _around(find, color: Tensor, fall: Tensor, least: float) -> Tensor:
    """A seam without ends: found on three rounds side by side, of which the middle one counts."""
    w = fall.shape[1]
    return find(torch.cat([color] * 3, -1), torch.cat([fall] * 3, -1), least)[w : 2 * w]


def _median_around(values: Float[Tensor, "w"], size: int) -> Float[Tensor, "w"]:
    r = size // 2
    round_ = torch.cat([values[-r:], values, values[:r]])
    return round_.unfold(0, size, 1).median(dim=1).values


def sky_mask(color: Float[Tensor, "3 H W"]) -> Bool[Tensor, "1 H W"]:
    """Where a picture seems to show sky: smooth, bright or bluish, and from the upper border on."""
    _, H, W = color.shape
    cells = max(1, round(max(H, W) / 96))
    small = functional.interpolate(color[None], (-(-H // cells), -(-W // cells)), mode="area")[0]
    return functional.interpolate(_sky(small)[None, None].float(), (H, W))[0] > 0.5


def _sky(small: Float[Tensor, "3 h w"]) -> Bool[Tensor, "h w"]:
    """Smooth, bright or bluish cells that hang together with the upper border."""
    _, h, w = small.shape
    grey = small.mean(0)
    mean = functional.avg_pool2d(grey[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
    rough = functional.avg_pool2d((grey - mean).abs()[None, None], 5, 1, 2)[0, 0]
    bluish = small[2] >= small[0] - 0.03
    alike = (rough < 0.03) & bluish & (grey > 0.35)
    sky = torch.zeros(h, w, dtype=torch.bool)
    sky[0] = alike[0]
    for _ in range(h + w):
        grown = functional.max_pool2d(sky[None, None].float(), 3, 1, 1)[0, 0].bool() & alike
        if torch.equal(grown, sky):
            break
        sky = grown
    # A few bright cells are a lamp or a wall; a sky fills a good part of the upper third.
    return sky if float(sky[: max(1, h // 3)].float().mean()) > 0.35 else torch.zeros_like(sky)


def _seam(small: Float[Tensor, "3 h w"], fall: Float[Tensor, "h w"], least: float) -> Tensor:
    """For each column the first row of ground: strong horizontal edges, smooth across columns."""
    _, h, w = small.shape
    blurred = functional.avg_pool2d(small[None], 3, 1, 1, count_include_pad=False)[0]
    edge = torch.zeros(h, w)
    edge[1:] = (blurred[:, 1:] - blurred[:, :-1]).abs().mean(0)
    edge = edge / edge.mean().clamp_min(1e-6)
    row = torch.linspace(0, 1, h)[:, None].expand(h, w)
    # Ground rises towards the horizon: rows below it cost by their distance from a likely place.
    horizon = (fall < least).float().sum(0, keepdim=True) / h
    likely = horizon + 0.35 * (1 - horizon)
    cost = 3.0 * (row - likely).abs() - 0.35 * edge.clamp_max(6.0)
    cost = torch.where(fall < least, 1e3, cost)
    cost[-1] = cost[-1].clamp_max(10.0)
    best, back = cost[:, 0].clone(), torch.zeros(h, w, dtype=torch.int64)
    steps = (torch.arange(h)[:, None] - torch.arange(h)[None]).abs().float()
    for x in range(1, w):
        total = best[None] + 0.6 * steps.clamp_max(8.0)
        least_cost, back[:, x] = total.min(dim=1)
        best = cost[:, x] + least_cost
    seam = torch.zeros(w, dtype=torch.int64)
    seam[-1] = best.argmin()
    for x in range(w - 1, 0, -1):
        seam[x - 1] = back[seam[x], x]
    return seam


def _smoothed(depth: Float[Tensor, "h w"], small: Float[Tensor, "3 h w"]) -> Float[Tensor, "h w"]:
    """Inverse depth averaged over cells of like colour, so that surfaces follow the picture."""
    d = depth.reciprocal()
    h, w = d.shape
    radius = 3
    size = 2 * radius + 1
    padded = functional.pad(torch.cat([d[None], small])[None], (radius,) * 4, mode="replicate")
    windows = functional.unfold(padded, size).reshape(4, size * size, h * w)
    difference = (windows[1:] - small.reshape(3, 1, -1)).abs().sum(0)
    weight = torch.exp(-difference / 0.15)
    return ((windows[0] * weight).sum(0) / weight.sum(0)).reshape(h, w).reciprocal()
