"""Exports, read again by other programs: plyfile, trimesh, pycolmap, Pillow, PyAV, json."""

import base64
import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pycolmap
import pytest
import torch
import trimesh
from PIL import Image
from plyfile import PlyData
from scipy.spatial import cKDTree

from tests.conftest import room, turned_cameras
from worldstereo.errors import ExportError
from worldstereo.exports import export, exporters, file_name, why_not, write
from worldstereo.inputs import read
from worldstereo.project import ProjectState, save
from worldstereo.scene import Clip, DepthKind, Origin, PointCloud, Scene, View
from worldstereo.trajectory import Trajectory

GIVEN, MADE = 3, 2
QUICK = [k for k, form in exporters().items() if not form.slow]


@pytest.fixture
def scene() -> Scene:
    """Three given views and two generated ones of the room, their points, and the clip."""
    cameras = turned_cameras(GIVEN + MADE)
    color, depth = room(cameras)
    origin = torch.zeros(MADE, 1, 29, 37, dtype=torch.uint8)
    origin[:, :, :, 20:] = int(Origin.INVENTED)
    kind = torch.where(origin == 2, int(DepthKind.GENERATED), 0).to(torch.uint8)
    views = [View.of(color[i], depth[i], cameras[i], frame=i, name="é") for i in range(GIVEN)]
    for i in range(MADE):
        kept = torch.where(origin[i] == 2, depth[GIVEN + i], 0)
        views.append(
            View.of(color[GIVEN + i], kept, cameras[GIVEN + i], kind=kind[i], step=1, frame=i)
        )
    points, colors, step, source = [], [], [], []
    for i, view in enumerate(views):
        rows = torch.nonzero(view.depth[0].flatten() > 0).flatten()[i::5]
        pixels = view.cameras.pixel_grid()[rows]
        points.append(view.cameras.unproject(pixels, view.depth[0].flatten()[rows]))
        colors.append(view.color.flatten(1)[:, rows].T)
        step.append(torch.full((len(rows),), view.step))
        source.append(torch.full((len(rows),), i))
    n = sum(len(p) for p in points)
    cloud = PointCloud.of(
        torch.cat(points),
        torch.cat(colors),
        step=torch.cat(step),
        source=torch.cat(source),
        confidence=torch.linspace(0.02, 1, n),
        normals=torch.nn.functional.normalize(torch.randn(n, 3), dim=-1),
        radii=torch.full((n,), 0.01),
    )
    clip = Clip.of(
        color[GIVEN:],
        depth[GIVEN:],
        origin,
        torch.full((MADE, 1, 29, 37), 0.5),
        Trajectory(cameras[GIVEN:], "path", 24.0),
        seed=11,
        step=1,
        generator="warp",
    )
    up = torch.tensor([0.1, -1.0, 0.05])
    return Scene(revision=3, name="a room", views=tuple(views), cloud=cloud, clips=(clip,), up=up)


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def fingerprint(scene: Scene) -> list[torch.Tensor]:
    cloud, clip = scene.cloud, scene.clips[0]
    tensors = [cloud.points, cloud.colors, cloud.step, cloud.confidence, clip.color_u8, clip.depth]
    tensors += [t for v in scene.views for t in (v.color_u8, v.depth, v.cameras.c2w, v.cameras.K)]
    return [t.clone() for t in tensors]


def dark(pixels: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(pixels))) == 0


@pytest.mark.parametrize("form", QUICK)
def test_an_export_repeats_bit_for_bit_and_leaves_the_scene_alone(scene, form):
    before = fingerprint(scene)
    first = export(scene, form)
    assert first == export(scene, form)
    assert all(torch.equal(a, b) for a, b in zip(before, fingerprint(scene), strict=True))
    assert str(scene.revision) in file_name(replace(scene, name="x3"), form)  # name is kept


