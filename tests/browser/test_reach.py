"""Reach: what axe-core finds on the page, in each tab and dialog, dark and light."""

from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest

from tests.browser.test_story import idle, tab
from ui.page.page import TABS

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
RUN = "() => axe.run(document, {iframes: false, resultTypes: ['violations']})"
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900), pytest.mark.flaky(reruns=1)]


def violations(page: Any, where: str) -> list[str]:
    """One line each: the rule and the first element that breaks it."""
    found = page.evaluate(RUN)["violations"]
    return [f"{where}: {v['id']} ({v['impact']}) {v['nodes'][0]['html'][:90]}" for v in found]


def test_axe_finds_nothing(visit):
    page = visit()
    idle(page)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = []
    for theme in ("dark", "light"):
        for name in TABS:
            tab(page, name)
            page.locator(f"[role=tab][aria-selected=true]:has-text('{name}')").wait_for()
            for patience in (300, 3000):  # colours fade in; a starved page takes longer
                page.wait_for_timeout(patience)
                if not (left := violations(page, f"{theme}, {name}")):
                    break
            found += left
        tab(page, "Path")
        page.locator("#act-theme").click()
        page.wait_for_function(
            "dark => document.body.classList.contains('dark') !== dark", arg=theme == "dark"
        )
    assert found == []
