"""Memory that is given back, a cloud that keeps the whole place, keyframes of large captures."""

import gc
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from tests.conftest import turned_cameras
from worldstereo._core import resident
from worldstereo._core.cache import ByteCache
from worldstereo.cameras import Cameras, look_at
from worldstereo.generators import WarpGenerator
from worldstereo.guide import FRAMES, Guide, splat_cloud
from worldstereo.memory.geometric import GlobalGeometricMemory
from worldstereo.memory.geometric import _thinning as thinning
from worldstereo.scene import Capture, View
from worldstereo.trajectory import Trajectory
from worldstereo.views.fusion import make_view_arrays
from worldstereo.views.intake import keyframes
from worldstereo.world import World, explore, start

WALL = 2.0  # distance of the wall that `looking_at` looks at


def looking_at(x: float, width: int = 64, height: int = 48, depth: float = WALL) -> View:
    """A camera in front of a plain wall, moved sideways; the picture depends on the place alone."""
    c2w = torch.eye(4)
    c2w[0, 3] = x
    K = torch.tensor([[60.0, 0, width / 2], [0, 60.0, height / 2], [0, 0, 1.0]])
    camera = Cameras(K, c2w, width, height)
    place = camera.unproject(camera.pixel_grid(), torch.full((width * height,), depth))
    waves = torch.stack([0.5 + 0.4 * torch.sin((7 + k) * place[:, 0] + k) for k in range(3)])
    return View.of(waves.reshape(3, height, width), torch.full((1, height, width), depth), camera)


# ---- memory ------------------------------------------------------------------------------------


def test_values_on_disk_have_the_same_bits_and_take_no_memory():
    given = [torch.randn(300, 301), torch.rand(7, 5) < 0.5, torch.zeros(0, 3), torch.arange(9)]
    moved = resident.on_disk(given)
    assert all(torch.equal(a, b) for a, b in zip(given, moved, strict=True))
    assert all(a.dtype == b.dtype for a, b in zip(given, moved, strict=True))
    assert resident.held(moved)[0] == 0
    assert resident.held(moved)[1] >= sum(tensor.nbytes for tensor in given)
    assert resident.on_disk(moved)[0] is moved[0]
    resident.release(moved)
    assert torch.equal(given[0], moved[0])


def test_arrays_on_disk_can_be_written():
    array = np.random.default_rng(0).random((200, 201))
    moved, few = resident.arrays_on_disk([array, np.arange(5)])
    assert resident.is_array_on_disk(moved) and not resident.is_array_on_disk(array)
    assert np.array_equal(moved, array) and np.array_equal(few, np.arange(5))
    moved[3, 4] = 7
    resident.release_arrays([moved])
    assert moved[3, 4] == 7


@pytest.mark.parametrize("fault", ["off", "/nowhere/at/all"])
def test_without_a_disk_values_stay_in_memory(monkeypatch, fault):
    monkeypatch.setenv("WORLDSTEREO_SPILL", fault)
    given = [torch.randn(300, 301)]
    assert resident.on_disk(given)[0] is given[0]


def test_a_full_disk_is_no_error(monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resident.os, "pwrite", full)
    given = [torch.randn(300, 301)]
    assert resident.on_disk(given)[0] is given[0]


def test_freed_memory_goes_back_to_the_system():
    if resident.resident_bytes() == 0:
        pytest.skip("this system does not say what is resident")
    kept, before = [], resident.resident_bytes()
    for _ in range(60):
        large = torch.ones(500_000)
        kept.append(large[:4].clone())  # small pieces pin the heap
    del large
    resident.trim()
    assert resident.resident_bytes() - before < 30e6


class _Owner:
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of earlier tests
def test_a_cache_holds_bytes_and_forgets_who_is_gone():
    cache, a, b = ByteCache(100), _Owner(), _Owner()
    cache.put(a, 1, "one", 60)
    cache.put(b, 1, "two", 30)
    assert cache.get(a, 1) == "one" and cache.nbytes == 90
    cache.put(b, 2, "three", 40)  # b's first was used longest ago
    assert cache.get(b, 1) is None and cache.nbytes == 100
    del a
    gc.collect()
    assert cache.nbytes == 40 and cache.bytes_of(b) == 40
    cache.put(b, 3, "larger than all", 1000)
    assert cache.get(b, 3) == "larger than all" and cache.nbytes == 1000