def test_ply_columns_are_the_cloud(scene):
    vertices = PlyData.read(io.BytesIO(export(scene, "ply")))["vertex"]
    cloud = scene.cloud
    assert len(vertices) == len(cloud)
    xyz = np.stack([vertices[k] for k in "xyz"], 1)
    np.testing.assert_array_equal(xyz, cloud.points.numpy())
    normals = np.stack([vertices[k] for k in ("nx", "ny", "nz")], 1)
    np.testing.assert_array_equal(normals, cloud.normals.numpy())
    rgb = np.stack([vertices[k] for k in ("red", "green", "blue")], 1) / 255
    assert np.abs(rgb - cloud.colors.numpy()).max() <= 0.5001 / 255
    np.testing.assert_array_equal(vertices["confidence"], cloud.confidence.numpy())
    np.testing.assert_array_equal(vertices["step"], cloud.step.numpy())
    np.testing.assert_array_equal(vertices["view"], cloud.source.numpy())
    np.testing.assert_array_equal(vertices["invented"], cloud.step.numpy() > 0)
    assert (
        trimesh.load(io.BytesIO(export(scene, "ply")), file_type="ply").vertices.shape == xyz.shape
    )


def test_ply_header_lines_are_short_even_for_long_notices(scene):
    talkative = replace(scene, notices=("word " * 700, "line\nbreak é"))
    data = export(talkative, "ply")
    assert max(len(line) for line in data[: data.index(b"end_header")].split(b"\n")) < 256
    assert len(PlyData.read(io.BytesIO(data))["vertex"]) == len(scene.cloud)


def test_given_points_alone_when_generated_are_left_out(scene):
    given = int((scene.cloud.step == 0).sum())
    assert 0 < given < len(scene.cloud)
    vertices = PlyData.read(io.BytesIO(export(scene, "ply", generated=False)))["vertex"]
    assert len(vertices) == given
    assert not vertices["invented"].any()
    loaded = trimesh.load(io.BytesIO(export(scene, "glb", generated=False)), file_type="glb")
    assert set(loaded.geometry) == {"given"}


def glb_json(data: bytes) -> dict:
    magic, version, length = struct.unpack_from("<III", data)
    assert (magic, version, length) == (0x46546C67, 2, len(data))
    size, kind = struct.unpack_from("<II", data, 12)
    assert kind == 0x4E4F534A
    assert size % 4 == 0
    return json.loads(data[20 : 20 + size])


