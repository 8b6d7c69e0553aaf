"""What enters memory: depth stages, kinds, confidence, camera-fixed masks, growth, odd captures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given as cases
from hypothesis import settings
from hypothesis import strategies as st

from tests.conftest import room, turned_cameras
from worldstereo.cameras import Cameras
from worldstereo.scene import DepthKind, Origin, View
from worldstereo.views.fusion import make_view_arrays
from worldstereo.views.intake import IntakeOptions, cloud_from, generated, preprocess_views
from worldstereo.views.intake import _depth as stages
from worldstereo.views.intake._camera_fixed import find_camera_fixed
from worldstereo.views.intake._exposure import exposure_gains

W, H = 131, 97
QUICK = IntakeOptions(stereo=False)


def views(n: int = 4, scale: float = 1.0) -> list[View]:
    cameras = turned_cameras(n).scaled(W, H)
    color, depth = room(cameras)
    out = []
    for i in range(n):
        pose = cameras.c2w[i].clone()
        pose[:3, 3] *= scale
        out.append(View.of(color[i], depth[i] * scale, Cameras(cameras.K[i], pose, W, H), frame=i))
    return out


def test_every_pixel_ends_with_depth_and_a_kind():
    """Holes are measured by others where others see them, completed where nobody does."""
    some = views(4)
    depth = some[1].depth.clone()
    depth[0, 30:60, 40:90] = 0
    some[1] = View.of(some[1].color, depth, some[1].given)
    entered = preprocess_views(some, register=False, options=QUICK)
    view = entered.views[1]
    assert bool((view.depth > 0).all())
    hole = view.kind[0, 33:57, 45:85]
    assert set(hole.unique().tolist()) <= {DepthKind.REPROJECTED, DepthKind.INPAINTED}
    assert float((hole == DepthKind.REPROJECTED).float().mean()) > 0.8
    truth = views(4)[1].depth[0, 33:57, 45:85]
    filled = hole == DepthKind.REPROJECTED
    error = ((view.depth[0, 33:57, 45:85] - truth).abs() / truth)[filled]
    assert float(error.quantile(0.9)) < 0.02
    measured = (view.kind == DepthKind.MEASURED) & (depth > 0)
    torch.testing.assert_close(view.depth[measured], depth[measured])
    assert int(view.confidence_u8[measured].min()) == 255
    assert int(view.confidence_u8[0, 45, 65]) in (51, 128)


def test_entering_again_changes_nothing():
    """Intake counts measured pixels only: what it added is made anew, never taken as measured."""
    some = views(3)
    depth = some[0].depth.clone()
    depth[0, 20:50, 20:60] = 0
    some[0] = View.of(some[0].color, depth, some[0].given)
    once = preprocess_views(some, register=False, options=QUICK)
    twice = preprocess_views(once.views, register=False, options=QUICK)
    for a, b in zip(once.views, twice.views, strict=True):
        same = a.kind == b.kind
        assert float(same.float().mean()) > 0.98
        torch.testing.assert_close(a.depth[same], b.depth[same], rtol=2e-2, atol=1e-3)


def test_points_that_others_look_through_are_dropped():
    works = [make_view_arrays(v) for v in views(5)]
    disparity = works[2].disparity.copy()
    disparity[30:60, 40:80] *= 2.0
    works[2] = works[2].with_depth(disparity, works[2].confidence)
    d, confidence = stages.uncontradicted(works[2], [works[k] for k in (0, 1, 3, 4)])
    assert (d[36:54, 48:72] == 0).mean() > 0.9
    assert (confidence[d == 0] == 0).all()
    rest = np.ones_like(d, bool)
    rest[26:64, 36:84] = False
    assert (d[rest] > 0).mean() > 0.97


def test_depth_of_others_is_taken_only_where_it_looks_alike():
    """What stands in front, unmeasured here, does not get the depth of the wall behind it."""
    some = views(4)
    depth, color = some[1].depth.clone(), some[1].color.clone()
    depth[0, 30:60, 30:100] = 0
    color[:, 30:60, 60:100] = color[:, 30:60, 60:100] * 0.3  # something dark that only it shows
    works = [make_view_arrays(v) for v in some]
    works[1] = make_view_arrays(View.of(color, depth, some[1].given))
    _, confidence = stages.measured_by(works[1], [works[0], works[2], works[3]])
    assert (confidence[34:56, 34:56] == 0.5).mean() > 0.9
    assert (confidence[34:56, 64:96] == 0).mean() > 0.9


def test_exposure_is_told_towards_the_first_view():
    """Known gains are found from corresponding colours; the first view's is zero."""
    some = views(4)
    truth = torch.tensor([[0.0, 0, 0], [0.1, 0.1, 0.1], [-0.15, 0.0, 0.1], [0.2, -0.1, 0.0]])
    works = []
    for view, gain in zip(some, truth, strict=True):
        color = (0.25 + 0.4 * view.color) * torch.exp(-gain)[:, None, None]
        works.append(make_view_arrays(View.of(color, view.depth, view.given)))
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    gains, left_out = exposure_gains(works, pairs)
    np.testing.assert_allclose(gains, truth.numpy(), atol=0.02)
    assert left_out == []
    fixed = truth.double().numpy().copy()
    fixed[3] = np.nan
    again, _ = exposure_gains(works, pairs, fixed)
    np.testing.assert_allclose(again[3], truth[3].numpy(), atol=0.02)
    np.testing.assert_allclose(again[:3], truth[:3].numpy())


