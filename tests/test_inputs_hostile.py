"""Malformed and hostile files: one line each, no other error, and the sound ones still open."""

import os
import re
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import corpus
from worldstereo import inputs
from worldstereo.errors import InputRefused
from worldstereo.inputs.limits import LOCAL, SPACE, Limits, refusal, shown, size_text

CASES = corpus.all_cases()
TYPE_NAME = re.compile(r"\b\w*(Error|Exception)\b|Traceback|<class|numpy|dtype|NoneType")


def assert_one_line(error: InputRefused, name: str) -> None:
    line = str(error)
    assert "\n" not in line and "\r" not in line and line.isprintable()
    assert 20 < len(line) <= 200, line
    assert line.endswith((".", "…")), line
    assert not TYPE_NAME.search(line), line
    assert str(Path(__file__).parents[1]) not in line and "/usr/" not in line
    assert "(case " not in line, f"{name} was not foreseen: {line}"


def test_the_corpus_is_large_and_balanced():
    verdicts = [case.verdict for case in CASES]
    assert len(CASES) >= 600
    assert verdicts.count(corpus.ACCEPT) >= 40
    assert verdicts.count(corpus.REJECT) >= 350


@pytest.mark.parametrize("family", sorted({case.name.split("-")[0] for case in CASES}))
def test_corpus(family: str, caplog: pytest.LogCaptureFixture):
    """Every case ends as its verdict says; a refusal is one line; nothing is left to chance."""
    for case in CASES:
        if case.name.split("-")[0] != family:
            continue
        try:
            capture = inputs.read(case.data, case.name)
        except InputRefused as error:
            assert_one_line(error, case.name)
            assert case.verdict != corpus.ACCEPT, f"{case.name} is sound: {error}"
            continue
        assert case.verdict != corpus.REJECT, f"{case.name} was accepted"
        assert capture.views or capture.cloud is not None
        assert case.check is None or case.check(capture), f"{case.name} came out wrong"
        for view in capture.views:
            assert bool(torch.isfinite(view.depth).all())
        if capture.cloud is not None:
            assert bool(torch.isfinite(capture.cloud.points).all())
            assert bool(torch.isfinite(capture.cloud.colors).all())
    assert not caplog.records


@pytest.mark.parametrize("seed", [11, 12])
def test_a_corpus_of_another_seed_raises_nothing_else(seed: int):
    """Damaged at other places: only captures and refusals come out."""
    for case in corpus.all_cases(seed):
        if "flipped" in case.name or "noise" in case.name:
            try:
                inputs.read(case.data, case.name)
            except InputRefused as error:
                assert_one_line(error, case.name)


SOUND = [case for case in CASES if case.verdict == corpus.ACCEPT]


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(data=st.data())
def test_mutations_of_sound_files(data: st.DataObject):
    """Bytes removed, repeated, overwritten: a capture or a refusal, nothing else."""
    case = data.draw(st.sampled_from(SOUND))
    body = bytearray(case.data)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(body) - 1)))
        size = data.draw(st.integers(0, 24))
        kind = data.draw(st.sampled_from(("delete", "insert", "overwrite", "repeat")))
        piece = data.draw(st.binary(max_size=12))
        if kind == "delete":
            del body[at : at + size]
        elif kind == "insert":
            body[at:at] = piece
        elif kind == "overwrite":
            body[at : at + len(piece)] = piece
        else:
            body[at:at] = body[at : at + size] * 3
    try:
        inputs.read(bytes(body), case.name)
    except InputRefused as error:
        assert_one_line(error, case.name)


def test_sparse_points_above_capacity_are_thinned_too():
    files = corpus.model(False, np.random.default_rng(0))
    files["sparse/0/points3D.txt"] = "".join(f"{i} {i} 0 2 9 9 9 0\n" for i in range(31))
    capture = inputs.read(corpus.packed(files), "a.zip", Limits(kept_points=11))
    assert capture.cloud is not None and capture.cloud.points[:, 0].tolist() == list(
        range(0, 31, 3)
    )
    assert "31 points were thinned evenly to 11." in capture.notices


def test_more_cameras_than_pictures_may_be_are_refused_unread():
    """Counted before they are parsed: a million lines took half a minute."""
    few = Limits(images=3)
    files = corpus.model(False, np.random.default_rng(0))
    files["sparse/0/cameras.txt"] += "no camera\n" * 3
    with pytest.raises(InputRefused, match="cameras.txt: 4 cameras. At most 3 are"):
        inputs.read(corpus.packed(files), "a.zip", few)
    files = corpus.model(True, np.random.default_rng(0))
    for name, size in (("cameras", 24), ("images", 73)):
        path = f"sparse/0/{name}.bin"
        lie = files | {path: (5).to_bytes(8, "little") + bytes(5 * size)}
        with pytest.raises(InputRefused, match=f"{name}.bin: 5 .*At most 3 are"):
            inputs.read(corpus.packed(lie), "a.zip", few)
    files = corpus.rgbd_files(np.random.default_rng(0))
    del files["frames.json"]
    files["a.log"] = "0 0 1\n" + "no pose\n" * 19
    with pytest.raises(InputRefused, match="a.log: 4 frames. At most 3 are"):
        inputs.read(corpus.packed(files), "a.zip", few)


