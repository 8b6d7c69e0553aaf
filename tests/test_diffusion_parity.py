"""The published model, recorded: every fixture within the tolerance of its README."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttention

from tests.parity import Fixture, difference, tiny_transformer, tiny_vae
from worldstereo.generators.diffusion import (
    ControlBlock,
    FlowEuler,
    MaskEmbedding,
    MemoryBank,
    ReferenceBlock,
    SampleInputs,
    StitchedAttnProcessor,
    StitchedRotary,
    camera_rays,
    depth_edges,
    farthest_points,
    flow_unipc,
    frustum_corners,
    lift_depth,
    nearest_size,
    normalize_trajectory,
    panorama_order,
    plucker_rays,
    pose_vectors,
    quaternions,
    retrieve,
    sample,
    scores,
    stored_frames,
    to_signed,
    unified_normalize,
)
from worldstereo.generators.diffusion.retrieval import (
    camera_features,
    pose_distance,
    quality,
    z_scored,
)

MODEL, PIPELINE, KEYFRAMES, CAMERA, POINTS = 2e-5, 1e-4, 2e-5, 2e-5, 2e-5
TABLES = ("target_cos", "target_sin", "ref_cos", "ref_sin")


@pytest.mark.parametrize("name", ["worldstereo_camera_tiny", "worldstereo_refs_tiny"])
def test_transformers_give_the_recorded_velocity(name):
    fixture, model = Fixture(name), tiny_transformer(name)
    assert set(fixture.info["state_dict_shapes"]) == set(model.state_dict())
    with torch.no_grad():
        sample = model(**fixture.below("input/")).sample
    assert difference(sample, fixture["output/sample"]) <= MODEL


@pytest.mark.parametrize("name", ["worldstereo_camera_tiny", "worldstereo_refs_tiny"])
def test_intermediates_of_both_transformers(name):
    """Hooks on the named parts see what the release's parts saw, so no two errors cancel."""
    fixture, model, seen = Fixture(name), tiny_transformer(name), {}

    def keep(label, pick=lambda out: out):
        return lambda module, args, out: seen.update({label: pick(out)})

    def flat(out):
        return out.flatten(2).transpose(1, 2)

    control = model.controlnet
    control.controlnet_patch_embedding.register_forward_hook(keep("controlnet_patch_tokens", flat))
    control.controlnet_mask_embedding.register_forward_hook(keep("controlnet_mask_tokens"))
    model.norm_out.register_forward_hook(keep("norm_out"))
    for i, linear in enumerate(control.proj_out):
        linear.register_forward_hook(keep(f"controlnet_residual.{i}"))
    for i, block in enumerate(model.blocks):
        if "refs" in name:
            block.register_forward_hook(
                keep(f"block.{i}.hidden_before_residual", lambda out: out[0])
            )
        else:
            block.register_forward_hook(keep(f"block.{i}.hidden_before_residual"))
    model.condition_embedder.register_forward_hook(
        lambda module, args, out: seen.update(
            zip(("temb", "timestep_proj", "text_tokens", "image_tokens"), out, strict=True)
        )
    )
    with torch.no_grad():
        model(**fixture.below("input/"))
    recorded = fixture.below("intermediate/")
    assert len(set(seen) & set(recorded)) >= 12
    for label in set(seen) & set(recorded):
        assert difference(seen[label], recorded[label]) <= MODEL, label


def test_references_may_stay_as_they_were_and_poses_be_absent():
    fixture = Fixture("worldstereo_refs_tiny")
    given = fixture.below("input/")
    with torch.no_grad():
        kept = tiny_transformer("worldstereo_refs_tiny", update_ref=False)(**given).sample
        posed = {k: v for k, v in given.items() if not k.startswith("camera_qt")}
        unposed = tiny_transformer("worldstereo_refs_tiny")(**posed).sample
    assert difference(kept, fixture["output/sample.update_ref_false"]) <= MODEL
    assert difference(unposed, fixture["output/sample.no_camera_qt"]) <= MODEL