def test_guides_share_one_limit(monkeypatch):
    world = World(WarpGenerator())
    start(world, Capture("wall", "rgbd", (looking_at(0.0), looking_at(0.1))), register=False)
    path = Trajectory.preset("truck", world.scene.views[0].cameras, distance=2.0, frames=5)
    FRAMES.clear()
    guides = [Guide(world.scene, path) for _ in range(2)]
    one = guides[0][0].nbytes
    monkeypatch.setattr(FRAMES, "limit", 3 * one)
    first = [frame.color.clone() for frame in guides[0]]
    for _ in guides[1]:
        assert FRAMES.nbytes <= 3 * one
    assert guides[0][4] is guides[0][4]
    assert all(torch.equal(frame.color, c) for frame, c in zip(guides[0], first, strict=True))
    del guides
    gc.collect()
    assert FRAMES.nbytes == 0


def test_a_working_view_on_disk_is_the_same_view():
    view = looking_at(0.3, 320, 240)
    here, there = make_view_arrays(view), make_view_arrays(view)
    there.spill()
    there.let_go()
    for name in (
        "color",
        "depth",
        "disparity",
        "confidence",
        "slope_x",
        "slope_y",
        "edge_distance",
    ):
        assert np.array_equal(getattr(here, name), getattr(there, name)), name
    assert np.array_equal(here.level(1).color, there.level(1).color)
    with pytest.raises(AttributeError):
        _ = here.no_such_thing


def test_a_resting_world_is_the_same_world():
    world = World(WarpGenerator())
    start(world, Capture("wall", "rgbd", (looking_at(0.0, 320, 240), looking_at(0.2, 320, 240))))
    path = Trajectory.preset("truck", world.scene.views[0].cameras, distance=2.0, frames=2)
    first = explore(world, path)
    before, scene = world.nbytes, world.scene
    points = scene.cloud.points.clone()
    assert world.rest()
    assert world.scene is scene and world.nbytes < before / 4
    assert torch.equal(scene.cloud.points, points)
    again = explore(world, path)
    assert world.undo() and world.undo()
    assert len(world.scene.clips) == 0
    repeated = explore(world, path)
    assert torch.equal(repeated.color_u8, first.color_u8)
    assert again.color_u8.shape == first.color_u8.shape
    with world.step("wait"):
        assert not world.rest()


def test_pictures_leave_memory_as_soon_as_they_are_remembered():
    """While 12 views of 1.8 MB are remembered, less than a third of them is mapped into memory."""
    if resident.folder() is None or "RssFile" not in Path("/proc/self/status").read_text():
        pytest.skip("this system does not say how many pages of files are in memory")
    mapped: list[int] = []

    def on_step(step: int, total: int, message: str) -> None:
        found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if message.startswith("Remembering") and found:
            mapped.append(int(found[1]))

    views = tuple(looking_at(0.02 * i, 500, 400) for i in range(12))
    for _ in range(2):  # the first loads what is loaded once
        mapped.clear()
        capture = Capture("wall", "rgbd", views)
        start(World(WarpGenerator()), capture, register=False, on_step=on_step)
    assert len(mapped) == 12 and mapped[-1] - mapped[0] < 12 * 1800 / 3


@pytest.mark.parametrize("drawn", [False, True], ids=["grown", "drawn"])
def test_the_bytes_of_a_world_are_those_of_the_process(drawn: bool):
    """Also of one whose given and generated points were drawn apart, for which both are copied."""
    if resident.resident_bytes() == 0 or resident.folder() is None:
        pytest.skip("this system does not say what is resident")
    path = Trajectory(turned_cameras(2, 60, 80))
    worlds = []

    def grown() -> World:
        world = World(WarpGenerator())
        with world.step("grow") as draft:
            points = torch.rand(400_000, 3, generator=torch.Generator().manual_seed(1))
            draft.geometry.update(points, torch.eye(4), merge_threshold=1e-6, radii=points[:, 0])
        if drawn:
            with world.step("invent") as draft:
                points = torch.rand(400_000, 3, generator=torch.Generator().manual_seed(2))
                draft.geometry.update(points, torch.eye(4), merge_threshold=1e-6, source=0)
                draft.views.append(replace(looking_at(0.0), step=1))
            for _ in range(3):
                Guide(world.scene, path)[0]
            assert set(world.scene.cloud.step.tolist()) == {0, 1}
        return world

    worlds.append(grown())  # compiles, fills what is kept once
    gc.collect()
    resident.trim()
    before = resident.resident_bytes()
    worlds.append(grown())
    gc.collect()
    resident.trim()
    taken = resident.resident_bytes() - before
    assert abs(worlds[-1].nbytes - taken) < 0.1 * taken + 3e6, (worlds[-1].nbytes, taken)


