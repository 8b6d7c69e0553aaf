"""Foreign files to captures: RGB-D, posed photos, one photo, meshes and point clouds.

`read` runs in this process, for scripts and tests; `worker.ImportWorker` runs the same readers in
a process of their own with limits on time, memory and files, which is what the app does.
"""

import logging
import secrets
from pathlib import Path

from worldstereo.errors import InputRefused
from worldstereo.inputs.limits import LOCAL, SPACE, Limits, refusal, shown
from worldstereo.inputs.registry import Reader, register
from worldstereo.scene import Capture

__all__ = ["LOCAL", "SPACE", "Limits", "Reader", "read", "readers", "register", "unknown_failure"]

log = logging.getLogger(__name__)


def read(source: Path | str | bytes, name: str | None = None, limits: Limits = LOCAL) -> Capture:
    """What a file, a folder or the bytes of a file hold.

    Args:
        source: A path, or the bytes of one file (then `name` says what it was called).
        name: The name shown to the person and whose suffix is believed; default: that of the path.
        limits: What the import may cost.

    Raises:
        InputRefused: it cannot be read safely, or does not hold what its name promises; the only
            error that leaves this function. One line of at most 200 characters.
    """
    shown_name = name or ("upload" if isinstance(source, bytes) else Path(source).name) or "upload"
    try:
        from worldstereo.inputs import dispatch

        return dispatch.read(source, shown_name, limits)
    except InputRefused:
        raise
    except MemoryError:
        raise refusal(
            shown_name, "needs more memory than an import may take", "Make it smaller first"
        ) from None
    except Exception:
        raise unknown_failure(shown_name) from None


def readers() -> tuple[Reader, ...]:
    """Everything that can be opened, in the order in which readers are tried."""
    from worldstereo.inputs import builtin, registry

    builtin.load()
    return registry.readers()


def unknown_failure(name: str) -> InputRefused:
    """The line for a failure nobody foresaw; the traceback goes to the log under its number."""
    case = secrets.token_hex(2)
    log.exception("import failed (case %s)", case)
    return InputRefused(f"{shown(name)} could not be read (case {case}). The world is unchanged.")
