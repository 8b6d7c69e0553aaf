"""Agreement of clips with the memory, when frames are remembered, and takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import textured
from worldstereo import Capture, Trajectory, WarpGenerator, World
from worldstereo.memory.stereo.agreement import BENT, HALF, ROOM, _aligned, agreement
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
    # what is hidden by what is fixed to the camera is not asked for
    hidden = torch.zeros(1, 240, 320, dtype=torch.bool)
    hidden[..., :160] = True
    said = agreement(memory, half, same.depth, shell, views, hidden=hidden)
    assert said.share > 0.95 and int(said.map[:, :8].max()) == 0


def remembered(views) -> KeypointMemory:
    memory = KeypointMemory()
    for number, view in enumerate(views):
        memory.observe(view, number, views)
    return memory


def test_small_bends_of_a_frame_agree():
    """Pictures bent by waves of two pixels, as depth that is a little wrong bends them, show the
    same surfaces; bent by the third of a window they do not."""
    import cv2

    views = textured.views(3)
    memory = remembered(views)
    camera = textured.camera_at((0.1, -0.1, 0.1), (-0.6, 0.25, 4.0))
    exact = textured.view_of(camera)
    shell = View.of(exact.color, torch.zeros_like(exact.depth), camera, step=1)
    y, x = np.mgrid[:240, :320].astype(np.float32)
    share = []
    for pixels, length in ((2.0, 25), (7.0, 60)):
        u = x + pixels * np.sin(2 * np.pi * y / length).astype(np.float32)
        v = y + pixels * np.sin(2 * np.pi * x / length).astype(np.float32)
        image = exact.color.permute(1, 2, 0).numpy()
        bent = cv2.remap(image, u, v, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        color = torch.from_numpy(bent).permute(2, 0, 1).contiguous().clamp(0, 1)
        share.append(agreement(memory, color, exact.depth, shell, views).share)
    assert share[0] > 0.9 and share[1] < 0.1


def test_alignment_finds_a_known_motion():
    """Windows cut where an affine motion says are aligned to what was cut; none moves further than
    allowed."""
    import cv2

    rng = np.random.default_rng(3)
    image = cv2.GaussianBlur(rng.normal(size=(200, 200)).astype(np.float32) * 100, (0, 0), 2)
    side, reach = 2 * HALF + 1, HALF + ROOM
    around = image[100 - reach : 101 + reach, 100 - reach : 101 + reach]
    step = (np.arange(side) - HALF).astype(np.float32)
    x, y = np.meshgrid(step, step)
    u = 100 + 2 + x + 0.3 + 0.03 * x - 0.02 * y  # two whole pixels are found by searching
    v = 100 - 1 + y - 0.2 + 0.02 * x
    wanted = cv2.remap(image, u.astype(np.float32), v.astype(np.float32), cv2.INTER_CUBIC)
    at, shown = np.array([[2, -1]]), np.ones((1, side, side), bool)
    steps = list(_aligned(around[None], at, wanted[None], shown))
    apart = [np.abs(window[0] - wanted).mean() for _, window in steps]
    assert apart[-1] < 0.3 * apart[0]
    assert np.allclose(steps[-1][0], [[0.3, -0.2]], atol=0.05)
    far = cv2.remap(image, (u + 3).astype(np.float32), v.astype(np.float32), cv2.INTER_CUBIC)
    steps = list(_aligned(around[None], at, far[None], shown))
    assert max(np.abs(motion).max() for motion, _ in steps) <= BENT


def test_what_the_given_views_dispute_is_not_asked():
    """A picture on the wall that was exchanged between the views: frames may show either, and what
    else they show is asked as before."""
    views = textured.views(4)
    spot = torch.tensor([-0.2, -0.3, 4.0])  # the middle of the picture, on the back wall

    def hung(view: View, seed: int) -> View:
        other = textured.view_of(view.cameras, seed)
        grid = view.cameras.pixel_grid()
        points = view.cameras.unproject(grid, view.depth.reshape(-1)).reshape(240, 320, 3)
        here = ((points - spot).abs() < torch.tensor([0.7, 0.7, 0.05])).all(-1)
        color = torch.where(here, other.color, view.color)
        return View.of(color, view.depth, view.cameras, step=view.step)

    given = [hung(view, 20 + k) for k, view in enumerate(views)]
    camera = textured.camera_at((0.1, -0.1, 0.1), (-0.6, 0.25, 4.0))
    frame, other = textured.view_of(camera), textured.view_of(camera, seed=5)
    shell = View.of(frame.color, torch.zeros_like(frame.depth), camera, step=1)
    memory = remembered(given)
    said = agreement(memory, hung(frame, 30).color, frame.depth, shell, given)
    assert said.expected > 50 and said.share > 0.95
    assert not bool(said.contradicted(240, 320).any())
    false = agreement(memory, other.color, frame.depth, shell, given)
    assert false.expected > 50 and false.share < 0.1
    # generated views are no witnesses: what they show otherwise leaves the given views' word
    made = [replace(hung(view, 40 + k), step=1) for k, view in enumerate(views)]
    memory = remembered([*views, *made])
    said = agreement(memory, frame.color, frame.depth, shell, [*views, *made])
    plain = agreement(remembered(views), frame.color, frame.depth, shell, views)
    assert said.expected >= plain.expected


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
