"""The one-file page, opened from disk without a network: it draws, turns, hides the invented."""

import io
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from worldstereo.exports import export
from worldstereo.scene import PointCloud, Scene

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

CANVAS = {"x": 0, "y": 60, "width": 640, "height": 300}
"""Free of the bar above and the line below."""


def settled(page: Any) -> np.ndarray:
    """The picture once nothing moves; the page forbids evaluated strings, so it is asked anew."""
    until = time.monotonic() + 60
    while not page.evaluate("() => document.body.dataset.ready && worldstereo.settled()"):
        assert time.monotonic() < until, "the page never came to rest"
        time.sleep(0.1)
    time.sleep(0.2)
    picture = Image.open(io.BytesIO(page.screenshot(clip=CANVAS))).convert("RGB")
    return np.asarray(picture).astype(int)


def square(low: float, high: float, z: float, color: tuple[float, float, float], step: int) -> Any:
    x = torch.linspace(low, high, 60)
    grid = torch.stack(torch.meshgrid(x, x, indexing="xy"), -1).reshape(-1, 2)
    n = len(grid)
    return (
        torch.cat([grid, torch.full((n, 1), z)], 1),
        torch.tensor(color).expand(n, 3),
        torch.full((n,), step),
        torch.full((n,), (high - low) / 118),
    )


def test_the_page_draws_turns_and_hides_what_is_invented(browser, tmp_path):
    """A red square that was given, a green one before it that was invented."""
    parts = square(-1, 1, 4.0, (0.9, 0.1, 0.1), 0), square(-0.5, 0.5, 3.0, (0.1, 0.9, 0.1), 1)
    points, colors, step, radii = (torch.cat(column) for column in zip(*parts, strict=True))
    normals = torch.tensor([0.0, 0.0, -1.0]).expand(len(points), 3)
    cloud = PointCloud.of(points, colors, step=step, radii=radii, normals=normals)
    path = tmp_path / "world.html"
    path.write_bytes(export(Scene(name="two squares", cloud=cloud), "html"))
    context = browser.new_context(viewport={"width": 640, "height": 480}, offline=True)
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    page.on(
        "request",
        lambda asked: None if asked.url == path.as_uri() else complaints.append(asked.url[:80]),
    )
    page.goto(path.as_uri())
    seen = settled(page)
    red, green = seen[..., 0] > seen[..., 1] + 90, seen[..., 1] > seen[..., 0] + 90
    assert 0.05 < red.mean() < 0.9 and 0.02 < green.mean() < red.mean()
    assert (abs(seen - (20, 23, 26)).max(-1) < 6).mean() > 0.02  # and the background around it

    page.select_option("#made", "2")
    without = settled(page)
    assert (without[..., 1] > without[..., 0] + 90).sum() == 0
    filled = without[..., 0] > without[..., 1] + 90
    assert filled[green].mean() > 0.98  # the given square behind is seen there, without holes
    page.select_option("#made", "0")
    assert (settled(page) == seen).all()

    page.mouse.move(320, 200)
    page.mouse.down()
    page.mouse.move(420, 200, steps=3)
    page.mouse.up()
    assert (abs(settled(page) - seen).max(-1) > 60).mean() > 0.02
    page.click("#home")
    assert (settled(page) == seen).all()
    context.close()
    assert complaints == []


def test_fingers_and_keys_move_the_page(browser, tmp_path):
    """Two fingers apart come nearer, so the square grows; an arrow key turns it out of the middle;
    Reset view returns to the first picture."""
    points, colors, step, radii = square(-1, 1, 4.0, (0.9, 0.1, 0.1), 0)
    normals = torch.tensor([0.0, 0.0, -1.0]).expand(len(points), 3)
    cloud = PointCloud.of(points, colors, step=step, radii=radii, normals=normals)
    path = tmp_path / "world.html"
    path.write_bytes(export(Scene(name="a square", cloud=cloud), "html"))
    context = browser.new_context(viewport={"width": 640, "height": 480}, has_touch=True)
    page = context.new_page()
    page.goto(path.as_uri())
    first = settled(page)

    def red(picture: np.ndarray) -> np.ndarray:
        return picture[..., 0] > picture[..., 1] + 90

    touch = context.new_cdp_session(page)

    def fingers(kind: str, apart: int | None) -> None:
        places = [] if apart is None else [320 - apart, 320 + apart]
        spots = [{"x": x, "y": 200, "id": i} for i, x in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": spots})

    fingers("touchStart", 20)
    for apart in range(30, 101, 10):
        fingers("touchMove", apart)
    fingers("touchEnd", None)
    nearer = settled(page)
    assert red(nearer).mean() > 1.3 * red(first).mean()

    page.click("#home")
    assert (settled(page) == first).all()
    page.focus("#gl")
    page.keyboard.down("ArrowLeft")
    time.sleep(0.4)
    page.keyboard.up("ArrowLeft")
    middle = [
        np.average(np.arange(640), weights=red(p).sum(0) + 1e-9) for p in (first, settled(page))
    ]
    assert middle[1] > middle[0] + 20  # looking left, what was ahead is to the right
    context.close()
