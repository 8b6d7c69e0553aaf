"""Point splatting: a slow loop over every tap, and the compiled kernels against the torch path."""

import math

import pytest
import torch
from torch import Tensor

from worldstereo import render as module
from worldstereo._core.morton import MortonTree
from worldstereo.cameras import Cameras, look_at
from worldstereo.render import RenderResult, render_points, render_torch


def cloud(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, 3, generator=generator) * 2 + torch.tensor([0.0, 0.0, 3.0])
    return points, torch.rand(n, 3, generator=generator)


def slow(
    points: Tensor, camera: Cameras, radius: int, radii: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Depth and index of one camera, tap by tap; `radii` in scene units."""
    least, focal = radius, float((camera.K[0, 0] * camera.K[1, 1]).sqrt())
    pixels, depth = camera.project(points)
    best = torch.full((camera.height, camera.width), math.inf)
    index = torch.full((camera.height, camera.width), -1)
    for i in range(len(points)):
        if depth[i] <= 0 or pixels[i].abs().max() > 1e6:
            continue
        if radii is not None:
            across = float(radii[i]) * focal / float(depth[i])
            allowed = [least, *(half for half in (1, 2, 3, 4, 6, 8, 12) if half > least)]
            radius = max(h for h in allowed if h == least or h <= across + 0.5)
        u, v = (int(c) for c in pixels[i].floor())
        x0, x1 = max(u - radius, 0), min(u + radius + 1, camera.width)
        y0, y1 = max(v - radius, 0), min(v + radius + 1, camera.height)
        if x0 >= x1 or y0 >= y1:
            continue
        nearer = depth[i] < best[y0:y1, x0:x1]
        best[y0:y1, x0:x1][nearer] = depth[i]
        index[y0:y1, x0:x1][nearer] = i
    return torch.where(index < 0, 0.0, best), index


def same_bits(a: RenderResult, b: RenderResult) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("radius", [0, 1, 3, 41])
def test_every_pixel_shows_the_nearest_square_that_covers_it(cameras, radius):
    points, colors = cloud(503)
    result = render_points(points, colors, cameras, radius)
    depth, index = slow(points, cameras[1], radius)
    assert torch.equal(result.index[1, 0], index)
    torch.testing.assert_close(result.depth[1, 0], depth)
    assert torch.equal(result.mask[1, 0], (index >= 0).float())
    shown = torch.where(index >= 0, colors[index.clamp(min=0)].movedim(-1, 0), 0.0)
    assert torch.equal(result.color[1], shown)


@pytest.mark.parametrize("radius", [0, 1, 2, 7, 53])
@pytest.mark.parametrize("n", [1, 7, 4001])
def test_the_compiled_path_gives_the_same_bits_as_torch(cameras, n, radius):
    points, colors = cloud(n, seed=n)
    if n > 100:
        points[5] = cameras.position[2]  # a camera inside a point
        points[6] = 1e6  # one far away
        points[7:20] = points[7]  # several in one place: the lowest row is shown
    for camera in (cameras, cameras[2], cameras[1:2]):
        expected = render_torch(points, colors, camera, radius)
        assert same_bits(render_points(points, colors, camera, radius), expected)
        tree = MortonTree(points.numpy())
        assert same_bits(render_points(points, colors, camera, radius, block_index=tree), expected)


@pytest.mark.parametrize("radius", [0, 1, 5, 12])
def test_splats_of_their_own_radius_are_as_wide_as_they_are(cameras, radius):
    points, colors = cloud(307)
    radii = torch.rand(307, generator=torch.Generator().manual_seed(2)) ** 3 * 0.9
    result = render_points(points, colors, cameras, radius, radii=radii)
    depth, index = slow(points, cameras[1], radius, radii)
    assert torch.equal(result.index[1, 0], index)
    torch.testing.assert_close(result.depth[1, 0], depth)
    plain = render_points(points, colors, cameras, radius)
    assert torch.equal(result.index, plain.index) == (radius == 12)  # the widest there is


def test_splats_of_their_own_radius_are_the_same_bits_compiled_and_plain(cameras):
    points, colors = cloud(4001, seed=3)
    points[5] = cameras.position[2]
    points[7:20] = points[7]
    radii = torch.rand(4001, generator=torch.Generator().manual_seed(5)) * 0.4
    tree = MortonTree(points.numpy())
    for camera in (cameras, cameras[2], cameras[1:2]):
        expected = render_torch(points, colors, camera, 1, radii=radii)
        assert same_bits(render_points(points, colors, camera, 1, radii=radii), expected)
        sorted_ = render_points(points, colors, camera, 1, block_index=tree, radii=radii)
        assert same_bits(sorted_, expected)
    narrow = render_points(points, colors, cameras, 1, radii=torch.zeros(4001))
    assert same_bits(narrow, render_points(points, colors, cameras, 1))


def test_a_cloud_drawn_often_is_sorted_once_and_a_written_one_again(cameras):
    points, colors = cloud(20_011)
    for _ in range(3):
        assert same_bits(
            render_points(points, colors, cameras), render_torch(points, colors, cameras)
        )
    points += 0.25
    assert same_bits(render_points(points, colors, cameras), render_torch(points, colors, cameras))


def test_threads_change_no_bit(cameras, monkeypatch):
    points, colors = cloud(9001)
    expected = render_points(points, colors, cameras[0])
    for threads in ("1", "5"):
        monkeypatch.setenv("WORLDSTEREO_THREADS", threads)
        assert same_bits(render_points(points, colors, cameras[0]), expected)


def test_without_a_compiler_torch_draws(cameras, monkeypatch):
    points, colors = cloud(97)
    expected = render_points(points, colors, cameras)
    monkeypatch.setattr(module, "has_compiler", lambda: False)
    assert same_bits(render_points(points, colors, cameras), expected)


def test_a_point_in_front_hides_the_one_behind_and_equals_go_to_the_lower_row():
    K = torch.tensor([[20.0, 0.0, 5.0], [0.0, 20.0, 5.0], [0.0, 0.0, 1.0]])
    camera = Cameras(K, torch.eye(4), 11, 11)
    points = torch.tensor([[0.01, 0.01, 2.0], [0.01, 0.01, 1.0], [0.01, 0.01, 1.0]])
    result = render_points(points, None, camera, radius=0)
    assert int(result.index[0, 5, 5]) == 1
    assert float(result.depth[0, 5, 5]) == 1.0
    assert int((result.index >= 0).sum()) == 1


def test_moving_world_and_camera_together_changes_no_index(cameras):
    points, colors = cloud(301)
    turn = look_at(torch.zeros(3), torch.tensor([0.3, 0.4, 1.0]), torch.tensor([0.0, -1.0, 0.2]))
    turn[:3, 3] = torch.tensor([4.0, -2.0, 1.0])
    moved = points @ turn[:3, :3].T + turn[:3, 3]
    there = Cameras(cameras.K, turn @ cameras.c2w, cameras.width, cameras.height)
    a, b = render_points(points, colors, cameras), render_points(moved, colors, there)
    assert (a.index == b.index).float().mean() > 0.995  # rounding may move a point over an edge


def test_no_points_and_no_frames(cameras):
    empty = render_points(torch.zeros(0, 3), torch.zeros(0, 3), cameras)
    assert not empty.mask.any()
    assert (empty.index == -1).all()
    assert empty.color.shape == (5, 3, 29, 37)
    nothing = render_points(torch.zeros(3, 3), None, cameras[:0])
    assert nothing.depth.shape == (0, 1, 29, 37)


def test_points_nearer_than_near_are_not_drawn(cameras):
    points, _ = cloud(211)
    result = render_points(points, None, cameras, near=2.5)
    assert (result.depth[result.mask > 0] > 2.5).all()
    assert result.mask.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": -1}, "radius.*-1"),
        ({"radius": 1.5}, "radius"),
        ({"near": -0.1}, r"near.*-0\.1"),
        ({"points": torch.zeros(3, 2)}, r"points.*\(3, 2\)"),
        ({"points": torch.zeros(3, 3, dtype=torch.float64)}, "points.*float64"),
        ({"colors": torch.zeros(2, 3)}, r"colors.*\(2, 3\)"),
        ({"radii": torch.zeros(2)}, r"radii must be \(3,\).*\(2,\)"),
    ],
)
def test_a_bad_argument_is_named(cameras, change, message):
    given = {"points": torch.zeros(3, 3), "colors": None, "radius": 1, "near": 0.0} | change
    with pytest.raises((ValueError, TypeError), match=message):
        points, colors = given.pop("points"), given.pop("colors")
        render_points(points, colors, cameras, **given)
