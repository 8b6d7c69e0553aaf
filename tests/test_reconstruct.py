"""Surfaces from views of a room whose geometry is known, and their files read by other programs."""

import errno
import inspect
import io
import json
import math
import os
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import av
import laspy
import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from plyfile import PlyData
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from tests.conftest import room, turned_cameras
from worldstereo import CameraTrajectory, save_trajectory
from worldstereo.cameras import Cameras
from worldstereo.errors import Cancelled, ExportError, InputRefused, WorldStereoError
from worldstereo.exports import export, exporters, file_name, why_not
from worldstereo.exports import write as write_form
from worldstereo.exports.conventions import to_file
from worldstereo.exports.mesh import Body
from worldstereo.exports.mesh_glb import glb
from worldstereo.reconstruct import (
    Mesh,
    Surface,
    SurfaceOptions,
    Texture,
    estimate_surface,
    reconstruct_surface,
    render_mesh,
)
from worldstereo.reconstruct._charts import charts, corners_of
from worldstereo.reconstruct._color import decimated, texel_map, unwrapped
from worldstereo.reconstruction import (
    ReconstructedScene,
    export_mesh,
    export_point_cloud,
    reconstruct_scene,
)
from worldstereo.scene import DepthKind, PointCloud, Scene, View, to_bytes
from worldstereo.trajectory import Trajectory

UP = torch.nn.functional.normalize(torch.tensor([0.2, -1.0, 0.1]), dim=0)


