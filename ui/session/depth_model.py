"""`DepthModel`: whether this machine has a model that estimates depth, and the download of one.

One download serves all sessions, runs only because a visitor pressed the button, and occupies none
of the workers: worlds are explored and opened meanwhile.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from worldstereo import depth

from .jobs import Job


class DepthModel:
    """
    Args:
        offered: whether a visitor may have one downloaded.
        download: takes an `on_step` and returns the model's folder; for tests.
    """

    def __init__(
        self, offered: bool = True, download: Callable[..., Path] = depth.download
    ) -> None:
        self._offered, self._download = offered, download
        self._lock = threading.Lock()
        self.job: Job | None = None
        """The running or the last download."""

    @property
    def name(self) -> str:
        """The folder's name of the model in use; "" where the layout is."""
        folder = depth.model_folder()
        if folder == "none":
            return ""
        parts = Path(folder).parts
        cached = next((part for part in parts if part.startswith("models--")), None)
        return cached.split("--")[-1] if cached else parts[-1]

    @property
    def offered(self) -> bool:
        """Whether there is none yet, and one may be had."""
        asked = os.environ.get(depth.MODEL_FOLDER, "") or "auto"
        return self._offered and asked == "auto" and not self.name

    @property
    def busy(self) -> bool:
        return self.job is not None and not self.job.over

    def get(self) -> Job:
        """Begin the download, or follow the one that runs."""
        with self._lock:
            if self.job is not None and not self.job.over:
                return self.job
            self.job = Job("depth model", lambda job: self._download(on_step=job.on_step))
            threading.Thread(target=self.job.run, name="depth-model", daemon=True).start()
            return self.job

    def stop(self) -> None:
        if self.job is not None:
            self.job.cancel()
