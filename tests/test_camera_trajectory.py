"""Documented camera control: keyed poses, three interpolations, three file formats."""

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

import worldstereo
from worldstereo import (
    CameraIntrinsics,
    CameraPose,
    Cameras,
    CameraTrajectory,
    ExportError,
    InputRefused,
    Trajectory,
    interpolate_poses,
    load_trajectory,
    save_trajectory,
)

TURNS = Rotation.from_euler("YXZ", [[10, -5, 3], [70, 20, -15], [-40, 5, 30], [120, -30, 8]], True)
PLACES = np.array([[0.3, -0.2, 0.1], [1.5, 0.4, -2.0], [2.5, -1.0, 0.7], [4.0, 2.0, 1.0]])
KEYS = (2, 5, 11, 16)


def poses(**options):
    return [
        CameraPose(x, R, k, fov=50 + 5 * i, **options)
        for i, (x, R, k) in enumerate(zip(PLACES, TURNS.as_matrix(), KEYS, strict=True))
    ]


def test_signatures_are_the_documented_ones():
    def head(f):
        found = inspect.signature(f).parameters.values()
        return [(p.name, p.default) for p in found if p.kind is not p.KEYWORD_ONLY]

    empty = inspect.Parameter.empty
    assert head(CameraTrajectory) == [
        ("poses", empty), ("num_frames", empty), ("interpolation", "linear"), ("fps", 24),
    ]  # fmt: skip
    assert head(CameraPose)[0] == ("position", empty) and head(CameraPose)[3] == ("fov", 60.0)
    names = ["focal_length", "principal_point", "width", "height", "distortion"]
    assert [name for name, _ in head(CameraIntrinsics)] == names
    assert head(load_trajectory) == [("path", empty), ("format", None)]
    assert head(save_trajectory) == [("trajectory", empty), ("path", empty), ("format", "json")]
    assert head(interpolate_poses)[-1] == ("interpolation", "linear")
    assert worldstereo.Camera is Cameras


def test_the_three_forms_of_a_rotation_agree_and_angles_mean_what_they_say():
    R = TURNS[1].as_matrix()
    x, y, z, w = TURNS[1].as_quat()
    angles = {"yaw": 70, "pitch": 20, "roll": -15}
    for form in (R.tolist(), R, [w, x, y, z], torch.tensor(R), angles):
        found = CameraPose([0, 0, 0], form)
        np.testing.assert_allclose(found.matrix[:3, :3], R, atol=1e-12)
        np.testing.assert_allclose(np.abs(found.quaternion), np.abs([w, x, y, z]), atol=1e-12)
        assert found.euler == pytest.approx(angles)
    look = {name: CameraPose([0, 0, 0], {name: 30}).matrix for name in angles}
    assert look["yaw"][0, 2] > 0.4  # to the right
    assert look["pitch"][1, 2] < -0.4  # up, which is -y
    assert look["roll"][1, 0] > 0.4  # the right of the picture sinks
    gl = CameraPose([0, 0, 0], np.eye(3), convention="opengl").matrix
    assert gl.diagonal().tolist() == [1, -1, -1, 1]


@pytest.mark.parametrize("how", ["linear", "spline", "bezier"])
def test_keys_are_met_exactly_and_ends_stand_still(how):
    path = CameraTrajectory(poses()[::-1], 20, how)
    cameras = path.cameras(64, 48)
    assert len(path) == len(list(path)) == 20 and cameras.batch_shape == (20,)
    for pose in poses():
        k = pose.frame_index
        assert torch.equal(cameras.c2w[k], pose.matrix.float())
        assert path.pose_at(k).fov == pose.fov
        focal = 32 / math.tan(math.radians(pose.fov) / 2)
        assert float(cameras.K[k, 0, 0]) == pytest.approx(focal, rel=1e-6)
    for t in (0, 1):
        assert torch.equal(cameras.c2w[t], cameras.c2w[2])
    for t in (17, 19):
        assert torch.equal(cameras.c2w[t], cameras.c2w[16])