def seen_room(n: int = 5, invented: bool = False) -> Scene:
    cameras = turned_cameras(n, width=96, height=72)
    color, depth = room(cameras)
    views = [View.of(color[i], depth[i], cameras[i], frame=i) for i in range(n)]
    if invented:
        kind = torch.full((1, 72, 96), int(DepthKind.GENERATED), dtype=torch.uint8)
        views[-1] = View.of(color[-1], depth[-1], cameras[-1], kind=kind, step=1)
    points = torch.cat(
        [v.cameras.unproject(v.cameras.pixel_grid(), v.depth.flatten()) for v in views]
    )
    colors = torch.cat([v.color.flatten(1).T for v in views])
    cloud = PointCloud.of(points, colors, radii=torch.full((len(points),), 0.02))
    return Scene(
        name="room", views=tuple(views), cloud=cloud, up=UP, unit=float(depth.median()),
        metres_per_unit=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> Scene:
    return seen_room()


@pytest.fixture(scope="module")
def built(scene) -> Surface:
    return reconstruct_surface(scene, SurfaceOptions(texture=256))


def test_the_mesh_lies_where_depth_says_and_faces_the_cameras(scene, built):
    for view in scene.views:
        drawn = render_mesh(built.mesh, view.cameras)
        seen = drawn.face >= 0
        assert float(seen.float().mean()) > 0.9
        apart = (drawn.depth - view.depth).abs()[seen] / view.depth[seen]
        assert float(apart.median()) < 0.004
    a, b, c = (built.mesh.vertices[built.mesh.faces[:, i]] for i in range(3))
    normal, middle = torch.linalg.cross(b - a, c - a), (a + b + c) / 3
    ahead = torch.stack([((v.cameras.position - middle) * normal).sum(1) for v in scene.views])
    assert float((ahead > 0).any(dim=0).float().mean()) > 0.97


def test_moving_world_and_cameras_together_changes_no_picture(scene, built):
    """Turned and shifted, the grid cuts the surface elsewhere; the surface stays the same."""
    angle = torch.tensor(0.7)
    T = torch.eye(4)
    T[0, 0] = T[2, 2] = angle.cos()
    T[0, 2], T[2, 0] = angle.sin(), -angle.sin()
    T[:3, 3] = torch.tensor([3.1, -2.3, 7.7])
    views = tuple(
        replace(v, cameras=replace(v.cameras, c2w=T @ v.cameras.c2w)) for v in scene.views
    )
    moved = reconstruct_surface(replace(scene, views=views), SurfaceOptions(texture=0))
    before = render_mesh(built.mesh, scene.views[1].cameras).depth
    after = render_mesh(moved.mesh, views[1].cameras).depth
    both = (before > 0) & (after > 0)
    assert float(both.float().mean()) > 0.9
    assert float(((before - after).abs() / before)[both].median()) < 0.004


def test_regions_join_without_a_seam(scene):
    """Edges with one face lie at the rim of what was seen, not along the walls of regions."""
    mesh = reconstruct_surface(scene, SurfaceOptions(texture=0, faces=0)).mesh
    body = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    counts = np.bincount(body.edges_unique_inverse)
    assert counts.max() <= 2
    assert (counts == 1).mean() < 0.1
    assert len(np.unique(mesh.vertices.numpy().round(6), axis=0)) == len(mesh.vertices)


def test_the_texture_shows_what_the_views_show(scene, built):
    view = scene.views[2]
    drawn = render_mesh(built.mesh, view.cameras, built.textures["albedo"])
    seen = drawn.face[0] >= 0
    error = ((drawn.color - view.color) ** 2)[:, seen].mean()
    assert -10 * float(error.log10()) > 20


def test_the_same_scene_gives_the_same_bits(scene, built):
    again = reconstruct_surface(scene, SurfaceOptions(texture=256))
    assert torch.equal(again.mesh.vertices, built.mesh.vertices)
    assert torch.equal(again.mesh.faces, built.mesh.faces)
    assert torch.equal(again.textures["albedo"].image, built.textures["albedo"].image)


def test_a_floater_that_others_look_through_is_carved(scene):
    view = scene.views[2]
    depth = view.depth.clone()
    depth[0, 30:42, 40:56] *= 0.5
    views = list(scene.views)
    views[2] = replace(view, depth=depth)
    mesh = reconstruct_surface(replace(scene, views=tuple(views)), SurfaceOptions(texture=0)).mesh
    drawn = render_mesh(mesh, view.cameras)
    patch = (drawn.depth / view.depth)[0, 31:41, 41:55]
    assert float((patch < 0.7).float().mean()) < 0.1


@pytest.mark.parametrize(("of_disparity", "far"), [(True, False), (False, True)])
def test_a_wall_that_the_sensor_does_not_resolve_is_no_surface(of_disparity, far):
    """Noise of a stereo sensor, .01 / unit at all depths, is 1 cm of a near wall and 64 cm of a far
    one; that of a laser is 1 cm of both. A truncation is 6 cm."""
    draw = torch.Generator().manual_seed(0)
    depth = torch.full((1, 72, 96), 1.0)
    depth[:, :, 48:] = 8.0
    views = []
    K = torch.tensor([[90.0, 0.0, 48.0], [0.0, 90.0, 36.0], [0.0, 0.0, 1.0]])
    camera = Cameras(K, torch.eye(4), 96, 72)
    for i in range(4):
        noise = 0.01 * torch.randn(depth.shape, generator=draw)
        seen = 1 / (1 / depth + noise).clamp(min=0.05) if of_disparity else depth + noise
        views.append(View.of(torch.full((3, 72, 96), 0.5), seen, camera, frame=i))
    scene = Scene(views=tuple(views), unit=1.0)
    mesh = reconstruct_surface(scene, SurfaceOptions(voxel=0.02, texture=0, faces=0)).mesh
    z = mesh.vertices[:, 2]
    drawn = render_mesh(mesh, camera).depth[0]
    near = drawn[4:-4, 4:44]
    assert float(((near - 1).abs() < 0.05).float().mean()) > 0.95
    assert bool((z > 1.5).any()) == far
    if far:
        assert float(((drawn[4:-4, 52:-4] - 8).abs() < 0.05).float().mean()) > 0.95


def test_generated_surfaces_are_marked_or_left_out():
    scene = seen_room(3, invented=True)
    marked = reconstruct_surface(scene, SurfaceOptions(texture=0)).mesh
    assert marked.invented is not None and 0 < float(marked.invented.float().mean()) < 0.9
    plain = reconstruct_surface(scene, SurfaceOptions(texture=0, generated=False)).mesh
    assert plain.invented is not None and not bool(plain.invented.any())


def test_charts_are_flat_and_do_not_fold(built):
    _, flat = charts(built.mesh.vertices.numpy(), built.mesh.faces.numpy())
    a, b, c = flat[:, 0], flat[:, 1], flat[:, 2]
    u, v = b - a, c - a
    area = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    assert (area > 0).mean() > 0.995 or (area < 0).mean() > 0.995


def test_a_face_narrower_than_a_texel_keeps_its_own_texels():
    """Every place on it is read from texels that are its own, at most a texel away from it."""
    uv = torch.tensor([[0.1, 0.21], [0.9, 0.23], [0.5, 0.2205], [0.1, 0.6], [0.9, 0.6], [0.5, 0.9]])
    mesh = Mesh.of(torch.rand(6, 3), torch.tensor([[0, 1, 2], [3, 4, 5]]), uv=uv)
    face, weights = texel_map(mesh, 64)
    for t in np.linspace(0.02, 0.98, 40):
        x = 64 * (0.1 + 0.8 * t) - 0.5
        y = 64 * (1 - (0.21 + 0.02 * t)) - 0.5
        near = face[round(y), round(x)]
        assert near == 0
    rows = np.argwhere(face == 0)
    at = np.einsum("ni,ij->nj", weights[face == 0], uv[:3].numpy())
    there = np.stack([64 * (1 - at[:, 1]) - 0.5, 64 * at[:, 0] - 0.5], 1)
    assert np.linalg.norm(rows - there, axis=1).max() <= 1.0
    inside = face == 1
    assert inside.sum() > 64 * 64 * 0.11 and (weights[inside] >= -1e-6).all()


@pytest.mark.parametrize(("scale", "size"), [(1.0, 256), (1e-4, 256), (1.0, 128)])
def test_no_chart_lies_on_another_and_bilinear_reading_stays_inside(built, scale, size):
    """Counted texel by texel, also in a world of tiny units: what a chart covers and what its
    bilinear samples read belongs to no other chart."""
    mesh = replace(built.mesh, vertices=built.mesh.vertices * scale, uv=None)
    mesh = unwrapped(mesh, size)
    faces, uv = mesh.faces.numpy(), mesh.uv.numpy().astype(float)
    assert uv.min() >= 0 and uv.max() <= 1
    links = np.ones(2 * len(faces)), (faces[:, :2].T.ravel(), faces[:, 1:].T.ravel())
    chart = connected_components(coo_matrix(links, (len(uv),) * 2), directed=False)[1]
    texels = np.stack([uv[:, 0], 1 - uv[:, 1]], 1) * size - 0.5
    owner = np.full((size + 1, size + 1), -1)
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 64)
    for face in faces:
        samples = np.floor(np.concatenate([weights @ texels[face], texels[face]])).astype(int)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            x, y = np.clip(samples + (dx, dy), 0, size).T
            assert np.isin(owner[y, x], (-1, chart[face[0]])).all()
            owner[y, x] = chart[face[0]]
    assert (owner >= 0).mean() > 0.15  # two long charts


