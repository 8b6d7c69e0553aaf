"""A soak of the app's sessions, compressed: visitors come, work and vanish while things break.

    python -m bench.soak --minutes 10 --folder soak

The app's sessions run in a process of their own, with the importer, saving, undo and the viewport's
servers, but no browser. Visitors upload, plan, preview, generate, cancel, undo, redo, export, leave
or vanish. Faults: the import process is killed, the disk takes no file above 64 kB, the clock jumps
a day, a saved world is damaged, and every now and then the whole process is killed with SIGKILL and
started again. What a visitor was told is saved must be there afterwards.

Not covered: the page itself, and a network that is cut.
"""

import argparse
import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

QUIET = 20.0  # seconds after which a world without visitor is closed
PLACES = 5  # worlds open at once
ORPHANED = 30.0  # seconds after a kill in which the processes of the app must have noticed
SLOW = 2.0  # seconds: no answer but a job may take longer


def main() -> None:
    """Starts and kills the app's process until the time is over; prints one table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--life", type=float, default=90, help="mean seconds between two kills")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        App(given.folder, given.seed).run(given.minutes * 60)
        return
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    make_captures(given.folder)
    clock, end, lives = random.Random(given.seed), time.monotonic() + given.minutes * 60, 0
    while (left := end - time.monotonic()) > 0:
        life = min(left, clock.expovariate(1 / given.life) + 20)
        # leaks show in a long life: none is killed after 40 % of the time
        last = left - life < 0.6 * given.minutes * 60
        life = left if last else life
        began = time.monotonic()
        app = start_app(given.folder, given.seed + lives, life if last else 1e5)
        lives += 1
        try:
            app.wait(life + 120 if last else life)
            if app.returncode != 0:
                note(given.folder, {"wrong": f"the app ended by itself with {app.returncode}"})
        except subprocess.TimeoutExpired:
            started = children_of(app.pid)
            app.send_signal(signal.SIGKILL)
            app.wait()
            patience = time.monotonic() + ORPHANED
            while any(map(is_alive, started)) and time.monotonic() < patience:
                time.sleep(0.2)
            for _ in filter(is_alive, started):
                note(given.folder, {"wrong": "a process outlived the app that started it"})
        if time.monotonic() - began < 5:
            break
    report(given.folder, lives)


def start_app(folder: Path, seed: int, seconds: float) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "bench.soak", "--child", "--folder", str(folder)]
    command += ["--seed", str(seed), "--minutes", str(seconds / 60)]
    log = (folder / "app.log").open("ab")
    return subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)


def make_captures(folder: Path) -> None:
    """What visitors upload: a small RGB-D capture, a cloud, and a file that is none."""
    from bench._building import Building
    from worldstereo.exports import write
    from worldstereo.generators import WarpGenerator
    from worldstereo.world import World, start

    world = World(WarpGenerator())
    start(world, Building.of(2).capture(6, 160, 120), register=False)
    write(world.scene, "transforms", folder / "room.zip")
    write(world.scene, "ply", folder / "cloud.ply")
    (folder / "noise.zip").write_bytes(np.random.default_rng(0).bytes(4096))


def note(folder: Path, what: dict[str, Any]) -> None:
    """One line into the journal, on disk when this returns."""
    with (folder / "journal.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\n")
        file.flush()
        os.fsync(file.fileno())


def journal(folder: Path) -> list[dict[str, Any]]:
    path = folder / "journal.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def children_of(parent: int) -> list[int]:
    """Living processes that another one started, and those that they started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    found = [parent]
    for process in found:  # grows while it is read
        found.extend(child for child, its in parents.items() if its == process)
    return found[1:]


