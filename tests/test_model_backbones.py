"""`WorldStereo` with other backbones, tiny and random, and a script of documented calls."""

import json

import pytest
import torch

import worldstereo
from worldstereo import (
    CameraIntrinsics,
    CameraPose,
    CameraTrajectory,
    WeightsMissing,
    WorldStereo,
    generate_multi_view,
    generate_video,
    interpolate_poses,
    load_trajectory,
    save_trajectory,
)

T, H, W = 3, 64, 96
PATH = CameraTrajectory.circle([0, 0, 2], 2.0, T, degrees=10)


def test_a_published_variant_makes_films_and_keeps_its_own_steps(tmp_path):
    from tests.tiny_model import write_tiny_model

    folder = write_tiny_model(tmp_path)
    picture = torch.rand(3, H, W, generator=torch.Generator().manual_seed(0))
    for variant, asked, taken in (("worldstereo-memory-dmd", 50, 4), ("worldstereo-camera", 2, 2)):
        model = WorldStereo.from_pretrained(folder, variant=variant, device="cpu")
        seen = []
        film = generate_video(
            model, picture, PATH, T, H, W, num_inference_steps=asked, seed=4,
            progress_callback=lambda *a, seen=seen: seen.append((*a[:2], tuple(a[2].shape))),
        )  # fmt: skip
        assert film.shape == (T, 3, H, W)
        assert seen == [(i + 1, taken, (1, T, 16, H // 8, W // 8)) for i in range(taken)]
        assert model.global_memory.num_points > 0 and model.spatial_memory.size > 0
        with pytest.raises(NotImplementedError, match="compact"):
            model(torch.zeros(1, T, 3, H, W), PATH, torch.tensor([3]))
    path = str(folder / "worldstereo-memory-dmd")
    model = WorldStereo({"backbone": "wan"}, {}, {}, path, "cpu")
    assert model.config["vdm_config"]["backbone"] == "wan"


def test_a_process_in_latents_has_their_shape(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
        ).save_pretrained(tmp_path / "vae")
    vdm = {"layers": 1, "dim": 16, "heads": 2, "patch_size": 2, "timesteps": 10}
    vdm["vae"] = str(tmp_path / "vae")
    model = WorldStereo(vdm, {}, {"memory_size": 500, "feature_dim": 48}, device="cpu")
    images = torch.rand(2, T, 3, 32, 32) * 2 - 1
    out = model(images, PATH, torch.tensor([1, 2]))
    assert out.noise_pred.shape == (2, T, 4, 16, 16)
    out.loss.backward()
    film = generate_video(model, images[0, 0] / 2 + 0.5, PATH, T, 32, 32, num_inference_steps=2)
    assert film.shape == (T, 3, 32, 32)
    with pytest.raises(WeightsMissing, match="AutoencoderKL"):
        WorldStereo(vdm | {"vae": str(tmp_path)}, {}, {}, device="cpu")


def test_a_script_of_documented_calls_runs_without_network(tmp_path):
    """Build, save, load, plan, generate, generate several: 8 frames of 128 x 128 on a CPU."""
    names = "Camera CameraIntrinsics CameraPose CameraTrajectory ModelOutput WorldStereo"
    names += " generate_multi_view generate_video interpolate_poses load_trajectory save_trajectory"
    assert set(names.split()) <= set(worldstereo.__all__)
    model = WorldStereo(
        vdm_config={"num_layers": 2, "hidden_dim": 64, "num_heads": 4, "num_timesteps": 100},
        global_memory_config={"point_cloud_dim": 64, "feature_dim": 128},
        spatial_memory_config={"memory_size": 1024, "feature_dim": 128},
        device="cpu",
    )
    model.save_pretrained(tmp_path / "model")
    model = WorldStereo.from_pretrained(tmp_path / "model", device="cpu")
    lens = CameraIntrinsics(110.0, width=128, height=128)
    keys = interpolate_poses(
        CameraPose([0, 0, 0], [1, 0, 0, 0], 0), CameraPose([0.3, 0, 0], {"yaw": -8}, 7), 8
    )
    save_trajectory(CameraTrajectory(keys, 8, intrinsics=lens), tmp_path / "path.json")
    assert json.loads((tmp_path / "path.json").read_text())["num_frames"] == 8
    path = load_trajectory(tmp_path / "path.json")
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(picture[None], (128, 128), mode="bilinear")
    options = {"num_frames": 8, "height": 128, "width": 128, "num_inference_steps": 2}
    film = generate_video(model, picture, path, **options)
    assert film.shape == (8, 3, 128, 128)
    warp = WorldStereo.from_pretrained("warp", device="cpu")
    films = generate_multi_view(warp, picture, [path, path], **options)
    assert [f.shape for f in films] == [(8, 3, 128, 128)] * 2
