"""The page in Firefox: it opens, and every tab of it, on a desk and on a phone."""

from collections.abc import Iterator

import pytest

from tests.browser import bidi
from tests.browser.test_story import IDLE
from ui.page.page import TABS

MISSING = bidi.missing()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.flaky(reruns=1),
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
]

SIZES = (1280, 720), (390, 844)
OUT = """[...document.querySelectorAll('#shell *')].filter(e => e.checkVisibility())
  .filter(e => !e.closest('.film') && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 100))"""
"""What sticks out of the page to the right; the strip is meant to scroll."""


@pytest.fixture
def firefox(tmp_path) -> Iterator[bidi.Firefox]:
    browser = bidi.Firefox(tmp_path)
    yield browser
    browser.close()


def test_the_page_opens_in_firefox(firefox, app):
    firefox.size(*SIZES[0])
    firefox.go(f"{app}/")
    stage = "document.querySelector('#viewport iframe').contentWindow"
    firefox.until(f"{stage}.__viserTestpoints?.rendererInfo.render.points > 10_000")
    firefox.until(f"({IDLE})()")

    def every_tab() -> None:
        for i, name in enumerate(TABS):
            firefox.press(str(i + 1))
            firefox.until(
                f"document.querySelector('[role=tab][aria-selected=true]').innerText == '{name}'"
            )
            firefox.until(
                "[...document.querySelectorAll('#tabs .tabitem')].some(e => e.offsetHeight > 80)"
            )
            assert firefox.look(OUT) == [], name
            assert firefox.look("document.documentElement.scrollWidth <= innerWidth"), name

    every_tab()

    firefox.size(*SIZES[1])
    firefox.until(f"innerWidth == {SIZES[1][0]}")
    every_tab()

    own = app, "data:", "blob:"
    assert [url for url in firefox.requests if not url.startswith(own)] == []
    assert firefox.complaints == []
