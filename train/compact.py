"""What the two memories add to a trainable backbone: a seeded, resumable recipe on rendered rooms.

    python -m train compact

renders rooms, trains the "compact" backbone of `WorldStereo` with both branches switched off at
random, and prints the PSNR of held-out rooms with both memories, each alone and none: one set of
weights, the memories given or withheld. A run stopped at any moment goes on from its last
checkpoint and ends with the same bits. The weights show that the branches carry information; they
are no model for anything else and are not shipped.

Each room has six views. The first is the condition image; the memories hold the first and the last,
with their rendered depth; the four between them are what is generated and measured.
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from train import scenes
from worldstereo.cameras import Cameras
from worldstereo.model import WorldStereo

log = logging.getLogger(__name__)

REFERENCES = (0, 5)
BETWEEN = slice(1, 5)
WAYS = {"none": (False, False), "global": (True, False), "spatial": (False, True),
        "both": (True, True)}  # fmt: skip
"""(geometric, spatial) of each row of the table."""
VDM = {"num_layers": 3, "hidden_dim": 128, "num_heads": 4, "patch_size": 8,
       "prediction_type": "sample"}  # fmt: skip
GLOBAL = {"point_cloud_dim": 64, "feature_dim": 192, "num_neighbors": 8}
SPATIAL = {"memory_size": 8192, "feature_dim": 192, "attention_window": 4}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run. The defaults take about eight minutes of CPU time in all."""

    out: Path = Path("runs/compact")
    """Folder of the run; a run that is there is resumed."""
    textures: Path | None = None
    """Folder with crops256.tar and ambientcg128.tar; None for textures made of noise."""
    rooms: int = 300
    held: int = 24
    """Rooms never trained on, with textures never trained on."""
    size: int = 64
    steps: int = 2400
    rate: float = 1e-3
    seed: int = 0
    save_every: int = 100
    report_every: int = 500
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("rooms", "held", "steps", "save_every", "report_every", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.size % VDM["patch_size"]:
            raise ValueError(f"size must be a multiple of {VDM['patch_size']}, got {self.size}.")


@dataclass(frozen=True, eq=False)
class Room:
    color: Tensor
    """(6, 3, S, S) in [0, 1]."""
    cameras: Cameras
    cloud: Tensor
    """(N, 6): the surface that the reference views show, with colours."""


def run(plan: Plan) -> dict[str, dict[str, float]]:
    """Trains, or goes on training, and returns the PSNR of held-out rooms: 1 step and 4 steps."""
    torch.set_num_threads(plan.threads)
    plan.out.mkdir(parents=True, exist_ok=True)
    trained, held = rooms(plan, False), rooms(plan, True)
    model = fresh(plan.seed)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in model.named_parameters() if "learned" not in n], "scale": 1},
            {"params": list(model.global_memory.learned.parameters()), "scale": 3},
        ],
        lr=plan.rate,
        betas=(0.9, 0.95),
        weight_decay=0.01,
    )
    step = resume(plan, model, optimizer)
    began, loss = time.process_time(), None
    while step < plan.steps:
        loss = train_step(model, optimizer, trained, plan, step)
        step += 1
        if step % plan.save_every == 0 or step == plan.steps:
            save(plan, model, optimizer, step)
        if step % plan.report_every == 0 and step < plan.steps:
            table = measured(model, held[:8], 1)
            note(plan, step=step, loss=loss, cpu=time.process_time() - began, psnr=table)
    result = {f"{n} steps": measured(model, held, n) for n in (1, 4)}
    note(plan, step=step, cpu=time.process_time() - began, psnr=result)
    (plan.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    model.save_pretrained(plan.out / "model")
    return result


def fresh(seed: int) -> WorldStereo:
    """The untrained model of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WorldStereo(VDM, GLOBAL, SPATIAL, device="cpu")
    encoder = model.global_memory.learned.encoder
    with torch.no_grad():  # a colour's three numbers count as much as the 36 waves of its place
        encoder.weight[:, :3] *= 4
        encoder.weight[:, 3:6] *= 10
    return model


def train_step(
    model: WorldStereo,
    optimizer: torch.optim.Optimizer,
    trained: list[Room],
    plan: Plan,
    step: int,
) -> float:
    """One room, one noise level; what is random follows from the seed and the step alone."""
    draw = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
    room = trained[int(torch.randint(len(trained), (1,), generator=draw))]
    last = model.process.num_timesteps - 1
    pure, some, off, guided = torch.rand(4, generator=draw).tolist()
    when = last if pure < 0.5 else int(some * last)
    given: dict[str, Any] = {
        "point_cloud": room.cloud,
        "reference_frames": REFERENCES,
        "use_geometric_memory": off < 0.75,
        "use_spatial_memory": off < 0.6 or 0.75 <= off < 0.9,
        "with_condition": guided < 0.9,
        "with_features": False,
    }
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * plan.rate * pace(step, plan.steps)
    clean = room.color[None] * 2 - 1
    noise = torch.randn(clean.shape, generator=draw)
    if when < last:
        noise = as_sampled(model, room, clean, noise, when, given)
    out = model(clean, room.cameras, torch.tensor([when]), noise=noise, **given)
    optimizer.zero_grad(set_to_none=True)
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
    optimizer.step()
    return float(out.loss.detach())


@torch.no_grad()
def as_sampled(
    model: WorldStereo, room: Room, clean: Tensor, noise: Tensor, when: int, given: dict[str, Any]
) -> Tensor:
    """Noise that puts the state where sampling would: about the model's own first estimate.

    A state about the true picture holds detail that no sample has, and a model trained on it reads
    the state instead of its memories from the second step on.

    Source: Ranzato et al. 2016 (exposure bias); Ning et al. 2023 (the same in diffusion).
    """
    process = model.process
    first, later = (process.levels(torch.tensor([t])) for t in (process.num_timesteps - 1, when))
    out = model(
        clean, room.cameras, torch.tensor([process.num_timesteps - 1]), noise=noise, **given
    )
    state = process.noisy(clean, noise, first)
    own = ((state - first.noise * out.noise_pred) / first.signal).clamp(-1, 1)
    return out.noise_pred + later.signal / later.noise * (own - clean)


def pace(step: int, steps: int) -> float:
    """Warm-up over 100 steps, constant, linear to nearly zero over the second half."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.02, 2 * (1 - step / steps)))


@torch.no_grad()
def measured(model: WorldStereo, held: list[Room], steps: int) -> dict[str, float]:
    """Mean PSNR of the generated views between the references, by what was given."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for index, room in enumerate(held):
        model.global_memory.initialize(room.cloud[:, :3], colors=room.cloud[:, 3:])
        bank = model.bank_of(room.color[None] * 2 - 1, [room.cameras], REFERENCES)
        for name, (geometric, spatial) in WAYS.items():
            made = model.denoised(
                room.color[0],
                room.cameras,
                geometry=model.global_memory if geometric else None,
                stereo=bank if spatial else None,
                steps=steps,
                seed=index,
            )
            error = (made - room.color)[BETWEEN].square().mean(dim=(1, 2, 3))
            found[name] += (-10 * torch.log10(error)).tolist()
    return {name: round(sum(values) / len(values), 2) for name, values in found.items()}


# ---- rooms ---------------------------------------------------------------------------------------


def rooms(plan: Plan, held_out: bool) -> list[Room]:
    """Rendered rooms, from the run's folder where they are there already."""
    name = "held" if held_out else "rooms"
    file = plan.out / f"{name}-{plan.size}-{plan.seed}.safetensors"
    count = plan.held if held_out else plan.rooms
    if not file.exists():
        if plan.textures is None:
            bank = scenes.noise_textures(60 if held_out else 400, plan.seed * 2 + held_out)
        else:
            bank = scenes.load_textures(plan.textures, held_out)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # rays come in small blocks: threads would only wait
        kinds = {scenes.room: 1.0}
        seed = plan.seed + (99 if held_out else 1000)
        made = scenes.make_scenes(count, seed, bank, 6, plan.size, kinds)
        torch.set_num_threads(threads)
        draft = file.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in made.items()}, draft)
        draft.replace(file)
        log.info("%d %s rendered", count, name)
    return list(_opened(load_file(file), count))