def test_glb_in_trimesh_has_points_colours_and_up_along_y(scene):
    metric = replace(scene, metres_per_unit=2.0)
    data = export(metric, "glb")
    loaded = trimesh.load(io.BytesIO(data), file_type="glb")
    step = scene.cloud.step.numpy()
    for name, rows in (("given", step == 0), ("invented", step > 0)):
        part = loaded.geometry[name]
        np.testing.assert_array_equal(part.vertices, scene.cloud.points.numpy()[rows])
        error = part.colors[:, :3] / 255 - scene.cloud.colors.numpy()[rows]
        assert np.abs(error).max() <= 0.5001 / 255
        placed, _ = loaded.graph.get(name)
    up = scene.up.double().numpy()
    np.testing.assert_allclose(placed[:3, :3] @ (up / np.linalg.norm(up)), [0, 2, 0], atol=1e-6)
    fields = glb_json(data)
    assert len(fields["cameras"]) == GIVEN + MADE
    assert [n["extras"]["invented"] for n in fields["nodes"] if "mesh" in n] == [False, True]
    for accessor in fields["accessors"]:
        view = fields["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        assert view["byteOffset"] + view["byteLength"] <= fields["buffers"][0]["byteLength"]


def test_glb_cameras_look_along_the_views(scene):
    fields = glb_json(export(scene, "glb"))
    nodes = [n for n in fields["nodes"] if "camera" in n]
    for node, view in zip(nodes, scene.views, strict=True):
        matrix = np.array(node["matrix"]).reshape(4, 4).T
        np.testing.assert_allclose(-matrix[:3, 2], view.cameras.forward.numpy(), atol=1e-6)
        np.testing.assert_allclose(matrix[:3, 3], view.cameras.position.numpy(), atol=1e-6)


@pytest.mark.parametrize("form", ["colmap", "colmap-text"])
def test_colmap_model_in_pycolmap(scene, form, tmp_path):
    """Poses, counts, colours; every track reprojects and every 2D point names its 3D point."""
    files = members(export(scene, form))
    (tmp_path / "sparse").mkdir()
    for name, data in files.items():
        if name.startswith("sparse/0/"):
            (tmp_path / "sparse" / name.rsplit("/", 1)[1]).write_bytes(data)
    model = pycolmap.Reconstruction(str(tmp_path / "sparse"))
    assert model.num_images() == GIVEN + MADE
    assert model.num_points3D() == len(scene.cloud)
    for image_id, image in model.images.items():
        view = scene.views[image_id - 1]
        pose = image.cam_from_world() if callable(image.cam_from_world) else image.cam_from_world
        np.testing.assert_allclose(
            pose.matrix(), np.linalg.inv(view.cameras.c2w.double().numpy())[:3], atol=1e-6
        )
        K = view.cameras.K.double().numpy()
        np.testing.assert_allclose(model.cameras[image.camera_id].calibration_matrix(), K)
        decoded = np.asarray(Image.open(io.BytesIO(files[f"images/{image.name}"])))
        np.testing.assert_array_equal(decoded, view.color_u8.permute(1, 2, 0).numpy())
    for point_id, point in model.points3D.items():
        row = point_id - 1
        np.testing.assert_allclose(point.xyz, scene.cloud.points[row].numpy(), atol=1e-6)
        assert np.abs(point.color / 255 - scene.cloud.colors[row].numpy()).max() <= 0.5001 / 255
        for element in point.track.elements:
            seen = model.images[element.image_id].points2D[element.point2D_idx]
            assert seen.point3D_id == point_id
    total = sum(len(p.track.elements) for p in model.points3D.values())
    assert total == sum(len(image.points2D) for image in model.images.values())
    assert total > len(scene.cloud)  # most points are seen more than once
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < 1e-4


def test_a_point_behind_a_wall_is_in_no_track(scene, tmp_path):
    hidden = torch.tensor([[0.3, 0.1, 9.0]])  # behind the far wall, z = 4
    cloud = PointCloud.of(torch.cat([scene.cloud.points, hidden]))
    files = members(export(replace(scene, cloud=cloud), "colmap"))
    for name in ("cameras", "images", "points3D"):
        (tmp_path / f"{name}.bin").write_bytes(files[f"sparse/0/{name}.bin"])
    model = pycolmap.Reconstruction(str(tmp_path))
    assert len(model.points3D[len(cloud)].track.elements) == 0


def test_colmap_points_are_thinned_evenly_and_it_is_said(scene, tmp_path):
    files = members(export(scene, "colmap-text", max_points=101))
    lines = [x for x in files["sparse/0/points3D.txt"].decode().splitlines() if x[0] != "#"]
    assert len(lines) == 101
    assert json.loads(files["conventions.json"])["points_written"] == 101


def test_transforms_reproject_onto_the_views_depth(scene):
    """From the JSON and the files alone: a pixel's 3D point projects back, and colours agree."""
    files = members(export(scene, "transforms"))
    fields = json.loads(files["transforms.json"])
    assert fields["applied_transform"] == np.eye(4)[:3].tolist()
    flip = np.diag([1, -1, -1, 1])
    cloud = PlyData.read(io.BytesIO(files[fields["ply_file_path"]]))["vertex"]
    points = np.stack([cloud[k] for k in "xyz"], 1).astype(np.float64)
    hits = 0
    for view, frame in zip(scene.views, fields["frames"], strict=True):
        c2w = np.array(frame["transform_matrix"]) @ flip
        np.testing.assert_allclose(c2w, view.cameras.c2w.double().numpy(), atol=1e-6)
        assert (frame["w"], frame["h"]) == (view.width, view.height)
        assert frame["generated"] == (view.step > 0)
        x_cam = (points - c2w[:3, 3]) @ c2w[:3, :3]
        u = x_cam[:, 0] / x_cam[:, 2] * frame["fl_x"] + frame["cx"]
        v = x_cam[:, 1] / x_cam[:, 2] * frame["fl_y"] + frame["cy"]
        stored = np.asarray(Image.open(io.BytesIO(files[frame["depth_file_path"]])))
        depth = stored * fields["depth_unit_scale_factor"]
        assert np.abs(depth - view.depth[0].numpy()).max() <= fields["depth_unit_scale_factor"]
        own = np.asarray(scene.cloud.source) == frames_index(scene, view)
        inner = own & (u > 0) & (u < frame["w"]) & (v > 0) & (v < frame["h"])
        error = depth[v[inner].astype(int), u[inner].astype(int)] - x_cam[inner, 2]
        assert np.abs(error).max() < 2e-3
        hits += int(inner.sum())
    assert hits == len(scene.cloud)


def frames_index(scene: Scene, view: View) -> int:
    return next(i for i, v in enumerate(scene.views) if v is view)


def test_invented_pixels_are_masked_in_every_archive(scene):
    """The right part of each generated picture was made up, nothing else."""
    expected = scene.clips[0].origin[0, 0].numpy() == 2
    colmap = members(export(scene, "colmap"))
    masks = sorted(name for name in colmap if name.startswith("masks/"))
    assert len(masks) == MADE
    np.testing.assert_array_equal(dark(colmap[masks[0]]), expected)
    transforms = members(export(scene, "transforms", train_on_invented=False))
    frames = json.loads(transforms["transforms.json"])["frames"]
    assert not dark(transforms[frames[0]["mask_path"]]).any()
    np.testing.assert_array_equal(dark(transforms[frames[GIVEN]["mask_path"]]), expected)
    frames = members(export(scene, "images"))
    np.testing.assert_array_equal(dark(frames["masks/00000.png"]), expected)
    marked = members(export(scene, "transforms"))
    frame = json.loads(marked["transforms.json"])["frames"][GIVEN]
    assert "mask_path" not in frame
    np.testing.assert_array_equal(dark(marked[frame["invented_mask_path"]]), expected)
    alone = members(export(scene, "transforms", generated=False))
    assert not any(name.startswith(("masks/", "invented/")) for name in alone)
    assert len(json.loads(alone["transforms.json"])["frames"]) == GIVEN


def test_what_is_fixed_to_the_camera_is_masked_for_trainers(scene):
    kind = scene.views[0].kind.clone()
    kind[:, 25:] = int(DepthKind.CAMERA_FIXED)
    scene = replace(scene, views=(replace(scene.views[0], kind=kind), *scene.views[1:]))
    files = members(export(scene, "transforms"))
    frames = json.loads(files["transforms.json"])["frames"]
    for frame, view in zip(frames, scene.views, strict=True):
        expected = view.kind[0].numpy() == int(DepthKind.CAMERA_FIXED)
        np.testing.assert_array_equal(dark(files[frame["mask_path"]]), expected)
    colmap = members(export(scene, "colmap"))
    masks = [name for name in colmap if name.startswith("masks/")]
    assert len(masks) == 1 + MADE
    assert dark(colmap[min(masks)])[25:].all()


def test_exports_repeat_in_another_process_with_other_threads_and_hashes(scene, tmp_path):
    """The bytes do not depend on the hash seed or on the number of threads."""
    own = digests(scene)
    save(ProjectState(scene), tmp_path / "a.world")
    program = (
        "import json, sys\nfrom worldstereo.project import load\n"
        "from tests.test_export import digests\n"
        "sys.stdout.write(json.dumps(digests(load(sys.argv[1]).scene)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "a.world")],
        env=os.environ | {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "4"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert json.loads(done.stdout) == own


def digests(scene: Scene) -> dict[str, str]:
    return {form: hashlib.sha256(export(scene, form)).hexdigest() for form in QUICK}


def test_tracks_of_a_real_capture_hit_pixels_of_the_points_colour(tmp_path):
    """Points of one RGB-D frame, found in four others: a wrong axis would hit other colours."""
    views = read(Path(__file__).parent.parent / "assets/examples/living-room").views[:5]
    rows = torch.arange(11, views[0].width * views[0].height, 61)
    pixels, depth = views[0].cameras.pixel_grid()[rows], views[0].depth.flatten()[rows]
    points = views[0].cameras.unproject(pixels[depth > 0], depth[depth > 0])
    colors = views[0].color.flatten(1).T[rows][depth > 0]
    cloud = PointCloud.of(points, colors, radii=torch.full((len(points),), 0.005))
    files = members(export(Scene(views=views, cloud=cloud), "colmap"))
    for name in ("cameras", "images", "points3D"):
        (tmp_path / f"{name}.bin").write_bytes(files[f"sparse/0/{name}.bin"])
    model = pycolmap.Reconstruction(str(tmp_path))
    pixels = {i: [p.xy for p in image.points2D] for i, image in model.images.items()}
    shown = [view.color.numpy() for view in views]
    errors, longest = [], 0
    for point in model.points3D.values():
        longest = max(longest, len(point.track.elements))
        for element in point.track.elements:
            u, v = pixels[element.image_id][element.point2D_idx]
            seen = shown[element.image_id - 1][:, int(v), int(u)]
            errors.append(np.abs(seen - point.color / 255).mean())
    assert longest == 5
    assert len(errors) > 2 * len(points)
    assert np.median(errors) < 0.03


@pytest.mark.parametrize("form", [k for k in QUICK if exporters()[k].suffix == ".zip"])
def test_conventions_say_axes_units_seed_and_what_is_invented(scene, form):
    notes = json.loads(
        members(export(replace(scene, metres_per_unit=0.5), form))["conventions.json"]
    )
    assert "OpenCV" in notes["camera_axes"]
    assert "(0.5, 0.5)" in notes["pixel_centre"]
    assert notes["metres_per_unit"] == 0.5
    assert notes["steps"][0]["seed"] == 11
    assert notes["views"] == {"given": GIVEN, "generated": MADE}
    assert notes["points"]["invented"] == int((scene.cloud.step > 0).sum())


def test_mp4_decodes_to_the_frames(scene):
    """H.264, yuv420p, even sizes, index before data, colours as in the clip (BT.709, tagged)."""
    flat = torch.tensor([[230, 20, 60], [10, 130, 250]], dtype=torch.uint8)[:, :, None, None]
    clip = replace(scene.clips[0], color_u8=flat.expand(MADE, 3, 29, 37).contiguous())
    scene = replace(scene, clips=(clip,))
    data = export(scene, "mp4", crf=1)
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data)) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height) == (38, 30)
        assert video.average_rate == 24
        assert "seed 11" in container.metadata["comment"]
        frames = [f.reformat(format="rgb24").to_ndarray() for f in container.decode(video)]
    assert len(frames) == MADE
    expected = scene.clips[0].color_u8.permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(np.stack(frames)[:, :29, :37].astype(int) - expected).max() <= 3