def test_linear_is_lines_and_great_arcs():
    path = CameraTrajectory(poses(), 20)
    at = np.arange(2, 17)
    R = Slerp(KEYS, TURNS)(at).as_matrix()
    moved = np.stack([np.interp(at, KEYS, PLACES[:, i]) for i in range(3)], axis=1)
    cameras = path.cameras()[2:17]
    np.testing.assert_allclose(cameras.c2w[:, :3, :3], R, atol=1e-6)
    np.testing.assert_allclose(cameras.c2w[:, :3, 3], moved, atol=1e-6)


def test_bezier_rests_at_both_ends_and_never_overshoots():
    path = CameraTrajectory(poses(), 161, "bezier")
    far = CameraTrajectory(
        [CameraPose(x, (1, 0, 0, 0), 40 * i) for i, x in enumerate(PLACES)], 161, "bezier"
    )
    assert len(path) == 161
    x = far.cameras().c2w[:, :3, 3].double()
    for i in range(3):
        between = x[40 * i : 40 * i + 41]
        low, high = np.minimum(PLACES[i], PLACES[i + 1]), np.maximum(PLACES[i], PLACES[i + 1])
        assert (between >= torch.tensor(low) - 1e-6).all()
        assert (between <= torch.tensor(high) + 1e-6).all()
    step = (x[1:] - x[:-1]).norm(dim=1)
    assert float(step[0]) < 0.3 * float(step[18:22].mean())
    assert float(step[119]) < 0.3 * float(step[98:102].mean())


@pytest.mark.parametrize("how", ["linear", "spline", "bezier"])
def test_interpolate_poses_holds_both_ends(how):
    first, last = poses()[0], poses()[1]
    found = interpolate_poses(first, last, 7, how)
    assert len(found) == 7
    for got, want in ((found[0], first), (found[-1], last)):
        assert torch.equal(got.matrix, want.matrix) and got.fov == want.fov
    index = [pose.frame_index for pose in found]
    assert index == list(range(2, 9))  # no room for seven between 2 and 5
    assert [p.frame_index for p in interpolate_poses(first, poses()[3], 3)] == [2, 9, 16]
    assert interpolate_poses(first, last, 1) == [first]
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        interpolate_poses(first, last, 0)


def test_a_circle_looks_at_its_centre_from_the_radius():
    path = CameraTrajectory.circle([1, 2, 3], 2.5, 9, height=0.5, degrees=180)
    cameras = path.cameras(40, 30)
    away = cameras.position - torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(away[:, [0, 2]].norm(dim=1), torch.full((9,), 2.5))
    torch.testing.assert_close(away[:, 1], torch.full((9,), -0.5))
    pixels, depth = cameras.project(torch.tensor([1.0, 2.0, 3.0]).expand(9, 1, 3))
    torch.testing.assert_close(pixels[:, 0], torch.tensor([20.0, 15.0]).expand(9, 2))
    assert (depth > 0).all()


def test_trajectories_go_there_and_back():
    path = CameraTrajectory(poses(), 20)
    dense = path.to_trajectory(60, 40)
    again = CameraTrajectory.from_trajectory(dense)
    assert len(again.poses) == 20
    torch.testing.assert_close(again.cameras(60, 40).c2w, dense.cameras.c2w, atol=2e-7, rtol=0)
    torch.testing.assert_close(again.cameras(60, 40).K, dense.cameras.K)
    lens = CameraIntrinsics((70.0, 80.0), [31, 17], 60, 40)
    still = CameraTrajectory(poses(), 20, intrinsics=lens).to_trajectory()
    back = CameraTrajectory.from_trajectory(still)
    assert back.intrinsics is not None and back.intrinsics.focal_length == (70.0, 80.0)
    K = still.cameras.K.clone()
    K[3, 0, 2] += 2
    odd = Trajectory(Cameras(K, still.cameras.c2w, 60, 40))
    with pytest.raises(ValueError, match="frame"):
        CameraTrajectory.from_trajectory(odd)
    orbit = CameraTrajectory.preset("orbit", poses()[0], 5, distance=2.0)
    assert len(orbit) == 5


