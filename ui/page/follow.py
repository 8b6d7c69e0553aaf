"""Follows a job on the page, and paints the page when a world has changed.

A job outlives the page that started it: `job` attaches to whatever runs, after a click as after a
reload, and tells the parts of the page what arrives.
"""

import contextlib
from collections.abc import Iterator, Sequence

from worldstereo.errors import Cancelled, WorldStereoError

from ..session.sessions import Job, Session
from . import html
from .action import Action, progress
from .catalogue import tr
from .core import BUG, Core, Part, Updates
from .header import Header
from .hud import Hud
from .strip import Strip
from .tabs.memory import MemoryTab
from .tabs.path import PathTab


class Follow:
    """
    Args:
        parts: all parts of the page; the page completes the list after this was made.
    """

    def __init__(
        self,
        core: Core,
        parts: Sequence[Part],
        action: Action,
        header: Header,
        strip: Strip,
        hud: Hud,
        path: PathTab,
        memory: MemoryTab,
    ) -> None:
        self.core, self.parts, self.action = core, parts, action
        self.header, self.strip, self.hud = header, strip, hud
        self.path, self.memory = path, memory

    def refresh(self, session: Session) -> Updates:
        """Everything that follows from the world, for the page of this session."""
        updates: Updates = {}
        for part in self.parts:
            updates |= part.refresh(session)
        return updates | self.hud.refresh_map(session)

    def changed(self, session: Session) -> Updates:
        """Header and strip: what another page of this session may have changed at any moment."""
        return self.strip.refresh(session) | self.header.refresh(session)

    def job(self, session: Session) -> Iterator[Updates]:
        """Progress of the running job until it ends, then what has become of the world."""
        job = session.job
        if job is None:
            return
        coming = self.preparing(session) if job.kind == "open" else {}
        yield self.action.refresh(session) | self.header.refresh(session) | coming
        shown, sketch = -1, None
        for _ in job:
            if job.over:
                break
            updates: Updates = {self.action.status: progress(job)}
            if job.kind == "explore" and len(job.frames) != shown:
                shown = len(job.frames)
                frames, total = list(job.frames), job.progress.total
                for part in self.parts:
                    updates |= part.arriving(session, frames, total)
            elif job.kind == "open":
                if session.loader.sketch is not sketch:
                    sketch = session.loader.sketch
                    updates |= self.changed(session) | self.preparing(session)
                    updates |= self.hud.refresh_map(session)  # of the last world
                elif len(job.frames) != shown:
                    shown = len(job.frames)
                    updates |= self.preparing(session)
                updates |= self.hud.refresh(session)
            yield updates
        yield from self._ended(session, job)

    def preparing(self, session: Session) -> Updates:
        """Another world is being opened: each tab says so, and offers nothing of the old one."""
        updates = self.action.reasons(session)
        for part in self.parts:
            updates |= part.preparing(session)
        return updates

    def _ended(self, session: Session, job: Job) -> Iterator[Updates]:
        message = self.core.message
        try:
            job.result()
        except Cancelled:
            if job.kind == "complete":
                said = tr("Cancelled. Finished keyframes stay; Undo takes them back.")
            else:
                said = tr("Cancelled. The world is unchanged.")
            yield self.refresh(session) | {message: html.info(said)}
        except WorldStereoError as error:  # written for this reader; any other error is a bug
            yield self.refresh(session) | {message: html.failed(str(error))}
        except Exception:  # the job has logged it with its place
            yield self.refresh(session) | {message: html.failed(BUG)}
        else:
            updates = self.refresh(session) | {message: ""}
            if job.kind == "open":
                for part in self.parts:
                    updates |= part.opened(session)
            elif job.kind == "explore":
                for part in self.parts:
                    updates |= part.made(session)
            yield updates
        yield from self.settle(session)

    def settle(self, session: Session) -> Iterator[Updates]:
        """Once nothing runs: a path if there is none, its preview, a picture under Memory."""
        if session.planned.path is None:
            planned = self.path.first_plan(session)
            if not planned:
                return
            yield planned | self.refresh(session)
            if session.world.scene.views:
                yield self.memory.choose(session, 0)
            if session.planned.path is not None:
                yield self.path.show_preview(session, 0)
        elif not session.busy:
            yield (
                self.action.refresh(session) | self.changed(session) | self.memory.newest(session)
            )
            with contextlib.suppress(WorldStereoError):
                yield self.path.show_preview(session, 0)
