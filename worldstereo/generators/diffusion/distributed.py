"""More than one device through what exists: diffusers' context parallelism and torch's FSDP2.

    torchrun --nproc-per-node 2 -m worldstereo.generators.diffusion.distributed ...

Each rank runs the same script. Context parallelism cuts the tokens (targets, references, control)
into equal parts and exchanges heads inside self-attention; FSDP2 cuts the weights, which are
gathered block by block. Keyframes are encoded on every rank, as one is enough for each.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from worldstereo.generators.diffusion.loading import Place, set_parameter, target_type
from worldstereo.generators.diffusion.transformer import WorldStereoModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Devices:
    """This process among the others."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


def wanted() -> bool:
    """Whether `torchrun` started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def writes() -> bool:
    """Whether this process is the one that writes results (the first, or the only one)."""
    return int(os.environ.get("RANK", "0")) == 0


def launch(devices: int, command: list[str]) -> int:
    """Runs `python -m MODULE ARGUMENTS...` on several devices: the same command on each.

    Args:
        command: module and arguments, without `--devices`.

    Returns:
        The exit status. Every rank does all of the job; only the first should write (`writes`).

    Raises:
        ValueError: `devices` is below 1, or above what this machine has.
    """
    have = torch.cuda.device_count() if torch.cuda.is_available() else os.cpu_count() or 1
    if isinstance(devices, bool) or not isinstance(devices, int) or not 1 <= devices <= have:
        raise ValueError(f"devices must be 1 .. {have} on this machine, got {devices!r}.")
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    runner += ["--nproc-per-node", str(devices), "-m", *command]
    return subprocess.run(runner, check=False).returncode


def join(backend: str | None = None) -> Devices:
    """Joins the processes that `torchrun` started; alone without it.

    NCCL on CUDA, gloo elsewhere.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() and (backend in (None, "nccl"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if count > 1 and not dist.is_initialized():
        dist.init_process_group(backend or ("cpu:gloo,cuda:nccl" if cuda else "gloo"))
    return Devices(rank, count, device)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def check_split(
    model: WorldStereoModel, count: int, frames: int, height: int, width: int, references: int
) -> None:
    """Raises `ValueError` where tokens or heads cannot be cut into equal parts."""
    config: Any = model.config
    area = (height // 16) * (width // 16)
    for what, number in (
        ("target tokens", frames * area),
        ("reference tokens", references * area),
        ("heads", config.num_attention_heads),
        ("control heads", model.control_config.num_heads),
    ):
        if number % count:
            raise ValueError(
                f"devices must divide the {number} {what} evenly, got {count} devices for "
                f"{frames} frames of {width} x {height} with {references} references."
            )


def split_tokens(model: WorldStereoModel, devices: Devices) -> None:
    """Context parallelism over all ranks (Ulysses: heads for sequence in self-attention)."""
    if devices.count == 1:
        return
    from diffusers import ContextParallelConfig

    config = ContextParallelConfig(ulysses_degree=devices.count)
    if devices.device.type != "cpu":
        model.enable_parallelism(config=config)
        return
    # diffusers asks for an accelerator there; on the CPU the same three steps with a gloo mesh.
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig
    from diffusers.models.attention import AttentionModuleMixin
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    whole = ParallelConfig(context_parallel_config=config)
    whole.setup(devices.rank, devices.count, devices.device, mesh=mesh)
    for module in model.modules():
        if isinstance(module, AttentionModuleMixin):
            processor: Any = module.processor
            processor._parallel_config = whole
    apply_context_parallel(model, config, model._cp_plan)


def shard_weights(model: WorldStereoModel, devices: Devices) -> None:
    """FSDP2 over all ranks: every block, then the root; weights are gathered as they are needed.

    Works on a loaded model, or on an empty one whose weights `shard_place` brings afterwards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(devices.device.type, (devices.count,), mesh_dim_names=("shard",))
    # Types stay as they were loaded: norms, time embedder and control branch in float32.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in [*model.blocks, *model.controlnet.controlnet_blocks]:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def shard_place(
    devices: Devices, dtype: torch.dtype, control_dtype: torch.dtype
) -> Callable[[WorldStereoModel], Place]:
    """For `load_transformer(place=...)`: each rank keeps its share of each tensor as it streams by.

    Peak per rank is its share of the weights and one whole tensor.
    """

    def prepare(model: WorldStereoModel) -> Place:
        for name, parameter in list(model.named_parameters()):
            kind = target_type(name, dtype, control_dtype)
            set_parameter(model, name, torch.empty_like(parameter, dtype=kind))
        shard_weights(model, devices)
        parameters = dict(model.named_parameters())

        def put(name: str, tensor: Tensor) -> Tensor:
            from torch.distributed.tensor import DTensor, distribute_tensor

            empty: Any = parameters[name]
            assert isinstance(empty, DTensor)
            whole = tensor.to(devices.device, empty.dtype)
            shared = distribute_tensor(
                whole, empty.device_mesh, empty.placements, src_data_rank=None
            )
            return nn.Parameter(shared, requires_grad=False)

        return put

    return prepare


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights of a sharded model, on every rank (for tests and small models)."""
    from torch.distributed.tensor import DTensor

    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in model.state_dict().items()
    }
