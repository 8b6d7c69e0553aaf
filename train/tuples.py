"""Training tuples: a true frame, and what the two memories would show for it.

Rendered scenes are damaged as sensors damage them (exposure, noise, depth error, bleeding at
edges, missing patches, sparse masks, pose error), remembered as views, and asked for a target
that none of them is. The answer goes through the product's own synthesis and `make_inputs`.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from train.damage import enlarged
from worldstereo._mini.inputs import MiniInputs, cloud_map, make_inputs
from worldstereo.cameras import Cameras
from worldstereo.intake import cloud_from
from worldstereo.render import render_points
from worldstereo.scene import DepthKind, View
from worldstereo.synthesis import synthesize


@dataclass(frozen=True, kw_only=True)
class Damage:
    """How strongly the source views are damaged; 1 is fitted to real sensors."""

    strength: float = 1.0
    exposure: float = 0.04
    """Standard deviation of the log gain that intake leaves over."""


def make_tuples(scenes: dict[str, Tensor], many: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """`many` tuples from random scenes of a shard, the same for the same seed."""
    g = torch.Generator().manual_seed(seed)
    n, v = scenes["rgb"].shape[:2]
    for _ in range(many):
        scene = int(torch.randint(n, (1,), generator=g))
        order = torch.randperm(v, generator=g).tolist()
        used = 1 + int(torch.multinomial(torch.tensor([0.1, 0.25, 0.4, 0.25]), 1, generator=g))
        target, sources = order[0], order[1 : 1 + min(used, v - 1)]
        yield _tuple(scenes, scene, target, sources, g)


def _tuple(
    scenes: dict[str, Tensor], scene: int, target: int, sources: list[int], g: torch.Generator
) -> dict[str, Tensor]:
    size = scenes["rgb"].shape[-1]
    fx, fy, cx, cy = scenes["K"][scene].tolist()
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

    def camera(pose: Tensor) -> Cameras:
        return Cameras(K, _rigid(pose), size, size)

    truth = scenes["rgb"][scene, target].float() / 255
    depth = scenes["dep"][scene, target].float()
    # Half of the tuples are nearly as good as a rendering, as good captures are: what is right
    # must be seen to be left alone.
    clean = float(torch.rand(1, generator=g)) < 0.5
    damage = Damage(strength=0.3 * float(torch.rand(1, generator=g))) if clean else Damage()
    views = []
    for i, source in enumerate(sources):
        color, z = scenes["rgb"][scene, source].float() / 255, scenes["dep"][scene, source].float()
        color, z, pose = _damaged(color, z, scenes["M"][scene, source], g, damage, exposed=i > 0)
        views.append(_remembered(color, z, camera(pose), g))
    seen = torch.cat([view.depth[view.depth > 0] for view in views])
    unit = float(seen.median()) if len(seen) > 0 else 1.0
    clouds = [cloud_from(view) for view in views]
    points = torch.cat([cloud.points for cloud in clouds])
    colors = torch.cat([cloud.colors for cloud in clouds])
    here = camera(scenes["M"][scene, target])
    splat = render_points(points, colors, here, radius=1)
    result = synthesize(here, views, splat=splat, unit=unit)
    maps = make_inputs(
        here,
        result.color,
        result.depth,
        result.confidence,
        result.known,
        views,
        cloud_map(colors, splat.index),
        unit,
    )
    middle = float(result.depth[result.depth > 0].median()) if bool(result.known.any()) else unit
    target_closeness = (middle / depth.clamp_min(0.1 * middle) - 1).clamp(-1, 9)
    return pack(maps, truth * 2 - 1, target_closeness)


def _remembered(color: Tensor, depth: Tensor, camera: Cameras, g: torch.Generator) -> View:
    """A view as intake would keep it: half of the time its gaps are completed by a membrane."""
    from worldstereo import fusion

    kind = (depth > 0).to(torch.uint8) * int(DepthKind.MEASURED)
    known = depth[0] > 0
    if float(torch.rand(1, generator=g)) < 0.7 and bool(known.any()) and not bool(known.all()):
        inverse = torch.where(known, 1 / depth[0].clamp_min(1e-6), 0.0).numpy()
        film = torch.from_numpy(fusion.membrane(inverse, known.numpy()))[None]
        depth = torch.where(depth > 0, depth, 1 / film.clamp_min(1e-6))
        kind = torch.where(kind > 0, kind, int(DepthKind.COMPLETED)).to(torch.uint8)
    return View.of(color, depth, camera, kind=kind)


def _damaged(
    color: Tensor,
    depth: Tensor,
    pose: Tensor,
    g: torch.Generator,
    damage: Damage,
    *,
    exposed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour, depth (0: nothing measured) and pose as a sensor would report them."""

    def chance(p: float) -> bool:
        return float(torch.rand(1, generator=g)) < p

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def field(cells: int) -> Tensor:
        size = depth.shape[-2:]
        return F.interpolate(normal(1, 1, cells, cells), size, mode="bicubic", align_corners=True)[
            0
        ]

    if exposed and chance(0.7):
        part = damage.strength
        gain = torch.exp(part * (damage.exposure * normal(1, 1, 1) + 0.01 * normal(3, 1, 1)))
        color = (color.clamp_min(1e-3) ** torch.exp(part * 0.03 * normal(1, 1, 1))) * gain
    if chance(0.6):
        color = color + 0.02 * damage.strength * float(torch.rand(1, generator=g)) * normal(
            *color.shape
        )
    amount = 0.016 * damage.strength * float(torch.rand(1, generator=g)) ** 2
    z = depth * (1 + amount * field(5) + 0.3 * amount * normal(*depth.shape))
    if chance(0.4):
        z = z * (1 + 0.008 * damage.strength * float(normal(1)))
    if chance(0.3 * damage.strength):  # flying points between the two sides of an edge
        blurred = F.avg_pool2d(F.pad(z, (1, 1, 1, 1), mode="replicate"), 3, 1)
        z = torch.where(torch.rand(depth.shape, generator=g) < 0.8, blurred, z)
    valid = depth < 150
    if chance(0.35):
        valid &= ~(field(7) > 0.4 + 1.6 * float(torch.rand(1, generator=g)))
    if chance(0.3):  # nothing at the borders of objects
        far = F.max_pool2d(depth, 5, 1, 2)
        near = -F.max_pool2d(-depth, 5, 1, 2)
        valid &= far < 1.08 * near
    if chance(0.15):
        share = 0.2 + 0.6 * float(torch.rand(1, generator=g))
        valid &= torch.rand(depth.shape, generator=g) < share
    pose = pose.clone()
    if chance(0.6):
        w = 0.0025 * damage.strength * normal(3)
        skew = torch.tensor([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])
        pose[:3, :3] = pose[:3, :3] @ torch.matrix_exp(skew)
        pose[:3, 3] += 0.002 * damage.strength * normal(3) * depth.median()
    return color.clamp(0, 1), torch.where(valid, z, 0.0), pose


