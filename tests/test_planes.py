"""Planes continued into holes: depth in closed form, and where the answer must be none."""

import numpy as np
import pytest
import torch

from tests.conftest import room
from worldstereo.cameras import Cameras, look_at
from worldstereo.memory.stereo.dense import SynthesisOptions, synthesize
from worldstereo.memory.stereo.dense._planes import continued, find_planes
from worldstereo.scene import Origin, View
from worldstereo.views.fusion._view_arrays import Pose, ViewArrays, invert

W, H = 160, 120
K = np.array([140.0, 140.0, 79.5, 59.5])
WALL, FLOOR = 3.0, 0.6
Y, X = np.mgrid[:H, :W]
RAY_X, RAY_Y = (X - K[2]) / K[0], (Y - K[3]) / K[1]
# A wall at z = 3 that turns away to the right, on a floor at y = 0.6, by ray and plane.
ROOM = np.minimum(
    WALL / (1 - 0.2 * RAY_X), np.where(RAY_Y > 0.02, FLOOR / np.maximum(RAY_Y, 1e-9), np.inf)
).astype(np.float32)


def pose(x: float = 0.0) -> Pose:
    c2w = np.eye(4)
    c2w[0, 3] = x
    return Pose(K, c2w, W, H)


def view(depth: np.ndarray, x: float = 0.0) -> ViewArrays:
    depth = depth.astype(np.float32)
    return ViewArrays(
        pose=pose(x), color=np.zeros((*depth.shape, 3), np.uint8), depth=depth,
        disparity=invert(depth), confidence=(depth > 0).astype(np.float32),
    )  # fmt: skip


def hole(rows: slice, columns: slice) -> np.ndarray:
    known = np.ones((H, W), bool)
    known[rows, columns] = False
    return known


def off(got: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.abs(got - truth) / truth


def test_planes_of_a_room_are_found_in_closed_form():
    planes = find_planes(invert(ROOM), K)
    assert len(planes.coefficients) == 2
    # d = (1 - 0.2 x) / 3 on the wall and y / 0.6 on the floor.
    truth = np.array([[-0.2 / WALL, 0, 1 / WALL], [0, 1 / FLOOR, 0]])
    np.testing.assert_allclose(planes.coefficients, truth, atol=5e-4)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_hole_across_the_corner_is_the_nearer_plane_at_any_scale(scale: float):
    known = hole(slice(60, 110), slice(40, 120))
    got = continued(ROOM * np.float32(scale), known, pose(), [])
    assert bool((got[known] == 0).all())
    inside = ~known
    assert float((got[inside] > 0).mean()) == 1
    assert float(off(got, ROOM * scale)[inside].max()) < 2e-3


def test_what_is_outside_the_picture_is_continued_only_so_far():
    known = hole(slice(None), slice(16, None))  # a strip of the wall, a fifth as wide as it is high
    wall = (WALL / (1 - 0.2 * RAY_X)).astype(np.float32)
    got = continued(wall, known, pose(), [])
    reached = got > 0
    assert bool(reached[:, 16:40].all())
    assert float(off(got, wall)[reached].max()) < 0.01
    middle = wall[60, 8] * np.array([RAY_X[60, 8], RAY_Y[60, 8], 1])
    points = wall[..., None] * np.stack([RAY_X, RAY_Y, np.ones_like(RAY_X)], -1)
    radius = np.linalg.norm(points[:, :16] - middle, axis=-1).max()
    assert not reached[np.linalg.norm(points - middle, axis=-1) > 3.1 * radius].any()
    assert not known[reached].any() and not reached.all()


def boxed() -> tuple[np.ndarray, np.ndarray]:
    """The room with a box before the wall, and a hole on the right of the box."""
    depth = ROOM.copy()
    depth[20:70, 40:80] = 1.5
    known = hole(slice(20, 70), slice(80, 104))
    return depth, known


def test_behind_a_box_only_who_looked_can_tell():
    depth, known = boxed()
    nobody = continued(depth, known, pose(), []) > 0
    # Nobody looked there: next to the box it may as well go on, next to the wall the wall does.
    assert not nobody[30:60, 80:88].any()
    assert nobody[30:60, 98:104].all()
    # Who saw the box there, or the wall itself, tells that the wall goes on.
    left = view(np.where((X > 70) & (X < 92), 1.5, ROOM))
    seen = continued(depth, known, pose(), [left])
    assert bool((seen[~known] > 0).all())
    assert float(off(seen, ROOM)[~known].max()) < 2e-3
    # One that sees farther than the wall says that it has a door there.
    door = view(np.full((H, W), 9.0))
    assert not continued(depth, known, pose(), [left, door]).any()


def test_a_wall_with_something_behind_it_beside_the_hole_does_not_continue():
    depth = ROOM.copy()
    known = hole(slice(20, 50), slice(60, 100))
    assert continued(depth, known, pose(), []).any()
    depth[15:55, 100:120] = 8.0  # what a window next to the hole shows
    got = continued(depth, known, pose(), [])
    assert bool(
        (off(got, np.full((H, W), 8.0))[got > 0] < 1e-3).all()
    )  # if at all, then what is behind it


def test_where_nothing_is_flat_there_is_no_answer():
    bumps = 1 + 0.15 * np.sin(X / 3.0) * np.sin(Y / 4.0)
    known = hole(slice(30, 90), slice(40, 120))
    assert not continued((ROOM * bumps).astype(np.float32), known, pose(), []).any()
    noise = np.random.default_rng(3).uniform(1, 5, (H, W)).astype(np.float32)
    assert not continued(noise, known, pose(), []).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (24, 32)])
