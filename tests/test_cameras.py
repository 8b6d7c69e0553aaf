import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo import Cameras, look_at


def test_a_point_on_the_axis_lands_on_the_principal_point(cameras):
    points = cameras.position + 2.5 * cameras.forward
    pixels, depth = cameras.project(points[:, None])
    torch.testing.assert_close(pixels[:, 0], cameras.K[:, :2, 2], atol=1e-3, rtol=0)
    torch.testing.assert_close(depth[:, 0], torch.full((5,), 2.5))


def test_project_follows_the_textbook_one_point_at_a_time(cameras):
    """Oracle: P = K [R | t] in plain Python floats."""
    point = [0.31, -0.17, 2.9]
    camera = cameras[3]
    w2c = torch.linalg.inv(camera.c2w.double()).tolist()
    x, y, z = (sum(w2c[r][c] * p for c, p in enumerate([*point, 1.0])) for r in range(3))
    K = camera.K.tolist()
    expected = [K[0][0] * x / z + K[0][2], K[1][1] * y / z + K[1][2]]
    pixels, depth = camera.project(torch.tensor([point]))
    assert pixels[0].tolist() == pytest.approx(expected, abs=1e-3)
    assert float(depth[0]) == pytest.approx(z, abs=1e-5)


def test_a_point_behind_keeps_its_negative_depth(cameras):
    _, depth = cameras.project((cameras.position - cameras.forward)[:, None])
    assert bool((depth < 0).all())


@settings(max_examples=30, deadline=None)
@given(u=st.floats(-20, 60), v=st.floats(-20, 60), z=st.floats(0.05, 50), index=st.integers(0, 4))
def test_unproject_inverts_project(u, v, z, index):
    from tests.conftest import turned_cameras

    camera = turned_cameras(5)[index]
    pixels, depth = camera.project(camera.unproject(torch.tensor([[u, v]]), torch.tensor([z])))
    torch.testing.assert_close(pixels[0], torch.tensor([u, v]), atol=5e-3, rtol=1e-4)
    torch.testing.assert_close(depth[0], torch.tensor(z), atol=1e-4, rtol=1e-4)


def test_w2c_is_the_inverse(cameras):
    eye = torch.eye(4).expand(5, 4, 4)
    torch.testing.assert_close(cameras.w2c @ cameras.c2w, eye, atol=1e-5, rtol=0)


def test_rays_run_through_pixel_centres(cameras):
    origins, directions = cameras.rays()
    pixels, depth = cameras.project((origins + 3 * directions).flatten(1, 2))
    assert bool((depth > 0).all())
    torch.testing.assert_close(pixels[2], cameras.pixel_grid(), atol=2e-3, rtol=0)
    assert cameras.pixel_grid()[0].tolist() == [0.5, 0.5]
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(5, 29, 37))


def test_rays_of_a_downsampled_grid_cover_the_same_image(cameras):
    _, directions = cameras.rays(downsample=4)
    assert directions.shape == (5, 7, 9, 3)
    middle = cameras.scaled(9, 7).rays()[1]
    torch.testing.assert_close(directions, middle, atol=1e-5, rtol=0)


def test_plucker_moment_is_zero_distance_from_every_point_of_the_ray(cameras):
    """Moving the origin along the ray does not change the moment: p x d for any p on it."""
    plucker = cameras.plucker(7, 9)
    assert plucker.shape == (5, 6, 7, 9)
    direction, moment = plucker[:, :3].movedim(1, -1), plucker[:, 3:].movedim(1, -1)
    point = cameras.position[:, None, None] + 1.7 * direction
    torch.testing.assert_close(moment, torch.linalg.cross(point, direction), atol=1e-5, rtol=0)


def test_scaled_keeps_what_the_camera_sees(cameras):
    point = cameras.position + 2 * cameras.forward + 0.3
    before, _ = cameras.project(point[:, None])
    after, _ = cameras.scaled(74, 87).project(point[:, None])
    torch.testing.assert_close(after, before * torch.tensor([2.0, 3.0]), atol=1e-2, rtol=1e-4)


def test_moving_world_and_cameras_together_changes_no_pixel(cameras):
    motion = look_at(torch.tensor([2.0, -1.0, 0.5]), torch.zeros(3), torch.tensor([0.3, 1.0, 0.1]))
    points = torch.randn(5, 11, 3) + torch.tensor([0.0, 0.0, 5.0])
    moved = Cameras(cameras.K, motion @ cameras.c2w, cameras.width, cameras.height)
    before, _ = cameras.project(points)
    after, _ = moved.project(points @ motion[:3, :3].T + motion[:3, 3])
    torch.testing.assert_close(after, before, atol=1e-2, rtol=1e-3)


