"""Colours far inside large holes: against brute-force distances and a closed form."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo.cameras import Cameras
from worldstereo.memory.stereo.dense import SynthesisOptions, synthesize
from worldstereo.memory.stereo.dense._far import BEGINS, ENDS, SHARE, drawn_to_mean
from worldstereo.scene import View


def brute(film: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The same from all pairs of pixels."""
    H, W = known.shape
    at = np.argwhere(known)
    mean = film[known].astype(np.float64).mean(0)
    out = film.astype(np.float64).copy()
    for y, x in np.argwhere(~known):
        away = np.hypot(at[:, 0] - y, at[:, 1] - x).min() / np.hypot(H, W)
        part = min(max((away - BEGINS) / (ENDS - BEGINS), 0), 1)
        share = SHARE * (3 * part**2 - 2 * part**3)
        out[y, x] = (1 - share) * out[y, x] + share * mean
    return out


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.99))
def test_as_from_all_pairs_of_pixels(seed: int, share: float):
    rng = np.random.default_rng(seed)
    film = rng.random((24, 31, 3), dtype=np.float32)
    known = rng.random((24, 31)) > share
    known[int(rng.integers(24)), int(rng.integers(31))] = True
    known[:, : int(rng.integers(28))] &= bool(rng.integers(2))
    known[0, 0] = True
    # The library's distance is exact to 2 %.
    np.testing.assert_allclose(drawn_to_mean(film, known), brute(film, known), atol=0.02)
    assert (drawn_to_mean(film, known)[known] == film[known]).all()


def test_small_holes_are_left_alone():
    rng = np.random.default_rng(0)
    film = rng.random((48, 64, 3), dtype=np.float32)
    known = np.ones((48, 64), bool)
    known[20:26, 30:37] = False
    assert drawn_to_mean(film, known) is film


def test_a_picture_half_of_which_nobody_saw():
    """A wall, white next to the hole and black elsewhere: at the far side the mean counts half."""
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    color = torch.zeros(3, 48, 64)
    color[:, :, 24:] = 1.0
    depth = torch.full((1, 48, 64), 2.0)
    depth[:, :, 32:] = 0
    camera = Cameras(K, torch.eye(4), 64, 48)
    views = [View.of(color, depth, camera)]
    drawn, film = (
        synthesize(camera, views, options=SynthesisOptions(mean=mean)) for mean in (True, False)
    )
    known = drawn.known[0]
    assert bool(known[:, :30].all()) and not bool(known[:, 34:].any())
    assert torch.equal(drawn.color[:, known], film.color[:, known])
    mean = film.color[:, known].mean()
    assert 0.2 < float(mean) < 0.35 and float(film.color[:, 24, 56:].min()) > 0.5
    half = SHARE * mean + (1 - SHARE) * film.color[:, :, 56:]
    torch.testing.assert_close(drawn.color[:, :, 56:], half, atol=1e-4, rtol=0)
    assert torch.equal(drawn.depth, film.depth) and torch.equal(drawn.origin, film.origin)