def _rigid(pose: Tensor) -> Tensor:
    """The pose with its rotation made orthonormal again: shards keep 16 or 32 bits."""
    u, _, vt = torch.linalg.svd(pose[:3, :3].double())
    pose = pose.clone().float()
    pose[:3, :3] = (u @ vt).float()
    return pose


# ---- on disk: 8 bits for colours and classes, 16 for the rest ---------------------------------


def pack(maps: MiniInputs, truth: Tensor, closeness: Tensor) -> dict[str, Tensor]:
    """One tuple in compact types."""

    def color(x: Tensor) -> Tensor:
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    return {
        "truth": color(truth),
        "anchor": color(maps.anchor),
        "known": maps.known.to(torch.uint8),
        "bins": maps.bins.to(torch.uint8),
        "splat": color(maps.splat),
        "reference_color": color(maps.references[:, :3]),
        "reference_rest": maps.references[:, 3:].half(),
        "closeness": maps.closeness.half(),
        "target_closeness": closeness.half(),
        "rays": maps.rays.half(),
    }


def unpack(batch: dict[str, Tensor]) -> tuple[MiniInputs, Tensor, Tensor]:
    """Maps, true colour in [-1, 1] and true closeness of a batch of packed tuples."""

    def color(x: Tensor) -> Tensor:
        return x.float() / 127.5 - 1

    rest = batch["reference_rest"].float()
    valid = rest[:, :, :1] > 0
    references = torch.cat([color(batch["reference_color"]) * valid, rest], dim=2)
    seen = batch["splat"][:, 3:] > 190
    maps = MiniInputs(
        anchor=color(batch["anchor"]),
        known=batch["known"].float(),
        bins=batch["bins"].float(),
        closeness=batch["closeness"].float(),
        splat=torch.cat([color(batch["splat"][:, :3]) * seen, seen.float()], dim=1),
        rays=batch["rays"].float(),
        references=references,
    )
    return maps, color(batch["truth"]), batch["target_closeness"].float()


class Pool:
    """Crops of packed tuples from a folder; files that appear later are picked up."""

    def __init__(self, folder: Path, crop: int, seed: int, enlarged: float = 0.0) -> None:
        self.folder, self.crop, self.seed, self.enlarged = folder, crop, seed, enlarged
        self._files: dict[Path, dict[str, Tensor]] = {}
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(self.folder.glob("tuples-*.safetensors")):
            if path not in self._files:
                with safe_open(path, "pt") as file:
                    self._files[path] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def __len__(self) -> int:
        return sum(len(shard["truth"]) for shard in self._files.values())

    def batch(self, size: int, step: int) -> dict[str, Tensor]:
        """The crops of one step: the same for the same seed, step and files, in any order."""
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        shards = list(self._files.values())
        picked = []
        for _ in range(size):
            shard = shards[int(torch.randint(len(shards), (1,), generator=g))]
            i = int(torch.randint(len(shard["truth"]), (1,), generator=g))
            side = self.crop
            if float(torch.rand(1, generator=g)) < self.enlarged:
                side = int(self.crop * (0.5 + 0.4 * float(torch.rand(1, generator=g))))
            room = shard["truth"].shape[-1] - side
            y, x = torch.randint(room // 2 + 1, (2,), generator=g).mul(2).tolist()
            span = (..., slice(y, y + side), slice(x, x + side))
            item = {name: maps[i][span] for name, maps in shard.items()}
            picked.append(enlarged(item, self.crop))
        return {name: torch.stack([p[name] for p in picked]) for name in picked[0]}

    def batches(
        self, size: int, first: int, workers: int = 0
    ) -> Generator[dict[str, Tensor], None, None]:
        """Batches of step `first` on; `workers` threads prepare those to come, for a GPU."""
        if workers == 0:
            yield from (self.batch(size, step) for step in count(first))
        with ThreadPoolExecutor(workers) as threads:
            coming = deque(threads.submit(self.batch, size, first + i) for i in range(2 * workers))
            for step in count(first + len(coming)):
                yield coming.popleft().result()
                coming.append(threads.submit(self.batch, size, step))
