"""What any generator may add to a world: pixels that nobody showed, and nothing else."""

import pytest
import torch

from tests.conftest import InstantGenerator, room, room_capture
from worldstereo.cameras import Cameras
from worldstereo.generators import Frame, WarpGenerator
from worldstereo.scene import Origin, View
from worldstereo.trajectory import Trajectory
from worldstereo.views.fusion import make_view_arrays
from worldstereo.world import World, explore, set_registration, start

COLUMNS = ("color_u8", "depth", "confidence_u8", "kind", "log_gain")


class Boaster(InstantGenerator):
    """Never asks its guide, and claims to have invented everything, beyond doubt."""

    def __call__(self, request, on_step=lambda *_: None):
        cameras = request.trajectory.cameras
        one = torch.ones(1, cameras.height, cameras.width)
        for t in range(len(request.trajectory)):
            on_step(t, len(request.trajectory), "")
            color = torch.rand(3, *one.shape[1:], generator=torch.Generator().manual_seed(t))
            origin = one.to(torch.uint8) * int(Origin.INVENTED)
            yield Frame(color, 2.5 * one, origin, one, 0 * one, ())


def true_depth(cameras: Cameras) -> torch.Tensor:
    """(H, W) depth of the room, in closed form."""
    one = Cameras(cameras.K[None], cameras.c2w[None], cameras.width, cameras.height)
    return room(one)[1][0, 0]


def shown(cameras: Cameras, views: list[View]) -> torch.Tensor:
    """(H, W): some view has the room's surface behind each pixel, by the closed form alone."""
    depth = true_depth(cameras)
    points = cameras.unproject(cameras.pixel_grid(), depth.reshape(-1))
    found = torch.zeros(len(points), dtype=torch.bool)
    for view in views:
        uv, z = view.cameras.project(points)
        u, v = uv[:, 0].floor().long(), uv[:, 1].floor().long()
        inside = (z > 0) & (u >= 1) & (v >= 1) & (u < view.width - 1) & (v < view.height - 1)
        truth = true_depth(view.given)
        there = truth[v.clamp(0, view.height - 1), u.clamp(0, view.width - 1)]
        found |= inside & ((there - z).abs() < 0.01 * z)
    return found.reshape(cameras.height, cameras.width)


@pytest.mark.parametrize("guide", ["fused", "cloud"])
@pytest.mark.parametrize("make", [Boaster, WarpGenerator])
def test_only_what_nobody_showed_is_added(make, guide: str):
    generator = make()
    world = World(generator, max_points=100_000)
    start(world, room_capture(n=4, width=96, height=64), register=True)
    before, registration = world.scene, world.registration
    assert registration is not None
    camera = before.views[0].cameras
    path = Trajectory.preset("pan", camera, distance=4.0, frames=3, value=60.0, up=before.up)
    clip = explore(world, path, guide=guide)
    given, made = world.scene.views[:4], world.scene.views[4:]
    for old, new in zip(before.views, given, strict=True):
        assert all(torch.equal(getattr(old, k), getattr(new, k)) for k in COLUMNS)
        assert torch.equal(old.cameras.c2w, new.cameras.c2w)
    assert world.registration is registration
    wrong = missed = seen = unseen = 0
    for t, view in enumerate(made):
        truth, added = shown(view.cameras, list(given)), view.mask[0]
        wrong += int((added & truth).sum())
        seen += int(truth.sum())
        invented = clip.origin[t, 0] == int(Origin.INVENTED)
        missed += int((~added & ~truth & invented).sum())
        unseen += int((~truth & invented).sum())
        assert torch.equal(view.depth[0][added], clip.depth[t, 0][added])
        assert float(view.confidence.max()) <= 0.021
        assert make_view_arrays(view).vote == 0
    assert wrong <= 0.03 * seen and unseen > 500 and missed <= 0.1 * unseen
    if make is Boaster and guide == "fused":
        set_registration(world, True)
        assert world.registration is not None and len(world.registration) == 4
        assert torch.equal(world.registration.corrected.c2w, registration.corrected.c2w)
