"""`Sessions`: all open worlds, how they begin and how they end.

A token is 256 random bits and the only key to a world. A session ends when its owner closes it or
after a time without tabs; its saved world stays, and the token finds it again.
"""

import gc
import logging
import re
import secrets
import threading
import time

from worldstereo.errors import WorldStereoError
from worldstereo.project import is_project
from worldstereo.world import resident_bytes, trim

from ..server.proxy import Sockets
from ..viewport.viewport import Viewport
from .config import Example, GeneratorChoice, SessionsConfig
from .jobs import Job, Progress, Worker
from .preview import Preview
from .retention import tidy
from .session import Session
from .shared import Shared

__all__ = [
    "Example",
    "GeneratorChoice",
    "Job",
    "Preview",
    "Progress",
    "Session",
    "Sessions",
    "SessionsConfig",
    "Worker",
]

log = logging.getLogger(__name__)

REST_AFTER = 60.0  # seconds without an action after which a world leaves memory
TIDY_EVERY = 600.0  # seconds between two looks at the saved worlds
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")  # 256 bits, URL-safe


class Sessions:
    """All open worlds: a cap, an end for those without tabs, and what they share."""

    def __init__(self, config: SessionsConfig | None = None) -> None:
        self.config = config or SessionsConfig()
        self.shared = Shared(self.config)
        self.sockets = Sockets()
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._admitting = 0
        self._stop = threading.Event()
        self._ready: Session | None = None
        self._left = False  # a session was closed since the collector ran
        self._reaper = threading.Thread(target=self._reap_now_and_then, name="reaper", daemon=True)
        self._reaper.start()

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.shared.examples

    @property
    def generators(self) -> dict[str, GeneratorChoice]:
        return self.shared.generators

    @property
    def has_kept(self) -> bool:
        """Whether the first example's world is kept: this code has run here before."""
        return bool(self.examples) and self.shared.kept.find(self.examples[0]) is not None

    # ---- sessions --------------------------------------------------------------------------------

    def create(self, *, prepared: bool = True) -> Session:
        """A new session: the one that was prepared, or one with an empty world.

        Args:
            prepared: False for an empty world in any case.

        Raises:
            WorldStereoError: all places are taken.
        """
        with self._lock:
            ready = self._ready if prepared else None
            if ready is not None:
                self._ready = None
                self._sessions[ready.token] = ready
                ready.touched = time.monotonic()
                return ready
        return self._admit(secrets.token_urlsafe(32))

    def prepare(self) -> Session | None:
        """A session for the first visitor, opening the first example before anybody comes.

        Nothing of it is saved before a visitor has it. None where there is no example.
        """
        if not self.examples:
            return None
        self.shared.compile_beside(self.examples[0])
        session = Session(secrets.token_urlsafe(32), self.shared)
        session.example(self.examples[0].key, save=False)
        with self._lock:
            self._ready = session
        return session

    def is_ahead(self, session: Session) -> bool:
        """Whether this session was prepared and nobody has come for it yet."""
        return self._ready is session

    def get(self, token: str | None) -> Session | None:
        """The session of a token, brought back from its saved world if the app was restarted."""
        if not token or not TOKEN.fullmatch(token):
            return None
        session = self._sessions.get(token)
        if session is None:
            with self._lock:
                opening = self._opening.setdefault(token, threading.Lock())
            try:
                with opening:  # two tabs at once bring it back once; other tokens do not wait
                    session = self._sessions.get(token) or self._recover(token)
            finally:
                with self._lock:
                    self._opening.pop(token, None)
            if session is None:
                return None
        session.touched = time.monotonic()
        return session

    def viewport(self, token: str) -> Viewport | None:
        """The stage of an open session, for the proxy; never waits, never opens one."""
        session = self._sessions.get(token)
        return None if session is None else session.viewport

    def close(self, token: str) -> None:
        """End a session; its saved world stays."""
        with self._lock:  # first: who comes meanwhile must not find one that is being closed
            session = self._sessions.pop(token, None)
        if session is not None:
            session.close()
            self.sockets.forget(token)
            trim()
            self._left = True

    def rest(self) -> int:
        """Send the worlds that were quiet for a while to disk; returns how many. They stay open."""
        limit, rested = time.monotonic() - REST_AFTER, 0
        for session in list(self._sessions.values()):
            if not session.busy and session.touched < limit and session.rested < session.touched:
                rested += session.rest()
        return rested

    def reap(self) -> int:
        """End the sessions that had no tab for too long and do nothing; returns how many."""
        limit = self.config.idle_seconds
        now = time.monotonic()
        ended = 0
        for token, session in list(self._sessions.items()):
            if self.sockets.of(token) > 0 or session.busy:
                continue
            without = self.sockets.seconds_without(token)
            quiet = now - session.touched
            if min(quiet, quiet if without is None else without) > limit:
                self.close(token)
                ended += 1
        return ended

    def tidy(self) -> int:
        """Delete the oldest saved worlds beyond what is kept, none that is open; how many went."""
        folder = self.config.projects
        if folder is None or not folder.is_dir():
            return 0
        with self._lock:
            tokens = [*self._sessions, *([self._ready.token] if self._ready else [])]
        in_use = [path for token in tokens if (path := self.shared.project_of(token)) is not None]
        gone = tidy(folder, self.config.keep, in_use)
        if gone:
            log.info("%d old worlds were deleted; kept are %s", len(gone), self.config.keep)
        return len(gone)

    def close_all(self) -> None:
        """The app ends: sessions in order, then the worker and the import process."""
        self._stop.set()
        self._reaper.join(10)  # so that it starts nothing after the end
        for token in list(self._sessions):
            self.close(token)
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None:
            ready.close()
        self.shared.close()

    @property
    def stats(self) -> dict[str, int]:
        """Counts for `/healthz`."""
        sessions = list(self._sessions.values())
        return {
            "sessions": len(sessions),
            "running": sum(session.busy for session in sessions),
            "waiting": self.shared.worker.waiting + self.shared.importing.waiting,
            "threads": threading.active_count(),
            "resident_bytes": resident_bytes(),
            "world_bytes": sum(session.nbytes for session in sessions),
        }

    def _recover(self, token: str) -> Session | None:
        path = self.shared.project_of(token)
        if path is None or not is_project(path):
            return None
        session = self._admit(token)
        session.recover()
        return session

    def _admit(self, token: str) -> Session:
        """A new session in a place that is kept for it: building one starts a server."""
        if len(self._sessions) >= self.config.max_sessions:
            self.reap()
        with self._lock:
            if len(self._sessions) + self._admitting >= self.config.max_sessions:
                raise WorldStereoError(
                    f"All {self.config.max_sessions} worlds of this server are in use. "
                    f"Try again in a few minutes."
                )
            self._admitting += 1
        try:
            session = Session(token, self.shared)
        except BaseException:
            with self._lock:
                self._admitting -= 1
            raise
        with self._lock:
            self._admitting -= 1
            self._sessions[token] = session
        return session

    def _collect(self) -> None:
        """Frees the sessions that were closed: they refer to themselves, and the collector comes
        for such only after thousands of new objects. What the start has frozen holds the world
        that was opened ahead, too, so all is looked through, and frozen again."""
        if self._left:
            self._left = False
            frozen = gc.get_freeze_count() > 0
            gc.unfreeze()
            gc.collect()
            if frozen:
                gc.freeze()
            trim()

    def _reap_now_and_then(self) -> None:
        next_tidy = 0.0
        while not self._stop.wait(min(30.0, max(0.2, self.config.idle_seconds / 4))):
            try:
                self.reap()
                self.rest()
                self._collect()
                if self._sessions:
                    self.shared.warm_importer()
                if time.monotonic() > next_tidy:
                    self.tidy()
                    next_tidy = time.monotonic() + TIDY_EVERY
            except Exception:
                log.exception("the reaper stumbled")
