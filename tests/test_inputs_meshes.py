"""Meshes and clouds against independent readers: trimesh, plyfile, and the manifest's bounds."""

import io
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
import trimesh

from tests import corpus
from worldstereo import inputs


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
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    square.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    cloud = inputs.read(trimesh.Scene(square).export(file_type="glb"), "square.glb").cloud
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
