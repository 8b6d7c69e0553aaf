"""A project: one world, whole, that survives crashes, restarts and years.

    NAME.world/
        project.json     what the world is; names its members and their sizes; written last
        previous.json    the same of the save before, should a member be damaged
        members/         <sha256>.safetensors, never changed after they were written
        .lock            held by the one writer

A save writes the members that are new, makes them durable, and only then replaces `project.json`
in one step; so at any moment the folder is the old project or the new one, and its cost follows
what a step changed. `pack` puts the same files into one zip. Nothing here is ever unpickled, and
a saved project carries no clock: saving the same state twice gives the same bytes.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from worldstereo._core.atomic import nothing, sync_folder, write_atomic
from worldstereo.errors import ExportError, InputRefused, WorldBusy
from worldstereo.inputs.jsonfile import parse
from worldstereo.inputs.limits import LOCAL, Limits
from worldstereo.project._codec import Known, Reader, Unsound, Writer, build, members_of
from worldstereo.project._files import (
    FORMAT,
    LATER,
    LOCK,
    MANIFEST,
    MAX_BYTES,
    MAX_RATIO,
    MEMBERS,
    PREVIOUS,
    SMALL_BYTES,
    STATE,
    VERSION,
    ReadAhead,
    ReadMember,
    checked_manifest,
    checksum,
    compact_json,
    entries_of,
    member_file,
    open_member,
    zip_reader,
)
from worldstereo.scene import Scene
from worldstereo.trajectory import Trajectory
from worldstereo.views.registration import Registration
from worldstereo.world import Original, StepRecord, World

Point = Callable[[str], None]
"""Called with the name of each step of a save; tests kill the process there."""


@dataclass(frozen=True, eq=False)
class ProjectState:
    """What a project file holds: plain values and tensors, nothing that runs."""

    scene: Scene = field(default_factory=Scene)
    registration: Registration | None = None
    history: tuple[StepRecord, ...] = ()
    geometry: dict[str, Tensor] = field(default_factory=dict)
    """`state_dict()` of the global geometric memory."""
    stereo: dict[str, Tensor] = field(default_factory=dict)
    """`state_dict()` of the spatial-stereo memory."""
    plan: str | None = None
    """JSON of the planned trajectory."""
    settings: dict[str, Any] = field(default_factory=dict)
    """JSON values of the app: what was picked where."""
    original: Original | None = None
    """The capture before intake."""
    keypoints: dict[str, Tensor] = field(default_factory=dict)
    """`state_dict()` of the keypoint level; empty in older files."""


# ---- writing -------------------------------------------------------------------------------------


class Project:
    """A project folder open for writing, by one writer at a time.

    Args:
        path: the folder; made when it is not there.
        point: fault points, for tests.

    Raises:
        WorldBusy: another writer holds it; the text says which process.
        ExportError: the folder cannot be made.
    """

    def __init__(self, path: Path | str, *, point: Point = nothing) -> None:
        self.path, self._point = Path(path), point
        self._known = Known()
        try:
            (self.path / MEMBERS).mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / LOCK, timeout=0, thread_local=False)
            self._lock.acquire()
        except Timeout:
            raise WorldBusy(f"{self.path.name} is open in {_holder(self.path)}.") from None
        except OSError as error:
            raise _not_saved(self.path, error) from error
        with contextlib.suppress(OSError):  # only a courtesy to whoever finds it locked
            (self.path / f"{LOCK}-holder").write_text(f"process {os.getpid()}")

    def close(self) -> None:
        """Let the next writer in; closing twice is closing once."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                (self.path / f"{LOCK}-holder").unlink()
            self._lock.release()

    def __enter__(self) -> "Project":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def save(self, state: ProjectState) -> int:
        """Writes what is new; returns how many bytes that was.

        Raises:
            ExportError: the disk is full, the folder is read-only, a value cannot be saved. The
                last save is then intact.
        """
        written: dict[str, int] = {}
        folder = self.path / MEMBERS

        def store(name: str, content: bytes) -> None:
            write_atomic(folder / member_file(name), content, point=self._point, sync=False)
            written[name] = len(content)

        try:
            manifest = manifest_of(
                state, store, lambda name: _size(folder / member_file(name)), self._known
            )
            old = _bytes_if_there(self.path / MANIFEST)
            if old == manifest:
                return sum(written.values())
            if written:
                sync_folder(folder)
            self._point("members-durable")
            if old is not None:
                write_atomic(self.path / PREVIOUS, old, point=self._point)
            self._point("previous-written")
            write_atomic(self.path / MANIFEST, manifest, point=self._point)
            self._point("manifest-written")
        except OSError as error:
            raise _not_saved(self.path, error) from error
        except TypeError as error:
            raise ExportError(f"{self.path.name} could not be saved: {error}") from error
        with contextlib.suppress(OSError, ValueError, KeyError):  # what is left over can wait
            self._sweep()
        self._point("swept")
        return sum(written.values()) + len(manifest)

    def _sweep(self) -> None:
        """Removes members that neither this save nor the one before names, and old drafts."""
        named: set[str] = set()
        for name in (MANIFEST, PREVIOUS):
            content = _bytes_if_there(self.path / name)
            if content is not None:
                named |= {member_file(n) for n in json.loads(content)["members"]}
        for path in (self.path / MEMBERS).iterdir():
            if path.name not in named:
                path.unlink()
        for path in self.path.glob(".*.part"):
            path.unlink()