@torch.no_grad()
def test_modules_alone():
    fixture = Fixture("modules")
    for name, case in fixture.cases.items():
        config = case["config"]
        given, expected = fixture.below(f"{name}/input/"), fixture.below(f"{name}/output/")
        weights = fixture.below(f"{name}/state_dict/")
        tables = tuple(given[k] for k in TABLES) if "target_cos" in given else ()
        if name == "rope_stitched":
            size = (config["frames"], config["token_rows"] * 2, config["token_cols"] * 2)
            rotary = StitchedRotary(config["head_dim"], (1, 2, 2), 64)
            found = dict(
                zip(TABLES, rotary(torch.zeros(1, 1, *size), given["ref_index"]), strict=True)
            )
        elif name == "sparse_spatial_attention":
            attention = WanAttention(**config, processor=StitchedAttnProcessor())
            attention.load_state_dict(weights)
            out = attention.processor(attention, given["hidden"], given["ref"], tables)
            found = dict(zip(("hidden", "ref"), out, strict=True))
        elif name == "sparse_spatial_block":
            block = ReferenceBlock(
                config["dim"],
                config["ffn_dim"],
                config["heads"],
                cross_attn_norm=config["cross_attn_norm"],
                eps=config["eps"],
                added_kv_proj_dim=config["added_kv_proj_dim"],
            )
            block.load_state_dict(weights)
            out = block(
                given["hidden"], given["ref"], given["context"], given["timestep_proj"], tables
            )
            found = dict(zip(("hidden", "ref"), out, strict=True))
        elif name == "control_block":
            block = ControlBlock(
                config["dim"], config["ffn_dim"], config["heads"], config["time_embed_dim"]
            )
            block.load_state_dict(weights)
            found = {"hidden": block(given["hidden"], given["temb"], (given["cos"], given["sin"]))}
        else:
            embedding = MaskEmbedding(**config)
            embedding.load_state_dict(weights)
            found = {"tokens": embedding(given["add_inputs"])}
        for key, value in expected.items():
            assert difference(found[key], value) <= MODEL, f"{name}/{key}"


def test_cameras_rays_and_pose_vectors():
    fixture = Fixture("camera_utils")
    for name, case in fixture.cases.items():
        given, params = fixture.below(f"{name}/input/"), case["params"]
        if name.startswith("normalize"):
            legacy = not params["is_w2c"]
            found = [normalize_trajectory(given["w2c"], params["camera_scale"], legacy)]
        elif name.startswith("plucker"):
            w2c = normalize_trajectory(given["w2c"]) if params["normalize"] else given["w2c"]
            found = [plucker_rays(given["K"], w2c, params["h"], params["w"])]
        elif name == "rays":
            found = camera_rays(given["K"], given["w2c"], params["h"], params["w"])
        elif name.startswith("unified"):
            found = unified_normalize(given["w2c"], given["w2c_ref"], params["camera_scale"])
        elif name == "matrix_to_quaternion":
            found = [quaternions(given["R"])]
        else:
            found = pose_vectors(given["w2c"], given["w2c_ref"])
        for label, value in zip(case["outputs"], found, strict=True):
            expected = fixture[f"{name}/output/{label}"]
            relative = 1e-6 * float(expected.abs().max()) if "outlier" in name else 0.0
            assert difference(value, expected) <= max(CAMERA, relative), f"{name}/{label}"


