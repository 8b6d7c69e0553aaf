"""Photos and videos without poses: placed, or refused with the reason; never a wrong pose."""

import itertools
import json
import threading
import time
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from tests import textured_room as room
from worldstereo import inputs
from worldstereo.depth import LayoutDepth
from worldstereo.errors import Cancelled, InputRefused
from worldstereo.inputs import photo, sfm, unposed, upright, video
from worldstereo.inputs.assemble import shrunk
from worldstereo.inputs.limits import LOCAL, SPACE, Limits
from worldstereo.inputs.sandbox import kept
from worldstereo.inputs.sandbox.worker import ImportWorker
from worldstereo.inputs.task import Apart, Task

pytest.importorskip("pycolmap")
W, H, FOCAL = 320, 240, 280.0


def folder_of(path: Path, pictures: list[np.ndarray], focal_35mm: int | None = None) -> Path:
    path.mkdir()
    for i, pixels in enumerate(pictures):
        exif = Image.Exif()
        if focal_35mm:
            exif.get_ifd(0x8769)[0xA405] = focal_35mm
        Image.fromarray(pixels).save(path / f"IMG_{i + 1}.jpg", quality=95, exif=exif)
    return path


@pytest.fixture(scope="module")
def poses() -> list[np.ndarray]:
    return room.walk(5, 0.3)


@pytest.fixture(scope="module")
def photos(poses: list[np.ndarray]) -> list[np.ndarray]:
    return [room.photo(c2w, W, H, FOCAL) for c2w in poses]


