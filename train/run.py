"""One training run: resumes from its folder, ends by itself after the minutes it was given.

The learning rate warms up, stays, and falls to zero over the last quarter of the whole plan.
State is safetensors and JSON: weights, their running mean (EMA), Adam's two moments, step, seed;
each file below 15 MB, so that a run can wander between machines that are lent for a short while.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from train.damage import Leftover, damaged
from train.tuples import Pool, unpack
from worldstereo._mini.inputs import BINS, MiniInputs
from worldstereo._mini.network import Estimate, MiniNetwork

STAGES = ("joint", "prior", "geometric", "stereo")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does in all; a slice of it stops after its own minutes."""

    tuples: Path
    """Folder of `tuples-*.safetensors`; files added while it runs are picked up."""

    out: Path
    """Folder of the run: state, log and weights."""

    stage: str = "joint"
    """joint trains everything with the branches switched off at random; prior, geometric, stereo
    train one part on the frozen ones before it."""

    load: Path | None = None
    """Weights to begin from: the stage before."""

    steps: int = 12_000
    """Steps of the whole plan; the learning rate follows it."""

    minutes: float = 9.0
    """This slice ends after so many minutes of wall time and resumes when called again."""

    average: float = 0.999
    """How much of the running mean of the weights stays at each step."""
    batch: int = 4
    crop: int = 128
    rate: float = 7e-4
    leftover: Leftover = Leftover()
    """What registration and sensors leave over, drawn anew for every crop."""
    harm: float = 1.0
    """Weight of the loss that counts only where the answer is worse than the anchor."""
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    workers: int = 0
    """Threads that prepare the batches to come: 0 for a CPU, about 8 for a GPU."""

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(STAGES)}; got {self.stage!r}.")
        if self.crop % 16:
            raise ValueError(f"crop must be a multiple of 16, got {self.crop}.")


def run(plan: Plan) -> None:
    """Train until the plan or this slice is done; everything is saved on the way out."""
    torch.set_num_threads(plan.threads)
    plan.out.mkdir(parents=True, exist_ok=True)
    fresh: Any = MiniNetwork()  # torch's stubs do not know memory_format here
    network: MiniNetwork = fresh.to(plan.device, memory_format=torch.channels_last)
    if plan.load is not None:
        network.load_state_dict(load_file(plan.load))
    trained = _trained(network, plan.stage)
    optimizer = torch.optim.AdamW(trained, lr=plan.rate, betas=(0.9, 0.95), weight_decay=0.01)
    mean = {name: value.clone() for name, value in network.state_dict().items()}
    step = _resume(plan, network, optimizer, mean)
    torch.manual_seed(plan.seed + step)  # a resumed slice must not draw the first one's noise again
    g = torch.Generator(plan.device).manual_seed(plan.seed + step)
    pool = Pool(plan.tuples, plan.crop, plan.seed, plan.leftover.enlarged)
    if step == 0 and plan.load is None:
        calibrate(network, pool)
        mean["sigma"] = network.sigma.clone()
    began, running, noted = time.monotonic(), None, time.monotonic()
    batches = pool.batches(plan.batch, step, plan.workers)
    while step < plan.steps and time.monotonic() - began < 60 * plan.minutes:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * schedule(step, plan.steps)
        maps, truth, closeness = unpack({k: v.to(plan.device) for k, v in next(batches).items()})
        batch = damaged(maps, truth, closeness, plan.leftover, g)
        loss = train_step(network, batch, plan, optimizer, trained)
        step += 1
        keep = min(plan.average, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            mean[name].lerp_(value, 1 - keep)
        running = loss if running is None else 0.98 * running + 0.02 * loss
        if time.monotonic() - noted > 20:
            noted = time.monotonic()
            pool.refresh()
            minutes = (noted - began) / 60
            line = {"step": step, "loss": round(running, 4), "minutes": round(minutes, 2)}
            with (plan.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line | {"tuples": len(pool)}) + "\n")
    batches.close()
    _save(plan, network, optimizer, mean, step)


def train_step(
    network: MiniNetwork,
    batch: tuple[MiniInputs, Tensor, Tensor],
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    trained: list[torch.nn.Parameter],
) -> float:
    """One step; a step with a non-finite gradient changes nothing and counts as loss 0."""
    maps, truth, closeness = batch
    B = len(truth)
    late = torch.exp(torch.randn(B) * 0.9 - 1.7).clamp(0.02, 0.9)
    t = torch.where(torch.rand(B) < 0.75, torch.ones(B), late).to(plan.device)
    time = t[:, None, None, None]
    z = (1 - time) * truth + time * torch.randn_like(truth)
    with torch.autocast(plan.device, torch.bfloat16):
        without = torch.rand(1).item() if plan.stage == "joint" else 1.0
        geometric = plan.stage != "prior" and without > 0.05
        stereo = plan.stage in ("joint", "stereo") and without > 0.25
        residuals, _ = network.control(maps, geometric=geometric, stereo=stereo)
        estimate = network.denoise(z, t, maps, residuals)
    loss = objective(estimate, maps, truth, closeness, plan.harm)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
    if not bool(torch.isfinite(norm)):
        return 0.0
    optimizer.step()
    return float(loss.detach())


