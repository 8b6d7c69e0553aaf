"""What each of several ranks runs: a whole clip through the generator; the first writes it.

torchrun -m tests._clip_of_ranks MODEL_FOLDER OUT.safetensors
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.conftest import room_capture
from worldstereo.generators import GenerationRequest, SamplerConfig
from worldstereo.generators.diffusion import DiffusionGenerator, distributed
from worldstereo.guide import Guide
from worldstereo.trajectory import Trajectory
from worldstereo.world import World, start


def clip(folder: Path) -> torch.Tensor:
    """Frames (T, 3, H, W) of the memory variant with guidance, before they become 8 bits."""
    generator = DiffusionGenerator.from_pretrained(folder, "worldstereo-memory", device="cpu")
    world = World(generator)
    start(world, room_capture(2, 96, 64), register=False)
    first = world.scene.views[0].cameras
    trajectory = Trajectory.preset("truck", first, frames=4, distance=3.0, up=world.scene.up)
    geometry, stereo = generator.new_memories(1000)
    request = GenerationRequest(
        trajectory=trajectory,
        guide=Guide(world.scene, trajectory),
        geometry=geometry,
        stereo=stereo,
        views=world.scene.views,
        prompt="a room with a table",
        seed=4,
        sampler=SamplerConfig(steps=2, guidance=3.0),
    )
    return torch.stack([frame.color for frame in generator(request)])


if __name__ == "__main__":
    frames = clip(Path(sys.argv[1]))
    if distributed.writes():
        save_file({"frames": frames}, sys.argv[2])
    distributed.leave()
