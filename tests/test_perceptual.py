"""Measures of the bench: known values, plain loops, and the order they must keep."""

import numpy as np
import pytest

from bench.perceptual import gradient_similarity, ms_ssim, pull_push


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(3)
    coarse = rng.random((12, 16, 3)).astype(np.float32)
    return np.kron(coarse, np.ones((16, 16, 1), np.float32))


def test_equal_pictures_score_one_and_more_noise_scores_less(picture):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=picture.shape).astype(np.float32)
    for measure in (ms_ssim, gradient_similarity):
        values = [measure(picture, np.clip(picture + s * noise, 0, 1)) for s in (0, 0.02, 0.1)]
        assert values[0] == pytest.approx(1, abs=1e-6)
        assert values[0] > values[1] > values[2]


def test_ms_ssim_of_flat_pictures_is_the_luminance_term_of_the_last_scale():
    """No structure anywhere: contrast terms are 1, luminance counts once with its weight."""
    a, b = (np.full((192, 192, 3), v, np.float32) for v in (0.4, 0.5))
    luminance = (2 * 0.4 * 0.5 + 1e-4) / (0.4**2 + 0.5**2 + 1e-4)
    assert ms_ssim(a, b) == pytest.approx(luminance**0.1333, abs=1e-4)


def test_ms_ssim_names_pictures_that_are_too_small():
    with pytest.raises(ValueError, match="176 pixels a side, got 64 x 48"):
        ms_ssim(np.zeros((48, 64, 3), np.float32), np.zeros((48, 64, 3), np.float32))


def test_gradient_similarity_of_a_ramp_and_a_flat_picture():
    """Gradients 2 s and 0 inside: (c) / (4 s^2 + c) with s the step of the halved ramp."""
    ramp = np.repeat(np.linspace(0, 1, 200, dtype=np.float32)[None, :, None], 100, 0)
    ramp = np.repeat(ramp, 3, 2)
    step, c = 2 / 199, 170 / 255**2
    wanted = c / ((2 * step) ** 2 + c)
    assert gradient_similarity(ramp, np.zeros_like(ramp)) == pytest.approx(wanted, abs=0.02)


def test_pull_push_keeps_what_was_seen_and_fills_the_rest_from_it():
    rng = np.random.default_rng(1)
    color = rng.random((37, 53, 3)).astype(np.float32)
    seen = rng.random((37, 53)) < 0.3
    filled = pull_push(color, seen)
    np.testing.assert_allclose(filled[seen], color[seen], atol=1e-6)
    assert filled.min() >= color[seen].min() - 1e-5
    assert filled.max() <= color[seen].max() + 1e-5
    flat = pull_push(np.full((37, 53, 3), 0.25, np.float32), seen)
    np.testing.assert_allclose(flat, 0.25, atol=1e-5)


def test_pull_push_of_two_halves_blends_between_them():
    color = np.zeros((32, 64, 3), np.float32)
    color[:, 48:] = 1
    seen = np.zeros((32, 64), bool)
    seen[:, :16] = seen[:, 48:] = True
    row = pull_push(color, seen)[16, :, 0]
    assert row[20] < 0.4 < 0.6 < row[44]
    assert (np.diff(row) > -0.1).all()
