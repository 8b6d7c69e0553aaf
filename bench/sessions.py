"""Memory of the app by visitors, and how fast it answers while others work.

    python -m bench.sessions visitors --visitors 3 --views 25 --folder DIR
    python -m bench.sessions worlds --worlds 24 --active 4 --folder DIR

The whole app runs in this process, page included, without a browser: visitors are sessions whose
viewport was told that a GPU draws it, so that it holds as many points as it would in a browser.
`visitors`: resident memory after the start, after each visitor's views, after all have left.
`worlds`: so many open worlds; a few generate in turn while the page is fetched and paths previewed.
"""

import argparse
import resource
import socket
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from worldstereo.trajectory import Trajectory
from worldstereo.world import default_view, pivot_distance, resident_bytes, trim

ASSETS = Path(__file__).resolve().parents[1] / "assets"
PRESETS = ("orbit", "truck", "dolly", "pan")


class App:
    """The app on a loopback port, started as `python app.py` starts it."""

    def __init__(self, folder: Path, quiet: float) -> None:
        from ui.__main__ import AppConfig, sessions_config
        from ui.page.page import launch
        from ui.session import sessions as module

        module.REST_AFTER = quiet
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = AppConfig(port=port, projects=folder / "worlds", examples=ASSETS / "examples")
        self.sessions = module.Sessions(sessions_config(config))
        self.note("imports and sessions")
        _, self.url, self.stop = launch(self.sessions, config, ())
        while (ready := self.sessions._ready) is None or ready.job is None:
            time.sleep(0.1)
        ready.job.result(600)
        self.sessions.shared.settled(self.sessions.examples[0], 600)
        self.note("started, first example prepared")

    def note(self, what: str) -> int:
        """Prints what is resident now."""
        now = resident_bytes()
        own = sum(session.nbytes for session in list(self.sessions._sessions.values()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"{what:44s} {now / 1e6:7.0f} MB  sessions' own count {own / 1e6:6.0f} MB  "
              f"peak {peak / 1e6:6.0f} MB", flush=True)  # fmt: skip
        return now

    def visit(self) -> Any:
        """A visitor with the first example in front of him, drawn by a GPU."""
        session = self.sessions.create()
        if not session.world.scene.views:
            session.example(self.sessions.examples[0].key).result(600)
        session.viewport.renderer(False)
        return session


def path_of(session: Any, views: int, kind: str = "orbit") -> Trajectory:
    eye = default_view(session.world.scene).scaled(640, 480)
    reach = pivot_distance(session.world.scene, eye)
    up = session.world.scene.up
    return Trajectory.preset(kind, eye, distance=reach, frames=views, up=up)


def generate(session: Any, views: int, kind: str = "orbit") -> None:
    path = path_of(session, views, kind)
    session.set_plan(path)
    session.preview(1, True)
    session.explore(path).result(600)


def visitors(given: argparse.Namespace) -> None:
    """The first visitor, each further one, and what stays when all have left."""
    app = App(given.folder, quiet=given.quiet)
    tokens = []
    for number in range(given.visitors):
        session = app.visit()
        tokens.append(session.token)
        app.note(f"visitor {number + 1} looks at the example")
        generate(session, given.views)
        time.sleep(1)
        app.note(f"visitor {number + 1} has {given.views} views")
    time.sleep(given.quiet + 35)
    app.note("all quiet, worlds at rest")
    for token in tokens:
        app.sessions.close(token)
    session = None
    time.sleep(35)  # the reaper frees closed worlds at its next turn
    trim()
    app.note("all have left")
    if given.held:
        held()
    app.stop()


def worlds(given: argparse.Namespace) -> None:
    """Many worlds open, a few at work; answers meanwhile."""
    app = App(given.folder, quiet=given.quiet)
    sessions = []
    for number in range(given.worlds):
        session = app.visit()
        generate(session, given.few)
        sessions.append(session)
        if number % 4 == 3:
            app.note(f"{number + 1} worlds of {given.few} views")
    time.sleep(given.quiet + 35)
    app.note("all quiet, worlds at rest")
    answers: dict[str, list[float]] = {}
    over, highest = threading.Event(), [0]

    def answer(what: str, work: Any, *arguments: Any) -> None:
        began = time.monotonic()
        work(*arguments)
        answers.setdefault(what, []).append(time.monotonic() - began)

    def fetch(where: str) -> None:
        with urllib.request.urlopen(app.url + where, timeout=60) as page:  # noqa: S310  (loopback)
            page.read()

    def look() -> None:
        turn = 0
        while not over.wait(0.1):
            turn += 1
            session = sessions[turn % len(sessions)]
            answer("page", fetch, "")
            answer("healthz", fetch, "healthz")
            answer("a session is found", app.sessions.get, session.token)
            if turn % 5 == 0:
                session.set_plan(path_of(session, 9, PRESETS[turn % len(PRESETS)]))
                answer("preview", session.preview, turn % 9)
            highest[0] = max(highest[0], resident_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        jobs = []
        for session in sessions[: given.active]:
            path = path_of(session, given.views, "truck")
            jobs.append(session.explore(path))
        for job in jobs:
            job.result(600)
    finally:
        over.set()
        thread.join()
    app.note(f"{given.active} of {given.worlds} made {given.views} views each")
    print(f"highest while they worked {highest[0] / 1e6:.0f} MB")
    for what, times in answers.items():
        ranked = sorted(times)
        print(f"{what:20s} {len(ranked):5d} answers, 99 % in {ranked[int(0.99 * len(ranked))]:.2f}"
              f" s, worst {ranked[-1]:.2f} s")  # fmt: skip
    app.stop()


def held() -> None:
    """The largest kinds of objects that are still alive, by what the collector sees."""
    import gc
    from collections import Counter

    import numpy as np
    import torch

    gc.collect()
    sizes: Counter[str] = Counter()
    for one in gc.get_objects():
        for name, value in _members(one):
            if isinstance(value, torch.Tensor | np.ndarray) and value.nbytes > 1 << 20:
                sizes[f"{type(one).__name__}.{name}"] += value.nbytes
    for name, size in sizes.most_common(12):
        print(f"   {size / 1e6:8.1f} MB {name}")


def _members(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(str(key)[:30], member) for key, member in value.items()]
    if isinstance(value, list | tuple):
        return [("[]", member) for member in value]
    return []


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=("visitors", "worlds"))
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--visitors", type=int, default=3)
    options.add_argument("--worlds", type=int, default=24)
    options.add_argument("--active", type=int, default=4)
    options.add_argument("--views", type=int, default=25)
    options.add_argument("--few", type=int, default=3, help="views of each world before the test")
    options.add_argument("--quiet", type=float, default=10, help="seconds until a world rests")
    options.add_argument("--held", action="store_true", help="list large objects at the end")
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    {"visitors": visitors, "worlds": worlds}[given.what](given)


if __name__ == "__main__":
    main()