def test_frames_and_path_of_a_clip_come_back(scene):
    files = members(export(scene, "images"))
    path = Trajectory.from_json(files["trajectory.json"].decode())
    assert torch.equal(path.cameras.c2w, scene.clips[0].trajectory.cameras.c2w)
    assert Trajectory.from_json(export(scene, "trajectory").decode()).name == "path"
    picture = np.asarray(Image.open(io.BytesIO(files["images/00001.png"])))
    np.testing.assert_array_equal(picture, scene.clips[0].color_u8[1].permute(1, 2, 0).numpy())


def test_what_cannot_be_written_says_so_in_one_line(scene, tmp_path):
    empty = Scene()
    for form, description in exporters().items():
        if description.needs:
            with pytest.raises(ExportError) as refusal:
                export(empty, form)
            assert str(refusal.value) == why_not(empty, form) != ""
            assert "\n" not in str(refusal.value)
        assert why_not(scene, form) == ""
    with pytest.raises(ExportError, match="format must be one of"):
        export(scene, "dxf")
    with pytest.raises(ExportError, match="no option 'size'"):
        export(scene, "ply", size=3)
    with pytest.raises(ExportError, match="clip must be from 0 to 0"):
        export(scene, "mp4", clip=4)
    with pytest.raises(ExportError, match=r"x.ply could not be written"):
        write(scene, "ply", tmp_path / "missing" / "x.ply")
    assert list(tmp_path.iterdir()) == []