def _opened(made: dict[str, Tensor], count: int) -> Iterator[Room]:
    for i in range(min(count, len(made["rgb"]))):
        color = made["rgb"][i].float() / 255
        depth, pose = made["dep"][i].float(), made["M"][i].double()
        fx, fy, cx, cy = made["K"][i].tolist()
        K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]).expand(len(color), 3, 3)
        c2w = (torch.linalg.inv(pose[:1]) @ pose).float()  # the first camera is the world's origin
        cameras = Cameras(K.contiguous(), c2w, color.shape[-1], color.shape[-2])
        shown = [
            torch.cat(
                [
                    cameras[r].unproject(cameras[r].pixel_grid(), depth[r].flatten()),
                    color[r].flatten(1).T,
                ],
                dim=1,
            )
            for r in REFERENCES
        ]
        yield Room(color, cameras, torch.cat(shown))


# ---- checkpoints ---------------------------------------------------------------------------------


def save(plan: Plan, model: WorldStereo, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights, Adam's moments and the step in one file, which is replaced at once."""
    tensors = {"step": torch.tensor(step)}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value
    draft = plan.out / "checkpoint.part"
    save_file({k: v.contiguous() for k, v in tensors.items()}, draft)
    draft.replace(plan.out / "checkpoint.safetensors")
    facts = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(plan).items()}
    (plan.out / "plan.json").write_text(json.dumps(facts, indent=1) + "\n")


def resume(plan: Plan, model: WorldStereo, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on from; 0 where the folder holds no checkpoint."""
    file = plan.out / "checkpoint.safetensors"
    if not file.exists():
        return 0
    held = load_file(file)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(held[f"weight.{name}"])
        state = {k: held[f"{k}.{name}"] for k in ("step", "exp_avg", "exp_avg_sq")
                 if f"{k}.{name}" in held}  # fmt: skip
        if state:
            optimizer.state[parameter] = state
    return int(held["step"])


def note(plan: Plan, **facts: object) -> None:
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()})
    print(line, flush=True)
    with (plan.out / "log.jsonl").open("a") as file:
        file.write(line + "\n")
