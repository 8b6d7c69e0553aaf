"""`WorldStereo` as documented: construction, a training pass that learns, weights on disk."""

import inspect
import json
import warnings

import pytest
import torch

from worldstereo import (
    CameraTrajectory,
    GlobalGeometricMemory,
    ModelOutput,
    SpatialStereoMemory,
    WeightsMissing,
    WorldStereo,
)
from worldstereo.model._process import Process

B, T, S, PATCH = 2, 3, 32, 8
TINY = {"layers": 2, "dim": 24, "heads": 2, "patch_size": PATCH, "timesteps": 20}
GLOBAL = {"point_cloud_dim": 10, "feature_dim": 14, "num_neighbors": 3}
SPATIAL = {"memory_size": 700, "feature_dim": 50, "attention_window": 6, "num_correspondences": 3}
PATH = CameraTrajectory.circle([0, 0, 2], 2.0, T, degrees=20)


def tiny(seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WorldStereo(TINY | changes, GLOBAL, SPATIAL, device="cpu")


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def clips(seed=1):
    return torch.rand(B, T, 3, S, S, generator=draw(seed)) * 2 - 1


def cloud(colors=True):
    """A wall of points in front of every camera of the path."""
    found = torch.rand(3000, 6, generator=draw(2))
    found[:, :3] = (found[:, :3] - 0.5) * torch.tensor([4.0, 4.0, 0.2]) + torch.tensor([0, 0, 2.0])
    return found if colors else found[:, :3]


WHEN = torch.tensor([3, 19])


def test_signatures_are_the_documented_ones():
    def head(f):
        found = list(inspect.signature(f).parameters.values())
        return [(p.name, p.default) for p in found if p.kind is not p.KEYWORD_ONLY]

    empty = inspect.Parameter.empty
    assert head(WorldStereo) == [
        ("vdm_config", empty), ("global_memory_config", empty), ("spatial_memory_config", empty),
        ("pretrained_path", None), ("device", "cuda"),
    ]  # fmt: skip
    assert head(WorldStereo.forward) == [
        ("self", empty), ("images", empty), ("camera_params", empty), ("timesteps", empty),
        ("point_cloud", None), ("return_dict", True),
    ]  # fmt: skip
    assert head(WorldStereo.generate) == [
        ("self", empty), ("condition_image", empty), ("camera_trajectory", empty),
        ("num_frames", None), ("num_inference_steps", 50), ("guidance_scale", 7.5),
        ("point_cloud", None), ("seed", None),
    ]  # fmt: skip


def test_empty_mappings_are_the_documented_defaults():
    found = tiny().config
    assert json.loads(json.dumps(found)) == found
    warp = WorldStereo({"backbone": "warp"}, {}, {}, device="cpu")
    assert warp.global_memory.max_points == 100_000 and warp.global_memory.feature_dim == 768
    assert warp.spatial_memory.memory_size == 4096
    assert warp.config["global_memory_config"]["num_neighbors"] == 32
    assert isinstance(warp.global_memory, GlobalGeometricMemory)
    assert isinstance(warp.spatial_memory, SpatialStereoMemory)
    assert found["vdm_config"]["num_layers"] == 2 and found["vdm_config"]["hidden_dim"] == 24
    assert tiny().global_memory.latent_channels == 24
    by_hand = WorldStereo({"backbone": "warp"}, {"update_frequency": "manual"}, {}, device="cpu")
    by_hand.reset_memory()
    assert by_hand.global_memory.update_frequency == "manual"


def test_cuda_without_a_card_is_the_cpu_with_one_warning():
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.warns(UserWarning, match="no CUDA device") as said:
        model = WorldStereo(TINY, GLOBAL, SPATIAL)
    assert len(said) == 1 and model.device.type == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert WorldStereo(TINY, GLOBAL, SPATIAL, device="auto").device.type == "cpu"


@pytest.mark.parametrize(
    ("where", "change", "error", "message"),
    [
        (0, {"num_layer": 3}, ValueError, "num_layer.*num_layers"),
        (0, {"heads": 5}, ValueError, "num_heads must divide"),
        (0, {"depth": 3}, ValueError, "num_layers twice"),
        (0, {"schedule": "quadratic"}, ValueError, "noise_schedule.*cosine"),
        (0, {"timesteps": 0}, ValueError, "num_timesteps must be 1"),
        (0, {"patch_size": 8.0}, TypeError, "patch_size"),
        (0, {"schedule": "flow", "prediction_type": "epsilon"}, ValueError, "epsilon"),
        (0, {"backbone": "unet"}, ValueError, "backbone.*compact, wan, warp"),
        (1, {"feature_dims": 3}, ValueError, "feature_dims.*feature_dim"),
        (1, {"num_neighbors": 0}, ValueError, "num_neighbors"),
        (2, {"feature_dim": 2}, ValueError, "feature_dim must be at least 3"),
        (2, {"memory_size": 0}, ValueError, "memory_size"),
    ],
)
def test_a_bad_setting_is_named(where, change, error, message):
    given = [TINY, GLOBAL, SPATIAL]
    given[where] = given[where] | change
    with pytest.raises(error, match=message) as said:
        WorldStereo(*given, device="cpu")
    assert "\n" not in str(said.value)


def test_a_mapping_of_another_type_is_a_type_error():
    for given in ((None, {}, {}), ({}, [], {}), ({}, {}, "x")):
        with pytest.raises(TypeError, match="must be a mapping"):
            WorldStereo(*given, device="cpu")


def test_a_training_pass_returns_the_documented_shapes():
    model = tiny()
    out = model(clips(), PATH, WHEN, cloud(), generator=draw())
    assert isinstance(out, ModelOutput)
    assert out.loss.shape == () and out.loss.requires_grad
    assert out.noise_pred.shape == (B, T, 3, S, S)
    tokens = T * (S // PATCH) ** 2
    assert out.memory_features["global"].shape == (B, tokens, 14)
    assert out.memory_features["spatial"].shape == (B, tokens, 50)
    assert float(out.memory_features["global"].detach().abs().sum()) > 0
    assert float(out.memory_features["spatial"].detach().abs().sum()) > 0
    loss, noise, features = model(clips(), PATH, WHEN, return_dict=False, generator=draw())
    assert torch.equal(loss, out.loss) and torch.equal(noise, out.noise_pred)
    assert out["loss"] is out.loss is out[0] and out.to_tuple()[1] is out.noise_pred
    assert list(out.keys()) == ["loss", "noise_pred", "memory_features"]
    assert features.keys() == {"global", "spatial"}
    assert model.spatial_memory.size == 0  # filled for the pass and left as it was
    assert model.global_memory.num_points == 3000  # the cloud was replaced
    empty = tiny()(clips(), PATH, WHEN, generator=draw()).memory_features
    assert all(float(value.detach().abs().sum()) == 0 for value in empty.values())


def test_fresh_branches_change_not_a_bit():
    model = tiny()
    model(clips(), PATH, WHEN, cloud(), generator=draw())
    results = [
        model(
            clips(), PATH, WHEN, generator=draw(),
            use_geometric_memory=geometric, use_spatial_memory=spatial,
        ).noise_pred
        for geometric in (False, True) for spatial in (False, True)
    ]  # fmt: skip
    assert all(torch.equal(results[0], other) for other in results[1:])
    torch.nn.init.normal_(model.branches.answer.weight, std=0.1)
    spatial = model(clips(), PATH, WHEN, generator=draw()).noise_pred
    torch.nn.init.normal_(model.global_memory.learned.add.weight, std=0.1)
    both = model(clips(), PATH, WHEN, generator=draw()).noise_pred
    assert not torch.equal(results[0], spatial) and not torch.equal(spatial, both)


def test_every_form_of_cameras_gives_the_same_bits():
    model, cameras = tiny(), PATH.cameras(S, S)
    w2c = cameras.w2c
    K = cameras.K
    stacked = type(cameras)(K.expand(B, -1, -1, -1), cameras.c2w.expand(B, -1, -1, -1), S, S)
    forms = [
        PATH,
        PATH.to_trajectory(S, S),
        cameras,
        stacked,
        [PATH, cameras],
        {"trajectory": PATH},
    ]
    bits = [model(clips(), form, WHEN, generator=draw()).loss for form in forms]
    assert all(torch.equal(bits[0], other) for other in bits[1:])
    mappings = [
        {"intrinsics": K, "extrinsics": w2c},
        {"intrinsics": K, "extrinsics": w2c[:, :3]},
        {
            "intrinsics": {"focal_length": K[:, 0, 0], "principal_point": K[:, :2, 2]},
            "extrinsics": {"rotation": w2c[:, :3, :3], "translation": w2c[:, :3, 3]},
        },
    ]
    for form in mappings:
        loss = model(clips(), form, WHEN, generator=draw()).loss
        torch.testing.assert_close(loss, bits[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(0, T, 3, S, S)}, "images"),
        ({"images": torch.zeros(B, T, 3, S, S + 1)}, "multiples of 8"),
        ({"images": torch.full((B, T, 3, S, S), torch.nan)}, "not finite"),
        ({"images": torch.full((B, T, 3, S, S), 3.0)}, r"\[-1, 1\]"),
        ({"images": torch.zeros(B, T + 1, 3, S, S)}, r"camera_params.*\(4,\)"),
        ({"camera_params": {"K": 3}}, "K.*intrinsics"),
        ({"camera_params": [PATH]}, "list of 2"),
        ({"timesteps": torch.tensor([0, 20])}, "0 to 19.*20"),
        ({"timesteps": torch.tensor([0])}, r"\(2,\)"),
        ({"point_cloud": torch.rand(9, 4)}, r"\(N, 6\)"),
        ({"point_cloud": torch.full((9, 6), 200.0)}, "Divide them by 255"),
        ({"point_cloud": torch.full((9, 3), torch.inf)}, "point_cloud.*not finite"),
        ({"noise": torch.zeros(1)}, "noise"),
        ({"reference_frames": (T,)}, "reference_frames"),
    ],
)
def test_a_bad_argument_of_a_pass_is_named_and_changes_nothing(change, message):
    model = tiny()
    model(clips(), PATH, WHEN, cloud(), generator=draw())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    good = {"images": clips(), "camera_params": PATH, "timesteps": WHEN}
    with pytest.raises(ValueError, match=message) as error:
        model(**(good | change))
    assert "\n" not in str(error.value)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_no_gradient_reaches_what_is_stored_and_a_frozen_backbone_learns_nothing():
    model = tiny()
    images = clips().requires_grad_(True)
    model(images, PATH, WHEN, cloud(), generator=draw()).loss.backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0
    assert not model.global_memory.points.requires_grad
    assert float(model.branches.answer.weight.grad.abs().sum()) > 0
    assert float(model.global_memory.learned.add.weight.grad.abs().sum()) > 0
    total = model.num_parameters()
    backbone = sum(p.numel() for p in model.trainable_parameters("backbone"))
    branches = sum(p.numel() for p in model.trainable_parameters("branches"))
    assert backbone + branches == total and backbone > 0 and branches > 0
    model.freeze_backbone()
    assert list(model.trainable_parameters("backbone")) == []
    assert sum(p.numel() for p in model.trainable_parameters()) == branches
    with pytest.raises(ValueError, match="backbone"):
        list(model.trainable_parameters("head"))


