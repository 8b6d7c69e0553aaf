"""Where a hole may be continued from: rims that mix two surfaces are told from pure ones."""

import cv2
import numpy as np
import torch

from worldstereo.cameras import Cameras
from worldstereo.memory.stereo.dense import SynthesisOptions, synthesize
from worldstereo.memory.stereo.dense._reliable import reliable_pixels
from worldstereo.scene import Origin, View
from worldstereo.views.fusion._view_arrays import Pose, ViewArrays, invert

W, H = 96, 64
K = np.array([80.0, 80.0, 47.5, 31.5])
POSE = Pose(K, np.eye(4), W, H)
WALL = np.full((H, W), 3.0, np.float32)
BOX = np.where(np.arange(W) < 40, np.float32(1.5), WALL)  # something near on the left


def view(depth: np.ndarray) -> ViewArrays:
    return ViewArrays(
        pose=POSE, color=np.zeros((H, W, 3), np.uint8), depth=depth, disparity=invert(depth),
        confidence=np.ones((H, W), np.float32),
    )  # fmt: skip


def opened(*columns: slice) -> np.ndarray:
    known = np.ones((H, W), bool)
    for part in columns:
        known[:, part] = False
    return known


def eroded(known: np.ndarray) -> np.ndarray:
    return cv2.erode(known.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def test_a_rim_is_firm_where_some_view_shows_it_away_from_depth_edges():
    known = opened(slice(30, 40), slice(80, None))
    reliable = reliable_pixels(BOX, known, POSE, [view(BOX)], 0.03)
    # The hole on the right begins on the plain wall, the one in the middle at the edge of the box.
    expected = eroded(known)
    expected[:, 79] = True
    expected[:, 29] = True  # ten pixels away from where the box ends
    np.testing.assert_array_equal(reliable, expected)
    # A view that looks past the box shows that part of the wall plainly.
    expected[:, 40] = True
    reliable = reliable_pixels(BOX, known, POSE, [view(BOX), view(WALL)], 0.03)
    np.testing.assert_array_equal(reliable, expected)


def test_views_that_show_another_surface_there_do_not_count():
    known = opened(slice(80, None))
    for views in ([], [view(WALL * np.float32(0.9))], [view(WALL * np.float32(1.1))]):
        reliable = reliable_pixels(WALL, known, POSE, views, 0.03)
        np.testing.assert_array_equal(reliable, eroded(known))


def test_specks_and_threads_are_never_continued():
    known = opened(slice(40, None))
    known[20, 60] = known[40:42, 70:72] = known[5, 40:] = True
    reliable = reliable_pixels(WALL, known, POSE, [view(WALL)], 0.03)
    expected = opened(slice(40, None))
    np.testing.assert_array_equal(reliable, expected)


def test_something_is_left_wherever_anything_is_known():
    known = np.zeros((H, W), bool)
    known[10, 10] = True
    np.testing.assert_array_equal(reliable_pixels(WALL, known, POSE, [], 0.03), known)
    everything = np.ones((H, W), bool)
    np.testing.assert_array_equal(reliable_pixels(WALL, everything, POSE, [], 0.03), everything)


def test_the_fill_begins_with_the_colour_of_the_rim():
    """A wall whose red is a ramp in x, and a target that sees further right than the view did."""
    intrinsics = torch.tensor([[80.0, 0, 48.0], [0, 80.0, 32.0], [0, 0, 1]])
    camera = Cameras(intrinsics, torch.eye(4), W, H)
    ramp = (torch.arange(W) * 0.008 + 0.1).expand(3, H, W).contiguous()
    remembered = View.of(ramp, torch.full((1, H, W), 3.0), camera)
    turned = intrinsics.clone()
    turned[0, 2] -= 24
    target = Cameras(turned, torch.eye(4), W, H)
    truth = (torch.arange(W) + 24) * 0.008 + 0.1
    off = []
    for rims in (False, True):
        made = synthesize(target, [remembered], options=SynthesisOptions(rims=rims))
        invented = made.origin[0] == Origin.INVENTED
        first = int(invented[H // 2].int().argmax())
        assert first in (W - 25, W - 24)
        off.append(float((made.color[0, 8:-8, first] - truth[first]).abs().mean()))
    assert off[1] < 0.011 < 0.014 < off[0]  # one step of the ramp, and two
