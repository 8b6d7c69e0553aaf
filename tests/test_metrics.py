"""Weight-free metrics against closed forms and slow loops."""

import math

import pytest
import torch

from bench.metrics import cross_view_error, flicker, geometry_error, pose_error
from worldstereo import CameraTrajectory
from worldstereo.cameras import Cameras
from worldstereo.rotations import exp, matrices


def turned(cameras, R, s, t):
    c2w = cameras.c2w.double().clone()
    c2w[:, :3, :3] = R @ c2w[:, :3, :3]
    c2w[:, :3, 3] = s * c2w[:, :3, 3] @ R.T + t
    return Cameras(cameras.K.double(), c2w, cameras.width, cameras.height)


def test_a_similarity_of_the_world_is_no_pose_error():
    path = CameraTrajectory.circle([0.3, 0.1, 2], 1.5, 7, 0.4, 200).cameras(20, 10)
    R = matrices(exp(torch.tensor([[0.4, -1.1, 0.3]]).double()))[0]
    moved = turned(path, R, 2.5, torch.tensor([1.0, -2.0, 0.5]).double())
    error = pose_error(moved, path)
    assert error.rotation < 1e-3 and error.ate < 1e-5
    assert error.scale == pytest.approx(0.4, rel=1e-5)
    c2w = path.c2w.double().clone()
    spin = matrices(exp(torch.tensor([[0.0, math.radians(3), 0.0]]).double()))[0]
    c2w[:, :3, :3] = c2w[:, :3, :3] @ spin
    off = pose_error(Cameras(path.K.double(), c2w, 20, 10), path)
    assert off.rotation == pytest.approx(3, abs=1e-2) and off.ate < 1e-5
    line = CameraTrajectory.preset("truck", path[0], 5, distance=2.0).cameras(20, 10)
    straight = pose_error(turned(line, R, 1.0, torch.zeros(3).double()), line)
    assert straight.rotation < 1e-2 and straight.ate < 1e-4
    with pytest.raises(ValueError, match="one length"):
        pose_error(path[:3], path)


def test_frames_of_one_painted_wall_agree_and_a_shift_is_seen():
    path = CameraTrajectory.circle([0, 0, 2], 2.0, 5, degrees=12).cameras(48, 32)
    origins, directions = path.rays()
    z = (2.2 - origins[..., 2]) / directions[..., 2]
    wall = origins + z[..., None] * directions
    depth = (z * (directions * path.forward[:, None, None]).sum(-1))[:, None]
    color = (0.5 + 0.4 * torch.sin(3 * wall)).movedim(-1, 1)
    color[:, 2] = 0.3
    assert flicker(color, depth, path) < 1.5  # what bilinear resampling costs
    assert cross_view_error(color, depth, path) < 1.5
    blink = color.clone()
    blink[::2] += 0.05
    assert flicker(blink, depth, path) == pytest.approx(255 * 0.05, rel=0.05)
    away = Cameras(path.K, path.c2w.clone(), 48, 32)
    away.c2w[1::2, 0, 3] += 100
    assert math.isnan(flicker(color, depth, away))


def test_point_sets_are_compared_both_ways():
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(53, 3, generator=g), torch.rand(67, 3, generator=g)
    table = torch.cdist(a.double(), b.double())
    fit = geometry_error(a, b, 0.2)
    assert fit.accuracy == pytest.approx(float(table.min(1).values.median()), rel=1e-5)
    assert fit.completeness == pytest.approx(float(table.min(0).values.median()), rel=1e-5)
    p = float((table.min(1).values <= 0.2).double().mean())
    r = float((table.min(0).values <= 0.2).double().mean())
    assert fit.f_score == pytest.approx(2 * p * r / (p + r))
    same = geometry_error(a, a, 0.01)
    assert same.accuracy == 0 and same.f_score == 1
    with pytest.raises(ValueError, match="threshold"):
        geometry_error(a, b, 0)
