"""The real app in a process of its own, and a real Chromium to look at it with."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import pytest
from playwright.sync_api import Error as PlaywrightError

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
ARGUMENTS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LEFT = """() => ['#bar', '#status', '#message', '#hud'].map(
  s => document.querySelector(s)?.innerText?.replace(/\\s+/g, ' '))"""
"""What a page says at the end of a test."""

PATIENCE = 300_000  # ms; software GL starves the page's own thread on a busy machine


@pytest.fixture(scope="package")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`python app.py` on a free port, as a person starts it; its address."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py"), "--port", str(port)]
            + ["--projects", str(folder / "projects")],
            cwd=folder,  # a person may start it from anywhere
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"GRADIO_TEMP_DIR": str(folder / "uploads")},
        )
    address = f"http://127.0.0.1:{port}"
    opener = build_opener(ProxyHandler({}))
    try:
        for _ in range(240):
            try:
                with opener.open(f"{address}/healthz", timeout=5):
                    break
            except (URLError, OSError):
                if process.poll() is not None:
                    pytest.fail((folder / "log.txt").read_text()[-3000:])
                time.sleep(0.5)
        yield address
        text = own_errors((folder / "log.txt").read_text())
        assert "Traceback" not in text, text[-3000:]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def own_errors(log: str) -> str:
    """The log without what is not ours.

    The web server says when a page leaves in the middle of an answer; Gradio forgets the queue of
    a page that leaves, and its stream may miss it.
    """
    first, *entries = log.split("Exception in ASGI application")
    of_others = ("response already started", "del blocks._queue.pending_messages_per_session")
    ours = (entry for entry in entries if not any(words in entry for words in of_others))
    return first + "".join(ours)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, app: str) -> Iterator[Any]:
    """`visit(width, height, query, **options of the context)`: a page in a profile of its own.

    Collects what no page may do: errors of the script, and requests to the outside.
    """
    contexts, complaints = [], []

    def open_page(
        width: int = 1280, height: int = 720, query: str = "", dark: bool = True, **options: Any
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
            **options,
        )
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((app, "data:", "blob:"))
                else complaints.append(f"outside: {request.url[:100]}")
            ),
        )
        page.goto(f"{app}/{query}", wait_until="domcontentloaded")
        return page

    yield open_page
    for context in contexts:
        for page in context.pages:
            with suppress(PlaywrightError):  # a page that is gone says nothing
                print("left at:", page.url, page.evaluate(LEFT))  # noqa: T201  (where it failed)
        context.close()
    assert complaints == []
