"""Cameras, schedules, retrieval and lifting at other sizes, against loops over the formulas."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.parity import Fixture, difference, tiny_transformer, tiny_vae
from worldstereo.generators.diffusion import (
    FlowEuler,
    MemoryBank,
    SampleInputs,
    flow_unipc,
    latent_frames,
    lift_depth,
    normalize_trajectory,
    plucker_rays,
    pose_vectors,
    quaternions,
    retrieve,
    sample,
    scores,
    set_steps,
    unified_normalize,
)

SOME = settings(max_examples=25, deadline=None, derandomize=True)
SEED = st.integers(0, 2**20)


def poses(rng: np.random.Generator, count: int, reach: float = 3.0) -> np.ndarray:
    """Random rigid w2c (count, 4, 4): any rotation, some of them by nearly half a turn."""
    out = np.tile(np.eye(4), (count, 1, 1))
    for k in range(count):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        angle = rng.choice([rng.uniform(0, math.pi), math.pi - 1e-3, 0.0])
        x, y, z = axis
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        out[k, :3, :3] = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
        out[k, :3, 3] = rng.uniform(-reach, reach, 3)
    return out


def intrinsics(rng: np.random.Generator, count: int, width: int, height: int) -> np.ndarray:
    out = np.tile(np.eye(3), (count, 1, 1))
    out[:, 0, 0], out[:, 1, 1] = rng.uniform(0.4, 2, (2, count)) * width
    out[:, 0, 2], out[:, 1, 2] = width * rng.uniform(0.3, 0.7), height * rng.uniform(0.3, 0.7)
    return out


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).float()


def normalized(target: np.ndarray, reference: np.ndarray, scale: float) -> list[np.ndarray]:
    """Seen from the first target, centred by the kept ones, that first one at `scale`; float64."""
    first = np.linalg.inv(target[0])
    lists = [[np.linalg.inv(w2c @ first) for w2c in poses] for poses in (target, reference)]
    centres = np.array([c2w[:3, 3] for c2w in lists[0]])
    middle = np.sort(centres, axis=0)[(len(centres) - 1) // 2]  # the lower one for even counts
    away = np.linalg.norm(centres - middle, axis=1)
    kept = centres[away <= min(10 * np.quantile(away, 0.97), 1e6)]
    mean = kept.mean(axis=0)
    distance = np.linalg.norm(centres[0] - mean)
    factor = scale if distance <= 1e-5 else scale / distance
    out = []
    for poses_ in lists:
        moved = []
        for c2w in poses_:
            c2w = c2w.copy()
            c2w[:3, 3] -= mean
            w2c = np.linalg.inv(c2w)
            w2c[:3, 3] *= factor
            moved.append(w2c)
        out.append(np.array(moved).reshape(-1, 4, 4))
    return out


@SOME
@given(SEED, st.integers(1, 45), st.integers(1, 8), st.sampled_from([1.0, 2.0]))
def test_trajectories_are_normalised_together_with_their_references(seed, frames, count, scale):
    rng = np.random.default_rng(seed)
    target, reference = poses(rng, frames), poses(rng, count)
    if frames > 40:
        target[-1, :3, 3] = 400.0  # one camera far away: beyond ten times the 97 % quantile
    found = unified_normalize(tensor(target), tensor(reference), scale)
    for value, expected in zip(found, normalized(target, reference, scale), strict=True):
        size = max(1.0, float(np.abs(expected).max()))
        assert difference(value, torch.from_numpy(expected)) <= 2e-5 * size
    alone = normalize_trajectory(tensor(target), scale)
    assert torch.equal(alone, found[0])


def test_a_camera_that_stands_still_keeps_its_place():
    w2c = poses(np.random.default_rng(3), 1).repeat(6, axis=0)
    found = normalize_trajectory(tensor(w2c))
    assert difference(found, torch.eye(4).expand(6, 4, 4)) <= 2e-6


@SOME
@given(SEED, st.integers(1, 3), st.integers(1, 9), st.integers(1, 11))
def test_rays_pixel_by_pixel(seed, frames, height, width):
    rng = np.random.default_rng(seed)
    w2c, K = poses(rng, frames), intrinsics(rng, frames, width, height)
    found = plucker_rays(tensor(K), tensor(w2c), height, width)
    assert found.shape == (1, 6, frames, height, width)
    for f in range(frames):
        c2w = np.linalg.inv(w2c[f])
        for r in range(height):
            for c in range(width):
                d = c2w[:3, :3] @ np.linalg.inv(K[f]) @ np.array([c - 0.5, r + 0.5, 1.0])
                d /= np.linalg.norm(d)
                expected = np.concatenate([d, np.cross(c2w[:3, 3], d)])
                assert np.abs(found[0, :, f, r, c].numpy() - expected).max() <= 2e-5


def test_rays_that_are_not_finite_are_zeros_altogether():
    rng = np.random.default_rng(0)
    w2c, K = poses(rng, 2), intrinsics(rng, 2, 6, 4)
    for broken_K, broken_w2c in ((K * [[[0.0]], [[1.0]]], w2c), (K, w2c * [[[1.0]], [[np.nan]]])):
        rays = plucker_rays(tensor(broken_K), tensor(broken_w2c), 4, 6)
        assert rays.shape == (1, 6, 2, 4, 6) and not bool(rays.any())


@SOME
@given(SEED)
def test_quaternions_turn_vectors_as_their_matrices_do(seed):
    R = poses(np.random.default_rng(seed), 7)[:, :3, :3]
    found = quaternions(tensor(R)).double().numpy()
    assert (found[:, 0] >= 0).all()
    for (w, *v), matrix in zip(found, R, strict=True):
        v, x = np.array(v), np.array([0.3, -1.1, 0.7])
        turned = x + 2 * np.cross(v, np.cross(v, x) + w * x)
        assert np.abs(turned - matrix @ x).max() <= 2e-5


def test_pose_vectors_start_at_the_first_camera():
    rng = np.random.default_rng(8)
    target, reference = pose_vectors(tensor(poses(rng, 5)), tensor(poses(rng, 3)))
    assert target.shape == (1, 5, 7) and reference.shape == (1, 3, 7)
    assert difference(target[0, 0, :4], torch.tensor([1.0, 0, 0, 0])) <= 1e-6
    assert float(target[0, 0, 4:].norm()) == pytest.approx(2, abs=1e-5)


# ---- schedules and samplers ----------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_the_multistep_schedule_of_the_release(steps, shift):
    scheduler = flow_unipc(shift)
    timesteps = set_steps(scheduler, steps)
    expected = []
    for k in range(steps):  # from the noisiest
        a = 1 - (1 - 1 / 1000) * (steps - k) / steps
        u = 1 - a
        expected.append(shift * u / (1 + (shift - 1) * u))
    assert np.abs(scheduler.sigmas.numpy() - [*expected, 0]).max() <= 1e-6
    assert np.abs(timesteps.numpy() - np.floor(np.array(expected) * 1000)).max() <= 1
    assert timesteps.dtype == torch.int64
    if (steps, shift) == (4, 3.0):
        assert timesteps.tolist() == [999, 899, 749, 499]


@SOME
@given(
    st.integers(0, 999), st.sampled_from([500, 1000, 2000]), st.floats(0.5, 12), st.integers(1, 12)
)
def test_the_euler_schedule(start, end, shift, steps):
    start = min(start, end)
    euler = FlowEuler(start, end, shift, steps)
    for k in range(steps):
        place = steps - 1 - k
        t = (start if steps == 1 else start + (end - start) * place / (steps - 1)) / end
        expected = shift * t / (1 + (shift - 1) * t) * end
        assert float(euler.timesteps[k]) == pytest.approx(expected, abs=1e-5 * end)
    x, v = torch.randn(2, 3, 1, 2, 2), torch.randn(2, 3, 1, 2, 2)
    after = euler.step(v, steps - 1, x)
    assert difference(after, x - euler.timesteps[-1] / end * v) <= 1e-5


def test_frames_are_counted_as_the_release_counts():
    found = [latent_frames(n) for n in (1, 2, 3, 4, 5, 6, 8, 9, 80, 81, 82, 85)]
    assert found == [1, 1, 1, 2, 2, 2, 3, 3, 21, 21, 21, 22]


def inputs_of(variant: str, clips: int = 1) -> tuple[SampleInputs, str]:
    """Random inputs at another size than the fixture's, for its tiny models."""
    made = torch.Generator().manual_seed(11)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=made)

    name = "worldstereo_camera_tiny" if variant == "camera" else "worldstereo_refs_tiny"
    shapes = Fixture(name).below("input/")
    text = shapes["encoder_hidden_states"].shape[-1]
    image = shapes["encoder_hidden_states_image"].shape
    F, H, W, B = 4, 48, 32, clips
    more = {}
    if variant != "camera":
        more = {
            "reference_video": noise(B, 3, 3, H, W).clamp(-1, 1),
            "ref_index": torch.tensor([0, 1, 2]),
            "camera_qt": noise(B, F, 7),
            "camera_qt_ref": noise(B, 3, 7),
        }
    inputs = SampleInputs(
        image=noise(B, 3, H, W).clamp(-1, 1),
        prompt_embeds=noise(B, 512, text),
        negative_prompt_embeds=noise(B, 512, text),
        image_embeds=noise(B, *image[1:]),
        render_video=noise(B, 3, F, H, W).clamp(-1, 1),
        render_mask=(noise(B, 1, F, H, W) > 0).float(),
        camera_embedding=noise(B, 6, F, H, W),
        **more,
    )
    return inputs, name


