"""Kernels on views against plain torch, closed forms and slow loops."""

import gc
import weakref

import numpy as np
import pytest
import torch

from tests import fusion_twin as twin
from tests.conftest import room, turned_cameras
from worldstereo.cameras import Cameras, look_at
from worldstereo.scene import View
from worldstereo.views import fusion
from worldstereo.views.fusion import (
    SourceCameras,
    blend,
    harmonic_fill,
    kernels,
    make_view_arrays,
    pose_of,
    relative,
)
from worldstereo.views.fusion._view_arrays import ViewArraysCache

W, H = 83, 61  # primes: a swapped axis cannot pass


def views(n: int = 3, width: int = W, height: int = H) -> list[View]:
    cameras = turned_cameras(n).scaled(width, height)
    color, depth = room(cameras)
    return [View.of(color[i], depth[i], cameras[i], frame=i) for i in range(n)]


def test_gradients_of_a_plane_are_exact():
    """Disparity is linear in the image on a plane; the gradients are its two slopes."""
    y, x = np.mgrid[:H, :W].astype(np.float32)
    d = (0.5 + 0.001 * x - 0.002 * y).astype(np.float32)
    gx, gy = np.empty_like(d), np.empty_like(d)
    edge = np.empty(d.shape, np.uint8)
    kernels.disparity_gradients(d, 0.03, 0, H, gx, gy, edge)
    np.testing.assert_allclose(gx, 0.001, atol=2e-6)
    np.testing.assert_allclose(gy, -0.002, atol=2e-6)
    assert not edge.any()


def test_a_step_is_an_edge_on_both_sides():
    d = np.full((H, W), 0.5, np.float32)
    d[:, 40:] = 0.25
    gx, gy = np.empty_like(d), np.empty_like(d)
    edge = np.empty(d.shape, np.uint8)
    kernels.disparity_gradients(d, 0.03, 0, H, gx, gy, edge)
    assert set(np.nonzero(edge.any(0))[0]) == {39, 40}
    np.testing.assert_array_equal(gx, 0)


def test_depth_edges_are_those_of_the_gradients():
    generator = np.random.default_rng(0)
    for shape in ((H, W), (1, 1), (2, 1), (1, 5)):
        d = (0.5 * generator.integers(0, 4, shape)).astype(np.float32)
        d[:, ::3] *= np.float32(1.02)  # a step below the cut
        gx, gy = np.empty_like(d), np.empty_like(d)
        expected, edge = np.empty(d.shape, np.uint8), np.empty(d.shape, np.uint8)
        kernels.disparity_gradients(d, 0.03, 0, len(d), gx, gy, expected)
        kernels.depth_edges(d, 0.03, 0, len(d), edge)
        np.testing.assert_array_equal(edge, expected)


def test_functions_that_run_on_vectors_are_those_of_the_library():
    x = np.linspace(0, 16, 501)
    np.testing.assert_allclose([kernels.exponential(v) for v in x], np.exp(-x), rtol=3e-8)
    single = np.linspace(0, 1, 501, dtype=np.float32)
    got = [blend.exponential(v) for v in single]
    np.testing.assert_allclose(got, np.exp(-4 * single.astype(float)), rtol=2e-6)
    angle = np.linspace(0, np.pi, 501)
    sine, cosine = (3 * np.stack([np.sin(angle), np.cos(angle)])).astype(np.float32)
    got = [blend.angle_of(a, b) for a, b in zip(sine, cosine, strict=True)]
    np.testing.assert_allclose(got, angle, atol=5e-7)


