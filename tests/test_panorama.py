"""Panoramas: told from photos, cut into views that agree with the sphere, laid out, placed."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import textured_room as room
from worldstereo import inputs
from worldstereo.errors import InputRefused
from worldstereo.inputs import panorama, sfm
from worldstereo.inputs.limits import LOCAL

LEVEL = room.looking(np.array([0.3, -0.4, 1.4]), np.array([0.6, 2.0, 1.4]))


def jpeg(pixels: np.ndarray, tags: str = "") -> bytes:
    data = io.BytesIO()
    packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r GPano:{tags}/></x:xmpmeta>' if tags else ""
    Image.fromarray(pixels).save(data, "JPEG", quality=95, xmp=packet.encode())
    return data.getvalue()


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return room.panorama(LEVEL, 768)


def test_a_panorama_is_told_from_a_photo(whole: np.ndarray):
    """By its tags, or by what goes round; a wide photo of the same shape is none."""
    plain = jpeg(whole)
    assert panorama.sphere_of(plain, whole) == panorama.Sphere(768, 384, 0, 0)
    photo = room.photo(LEVEL, 768, 384, 500.0)
    assert panorama.sphere_of(jpeg(photo), photo) is None
    assert panorama.sphere_of(jpeg(photo, 'ProjectionType="equirectangular"'), photo) is not None
    square = whole[:, :384]
    assert panorama.sphere_of(jpeg(square), square) is None
    with pytest.raises(InputRefused, match="a panorama of kind cylindrical"):
        panorama.read_picture("a.jpg", jpeg(whole, 'ProjectionType="cylindrical"'), LOCAL)


def test_views_show_what_a_camera_there_sees(whole: np.ndarray):
    """All fourteen, against photos traced from the same spot; upright, at one place."""
    capture = panorama.read_picture("a.jpg", jpeg(whole), LOCAL)
    assert capture.kind == "panorama" and len(capture.views) == 14 and capture.rough_depth
    side = round(768 / math.pi)
    for view in capture.views:
        assert (view.width, view.height) == (side, side)
        c2w = LEVEL.copy()
        c2w[:3, :3] = LEVEL[:3, :3] @ view.cameras.c2w[:3, :3].double().numpy()
        truth = room.photo(c2w, side, side, side / 2).astype(float)
        found = view.color_u8.permute(1, 2, 0).numpy().astype(float)
        assert np.abs(found - truth).mean() < 14, view.name
        assert float(view.cameras.c2w[:3, 3].norm()) == 0
    assert capture.up is not None and capture.up.tolist() == [0, -1, 0]


def test_the_layout_is_one_on_the_sphere(whole: np.ndarray):
    """Views agree where they overlap, and the floor lies flat under the camera."""
    capture = panorama.read_picture("a.jpg", jpeg(whole), LOCAL)
    down = next(view for view in capture.views if view.name == "down")
    assert float((down.depth / 1.5 - 1).abs().median()) < 0.05
    first, second = capture.views[0], capture.views[4]
    pixels = first.cameras.pixel_grid()
    points = first.cameras.unproject(pixels, first.depth.flatten())
    seen, z = second.cameras.project(points)
    inside = (z > 0) & (seen > 1).all(-1) & (seen < first.width - 1).all(-1)
    at = seen[inside].long()
    other = second.depth[0, at[:, 1], at[:, 0]]
    assert int(inside.sum()) > 50
    assert float((z[inside] / other - 1).abs().median()) < 0.02


def test_a_partial_panorama_gives_level_views_inside_it(whole: np.ndarray):
    """A sweep of 200 x 70 degrees: no view shows what the picture does not."""
    left, right, top, bottom = 150, 150 + 427, 120, 120 + 149
    part = np.ascontiguousarray(whole[top:bottom, left:right])
    tags = (
        'ProjectionType="equirectangular" GPano:FullPanoWidthPixels="768" '
        'GPano:FullPanoHeightPixels="384" GPano:CroppedAreaLeftPixels="150" '
        'GPano:CroppedAreaTopPixels="120"'
    )
    capture = panorama.read_picture("sweep.jpg", jpeg(part, tags), LOCAL)
    assert 3 <= len(capture.views) <= 6 and "200 x 70 degrees" in " ".join(capture.notices)
    for view in capture.views:
        c2w = LEVEL.copy()
        c2w[:3, :3] = LEVEL[:3, :3] @ view.cameras.c2w[:3, :3].double().numpy()
        K = view.cameras.K.double().numpy()
        v, u = np.mgrid[0 : view.height, 0 : view.width] + 0.5
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
        truth, _ = room.seen(c2w[:3, 3], rays @ c2w[:3, :3].T)
        found = view.color_u8.permute(1, 2, 0).numpy().astype(float)
        assert np.abs(found - truth).mean() < 20, view.name


def test_two_panoramas_are_placed_and_cut(tmp_path: Path):
    """Whole spheres are solved as they are; the views of both are in one world."""
    pytest.importorskip("pycolmap")
    spots = [LEVEL.copy(), LEVEL.copy()]
    spots[1][:3, 3] += [0.8, 0.3, 0.0]
    for i, c2w in enumerate(spots):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(room.panorama(c2w, 1024)))
    capture = inputs.read(tmp_path)
    assert len(capture.views) == 28
    a, b = (capture.views[i].cameras.c2w.double().numpy() for i in (0, 14))
    turn = a[:3, :3].T @ b[:3, :3]
    assert np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))) < 0.5
    way = LEVEL[:3, :3].T @ (spots[1] - spots[0])[:3, 3]
    found = a[:3, :3].T @ (b - a)[:3, 3]
    cosine = way @ found / np.linalg.norm(way) / np.linalg.norm(found)
    assert np.degrees(np.arccos(cosine)) < 2


def test_spheres_that_turn_on_the_spot_are_named(tmp_path: Path):
    pytest.importorskip("pycolmap")
    (tmp_path / "work").mkdir()
    pictures = []
    for i, angle in enumerate((0.0, 0.5)):
        at = LEVEL[:3, 3] + [math.sin(angle), math.cos(angle), 0]
        pixels = room.panorama(room.looking(LEVEL[:3, 3], at), 768)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg", quality=95)
        pictures.append(sfm.Picture(f"{i}.jpg", 768, 384, None, 0))
    with pytest.raises(sfm.NotPlaced, match="turned but did not move"):
        sfm.solve(pictures, tmp_path, tmp_path / "work", kind="panoramas")
