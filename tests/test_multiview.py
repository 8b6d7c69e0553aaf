"""Depth from several pictures of a slanted, textured wall whose depth is known in closed form."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from worldstereo.cameras import Cameras, look_at
from worldstereo.views import multiview
from worldstereo.views.multiview import MatchOptions, MatchView
from worldstereo.views.multiview._photos import nearest_points
from worldstereo.views.multiview.arrays import asking_best, gradients, job_of, judge

NORMAL, OFFSET = torch.tensor([0.25, -0.1, 1.0]), 3.0  # the wall: NORMAL . x = OFFSET
FULL = MatchOptions(scale=1.0, radius=3, sweeps=3)


def wall(n: int, scale: float = 1.0, width: int = 83, height: int = 61) -> list[MatchView]:
    """Views along an arc with exact depth; colours are a function of the point on the wall."""
    K = torch.tensor([[90.0, 0, 40.3], [0, 88.0, 31.7], [0, 0, 1]])
    views = []
    for i in range(n):
        eye = torch.tensor([0.22 * i - 0.2, 0.05 * (i % 2), 0.03 * i])
        pose = look_at(eye, torch.tensor([0.05, 0.0, 3.0]), torch.tensor([0.05, -1.0, 0.0]))
        camera = Cameras(K, pose, width, height)
        origins, directions = camera.rays()
        along = (OFFSET - origins @ NORMAL) / (directions @ NORMAL)
        points = origins + directions * along[..., None]
        depth = (points - camera.position) @ camera.forward
        color = texture(points)
        moved = pose.clone()
        moved[:3, 3] *= scale
        views.append(
            MatchView(color, Cameras(K, moved, width, height), (depth * scale)[None].contiguous())
        )
    return views


def texture(points: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(2)
    waves = torch.randn(3, 3, 19, generator=g) * torch.linspace(3, 22, 19)
    phase = torch.rand(3, 19, generator=g) * 6.3
    value = torch.stack([torch.sin(points @ waves[c] + phase[c]).mean(-1) for c in range(3)])
    return (0.5 + 0.9 * value).clamp(0, 1)


def blind(view: MatchView) -> MatchView:
    return MatchView(view.color, view.cameras)


def truth(view: MatchView) -> Tensor:
    assert view.depth is not None
    return view.depth


def test_the_cost_of_a_plane_is_the_slow_sum():
    """Against a loop that moves each tap as a 3D point, and bilinear lookups by hand."""
    reference, other = wall(2)
    other = blind(other)
    options = MatchOptions(scale=1.0, radius=2)
    job = job_of(reference, [other], options, 0.0)
    rng = np.random.default_rng(1)
    d = 1 / truth(reference)[0].numpy()
    plane = np.stack([d * 1.02, d * 0.001, -d * 0.002], axis=-1).astype(np.float32)
    cost = np.zeros(d.shape, np.float32)
    judge(job, plane, cost, np.ones(d.shape, dtype=bool), np.zeros(d.shape, np.float32), 0.0)
    color, seen = reference.color.double(), other.color.double()
    grey = torch.tensor([0.3, 0.6, 0.1]).double()

    def bilinear(picture: Tensor, u: float, v: float) -> Tensor:
        x, y = int(u), int(v)
        fx, fy = u - x, v - y
        top = picture[:, y, x] * (1 - fx) + picture[:, y, x + 1] * fx
        low = picture[:, y + 1, x] * (1 - fx) + picture[:, y + 1, x + 1] * fx
        return top * (1 - fy) + low * fy

    def soft(picture: Tensor, x: int, y: int) -> Tensor:
        return picture[:, y - 2 : y + 3, x - 2 : x + 3].mean((1, 2))

    blurred = torch.stack([torch.stack([soft(seen, x, y) for x in range(2, 81)], -1)
                           for y in range(2, 59)], 1)  # fmt: skip
    compared = 0
    for _ in range(40):
        x, y = int(rng.integers(20, 60)), int(rng.integers(15, 45))
        rows = []
        for dy in (-2, 0, 2):
            for dx in (-2, 0, 2):
                pixel = torch.tensor([[x + dx + 0.5, y + dy + 0.5]])
                z = 1 / torch.tensor([plane[y, x, 0] + dx * plane[y, x, 1] + dy * plane[y, x, 2]])
                uv, _ = other.cameras.project(reference.cameras.unproject(pixel, z))
                weight = (-4 * (color[:, y + dy, x + dx] - color[:, y, x]).abs().sum()).exp()
                a = float(grey @ color[:, y + dy, x + dx])
                u, v = float(uv[0, 0]) - 0.5, float(uv[0, 1]) - 0.5
                rows.append((float(weight), a, float(grey @ bilinear(seen, u, v)), u, v))
        w, a, b, us, vs = (np.array(r) for r in zip(*rows, strict=True))
        w = np.where(w < 0.002, 0, w)
        a0, b0 = a - (w * a).sum() / w.sum(), b - (w * b).sum() / w.sum()
        va, vb = (w * a0**2).sum() / w.sum(), (w * b0**2).sum() / w.sum()
        ncc = ((w * a0 * b0).sum() / w.sum() + 2e-5) / np.sqrt((va + 1e-4) * (vb + 1e-4))
        if not (5 < us[4] < 75 and 5 < vs[4] < 53):
            continue
        apart = (bilinear(blurred, us[4] - 2, vs[4] - 2) - soft(color, x, y)).abs().mean()
        expected = 0.6 * (1 - ncc) + 0.4 * min(1.0, float(apart) / 0.12) + 0.1  # one view only
        assert cost[y, x] == pytest.approx(expected, abs=2e-3)
        compared += 1
    assert compared > 15


def test_photos_of_a_slanted_wall():
    """Three photos without depth: nearly all pixels found, to a fraction of a percent."""
    views = wall(3)
    found = multiview.photo_depth([blind(v) for v in views], depth_range=(1.5, 6.0), options=FULL)
    for view, stereo in zip(views, found, strict=True):
        inside = stereo.depth[:, 8:-8, 8:-8]
        known = inside > 0
        error = ((inside - truth(view)[:, 8:-8, 8:-8]).abs() / truth(view)[:, 8:-8, 8:-8])[known]
        assert float(known.float().mean()) > 0.75
        assert float(error.median()) < 0.004
        assert float((error < 0.02).float().mean()) > 0.97
        assert float(stereo.confidence.max()) <= 1 and bool(
            (stereo.confidence[~(stereo.depth > 0)] == 0).all()
        )


def test_scale_changes_nothing():
    def found(scale: float) -> multiview.StereoDepth:
        views = [blind(v) for v in wall(2, scale)]
        reach, pairs = (1.5 * scale, 6 * scale), [(1,), (0,)]
        return multiview.photo_depth(views, depth_range=reach, neighbours=pairs, options=FULL)[0]

    small, large = found(1.0), found(100.0)
    both = (small.depth > 0) & (large.depth > 0)
    assert float((both == (small.depth > 0)).float().mean()) > 0.98
    ratio = large.depth[both] / small.depth[both]
    assert float(((ratio - 100).abs() < 0.5).float().mean()) > 0.98


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_hole_is_filled_from_the_other_views(monkeypatch: pytest.MonkeyPatch, threads: str):
    """A wrong guess is replaced by what two photos see; the same bits on any number of threads."""
    monkeypatch.setenv("WORLDSTEREO_THREADS", threads)
    views = wall(3)
    unknown = torch.zeros(1, 61, 83, dtype=torch.bool)
    unknown[:, 20:44, 30:60] = True
    guess = torch.where(unknown, truth(views[1]) * 1.25, truth(views[1]))
    others = [blind(views[0]), blind(views[2])]
    filled = multiview.fill_unmeasured(views[1], others, guess, unknown, options=FULL)
    assert float(filled.accepted[unknown].float().mean()) > 0.8
    assert not bool(filled.accepted[~unknown].any())
    assert torch.equal(filled.depth[~unknown], guess[~unknown])
    error = ((filled.depth - truth(views[1])).abs() / truth(views[1]))[filled.accepted]
    assert float(error.median()) < 0.01
    assert _first_bits.setdefault("sum", float(filled.depth.double().sum())) == float(
        filled.depth.double().sum()
    )


_first_bits: dict[str, float] = {}


def test_the_warm_up_compiles_what_a_world_needs_and_each_kernel_once():
    """A second signature would be compiled while a first visitor waits."""
    code = """