def test_minima_of_views_are_stacked_once_and_go_with_the_views():
    """One copy for the views of a path in their order; another order has its own."""
    works = [make_view_arrays(v) for v in views(2)]
    flat, begins, sizes = fusion.stacked_minima(works)
    for work, begin, size in zip(works, begins, sizes, strict=True):
        part = flat[begin : begin + size.prod()].reshape(size)
        np.testing.assert_array_equal(part, work.min_depth_3x3)
    moved = [work.moved(works[0].pose) for work in works]  # depth is the same under any pose
    assert fusion.stacked_minima(moved)[0] is flat
    assert not np.array_equal(fusion.stacked_minima(works[::-1])[0], flat)
    held = weakref.ref(flat)
    del works, work, moved, flat, part
    gc.collect()
    assert held() is None


def test_a_warped_view_shows_the_other_cameras_depth():
    """Surfels of one view drawn at another camera give the depth that camera has in closed form."""
    first, second = views(2)
    warped = fusion.warp(make_view_arrays(first), pose_of(second.cameras))
    truth = second.depth[0].numpy()
    hit = warped < kernels.EMPTY
    error = np.abs(warped - truth)[hit] / truth[hit]
    assert hit.mean() > 0.6
    assert np.quantile(error, 0.95) < 2e-3


def test_surfel_warp_equals_its_twin():
    first, second = (make_view_arrays(v) for v in views(2))
    out = fusion.warp(first, second.pose)
    other = twin.surfel_warp(
        *(torch.from_numpy(a) for a in (first.disparity, first.slope_x, first.slope_y)),
        torch.from_numpy(first.pose.K), torch.from_numpy(second.pose.K),
        torch.from_numpy(relative(first.pose, second.pose)), second.pose.shape,
        half=fusion.FOOTPRINT, max_stretch=fusion.STRETCH, min_area=fusion.EDGE_ON,
        near=fusion.NEAR,
    ).numpy()  # fmt: skip
    same = (out < kernels.EMPTY) == (other < kernels.EMPTY)
    assert same.mean() > 0.999  # a patch's rim may round either way
    both = same & (out < kernels.EMPTY)
    np.testing.assert_allclose(out[both], other[both], rtol=1e-4)


@pytest.mark.parametrize("free", [0.0, 0.04])
@pytest.mark.parametrize("trust", [1.0, 0.3])
def test_fused_depth_equals_its_twin(free: float, trust: float):
    """With one view lying about its depth, so that hypotheses compete; sensors, and photos."""
    works = [make_view_arrays(v) for v in views(4)]
    works = [w.with_depth(w.disparity, np.full((H, W), trust, np.float32)) for w in works]
    lying = works[1].disparity * np.where(np.arange(W) % 20 < 6, 1.5, 1).astype(np.float32)
    works[1] = works[1].with_depth(lying, works[1].confidence)
    target = works[2].pose
    served = [works[0], works[1], works[3]]
    out = fusion.fused_depth(served, target, free=free)
    weight = np.array([1 / (0.05 / 1.9 + fusion.pose_distance(v.pose, target)) for v in served])
    weight = torch.from_numpy((weight / weight.max()).astype(np.float32))
    other = twin.fuse_depth(
        torch.stack([torch.from_numpy(fusion.warp(v, target)) for v in served]), weight, weight,
        [torch.from_numpy(v.min_depth_3x3) for v in served],
        torch.from_numpy(np.stack([v.pose.K for v in served])),
        torch.from_numpy(np.stack([relative(target, v.pose) for v in served])),
        torch.from_numpy(target.K), tau=fusion.AGREE, free=free, near=fusion.NEAR,
        steep=torch.full((3,), 0.0 if trust > 0.5 else fusion.STEEP),
        least=fusion.MIN_SUPPORT_SHARE,
    ).numpy()  # fmt: skip
    close = np.abs(out - other) <= 1e-4 * np.maximum(out, other)
    assert (out > 0).mean() > 0.7
    assert close.mean() > 0.998