LENSES = (None, CameraIntrinsics((70.0, 80.0), [31, 17], 60, 40, [0.1, 0.01, 0, 0.002, 0]))


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize(
    ("format", "name"),
    [("json", "a.json"), ("colmap", "images.txt"), ("opencv", "b.xml"), ("opencv", "b.yml")],
)
def test_files_return_the_same_path(tmp_path, format, name, lens):
    keys = poses()
    if format == "opencv" and lens is None:
        keys = [CameraPose(p.position, p.rotation, p.frame_index, 70) for p in keys]
    path = CameraTrajectory(keys, 20, "spline", 30, intrinsics=lens)
    assert save_trajectory(path, tmp_path / name, format) == tmp_path / name
    again = load_trajectory(tmp_path / name)
    assert len(again) == 20 and again.fps == 30
    want, got = list(path), list(again)
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(a.matrix, b.matrix, atol=1e-6)
        if lens is None and again.intrinsics is None:
            assert a.fov == pytest.approx(b.fov, abs=1e-5)
    if lens is not None:
        torch.testing.assert_close(again.intrinsics.K, lens.K, atol=1e-6, rtol=0)
        assert again.intrinsics.distortion == pytest.approx(lens.distortion)
        with pytest.raises(ValueError, match="distortion is not 0"):
            again.cameras()
    if format == "json":
        assert [p.frame_index for p in again.poses] == list(KEYS)
        assert again.interpolation == "spline"
        assert all(torch.equal(a.matrix, b.matrix) for a, b in zip(keys, again.poses, strict=True))


def test_opencv_itself_reads_what_is_written(tmp_path):
    """Its principal point counts from the first pixel's centre, half a pixel less than ours."""
    cv2 = pytest.importorskip("cv2")
    lens = CameraIntrinsics(70.0, [31, 17], 60, 40)
    path = CameraTrajectory(poses(), 20, intrinsics=lens)
    for name in ("c.xml", "c.yml"):
        save_trajectory(path, tmp_path / name, "opencv")
        storage = cv2.FileStorage(str(tmp_path / name), cv2.FILE_STORAGE_READ)
        K, rows = (storage.getNode(n).mat() for n in ("camera_matrix", "extrinsic_parameters"))
        assert storage.getNode("image_width").real() == 60
        storage.release()
        np.testing.assert_allclose(K, [[70, 0, 30.5], [0, 70, 16.5], [0, 0, 1]])
        w2c = path.cameras().w2c.double().numpy()
        for row, matrix in zip(rows, w2c, strict=True):
            np.testing.assert_allclose(cv2.Rodrigues(row[:3])[0], matrix[:3, :3], atol=1e-6)
            np.testing.assert_allclose(row[3:], matrix[:3, 3], atol=1e-6)