# ---- a cloud that keeps the whole place --------------------------------------------------------


def test_thinning_keeps_every_region_at_its_own_detail():
    g = np.random.default_rng(0)
    points = np.zeros((40_000, 3), np.float32)
    points[:, :2] = g.uniform(0, 1, (len(points), 2))
    points[:30_000, 0] += 2.0  # crowded: three quarters of the points
    width = np.where(points[:, 0] > 1, 0.01, 0.02).astype(np.float32)
    kept, stretch = thinning.thinned(points, width, np.ones(len(points)), 10_000)
    assert kept.sum() <= 10_000 and stretch >= 1
    for low in (0, 2):  # whole regions stay: every cell of four sample widths still has a point
        mine = points[kept & (points[:, 0] >= low) & (points[:, 0] <= low + 1)]
        cells = {tuple(c) for c in np.floor((mine[:, :2] - [low, 0]) / 0.1).astype(int).tolist()}
        assert len(cells) == 100
    fine, coarse = (kept[points[:, 0] > 1].sum(), kept[points[:, 0] <= 1].sum())
    assert 2 < fine / coarse < 6  # half the width: about four times the points


def test_a_coarse_point_goes_where_finer_ones_are():
    fine = np.stack(np.meshgrid(np.arange(20) * 0.01, np.arange(20) * 0.01, [0.0]), -1)
    fine = fine.reshape(-1, 3)
    points = np.concatenate([np.array([[0.1, 0.1, 0.0]]), fine]).astype(np.float32)
    width = np.array([0.1] + [0.01] * len(fine), np.float32)
    kept, _ = thinning.thinned(points, width, np.ones(len(points)), len(fine))
    assert not kept[0] and kept.sum() > 200


def test_what_went_has_a_neighbour_within_its_stretched_width_and_what_stayed_has_none():
    g = np.random.default_rng(4)
    points = g.uniform(0, 1, (6007, 3)).astype(np.float32)
    points[:, 2] = points[:, 0] * 0.7  # a surface that is no plane of the grid
    width = np.exp(g.uniform(np.log(0.005), np.log(0.1), len(points))).astype(np.float32)
    weight = g.random(len(points))
    kept, stretch = thinning.thinned(points, width, weight, 1003)
    assert 800 < kept.sum() <= 1003 and stretch > 1.1
    away = np.linalg.norm(points[kept].astype(np.float64)[:, None] - points[None], axis=2)
    reach = stretch * np.maximum(width, np.quantile(width, 0.01))
    near = (away < reach[None] * 1.0001).sum(axis=0)
    assert (near[~kept] >= 1).all()
    finest = np.quantile(width, 0.01)
    level = np.floor(np.log(np.maximum(width, finest) / finest) / np.log(2**0.5))[kept]
    least = np.minimum(reach[kept][:, None], reach[kept][None])
    crowded = (away[:, kept] < 0.999 * least) & (level[:, None] == level[None])
    assert crowded.sum() == kept.sum()  # each is near itself alone


def test_views_that_saw_the_same_leave_as_many_points_as_have_room():
    """Thirty samples of one wall, each dense by itself: the wall stays closed, and dense."""
    g = np.random.default_rng(1)
    points = np.pad(g.uniform(0, 1, (30 * 1500, 2)), ((0, 0), (0, 1)))
    width = np.full(len(points), 0.03, np.float32)
    target = 20_000
    kept, stretch = thinning.thinned(points.astype(np.float32), width, np.ones(len(points)), target)
    assert 0.9 * target < kept.sum() <= target and stretch == 1.0
    pixels = np.zeros((40, 40), bool)
    x, y = (points[kept][:, :2].T * 40).astype(int)
    inside = (x >= 0) & (x < 40) & (y >= 0) & (y < 40)
    pixels[x[inside], y[inside]] = True
    assert pixels.mean() > 0.99


