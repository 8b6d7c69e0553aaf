"""Given views with wrong poses: their pictures find their places among the others."""

from dataclasses import replace

import pytest
import torch

from tests import textured
from tests.test_localize import apart
from worldstereo.cameras import Cameras, look_at
from worldstereo.generators import WarpGenerator
from worldstereo.memory.localize import relocalize
from worldstereo.scene import Capture, View
from worldstereo.views.intake import IntakeOptions, preprocess_views
from worldstereo.world import World, start

QUICK = IntakeOptions(stereo=False, judged=False)


def astray(view: View) -> View:
    """The view with a pose that looks 20 degrees past what its picture shows, from elsewhere."""
    eye, ahead = view.given.position.double(), view.given.c2w[:3, 2].double()
    turned = ahead + torch.tensor([0.36, 0.05, 0.0])
    wrong = look_at(eye + 0.4, eye + 0.4 + turned, torch.tensor([0.0, -1.0, 0.0]).double())
    camera = Cameras(view.given.K, wrong.float(), view.width, view.height)
    return replace(view, cameras=camera, given=camera)


@pytest.fixture(scope="module")
def views() -> list[View]:
    return textured.views(6)


def test_a_wrong_pose_is_replaced_by_the_place_of_its_picture(views):
    """True cameras are the oracle; nothing else moves, and cameras around it are not dragged."""
    truth = views[2].cameras
    given = [*views[:2], astray(views[2]), *views[3:]]
    alone = preprocess_views(given, options=QUICK)
    found = preprocess_views(given, relocalize=relocalize, options=QUICK)
    assert alone.registration.agrees == (True, True, False, True, True, True)
    assert apart(alone.views[2].cameras, truth)[0] > 15
    assert found.registration.agrees == (True,) * 6 and found.registration.relocalized == (2,)
    degrees, distance = apart(found.views[2].cameras, truth)
    assert degrees < 0.2 and distance < 0.01
    assert "View 3 was not where its pose says" in " ".join(found.notices)
    for i in (0, 1, 3, 4, 5):
        assert torch.equal(found.views[i].cameras.c2w, alone.views[i].cameras.c2w)
    near = found.registration.correct(given[2].given)
    assert apart(near, given[2].given)[0] < 0.1, "a camera given there stays there"


def test_a_picture_of_another_place_keeps_its_pose(views):
    stranger = textured.view_of(views[2].cameras, seed=7)
    given = [*views[:2], astray(stranger), *views[3:]]
    found = preprocess_views(given, relocalize=relocalize, options=QUICK)
    assert not found.registration.agrees[2] and found.registration.relocalized == ()
    assert torch.equal(found.views[2].cameras.c2w, given[2].given.c2w)


def test_a_place_where_nothing_agrees_is_not_taken(views):
    """Whatever finds it: what is claimed is checked by matches with the views around it."""
    given = [*views[:2], astray(views[2]), *views[3:]]
    elsewhere = textured.camera_at((1.5, -0.5, 1.0), (-1.5, 1.0, 2.0))
    found = preprocess_views(given, relocalize=lambda *_: {0: elsewhere}, options=QUICK)
    assert found.registration.relocalized == ()
    assert torch.equal(found.views[2].cameras.c2w, given[2].given.c2w)


@pytest.mark.parametrize("on", [True, False])
def test_a_world_relocalizes_unless_it_is_told_not_to(views, on: bool):
    world = World(WarpGenerator())
    capture = Capture(name="room", kind="rgbd", views=(*views[:2], astray(views[2]), *views[3:4]))
    scene = start(world, capture, relocalize=on)
    assert (apart(scene.views[2].cameras, views[2].cameras)[0] < 0.3) is on
    assert any("found by its picture" in line for line in scene.notices) is on
