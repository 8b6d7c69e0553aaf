"""What a person does with a file of their own: open it, measure, box, place keyframes, look again.

The world is small, so that a frame in software is quick; waits are for final states.
"""

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser.test_story import idle, number_of, tab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

SIDE = 110  # points along a side of the wall


def wall() -> bytes:
    """A coloured wall of 2 x 2 units at z = 0, as PLY without faces."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    rows = np.zeros(SIDE * SIDE, [(n, "<f4") for n in "xyz"] + [(n, "u1") for n in ("r", "g", "b")])
    rows["x"], rows["y"] = x.ravel(), y.ravel()
    rows["r"], rows["g"], rows["b"] = (x.ravel() + 1) * 120, (y.ravel() + 1) * 120, 90
    names = [f"property float {n}" for n in "xyz"]
    names += [f"property uchar {n}" for n in ("red", "green", "blue")]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}", *names]
    return ("\n".join([*head, "end_header"]) + "\n").encode() + rows.tobytes()


def send(page: Any, path: Path) -> None:
    page.locator("#upload").locator("xpath=..").locator("input[type=file]").set_input_files(path)


def at(page: Any, u: float, v: float) -> tuple[float, float]:
    """A place on the stage, 0 to 1 from the top left."""
    box = page.locator("#viewport").bounding_box()
    assert box is not None
    return box["x"] + u * box["width"], box["y"] + v * box["height"]


def drag(page: Any, a: tuple[float, float], b: tuple[float, float]) -> None:
    (x0, y0), (x1, y1) = at(page, *a), at(page, *b)
    page.mouse.move(x0, y0)
    page.mouse.down()
    for s in (0.25, 0.5, 0.75, 1.0):
        page.mouse.move(x0 + s * (x1 - x0), y0 + s * (y1 - y0))
        page.wait_for_timeout(150)
    page.mouse.up()


def until(page: Any, act: Any, condition: str, tries: int = 8) -> None:
    """Do it, and again: a page that is still drawing may miss a click."""
    for _ in range(tries):
        act()
        try:
            page.wait_for_function(f"() => {condition}", timeout=8_000)
        except Exception:  # noqa: BLE001, S112  (playwright's own, of several kinds)
            continue
        return
    pytest.fail(f"never: {condition}")


def text(selector: str, pattern: str) -> str:
    return f"/{pattern}/.test(document.querySelector('{selector}').innerText)"


def test_a_file_of_ones_own(visit, tmp_path):
    page = visit()
    idle(page)
    points, views = number_of(page, "points"), number_of(page, "given")
    tab(page, "World")

    # what cannot be read is refused in one line, and the world stays
    hostile = io.BytesIO()
    with zipfile.ZipFile(hostile, "w") as archive:
        archive.writestr("../../etc/cron.d/x", "boo")
    files = {
        "up.zip": (hostile.getvalue(), "outside the archive"),
        "cut.ply": (wall()[:900], "the header says 12100 points"),
        "notes.txt": (b"hello", "notes.txt"),
    }
    for name, (data, words) in files.items():
        (tmp_path / name).write_bytes(data)
        send(page, tmp_path / name)
        page.locator(".refusal", has_text=words).wait_for()
        idle(page)
        assert page.locator(".refusal").count() == 1
        assert "Traceback" not in page.inner_text("body")
        assert (number_of(page, "points"), number_of(page, "given")) == (points, views)
        page.locator(".refusal [data-close]").click()

    # a cloud of one's own becomes the world, with a path planned
    (tmp_path / "wall.ply").write_bytes(wall())
    send(page, tmp_path / "wall.ply")
    page.wait_for_function(f"() => {text('#bar', 'wall')}")
    idle(page)
    assert number_of(page, "points") == SIDE * SIDE and number_of(page, "given") == 0
    assert page.locator("#registered input").is_disabled()
    assert page.locator("#act-home").is_enabled()
    stage = "document.querySelector('#viewport iframe').contentWindow.__viserTestpoints"
    page.wait_for_function(f"() => {stage}?.rendererInfo?.render?.points >= {SIDE * SIDE}")

    # measure, and say how long that really is
    page.locator("[data-hint]").click()
    page.keyboard.press("m")
    page.wait_for_function(f"() => {text('#hud', 'two points')}")

    def ends() -> None:
        for u in (0.42, 0.58):
            page.mouse.click(*at(page, u, 0.5))
            page.wait_for_timeout(1500)

    until(page, ends, text("#hud", "measured"))
    found = re.search(r"([\d.]+) units", page.inner_text("#hud"))
    assert found is not None and 0.1 < float(found.group(1)) < 2.9
    page.locator("#scale input").fill(str(4 * float(found.group(1))))
    page.locator("#set-scale").click()
    page.wait_for_function(f"() => {text('#side', 'One unit is [34][.0-9]* m')}")
    page.locator("#act-undo").click()
    page.wait_for_function("() => document.querySelector('#act-redo').disabled === false")
    page.keyboard.press("m")

    # box some, delete them, and have them back
    page.keyboard.press("b")
    page.wait_for_function(f"() => {text('#hud', 'draw a box')}")
    until(page, lambda: drag(page, (0.45, 0.45), (0.55, 0.55)), text("#hud", "selected"))
    assert page.locator("#delete").is_enabled()
    page.keyboard.press("Delete")
    page.wait_for_function(f"() => {text('#message', 'points? deleted')}")
    assert 0 < number_of(page, "points") < SIDE * SIDE
    page.keyboard.press("z")
    page.wait_for_function(f"() => {text('#bar', '12,100')}")
    page.keyboard.press("b")

    # keyframes: nothing can be made before there are two, then a path runs through them
    tab(page, "Path")
    page.locator("#side label", has_text="Keyframes").click()
    page.wait_for_function(f"() => {text('#preview', 'press K')}")
    page.wait_for_function("() => document.querySelector('#generate').disabled")
    page.keyboard.press("k")
    page.wait_for_function(f"() => {text('#side', '1 keyframe')}")
    drag(page, (0.3, 0.3), (0.4, 0.35))
    page.wait_for_timeout(1500)
    page.keyboard.press("k")
    page.wait_for_function(f"() => {text('#side', '2 keyframes')}")
    idle(page)
    page.locator("#preview img[data-final=true]").wait_for()

    # the picture of the stage is a picture
    with page.expect_download() as arriving:
        page.locator("#act-shot").click()
    assert arriving.value.suggested_filename == "worldstereo.png"
    pixels = np.asarray(Image.open(arriving.value.path()).convert("RGB"))
    assert pixels.shape[0] > 300 and pixels.std() > 5

    # a reload finds tile, keyframes and world; clearing takes the path away
    page.reload(wait_until="domcontentloaded")
    idle(page)
    page.wait_for_function(f"() => {text('#side', '2 keyframes')}")
    page.locator("#clear-keyframes").click()
    page.wait_for_function("() => document.querySelector('#generate').disabled")
    assert number_of(page, "points") == SIDE * SIDE
