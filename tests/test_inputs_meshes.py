"""Meshes and clouds against independent readers: trimesh, plyfile, and the manifest's bounds."""

import io
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from tests import corpus
from worldstereo import inputs
from worldstereo.errors import InputRefused
from worldstereo.inputs import gltf, meshes, ply
from worldstereo.inputs.limits import LOCAL, Limits
from worldstereo.inputs.surface import srgb


def test_ply_agrees_with_plyfile():
    """Values of a file that another library wrote, colours and normals included, both orders."""
    rng = np.random.default_rng(8)
    columns = [("x", "f4"), ("y", "f8"), ("z", "f4"), ("nx", "f4"), ("ny", "f4"), ("nz", "f4"),
               ("red", "u1"), ("green", "u1"), ("blue", "u1"), ("extra", "i2")]  # fmt: skip
    rows = np.zeros(61, dtype=columns)
    for name, kind in columns:
        rows[name] = rng.integers(0, 255, 61) if kind in ("u1", "i2") else rng.normal(size=61)
    for text, order in ((True, "="), (False, "<"), (False, ">")):
        element = plyfile.PlyElement.describe(rows, "vertex")
        out = io.BytesIO()
        plyfile.PlyData([element], text=text, byte_order=order).write(out)
        cloud = inputs.read(out.getvalue(), "cloud.ply").cloud
        assert cloud is not None
        expected = np.stack([rows[c] for c in "xyz"], axis=1).astype(np.float32)
        np.testing.assert_allclose(cloud.points.numpy(), expected, rtol=1e-5)
        colors = np.stack([rows[c] for c in ("red", "green", "blue")], axis=1) / 255
        np.testing.assert_allclose(cloud.colors.numpy(), colors, atol=1e-6)
        assert float((cloud.normals.norm(dim=1) - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("suffix", ["glb", "obj", "stl", "off", "ply"])
def test_samples_lie_on_the_surface_that_trimesh_wrote(suffix: str):
    """A turned, moved box: every sample on it, all six sides in proportion to their area."""
    box = trimesh.creation.box(extents=(1.0, 2.0, 3.0))
    turn = trimesh.transformations.rotation_matrix(0.7, [0.3, 1.0, -0.2], [0.1, 0.2, 0.3])
    turn[:3, 3] += [4.0, -5.0, 6.0]
    box.apply_transform(turn)
    data = box.export(file_type=suffix)
    data = data.encode() if isinstance(data, str) else data
    assert isinstance(data, bytes)
    cloud = inputs.read(data, f"box.{suffix}").cloud
    assert cloud is not None and len(cloud) > 1000
    local = (cloud.points.double() - torch.tensor(turn[:3, 3])) @ torch.tensor(turn[:3, :3])
    half = torch.tensor([0.5, 1.0, 1.5]).double()
    assert float((local.abs() / half).amax(dim=1).sub(1).abs().max()) < 1e-4
    side = (local.abs() / half).argmax(dim=1)
    share = torch.bincount(side, minlength=3) / len(side)
    torch.testing.assert_close(share, torch.tensor([6.0, 3.0, 2.0]) / 11, atol=0.02, rtol=0)
    outward = (cloud.normals.double() @ torch.tensor(turn[:3, :3]) * local).sum(1)
    assert float(outward.min()) > 0
    spacing = 2 * float(cloud.radii[0])
    assert spacing == pytest.approx((22 / len(cloud)) ** 0.5, rel=0.01)


def test_a_texture_inside_a_glb_colours_the_points():
    """Left half of the texture red, right half blue: so are the samples of a square."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8, 0], pixels[:, 8:, 2] = 255, 255
    square = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]],
                             process=False)  # fmt: skip
    picture = corpus.Image.fromarray(pixels)
    material = PBRMaterial(baseColorTexture=picture)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    square.visual = TextureVisuals(uv=uv, material=material)
    data = trimesh.Scene(square).export(file_type="glb")
    assert isinstance(data, bytes)
    cloud = inputs.read(data, "square.glb").cloud
    assert cloud is not None
    left = cloud.points[:, 0] < 0.49
    assert float(cloud.colors[left, 0].mean()) > 0.98 and float(cloud.colors[left, 2].mean()) < 0.02
    right = cloud.points[:, 0] > 0.51
    assert float(cloud.colors[right, 2].mean()) > 0.98


def test_points_far_from_the_origin_keep_their_shape():
    """Map coordinates lose nothing to float32: an origin is subtracted and said."""
    points = np.random.default_rng(2).normal(size=(43, 3)) + [665171.0, 5648298.0, 230.0]
    rows = np.zeros(43, dtype=[(c, "f8") for c in "xyz"])
    for i, c in enumerate("xyz"):
        rows[c] = points[:, i]
    out = io.BytesIO()
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")]).write(out)
    capture = inputs.read(out.getvalue(), "map.ply")
    assert capture.cloud is not None
    centred = capture.cloud.points.double().numpy()
    error = (centred - centred.mean(0)) - (points - points.mean(0))
    assert np.abs(error).max() < 1e-5
    assert any("was subtracted" in notice for notice in capture.notices)


@pytest.mark.data
def test_nested_transforms_give_the_bounds_of_the_manifest(data: Path):
    for name, low, high in (
        ("odd/nested.glb", [-1.167, -2.337, -0.269], [0.269, 1.0, 0.269]),
        ("valid/BoxTextured.glb", [-0.5] * 3, [0.5] * 3),
        ("valid/whitespace.off", [-1.633, -1.633, -1.155], [1.633, 1.633, 1.155]),
        ("valid/fuze.obj", [-0.036, -0.037, 0.004], [0.036, 0.037, 0.219]),
    ):
        cloud = inputs.read(data / "meshes" / name).cloud
        assert cloud is not None
        size = float(np.subtract(high, low).max())
        for found, given in ((cloud.points.amin(0), low), (cloud.points.amax(0), high)):
            assert float((found - torch.tensor(given)).abs().max()) < 0.02 * size, name


def polygons(order: str, text: bool, sizes: list[int]) -> bytes:
    """A PLY of rings of 7 points with one polygon of each size, written by plyfile."""
    rows = np.zeros(7, dtype=[(c, "f4") for c in "xyz"])
    turn = np.arange(7) * (2 * np.pi / 7)
    rows["x"], rows["y"] = np.cos(turn), np.sin(turn)
    faces = np.zeros(len(sizes), dtype=[("vertex_indices", object), ("flags", "u1")])
    for i, n in enumerate(sizes):
        faces["vertex_indices"][i] = np.arange(n, dtype="i4")
    kinds = {"vertex_indices": "i4"}
    elements = [
        plyfile.PlyElement.describe(rows, "vertex"),
        plyfile.PlyElement.describe(faces, "face", val_types=kinds),
    ]
    out = io.BytesIO()
    plyfile.PlyData(elements, text=text, byte_order=order).write(out)
    return out.getvalue()


@pytest.mark.parametrize("sizes", [[3, 3, 3], [4, 4], [5, 5], [3, 4, 7, 5], [4, 3]])
@pytest.mark.parametrize(("order", "text"), [("=", True), ("<", False), (">", False)])
def test_ply_polygons_become_fans(sizes: list[int], order: str, text: bool):
    """All of one size or not: n - 2 triangles each, which cover the polygon once."""
    found = ply.read_ply("a.ply", polygons(order, text, sizes), LOCAL)
    assert len(found.faces) == sum(n - 2 for n in sizes)
    corners = found.vertices[found.faces][..., :2]
    edges = corners[:, 1:] - corners[:, :1]
    area = np.abs(np.linalg.det(edges)).sum() / 2
    ring = found.vertices[:, :2]
    shoelace = sum(
        abs(sum(np.linalg.det(ring[[i, (i + 1) % n]]) for i in range(n))) / 2 for n in sizes
    )
    assert area == pytest.approx(shoelace, rel=1e-5)


def test_obj_indices_from_the_end_count_at_their_own_line():
    """-1 is the vertex just read, not the last one of the file; texture indices do not matter."""
    text = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3/9 -2/9 -1/9\nv 5 5 5\nv 6 6 7\nf 1//2 -1//2 4//1\n"
    found = meshes.read_obj("a.obj", text, LOCAL)
    assert found.faces.tolist() == [[0, 1, 2], [0, 4, 3]]
    assert found.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5], [6, 6, 7]]


def test_obj_colours_stay_with_their_vertices():
    """Also where no face uses the first vertex, and with a face of five corners."""
    rows = [f"v {i} {i * i} 0 {i / 10} 0 1" for i in range(7)]
    found = meshes.read_obj("a.obj", "\n".join([*rows, "f 2 3 4 5 6", "f 4 5 7"]).encode(), LOCAL)
    assert found.colors is not None and len(found.faces) == 4
    np.testing.assert_allclose(found.colors[:, 0], np.arange(7) / 10)
    np.testing.assert_allclose(found.vertices[:, 1], np.arange(7) ** 2)


def test_off_line_breaks_do_not_matter():
    text = (
        "COFF 4 2 0  0 0 0 255 0 0 255  1 0 0 0 255 0 255  0 1 0 0 0 255 255\n0 0 1 51 51 51 255 "
    )
    found = meshes.read_off("a.off", (text + "3 0 1 2 4 0 1 3 2").encode(), LOCAL)
    assert found.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert len(found.faces) == 3 and found.colors is not None
    np.testing.assert_allclose(found.colors[3], 0.2)


def test_glb_quantised_values_and_strides():
    """Normalised whole numbers in rows with gaps: positions, and colours in linear light."""
    rows = np.zeros(3, dtype=[("p", "<i2", 3), ("gap", "<i2"), ("c", "u1", 4)])
    rows["p"] = [[0, 0, 0], [32767, 0, 0], [0, -16384, 0]]
    rows["c"] = [[255, 0, 0, 255], [0, 255, 0, 255], [55, 55, 55, 255]]
    root, _ = corpus.gltf()
    root["buffers"] = [{"byteLength": rows.nbytes}]
    root["bufferViews"] = [{"buffer": 0, "byteLength": rows.nbytes, "byteStride": 12}]
    root["accessors"] = [
        {"bufferView": 0, "componentType": 5122, "count": 3, "type": "VEC3", "normalized": True},
        {"bufferView": 0, "byteOffset": 8, "componentType": 5121, "count": 3, "type": "VEC4",
         "normalized": True},
    ]  # fmt: skip
    root["extensionsRequired"] = ["KHR_mesh_quantization"]
    root["nodes"] = [{"mesh": 0, "scale": [2, 2, 2], "camera": 0}]
    for mode in (4, 0):
        root["meshes"] = [
            {"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": mode}]}
        ]
        found = gltf.read_gltf("a.glb", corpus.glb(root, rows.tobytes()), LOCAL)
        np.testing.assert_allclose(found.vertices, [[0, 0, 0], [2, 0, 0], [0, -1, 0]], atol=1e-4)
        assert found.colors is not None and len(found.faces) == (mode == 4)
        np.testing.assert_allclose(found.colors[:2], [[1, 0, 0], [0, 1, 0]])
        # 55 of 255 is 0.2157 in linear light, which is shown as 0.502 (IEC 61966-2-1)
        assert found.linear
        np.testing.assert_allclose(srgb(found.colors[2]), 0.502, atol=2e-3)


def test_glb_costs_are_counted_over_all_instances():
    """A thousand nodes that show one mesh are a thousand meshes; so is a deep tree."""
    root, body = corpus.gltf()
    many = corpus.changed(root, "nodes", [{"mesh": 0} for _ in range(1000)])
    many["scenes"] = [{"nodes": list(range(1000))}]
    data = corpus.glb(many, body)
    assert len(gltf.read_gltf("a.glb", data, LOCAL).faces) == 2000
    with pytest.raises(InputRefused, match=r"At most 3000 and .* are accepted"):
        gltf.read_gltf("a.glb", data, Limits(points=3000))
    deep = [{"mesh": 0, "children": [i + 1]} for i in range(3000)] + [{"mesh": 0}]
    with pytest.raises(InputRefused, match=r"the node tree is too deep"):
        gltf.read_gltf("a.glb", corpus.glb(corpus.changed(root, "nodes", deep), body), LOCAL)


def test_glb_asks_for_nothing_outside():
    with pytest.raises(InputRefused, match=r'^a.glb: asks for another file .*"x.bin"'):
        meshes.Closed("a.glb").get("x.bin")
    root, body = corpus.gltf()
    root["images"] = [{"uri": "tex.png"}]
    with pytest.raises(InputRefused, match=r"images 0 is another file or address"):
        gltf.read_gltf("a.glb", corpus.glb(root, body), LOCAL)
    root, body = corpus.gltf()
    root["accessors"][0]["sparse"] = {"count": 1}
    with pytest.raises(InputRefused, match=r"Export it again without sparse accessors"):
        gltf.read_gltf("a.glb", corpus.glb(root, body), LOCAL)


def test_off_without_faces_is_a_cloud():
    cloud = inputs.read(b"OFF\n2 0 0\n0 0 0\n1 2 3\n", "a.off").cloud
    assert cloud is not None and cloud.points.tolist() == [[0, 0, 0], [1, 2, 3]]