def test_faces_without_area_leave_no_sliver_in_the_texture():
    """A flat square with a vertex on one edge, which only a face without area uses."""
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 4, 1]])
    mesh = unwrapped(Mesh.of(vertices, faces), 64)
    corners = mesh.uv.numpy()[mesh.faces.numpy()]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = np.sort(np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]))
    assert areas[0] < 1e-6 and areas[1] > 0.3
    assert len(mesh.faces) == 3


def test_colours_have_the_exposure_of_most_pictures(scene):
    """The first view is twice as bright as the others; gains towards it say so."""
    gain = torch.full((3,), math.log(2.0))
    views = [
        v if i == 0 else replace(v, color_u8=v.color_u8 // 2, log_gain=gain)
        for i, v in enumerate(scene.views)
    ]
    mesh = reconstruct_surface(replace(scene, views=tuple(views)), SurfaceOptions(texture=0)).mesh
    plain = reconstruct_surface(scene, SurfaceOptions(texture=0)).mesh
    ratio = float(mesh.colors.mean() / plain.colors.mean())
    assert ratio == pytest.approx(2 ** -(4 / 5), rel=0.02)


def test_at_most_as_many_faces_as_asked_for_also_of_noise():
    """A cloud of triangles of which no two share an edge keeps to the number too."""
    some = torch.Generator().manual_seed(3)
    vertices = torch.rand(40, 40, 3, generator=some)
    i, j = (x.flatten() for x in torch.meshgrid(torch.arange(39), torch.arange(39), indexing="ij"))
    a, b, c, d = 40 * i + j, 40 * i + j + 1, 40 * i + j + 40, 40 * i + j + 41
    faces = torch.cat([torch.stack([a, b, c], 1), torch.stack([b, d, c], 1)])
    mesh = decimated(Mesh.of(vertices.reshape(-1, 3), faces), 300)
    assert 0 < len(mesh) <= 300


def test_an_estimate_comes_before_the_work(scene):
    guess = estimate_surface(scene)
    assert guess.seconds > 0 and guess.bytes > 0 and guess.voxel > 0
    assert guess.blocks > 0


STAGES = (
    "Reading depth",
    "Finding surfaces",
    "Fusing depth",
    "Joining surfaces",
    "Simplifying the mesh",
    "Colouring surfaces",
    "Unfolding the mesh",
    "The mesh is ready",
)


@pytest.mark.parametrize("stage", STAGES)
def test_cancel_stops_at_every_stage(scene, stage):
    told: list[str] = []

    def on_step(step: int, total: int, message: str) -> None:
        told.append(message)
        if message == stage:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        reconstruct_surface(scene, SurfaceOptions(texture=256, faces=3_000), on_step=on_step)
    assert list(dict.fromkeys(told)) == list(STAGES[: STAGES.index(stage) + 1])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Scene(), "holds no views"),
        (Scene(cloud=PointCloud.of(torch.rand(7, 3))), "holds no views"),
    ],
)
def test_a_scene_without_views_is_refused(given, says):
    with pytest.raises(WorldStereoError, match=says):
        reconstruct_surface(given)
    assert why_not(given, "mesh-glb")
    with pytest.raises(ExportError):
        export(given, "mesh-glb")