def test_a_gripper_is_fixed_to_the_camera_and_a_still_camera_shows_nothing_that_is():
    cameras = turned_cameras(6).scaled(W, H)
    poses = torch.eye(4).repeat(6, 1, 1)
    poses[:, 0, 3] = torch.arange(6) * 0.4 - 1.0
    cameras = Cameras(cameras.K, poses, W, H)
    color, depth = room(cameras)
    some = [View.of(color[i], depth[i], cameras[i]) for i in range(6)]
    noise = torch.rand(3, H, W, generator=torch.Generator().manual_seed(2))
    painted = []
    for view in some:
        color = view.color.clone()
        color[:, 60:, 90:] = noise[:, 60:, 90:]
        painted.append(make_view_arrays(View.of(color, view.depth, view.given)))
    found = find_camera_fixed(painted)
    assert found is not None
    mask = found[0]
    assert mask[70:, 100:].mean() > 0.95
    assert mask[:50, :80].mean() < 0.02
    still = [make_view_arrays(some[0])] * 6
    assert find_camera_fixed(still) is None


def test_plain_walls_and_dark_floors_are_not_fixed_to_the_camera():
    """They look the same wherever the camera stands, and the lens darkens the same corners."""
    w, h = 160, 120
    K = torch.tensor([[140.0, 0.0, 80.0], [0.0, 140.0, 60.0], [0.0, 0.0, 1.0]])
    poses = torch.eye(4).repeat(4, 1, 1)
    poses[:, 0, 3] = torch.arange(4) * 0.25
    wall = torch.rand(h, 400, generator=torch.Generator().manual_seed(3))
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    radius = ((x - 80) ** 2 + (y - 60) ** 2) / 10000.0
    views = []
    for i in range(4):
        picture = torch.full((h, w), 0.6)
        picture[80:] = 0.06
        shift = round(140 * 0.25 * i / 2.0)  # the wall stands at 2
        picture[20:60, 40:120] = wall[20:60, 40 + shift : 120 + shift]
        picture = picture * (1 - 0.3 * radius)
        color = picture.expand(3, h, w).clamp(0, 1).contiguous()
        views.append(
            make_view_arrays(View.of(color, torch.full((1, h, w), 2.0), Cameras(K, poses[i], w, h)))
        )
    assert find_camera_fixed(views) is None


