"""Inpainting models of the diffusers library, from a folder or the local hub cache.

Only `.safetensors` weights and classes of diffusers itself are loaded; nothing is downloaded but by
`download`, which a person asks for after `offer` has named licence and size.
"""

import inspect
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldstereo.errors import OutOfMemory, WeightsMissing, WorldStereoError
from worldstereo.generators.base import MemoryModeFit, StepRange
from worldstereo.generators.inpaint.painters import (
    PainterFailed,
    PainterLimits,
    PaintRequest,
    ran_out_of_memory,
)
from worldstereo.progress import OnStep, ignore

log = logging.getLogger(__name__)

INDEX = "model_index.json"
PATTERNS = ("*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")
"""What is fetched of a repository: configs, weights, vocabularies; never a pickle or code."""
STRENGTH = 1.0
"""A hole is painted from noise alone."""
WORK = 1.5
"""How much longer a step takes than its large products alone; measured on small models."""


@dataclass(frozen=True)
class Survey:
    """What an inpainting model would take, read from configs and file headers."""

    kind: str
    """The class that its folder names."""
    side: int
    """Pixels along each side that it was trained for."""
    bytes: int
    """All weights, as stored."""
    denoiser: int
    """Parameters that run in every step."""
    tokens: float
    """Positions of the denoiser per pixel, all scales together."""

    @staticmethod
    def of(folder: Path) -> "Survey":
        """Reads a folder that diffusers' `save_pretrained` wrote.

        Raises:
            WeightsMissing: it is no such folder, or a part has no safetensors.
        """
        index = _json(folder / INDEX)
        kind = index.get("_class_name")
        if not isinstance(kind, str):
            raise WeightsMissing(f"{folder.name}: {INDEX} names no pipeline class of diffusers.")
        total, denoiser, side, tokens = 0, 0, 512, 1 / 640
        for name, about in index.items():
            if name.startswith("_") or not isinstance(about, list) or about[0] is None:
                continue
            if about[0] not in ("diffusers", "transformers", "stable_diffusion"):
                raise WeightsMissing(
                    f"{folder.name}: its part {name} needs code of {str(about[0])[:40]}; only "
                    f"parts of diffusers and transformers are accepted."
                )
            part = folder / name
            config = part / "config.json"
            if not config.is_file():
                continue  # a tokenizer or a scheduler
            weights = _weights(part, folder.name)
            total += sum(file.stat().st_size for file in weights)
            fields = _json(config)
            if name in ("unet", "transformer"):
                denoiser = sum(_parameters(file) for file in weights)
                scale = 16 if name == "transformer" else 8
                sample = fields.get("sample_size")
                if isinstance(sample, int) and sample > 0:
                    side = min(2048, sample * 8)
                elif name == "transformer":
                    side = 1024
                tokens = 1 / scale**2 if name == "transformer" else 1 / 640
        return Survey(kind, side, total, denoiser, tokens)

    def fit(self, keyframes: int, steps: int, guided: bool, device: torch.device) -> MemoryModeFit:
        """Memory and time of so many keyframes, estimated before anything is loaded."""
        from worldstereo.generators.diffusion.memory_modes import Card

        card = Card.at(device)
        stored = self.bytes * (1 if card.cuda else 2)  # half precision on a card, whole on a CPU
        picture = 24 * self.side**2 * 64  # activations of the decoder, its largest layer
        needed = stored + picture
        operations = 2 * self.denoiser * self.side**2 * self.tokens * (2 if guided else 1)
        rate = card.tflops * 1e12 if card.cuda else _rate()
        seconds = keyframes * (WORK * steps * operations / rate + 0.5)
        fits = needed < card.memory
        why = "" if fits else f"needs {needed / 2**30:.1f} GiB, {card.memory / 2**30:.1f} are there"
        return MemoryModeFit("full", f"All of {self.kind}", fits, needed / 2**30, seconds, why)