def test_indexing_and_length(cameras):
    assert len(cameras) == 5
    assert len(cameras[1:3]) == 2
    torch.testing.assert_close(cameras[4].c2w, cameras.c2w[4])
    with pytest.raises(TypeError):
        len(cameras[0])
    torch.testing.assert_close(Cameras.stack([cameras[i] for i in range(5)]).c2w, cameras.c2w)


def test_field_of_view():
    K = torch.tensor([[100.0, 0, 50], [0, 50.0, 50], [0, 0, 1]])
    pair = torch.stack([K, K * torch.tensor([[3**0.5], [1], [1]])])
    across, down = Cameras(pair, torch.eye(4).expand(2, 4, 4), 200, 100).fov.unbind(-1)
    assert across.tolist() == pytest.approx([math.pi / 2, math.pi / 3])
    assert down.tolist() == pytest.approx([math.pi / 2, math.pi / 2])


def test_a_sheared_pose_is_named(cameras):
    """The message says which frame, how wrong, and what to do."""
    c2w = cameras.c2w.clone()
    c2w[2, 0, 1] += 0.5
    with pytest.raises(ValueError, match=r"c2w\[2\].*at most 1e-3.*Remove the scale"):
        Cameras(cameras.K, c2w, cameras.width, cameras.height)


def broken(cameras, field, index, value):
    parts = {"K": cameras.K.clone(), "c2w": cameras.c2w.clone()}
    parts[field][index] = value
    return Cameras(parts["K"], parts["c2w"], cameras.width, cameras.height)


@pytest.mark.parametrize(
    ("field", "index", "value", "message"),
    [
        ("c2w", (1, 0, 3), float("nan"), r"c2w\[1\]: holds nan"),
        ("c2w", (4, 1, 1), float("inf"), r"c2w\[4\]: holds inf"),
        ("K", (3, 0, 0), 0.0, r"K\[3\]: the focal length is 0"),
        ("K", (0, 1, 1), -2.0, r"K\[0\]: the focal length is -2"),
        ("K", (0, 2, 0), 1.0, r"K\[0\]: the last row"),
        ("K", (2, 1, 0), 5.0, r"K\[2\]: row 1 begins with 5; K is upper triangular"),
        ("c2w", (2, 3, 0), 1.0, r"c2w\[2\]: the last row"),
    ],
)
def test_bad_numbers_are_named(cameras, field, index, value, message):
    with pytest.raises(ValueError, match=message):
        broken(cameras, field, index, value)


def test_mixed_and_short_floats_are_refused(cameras):
    """Or they would fail later, in a product or an inverse, in words of torch."""
    with pytest.raises(ValueError, match="K is torch.float64 .* c2w torch.float32 .* same"):
        Cameras(cameras.K.double(), cameras.c2w, 37, 29)
    with pytest.raises(ValueError, match="c2w must be of float32 or float64, got torch.float16"):
        Cameras(cameras.K.half(), cameras.c2w.half(), 37, 29)


def test_a_mirrored_pose_is_refused(cameras):
    c2w = cameras.c2w.clone()
    c2w[1, :3, 0] *= -1
    with pytest.raises(ValueError, match=r"c2w\[1\]: det\(R\) is -1"):
        Cameras(cameras.K, c2w, 37, 29)


@pytest.mark.parametrize(("width", "height"), [(0, 29), (37, -1)])
def test_an_empty_image_is_refused(cameras, width, height):
    with pytest.raises(ValueError, match="positive whole number"):
        Cameras(cameras.K, cameras.c2w, width, height)


def test_look_at_refuses_a_line_of_sight_along_up():
    with pytest.raises(ValueError, match="must not run along up"):
        look_at(torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))


def test_look_at_sees_the_target_in_the_middle_and_up_at_the_top():
    eye, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, 0.5, 2.0])
    up = torch.tensor([0.0, 0.0, 1.0])
    K = torch.tensor([[40.0, 0, 20], [0, 40.0, 15], [0, 0, 1]])
    camera = Cameras(K, look_at(eye, target, up), 40, 30)
    pixels, depth = camera.project(torch.stack([target, target + 0.2 * up]))
    torch.testing.assert_close(pixels[0], torch.tensor([20.0, 15.0]), atol=1e-4, rtol=0)
    assert float(pixels[1, 1]) < 15
    assert float(depth[0]) == pytest.approx(float((target - eye).norm()), abs=1e-5)