def corridor_depth(camera: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """What is seen inside a box of 2 x 2.4 x 24 m: each ray ends at the nearest wall ahead.

    Depth (1, H, W), and half the width of a sample on the wall (H * W,).
    """
    ones = torch.ones(camera.width * camera.height)
    eye = camera.position.double()
    rays = camera.unproject(camera.pixel_grid(), ones).double() - eye  # a step of depth 1
    half = torch.tensor([1.0, 1.2, 12.0], dtype=torch.float64)
    ahead = (half * rays.sign() - eye) / torch.where(rays == 0, 1e-12, rays)
    depth, wall = ahead.min(dim=1)
    facing = rays.gather(1, wall[:, None])[:, 0].abs() / rays.norm(dim=1)
    width = depth / float(camera.K[0, 0]) / facing.clamp(min=0.25)
    return depth.reshape(1, camera.height, camera.width).float(), (0.5 * width).float()


def test_a_walk_through_a_corridor_stays_covered_to_its_end():
    """24 m of known walls with far fewer points than they deserve: every view is still seen."""
    K = torch.tensor([[50.0, 0, 32], [0, 50.0, 24], [0, 0, 1]])
    world = World(WarpGenerator(), max_points=24_007)
    forgetful = GlobalGeometricMemory(max_points=24_007)
    cameras = []
    for i, z in enumerate(np.linspace(-11, 11, 56)):
        eye = torch.tensor([0.0, 0.0, float(z)])
        to = torch.tensor([(1.0, 0.0, 0.2), (0.2, 0.1, 1.0), (-1.0, 0.0, 0.2)][i % 3])
        cameras.append(Cameras(K, look_at(eye, eye + to, torch.tensor([0.0, -1.0, 0.0])), 64, 48))
    with world.step("walk") as draft:
        for camera in cameras:
            depth, radii = corridor_depth(camera)
            points = camera.unproject(camera.pixel_grid(), depth.flatten())
            for memory in (draft.geometry, forgetful):
                memory.update(points, camera.c2w, merge_threshold=0.005, radii=radii)
    scene = world.scene
    assert len(scene.cloud) <= 24_007 and scene.stretch > 1.5
    covered, right, before = [], [], []
    for camera in cameras:
        truth, _ = corridor_depth(camera)
        shown = splat_cloud(scene, camera)
        covered.append(float(shown.mask.mean()))
        right.append(float(((shown.depth - truth).abs() < 0.1 * truth).float().mean()))
        before.append(float(forgetful.render(camera).mask.mean()))
    assert min(covered) > 0.95 and np.mean(right) > 0.85, (min(covered), np.mean(right))
    assert min(before) < 0.1  # the contract of the memory by itself: the oldest points go


def test_a_cloud_that_its_sample_says_wrong_is_thinned_to_the_target_and_hardly_below():
    """Half of it is twice as dense; which half the sample's large cells hold is chance."""
    dice = np.random.default_rng(5)
    flat = dice.random((240_000, 2)) * [4, 1]
    flat[::3] *= [0.25, 1.0]  # a quarter of the area holds half of the points
    points = np.column_stack([flat, np.zeros(len(flat))]).astype(np.float32)
    width = np.full(len(points), 0.004)
    for target in (40_000, 120_000):
        kept, _ = thinning.thinned(points, width, np.ones(len(points)), target)
        assert 0.96 * target <= kept.sum() <= target


def test_a_large_cloud_of_many_details_is_thinned_without_a_gap():
    """Above 200,000 points the factor comes from a sample; the oracle is a tree of scipy."""
    dice = np.random.default_rng(7)
    points = dice.uniform(-2, 2, (211_000, 3)).astype(np.float32)
    points[:, 2] = 0.3 * np.sin(3 * points[:, 0])
    width = (0.004 * 40 ** ((points[:, 1] + 2) / 4)).astype(np.float32)
    kept, stretch = thinning.thinned(points, width, dice.random(len(points)), 20_011)
    assert stretch > 1 and 0.9 * 20_011 < kept.sum() <= 20_011
    finest = np.quantile(width[::2], 0.01)
    away, _ = KDTree(points[kept].astype(np.float64)).query(points[~kept].astype(np.float64))
    assert (away < stretch * np.maximum(width[~kept], finest) * 1.0001).all()


def test_of_two_samples_of_one_place_the_better_observed_stays():
    grid = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0), [0.0]), -1).reshape(-1, 3)
    points = np.concatenate([grid, grid + [0.01, 0.02, 0.0]]).astype(np.float32)
    weight = np.concatenate([np.ones(len(grid)), np.full(len(grid), 5.0)])
    kept, _ = thinning.thinned(points, np.full(len(points), 0.5), weight, len(grid))
    assert kept[len(grid) :].all() and not kept[: len(grid)].any()


