"""Small turned cameras, a two-wall room with known depth, and the folder of real captures."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldstereo.cameras import Cameras, look_at

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real captures; tests that need it are skipped by name when it is not there."""
    folder = os.environ.get("WORLDSTEREO_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("WORLDSTEREO_DATA does not name a folder of captures")
    return Path(folder)


@pytest.fixture
def cameras() -> Cameras:
    """Five turned cameras with an off-centre principal point and unequal focal lengths."""
    return turned_cameras(5)


def turned_cameras(n: int, width: int = 37, height: int = 29) -> Cameras:
    generator = torch.Generator().manual_seed(7)
    K = torch.tensor([[31.0, 0.0, 17.3], [0.0, 29.5, 15.9], [0.0, 0.0, 1.0]])
    poses = []
    for i in range(n):
        eye = torch.tensor([0.3 * i - 0.5, 0.11 * i - 0.2, -0.07 * i])
        target = torch.tensor([0.2, 0.1, 3.0]) + 0.1 * torch.randn(3, generator=generator)
        poses.append(look_at(eye, target, torch.tensor([0.1, -1.0, 0.05])))
    return Cameras(K.expand(n, 3, 3).clone(), torch.stack(poses), width, height)


def room(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Colour (T, 3, H, W) and depth (T, 1, H, W) of two textured walls, in closed form.

    The far wall is the plane z = 4, the left one x = -1.5; both carry smooth stripes, so that the
    colour of a point is a function of the point and every view agrees.
    """
    origins, directions = cameras.rays()
    toward = directions / (directions * cameras.forward[..., None, None, :]).sum(-1, keepdim=True)
    far = (4.0 - origins[..., 2]) / toward[..., 2]
    left = (-1.5 - origins[..., 0]) / toward[..., 0]
    left = torch.where(left > 0.05, left, torch.inf)
    depth = torch.minimum(torch.where(far > 0.05, far, torch.inf), left)
    points = origins + toward * depth[..., None]
    color = 0.5 + 0.4 * torch.sin(points * torch.tensor([2.1, 3.3, 1.7]) + points.roll(1, -1))
    return color.movedim(-1, -3), depth.unsqueeze(-3)
