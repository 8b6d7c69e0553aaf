"""The page's own pieces of HTML, as functions from values to markup: no Gradio, no state.

The markup itself stands in `templates/`, one file a place of the page, one macro a html. What a
template inserts is escaped, with the marks of Gradio's HTML templates; a name that it lacks is an
error. Whatever can be clicked carries `data-send`, which the page's script turns into an event
with the element's other `data-` attributes.
"""

import base64
import io
import json
import re
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup
from PIL import Image

from worldstereo.scene import View

from .catalogue import LANGUAGES, figures, language, told, tr, trn

ICONS = Path(__file__).resolve().parents[2] / "assets" / "icons"
TEMPLATES = Path(__file__).resolve().parent / "templates"
MARKS = str.maketrans(
    {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        '"': "&quot;",
        "'": "&#x27;",
        "{": "&#123;",  # the rest: marks of Gradio's HTML templates
        "}": "&#125;",
        "$": "&#36;",
        "`": "&#96;",
    }
)
FILM_LIMIT = 240  # pictures in the strip: 5 kB each travel with every new scene


def esc(text: object) -> Markup:
    """Text as HTML, in an attribute too; markup stays as it is."""
    return text if isinstance(text, Markup) else Markup(str(text).translate(MARKS))


class _Joined(Extension):
    """Line breaks in a template are for its reader: nothing beside a tag, else a space."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        beside = re.sub(r"(?<=[>}])\s*\n\s*|\s*\n\s*(?=[<{])", "", source)
        return re.sub(r"\s*\n\s*", " ", beside)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=esc,
        undefined=StrictUndefined,
        extensions=[_Joined],
    )
    environment.globals |= {"icon": icon, "language": language, "figures": figures}
    environment.globals |= {"tr": tr, "trn": trn, "told": told}
    return environment


def render(template: str, macro: str, **values: Any) -> Markup:
    """A piece of a template: its macro of that name, with its values."""
    return getattr(_environment().get_template(template).module, macro)(**values)


@cache
def icon(name: str) -> Markup:
    """A lucide icon as inline SVG that takes the colour of its text."""
    text = (ICONS / f"{name}.svg").read_text(encoding="utf-8")
    body = text[text.index("<svg") :]
    body = " ".join(body.split()).replace(f'class="lucide lucide-{name}"', 'class="ico"')
    return Markup(body.replace("<svg", '<svg aria-hidden="true"', 1))


def picture(pixels: np.ndarray, side: int = 720, quality: int = 86) -> Markup:
    """8-bit (H, W, 3) as a JPEG data URI of at most `side` pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())


class Thumbnails:
    """Small pictures of remembered views, each made once and forgotten with its view."""

    def __init__(self, side: int = 190) -> None:
        self._side = side
        self._made: WeakKeyDictionary[View, Markup] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def __call__(self, view: View) -> Markup:
        with self._lock:
            made = self._made.get(view)
        if made is None:
            made = picture(view.color_u8.permute(1, 2, 0).cpu().numpy(), self._side, 80)
            with self._lock:
                self._made[view] = made
        return made


# ---- header, strip, action -----------------------------------------------------------------------


def header(
    name: str, points: int, given: int, made: int, saved: str, undo: str, redo: str
) -> Markup:
    """The bar; without points those are not told yet.

    `undo` and `redo` say why that cannot work now; empty, they can.
    """
    return render(
        "header.html",
        "bar",
        name=name,
        points=points,
        given=given,
        made=made,
        saved=saved,
        undo=undo,
        redo=redo,
    )


