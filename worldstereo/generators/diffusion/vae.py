"""Keyframes through the Wan VAE: each frame is its own one-frame video.

Latents are normalised with the VAE config's `latents_mean` and `latents_std` everywhere outside
this file. Pictures are in [-1, 1], channels first, frames along axis 2.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

SPATIAL, TEMPORAL = 8, 4


class KeyframeVae:
    """An `AutoencoderKLWan` used frame by frame.

    Args:
        vae: any Wan 2.1 VAE.
        batch: frames encoded or decoded together; more is faster and takes more memory.
    """

    def __init__(self, vae: AutoencoderKLWan, batch: int = 1) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}.")
        self.vae, self.batch = vae, batch
        config: Any = vae.config
        shape = (1, config.z_dim, 1, 1, 1)
        self.mean = torch.tensor(config.latents_mean, dtype=torch.float32).reshape(shape)
        self.std = torch.tensor(config.latents_std, dtype=torch.float32).reshape(shape)

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @torch.no_grad()
    def encode(self, video: Tensor, normalized: bool = True) -> Tensor:
        """Pictures (B, 3, F, H, W) to latents (B, 16, F, H/8, W/8), one frame at a time."""
        frames = video.transpose(1, 2).flatten(0, 1)[:, :, None]
        parts = [self._encode(part) for part in frames.split(self.batch)]
        latents = torch.cat(parts).squeeze(2).unflatten(0, (len(video), -1)).transpose(1, 2)
        return self.normalize(latents) if normalized else latents

    @torch.no_grad()
    def decode(self, latents: Tensor, on_frame: Callable[[int, int], None] | None = None) -> Tensor:
        """Normalised latents (B, 16, F, h, w) to pictures (B, 3, F, 8h, 8w) in [-1, 1].

        `on_frame(done, total)` is called after each batch of frames and may raise to stop.
        """
        frames = self.denormalize(latents).transpose(1, 2).flatten(0, 1)[:, :, None]
        parts = []
        for part in frames.to(self.vae.dtype).split(self.batch):
            parts.append(self.vae.decode(part, return_dict=False)[0].clamp(-1, 1))
            if on_frame is not None:
                on_frame(sum(len(p) for p in parts), len(frames))
        video = torch.cat(parts).squeeze(2)
        return video.unflatten(0, (len(latents), -1)).transpose(1, 2)

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """A real video (B, 3, 4n+1, H, W) through the temporal VAE to n+1 normalised latents."""
        return self.normalize(self._encode(video))

    @torch.no_grad()
    def condition(self, image: Tensor, frames: int, mode: str) -> Tensor:
        """Condition of the start picture: 4 mask channels, then 16 latent channels.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            frames: latent frames F.
            mode: "full_vae" (the picture and grey frames as one video) or "first_frame_only"
                (the picture alone, then one grey picture repeated).

        Returns:
            (B, 20, F, H/8, W/8).

        Raises:
            ValueError: an unknown mode.
        """
        grey = torch.zeros_like(image)
        if mode == "full_vae":
            count = TEMPORAL * (frames - 1)
            video = torch.cat(
                [image[:, :, None], grey[:, :, None].expand(-1, -1, count, -1, -1)], 2
            )
            latents = self.encode_video(video)
        elif mode == "first_frame_only":
            first = self.encode(image[:, :, None])
            rest = self.encode(grey[:, :, None])
            latents = torch.cat([first, rest.expand(-1, -1, frames - 1, -1, -1)], dim=2)
        else:
            raise ValueError(
                f"latent_cond_mode must be full_vae or first_frame_only, got {mode!r}."
            )
        mask = torch.zeros_like(latents[:, :4])
        mask[:, :, 0] = 1
        return torch.cat([mask, latents], dim=1)

    def references(self, pictures: Tensor) -> Tensor:
        """Reference pictures (B, 3, N, H, W) as clean, fully known frames (B, 36, N, h, w)."""
        latents = self.encode(pictures)
        return torch.cat([latents, torch.ones_like(latents[:, :4]), latents], dim=1)

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents (B, 16, F, h, w) of the VAE as the transformer wants them, float32."""
        return (latents.float() - self.mean.to(latents.device)) / self.std.to(latents.device)

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return latents.float() * self.std.to(latents.device) + self.mean.to(latents.device)

    def _encode(self, video: Tensor) -> Tensor:
        video = video.to(self.vae.device, self.vae.dtype)
        return self.vae.encode(video).latent_dist.mode()  # pyright: ignore