class DiffusersPainter:
    """Any model that diffusers loads for inpainting; weights are loaded with the first picture.

    Args:
        folder: as `save_pretrained` wrote it.
        device: "auto" takes a GPU where there is one.

    Raises:
        WeightsMissing: the folder holds no such model; one line says why.
    """

    def __init__(self, folder: Path | str, device: str = "auto") -> None:
        from worldstereo.generators.diffusion.survey import device_named

        self.folder = Path(folder)
        self.survey = Survey.of(self.folder)
        self.device = device_named(device)
        self.limits = PainterLimits(
            side=self.survey.side,
            multiple=16,
            grow=8,
            text=True,
            steps=StepRange(1, 100, 25),
            guidance=7.0,
            seconds=self.survey.fit(1, 25, True, self.device).seconds,
        )
        self._pipeline: Any = None

    def __call__(self, image: np.ndarray, mask: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        return self.paint(image, mask, prompt, seed, PaintRequest(), ignore)

    def paint(
        self, image: np.ndarray, mask: np.ndarray, prompt: str, seed: int, options: PaintRequest,
        on_step: OnStep,
    ) -> np.ndarray:  # fmt: skip
        """One picture; `on_step` is asked after each denoising step.

        Raises:
            OutOfMemory: it needs more memory than there is.
            PainterFailed: the model raised an error of its own.
        """
        from PIL import Image

        pipeline = self._loaded(on_step)
        assert self.limits.steps is not None
        steps = options.steps or self.limits.steps.default
        guidance = options.guidance if options.guidance is not None else self.limits.guidance
        stopped: list[BaseException] = []

        def after(pipe: Any, step: int, moment: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            try:
                on_step(step + 1, steps, f"step {step + 1} of {steps}")
            except BaseException as error:
                stopped.append(error)
                raise
            return tensors

        height, width = mask.shape
        wanted: dict[str, Any] = {
            "prompt": prompt,
            "negative_prompt": options.negative_prompt or None,
            "image": Image.fromarray(image),
            "mask_image": Image.fromarray(mask.astype(np.uint8) * 255),
            "height": height,
            "width": width,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "strength": STRENGTH,
            "generator": torch.Generator("cpu").manual_seed(seed),
            "callback_on_step_end": after,
            "output_type": "np",
        }
        accepted = inspect.signature(pipeline.__call__).parameters
        on_step(0, steps, "reading the prompt")
        try:
            with torch.no_grad():
                result = pipeline(**{k: v for k, v in wanted.items() if k in accepted})
        except Exception as error:
            if stopped:
                raise stopped[0] from None
            if ran_out_of_memory(error):
                self.close()
                raise OutOfMemory(
                    f"{self.survey.kind} needs more memory than there is on {self.device.type}. "
                    f"Choose a smaller model; the world is kept."
                ) from None
            log.warning("inpainting model failed: %s", error)
            raise PainterFailed(
                f"{self.survey.kind} failed: {type(error).__name__}: {str(error)[:160]}."
            ) from error
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            raise PainterFailed(
                f"{self.survey.kind} withheld its picture (safety checker). Choose another seed or "
                f"prompt."
            )
        out = np.asarray(result.images, np.float32)[0]
        if out.shape != image.shape:
            return out  # the caller says what is wrong with it, or scales it
        # These models redraw what they were shown; only the masked part is their answer.
        return np.where(mask[..., None], out, image.astype(np.float32) / 255)

    def close(self) -> None:
        """Gives the weights back."""
        self._pipeline = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _loaded(self, on_step: OnStep) -> Any:
        if self._pipeline is None:
            try:
                from diffusers import AutoPipelineForInpainting
            except ImportError:
                raise WeightsMissing(
                    "The diffusers library is not installed. Install requirements-model.txt."
                ) from None
            on_step(0, 1, f"loading {self.survey.kind}")
            half = torch.float16 if self.device.type == "cuda" else torch.float32
            try:
                absent = {
                    name: None
                    for name, about in _json(self.folder / INDEX).items()
                    if isinstance(about, list) and about[0] is None
                }
                pipeline = AutoPipelineForInpainting.from_pretrained(
                    self.folder, use_safetensors=True, local_files_only=True, dtype=half, **absent
                )
            except Exception as error:  # any of a dozen classes, for a damaged or foreign folder
                if ran_out_of_memory(error):
                    raise
                log.warning("inpainting model refused: %s", error)
                raise WeightsMissing(
                    f"{self.folder.name}: diffusers cannot load it for inpainting "
                    f"({type(error).__name__})."
                ) from None
            pipeline.set_progress_bar_config(disable=True)
            self._pipeline = pipeline.to(self.device)
        return self._pipeline


# ---- where a model is ----------------------------------------------------------------------------


def find_model(spec: str) -> Path:
    """The folder of an inpainting model on this machine; nothing is downloaded.

    Args:
        spec: a folder, or a hub id that is in the local cache.

    Raises:
        WeightsMissing: neither.
    """
    folder = Path(spec).expanduser()
    if (folder / INDEX).is_file():
        return folder
    if folder.is_dir():
        raise WeightsMissing(
            f"{folder.name} holds no {INDEX}; a folder that diffusers saved is accepted."
        )
    if _is_id(spec):
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(spec, allow_patterns=list(PATTERNS), local_files_only=True)
            )
        except Exception as error:  # not in the cache, in any of the client's classes
            log.info("%s: %s", spec, error)
    raise WeightsMissing(
        f"{spec[:80]}: neither a folder with {INDEX} nor a model in the local hub cache. "
        f"`worldstereo painter {spec[:80]}` shows its licence and size and gets it."
    )


@dataclass(frozen=True)
class Offer:
    """What a download would fetch, shown before a person agrees to it."""

    repo: str
    licence: str
    bytes: int
    files: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.repo}: licence {self.licence}, {self.bytes / 1e9:.2f} GB in "
            f"{len(self.files)} files"
        )