@pytest.mark.parametrize("target", [1, 2])
def test_a_cloud_is_thinned_to_as_few_points_as_one_asks_for(target: int):
    points = np.random.default_rng(2).random((307, 3)).astype(np.float32)
    kept, _ = thinning.thinned(points, np.zeros(len(points)), np.ones(len(points)), target)
    assert 1 <= kept.sum() <= target


def test_thinning_without_a_compiler_keeps_the_same(monkeypatch):
    g = np.random.default_rng(3)
    points = g.normal(size=(701, 3)).astype(np.float32)
    width = g.uniform(0.05, 0.4, len(points)).astype(np.float32)
    weight = g.random(len(points))
    fast = thinning.thinned(points, width, weight, 233)
    monkeypatch.setattr(thinning, "has_compiler", lambda: False)
    plain = thinning.thinned(points, width, weight, 233)
    assert np.array_equal(fast[0], plain[0]) and fast[1] == plain[1]


def walk(memory: GlobalGeometricMemory, frames: int) -> list[torch.Tensor]:
    out = []
    for i in range(frames):
        points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(i))
        points = points * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([1.0 * i, 0, 0])
        memory.update(points, torch.eye(4), merge_threshold=1e-6, radii=torch.full((2000,), 0.01))
        out.append(points)
    return out


def test_a_full_cloud_remembers_the_first_room():
    keeps, forgets = (GlobalGeometricMemory(max_points=5003) for _ in range(2))
    keeps.thins = True
    for memory in (keeps, forgets):
        walk(memory, 9)
        assert memory.num_points <= 5003
    here = [((keeps.points[:, 0] >= i) & (keeps.points[:, 0] < i + 1)).sum() for i in range(9)]
    assert min(here) > 150
    assert (forgets.points[:, 0] < 1).sum() == 0  # the contract: the oldest go
    assert keeps.stretch > 1 and forgets.stretch == 1


def test_thinning_is_undone_and_saved(tmp_path):
    memory = GlobalGeometricMemory(max_points=5003)
    memory.thins = True
    walk(memory, 2)
    states = [(memory.snapshot(), memory.points.clone(), memory.stretch)]
    for frames in (5, 9, 12):
        walk(memory, frames)
        states.append((memory.snapshot(), memory.points.clone(), memory.stretch))
    for which in (0, 3, 1, 2, 0):
        snapshot, points, stretch = states[which]
        memory.restore(snapshot)
        assert torch.equal(memory.points, points) and memory.stretch == stretch
    memory.restore(states[3][0])
    memory.save(tmp_path / "memory.safetensors")
    other = GlobalGeometricMemory(max_points=5003)
    other.load(tmp_path / "memory.safetensors")
    assert other.stretch == memory.stretch > 1 and torch.equal(other.points, memory.points)


# ---- keyframes ---------------------------------------------------------------------------------


def test_small_captures_keep_every_view():
    views = [looking_at(0.0) for _ in range(7)]
    assert keyframes(views) == list(range(7))
    assert keyframes([*views, looking_at(0.0)], plenty=7) != list(range(8))


def test_keyframes_show_what_all_views_show():
    steps = np.linspace(0, 6, 121)  # a view spans 2.1 of the wall: each shows 0.05 more
    views = [looking_at(float(x)) for x in steps]
    kept = keyframes(views, plenty=5)
    assert 6 <= len(kept) <= 40 and kept[0] == 0 and kept[-1] == 120
    half = WALL * 32 / 60
    places = np.linspace(-half, 6 + half, 1001)
    seen = (np.abs(places[:, None] - steps[kept]) <= half).sum(axis=1)
    assert (seen > 0).mean() > 0.99
    inner = (places > 1) & (places < 5)
    assert np.median(seen[inner]) >= 3


def test_a_closer_look_is_a_keyframe():
    views = [looking_at(0.0) for _ in range(12)]
    views[6] = looking_at(0.0, depth=WALL / 8)
    kept = keyframes(views, plenty=3)
    assert 6 in kept and len(kept) < 8


def test_photos_without_depth_all_stay():
    views = [looking_at(0.0, depth=0.0) for _ in range(9)]
    assert keyframes(views, plenty=3) == list(range(9))


def test_a_large_capture_says_what_it_kept(monkeypatch):
    monkeypatch.setattr("worldstereo.views.intake._keyframes.PLENTY", 4)
    world = World(WarpGenerator())
    views = tuple(looking_at(0.02 * i) for i in range(13))
    scene = start(world, Capture("wall", "rgbd", views), register=False)
    assert 4 <= len(scene.views) < 13
    assert scene.notices[-1].startswith(f"13 views: {len(scene.views)} keyframes")
