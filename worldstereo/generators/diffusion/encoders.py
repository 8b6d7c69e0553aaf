"""Text and start picture as the model wants them: UMT5 and CLIP from the base repository.

Two oddities of the release are kept because the weights were trained or distilled with them; both
can be switched off by name.
"""

import html
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worldstereo.errors import WeightsMissing
from worldstereo.generators.diffusion.config import MAX_SIDE, check_whole, json_object

TEXT_TOKENS = 512


class TextEncoder:
    """Prompts to (1, 512, width), zero behind each prompt's true length."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder
        tie_token_embedding(encoder)

    @torch.no_grad()
    def __call__(self, prompt: str, device: torch.device | str | None = None) -> Tensor:
        device = device or next(self.encoder.parameters()).device
        tokens = self.tokenizer(
            [clean(prompt)],
            padding="max_length",
            max_length=TEXT_TOKENS,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        states = self.encoder(ids, mask).last_hidden_state
        return (states * mask[..., None]).float()


class ImageEncoder:
    """The start picture to CLIP's penultimate hidden state (1, tokens, width).

    Args:
        rescale: divide the 8-bit picture by 255 first, as CLIP was trained. The release does not,
            and its weights expect that; so the default is False.
    """

    def __init__(self, encoder: Any, settings: dict[str, Any], rescale: bool = False) -> None:
        self.encoder, self.rescale = encoder, rescale
        self.size, self.crop, self.mean, self.std = _preprocessing(settings)

    def pixels(self, image: Image.Image) -> Tensor:
        """(1, 3, crop, crop): bicubic to the shortest edge, centre crop, then mean and std."""
        image = image.convert("RGB")
        short = min(image.size)
        width, height = (max(self.crop, int(self.size * side / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.crop) // 2, (height - self.crop) // 2
        image = image.crop((left, top, left + self.crop, top + self.crop))
        values = torch.from_numpy(np.array(image)).float()
        if self.rescale:
            values = values / 255
        return ((values - self.mean) / self.std).permute(2, 0, 1)[None]

    @torch.no_grad()
    def __call__(self, image: Image.Image, device: torch.device | str | None = None) -> Tensor:
        parameter = next(self.encoder.parameters())
        pixels = self.pixels(image).to(device or parameter.device, parameter.dtype)
        states = self.encoder(pixels, output_hidden_states=True).hidden_states
        if states is None or len(states) < 2:
            raise WeightsMissing(
                "the image encoder must be a CLIP vision model with hidden states."
            )
        return states[-2].float()


def _preprocessing(settings: dict[str, Any]) -> tuple[int, int, Tensor, Tensor]:
    """Shortest edge and side of the crop in pixels, mean and deviation (3,) of the colours.

    Raises:
        ValueError, KeyError, TypeError: no picture can be made with them.
    """
    size: Any = settings.get("size", 224)
    size = size["shortest_edge"] if isinstance(size, dict) else size
    crop = settings.get("crop_size", size)
    crop = crop["height"] if isinstance(crop, dict) else crop
    for name, side in (("size", size), ("crop_size", crop)):
        check_whole(f"preprocessor_config.json: {name}", side, MAX_SIDE)
    mean = torch.tensor(settings.get("image_mean", _CLIP_MEAN), dtype=torch.float32)
    std = torch.tensor(settings.get("image_std", _CLIP_STD), dtype=torch.float32)
    sound = mean.shape == std.shape == (3,) and bool((std > 0).all())
    if not sound or not bool((mean.isfinite() & std.isfinite()).all()):
        raise ValueError("preprocessor_config.json: image_mean and image_std are not usable.")
    return size, crop, mean, std


_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def clean(prompt: str) -> str:
    """Broken encodings mended where `ftfy` is installed, HTML unescaped twice, spaces collapsed."""
    try:
        import ftfy  # pyright: ignore[reportMissingImports]
    except ImportError:
        pass
    else:
        prompt = ftfy.fix_text(prompt)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


def tie_token_embedding(encoder: Any) -> None:
    """Makes sure the encoder's token embedding is the shared one that checkpoints hold.

    Newer transformers may leave it untied, hence random; then no prompt would mean anything.
    """
    shared = getattr(encoder, "shared", None)
    stack = getattr(encoder, "encoder", None)
    if shared is not None and stack is not None and hasattr(stack, "embed_tokens"):
        stack.embed_tokens = shared


def load_text_encoder(
    text_encoder: Path, tokenizer: Path, dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """UMT5 and its tokenizer from local folders; never unpickles.

    Raises:
        WeightsMissing: a folder is absent or holds something else.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    with readable(f"text encoder in {text_encoder}"):
        words = AutoTokenizer.from_pretrained(
            tokenizer, local_files_only=True, trust_remote_code=False
        )
        encoder = UMT5EncoderModel.from_pretrained(
            text_encoder, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    return TextEncoder(words, encoder.eval().requires_grad_(False))


def load_image_encoder(
    image_encoder: Path, processor: Path, dtype: torch.dtype = torch.float32
) -> ImageEncoder:
    """CLIP vision from local folders; never unpickles.

    Raises:
        WeightsMissing: a folder is absent or holds something else.
    """
    from transformers import CLIPVisionModel

    with readable(f"image encoder in {image_encoder}"):
        path = processor / "preprocessor_config.json"
        settings = json_object(path.read_bytes(), path)
        _preprocessing(settings)  # refused before the encoder takes memory
        encoder = CLIPVisionModel.from_pretrained(
            image_encoder, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    return ImageEncoder(encoder.eval().requires_grad_(False), settings)


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Reading a part of the base model: one line where that fails, and nothing half-read stays.

    Without transformers' progress bars: what loading says goes through `on_step` and the log.

    Raises:
        WeightsMissing: a file is absent, truncated, or holds something else.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, WeightsMissing):
        raise  # no fault of the files, or said already
    except Exception as error:  # a config that fits nothing raises whatever its reader does
        traceback.clear_frames(error.__traceback__)  # they hold what was read so far
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if not isinstance(error, OSError | ValueError | ImportError | SafetensorError):
            reason = f"its files describe no model that can be built ({reason})"
        raise WeightsMissing(f"the {what} cannot be loaded: {reason}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
