"""One writer, many readers: a step is all or nothing, and undo goes back exactly."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import InstantGenerator, room_capture
from worldstereo import Cancelled, Trajectory, World, WorldBusy, WorldStereoError
from worldstereo.world import delete_points, explore, set_registration, set_scale, set_up, start


@pytest.fixture
def world(instant):
    world = World(instant, max_points=50_000)
    start(world, room_capture(), register=False)
    return world


def path(world, frames=2):
    camera = world.scene.views[0].cameras
    return Trajectory.preset("truck", camera, distance=2.0, frames=frames, up=world.scene.up)


def fingerprint(world):
    geometry, stereo = world.memories()
    return {f"g/{k}": v for k, v in geometry.items()} | {f"s/{k}": v for k, v in stereo.items()}


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key


def test_a_step_publishes_one_scene_and_wakes_its_listeners(world):
    woken = []
    unsubscribe = world.subscribe(lambda: woken.append(world.scene.revision))
    before = world.scene
    clip = explore(world, path(world))
    assert len(clip) == 2
    assert woken == [world.scene.revision]
    assert world.scene.revision > before.revision
    assert len(world.scene.views) == len(before.views) + 2
    assert world.history[-1].views_added == 2
    unsubscribe()
    world.undo()
    assert len(woken) == 1


def test_a_published_scene_never_changes(world):
    before = world.scene
    points, views = before.cloud.points.clone(), len(before.views)
    explore(world, path(world))
    delete_points(world, torch.arange(len(world.scene.cloud)) % 2 == 0)
    assert torch.equal(before.cloud.points, points)
    assert len(before.views) == views


@pytest.mark.parametrize("error", [Cancelled("stop"), RuntimeError("out of memory")])
def test_an_error_in_the_middle_leaves_everything_as_it_was(world, error):
    before, scene = fingerprint(world), world.scene

    def stop(step, total, message):
        if step == 1:
            raise error

    with pytest.raises(type(error)):
        explore(world, path(world, 3), on_step=stop)
    assert world.scene is scene
    assert_same(before, fingerprint(world))
    assert len(explore(world, path(world))) == 2


def test_a_second_writer_is_told_and_readers_never_wait(world):
    with world.step("long"):
        assert world.busy
        with pytest.raises(WorldBusy, match="wait for it or cancel it"):
            world.undo()
        with pytest.raises(WorldBusy), world.step("other"):
            pass
        assert len(world.scene.views) == 3
    assert not world.busy


def test_undo_and_redo_restore_bit_for_bit(world):
    states = [fingerprint(world)]
    for frames in (1, 2, 3):
        explore(world, path(world, frames))
        states.append(fingerprint(world))
    clouds = [len(world.scene.cloud)]
    for state in reversed(states[:-1]):
        assert world.undo()
        assert_same(state, fingerprint(world))
        clouds.append(len(world.scene.cloud))
    for state in states[1:]:
        assert world.redo()
        assert_same(state, fingerprint(world))
    assert not world.redo()
    assert len(world.scene.cloud) == clouds[0]


def test_a_new_step_forgets_what_was_undone(world):
    explore(world, path(world))
    world.undo()
    explore(world, path(world, 1))
    assert not world.can_redo
    assert len(world.scene.views) == 4


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from(["explore", "undo", "redo", "fail", "up", "delete"]), max_size=8))
def test_any_history_of_steps_keeps_views_cloud_and_history_in_step(moves):
    """Whatever is done: the history counts the steps, and the cloud shows the memory's points."""
    world = World(InstantGenerator(), max_points=50_000)
    start(world, room_capture(n=1, width=33, height=29), register=False)
    model, ahead = [1], []
    for move in moves:
        if move == "explore":
            explore(world, path(world, 1))
            model.append(model[-1] + 1)
            ahead.clear()
        elif move == "fail":
            with pytest.raises(ZeroDivisionError), world.step("fail") as draft:
                draft.views.clear()
                draft.stereo.clear()
                raise ZeroDivisionError
        elif move == "up":
            set_up(world, torch.tensor([0.0, 0.0, 1.0]))
            model.append(model[-1])
            ahead.clear()
        elif move == "delete":
            first = torch.arange(len(world.scene.cloud)) < 2
            assert delete_points(world, first) == 2
            assert delete_points(world, torch.zeros(len(world.scene.cloud)) > 1) == 0
            model.append(model[-1])
            ahead.clear()
        elif move == "undo" and len(model) > 1:
            assert world.undo()
            ahead.append(model.pop())
        elif move == "redo" and ahead:
            assert world.redo()
            model.append(ahead.pop())
        assert len(world.scene.views) == model[-1]
        assert len(world.history) == len(model)
        state, _ = world.memories()
        assert len(world.scene.cloud) == world._geometry.num_points
        assert state


