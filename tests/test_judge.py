"""The capture is its own judge: what makes views left out worse is not done."""

import numpy as np
import torch

from tests.conftest import room, turned_cameras
from worldstereo.scene import View
from worldstereo.views.fusion import make_working
from worldstereo.views.intake._judge import Judge

W, H = 166, 122


def test_wrong_depth_and_wrong_gains_are_found_out_and_a_tie_is_kept():
    cameras = turned_cameras(4).scaled(W, H)
    color, depth = room(cameras)
    work = [make_working(View.of(color[i], depth[i], cameras[i])) for i in range(4)]
    none = np.zeros((4, 3))
    judge = Judge(work)
    same = judge.decide("contradict", (work, none), (work, none))
    assert same is not None and same.kept and same.gain_db == 0 and same.views == 4
    generator = np.random.default_rng(1)
    bad = [
        w.with_depth(w.disparity * generator.uniform(0.7, 1.4, (H, W)).astype(np.float32),
                     w.confidence)
        for w in work
    ]  # fmt: skip
    worse = judge.decide("by_others", (work, none), (bad, none))
    assert worse is not None and not worse.kept and worse.gain_db < -0.05
    assert worse.words.startswith("by_others: not applied, -")
    uneven = torch.tensor([[0.3], [-0.3], [0.3], [-0.3]]).expand(4, 3).numpy()
    off = judge.decide("exposure", (work, none), (work, uneven))
    assert off is not None and not off.kept


def test_two_views_cannot_judge():
    cameras = turned_cameras(2).scaled(W, H)
    color, depth = room(cameras)
    work = [make_working(View.of(color[i], depth[i], cameras[i])) for i in range(2)]
    none = np.zeros((2, 3))
    assert Judge(work).decide("exposure", (work, none), (work, none)) is None
