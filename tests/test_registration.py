"""Registration against a synthetic drift whose truth is known, and cameras that follow it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import room
from worldstereo.cameras import Cameras, look_at
from worldstereo.scene import View
from worldstereo.views import registration as module
from worldstereo.views.fusion import make_view_arrays
from worldstereo.views.intake import PreprocessedViews
from worldstereo.views.intake._judge import Decision
from worldstereo.views.registration import _solve, doubts, register, registered
from worldstereo.views.registration._field import CorrectionField, exp6, log6
from worldstereo.views.registration._judge import SURE, certainty
from worldstereo.views.registration._matches import FlowMatch, project
from worldstereo.views.registration._solve import HUBER, normal_equations, second

W, H = 241, 179


def true_cameras(n: int) -> Cameras:
    K = torch.tensor([[190.0, 0.0, 121.3], [0.0, 188.0, 88.7], [0.0, 0.0, 1.0]]).double()
    target, up = torch.tensor([-0.4, 0.1, 4.0]).double(), torch.tensor([0.0, -1.0, 0.0]).double()
    eyes = [torch.tensor([0.22 * i - 0.4, 0.06 * i, 0.05 * i]).double() for i in range(n)]
    poses = torch.stack([look_at(eye, target, up) for eye in eyes])
    return Cameras(K.expand(n, 3, 3).clone(), poses, W, H)


def painted(cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """The room of conftest with finer texture: something for optical flow to hold on to."""
    color, depth = room(cameras)
    points = [
        cameras[i].unproject(cameras[i].pixel_grid(), depth[i, 0].reshape(-1))
        for i in range(len(cameras))
    ]
    generator = torch.Generator().manual_seed(5)
    waves = torch.randn(16, 3, generator=generator).double() * 9  # no common period
    fine = torch.stack([torch.sin(p @ waves.T).sum(-1).reshape(1, H, W) for p in points])
    return (0.6 * color + 0.2 + 0.06 * fine).clamp(0, 1), depth


def twisted(cameras: Cameras, twists: torch.Tensor) -> Cameras:
    moves = torch.from_numpy(np.stack([exp6(t) for t in twists.numpy()]))
    return Cameras(cameras.K, cameras.c2w @ moves, cameras.width, cameras.height)


@pytest.fixture(scope="module")
def drifting() -> tuple[list[View], Cameras]:
    """Five views whose given poses drift by up to a degree and 3 cm, and their true cameras."""
    truth = true_cameras(5)
    color, depth = painted(truth)
    twists = torch.zeros(5, 6).double()
    for i in range(5):
        twists[i] = i / 4 * torch.tensor([0.010, -0.016, 0.006, 0.02, -0.01, 0.015]).double()
    given = twisted(truth, twists)
    views = [View.of(color[i].float(), depth[i].float(), given[i], frame=i) for i in range(5)]
    return views, truth


def motion(a: Cameras, b: Cameras) -> float:
    """Mean image motion between two single cameras at depth 4, pixels."""
    pixels = a.scaled(8, 6).pixel_grid() * torch.tensor([W / 8, H / 6])
    points = a.unproject(pixels.double(), torch.full((48,), 4.0).double())
    return float((b.project(points)[0] - pixels).norm(dim=1).mean())


def test_the_drift_is_found_and_the_first_view_stays(drifting):
    views, truth = drifting
    found = register(views)
    assert found.agrees == (True,) * 5
    assert torch.equal(found.corrected.c2w[0], views[0].given.c2w)
    for i in range(1, 5):
        before, after = motion(truth[i], views[i].given), motion(truth[i], found.corrected[i])
        assert after < 0.4 + 0.15 * before
    assert float(found.moved_px[4]) > 2
    moved = registered(views, found)
    assert torch.equal(moved[3].given.c2w, views[3].given.c2w)
    assert torch.equal(moved[3].cameras.c2w, found.corrected.c2w[3])


def test_cameras_of_the_captures_frame_inherit_the_drift(drifting):
    """A camera between two drifted views is closer to its true place after the correction."""
    views, truth = drifting
    found = register(views)
    middle_truth = exp6(0.5 * log6(np.linalg.inv(truth.c2w[3].numpy()) @ truth.c2w[4].numpy()))
    true_pose = truth.c2w[3] @ torch.from_numpy(middle_truth)
    twist = 3.5 / 4 * np.array([0.010, -0.016, 0.006, 0.02, -0.01, 0.015])
    given = Cameras(truth.K[3], true_pose @ torch.from_numpy(exp6(twist)), W, H)
    wanted = Cameras(truth.K[3], true_pose, W, H)
    assert motion(wanted, found.correct(given)) < 0.5 * motion(wanted, given)
    batch = Cameras.stack([given, given])
    torch.testing.assert_close(found.correct(batch).c2w[1], found.correct(given).c2w)


def test_cameras_of_the_current_world_stay(drifting):
    views, _ = drifting
    found = register(views)
    camera = views[2].given
    assert found.correct(camera, revision=found.revision) is camera
    with pytest.raises(ValueError, match="revision must be between 0 and 1, got 2"):
        found.correct(camera, revision=2)


def test_good_poses_are_left_alone():
    truth = true_cameras(4)
    color, depth = painted(truth)
    views = [View.of(color[i].float(), depth[i].float(), truth[i]) for i in range(4)]
    found = register(views)
    assert float(found.moved_px.max()) < 0.3


def test_a_view_off_by_ten_degrees_keeps_its_pose_and_is_named(drifting):
    views, _ = drifting
    lost = views[2].given
    turn = torch.from_numpy(exp6(np.array([0.0, 0.1745, 0.05, 0.3, 0, 0])))
    wrong = Cameras(lost.K, lost.c2w @ turn, W, H)
    views = [*views[:2], replace(views[2], cameras=wrong, given=wrong), *views[3:]]
    found = register(views)
    assert found.agrees == (True, True, False, True, True)
    torch.testing.assert_close(found.corrected.c2w[2], wrong.c2w)
    assert "View 3 agrees with no other" in " ".join(found.notices)


def test_inverted_poses_and_millimetres_are_noticed():
    truth = true_cameras(5)
    color, depth = painted(truth)

    def works(cameras: Cameras, scale: float = 1.0):
        u = 4.0 * scale
        some = [View.of(color[i].float(), depth[i].float() * scale, cameras[i]) for i in range(5)]
        return [make_view_arrays(view, u) for view in some]

    far = torch.eye(4).double()
    far[:3, 3] = torch.tensor([3.0, 1.0, -2.0])
    moved = Cameras(truth.K, far @ truth.c2w, W, H)
    assert doubts(works(moved)) == []
    inverted = Cameras(truth.K, moved.w2c, W, H)
    assert any("inverted" in line for line in doubts(works(inverted)))
    assert any("millimetres read as metres" in line for line in doubts(works(moved, 1000.0)))


def test_normal_equations_are_those_of_the_projection():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(40, 3)) + [0, 0, 4]
    points[0, 2] = -3.0  # behind the camera
    T = exp6(np.array([0.1, -0.2, 0.05, 0.3, 0.1, -0.2]))
    K = np.array([190.0, 188.0, 121.0, 88.0])

    def at(motion: np.ndarray) -> np.ndarray:
        u, v, _ = project(points, motion[:3], K)
        return np.stack([u, v], 1)

    off = rng.normal(size=(40, 2)) * 0.3
    off[1], off[2] = [3.0, -4.0], [40.0, 0.0]  # a residual that counts less, and one that does not
    pixels = at(T) - off
    which = np.arange(40) % 5 != 4
    weight = np.minimum(1, HUBER / np.linalg.norm(off, axis=1)) * which
    weight[[0, 2]] = 0
    steps = 1e-5 * np.eye(6)
    first = np.stack([at(T @ exp6(e)) - at(T @ exp6(-e)) for e in steps], 2) / 2e-5
    later = np.stack([at(exp6(-e) @ T) - at(exp6(e) @ T) for e in steps], 2) / 2e-5
    m = FlowMatch(0, 1, points, pixels, which, which, which, which, 1.0, 0.0)
    A, b = normal_equations(m, T, K, which)
    M = second(T)
    for J, left, right in ((first, A, b), (later, M.T @ A @ M, M.T @ b)):
        H = np.einsum("n,nai,naj->ij", weight, J, J)
        np.testing.assert_allclose(left, H, rtol=1e-4, atol=1e-5 * np.abs(H).max())
        g = np.einsum("n,nai,na->i", weight, J, off)
        np.testing.assert_allclose(right, g, rtol=1e-3, atol=1e-5 * np.abs(g).max())


def test_the_field_meets_its_samples_and_fades_to_their_mean():
    before = true_cameras(5).c2w.numpy()
    after = before @ np.stack([exp6(np.full(6, 0.002 * i)) for i in range(5)])
    field = CorrectionField(before, after, 190.0, 1.0)
    for i in range(5):
        np.testing.assert_allclose(field(before[i]), after[i], atol=2e-3)
    away = before[0].copy()
    away[:3, 3] += 100
    moved = log6(np.linalg.inv(away) @ field(away))
    assert np.linalg.norm(moved[:3]) == pytest.approx(0.004 * 3**0.5, rel=0.5)


def test_one_view_registers_as_it_is(drifting):
    views, _ = drifting
    found = module.register(views[:1])
    assert found.agrees == (True,) and found.notices == ()
    assert torch.equal(found.corrected.c2w, views[0].given.c2w[None])


def noisy(cameras: Cameras, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`painted` by a sensor: noise of 2 % in the picture and of .5 % in depth, by pixel."""
    color, depth = painted(cameras)
    generator = torch.Generator().manual_seed(seed)
    color = color + 0.02 * torch.randn(color.shape, generator=generator).double()
    depth = depth * (1 + 0.005 * torch.randn(depth.shape, generator=generator).double())
    return color.clamp(0, 1), depth


