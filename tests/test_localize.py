"""Photos find their place in a remembered room, or the reason why not is named."""

import numpy as np
import pytest
import torch

from tests import textured
from worldstereo.memory.localize import Localizer
from worldstereo.memory.stereo.keypoints import KeypointMemory, detect
from worldstereo.memory.stereo.references import references


@pytest.fixture(scope="module")
def remembered():
    return textured.views(4)


@pytest.fixture(scope="module")
def localizer(remembered):
    return Localizer.of(remembered, unit=3.0)


def apart(a, b) -> tuple[float, float]:
    """Degrees and distance between two cameras."""
    turn = torch.trace(a.c2w[:3, :3].double().T @ b.c2w[:3, :3].double())
    degrees = float(torch.rad2deg(torch.arccos(((turn - 1) / 2).clamp(-1, 1))))
    return degrees, float((a.position - b.position).norm())


def test_a_photo_without_pose_is_found(localizer):
    """The exact camera of a picture that nobody remembered."""
    camera = textured.camera_at((0.25, -0.15, 0.2), (-0.5, 0.2, 4.0))
    place = localizer.find(textured.view_of(camera).color_u8, camera.K)
    assert place.found and not place.doubtful, place.reason
    degrees, distance = apart(place.camera, camera)
    assert degrees < 0.2 and distance < 0.01
    assert set(place.votes) <= {0, 1, 2, 3} and max(place.votes.values()) > 20


def test_an_unknown_focal_length_is_found_too(localizer):
    camera = textured.camera_at((0.1, -0.1, 0.1), (-0.6, 0.25, 4.0))
    place = localizer.find(textured.view_of(camera).color_u8)
    assert place.found, place.reason
    assert float(place.camera.K[0, 0]) == pytest.approx(261, rel=0.03)
    assert apart(place.camera, camera)[1] < 0.1


def test_what_cannot_be_found_says_why(localizer):
    elsewhere = textured.view_of(textured.camera_at((0.2, 0.0, 0.0), (-0.5, 0.2, 4.0)), seed=7)
    plain = torch.full((3, 240, 320), 90, dtype=torch.uint8)
    mirrored = textured.views(1)[0].color_u8.flip(-1)
    for color, word in ((elsewhere.color_u8, "place"), (plain, "texture"), (mirrored, "place")):
        place = localizer.find(color, textured.camera_at((0.0, 0.0, 0.0), (0.0, 0.0, 4.0)).K)
        assert not place.found or place.doubtful
        assert word in place.reason


def test_a_world_without_keypoints_says_so():
    empty = Localizer(KeypointMemory(16).table([]))
    place = empty.find(torch.zeros(3, 32, 32))
    assert not place.found and "too few keypoints" in place.reason


def test_the_same_question_has_the_same_answer(remembered):
    camera = textured.camera_at((0.25, -0.15, 0.2), (-0.5, 0.2, 4.0))
    color = textured.view_of(camera).color_u8
    a, b = (Localizer.of(remembered, 3.0).find(color, camera.K) for _ in range(2))
    assert torch.equal(a.camera.c2w, b.camera.c2w) and a.inliers == b.inliers


def test_the_update_cycle_sees_entries_again(remembered):
    """A view that overlaps matches, adds what is new, and rays sharpen what depth measured."""
    memory = KeypointMemory()
    first = memory.observe(remembered[0], 0, remembered)
    again = memory.observe(remembered[1], 1, remembered)
    assert first.matched == 0 and first.added > 200
    assert again.matched > 0.3 * again.expected > 20
    seen = memory.metadata["seen_by"]
    assert bool((seen[:, 1] == 1).any()) and bool((seen[:, 0] >= 0).all())
    assert bool((memory.metadata["normal"].norm(dim=1) > 0.9).float().mean() > 0.8)
    raised = memory.confidence[seen[:, 1] == 1, 0].mean()
    assert float(raised) > 0.99


def test_rays_outweigh_wrong_depth(remembered):
    """Depth that is 2 % off along the ray: positions fused from two views are nearer the truth."""
    off = []
    for view in remembered[:3]:
        noise = torch.randn(view.depth.shape, generator=torch.Generator().manual_seed(3))
        blurred = torch.nn.functional.avg_pool2d(noise[None], 31, 1, 15)[0] * 31
        off.append(view.__class__(**{**view.__dict__, "depth": view.depth * (1 + 0.02 * blurred)}))
    memory = KeypointMemory()
    for number, view in enumerate(off):
        memory.observe(view, number, off)
    fused = memory.table(off).points
    several = (memory.metadata["seen_by"] >= 0).sum(1).numpy() > 1
    alone = memory.correspondences[:, 0].double().numpy()

    def miss(points: np.ndarray) -> float:
        planes = [np.abs((points - p) @ n) for p, n in textured.WALLS]
        return float(np.median(np.min(planes, 0)[several]))

    assert several.sum() > 50
    assert miss(fused) < 0.8 * miss(alone)


def test_keypoints_are_saved_restored_and_undone(remembered, tmp_path):
    memory, other = KeypointMemory(), KeypointMemory()
    memory.observe(remembered[0], 0, remembered)
    before = memory.snapshot()
    size = memory.size
    memory.observe(remembered[2], 2, remembered)
    memory.save(tmp_path / "keypoints.safetensors")
    other.load(tmp_path / "keypoints.safetensors")
    assert other.size == memory.size > size
    assert torch.equal(other.features, memory.features)
    memory.restore(before)
    assert memory.size == size


def test_large_pictures_give_pixels_of_their_own_size():
    view = textured.views(1)[0]
    large = torch.nn.functional.interpolate(view.color[None], scale_factor=5, mode="bilinear")[0]
    found = detect((large * 255).to(torch.uint8))
    assert found.pixels[:, 0].max() > 1300
    assert (found.level >= 1).all()


def test_entries_vote_for_the_views_that_saw_them(remembered):
    """A target at a remembered camera: that view gets most votes, each by an entry which it saw, at
    the pixel where its point projects; what is hidden or behind the camera has no vote."""
    memory, views = KeypointMemory(), remembered
    for number, view in enumerate(views):
        memory.observe(view, number, views)
    table = memory.table(views)
    camera = views[2].cameras
    found = references(table, camera, views, depth=views[2].depth)
    assert found[0].view == 2 and found[0].votes == max(r.votes for r in found)
    for reference in found:
        assert (table.seen_by[reference.entries] == reference.view).any(1).all()
        assert (np.diff(reference.weights) <= 0).all() and reference.weights.min() > 0
        points = torch.from_numpy(table.points[reference.entries])
        pixels, z = camera.project(points.float())
        np.testing.assert_allclose(pixels.numpy(), reference.pixels, atol=0.05)
        assert float(z.min()) > 0
    others = references(table, camera, views, depth=views[2].depth, without=(2,))
    assert others and 2 not in [reference.view for reference in others]
    wall = torch.full_like(views[2].depth, 0.3)
    assert references(table, camera, views, depth=wall) == ()
    away = textured.camera_at((0.0, 0.0, 0.0), (0.0, 0.0, -4.0))
    assert references(table, away, views) == ()
    assert len(references(table, camera, views, limit=1)) == 1
