"""Tours: what a script may say, and which picture each frame of the film shows."""

import io
import json
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import room, turned_cameras
from ui.tour.__main__ import SCRIPTS
from ui.tour.film import Film
from ui.tour.record import _Player
from ui.tour.script import FIELDS, Tour
from worldstereo.cameras import Cameras
from worldstereo.errors import InputRefused
from worldstereo.scene import Scene, View
from worldstereo.world import default_view


def test_the_bundled_scripts_are_tours():
    assert {path.stem for path in SCRIPTS.glob("*.json")} == {"walkthrough", "inspect", "picture"}
    for path in SCRIPTS.glob("*.json"):
        assert len(Tour.read(path).steps) == len(json.loads(path.read_text())["steps"])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "an object with a list of steps"),
        ({"steps": []}, "1 to 500 steps, got 0"),
        ({"steps": [{"jump": 1}]}, "step 1 must have exactly one of caption"),
        ({"steps": [{"pause": 1, "key": "g"}]}, "exactly one of"),
        ({"steps": [{"pause": "long"}]}, "a number from 0 to 600 is wanted, got 'long'"),
        ({"steps": [{"pause": 1}, {"fly": "home"}]}, "step 2: fly must be one of"),
        ({"steps": [{"picture": "../x.jpg"}]}, "name of a .jpg or .png"),
        ({"steps": [{"animation": "fly.gif"}]}, "name of a .webp file"),
        ({"steps": [{"animation": "fly.webp", "seconds": 90}]}, "a number from 0.1 to 60"),
        ({"steps": [{"pause": 1}], "fsp": 3}, "no field 'fsp'"),
        ({"steps": [{"pause": 1}], "size": [1, 2]}, "a number from 320 to 3840"),
        ({"steps": [{"click": "#a", "at": [2, 0]}]}, "a number from 0 to 1"),
    ],
)
def test_what_is_no_tour_is_refused_in_one_line(found, words, tmp_path):
    path = tmp_path / "tour.json"
    path.write_text(json.dumps(found))
    with pytest.raises(InputRefused, match="tour.json") as refused:
        Tour.read(path)
    assert words in str(refused.value) and "\n" not in str(refused.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8), st.lists, max_leaves=5
)
STEP = st.dictionaries(st.sampled_from([*FIELDS, "seconds", "at", "value"]), VALUES, max_size=3)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({"steps": st.lists(STEP, max_size=3) | VALUES, "size": VALUES}))
def test_no_script_is_a_crash(found):
    try:
        tour = Tour.of(found)
    except ValueError as refused:
        assert len(str(refused).splitlines()) == 1
    else:
        assert len(tour.steps) == len(found["steps"])


def shade(value: int, size=(64, 48)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(out, "jpeg", quality=95)
    return out.getvalue()


def test_a_frame_shows_the_newest_picture_seen_by_then(tmp_path):
    """Four pictures a second, then ten seconds of waiting that take two of the film."""
    film = Film()
    film.mark(100.0, 0.0)
    film.mark(101.0, 1.0)
    film.mark(111.0, 3.0)
    for k in range(4):
        film.add(shade(10 * k), 100 + k / 4)
    film.add(shade(200), 106.0)  # half way: second 2 of the film
    film.add(shade(201), 106.0)  # no later than the one before it: left out
    assert len(film) == 5 and film.seconds == 3.0
    assert film.shown_at(106.0) == pytest.approx(2.0)
    assert film.frames(4) == [0, 1, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4]

    film.write(tmp_path / "tour.mp4", 4, (64, 48))
    with av.open(str(tmp_path / "tour.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        grey = [np.asarray(f.to_image()).mean() for f in container.decode(video=0)]
    wanted = np.array([0, 10, 20, 30, 30, 30, 30, 30, 200, 200, 200, 200])
    assert np.abs(np.array(grey) - wanted).max() < 4

    film.animate(tmp_path / "end.webp", 2.0, 3.0, width=32, fps=4)  # from where it is bright
    film.animate(tmp_path / "all.webp", 0.0, 3.0, width=32, fps=4)
    with Image.open(tmp_path / "end.webp") as bright, Image.open(tmp_path / "all.webp") as whole:
        assert bright.size == (32, 24) and np.asarray(bright.convert("L")).min() > 190
        whole.seek(whole.n_frames - 1)  # equal neighbours are one long frame
        assert whole.n_frames == 5 and np.asarray(whole.convert("L")).min() > 190
    film.close()


def test_nothing_is_left_where_the_film_cannot_be_written(tmp_path):
    film = Film()
    film.mark(0.0, 0.0)
    film.add(shade(1), 0.0)
    film.mark(1.0, 1.0)
    with pytest.raises(OSError):
        film.write(tmp_path / "nowhere" / "tour.mp4", 4, (64, 48))
    (tmp_path / "taken.mp4").mkdir()
    with pytest.raises(OSError):
        film.write(tmp_path / "taken.mp4", 4, (64, 48))
    assert [path.name for path in tmp_path.iterdir()] == ["taken.mp4"]
    film.close()


@pytest.mark.parametrize("visited", [True, False])
def test_a_camera_flies_from_where_the_visitor_is(visited: bool, monkeypatch):
    """Or from the world's own first view, where no page says where the visitor is.

    Each place of the flight waits for its picture, however slow the browser draws.
    """
    cameras = turned_cameras(2)
    color, depth = room(cameras)
    views = tuple(View.of(color[i], depth[i], cameras[i], frame=i) for i in range(2))
    flown: list[Cameras] = []
    here = cameras[1] if visited else None
    viewport = SimpleNamespace(camera=lambda: here, fly_to=flown.append, still=False)
    world = SimpleNamespace(scene=Scene(views=views, unit=2.0))
    session: Any = SimpleNamespace(viewport=viewport, world=world)
    tour = Tour.of({"steps": [{"fly": "truck", "seconds": 1}], "fps": 10})
    film, waits = Film(), []
    player = _Player(None, session, tour, film, None, lambda *_: None)

    def passing(seconds: float) -> None:
        waits.append(len(flown))
        if len(waits) % 3 == 0:  # the third look finds the picture
            film.add(shade(1), float(len(waits)))

    monkeypatch.setattr(player, "_pass", passing)
    player._fly(tour.steps[0])
    assert waits == [k for k in range(1, 13) for _ in range(3)] and len(film) == 12
    first = cameras[1] if visited else default_view(session.world.scene)
    assert torch.allclose(flown[0].c2w, first.c2w, atol=1e-5)
    assert viewport.still is False
    film.close()
