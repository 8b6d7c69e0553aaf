"""Kills saves of a project: at each labelled step, then at random times. Prints what was found.

Run by `test_project.py` as a program of its own, so that forking is safe: one thread, no pools.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from tests.conftest import room, turned_cameras
from worldstereo.project import Project, ProjectState, load, manifest_of, save
from worldstereo.scene import PointCloud, Scene, View

POINTS_OF_A_SAVE = (
    "before-open",
    "half-written",
    "written",
    "before-replace",
    "replaced",
    "members-durable",
    "folder-synced",
    "previous-written",
    "manifest-written",
    "swept",
)


def state(step: int, points: int) -> ProjectState:
    """A world after so many steps: each adds a view and points."""
    cameras = turned_cameras(3)
    color, depth = room(cameras)
    views = tuple(View.of(color[0], depth[0] + i, cameras[0], step=i) for i in range(step + 1))
    generator = torch.Generator().manual_seed(5)
    cloud = PointCloud.of(torch.rand(points + 997 * step, 3, generator=generator))
    return ProjectState(Scene(revision=step, views=views, cloud=cloud), settings={"step": step})


def fingerprint(value: ProjectState) -> bytes:
    return manifest_of(value, lambda name, content: None, lambda name: None)


def killed(path: Path, value: ProjectState, label: str | None, delay: float) -> bool:
    """Saves in a child that is killed; True if it died before it was done."""
    child = os.fork()
    if child == 0:
        seen = random.Random(label).choice((1, 2, 3)) if label in POINTS_OF_A_SAVE[:5] else 1

        def point(name: str) -> None:
            nonlocal seen
            if name == label:
                seen -= 1
                if seen == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        with Project(path, point=point) as project:
            project.save(value)
        os._exit(0)
    if label is None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    root, rounds, points = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    states = [state(i, points) for i in range(2)]
    prints = [fingerprint(s) for s in states]
    started = time.perf_counter()
    save(states[0], root / "timing.world")
    save(states[1], root / "timing.world")
    duration = (time.perf_counter() - started) / 2
    clock = random.Random(3)
    plan: list[str | None] = [*POINTS_OF_A_SAVE, *[None] * rounds]
    inside, corrupt, at = 0, 0, {}
    path = root / "killed.world"
    save(states[0], path)
    now = 0
    for label in plan:
        goal = 1 - now
        died = killed(path, states[goal], label, clock.uniform(0, duration))
        inside += died and label is None
        try:
            found = fingerprint(load(path))
        except Exception as error:
            corrupt += 1
            at[str(label)] = repr(error)
            break
        if found not in prints or (not died and found != prints[goal]):
            corrupt += 1
            at[str(label)] = "another state"
        if label is not None:
            at.setdefault(label, "new" if found == prints[goal] else "old")
            if not died:
                at[label] = "never reached"
        now = prints.index(found)
    left = [p.name for p in path.rglob("*.part")]
    save(replace(states[now], settings={"last": True}), path)
    swept = [p.name for p in path.rglob("*.part")]
    result = {"inside": inside, "corrupt": corrupt, "at": at, "left": len(left), "swept": swept}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