def offer(repo: str, *, info: Callable[..., Any] | None = None) -> Offer:
    """Asks the hub for a model's licence and size; fetches no file.

    Args:
        info: instead of `huggingface_hub.HfApi().model_info`.

    Raises:
        ValueError: `repo` is no hub id.
        WorldStereoError: the hub does not answer, or the model has no safetensors.
    """
    from fnmatch import fnmatch

    if not _is_id(repo):
        raise ValueError(f"repo must be a hub id like owner/name, got {repo[:60]!r}.")
    if info is None:
        from huggingface_hub import HfApi

        info = HfApi().model_info
    try:
        found = info(repo, files_metadata=True)
    except Exception as error:  # any of the client's classes, or of the network's
        log.warning("%s: %s", repo, error)
        raise WorldStereoError(
            f"{repo}: the hub cannot be asked from here ({type(error).__name__}). Connect, or copy "
            f"a model folder here."
        ) from None
    card = getattr(found, "card_data", None) or {}
    licence = (card.get("license") if hasattr(card, "get") else None) or "not stated"
    named = card.get("license_name") if hasattr(card, "get") else None
    files = [
        (s.rfilename, int(s.size or 0))
        for s in found.siblings or ()
        if any(fnmatch(s.rfilename, p) and s.rfilename.count("/") == p.count("/") for p in PATTERNS)
    ]
    if not any(name.endswith(".safetensors") for name, _ in files):
        raise WorldStereoError(f"{repo} holds no safetensors weights; no other kind is accepted.")
    text = f"{licence} ({named})" if named else str(licence)
    return Offer(repo, text, sum(size for _, size in files), tuple(name for name, _ in files))


def download(
    agreed: Offer, *, on_step: OnStep = ignore, fetch: Callable[..., Any] | None = None
) -> Path:
    """Gets what was offered into the local hub cache, because a person agreed to it.

    Args:
        agreed: what `offer` returned and a person was shown.
        fetch: instead of `huggingface_hub.snapshot_download`.

    Raises:
        WorldStereoError: the hub does not give it.
        Cancelled: `on_step` raised it, before a file.
    """
    if fetch is None:
        from huggingface_hub import snapshot_download as fetch
    folder = ""
    try:
        for i, name in enumerate(agreed.files):
            on_step(i, len(agreed.files), f"Getting {name}")
            folder = fetch(agreed.repo, allow_patterns=[name])
    except WorldStereoError:
        raise
    except Exception as error:
        log.warning("%s: %s", agreed.repo, error)
        raise WorldStereoError(
            f"{agreed.repo}: the download failed ({type(error).__name__}). Try again; what is "
            f"there is kept."
        ) from None
    Survey.of(Path(folder))
    return Path(folder)


def _is_id(text: str) -> bool:
    return (
        text.count("/") == 1
        and len(text) <= 96
        and not any(c in text for c in " \\:?*\"'~")
        and not text.startswith(("/", "."))
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        fields = None
    if not isinstance(fields, dict):
        raise WeightsMissing(f"{path.parent.name}/{path.name} is absent or not a JSON object.")
    return fields


def _weights(part: Path, model: str) -> list[Path]:
    found = sorted(part.glob("*.safetensors"))
    if not found:
        raise WeightsMissing(
            f"{model}: {part.name} holds no safetensors weights; no other kind is accepted."
        )
    plain = [file for file in found if ".fp16." not in file.name]
    return plain or found


def _parameters(file: Path) -> int:
    from worldstereo.generators.diffusion.checkpoint import Weights

    shapes = Weights.open(file).shapes
    return sum(int(np.prod(shape)) for shape in shapes.values())


_measured: list[float] = []


def _rate() -> float:
    """Operations a second of large products here, measured once in some 50 ms."""
    if not _measured:
        a = torch.rand(512, 512)
        torch.mm(a, a)
        began, rounds = time.perf_counter(), 8
        for _ in range(rounds):
            torch.mm(a, a)
        spent = max(time.perf_counter() - began, 1e-6)
        _measured.append(rounds * 2 * 512**3 / spent)
    return _measured[0]


def model_of_environment() -> str:
    """WORLDSTEREO_PAINTER: a painter's name, a folder or a hub id; "" where it is not set."""
    return os.environ.get("WORLDSTEREO_PAINTER", "")
