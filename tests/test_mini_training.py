"""Damage done while training, and the loss: against plain arithmetic, never against the figures."""

import json
from itertools import permutations

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.test_mini import random_maps
from train.damage import Leftover, damaged, enlarged
from train.run import Plan, objective, run, schedule
from train.tuples import Pool, pack, unpack
from worldstereo._mini.inputs import MiniInputs, batched
from worldstereo._mini.network import MiniNetwork

NONE = Leftover(moved=0, exact=0, exposure=0, noise=0, pale=0, enlarged=0)


def batch(n=3, side=48):
    items = [random_maps(side, side, seed=i) for i in range(n)]
    maps = batched(items)
    colors = maps.references[:, :, :3] * 2 - 1
    valid = (maps.references[:, :, 3:4] > 0.3).float()
    shown = torch.cat([colors, maps.references[:, :, 3:]], 2) * valid
    maps = maps._replace(references=shown)
    truth = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(9)) * 2 - 1
    return maps, truth, torch.rand(n, 1, side, side)


def test_no_damage_is_the_same_batch_up_to_sign_and_order_of_channels():
    maps, truth, closeness = batch()
    seen, moved, depth = damaged(maps, truth, closeness, NONE, torch.Generator().manual_seed(0))
    torch.testing.assert_close(depth, closeness, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.references[:, :, 3:], maps.references[:, :, 3:])
    for i in range(len(truth)):
        fits = [
            (sign, order)
            for sign in (1, -1)
            for order in permutations(range(3))
            if torch.allclose(sign * moved[i], truth[i, list(order)], atol=1e-5)
        ]
        assert len(fits) == 1
        sign, order = fits[0][0], list(fits[0][1])
        for one, other in ((seen.anchor, maps.anchor), (seen.references, maps.references)):
            torch.testing.assert_close(
                sign * one[i, ..., :3, :, :], other[i, ..., order, :, :], atol=1e-5, rtol=0
            )


def test_the_anchor_follows_its_references():
    """All references twice as bright by one: the anchor where known moves by as much, else not."""
    maps, truth, closeness = batch()
    same = maps.references.clone()
    same[:, :, 3:5] = 0.5  # all valid, all as far
    same[:, :, :3] = 0.2
    maps = maps._replace(references=same, anchor=torch.zeros_like(maps.anchor))
    how = Leftover(moved=0, exact=0, exposure=0.2, noise=0, pale=0)
    seen, _, _ = damaged(maps, truth, closeness, how, torch.Generator().manual_seed(2))
    tone = seen.anchor - (seen.references[:, :, :3].mean(1) - _toned(0.2, seen)) * maps.known
    assert float(tone.abs().max()) < 1e-5


def _toned(value: float, seen: MiniInputs):
    """+value or -value: what the references were before their exposure changed."""
    return value * seen.references[:, :, :3].mean((1, 2, 3, 4)).sign()[:, None, None, None]


def test_a_smooth_displacement_moves_a_ramp_by_its_length():
    """A horizontal ramp shows the displacement itself; its median is what was asked for."""
    side, lengths = 64, []
    ramp = torch.linspace(-1, 1, side).expand(1, 3, side, side)
    known = torch.ones(1, 1, side, side)
    empty = torch.zeros(1, 3, 6, side, side)
    splat, rays = torch.zeros(1, 4, side, side), torch.zeros(1, 6, side, side)
    maps = MiniInputs(ramp, known, known, known, splat, rays, empty)
    how = Leftover(moved=1, exact=0, drift=2, exposure=0, noise=0, pale=0)
    for seed in range(200):
        _, truth, _ = damaged(maps, ramp, known, how, torch.Generator().manual_seed(seed))
        change = ((truth.abs() - ramp.abs()) * (side - 1) / 2)[..., 8:24].abs()
        lengths.append(float(change.median()))
    assert 0.2 < sorted(lengths)[100] < 1.5  # half of 2, one of two axes
    assert max(lengths) > 2


def test_a_reference_from_the_same_place_hardly_moves():
    """Displacement grows with the angle; the truth stays with its nearest reference."""
    side = 64
    ramp = torch.linspace(-1, 1, side).expand(1, 3, side, side)
    known = torch.ones(1, 1, side, side)
    references = torch.zeros(1, 3, 6, side, side)
    references[:, :, :3], references[:, :, 3] = ramp[:, None], 0.9
    references[:, 0, 4], references[:, 1, 4], references[:, 2, 4] = 0.0, 0.1, 0.5
    splat, rays = torch.zeros(1, 4, side, side), torch.zeros(1, 6, side, side)
    maps = MiniInputs(ramp, known, known, known, splat, rays, references)
    how = Leftover(moved=1, exact=0, exposure=0, noise=0, pale=0)
    moved = torch.zeros(4)
    for seed in range(60):
        seen, truth, _ = damaged(maps, ramp, known, how, torch.Generator().manual_seed(seed))
        shown = torch.cat([seen.references[0, :, :3], truth]) * (seen.anchor * ramp).mean().sign()
        moved += (shown - ramp).abs().mean((1, 2, 3)) * (side - 1) / 2 / 60
    first, second, third, target = moved.tolist()
    assert 0.02 < target < first < 0.3 * second
    assert 1.5 * second < third


