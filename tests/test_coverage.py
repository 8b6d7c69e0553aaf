"""Coverage of the cloud, what a camera does not know, and paths to where most can be learned."""

from dataclasses import replace

import pytest
import torch

from tests import textured
from worldstereo import Cameras, Capture, PointCloud, Scene, WarpGenerator, World, WorldStereoError
from worldstereo.trajectory import Trajectory
from worldstereo.world import (
    Known,
    coverage,
    next_best_views,
    propose_path,
    reach_along,
    start,
    unknown,
)


@pytest.fixture(scope="module")
def scene():
    world = World(WarpGenerator(), max_points=200_000)
    start(world, Capture("room", "rgbd", tuple(textured.views(3))), register=False)
    return world.scene


def test_points_are_known_well_where_rays_cross(scene):
    """An independent loop over a few points: the views that see them, the angle between rays."""
    said = coverage(scene)
    for i in range(0, len(scene.cloud), len(scene.cloud) // 40):
        point = scene.cloud.points[i : i + 1]
        rays = []
        for view in scene.views:
            (pixel,), (z,) = view.cameras.project(point)
            u, v = int(pixel[0]), int(pixel[1])
            if float(z) > 0 and 0 <= u < view.width and 0 <= v < view.height and pixel.min() >= 0:
                d = float(view.depth[0, v, u])
                if d > 0 and abs(d - float(z)) < 0.05 * float(z):
                    ray = point[0] - view.cameras.position
                    rays.append(ray / ray.norm())
        assert int(said.observations[i]) == len(rays)
        if len(rays) == 2:
            angle = float(torch.rad2deg(torch.arccos((rays[0] @ rays[1]).clamp(-1, 1))))
            assert float(said.angle[i]) == pytest.approx(angle, abs=0.2)
            well = int(said.known[i]) == int(Known.WELL)
            assert well == (float(said.angle[i]) > 15.0)
    colors = said.colors()
    assert colors.shape == (len(scene.cloud), 3)
    assert float(colors.min()) >= 0 and float(colors.max()) <= 1


def test_unknown_is_what_no_view_saw(scene):
    known = unknown(scene, scene.views[1].cameras)
    assert float(known.float().mean()) < 0.03
    behind = textured.camera_at((0.0, 0.0, 0.0), (3.0, 0.0, -4.0))
    assert float(unknown(scene, behind).float().mean()) > 0.97


def test_slivers_behind_edges_are_unknown_and_gaps_between_points_are_not():
    """A wall with a gap four pixels wide: named at full resolution, whatever the cloud's density
    where its radii say how far apart its points lie."""
    for spacing in (0.01, 0.05):  # a pixel and five pixels at two units
        x, y = torch.meshgrid(
            torch.arange(-2, 2, spacing), torch.arange(-1.5, 1.5, spacing), indexing="ij"
        )
        wall = torch.stack([x, y, torch.full_like(x, 2.0)], -1).reshape(-1, 3)
        wall = wall[(wall[:, 0] - 0.3).abs() > max(0.035, 2 * spacing)]
        cloud = PointCloud.of(wall, radii=torch.full((len(wall),), spacing / 2))
        K = torch.tensor([[200.0, 0.0, 160.0], [0.0, 200.0, 120.0], [0.0, 0.0, 1.0]])
        mask = unknown(Scene(cloud=cloud), Cameras(K, torch.eye(4), 320, 240))[0]
        columns = mask[20:-20].float().mean(0)
        assert float(columns[190]) > 0.9
        assert float(columns[:170].max()) < 0.02 and float(columns[215:300].max()) < 0.02


def wall(left: float, right: float, z: float, spacing: float, **columns: float) -> PointCloud:
    """Points of a wall that faces the camera, `spacing` apart."""
    x, y = torch.meshgrid(
        torch.arange(left, right, spacing), torch.arange(-3, 3, spacing), indexing="ij"
    )
    points = torch.stack([x, y, torch.full_like(x, z)], -1).reshape(-1, 3)
    rest = {name: torch.full((len(points),), value) for name, value in columns.items()}
    return PointCloud.of(points, radii=torch.full((len(points),), spacing / 2), **rest)


def joined(*clouds: PointCloud) -> Scene:
    names = ("points", "colors", "confidence", "step", "normals", "radii")
    columns = {name: torch.cat([getattr(cloud, name) for cloud in clouds]) for name in names}
    return Scene(cloud=PointCloud(**columns))


def shown(scene: Scene) -> torch.Tensor:
    """Share of unknown pixels in each column of a picture, 200 pixels to a unit at depth 1."""
    K = torch.tensor([[200.0, 0.0, 160.0], [0.0, 200.0, 120.0], [0.0, 0.0, 1.0]])
    return unknown(scene, Cameras(K, torch.eye(4), 320, 240))[0][20:-20].float().mean(0)


def test_coarse_and_fine_surfaces_of_one_cloud_close_up_each_by_itself():
    """Most points lie a pixel apart on the left, some nine pixels apart on the right, and between
    them is a gap of eight pixels that neither may close."""
    fine, coarse = wall(-1.7, -0.1, 2.0, 0.01), wall(0.03, 1.7, 2.0, 0.09)
    columns = shown(joined(fine, coarse))
    assert float(columns[:145].max()) < 0.02 and float(columns[165:].max()) < 0.02
    assert float(columns[152:156].min()) > 0.9


def test_guessed_surfaces_are_known_only_between_measured_ones():
    """Two measured walls with eight pixels between them and nothing beyond: a guessed wall behind
    all of it is known between them, and unknown where it goes on; a generated one is known."""
    measured = wall(-0.7, -0.04, 2.0, 0.01), wall(0.04, 0.7, 2.0, 0.01)
    guessed = wall(-2.0, 2.0, 2.02, 0.01, confidence=0.2)
    columns = shown(joined(*measured, guessed))
    assert float(columns[100:220].max()) < 0.02
    assert float(columns[:80].min()) > 0.9 and float(columns[-80:].min()) > 0.9
    made = replace(guessed, step=torch.ones_like(guessed.step))
    assert float(shown(joined(*measured, made)).max()) < 0.02
    assert float(shown(joined(*measured))[158:162].min()) > 0.9


def test_the_next_best_views_border_on_known(scene):
    """Each shows known and unknown; the best shows more unknown than the views that were given."""
    found = next_best_views(scene, 3)
    assert len(found) == 3 and found[0].gain >= found[1].gain >= found[2].gain > 0.1
    for view in found:
        share = float(unknown(scene, view.camera).float().mean())
        assert 0.1 < share < 0.75
    assert next_best_views(scene, 3)[0].gain == found[0].gain


def test_the_proposed_path_starts_at_a_view_and_ends_in_the_unknown(scene):
    path = propose_path(scene, frames=5, size=(320, 240))
    assert len(path) == 5 and (path.cameras.width, path.cameras.height) == (320, 240)
    starts = [
        float((view.cameras.position - path.cameras.position[0]).norm()) for view in scene.views
    ]
    assert min(starts) < 1e-4
    first, last = (float(unknown(scene, path.cameras[t]).float().mean()) for t in (0, -1))
    assert last > first + 0.1


def test_a_path_past_the_edge_of_a_wall_reaches_as_far_as_the_wall():
    """A camera 2 units before a wall moves along it; its picture shows 2 units of the wall.

    Past the wall's edge at x = 1 it sees (1 - (x - 1)) / 2 of it: 35 % at x = 1.3.
    """
    x, y = torch.meshgrid(torch.arange(-1, 1, 0.02), torch.arange(-1.5, 1.5, 0.02), indexing="ij")
    points = torch.stack([x.flatten(), y.flatten(), torch.full((x.numel(),), 2.0)], 1)
    scene = Scene(cloud=PointCloud.of(points), unit=2.0)
    steps = torch.linspace(0.0, 2.0, 41)
    c2w = torch.eye(4).repeat(41, 1, 1)
    c2w[:, 0, 3] = steps
    K = torch.tensor([[160.0, 0.0, 80.0], [0.0, 160.0, 60.0], [0.0, 0.0, 1.0]])
    path = Trajectory(Cameras(K.expand(41, 3, 3).clone(), c2w, 160, 120))
    reach = reach_along(scene, path)
    assert float(steps[reach]) == pytest.approx(1.3, abs=0.06)  # a frame, and a pixel of the wall
    near = Trajectory(path.cameras[:20])
    assert reach_along(scene, near) == len(near)
    away = Trajectory(path.cameras[35:])
    assert reach_along(scene, away) == 0


def test_a_world_without_views_says_so():
    with pytest.raises(WorldStereoError, match="no view"):
        next_best_views(Scene(cloud=PointCloud.of(torch.rand(50, 3))))
