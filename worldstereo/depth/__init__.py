"""Depth from one picture: `DepthEstimator`, a layout without weights, real models, alignment.

Depth is z along the optical axis in scene units, 0 where unknown. A single picture does not say how
large things are: `LayoutDepth` assumes a camera 1.5 units above the ground.
"""

import logging
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from worldstereo.cameras import Cameras
from worldstereo.errors import WeightsMissing

log = logging.getLogger(__name__)

MODEL_FOLDER = "WORLDSTEREO_DEPTH_MODEL"  # environment variable that names a local model
DEFAULT_FOV = math.radians(60.0)  # of the long side, where nothing says better


class DepthEstimate(NamedTuple):
    """What an estimator makes of one picture."""

    depth: Float[Tensor, "1 H W"]
    """Scene units; above 0 everywhere."""
    confidence: Float[Tensor, "1 H W"]
    """A weight in [0, 1]; never a threshold."""
    rough: bool
    """True: a layout guess that must be labelled as such."""
    cameras: Cameras
    """The single camera that was given, or the one that was assumed."""


@runtime_checkable
class DepthEstimator(Protocol):
    """Depth of one picture, deterministic."""

    def __call__(
        self, color: Float[Tensor, "3 H W"], cameras: Cameras | None = None
    ) -> DepthEstimate: ...


def default_camera(width: int, height: int, fov: float = DEFAULT_FOV) -> Cameras:
    """A camera at the origin looking along +z; `fov` in radians across the longer side."""
    focal = max(width, height) / 2 / math.tan(fov / 2)
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return Cameras(K, torch.eye(4), width, height)


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


class TransformersDepth:
    """A depth model of the `transformers` library from a local folder; nothing is downloaded."""

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu") -> None:
        """
        Raises:
            WeightsMissing: the folder holds no `config.json` and `.safetensors`, or the
                `transformers` library is not installed.
        """
        self.folder = Path(folder)
        found = self.folder.is_dir() and (self.folder / "config.json").is_file()
        if not found or not any(self.folder.glob("*.safetensors")):
            raise WeightsMissing(
                f"{self.folder.name}: config.json or .safetensors is missing. A depth model saved "
                f"with save_pretrained is accepted."
            )
        try:
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation
        except ImportError:
            raise WeightsMissing(
                "The transformers library is not installed. Install requirements-model.txt."
            ) from None
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.processor = AutoImageProcessor.from_pretrained(self.folder, **options)
            model = AutoModelForDepthEstimation.from_pretrained(
                self.folder, use_safetensors=True, **options
            )
        except Exception as error:  # any of a dozen classes, for a damaged or foreign folder
            log.warning("depth model refused: %s", error)
            raise WeightsMissing(
                f"{self.folder.name}: this is no depth model that can be read. A folder saved "
                f"with save_pretrained is accepted."
            ) from None
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        kind = getattr(self.model.config, "depth_estimation_type", None)
        self.metric = kind == "metric" or self.model.config.model_type in ("zoedepth", "depth_pro")

    @torch.no_grad()
    def __call__(
        self, color: Float[Tensor, "3 H W"], cameras: Cameras | None = None
    ) -> DepthEstimate:
        _, H, W = color.shape
        cameras = default_camera(W, H) if cameras is None else cameras
        pixels = (color.permute(1, 2, 0).clamp(0, 1) * 255 + 0.5).byte().cpu().numpy()
        inputs = self.processor(images=pixels, return_tensors="pt").to(self.device)
        predicted = self.model(**inputs).predicted_depth.float()
        raw = predicted.reshape(1, 1, *predicted.shape[-2:])
        raw = functional.interpolate(raw, (H, W), mode="bicubic", align_corners=False)[0].to(color)
        if self.metric:
            depth = raw.clamp_min(1e-3)
        else:  # relative inverse depth: its zero is at infinity, its scale unknown
            inverse = raw - raw.amin()
            inverse = inverse / inverse.amax().clamp_min(1e-12)
            depth = 1.5 / (0.05 + 0.95 * inverse)
        confidence = torch.full_like(depth, 0.6 if self.metric else 0.4)
        return DepthEstimate(depth, confidence, not self.metric, cameras)


def best_estimator() -> DepthEstimator:
    """The model in the folder named by WORLDSTEREO_DEPTH_MODEL, else the weight-free layout."""
    return _estimator_of(os.environ.get(MODEL_FOLDER, ""))


@lru_cache(maxsize=1)  # a model is loaded once; both estimators keep no state between calls
def _estimator_of(folder: str) -> DepthEstimator:
    if not folder:
        return LayoutDepth()
    try:
        return TransformersDepth(folder)
    except WeightsMissing as error:
        log.warning("%s The rough layout is used instead.", error)
        return LayoutDepth()


def align(
    depth: Float[Tensor, "1 H W"],
    reference: Float[Tensor, "1 H W"],
    mask: Bool[Tensor, "1 H W"] | None = None,
    *,
    rounds: int = 10,
) -> Float[Tensor, "1 H W"]:
    """`depth` with scale and shift of its inverse fitted to a reference, robust to outliers.

    Minimises |a / depth + b - 1 / reference| over the pixels of `mask` with known depth on both
    sides, by reweighted least squares. When the fit would turn depth inside out, or fewer than 16
    pixels are known, only the median scale is used; without any pixel, depth is returned as it is.

    Source: Ranftl et al., Towards robust monocular depth estimation, TPAMI 2022, section 5.
    """
    known = (depth > 0) & (reference > 0)
    known = known if mask is None else known & mask
    if not bool(known.any()):
        return depth
    x, y = depth[known].double().reciprocal(), reference[known].double().reciprocal()
    scale_only = depth * float((x / y).median())
    if len(x) < 16:
        return scale_only
    weight = torch.ones_like(x)
    a, b = 1.0, 0.0
    for _ in range(rounds):
        total = weight.sum()
        mx, my = (weight * x).sum() / total, (weight * y).sum() / total
        spread = (weight * (x - mx) ** 2).sum()
        if float(spread) < 1e-12 * float(total) * float(mx) ** 2:
            return scale_only
        a = float((weight * (x - mx) * (y - my)).sum() / spread)
        b = float(my - a * mx)
        error = (a * x + b - y).abs()
        weight = 1 / error.clamp_min(float(error.median()) * 0.5 + 1e-9)
    inverse = torch.where(depth > 0, a / depth + b, 0.0)
    if a <= 0 or float(inverse[known].min()) <= 0:
        return scale_only
    floor = float(y.min()) * 0.1  # a far pixel that the shift pushes past infinity stays far
    return torch.where(depth > 0, inverse.clamp_min(floor).reciprocal(), 0.0).to(depth)


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