def test_the_euler_schedule_and_its_steps():
    fixture = Fixture("dmd_scheduler")
    for name, case in fixture.cases.items():
        euler = FlowEuler(
            case["start_timesteps"], case["num_train_timesteps"], case["shift"], case["dmd_steps"]
        )
        assert difference(euler.timesteps, fixture[f"{name}/timesteps"]) <= 1e-3  # of 1000
        for k in range(case["dmd_steps"]):
            after = euler.step(
                fixture[f"{name}/model_output.{k}"], k, fixture[f"{name}/sample.{k}"]
            )
            assert difference(after, fixture[f"{name}/sample.{k + 1}"]) <= 1e-5
        given = fixture.below(f"{name}/add_noise/")
        noisy = euler.add_noise(given["original"], given["noise"], given["timesteps"])
        assert difference(noisy, given["output"]) <= 1e-5


def test_keyframes_through_the_vae():
    fixture, vae = Fixture("keyframe_vae"), tiny_vae()
    frames, image = fixture["encode/input"], fixture["condition/image"]
    assert difference(vae.encode(frames), fixture["encode/latents"]) <= KEYFRAMES
    assert difference(vae.encode(frames, False), fixture["encode/latents_raw"]) <= KEYFRAMES
    assert difference(vae.decode(fixture["decode/input"]), fixture["decode/frames"]) <= KEYFRAMES
    for mode in ("full_vae", "first_frame_only"):
        assert difference(vae.condition(image, 3, mode), fixture[f"condition/{mode}"]) <= KEYFRAMES
    vae.batch = 3  # keyframes together give what they give alone
    assert difference(vae.decode(fixture["decode/input"]), fixture["decode/frames"]) <= KEYFRAMES


@pytest.mark.parametrize(
    ("variant", "spacing", "recorded"),
    [
        ("camera", "release", "scheduler_0.36.0/"),
        ("camera", "current", "scheduler_0.42.1/"),
        ("memory", "release", "scheduler_0.36.0/"),
        ("memory", "current", "scheduler_0.42.1/"),
        ("dmd", "release", ""),
    ],
)
def test_the_three_samplers_end_to_end(variant, spacing, recorded):
    fixture = Fixture("pipelines")
    case, prefix = fixture.cases[variant], f"{variant}/{recorded}"
    given, shared = fixture.below(f"{variant}/input/"), fixture.below("input/")
    noise = given.pop("latents")
    if variant == "camera":
        wanted = ("render_video", "render_mask", "camera_embedding")
        shared = {k: v for k, v in shared.items() if k in wanted}
    schedule = case["scheduler"]
    if variant == "dmd":
        scheduler = FlowEuler(
            schedule["start_timesteps"],
            schedule["num_train_timesteps"],
            schedule["shift"],
            schedule["dmd_steps"],
        )
    else:
        scheduler = flow_unipc(schedule["flow_shift"])
    result = sample(
        tiny_transformer(case["weights_fixture"]),
        tiny_vae(),
        SampleInputs(image=to_signed(fixture["image_uint8_hwc"]), **given, **shared),
        scheduler=scheduler,
        latent_cond_mode=fixture.info["latent_cond_mode"],
        steps=schedule.get("steps", 4),
        guidance=case["guidance_scale"] or 1.0,
        spacing=spacing,
        latents=noise,
        keep_trace=True,
    )
    if variant != "dmd":
        assert difference(scheduler.sigmas, fixture[f"{prefix}sigmas"]) <= 1e-6
        assert scheduler.timesteps.tolist() == case["timesteps"][recorded.strip("/")]
    for k, latents in enumerate(result.trace):
        assert difference(latents, fixture[f"{prefix}step{k}/latents"]) <= PIPELINE
    assert difference(result.latents, fixture[f"{prefix}output/latents"]) <= PIPELINE
    assert difference(result.video, fixture[f"{prefix}output/video"]) <= PIPELINE


def test_depth_lifting_keeps_exactly_the_recorded_pixels():
    fixture = Fixture("depth_lifting")
    for name in fixture.cases:
        given = fixture.below(f"{name}/input/")
        points, colors = lift_depth(
            given["depth"],
            given["image"][0],
            given["K"][0],
            given["w2c"][0],
            given.get("invalid_mask"),
        )
        assert difference(points, fixture[f"{name}/output/points"]) <= POINTS
        assert difference(colors, fixture[f"{name}/output/colors"]) == 0
    for threshold in (0.3, 0.35):
        edges = depth_edges(fixture["boundary/input_disparity"], threshold)
        assert torch.equal(edges, fixture[f"boundary/{threshold}"])