from worldstereo.warmup import warm_up
from worldstereo.views.fusion import blend, kernels as fusion
from worldstereo.views.multiview import _kernels as stereo
warm_up()
for kernel in (stereo.improve_rows, fusion.fuse_depth, blend.accumulate):
    assert len(kernel.signatures) == 1, kernel
for kernel in (stereo.view_cost, stereo.plane_cost):  # none where the caller came from the disk
    assert len(kernel.signatures) <= 1, kernel
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_view_that_looks_through_forbids():
    """Measured depth behind a hypothesis costs: nothing is put in front of what others see."""
    views = wall(3)
    job = job_of(views[1], [views[0], views[2]], FULL, 0.0)
    free = job_of(views[1], [blind(views[0]), blind(views[2])], FULL, 0.0)
    d = 1 / (0.7 * truth(views[1])[0].numpy())
    plane = np.stack([d, d * 0, d * 0], axis=-1).astype(np.float32)
    active, none = np.ones(d.shape, dtype=bool), np.zeros(d.shape, np.float32)
    costs = [judge(j, plane, none.copy(), active, none, 0.0)[15:45, 30:50] for j in (job, free)]
    assert float(np.median(costs[0] - costs[1])) == pytest.approx(0.6, abs=0.02)


def test_plane_sweep_finds_the_wall():
    views = wall(3)
    stereo = multiview.plane_sweep(
        blind(views[1]), [blind(views[0]), blind(views[2])], near=2.0, far=5.0, planes=48, scale=1.0
    )
    error = ((stereo.depth - truth(views[1])).abs() / truth(views[1]))[:, 8:-8, 8:-8]
    assert float((error < 0.03).float().mean()) > 0.85
    sure = stereo.confidence[:, 8:-8, 8:-8] > stereo.confidence[:, 8:-8, 8:-8].median()
    assert float(error[sure].mean()) <= float(error[~sure].mean())