def test_exploring_an_empty_world_says_what_to_do(instant):
    world = World(instant)
    camera = room_capture().views[0].cameras
    with pytest.raises(WorldStereoError, match="Open an example"):
        explore(world, Trajectory.preset("dolly", camera, distance=1.0, frames=2))


def test_deleted_points_do_not_come_back(world):
    cloud = world.scene.cloud
    left = cloud.points[:, 0] < -0.2
    removed = delete_points(world, left)
    assert removed == int(left.sum())
    assert not bool((world.scene.cloud.points[:, 0] < -0.2).any())
    for view in world.scene.views:
        pixels = view.cameras.pixel_grid().reshape(view.height, view.width, 2)[view.mask[0]]
        points = view.cameras.unproject(pixels, view.depth[0][view.mask[0]])
        assert float((points[:, 0] < -0.25).float().mean()) < 0.02
    world.undo()
    assert len(world.scene.cloud) == len(cloud)


def test_up_and_scale_are_steps_and_refuse_nonsense(world):
    set_up(world, torch.tensor([0.0, 0.0, 2.0]))
    assert world.scene.up.tolist() == [0.0, 0.0, 1.0]
    set_scale(world, 0.25)
    assert world.scene.metres_per_unit == 0.25
    scene = world.scene
    with pytest.raises(ValueError, match="finite direction"):
        set_up(world, torch.zeros(3))
    with pytest.raises(ValueError, match="positive and finite"):
        set_scale(world, float("nan"))
    assert world.scene is scene
    world.undo()
    world.undo()
    assert world.scene.up.tolist() == [0.0, -1.0, 0.0]


def test_readers_in_other_threads_always_see_a_whole_scene(world):
    broken, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            scene = world.scene
            if len(scene.cloud.step) != len(scene.cloud.points):
                broken.append(scene.revision)
            if int(scene.cloud.source.max()) >= len(scene.views):
                broken.append(scene.revision)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(4):
        explore(world, path(world, 1))
        world.undo()
    stop.set()
    for reader in readers:
        reader.join()
    assert broken == []


def test_a_photo_keeps_its_guessed_depth(instant):
    """The only depth there is becomes the cloud, weighs little, and is never registered."""
    from io import BytesIO

    from PIL import Image

    from worldstereo import read

    rows = torch.arange(48)[:, None, None].expand(48, 64, 3)
    picture = BytesIO()
    Image.fromarray((rows * 5).byte().numpy()).save(picture, "PNG")
    capture = read(picture.getvalue(), "street.png")
    assert capture.rough_depth
    world = World(instant, max_points=50_000)
    start(world, capture)
    view = world.scene.views[0]
    assert torch.equal(view.depth, capture.views[0].depth)
    assert len(world.scene.cloud) == int((view.depth[0, 1::2, 1::2] > 0).sum()) > 500
    assert float(world.scene.cloud.confidence.max()) < 0.5
    assert world.scene.unit == pytest.approx(float(view.depth.median()), rel=0.2)
    with pytest.raises(WorldStereoError, match="two given views"):
        set_registration(world, True)
