"""The live view: what is shown where the camera rests, and the view that is made from there."""

import threading

import numpy as np
import torch

from tests.conftest import room, turned_cameras
from tests.test_session_defects import call, config, page_over, settings_of
from ui.viewport.frames import camera_of, poses
from ui.viewport.live import LONG_SIDE, LivePicture, LiveView, Place, hatched, stage_camera
from worldstereo.cameras import Cameras
from worldstereo.guide import Guide
from worldstereo.scene import PointCloud, Scene, View
from worldstereo.trajectory import Trajectory

SECONDS, SCALE, FOV, SIZE = 300.0, 1.7, 0.9, (331, 211)


def scene() -> Scene:
    cameras = turned_cameras(3, 97, 71)
    color, depth = room(cameras)
    views = [View.of(color[i], depth[i], cameras[i], frame=i) for i in range(3)]
    points = [v.cameras.unproject(v.cameras.pixel_grid(), v.depth.flatten()) for v in views]
    colors = torch.cat([v.color.reshape(3, -1).T for v in views])
    return Scene(1, "room", tuple(views), PointCloud.of(torch.cat(points), colors), unit=4.0)


def place_of(world: Scene, moment: float = 0.0, *, x: float = 0.0, moving: bool = False) -> Place:
    pose = poses(world.views[1].cameras)[0].copy()
    pose[:3, 3] = (pose[:3, 3] + [x, 0, 0]) * SCALE
    return Place(world, (pose, FOV), SIZE, SCALE, moment, moving)


def test_the_picture_at_rest_is_the_frame_that_a_generator_is_shown_from_there():
    world, shown, full = scene(), [], threading.Event()

    def show(picture: LivePicture) -> None:
        shown.append(picture)
        if picture.full:
            full.set()

    live = LiveView(show)
    try:
        place = place_of(world)
        live.want(place)
        assert full.wait(SECONDS)
    finally:
        live.close()
    first, last = shown
    assert not first.full and first.color.shape[1] <= LONG_SIDE / 3
    camera = place.camera()
    frame = Guide(world, Trajectory(Cameras.stack([camera]), "here"))[0]
    known = frame.mask[0].numpy()
    color = (frame.color.clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).numpy()
    assert 0.2 < known.mean() < 1
    np.testing.assert_array_equal(last.color[known], color[known])
    assert (last.color[~known] != color[~known]).any(axis=1).mean() > 0.9
    assert last.unknown == frame.unknown
    np.testing.assert_allclose(last.depth[known], frame.depth[0].numpy()[known] * SCALE, rtol=1e-6)


def test_a_move_takes_the_place_of_the_picture_that_was_on_its_way():
    """Of ten places in a row only the last is drawn at full size."""
    world, shown, done = scene(), [], threading.Event()
    last = place_of(world, x=0.3)

    def show(picture: LivePicture) -> None:
        shown.append(picture)
        if picture.full and picture.place is last:
            done.set()

    live = LiveView(show)
    try:
        for i in range(9):
            live.want(place_of(world, moment=1e12, x=0.01 * i))  # has not come to rest
        live.want(last)
        assert done.wait(SECONDS)
    finally:
        live.close()
    assert {id(picture.place) for picture in shown} == {id(last)}


def test_in_motion_a_small_picture_comes_before_the_rest():
    world, shown, done = scene(), [], threading.Event()
    live = LiveView(lambda picture: (shown.append(picture), done.set())[0])
    try:
        live.want(place_of(world, moment=1e12, moving=True))
        assert done.wait(SECONDS)
    finally:
        live.close()
    assert [picture.moving for picture in shown] == [True]


def test_the_camera_of_the_stage_shows_the_stage_to_its_corners():
    """A ray through each corner of the viewport leaves through the same corner of the picture."""
    pose = poses(turned_cameras(2, 97, 71)[1])[0]
    for size in ((331, 211), (1921, 1083), (390, 388)):
        camera = stage_camera((pose, FOV), size, SCALE)
        assert camera.width % 2 == camera.height % 2 == 0 and camera.width <= LONG_SIDE
        tall = np.tan(FOV / 2)
        corner = torch.tensor([[tall * size[0] / size[1], tall, 1.0]])
        corner = corner.to(camera.c2w)
        world = corner @ camera.c2w[:3, :3].T + camera.c2w[:3, 3]
        pixel, _ = camera.project(world)
        np.testing.assert_allclose(pixel[0], [camera.width, camera.height], rtol=1e-4)
        plain = camera_of(pose, FOV, camera.width, camera.height, SCALE)
        torch.testing.assert_close(camera.c2w, plain.c2w)


def test_hatching_changes_what_is_unknown_and_nothing_else():
    rng = np.random.default_rng(3)
    color = rng.integers(0, 200, (47, 61, 3), dtype=np.uint8)
    known = rng.random((47, 61)) > 0.4
    before = color.copy()
    out = hatched(color, known)
    np.testing.assert_array_equal(color, before)
    np.testing.assert_array_equal(out[known], color[known])
    assert (out[~known] != color[~known]).any(axis=1).mean() > 0.9


def test_the_view_from_here_is_made_and_remembered_and_changes_no_setting():
    with page_over(config()) as (panel, session):
        call(panel, session, panel.path.on_plan, *settings_of())
        camera = turned_cameras(4, 64, 48)[3]
        session.viewport.stage_camera = lambda: camera
        before, planned = len(session.world.scene.views), session.planned.path
        session.prompt = "kept"
        list(panel.viewport_panel.on_here(session, {}))
        assert session.job is not None and session.job.state == "done"
        assert len(session.world.scene.views) == before + 1
        torch.testing.assert_close(session.world.scene.views[-1].cameras.c2w, camera.c2w)
        assert session.prompt == "kept" and session.planned.path is planned
        session.undo()
        assert len(session.world.scene.views) == before


def test_live_is_a_third_way_to_draw():
    with page_over(config()) as (panel, session):
        call(panel, session, panel.world.on_drawing, "live")
        assert session.viewport.live and session.viewport.drawing == "points"
        updates = panel.world.on_live(session, {})
        assert not session.viewport.live and updates[panel.world.drawing] == "points"
        call(panel, session, panel.world.on_drawing, "surface")
        assert not session.viewport.live and session.viewport.drawing == "surface"