def test_wrong_options_are_named(scene):
    for options, says in (
        ({"quality": "best"}, "quality"), ({"voxel": -1.0}, "voxel"), ({"texture": 3}, "texture"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            SurfaceOptions(**options)
    with pytest.raises(WorldStereoError, match="or larger"):
        reconstruct_surface(scene, SurfaceOptions(voxel=1e-5))
    with pytest.raises(ExportError, match="quality"):
        export(scene, "mesh-glb", quality="best")
    with pytest.raises(ExportError, match="GLB"):
        export(scene, "fbx")


# ---- files -------------------------------------------------------------------------------------


def shown_again(scene: Scene, vertices: np.ndarray, faces: np.ndarray) -> None:
    """The mesh of a file, brought back to the world, is where the views' depth says."""
    mesh = Mesh.of(torch.from_numpy(vertices).float(), torch.from_numpy(faces.astype(np.int64)))
    view = scene.views[1]
    drawn = render_mesh(mesh, view.cameras)
    seen = drawn.face >= 0
    assert float(seen.float().mean()) > 0.9
    assert float(((drawn.depth - view.depth).abs() / view.depth)[seen].median()) < 0.006


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


@pytest.mark.parametrize("form", [k for k, f in exporters().items() if f.slow])
def test_a_mesh_export_repeats_bit_for_bit(scene, form):
    options = {"texture": 128} if "texture" in exporters()[form].options else {}
    assert export(scene, form, **options) == export(scene, form, **options)
    assert file_name(scene, form).startswith("room-mesh-")


def test_glb_by_pygltflib_and_trimesh(scene):
    data = export(scene, "mesh-glb", texture=256)
    document = pygltflib.GLTF2.load_from_bytes(data)
    assert document.materials[0].pbrMetallicRoughness.baseColorTexture is not None
    assert document.images[0].mimeType == "image/png"
    matrix = np.array(document.nodes[1].matrix).reshape(4, 4).T
    sky = matrix[:3, :3] @ UP.numpy()
    np.testing.assert_allclose(sky / np.linalg.norm(sky), [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(sky), 0.5, atol=1e-6)  # metres
    loaded = trimesh.load(io.BytesIO(data), file_type="glb").to_mesh()
    back = loaded.vertices @ np.linalg.inv(to_file(scene, (0, 1, 0))).T
    shown_again(scene, back, loaded.faces)
    assert loaded.visual.material.baseColorTexture.size == (256, 256)


def test_obj_by_trimesh(scene, tmp_path):
    for name, content in unzipped(export(scene, "mesh-obj", texture=256)).items():
        (tmp_path / name).write_bytes(content)
    loaded = trimesh.load(tmp_path / "mesh.obj", process=False)
    notes = json.loads((tmp_path / "conventions.json").read_text())
    shown_again(scene, loaded.vertices @ np.linalg.inv(np.array(notes["matrix"])).T, loaded.faces)
    assert loaded.visual.uv is not None and loaded.visual.material.image.size == (256, 256)


def test_ply_by_plyfile_and_stl_by_trimesh(scene):
    file = PlyData.read(io.BytesIO(export(scene, "mesh-ply")))
    points = np.stack([file["vertex"][k] for k in "xyz"], 1)
    shown_again(scene, points, np.stack(file["face"]["vertex_indices"]))
    assert not file["vertex"]["invented"].any()
    loaded = trimesh.load(io.BytesIO(export(scene, "mesh-stl")), file_type="stl")
    matrix = to_file(scene, (0, 0, 1), 1000.0)
    shown_again(scene, loaded.vertices @ np.linalg.inv(matrix).T, loaded.faces)


@pytest.mark.parametrize("form", ["mesh-usda", "mesh-usdz"])
def test_usd_by_usd_core(scene, tmp_path, form):
    usd = pytest.importorskip("pxr.Usd")
    from pxr import UsdGeom, UsdShade

    data = export(scene, form, texture=256)
    if form == "mesh-usdz":
        path = tmp_path / "mesh.usdz"
        path.write_bytes(data)
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                assert entry.compress_type == zipfile.ZIP_STORED
                start = entry.header_offset + 30 + len(entry.filename) + len(entry.extra)
                assert start % 64 == 0
    else:
        for name, content in unzipped(data).items():
            (tmp_path / name).write_bytes(content)
        path = tmp_path / "mesh.usda"
    stage = usd.Stage.Open(str(path))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    shape = UsdGeom.Mesh(stage.GetPrimAtPath("/world/surface"))
    faces = np.array(shape.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    shown_again(scene, np.array(shape.GetPointsAttr().Get()), faces)
    world = np.array(shape.ComputeLocalToWorldTransform(0)).T[:3, :3]
    np.testing.assert_allclose(world, to_file(scene, (0, 1, 0)), atol=1e-6)
    assert UsdShade.MaterialBindingAPI(shape).ComputeBoundMaterial()[0]


def projected(scene: Scene, points: np.ndarray, colors: np.ndarray) -> None:
    """Points of a file, in the world's frame, land on pixels of their colour and depth."""
    view = scene.views[0]
    n = view.width * view.height
    pixels, z = view.cameras.project(torch.from_numpy(points[:n]).float())
    x, y = pixels.floor().long().T
    inside = (x >= 0) & (y >= 0) & (x < view.width) & (y < view.height)
    assert float(inside.float().mean()) > 0.98
    depth = view.depth[0][y[inside], x[inside]]
    assert float(((z[inside] - depth).abs() / depth).median()) < 1e-3
    there = view.color_u8[:, y[inside], x[inside]].T.numpy().astype(int)
    assert np.median(np.abs(there - colors[:n][inside.numpy()])) <= 1


def test_las_and_laz_by_laspy(scene):
    for form in ("las", "laz"):
        file = laspy.read(io.BytesIO(export(scene, form)))
        assert file.header.version == "1.2" and file.header.point_format.id == 2
        back = np.asarray(file.xyz) @ np.linalg.inv(to_file(scene, (0, 0, 1))).T
        rgb = np.stack([file.red, file.green, file.blue], 1).astype(int) // 257
        projected(scene, back, rgb)
        assert set(file.point_format.extra_dimension_names) == {"confidence", "invented"}


@pytest.mark.parametrize("form", ["ply", "pcd", "xyz"])
def test_points_by_open3d(scene, tmp_path, form):
    o3d = pytest.importorskip("open3d")
    path = tmp_path / f"points.{form}"
    path.write_bytes(export(scene, form, **({"normals": False} if form == "xyz" else {})))
    cloud = o3d.io.read_point_cloud(str(path), format="xyzrgb" if form == "xyz" else "auto")
    colors = np.asarray(cloud.colors)
    if form == "xyz":  # it takes the three numbers as they are
        colors = colors / 255
    projected(scene, np.asarray(cloud.points), np.rint(255 * colors).astype(int))


@pytest.mark.parametrize("form", ["mesh-ply", "mesh-stl", "mesh-glb"])
def test_meshes_by_open3d(scene, tmp_path, form):
    o3d = pytest.importorskip("open3d")
    path = tmp_path / f"mesh.{form[5:]}"
    path.write_bytes(export(scene, form, **({"texture": 256} if form == "mesh-glb" else {})))
    mesh = o3d.io.read_triangle_mesh(str(path))
    matrix = {
        "mesh-ply": np.eye(3),
        "mesh-stl": to_file(scene, (0, 0, 1), 1000.0),
        "mesh-glb": to_file(scene, (0, 1, 0)),
    }[form]
    vertices = np.asarray(mesh.vertices) @ np.linalg.inv(matrix).T
    shown_again(scene, vertices, np.asarray(mesh.triangles))
    assert mesh.has_vertex_colors() == (form == "mesh-ply")


def test_pcd_by_pypcd4(scene, tmp_path):
    pypcd4 = pytest.importorskip("pypcd4")
    (tmp_path / "points.pcd").write_bytes(export(scene, "pcd"))
    file = pypcd4.PointCloud.from_path(tmp_path / "points.pcd")
    rgb = pypcd4.PointCloud.decode_rgb(file.numpy(("rgb",)).ravel().astype(np.float32))
    projected(scene, file.numpy(("x", "y", "z")), rgb.astype(int))


def test_pcd_and_xyz_by_hand(scene):
    data = export(scene, "pcd")
    head, body = data.split(b"DATA binary\n", 1)
    fields = dict(line.split(" ", 1) for line in head.decode().splitlines() if line[0] != "#")
    kinds = [
        f"<{'f' if t == 'F' else 'u'}{s}"
        for t, s in zip(fields["TYPE"].split(), fields["SIZE"].split(), strict=True)
    ]
    table = np.frombuffer(body, list(zip(fields["FIELDS"].split(), kinds, strict=True)))
    assert len(table) == int(fields["POINTS"]) == len(scene.cloud)
    packed = table["rgb"].copy().view(np.uint32)
    rgb = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], 1).astype(int)
    projected(scene, np.stack([table[k] for k in "xyz"], 1), rgb)
    rows = np.loadtxt(io.BytesIO(export(scene, "xyz")))
    projected(scene, rows[:, :3], rows[:, 3:6].astype(int))


def test_discs_as_gaussians_stand_where_the_points_stand(scene):
    normals = torch.nn.functional.normalize(torch.randn(len(scene.cloud), 3), dim=1)
    scene = replace(scene, cloud=replace(scene.cloud, normals=normals))
    v = PlyData.read(io.BytesIO(export(scene, "splats")))["vertex"]
    matrix = to_file(scene, (0, -1, 0))
    points = np.stack([v[k] for k in "xyz"], 1)
    rgb = np.rint((np.stack([v[f"f_dc_{i}"] for i in range(3)], 1) * 0.28209479 + 0.5) * 255)
    projected(scene, points @ np.linalg.inv(matrix).T, rgb.astype(int))
    w, x, y, z = (v[f"rot_{i}"].astype(float) for i in range(4))
    axis = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], 1)
    np.testing.assert_allclose(axis, normals.numpy() @ (matrix / 0.5).T, atol=1e-5)
    assert (v["scale_2"] < v["scale_0"]).all()  # flat along the normal