def views_of(color: torch.Tensor, depth: torch.Tensor, cameras: Cameras) -> list[View]:
    n = len(cameras)
    return [View.of(color[i].float(), depth[i].float(), cameras[i], frame=i) for i in range(n)]


@pytest.mark.parametrize("seed", [1, 2])
def test_exact_poses_are_kept_to_the_last_bit(seed: int):
    """Matches of noisy pictures fit any pose a little better that was solved from them."""
    truth = true_cameras(5)
    found = register(views_of(*noisy(truth, seed), truth))
    assert torch.equal(found.corrected.c2w, truth.c2w)
    assert not found.moved_px.any() and found.agrees == (True,) * 5
    assert "given poses kept" in found.check
    camera = Cameras(truth.K[0], truth.c2w[2] @ torch.from_numpy(exp6(np.full(6, 0.1))), W, H)
    assert torch.equal(found.correct(camera).c2w, camera.c2w)


def test_perturbed_poses_of_noisy_pictures_are_mended():
    truth = true_cameras(5)
    rng = np.random.default_rng(4)
    twists = torch.from_numpy(rng.normal(size=(5, 6)) * [0.008, 0.008, 0.008, 0.02, 0.02, 0.02])
    twists[0] = 0
    given = twisted(truth, twists)
    found = register(views_of(*noisy(truth, 3), given))
    for i in range(1, 5):
        before, after = motion(truth[i], given[i]), motion(truth[i], found.corrected[i])
        assert after < 0.4 + 0.15 * before
    assert "4 of 5 poses moved" in found.check


