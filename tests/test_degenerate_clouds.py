"""Clouds that break spatial structures, each through the whole memory and against slow loops."""

import pytest
import torch
from torch import Tensor

from tests.test_geometric_memory import POSE, memory, noise, slow_update
from tests.test_render import slow
from worldstereo.cameras import Cameras
from worldstereo.memory.stereo import SpatialStereoMemory
from worldstereo.render import render_points

UNIT = {"tiny": 1e-6, "huge": 1e6}


def clouds() -> dict[str, Tensor]:
    cube = noise(211, 0)
    flat, far = cube.clone(), cube.clone()
    flat[:, 2] = 0.5
    far[3] = 1e6
    made = {"none": cube[:0], "one": cube[:1], "equal": cube[:1].expand(211, 3).clone()}
    made |= {"plane": flat, "far": far}
    return made | {name: cube * unit for name, unit in UNIT.items()}


@pytest.mark.parametrize("name", list(clouds()))
def test_neighbours_of_a_bad_cloud_are_those_of_a_slow_loop(name):
    points = clouds()[name]
    geometry = memory()
    geometry.initialize(points)
    queries = torch.cat([points[:31], noise(31, 7) * UNIT.get(name, 1.0)])
    for k in (5, 1000):  # the second is larger than the cloud
        distance, rows = geometry.neighbors(queries[None], k=k)
        square = (queries[:, None].double() - points.double()).pow(2)
        square = square[..., 0] + square[..., 1] + square[..., 2]
        expected = square.argsort(dim=-1, stable=True)[:, :k]
        assert torch.equal(rows[0], expected)
        torch.testing.assert_close(
            distance[0], square.gather(1, expected).sqrt().float(), rtol=1e-6, atol=0.0
        )


@pytest.mark.parametrize("name", list(clouds()))
@pytest.mark.parametrize("r", [0.0, 0.05])
def test_an_update_of_a_bad_cloud_is_what_a_slow_loop_makes(name, r):
    points, r = clouds()[name], r * UNIT.get(name, 1.0)
    new = torch.cat([points[:61], noise(61, 3) * UNIT.get(name, 1.0)])
    geometry = memory()
    geometry.initialize(points)
    count = geometry.observations
    result = geometry.update(new, POSE, merge_threshold=r)
    expected, counts = slow_update(points, count, new, r)
    assert result.num_added + result.num_merged == len(new)
    torch.testing.assert_close(geometry.points, expected, rtol=1e-6, atol=0.0)
    assert torch.equal(geometry.observations.double(), counts)


@pytest.mark.parametrize("name", list(clouds()))
@pytest.mark.parametrize("radius", [1, 60])  # the second is larger than the image
def test_a_bad_cloud_is_drawn_as_by_a_slow_loop(name, radius):
    points, unit = clouds()[name], UNIT.get(name, 1.0)
    K = torch.tensor([[40.0, 0.0, 23.5], [0.0, 40.0, 15.5], [0.0, 0.0, 1.0]])
    c2w = torch.eye(4).repeat(2, 1, 1)
    c2w[0, :3, 3] = torch.tensor([0.5, 0.5, -1.5]) * unit
    if len(points) > 0:
        c2w[1, :3, 3] = points[0]  # inside a point
    cameras = Cameras(K.expand(2, 3, 3), c2w, 47, 31)
    result = render_points(points, None, cameras, radius)
    for t in range(2):
        depth, index = slow(points, cameras[t], radius)
        assert torch.equal(result.index[t, 0], index)
        torch.testing.assert_close(result.depth[t, 0], depth, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", list(clouds()))
def test_entries_at_the_points_of_a_bad_cloud_are_retrieved_by_distance(name):
    points = clouds()[name]
    bank = SpatialStereoMemory(300, 4, 1)
    bank.add_to_memory(torch.ones(len(points), 4), points[:, None], torch.ones(len(points), 1))
    queries = torch.cat([points[:7], noise(7, 9) * UNIT.get(name, 1.0)])
    slots = bank.retrieve(queries[None], top_k=250)[1][0]
    square = (queries[:, None].double() - points.double()).pow(2).sum(-1)
    expected = square.argsort(dim=-1, stable=True)[:, :250]
    assert torch.equal(slots[:, : len(points)], expected)
    assert (slots[:, len(points) :] == -1).all()