def objective(
    estimate: Estimate, maps: MiniInputs, truth: Tensor, closeness: Tensor, harm: float = 0.0
) -> Tensor:
    """Squared error in units of the anchor's own, holes twice; L1 on depth; Laplace likelihood.

    `harm` counts once more, by 8x8 block, what is worse than where the answer started from: a
    correction that is as often wrong as right must cost, or unsure pixels are moved at random.
    Each crop counts by its share of the error that it began with, as PSNR does by image: a nearly
    right wall is not to be spoiled for the sake of a wrong fence.

    Fully normalised, the surest pixels would decide everything and their outliers would swamp the
    rest; the factor goes half of the way back to plain squared error, which is what PSNR counts.
    """
    weight = 2 - maps.known
    wanted = ((truth - estimate.linear) / estimate.spread).clamp(-8, 8)
    half_way = (estimate.spread / 0.15).clamp(0.3, 3)
    weight = weight * half_way
    after, before = weight * (estimate.scaled[:, :3] - wanted) ** 2, weight * wanted**2
    share = 1 / (before.mean((1, 2, 3), keepdim=True) + 0.01)
    squared = (after * share).mean()
    worse = (F.avg_pool2d(after - before, 8).mean(1, keepdim=True).relu() * share).mean()
    depth = ((2 - maps.known) * (estimate.closeness - closeness).abs().clamp_max(2)).mean()
    error = (estimate.color.detach() - truth).abs().mean(dim=1, keepdim=True)
    scale = estimate.log_scale.clamp(-7, 2)
    likelihood = (error * torch.exp(-scale) + scale).mean()
    return squared + harm * worse + 0.1 * depth + 0.06 * likelihood


def schedule(step: int, steps: int) -> float:
    """Warm-up over 200 steps, constant, linear to zero over the last quarter."""
    return min(1.0, (step + 1) / 200) * min(1.0, max(0.01, (1 - step / steps) / 0.25))


def calibrate(network: MiniNetwork, pool: Pool, batches: int = 24) -> None:
    """Measure the anchor's error by class: the unit in which the network's answer is counted."""
    squared, count = torch.zeros(BINS), torch.zeros(BINS)
    for i in range(batches):
        maps, truth, _ = unpack(pool.batch(8, -1 - i))
        error = (maps.anchor - truth).pow(2).mean(dim=1, keepdim=True).flatten()
        bins = maps.bins.long().flatten()
        squared.index_add_(0, bins, error)
        count.index_add_(0, bins, torch.ones_like(error))
    measured = (squared / count.clamp_min(1)).sqrt()
    sigma = torch.where(count > 2000, measured, network.sigma.cpu())
    halves = [torch.cummax(sigma[:8], 0).values, torch.cummax(sigma[8:], 0).values]
    network.sigma.copy_(torch.cat(halves).clamp_min(0.04))


def _trained(network: MiniNetwork, stage: str) -> list[torch.nn.Parameter]:
    parts: dict[str, list[torch.nn.Module]] = {
        "joint": [network],
        "prior": [network.time, network.prior, network.last],
        "geometric": [network.geometric],
        "stereo": [network.stereo],
    }
    network.requires_grad_(False)
    for part in parts[stage]:
        part.requires_grad_(True)
    return [p for p in network.parameters() if p.requires_grad]


PARTS = ("weights", "ema", "exp_avg", "exp_avg_sq")
"""Files of a run; the last two are Adam's moments."""


def _save(plan, network, optimizer, mean: dict[str, Tensor], step: int) -> None:  # noqa: ANN001
    found: dict[str, dict[str, Tensor]] = {"weights": network.state_dict(), "ema": mean}
    states = [(name, optimizer.state.get(p, {})) for name, p in network.named_parameters()]
    for moment in PARTS[2:]:
        found[moment] = {name: state[moment] for name, state in states if moment in state}
    for name, tensors in found.items():
        plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(plain, plan.out / f"{name}.part")
    for name in found:
        (plan.out / f"{name}.part").replace(plan.out / f"{name}.safetensors")
    updates = max((int(state["step"]) for _, state in states if "step" in state), default=0)
    facts = asdict(plan) | {k: str(v) for k, v in vars(plan).items() if isinstance(v, Path)}
    content = {"step": step, "updates": updates, "plan": facts}
    (plan.out / "run.json").write_text(json.dumps(content, indent=1))


def _resume(plan, network, optimizer, mean: dict[str, Tensor]) -> int:  # noqa: ANN001
    """The step to go on from. A run without moments (weights alone were kept) begins them anew."""
    if not (plan.out / "run.json").exists():
        return 0
    facts = json.loads((plan.out / "run.json").read_text())
    network.load_state_dict(load_file(plan.out / "weights.safetensors"))
    mean.update({k: v.to(plan.device) for k, v in load_file(plan.out / "ema.safetensors").items()})
    if all((plan.out / f"{moment}.safetensors").exists() for moment in PARTS[2:]):
        moments = {m: load_file(plan.out / f"{m}.safetensors") for m in PARTS[2:]}
        updates = torch.tensor(float(facts["updates"]))
        for name, parameter in network.named_parameters():
            if name in moments["exp_avg"]:
                optimizer.state[parameter] = {"step": updates.clone()} | {
                    m: moments[m][name].to(plan.device) for m in PARTS[2:]
                }
    return int(facts["step"])
