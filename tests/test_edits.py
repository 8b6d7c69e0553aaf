"""Registration switched off and on: a world is then as if it had been opened that way."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from tests.conftest import InstantGenerator, room_capture, turned_cameras
from worldstereo._core import resident
from worldstereo.cameras import Cameras
from worldstereo.memory.stereo.dense import ViewIndex
from worldstereo.scene import Capture, PointCloud, View
from worldstereo.trajectory import Trajectory
from worldstereo.views.registration import Registration
from worldstereo.world import (
    Original,
    PackedDepth,
    World,
    delete_points,
    explore,
    set_registration,
    start,
)


def spoiled_capture(cloud: bool = True) -> Capture:
    """The room with noisy depth, a hole, floating points, and a cloud of its own."""
    capture = room_capture(4, 96, 72)
    noise = torch.Generator().manual_seed(3)
    views = []
    for i, view in enumerate(capture.views):
        depth = view.depth * (1 + 0.01 * torch.randn(view.depth.shape, generator=noise))
        depth = (depth * 1000).round() / 1000
        depth[0, 5:25, 10 + i : 30] = 0
        depth[0, 40:44, 50:53] = 0.4  # looked through by the others
        views.append(View.of(view.color, depth, drifted(view.cameras, i), frame=i))
    points = torch.rand(500, 3, generator=noise) + torch.tensor([-0.5, -0.5, 3.0])
    own = PointCloud.of(points, torch.rand(500, 3, generator=noise)) if cloud else None
    return replace(capture, views=tuple(views), cloud=own)


def drifted(cameras: Cameras, i: int) -> Cameras:
    pose = cameras.c2w.clone()
    pose[:3, 3] += 0.015 * torch.tensor([float(np.sin(2.0 * i)), float(np.cos(i)) - 1, 0.0])
    return Cameras(cameras.K, pose, cameras.width, cameras.height)


def opened(register: bool, capture: Capture) -> World:
    world = World(InstantGenerator(), max_points=50_000)
    start(world, capture, register=register)
    return world


def state(world: World) -> dict[str, torch.Tensor]:
    """Everything a reader or a memory holds, by name."""
    geometry, stereo = world.memories()
    out = {f"g/{k}": v for k, v in geometry.items() if not k.startswith("learned")}
    out |= {f"s/{k}": v for k, v in stereo.items()}
    for i, view in enumerate(world.scene.views):
        for name in ("color_u8", "depth", "confidence_u8", "kind", "log_gain"):
            out[f"{i}/{name}"] = getattr(view, name)
        out[f"{i}/camera"], out[f"{i}/given"] = view.cameras.c2w, view.given.c2w
    for i, clip in enumerate(world.scene.clips):
        out[f"clip {i}"] = clip.trajectory.cameras.c2w
    out["unit"] = torch.tensor(world.scene.unit)
    if world.registration is not None:
        out["moved"], out["corrected"] = (
            world.registration.moved_px,
            world.registration.corrected.c2w,
        )
    return out


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert different == []


@pytest.mark.parametrize("cloud", [True, False])
def test_a_switched_world_is_one_opened_that_way(cloud: bool):
    capture = spoiled_capture(cloud)
    on, off = opened(True, capture), opened(False, capture)
    assert on.registration is not None and float(on.registration.moved_px.max()) > 0.1
    world = opened(True, capture)
    for _ in range(2 if cloud else 1):
        set_registration(world, False)
        assert_same(state(world), state(off))
        set_registration(world, True)
        assert_same(state(world), state(on))
    set_registration(off, True)
    assert_same(state(off), state(on))


def made_in(world: World, frames: int = 2) -> Trajectory:
    camera = world.scene.views[1].cameras
    path = Trajectory.preset("truck", camera, distance=2.0, frames=frames, up=world.scene.up)
    explore(world, path)
    return path


def test_what_was_generated_moves_along_and_comes_back_to_the_bit():
    world = opened(True, spoiled_capture())
    made_in(world)
    before = state(world)
    set_registration(world, False)
    made_in(world, 1)  # a view made in the world of the given poses
    between = state(world)
    given = [v for v in world.scene.views if v.step == 0]
    assert all(torch.equal(v.cameras.c2w, v.given.c2w) for v in given)
    old, new = before["4/camera"], between["4/camera"]
    shift = torch.stack([before[f"{i}/given"] - before[f"{i}/camera"] for i in range(4)])
    assert 0 < float((new - old).abs().max()) <= 1.5 * float(shift.abs().max())
    set_registration(world, True)
    after = state(world)
    kept = [k for k in before if k[0] in "012345" or k == "clip 0"]
    assert_same({k: before[k] for k in kept}, {k: after[k] for k in kept})
    assert not torch.equal(after["6/camera"], between["6/camera"])
    assert torch.equal(after["clip 1"][0], after["6/camera"])
    set_registration(world, False)
    assert_same(state(world), between)


def test_deleted_points_stay_deleted():
    world = opened(True, spoiled_capture())
    cloud = world.scene.cloud
    chosen = (cloud.points - torch.tensor([0.0, 0.0, 3.5])).norm(dim=1) < 0.4
    centre = cloud.points[chosen].mean(0)
    assert cloud.source is not None and int(chosen.sum()) > 20
    assert bool((cloud.source[chosen] < 0).any())
    delete_points(world, chosen)
    for on in (False, True):
        set_registration(world, on)
        left = (world.scene.cloud.points - centre).norm(dim=1)
        assert int((left < 0.3).sum()) == 0
        source = world.scene.cloud.source
        assert source is not None and int((source < 0).sum()) > 100


def test_a_camera_goes_to_the_given_frame_and_back():
    capture = spoiled_capture()
    registration = opened(True, capture).registration
    assert isinstance(registration, Registration)
    cameras = registration.corrected
    back = registration.as_given(cameras)
    torch.testing.assert_close(registration.correct(back).c2w, cameras.c2w, rtol=0, atol=1e-6)
    turned = turned_cameras(5)
    there = registration.correct(registration.as_given(turned))
    torch.testing.assert_close(there.c2w, turned.c2w, rtol=0, atol=1e-6)
    assert float((back.c2w - cameras.c2w).abs().max()) > 1e-3


@pytest.mark.parametrize("levels", [1, 4000, 0])
def test_packed_depth_is_the_very_bits(levels: int):
    rng = np.random.default_rng(levels)
    depth = rng.random((1, 301, 407)).astype(np.float32) * 5
    if levels:
        depth = np.round(depth * levels / 5).astype(np.float32) / 1000
    depth[0, 3] = [0.0, np.nan, np.inf, -1.0, *depth[0, 3, 4:]]
    packed = PackedDepth.of(torch.from_numpy(depth))
    assert (packed.levels is None) == (levels == 0)
    for kept in (packed, packed.spilled()):
        assert np.array_equal(kept.depth().numpy().view(np.int32), depth.view(np.int32))
        worth = kept.nbytes >= resident.WORTH and resident.folder() is not None
        assert resident.is_on_disk(kept.data) == (kept is not packed and worth)
    smooth = torch.linspace(1, 4, 640).mul(1000).round().div(1000).expand(1, 480, 640)
    assert PackedDepth.of(smooth.contiguous()).nbytes < 200_000


def test_a_remembered_view_stays_below_three_megabytes():
    """640x480: the view, its depth as given in steps of a sensor, and its row in the index."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:480, :640]
    metres = 2 + np.sin(x / 90) + 0.001 * y + rng.normal(0, 0.003, x.shape)
    metres[rng.random(x.shape) < 0.02] = 0
    depth = torch.from_numpy((metres * 1000).round().astype(np.float32) / 1000)[None]
    K = torch.tensor([[500.0, 0, 320], [0, 500.0, 240], [0, 0, 1]])
    camera = Cameras(K, torch.eye(4), 640, 480)
    view = View.of(torch.rand(3, 480, 640), depth, camera)
    held = [getattr(view, f.name) for f in fields(view)]
    size = sum(t.untyped_storage().nbytes() for t in held if isinstance(t, torch.Tensor))
    packed = Original((PackedDepth.of(depth),)).depth[0]
    assert torch.equal(packed.depth(), depth)
    index = ViewIndex([view])
    rows = [v for v in vars(index).values() if isinstance(v, np.ndarray)] + index._coarse
    assert sum(a.nbytes for a in rows) < 40_000
    assert size + packed.nbytes + sum(a.nbytes for a in rows) <= 3 * 2**20