def film(
    views: Sequence[View],
    thumbnails: Thumbnails,
    *,
    newest_step: int = 0,
    making: Sequence[np.ndarray] = (),
    total: int = 0,
    planned: int = 0,
) -> Markup:
    """Every view as a picture: given, made, being made, planned."""
    if not views and not making and not total and not planned:
        return render("strip.html", "empty")

    def frame(index: int, view: View) -> dict[str, Any]:
        return {
            "index": index,
            "step": view.step,
            "new": bool(view.step) and view.step == newest_step,
            "image": thumbnails(view),
            "width": view.width,
            "height": view.height,
        }

    given = [entry for entry in enumerate(views) if entry[1].step == 0][: FILM_LIMIT // 2]
    made = [entry for entry in enumerate(views) if entry[1].step > 0][-FILM_LIMIT // 2 :]
    return render(
        "strip.html",
        "film",
        given=[frame(*entry) for entry in given],
        made=[frame(*entry) for entry in made],
        making=[(picture(one, 190, 80), one.shape[1], one.shape[0]) for one in making],
        total=total,
        planned=planned,
        newest=f"{newest_step}.{len(making)}.{len(made)}",
    )


def cost(
    frames: int, width: int, height: int, generator: str, seconds: float | None, measured: bool
) -> Markup:
    """What the button will make, and how long that takes: measured on this machine, or a guess."""
    time, why = "", ""
    if seconds is not None and measured:
        time = tr("about {time}", time=duration(seconds))
        why = tr("Measured on this machine")
    elif seconds is not None:
        time = tr("roughly {time}", time=duration(seconds))
        why = tr("An estimate: nothing was generated here yet")
    return render(
        "action.html",
        "cost",
        frames=frames,
        width=width,
        height=height,
        generator=generator,
        time=time,
        why=why,
    )


def progress(step: int, total: int, message: str, seconds_left: float | None) -> Markup:
    """The same place while a job runs."""
    return render("parts.html", "progress", **_course(step, total, message, seconds_left))


def _course(step: int, total: int, message: str, seconds_left: float | None) -> dict[str, Any]:
    left = "" if seconds_left is None else tr("{time} left", time=duration(seconds_left))
    return {"step": step, "total": total, "message": message, "left": left}


def opening() -> Markup:
    """What stands there before the page has its world: the button waits, see the stylesheet."""
    return render("parts.html", "said", text=tr("Opening …"), opening=True)


def info(text: str) -> Markup:
    """One quiet line."""
    return render("parts.html", "said", text=text)


def failed(text: str) -> Markup:
    """One line where it went wrong, with the way out in its words; closed by its cross."""
    return render("parts.html", "failed", text=text)


def reasons(why: dict[str, str]) -> Markup:
    """CSS selectors and why those controls cannot work now: the script makes tooltips of it."""
    spoken = {selector: told(reason) for selector, reason in why.items()}
    return render("action.html", "reasons", why=json.dumps(spoken))


# ---- what floats in the viewport -------------------------------------------------------------


def hint() -> Markup:
    return render("stage.html", "hint")


def legend() -> Markup:
    """What the colours of the matches mean."""
    return render("stage.html", "legend")


def hud(*facts: tuple[str, str]) -> Markup:
    """Facts by name; those without a value are left out."""
    shown = [(name, value) for name, value in facts if value]
    return render("stage.html", "hud", facts=shown) if shown else Markup("")


def preparing(step: int, total: int, message: str, seconds_left: float | None) -> Markup:
    """In the viewport while a world is made: that what is seen is not yet what will be used."""
    return render("stage.html", "preparing", **_course(step, total, message, seconds_left))


def tools(
    *,
    playing: bool,
    recording: bool,
    measuring: bool,
    selecting: bool,
    live: bool,
    why: dict[str, str],
) -> Markup:
    """The viewport's tools; `why` maps a tool to the reason why it cannot work now."""
    return render(
        "stage.html",
        "tools",
        playing=playing,
        recording=recording,
        measuring=measuring,
        selecting=selecting,
        live=live,
        why=why,
    )


def making(image: str, count: int, total: int, serial: int) -> Markup:
    """The newest frame of what is being generated, large."""
    return render("stage.html", "making", image=image, count=count, total=total, serial=serial)


def player(
    frames: Sequence[str],
    fps: float,
    first: int,
    serial: str,
    *,
    clip: int,
    agreement: str = "",
    take: bool = False,
    sides: Sequence[tuple[str, str]] = (),
    side: str = "",
    beside: Sequence[str] = (),
    why: str = "",
) -> Markup:
    """The frames of a clip, data URIs, with the controls of a film.

    Args:
        first: index of the view that is the first frame; the strip follows from there. -1: none.
        serial: which clip of the world; a film that was closed stays closed.
        clip: its place among the clips.
        agreement: how much of what is remembered was found in it, in words.
        take: it waits to be kept or discarded.
        sides: key and label of what can be shown beside it; `side` is shown now, as `beside`.
        why: why a take cannot be kept now.
    """
    return render(
        "stage.html",
        "player",
        frames=frames,
        fps=f"{fps:g}",
        first=first,
        serial=serial,
        clip=clip,
        agreement=agreement,
        take=take,
        sides=sides,
        side=side,
        beside=beside,
        why=why,
    )


KEYS = (
    ("W A S D, Q E", "fly; up and down"),
    ("drag, wheel", "look around, come closer"),
    ("G", "generate along the path"),
    ("Esc", "cancel what is running, close the film"),
    ("Space", "play or pause the film"),
    ("Z, Shift Z", "undo, redo"),
    ("P", "fly along the path, and stop"),
    ("K", "keyframe at this camera"),
    ("L", "live view, and points again"),
    ("R", "make the view from here and remember it"),
    ("F", "record a flight, and stop"),
    ("Y", "history: every step with its picture"),
    ("[ ]", "previous, next frame of the preview"),
    ("M", "measure between two points"),
    ("B", "box-select points"),
    ("Delete, Backspace", "delete the selected points"),
    ("H", "back to the first view"),
    ("1 to 5", "World, Path, Generate, Memory, Export"),
    ("C", "save a picture of the viewport"),
    ("T", "light or dark"),
    ("?", "this list"),
)


def key_map() -> Markup:
    """Every key, and the choice of a language."""
    rows = [(tr(key), tr(what)) for key, what in KEYS]
    return render("stage.html", "keys", rows=rows, languages=LANGUAGES)


def words() -> Markup:
    """What the script itself says, and the language of the page."""
    said = {"#generate": tr("Generate along the path (G)"), "#cancel": tr("Cancel (Esc)")}
    return render("parts.html", "words", said=json.dumps(said))


def history(rows: Sequence[dict[str, Any]]) -> Markup:
    """States of the world: `number`, `image`, `did`, `changed`, `now`, `undone`, `why` of each."""
    return render("header.html", "history", rows=rows)


# ---- pieces for the tabs -------------------------------------------------------------------------


def empty(text: str) -> Markup:
    """What stands in a place that has nothing to show yet."""
    return render("parts.html", "empty", text=text)


def muted(text: str, margin: str = "0", *, figures: bool = False) -> Markup:
    """One line of small print."""
    return render("parts.html", "muted", text=text, margin=margin, figures=figures)


# ---- numbers -------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    if seconds < 1:
        seconds = 1
    if seconds < 90:
        return tr("{n} s", n=f"{seconds:.0f}")
    if seconds < 5400:
        return tr("{n} min", n=f"{seconds / 60:.0f}")
    return tr("{n} h", n=figures(f"{seconds / 3600:.1f}"))


def size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            whole = unit == "B" or count >= 100
            return f"{count:.0f} {unit}" if whole else f"{figures(f'{count:.1f}')} {unit}"
        count /= 1000
    return f"{figures(f'{count:.1f}')} GB"


def length(value: float, unit: str) -> str:
    return f"{figures(f'{value:.3g}' if value < 100 else f'{value:,.0f}')} {unit}"
