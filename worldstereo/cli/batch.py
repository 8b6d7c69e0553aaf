"""`worldstereo batch`: a manifest of captures through open, path, generate and export, on Ray.

Each row is a task of its own, named by the hash of its files and settings: what is done is found
again, whatever else the manifest holds by then. A task that fails, takes too long or takes too much
memory is a line of the report; the others go on. The results of a task appear at once and whole.

    out/
        index.html  results.csv     the report, while the batch runs
        <hash>/                     exports, clip, thumb.jpg, result.json (written last)
"""

import csv
import hashlib
import html
import importlib
import io
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from worldstereo._core.atomic import write_atomic
from worldstereo._core.resident import resident_bytes, trim
from worldstereo.errors import InputRefused, WorldStereoError
from worldstereo.progress import OnStep, ignore, interruptible

log = logging.getLogger(__name__)

RESULT = "result.json"
GRACE = 20.0  # seconds that a task has to stop by itself
MAX_BYTES = 64 << 20  # of a manifest
REPORT_EVERY = 1.0  # seconds at least between two reports: each is written as a whole
KINDS: dict[str, type | tuple[type, ...]] = {
    "input": str,
    "name": str,
    "trajectory": str,
    "amount": (int, float),
    "frames": int,
    "width": int,
    "height": int,
    "seed": int,
    "generator": str,
    "export": list,
}


@dataclass(frozen=True)
class Task:
    """One row: which capture, which path, which files."""

    input: str
    name: str = ""
    trajectory: str = "orbit"
    amount: float = 1.0
    frames: int = 25
    width: int = 640
    height: int = 480
    seed: int = 0
    generator: str = "warp"
    export: tuple[str, ...] = ("ply", "mp4")
    row: int = 0
    """Its line in the manifest, from 1."""
    key: str = ""
    """Hash of its files and settings; "" while it is broken."""


@dataclass(frozen=True)
class Result:
    """What became of a task."""

    key: str
    name: str
    row: int
    state: str
    """"done", "failed" or "kept": done by an earlier run."""
    message: str = ""
    seconds: float = 0.0
    views: int = 0
    points: int = 0
    files: tuple[str, ...] = ()


@runtime_checkable
class Pool(Protocol):
    """Where tasks run. `RayPool` is the one that the command uses."""

    def run(self, tasks: Sequence[Task], out: Path) -> Iterator[Result]:
        """Results as they come; a task that is lost is a failed result."""
        ...


# ---- the manifest --------------------------------------------------------------------------------


def read_manifest(path: Path) -> tuple[list[Task], list[Result]]:
    """Tasks of a manifest, and a failed result for each row that is broken.

    A manifest is a CSV with a header, a JSON list, or one JSON object a line; only `input` is
    needed, a path from the manifest's folder on.

    Raises:
        InputRefused: it is no such file, or holds no row.
    """
    if path.stat().st_size > MAX_BYTES:
        raise InputRefused(f"{path.name}: is larger than {MAX_BYTES >> 20} MB. Split the manifest.")
    try:
        rows = _rows(path.read_text(encoding="utf-8"), path.suffix.lower())
    except (ValueError, RecursionError, csv.Error) as error:
        reason = str(error).splitlines()[0][:80]
        raise InputRefused(
            f"{path.name}: is no manifest ({reason}). CSV, a JSON list or JSON lines are accepted."
        ) from None
    if not rows:
        raise InputRefused(f"{path.name}: holds no row. Each row names at least its input.")
    tasks, broken = [], []
    for number, row in enumerate(rows, 1):
        try:
            tasks.append(_task(row, number, path.parent))
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            name = (
                str(row.get("name") or row.get("input", ""))[:80] if isinstance(row, dict) else ""
            )
            broken.append(Result("", name, number, "failed", f"row {number}: {reason}"))
    return tasks, broken


def _rows(text: str, suffix: str) -> list[Any]:
    if suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    if text.lstrip().startswith("["):
        rows = json.loads(text)
        return rows if isinstance(rows, list) else []
    out: list[Any] = []
    for line in text.splitlines():
        if line.strip():
            try:
                out.append(json.loads(line))
            except ValueError:
                out.append(None)  # a broken row, not a broken manifest
    if out and all(row is None for row in out):
        raise ValueError("no line is JSON")
    return out