def test_the_free_space_test_refuses_a_wall_others_look_through():
    """A false surface in front, claimed by the nearest view, is seen through by two others."""
    works = [make_view_arrays(v) for v in views(5)]
    target, truth = works[2].pose, works[2].depth
    disparity = works[1].disparity.copy()
    disparity[15:45, 25:60] *= 1.6
    works[1] = works[1].with_depth(disparity, works[1].confidence)
    served = [works[0], works[1], works[3], works[4]]
    wrong = {}
    for free in (0.0, fusion.FREE):
        out = fusion.fused_depth(served, target, free=free)
        wrong[free] = float((np.abs(out - truth) > 0.1 * truth).mean())
    assert wrong[0.0] > 0.1
    assert wrong[fusion.FREE] < 0.3 * wrong[0.0]


@pytest.mark.parametrize(("trust", "expected"), [(0.3, 3.0), (1.0, 1.2)])
def test_a_guess_seen_from_the_side_hides_nothing(trust: float, expected: float):
    """Two views beside the target show a wall at 3; one from 60 degrees claims a wall at 1.2.

    A sensor that measured it is believed. A photo's guess is not; alone, it is what there is.
    """
    K = torch.tensor([[66.0, 0.0, 41.5], [0.0, 66.0, 30.5], [0.0, 0.0, 1.0]])
    up, middle = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 1.2])

    def wall_from(eye: list[float], at: torch.Tensor, z: float) -> fusion.ViewArrays:
        """A view of the plane of all points that lie at `z`."""
        camera = Cameras(K, look_at(torch.tensor(eye), at, up), W, H)
        rays = torch.cat([camera.pixel_grid(), torch.ones(H * W, 1)], 1) @ torch.linalg.inv(K).mT
        depth = (z - eye[2]) / (rays @ camera.c2w[2, :3])  # per unit of depth a ray rises so much
        view = View.of(torch.rand(3, H, W), depth.reshape(1, H, W), camera)
        work = make_view_arrays(view)
        return work.with_depth(work.disparity, np.full((H, W), trust, np.float32))

    beside = [wall_from([x, 0.0, 0.0], torch.tensor([x, 0.0, 9.0]), 3.0) for x in (-0.1, 0.1)]
    side = wall_from([-1.2 * 3**0.5, 0.0, 0.0], middle, 1.2)
    target = pose_of(Cameras(K, look_at(torch.zeros(3), middle, up), W, H))
    # Without the free-space test: what lies outside a photo's picture it cannot look through.
    out = fusion.fused_depth([*beside, side], target, free=0)
    np.testing.assert_allclose(out[25:36, 35:48], expected, rtol=1e-3)
    alone = fusion.fused_depth([side], target, free=0)
    np.testing.assert_allclose(alone[25:36, 35:48], 1.2, rtol=1e-3)


