"""Records a tour: starts the app, opens the input, plays the script, writes the film."""

import base64
import math
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from worldstereo.errors import WorldStereoError
from worldstereo.progress import OnStep, ignore
from worldstereo.trajectory import PRESETS, Trajectory
from worldstereo.world import default_view, pivot_distance

from ..__main__ import AppConfig, sessions_config
from ..page.page import launch
from ..session.sessions import Session, Sessions
from .film import Film
from .script import Step, Tour

OVERLAY = Path(__file__).with_name("overlay.js")
FLAGS = (
    "--use-gl=angle",  # draws without a GPU and without a screen
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
IDLE = """() => {
  const go = document.querySelector('#generate'), stop = document.querySelector('#cancel');
  if (document.querySelector('#action [data-opening]')) return false;
  return go && go.offsetParent && !go.disabled && !(stop && stop.offsetParent);
}"""
CARD = 2.5  # seconds of the title
FLIGHT_FPS = 12  # pictures a second of a flight, however long the browser takes for one
DRAWN = 2.0  # seconds after which a picture is no longer waited for
GLIDE = 0.6  # seconds of the pointer from one place to the next
LOOK = 0.1  # seconds between two looks at the browser's news
LOADING = 120_000  # ms for the page and whatever it is asked for


def record(
    source: str,
    tour: Tour,
    out: Path,
    *,
    pictures: Path | None = None,
    on_step: OnStep = ignore,
) -> Film:
    """Plays a tour of the app and writes it to `out` (MP4); its pictures go to `pictures`.

    Args:
        source: a file or folder that the app opens, or the name of a bundled example.

    Raises:
        WorldStereoError: no browser, the input was refused, or a step could not be done.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise WorldStereoError(
            "A tour needs a browser driver: pip install 'worldstereo[tour]', and Chromium."
        ) from None
    film = Film()
    with TemporaryDirectory(prefix="tour-worlds-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        config = AppConfig(port=free.getsockname()[1], projects=Path(folder))
        free.close()
        sessions = Sessions(sessions_config(config))
        _, url, stop = launch(sessions, config)
        try:
            on_step(0, len(tour.steps), f"Opening {source}")
            session = _opened(sessions, source)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=_chromium(),
                    args=[*FLAGS, *(["--no-sandbox"] if _is_root() else [])],
                )
                try:
                    page = browser.new_page(
                        viewport={"width": tour.width, "height": tour.height},
                        color_scheme="dark",
                    )
                    page.set_default_timeout(LOADING)
                    page.goto(f"{url.rstrip('/')}/?world={session.token}")
                    page.wait_for_function(IDLE)
                    player = _Player(page, session, tour, film, pictures, on_step)
                    player.play()
                finally:
                    browser.close()
            film.write(out, tour.fps, (tour.width, tour.height))
        except Error as error:
            line = str(error).strip().splitlines()[0][:160]
            raise WorldStereoError(f"The browser could not go on: {line}") from None
        finally:
            stop()
            film.close()
    return film


class _Player:
    def __init__(
        self,
        page: Any,
        session: Session,
        tour: Tour,
        film: Film,
        pictures: Path | None,
        on_step: OnStep,
    ) -> None:
        self._page, self._session, self._tour, self._film = page, session, tour, film
        self._pictures, self._on_step = pictures, on_step
        self._pointer = (tour.width / 2, tour.height * 0.6)
        self._shown = 0.0
        self._animations: list[tuple[str, float, float]] = []

    def play(self) -> None:
        page, tour = self._page, self._tour
        page.evaluate(OVERLAY.read_text(encoding="utf-8"))
        page.evaluate("([a, b]) => tour.card(a, b)", [tour.title, tour.subtitle])
        screen = page.context.new_cdp_session(page)

        def seen(event: dict[str, Any]) -> None:
            self._film.add(base64.b64decode(event["data"]), event["metadata"]["timestamp"])
            screen.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

        screen.on("Page.screencastFrame", seen)
        size = {"maxWidth": tour.width, "maxHeight": tour.height}
        screen.send("Page.startScreencast", {"format": "jpeg", "quality": 92, **size})
        while not len(self._film):
            self._pass(LOOK)
        self._film.mark(time.time(), 0.0)
        if tour.title or tour.subtitle:
            self._during(lambda: self._pass(CARD))
            page.evaluate("() => tour.card('', '')")
        for i, step in enumerate(tour.steps):
            self._on_step(i, len(tour.steps), f"{step.kind} {step.what}".strip())
            self._during(lambda step=step: self._do(step), step)
        screen.send("Page.stopScreencast")
        for name, start, end in self._animations:
            assert self._pictures is not None
            self._film.animate(self._pictures / name, start, end)

    def _during(self, act: Callable[[], None], step: Step | None = None) -> None:
        """Does it, and tells the film how much of that time it shows."""
        began = time.time()
        act()
        took = time.time() - began
        shown = took
        if step is not None and step.kind == "wait":
            shown = min(took, step.seconds)
        elif step is not None and step.kind == "fly":
            shown = step.seconds
        elif step is not None and step.kind in ("picture", "click"):
            shown = min(took, 2 * GLIDE)  # a page that answers late is no part of the tour
        self._shown += shown
        self._film.mark(time.time(), self._shown)

    def _pass(self, seconds: float) -> None:
        self._page.wait_for_timeout(1000 * seconds)

    def _do(self, step: Step) -> None:
        page = self._page
        if step.kind == "caption":
            page.evaluate("text => tour.caption(text)", step.what)
        elif step.kind == "pause":
            self._pass(step.seconds)
        elif step.kind == "key":
            page.keyboard.press(step.what)
        elif step.kind == "click":
            self._click(step)
        elif step.kind == "fly":
            self._fly(step)
        elif step.kind == "wait":
            condition = IDLE
            if step.what != "idle":
                condition = f"() => document.querySelector({step.what!r})?.checkVisibility()"
            page.wait_for_function(condition, timeout=1000 * step.patience)
        elif step.kind == "animation" and self._pictures is not None:
            self._animations.append((step.what, max(0.0, self._shown - step.seconds), self._shown))
        elif step.kind == "picture" and self._pictures is not None:
            self._picture(self._pictures / step.what)

    def _click(self, step: Step) -> None:
        place = self._page.locator(step.what).first
        place.scroll_into_view_if_needed()
        box = place.bounding_box()
        if box is None:
            raise WorldStereoError(f"The page shows no {step.what} to click.")
        x, y = (
            box["x"] + step.at[0] * box["width"],
            box["y"] + step.at[1] * box["height"],
        )
        (x0, y0), parts = self._pointer, 12
        for k in range(1, parts + 1):
            ease = 0.5 - 0.5 * math.cos(math.pi * k / parts)  # slow, fast, slow
            at = [x0 + ease * (x - x0), y0 + ease * (y - y0)]
            self._page.evaluate("([x, y]) => tour.pointer(x, y, false)", at)
            self._pass(GLIDE / parts)
        self._pointer = (x, y)
        self._page.evaluate("([x, y]) => tour.pointer(x, y, true)", [x, y])
        self._page.mouse.click(x, y)
        self._pass(0.15)
        self._page.evaluate("([x, y]) => tour.pointer(x, y, false)", [x, y])

    def _fly(self, step: Step) -> None:
        session = self._session
        here = session.viewport.camera()
        if here is None:
            here = default_view(session.world.scene)
        frames = max(2, round(step.seconds * FLIGHT_FPS))
        path = Trajectory.preset(
            step.what,
            here,
            frames=frames,
            distance=pivot_distance(session.world.scene, here),
            value=PRESETS[step.what].parameter.default if step.value is None else step.value,
            up=session.world.scene.up,
            fps=float(FLIGHT_FPS),
        )
        before, session.viewport.still = session.viewport.still, True
        try:
            for i in range(len(path)):
                shown, end = len(self._film), time.monotonic() + DRAWN
                session.viewport.fly_to(path.cameras[i])
                while len(self._film) == shown and time.monotonic() < end:
                    self._pass(1 / 60)
        finally:
            session.viewport.still = before

    def _picture(self, path: Path) -> None:
        self._page.evaluate("() => tour.hide(true)")
        options = {"quality": 88} if path.suffix == ".jpg" else {}
        kind = "jpeg" if path.suffix == ".jpg" else "png"
        self._page.screenshot(path=str(path), type=kind, **options)
        self._page.evaluate("() => tour.hide(false)")


def _opened(sessions: Sessions, source: str) -> Session:
    """A session in which the input has become the world."""
    session = sessions.create(prepared=False)
    if any(example.key == source for example in sessions.examples):
        session.example(source).result()
    else:
        path = Path(source)
        if not path.exists():
            raise WorldStereoError(f"{source[:80]} is neither a file nor a bundled example.")
        session.open(path, path.name).result()
    return session


def _chromium() -> str | None:
    """The browser of this machine; None for the one that playwright installed."""
    named = os.environ.get("CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser")


def _is_root() -> bool:
    """Chromium's own sandbox refuses root; what it shows here is our page alone."""
    return hasattr(os, "geteuid") and os.geteuid() == 0