def test_pycolmap_reads_what_is_written(tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    path = CameraTrajectory(poses(), 20, intrinsics=CameraIntrinsics(70.0, [31, 17], 60, 40))
    save_trajectory(path, tmp_path / "images.txt", "colmap")
    (tmp_path / "points3D.txt").write_text("")
    model = pycolmap.Reconstruction(str(tmp_path))
    cameras = path.cameras()
    assert len(model.images) == 20
    for image in model.images.values():
        t = int(image.name[6:11])
        found = image.cam_from_world
        matrix = (found() if callable(found) else found).matrix()
        np.testing.assert_allclose(matrix, cameras.w2c[t, :3].double(), atol=1e-6)


def test_tum_lines_are_recognised(tmp_path):
    lines = ["# t x y z qx qy qz qw"]
    for i, (x, q) in enumerate(zip(PLACES, TURNS.as_quat(), strict=True)):
        lines.append(" ".join(map(str, [i / 10, *x, *q])))
    (tmp_path / "poses.txt").write_text("\n".join(lines))
    path = load_trajectory(tmp_path / "poses.txt")
    assert len(path) == 4 and path.fps == 10
    np.testing.assert_allclose(path.poses[2].matrix[:3, :3], TURNS[2].as_matrix(), atol=1e-12)


def test_our_dense_paths_and_official_cameras_are_read(tmp_path):
    dense = CameraTrajectory(poses(), 20).to_trajectory(60, 40)
    (tmp_path / "t.json").write_text(dense.to_json())
    assert len(load_trajectory(tmp_path / "t.json")) == 20
    import json

    fields = {"extrinsic": dense.cameras.w2c.tolist(), "intrinsic": dense.cameras.K.tolist()}
    (tmp_path / "camera.json").write_text(json.dumps(fields))
    found = load_trajectory(tmp_path / "camera.json").cameras(60, 40)
    torch.testing.assert_close(found.c2w, dense.cameras.c2w, atol=1e-5, rtol=0)


BAD_FILES = {
    "nan.json": '{"poses": [{"position": [0, 0, NaN]}]}',
    "twin.json": '{"poses": [], "poses": []}',
    "odd.json": '{"poses": [{"position": [0, 0, 0], "colour": 1}]}',
    "none.json": '{"poses": []}',
    "new.json": '{"version": 2, "poses": [{"position": [0, 0, 0]}]}',
    "deep.json": "[" * 100_000,
    "short.txt": "1 1 0 0 0 0 0\n",
    "word.txt": "1 one 0 0 0 0 0 0 1 a.png\n",
    "long.txt": "1 2 0 0 0 0 0 0 1 a.png\n",
    "empty.txt": "",
    "bomb.xml": '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><opencv_storage/>',
    "else.xml": "<html/>",
    "cut.xml": "<opencv_storage><fps>",
    "less.xml": "<opencv_storage><fps>3</fps></opencv_storage>",
    "else.yml": "a: [1, 2]",
    "bytes.json": "\udcff",
    "path.mp4": "x",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_text(BAD_FILES[name], "utf-8", errors="surrogateescape")
    with pytest.raises(InputRefused, match=name) as error:
        load_trajectory(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(InputRefused, match="absent"):
        load_trajectory(tmp_path / "absent.json")


def test_no_lens_beside_colmap_poses_is_a_warning(tmp_path):
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.png\n\n")
    with pytest.warns(UserWarning, match="60 degrees"):
        path = load_trajectory(tmp_path / "images.txt")
    assert float(path.cameras(512, 512).fov[0, 0]) == pytest.approx(math.radians(60))
    with warnings.catch_warnings(), pytest.raises(ExportError):
        save_trajectory(path, tmp_path / "nowhere" / "a.json")


BAD = [
    (lambda: CameraPose([0, 0]), "position"),
    (lambda: CameraPose([0, 0, math.nan]), "position.*finite"),
    (lambda: CameraPose([0, 0, 0], [1, 2, 3]), "roll"),
    (lambda: CameraPose([0, 0, 0], [2, 0, 0, 0]), "length 2"),
    (lambda: CameraPose([0, 0, 0], {"heading": 3}), "heading"),
    (lambda: CameraPose([0, 0, 0], [[2, 0, 0], [0, 2, 0], [0, 0, 2]]), "identity"),
    (lambda: CameraPose([0, 0, 0], [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]), "det"),
    (lambda: CameraPose([0, 0, 0], fov=180), "fov.*180"),
    (lambda: CameraPose([0, 0, 0], frame_index=-1), "frame_index.*-1"),
    (lambda: CameraIntrinsics(50.0, None, 0, 4), "width.*0"),
    (lambda: CameraIntrinsics(-1.0, None, 4, 4), "focal_length.*-1"),
    (lambda: CameraIntrinsics(1.0, None, 4, 4, [0] * 6), "at most 5.*6"),
    (lambda: CameraTrajectory([], 3), "at least one"),
    (lambda: CameraTrajectory(poses(), 16), r"poses\[3\].*16"),
    (lambda: CameraTrajectory(poses() + poses()[:1], 20), r"poses\[4\].*frame 2"),
    (lambda: CameraTrajectory(poses(), 20, "cubic"), "linear, spline, bezier"),
    (lambda: CameraTrajectory(poses(), 20, fps=0), "fps"),
    (lambda: CameraTrajectory(poses(), 0), "num_frames"),
    (lambda: CameraTrajectory.circle([0, 0, 0], 0, 3), "radius"),
    (lambda: save_trajectory(CameraTrajectory(poses(), 20), "a.bin", "bin"), "format"),
]


@pytest.mark.parametrize("index", range(len(BAD)))
def test_a_bad_value_is_named(index):
    make, message = BAD[index]
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_what_is_left_out_is_a_type_error():
    with pytest.raises(TypeError, match="width"):
        CameraIntrinsics(50.0)
    with pytest.raises(TypeError, match="CameraPose"):
        CameraTrajectory([1], 3)