def save(state: ProjectState, path: Path | str) -> int:
    """Saves into a project folder and lets go of it; see `Project.save`."""
    with Project(path) as project:
        return project.save(state)


def manifest_of(
    state: ProjectState,
    store: Callable[[str, bytes], None],
    size_of: Callable[[str], int | None],
    known: Known | None = None,
) -> bytes:
    """`project.json` of a state; its members go to `store` as they are made.

    Raises:
        TypeError: a value that a project cannot hold.
    """
    writer = Writer(store, size_of, known or Known())
    skeleton = {name: writer.value(getattr(state, name), name) for name in STATE + LATER}
    small = writer.finish()
    body = {"small": small, "members": dict(sorted(writer.sizes.items())), "state": skeleton}
    head = {"format": FORMAT, "version": VERSION, "checksum": checksum(body)}
    return compact_json({**head, **body})


def packed(state: ProjectState) -> bytes:
    """The whole project as one zip, for a download; `load` reads it as it reads a folder."""
    members: dict[str, bytes] = {}
    manifest = manifest_of(state, members.__setitem__, lambda name: None)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [
            (MANIFEST, manifest),
            *((f"{MEMBERS}/{member_file(n)}", members[n]) for n in sorted(members)),
        ]:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, content)
    return stream.getvalue()


def unpacked(state: ProjectState, folder: Path) -> None:
    """Into a new folder of its own: no lock, no earlier save, nothing made durable."""
    (folder / MEMBERS).mkdir(parents=True)

    def store(name: str, content: bytes) -> None:
        (folder / MEMBERS / member_file(name)).write_bytes(content)

    (folder / MANIFEST).write_bytes(manifest_of(state, store, lambda name: None))


# ---- reading -------------------------------------------------------------------------------------


