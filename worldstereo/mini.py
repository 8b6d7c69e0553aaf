"""`MiniGenerator`: small trained weights on top of the weight-free view; a second on a CPU.

The weight-free view is the anchor; the network adds a learned correction to it, steered by the
global geometric memory (splat, holes, depth, rays) and by the spatial-stereo memory (reference
views at the target's 3D correspondences). It returns colour, depth and confidence, and says from
its own attention whether a pixel was remembered or invented. Architecture: `_mini/network.py`;
how it was trained: `train/README.md`; figures and limits: `weights/mini/MODEL_CARD.md`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from worldstereo._mini.inputs import MiniInputs, batched, cloud_map, make_inputs
from worldstereo._mini.network import Estimate, MiniNetwork, supported
from worldstereo.control import GuideFrame
from worldstereo.errors import WeightsMissing
from worldstereo.generator import (
    Frame,
    GenerationRequest,
    GeneratorLimits,
    OnStep,
    WarpGenerator,
    as_view,
    ignore,
    patch_features,
    repeat_inventions,
)
from worldstereo.scene import Origin, View

FOLDER = Path(__file__).parent / "weights" / "mini"
VERSION = 1
"""Of the architecture; weights of another version are refused by name."""
TILE, OVERLAP = (832, 480), 64
LONGEST, MOST_FILES, MOST_CAUTION = 65_536, 16, 1000
"""Of `config.json`: bytes, weight files, and `supported`'s caution."""