def test_attention_to_a_view_equals_its_twin():
    target, source = (make_view_arrays(v) for v in views(2))
    fetched = SourceCameras([source], target.pose)
    limits = fetched.limits(0)
    agree, feather, near, *_ = limits
    color = np.zeros((H, W, 3), np.float32)
    agreement, angle = np.zeros((H, W), np.float32), np.zeros((H, W), np.float32)
    arguments = fetched.arguments(0)
    blend.fetch(target.depth, target.pose.K, *arguments, *limits, 0, H, color, agreement, angle)
    weight = np.zeros((H, W), np.float32)
    blend.weigh(target.depth, target.pose.K, *arguments, *limits, weight)
    other = twin.attend(
        torch.from_numpy(target.depth), torch.from_numpy(target.pose.K),
        *map(torch.from_numpy, (source.color, source.depth, source.edge_distance,
                                 source.confidence)),
        torch.from_numpy(source.pose.K), torch.from_numpy(fetched.T[0]),
        agree=agree, feather=feather, near=near,
    )  # fmt: skip
    assert float((other.confirms.numpy() == (agreement > 0)).mean()) > 0.999
    both = other.confirms.numpy() & (agreement > 0)
    np.testing.assert_allclose(agreement[both], other.agreement.numpy()[both], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(color[both], other.color.numpy()[both], atol=0.5)
    np.testing.assert_allclose(weight[both], other.weight.numpy()[both], rtol=5e-3, atol=5e-5)


@pytest.mark.parametrize("steep", [0.0, fusion.STEEP])
def test_a_row_attends_as_its_pixels_do(steep: float):
    """The blend asks rows, the explanation of a pixel asks it alone: the same weights."""
    target, source = (make_view_arrays(v) for v in views(2, width=283))  # more than one span
    depth = target.depth.copy()
    depth[:, 130:260] = 0  # a whole span without depth, and parts of others
    fetched = SourceCameras([source], target.pose, slip=1.0)
    agree, feather, near, _, slip = fetched.limits(0)
    arguments = (*fetched.arguments(0), agree, feather, near, steep, slip)
    weight = np.full(depth.shape, np.nan, np.float32)
    blend.weigh(depth, target.pose.K, *arguments, weight)
    expected = np.zeros_like(weight)
    K = target.pose.K
    for y, x in np.argwhere(depth > 0):
        Z = float(depth[y, x])
        said = blend.probe((x - K[2]) / K[0] * Z, (y - K[3]) / K[1] * Z, Z, *arguments)
        expected[y, x] = np.prod(said[3:])
    assert 0.3 < (expected > 0).mean() < 0.9
    np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)


def test_softening_is_a_gaussian_over_what_is_known():
    """All known: the Gaussian of OpenCV. An unknown neighbour is the known pixel beside it."""
    import cv2

    color = np.random.default_rng(1).random((H, W, 3), dtype=np.float32)
    share = np.zeros((H, W), np.float32)
    share[::2, 1:] = 0.5
    known = np.ones((H, W), bool)
    out = color.copy()
    blend.soften(color, known, share, 0, H, out)
    soft = cv2.GaussianBlur(color, (3, 3), 1.0)
    expected = color * (1 - share[..., None]) + share[..., None] * soft
    np.testing.assert_allclose(out, expected, atol=1e-6)
    known[:, 40:] = False
    filled = fusion.nearest_fill(color, known)
    out = color.copy()
    blend.soften(color, known, share, 0, H, out)
    soft = cv2.GaussianBlur(filled, (3, 3), 1.0)
    expected = color * (1 - share[..., None]) + share[..., None] * soft
    np.testing.assert_allclose(out[:, :40], expected[:, :40], atol=1e-6)
    np.testing.assert_array_equal(out[:, 40:], color[:, 40:])


def test_fetched_colours_are_those_of_the_surface():
    """In the room the colour is a function of the point, so a fetch returns the target's own."""
    target, source = views(2)
    work = make_view_arrays(target)
    color, agreement, _ = fusion.fetch(work.depth, work.pose, make_view_arrays(source))
    sure = agreement > 0.5
    assert sure.mean() > 0.3
    error = np.abs(color - target.color.permute(1, 2, 0).numpy())[sure]
    assert np.quantile(error, 0.95) < 0.02


def test_pixels_fetched_one_by_one_are_those_of_the_picture():
    target, source = views(2)
    work, other = make_view_arrays(target), make_view_arrays(source)
    color, agreement, _ = fusion.fetch(work.depth, work.pose, other)
    rows, columns = np.nonzero(work.depth > 0)
    at = np.random.default_rng(3).permutation(len(rows))[:997]
    rows, columns = rows[at], columns[at]
    some = fusion.fetch_pixels(rows, columns, work.depth[rows, columns], work.pose, other)
    assert 0.2 < (some[1] > 0).mean() < 1
    np.testing.assert_allclose(some[0], color[rows, columns], atol=1e-5)
    np.testing.assert_allclose(some[1], agreement[rows, columns], atol=1e-5)


