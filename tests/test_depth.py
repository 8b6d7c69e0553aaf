"""Depth from one picture: the rough layout, alignment, and the adapter around a real model."""

import math
from pathlib import Path

import pytest
import torch

from worldstereo.cameras import Cameras
from worldstereo.depth import (
    DepthEstimator,
    LayoutDepth,
    TransformersDepth,
    align,
    best_estimator,
    default_camera,
)
from worldstereo.errors import WeightsMissing


def landscape(width: int = 97, height: int = 71) -> torch.Tensor:
    """Smooth blue sky above, speckled ground below."""
    color = torch.rand(3, height, width, generator=torch.Generator().manual_seed(1)) * 0.5
    color[:, : height // 2] = torch.tensor([0.5, 0.7, 0.95])[:, None, None]
    return color


def test_layout_is_a_ground_with_a_sky():
    """Down is near, up is far, everything is positive, and the same twice."""
    estimate = LayoutDepth()(landscape())
    depth = estimate.depth[0]
    assert estimate.rough and estimate.depth.shape == (1, 71, 97)
    assert bool(torch.isfinite(depth).all()) and float(depth.min()) > 0.5
    assert float(depth[-1].median()) < float(depth[-20].median()) < float(depth[5].median())
    assert float(depth[2].median()) > 20
    assert 0 < float(estimate.confidence.min()) <= float(estimate.confidence.max()) < 0.5
    again = LayoutDepth()(landscape())
    assert torch.equal(again.depth, estimate.depth)


def test_the_ground_is_a_plane_under_the_camera():
    """At the lower border, points of the layout lie 1.5 units below the camera."""
    camera = default_camera(97, 71)
    depth = LayoutDepth()(landscape(), camera).depth[0]
    pixels = torch.stack([torch.arange(97) + 0.5, torch.full((97,), 70.5)], dim=1)
    points = camera.unproject(pixels, depth[70])
    assert float((points[:, 1] - 1.5).abs().median()) < 0.12


def test_up_of_a_tilted_camera():
    """With `up` given, a camera that looks at the floor sees only ground, nearer than the reach."""
    a = math.radians(60)
    c2w = torch.eye(4)
    c2w[1:3, 1:3] = torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
    base = default_camera(64, 48)
    camera = Cameras(base.K, c2w, 64, 48)
    depth = LayoutDepth(up=torch.tensor([0.0, -1.0, 0.0]))(torch.rand(3, 48, 64), camera).depth
    assert float(depth.max()) < 8


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="cameras are 64 x 48 px and color 97 x 71"):
        LayoutDepth()(landscape(), default_camera(64, 48))
    with pytest.raises(ValueError, match="reach must be above height"):
        LayoutDepth(height=2.0, reach=1.0)


def test_default_camera_spans_its_field_of_view():
    assert float(default_camera(80, 40, 1.0).fov[0]) == pytest.approx(1.0, abs=1e-5)
    assert float(default_camera(40, 80, 1.0).fov[1]) == pytest.approx(1.0, abs=1e-5)


def test_align_recovers_scale_and_shift_despite_outliers():
    g = torch.Generator().manual_seed(4)
    truth = 1 + 4 * torch.rand(1, 31, 41, generator=g)
    guess = 1 / ((1 / truth - 0.03) / 2.7)
    reference = truth.clone()
    wrong = torch.rand(1, 31, 41, generator=g) < 0.2
    reference[wrong] = 0.5 + 9 * torch.rand(int(wrong.sum()), generator=g)
    reference[:, :5] = 0
    fitted = align(guess, reference, reference > 0)
    assert float(((fitted - truth).abs() / truth).max()) < 0.02


def test_align_is_not_stopped_by_some_sky_that_was_taken_for_a_surface():
    """A few pixels at infinity with a wrong reference: the fit stands, and they stay far."""
    truth = torch.linspace(2, 5, 31 * 41).reshape(1, 31, 41)
    sky = torch.zeros(1, 31, 41, dtype=torch.bool)
    sky[:, :, -1] = True
    guess = torch.where(sky, 0.0, 1 / truth).mul(2.5).add(0.2).reciprocal()
    reference = torch.where(sky & (torch.arange(31)[:, None] < 12), 3.0, truth)
    reference[sky & (torch.arange(31)[:, None] >= 12)] = 0
    fitted = align(guess, reference)
    torch.testing.assert_close(fitted[~sky], truth[~sky], rtol=0.02, atol=0)
    assert float(fitted[sky].min()) > 20


def test_align_without_enough_to_go_by():
    depth = torch.full((1, 5, 7), 2.0)
    reference = torch.zeros(1, 5, 7)
    assert torch.equal(align(depth, reference), depth)
    reference[0, 0, :3] = 6.0
    torch.testing.assert_close(align(depth, reference), torch.full((1, 5, 7), 6.0))


def test_missing_weights_are_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(WeightsMissing, match="config.json or .safetensors is missing"):
        TransformersDepth(tmp_path)
    monkeypatch.setenv("WORLDSTEREO_DEPTH_MODEL", str(tmp_path / "nothing"))
    estimator = best_estimator()
    assert isinstance(estimator, LayoutDepth) and isinstance(estimator, DepthEstimator)


@pytest.mark.filterwarnings("ignore")
def test_a_model_from_a_local_folder(tmp_path: Path):
    """A tiny untrained model, saved and loaded: shapes, sign and label of the adapter."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
        image_size=28, patch_size=14, out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type="relative",
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path)
    transformers.DPTImageProcessor(size={"height": 28, "width": 42}).save_pretrained(tmp_path)
    estimate = TransformersDepth(tmp_path)(landscape())
    assert estimate.depth.shape == (1, 71, 97) and estimate.rough
    assert bool(torch.isfinite(estimate.depth).all()) and float(estimate.depth.min()) > 0