def test_write_makes_the_file_that_export_returns(scene, tmp_path):
    path = write(scene, "ply", tmp_path / "points.ply", generated=False)
    assert path.read_bytes() == export(scene, "ply", generated=False)
    assert [p.name for p in tmp_path.iterdir()] == ["points.ply"]


@pytest.mark.parametrize(
    ("farthest", "step"), [(4.0, 1e-4), (30.0, 1e-3), (900.0, 1e-1), (5e-3, 1e-7)]
)
def test_depth_of_any_scale_fits_16_bits(farthest, step):
    from worldstereo.exports.archive import depth_png, depth_step

    depth = np.array([[0.0, farthest / 7], [farthest / 1e4, farthest]])
    assert depth_step([depth]) == pytest.approx(step)
    stored = np.asarray(Image.open(io.BytesIO(depth_png(depth, step)))) * step
    assert np.abs(stored - depth).max() <= step / 2 + 1e-12
    assert stored[0, 0] == 0
    assert stored[1, 0] > 0


# ---- the page to send ----------------------------------------------------------------------------


class Scripts(HTMLParser):
    """The text of each script element by its id, as a browser's parser would cut them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._id: str | None = None
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self._id = dict(attrs).get("id", "viewer") if tag == "script" else None

    def handle_endtag(self, tag):
        self._id = None

    def handle_data(self, data):
        if self._id:
            self.found[self._id] = self.found.get(self._id, "") + data


def points_of_the_page(page: bytes) -> np.ndarray:
    """Positions (N, 3), by the layout that `page.py` documents."""
    scripts = Scripts(page).found
    about = json.loads(scripts["about"])["points"]
    data = gzip.decompress(base64.b64decode(scripts["points"]))
    n, blocks = about["count"], about["blocks"]
    heads = np.frombuffer(data, "<f4", 5 * blocks).reshape(-1, 5)
    frames = heads.repeat(heads[:, 4].astype(int), axis=0)
    steps = np.frombuffer(data, "<u2", 3 * n, 20 * blocks).reshape(3, n).T
    assert len(data) == 20 * blocks + 14 * n and len(frames) == n
    return frames[:, :3] + frames[:, 3:4] * steps


def test_far_points_cost_the_near_ones_no_precision_on_the_page():
    """A room of discs of 5 mm and a mountain 5 km away: each is met within a tenth of its disc."""
    some = np.random.default_rng(0)
    near, far = some.uniform(-2, 2, (3_000, 3)), some.normal((0, 300, 5_000), 50, (200, 3))
    points = torch.from_numpy(np.concatenate([near, far])).float()
    radii = torch.cat([torch.full((3_000,), 0.005), torch.full((200,), 5.0)])
    cloud = PointCloud.of(points, torch.rand(len(points), 3), radii=radii)
    shown = points_of_the_page(export(Scene(cloud=cloud, up=torch.tensor([0.0, 1.0, 0.0])), "html"))
    off, which = cKDTree(shown).query(points.numpy())
    assert len(shown) == len(points) and len(np.unique(which)) > 0.99 * len(points)
    assert (off < radii.numpy()).all() and np.percentile(off[:3_000], 95) < 0.001


@pytest.mark.parametrize(
    "name", ["</script><b>x", "<!--<script>", "@@POINTS@@ @@FILM@@", "a & b \u2028 \"q'"]
)
def test_no_name_changes_what_the_page_holds(name):
    plain, named = (
        Scripts(export(Scene(name=text, cloud=room_cloud()), "html")).found for text in ("x", name)
    )
    assert set(plain) == set(named) == {"about", "points", "viewer"}
    assert json.loads(named["about"])["name"] == name and "<" not in named["about"]
    assert all(plain[key] == named[key] for key in ("points", "viewer"))


def room_cloud() -> PointCloud:
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    return PointCloud.of(points, points)
