"""From a click to what is drawn, against closed forms of the two-wall room."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import textured
from tests.fake_session import HEIGHT, WIDTH, small_scene
from ui import inspector
from worldstereo import Capture, WarpGenerator, World
from worldstereo.cameras import Cameras
from worldstereo.errors import WorldStereoError
from worldstereo.scene import DepthKind, Origin, View
from worldstereo.world import start

SCENE = small_scene(clips=2)
GENERATED = 3  # the first view that a step made


@given(st.integers(0, len(SCENE.views) - 1), st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1))
@settings(max_examples=25, deadline=None)
def test_a_pixel_is_explained_by_pixels_that_show_the_same_point(view, x, y):
    """The oracle is plain projection of the pixel's own 3D point into each reference."""
    found = inspector.inspect(SCENE, view, (x + 0.5, y + 0.5))
    seen = SCENE.views[view]
    z = float(seen.depth[0, y, x])
    expected = seen.cameras.unproject(torch.tensor([[x + 0.5, y + 0.5]]), torch.tensor([z]))[0]
    assert found.point == pytest.approx(tuple(expected.tolist()), abs=1e-4)
    assert found.distance == pytest.approx(float((expected - seen.cameras.position).norm()), 1e-4)
    for match in found.matches:
        assert match.view != view
        if match.inside:
            pixels, _ = SCENE.views[match.view].cameras.project(expected[None])
            assert match.pixel == pytest.approx(tuple(pixels[0].tolist()), abs=0.05)
    total = sum(match.weight for match in found.matches)
    assert total == pytest.approx(1.0, abs=1e-3) or total == 0
    assert [m.weight for m in found.accepted] == sorted(m.weight for m in found.accepted)[::-1]
    assert all(match.reason for match in found.refused)


def test_a_generated_frame_is_explained_by_what_it_was_made_from():
    target = inspector.target_of(SCENE, GENERATED)
    assert target.generated and target.references == SCENE.clips[0].references[0]
    late = inspector.target_of(SCENE, len(SCENE.views) - 1)
    assert torch.equal(late.color_u8, SCENE.clips[1].color_u8[1])


def test_origin_and_confidence_are_those_of_the_pixel():
    for pixel, origin in (((20, 2), Origin.INVENTED), ((3, 30), Origin.GLOBAL)):
        found = inspector.inspect(SCENE, GENERATED, (pixel[0] + 0.5, pixel[1] + 0.5))
        assert found.origin is origin
        assert found.confidence == pytest.approx(0.5, abs=0.01)
    given_view = inspector.inspect(SCENE, 0, (20.5, 20.5))
    assert given_view.origin is None and given_view.confidence is None


@pytest.mark.parametrize("pixel", [(-0.5, 3.0), (WIDTH, 3.0), (3.0, HEIGHT), (math.nan, 2.0)])
def test_a_pixel_outside_is_refused_with_the_size(pixel):
    with pytest.raises(WorldStereoError, match=f"{WIDTH} × {HEIGHT}"):
        inspector.inspect(SCENE, 0, pixel)


@pytest.mark.parametrize("view", [-1, 99])
def test_a_view_that_is_gone_is_refused(view):
    with pytest.raises(WorldStereoError, match="is gone"):
        inspector.target_of(SCENE, view)


def test_locate_finds_the_view_that_looks_along_the_visitor():
    for i in (0, 1, 2):
        camera = SCENE.views[i].cameras
        z = SCENE.views[i].depth[0, 20, 26][None]
        point = camera.unproject(torch.tensor([[26.5, 20.5]]), z)[0]
        found = inspector.locate(SCENE, point.tolist(), camera)
        assert found is not None
        view, pixel = found
        assert view == i and pixel == pytest.approx((26.5, 20.5), abs=0.01)


def test_locate_refuses_points_that_nobody_shows():
    camera = SCENE.views[0].cameras
    near = camera.unproject(torch.tensor([[26.5, 20.5]]), torch.tensor([0.3]))[0]
    assert inspector.locate(SCENE, near.tolist(), camera) is None
    behind = camera.position - 5 * camera.forward
    assert inspector.locate(SCENE, behind.tolist()) is None


