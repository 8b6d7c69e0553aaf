"""The measure of views at the pose where a picture was taken, against a camera that is known."""

import numpy as np
import torch

from bench.views_poses import aligned
from bench.views_sets import picture
from tests.test_registration import motion, painted, true_cameras, twisted
from worldstereo.memory.stereo.dense import synthesize
from worldstereo.scene import View


def test_a_camera_that_is_off_is_aligned_with_its_picture():
    truth = true_cameras(4)
    color, depth = painted(truth)
    views = [View.of(color[i].float(), depth[i].float(), truth[i], frame=i) for i in range(4)]
    target = views.pop(1)
    twist = torch.tensor([[0.006, -0.008, 0.004, 0.02, -0.01, 0.015]]).double()
    off = twisted(truth[1:2], twist)[0]
    assert motion(off, truth[1]) > 1.5
    found = aligned(lambda camera: synthesize(camera, views, unit=4.0), off, picture(target))
    assert motion(found, truth[1]) < 0.25
    noise = np.random.default_rng(0).random(picture(target).shape).astype(np.float32)
    alone = aligned(lambda camera: synthesize(camera, views, unit=4.0), off, noise)
    assert motion(alone, off) < 1e-6  # a picture of something else moves nothing
