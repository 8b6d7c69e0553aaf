"""Small turned cameras, a two-wall room with known depth, and the folder of real captures."""

import gc
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from worldstereo.cameras import Cameras, look_at
from worldstereo.generators import Frame, GeneratorLimits, WarpGenerator, patch_features
from worldstereo.progress import ignore
from worldstereo.scene import Capture, Origin, View

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


def room_capture(n: int = 3, width: int = 80, height: int = 64) -> Capture:
    """A capture of the two-wall room as a reader would return it, with exact depth."""
    K = torch.tensor([[66.0, 0.0, 40.6], [0.0, 64.0, 31.2], [0.0, 0.0, 1.0]])
    poses = [
        look_at(
            torch.tensor([0.25 * i - 0.3, 0.05 * i, -0.1 * i]),
            torch.tensor([0.1, 0.1, 4.0]),
            torch.tensor([0.0, -1.0, 0.0]),
        )
        for i in range(n)
    ]
    cameras = Cameras(K.expand(n, 3, 3).clone(), torch.stack(poses), width, height)
    color, depth = room(cameras)
    views = tuple(View.of(color[i], depth[i], cameras[i], frame=i) for i in range(n))
    return Capture(name="room", kind="rgbd", views=views, up=torch.tensor([0.0, -1.0, 0.0]))


class InstantGenerator:
    """Finishes in milliseconds: frames of one colour, the guide never asked."""

    limits = GeneratorLimits(name="instant")

    def new_memories(self, max_points: int = 10_000):
        return WarpGenerator().new_memories(max_points)

    def encode(self, color: Tensor) -> Tensor:
        return patch_features(color)

    def __call__(self, request, on_step=ignore):
        total = len(request.trajectory)
        height, width = request.trajectory.cameras.height, request.trajectory.cameras.width
        one = torch.ones(1, height, width)
        for t in range(total):
            on_step(t, total, f"View {t + 1} of {total}")
            origin = one.to(torch.uint8) * int(Origin.INVENTED)
            yield Frame(one.expand(3, -1, -1) * 0.5, 2 * one, origin, 0.5 * one, 0 * one, ())


@pytest.fixture
def instant() -> InstantGenerator:
    return InstantGenerator()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    """What is collected after the last test is no test's failure.

    Event loops of packages that are stopped with their threads may be left for then.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