def _task(row: Any, number: int, base: Path) -> Task:
    if not isinstance(row, dict):
        raise ValueError('is no object. {"input": "capture.zip"} is accepted.')
    given: dict[str, Any] = {}
    for name, value in row.items():
        if name not in KINDS:
            raise ValueError(f"{str(name)[:40]!r} is unknown. Known are {', '.join(KINDS)}.")
        if value in (None, ""):
            continue
        kind = KINDS[name]
        try:  # a CSV holds words only
            if isinstance(value, str) and name == "export":
                value = value.replace(";", " ").split()
            elif isinstance(value, str) and kind is int:
                value = int(value)
            elif isinstance(value, str) and kind == (int, float):
                value = float(value)
        except ValueError:
            raise ValueError(f"{name} must be a number, got {value[:40]!r}.") from None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {type(value).__name__}, which is not accepted there.")
        given[name] = tuple(map(str, value)) if isinstance(value, list) else value
    if "input" not in given:
        raise ValueError("names no input.")
    source = base / given["input"]
    if not source.exists():
        raise ValueError(f"{given['input'][:80]} is not there.")
    for name, low, high in (("frames", 1, 10_000), ("width", 16, 8192), ("height", 16, 8192)):
        if not low <= given.get(name, low) <= high:
            raise ValueError(f"{name} must be within {low} and {high}, got {given[name]}.")
    task = Task(**given | {"input": str(source.resolve()), "row": number})
    task = replace(task, name=task.name or source.stem or source.name)
    return replace(task, key=content_hash(task))


