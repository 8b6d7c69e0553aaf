"""The weight-free generator on a room known in closed form, and what requests must satisfy."""

import pytest
import torch

from tests.conftest import room, room_capture
from worldstereo import Cameras, Guide, Origin, Trajectory, WarpGenerator, World
from worldstereo.generators import GeneratorLimits, SamplerConfig, patch_features
from worldstereo.world import explore, start


@pytest.fixture(scope="module")
def world():
    world = World(WarpGenerator(), max_points=100_000)
    start(world, room_capture(n=3, width=96, height=72), register=False)
    return world


def path(world, frames=3, amount=0.3):
    camera = world.scene.views[1].cameras
    return Trajectory.preset(
        "truck", camera, distance=4.0, frames=frames, amount=amount, up=world.scene.up
    )


def psnr(a, b):
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


def test_between_known_views_the_frame_is_the_room(world):
    """Oracle: the room's colour in closed form; splatting alone is far below."""
    clip = explore(world, path(world))
    truth, depth = room(clip.trajectory.cameras)
    seen = clip.origin[:, 0] == int(Origin.STEREO)
    assert float(seen.float().mean()) > 0.8
    error = ((clip.color - truth) ** 2).mean(dim=1)[seen].mean()
    assert float(-10 * torch.log10(error)) > 32
    relative = ((clip.depth - depth).abs() / depth)[:, 0][seen]
    assert float(relative.median()) < 0.01
    world.undo()


def test_the_preview_is_what_the_generator_gets(world):
    """Every known pixel of every frame equals the guide that a person scrubbed, bit for bit."""
    guide = Guide(world.scene, path(world))
    previewed = [guide[t] for t in range(3)]
    clip = explore(world, path(world), guide=guide)
    for t, frame in enumerate(previewed):
        known = frame.mask.expand(3, -1, -1)
        shown = (frame.color.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
        assert torch.equal(clip.color_u8[t][known], shown[known])
        assert torch.equal(clip.origin[t], frame.origin)
    world.undo()


def test_same_seed_same_bits(world):
    runs = []
    for _ in range(2):
        clip = explore(world, path(world, 2, amount=0.8), seed=5)
        runs.append((clip.color_u8, clip.depth, world.scene.cloud.points))
        world.undo()
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_what_nobody_saw_is_marked_as_invented_and_enters_the_cloud_with_low_confidence(world):
    camera = world.scene.views[0].cameras
    turned = Trajectory.preset("pan", camera, distance=4.0, frames=4, value=70.0, up=world.scene.up)
    before = world.scene
    clip = explore(world, turned)
    invented = clip.origin == int(Origin.INVENTED)
    assert float(invented[-1].float().mean()) > 0.2
    assert bool((clip.depth[invented] > 0).all())
    cloud = world.scene.cloud
    new = cloud.confidence[len(before.cloud) :]
    assert len(new) > 0
    assert float(new.max()) <= 0.021
    assert set(cloud.step.unique().tolist()) == {0, clip.step}
    world.undo()


def test_switching_a_memory_off_changes_what_it_alone_paints(world):
    trajectory = path(world, 1)
    without_stereo = Guide(world.scene, trajectory, stereo=False)[0]
    assert float(without_stereo.stereo_weight.max()) == 0.0
    assert not bool((without_stereo.origin == int(Origin.STEREO)).any())
    without_cloud = Guide(world.scene, trajectory, geometry=False)[0]
    assert not bool((without_cloud.origin == int(Origin.GLOBAL)).any())
    cloud = Guide(world.scene, trajectory, "cloud")[0]
    assert cloud.references == ()
    truth, _ = room(trajectory.cameras)
    both = Guide(world.scene, trajectory)[0]
    assert psnr(both.color, truth[0]) > psnr(without_stereo.color, truth[0]) + 2


def test_a_cloud_without_views_can_be_explored():
    """A mesh or a foreign cloud has no pictures: the global memory alone paints."""
    from worldstereo import Capture, PointCloud

    points = torch.rand(20_000, 3) * torch.tensor([2.0, 2.0, 0.01]) + torch.tensor([-1.0, -1, 3])
    cloud = PointCloud.of(points, torch.full((20_000, 3), 0.25))
    world = World(WarpGenerator(), max_points=50_000)
    start(world, Capture(name="wall", kind="cloud", cloud=cloud))
    K = torch.tensor([[40.0, 0, 24], [0, 40.0, 18], [0, 0, 1]])
    camera = Cameras(K, torch.eye(4), 48, 36)
    clip = explore(world, Trajectory.preset("dolly", camera, distance=3.0, frames=2))
    middle = clip.color[0, :, 12:24, 16:32]
    torch.testing.assert_close(middle, torch.full_like(middle, 0.25), atol=0.01, rtol=0)
    assert int(clip.origin[0, 0, 18, 24]) == int(Origin.GLOBAL)


def test_limits_name_the_way_out(world):
    limits = GeneratorLimits(
        name="toy", min_frames=5, max_frames=81, frame_step=4, size_multiple=16
    )
    with pytest.raises(ValueError, match=r"5 \+ a multiple of 4.*got 30. Use 29 or 33"):
        limits.check(path(world, 30))
    with pytest.raises(ValueError, match="multiples of 16.*got 96 x 72"):
        limits.check(path(world, 5))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        SamplerConfig(steps=0)
    with pytest.raises(ValueError, match='"fused" or "cloud", got'):
        Guide(world.scene, path(world), "both")  # type: ignore[arg-type]


def test_patch_features_are_the_cells_own_colours():
    """Oracle: a loop over patches and their 4x4 blocks."""
    color = torch.rand(1, 3, 33, 50)
    features = patch_features(color[..., :32, :48])
    assert features.shape == (1, 48, 2, 3)
    block = color[0, 1, 16:20, 32:36].mean() - 0.5  # channel 1, cell (1, 2), block (0, 0)
    assert float(features[0, 16, 1, 2]) == pytest.approx(float(block), abs=1e-6)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
def test_frames_of_another_size_are_still_painted_by_the_views(world, factor):
    """A smaller frame reads a smaller level of each view; it must not fall back on the cloud."""
    small = path(world, 1).scaled(round(96 * factor), round(72 * factor))
    frame = Guide(world.scene, small)[0]
    assert float((frame.origin == int(Origin.STEREO)).float().mean()) > 0.8
    truth, _ = room(small.cameras)
    assert psnr(frame.color, truth[0]) > 26