def test_retrieval_over_a_growing_bank():
    fixture = Fixture("retrieval")
    info, names = fixture.info, fixture.info["bank_names"]
    width, height = info["image_width"], info["image_height"]
    pictures = [frame.numpy() for frame in fixture["frames"]]
    bank = MemoryBank(tuple(names[:27]), fixture["bank/K"], fixture["bank/w2c"], width, height)
    for step in range(6):
        n = len(bank)
        assert list(bank.names) == names[:n]
        bank = replace(bank, pictures=tuple(pictures[:n]), features=fixture["image_features"][:n])
        K, w2c = fixture[f"step{step}/target_K"], fixture[f"step{step}/target_w2c"]
        found = scores(K, w2c, bank.K, bank.w2c, width, height)
        assert difference(found.overlap, fixture[f"step{step}/overlap"]) <= 1e-5
        assert difference(found.penalised, fixture[f"step{step}/penalised"]) <= 1e-5
        assert difference(found.angle, fixture[f"step{step}/angle_deg"]) <= 2e-3
        for suffix, budget in (("", 8), ("_max4", 4)):
            case = fixture.cases[f"step{step}{suffix}"]
            got = retrieve(bank, K, w2c, case["view_id"], case["traj_id"], max_references=budget)
            assert list(got.ref_index) == case["ref_index"]
            assert list(got.retrieved) == case["retrieved_bank_index"]
            assert list(got.selected) == case.get("too_many_references_selected_positions", [])
            assert difference(got.w2c, fixture[f"step{step}{suffix}/ref_w2c"]) == 0
            if "groups" in case:
                assert {str(k): list(v) for k, v in got.groups.items()} == case["groups"]
        view, trajectory = (fixture.cases[f"step{step}"][k] for k in ("view_id", "traj_id"))
        bank = bank.after_clip(view, trajectory, K, w2c, [pictures[0]] * len(w2c))


def test_parts_of_the_retrieval():
    fixture = Fixture("retrieval")
    info = fixture.info
    size = (info["image_width"], info["image_height"])
    corners = frustum_corners(fixture["bank/K"][:4], fixture["bank/w2c"][:4], *size)
    assert difference(corners, fixture["frustum/corners"]) <= 1e-5
    distance = pose_distance(fixture["distance/a"], fixture["distance/b"])
    assert difference(distance, fixture["distance/value"]) <= 1e-5
    features = camera_features(fixture["bank/w2c"])
    assert np.abs(features - fixture["features/camera"].numpy()).max() <= 1e-5
    assert np.abs(z_scored(features) - fixture["features/camera_zscore"].numpy()).max() <= 1e-5
    for bias in (0.1, 2):
        chosen = farthest_points(
            fixture["fps/features"].numpy(), fixture["fps/quality"].numpy(), 6, bias
        )
        assert chosen == fixture[f"fps/indices_k6_bias{bias}"].tolist()
    case = fixture.cases["step1"]
    pictures = [fixture["frames"][i].numpy() for i in case["retrieved_bank_index"]]
    recorded = fixture["step1_max4/quality_scores"].numpy()
    assert np.abs(quality(pictures) - recorded).max() <= 1e-5
    for key, value in info["sample_align_nframe"].items():
        frames, stored = (int(part.split("=")[1]) for part in key.split(","))
        assert stored_frames(frames, stored) == value
    for key, value in info["assign_scale_default"].items():
        height, width = (int(part) for part in key.split("x"))
        assert list(nearest_size(height, width)) == value
    assert panorama_order(sorted(info["panorama_order"])) == info["panorama_order"]
