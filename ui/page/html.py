"""The page's own pieces of HTML, as pure functions from values to text: no Gradio, no state.

Everything that came from a user goes through `esc`, which also takes the sting out of the marks of
Gradio's HTML templates. Whatever can be clicked carries `data-send`, which the page's script turns
into an event with the element's other `data-` attributes.
"""

import base64
import html
import io
import json
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from worldstereo.scene import View

ICONS = Path(__file__).resolve().parents[2] / "assets" / "icons"
TEMPLATE_MARKS = {"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"}
FILM_LIMIT = 240  # pictures in the strip: 5 kB each travel with every new scene


def esc(text: object) -> str:
    """Text as HTML, in an attribute too."""
    safe = html.escape(str(text), quote=True)
    return "".join(TEMPLATE_MARKS.get(character, character) for character in safe)


def attributes(**values: object) -> str:
    """`data_send="x"` as ` data-send="x"`; None and False are left out, True is a bare name."""
    parts = []
    for name, value in values.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(f" {name}")
        elif value is not None and value is not False:
            parts.append(f' {name}="{esc(value)}"')
    return "".join(parts)


@cache
def icon(name: str) -> str:
    """A lucide icon as inline SVG that takes the colour of its text."""
    text = (ICONS / f"{name}.svg").read_text(encoding="utf-8")
    body = text[text.index("<svg") :]
    body = " ".join(body.split()).replace(f'class="lucide lucide-{name}"', 'class="ico"')
    return body.replace("<svg", '<svg aria-hidden="true"', 1)


def icon_button(name: str, label: str, send: str, *, why_not: str = "", **more: object) -> str:
    """A button that is only an icon: its label is its tooltip; disabled, the tooltip says why."""
    marks = attributes(
        type="button",
        id=f"act-{send}",
        title=why_not or label,
        aria_label=label,
        disabled=bool(why_not),
        data_send=send,
        **more,
    )
    return f"<button{marks}>{icon(name)}</button>"


