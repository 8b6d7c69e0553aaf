"""The published model's whole path with tiny random weights: it drives the app, knowing nothing."""

import time

import pytest
import torch

from tests.tiny_model import write_tiny_model
from worldstereo.cameras import Cameras
from worldstereo.depth import LayoutDepth, default_camera
from worldstereo.errors import Cancelled
from worldstereo.exports import export
from worldstereo.generators import SamplerConfig
from worldstereo.generators.diffusion import DiffusionGenerator
from worldstereo.scene import Capture, Origin, View
from worldstereo.trajectory import Trajectory
from worldstereo.world import World, explore, start

WIDTH, HEIGHT, FRAMES = 96, 64, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def photo() -> View:
    """A picture with an edge, stripes and a gradient; depth is a layout guess."""
    camera = default_camera(WIDTH, HEIGHT)
    v, u = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    color = torch.stack([u / WIDTH, v / HEIGHT, 0.5 + 0.4 * torch.sin(0.4 * u + 0.2 * v)]).float()
    color[:, HEIGHT // 2 :] *= 0.6
    return View.of(color, LayoutDepth()(color, camera).depth, camera, name="photo")


def opened(generator) -> World:
    world = World(generator, max_points=20_000)
    start(world, Capture("photo", "photo", views=(photo(),), rough_depth=True), register=False)
    return world


def path(world: World, frames: int = FRAMES) -> Trajectory:
    camera = world.scene.views[0].cameras
    return Trajectory.preset("truck", camera, distance=3.0, amount=0.5, frames=frames)


def test_photo_to_export_in_under_a_minute(folder):
    """Photo, guide, sampler, frames, memory, export; a second clip sees the first in memory."""
    began = time.monotonic()
    world = opened(DiffusionGenerator.from_pretrained(folder, "worldstereo-memory-dmd"))
    steps, before = [], len(world.scene.cloud)
    clip = explore(
        world,
        path(world),
        seed=3,
        prompt="a room with a table",
        sampler=SamplerConfig(steps=2),
        on_step=lambda step, total, message: steps.append(message),
    )
    assert tuple(clip.color.shape) == (FRAMES, 3, HEIGHT, WIDTH)
    assert bool(torch.isfinite(clip.color).all()) and float(clip.color.std()) > 0.01
    assert float(clip.color.min()) >= 0 and float(clip.color.max()) <= 1
    assert any("Denoising step 2 of 2" in message for message in steps)
    assert set(clip.origin.unique().tolist()) <= {int(o) for o in Origin}
    assert len(world.scene.views) == 1 + FRAMES and len(world.scene.cloud) >= before
    again = explore(world, path(world), seed=3, prompt="a room", sampler=SamplerConfig(steps=1))
    assert not torch.equal(again.color, clip.color)
    for key in ("ply", "glb", "transforms"):
        assert len(export(world.scene, key)) > 1000
    assert time.monotonic() - began < 60


def test_the_same_seed_is_the_same_clip_and_the_prompt_matters(folder):
    generator = DiffusionGenerator.from_pretrained(folder, "worldstereo-memory-dmd")

    def made(seed: int, prompt: str) -> torch.Tensor:
        world = opened(generator)
        sampler = SamplerConfig(steps=1)
        return explore(world, path(world, 3), seed=seed, prompt=prompt, sampler=sampler).color

    first = made(1, "soft light")
    assert torch.equal(first, made(1, "soft light"))
    assert not torch.equal(first, made(2, "soft light"))
    assert not torch.equal(first, made(1, "a table"))


@pytest.mark.parametrize("variant", ["worldstereo-camera", "worldstereo-memory"])
def test_guided_variants_run_and_guidance_matters(folder, variant):
    generator = DiffusionGenerator.from_pretrained(folder, variant)
    clips = []
    for guidance in (1.0, 4.0):
        world = opened(generator)
        sampler = SamplerConfig(steps=2, guidance=guidance)
        clips.append(explore(world, path(world, 3), prompt="a room", sampler=sampler).color)
    assert not torch.equal(*clips)


def test_cancel_leaves_the_world_as_it_was(folder):
    world = opened(DiffusionGenerator.from_pretrained(folder, "worldstereo-memory-dmd"))
    before = world.scene

    def stop(step: int, total: int, message: str) -> None:
        if "Denoising step 2" in message:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        explore(world, path(world), prompt="a room", on_step=stop)
    assert world.scene is before


def test_constraints_run_and_none_changes_nothing(folder):
    """ "none" is bit-equal to a model that never heard of constraints; the others differ."""
    clips = {}
    for constraint in ("none", "mask", "bias"):
        generator = DiffusionGenerator.from_pretrained(
            folder, "worldstereo-memory-dmd", constraint=constraint
        )
        world = opened(generator)
        sampler = SamplerConfig(steps=1)
        clips[constraint] = explore(world, path(world, 3), prompt="a room", sampler=sampler).color
        for block in generator.published.transformer.blocks:
            assert block.stitched.constraint is None  # nothing stays behind
    assert not torch.equal(clips["mask"], clips["none"])
    assert not torch.equal(clips["bias"], clips["none"])


def test_an_attention_row_comes_with_its_correspondence(folder):
    from worldstereo.generators import GenerationRequest
    from worldstereo.guide import Guide

    generator = DiffusionGenerator.from_pretrained(folder, "worldstereo-memory-dmd")
    world = opened(generator)
    trajectory = path(world, 3)
    geometry, stereo = generator.new_memories(1000)
    request = GenerationRequest(
        trajectory=trajectory,
        guide=Guide(world.scene, trajectory),
        geometry=geometry,
        stereo=stereo,
        views=world.scene.views,
        prompt="a room",
        sampler=SamplerConfig(steps=2),
    )
    row = generator.inspect(request, layer=1, step=1, frame=1, pixel=(50.0, 40.0))
    assert row.weights.shape == (1, HEIGHT // 16, WIDTH // 16) and row.views == (0,)
    assert row.token == (1, 2, 3) and row.step == 1
    assert float(row.weights.sum()) == pytest.approx(row.reference_mass, abs=1e-6)
    assert 0 < row.reference_mass < 1 and 0 <= row.share <= 1
    assert bool(row.window.any()) and not bool(row.window.all())
    # The path trucks sideways by little: the window lies around the token's own place.
    _, r, c = torch.nonzero(row.window).float().mean(dim=0)
    assert abs(float(r) - 2) <= 1.5 and abs(float(c) - 3) <= 2.5
    with pytest.raises(ValueError, match=r"layer must be 0 \.\. 2"):
        generator.inspect(request, layer=3, step=0, frame=0, pixel=(0.0, 0.0))
    with pytest.raises(ValueError, match=r"step must be 0 \.\. 1"):
        generator.inspect(request, layer=0, step=2, frame=0, pixel=(0.0, 0.0))


def test_requests_that_cannot_run_are_refused_in_one_line(folder):
    generator = DiffusionGenerator.from_pretrained(folder, "worldstereo-memory-dmd")
    world = opened(generator)
    good = path(world, 3)

    def refused(match: str, trajectory: Trajectory = good, prompt: str = "a room") -> None:
        before = world.scene
        with pytest.raises(ValueError, match=match) as caught:
            explore(world, trajectory, prompt=prompt)
        assert "\n" not in str(caught.value) and world.scene is before

    refused(r"prompt must .*got '  '", prompt="  ")
    refused(r"frames must be .* at most 5 .* got 9", path(world, 9))
    refused(r"frames must be .* got 1", path(world, 1))
    K, c2w = good.cameras.K, good.cameras.c2w
    refused(r"multiples of 16 .* got 88 x 64", Trajectory(Cameras(K, c2w, 88, 64), "odd", 24.0))
    for wrong, match in (("worldstereo", "variant must be one of"), ("", "variant must be one of")):
        with pytest.raises(ValueError, match=match):
            DiffusionGenerator.from_pretrained(folder, wrong)
    with pytest.raises(ValueError, match="constraint must be one of none, mask, bias"):
        DiffusionGenerator.from_pretrained(folder, constraint="hard")
    with pytest.raises(ValueError, match="mode must be auto or one of"):
        DiffusionGenerator.from_pretrained(folder, mode="tiny")


def test_running_out_of_memory_names_a_smaller_mode_and_keeps_the_world(folder, monkeypatch):
    from worldstereo.errors import WorldStereoError
    from worldstereo.generators.diffusion import generator as module

    world = opened(DiffusionGenerator.from_pretrained(folder, "worldstereo-memory-dmd"))
    before = world.scene

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(module, "sample", full)
    with pytest.raises(
        WorldStereoError, match="mode full. Use mode float8; the world is unchanged"
    ):
        explore(world, path(world, 3), prompt="a room")
    assert world.scene is before
