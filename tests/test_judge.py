"""The capture is its own judge: what makes views left out worse is not done."""

import numpy as np
import pytest
import torch

from tests.conftest import room, turned_cameras
from worldstereo.scene import DepthKind, View
from worldstereo.views.fusion import make_view_arrays
from worldstereo.views.intake import _depth, _judge, cloud_from
from worldstereo.views.intake._depth import COMPLETIONS, INFINITY, Completion, Unmeasured
from worldstereo.views.intake._judge import Judge

W, H = 166, 122


def test_wrong_depth_and_wrong_gains_are_found_out_and_a_tie_is_kept():
    cameras = turned_cameras(4).scaled(W, H)
    color, depth = room(cameras)
    work = [make_view_arrays(View.of(color[i], depth[i], cameras[i])) for i in range(4)]
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
    work = [make_view_arrays(View.of(color[i], depth[i], cameras[i])) for i in range(2)]
    none = np.zeros((2, 3))
    assert Judge(work).decide("exposure", (work, none), (work, none)) is None


def test_of_several_ways_the_one_that_predicts_best_is_chosen_and_of_equal_ones_the_first():
    cameras = turned_cameras(4).scaled(W, H)
    color, depth = room(cameras)
    work = [make_view_arrays(View.of(color[i], depth[i], cameras[i])) for i in range(4)]
    generator = np.random.default_rng(2)
    bad = [
        w.with_depth(
            w.disparity * generator.uniform(0.7, 1.4, (H, W)).astype(np.float32), w.confidence
        )
        for w in work
    ]
    none = np.zeros((4, 3))
    judge = Judge(work)
    assert set(judge.used()) <= set(range(4)) and len(judge.used()) == 4
    decision, way = judge.best(
        "completion", {"noise": (bad, none), "true": (work, none), "same": (work, none)}
    )
    assert way == "true" and decision is not None and decision.gain_db > 0.05
    assert decision.words.startswith("completion: true, +")


def test_each_way_of_completion_treats_a_region_as_it_says():
    cameras = turned_cameras(1).scaled(W, H)
    color, depth = room(cameras)
    hole = torch.zeros(1, H, W, dtype=torch.bool)
    hole[:, 30:80, 40:110] = True
    view = make_view_arrays(View.of(color[0], depth[0].masked_fill(hole, 0.0), cameras[0]))
    found = Unmeasured(view, [])
    ((region, said),) = found.regions
    assert said == "untested" and bool((region == hole[0].numpy()).all())
    near, _ = found.completed(Completion())
    assert (np.abs(near[region] / (1 / depth[0][hole].numpy()) - 1) < 0.5).all()
    far, confidence = found.completed(Completion(untested="far"))
    assert (far[region] == np.float32(INFINITY)).all() and (confidence[region] > 0).all()
    found.regions = [(region, "denied")]
    unknown, confidence = found.completed(Completion())
    assert (unknown[region] == 0).all() and (confidence[region] == 0).all()
    assert (unknown[~region] == view.disparity[~region]).all()


@pytest.mark.parametrize(
    ("unmeasured", "measured", "expected"),
    [
        ((0.05, 900), (0.17, 300), "denied"),  # the few that look alike are outweighed
        ((0.05, 900), (0.05, 300), "near"),
        ((0.09, 900), (0.05, 9000), "near"),
        ((0.05, 300), (0.05, 300), "near"),
        ((0.0, 0), (0.17, 300), "untested"),
    ],
)
def test_every_place_that_shows_a_region_has_its_say(unmeasured, measured, expected, monkeypatch):
    """Colour errors and counts at the fill, by what the other views know; infinity is not shown."""
    cameras = turned_cameras(1).scaled(W, H)
    color, depth = room(cameras)
    view = make_view_arrays(View.of(color[0], depth[0], cameras[0]))
    region, far, near = view.depth > 0, 0 * view.depth, view.disparity
    told = {id(far): ((0.0, 0), (0.0, 0)), id(near): (unmeasured, measured)}
    monkeypatch.setattr(_depth, "photometric_errors", lambda v, o, r, d: told[id(d)])
    assert _depth._judged(view, [], region, far, near) == expected