def picture(pixels: np.ndarray, side: int = 720, quality: int = 86) -> str:
    """8-bit (H, W, 3) as a JPEG data URI of at most `side` pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class Thumbnails:
    """Small pictures of remembered views, each made once and forgotten with its view."""

    def __init__(self, side: int = 190) -> None:
        self._side = side
        self._made: WeakKeyDictionary[View, str] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def __call__(self, view: View) -> str:
        with self._lock:
            made = self._made.get(view)
        if made is None:
            made = picture(view.color8.permute(1, 2, 0).cpu().numpy(), self._side, 80)
            with self._lock:
                self._made[view] = made
        return made


# ---- header, strip, action -----------------------------------------------------------------------


def header(name: str, points: int, given: int, made: int, saved: str, undo: str, redo: str) -> str:
    """The bar; without points those are not told yet.

    `undo` and `redo` say why that cannot work now; empty, they can.
    """
    facts = "No world yet"
    if points or given:
        dot = "<i>·</i>"
        count = f"<b class=num>{points:,}</b> points{dot}" if points else ""
        facts = (
            f"<b>{esc(name or 'untitled')}</b>{dot}{count}"
            f"<span class=num>{given}</span> input {plural('view', given)}, "
            f"<span class=num>{made}</span> generated{dot}<span id=saved>{esc(saved)}</span>"
        )
    theme = f'<span class="moon">{icon("moon")}</span><span class="sun">{icon("sun")}</span>'
    return (
        f'<div class="bar"><span class="name">WorldStereo</span><span class="facts">{facts}</span>'
        + icon_button("undo-2", "Undo the last step (Z)", "undo", why_not=undo)
        + icon_button("redo-2", "Redo (Shift Z)", "redo", why_not=redo)
        + icon_button("camera", "Save a picture of the stage (C)", "shot")
        + icon_button("keyboard", "Keys (?)", "keys")
        + '<button type="button" id="act-theme" title="Light or dark (T)" '
        + f'aria-label="Light or dark" data-send="theme">{theme}</button></div>'
    )


def film(
    views: Sequence[View],
    thumbnails: Thumbnails,
    *,
    newest_step: int = 0,
    making: Sequence[np.ndarray] = (),
    total: int = 0,
    planned: int = 0,
) -> str:
    """Every view as a picture: given, made, being made, planned."""
    if not views and not making and not total and not planned:
        text = "Views appear here: open an example or your own picture under World."
        return f'<div class="film"><span class="empty">{text}</span></div>'
    shown = list(enumerate(views))
    given = [entry for entry in shown if entry[1].step == 0]
    made = [entry for entry in shown if entry[1].step > 0]
    given, made = given[: FILM_LIMIT // 2], made[-FILM_LIMIT // 2 :]
    parts = [_frame(i, view, thumbnails, newest_step) for i, view in given]
    if given and (made or total or planned):
        parts.append('<div class="sep"></div>')
    parts += [_frame(i, view, thumbnails, newest_step) for i, view in made]
    for i, pixels in enumerate(making):
        parts.append(
            f'<div class="pic new"><img src="{picture(pixels, 190, 80)}" alt="New view {i + 1}" '
            f'width="{pixels.shape[1]}" height="{pixels.shape[0]}">'
            f'<div class="cap"><span>{i + 1}</span><span>new</span></div></div>'
        )
    if total > len(making):
        parts.append(f'<div class="todo">view {len(making) + 1} of {total}</div>')
    elif planned:
        parts.append(f'<div class="todo">{planned} planned</div>')
    newest = f"{newest_step}.{len(making)}.{len(made)}"
    return f'<div class="film" data-newest="{newest}">{"".join(parts)}</div>'


def _frame(index: int, view: View, thumbnails: Thumbnails, newest_step: int) -> str:
    source = "given" if view.step == 0 else f"step {view.step}"
    marks = attributes(
        type="button",
        class_="pic new" if view.step and view.step == newest_step else "pic",
        title=f"View {index + 1}, {source}: fly there",
        data_send="fly",
        data_view=index,
    )
    return (
        f'<button{marks}><img src="{thumbnails(view)}" alt="View {index + 1}" '
        f'width="{view.width}" height="{view.height}">'
        f'<span class="cap"><span>{index + 1}</span><span>{source}</span></span></button>'
    )


def cost(
    frames: int, width: int, height: int, generator: str, seconds: float | None, measured: bool
) -> str:
    """What the button will make, and how long that takes: measured on this machine, or a guess."""
    time, why = "", ""
    if seconds is not None and measured:
        time, why = f"about {duration(seconds)}", "Measured on this machine"
    elif seconds is not None:
        time, why = f"roughly {duration(seconds)}", "An estimate: nothing was generated here yet"
    return (
        f'<div class="split"><span class="num">{frames} {plural("view", frames)}, '
        f"{width} × {height}, {esc(generator)}</span>"
        f'<span class="num muted" title="{why}">{time}</span></div>'
    )


def progress(step: int, total: int, message: str, seconds_left: float | None) -> str:
    """The same place while a job runs."""
    left = "" if seconds_left is None else f"{duration(seconds_left)} left"
    share = 100 * min(1.0, step / total) if total > 0 else 0.0
    now = f'aria-valuenow="{share:.0f}" aria-valuemin="0" aria-valuemax="100"'
    bar = f'<div class="meter" role="progressbar" {now}><span style="width:{share:.1f}%"></span>'
    if total <= 0:  # nobody knows how far: it moves, and promises nothing
        bar = '<div class="meter unknown" role="progressbar"><span></span>'
    return (
        f'<div class="split" role="status"><span>{esc(message)}</span>'
        f'<span class="num muted">{left}</span></div>{bar}</div>'
    )


def opening() -> str:
    """What stands there before the page has its world: the button waits, see the stylesheet."""
    return said("Opening …").replace("<div", "<div data-opening", 1)


def said(text: str) -> str:
    """One quiet line."""
    return (
        f'<div class="split muted" role="status"><span title="{esc(text)}">{esc(text)}</span></div>'
    )


def failed(text: str) -> str:
    """One line where it went wrong, with the way out in its words; closed by its cross."""
    return (
        f'<div class="refusal" role="alert">{icon("triangle-alert")}<span>{esc(text)}</span>'
        f'<button type="button" data-close aria-label="Close">{icon("x")}</button></div>'
    )


def warnings(lines: Iterable[str]) -> str:
    return "".join(f'<div class="warn">{icon("triangle-alert")}{esc(line)}</div>' for line in lines)


# ---- what floats on the stage --------------------------------------------------------------------

HINT = (
    '<div class="chip lines" id="hint-card"><p><b>Fly</b> &nbsp;drag to look, '
    '<span class="with-keys"><kbd>W</kbd> <kbd>A</kbd> <kbd>S</kbd> <kbd>D</kbd></span>'
    '<span class="with-touch">two fingers</span> to move</p>'
    '<p><b>Generate</b> &nbsp;<kbd class="with-keys">G</kbd>'
    '<span class="with-touch">the blue button</span> makes the views along the blue path</p>'
    "<p><b>Inspect</b> &nbsp;click a point to see which views it comes from</p>"
    f'<button type="button" data-hint aria-label="Close the hint">{icon("x")}</button></div>'
)


def legend() -> str:
    """What the colours of the matches mean."""
    names = ("global memory", "stereo memory", "inpainted", "rejected match")
    kinds = ("global", "stereo", "invented", "refused")
    dots = (
        f'<span><span class="dot" style="background:var(--{kind})"></span>{name}</span>'
        for kind, name in zip(kinds, names, strict=True)
    )
    return f'<div class="chip">{"".join(dots)}</div>'


def hud(**facts: str) -> str:
    inner = "".join(f"<span><i>{esc(k)}</i>{esc(v)}</span>" for k, v in facts.items() if v)
    return f'<div class="chip num">{inner}</div>' if inner else ""


def preparing(step: int, total: int, message: str, seconds_left: float | None) -> str:
    """On the stage while a world is made: that what is seen is not yet what will be used."""
    return (
        '<div class="chip preparing"><span><b>Raw preview.</b> The processed world follows.'
        f"</span>{progress(step, total, message, seconds_left)}</div>"
    )


def tools(*, playing: bool, recording: bool, measuring: bool, selecting: bool, why: dict) -> str:
    """The stage's tools; `why` maps a tool to the reason why it cannot work now."""
    rows = (
        ("play", "pause" if playing else "play", "Fly along the path (P)", playing),
        ("record", "circle-dot", "Record a flight (R)", recording),
        ("keyframe", "plus", "Keyframe here (K)", None),
        ("watch", "film", "Watch the newest film", None),
        ("measure", "ruler", "Measure between two points (M)", measuring),
        ("select", "square-dashed-mouse-pointer", "Box-select points (B)", selecting),
        ("home", "locate-fixed", "Back to the first view (H)", None),
    )
    buttons = (
        icon_button(
            name,
            label,
            send,
            why_not=why.get(send, ""),
            aria_pressed=None if pressed is None else str(pressed).lower(),
        )
        for send, name, label, pressed in rows
    )
    return f'<div class="tools" role="toolbar" aria-label="Stage">{"".join(buttons)}</div>'


