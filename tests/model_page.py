"""A page over real sessions with a tiny random-weight published model, on the CPU."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.conftest import room_capture
from tests.fake_session import quietly
from worldstereo.scene import Capture

with quietly():
    from ui.page.page import Panel
    from ui.session.sessions import GeneratorChoice, Session, Sessions, SessionsConfig
    from worldstereo.generators.registry import GeneratorSettings
    from worldstereo.generators.registry import choice as offered

SECONDS = 120.0
SIZE = "320x208"  # the smallest that the page offers


def capture(path: Path, name: str) -> Capture:
    return replace(room_capture(2, 96, 64), prompt="a room with a table")


@contextmanager
def page_with(choice: GeneratorChoice) -> Iterator[tuple[Panel, Session]]:
    """A page and its session, in which the two-wall room is open."""
    config = SessionsConfig(generators=(offered("warp"), choice), examples=(), read=capture)
    sessions = Sessions(config)
    try:
        with quietly():
            panel = Panel(sessions)
        session = sessions.create()
        session.open(Path("room.zip"), "room.zip").result(SECONDS)
        yield panel, session
    finally:
        sessions.close_all()


def model_choice(folder: Path, variant: str = "worldstereo-memory-dmd") -> GeneratorChoice:
    return offered("diffusion", GeneratorSettings(model=folder, variant=variant, device="cpu"))


def merged(answers: Any) -> dict:
    found: dict = {}
    for answer in answers:
        found |= answer
    return found


def choose(panel: Panel, session: Session, prompt: str = "", frames: int = 3) -> dict:
    """The click on the model's name, with the path's settings as the page sends them."""
    values = ("truck", 10, "first", frames, SIZE, "diffusion", "fused", prompt)
    handler = panel.guarded(panel.generate.on_generator)
    return merged(handler(session.token, *values))


def generate(panel: Panel, session: Session, **changes: Any) -> dict:
    values = {
        "name": "diffusion", "size": SIZE, "seed": 3, "prompt": "a room",
        "steps": 2, "guidance": 5, "negative": "", "mode": session.mode,
    }  # fmt: skip
    answers = panel.guarded(panel.generate.on_generate)(session.token, *(values | changes).values())
    return merged(answers)


def text(update: Any) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", str(update)))
