"""A model on disk: config.json and model.safetensors. Nothing is ever unpickled."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldstereo._core.atomic import write_together
from worldstereo.errors import ExportError, WeightsMissing

MANIFEST, WEIGHTS = "config.json", "model.safetensors"
FORMAT, VERSION = "worldstereo-model", 1
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
STORED = ("global_memory.memory.", "spatial_memory.memory.")
"""Keys of what the memories hold; everything else is a weight."""
SECTIONS = ("vdm_config", "global_memory_config", "spatial_memory_config")


def write_model(model: Any, folder: Path, include_memory: bool) -> None:
    from safetensors.torch import save

    if model.config["vdm_config"]["backbone"] == "wan":
        raise ExportError(
            'A "wan" model is not written again: its weights are those of the published folder.'
        )
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if include_memory or not name.startswith(STORED)
    }
    config = {"format": FORMAT, "version": VERSION, **model.config}
    try:
        write_together(
            {
                folder / WEIGHTS: save(state, {"format": "pt"}),
                folder / MANIFEST: (json.dumps(config, indent=1) + "\n").encode(),
            },
            parents=True,
        )
    except OSError as error:
        raise ExportError(f"{folder.name}: cannot be written ({error.strerror}).") from None


def read_config(folder: Path) -> tuple[dict[str, Any], ...] | None:
    """The three mappings of a folder that `save_pretrained` wrote; None where it is another's.

    Raises:
        ValueError: a newer version; WeightsMissing: damaged.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > 1_000_000:
            raise ValueError("too large")
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsMissing(f"{folder.name}: {MANIFEST} cannot be read ({error}).") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        return None
    version = fields.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ValueError(
            f"{folder.name}: version {str(version)[:20]} of the model's config is newer than "
            f"{VERSION}, which is read here. Update the package."
        )
    if not all(isinstance(fields.get(name), dict) for name in SECTIONS):
        raise WeightsMissing(f"{folder.name}: {MANIFEST} lacks one of {', '.join(SECTIONS)}.")
    return tuple(fields[name] for name in SECTIONS)


def read_weights(model: Any, path: Path) -> None:
    """Loads weights, and memories where the file holds them, into a model that was just built.

    Raises:
        WeightsMissing: absent, a pickle, damaged, or with tensors missing, unexpected or of
            another shape; the first of each is named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix in PICKLES:
        raise WeightsMissing(
            f"{path.name}: a pickle could run code and is not read; convert it to .safetensors."
        )
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        pickled = sorted(p.name for p in path.glob("*") if p.suffix in PICKLES)[:1]
        also = f" {pickled[0]} is a pickle, which could run code." if pickled else ""
        raise WeightsMissing(f"{path.name}: there is no {WEIGHTS}.{also}")
    try:
        state: dict[str, Tensor] = load_file(str(file))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsMissing(f"{file.name}: not a safetensors file ({error}).") from None
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(STORED)}
    given = {k: v for k, v in state.items() if not k.startswith(STORED)}
    for what, names in (("is missing", own.keys() - given), ("is unexpected", given.keys() - own)):
        if names:
            raise WeightsMissing(
                f"{file.name}: {len(names)} tensors; {sorted(names)[0]} {what}. The configs must "
                f"be those the file was saved with."
            )
    for name, value in given.items():
        if value.shape != own[name].shape:
            raise WeightsMissing(
                f"{file.name}: {name} is {tuple(value.shape)}; {tuple(own[name].shape)} expected."
            )
    held = {k: v for k, v in model.state_dict().items() if k.startswith(STORED)}
    try:
        with torch.no_grad():
            model.load_state_dict(held | state)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise WeightsMissing(f"{file.name}: {reason}") from None
