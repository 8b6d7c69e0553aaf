"""`python -m worldstereo.warmup`: compiles the kernels that a first world needs last.

Kernels compile on their first call and are kept on disk. While one process prepares a first world,
a second one that runs this compiles what comes later: matching between views, the memories, novel
views. Where everything is on disk it takes the time of its imports.
"""

import torch

from worldstereo.cameras import Cameras, look_at
from worldstereo.generators import WarpGenerator
from worldstereo.scene import Capture, View
from worldstereo.trajectory import Trajectory
from worldstereo.views.multiview import MatchView, fill_unmeasured
from worldstereo.world import World, explore, start

SIZE = (64, 48)
DEPTH = 2.0


def warm_up() -> None:
    """Match a picture with two others, then open them as a world and make two views of it."""
    views = wall()
    pictures = [MatchView(v.color, v.cameras, v.depth, blocked=None) for v in views]
    everywhere = torch.ones(1, *views[0].color.shape[1:], dtype=torch.bool)
    fill_unmeasured(pictures[0], pictures[1:], views[0].depth, everywhere)
    world = World(WarpGenerator(), max_points=50_000)
    start(world, Capture(name="wall", kind="rgbd", views=views))
    explore(world, Trajectory.preset("orbit", views[1].cameras, distance=DEPTH, frames=2))


def wall() -> tuple[View, ...]:
    """Three views of a textured plane, with a strip that the sensor did not measure."""
    width, height = SIZE
    K = torch.tensor([[width, 0.0, width / 2], [0.0, width, height / 2], [0.0, 0.0, 1.0]])
    views = []
    for i in range(3):
        pose = look_at(
            torch.tensor([0.1 * i - 0.1, 0.0, 0.0]),
            torch.tensor([0.0, 0.0, DEPTH]),
            torch.tensor([0.0, -1.0, 0.0]),
        )
        camera = Cameras(K, pose, width, height)
        origins, directions = camera.rays()
        reach = (DEPTH - origins[..., 2]) / directions[..., 2]
        points = origins + directions * reach[..., None]
        color = 0.5 + 0.4 * torch.sin(points[..., [0, 1, 0]] * torch.tensor([23.0, 31.0, 17.0]))
        depth = (points - pose[:3, 3]) @ pose[:3, 2]
        depth[:, : width // 3] = 0
        views.append(View.of(color.movedim(-1, 0), depth[None], camera, frame=i))
    return tuple(views)


if __name__ == "__main__":
    warm_up()
