"""Foreign files to captures: RGB-D, posed photos, one photo, meshes and point clouds.

`read` runs in this process, for scripts and tests; `worker.ImportWorker` runs the same readers in
a process of their own with limits on time, memory and files, which is what the app does.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from worldstereo.errors import Cancelled, InputRefused
from worldstereo.inputs.limits import LOCAL, SPACE, Limits, refusal, unknown_failure
from worldstereo.inputs.registry import Reader, register
from worldstereo.inputs.task import PLAIN, Apart, Task, running
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Capture

__all__ = ["LOCAL", "SPACE", "Limits", "Reader", "accepted", "read", "read_here", "readers",
           "register", "unknown_failure"]  # fmt: skip


def read(
    source: Path | str | bytes | Sequence[Path | str],
    name: str | None = None,
    limits: Limits = LOCAL,
    *,
    on_step: OnStep = ignore,
) -> Capture:
    """What a file, a folder, several files or the bytes of a file hold.

    Photos without poses and videos are placed in a process of their own, which takes a minute;
    everything else is read in this one.

    Args:
        source: A path, paths of several photos, or the bytes of one file (then `name` says what it
            was called).
        name: The name shown to the person and whose suffix is believed; default: that of the path.
        limits: What the import may cost.
        on_step: hears how far it is, and stops it by raising `Cancelled`.

    Raises:
        InputRefused: it cannot be read safely, or does not hold what its name promises; the only
            error that leaves this function. One line of at most 200 characters.
    """
    if not isinstance(source, (bytes, str, Path)):
        return _apart([Path(path) for path in source], name, limits, on_step)
    shown_name = name or ("upload" if isinstance(source, bytes) else Path(source).name) or "upload"
    try:
        return read_here(source, shown_name, limits, PLAIN)
    except Apart:
        pass
    return _apart(source, shown_name, limits, on_step)


def _apart(
    source: Path | str | bytes | list[Path], name: str | None, limits: Limits, on_step: OnStep
) -> Capture:
    from worldstereo.inputs.sandbox.worker import ImportWorker

    with (
        tempfile.TemporaryDirectory(prefix="worldstereo-upload-") as folder,
        ImportWorker(limits, processes=1, warm=False) as worker,
    ):
        if isinstance(source, bytes):
            path = Path(folder) / "upload"
            path.write_bytes(source)
            source = path
        return worker.read(source, name, on_step=on_step)


def read_here(source: Path | str | bytes, name: str, limits: Limits, task: Task) -> Capture:
    """As `read`, in this process whatever it takes; `Apart` where that is not allowed."""
    try:
        from worldstereo.inputs import dispatch

        with running(task):
            return dispatch.read_source(source, name, limits)
    except (InputRefused, Apart, Cancelled):
        raise
    except MemoryError:
        raise refusal(
            name, "needs more memory than an import may take", "Make it smaller first"
        ) from None
    except Exception:
        raise unknown_failure(name) from None


def readers() -> tuple[Reader, ...]:
    """Everything that can be opened, in the order in which readers are tried."""
    from worldstereo.inputs import builtin, registry

    builtin.load()
    return registry.readers()


def accepted() -> str:
    """One sentence of what can be opened."""
    readers()
    from worldstereo.inputs import registry

    return registry.accepted()