def is_project(path: Path | str) -> bool:
    """Whether a folder or zip says that it is a project; it may still be refused."""
    path = Path(path)
    if path.is_dir():
        return _regular(path / MANIFEST) and FORMAT.encode() in _head(path / MANIFEST)
    if not _regular(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive, archive.open(MANIFEST) as member:
            return FORMAT.encode() in member.read(200)
    except (zipfile.BadZipFile, KeyError, OSError, RuntimeError, NotImplementedError, ValueError):
        return False


def load(
    path: Path | str,
    *,
    name: str = "",
    previous: bool = False,
    limits: Limits = LOCAL,
    most_bytes: int = MAX_BYTES,
) -> ProjectState:
    """A saved project from its folder or its zip, every member's checksum verified.

    Args:
        name: what to call it in a refusal; the file's own name where empty.
        previous: the state of the save before the last, if the folder has it.

    Raises:
        InputRefused: damaged, hostile, too large, or written by a newer version.
    """
    path = Path(path)
    name = name or path.name
    manifest = PREVIOUS if previous else MANIFEST
    if path.is_dir():
        return _read(
            lambda n, most: open_member(path / n, most), manifest, name, limits, most_bytes
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = entries_of(archive, name)
            reader = zip_reader(archive, entries)
            return _read(reader, manifest, name, limits, most_bytes)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        raise InputRefused(f"{name}: the zip is damaged. Download the project again.") from None
    except OSError:
        raise InputRefused(f"{name}: could not be opened.") from None


def _read(
    read: ReadMember, manifest: str, name: str, limits: Limits, most_bytes: int
) -> ProjectState:
    try:
        fields = parse(name, read(manifest, limits.json_bytes), limits)
        sizes, small, skeleton = checked_manifest(fields)
        if sum(sizes.values()) > most_bytes:
            raise Unsound(f"it names {sum(sizes.values())} bytes; at most {most_bytes} are read")

        def checked(member: str) -> bytes:
            try:
                content = read(f"{MEMBERS}/{member_file(member)}", sizes[member])
            except FileNotFoundError:
                raise Unsound(f"member {member[:12]} is missing") from None
            if len(content) != sizes[member] or hashlib.sha256(content).hexdigest() != member:
                raise Unsound(f"member {member[:12]} is damaged (wrong checksum)")
            return content

        def fetch(member: str, place: str) -> bytes:
            if member not in sizes:
                raise Unsound(f"{place}: its member is not listed")
            try:
                return ahead(member)
            except Unsound as error:
                raise Unsound(f"{place}: {error}") from None

        parts = [key for key in STATE + LATER if key in skeleton]
        order = (name for key in parts for name in members_of(skeleton[key]) if name in sizes)
        # chunks that repeat (zeros, say) are stored once; but a small file must not fill the memory
        most = max(SMALL_BYTES, MAX_RATIO * sum(sizes.values()))
        reader = Reader(fetch, small, min(most_bytes, most))
        with ReadAhead(checked, order) as ahead:
            values = {key: reader.value(skeleton[key], key) for key in parts}
        state = build(ProjectState, values, "it")
        if state.original is not None and not state.original.belongs_to(state.scene.views):
            raise Unsound("original: does not fit the views")
        if state.plan is not None:
            Trajectory.from_json(state.plan, source=f"{name}: plan")
        return state
    except FileNotFoundError:
        raise InputRefused(
            f"{name}: holds no {manifest}. A project folder or zip has one."
        ) from None
    except OSError:
        raise InputRefused(f"{name}: could not be read.") from None
    except RecursionError:
        raise InputRefused(f"{name}: nested too deeply to be a project.") from None
    except Unsound as error:
        text = f"{name}: {error}"[:190].rstrip(".")
        raise InputRefused(f"{text}.") from None


# ---- worlds --------------------------------------------------------------------------------------


def state_of(
    world: World, *, plan: Trajectory | None = None, settings: dict[str, Any] | None = None
) -> ProjectState:
    """The state of a world between two steps.

    Raises:
        WorldBusy: a step is running.
    """
    while True:
        scene, registration, history = world.scene, world.registration, world.history
        original = world.original
        geometry, stereo = world.memories()
        keypoints = world.keypoints()
        if world.scene is scene:  # else a step was published in between
            text = None if plan is None else plan.to_json()
            picked = dict(settings or {})
            return ProjectState(
                scene, registration, history, geometry, stereo, text, picked, original, keypoints
            )


def save_world(
    world: World,
    path: Path | str,
    *,
    plan: Trajectory | None = None,
    settings: dict[str, Any] | None = None,
) -> int:
    """Saves a world into the project folder `path`; see `Project.save` and `state_of`."""
    return save(state_of(world, plan=plan, settings=settings), path)


def load_world(
    world: World, path: Path | str, *, previous: bool = False, limits: Limits = LOCAL
) -> tuple[Trajectory | None, dict[str, Any]]:
    """Turns `world` into a saved one; returns the planned path and the settings saved with it.

    Raises:
        InputRefused: the project cannot be read; the world is as it was.
        WorldBusy: a step is running.
    """
    state = load(path, previous=previous, limits=limits)
    return reopen(world, state, name=Path(path).name)


def reopen(
    world: World, state: ProjectState, *, name: str = "project"
) -> tuple[Trajectory | None, dict[str, Any]]:
    """Turns `world` into a loaded state; see `load_world`."""
    try:
        world.reopen(
            state.scene,
            state.registration,
            state.history,
            state.geometry,
            state.stereo,
            state.original,
            state.keypoints,
        )
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise InputRefused(
            f"{name}: its memories do not fit this version. The world is unchanged."
        ) from error
    plan = None if state.plan is None else Trajectory.from_json(state.plan)
    return plan, state.settings


# ---- small things --------------------------------------------------------------------------------


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _head(path: Path) -> bytes:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return stream.read(200)
    return b""


def _bytes_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (path / f"{LOCK}-holder").read_text()[:40]
        if re.fullmatch(r"process \d+", text):
            return f"another window or program ({text})"
    return "another window or program"


def _not_saved(path: Path, error: OSError) -> ExportError:
    reason = error.strerror or type(error).__name__
    return ExportError(f"{path.name} could not be saved: {reason}. The last save is intact.")
