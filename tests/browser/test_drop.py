"""Files dropped anywhere on the page: a place to let go appears, and what is dropped opens."""

import base64
from typing import Any

import pytest

from tests.browser.stage import SIDE, photos, text, wall
from tests.browser.test_story import idle, number_of

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900), pytest.mark.flaky(reruns=1)]

CARRY = """([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name));
  return carried;
}"""


def over(page: Any, name: str, data: bytes, selector: str) -> Any:
    """A file is dragged over an element; returns what is carried."""
    carried = page.evaluate_handle(CARRY, [name, base64.b64encode(data).decode()])
    page.dispatch_event(selector, "dragenter", {"dataTransfer": carried})
    return carried


def test_a_file_dropped_anywhere_opens(visit):
    page = visit()
    idle(page)
    carried = over(page, "wall.ply", wall(), "#strip")
    page.locator("#drop [data-drop=upload]").wait_for()
    assert page.locator("#drop > div").count() == 2  # the example has views: photos can be added
    page.dispatch_event("#drop", "dragleave", {"dataTransfer": carried})
    page.locator("#drop").wait_for(state="detached")

    frame = page.frame_locator("#viewport iframe").locator("body")
    inside = frame.evaluate_handle(f"element => ({CARRY})(['x.ply', ''])")
    frame.dispatch_event("dragenter", {"dataTransfer": inside})
    page.locator("#drop").wait_for()
    page.dispatch_event("#drop [data-drop=upload]", "drop", {"dataTransfer": carried})
    page.locator("#drop").wait_for(state="detached")
    page.wait_for_function(f"() => {text('#bar', 'wall')}")
    idle(page)
    assert number_of(page, "points") == SIDE * SIDE

    over(page, "photos.zip", photos(), "#bar")  # a cloud has no views that photos could be added to
    page.locator("#drop [data-drop=upload]").wait_for()
    assert page.locator("#drop > div").count() == 1


def test_text_that_is_dragged_is_no_file(visit):
    page = visit()
    page.locator("#generate").wait_for(state="attached")
    page.wait_for_function("() => window.worldstereo?.renderer")
    script = "() => { const it = new DataTransfer(); it.setData('text', 'x'); return it; }"
    carried = page.evaluate_handle(script)
    page.dispatch_event("#strip", "dragenter", {"dataTransfer": carried})
    assert page.locator("#drop").count() == 0