def making(image: str, count: int, total: int, serial: int) -> str:
    """The newest frame of what is being generated, large."""
    return (
        f'<div class="player" data-serial="{serial}"><img src="{image}" alt="Newest view">'
        f'<div class="controls"><span class="num">View {count} of {total}</span>'
        f'<button type="button" data-film="close" title="Back to the viewport" '
        f'aria-label="Back to the viewport">{icon("x")}</button></div></div>'
    )


def player(frames: Sequence[str], fps: float, first: int, serial: int) -> str:
    """The frames of a clip, data URIs, with the controls of a film.

    Args:
        first: index of the view that is the first frame; the strip follows from there. -1: none.
        serial: which clip of the world; a film that was closed stays closed.
    """

    def button(kind: str, label: str, inner: str) -> str:
        return (
            f'<button type="button" data-film="{kind}" title="{esc(label)}" '
            f'aria-label="{esc(label)}">{inner}</button>'
        )

    last = len(frames) - 1
    both = f'<span class="when-still">{icon("play")}</span><span class="when-playing">'
    both += f"{icon('pause')}</span>"
    return (
        f'<div class="player" role="group" aria-label="Film of the newest clip" tabindex="-1" '
        f'data-frames="{"|".join(frames)}" data-fps="{fps:g}" data-first="{first}" '
        f'data-serial="{serial}"><img src="{frames[0]}" alt="Frame of the film">'
        f'<div class="controls">{button("toggle", "Play or pause (Space)", both)}'
        f'<input type="range" min="0" max="{last}" value="0" step="1" data-film="scrub" '
        f'aria-label="Frame of the film">'
        f'<span class="num" data-film-at>1 / {len(frames)}</span>'
        f"{button('speed', 'Speed of the film', '1×')}"
        f"{button('loop', 'Play again and again', icon('rotate-ccw'))}"
        f'<button type="button" data-send="continue" title="Plan the next path from the last '
        f'frame">{icon("route")}<span>Continue</span></button>'
        f'<button type="button" data-send="export" data-key="mp4" title="Download the film as '
        f'MP4">{icon("download")}<span>MP4</span></button>'
        f"{button('close', 'Back to the viewport (Esc)', icon('x'))}</div></div>"
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
    ("R", "record a flight, and stop"),
    ("[ ]", "previous, next frame of the preview"),
    ("M", "measure between two points"),
    ("B", "box-select points"),
    ("Delete, Backspace", "delete the selected points"),
    ("H", "back to the first view"),
    ("1 to 5", "World, Path, Generate, Memory, Export"),
    ("C", "save a picture of the stage"),
    ("T", "light or dark"),
    ("?", "this list"),
)


