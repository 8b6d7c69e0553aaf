"""Photos without poses dropped on an open world: found ones grow it, the others are named."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests import textured
from worldstereo import Cancelled, Capture, InputRefused, WarpGenerator, World, WorldStereoError
from worldstereo.cli import main
from worldstereo.project import load_world, save_world
from worldstereo.scene import PointCloud
from worldstereo.world import add, locate, set_registration, start

NEW = {
    "near.png": textured.camera_at((0.25, -0.15, 0.2), (-0.5, 0.2, 4.0)),
    "side.png": textured.camera_at((-0.3, 0.0, 0.1), (-1.4, 0.3, 4.0)),
}


def save(folder, name: str, color_u8: torch.Tensor) -> None:
    Image.fromarray(color_u8.permute(1, 2, 0).numpy()).save(folder / name)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name, camera in NEW.items():
        save(folder, name, textured.view_of(camera).color_u8)
    save(folder, "again.png", textured.view_of(NEW["near.png"]).color_u8)
    save(folder, "elsewhere.png", textured.view_of(NEW["near.png"], seed=7).color_u8)
    save(folder, "plain.png", torch.full((3, 240, 320), 90, dtype=torch.uint8))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return folder


@pytest.fixture
def world():
    world = World(WarpGenerator(), max_points=200_000)
    start(world, Capture("room", "rgbd", tuple(textured.views(4))), register=False)
    return world


def test_found_photos_grow_the_world_in_one_step(world, photos):
    before = world.scene
    report = add(world, photos)
    status = {photo.name: photo.status for photo in report.photos}
    # Read in order of their names: again.png comes first, near.png is its copy.
    assert status == {
        "again.png": "added",
        "near.png": "copy",
        "elsewhere.png": "not found",
        "plain.png": "not found",
        "side.png": "added",
    }
    assert any("broken.png" in line for line in report.lines())
    assert all(photo.reason for photo in report.left_out)
    assert all(max(photo.picture.shape) <= 160 for photo in report.photos)
    assert len(world.scene.views) == len(before.views) + 2
    assert len(world.scene.cloud) > len(before.cloud)
    for photo in report.added:
        view = world.scene.views[photo.view]
        truth = NEW[photo.name.replace("again", "near")]
        assert float((view.cameras.position - truth.position).norm()) < 0.05
        known = textured.view_of(truth).depth
        off = ((view.depth - known).abs() / known)[view.depth > 0]
        assert float(off.median()) < 0.03
    assert world.undo()
    assert len(world.scene.views) == len(before.views)
    assert torch.equal(world.scene.cloud.points, before.cloud.points)


def test_keyframes_of_a_video_find_their_places(world, tmp_path):
    """The way of the camera is what the film was drawn from; what is no place is named by time."""
    import av

    places = [
        textured.camera_at((0.3 * k - 0.4, -0.05 * k, 0.1), (0.7 * k - 1.5, 0.25, 4.0))
        for k in range(4)
    ]
    with av.open(str(tmp_path / "walk.mp4"), "w") as box:
        stream = box.add_stream("libx264", rate=2, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for camera in places:
            picture = textured.view_of(camera).color_u8.permute(1, 2, 0).numpy()
            box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        box.mux(stream.encode())
    report = add(world, tmp_path / "walk.mp4", doubtful=True)
    assert len(report.added) >= 2 and any("of 4 frames" in n for n in report.notices)
    for photo in report.added:
        seconds = float(photo.name.removeprefix("walk.mp4 at ").removesuffix(" s"))
        truth = places[round(2 * seconds)]
        found = world.scene.views[photo.view].cameras
        assert float((found.position - truth.position).norm()) < 0.1
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "walk.mp4").read_bytes()[:300])
    with pytest.raises(InputRefused, match=r"cut.mp4.*video"):
        add(world, tmp_path / "cut.mp4")


def test_nothing_found_changes_nothing(world, photos):
    revision = world.scene.revision
    report = add(world, [photos / "plain.png", photos / "elsewhere.png"])
    assert not report.added and len(report.left_out) == 2
    assert world.scene.revision == revision and not world.history[-1].label.startswith("add")


def screenshot() -> np.ndarray:
    """A window of an editor: a bar of title, a column of files, lines of text. Seeded."""
    import cv2

    image = np.full((240, 320, 3), 245, np.uint8)
    image[:22], image[22:, :70] = (60, 63, 70), (225, 228, 232)
    rng = np.random.default_rng(4)
    for row in range(16):
        words = "".join(chr(97 + int(c)) for c in rng.integers(0, 26, 22))
        at, font = (80, 38 + 13 * row), cv2.FONT_HERSHEY_PLAIN
        cv2.putText(image, words, at, font, 0.7, (30, 30, 30), 1, cv2.LINE_AA)
        cv2.putText(image, words[:6], (6, at[1]), font, 0.7, (80, 90, 120), 1, cv2.LINE_AA)
    return image


def blurred(color_u8: torch.Tensor, pixels: float) -> np.ndarray:
    import cv2

    return cv2.GaussianBlur(color_u8.permute(1, 2, 0).numpy(), (0, 0), pixels)


BAD = {
    "blurred": lambda seen: blurred(seen, 9.0),
    "mirrored": lambda seen: seen.flip(-1).permute(1, 2, 0).numpy(),
    "plain wall": lambda seen: np.full((240, 320, 3), 171, np.uint8),
    "noise in the dark": lambda seen: np.random.default_rng(1).poisson(3, (240, 320, 3)),
    "screenshot": lambda seen: screenshot(),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_photo_is_named_in_one_line_and_nothing_is_half_added(world, tmp_path, kind):
    before, keypoints = world.scene, {k: v.clone() for k, v in world.keypoints().items()}
    steps = len(world.history)
    seen = textured.view_of(NEW["near.png"]).color_u8
    Image.fromarray(np.ascontiguousarray(BAD[kind](seen), np.uint8)).save(tmp_path / "bad.png")
    report = add(world, tmp_path / "bad.png")
    assert not report.added and len(report.left_out) == 1
    (photo,) = report.photos
    assert photo.status in ("not found", "doubtful")
    assert 5 < len(photo.reason) < 200 and "\n" not in photo.reason
    assert [line for line in report.lines() if line.startswith("bad.png: ")] == [
        f"bad.png: {photo.status}, {photo.reason}."
    ]
    assert world.scene is before and len(world.history) == steps
    after = world.keypoints()
    assert after.keys() == keypoints.keys()
    assert all(torch.equal(after[name], keypoints[name]) for name in keypoints)


def test_the_same_photo_twice_is_added_once(world, photos, tmp_path):
    """Under another name and as a lossy copy; in one call and in the next."""
    seen = Image.open(photos / "near.png").convert("RGB")
    seen.save(tmp_path / "a.png")
    seen.save(tmp_path / "b.jpg", quality=70)
    report = add(world, tmp_path)
    assert [photo.status for photo in report.photos] == ["added", "copy"]
    assert "a.png" in report.photos[1].reason
    scene = world.scene
    assert len(scene.views) == 5
    again = add(world, [tmp_path / "b.jpg", photos / "near.png"])
    assert [photo.status for photo in again.photos] == ["copy", "copy"] and not again.added
    assert world.scene is scene


def test_cancel_in_the_middle_leaves_the_world(world, photos):
    before, size = world.scene, world.keypoints()["memory.points"].shape

    def stop(step: int, total: int, message: str) -> None:
        if message.startswith("Remembering photo 2"):
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        add(world, photos, on_step=stop)
    assert world.scene is before and world.keypoints()["memory.points"].shape == size


def test_where_was_this_taken(world, photos):
    revision = world.scene.revision
    ((name, place),) = locate(world, photos / "near.png")
    assert name == "near.png" and place.found and world.scene.revision == revision


def test_a_world_of_points_says_that_it_holds_no_keypoints(photos):
    world = World(WarpGenerator(), max_points=1000)
    start(world, Capture("mesh", "cloud", cloud=PointCloud.of(torch.rand(500, 3))))
    with pytest.raises(WorldStereoError, match="mesh or point cloud and holds no keypoints"):
        add(world, photos)


def test_registration_can_be_switched_after_adding(photos):
    """The world that grew has one given pose and one packed depth for every given view."""
    world = World(WarpGenerator(), max_points=200_000)
    start(world, Capture("room", "rgbd", tuple(textured.views(3))))
    add(world, photos / "near.png")
    n = len(world.scene.views)
    assert world.registration is not None and len(world.registration) == n
    set_registration(world, False)
    assert len(world.scene.views) == n


def test_keypoints_travel_with_the_project_and_older_files_get_them_anew(world, tmp_path):
    import json

    save_world(world, tmp_path / "room.world")
    other = World(WarpGenerator(), max_points=200_000)
    load_world(other, tmp_path / "room.world")
    ours, theirs = world.keypoints(), other.keypoints()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    from worldstereo.project._files import checksum, compact_json

    manifest = tmp_path / "room.world" / "project.json"
    fields = json.loads(manifest.read_bytes())
    del fields["state"]["keypoints"]
    body = {key: fields[key] for key in ("small", "members", "state")}
    manifest.write_bytes(compact_json({**fields, "checksum": checksum(body)}))
    load_world(other, tmp_path / "room.world")
    again = other.keypoints()
    assert np.array_equal(again["memory.points"], ours["memory.points"])


def test_the_command_line_adds_photos(world, photos, tmp_path, capsys):
    save_world(world, tmp_path / "room.world")
    assert main(["add", str(tmp_path / "room.world"), str(photos)]) == 0
    out = capsys.readouterr().out
    assert "2 of 5 photos were added." in out and "plain.png: not found" in out
    other = World(WarpGenerator(), max_points=200_000)
    load_world(other, tmp_path / "room.world")
    assert len(other.scene.views) == 6
    assert main(["add", str(tmp_path / "room.world"), str(tmp_path / "nothing.png")]) == 1