@torch.no_grad()
@pytest.mark.parametrize("variant", ["camera", "memory", "dmd"])
@pytest.mark.parametrize("mode", ["full_vae", "first_frame_only"])
def test_one_step_is_noise_plus_velocity(variant, mode):
    """One step of either sampler by hand: encode, concatenate, two passes, a straight line to 0."""
    inputs, name = inputs_of(variant)
    model, vae = tiny_transformer(name), tiny_vae()
    noise = torch.randn(1, 16, 4, 6, 4, generator=torch.Generator().manual_seed(2))
    guidance = 3.5
    scheduler = FlowEuler(400, 1000, 2.0, 1) if variant == "dmd" else flow_unipc(5.0)
    found = sample(
        model, vae, inputs, scheduler=scheduler, latent_cond_mode=mode, steps=1,
        guidance=guidance, latents=noise, decode=False,
    )  # fmt: skip

    def latent(picture: Tensor) -> Tensor:
        raw = vae.vae.encode(picture[:, :, None]).latent_dist.mode()
        return (raw - vae.mean) / vae.std

    def frames(video: Tensor) -> Tensor:
        return torch.cat([latent(video[:, :, k]) for k in range(video.shape[2])], dim=2)

    if mode == "full_vae":
        video = torch.zeros(1, 3, 13, 48, 32)
        video[:, :, 0] = inputs.image
        raw = vae.vae.encode(video).latent_dist.mode()
        condition = (raw - vae.mean) / vae.std
    else:
        blank = torch.zeros(1, 3, 3, 48, 32)
        condition = frames(torch.cat([inputs.image[:, :, None], blank], dim=2))
    mask = torch.zeros(1, 4, 4, 6, 4)
    mask[:, :, 0] = 1
    more = {}
    if variant != "camera":
        assert inputs.reference_video is not None
        clean = frames(inputs.reference_video)
        more = {
            "reference_latent": torch.cat([clean, torch.ones(1, 4, 3, 6, 4), clean], dim=1),
            "ref_index": inputs.ref_index,
            "camera_qt": inputs.camera_qt,
            "camera_qt_ref": inputs.camera_qt_ref,
        }
    u = 0.999
    sigma = 2 * 0.4 / 1.4 if variant == "dmd" else 5 * u / (1 + 4 * u)
    timestep = sigma * 1000 if variant == "dmd" else int(sigma * 1000)

    def velocity(text: Tensor | None) -> Tensor:
        return model(
            hidden_states=torch.cat([noise, mask, condition], dim=1),
            timestep=torch.tensor([timestep]),
            encoder_hidden_states=text,
            encoder_hidden_states_image=inputs.image_embeds,
            render_latent=frames(inputs.render_video),
            render_mask=inputs.render_mask,
            camera_embedding=inputs.camera_embedding,
            **more,
        ).sample

    v = velocity(inputs.prompt_embeds)
    if variant != "dmd":  # the distilled variant takes no guidance, whatever is asked
        free = velocity(inputs.negative_prompt_embeds)
        v = free + guidance * (v - free)
    expected = noise - sigma * v
    assert difference(found.latents, expected) <= 1e-4