@pytest.mark.parametrize("kind", ["epsilon"])
def test_the_loss_halves_on_one_small_clip_in_200_steps(kind):
    change = {"prediction_type": kind} | ({"schedule": "flow"} if kind == "flow" else {})
    model = tiny(layers=1, dim=64, patch_size=4, **change)  # wide enough to carry a patch of noise
    images = torch.linspace(-0.5, 0.5, 16).expand(1, T, 3, 16, 16).contiguous()
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=3e-3)
    losses = []
    for step in range(200):
        when = torch.tensor([step % 20])
        out = model(
            images, PATH, when, cloud() if step == 0 else None,
            generator=draw(step), with_features=False,
        )  # fmt: skip
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.loss.detach()))
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine", "flow"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_a_perfect_prediction_is_solved_for_picture_and_noise(schedule, kind):
    process = Process(50, schedule, kind)
    clean, noise = torch.randn(2, 3, 1, 4, 4, generator=draw()), torch.randn(2, 3, 1, 4, 4)
    levels = process.levels(torch.tensor([4, 31]))
    state = process.noisy(clean, noise, levels)
    found = process.solved(process.target(clean, noise, levels), state, levels)
    torch.testing.assert_close(found[0], clean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[1], noise, atol=1e-3, rtol=1e-3)
    at = process.steps(7)
    assert at[0] == 49 and at == sorted(set(at), reverse=True) and len(at) == 7
    assert process.steps(500) == list(range(49, -1, -1))
    signal = process.levels(torch.arange(50)).signal.flatten()
    assert bool((signal[1:] < signal[:-1]).all())


