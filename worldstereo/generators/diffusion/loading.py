"""`from_pretrained`: one variant of the published model from a folder or the hub, or nothing.

Everything that can be refused is refused from headers and configs, before memory is taken. Then
tensors stream to their place one by one.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldstereo.errors import WeightsMissing
from worldstereo.generators.diffusion.checkpoint import Weights, component_files
from worldstereo.generators.diffusion.config import (
    LICENCE,
    MAX_LAYERS,
    MAX_SIZE,
    ModelConfig,
    check_agreement,
    check_switch,
    check_whole,
    derive_backbone,
    json_object,
    read_config,
)
from worldstereo.generators.diffusion.folders import base_part, find_base, find_variant
from worldstereo.generators.diffusion.memory_transformer import WorldStereoRefSModel
from worldstereo.generators.diffusion.transformer import WorldStereoModel
from worldstereo.progress import OnStep, ignore

log = logging.getLogger(__name__)

Place = Callable[[str, Tensor], Tensor]
"""(name, tensor as in the file) -> the tensor at its destination, in its destination's type."""

_KEEP_FLOAT32 = {"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"}
_OPTIONAL = ("ref_index_embedding.",)
"""Tensors that the forward pass never reads."""


@dataclass(frozen=True)
class LoadReport:
    """What loading found."""

    variant: str
    folder: str
    tensors: int
    bytes: int
    """Bytes placed."""
    missing: tuple[str, ...]
    """Absent from the checkpoint; filled from the base model (or dead weight left at zero)."""
    unexpected: tuple[str, ...]
    """In the checkpoint but unknown to the model; ignored."""
    seconds: float
    licence: str = LICENCE

    def __str__(self) -> str:
        return (
            f"{self.variant}: {self.tensors} tensors, {self.bytes / 2**30:.2f} GiB in "
            f"{self.seconds:.1f} s; {len(self.missing)} from the base model, "
            f"{len(self.unexpected)} unexpected; licence {self.licence}"
        )


def half_type(device: torch.device | str) -> torch.dtype:
    """bf16 where the device computes in it, else fp16 from compute capability 7, else float32."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16
        if torch.cuda.get_device_capability(device)[0] >= 7:
            return torch.float16
    return torch.float32


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A variant whose headers and configs were read and agree; no weight is in memory."""

    folder: Path
    config: ModelConfig
    base: Path | str
    model: WorldStereoModel
    """Without memory for its weights; rotary tables are real."""
    sources: tuple[tuple[Weights, tuple[str, ...]], ...]
    """Files, and the tensors that each gives."""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def where(self) -> str:
        return str(self.folder / "model.safetensors")


