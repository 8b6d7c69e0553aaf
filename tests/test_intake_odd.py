"""Captures that break an assumption: exposure steps, a mover, a mirror, wrong poses and units."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.test_registration import H, W, motion, painted, true_cameras
from worldstereo import inputs
from worldstereo.cameras import Cameras
from worldstereo.memory.stereo.dense import SynthesisOptions, choose_views, synthesize
from worldstereo.scene import View
from worldstereo.views.fusion import make_view_arrays
from worldstereo.views.intake import IntakeOptions, preprocess_views
from worldstereo.views.registration import doubts, register
from worldstereo.views.registration._field import exp6

QUICK = IntakeOptions(stereo=False)


def scene(n: int = 5) -> tuple[Cameras, Tensor, Tensor]:
    cameras = true_cameras(n)
    color, depth = painted(cameras)
    return cameras, color.float(), depth.float()


def remembered(color: Tensor, depth: Tensor, cameras: Cameras, **how) -> tuple[View, ...]:
    """All views but the middle one, entered."""
    middle = len(cameras) // 2
    kept = [i for i in range(len(cameras)) if i != middle]
    return preprocess_views(
        [View.of(color[i], depth[i], cameras[i], frame=i) for i in kept], options=QUICK, **how
    ).views


def test_exposure_steps_of_four_are_taken_out():
    """Views at 1, 1/4, 1, 1/4 of the light: gains of log 4, nothing moves, one exposure comes out.

    Truth: the picture before it was darkened. The target lies nearest to a bright view.
    """
    cameras, color, depth = scene()
    color = 0.26 + 0.6 * color  # a quarter of it is still above black
    dark = color.clone()
    dark[[1, 4]] *= 0.25
    views = remembered(dark, depth, cameras)
    gains = torch.stack([view.log_gain for view in views])
    expected = torch.tensor([0.0, 1.0, 0.0, 1.0]) * np.log(4)
    torch.testing.assert_close(gains, expected[:, None].expand(4, 3), atol=0.03, rtol=0)
    for view in views:
        assert motion(view.cameras, view.given) < 0.5
    made = synthesize(views[2].cameras, [views[1], views[3]], unit=4.0)
    inside = made.known[0] & (made.confidence[0] > 0.2)
    assert float(inside.float().mean()) > 0.3
    apart = (made.color * 4 - color[3]).abs().mean(0)[inside]
    assert float(apart.median()) < 0.02
    bright = synthesize(cameras[2], views, unit=4.0)
    level = bright.color.mean(0)[bright.known[0]] / color[2].mean(0)[bright.known[0]]
    # One exposure in the whole picture, not a patchwork of two.
    assert float(level.quantile(0.95) / level.quantile(0.05)) < 1.25


def test_a_mover_leaves_no_ghost():
    """A box stands elsewhere in each view; the others look through it, so it goes everywhere."""
    cameras, color, depth = scene()
    empty, moving = color.clone(), depth.clone()
    for i in range(5):
        left = 20 + 42 * i
        color[i, :, 60:110, left : left + 32] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
        moving[i, 0, 60:110, left : left + 32] = 2.0
    kept = remembered(color, moving, cameras, register=False)
    made = synthesize(cameras[2], kept, unit=4.0)
    wrong = ((made.color - empty[2]).abs().mean(0) > 0.15) & made.known[0]
    assert float(wrong.float().mean()) < 0.01
    off = ((made.depth - depth[2]).abs() > 0.05 * depth[2])[0]
    assert float(off.float().mean()) < 0.02
    blind = preprocess_views(
        [View.of(color[i], moving[i], cameras[i], frame=i) for i in (0, 1, 3, 4)],
        register=False, options=replace(QUICK, contradict=False),
    ).views  # fmt: skip
    ghost = synthesize(cameras[2], blind, unit=4.0, options=SynthesisOptions(free_space=False))
    seen = ((ghost.color - empty[2]).abs().mean(0) > 0.15) & ghost.known[0]
    assert float(wrong.float().sum()) < 0.5 * float(seen.float().sum()) + 20


def reflected(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """What a mirror in the far wall (z = 4) shows, and where in the pictures it hangs."""
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0])).double()
    pictures, masks = [], []
    for i in range(len(cameras)):
        camera = cameras[i]
        origin, directions = camera.rays()
        along = (4.0 - origin[..., 2]) / directions[..., 2]
        points = (origin + directions * along[..., None]).reshape(-1, 3)
        inside = (points[:, 0].abs() < 0.8) & (points[:, 1].abs() < 0.6)
        back = directions.reshape(-1, 3) @ flip
        far = points + back * (5.0 / (-back[:, 2:]))  # a wall 5 behind the camera side
        value = 0.5 + 0.4 * torch.sin(far * torch.tensor([3.0, 2.2, 1.0]).double() + far.roll(1, 1))
        pictures.append(value.T.reshape(3, H, W))
        masks.append(inside.reshape(H, W))
    return torch.stack(pictures).float(), torch.stack(masks)


def test_a_mirror_spoils_only_itself():
    """The sensor returns the glass, the picture moves otherwise: unsure there, right elsewhere."""
    cameras, color, depth = scene()
    image, mask = reflected(cameras)
    color = torch.where(mask[:, None], image, color)
    views = remembered(color, depth, cameras)
    for view in views:
        assert motion(view.cameras, view.given) < 0.5
    made = synthesize(cameras[2], views, unit=4.0)
    wrong = (made.color - color[2]).abs().mean(0)
    glass = torch.from_numpy(np.asarray(_eroded(mask[2].numpy()), bool))
    around = made.known[0] & ~torch.from_numpy(_grown(mask[2].numpy()))
    assert float(mask[2].float().mean()) > 0.04
    assert float(wrong[around].mean()) < 0.02
    assert float(made.confidence[0][glass].mean()) < 0.8 * float(made.confidence[0][around].mean())


def _grown(mask: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0


def _eroded(mask: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.erode(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0


# ---- a real capture ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def livingroom(data: Path) -> list[View]:
    """Six frames ten apart, a quarter of the size."""
    views = inputs.read(data / "rgbd" / "livingroom1").views
    out = []
    for i in range(0, 51, 10):
        color = torch.nn.functional.avg_pool2d(views[i].color[None], 2)[0]
        camera = views[i].given.scaled(views[i].width // 2, views[i].height // 2)
        out.append(View.of(color, views[i].depth[:, ::2, ::2].contiguous(), camera, frame=i))
    return out


@pytest.mark.data
def test_a_real_view_off_by_ten_degrees_is_named_and_kept(livingroom: list[View]):
    lost = livingroom[3].given
    turn = torch.from_numpy(exp6(np.array([0.0, np.deg2rad(10), 0, 0, 0, 0]))).to(lost.c2w)
    wrong = Cameras(lost.K, lost.c2w @ turn, lost.width, lost.height)
    views = [*livingroom]
    views[3] = replace(views[3], cameras=wrong, given=wrong)
    found = register(views)
    assert found.agrees == (True, True, True, False, True, True)
    torch.testing.assert_close(found.corrected.c2w[3], wrong.c2w)
    assert "View 4 agrees with no other" in " ".join(found.notices)
    entered = preprocess_views(views, options=QUICK)
    torch.testing.assert_close(entered.views[3].cameras.c2w, wrong.c2w)
    assert any("View 4" in line for line in entered.notices)


@pytest.mark.data
def test_real_poses_that_are_all_wrong_are_kept(livingroom: list[View]):
    """Ten degrees about another axis each: nobody is believed, every pose stays."""
    rng = np.random.default_rng(2)
    views = []
    for view in livingroom:
        axis = rng.normal(size=3)
        twist = np.concatenate([np.deg2rad(10) * axis / np.linalg.norm(axis), np.zeros(3)])
        moved = view.given.c2w @ torch.from_numpy(exp6(twist)).to(view.given.c2w)
        wrong = Cameras(view.given.K, moved, view.width, view.height)
        views.append(replace(view, cameras=wrong, given=wrong))
    found = register(views)
    assert sum(found.agrees) <= 3
    for i in (k for k in range(6) if not found.agrees[k]):
        torch.testing.assert_close(found.corrected.c2w[i], views[i].given.c2w)
        assert f"{i + 1}" in " ".join(found.notices)


@pytest.mark.data
def test_real_millimetres_are_noticed_and_right_units_are_not(livingroom: list[View]):
    assert doubts([make_view_arrays(view, 1.8) for view in livingroom]) == []
    large = [View.of(v.color, v.depth * 1000, v.given) for v in livingroom]
    said = doubts([make_view_arrays(view, 1800.0) for view in large])
    assert any("millimetres read as metres" in line for line in said)


@pytest.mark.data
def test_a_real_capture_without_depth_is_measured(livingroom: list[View]):
    """Depth missing in all views: stereo finds it; the sensor, which nobody saw, is the judge."""
    some = livingroom[1:5]
    views = [View.of(v.color, torch.zeros_like(v.depth), v.given) for v in some]
    entered = preprocess_views(views)
    errors = []
    for view, truth in zip(entered.views, some, strict=True):
        known = (truth.depth > 0) & (view.confidence >= 0.29)
        errors.append(((view.depth - truth.depth).abs() / truth.depth)[known])
    error = torch.cat(errors)
    assert float(error.median()) < 0.05
    rest = [v for i, v in enumerate(entered.views) if i != 1]
    chosen = [rest[i] for i in choose_views(rest, some[1].given)]
    made = synthesize(some[1].given, chosen, unit=entered.unit)
    assert bool(torch.isfinite(made.color).all()) and float(made.known.float().mean()) > 0.7