def test_shares_of_a_frame_are_counted_pixels():
    target = inspector.target_of(SCENE, GENERATED)
    part = inspector.shares(target)
    invented = 5 * WIDTH / (WIDTH * HEIGHT)
    known_by_cloud = 7 * (HEIGHT - 5) / (WIDTH * HEIGHT)
    assert part["invented"] == pytest.approx(invented)
    assert part["global"] == pytest.approx(known_by_cloud)
    assert sum(part.values()) == pytest.approx(1)
    assert inspector.shares(inspector.target_of(SCENE, 0)) == {}


def test_the_references_of_a_frame_share_it_all():
    scored = inspector.references(SCENE, GENERATED)
    assert [one.view for one in scored] != []
    assert sum(one.share for one in scored) == pytest.approx(1, abs=1e-3)
    assert [one.share for one in scored] == sorted((one.share for one in scored), reverse=True)
    assert all(0 <= one.covered <= 1 for one in scored)


def test_votes_of_a_frame_are_entries_that_another_view_saw_where_it_shows_them():
    """Each entry's point is projected into the frame by itself, and the picture is lit there and
    nowhere else; the frame's own view is not among those that serve it."""
    world = World(WarpGenerator(), max_points=200_000)
    start(world, Capture("room", "rgbd", tuple(textured.views(3))), register=False)
    target = inspector.target_of(world.scene, 1)
    voted = inspector.votes(world, target)
    assert {votes.view for votes in voted} == {0, 2}
    table = world._keypoint_table()
    for votes in voted:
        assert len(votes.entries) > 20
        assert (table.seen_by[votes.entries] == votes.view).any(1).all()
        points = torch.from_numpy(table.points[votes.entries]).float()
        pixels, _ = target.camera.project(points)
        image = inspector.votes_picture(target, votes)
        assert image.shape == (240, 320, 3)
        lit = image.max(2).astype(int) - image.min(2) > 20
        at = pixels.long().numpy()
        assert lit[at[:, 1], at[:, 0]].mean() > 0.98
        near = np.zeros_like(lit)
        for u, v in at:
            near[max(0, v - 3) : v + 4, max(0, u - 3) : u + 4] = True
        assert not (lit & ~near).any()


def test_pictures_have_the_frames_size_and_say_what_they_should():
    target = inspector.target_of(SCENE, GENERATED)
    maps = inspector.weight_maps(SCENE, target)
    pictures = {
        "origin": inspector.origin_picture(target),
        "confidence": inspector.confidence_picture(target),
        "heat": inspector.heat_picture(target, maps[0]),
    }
    for image in pictures.values():
        assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8
    red, green, blue = pictures["origin"][2, 20].astype(int)  # invented: more red and blue
    assert red > green and blue > green
    assert abs(int(pictures["confidence"][20, 20, 0]) - 128) <= 1


def test_the_unknown_of_a_preview_is_tinted_and_the_known_is_not():
    color = np.full((5, 7, 3), 40, np.uint8)
    known = np.zeros((5, 7), bool)
    known[:, :3] = True
    shown = inspector.tinted(color, known)
    assert (shown[:, :3] == 40).all() and (shown[:, 3:] > 60).all()
    assert (color == 40).all()  # the input is left alone


def test_a_view_says_where_its_depth_comes_from():
    kind = torch.zeros(1, 5, 8, dtype=torch.uint8)
    kind[0, :2] = int(DepthKind.MEASURED)
    kind[0, 2] = int(DepthKind.LEARNED)
    camera = Cameras(torch.eye(3), torch.eye(4), 8, 5)
    view = View.of(torch.rand(3, 5, 8), torch.ones(1, 5, 8), camera, kind=kind)
    assert inspector.depths(view) == {"measured": 0.4, "depth model": 0.2, "unknown": 0.4}
