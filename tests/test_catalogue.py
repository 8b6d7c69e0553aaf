"""The page's words: every text goes through the catalogue, and each catalogue says all of them."""

import ast
import json
import re
import string
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import Environment, nodes

from ui.page.catalogue import LANGUAGES, entries, figures, preferred, speaking, told, tr, trn
from ui.page.html import TEMPLATES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ui" / "page"
OTHERS = tuple(name for name in LANGUAGES if name != "en")
EXAMPLES = {path.name.replace("-", "_") for path in (ROOT / "assets" / "examples").iterdir()}
SAYS = {"tr": 1, "trn": 2}
"""How many of the first arguments are texts."""


def modules(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def literals_of_python() -> set[str]:
    found = set()
    for _, tree in modules("ui/page"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                for value in node.args[: SAYS.get(node.func.id, 0)]:
                    if isinstance(value, ast.Constant):
                        found.add(value.value)
    return found


def templates() -> Iterator[tuple[Path, nodes.Template]]:
    for path in sorted(TEMPLATES.iterdir()):
        yield path, Environment(autoescape=True).parse(path.read_text(encoding="utf-8"))


def literals_of_templates() -> set[str]:
    found = set()
    for _, tree in templates():
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name):
                for value in call.args[: SAYS.get(call.node.name, 0)]:
                    if isinstance(value, nodes.Const):
                        found.add(value.value)
    return found


def texts_of_sources() -> tuple[set[str], list[re.Pattern[str]]]:
    """Every text in the sources; and the shapes of those with fields."""
    texts, shapes = set(), []
    for _, tree in modules("ui", "worldstereo"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts |= {node.value, node.value.capitalize()}
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else None for p in node.values)
                shape = "".join(".+" if p is None else re.escape(str(p)) for p in parts)
                if len(shape) > 12:  # else it fits anything
                    shapes.append(re.compile(shape))
    return texts, shapes


def fields(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)


# ---- the catalogues ------------------------------------------------------------------------------


def test_every_catalogue_says_the_same_texts():
    catalogues = {name: entries(name) for name in OTHERS}
    for name, catalogue in catalogues.items():
        assert list(catalogue) == sorted(catalogues["de"]), name
        assert all(catalogue.values()), name
        path = PAGE / "catalogue" / f"{name}.json"
        twice = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
        assert len(twice) == len(catalogue), f"{name}: a text is given twice"


@pytest.mark.parametrize("name", OTHERS)
def test_a_translation_has_the_fields_of_its_english(name):
    for text, said in entries(name).items():
        assert fields(said) == fields(text), (name, text, said)


def test_every_text_of_the_page_is_in_the_catalogues():
    assert (literals_of_python() | literals_of_templates()) - set(entries("de")) == set()


def test_every_text_of_the_catalogues_is_in_the_sources():
    """Of the page, or of the library, whose finished sentences are looked up as they come."""
    spoken = literals_of_python() | literals_of_templates()
    sources, shapes = texts_of_sources()
    for text in set(entries("de")) - spoken:
        filled = re.sub(r"\{\d+\}", "0", text)
        key = text.lower().replace(" ", "_")
        known = filled in sources or text in sources or key in sources or key in EXAMPLES
        assert known or any(shape.fullmatch(filled) for shape in shapes), text


def test_what_is_chosen_counts_before_what_the_browser_prefers():
    assert preferred("", "de-DE,de;q=0.9,en;q=0.8") == "de"
    assert preferred("", "en-GB,de;q=0.9") == "en"
    assert preferred("", "nl,pl;q=0.9,ja;q=0.4,fr;q=0.7") == "fr"
    assert preferred("", "zh-Hans-CN") == "zh"
    assert preferred("es", "de-DE,de;q=0.9") == "es"
    assert preferred("tlh", "ja") == "ja"
    assert preferred("", "") == preferred("", "xx;q=yy, ;q=") == preferred("", "de;q=0") == "en"


def test_numbers_and_plurals_are_written_as_the_language_does():
    assert figures("1,234.5") == "1,234.5" and trn("{n} view", "{n} views", 1) == "1 view"
    with speaking("de"):
        assert figures("12,345.6") == "12.345,6"
        assert trn("{n} point", "{n} points", 1) == "1 Punkt"
        assert trn("{n} point", "{n} points", 12345) == "12.345 Punkte"
    with speaking("fr"):
        assert trn("{n} view", "{n} views", 0) == "0 vue"
    assert tr("Path") == "Path"


def test_sentences_of_the_library_are_looked_up_without_their_numbers():
    with speaking("de"):
        assert told("View 3 of 25, filling from memory") == (
            "Ansicht 3 von 25, aus dem Gedächtnis gefüllt"
        )
        assert told("chair_007.ply: the header says 3 points") == (
            "chair_007.ply: the header says 3 points"
        )
        assert told("{0} {1}") == "{0} {1}"


# ---- what is written on the page -----------------------------------------------------------------

NAMES = {"WorldStereo", "MP4", "px"}
"""What is the same in every language."""


class Shown(HTMLParser):
    """The words that a template shows of its own: between its tags, and in four attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        for name, value in attrs:
            if name in ("alt", "aria-label", "placeholder", "title"):
                self._hear(value or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("kbd", "style"):
            self._hear(data)

    def _hear(self, text: str) -> None:
        self.words += [word for word in re.findall(r"[A-Za-z]{2,}\d?", text) if word not in NAMES]


def words_of(template: str) -> list[str]:
    shown = Shown()
    shown.feed(
        re.sub(
            r"(?s)\{#.*?#\}|\{% set .*? %\}.*?\{% endset %\}|\{%.*?%\}|\{\{.*?\}\}", "", template
        )
    )
    shown.close()
    return shown.words


def test_no_template_shows_a_text_that_is_not_in_the_catalogue():
    found = []
    for path, tree in templates():
        found += [(path.name, word) for word in words_of(path.read_text(encoding="utf-8"))]
        for call in tree.find_all(nodes.Call):
            if getattr(call.node, "name", "") in SAYS:
                continue
            for value in call.args:
                if isinstance(value, nodes.Const) and re.search(r"[A-Z][a-z]+ ", str(value.value)):
                    found.append((path.name, value.value))
    assert found == []
    assert words_of('<a title="Go {{ there }}"><kbd>Esc</kbd>{{ tr("x") }} on</a>') == ["Go", "on"]


SENTENCE = re.compile(r"[A-Z][a-z’']+ [a-z]|[a-z]{2} [a-z]+[.:]( |$)")
COMPONENTS = {"Accordion", "Button", "Checkbox", "DownloadButton", "Markdown", "Number", "Radio",
              "Slider", "Tab", "Textbox", "UploadButton", "segmented"}  # fmt: skip
NOT_SHOWN = {"tr", "trn", "warning", "exception", "parse_float", "parse_int"}
"""Calls that translate, write to the log, or name what a refusal is of."""
WORDED = {"label", "placeholder", "info", "value"}


def called(node: ast.AST) -> str:
    """The name of the function that is called there."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


def untranslated(tree: ast.Module) -> list[str]:
    """Sentences and labels outside the catalogue's calls; refusals are looked up when shown."""
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found = []
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if not isinstance(text, str) or not re.search("[A-Za-z]{2}", text):
            continue
        holders, at = [], node
        while at in above:
            holders.append(above[at])
            at = above[at]
        if any(called(holder) in NOT_SHOWN for holder in holders):
            continue
        if any(isinstance(holder, ast.Raise) for holder in holders):
            continue  # looked up where refusals are shown
        if isinstance(above[node], ast.Expr):
            continue  # a docstring
        if SENTENCE.search(text):
            found.append(text)
        parent = above[node]
        if isinstance(parent, ast.keyword) and parent.arg in WORDED:
            name = called(above[parent])
            if name in COMPONENTS | {"update"} and re.match("[A-Z]", text):
                found.append(text)
        if isinstance(parent, ast.Call) and node in parent.args[:1]:
            name = called(parent)
            if name in COMPONENTS - {"Slider", "Number"} and re.match("[A-Z]", text):
                found.append(text)
    return found


def test_no_module_of_the_page_shows_a_text_that_is_not_in_the_catalogue():
    found = [(p.name, text) for p, tree in modules("ui/page") for text in untranslated(tree)]
    known = set(entries("de"))  # texts that are looked up where they are shown
    assert [one for one in found if one[1] not in known] == []


def test_a_new_untranslated_text_is_found():
    source = "def build(self):\n    gr.Button('Go')\n    return html.muted('A new text here.')"
    assert sorted(untranslated(ast.parse(source))) == ["A new text here.", "Go"]


def test_the_script_shows_no_text_of_its_own():
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    code = re.sub(r"(?m)(^|\s)//.*$|/\*.*?\*/", "", script)
    strings = re.findall(r"'([^'\n]*)'", code)
    assert [text for text in strings if SENTENCE.search(text)] == []