def test_saving_and_loading_returns_the_same_bits(tmp_path):
    model = tiny()
    model(clips(), PATH, WHEN, cloud(), generator=draw())
    model.save_pretrained(tmp_path / "bare")
    model.save_pretrained(tmp_path / "whole", include_memory=True)
    for name, held in (("bare", 0), ("whole", 3000)):
        again = WorldStereo.from_pretrained(tmp_path / name, device="cpu")
        assert again.config == model.config
        assert again.global_memory.num_points == held
        weights = dict(model.named_parameters())
        assert all(torch.equal(p, weights[n]) for n, p in again.named_parameters())
    again = WorldStereo(TINY, GLOBAL, SPATIAL, str(tmp_path / "whole" / "model.safetensors"), "cpu")
    one, two = (m(clips(), PATH, WHEN, generator=draw()).noise_pred for m in (model, again))
    assert torch.equal(one, two)


def test_what_is_no_model_is_refused(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    for path in ("absent", "absent.safetensors", "weights.bin"):
        with pytest.raises(WeightsMissing) as error:
            WorldStereo(TINY, GLOBAL, SPATIAL, str(tmp_path / path), "cpu")
        assert "\n" not in str(error.value)
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10" * 64)
    with pytest.raises(WeightsMissing, match="not a safetensors"):
        WorldStereo(TINY, GLOBAL, SPATIAL, str(tmp_path / "damaged.safetensors"), "cpu")
    with pytest.raises(WeightsMissing, match="is missing|is unexpected"):
        WorldStereo(TINY | {"layers": 3}, GLOBAL, SPATIAL, str(tmp_path), "cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"version": 2}))
    with pytest.raises(ValueError, match="version 2.*newer"):
        WorldStereo.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(WeightsMissing, match="wan"):
        WorldStereo({"backbone": "wan"}, {}, {}, device="cpu")


def test_warp_has_no_training_pass():
    model = WorldStereo.from_pretrained("warp", device="cpu")
    with pytest.raises(NotImplementedError, match="compact"):
        model(clips(), PATH, WHEN)
