"""Public correspondences between two views, and remembered features seen by a camera."""

import pytest
import torch

from worldstereo import CameraTrajectory, SpatialStereoMemory, View
from worldstereo.views.correspondences import correspondences

PATH = CameraTrajectory.circle([0, 0, 2], 2.0, 3, degrees=16).cameras(128, 96)


def wall(camera, detail=1.0):
    """A painted wall at z = 2.3, as a camera sees it."""
    origins, directions = camera.rays()
    z = (2.3 - origins[..., 2]) / directions[..., 2]
    place = origins + z[..., None] * directions
    depth = z * (directions * camera.forward).sum(-1)
    g = torch.Generator().manual_seed(0)
    paint = torch.rand(1, 3, 48, 48, generator=g)
    grid = (place[..., :2] / 3)[None]
    color = torch.nn.functional.grid_sample(paint, grid, mode="bicubic", align_corners=False)[0]
    return View.of((color * detail).clamp(0, 1), depth[None], camera)


@pytest.mark.parametrize(("kind", "least"), [("dense", 5000), ("patches", 25), ("keypoints", 20)])
def test_pairs_show_the_same_point_of_the_wall(kind, least):
    a, b = wall(PATH[0]), wall(PATH[2])
    pairs = correspondences(a, b, kind)
    assert len(pairs.a) == len(pairs.b) == len(pairs.confidence) >= least
    assert float(pairs.confidence.min()) >= 0 and float(pairs.confidence.max()) <= 1
    where = []
    for view, pixels in ((a, pairs.a), (b, pairs.b)):
        u, v = pixels.floor().long().T
        where.append(view.cameras.unproject(pixels, view.depth[0, v, u]))
    apart = (where[0] - where[1]).norm(dim=1)
    assert float(apart.quantile(0.9)) < 0.03


def test_what_is_hidden_or_unknown_corresponds_to_nothing():
    a, b = wall(PATH[0]), wall(PATH[2])
    near = View.of(b.color, b.depth * 0.5, b.cameras)
    assert len(correspondences(a, near).a) == 0
    blind = View.of(a.color, a.depth * 0, a.cameras)
    assert len(correspondences(blind, b).a) == 0
    flat = View.of(a.color * 0 + 0.5, a.depth, a.cameras)
    assert len(correspondences(flat, b, "keypoints").a) == 0
    with pytest.raises(ValueError, match="dense, keypoints, patches"):
        correspondences(a, b, "lines")


def test_remembered_features_are_seen_where_their_points_project():
    memory = SpatialStereoMemory(50, 5, 2, correspondence_threshold=0.5)
    features, mask = memory.warp(PATH, 6, 8)
    assert features.shape == (3, 5, 6, 8) and mask.shape == (3, 1, 6, 8) and not bool(mask.any())
    g = torch.Generator().manual_seed(1)
    points = torch.rand(20, 2, 3, generator=g) + torch.tensor([-0.5, -0.5, 1.8])
    confidence = torch.rand(20, 2, generator=g)
    stored = torch.randn(20, 5, generator=g)
    memory.add_to_memory(stored, points, confidence)
    camera = PATH[1].scaled(8, 6)
    features, mask = memory.warp(PATH[1], 6, 8)
    nearest = {}
    for i in range(20):
        for s in range(2):
            if confidence[i, s] < 0.5:
                continue
            (pixel,), (z,) = camera.project(points[i, s][None])
            cell = (int(pixel[1].floor()), int(pixel[0].floor()))
            if 0 <= cell[0] < 6 and 0 <= cell[1] < 8 and z < nearest.get(cell, (9, 0))[0]:
                nearest[cell] = (float(z), i)
    assert {tuple(c) for c in mask[0].nonzero().tolist()} == set(nearest)
    for (row, column), (_, i) in nearest.items():
        torch.testing.assert_close(features[:, row, column], stored[i])
    with pytest.raises(ValueError, match="height"):
        memory.warp(PATH[1], 0, 8)
