"""An image autoencoder of `diffusers` from a local folder, for a process that runs in latents."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldstereo.errors import WeightsMissing


class Autoencoder(nn.Module):
    """Frames one by one into latents and back; never trained here."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        path = Path(folder)
        if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
            raise WeightsMissing(
                f"{path.name}: config.json or .safetensors is missing. An AutoencoderKL saved with "
                f"save_pretrained is accepted."
            )
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise WeightsMissing(
                "The diffusers library is not installed. Install requirements-model.txt."
            ) from None
        loaded: Any = AutoencoderKL.from_pretrained(
            str(path), use_safetensors=True, local_files_only=True
        )
        self.inner = loaded.eval().requires_grad_(False)
        self.channels: int = loaded.config.latent_channels
        self.down = 2 ** (len(loaded.config.block_out_channels) - 1)
        self.scale: float = loaded.config.scaling_factor

    def encode(self, images: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T c h w"]:
        latents = self.inner.encode(images.flatten(0, 1)).latent_dist.mode() * self.scale
        return latents.unflatten(0, images.shape[:2])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B T c h w"]) -> Float[Tensor, "B T 3 H W"]:
        images = self.inner.decode(latents.flatten(0, 1) / self.scale).sample
        return images.unflatten(0, latents.shape[:2])