def test_spz_by_its_layout(scene):
    """Unpacked as https://github.com/nianticlabs/spz does."""
    import gzip
    import struct

    data = gzip.decompress(export(scene, "spz"))
    magic, version, n, degree, bits, _, _ = struct.unpack_from("<IIIBBBB", data)
    assert (magic, version, degree, n) == (0x5053474E, 2, 0, len(scene.cloud))
    assert len(data) == 16 + n * (9 + 1 + 3 + 3 + 3)
    raw = np.frombuffer(data, np.uint8, 9 * n, 16).reshape(n, 3, 3).astype(np.int64)
    fixed = raw[..., 0] | raw[..., 1] << 8 | raw[..., 2] << 16
    fixed -= (fixed >= 1 << 23) * (1 << 24)
    points = fixed / 2.0**bits
    color = np.frombuffer(data, np.uint8, 3 * n, 16 + 10 * n).reshape(n, 3) / 255
    rgb = ((color - 0.5) / 0.15 * 0.28209479 + 0.5) * 255
    points = points @ np.linalg.inv(to_file(scene, (0, 1, 0))).T
    view = scene.views[0]
    pixels, z = view.cameras.project(torch.from_numpy(points[: 96 * 72]).float())
    assert float((z - view.depth.flatten()).abs().median()) < 1e-3
    assert np.median(np.abs(rgb[: 96 * 72].T.reshape(3, 72, 96) - view.color_u8.numpy())) < 8