def content_hash(task: Task) -> str:
    """Hash of all that decides the result: the bytes of the input, the settings, the version."""
    from worldstereo._core.version import __version__

    digest = hashlib.sha256(__version__.encode())
    settings = {k: v for k, v in asdict(task).items() if k not in ("input", "row", "key")}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    source = Path(task.input)
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    for file in files:
        name = file.name if file == source else file.relative_to(source).as_posix()
        digest.update(f"\n{name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]


# ---- one task ------------------------------------------------------------------------------------


def run_task(task: Task, out: Path, on_step: OnStep = ignore) -> Result:
    """Open, path, generate, export; the folder of the task appears whole or not at all.

    Raises:
        WorldStereoError, ValueError, OSError, MemoryError: the task failed; nothing is left of it.
    """
    from worldstereo.exports import exporters, write
    from worldstereo.generators.registry import choice
    from worldstereo.inputs import read
    from worldstereo.trajectory import PRESETS, Trajectory
    from worldstereo.world import World, default_view, explore, pivot_distance, start

    known = exporters()
    for name in task.export:
        if name not in known:
            raise ValueError(f"export must be of {', '.join(known)}; got {name[:40]!r}.")
    began = time.monotonic()
    world = World(choice(task.generator).make())
    start(world, read(Path(task.input)), on_step=on_step)
    first = default_view(world.scene)
    if task.trajectory in PRESETS:
        reach = pivot_distance(world.scene, first)
        path = Trajectory.preset(
            task.trajectory, first, distance=reach, amount=task.amount, frames=task.frames,
            up=world.scene.up,
        )  # fmt: skip
    else:
        path = Trajectory.from_json(Path(task.trajectory).read_text())
    sized = path.scaled(task.width, task.height)
    clip = explore(world, sized, seed=task.seed, on_step=on_step)
    draft = out / f".{task.key}.{os.getpid()}.part"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        files = []
        for name in task.export:
            file = f"{task.name[:60].replace('/', '_')}-{name}{known[name].suffix}"
            write(world.scene, name, draft / file)
            files.append(file)
        _thumbnail(clip.color_u8[len(clip) // 2].permute(1, 2, 0).numpy(), draft / "thumb.jpg")
        scene = world.scene
        result = Result(
            task.key, task.name, task.row, "done", "", time.monotonic() - began,
            len(scene.views), len(scene.cloud), tuple(files),
        )  # fmt: skip
        write_atomic(draft / RESULT, json.dumps(asdict(result)).encode())
        shutil.rmtree(out / task.key, ignore_errors=True)
        draft.rename(out / task.key)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return result


def guarded(task: Task, out: Path, gigabytes: float, alone: bool = False) -> Result:
    """`run_task` under a limit of memory: whatever happens is a result.

    Args:
        gigabytes: resident memory that the task may add to this process; 0 for no limit.
        alone: this process runs nothing else, and may be ended where the task does not stop.
    """
    began = time.monotonic()
    too_much = f"needs more than {gigabytes:g} GB. Raise --memory-gb or make it smaller."
    try:
        note = _note_of(task, out) if alone else None
        with MemoryWatch(gigabytes, note) as watch, interruptible(watch.check):
            return run_task(task, out, lambda *said: watch.check())
    except MemoryError:
        message = too_much
    except (WorldStereoError, ValueError, OSError, RuntimeError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = text.splitlines()[0][:160] if text else type(error).__name__
    except Exception as error:  # one broken task never stops the rest
        log.exception("a task failed: internal error")
        message = f"internal error: {type(error).__name__}"
    finally:
        trim()
    return Result(task.key, task.name, task.row, "failed", message, time.monotonic() - began)


class MemoryWatch:
    """Watches what this process has resident while a task runs in it.

    Above the limit the task's next check raises `MemoryError`. A task that does not come to one
    within `GRACE` seconds, or takes twice the limit, ends with its process; the note then says why.
    """

    def __init__(self, gigabytes: float, note: Path | None = None) -> None:
        self._limit = resident_bytes() + int(gigabytes * 1e9) if gigabytes > 0 else 0
        self._most = self._limit + int(gigabytes * 1e9)
        self._note = note
        self._over = threading.Event()
        self._done = threading.Event()

    def __enter__(self) -> "MemoryWatch":
        if self._limit > 0:
            threading.Thread(target=self._watch, name="memory watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def check(self) -> None:
        """Raises `MemoryError` when the task has taken more than it may."""
        if self._over.is_set():
            raise MemoryError

    def _watch(self) -> None:
        since = 0.0
        while not self._done.wait(0.1):
            now = resident_bytes()
            if now <= self._limit and not self._over.is_set():
                continue
            since = since or time.monotonic()
            self._over.set()
            if self._note is not None and (now > self._most or time.monotonic() > since + GRACE):
                self._note.write_text("")
                os._exit(1)


def _note_of(task: Task, out: Path) -> Path:
    """Is there when the process of a task was ended for its memory."""
    return out / f".{task.key}.memory"


def _thumbnail(pixels: Any, path: Path) -> None:
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((240, 180))
    picture.save(path, quality=80)


# ---- all tasks -----------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a batch is, and how long it will take at the pace so far."""

    total: int
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        passed = time.monotonic() - self.began
        left = passed / self.done * (self.total - self.done) if self.done else 0.0
        return f"{self.done}/{self.total} tasks, about {left / 60:.0f} min left"


def run_batch(
    manifest: Path, out: Path, pool: Pool, told: Callable[[str], None] = log.info
) -> list[Result]:
    """Runs what is not done yet, and keeps the report up to date, to the second.

    Where a report takes long to write, that of a large batch, it is written more seldom: it costs
    a twentieth of the time at most.
    """
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in out.glob(".*.memory"):
        leftover.unlink(missing_ok=True)
    tasks, results = read_manifest(manifest)
    waiting: dict[str, Task] = {}
    for task in tasks:
        earlier = kept_result(out, task)
        if earlier is not None:
            results.append(earlier)
        elif task.key not in waiting:  # the same row twice is done once
            waiting[task.key] = task
    progress, due = Progress(len(waiting)), 0.0

    def report() -> float:
        began = time.monotonic()
        write_report(out, results, progress.total - progress.done)
        now = time.monotonic()
        return now + max(REPORT_EVERY, 20 * (now - began))

    try:
        due = report()
        for result in pool.run(list(waiting.values()), out):
            results.append(result)
            progress.done += 1
            told(f"{progress.line()}: {result.name[:40]} {result.state} {result.message}".rstrip())
            if time.monotonic() >= due:
                due = report()
    finally:
        report()
    return sorted(results, key=lambda result: result.row)


def kept_result(out: Path, task: Task) -> Result | None:
    """What an earlier run left of a task, if it is whole."""
    try:
        said = json.loads((out / task.key / RESULT).read_text())
        result = Result(**said | {"files": tuple(said["files"]), "row": task.row, "state": "kept"})
        whole = all((out / task.key / file).is_file() for file in result.files)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return result if whole and result.key == task.key else None


class RayPool:
    """Tasks on Ray: this machine, or the cluster at an address.

    Args:
        cpus, gpus: what each task takes of its machine.
        gigabytes: resident memory a task may add to its process; 0 for no limit.
        seconds: time after which a task is stopped; 0 for no limit.
    """

    def __init__(
        self,
        address: str = "",
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        gigabytes: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self.gigabytes, self.seconds = gigabytes, seconds

    def run(self, tasks: Sequence[Task], out: Path) -> Iterator[Result]:
        if not tasks:
            return
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError:
            raise WorldStereoError(
                "batch runs on Ray, which is not installed. Run: pip install 'worldstereo[batch]'"
            ) from None
        threads = {"NUMBA_NUM_THREADS": str(max(1, int(self.cpus))), "OMP_NUM_THREADS": "1"}
        ray.init(
            address=self.address or None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": threads},
            **({} if self.address else {"_node_ip_address": "127.0.0.1"}),
        )
        try:
            yield from self._results(ray, list(tasks), out.resolve())
        finally:
            ray.shutdown()

    def _results(self, ray: Any, tasks: list[Task], out: Path) -> Iterator[Result]:
        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0, max_calls=0)(
            guarded
        )
        places = max(1, int(ray.cluster_resources().get("CPU", 1) / max(self.cpus, 1e-3)))
        running: dict[Any, tuple[Task, float]] = {}
        while tasks or running:
            while tasks and len(running) < places:  # never more than run: so they began just now
                task = tasks.pop(0)
                handle = remote.remote(task, out, self.gigabytes, True)
                running[handle] = (task, time.monotonic())
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            for reference in ready:
                task, began = running.pop(reference)
                try:
                    yield ray.get(reference)
                except Exception as error:  # its process died, or the cluster did
                    why = f"its process ended ({type(error).__name__})"
                    if _note_of(task, out).exists():
                        _note_of(task, out).unlink()
                        why = f"needs more than {self.gigabytes:g} GB. Raise --memory-gb."
                    yield _lost(task, why, began)
                    if not ray.is_initialized():
                        raise WorldStereoError(
                            "The Ray cluster is gone. Run the same command again to go on."
                        ) from error
            for reference, (task, began) in list(running.items()):
                if 0 < self.seconds < time.monotonic() - began:
                    ray.cancel(reference, force=True)
                    del running[reference]
                    yield _lost(task, f"took longer than {self.seconds:g} s", began)


def _lost(task: Task, why: str, began: float) -> Result:
    return Result(task.key, task.name, task.row, "failed", why, time.monotonic() - began)


# ---- the report ----------------------------------------------------------------------------------

_STYLE = (
    "body{font:15px system-ui;margin:2em;color:#222}table{border-collapse:collapse}"
    "td,th{padding:.4em .8em;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}"
    "img{display:block;max-width:240px}.failed{color:#a00}.muted{color:#777}"
)


def write_report(out: Path, results: Sequence[Result], left: int) -> None:
    """`index.html` and `results.csv` of what is known so far, each replaced at once."""
    rows = sorted(results, key=lambda result: result.row)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["row", "name", "state", "seconds", "views", "points", "folder", "message"])
    body = []
    for r in rows:
        writer.writerow(
            [r.row, r.name, r.state, f"{r.seconds:.1f}", r.views, r.points, r.key, r.message]
        )
        picture = links = ""
        if r.state != "failed":
            picture = f'<img src="{r.key}/thumb.jpg" alt="">'
            links = "<br>".join(
                f'<a href="{r.key}/{html.escape(f, quote=True)}">{html.escape(f)}</a>'
                for f in r.files
            )
        facts = f"{r.views} views, {r.points:,} points" if r.views else ""
        body.append(
            f'<tr class="{r.state}"><td>{r.row}<td>{picture}<td>{html.escape(r.name)}<td>{r.state}'
            f"<td>{r.seconds:.1f} s<td>{facts}<td>{links}{html.escape(r.message)}"
        )
    failed = sum(r.state == "failed" for r in rows)
    head = f"{len(rows)} of {len(rows) + left} tasks, {failed} failed"
    page = (
        f'<!doctype html><meta charset="utf-8"><title>WorldStereo batch</title>'
        f"<style>{_STYLE}</style><h1>Batch</h1><p>{head}</p><table>"
        f"<tr><th>Row<th>View<th>Name<th>State<th>Time<th>World<th>Files{''.join(body)}</table>"
    )
    write_atomic(out / "results.csv", table.getvalue().encode())
    write_atomic(out / "index.html", page.encode())