def is_alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def report(folder: Path, lives: int) -> None:
    """What the journal says, as one table."""
    lines = journal(folder)
    done = Counter(line["did"] for line in lines if "did" in line)
    wrong = Counter(line["wrong"] for line in lines if "wrong" in line)
    answers = [line["answer"] for line in lines if "answer" in line]
    slow = [line for line in lines if line.get("answer", 0) > SLOW]
    samples = [line["sample"] for line in lines if "sample" in line]
    print(f"lives of the app: {lives}; worlds brought back after a kill: {done['recovered']}")
    print("done:", ", ".join(f"{name} {count}" for name, count in sorted(done.items())))
    if answers:
        ranked = sorted(answers)
        print(f"answers: {len(ranked)}, 99 % within {ranked[int(0.99 * (len(ranked) - 1))]:.2f} s,")
        print(f"  slowest {ranked[-1]:.2f} s, above {SLOW:g} s: {len(slow)}")
        for line in slow[:8]:
            print(f"  slow: {line['what']} {line['answer']:.1f} s")
    print("one line a life: seconds, resident MB, of all worlds MB, threads, handles, worlds")
    for life in sorted({sample["life"] for sample in samples}):
        mine = [sample for sample in samples if sample["life"] == life]
        for sample in (mine[0], mine[len(mine) // 2], mine[-1]):
            print(
                "  ", *(sample[k] for k in ("life", "at", "mb", "worlds", "threads", "files", "n"))
            )
    growth(samples)
    for what, count in wrong.most_common():
        print(f"WRONG {count}x {what}")
    print("nothing wrong" if not wrong else f"{sum(wrong.values())} wrong")


def growth(samples: list[dict[str, Any]]) -> None:
    """How the last life grew in its second half: medians of its third and its last quarter."""
    last = [s for s in samples if s["life"] == samples[-1]["life"]] if samples else []
    if len(last) < 12:
        return
    quarter = len(last) // 4
    for name in ("mb", "threads", "files"):
        third, fourth = (
            float(np.median([s[name] for s in last[a * quarter : (a + 1) * quarter]]))
            for a in (2, 3)
        )
        print(
            f"second half: {name} {third:.0f} -> {fourth:.0f} ({100 * (fourth / third - 1):+.1f} %)"
        )


@dataclass
class Known:
    """What one visitor knows of a world."""

    allowed: set[int] = field(default_factory=set)
    """Numbers of clips that a saved world may hold now."""


class App:
    """One life of the app: its sessions, its visitors, its faults."""

    def __init__(self, folder: Path, seed: int) -> None:
        from ui.session.config import SessionsConfig
        from ui.session.sessions import Sessions

        self.folder, self.life = folder, seed
        self.random = random.Random(seed)
        self.sessions = Sessions(
            SessionsConfig(
                projects=folder / "worlds", examples=(), max_sessions=PLACES, idle_seconds=QUIET
            )
        )
        self.known: dict[str, Known] = {}
        self.began = time.monotonic()
        for line in journal(folder):
            if "token" in line:
                self.known[line["token"]] = Known(set(line["allowed"]))

    def run(self, seconds: float) -> None:
        """Visitors until the time is over, then an orderly end."""
        self.recover_all()
        sampled = 0.0
        acts = [
            (self.visit, 3), (self.come_back, 4), (self.generate, 6), (self.cancel, 2),
            (self.undo, 2), (self.plan, 4), (self.export, 1), (self.leave, 2),
            (self.upload_noise, 1), (self.damage, 1), (self.kill_importer, 1),
            (self.full_disk, 1), (self.clock_jump, 1),
        ]  # fmt: skip
        names, weights = [a for a, _ in acts], [w for _, w in acts]
        while time.monotonic() < self.began + seconds:
            act = self.random.choices(names, weights)[0]
            try:
                if act():
                    note(self.folder, {"did": act.__name__})
            except Exception as error:  # an act that fails is a finding
                text = str(error).splitlines()[0][:120] if str(error) else ""
                self.wrong(f"{act.__name__}: {type(error).__name__} {text}")
            if time.monotonic() > sampled + 10:
                sampled = time.monotonic()
                self.sample()
        from worldstereo.world import trim

        began = time.monotonic()
        self.sessions.close_all()
        note(self.folder, {"did": "closed", "seconds": time.monotonic() - began})
        gc.collect()
        time.sleep(1.0)
        trim()
        alive = [t.name for t in threading.enumerate() if not t.daemon and t.name != "MainThread"]
        if alive:
            self.wrong(f"threads left after the end: {sorted(alive)[:3]}")
        self.sample()

    def wrong(self, what: str) -> None:
        note(self.folder, {"wrong": what})

    def answer(self, what: str, work: Any, *given: Any) -> Any:
        """Calls what the page would wait for, and notes how long it took."""
        began = time.monotonic()
        try:
            return work(*given)
        finally:
            note(self.folder, {"answer": time.monotonic() - began, "what": what})

    def sample(self) -> None:
        from worldstereo.world import resident_bytes

        stats = self.answer("stats", lambda: self.sessions.stats)
        sample = {
            "life": self.life,
            "at": round(time.monotonic() - self.began),
            "mb": resident_bytes() >> 20,
            "worlds": stats["world_bytes"] >> 20,
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
            "n": stats["sessions"],
        }
        note(self.folder, {"sample": sample})

    # ---- what is confirmed -------------------------------------------------------------------

    def allow(self, token: str, clips: set[int]) -> None:
        self.known[token] = Known(clips)
        note(self.folder, {"token": token, "allowed": sorted(clips)})

    def settle(self, session: Any) -> None:
        """Waits until a world is saved; from then on it must be found so."""
        end = time.monotonic() + 60
        while session.saving.state == "saving" and time.monotonic() < end:
            time.sleep(0.02)
        if session.saving.state == "saved":
            self.allow(session.token, {len(session.world.scene.clips)})

    def recover_all(self) -> None:
        """After a kill: every world that somebody was told is saved opens as it was saved."""
        for token, known in list(self.known.items())[-12:]:
            session = self.answer("recover", self.sessions.get, token)
            if session is None:
                self.wrong("a saved world is gone")
                continue
            if len(session.world.scene.clips) not in known.allowed or not session.world.scene.views:
                clips, views = len(session.world.scene.clips), len(session.world.scene.views)
                self.wrong(f"{clips} clips and {views} views, not {sorted(known.allowed)} clips")
            if session.notices and any(
                "damaged" in n or "not be read" in n for n in session.notices
            ):
                self.wrong(f"after a kill: {session.notices[0]}")
            note(self.folder, {"did": "recovered"})
            self.sessions.close(token)

    def some(self) -> Any:
        """A session that is open and knows its world, or None."""
        open_ = [s for t in self.known if (s := self.sessions._sessions.get(t)) and not s.busy]
        return self.random.choice(open_) if open_ else None

    # ---- visitors ----------------------------------------------------------------------------

    def visit(self) -> bool:
        from worldstereo.errors import WorldStereoError

        try:
            session = self.answer("create", self.sessions.create)
        except WorldStereoError:
            self.answer("reap", self.sessions.reap)
            return False
        session.open(self.folder / "room.zip", "room.zip").result(120)
        self.settle(session)
        return True

    def come_back(self) -> bool:
        from worldstereo.errors import WorldStereoError

        if not self.known:
            return False
        token = self.random.choice(list(self.known)[-12:])
        try:
            session = self.answer("get", self.sessions.get, token)
        except WorldStereoError:
            return False
        if session is None:
            self.wrong("a visitor's world is gone")
        return True

    def plan(self) -> bool:
        session = self.some()
        if session is None:
            return False
        self.answer("set_plan", session.set_plan, self._path(session))
        self.answer("preview", session.preview, 1)
        self.answer("preview final", session.preview, 2, True)
        return True

    def generate(self) -> bool:
        session = self.some()
        if session is None:
            return False
        clips = len(session.world.scene.clips)
        self.allow(session.token, {clips, clips + 1})
        job = self.answer("explore", session.explore, self._path(session))
        job.result(120)
        self.settle(session)
        return True

    def cancel(self) -> bool:
        from worldstereo.errors import Cancelled

        session = self.some()
        if session is None:
            return False
        clips = len(session.world.scene.clips)
        self.allow(session.token, {clips, clips + 1})
        job = session.explore(self._path(session))
        time.sleep(self.random.uniform(0, 0.5))
        self.answer("cancel", job.cancel)
        try:
            job.result(120)
        except Cancelled:
            if len(session.world.scene.clips) != clips:
                self.wrong("a cancelled job changed the world")
        self.settle(session)
        return True

    def undo(self) -> bool:
        session = self.some()
        if session is None or not session.can_undo:  # nor can a world that was just opened
            return False
        before = len(session.world.scene.clips)
        self.allow(session.token, {before - 1, before})
        if not self.answer("undo", session.undo):
            self.wrong("a clip could not be undone")
        if self.random.random() < 0.5:
            self.answer("redo", session.redo)
        self.settle(session)
        return True

    def export(self) -> bool:
        from worldstereo import exports

        session = self.some()
        if session is None or not len(session.world.scene.cloud):
            return False
        exports.write(session.world.scene, "ply", self.folder / "taken.ply")
        return True

    def leave(self) -> bool:
        """Closes a world, or forgets it: the reaper ends those."""
        session = self.some()
        if session is None:
            return False
        if self.random.random() < 0.5:
            self.answer("close", self.sessions.close, session.token)
        else:
            session.touched -= 2 * QUIET
        return True

    def upload_noise(self) -> bool:
        from worldstereo.errors import InputRefused

        session = self.some()
        if session is None:
            return False
        before = session.world.scene.revision
        try:
            session.open(self.folder / "noise.zip", "noise.zip").result(120)
            self.wrong("noise was opened")
        except InputRefused:
            if session.world.scene.revision != before:
                self.wrong("a refused file changed the world")
        return True

    # ---- faults ------------------------------------------------------------------------------

    def damage(self) -> bool:
        """A copy of a saved world under another token, with some bytes changed."""
        import secrets

        session = self.some()
        if session is None or session.saving.path is None or not session.saving.path.exists():
            return False
        token = secrets.token_urlsafe(32)
        copy = self.sessions.shared.project_of(token)
        assert copy is not None
        shutil.copytree(session.saving.path, copy)
        files = [p for p in copy.rglob("*") if p.is_file() and p.stat().st_size > 16]
        for path in files:
            data = bytearray(path.read_bytes())
            for _ in range(3):
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            path.write_bytes(data)
        try:
            found = self.answer("get damaged", self.sessions.get, token)
        finally:
            self.sessions.close(token)
            shutil.rmtree(copy, ignore_errors=True)
        if found is not None and found.world.scene.clips and not found.notices:
            self.wrong("a damaged world opened without a word")
        return True

    def kill_importer(self) -> bool:
        """The import process dies while it reads."""
        from worldstereo.errors import Cancelled, WorldStereoError

        session = self.some()
        if session is None:
            return False
        before = session.world.scene.revision
        self.allow(session.token, {0, len(session.world.scene.clips)})
        job = session.open(self.folder / "cloud.ply", "cloud.ply")
        time.sleep(self.random.uniform(0, 0.3))
        for child in children_of(os.getpid()):
            os.kill(child, signal.SIGKILL)
        try:
            job.result(120)
        except (WorldStereoError, Cancelled):
            if session.world.scene.revision != before:
                self.wrong("an import that died changed the world")
        self.settle(session)
        if not session.world.scene.views:  # a cloud has none: checks expect some
            self.known.pop(session.token)
            note(self.folder, {"token": session.token, "allowed": []})
            self.sessions.close(session.token)
            self.known.pop(session.token, None)
        return True

    def full_disk(self) -> bool:
        """A step while no file may grow: the step counts, its save is told as missing."""
        session = self.some()
        if session is None:
            return False
        clips = len(session.world.scene.clips)
        self.allow(session.token, {clips, clips + 1})
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
        try:
            session.explore(self._path(session)).result(120)
            end = time.monotonic() + 60
            while session.saving.state == "saving" and time.monotonic() < end:
                time.sleep(0.02)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        if len(session.world.scene.clips) != clips + 1:
            self.wrong("a step was lost because the disk was full")
        if session.saving.state == "saved":
            self.wrong("a world was called saved on a full disk")
        session.saving.save_soon()
        self.settle(session)
        if session.saving.state != "saved":
            self.wrong(f"after the disk had room again: {session.saving.state}")
        return True

    def clock_jump(self) -> bool:
        real = time.time
        time.time = lambda: real() + self.random.choice((-86400, 86400))
        try:
            self.answer("tidy", self.sessions.tidy)
            return self.generate()
        finally:
            time.time = real

    def _path(self, session: Any) -> Any:
        from worldstereo.trajectory import Trajectory
        from worldstereo.world import default_view, pivot_distance

        eye = default_view(session.world.scene).scaled(160, 120)
        reach = pivot_distance(session.world.scene, eye)
        kind = self.random.choice(("orbit", "truck", "dolly"))
        return Trajectory.preset(kind, eye, distance=reach, frames=5, up=session.world.scene.up)


if __name__ == "__main__":
    main()