def test_the_page_is_one_file_without_a_network(scene):
    data = export(scene, "html")
    text = data.decode()
    assert "@@" not in text.replace("@@iterator", "")
    assert "http://" not in text and "https://" not in text
    assert len(data) < 15_000_000
    small = export(scene, "html", megabytes=1.0, max_points=3_000)
    assert len(small) < 1_000_000
    with pytest.raises(ExportError, match="megabytes"):
        export(scene, "html", megabytes=0)
    named = export(replace(scene, name="</script><b>x"), "html").decode()
    assert "</script><b>x" not in named


def test_vertices_split_at_charts_stay_what_they_were_in_large_meshes():
    """70,000 charts over 120,000 vertices: their numbers together do not fit into 32 bits."""
    some = np.random.default_rng(0)
    faces = some.integers(0, 120_000, (70_000, 3))
    chart = np.arange(70_000, dtype=np.int32)
    old, corners = corners_of(chart, faces, 120_000)
    assert (old[corners] == faces).all()
    owner = np.full(len(old), -1)
    for column in corners.T:  # no vertex is shared by two charts
        assert ((owner[column] == -1) | (owner[column] == chart)).all()
        owner[column] = chart


# ---- documented API ----------------------------------------------------------------------------


def test_signatures_are_the_documented_ones():
    """Names and order of what can be given by place, and the documented defaults."""

    def head(f):
        found = inspect.signature(f).parameters.values()
        return [(p.name, p.default) for p in found if p.kind is not p.KEYWORD_ONLY]

    assert [n for n, _ in head(reconstruct_scene)][:3] == [
        "video_path", "camera_trajectory", "output_path",
    ]  # fmt: skip
    assert head(reconstruct_scene)[3:] == [
        ("method", "neural"), ("resolution", 512), ("depth_estimation", True),
        ("point_cloud_density", "medium"),
    ]  # fmt: skip
    assert head(export_mesh)[2:] == [
        ("format", None), ("include_textures", True), ("texture_resolution", 2048),
    ]  # fmt: skip
    assert head(export_point_cloud)[2:] == [
        ("format", None), ("include_colors", True), ("include_normals", True),
    ]  # fmt: skip
    names = {f.name for f in fields(ReconstructedScene)}
    assert names == {"mesh", "point_cloud", "textures", "cameras", "metadata"}
    assert {f.name for f in fields(Mesh)} >= {"vertices", "faces", "normals", "uv", "colors"}
    assert [f.name for f in fields(Texture)] == ["image", "name"]


