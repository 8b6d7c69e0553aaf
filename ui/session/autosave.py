"""`Autosave`: a session's world on disk, written after each step and found again after a crash."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from worldstereo.errors import WorldBusy, WorldStereoError
from worldstereo.project import Project, is_project, load_world, state_of
from worldstereo.trajectory import Trajectory
from worldstereo.world import World

from .jobs import Job
from .shared import Shared

log = logging.getLogger(__name__)


class Autosave:
    """The project file of one world. A failure to save is told, never lost work.

    Args:
        plan: the path that is saved along with the world.
        told: hears how a save on the worker ended: "saved" or "not saved".
    """

    def __init__(
        self,
        token: str,
        world: World,
        shared: Shared,
        *,
        plan: Callable[[], Trajectory | None],
        told: Callable[[str], None],
    ) -> None:
        self.state = "saved"
        """"saved", "saving", or "not saved: why"."""
        self.reading = threading.Lock()
        """Held while the memories are copied; a step that is quick waits for it."""
        self._token, self._world, self._shared = token, world, shared
        self._plan, self._told = plan, told
        self._project: Project | None = None
        self._stopped = False

    @property
    def path(self) -> Path | None:
        """The project's folder; None where saving is off."""
        return self._shared.project_of(self._token)

    def save(self, job: Job) -> None:
        """On the worker's thread, after a step."""
        path = self.path
        if path is None:
            return
        self.state = "saving"
        job.note("Saving")
        try:
            if self._project is None:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._project = Project(path)  # held until the end: one writer per world
            with self.reading:
                state = state_of(self._world, plan=self._plan())
            self._project.save(state)
            del state  # a copy of the memories
        except WorldBusy:
            self.save_soon()
        except (OSError, WorldStereoError) as error:
            self.state = f"not saved: {reason(error)}"
            log.warning("a world could not be saved: %s", reason(error))
        except Exception:  # the step is done and published: it must not fail for its copy on disk
            self.state = "not saved: internal error, see the app's log"
            log.exception("a world could not be saved")
        else:
            self.state = "saved"
        finally:
            self._world.give_back()  # a save reads all pictures that are new, and copies memories

    def save_soon(self) -> None:
        """Save on the worker, after what it has in hand."""
        if self.path is None or self._stopped:
            return
        self.state = "saving"
        self._shared.worker.submit(self._token, Job("save", self.save, self._done))

    def save_unsaved(self) -> None:
        """Save a world that was opened ahead, now that a visitor looks at it."""
        if self._project is None and self._world.history:
            self.save_soon()

    def _done(self, job: Job) -> None:
        if job.over:
            self._told(self.state.split(":")[0])

    def recover(self) -> tuple[Trajectory | None, str] | None:
        """Load the saved world: its path, and what to say of it ("" if nothing).

        None where there is no save; the world stays new, with a line, where none can be read.
        """
        path = self.path
        if path is None or not is_project(path):
            return None
        for previous in (False, True):
            try:
                plan, _ = load_world(self._world, path, previous=previous)
            except Exception as error:  # whatever is in the file, the page must open
                log.warning("a saved world could not be read: %s", reason(error))
                continue
            return plan, "The last save was damaged; this is the one before." if previous else ""
        return None, "The saved world could not be read; this is a new one."

    def stop(self) -> None:
        """Queue no more saves; one that runs goes on."""
        self._stopped = True

    def close(self) -> None:
        """Let go of the file."""
        if self._project is not None:
            self._project.close()


def reason(error: BaseException) -> str:
    """Why, in one line without a path of this machine."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