def open_checkpoint(
    repo_or_folder: str | Path,
    variant: str,
    *,
    base: str | Path | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Everything about a variant that can be known, and refused, without reading a weight.

    Raises:
        ValueError: the variant, the config or a width is not accepted.
        WeightsMissing: a file is absent, truncated, foreign or incomplete.
    """
    folder = find_variant(repo_or_folder, variant, offline=offline)
    weights = Weights.open(folder / "model.safetensors")
    where = str(folder / "model.safetensors")
    config = read_config(folder / "config.json", variant, weights.shapes)
    check_agreement(config, weights.shapes, where)
    root = find_base(config, folder, base)
    model = empty_model(config, backbone_arguments(weights, root, offline))
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    missing = tuple(sorted(set(expected) - set(weights.shapes)))
    sources = [(weights, tuple(name for name in expected if name in weights))]
    sources += _from_base(missing, root, where, offline)
    for source, names in sources:
        _check_shapes(source, names, expected)
    unexpected = tuple(sorted(set(weights.shapes) - set(expected)))
    return Checkpoint(folder, config, root, model, tuple(sources), missing, unexpected)


def load_transformer(
    repo_or_folder: str | Path,
    variant: str,
    *,
    base: str | Path | None = None,
    offline: bool = False,
    **how: Any,
) -> tuple[WorldStereoModel, ModelConfig, LoadReport]:
    """The transformer of one variant with its weights in place, in evaluation mode.

    Args:
        base: folder or hub id of the base model, over the config's `base_model`.
        how: the other arguments of `read_weights`.

    Raises:
        ValueError: the variant, the config or a width is not accepted.
        WeightsMissing: a file is absent, truncated, foreign or incomplete.
    """
    checkpoint = open_checkpoint(repo_or_folder, variant, base=base, offline=offline)
    report = read_weights(checkpoint, **how)
    return checkpoint.model, checkpoint.config, report


def read_weights(
    checkpoint: Checkpoint,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    control_dtype: torch.dtype = torch.float32,
    place: Callable[[WorldStereoModel], Place] | None = None,
    on_step: OnStep = ignore,
) -> LoadReport:
    """Streams the weights of a checkpoint into its model, tensor by tensor.

    Args:
        dtype: type of the backbone; `half_type(device)` where None. Norms, time embedder and
            scale-shift tables stay float32, as diffusers keeps them.
        control_dtype: type of the control branch and the pose embedding.
        place: instead of `device`: given the empty model, where each tensor goes.
        on_step: `(tensors done, total, message)`; may raise to stop, which leaves nothing behind.

    Raises:
        WeightsMissing: a file ends early, or a tensor is absent or no floats.
    """
    began = time.perf_counter()
    model, where, variant = checkpoint.model, checkpoint.where, checkpoint.config.variant.name
    if checkpoint.unexpected:
        count, first = len(checkpoint.unexpected), checkpoint.unexpected[0]
        log.warning("%s: %d unexpected tensors are ignored, first %s", where, count, first)
    dtype = dtype or half_type(device)
    put = place(model) if place else _to_device(torch.device(device), dtype, control_dtype)
    total, done, placed = sum(len(names) for _, names in checkpoint.sources), 0, 0
    try:
        for source, names in checkpoint.sources:
            for name, tensor in source.stream(names):
                on_step(done, total, f"Loading {variant}: {done} of {total} tensors")
                if not tensor.is_floating_point():
                    raise WeightsMissing(f"{where}: {name} holds {tensor.dtype}, floats expected.")
                at = put(name, tensor)
                set_parameter(model, name, at)
                placed += at.numel() * at.element_size()
                done += 1
                del tensor, at
        for name in checkpoint.missing:
            if name.startswith(_OPTIONAL):
                set_parameter(model, name, put(name, torch.zeros(model.get_parameter(name).shape)))
        left = [name for name, p in model.named_parameters() if p.device.type == "meta"]
        if left:
            raise WeightsMissing(
                f"{where} and its base model lack {len(left)} tensors, first {left[0]}."
            )
    except BaseException:
        discard(model)
        raise
    model.requires_grad_(False).eval()
    seconds = time.perf_counter() - began
    report = LoadReport(
        variant,
        str(checkpoint.folder),
        total,
        placed,
        checkpoint.missing,
        checkpoint.unexpected,
        seconds,
    )
    log.info("%s", report)
    return report


def discard(*models: nn.Module) -> None:
    """Gives back the memory of models that are of no use, whoever still holds a traceback."""
    for model in models:
        for module in model.modules():
            module._parameters.clear()
            module._buffers.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def backbone_arguments(weights: Weights, base: Path | str, offline: bool) -> dict[str, Any]:
    """Arguments of the Wan transformer: from the base's config, checked against the weights.

    A complete checkpoint needs no base at all; then the weights say everything but the head width,
    which is 128 in every Wan 2.1 model.
    """
    entries: dict[str, Any] | None = None
    path = Path("transformer", "config.json")
    try:
        path = base_part(base, "transformer", offline=offline, weights=False) / "config.json"
        text = path.read_bytes()
    except (WeightsMissing, OSError):
        log.info("no transformer/config.json of base %s; widths come from the weights alone", base)
    else:
        entries = json_object(text, path)
    complete = "patch_embedding.weight" in weights and "blocks.0.ffn.net.0.proj.weight" in weights
    if entries is None:
        if not complete:
            raise WeightsMissing(
                f"the checkpoint holds no complete backbone, and its base model {base} is not at "
                f"hand; give its folder or hub id (--base PATH)."
            )
        return derive_backbone(weights.shapes)
    wanted = {k: entries[k] for k in _BACKBONE if entries.get(k) is not None}
    _check_backbone(wanted)
    if complete:
        found = derive_backbone(weights.shapes, wanted.get("num_attention_heads", 40))
        for name, value in found.items():
            said = wanted.get(name)
            said = tuple(said) if isinstance(said, list) else said
            if name != "eps" and said is not None and said != value:
                raise ValueError(
                    f"base transformer/config.json: {name} is {said}, but the weights have {value}."
                )
        wanted = found | wanted
    return wanted


_BACKBONE = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "cross_attn_norm",
    "qk_norm",
    "eps",
    "image_dim",
    "added_kv_proj_dim",
    "rope_max_seq_len",
)


def _check_backbone(wanted: dict[str, Any]) -> None:
    """Refuses entries of the base's config that no Wan transformer could be built from."""
    where = "base transformer/config.json"
    for name, value in wanted.items():
        if name == "patch_size":
            if not isinstance(value, list) or len(value) != 3:
                raise ValueError(f"{where}: patch_size must be three whole numbers.")
            for side in value:
                check_whole(f"{where}: patch_size", side, 64)
        elif name == "cross_attn_norm":
            check_switch(f"{where}: {name}", value)
        elif name == "qk_norm":
            if value != "rms_norm_across_heads":
                raise ValueError(f'{where}: qk_norm must be "rms_norm_across_heads".')
        elif name == "eps":
            if type(value) not in (int, float) or not 0 < value < 1:
                raise ValueError(f"{where}: eps must be a number between 0 and 1.")
        else:
            check_whole(f"{where}: {name}", value, _MAX.get(name, MAX_SIZE))


_MAX = {"num_layers": MAX_LAYERS, "rope_max_seq_len": 1 << 14}


def empty_model(config: ModelConfig, arguments: dict[str, Any]) -> WorldStereoModel:
    """The model of a variant without memory for its weights; rotary tables are real."""
    from accelerate import init_empty_weights

    kind = WorldStereoRefSModel if config.variant.references else WorldStereoModel
    with init_empty_weights(include_buffers=False):
        return kind(**arguments, controlnet_cfg=config.control.as_dict())


def set_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a tensor in the place of a parameter, without a copy."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(tensor, nn.Parameter):
        module._parameters[leaf] = tensor
    else:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def kept_float32(name: str) -> bool:
    """Whether diffusers keeps a backbone tensor in float32 when it loads in half precision."""
    return not _is_control(name) and bool(_KEEP_FLOAT32 & set(name.split(".")))


def _is_control(name: str) -> bool:
    return name.startswith(("controlnet.", "camera_embedding.", "ref_index_embedding."))


def target_type(name: str, dtype: torch.dtype, control_dtype: torch.dtype) -> torch.dtype:
    """The type a tensor has at its destination."""
    if _is_control(name):
        return control_dtype
    return torch.float32 if kept_float32(name) else dtype


def _to_device(device: torch.device, dtype: torch.dtype, control_dtype: torch.dtype) -> Place:
    def put(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(device, target_type(name, dtype, control_dtype))

    return put


def _from_base(
    missing: tuple[str, ...], base: Path | str, where: str, offline: bool
) -> list[tuple[Weights, tuple[str, ...]]]:
    """Where the tensors that a partial checkpoint lacks come from."""
    needed = tuple(name for name in missing if not name.startswith(_OPTIONAL))
    lost = [name for name in needed if _is_control(name)]
    if lost:
        raise WeightsMissing(
            f"{where} lacks {len(lost)} tensors that no base model has, first {lost[0]}."
        )
    if not needed:
        return []
    folder = base_part(base, "transformer", offline=offline)
    source = Weights.open(*component_files(folder))
    absent = [name for name in needed if name not in source]
    if absent:
        raise WeightsMissing(
            f"{where} and {folder} both lack {len(absent)} tensors, first {absent[0]}."
        )
    log.info("%d of the backbone's tensors come from %s", len(needed), folder)
    return [(source, needed)]


def _check_shapes(
    weights: Weights, names: tuple[str, ...], expected: dict[str, tuple[int, ...]]
) -> None:
    for name in names:
        if weights.shapes[name] != expected[name]:
            raise ValueError(
                f"{weights.entries[name].path}: {name} has shape {weights.shapes[name]}, the "
                f"config asks for {expected[name]}."
            )