def test_shapes_are_the_documented_ones(built):
    V, F = len(built.mesh.vertices), len(built.mesh.faces)
    assert built.mesh.vertices.shape == (V, 3) and built.mesh.faces.shape == (F, 3)
    assert built.mesh.faces.dtype == torch.int64
    assert built.mesh.normals.shape == (V, 3) and built.mesh.uv.shape == (V, 2)
    torch.testing.assert_close(built.mesh.normals.norm(dim=1), torch.ones(V), atol=1e-4, rtol=0)
    assert float(built.mesh.areas().min()) > 0
    assert len(torch.unique(built.mesh.faces)) == V
    image = built.textures["albedo"].image
    assert image.dtype == torch.uint8 and image.shape == (256, 256, 3)


def test_a_video_is_decoded_in_the_import_process(tmp_path, monkeypatch):
    """The caller's process cannot even import the decoder; frames come back in order."""
    cameras = turned_cameras(3, width=96, height=72)
    color, _ = room(cameras)
    with av.open(str(tmp_path / "clip.mp4"), "w") as box:
        stream = box.add_stream("libx264", rate=24, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv444p"
        for picture in to_bytes(color).permute(0, 2, 3, 1).numpy():
            box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        box.mux(stream.encode())
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:300])
    monkeypatch.setitem(sys.modules, "av", None)
    result = reconstruct_scene(
        str(tmp_path / "clip.mp4"), cameras, None, "mvs", 32, texture_resolution=64
    )
    assert result.metadata["frames"] == 3 and len(result.cameras) == 3
    for camera, frame in zip(cameras.c2w, result.cameras, strict=True):
        torch.testing.assert_close(frame.c2w, camera, atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="3 frames .* 2 cameras"):
        reconstruct_scene(tmp_path / "clip.mp4", turned_cameras(2, 96, 72), None, "mvs")
    with pytest.raises(InputRefused, match="^bad.mp4: .*cut off or damaged"):
        reconstruct_scene(tmp_path / "bad.mp4", cameras, None, "mvs")
    with pytest.raises(InputRefused, match="there is no such file"):
        reconstruct_scene(tmp_path / "absent.mp4", cameras, None, "mvs")


def test_reconstruct_scene_as_documented(scene, tmp_path: Path):
    result = reconstruct_scene(
        scene, None, tmp_path / "out", method="mvs", resolution=64, texture_resolution=128
    )
    assert isinstance(result, ReconstructedScene)
    assert set(result.textures) >= {"albedo", "roughness"}
    assert result.metadata["method_used"] == "mvs" and result.metadata["psnr"] > 15
    for name in ("mesh.glb", "point_cloud.ply", "cameras.json", "metadata.json"):
        assert (tmp_path / "out" / name).is_file()
    again = ReconstructedScene.load(tmp_path / "out")
    assert torch.equal(again.mesh.vertices, result.mesh.vertices)
    assert torch.equal(again.mesh.faces, result.mesh.faces)
    assert torch.equal(again.textures["albedo"].image, result.textures["albedo"].image)
    assert len(again.point_cloud) == len(result.point_cloud)
    torch.testing.assert_close(again.cameras[1].c2w, result.cameras[1].c2w)
    for name in ("a.obj", "a.ply", "a.glb", "a.gltf", "a.usdz", "a.stl"):
        if name.endswith("usdz"):
            pytest.importorskip("pxr")
        assert export_mesh(result, tmp_path / name, texture_resolution=64).stat().st_size > 500
    for name in ("p.ply", "p.pcd", "p.xyz", "p.las", "p.laz"):
        assert export_point_cloud(result, tmp_path / name).stat().st_size > 500
    assert trimesh.load(tmp_path / "a.gltf").to_mesh().vertices.shape[1] == 3


def test_hybrid_is_no_worse_than_mvs_and_neural_says_what_it_does(scene):
    plain = reconstruct_scene(scene, None, None, "mvs", 64, texture_resolution=128)
    with pytest.warns(UserWarning, match="hybrid"):
        better = reconstruct_scene(scene, resolution=64, texture_resolution=128)
    assert better.metadata["method_used"] == "hybrid"
    assert better.metadata["psnr"] >= plain.metadata["psnr"]


