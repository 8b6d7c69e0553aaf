"""`WorldStereo`: a video diffusion backbone and the two memories that steer it, as one module."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldstereo.cameras import Cameras
from worldstereo.errors import WeightsMissing
from worldstereo.generators import Generator, OnState
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.model import _arguments as arguments
from worldstereo.model._branches import MemoryBranches, Surfaces, answers, surfaces
from worldstereo.model._compact import CompactBackbone
from worldstereo.model._config import backbone_config, check_widths, memory_config
from worldstereo.model._files import MANIFEST, read_config, read_weights, write_model
from worldstereo.model._generators import CompactGenerator, SharedDiffusion, SizedWarp
from worldstereo.model._inference import one_clip, remembered
from worldstereo.model._output import ModelOutput
from worldstereo.model._process import Process
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import PointCloud, Scene, View
from worldstereo.world import World, remember_entries

log = logging.getLogger(__name__)


class WorldStereo(nn.Module):
    """A video diffusion model with a global-geometric and a spatial-stereo memory.

    Args:
        vdm_config: the backbone; see the reference for its keys. `{}` is "compact" with defaults.
        global_memory_config: keyword arguments of `GlobalGeometricMemory`.
        spatial_memory_config: keyword arguments of `SpatialStereoMemory`.
        pretrained_path: a folder of `save_pretrained`, a .safetensors file, or the folder of a
            published variant; random weights without it.
        device: "cuda", "cuda:1", "cpu", "auto" or a `torch.device`.

    Raises:
        TypeError, ValueError: a setting of another type, unknown, or out of range.
        WeightsMissing: the weights are absent, foreign, or a pickle.
    """

    vdm: nn.Module
    global_memory: GlobalGeometricMemory
    spatial_memory: SpatialStereoMemory

    def __init__(
        self,
        vdm_config: Any,
        global_memory_config: Any,
        spatial_memory_config: Any,
        pretrained_path: str | Path | None = None,
        device: Any = "cuda",
    ) -> None:
        super().__init__()
        vdm = backbone_config(vdm_config)
        geometry = memory_config(
            "global_memory_config", GlobalGeometricMemory, global_memory_config
        )
        stereo = memory_config("spatial_memory_config", SpatialStereoMemory, spatial_memory_config)
        check_widths(vdm, geometry, stereo)
        at = arguments.device_of(device)
        if vdm["backbone"] == "compact":
            geometry["latent_channels"] = vdm["hidden_dim"]
        self._config = {
            "vdm_config": vdm,
            "global_memory_config": geometry,
            "spatial_memory_config": stereo,
        }
        self.last_seed: int | None = None
        self.global_memory = GlobalGeometricMemory(**geometry)
        self.spatial_memory = SpatialStereoMemory(**stereo)
        self._generator = self._built(vdm, pretrained_path, at)
        self.to(at)
        self._world = self._opened()
        if pretrained_path is not None and vdm["backbone"] != "wan":
            read_weights(self, Path(pretrained_path))
            self._show_memories()

    def _built(
        self, vdm: dict[str, Any], pretrained: str | Path | None, at: torch.device
    ) -> Generator:
        kind = vdm["backbone"]
        if kind == "compact":
            self.autoencoder = None
            channels, down = vdm["channels"], 1
            if vdm["vae"] is not None:
                from worldstereo.generators.diffusion.image_autoencoder import Autoencoder

                self.autoencoder = Autoencoder(vdm["vae"])
                channels, down = self.autoencoder.channels, self.autoencoder.down
            self.process = Process(
                vdm["num_timesteps"], vdm["noise_schedule"], vdm["prediction_type"]
            )
            self.vdm = CompactBackbone(
                channels=channels,
                hidden_dim=vdm["hidden_dim"],
                num_layers=vdm["num_layers"],
                num_heads=vdm["num_heads"],
                patch_size=vdm["patch_size"],
                temporal_attention=vdm["temporal_attention"],
            )
            self.branches = MemoryBranches(vdm["hidden_dim"], self.spatial_memory.feature_dim)
            self.pixel_patch = self.size_multiple = vdm["patch_size"] * down
            return CompactGenerator(self)
        self.vdm, self.size_multiple = nn.Module(), 1
        if kind == "warp":
            return SizedWarp(self)
        if pretrained is None:
            raise WeightsMissing(
                'The "wan" backbone needs pretrained_path: the folder of a published variant.'
            )
        from worldstereo.generators.diffusion import DiffusionGenerator

        folder = Path(pretrained)
        whole = (folder / "config.json").is_file()
        inner = DiffusionGenerator.from_pretrained(
            folder.parent if whole else folder, folder.name if whole else None, device=str(at)
        )
        self.vdm, self.size_multiple = inner.published.transformer, 16
        return SharedDiffusion(self, inner)

    # ---- handles -----------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """The three complete mappings, ready for JSON; a copy."""
        return json.loads(json.dumps(self._config))

    @property
    def device(self) -> torch.device:
        return next(self.global_memory.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the backbone's weights; float32 where it has none."""
        return next((p.dtype for p in self.vdm.parameters()), torch.float32)

    @property
    def world(self) -> World:
        """The world that calls continue: for undo, export and inspection."""
        return self._world

    @property
    def generator(self) -> Generator:
        """The backbone as `explore` takes it."""
        return self._generator

    def _opened(self) -> World:
        """An empty world on the model's memories; frames enter it when its configuration says."""
        world = World(self._generator)
        configured = self._config["global_memory_config"]["update_frequency"]
        self.global_memory.update_frequency = configured
        return world

    def reset_memory(self) -> None:
        """Forgets everything remembered, undo included; weights stay."""
        self._world = self._opened()

    def update_memory(self, frames: Any, cameras: Any, depth: Any = None) -> None:
        """Folds frames into both memories, as one step that can be undone; see the reference.

        Args:
            frames: (T, 3, H, W) floats in [0, 1], or (T, H, W, 3) bytes.
            cameras: a trajectory or `Cameras` of T frames.
            depth: (T, H, W) in world units, 0 where unknown; estimated where None.

        Raises:
            ValueError, TypeError: shapes that do not fit; nothing has changed then.
        """
        remembered(self, frames, cameras, depth)

    def _show_memories(self) -> None:
        """Publishes what was loaded into the memories, so that calls can continue it."""
        held = self.global_memory
        if held.is_empty and self.spatial_memory.size == 0:
            return
        cloud = PointCloud(
            held.points.cpu(),
            held.colors.cpu(),
            held.confidence.cpu(),
            torch.zeros(held.num_points, dtype=torch.int64),
            held.normals.cpu(),
            held.radii.cpu(),
        )
        scene = Scene(cloud=cloud)
        states = held.state_dict(), self.spatial_memory.state_dict()
        self._world.reopen(scene, None, (), dict(states[0]), dict(states[1]))

    def num_parameters(self, only_trainable: bool = False) -> int:
        kept = (p for p in self.parameters() if p.requires_grad or not only_trainable)
        return sum(p.numel() for p in kept)

    def trainable_parameters(self, which: str = "all") -> Iterator[nn.Parameter]:
        """Parameters that require a gradient: of the backbone, of the two branches, or all.

        Raises:
            ValueError: another name.
        """
        if which not in ("backbone", "branches", "all"):
            raise ValueError(f'which must be "backbone", "branches" or "all", got {which!r}.')
        backbone = {id(p) for p in self.vdm.parameters()}
        for parameter in self.parameters():
            inside = id(parameter) in backbone
            if parameter.requires_grad and which in ("all", "backbone" if inside else "branches"):
                yield parameter

    def freeze_backbone(self) -> None:
        """Leaves only the memory branches trainable."""
        self.vdm.requires_grad_(False)

    # ---- training ----------------------------------------------------------------------------

    def forward(
        self,
        images: Tensor,
        camera_params: Any,
        timesteps: Tensor,
        point_cloud: Tensor | None = None,
        return_dict: bool = True,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        reference_frames: tuple[int, ...] = (0,),
        use_geometric_memory: bool = True,
        use_spatial_memory: bool = True,
        with_condition: bool = True,
        with_features: bool = True,
    ) -> ModelOutput | tuple[Any, ...]:
        """One training pass: noise is added to clips and predicted from them and the memories.

        Args:
            images: (B, T, 3, H, W) in [-1, 1]; frame 0 is the condition.
            camera_params: `Cameras` (T,) or (B, T), a trajectory, a list of B of these, or a
                mapping with intrinsics and extrinsics (world to camera).
            timesteps: (B,) whole numbers below num_timesteps.
            point_cloud: (N, 3) or (N, 6) with colours; replaces the global memory's cloud.
            generator: where the noise comes from; the caller's global state is never read.
            noise: given noise of the state's shape instead.
            reference_frames: the clean frames that fill the spatial bank for this pass.
            with_condition: False withholds the condition image, as guidance does.
            with_features: False leaves `memory_features` out (empty tensors), which is quicker.

        Raises:
            ValueError, TypeError: an argument of another shape, type or range; memories unchanged.
            NotImplementedError: a backbone without a training pass.
        """
        if not isinstance(self.vdm, CompactBackbone):
            name = self._config["vdm_config"]["backbone"]
            raise NotImplementedError(
                f'The "{name}" backbone has no training pass here; the "compact" backbone has one.'
            )
        images, cameras = self._checked(images, camera_params, timesteps, reference_frames)
        cloud = None if point_cloud is None else arguments.cloud(point_cloud)
        at, p = self.device, self.size_multiple
        cameras = [camera.to(at) for camera in cameras]
        rows, columns = images.shape[-2] // p, images.shape[-1] // p
        clean = self._encoded(images)
        noise = self._noise(clean, generator, noise)
        timesteps = timesteps.to(at)
        levels = self.process.levels(timesteps)
        state = self.process.noisy(clean, noise, levels)
        geometry = self.global_memory if use_geometric_memory else None
        stereo = None
        before = self.global_memory.snapshot()
        try:
            if cloud is not None:
                colors = None if cloud.colors is None else cloud.colors.to(at)
                self.global_memory.initialize(cloud.points.to(at), colors=colors)
            if use_spatial_memory:
                stereo = self.bank_of(images, cameras, reference_frames)
            steered = geometry is not None or stereo is not None
            seen = (
                [surfaces(geometry, stereo, camera, rows, columns) for camera in cameras]
                if steered or with_features
                else []
            )
            predicted = self.vdm(
                state,
                timesteps,
                clean[:, 0] if with_condition else None,
                cameras,
                (lambda x: self.branches(x, cameras, geometry, stereo, seen)) if steered else None,
            )
            features: dict[str, Tensor] = {}
            if with_features:
                features = self._features(cameras, geometry, stereo, seen)
        except BaseException:
            self.global_memory.restore(before)
            raise
        loss = (predicted - self.process.target(clean, noise, levels)).square().mean()
        implied = self.process.solved(predicted, state, levels)[1]
        output = ModelOutput(loss, implied, features)
        return output if return_dict else output.to_tuple()

    def _checked(
        self, images: Any, camera_params: Any, timesteps: Any, references: Any
    ) -> tuple[Tensor, list[Cameras]]:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise TypeError("images must be a tensor of floats (B, T, 3, H, W) in [-1, 1].")
        if images.ndim != 5 or images.shape[2] != 3 or images.numel() == 0:
            raise ValueError(
                f"images must have shape (B, T, 3, H, W) without an empty side, "
                f"got {tuple(images.shape)}."
            )
        B, T, _, H, W = images.shape
        p, most = self.size_multiple, self._config["vdm_config"]["max_frames"]
        if H % p or W % p:
            raise ValueError(f"images must have sides that are multiples of {p}, got {W} x {H}.")
        if most < T:
            raise ValueError(f"images hold {T} frames; max_frames is {most}.")
        if not bool(torch.isfinite(images.detach()).all()):
            raise ValueError("images hold a number that is not finite.")
        if float(images.detach().abs().max()) > 1 + 1e-3:
            raise ValueError("images must lie in [-1, 1]; scale them by 2 x - 1 from [0, 1].")
        if not isinstance(timesteps, Tensor) or timesteps.is_floating_point():
            raise TypeError("timesteps must be a tensor of whole numbers (B,).")
        last = self.process.num_timesteps - 1
        if tuple(timesteps.shape) != (B,):
            raise ValueError(f"timesteps must have shape ({B},), got {tuple(timesteps.shape)}.")
        if int(timesteps.min()) < 0 or int(timesteps.max()) > last:
            raise ValueError(
                f"timesteps must be 0 to {last}, got {int(timesteps.min())} to "
                f"{int(timesteps.max())}."
            )
        for frame in references:
            if isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < T:
                raise ValueError(f"reference_frames must be 0 to {T - 1}, got {frame!r}.")
        cameras = arguments.clip_cameras(camera_params, B, T, W, H)
        return images.to(self.device, self.dtype), cameras

    def _noise(self, clean: Tensor, generator: torch.Generator | None, noise: Any) -> Tensor:
        if noise is None:
            if generator is None:
                generator = torch.Generator().manual_seed(arguments.seed_of(None))
            drawn = torch.randn(clean.shape, generator=generator, device=generator.device)
            return drawn.to(clean)
        if not isinstance(noise, Tensor) or noise.shape != clean.shape:
            shape = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise ValueError(f"noise must have shape {tuple(clean.shape)}, got {shape}.")
        return noise.to(clean)

    @torch.no_grad()
    def bank_of(
        self, images: Tensor, cameras: list[Cameras], references: tuple[int, ...]
    ) -> SpatialStereoMemory:
        """A bank of the clean reference frames alone, at the depth that the cloud shows.

        It is one of its own, so that the model's stays as it is and the gradient's graph may keep
        what it attended to.
        """
        bank = SpatialStereoMemory(**self._config["spatial_memory_config"]).to(self.device)
        if self.global_memory.is_empty:
            return bank
        for b in range(len(images)):
            for frame in references:
                camera = cameras[b][frame]
                depth = self.global_memory.render(camera, radius=0).depth.cpu()
                color = (images[b, frame].detach() / 2 + 0.5).clamp(0, 1).float().cpu()
                view = View.of(color, depth.float(), camera.to("cpu"), frame=frame)
                remember_entries(bank, view, self._generator, frame)
        return bank

    def _features(
        self,
        cameras: list[Cameras],
        geometry: GlobalGeometricMemory | None,
        stereo: SpatialStereoMemory | None,
        seen: list[Surfaces],
    ) -> dict[str, Tensor]:
        """What both modules answer at the surface in each patch; zeros where a memory is empty."""
        coarse, fine = [], []
        for camera, found in zip(cameras, seen, strict=True):
            T, N = found.seen.shape
            one = torch.zeros(T, N, self.global_memory.feature_dim, device=self.device)
            if geometry is not None and not geometry.is_empty:
                one = geometry.query(found.points, camera) * found.seen[..., None]
            two = torch.zeros(T, N, self.spatial_memory.feature_dim, device=self.device)
            if stereo is not None and stereo.size > 0:
                two = answers(two, camera, stereo, found)[0]
            coarse.append(one.flatten(0, 1))
            fine.append(two.flatten(0, 1))
        return {"global": torch.stack(coarse), "spatial": torch.stack(fine)}

    # ---- sampling ----------------------------------------------------------------------------

    @torch.no_grad()
    def denoised(
        self,
        condition: Float[Tensor, "3 H W"],
        cameras: Cameras,
        *,
        geometry: GlobalGeometricMemory | None,
        stereo: SpatialStereoMemory | None,
        steps: int,
        guidance: float = 1.0,
        seed: int = 0,
        on_step: OnStep = ignore,
        on_state: OnState | None = None,
    ) -> Float[Tensor, "T 3 H W"]:
        """Frames in [0, 1] of one clip, from noise; a memory that is None is switched off.

        The noise of a seed is the same on every device.
        """
        assert isinstance(self.vdm, CompactBackbone)
        T, p = len(cameras), self.size_multiple
        H, W = condition.shape[-2:]
        shown = self._encoded((condition * 2 - 1)[None, None].to(self.dtype))[:, 0]
        draw = torch.Generator().manual_seed(seed)
        state = torch.randn(1, T, *shown.shape[1:], generator=draw).to(shown)
        branches = None
        if geometry is not None or stereo is not None:
            seen = [surfaces(geometry, stereo, cameras, H // p, W // p)]
            branches = lambda x: self.branches(x, [cameras], geometry, stereo, seen)  # noqa: E731
        at = self.process.steps(steps)
        for i, t in enumerate(at):
            on_step(i, len(at), f"Denoising step {i + 1} of {len(at)}")
            when = torch.tensor([t], device=self.device)
            predicted = self.vdm(state, when, shown, [cameras], branches)
            if guidance > 1:
                free = self.vdm(state, when, None, [cameras], branches)
                predicted = free + guidance * (predicted - free)
            clean, noise = self.process.solved(predicted, state, self.process.levels(when))
            if self.autoencoder is None:
                clean = clean.clamp(-1, 1)
            state = self.process.step(clean, noise, at[i + 1] if i + 1 < len(at) else None)
            if on_state is not None:
                on_state(i + 1, len(at), state.detach())
        on_step(len(at), len(at), f"{T} of {T} views made")
        return self._decoded(state)

    def _encoded(self, images: Tensor) -> Tensor:
        return images if self.autoencoder is None else self.autoencoder.encode(images)

    def _decoded(self, state: Tensor) -> Float[Tensor, "T 3 H W"]:
        out = state if self.autoencoder is None else self.autoencoder.decode(state)
        return (out[0].float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def generate(
        self,
        condition_image: Any,
        camera_trajectory: Any,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        point_cloud: Any = None,
        seed: int | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        prompt: str = "",
        negative_prompt: str = "",
        use_geometric_memory: bool = True,
        use_spatial_memory: bool = True,
        reset_memory: bool = True,
        condition_camera: Any = None,
        projection: str = "auto",
        callback: OnState | None = None,
    ) -> Float[Tensor, "1 T 3 H W"]:
        """The frames of a path, float32 in [0, 1], on the model's device; see `generate_video`."""
        clip = one_clip(
            self,
            condition_image,
            camera_trajectory,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            point_cloud=point_cloud,
            seed=seed,
            prompt=prompt,
            negative_prompt=negative_prompt,
            use_geometric_memory=use_geometric_memory,
            use_spatial_memory=use_spatial_memory,
            reset_memory=reset_memory,
            condition_camera=condition_camera,
            projection=projection,
            callback=callback,
        )
        return clip.color[None].to(self.device)

    # ---- persistence -------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, include_memory: bool = False) -> None:
        """Writes config.json and model.safetensors, each atomically.

        Args:
            include_memory: also what both memories hold.

        Raises:
            ExportError: the folder cannot be made or written.
        """
        write_model(self, Path(folder), include_memory)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        variant: str | None = None,
        device: str | torch.device = "cuda",
        torch_dtype: torch.dtype | None = None,
        memory_mode: str = "auto",
        base: str | Path | None = None,
        offline: bool = False,
    ) -> "WorldStereo":
        """A model that `save_pretrained` wrote, a published variant, or "warp".

        Raises:
            WeightsMissing: nothing that can be loaded; ValueError: a newer config, a bad option.
        """
        if str(folder_or_hub_id) == "warp":
            return cls({"backbone": "warp"}, {}, {}, device=device)
        folder = Path(folder_or_hub_id)
        if (folder / MANIFEST).is_file() and variant is None:
            config = read_config(folder)
            if config is not None:
                model = cls(*config, pretrained_path=str(folder), device=device)
                return model if torch_dtype is None else model.to(torch_dtype)
        from worldstereo.generators.diffusion import DiffusionGenerator

        at = arguments.device_of(device)
        inner = DiffusionGenerator.from_pretrained(
            folder_or_hub_id,
            variant,
            mode=memory_mode,
            device=str(at),
            base=base,
            dtype=torch_dtype,
            offline=offline,
        )
        model = cls({"backbone": "warp"}, {}, {}, device=at)
        model._config["vdm_config"] = {"backbone": "wan", "variant": inner.limits.name}
        model.vdm, model.size_multiple = inner.published.transformer, 16
        model._generator = SharedDiffusion(model, inner)
        model._world = model._opened()
        return model
