"""The page's words in the language of its visitor.

English stands in the code and is the key, as with gettext; `de.json` and the others beside this
file say the same in another language. What a catalogue lacks stays English.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

LANGUAGES = {
    "en": "English",
    "de": "Deutsch",
    "es": "Español",
    "fr": "Français",
    "ja": "日本語",
    "zh": "简体中文",
}
HERE = Path(__file__).resolve().parent

_LANGUAGE: ContextVar[str] = ContextVar("language", default="en")


def language() -> str:
    """The language that is written now: a key of `LANGUAGES`."""
    return _LANGUAGE.get()


@contextmanager
def speaking(name: str) -> Iterator[None]:
    """Whatever is written inside is in this language."""
    token = _LANGUAGE.set(name)
    try:
        yield
    finally:
        _LANGUAGE.reset(token)


def preferred(chosen: str, accepted: str) -> str:
    """The language of a visitor: the one chosen in the address, or else the browser's.

    Args:
        chosen: `lang` of the page's address.
        accepted: the header Accept-Language, such as "de-DE,de;q=0.9,en;q=0.8".
    """
    wanted = [(2.0, chosen)]
    for entry in accepted[:1000].split(","):
        name, _, quality = entry.partition(";q=")
        try:
            wanted.append((float(quality or 1), name))
        except ValueError:
            continue
    for quality, name in sorted(wanted, key=lambda one: -one[0]):
        primary = name.strip().lower().partition("-")[0]
        if primary in LANGUAGES and quality > 0:
            return primary
    return "en"


@cache
def entries(name: str) -> Mapping[str, str]:
    """The catalogue of a language: English to its words."""
    if name == "en":
        return {}
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def tr(text: str, **fields: Any) -> str:
    """A text of the page in the visitor's language, with its named fields filled in."""
    found = entries(language()).get(text, text)
    return found.format(**fields) if fields else found


def trn(one: str, many: str, n: int, **fields: Any) -> str:
    """`tr` of what is said of one thing or of many; `{n}` is how many."""
    single = n == 1 or (n == 0 and language() == "fr")
    return tr(one if single else many, n=figures(f"{n:,}"), **fields)


def told(text: str) -> str:
    """A finished sentence of the library: a message, a refusal, a progress.

    Its numbers are taken out to look it up: "View 3 of 25" is "View {0} of {1}" in a catalogue.
    """
    known = entries(language())
    if text in known:
        return known[text]
    numbers = re.findall(r"\d+", text)
    count = iter(range(len(numbers)))
    pattern = re.sub(r"\d+", lambda _: f"{{{next(count)}}}", text)
    return known[pattern].format(*numbers) if numbers and pattern in known else text


def figures(text: str) -> str:
    """A number written as in English, "1,234.5", as the visitor writes it."""
    here = tr("1,234.5")
    return text.translate({ord(","): here[1], ord("."): here[5]})


class Localized:
    """ASGI middleware: a request is answered in the language of who sent it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        chosen = parse_qs(scope["query_string"].decode("latin-1")).get("lang", [""])[0]
        accepted = dict(scope["headers"]).get(b"accept-language", b"").decode("latin-1")
        with speaking(preferred(chosen, accepted)):
            await self._app(scope, receive, send)