def test_odd_sizes_and_extremes(shape: tuple[int, int]):
    camera = Pose(np.array([50.0, 50.0, 4.0, 4.0]), np.eye(4), shape[1], shape[0])
    flat = np.full(shape, 2.0, np.float32)
    for known in (np.zeros(shape, bool), np.ones(shape, bool)):
        assert not continued(flat, known, camera, []).any()
    some = np.ones(shape, bool)
    some[0, 0] = False
    got = continued(flat, some, camera, [])
    assert got[0, 0] == 0 or got[0, 0] == pytest.approx(2, rel=1e-3)


def test_the_same_bits_every_time_and_on_noise_within_it():
    rng = np.random.default_rng(5)
    depth = (ROOM * (1 + 0.003 * rng.standard_normal((H, W)))).astype(np.float32)
    known = hole(slice(60, 110), slice(40, 120))
    one, other = (continued(depth, known, pose(), [view(ROOM)]) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert float((one[~known] > 0).mean()) > 0.95
    assert float(np.quantile(off(one, ROOM)[one > 0], 0.95)) < 0.01


def test_a_made_view_has_the_depth_of_the_wall_in_its_holes_and_the_same_colours():
    intrinsics = torch.tensor([[140.0, 0, 80.0], [0, 140.0, 60.0], [0, 0, 1]])
    eye = look_at(torch.zeros(3), torch.tensor([-0.8, 0.1, 3.0]), torch.tensor([0.0, -1, 0]))
    camera = Cameras(intrinsics, eye, W, H)
    color, depth = room(camera)
    part = depth.clone()
    part[..., 30:100, 100:] = 0
    remembered = View.of(color, part, camera)
    plain, made = (
        synthesize(camera, [remembered], options=SynthesisOptions(planes=planes))
        for planes in (False, True)
    )
    assert torch.equal(plain.color, made.color) and torch.equal(plain.origin, made.origin)
    assert torch.equal(plain.confidence, made.confidence)
    invented = made.origin == Origin.INVENTED
    assert float(invented.float().mean()) > 0.1
    wrong, right = (((r.depth - depth).abs() / depth)[invented] for r in (plain, made))
    assert float(right.max()) < 0.01 < float(wrong.mean())
    torch.testing.assert_close(made.depth[~invented], plain.depth[~invented])
