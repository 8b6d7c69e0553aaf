"""Photos added to an open world through a session: read apart, one step, nothing by halves."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import textured
from tests.test_session import SECONDS, config, until
from ui.session import session as sessions_module
from ui.session.sessions import Session, Sessions
from worldstereo import Capture, WorldBusy, WorldStereoError
from worldstereo.errors import Cancelled, InputRefused
from worldstereo.inputs import pictures
from worldstereo.project import load_world
from worldstereo.scene import PointCloud
from worldstereo.world import start

NEW = textured.camera_at((0.25, -0.15, 0.2), (-0.5, 0.2, 4.0))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photos")
    made = {
        "near.png": textured.view_of(NEW).color_u8,
        "elsewhere.png": textured.view_of(NEW, seed=7).color_u8,
        "plain.png": torch.full((3, 240, 320), 90, dtype=torch.uint8),
    }
    for name, color in made.items():
        Image.fromarray(color.permute(1, 2, 0).numpy()).save(folder / name)
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    """As in the app: foreign files are read by the import process."""
    made = Sessions(replace(config(tmp_path_factory.mktemp("worlds")), read=None))
    yield made
    made.close_all()


@pytest.fixture
def session(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> Session:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a stranger's picture was decoded in the app's process")

    monkeypatch.setattr(pictures.images, "photo", refuse)
    session = sessions.create()
    start(session.world, Capture("room", "rgbd", tuple(textured.views(4))), register=False)
    return session


def bits(session: Session) -> list[np.ndarray]:
    scene = session.world.scene
    kept = [scene.cloud.points, scene.cloud.colors, *session.world.keypoints().values()]
    return [np.asarray(one).copy() for one in kept]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_found_photos_enter_in_one_step_that_is_saved_and_undone(session: Session, photos):
    before, views, steps = bits(session), len(session.world.scene.views), len(session.world.history)
    report = session.add(list(photos.values())).result(SECONDS)
    assert {photo.name: photo.status for photo in report.photos} == {
        "near.png": "added",
        "elsewhere.png": "not found",
        "plain.png": "not found",
    }
    assert all(photo.reason for photo in report.left_out)
    assert any("torn.png" in notice for notice in report.notices)
    assert len(session.world.scene.views) == views + 1 and len(session.world.history) == steps + 1
    placed = session.world.scene.views[report.added[0].view].cameras
    assert float((placed.position - NEW.position).norm()) < 0.05
    saved = session.shared.new_world()
    assert session.saving.path is not None
    load_world(saved, session.saving.path)
    assert len(saved.scene.views) == views + 1
    assert session.undo()
    assert len(session.world.scene.views) == views and same(bits(session), before)


def test_photos_of_another_place_change_nothing(session: Session, photos):
    scene = session.world.scene
    report = session.add([photos["elsewhere.png"], photos["plain.png"]]).result(SECONDS)
    assert not report.added and session.world.scene is scene
    with pytest.raises(InputRefused, match="torn.png"):
        session.add([photos["torn.png"]]).result(SECONDS)
    assert session.world.scene is scene and not session.busy


@pytest.mark.parametrize("says", ["Reading", "Finding photo", "Remembering photo"])
def test_cancel_leaves_the_world_as_it_was(session: Session, photos, says, monkeypatch):
    """While they are read by the import process, while they are found, and in the middle of it."""
    before, scene = bits(session), session.world.scene
    heard = sessions_module.Job.on_step

    def stop(job, step: int, total: int, message: str) -> None:
        if job.kind == "add" and message.startswith(says):
            job.cancel()
            if says == "Reading":
                return  # it is the import process that is told
        heard(job, step, total, message)

    monkeypatch.setattr(sessions_module.Job, "on_step", stop)
    job = session.add([photos["near.png"]])
    with pytest.raises(Cancelled, match="world is unchanged"):
        job.result(SECONDS)
    until(lambda: not session.busy)
    assert session.world.scene is scene and same(bits(session), before)


def test_what_cannot_be_added_is_refused_at_once(session: Session, sessions: Sessions, photos):
    with pytest.raises(WorldStereoError, match="No photos were chosen"):
        session.add([])
    job = session.add([photos["plain.png"]])
    with pytest.raises(WorldBusy):
        session.add([photos["near.png"]])
    job.result(SECONDS)
    mesh = sessions.create()
    start(mesh.world, Capture("mesh", "cloud", cloud=PointCloud.of(torch.rand(500, 3))))
    with pytest.raises(WorldStereoError, match="no views to match against"):
        mesh.add([photos["near.png"]])