def key_map() -> str:
    rows = "".join(f"<dt><kbd>{esc(key)}</kbd></dt><dd>{esc(what)}</dd>" for key, what in KEYS)
    return (
        '<dialog id="keys" aria-label="Keys"><div class="split"><h4>Keys</h4><button type="button" '
        f'data-dialog-close aria-label="Close">{icon("x")}</button></div><dl>{rows}</dl></dialog>'
    )


# ---- pieces for the tabs -------------------------------------------------------------------------


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in pairs)
    return f'<dl class="rows">{rows}</dl>'


def bars(rows: Iterable[tuple[str, float, str, str]]) -> str:
    """Name, share in [0, 1], CSS colour, figure: a bar plot with its numbers."""
    out = []
    for name, share, color, figure in rows:
        width = 100 * max(0.0, min(1.0, share))
        out.append(
            f"<span>{esc(name)}</span><div class=bar2><span style='width:{width:.1f}%;"
            f"background:{color}'></span></div><span class=num>{esc(figure)}</span>"
        )
    return f'<div class="rows">{"".join(out)}</div>'


def reasons(why: dict[str, str]) -> str:
    """CSS selectors and why those controls cannot work now: the script makes tooltips of it."""
    return f'<div hidden data-why="{esc(json.dumps(why))}"></div>'


def captioned(image: str, left: str, right: str = "", **marks: object) -> str:
    """A picture with a caption; `image` is a data URI."""
    return (
        f'<figure class="one"><img src="{image}"{attributes(**marks)}><figcaption class="cap2">'
        f'<span>{esc(left)}</span><span class="num">{right}</span></figcaption></figure>'
    )


def dot(kind: str) -> str:
    return f'<span class="dot" style="background:var(--{kind})"></span>'


# ---- numbers -------------------------------------------------------------------------------------


def plural(noun: str, count: int) -> str:
    return noun if count == 1 else noun + "s"


def duration(seconds: float) -> str:
    if seconds < 1:
        return "1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def length(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"
