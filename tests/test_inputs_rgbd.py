"""RGB-D readers: the native text forms must give the poses that `frames.json` gives."""

import io
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import corpus
from worldstereo import inputs
from worldstereo.generators import WarpGenerator
from worldstereo.scene import Capture, PointCloud
from worldstereo.world import World, start


def without_frames(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    (target / "frames.json").unlink()
    shutil.rmtree(target / "original-encoding", ignore_errors=True)
    return target


def assert_same(a: inputs.Capture, b: inputs.Capture) -> None:
    assert a.kind == b.kind == "rgbd"
    assert len(a.views) == len(b.views) > 0
    for left, right in zip(a.views, b.views, strict=True):
        torch.testing.assert_close(left.cameras.c2w, right.cameras.c2w, atol=2e-6, rtol=0)
        torch.testing.assert_close(left.cameras.K, right.cameras.K)
        torch.testing.assert_close(left.depth, right.depth)
        assert torch.equal(left.color_u8, right.color_u8)


@pytest.mark.data
@pytest.mark.parametrize("name", ["livingroom1", "apc-shelf"])
def test_native_poses_equal_frames_json(data: Path, tmp_path: Path, name: str):
    """Open3D's log and the shelf's matrix text say what frames.json says."""
    folder = data / "rgbd" / name
    assert_same(inputs.read(without_frames(folder, tmp_path / name)), inputs.read(folder))


@pytest.mark.data
def test_mirrored_tum_text_equals_frames_json(data: Path, tmp_path: Path):
    """A negative fy means that the y axis runs up; poses are conjugated, fy becomes positive."""
    folder = data / "rgbd" / "icl-nuim-5"
    native = without_frames(folder, tmp_path / "icl")
    (native / "intrinsics.txt").write_text("481.2 0 319.5\n0 -480 239.5\n0 0 1\n")
    assert_same(inputs.read(native), inputs.read(folder))


@pytest.mark.data
def test_a_zip_reads_like_its_folder(data: Path):
    folder = data / "rgbd" / "icl-nuim-5"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"top/{path.relative_to(folder)}")
    capture = inputs.read(packed.getvalue(), "icl.zip")
    assert_same(capture, inputs.read(folder))
    assert capture.name == "icl"


@pytest.mark.data
def test_depth_of_one_view_meets_the_next(data: Path):
    """Half a pixel, axes and units at once: depth reprojected into a neighbour agrees with it."""
    views = inputs.read(data / "rgbd" / "livingroom1").views
    a, b = views[0], views[3]
    pixels = a.cameras.pixel_grid()
    z = a.depth.reshape(-1)
    points = a.cameras.unproject(pixels[z > 0], z[z > 0])
    uv, seen = b.cameras.project(points)
    inside = (seen > 0) & (uv > 1).all(-1) & (uv < torch.tensor([639.0, 479.0])).all(-1)
    there = b.depth[0, uv[inside][:, 1].long(), uv[inside][:, 0].long()]
    error = ((seen[inside] - there).abs() / there)[there > 0]
    assert len(error) > 100_000
    assert float(error.median()) < 0.003


@pytest.mark.data
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "color" / "3.png").unlink(), r"frame 2 .*3\.png is missing"),
        (
            lambda f: (f / "frames.json").write_text(
                (f / "frames.json").read_text().replace("0.999999343", "1.5")
            ),
            r"frames.json: frame 0 \(color/1.png\): R @ R.T is off",
        ),
        (lambda f: (f / "depth" / "2.png").write_bytes(b""), r"2\.png: the file is empty"),
        (
            lambda f: (f / "depth" / "2.png").write_bytes((f / "color" / "2.png").read_bytes()),
            r"2\.png: a depth picture of mode RGB",
        ),
    ],
)
def test_a_broken_frame_is_left_out_by_name(data: Path, tmp_path: Path, change, said: str):
    folder = tmp_path / "icl"
    shutil.copytree(data / "rgbd" / "icl-nuim-5", folder)
    change(folder)
    capture = inputs.read(folder)
    assert len(capture.views) == 4
    (notice,) = capture.notices
    assert notice.startswith("1 of 5 frames left out") and re.search(said, notice), notice


@pytest.mark.parametrize(
    ("changes", "metres"),
    [
        ({"units": "metre"}, 1.0),
        ({}, 1.0),  # depth in metres and poses that fit it
        ({"units": "arbitrary (structure-from-motion scale)"}, None),
        ({"units": 7}, None),
    ],
)
def test_metres_are_taken_from_the_file(changes: dict, metres: float | None):
    files = corpus.rgbd_files(np.random.default_rng(3))
    files["frames.json"] |= changes
    assert inputs.read(corpus.packed(files), "room.zip").metres_per_unit == metres


def test_text_forms_are_metric_and_models_are_not():
    rng = np.random.default_rng(3)
    files = corpus.rgbd_files(rng)
    poses = [frame["c2w"] for frame in files.pop("frames.json")["frames"]]
    files["trajectory.log"] = "\n".join(
        f"{i} {i} {i + 1}\n" + "\n".join(" ".join(map(str, row)) for row in pose)
        for i, pose in enumerate(poses)
    )
    assert inputs.read(corpus.packed(files), "room.zip").metres_per_unit == 1.0
    model = inputs.read(corpus.packed(corpus.model(False, rng)), "model.zip")
    assert model.metres_per_unit is None
    assert inputs.read(corpus.OBJ.encode(), "mesh.obj").metres_per_unit is None


@pytest.mark.parametrize("metres", [None, 0.25])
def test_a_world_measures_in_what_its_capture_says(metres: float | None):
    cloud = PointCloud.of(torch.randn(61, 3))
    capture = Capture("wall", "rgbd", cloud=cloud, metres_per_unit=metres)
    assert start(World(WarpGenerator()), capture).metres_per_unit == metres
