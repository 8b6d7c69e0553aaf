"""Posed photos: native forms, our own exports, lenses, and what is refused by name."""

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from worldstereo import inputs
from worldstereo.cameras import Cameras
from worldstereo.errors import InputRefused
from worldstereo.inputs.lens import Lens, undistorted
from worldstereo.scene import DepthKind, PointCloud, Scene, View


def zipped(files: Mapping[str, bytes | str]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def scene(cameras: Cameras) -> Scene:
    g = torch.Generator().manual_seed(3)
    views = []
    for i in range(len(cameras)):
        color = torch.rand(3, 29, 37, generator=g)
        depth = 1 + torch.rand(1, 29, 37, generator=g)
        views.append(View.of(color, depth, cameras[i], frame=i))
    points = torch.randn(31, 3, generator=g) + torch.tensor([0.0, 0.0, 4.0])
    cloud = PointCloud.of(points, torch.rand(31, 3, generator=g))
    return Scene(views=tuple(views), cloud=cloud, up=torch.tensor([0.0, -0.6, 0.8]))


@pytest.mark.parametrize("form", ["transforms", "colmap", "colmap-text"])
def test_own_exports_come_back(scene: Scene, form: str):
    """Poses, intrinsics, pictures and points of an export, read again as a capture."""
    from worldstereo.exports import export, exporters

    if form not in exporters():
        pytest.skip(f"no export format {form}")
    capture = inputs.read(export(scene, form), "mine.zip")
    assert len(capture.views) == len(scene.views)
    for mine, read in zip(scene.views, capture.views, strict=True):
        torch.testing.assert_close(read.cameras.c2w, mine.cameras.c2w, atol=1e-5, rtol=0)
        torch.testing.assert_close(read.cameras.K, mine.cameras.K, atol=1e-4, rtol=0)
        assert torch.equal(read.color_u8, mine.color_u8)
    assert capture.cloud is not None and len(capture.cloud) == 31
    if form == "transforms":
        assert capture.kind == "rgbd"
        error = (capture.views[0].depth - scene.views[0].depth).abs().max()
        assert float(error) < 1e-3
        assert capture.up is not None
        torch.testing.assert_close(capture.up, scene.up)


@pytest.mark.data
@pytest.mark.parametrize("name", ["lund-door", "plush", "buddha"])
def test_native_poses_equal_frames_json(data: Path, tmp_path: Path, name: str):
    """COLMAP text, 3DGS cameras.json and projection matrices say what frames.json says."""
    source, native = data / "photos-posed" / name, tmp_path / name
    shutil.copytree(source, native)
    (native / "frames.json").unlink()
    a, b = inputs.read(native), inputs.read(source)
    assert a.kind == b.kind == "photos"
    by_name = {Path(v.name).stem: v for v in b.views}
    for view in a.views:
        same = by_name[Path(view.name).stem]
        torch.testing.assert_close(view.cameras.c2w, same.cameras.c2w, atol=2e-5, rtol=0)
        torch.testing.assert_close(view.cameras.K, same.cameras.K, atol=0.06, rtol=0)
    if name != "buddha":
        assert a.cloud is not None and b.cloud is not None and len(a.cloud) == len(b.cloud) > 10_000


@pytest.mark.data
def test_points_of_a_model_lie_on_its_photos(data: Path):
    """Colours of the sparse points agree with the undistorted, scaled photos where they project."""
    capture = inputs.read(data / "photos-posed" / "lund-door")
    view, cloud = capture.views[5], capture.cloud
    assert cloud is not None
    uv, z = view.cameras.project(cloud.points)
    inside = (
        (z > 0) & (uv >= 1).all(-1) & (uv[:, 0] < view.width - 1) & (uv[:, 1] < view.height - 1)
    )
    there = view.color[:, uv[inside][:, 1].long(), uv[inside][:, 0].long()].T
    error = (there - cloud.colors[inside]).abs().mean(-1)
    shuffled = (there - cloud.colors[inside].flip(0)).abs().mean(-1)
    assert float(error.median()) < 0.05 < float(shuffled.median())


def test_an_undistorted_picture_is_a_pinhole():
    """A grid of dots drawn through a bent lens lies on straight rays after undistortion."""
    K = np.array([[61.0, 0, 47.3], [0, 59.0, 37.9], [0, 0, 1]])
    lens = Lens(K, 97, 73, (-0.21, 0.05), (0.003, -0.002))
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 5), np.linspace(-0.4, 0.4, 3))
    bx, by = lens.distort(x.ravel(), y.ravel())
    u, v = bx * K[0, 0] + K[0, 2], by * K[1, 1] + K[1, 2]
    yy, xx = np.mgrid[0:73, 0:97] + 0.5
    picture = np.zeros((73, 97))
    for a, b in zip(u, v, strict=True):
        picture += np.exp(-((xx - a) ** 2 + (yy - b) ** 2) / 2 / 1.2**2)
    pixels = np.repeat((np.clip(picture, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)
    out, _, pinhole, _ = undistorted(pixels, np.ones((73, 97), np.float32), lens)
    assert not pinhole.distorted
    grey = out[..., 0].astype(float)
    found = 0
    for a, b in zip(x.ravel(), y.ravel(), strict=True):
        cu, cv = a * pinhole.K[0, 0] + pinhole.K[0, 2], b * pinhole.K[1, 1] + pinhole.K[1, 2]
        if not (5 < cu < 92 and 5 < cv < 68):
            continue
        near = grey * ((xx - cu) ** 2 + (yy - cv) ** 2 < 4.5**2)
        centre = (near * xx).sum() / near.sum(), (near * yy).sum() / near.sum()
        assert np.hypot(centre[0] - cu, centre[1] - cv) < 0.35
        found += 1
    assert found >= 9


def transforms(**change) -> dict:
    pose = [[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    frame = {"file_path": "images/a.png", "transform_matrix": pose}
    return {"fl_x": 30.0, "w": 23, "h": 17, "frames": [frame | change]}


PICTURE = np.random.default_rng(0).integers(0, 255, (17, 23, 3), dtype=np.uint8)


def test_transforms_look_along_minus_z():
    text = json.dumps(transforms())
    capture = inputs.read(zipped({"transforms.json": text, "images/a.png": png(PICTURE)}), "t.zip")
    view = capture.views[0]
    torch.testing.assert_close(view.cameras.forward, torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(view.cameras.position, torch.tensor([0.5, 0.0, 0.0]))
    assert float(view.cameras.K[0, 2]) == 11.5
    assert float(view.depth.max()) == 0
    assert capture.up is not None and float(capture.up[1]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transform_matrix": [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]},
         r"transforms.json: frame 0 \(images/a.png\): R @ R.T is off the identity by 3"),
        ({"transform_matrix": [[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]},
         r"frame 0 \(images/a.png\): det\(R\) is -1, the pose mirrors the world"),
        ({"file_path": "../../etc/passwd"}, r'frame 0: "../../etc/passwd" points outside'),
        ({"file_path": "images/b.png"}, r"images/b.png is missing"),
        ({"file_path": "http://example.org/a.png"}, r"points outside the capture"),
        ({"depth_file_path": "images/a.png"}, r"depth picture of mode RGB"),
        ({"w": 29}, r"images/a.png is 23 x 17 px, its camera 29 x 17"),
        ({"fl_x": 0}, r"focal length fx is 0 px"),
        ({"camera_model": "EQUIRECTANGULAR"}, r"camera model EQUIRECTANGULAR"),
    ],
)  # fmt: skip
def test_a_bad_frame_is_named(change: dict, said: str):
    text = json.dumps(transforms(**change))
    with pytest.raises(InputRefused, match=said):
        inputs.read(zipped({"transforms.json": text, "images/a.png": png(PICTURE)}), "t.zip")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"frames": [NaN]}', "frame 0: is not an object"),
        ('{"frames": [], "frames": []}', 'the key "frames" twice'),
        ('{"frames": []}', "no list of frames"),
        ("[" * 5000, "not valid JSON|nested"),
        ("[" * 70 + "]" * 70, "nested more than 64"),
        ('{"frames": 1e999}', "too large"),
        ("\xff", "not valid JSON"),
    ],
)
def test_a_bad_json_says_where(text: str, said: str):
    with pytest.raises(InputRefused, match=f"^transforms.json: .*({said})"):
        inputs.read(zipped({"transforms.json": text, "images/a.png": png(PICTURE)}), "t.zip")


def test_a_binary_model_never_believes_a_count():
    """2^60 pictures in 8 bytes: refused from the header, not allocated."""
    files = {
        "sparse/0/cameras.bin": struct.pack("<Q", 1)
        + struct.pack("<iiQQ4d", 1, 1, 23, 17, 30, 30, 11, 8),
        "sparse/0/images.bin": struct.pack("<Q", 1 << 60),
        "images/a.png": png(PICTURE),
    }
    with pytest.raises(InputRefused, match=r"images.bin: declares 1152921504606846976 pictures"):
        inputs.read(zipped(files), "model.zip")


@pytest.mark.data
def test_official_examples_bring_their_path_and_prompt(data: Path):
    folder = data / "worldstereo" / "reconstruction" / "kitchen"
    capture = inputs.read(folder)
    assert capture.kind == "photo" and capture.rough_depth
    assert capture.trajectory is not None and len(capture.trajectory) == 21
    assert capture.prompt.startswith("A cozy indoor dining/kitchen scene")
    torch.testing.assert_close(capture.trajectory[0].c2w, capture.views[0].cameras.c2w)
    given = json.loads((folder / "renders" / "traj_eloop" / "camera.json").read_text())
    w2c = torch.tensor(given["extrinsic"][7])
    torch.testing.assert_close(capture.trajectory[7].w2c, w2c, atol=1e-5, rtol=0)


def test_what_was_generated_stays_generated():
    """Invented pixels of our own export do not come back as measured ones."""
    depth, mask = np.full((17, 23), 2000, np.uint16), np.full((17, 23), 255, np.uint8)
    mask[:5] = 0
    change = {"generated": True, "invented_mask_path": "m.png", "depth_file_path": "d.png"}
    files = {
        "transforms.json": json.dumps(transforms(**change)),
        "images/a.png": png(PICTURE),
        "d.png": png(depth),
        "m.png": png(mask),
    }
    capture = inputs.read(zipped(files), "t.zip")
    view = capture.views[0]
    assert set(view.kind[0, :5].unique().tolist()) == {int(DepthKind.GENERATED)}
    assert set(view.kind[0, 5:].unique().tolist()) == {int(DepthKind.MEASURED)}
    assert float(view.depth.min()) == float(view.depth.max()) == pytest.approx(2.0)
    assert float(view.confidence[0, 2].max()) < 0.03 < float(view.confidence[0, 9].min())
    assert any("1 pictures were generated" in notice for notice in capture.notices)


def test_a_folder_goes_by_the_name_it_is_given(tmp_path: Path):
    (tmp_path / "transforms.json").write_text(json.dumps(transforms()))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(PICTURE))
    assert inputs.read(tmp_path, "Living room 1.2").name == "Living room 1.2"
    with pytest.raises(InputRefused, match="poses alone hold no pictures. Give the whole folder"):
        inputs.read(tmp_path / "transforms.json")