def test_what_lies_at_infinity_is_no_point_of_the_cloud():
    cameras = turned_cameras(1).scaled(W, H)
    color, depth = room(cameras)
    far = depth[0].clone()
    far[:, :20] = 1000.0
    kind = torch.full((1, H, W), int(DepthKind.MEASURED), dtype=torch.uint8)
    measured = View.of(color[0], far, cameras[0], kind=kind)
    completed = kind.masked_fill(far == 1000.0, int(DepthKind.INPAINTED))
    guessed = View.of(color[0], far, cameras[0], kind=completed)
    count = len(cloud_from(measured).points)
    assert len(cloud_from(guessed).points) == count - 10 * (W // 2)


def test_what_a_judge_remembers_is_what_a_fresh_one_finds(monkeypatch):
    """Scores are reckoned once for the same views and gains, and anew for any other."""
    cameras = turned_cameras(5).scaled(W, H)
    color, depth = room(cameras)
    work = [make_view_arrays(View.of(color[i], depth[i], cameras[i])) for i in range(5)]
    generator = np.random.default_rng(4)
    noise = generator.uniform(0.9, 1.1, (H, W)).astype(np.float32)
    worse = [work[0].with_depth(work[0].disparity * noise, work[0].confidence), *work[1:]]
    moved = [*work[:4], work[4].moved(work[3].pose)]
    none, some = np.zeros((5, 3)), generator.normal(size=(5, 3)) * 0.1
    asked = [(work, none), (worse, none), (work, none), (work, some), (moved, none), (work, some)]
    count = 0

    def counted(*given):
        nonlocal count
        count += 1
        return whole(*given)

    whole = _judge._predicted
    expected = [Judge(work)._scores(views, gains, None) for views, gains in asked]
    judge = Judge(work)
    monkeypatch.setattr(_judge, "_predicted", counted)
    monkeypatch.setattr(_judge, "parallel_for", lambda n, task: [task(k) for k in range(n)])
    for (views, gains), scores in zip(asked, expected, strict=True):
        np.testing.assert_array_equal(judge._scores(views, gains, None), scores)
    assert count == 20  # four different states of five views, and two that were known
    mask = np.ones((H // 4, W // 4), bool), np.zeros((H // 4, W // 4, 3), np.float32)
    pasted = judge._scores(work, none, mask)
    assert (pasted != expected[0]).all()  # a layer is no part of what is remembered
    np.testing.assert_array_equal(judge._scores(work, none, None), expected[0])


def test_ways_said_to_differ_in_nothing_complete_alike():
    cameras = turned_cameras(1).scaled(W, H)
    color, depth = room(cameras)
    holes = torch.zeros(1, H, W, dtype=torch.bool)
    holes[:, 30:80, 40:110] = holes[:, 90:, :60] = True
    view = make_view_arrays(View.of(color[0], depth[0].masked_fill(holes, 0.0), cameras[0]))
    for said in (("denied", "untested"), ("untested", "untested"), ("denied", "near")):
        found = Unmeasured(view, [])
        assert len(found.regions) == 2
        found.regions = [
            (region, new) for (region, _), new in zip(found.regions, said, strict=True)
        ]
        results: dict = {}
        for way in COMPLETIONS:
            d, confidence = found.completed(way)
            first = results.setdefault(found.matters(way), (d, confidence))
            np.testing.assert_array_equal(d, first[0])
            np.testing.assert_array_equal(confidence, first[1])
        assert said == ("denied", "untested") or len(results) < len(COMPLETIONS)


def test_a_view_is_made_smaller_once_whatever_its_pose():
    cameras = turned_cameras(2).scaled(W, H)
    color, depth = room(cameras)
    a, b = (make_view_arrays(View.of(color[i], depth[i], cameras[i])) for i in range(2))
    small = a.reduced(2)
    again, moved = a.reduced(2), a.moved(b.pose).reduced(2)
    assert again.depth is small.depth and moved.depth is small.depth
    np.testing.assert_array_equal(moved.pose.c2w, b.pose.c2w)
    np.testing.assert_array_equal(small.pose.c2w, a.pose.c2w)
    other = a.with_depth(a.disparity * np.float32(2), a.confidence).reduced(2)
    assert not np.array_equal(other.depth, small.depth)
