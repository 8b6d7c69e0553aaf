"""Batches: broken rows, resuming, failures that stay alone, the report."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from worldstereo.cli import batch, main
from worldstereo.cli.batch import RayPool, Result, Task, guarded, read_manifest, run_batch
from worldstereo.errors import InputRefused, WorldStereoError

PHOTO = Path(__file__).parent.parent / "assets" / "examples" / "living-room" / "color" / "00000.jpg"


class Here:
    """A pool that runs in this process, and counts."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, tasks: Sequence[Task], out: Path) -> Iterator[Result]:
        for task in tasks:
            self.ran.append(task.name)
            yield guarded(task, out, 0.0)


@pytest.fixture
def manifest(tmp_path):
    shutil.copy(PHOTO, tmp_path / "a.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    rows = [
        {"input": "a.jpg", "frames": 2, "width": 64, "height": 48, "export": ["ply"]},
        {"input": "broken.jpg"},
        {"input": "nowhere.jpg"},
        {"input": "a.jpg", "colour": 3},
        {"input": "a.jpg", "frames": "many"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"input": \n')
    return path


def test_a_batch_goes_on_after_failures_and_is_resumed(manifest, tmp_path):
    out, pool = tmp_path / "out", Here()
    results = run_batch(manifest, out, pool)
    assert [r.state for r in results] == ["done", *["failed"] * 5]
    assert [r.row for r in results] == [1, 2, 3, 4, 5, 6]
    assert pool.ran == ["a", "broken"]
    assert "nowhere.jpg is not there" in results[2].message
    assert "'colour' is unknown" in results[3].message
    assert "frames must be a number" in results[4].message
    folder = out / results[0].key
    assert {p.name for p in folder.iterdir()} == {"a-ply.ply", "thumb.jpg", "result.json"}
    page = (out / "index.html").read_text()
    assert f"{results[0].key}/thumb.jpg" in page and "6 of 6 tasks, 5 failed" in page
    assert not list(out.glob(".*"))

    again = Here()
    results = run_batch(manifest, out, again)
    assert again.ran == ["broken"] and results[0].state == "kept"
    (folder / "a-ply.ply").unlink()  # what is not whole is made again
    third = Here()
    assert run_batch(manifest, out, third)[0].state == "done" and third.ran == ["a", "broken"]


class Failing:
    """A pool in which every task fails at once, with what stood in the report before each."""

    def __init__(self) -> None:
        self.reports: list[str] = []

    def run(self, tasks: Sequence[Task], out: Path) -> Iterator[Result]:
        for task in tasks:
            self.reports.append((out / "index.html").read_text())
            yield Result(task.key, task.name, task.row, "failed", "no")
        raise WorldStereoError("The cluster is gone.")


def test_a_report_is_not_written_after_each_of_many_tasks_but_always_at_the_end(tmp_path):
    shutil.copy(PHOTO, tmp_path / "a.jpg")
    rows = [{"input": "a.jpg", "seed": seed} for seed in range(97)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pool = Failing()
    with pytest.raises(WorldStereoError, match="cluster is gone"):
        run_batch(tmp_path / "rows.json", tmp_path / "out", pool)
    assert len(pool.reports) == 97 and len(set(pool.reports)) < 20
    page = (tmp_path / "out" / "index.html").read_text()
    assert "97 of 97 tasks, 97 failed" in page


def test_the_hash_follows_bytes_and_settings(manifest, tmp_path):
    key = read_manifest(manifest)[0][0].key
    text = manifest.read_text()
    manifest.write_text("\n" + text.replace('"frames": 2', '"frames": 3'))
    assert read_manifest(manifest)[0][0].key != key
    manifest.write_text(text)
    assert read_manifest(manifest)[0][0].key == key
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"\0")
    assert read_manifest(manifest)[0][0].key != key


def test_a_table_of_words_is_a_manifest(tmp_path):
    shutil.copy(PHOTO, tmp_path / "a.jpg")
    (tmp_path / "rows.csv").write_text("input,frames,amount,export\na.jpg,5,0.5,ply mp4\n")
    tasks, broken = read_manifest(tmp_path / "rows.csv")
    assert not broken and tasks[0].frames == 5 and tasks[0].export == ("ply", "mp4")


@pytest.mark.parametrize("text", ["", "[]", "not json\nat all", "[1", "{}"[:1]])
def test_no_manifest_is_one_line(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(InputRefused, match=r"rows\.jsonl: [^\n]*\."):
        read_manifest(path)


def test_a_name_cannot_leave_the_report(tmp_path):
    shutil.copy(PHOTO, tmp_path / "a.jpg")
    result = Result("k", "<script>", 1, "failed", "<b>")
    batch.write_report(tmp_path, [result], 0)
    page = (tmp_path / "index.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_task_that_takes_too_much_memory_stops_and_the_next_goes_on(manifest, tmp_path):
    (task,) = [t for t in read_manifest(manifest)[0] if t.name == "a"]
    before = threading.active_count()
    stopped = guarded(task, tmp_path / "out", 0.002)
    assert stopped.state == "failed" and "needs more than 0.002 GB" in stopped.message
    assert not list((tmp_path / "out").glob("*/"))
    assert guarded(task, tmp_path / "out", 100.0).state == "done"
    time.sleep(0.3)
    assert threading.active_count() <= before + 2  # watchers end with their task


def test_a_task_that_does_not_stop_ends_with_its_process(tmp_path):
    code = (
        "import sys, pathlib, worldstereo.cli.batch as b\n"
        "with b.MemoryWatch(0.05, pathlib.Path(sys.argv[1])) as watch:\n"
        "    held = bytearray(b'1') * 200_000_000\n"
        "    while True: pass\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "note")], timeout=60, check=False
    )
    assert ended.returncode == 1 and (tmp_path / "note").exists()


def test_without_ray_the_way_out_is_said(manifest, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(WorldStereoError, match=r"pip install 'worldstereo\[batch\]'"):
        list(RayPool().run(read_manifest(manifest)[0], tmp_path))


def test_a_batch_on_ray(manifest, tmp_path, capsys):
    pytest.importorskip("ray")
    out = tmp_path / "out"
    assert main(["batch", str(manifest), "--out", str(out), "--cpus", "2"]) == 1
    said = capsys.readouterr()
    assert "5 of 6 tasks failed" in said.err and "2/2 tasks" in said.err
    assert '"state": "done"' in next(out.glob("*/result.json")).read_text()
