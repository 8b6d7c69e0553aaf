"""Photos without depth: the search that stops early, depth at the size of the photo, notices."""

import numpy as np
import pytest
import torch

from tests.test_multiview import blind, truth, wall
from worldstereo.cameras import Cameras
from worldstereo.scene import DepthKind, View
from worldstereo.views import multiview
from worldstereo.views.intake import IntakeOptions, preprocess_views
from worldstereo.views.intake import _stereo as stereo
from worldstereo.views.multiview import _kernels as kernels
from worldstereo.views.multiview.arrays import MatchOptions, enlarged_by_color, job_of


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_stopping_early_refuses_no_plane_that_would_win(count: int):
    """A cost below the limit is the whole cost; one at or above it stays at or above it."""
    pictures = [blind(view) for view in wall(5)]
    job = job_of(pictures[2], [pictures[i] for i in (0, 1, 3, 4)[:count]], MatchOptions(scale=1), 0)
    disparity = 1 / truth(wall(5)[2])[0].numpy()
    rng = np.random.default_rng(count)
    taps = (2 * 4 // 2 + 1) ** 2
    weight, patch = np.empty(taps, np.float32), np.empty((3, taps), np.float32)
    below = above = 0
    for _ in range(600):
        x, y = int(rng.integers(2, 80)), int(rng.integers(2, 58))
        d = float(disparity[y, x] * rng.uniform(0.7, 1.3))
        kernels.support(x, y, job.image, job.grey, 4, 2, weight, patch)
        arguments = (
            x, y, d, 0.0, 0.0, job.soft, job.K, job.greys, job.softs, job.sizes, job.Ks, job.Ts,
            job.Ps, job.depths, job.asked, weight, patch, 4, 2, 0.0,
        )  # fmt: skip
        whole, limit = kernels.plane_cost(*arguments, 1e9), float(rng.uniform(0.02, 0.7))
        limited = kernels.plane_cost(*arguments, limit)
        if whole < limit:
            assert limited == whole
            below += 1
        else:
            assert limited >= limit
            above += 1
    assert min(below, above) > 60


def test_enlarged_depth_ends_where_the_colour_does():
    """Two planes seen at a fifth of the size; the edge of the picture lies inside a sample."""
    image = np.full((60, 100, 3), 40, np.uint8)
    image[:, 53:] = 200  # samples are 5 px wide: this edge cuts the one from 50 to 55
    depth = np.where(np.arange(20) < 11, 2.0, 6.0).astype(np.float32)[None].repeat(12, 0)
    sure = np.where(depth < 3, 0.3, 0.2).astype(np.float32)
    small = np.full((12, 20, 3), 40, np.uint8)
    small[:, 11:] = 200
    z, confidence = enlarged_by_color(depth, sure, small, image)
    left = np.arange(100) < 53
    assert np.allclose(z[:, left], 2, rtol=1e-5)
    assert np.allclose(z[:, ~left], 6, rtol=1e-5)
    assert np.allclose(confidence, np.where(left, 0.3, 0.2)[None], rtol=1e-5)
    depth[:, :8] = 0
    z, confidence = enlarged_by_color(depth, sure, small, image)
    assert (z[:, :34] == 0).all() and (confidence[:, :34] == 0).all()
    assert (z[:, 40:] > 0).all()


def test_an_enlarged_slope_stays_a_slope():
    """Disparity is linear on a plane, at any size."""
    y, x = np.mgrid[:30, :40] + 0.5
    d = 0.4 + 0.002 * x - 0.001 * y
    grey = np.full((30, 40, 3), 90, np.uint8)
    z, _ = enlarged_by_color(
        (1 / d).astype(np.float32), np.full((30, 40), 0.3, np.float32), grey,
        np.full((60, 80, 3), 90, np.uint8),
    )  # fmt: skip
    v, u = (np.mgrid[:60, :80] + 0.5) / 2
    error = np.abs(1 / z - (0.4 + 0.002 * u - 0.001 * v))[2:-2, 2:-2]
    assert error.max() < 0.0004  # a fifth of a sample's step


def test_photos_larger_than_they_are_matched_at(monkeypatch: pytest.MonkeyPatch):
    """Full size comes back, right to a percent; a photo of something else is named and stays."""
    for module in (stereo, multiview):
        monkeypatch.setattr(module, "PHOTO_SIDE", 96)
    pictures = wall(4, width=83, height=61)
    large = [p.cameras.scaled(166, 122) for p in pictures]
    photos = []
    for i, (picture, camera) in enumerate(zip(pictures, large, strict=True)):
        color = torch.nn.functional.interpolate(picture.color[None], (122, 166), mode="bilinear")[0]
        photos.append(View.of(color, torch.zeros(1, 122, 166), camera, name=f"p{i}"))
    away = large[0].c2w.clone()
    away[:3, :3] = away[:3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    turned = Cameras(large[0].K, away, 166, 122)
    photos.append(View.of(photos[0].color, torch.zeros(1, 122, 166), turned, name="other"))
    entered = preprocess_views(photos, options=IntakeOptions(camera_fixed=False))
    assert any("1 of 5" in notice and "other" in notice for notice in entered.notices)
    assert not bool(entered.views[4].mask.any())
    allowed = {int(DepthKind.STEREO), int(DepthKind.INPAINTED)}
    for view, picture in list(zip(entered.views, pictures, strict=False))[:4]:
        assert view.depth.shape == (1, 122, 166)
        assert set(view.kind.unique().tolist()) <= allowed
        expected = torch.nn.functional.interpolate(truth(picture)[None], (122, 166), mode="nearest")
        error = ((view.depth - expected[0]).abs() / expected[0])[:, 16:-16, 16:-16]
        assert float(error.median()) < 0.01