@pytest.mark.parametrize("wrong", [(3, 4, 5), (0, 1, 2), (0, 2, 4)])
def test_the_right_half_of_a_capture_is_not_dragged_along(wrong: tuple[int, ...]):
    """Also where the first view, which the world hangs on otherwise, is a wrong one."""
    truth = true_cameras(6)
    rng = np.random.default_rng(7)
    twists = torch.zeros(6, 6).double()
    for i in wrong:
        twists[i] = torch.from_numpy(rng.normal(size=6) * [0.01, 0.01, 0.01, 0.03, 0.03, 0.03])
    given = twisted(truth, twists)
    found = register(views_of(*noisy(truth, 8), given))
    for i in range(6):
        before, after = motion(truth[i], given[i]), motion(truth[i], found.corrected[i])
        assert after < (0.4 + 0.15 * before if i in wrong else 0.4), i


def test_what_the_solution_was_fitted_to_cannot_judge_it(monkeypatch):
    """An error that all matches but the judging ones share moves nothing."""
    truth = true_cameras(4)
    views = views_of(*noisy(truth, 5), truth)
    whole = _solve.match

    def deceived(placed, i: int, j: int):
        found = whole(placed, i, j)
        if found is None:
            return None
        off = np.where(found.judge[:, None], 0.0, [1.5 * (j - i), 0.0])
        return replace(found, pixels=found.pixels + off)

    monkeypatch.setattr(_solve, "match", deceived)
    found = register(views)
    assert torch.equal(found.corrected.c2w, truth.c2w)


def test_random_signs_are_rarely_taken_for_an_improvement():
    """However the differences are spread: normal, heavy-tailed, or one far above all others."""
    rng = np.random.default_rng(2)
    for spread in (rng.normal(size=40), rng.standard_cauchy(40), np.r_[99.0, np.ones(20)]):
        signs = rng.choice([-1, 1], (4000, len(spread)))
        assert np.mean([certainty(s * np.abs(spread)) > SURE for s in signs]) < 0.011
    assert certainty(np.full(8, 0.3)) < SURE < certainty(np.full(10, 0.3))


def test_what_was_decided_is_told_before_what_follows_from_it(drifting):
    """The lines that a world shows about its checks: registration first, then the stages."""
    found = register(drifting[0])
    assert found.check.startswith("registration: 4 of 5 poses moved, held-out matches ")
    stage = Decision("exposure", True, 0.1, 5)
    assert PreprocessedViews((), found, None, 1.0, decisions=(stage,)).checks == (
        found.check,
        stage.words,
    )
    assert PreprocessedViews((), None, None, 1.0, decisions=(stage,)).checks == (stage.words,)
