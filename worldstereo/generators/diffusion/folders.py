"""Where a checkpoint and its base model are: a folder here, the cache of the hub, or the hub.

Where a connection breaks, a download goes on from the bytes it has; after the process itself has
ended, finished files are kept and an unfinished one begins again (the hub's client keeps no part of
it). Licence of the public weights: Apache-2.0, named in the log before anything is fetched.
"""

import logging
import os
from pathlib import Path

from worldstereo.errors import WeightsMissing
from worldstereo.generators import GeneratorLimits
from worldstereo.generators.diffusion.checkpoint import Weights
from worldstereo.generators.diffusion.config import (
    LICENCE,
    VARIANTS,
    ModelConfig,
    read_config,
    variant_named,
)

log = logging.getLogger(__name__)


def find_variant(repo_or_folder: str | Path, variant: str, *, offline: bool = False) -> Path:
    """The folder with `config.json` and `model.safetensors` of a variant.

    A local folder may be the variant's own or the one that holds it. Anything else is a hub id:
    the two files are downloaded, or taken from the cache when
    `offline` or the environment's `HF_HUB_OFFLINE` says so.

    Raises:
        ValueError: there is no such variant.
        WeightsMissing: neither a folder with them nor a repository that could be read.
    """
    variant_named(variant)
    root = Path(repo_or_folder).expanduser()
    if root.is_dir():
        for folder in (root / variant, root):
            if (folder / "config.json").is_file() or (folder / "model.safetensors").is_file():
                if folder == root and _is_another_variant(root.name, variant):
                    raise WeightsMissing(f"{root} holds {root.name}, but {variant} was asked for.")
                return folder
        raise WeightsMissing(
            f"{root} holds no {variant}: {variant}/config.json and {variant}/model.safetensors "
            f"are expected in it."
        )
    patterns = [f"{variant}/config.json", f"{variant}/model.safetensors"]
    folder = fetch(str(repo_or_folder), patterns, offline=offline) / variant
    if not (folder / "config.json").is_file():
        raise WeightsMissing(f"{repo_or_folder} has no {variant}/config.json.")
    return folder


def pick_variant(repo_or_folder: str | Path, variant: str | None) -> str:
    """The variant asked for, or of those in a local folder the quickest.

    Raises:
        ValueError: there is no such variant.
        WeightsMissing: none was asked for and the folder holds none.
    """
    if variant is not None:
        return variant_named(variant).name
    root = Path(repo_or_folder).expanduser()
    if root.name in VARIANTS:
        return root.name
    held = [name for name in reversed(VARIANTS) if (root / name / "config.json").is_file()]
    if root.is_dir() and not held:
        raise WeightsMissing(f"{root} holds none of {', '.join(VARIANTS)}.")
    return held[0] if held else "worldstereo-memory-dmd"


def _is_another_variant(name: str, variant: str) -> bool:
    return name.startswith("worldstereo-") and name != variant


def limits_of(folder: str | Path, variant: str | None = None) -> GeneratorLimits:
    """What a checkpoint in a local folder accepts, from its headers; quick, and loads nothing.

    Raises:
        ValueError: the variant or a config value is not accepted.
        WeightsMissing: a file is absent, truncated or foreign.
    """
    if not Path(folder).expanduser().is_dir():
        raise WeightsMissing(f"{Path(folder).name} is not a folder here; one with weights is.")
    name = pick_variant(folder, variant)
    found = find_variant(folder, name, offline=True)
    shapes = Weights.open(found / "model.safetensors").shapes
    return read_config(found / "config.json", name, shapes).limits


def fetch(repo: str, patterns: list[str], *, offline: bool = False) -> Path:
    """Files of a hub repository, downloaded or from the cache.

    Raises:
        WeightsMissing: the name is no repository id, or its files cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    if repo.count("/") != 1 or repo.startswith(("/", ".", "~")):
        raise WeightsMissing(f"{repo} is neither a folder here nor a hub id like owner/name.")
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if not offline:
        log.info("%s: published under %s; fetching %s", repo, LICENCE, ", ".join(patterns))
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=offline))
    except HFValidationError as error:
        raise WeightsMissing(f"{repo} is neither a folder here nor a valid hub id.") from error
    except LocalEntryNotFoundError as error:
        how = "offline, and not in the cache" if offline else "not reachable, and not in the cache"
        raise WeightsMissing(
            f"{repo} is {how}; give a folder that holds {patterns[0]} (--model PATH)."
        ) from error
    except (HTTPError, OSError) as error:  # HTTPError: a lost connection too
        raise WeightsMissing(
            f"{repo} could not be downloaded ({type(error).__name__}); try again, or "
            f"give a folder (--model PATH)."
        ) from error


def find_base(config: ModelConfig, folder: Path, base: str | Path | None) -> Path | str:
    """The base model: `base`, else the config's `base_model` as a folder near the checkpoint."""
    if base is not None:
        root = Path(base).expanduser()
        if not root.is_dir() and str(base).count("/") != 1:
            raise WeightsMissing(f"base {base} is neither a folder here nor a hub id.")
        return root if root.is_dir() else str(base)
    for root in (folder, folder.parent):
        candidate = (root / config.base_model).resolve()
        if candidate.is_dir():
            return candidate
    return config.base_model


def base_part(base: Path | str, part: str, *, offline: bool = False, weights: bool = True) -> Path:
    """The folder of one component of the base model, fetched if it is not local."""
    if isinstance(base, Path):
        return base / part
    patterns = [f"{part}/*.json"]
    if weights:
        patterns += [f"{part}/*.safetensors", f"{part}/*.model", f"{part}/*.txt"]
    return fetch(base, patterns, offline=offline) / part
