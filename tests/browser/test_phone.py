"""The page on a phone: one finger looks, two move and pinch, and nothing sticks out."""

from typing import Any

import numpy as np
import pytest

from tests.browser.stage import STAGE, at, send, text, wall
from tests.browser.test_story import idle
from ui.page.page import TABS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900), pytest.mark.flaky(reruns=1)]

WIDTH, HEIGHT = 390, 844
Touches = list[list[tuple[float, float]]]
"""Where the fingers are, 0 to 1 across the viewport, moment by moment."""


def pose(page: Any) -> np.ndarray:
    """(4, 4) of the visitor's camera, three.js axes: it looks along -z."""
    page.wait_for_timeout(1500)  # it glides to rest
    elements = page.evaluate(f"{STAGE}.__viserMutable.camera.matrixWorld.elements")
    return np.array(elements).reshape(4, 4).T


def touch(page: Any, moments: Touches) -> tuple[np.ndarray, np.ndarray]:
    """Moves fingers; returns the camera before and after."""
    session, before = page.context.new_cdp_session(page), pose(page)
    for i, fingers in enumerate(moments):
        places = [at(page, *finger) for finger in fingers]
        points = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(places)]
        kind = "touchStart" if i == 0 else "touchMove"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.wait_for_timeout(150)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    return before, pose(page)


def turned(before: np.ndarray, after: np.ndarray) -> float:
    """Degrees between two directions of sight."""
    return float(np.degrees(np.arccos(np.clip(before[:3, 2] @ after[:3, 2], -1, 1))))


def moved(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(3,): right, up and back, in the axes of the camera before."""
    return before[:3, :3].T @ (after[:3, 3] - before[:3, 3])


def test_fingers_look_move_and_come_nearer(visit, tmp_path):
    page = visit(WIDTH, HEIGHT, has_touch=True, is_mobile=True)
    idle(page)
    (tmp_path / "wall.ply").write_bytes(wall())
    page.get_by_role("tab", name="World", exact=True).click()
    send(page, tmp_path / "wall.ply")
    page.wait_for_function(f"() => {text('#bar', 'WorldStereo')} && {text('#side', '12,100')}")
    idle(page)
    page.evaluate("scrollTo(0, 0)")
    page.locator("[data-hint]").click()
    page.wait_for_function(f"() => {STAGE}.__viserMutable?.camera")

    across = [0.3 + 0.05 * i for i in range(7)]
    before, after = touch(page, [[(u, 0.6)] for u in across])
    assert turned(before, after) > 5

    before, after = touch(page, [[(u - 0.1, 0.6), (u + 0.1, 0.6)] for u in across])
    right, up, back = moved(before, after)
    assert turned(before, after) < 2
    assert right < 0 and abs(right) > 3 * max(abs(up), abs(back))  # the wall follows the fingers

    before, after = touch(page, [[(0.5 - d, 0.6), (0.5 + d, 0.6)] for d in (0.1, 0.15, 0.2, 0.25)])
    right, up, back = moved(before, after)
    assert turned(before, after) < 2
    assert back < 0 and abs(back) > 3 * max(abs(right), abs(up))
    assert page.evaluate("[scrollX, scrollY]") == [0, 0]  # the fingers were the viewport's


def test_nothing_sticks_out_on_a_phone(visit):
    page = visit(WIDTH, HEIGHT, has_touch=True, is_mobile=True)
    idle(page)
    for name in TABS:
        page.get_by_role("tab", name=name, exact=True).click()
        page.wait_for_timeout(700)
        out = page.evaluate(
            """width => [...document.querySelectorAll('#shell *')].filter(e => e.checkVisibility())
                 .filter(e => !e.closest('.film') && e.getBoundingClientRect().right > width + 1)
                 .map(e => e.outerHTML.slice(0, 100))""",
            WIDTH,
        )
        assert out == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