def test_a_scene_seen_from_afar_and_from_close_up_keeps_its_surface():
    """Limits are on a patch's shape: a surface does not vanish with distance."""
    K = torch.tensor([[66.0, 0.0, 41.5], [0.0, 66.0, 30.5], [0.0, 0.0, 1.0]])
    plane = torch.full((1, H, W), 3.0)
    up, ahead = torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 9.0])
    source = Cameras(K, look_at(torch.zeros(3), ahead, up), W, H)
    work = make_view_arrays(View.of(torch.rand(3, H, W), plane, source))
    for distance in (1.0, 21.0):  # a third, and seven times as far
        eye = torch.tensor([0.0, 0.0, 3.0 - distance])
        target = pose_of(Cameras(K, look_at(eye, ahead, up), W, H))
        depth = fusion.fused_depth([work], target)
        inside = depth[28:33, 38:45]
        assert (inside > 0).all()
        np.testing.assert_allclose(inside, distance, rtol=1e-3)


def test_small_gaps_close_on_one_surface_only():
    y, x = np.mgrid[:H, :W].astype(np.float32)
    d = (0.5 + 0.001 * x).astype(np.float32)
    d[:, 50:] = 0.1
    holed = d.copy()
    holed[10, 20], holed[30:60, 49:51] = 0, 0
    out = fusion.fill_gaps(holed, 1, 3)
    np.testing.assert_allclose(out[10, 20], d[10, 20], rtol=1e-4)
    assert (out[32:58, 49:51] == 0).all()


def test_lone_samples_and_islands_are_dropped():
    d = np.zeros((H, W), np.float32)
    d[:, :50] = 0.5
    d[5, 70] = 0.4
    d[40:44, 65:69] = 0.3
    out = fusion.clean_disparity(d)
    assert (out[:, 56:] == 0).all()
    np.testing.assert_allclose(out[2:-2, 2:46], 0.5)


def test_a_harmonic_fill_is_harmonic():
    """Boundary values of a linear function are continued linearly; known pixels stay."""
    y, x = np.mgrid[:H, :W].astype(np.float32)
    values = (0.3 * x - 0.2 * y).astype(np.float32)
    known = np.ones((H, W), bool)
    known[15:45, 20:60] = False
    out = harmonic_fill(np.where(known, values, 0).astype(np.float32), known, sweeps=200)
    np.testing.assert_array_equal(out[known], values[known])
    np.testing.assert_allclose(out, values, atol=0.05)


def test_a_harmonic_fill_listens_to_trusted_pixels():
    values = np.zeros((H, W), np.float32)
    values[:, :30], values[:, 50:] = 1.0, 3.0
    known = np.ones((H, W), bool)
    known[:, 30:50] = False
    trust = np.ones((H, W), np.float32)
    trust[:, :30] = 1e-3
    plain, biased = harmonic_fill(values, known), harmonic_fill(values, known, trust=trust)
    assert 1.5 < plain[30, 40] < 2.5
    assert biased[30, 40] > 2.8


def test_background_trust_is_on_the_far_side():
    d = np.full((H, W), 0.5, np.float32)
    d[:, 40:] = 0.1
    trust = fusion.background_trust(d, np.ones((H, W), bool))
    np.testing.assert_allclose(trust[:, 41:], 1)
    assert trust[30, 35] == pytest.approx(1e-3)
    assert trust[30, 5] == pytest.approx(1)  # nothing farther within 20 pixels


def test_the_cache_forgets_what_was_used_longest_ago():
    some = views(3)
    one = make_view_arrays(some[0])
    cache = ViewArraysCache(limit=int(2.5 * one.nbytes))
    first = cache.get(some[0], 1.0)
    assert cache.get(some[0], 1.0) is first
    cache.get(some[1], 1.0)
    cache.get(some[0], 1.0)
    cache.get(some[2], 1.0)
    assert cache.get(some[0], 1.0) is first
    assert cache.get(some[0], 2.0) is not first


