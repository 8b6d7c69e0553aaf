"""The import worker: same captures as in this process; nothing gets out or stays behind."""

import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests import corpus
from worldstereo import inputs
from worldstereo.errors import Cancelled, InputRefused
from worldstereo.inputs.limits import Limits
from worldstereo.inputs.sandbox import transfer
from worldstereo.inputs.sandbox.worker import ImportWorker
from worldstereo.scene import Capture


@pytest.fixture(scope="module")
def worker():
    with ImportWorker(Limits(memory=2 << 30)) as worker:
        yield worker


def same(a: Capture, b: Capture) -> bool:
    equal = (a.name, a.kind, a.prompt, a.notices, a.rough_depth, a.metres_per_unit) == (
        b.name, b.kind, b.prompt, b.notices, b.rough_depth, b.metres_per_unit,
    )  # fmt: skip
    for left, right in zip(a.views, b.views, strict=True):
        for key in ("color_u8", "depth", "confidence_u8", "kind"):
            equal &= torch.equal(getattr(left, key), getattr(right, key))
        equal &= torch.equal(left.cameras.c2w, right.cameras.c2w)
        equal &= torch.equal(left.cameras.K, right.cameras.K)
        equal &= (left.name, left.frame) == (right.name, right.frame)
    if a.cloud is not None and b.cloud is not None:
        for key in ("points", "colors", "normals", "radii", "confidence", "step"):
            equal &= torch.equal(getattr(a.cloud, key), getattr(b.cloud, key))
    return equal and (a.cloud is None) == (b.cloud is None)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(5)
    sound = {
        "rgbd.zip": corpus.packed(corpus.rgbd_files(rng)),
        "model.zip": corpus.packed(corpus.model(True, rng)),
        "mesh.obj": corpus.OBJ.encode(),
        "mesh.glb": corpus.glb(*corpus.gltf()),
        "mesh.stl": corpus.stl(7),
        "cloud.ply": corpus.ply(rng.normal(size=(53, 3)), "binary_big_endian"),
        "photo.jpg": corpus.encoded(rng.integers(0, 255, (41, 59, 3), dtype=np.uint8), "JPEG"),
        "broken.ply": corpus.ply(rng.normal(size=(7, 3)), n=1000),
    }
    for name, data in sound.items():
        (tmp_path / name).write_bytes(data)
    return {name: tmp_path / name for name in sound}


@pytest.mark.parametrize("name", ["rgbd.zip", "model.zip", "mesh.obj", "photo.jpg"])
def test_files_travel_unchanged(files: dict[str, Path], tmp_path: Path, name: str):
    capture = inputs.read(files[name])
    transfer.write(capture, tmp_path)
    assert same(transfer.read_capture(tmp_path), capture)


def test_the_worker_reads_what_this_process_reads(worker: ImportWorker, files: dict[str, Path]):
    """One sound file, one refusal, both with the name the person gave."""
    capture = worker.read(files["rgbd.zip"], "my room.zip")
    assert same(capture, inputs.read(files["rgbd.zip"], "my room.zip"))
    for name in ("mesh.glb", "mesh.stl", "cloud.ply"):  # the libraries work behind the hook
        assert same(worker.read(files[name], name), inputs.read(files[name]))
    with pytest.raises(InputRefused, match=r"^room.ply: the header says 1000 points"):
        worker.read(files["broken.ply"], "room.ply")


def test_nothing_stays_behind(
    worker: ImportWorker, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No process and no folder of a job survives it, whether it is read, refused or stopped."""
    jobs = tmp_path / "jobs"  # of this test alone: another test may be importing at this moment
    jobs.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(jobs))
    worker.read(files["mesh.obj"])
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        worker.read(files["rgbd.zip"], cancelled=stop)
    with pytest.raises(InputRefused, match=r"rgbd.zip: not read within 0.001 s"):
        worker.read(files["rgbd.zip"], timeout=0.001)
    assert not list(jobs.glob("worldstereo-import-*"))
    children = [p for p in psutil.Process().children() if "worldstereo.inputs.sandbox.child" in
                " ".join(_command(p))]  # fmt: skip
    assert len(children) <= 1  # the spare


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_dead_worker_is_one_line_and_the_next_job_runs(files: dict[str, Path]):
    with ImportWorker() as worker:
        killer = threading.Timer(0.3, lambda: [p.kill() for p in list(worker._running)])
        killer.start()
        with pytest.raises(InputRefused) as caught:
            worker.read(files["rgbd.zip"])
        killer.join()
        assert len(str(caught.value)) <= 200 and "rgbd.zip" in str(caught.value)
        assert len(worker.read(files["mesh.obj"]).notices) > 0
        spare = worker._spare
    assert spare is not None and not spare.alive
    with pytest.raises(InputRefused, match="closed"):
        worker.read(files["mesh.obj"])


HOOK = """
import os, socket, subprocess, sys, ctypes
from pathlib import Path
from worldstereo.inputs.sandbox.child import forbid
job, source = Path(sys.argv[1]), Path(sys.argv[2])
forbid(source, job)
def refused(work):
    try:
        work()
    except PermissionError:
        return True
    return False
assert source.read_bytes() == b"mine"
(job / "out").write_bytes(b"1")
tries = [
    lambda: open("/etc/passwd"), lambda: open(source.parent / "canary"),
    lambda: open(f"{source}/../canary"), lambda: os.open("/etc/passwd", os.O_RDONLY),
    lambda: open(source, "wb"), lambda: open(job.parent / "x", "w"), lambda: os.listdir("/"),
    lambda: os.remove(source), lambda: os.rename(source, job / "y"),
    lambda: os.mkdir(job.parent / "z"), lambda: socket.socket(),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: subprocess.run(["true"]), lambda: os.system("true"), lambda: os.fork(),
    lambda: ctypes.CDLL("libc.so.6"), lambda: os.symlink("/etc", job / "link"),
    lambda: os.kill(os.getppid(), 0),
]
failed = [i for i, work in enumerate(tries) if not refused(work)]
os.write(1, repr(failed).encode())
os._exit(0)
"""


def test_the_audit_hook_refuses_everything_outside_the_job(tmp_path: Path):
    import subprocess
    import sys

    job, source = tmp_path / "job", tmp_path / "source.ply"
    job.mkdir()
    source.write_bytes(b"mine")
    (tmp_path / "canary").write_bytes(b"secret")
    root = str(Path(inputs.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", HOOK, str(job), str(source)],
        capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": root}, check=False,
    )  # fmt: skip
    assert done.stdout == b"[]", done.stdout + done.stderr[-2000:]


def test_secrets_of_the_app_do_not_reach_the_worker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "canary-1234")
    with ImportWorker() as worker:
        spare = worker._spare
        assert spare is not None
        deadline = time.monotonic() + 20
        text = ""
        while "PYTHONPATH" not in text and time.monotonic() < deadline:
            text = str(psutil.Process(spare._process.pid).environ())
        assert "canary-1234" not in text
