"""Where one is and what happened: the map, the history, and the cameras that are proposed."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import textured
from tests.fake_session import small_scene
from tests.test_session_defects import SECONDS, call, config, page_over, settings_of, wish_of
from ui.page.map_svg import SIDE, Plane, map_svg
from ui.viewport.colors import color_points
from worldstereo import Capture, WarpGenerator, World, start
from worldstereo.errors import WorldStereoError
from worldstereo.scene import PointCloud
from worldstereo.trajectory import Trajectory
from worldstereo.world import NextView, coverage


def test_the_map_keeps_shape_and_every_camera_lies_in_it():
    """Distances across up are kept up to one scale; the script's own formula gives the places."""
    scene = small_scene()
    plane = Plane(scene)
    eyes = torch.stack([view.cameras.c2w[:3, 3] for view in scene.views]).double().numpy()
    at = plane(eyes)
    assert (at >= 0).all() and (at <= [plane.width, plane.height]).all()
    assert max(plane.width, plane.height) == SIDE
    up = scene.up.double().numpy()
    flat = eyes - (eyes @ up)[:, None] * up / (up @ up)
    for i in range(1, len(eyes)):
        true = np.linalg.norm(flat[i] - flat[0]) * plane.scale
        assert np.linalg.norm(at[i] - at[0]) == pytest.approx(true, rel=1e-6)
    ux, uy, uz, vx, vy, vz, u0, v0, k = map(float, plane.words.split(","))
    x, y, z = eyes[1]
    script = [k * (x * ux + y * uy + z * uz) - k * u0, k * (x * vx + y * vy + z * vz) - k * v0]
    np.testing.assert_allclose(script, at[1], atol=0.01)
    ahead = eyes[0] + 0.1 * scene.views[0].cameras.c2w[:3, 2].double().numpy()
    assert plane(ahead[None])[0, 1] < at[0, 1]  # the first view looks up the map


def test_what_was_invented_far_off_does_not_shrink_the_map():
    """As many invented points as given ones, ten times as far away: the map stays the place's."""
    scene = small_scene()
    given, far = scene.cloud, 10 * scene.unit
    step = torch.cat([torch.zeros(len(given)), torch.ones(len(given))]).int()
    points, colors = torch.cat([given.points, given.points + far]), given.colors.repeat(2, 1)
    wider = replace(scene, cloud=PointCloud.of(points, colors, step=step))
    assert Plane(wider).words == Plane(scene).words
    assert map_svg(wider, None)


def test_the_map_shows_views_and_path():
    scene = small_scene()
    plan = Trajectory.through([scene.views[0].cameras, scene.views[2].cameras], 5)
    svg = str(map_svg(scene, plan))
    assert svg.count("translate(") == len(scene.views)
    (line,) = re.findall(r'points="([^"]+)"', svg)
    assert len(line.split()) == 5
    assert "polyline" not in str(map_svg(scene, None))


def test_a_state_of_the_history_is_returned_to():
    with page_over(config()) as (panel, session):
        call(panel, session, panel.path.on_plan, *settings_of())
        call(panel, session, panel.generate.on_generate, *wish_of())
        cloud, views = session.world.scene.cloud, len(session.world.scene.views)
        session._selection = None
        boxed = torch.zeros(len(cloud), dtype=torch.bool)
        boxed[:5] = True
        from worldstereo.world import delete_points

        delete_points(session.world, boxed)
        shown = str(panel.history.refresh(session)[panel.history.list])
        assert [word for word in ("Deleted points", "Generated truck", "Opened") if word in shown]
        assert re.findall(r'data-state="(\d)"', shown) == ["3", "2", "1"]
        assert shown.count('aria-current="true"') == 1
        panel.history.on_goto(session, {"state": "1"})
        assert not session.world.scene.clips and len(session.world.scene.views) < views
        shown = str(panel.history.refresh(session)[panel.history.list])
        assert shown.count("undone") == 2
        panel.history.on_goto(session, {"state": 3})
        assert (
            len(session.world.scene.views) == views
            and len(session.world.scene.cloud) == len(cloud) - 5
        )
        for wrong in (0, 9, -1, "x"):  # 0: nothing was open
            with pytest.raises(WorldStereoError, match="state|State"):
                panel.history.on_goto(session, {"state": wrong})


@pytest.fixture(scope="module")
def world():
    world = World(WarpGenerator(), max_points=200_000)
    start(world, Capture("room", "rgbd", tuple(textured.views(2))), register=False)
    return world


def test_points_are_coloured_by_what_is_known_of_them(world):
    """Points of one kind keep its hue whatever their photo's brightness; without coverage, grey."""
    scene = world.scene
    rows = np.arange(0, len(scene.cloud), 97)
    known = coverage(scene)
    out = color_points(scene.cloud, "coverage", rows, known.colors().numpy()).astype(float)
    wanted = known.colors().numpy()[rows]
    bright = out.max(1) > 60
    hue, goal = out / out.max(1, keepdims=True), wanted / wanted.max(1, keepdims=True)
    unclipped = bright & (out.max(1) < 250)
    assert unclipped.sum() > 20
    np.testing.assert_allclose(hue[unclipped], goal[unclipped], atol=0.06)
    grey = color_points(scene.cloud, "coverage", rows).astype(int)
    assert (np.ptp(grey, axis=1) < 30).all()


def test_a_click_on_a_proposed_camera_plans_a_path_there():
    with page_over(config()) as (panel, session):
        drawn = []
        session.viewport.show_ghosts = drawn.append
        list(panel.path.on_look(session))
        assert session.job.kind == "unseen" and len(drawn) == 1
        start = session.world.scene.views[0].cameras
        goal = start.c2w.clone()
        goal[:3, 3] += torch.tensor([0.3, 0.1, -0.2])
        camera = type(start)(start.K, goal, start.width, start.height)
        found = tuple(NextView(c, 0.4, 0.5) for c in (start, camera))
        session.unseen = type(session.unseen)(session.world.scene, found)
        list(panel.path.on_ghost(session, {"index": 1}, *settings_of()))
        assert (
            session.planned.path is not None and session.planned.path.name == "toward the unknown"
        )
        end = session.planned.path.cameras.c2w[-1]
        torch.testing.assert_close(end[:3, 3], goal[:3, 3].to(end), atol=1e-4, rtol=0)
        with pytest.raises(WorldStereoError):
            list(panel.path.on_ghost(session, {"index": 7}, *settings_of()))
        session.job.result(SECONDS)