def test_a_pyramid_averages_the_front_surface():
    """Colours of a smaller level come from the surface in front, not from what lies behind it."""
    depth = torch.full((1, H, W), 2.0)
    depth[0, :, 41:] = 8.0
    color = torch.zeros(3, H, W)
    color[:, :, 41:] = 1.0
    camera = turned_cameras(1)[0].scaled(W, H)
    level = make_view_arrays(View.of(color, depth, camera)).level(1)
    assert level.color.shape == (H // 2, W // 2, 3)
    assert int(level.color[10, 20].max()) == 0  # columns 40 and 41: half behind
    assert int(level.color[10, 21].min()) == 255
    np.testing.assert_allclose(level.depth[10, 18:23], [2, 2, 2, 8, 8])


def test_weights_change_no_faster_than_cameras_move():
    """A tenth for each hundredth of a radian at most, falling all the way and never to nothing."""
    angle = np.linspace(0, np.pi, 400)
    weight = np.array([blend.falloff(a, 0.0) for a in angle])
    slope = np.diff(np.log(weight)) / np.diff(angle)
    assert weight[0] == 1 and slope.max() < 0 and slope.min() > -10
    assert weight[-1] > 1e-6
    guess = np.array([blend.falloff(a, fusion.STEEP) for a in angle])
    assert (guess[1:] < weight[1:])[:60].all()  # of guessed depth only near views are believed


def _beside(work: fusion.ViewArrays, x: float) -> fusion.ViewArrays:
    c2w = work.pose.c2w.copy()
    c2w[:3, 3] += [x, 0, 0]
    return work.moved(fusion.Pose(work.pose.K, c2w, work.pose.width, work.pose.height))


def test_the_nearest_two_views_count_in_full_and_sources_change_gradually():
    """Along a straight path past five views no weight jumps; far views never vanish."""
    work = make_view_arrays(views(1)[0])
    row = [_beside(work, x) for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    steps = np.linspace(-2, 2, 401)
    share = np.stack([fusion.standing(row, _beside(work, float(x)).pose) for x in steps])
    assert (np.sort(share, 1)[:, -2:] == 1).all()
    assert (share >= fusion.MIN_STANDING).all()
    assert np.abs(np.diff(share, axis=0)).max() < 0.1  # a step is a hundredth of the spacing
    np.testing.assert_allclose(share, share[::-1, ::-1], rtol=1e-9)
    assert (fusion.standing(row[:2], work.pose) == 1).all()


def test_depth_that_moves_nothing_does_not_part_views():
    """From the same place a sample 8 % too far still shows the point; from the side it does not."""
    work = make_view_arrays(views(1)[0])
    off = work.with_depth(work.disparity / np.float32(1.08), work.confidence)
    for x, seen in ((0.0, True), (1.0, False)):
        source = _beside(off, x)
        fetched = SourceCameras([source], work.pose, slip=fusion.SLIP)
        weight = np.zeros((H, W), np.float32)
        blend.weigh(work.depth, work.pose.K, *fetched.arguments(0), *fetched.limits(0), weight)
        inner = weight[4:-4, 4:-4][work.depth[4:-4, 4:-4] > 0]
        assert ((inner > 0).mean() > 0.9) == seen


def test_the_noise_of_a_far_view_does_not_stand_in_front():
    """A far view puts the wall 5 % nearer: the near ones keep it; a real step of 20 % stays."""
    work = make_view_arrays(views(1)[0])
    for factor, moved in ((1.05, False), (1.2, True)):
        far = work.with_depth(work.disparity * np.float32(factor), work.confidence)
        row = [_beside(work, x) for x in (-0.001, 0.001)] + [_beside(far, 0.2)]
        out = fusion.fused_depth(row, work.pose, free=0, nearest=True)
        inner = (slice(10, -10), slice(10, -20))
        nearer = (out[inner] < work.depth[inner] / 1.03).mean()
        assert (nearer > 0.5) == moved