@torch.no_grad()
def test_clips_made_together_are_those_made_alone():
    inputs, name = inputs_of("memory", clips=2)
    model, vae = tiny_transformer(name), tiny_vae()
    noise = torch.randn(2, 16, 4, 6, 4, generator=torch.Generator().manual_seed(5))

    def made(which: slice) -> Tensor:
        part = {
            k: v if k == "ref_index" or v is None else v[which] for k, v in vars(inputs).items()
        }
        return sample(
            model, vae, SampleInputs(**part), scheduler=flow_unipc(3.0), latents=noise[which],
            latent_cond_mode="first_frame_only", steps=2, guidance=2.0,
        ).video  # fmt: skip

    together = made(slice(0, 2))
    for k in range(2):
        assert difference(together[k : k + 1], made(slice(k, k + 1))) <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("variant", ["camera", "dmd"])
def test_a_guide_may_be_a_whole_video(variant):
    """13 frames for 4 keyframes go through the temporal VAE; not for the memory variant."""
    inputs, name = inputs_of(variant)
    model, vae = tiny_transformer(name), tiny_vae()
    video = torch.rand(1, 3, 13, 48, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    options = {"latent_cond_mode": "full_vae", "steps": 1, "guidance": 1.0, "decode": False}
    noise = torch.randn(1, 16, 4, 6, 4, generator=torch.Generator().manual_seed(2))

    def made(guide: Tensor, **more: int) -> Tensor:
        part = vars(inputs) | {"render_video": guide}
        scheduler = FlowEuler(250, 1000, 1, 2) if variant == "dmd" else flow_unipc()
        return sample(
            model, vae, SampleInputs(**part), scheduler=scheduler, latents=noise, **options, **more
        ).latents

    found = made(video, num_frames=13)
    seen = {}
    branch: Any = model.controlnet
    stream = branch.stream

    def spy(control_input, add_inputs, temb):
        seen["render"] = control_input[:, 20:]
        return stream(control_input, add_inputs, temb)

    branch.stream = spy
    assert torch.equal(made(video, num_frames=13), found)
    raw = vae.vae.encode(video).latent_dist.mode()
    assert difference(seen["render"], (raw - vae.mean) / vae.std) <= 2e-5
    with pytest.raises(ValueError, match="render_video must hold 4 or 13 frames, got 9"):
        made(video[:, :, :9], num_frames=13)
    memory, name = inputs_of("memory")
    with pytest.raises(ValueError, match="render_video must hold 4 frames, got 13"):
        part = vars(memory) | {"render_video": video}
        sample(
            tiny_transformer(name), vae, SampleInputs(**part), scheduler=flow_unipc(),
            num_frames=13, **options,
        )  # fmt: skip


# ---- retrieval and lifting -----------------------------------------------------------------------


def plain_score(
    K: np.ndarray, w2c: np.ndarray, bank_K: np.ndarray, bank: np.ndarray, size
) -> float:
    boxes, axes = [], []
    for k, pose in ((K, w2c), (bank_K, bank)):
        c2w, corners = np.linalg.inv(pose), []
        for u, v in ((0, 0), (size[0], 0), size, (0, size[1])):
            ray = np.linalg.inv(k) @ np.array([u, v, 1.0])
            for length in (0.1, 10.0):
                corners.append(c2w[:3, :3] @ (ray / np.linalg.norm(ray) * length) + c2w[:3, 3])
        boxes.append((np.min(corners, axis=0), np.max(corners, axis=0)))
        axes.append(c2w[:3, 2])
    (a0, a1), (b0, b1) = boxes
    sides = np.minimum(a1, b1) - np.maximum(a0, b0)
    common = float(np.prod(sides)) if (sides > 0).all() else 0.0
    union = float(np.prod(a1 - a0) + np.prod(b1 - b0)) - common
    angle = math.degrees(math.acos(np.clip(axes[0] @ axes[1], -1, 1)))
    return common / (union + 1e-8) * min(1.0, math.exp(5 * (90 - angle) / 180))


@SOME
@given(SEED, st.integers(2, 30), st.integers(1, 9), st.floats(0.5, 40))
def test_retrieval_by_loops(seed, frames, entries, reach):
    """Scores, winners and slots of any path and bank; far, turned away and repeated cameras too."""
    rng = np.random.default_rng(seed)
    size = (48, 32)
    w2c, K = poses(rng, frames, reach), intrinsics(rng, frames, *size)
    bank_w2c, bank_K = poses(rng, entries, reach), intrinsics(rng, entries, *size)
    table = np.array(
        [[plain_score(K[i], w2c[i], bank_K[j], bank_w2c[j], size) for j in range(entries)]
         for i in range(frames)]
    )  # fmt: skip
    given_ = (tensor(K), tensor(w2c), tensor(bank_K), tensor(bank_w2c))
    found = scores(*given_, *size).penalised.double().numpy()
    assert np.abs(found - table).max() <= 1e-5
    bank = MemoryBank(tuple(map(str, range(entries))), given_[2], given_[3], *size)
    shown = range(frames) if frames <= 21 else range(0, frames, 4)
    winners = [int(found[i].argmax()) for i in list(shown)[1:]]
    if len(set(winners)) > 8:
        return
    got = retrieve(bank, *given_[:2])
    slots: list[int] = []
    for slot, entry in enumerate(winners):
        if entry not in [winners[s] for s in slots]:
            slots.append(slot)
    assert list(got.ref_index) == slots and list(got.retrieved) == winners
    assert [winners[s] for s in slots] == list(got.entries)
    assert torch.equal(got.w2c, given_[3][[winners[s] for s in slots]])


@SOME
@given(SEED, st.integers(4, 9), st.integers(4, 9), st.booleans())
def test_lifting_pixel_by_pixel(seed, height, width, holes):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1, 3, (height, width))
    depth[rng.random((height, width)) < 0.1] = 90.0  # beyond eight medians: pulled in
    invalid = (rng.random((height, width)) < 0.15) & holes
    image = rng.uniform(-1, 1, (3, height, width))
    K, w2c = intrinsics(rng, 1, width, height)[0], poses(rng, 1)[0]
    points, colors = lift_depth(
        tensor(depth), tensor(image), tensor(K), tensor(w2c), torch.from_numpy(invalid)
    )
    z = np.where(invalid, 0, depth)
    known = np.sort(z[z > 0])
    m = 8 * known[(len(known) - 1) // 2]
    z = np.where(z > m, 2 * m - m * m / (z + 1e-6), z)
    disparity = 1 / (z + 1e-7)
    low, high = disparity.min(), disparity.max()
    padded = np.pad((disparity - low) / (high - low + 1e-6), 1, mode="edge")
    expected_points, expected_colors, near = [], [], False
    c2w = np.linalg.inv(w2c)
    for r in range(height):
        for c in range(width):
            p = padded[r : r + 3, c : c + 3]
            gx = p[:, 2] @ [1, 2, 1] - p[:, 0] @ [1, 2, 1]
            gy = p[2] @ [1, 2, 1] - p[0] @ [1, 2, 1]
            sharp = math.exp(-10 * math.hypot(gx, gy))
            near = near or abs(sharp - 0.35) < 1e-4  # rounding decides
            if invalid[r, c] or sharp < 0.35:
                continue
            ray = np.linalg.inv(K) @ np.array([c + 0.5, r + 0.5, 1])
            expected_points.append(c2w[:3, :3] @ (ray * z[r, c]) + c2w[:3, 3])
            expected_colors.append(image[:, r, c])
    if near:
        return
    if len(expected_points) < 9:
        assert len(points) == len(colors) == 0
        return
    assert difference(points, torch.from_numpy(np.array(expected_points))) <= 2e-4
    assert difference(colors, torch.from_numpy(np.array(expected_colors))) <= 1e-6