class MiniGenerator:
    """A learned correction of the weight-free view.

    Args:
        folder: holds `config.json` and `weights-*.safetensors`; the package's own by default.
        steps: 1 (default), 2 or 4 sampling steps; more steps renew texture in holes only.
        stereo, geometric: False leaves one control branch out.
        half: convolutions in bfloat16, twice as fast and 0.0001 away (root mean square); by default
            where the processor has such instructions. Same seed, same bits on one processor.

    Raises:
        WeightsMissing: the files are not there, are cut short, or belong to another version.
    """

    limits = GeneratorLimits(name="mini", size_multiple=16, steps=(1, 4, 1), seconds_per_frame=1.2)

    def __init__(
        self,
        folder: Path = FOLDER,
        *,
        steps: int = 1,
        stereo: bool = True,
        geometric: bool = True,
        device: str = "cpu",
        half: bool | None = None,
    ) -> None:
        if steps not in (1, 2, 4):
            raise ValueError(f"steps must be 1, 2 or 4 for the mini generator, got {steps}.")
        self.steps, self.stereo, self.geometric, self.device = steps, stereo, geometric, device
        self.half = has_bfloat16(device) if half is None else half
        network: Any = load_network(folder)  # torch's stubs do not know memory_format here
        self.network: MiniNetwork = network.to(device, memory_format=torch.channels_last)
        self._warp = WarpGenerator()

    def new_memories(self, max_points: int = 2_000_000):  # noqa: ANN201  (as WarpGenerator)
        """The weight-free generator's memories: features are patches, nothing is learned there."""
        return self._warp.new_memories(max_points)

    def encode(self, color: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T 48 h w"]:
        return patch_features(color)

    def __call__(self, request: GenerationRequest, on_step: OnStep = ignore) -> Iterator[Frame]:
        self.limits.check(request.trajectory)
        total = len(request.trajectory)
        made: list[View] = []
        for t in range(total):
            on_step(t, total, f"View {t + 1} of {total}, refining what memory shows")
            known = request.guide[t]
            base = repeat_inventions(known, made, request.unit, request.seed)
            frame = self.refine(base, known, request, seed=request.seed + t)
            made.append(as_view(frame, known.camera, request.step, t))
            yield frame
        on_step(total, total, f"{total} of {total} views made")

    def refine(
        self, base: Frame, known: GuideFrame, request: GenerationRequest, *, seed: int = 0
    ) -> Frame:
        """One frame: the anchor corrected, its origin and confidence from the network's own say."""
        views = [request.views[i] for i in known.references]
        colors = request.guide.scene.cloud.colors
        maps = make_inputs(
            known.camera,
            base.color,
            base.depth,
            base.confidence,
            known.mask,
            views,
            cloud_map(colors, known.index) if self.geometric else None,
            request.unit,
        )
        return self.correct(base, known.mask, maps, seed=seed)

    def correct(
        self, base: Frame, known: Bool[Tensor, "1 H W"], maps: MiniInputs, *, seed: int = 0
    ) -> Frame:
        """The weight-free frame `base` as the network would have it; `known`: a memory's surface.

        What is fixed to the camera stays as it was pasted. So does depth: in holes the network
        measured 5 % worse than the smooth fill, and its own serves only where there is none.
        """
        estimate, found = self.estimate(maps, seed=seed)
        color = (estimate.color[0] + 1) / 2
        fixed = base.origin == int(Origin.RIG)
        color = torch.where(fixed, base.color, color).clamp(0, 1)
        middle = float(base.depth[base.depth > 0].median()) if bool((base.depth > 0).any()) else 1.0
        learned = middle / (1 + estimate.closeness[0]).clamp_min(0.1)
        depth = torch.where(base.depth > 0, base.depth, learned)
        # One part the network's say, three the anchor's: chosen on livingroom1, where the network's
        # alone ranks errors worse.
        own = torch.exp(-estimate.log_scale[0].exp() / 0.1)
        confidence = (own**0.25 * base.confidence.clamp(0, 1) ** 0.75).clamp(0.02, 1)
        origin = base.origin.clone()
        # Where the memories were silent but the attention found a reference, it was not invented.
        heard = (found > 0.5) & (origin == int(Origin.INVENTED)) & known
        origin[heard] = int(Origin.STEREO)
        return Frame(color, depth, origin, confidence, found, base.references)

    @torch.inference_mode()
    def estimate(
        self, maps: MiniInputs, *, seed: int = 0
    ) -> tuple[Estimate, Float[Tensor, "1 H W"]]:
        """The network's answer for one target, in tiles where it is large.

        Returns:
            The estimate (batch of one), and the share of attention on references per pixel.
        """
        height, width = maps.anchor.shape[-2:]
        g = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, 3, height, width, generator=g)
        whole = batched([maps])
        if width <= TILE[0] and height <= TILE[1]:
            return self._tile(whole, noise)
        return self._tiled(whole, noise)

    def _tile(self, maps: MiniInputs, noise: Tensor) -> tuple[Estimate, Tensor]:
        height, width = noise.shape[-2:]
        pad = (0, -width % 16, 0, -height % 16)
        maps = MiniInputs(*(_padded(m, pad).to(self.device) for m in maps))
        padded = _padded(noise, pad).to(self.device)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.half):
            residuals, attention = self.network.control(
                maps, geometric=self.geometric, stereo=self.stereo
            )
            estimate = self.network.sample(maps, self.steps, residuals, padded)
        color = supported(maps, estimate.color.float(), self.network.caution)
        estimate = estimate._replace(color=color)
        if attention is None:
            found = torch.zeros_like(maps.known)
        else:
            share = 1 - attention[:, -1].float().mean(dim=1, keepdim=True)
            found = F.interpolate(share, scale_factor=2, mode="nearest")
        crop = (..., slice(0, height), slice(0, width))
        cropped = Estimate(*(value[crop].float().cpu() for value in estimate))
        return cropped, found[0][crop].float().cpu()

    def _tiled(self, maps: MiniInputs, noise: Tensor) -> tuple[Estimate, Tensor]:
        """Overlapping tiles blended by a ramp: the network sees about 100 px around a pixel."""
        height, width = noise.shape[-2:]
        total: list[Tensor] | None = None
        weight = torch.zeros(1, 1, height, width)
        for y, h in _spans(height, TILE[1]):
            for x, w in _spans(width, TILE[0]):
                crop = (..., slice(y, y + h), slice(x, x + w))
                estimate, found = self._tile(MiniInputs(*(m[crop] for m in maps)), noise[crop])
                ramp = _ramp(h)[:, None] * _ramp(w)[None, :]
                parts = [*estimate, found[None]]
                if total is None:
                    total = [torch.zeros(*p.shape[:-2], height, width) for p in parts]
                for whole, part in zip(total, parts, strict=True):
                    whole[crop] += part * ramp
                weight[crop] += ramp
        assert total is not None
        *estimate, found = [part / weight for part in total]
        return Estimate(*estimate), found[0]