def test_generated_views_keep_only_what_they_invented():
    view = views(1)[0]
    origin = torch.full((1, H, W), int(Origin.STEREO), dtype=torch.uint8)
    origin[0, 10:30, 20:50] = int(Origin.INVENTED)
    confidence = torch.full((1, H, W), 0.8)
    made = generated(view.color, view.depth, origin, confidence, view.given, step=3, frame=7)
    inside = origin == int(Origin.INVENTED)
    assert torch.equal(made.depth > 0, inside)
    assert bool((made.kind[inside] == DepthKind.GENERATED).all())
    assert 1 <= int(made.confidence_u8[inside].min()) <= 5
    assert int(made.confidence_u8[~inside].max()) == 0
    assert (made.step, made.frame) == (3, 7)
    assert torch.equal(made.color_u8, view.color_u8)


def test_a_views_points_lie_on_its_surface_with_normals():
    view = views(1)[0]
    cloud = cloud_from(view, stride=3)
    on_far = (cloud.points[:, 2] - 4).abs() < 1e-3
    on_left = (cloud.points[:, 0] + 1.5).abs() < 1e-3
    assert bool((on_far | on_left).all())
    only = on_far & ~on_left
    facing = cloud.normals[only] @ torch.tensor([0.0, 0.0, -1.0])
    assert float((facing > 0.999).float().mean()) > 0.95
    torch.testing.assert_close(cloud.normals.norm(dim=1), torch.ones(len(cloud)))
    spacing = 3 * 4.0 / float(view.given.K[0, 0])
    assert 0.3 * spacing < float(cloud.radii[only].median()) < 2.5 * spacing


def test_one_after_the_other_ends_like_all_at_once():
    some = views(5)
    whole = preprocess_views(some, options=QUICK)
    step = None
    for n in range(1, 6):
        step = preprocess_views(some[:n], previous=step, options=QUICK)
    assert step is not None and whole.registration is not None
    for a, b in zip(whole.views, step.views, strict=True):
        torch.testing.assert_close(a.cameras.c2w, b.cameras.c2w, rtol=0, atol=5e-3)
        close = (a.depth - b.depth).abs() < 0.02 * a.depth
        assert float(close.float().mean()) > 0.97


def test_views_of_different_sizes_and_without_depth_enter():
    some = views(3)
    small = turned_cameras(4).scaled(67, 53)
    color, depth = room(small)
    some.append(View.of(color[3], depth[3], small[3]))
    some[1] = View.of(some[1].color, torch.zeros_like(some[1].depth), some[1].given)
    entered = preprocess_views(some, register=False, options=QUICK)
    assert [(v.width, v.height) for v in entered.views] == [(W, H), (W, H), (W, H), (67, 53)]
    assert float((entered.views[1].depth > 0).float().mean()) > 0.9


@pytest.mark.parametrize("count", [1, 2])
def test_captures_without_any_depth_enter(count: int):
    some = [View.of(v.color, torch.zeros_like(v.depth), v.given) for v in views(count)]
    entered = preprocess_views(some, register=False, options=QUICK)
    assert len(entered.views) == count and entered.unit > 0
    assert len(cloud_from(entered.views[0])) == int(
        (entered.views[0].depth[0, 1::2, 1::2] > 0).sum()
    )


def test_equal_views_enter_and_agree():
    entered = preprocess_views([views(1)[0]] * 4, options=QUICK)
    assert entered.registration is not None
    assert float(entered.registration.moved_px.max()) < 0.1
    assert entered.camera_fixed is None


@cases(exponent=st.sampled_from([-2.0, 2.0]))
@settings(max_examples=2, deadline=None)
def test_scale_does_not_matter(exponent: float):
    factor = 10.0**exponent
    one, other = (
        preprocess_views(views(3, s), register=False, options=QUICK) for s in (1.0, factor)
    )
    assert other.unit == pytest.approx(one.unit * factor, rel=1e-4)
    for a, b in zip(one.views, other.views, strict=True):
        torch.testing.assert_close(a.depth * factor, b.depth, rtol=1e-3, atol=1e-3 * factor)
        assert float((a.kind == b.kind).float().mean()) > 0.999


def test_what_cannot_enter_is_said():
    with pytest.raises(ValueError, match="at least one view"):
        preprocess_views([])
    with pytest.raises(ValueError, match="given ones"):
        preprocess_views([replace(views(1)[0], step=2)])
