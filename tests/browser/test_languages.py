"""The page in other languages: its main texts, and that the longest of them still fit."""

from typing import Any

import pytest

from tests.browser.test_story import IDLE
from ui.page.catalogue import entries
from ui.page.page import TABS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900), pytest.mark.flaky(reruns=1)]

CUT = """() => {
  const side = document.querySelector('#side').getBoundingClientRect(), found = [];
  const of = '#side button:not(.label-wrap), #side label > span, #side h2, #side p';
  const shown = [...document.querySelectorAll(of)];
  for (const one of shown.filter(e => e.checkVisibility() && e.innerText?.trim())) {
    const box = one.getBoundingClientRect();
    const out = box.left < side.left - 1 || box.right > side.right + 1;
    if (out || one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== 'inline')
      found.push(one.innerText.slice(0, 60));
  }
  for (const group of document.querySelectorAll('.segmented .wrap, .presets .wrap')) {
    const labels = [...group.querySelectorAll('label')].filter(e => e.checkVisibility());
    const boxes = labels.map(e => [e, e.getBoundingClientRect(), e.querySelector('span')]);
    for (const [label, box, text] of boxes)
      if (text.getBoundingClientRect().right > box.right + 1) found.push(label.innerText);
  }
  return found;
}"""
"""Texts of the tab in front that stick out; an accordion's arrow, which is turned, always does."""


def buttons(page: Any) -> Any:
    return page.locator("#tabs .tab-container[role=tablist] button:visible")


@pytest.mark.parametrize("size", [(1280, 720), (390, 844)])
@pytest.mark.parametrize("locale", ["de-DE", "fr-FR", "ja-JP"])
def test_the_page_speaks_the_browsers_language(visit, locale, size):
    said = entries(locale[:2])
    page = visit(*size, locale=locale)
    page.locator("#generate").wait_for(state="attached")
    assert page.inner_text("#generate") == said["Generate along the path"]
    assert [one.strip() for one in buttons(page).all_inner_texts()] == [said[tab] for tab in TABS]
    page.wait_for_function("lang => document.documentElement.lang === lang", arg=locale[:2])
    page.wait_for_function(IDLE)  # what the handlers say is translated, too
    assert said["{n} input views"].format(n=6) in page.text_content("#bar")
    assert page.get_attribute("#generate", "title") == said["Generate along the path (G)"]
    page.locator("[data-hint]").click()
    for i in range(len(TABS)):
        buttons(page).nth(i).click()
        page.wait_for_timeout(700)
        assert page.evaluate(CUT) == [], TABS[i]
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_a_language_is_chosen_by_hand(visit):
    """In the dialog of keys; the world in the address stays."""
    page = visit(locale="de-DE")
    page.wait_for_function(IDLE)
    token = page.evaluate("new URLSearchParams(location.search).get('world')")
    page.keyboard.press("?")
    page.locator("dialog#keys[open]").wait_for()
    page.select_option("#language", "fr")
    page.wait_for_function(
        "() => document.documentElement.lang === 'fr' && document.querySelector('#generate')"
    )
    assert page.inner_text("#generate") == entries("fr")["Generate along the path"]
    page.wait_for_function("() => document.querySelector('#bar').innerText.includes('entrée')")
    assert page.evaluate("new URLSearchParams(location.search).get('world')") == token