def errors(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Worst turn in degrees and worst way off over the longest way, after a similarity."""
    M = sum(t[:3, :3] @ f[:3, :3].T for f, t in zip(found, truth, strict=True))
    U, _, Vt = np.linalg.svd(M)
    R = U @ np.diag([1, 1, np.linalg.det(U @ Vt)]) @ Vt
    a, b = found[:, :3, 3], truth[:, :3, 3]
    a, b = a - a.mean(0), b - b.mean(0)
    off = np.sqrt((b**2).sum() / (a**2).sum()) * a @ R.T - b
    span = max(np.linalg.norm(p - q) for p, q in itertools.combinations(b, 2))
    turns = [
        np.degrees(np.arccos(np.clip((np.trace(t[:3, :3].T @ R @ f[:3, :3]) - 1) / 2, -1, 1)))
        for f, t in zip(found, truth, strict=True)
    ]
    return max(turns), float(np.linalg.norm(off, axis=1).max() / span)


def test_photos_are_placed_in_a_process_of_their_own(
    tmp_path: Path, photos: list[np.ndarray], poses: list[np.ndarray]
):
    """Poses, lens, scale and up; one copy and one damaged file are left out and named."""
    folder = folder_of(tmp_path / "flat", [*photos, photos[1]])
    (folder / "IMG_9.jpg").write_bytes((folder / "IMG_1.jpg").read_bytes()[:3000])
    said: list[tuple[int, int, str]] = []
    capture = inputs.read(folder, on_step=lambda *step: said.append(step))
    found = np.array([view.cameras.c2w.double().numpy() for view in capture.views])
    assert capture.kind == "photos" and len(found) == 5
    turn, off = errors(found, np.array(poses))
    assert turn < 0.5 and off < 0.02
    assert float(capture.views[0].cameras.K[0, 0]) == pytest.approx(FOCAL, rel=0.03)
    assert [view.name for view in capture.views] == [f"IMG_{i}.jpg" for i in range(1, 6)]
    assert capture.up is not None and capture.up.tolist() == [0, -1, 0]
    ups = np.array([-(p[:3, :3].T @ room.UP) for p in poses])  # down, as each true camera sees it
    assert np.abs(np.einsum("nij,nj->ni", found[:, :3, :3], ups) - [0, 1, 0]).max() < 0.03
    assert capture.cloud is not None and len(capture.cloud) > 100
    near = np.linalg.norm(capture.cloud.points.numpy()[:, None] - found[None, :, :3, 3], axis=-1)
    assert 2 < np.median(near) < 4 and capture.metres_per_unit is None
    text = " ".join(capture.notices)
    assert "1 photo could not be read: IMG_9.jpg." in text and "1 photo" in text
    assert "copies" in text and "how large things are" in text
    assert {message.split(":")[0] for *_, message in said} >= {"Reading photos", "Matching"}


def test_two_photos_with_a_lens_that_lies(
    tmp_path: Path, photos: list[np.ndarray], poses: list[np.ndarray]
):
    """Tags that name twice the focal length: found from the pictures, and said."""
    truth = 35 * FOCAL / W  # 36 mm wide would be 36
    folder = folder_of(tmp_path / "tags", photos, round(2 * truth))
    capture = inputs.read(folder)
    found = np.array([view.cameras.c2w.double().numpy() for view in capture.views])
    assert errors(found, np.array(poses))[0] < 0.5
    assert "focal length" in " ".join(capture.notices)


def test_photos_are_placed_within_the_limits_of_a_server(tmp_path: Path, photos: list[np.ndarray]):
    """Its import process may add 2 GB of address space: less than the largest file here."""
    capture = inputs.read(folder_of(tmp_path / "public", photos[:3]), limits=SPACE)
    assert capture.kind == "photos" and len(capture.views) == 3


@pytest.mark.parametrize("down", [0.0, 0.4])
def test_one_photo_stands_upright_on_its_own_lines(down: float):
    """A camera that looks down: up is where the lines on the walls point, and said; the
    ground of its layout lies across it."""
    eye = np.array([0.0, -1.0, 1.5])
    c2w = room.looking(eye, eye + [0.3, 1.0, -down])
    data = cv2.imencode(".png", room.photo(c2w, W, H, FOCAL)[..., ::-1])[1].tobytes()
    capture = photo.read_photo("room.png", data, LOCAL, LayoutDepth())
    assert capture.up is not None
    up = capture.up.double().numpy()
    assert np.degrees(np.arccos(up @ c2w[:3, :3].T @ room.UP)) < 2  # its focal length is assumed
    assert ("tilted" in " ".join(capture.notices)) == (down > 0)
    view = capture.views[0]
    points = view.cameras.unproject(view.cameras.pixel_grid(), view.depth.flatten())
    below = -(points.double().numpy() @ up)
    # The ground is smoothed over what stands on it; held level, it would sink to 4 units and more.
    assert below.max() == pytest.approx(1.5, abs=0.2)


def test_one_photo_without_lines_keeps_its_own_up():
    grain = np.random.default_rng(0).integers(90, 160, (H, W, 3)).astype(np.uint8)
    data = cv2.imencode(".png", cv2.GaussianBlur(grain, (0, 0), 3))[1].tobytes()
    capture = photo.read_photo("grain.png", data, LOCAL, LayoutDepth())
    assert capture.up is not None and capture.up.tolist() == [0, -1, 0]
    assert "tilted" not in " ".join(capture.notices)


@pytest.mark.parametrize(("width", "smaller"), [(1368, 1280), (988, 960), (1936, 960)])
def test_a_smaller_picture_shows_everything_where_it_was(width: int, smaller: int):
    """A sine, scaled down, against the same sine drawn at the smaller size."""

    def wave(n: int) -> np.ndarray:
        return 128 + 100 * np.sin((np.arange(n) + 0.5) * (2 * np.pi * 60 / n))

    given = np.tile(wave(width)[None, :, None], (8, 1, 3)).round().astype(np.uint8)
    got = shrunk(given, smaller, 8)[4, :, 0].astype(float)
    steepest = 100 * 2 * np.pi * 60 / smaller  # grey levels a pixel
    inner = slice(8, -8)  # there is nothing to average beyond the border
    assert np.abs(got - wave(smaller))[inner].max() / steepest < 0.08  # pixels


def solved(tmp_path: Path, pictures: list[np.ndarray], **options) -> sfm.Structure:
    work = tmp_path / "work"
    work.mkdir()
    given = []
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg", quality=95)
        given.append(sfm.Picture(f"{i}.jpg", pixels.shape[1], pixels.shape[0], None, pixels.shape))
    return sfm.solve(given, tmp_path, work, **options)


@pytest.mark.parametrize("arm", [0.0, 0.05])
def test_a_camera_that_only_turned_is_named(tmp_path: Path, arm: float):
    """Also held at arm's length: nothing tells depth, and no wrong model comes out."""
    eye = np.array([0.0, -1.0, 1.5])
    turns = [np.array([np.sin(a), np.cos(a), -0.1]) for a in np.linspace(-0.5, 0.5, 5)]
    pictures = [
        room.photo(room.looking(eye + arm * t, eye + arm * t + t), W, H, FOCAL) for t in turns
    ]
    with pytest.raises(sfm.NotPlaced, match="the camera turned but did not move") as refused:
        solved(tmp_path, pictures)
    assert refused.value.turned


def test_plain_walls_and_unlike_photos_are_told_apart(tmp_path: Path):
    plain = [np.full((H, W, 3), 90 + i, np.uint8) for i in range(3)]
    with pytest.raises(sfm.NotPlaced, match="0 features a photo, too plain or blurred"):
        solved(tmp_path, plain)
    (tmp_path / "other").mkdir()
    unlike = [np.ascontiguousarray(room.painting(seed)[:H, :W]) for seed in (11, 12, 13)]
    with pytest.raises(sfm.NotPlaced, match="0 of 3 pairs of photos show the same things"):
        solved(tmp_path / "other", unlike)


def test_two_places_in_one_folder(tmp_path: Path, photos: list[np.ndarray]):
    """The larger place is taken; the photos of the other are its part, not lost in silence."""
    poses = [c2w.copy() for c2w in room.walk(3, 0.3)]
    for c2w in poses:  # the opposite wall
        c2w[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ c2w[:3, :3]
        c2w[:3, 3] *= [-1, -1, 1]
    other = [room.photo(c2w, W, H, FOCAL) for c2w in poses]
    structure = solved(tmp_path, [*photos, *other])
    assert sorted(structure.c2w) == [0, 1, 2, 3, 4]
    assert structure.parts == (frozenset({5, 6, 7}),)


@pytest.mark.parametrize("tiles", [0, 4, 8])
def test_a_room_of_equal_tiles_is_no_silent_wrong_pose(tmp_path: Path, tiles: int):
    """Photos of tiles match at the wrong copy: poses that are off come with a doubt."""
    poses = room.walk(8, 0.2)
    folder = folder_of(tmp_path / "room", [room.photo(c2w, W, H, FOCAL, tiles) for c2w in poses])
    capture = inputs.read(folder)
    found = np.array([view.cameras.c2w.double().numpy() for view in capture.views])
    turn, off = errors(found, np.array([poses[view.frame] for view in capture.views]))
    doubt = any("things seem to repeat" in notice for notice in capture.notices)
    assert doubt == (tiles > 0)
    assert (turn > 3 or off > 0.1) == (tiles > 0)  # or this room shows nothing


def test_matches_at_the_wrong_copy_are_left_out_where_neighbours_match_more(
    tmp_path: Path, poses: list[np.ndarray], photos: list[np.ndarray], monkeypatch
):
    """Photo 1 and 5 are said to show the same wall one tile on; the true pairs place them."""
    real = sfm._Run.match

    def match(run: sfm._Run, pairs: list[tuple[int, int]]) -> None:
        import pycolmap

        real(run, pairs)
        with pycolmap.Database.open(run.database) as db:
            ids = {i.name: i.image_id for i in db.read_all_images()}
            a, b, c = (ids[f"{k}.jpg"] for k in (0, 1, 4))
            wrong = db.read_two_view_geometry(a, b)  # what 1 and 2 share, as if 5 stood at 2
            there = sfm._positions(db.read_keypoints(b))
            those = sfm._positions(db.read_keypoints(c))
            matches = np.asarray(wrong.inlier_matches)
            gap = np.linalg.norm(there[matches[:, 1]][:, None] - those[None], axis=-1)
            wrong.inlier_matches = np.column_stack([matches[:, 0], gap.argmin(1)])[::2]
            db.delete_two_view_geometry(a, c)
            db.write_two_view_geometry(a, c, wrong)

    monkeypatch.setattr(sfm._Run, "match", match)
    structure = solved(tmp_path, photos)
    assert structure.contradicted > sfm.CONTRADICTED and structure.sure > 0
    turn, off = errors(np.array([structure.c2w[i] for i in range(5)]), np.array(poses))
    assert turn < 0.5 and off < 0.02


def test_what_was_read_and_what_was_not_placed_is_shown(tmp_path: Path, photos: list[np.ndarray]):
    """Every photo while it works, small; afterwards the one that shows something else, and why."""
    other = np.ascontiguousarray(room.painting(11)[:H, :W])
    folder = folder_of(tmp_path / "set", [*photos[:4], other])
    pictures: list[np.ndarray] = []
    with ImportWorker(processes=1, warm=False) as worker:
        capture = worker.read(folder, on_picture=pictures.append)
    assert len(capture.views) == 4 and [p.shape for p in pictures] == [(120, 160, 3)] * 5
    small = cv2.resize(photos[2], (160, 120), interpolation=cv2.INTER_AREA)
    assert np.abs(pictures[2].astype(int) - small).mean() < 6
    (left,) = capture.left_out
    assert left.name == "IMG_5.jpg" and left.why == "shows nothing that others show"
    assert tuple(left.thumbnail.shape) == (3, 120, 160)
    assert any("IMG_5.jpg" in notice for notice in capture.notices)


def test_the_same_photos_give_the_same_bits(tmp_path: Path, photos: list[np.ndarray]):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = (solved(tmp_path / name, photos[:3]) for name in "ab")
    assert np.array_equal(a.points, b.points)
    assert all(np.array_equal(a.c2w[i], b.c2w[i]) for i in a.c2w)


def test_a_second_try_finds_features_and_matches_done(tmp_path: Path, photos: list[np.ndarray]):
    solved(tmp_path, photos[:3])
    database = (tmp_path / "work" / "matches.db").read_bytes()
    said: list[str] = []
    given = [sfm.Picture(f"{i}.jpg", W, H, None, (H, W, 3)) for i in range(3)]
    sfm.solve(given, tmp_path, tmp_path / "work", on_step=lambda i, n, m: said.append(m))
    assert not any(message.startswith("Finding features") for message in said)
    assert len((tmp_path / "work" / "matches.db").read_bytes()) == len(database)


def test_only_the_import_process_solves(tmp_path: Path, photos: list[np.ndarray]):
    folder = folder_of(tmp_path / "two", photos[:2])
    with pytest.raises(Apart):
        inputs.read_here(folder, "two", LOCAL, Task())


def test_a_cancel_ends_the_process_within_a_second(tmp_path: Path):
    """What was found until then is kept for the next try of the same files."""
    pictures = [room.photo(c2w, 400, 300, 350) for c2w in room.walk(6)]
    folder = folder_of(tmp_path / "set", pictures)
    stop, begun = threading.Event(), threading.Event()

    def on_step(step: int, total: int, message: str) -> None:
        if message.startswith("Finding features"):
            begun.set()

    with ImportWorker(processes=1, warm=False) as worker:
        caught: list[BaseException] = []

        def read() -> None:
            try:
                worker.read(folder, cancelled=stop, on_step=on_step)
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert begun.wait(120)
        start = time.monotonic()
        stop.set()
        thread.join(10)
        assert time.monotonic() - start < 1.0
        assert isinstance(caught[0], Cancelled)
    assert not [p for p in psutil.Process().children() if "sandbox.child" in " ".join(p.cmdline())]
    with kept.room(folder) as left:
        assert left is not None and (left / "work" / "matches.db").exists()
    with kept.room(folder) as left:  # a success takes it away
        assert left is not None and not (left / "work").exists()


# ---- video -------------------------------------------------------------------------------------


def film(path: Path, pictures: list[np.ndarray], *, pts: list[int] | None = None) -> Path:
    with av.open(str(path), "w", format="mp4" if path.suffix != ".mkv" else "matroska") as box:
        stream = box.add_stream("mpeg4", rate=30)
        stream.width, stream.height = pictures[0].shape[1], pictures[0].shape[0]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 8_000_000
        for i, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = i if pts is None else pts[i]
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
    return path


def test_keyframes_follow_the_way_the_picture_moves(tmp_path: Path):
    """A pause gives one keyframe, a blurred frame none, and times come from the stamps."""
    wall = np.tile(room.painting(3), (1, 3, 1))
    ways = [*range(0, 300, 10), *([300] * 30), *range(300, 600, 10)]
    pictures = [np.ascontiguousarray(wall[100:340, w : w + 320]) for w in ways]
    for i in range(0, len(pictures), 2):
        pictures[i] = cv2.blur(pictures[i], (9, 9))
    stamps = [6 * i if i < 60 else 6 * i + 50 for i in range(len(pictures))]  # 5 a second, a gap
    file = film(tmp_path / "pan.mp4", pictures, pts=stamps)
    found = video.keyframes(file.name, file, LOCAL)
    seconds = np.array([frame.seconds for frame in found.frames])
    index = np.round(seconds * 5).astype(int)
    moving = index[(index < 30)]
    assert 8 <= len(moving) <= 20 and np.mean(moving % 2 == 1) > 0.9
    assert np.sum((index > 32) & (index < 58)) <= 1
    assert found.frames[0].pixels.shape == (240, 320, 3)


def test_videos_that_are_none(tmp_path: Path, photos: list[np.ndarray]):
    """No picture, one picture, another suffix, cut off, ten hours: each its own line."""
    one = film(tmp_path / "one.mp4", photos[:1])
    capture = unposed.read_video("one.mp4", one, LOCAL, Task(room=tmp_path))
    assert capture.kind == "photo" and "1 frame" in " ".join(capture.notices)
    with av.open(str(tmp_path / "tone.mp4"), "w") as box:
        stream = box.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        frame.rate = 16_000
        box.mux(stream.encode(frame))
        box.mux(stream.encode())
    with pytest.raises(InputRefused, match="holds no video, only audio"):
        video.keyframes("tone.mp4", tmp_path / "tone.mp4", LOCAL)
    with pytest.raises(InputRefused, match="not a video that can be read, it looks like a PNG"):
        video.keyframes("a.mp4", b"\x89PNG\r\n\x1a\n" + bytes(99), LOCAL)
    with pytest.raises(InputRefused, match="cut off or damaged"):
        video.keyframes("b.mp4", one.read_bytes()[:400], LOCAL)
    long = film(tmp_path / "long.mp4", photos[:3], pts=[0, 30, 30 * 36_000])
    with pytest.raises(InputRefused, match="10 hours is too long. Videos up to 10 minutes"):
        video.keyframes("long.mp4", long, LOCAL)
    with pytest.raises(InputRefused, match="is too large"):
        video.keyframes("one.mp4", one, Limits(video_bytes=1000))


def test_a_playlist_in_a_videos_clothing_opens_nothing(tmp_path: Path):
    target = tmp_path / "secret.txt"
    target.write_text("secret")
    for text in (f"ffconcat version 1.0\nfile {target}\n", "#EXTM3U\nhttp://127.0.0.1:9/x.ts\n"):
        with pytest.raises(InputRefused, match="not a video"):
            video.keyframes("list.mp4", text.encode(), LOCAL)


def test_a_video_is_placed(tmp_path: Path):
    """By its first bytes, whatever its suffix says."""
    poses = room.walk(24, 0.06)
    file = film(tmp_path / "clip.mp4", [room.photo(c2w, W, H, FOCAL) for c2w in poses])
    named = tmp_path / "clip.jpg"
    file.rename(named)
    capture = inputs.read(named, limits=Limits(video_frames=6))
    assert 4 <= len(capture.views) <= 6
    index = [round(float(view.name.split()[0]) * 30) for view in capture.views]
    found = np.array([view.cameras.c2w.double().numpy() for view in capture.views])
    turn, off = errors(found, np.array([poses[i] for i in index]))
    assert turn < 2 and off < 0.1


@pytest.mark.parametrize("curve", [16, 18])
def test_high_dynamic_range_is_mapped(curve: int):
    """Black stays black, reference white is 237, neutral stays neutral, brighter rolls off."""
    white = {16: 0.58, 18: 0.75}[curve]  # 203 nits in either
    grey = np.linspace(0, 1, 65, dtype=np.float32)[None, :, None].repeat(3, -1)
    out = video.standard_range(grey, curve)
    assert out[0, 0].max() == 0 and np.all(np.diff(out[0, :, 1].astype(int)) >= 0)
    assert np.ptp(out[0], axis=-1).max() <= 2
    at = video.standard_range(np.full((1, 1, 3), white, np.float32), curve)
    assert abs(int(at[0, 0, 1]) - 237) <= 4


# ---- up ----------------------------------------------------------------------------------------


def _looks(poses: list[np.ndarray]) -> list[upright.Look]:
    K = np.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1]])
    greys = [cv2.cvtColor(room.photo(p, W, H, FOCAL), cv2.COLOR_RGB2GRAY) for p in poses]
    return [upright.Look(g, K, p) for g, p in zip(greys, poses, strict=True)]