def test_an_exact_crop_shows_the_truth_a_little_softer():
    """Smooth truth comes back; a checkerboard loses contrast, and no reference is displaced."""
    maps, truth, closeness = batch(2, 64)
    rows = torch.linspace(0, 3, 64)
    smooth = (rows[:, None] + rows.flip(0)[None, :]).sin().expand(2, 3, 64, 64)
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1).expand(2, 3, 64, 64)
    how = Leftover(moved=0, exact=1, exposure=0, noise=0, pale=0)
    for truth, softer in ((smooth, False), (board, True)):
        seen, answer, _ = damaged(maps, truth, closeness, how, torch.Generator().manual_seed(3))
        valid = (seen.references[:, :, 3:4] > 0).float()
        shown = (seen.anchor, maps.known * valid.amax(1))
        inside = (..., slice(4, 60), slice(4, 60))
        error = ((shown[0] - answer) * shown[1])[inside].abs()
        assert (float(error.mean()) < 0.02) != softer
        torch.testing.assert_close(answer.abs(), truth.abs(), atol=1e-4, rtol=0)
        change = ((seen.references[:, :, :3] - answer[:, None]) * valid)[inside]
        assert float(change.abs().mean()) < (0.9 if softer else 0.02)


def test_damage_is_repeatable_and_leaves_its_input_alone():
    maps, truth, closeness = batch()
    kept = [m.clone() for m in maps]
    one, two = (
        damaged(maps, truth, closeness, Leftover(), torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))
    assert torch.equal(one[1], two[1])
    assert all(torch.equal(a, b) for a, b in zip(maps, kept, strict=True))
    assert all(bool(torch.isfinite(m).all()) for m in one[0])
    invalid = one[0].references[:, :, 3:4] == 0
    assert float((one[0].references * invalid).abs().max()) == 0


def test_an_enlarged_crop_keeps_masks_and_classes_whole():
    maps, truth, closeness = batch(1, 32)
    packed = pack(MiniInputs(*(m[0] for m in maps)), truth[0], closeness[0])
    big = enlarged(packed, 64)
    assert big["truth"].shape == (3, 64, 64)
    assert set(big["known"].unique().tolist()) <= {0, 1}
    assert torch.equal(big["bins"][:, ::2, ::2], packed["bins"])
    assert enlarged(packed, 32) is packed


@torch.no_grad()
def test_loss_of_the_anchor_itself_is_one_and_harm_counts_twice():
    """Nothing corrected: each crop's share is before / (before + 0.01); worse than that costs."""
    maps, truth, closeness = batch()
    network = MiniNetwork().eval()
    estimate = network.denoise(truth, torch.ones(len(truth)), maps, None)
    quiet = estimate._replace(log_scale=torch.zeros_like(estimate.log_scale))
    depth = ((2 - maps.known) * (maps.closeness - closeness).abs()).mean()
    wrong = (estimate.color - truth).abs().mean()
    at_rest = objective(quiet, maps, truth, closeness, harm=1.0) - 0.1 * depth - 0.06 * wrong
    assert 0.9 < float(at_rest) < 1.0
    worse = quiet._replace(
        scaled=quiet.scaled - 3 * (truth - maps.anchor).repeat(1, 2, 1, 1)[:, :5]
    )
    plain, harmed = (objective(worse, maps, truth, closeness, harm=h) for h in (0.0, 1.0))
    assert float(harmed - plain) > 0.5 * float(plain - at_rest)


def test_schedule_rises_stays_and_falls():
    assert schedule(0, 1000) == 1 / 200
    assert schedule(400, 1000) == 1
    assert abs(schedule(875, 1000) - 0.5) < 1e-6
    assert schedule(1000, 1000) == 0.01


def test_a_run_resumes_and_draws_other_crops(tmp_path):
    """Two slices: the second begins where the first ended, and not with the first one's crops."""
    maps, truth, closeness = batch(4, 48)
    packed = [
        pack(MiniInputs(*(m[i] for m in maps)), truth[i], closeness[i]) for i in range(4)
    ]  # fmt: skip
    shard = {name: torch.stack([p[name] for p in packed]) for name in packed[0]}
    (tmp_path / "tuples").mkdir()
    save_file(shard, tmp_path / "tuples" / "tuples-0.safetensors")
    pool = Pool(tmp_path / "tuples", 32, 0)
    first, second = (pool.batch(4, step)["truth"] for step in (0, 2))
    assert not torch.equal(first, second)
    for workers in (0, 2):
        coming = pool.batches(4, 0, workers)
        in_turn = [next(coming)["truth"] for _ in range(3)]
        coming.close()
        assert torch.equal(in_turn[0], first)
        assert torch.equal(in_turn[2], second)
    for steps in (2, 4):
        run(Plan(tuples=tmp_path / "tuples", out=tmp_path / "run", steps=steps, batch=2, crop=32))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["step"], facts["updates"]) == (4, 4)
    files = sorted((tmp_path / "run").glob("*.safetensors"))
    assert [f.stem for f in files] == ["ema", "exp_avg", "exp_avg_sq", "weights"]
    assert all(f.stat().st_size < 15e6 for f in files)
    state = [f.read_bytes() for f in files]
    run(Plan(tuples=tmp_path / "tuples", out=tmp_path / "run", steps=4, batch=2, crop=32))
    assert [f.read_bytes() for f in files] == state
    unpacked, back, _ = unpack(shard)
    torch.testing.assert_close(back, truth, atol=1 / 127, rtol=0)
    assert F.mse_loss(unpacked.anchor, maps.anchor.clamp(-1, 1)) < 1e-4
