"""Camera paths: where they start, what they pass through; the frame of the world is no matter."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from tests.conftest import turned_cameras
from worldstereo.cameras import Cameras, look_at
from worldstereo.errors import InputRefused
from worldstereo.rotations import matrices, quaternions, turns
from worldstereo.trajectory import PRESETS, Trajectory
from worldstereo.trajectory._splines import sample

LOOPS = ("spiral", "look_around")


def rotations(seed: int, n: int) -> torch.Tensor:
    return torch.from_numpy(Rotation.random(n, rng=np.random.default_rng(seed)).as_matrix())


def random_cameras(seed: int, n: int) -> Cameras:
    """Any poses and lenses at all, float64."""
    g = torch.Generator().manual_seed(seed)
    K = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    K[:, 0, 0], K[:, 1, 1] = 20 + 40 * torch.rand(2, n, generator=g, dtype=torch.float64)
    K[:, :2, 2] = torch.tensor([18.5, 14.5]) + torch.randn(n, 2, generator=g, dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64).repeat(n, 1, 1)
    c2w[:, :3, :3] = rotations(seed, n)
    c2w[:, :3, 3] = 3 * torch.randn(n, 3, generator=g, dtype=torch.float64)
    return Cameras(K, c2w, 37, 29)


def moved(cameras: Cameras, motion: torch.Tensor) -> Cameras:
    return Cameras(cameras.K, motion @ cameras.c2w, cameras.width, cameras.height)


def motion(seed: int) -> torch.Tensor:
    rigid = torch.eye(4, dtype=torch.float64)
    rigid[:3, :3] = rotations(seed, 1)[0]
    rigid[:3, 3] = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double()
    return rigid


def orthonormal(cameras: Cameras, tolerance: float) -> bool:
    R = cameras.c2w[..., :3, :3]
    drift = (R @ R.mT - torch.eye(3, dtype=R.dtype)).abs().max()
    return bool(drift <= tolerance) and bool((torch.linalg.det(R) - 1).abs().max() <= tolerance)


# ---- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_starts_at_the_view_and_keeps_its_size(cameras, name):
    start = cameras[3]
    path = Trajectory.preset(name, start, distance=2.7, frames=11)
    assert (len(path), path.cameras.width, path.cameras.height) == (11, 37, 29)
    assert torch.equal(path[0].c2w, start.c2w)
    assert torch.equal(path[0].K, start.K)
    assert orthonormal(path.cameras, 1e-6)
    assert path.cameras.c2w.dtype == start.c2w.dtype
    far = (path.cameras.c2w - start.c2w).abs().max() + (path.cameras.K - start.K).abs().max()
    assert far > 0.01
    if name in LOOPS:
        assert torch.equal(path[-1].c2w, start.c2w)


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), amount=st.floats(-1, 2))
def test_presets_move_with_the_world(name, seed, amount):
    start, rigid = random_cameras(seed, 2)[0], motion(seed + 1)
    target = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double() + 5
    up = torch.tensor([0.1, -1.0, 0.2], dtype=torch.float64)
    here = Trajectory.preset(name, start, target=target, up=up, amount=amount, frames=7)
    there = Trajectory.preset(
        name,
        moved(start, rigid),
        target=rigid[:3, :3] @ target + rigid[:3, 3],
        up=rigid[:3, :3] @ up,
        amount=amount,
        frames=7,
    )
    torch.testing.assert_close(there.cameras.c2w, rigid @ here.cameras.c2w, atol=1e-9, rtol=0)
    torch.testing.assert_close(there.cameras.K, here.cameras.K)


def level() -> Cameras:
    """At (1, 2, 3), looking along +z with the sky along -y: directions can be read off."""
    eye, up = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, -1.0, 0.0])
    K = torch.tensor([[30.0, 0.0, 18.5], [0.0, 30.0, 14.5], [0.0, 0.0, 1.0]])
    return Cameras(K, look_at(eye, eye + torch.tensor([0.0, 0.0, 1.0]), up), 37, 29)


def test_positive_is_right_up_and_closer():
    """Each move against its closed form at the end of the path; the pivot is (1, 2, 5)."""
    ends = {
        name: Trajectory.preset(name, level(), distance=2.0, frames=5, value=value)[-1]
        for name, value in {
            "orbit": 90.0,
            "dolly": 25.0,
            "truck": 50.0,
            "crane": 50.0,
            "pan": 90.0,
            "tilt": 30.0,
            "zoom": 2.0,
        }.items()
    }
    positions = {name: end.position.tolist() for name, end in ends.items()}
    assert positions["orbit"] == pytest.approx([3, 2, 5], abs=1e-6)
    assert ends["orbit"].forward.tolist() == pytest.approx([-1, 0, 0], abs=1e-6)
    assert positions["dolly"] == pytest.approx([1, 2, 3.5], abs=1e-6)
    assert positions["truck"] == pytest.approx([2, 2, 3], abs=1e-6)
    assert positions["crane"] == pytest.approx([1, 1, 3], abs=1e-6)
    assert ends["pan"].forward.tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert ends["tilt"].forward.tolist() == pytest.approx([0, -0.5, math.sqrt(0.75)], abs=1e-6)
    assert ends["zoom"].K[0, 0] == pytest.approx(60)
    assert ends["zoom"].K[0, 2] == pytest.approx(18.5)
    assert ends["zoom"].fov[0] < level().fov[0]


@pytest.mark.parametrize("name", ["orbit", "crane", "spiral", "dolly", "zoom"])
def test_moves_about_a_pivot_keep_it_at_its_pixel(cameras, name):
    start = cameras[1]
    pivot = start.position + 2.3 * start.forward
    path = Trajectory.preset(name, start, distance=2.3, frames=9)
    pixels, depth = path.cameras.project(pivot.expand(9, 1, 3))
    before, _ = start.project(pivot[None])
    assert (depth > 0).all()
    assert (pixels[:, 0] - before[0]).abs().max() < 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_no_strength_is_no_motion_and_one_frame_is_the_view(cameras, name):
    still = Trajectory.preset(name, cameras[2], distance=1.0, amount=0.0, frames=4)
    torch.testing.assert_close(still.cameras.c2w, cameras[2].c2w.expand(4, 4, 4))
    one = Trajectory.preset(name, cameras[2], distance=1.0, frames=1)
    assert torch.equal(one[0].c2w, cameras[2].c2w)


def test_every_preset_has_a_default_inside_its_range():
    for name, preset in PRESETS.items():
        p = preset.parameter
        assert (preset.name, preset.value(1.0)) == (name, p.default)
        assert p.min < p.default < p.max
        assert preset.description.endswith(".")


# ---- keyframes -----------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(2, 6), closed=st.booleans())
def test_splines_end_on_keys_are_rigid_and_move_with_the_world(seed, n, closed):
    keys, rigid = random_cameras(seed, n), motion(seed)
    path = Trajectory.through([keys[i] for i in range(n)], 23, closed=closed)
    last = keys[0] if closed else keys[n - 1]
    assert torch.equal(path[0].c2w, keys[0].c2w)
    assert torch.equal(path[-1].c2w, last.c2w)
    assert torch.equal(path[-1].K, last.K)
    assert orthonormal(path.cameras, 1e-9)
    elsewhere = Trajectory.through([moved(keys[i], rigid) for i in range(n)], 23, closed=closed)
    torch.testing.assert_close(elsewhere.cameras.c2w, rigid @ path.cameras.c2w, atol=1e-6, rtol=0)


def test_with_arrival_times_each_key_is_hit_when_it_should(cameras):
    keys = [cameras[i] for i in range(5)]
    path = Trajectory.through(keys, 21, times=[0.0, 1.0, 3.0, 4.0, 5.0])
    for frame, key in zip((0, 4, 12, 16, 20), keys, strict=True):
        torch.testing.assert_close(path[frame].c2w, key.c2w, atol=1e-6, rtol=0)
        torch.testing.assert_close(path[frame].K, key.K, atol=1e-4, rtol=0)


def test_two_keys_are_a_straight_line_and_a_great_arc():
    keys = random_cameras(4, 2)
    path = Trajectory.through([keys[0], keys[1]], 9, times=[0, 1])
    s = np.linspace(0, 1, 9)
    expected = keys.position[0] + torch.from_numpy(s)[:, None] * (
        keys.position[1] - keys.position[0]
    )
    torch.testing.assert_close(path.cameras.position, expected)
    arc = Slerp([0, 1], Rotation.from_matrix(keys.c2w[:, :3, :3].numpy()))(s).as_matrix()
    np.testing.assert_allclose(path.cameras.c2w[:, :3, :3].numpy(), arc, atol=1e-9)
    middle = (keys.K[0, 0, 0] * keys.K[1, 0, 0]).sqrt()
    assert path[4].K[0, 0] == pytest.approx(float(middle))


def test_speed_is_even_along_uneven_keys():
    base = random_cameras(0, 1)[0].c2w
    keys = []
    for x in (0.0, 0.1, 0.2, 2.0, 5.0):
        pose = base.clone()
        pose[0, 3] = x
        keys.append(Cameras(random_cameras(0, 1)[0].K, pose, 37, 29))
    path = Trajectory.through(keys, 41)
    steps = path.cameras.position.diff(dim=0).norm(dim=-1)
    assert steps.max() / steps.min() < 1.05


def test_a_spline_has_no_corner_at_its_keys_and_none_at_the_seam_of_a_loop():
    """Velocity and turning rate just before and just after each key agree."""
    keys = random_cameras(8, 5)
    R, x = keys.c2w[:, :3, :3], keys.position
    R, x = torch.cat([R, R[:1]]), torch.cat([x, x[:1]])
    knots = torch.tensor([0.0, 1.0, 1.5, 2.7, 4.0, 5.0], dtype=torch.float64)
    e = 1e-4
    for key in range(6):
        sides = []
        for a, b in ((-2 * e, -e), (e, 2 * e)):
            at = knots[key] + torch.tensor([a, b], dtype=torch.float64)
            at = torch.where(at < 0, at + 5, torch.where(at > 5, at - 5, at))
            p, r = sample(knots, x, R, at, closed=True)
            spin = Rotation.from_matrix((r[0].T @ r[1]).numpy()).as_rotvec()
            sides.append(np.concatenate([(p[1] - p[0]).numpy(), spin]) / e)
        np.testing.assert_allclose(sides[0], sides[1], atol=2e-2)


def test_a_path_through_equal_keys_stands_still(cameras):
    path = Trajectory.through([cameras[0]] * 3, 7)
    torch.testing.assert_close(path.cameras.c2w, cameras[0].c2w.expand(7, 4, 4))


def test_quaternions_and_matrices_agree_with_scipy():
    half_turns = torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]).double())
    R = torch.cat([rotations(1, 50), half_turns])
    q = quaternions(R)
    expected = Rotation.from_matrix(R.numpy()).as_quat(scalar_first=True)
    sign = np.sign((q.numpy() * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(q.numpy(), sign * expected, atol=1e-12)
    np.testing.assert_allclose(matrices(q).numpy(), R.numpy(), atol=1e-12)
    steps = Rotation.from_matrix((R[:-1].mT @ R[1:]).numpy())
    np.testing.assert_allclose(turns(R).numpy(), steps.magnitude(), atol=1e-7)


# ---- flights and resampling ----------------------------------------------------------------------


def test_a_flight_is_even_in_time_and_drops_late_samples():
    """Two samples at one moment, one from the past, a long pause: a closed form per frame."""
    base = random_cameras(3, 1)[0]
    x, seconds = [0.0, 1.0, 9.0, 7.0, 2.0], [10.0, 11.0, 11.0, 10.5, 13.0]
    poses = base.c2w.repeat(5, 1, 1)
    poses[:, 0, 3] = torch.tensor(x, dtype=torch.float64)
    flight = Cameras(base.K.repeat(5, 1, 1), poses, 37, 29)
    path = Trajectory.recorded(flight, seconds, fps=2.0)
    assert path.cameras.position[:, 0].tolist() == pytest.approx([0, 0.5, 1, 1.25, 1.5, 1.75, 2])
    assert path.duration == pytest.approx(3.0)
    assert len(Trajectory.recorded(flight, seconds, 4)) == 4


@pytest.mark.parametrize("by", ["time", "arc"])
@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_resampling_keeps_the_ends(cameras, by, n):
    path = Trajectory(cameras, "x", 12.0, registration=2)
    again = path.resampled(n, by=by)
    assert (len(again), again.fps, again.registration, again.name) == (n, 12.0, 2, "x")
    assert torch.equal(again[0].c2w, cameras[0].c2w)
    if n > 1:
        assert torch.equal(again[-1].c2w, cameras[4].c2w)
    assert orthonormal(again.cameras, 1e-6)


def test_resampling_by_arc_evens_out_what_time_does_not():
    base = random_cameras(3, 1)[0]
    poses = base.c2w.repeat(9, 1, 1)
    poses[:, 0, 3] = torch.linspace(0, 1, 9, dtype=torch.float64) ** 2
    path = Trajectory(Cameras(base.K.repeat(9, 1, 1), poses, 37, 29))

    def spread(t: Trajectory) -> float:
        steps = t.cameras.position.diff(dim=0).norm(dim=-1)
        return float(steps.max() / steps.min())

    assert spread(path.resampled(17, by="arc")) < 1.2 < spread(path.resampled(17, by="time"))


def test_scaled_reversed_and_indexed(cameras):
    path = Trajectory(cameras, times=torch.tensor([0.0, 1.0, 2.0, 5.0, 6.0]))
    big = path.scaled(74, 58)
    torch.testing.assert_close(big.cameras.K[:, :2], path.cameras.K[:, :2] * 2)
    back = path.reversed()
    assert torch.equal(back[0].c2w, cameras[4].c2w)
    assert back.seconds.tolist() == [0, 1, 4, 5, 6]
    assert [float(c.position[0]) for c in path] == cameras.position[:, 0].tolist()


# ---- JSON ----------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 4), double=st.booleans())
def test_json_gives_the_same_bits_back(seed, n, double):
    cameras = random_cameras(seed, n)
    if not double:
        cameras = Cameras(cameras.K.float(), cameras.c2w.float(), 37, 29)
    times = torch.arange(n).double() * 0.1 + seed
    path = Trajectory(cameras, 'a "name" ü', 29.97, times if seed % 2 else None, 3)
    again = Trajectory.from_json(path.to_json())
    assert torch.equal(again.cameras.c2w, cameras.c2w)
    assert again.cameras.K.dtype == cameras.K.dtype
    assert torch.equal(again.cameras.K, cameras.K)
    assert (again.name, again.fps, again.registration) == (path.name, path.fps, 3)
    assert torch.equal(again.seconds, path.seconds)
    assert again.to_json() == path.to_json()


def changed(**fields) -> str:
    document = json.loads(Trajectory(turned_cameras(3)).to_json())
    for name, value in fields.items():
        document[name] = value
    return json.dumps(document)


def sheared() -> list:
    c2w = turned_cameras(3).c2w.clone()
    c2w[2, 0, 1] += 0.5
    return c2w.tolist()


BAD = {
    "not JSON": ("{", "not sound JSON"),
    "empty": ("", "not sound JSON"),
    "deep": ("[" * 100_000, "not sound JSON|must be"),
    "other": ('{"format": "nerfstudio"}', '"format" must be'),
    "list": ("[1]", '"format" must be'),
    "newer": (changed(version=2), "version 2 is not known here"),
    "twin": ('{"format": 1, "format": 2}', "twice"),
    "NaN": (changed(fps=math.nan), "NaN is not a number that is accepted"),
    "infinite": (changed(fps=1.0).replace('"fps": 1.0', '"fps": 1e999'), "fps must be"),
    "unknown": (changed(extra=1), '"extra" is not known'),
    "shear": (changed(c2w=sheared()), r"frame 2: R @ R.T is off the identity"),
    "short": (changed(K=[[1]]), '"K" must hold 3 matrices'),
    "ragged": (changed(c2w=[[[1]]] * 3), r"frame 0 must be 4 x 4"),
    "text": (changed(c2w=[[["1"] * 4] * 4] * 3), "numbers only"),
    "boolean": (changed(width=True), '"width" must be a whole number'),
    "size": (changed(width=-3), "width must be a positive"),
    "times": (changed(times=[0, 2, 1]), r"times must rise: times\[2\]"),
    "long name": (changed(name="x" * 999), "at most 200"),
    "many": (changed(c2w=[0] * 10_001), "1 to 10000 poses"),
    "huge number": (changed(width=10**400), "too large"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_json_is_refused_in_one_line(case):
    text, reason = BAD[case]
    with pytest.raises(InputRefused, match=reason) as refusal:
        Trajectory.from_json(text, source="path.json")
    assert str(refusal.value).startswith("path.json: ")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) <= 220


# ---- errors --------------------------------------------------------------------------------------


def test_errors_name_the_argument(cameras):
    one, preset = cameras[0], Trajectory.preset
    for match, call in {
        "name must be one of orbit, dolly": lambda: preset("fly", one, frames=3),
        "frames must be a whole number": lambda: preset("pan", one, frames=0),
        "start must be a single camera": lambda: preset("pan", cameras, frames=3),
        "distance must be": lambda: preset("pan", one, frames=3, distance=-1.0),
        "target must differ": lambda: preset("orbit", one, frames=3, target=one.position),
        "up must be a direction": lambda: preset("pan", one, frames=3, up=torch.zeros(3)),
        "value must be a factor above 0": lambda: preset("zoom", one, frames=3, value=0.0),
        "at least 2 cameras": lambda: Trajectory.through([one], 3),
        r"times must rise: times\[1\]": lambda: Trajectory.through([one, one], 3, times=[1, 1]),
        "times must hold 2": lambda: Trajectory.through([one, one], 3, times=[1]),
        "one moment for each": lambda: Trajectory.recorded(cameras, [0.0, 1.0]),
        'by must be "time" or "arc"': lambda: Trajectory(cameras).resampled(3, by="x"),
        "fps must be": lambda: Trajectory(cameras, fps=math.inf),
        "batch of at least one frame": lambda: Trajectory(one),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