def test_up_is_where_upright_lines_vanish():
    """Cameras that look down lean the mean by 20 degrees; the lines do not care."""
    eyes = [np.array([x, -1.0, 1.6]) for x in np.linspace(-1, 1, 6)]
    poses = [room.looking(e, np.array([e[0], 1.5, 0.6]), roll=0.02 * i) for i, e in enumerate(eyes)]
    looks = _looks(poses)
    found = upright.from_looks([look.c2w for look in looks], lambda i: looks[i])
    assert found.how == "lines" and found.up is not None
    assert np.degrees(np.arccos(found.up @ room.UP)) < 0.7
    mean = -np.mean([p[:3, 1] for p in poses], axis=0)
    assert np.degrees(np.arccos(mean @ room.UP / np.linalg.norm(mean))) > 15


def test_without_lines_the_level_axis_counts():
    """Cameras around a thing look down at it: each is level, together they say up."""
    rng = np.random.default_rng(0)
    eyes = [np.array([2 * np.cos(a), 2 * np.sin(a), 1.5]) for a in np.linspace(0, 2, 6)]
    poses = [room.looking(e, np.zeros(3)) for e in eyes]
    K = np.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1]])
    noise = rng.integers(0, 255, (H, W), dtype=np.uint8)
    found = upright.from_looks(poses, lambda i: upright.Look(noise, K, poses[i]))
    assert found.how == "level" and found.up is not None and found.guessed
    assert np.degrees(np.arccos(found.up @ room.UP)) < 0.1
    assert upright.from_looks([], lambda i: upright.Look(noise, K, poses[i])).up is None