def test_neighbours_see_the_same_under_a_useful_angle():
    cameras = [v.cameras for v in wall(4)]
    behind = cameras[0].c2w.clone()
    behind[:3, :3] = behind[:3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    cameras.append(Cameras(cameras[0].K, behind, 83, 61))
    chosen = multiview.choose_neighbours(cameras, [(1.5, 6.0)] * 5, count=2)
    assert all(4 not in c for c in chosen) and chosen[4] == ()
    assert 1 in chosen[0] and 0 not in chosen[0]


def test_the_range_comes_from_points_or_from_the_cameras():
    views = wall(3)
    cameras = [v.cameras for v in views]
    points = cameras[0].unproject(cameras[0].pixel_grid(), truth(views[0]).reshape(-1))
    near, far = multiview.depth_range_of(cameras[1], cameras, points)
    depth = truth(views[1])
    assert 0.5 * float(depth.min()) < near < float(depth.min())
    assert float(depth.max()) < far < 2.2 * float(depth.max())
    near, far = multiview.depth_range_of(cameras[1], cameras, None)
    assert near < float(depth.min()) and far > float(depth.max())


def test_known_points_lead_the_search():
    """Forty points of the wall give range, neighbours and starts; each pixel gets its nearest."""
    views = wall(3)
    camera = views[1].cameras
    rng = torch.Generator().manual_seed(4)
    pixels = torch.rand(40, 2, generator=rng) * torch.tensor([83.0, 61.0])
    u, v = pixels.long().T
    points = camera.unproject(pixels, truth(views[1])[0, v, u])
    d = nearest_points(camera, points)
    assert d is not None and d.shape == (61, 83)
    for y, x in ((5, 9), (30, 41), (55, 77)):
        gap = (pixels - torch.tensor([x + 0.5, y + 0.5])).norm(dim=1)
        near = gap < gap.min() + 1.5  # the distance transform counts whole pixels
        z = ((points - camera.position) @ camera.forward)[near]
        assert 1 / d[y, x] == pytest.approx(float(z[(z - 1 / d[y, x]).abs().argmin()]), rel=1e-3)
    behind = camera.unproject(pixels + 0.6, truth(views[1])[0, v, u] * 3)
    hidden = nearest_points(camera, torch.cat([points, behind]))
    assert (
        hidden is not None and float(np.mean(1 / hidden > 1.8 * truth(views[1])[0].numpy())) < 0.1
    )
    assert nearest_points(camera, points[:5]) is None
    found = multiview.photo_depth([blind(v) for v in views], points=points, options=FULL)[1]
    error = ((found.depth - truth(views[1])).abs() / truth(views[1]))[found.depth > 0]
    assert float((found.depth > 0).float().mean()) > 0.7
    assert float((error < 0.02).float().mean()) > 0.95


def test_a_pixel_asks_the_views_that_fit_its_plane():
    """One of three neighbours shows another place: hardly a pixel keeps asking it."""
    views = wall(4)
    stranger = MatchView(views[3].color.flip(2), views[3].cameras)
    job = job_of(views[1], [blind(views[0]), stranger, blind(views[2])], FULL, 0.0)
    d = 1 / truth(views[1])[0].numpy()
    slope = np.stack(gradients(d), axis=-1)
    plane = np.concatenate([d[..., None], slope], axis=-1).astype(np.float32)
    asked = asking_best(job, plane, 2).asked[10:-10, 14:-14]
    assert set(np.unique(asked)) <= {3, 5, 6, 7}
    assert (asked == 0b101).mean() > 0.9


def test_arguments_are_refused_by_name():
    view = blind(wall(1)[0])
    with pytest.raises(ValueError, match="near and far must be 0 < near < far, got 3.0 and 2.0"):
        multiview.plane_sweep(view, [view], near=3.0, far=2.0)
    with pytest.raises(ValueError, match="needs at least 1 other view"):
        multiview.plane_sweep(view, [], near=1.0, far=2.0)
    with pytest.raises(ValueError, match="options.scale must be above 0"):
        MatchOptions(scale=0.0)
    alone = multiview.photo_depth([view], depth_range=(1.0, 2.0))
    assert float(alone[0].depth.max()) == 0


@pytest.mark.data
def test_motorcycle_against_its_truth(data: Path):
    """A real rectified pair, a quarter of the size: most pixels within 2 px of the full size."""
    from bench.stereo_depth import motorcycle, share_within

    pair = motorcycle(data)
    found = multiview.plane_sweep(
        pair.left, [pair.right], near=pair.near, far=pair.far, planes=48, scale=0.25, window=5
    )
    assert share_within(pair, found.depth)[0] > 0.6