def has_bfloat16(device: str = "cpu") -> bool:
    """Whether bfloat16 is native there; emulated it would be slower than float32."""
    if torch.device(device).type != "cpu":
        return True
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return asked is not None and bool(asked())


def why_not(folder: Path = FOLDER) -> str:
    """Why the weights in a folder cannot be used, in one line; "" where they can.

    Reads the headers alone, so that the app can say it before anybody waits for a view.
    """
    from safetensors import SafetensorError, safe_open

    try:
        files, _ = _weight_files(folder)
    except WeightsMissing as refusal:
        return str(refusal)
    for path in files:
        try:
            with safe_open(path, "pt"):
                continue
        except (SafetensorError, OSError):
            return f"mini/{path.name} is missing or cut short; install it again."
    return ""


def load_network(folder: Path = FOLDER) -> MiniNetwork:
    """The network with its weights, in float32.

    Raises:
        WeightsMissing: files missing, cut short, or of another version; the line says which.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    files, caution = _weight_files(folder)
    for path in files:
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError):
            raise WeightsMissing(
                f"mini/{path.name} is missing or cut short; install it again."
            ) from None
    network = MiniNetwork()
    wanted = network.state_dict()
    if tensors.keys() != wanted.keys():
        odd = sorted(tensors.keys() ^ wanted.keys())[0]
        raise WeightsMissing(f"mini weights do not fit this version: {odd} is missing or foreign.")
    for name, value in tensors.items():
        if value.shape != wanted[name].shape or not bool(torch.isfinite(value).all()):
            raise WeightsMissing(f"mini weights: {name} has another shape or is not finite.")
    network.load_state_dict({name: value.float() for name, value in tensors.items()})
    network.caution = caution
    return network.eval()


def _weight_files(folder: Path) -> tuple[list[Path], float]:
    """What `config.json` lists, once its version is this one, and how cautious it is."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise WeightsMissing(
            "The mini generator's weights are not installed; use the warp generator."
        )
    unreadable = WeightsMissing("mini/config.json cannot be read; install the package again.")
    try:
        with config_file.open("rb") as file:
            config = json.loads(file.read(LONGEST))
        version, names, caution = config["version"], config["files"], config.get("caution", 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise unreadable from None
    if type(version) is not int or not isinstance(names, list) or len(names) > MOST_FILES:
        raise unreadable
    if version != VERSION:
        raise WeightsMissing(f"mini weights are of version {version}; version {VERSION} is needed.")
    if type(caution) not in (int, float) or not 0 <= caution <= MOST_CAUTION:
        raise WeightsMissing(
            f"mini/config.json has a caution of {str(caution)[:20]}; it must be a number from 0 to "
            f"{MOST_CAUTION}."
        )
    return [folder / Path(str(name)).name for name in names], float(caution)


def _padded(x: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    if not any(pad):
        return x
    flat = x.flatten(1, -3)
    return F.pad(flat, pad, mode="replicate").reshape(*x.shape[:-2], *(
        x.shape[-2] + pad[3], x.shape[-1] + pad[1]
    ))  # fmt: skip


def _spans(size: int, tile: int) -> list[tuple[int, int]]:
    """Starts and lengths of overlapping tiles along one axis; starts are multiples of 16."""
    if size <= tile:
        return [(0, size)]
    step = tile - OVERLAP
    starts = list(range(0, size - tile, step)) + [(size - tile) // 16 * 16]
    return [
        (start, min(tile, size - start) if start != starts[-1] else size - start)
        for start in starts
    ]


def _ramp(n: int) -> Tensor:
    """Weight of a tile's rows: small at its rim, 1 inside."""
    i = torch.arange(n) + 1.0
    return torch.minimum(torch.minimum(i, i.flip(0)) / OVERLAP, torch.tensor(1.0))