def test_wrong_arguments_are_named(scene, tmp_path):
    frames = torch.rand(3, 3, 24, 32)
    cameras = turned_cameras(2, 32, 24)
    for arguments, error, says in (
        ({"method": "magic"}, ValueError, "method"),
        ({"resolution": 8}, ValueError, "resolution"),
        ({"point_cloud_density": "huge"}, ValueError, "point_cloud_density"),
        ({"texture_resolution": 5}, ValueError, "texture_resolution"),
        ({"texture_resolution": 64.5}, TypeError, "texture_resolution"),
        ({"resolution": "512"}, TypeError, "resolution"),
        ({"seed": "a"}, TypeError, "seed"),
    ):
        with pytest.raises(error, match=says):
            reconstruct_scene(scene, None, None, **({"method": "mvs"} | arguments))
    with pytest.raises(ValueError, match="3 frames .* 2 cameras"):
        reconstruct_scene(frames, cameras, None, "mvs")
    with pytest.raises(TypeError, match="camera_trajectory"):
        reconstruct_scene(frames, "path", None, "mvs")
    with pytest.raises(ValueError, match="divide"):
        reconstruct_scene(frames * 255, turned_cameras(3, 32, 24), None, "mvs")
    with pytest.raises(ValueError, match=r"\(T, 3, H, W\)"):
        reconstruct_scene(torch.rand(3, 5, 24, 32), cameras, None, "mvs")
    with pytest.raises(ValueError, match=r"one size, got \(4, 4, 3\) and \(5, 4, 3\) at 1"):
        reconstruct_scene([torch.rand(4, 4, 3), torch.rand(5, 4, 3)], cameras, None, "mvs")
    with pytest.raises(TypeError, match=r"video_path\[1\] must be a picture, got 'b'"):
        reconstruct_scene([torch.rand(4, 4, 3), "b"], cameras, None, "mvs")
    with pytest.raises(InputRefused, match="is a folder"):
        reconstruct_scene(tmp_path, cameras, None, "mvs")
    mesh = Mesh.of(torch.rand(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="contradict"):
        export_mesh(mesh, tmp_path / "a.obj", "ply")
    with pytest.raises(ValueError, match="must end in"):
        export_mesh(mesh, tmp_path / "a.txt")
    with pytest.raises(ExportError, match="FBX"):
        export_mesh(mesh, tmp_path / "a.fbx")
    with pytest.raises(ExportError, match="reconstruct_scene"):
        export_mesh(scene, tmp_path / "a.obj")
    with pytest.raises(ExportError, match="no points"):
        export_point_cloud(Scene(), tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


def test_odd_but_meaningful_frames_are_taken(tmp_path):
    """Precisions, bytes, axes order, one pose, a gradient: the same pictures, the same mesh."""
    cameras = turned_cameras(3, 32, 24)
    color, _ = room(cameras)
    frames = to_bytes(color).float() / 255
    meshes = [
        reconstruct_scene(f, cameras, None, "mvs", 32, texture_resolution=0).mesh
        for f in (
            frames, frames.double(), to_bytes(color), frames.permute(0, 2, 3, 1),
            list(frames), frames.clone().requires_grad_(),
        )
    ]  # fmt: skip
    assert all(torch.equal(m.vertices, meshes[0].vertices) for m in meshes) and len(meshes[0])
    alone = reconstruct_scene(frames[:1], cameras[0], None, "mvs", 32, texture_resolution=64)
    assert alone.metadata["rough_depth"] and bool(alone.mesh.invented.all())


def test_a_full_disk_leaves_nothing_half_written(scene, tmp_path, monkeypatch):
    """The disk is full after so many bytes, wherever that is: one line, and all is as it was."""
    result = reconstruct_scene(scene, None, None, "mvs", 32, texture_resolution=64)
    before = tmp_path / "before.obj"
    export_mesh(result, before)
    told = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write, left = os.write, [0]

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) > left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(data)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    small = turned_cameras(2, 32, 24)
    path = CameraTrajectory.from_trajectory(Trajectory(small, "path", 24.0))
    for room_left in (0, 300, 3_000, 30_000):
        for work in (
            lambda: result.save(tmp_path / "a" / "b"),
            lambda: export_mesh(result, before, texture_resolution=32),
            lambda: export_point_cloud(result, tmp_path / "p.xyz"),
            lambda: write_form(scene, "html", tmp_path / "page.html"),
        ):
            left[0] = room_left
            with pytest.raises(ExportError, match="No space left"):
                work()
    left[0] = 500  # the lens fits, the poses do not
    with pytest.raises(ExportError, match="No space left"):
        save_trajectory(path, tmp_path / "images.txt", "colmap")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == told


def test_a_bare_mesh_becomes_a_valid_glb():
    mesh = Mesh.of(torch.rand(5, 3), torch.tensor([[0, 1, 2], [2, 3, 4]]))
    loaded = trimesh.load(io.BytesIO(glb(Body(mesh, {}, Scene()))), file_type="glb").to_mesh()
    assert loaded.faces.shape == (2, 3)