@pytest.mark.data
def test_meshes_of_the_manifest(data: Path):
    """Valid and odd files in our formats open with the counts named; broken ones are refused."""
    import csv

    ours = (".ply", ".glb", ".obj", ".stl", ".off")
    opened = 0
    text = (data / "meshes" / "manifest.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        path = data / "meshes" / row["file"]
        if path.suffix.lower() not in ours or row["status"] == "support":
            continue
        harmless = path.name == "test_sample_wrong_format.ply"
        try:
            capture = inputs.read(path)
        except InputRefused as error:
            assert_one_line(error, path.name)
            assert row["status"] == "broken", f"{path.name}: {error}"
            continue
        assert row["status"] != "broken" or harmless, path.name
        opened += 1
        assert capture.cloud is not None
        faces = re.search(r"faces (\d+)", row["independent_reading"])
        points = re.search(r"points (\d+)", row["independent_reading"])
        if faces:
            assert f"{faces.group(1)} faces" in " ".join(capture.notices), path.name
        elif points:
            assert len(capture.cloud) == int(points.group(1)), path.name
    assert opened >= 20


def test_a_pipe_a_device_and_a_link_are_not_followed(tmp_path: Path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(tmp_path / "pipe.ply")
    with pytest.raises(InputRefused, match="not a regular file"):
        inputs.read(tmp_path / "pipe.ply")
    folder = tmp_path / "capture"
    folder.mkdir()
    (folder / "frames.json").symlink_to("/etc/hostname")
    with pytest.raises(InputRefused, match='"frames.json" is a link that points outside'):
        inputs.read(folder)
    with pytest.raises(InputRefused, match="no such file"):
        inputs.read(tmp_path / "nothing.ply")
    assert stat.S_ISFIFO((tmp_path / "pipe.ply").stat().st_mode)


def test_limits_are_named_in_the_refusal():
    tight = Limits(pixels=1000, points=10, members=2, json_bytes=100, images=1)
    png = corpus.encoded(corpus.np.zeros((40, 40, 3), corpus.np.uint8))
    with pytest.raises(InputRefused, match=r"a.png: 40 x 40 px is above the limit"):
        inputs.read(png, "a.png", tight)
    points = corpus.ply(corpus.np.zeros((11, 3)))
    with pytest.raises(InputRefused, match=r"declares 11 points. At most 10 are accepted"):
        inputs.read(points, "a.ply", tight)
    files = corpus.packed({f"{i}.txt": b"1" for i in range(3)})
    with pytest.raises(InputRefused, match=r"3 members. At most 2 are accepted"):
        inputs.read(files, "a.zip", tight)
    with pytest.raises(ValueError, match=r"limits.points must be above 0, got 0"):
        Limits(points=0)
    assert SPACE.file_bytes < LOCAL.file_bytes


def test_a_cloud_above_capacity_is_thinned_evenly_with_a_notice():
    points = corpus.np.arange(3003, dtype=float)[:, None].repeat(3, 1)
    capture = inputs.read(corpus.ply(points), "line.ply", Limits(kept_points=101))
    assert capture.cloud is not None and len(capture.cloud) == 101
    gaps = capture.cloud.points[:, 0].diff()
    assert float(gaps.min()) >= 29 and float(gaps.max()) <= 31
    assert any("thinned evenly to 101" in notice for notice in capture.notices)


@given(st.text(max_size=300))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_name_is_shown_on_one_line(name: str):
    line = str(refusal(name, "x" * 300, "Do something else"))
    assert len(line) <= 200 and line.isprintable() and line.endswith("Do something else.")
    assert len(shown(name)) <= 48


def test_sizes_read_well():
    assert [size_text(n) for n in (0, 999, 1536, 20 << 20, 3 << 30)] == [
        "0 bytes", "999 bytes", "1.5 kB", "20 MB", "3.0 GB",
    ]  # fmt: skip


def test_an_unforeseen_error_is_a_case_number(monkeypatch: pytest.MonkeyPatch, caplog):
    """The traceback is in the log under the number that the person sees."""
    from worldstereo.inputs import dispatch

    def fails(*_: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(dispatch, "read_source", fails)
    with pytest.raises(InputRefused) as caught:
        inputs.read(b"x", "room.ply")
    found = re.fullmatch(
        r"room.ply could not be read \(case ([0-9a-f]{4})\). The world is unchanged.",
        str(caught.value),
    )
    assert found and found.group(1) in caplog.text and "ZeroDivisionError" in caplog.text
    assert sys.exc_info() == (None, None, None)