def test_kept_folders_know_their_files(tmp_path: Path, photos: list[np.ndarray]):
    """Other bytes, another folder; what is never placed has none."""
    a = folder_of(tmp_path / "a", photos[:2])
    b = folder_of(tmp_path / "b", photos[1:3])
    with kept.room(a) as first, kept.room(b) as second:
        assert first is not None and second is not None and first != second
        with kept.room(a) as third:  # in use by another job
            assert third is None
    (tmp_path / "frames.json").write_text(json.dumps({}))
    with kept.room(tmp_path / "frames.json") as none:
        assert none is None


def test_two_thousand_photos_are_thinned_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Evenly, from the first to the last, and said; no more than that is ever decoded."""
    rng = np.random.default_rng(0)
    (tmp_path / "many").mkdir()
    for i in range(2000):
        pixels = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "many" / f"{i:04d}.jpg")
    asked: list[str] = []

    def placed(name, sources, limits, task, kind, notices):  # noqa: ANN001, ANN202
        asked.extend(source.name for source in sources)
        raise InputRefused(" ".join(notices))

    monkeypatch.setattr(unposed, "_placed", placed)
    with pytest.raises(InputRefused, match="2000 photos are more than 300; thinned evenly"):
        inputs.read_here(tmp_path / "many", "many", LOCAL, Task(room=tmp_path))
    assert len(asked) == 300 and asked[0].endswith("0000.jpg") and asked[-1].endswith("1999.jpg")
