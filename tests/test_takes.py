"""Agreement of clips with the memory, when frames are remembered, and takes."""

from dataclasses import replace

import pytest
import torch

from tests import textured
from worldstereo import Capture, Trajectory, WarpGenerator, World
from worldstereo.memory.stereo.agreement import agreement
from worldstereo.memory.stereo.keypoints import KeypointMemory
from worldstereo.project import load_world, save_world
from worldstereo.scene import View
from worldstereo.world import compare, discard, explore, keep, start, takes


@pytest.fixture
def world():
    world = World(WarpGenerator(), max_points=200_000)
    start(world, Capture("room", "rgbd", tuple(textured.views(3))), register=False)
    return world


def path(world: World, frames: int = 2) -> Trajectory:
    camera = world.scene.views[1].cameras
    return Trajectory.preset("truck", camera, distance=2.0, frames=frames, up=world.scene.up)


def test_agreement_tells_this_world_from_another():
    """Exact frames of the room agree; frames of another room at the same camera do not."""
    views = textured.views(3)
    memory = KeypointMemory()
    for number, view in enumerate(views):
        memory.observe(view, number, views)
    camera = textured.camera_at((0.1, -0.1, 0.1), (-0.6, 0.25, 4.0))
    same, other = textured.view_of(camera), textured.view_of(camera, seed=5)
    shell = View.of(same.color, torch.zeros_like(same.depth), camera, step=1)
    true = agreement(memory, same.color, same.depth, shell, views)
    false = agreement(memory, other.color, same.depth, shell, views)
    assert true.expected > 50 and true.share > 0.95 and true.drift_px <= 1.5
    assert false.expected > 50 and false.share < 0.1
    assert not bool(true.contradicted(240, 320).any())
    assert float(false.contradicted(240, 320).float().mean()) > 0.2
    # a frame that is wrong on its left half is contradicted there and nowhere else
    half = same.color.clone()
    half[:, :, :160] = other.color[:, :, :160]
    said = agreement(memory, half, same.depth, shell, views)
    wrong = said.contradicted(240, 320)[0]
    assert bool(wrong[:, :140].any()) and not bool(wrong[:, 180:].any())
    # what is hidden by the camera's rig is not asked for
    hidden = torch.zeros(1, 240, 320, dtype=torch.bool)
    hidden[..., :160] = True
    said = agreement(memory, half, same.depth, shell, views, hidden=hidden)
    assert said.share > 0.95 and int(said.map[:, :8].max()) == 0


def test_what_is_seen_again_is_refined_and_not_stored_twice():
    """The same view three times: as many patches as once, each surer, and the step says so."""
    view, sizes = textured.views(1)[0], []
    for copies in (1, 3):
        views = tuple(replace(view, frame=k) for k in range(copies))
        world = World(WarpGenerator(), max_points=200_000)
        start(world, Capture("room", "rgbd", views), register=False)
        memory, details = world._stereo, world.history[-1].details
        sizes.append(memory.size)
        assert details["refined"] == (copies - 1) * memory.size and details["pruned"] == 0
        if copies == 3:
            assert details["keypoints_matched"] > details["keypoints_added"] > 0
        normal = memory.metadata["normal"].norm(dim=1)
        assert float(normal.gt(0.99).float().mean()) > 0.5  # not at depth edges
        assert memory.metadata["seen_by"][:, 0].tolist() == memory.metadata["frame"].tolist()
    assert sizes[0] == sizes[1] > 100


def test_frames_are_remembered_when_the_frequency_says(world):
    size = len(world.scene.views)
    clip = explore(world, path(world))
    assert clip.agreement is not None and clip.agreement > 0.9
    assert len(world.scene.views) == size + 2
    world.undo()
    seen = []
    explore(world, path(world), update="per_step", on_frame=lambda t, f: seen.append(t))
    assert seen == [0, 1] and len(world.scene.views) == size + 2
    assert world.history[-1].details["update_frequency"] == "per_step"
    with pytest.raises(ValueError, match="per_frame, per_step, manual"):
        explore(world, path(world), update="sometimes")


def test_a_take_waits_until_it_is_kept_or_discarded(world, tmp_path):
    world.update_frequency = "manual"
    before = world.scene
    first = explore(world, path(world, 1))
    second = explore(world, path(world, 1), seed=1)
    assert takes(world) == (first, second) and len(world.scene.views) == len(before.views)
    assert torch.equal(world.scene.cloud.points, before.cloud.points)
    assert compare(first, second).shape == (1, 1, 240, 320)
    save_world(world, tmp_path / "w.world")
    other = World(WarpGenerator(), max_points=200_000)
    load_world(other, tmp_path / "w.world")
    assert [clip.agreement for clip in takes(other)] == [first.agreement, second.agreement]
    discard(world, first)
    keep(world, second)
    assert takes(world) == () and len(world.scene.clips) == 1
    assert len(world.scene.views) == len(before.views) + 1
    world.undo()
    assert takes(world) == (second,) and len(world.scene.views) == len(before.views)
    with pytest.raises(ValueError, match="kept or discarded"):
        keep(world, replace(second))
