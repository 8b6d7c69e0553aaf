"""The training recipe: seeded, resumable to the same bits, and its memories carry information."""

from dataclasses import replace

import pytest
import torch

from train.compact import BETWEEN, Plan, fresh, measured, rooms, run
from worldstereo import WorldStereo


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return Plan(
        out=tmp_path_factory.mktemp("run"), rooms=3, held=2, size=32, steps=4, save_every=1,
        report_every=100, threads=1,
    )  # fmt: skip


def test_a_run_that_was_stopped_ends_with_the_same_bits(plan, tmp_path):
    table = run(plan)
    half = replace(plan, out=tmp_path)
    for name in ("rooms", "held"):
        file = f"{name}-{plan.size}-{plan.seed}.safetensors"
        (tmp_path / file).write_bytes((plan.out / file).read_bytes())
    calls = []

    def stopping(*_args, **_facts):
        raise KeyboardInterrupt

    import train.compact as recipe

    whole = recipe.save

    def save_then_stop(*args):
        whole(*args)
        calls.append(args[-1])
        if args[-1] == 2:
            stopping()

    recipe.save = save_then_stop
    try:
        with pytest.raises(KeyboardInterrupt):
            run(half)
        assert run(half) == table
    finally:
        recipe.save = whole
    assert calls == [1, 2, 3, 4]
    one, two = (WorldStereo.from_pretrained(p.out / "model", device="cpu") for p in (plan, half))
    weights = dict(two.named_parameters())
    assert all(torch.equal(p, weights[n]) for n, p in one.named_parameters())


def test_untrained_branches_add_nothing(plan):
    """Zero-built ends: the four rows of the table are one before the first step."""
    table = measured(fresh(plan.seed), rooms(plan, True), 1)
    assert len(set(table.values())) == 1


def test_rooms_are_seen_alike_from_their_cameras(plan):
    """The cloud of the references, projected into a view between them, has its colours."""
    for room in rooms(plan, False):
        camera = room.cameras[BETWEEN][1]
        pixels, depth = camera.project(room.cloud[:, :3])
        inside = (depth > 0.1) & (pixels > 0).all(1) & (pixels < plan.size).all(1)
        assert float(inside.float().mean()) > 0.2
        u, v = pixels[inside].long().T
        seen = room.color[BETWEEN][1][:, v, u].T
        apart = (seen - room.cloud[inside, 3:]).abs().mean()
        shuffled = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))]
        assert float(apart) < 0.7 * float((shuffled - room.cloud[inside, 3:]).abs().mean())


def test_a_bad_plan_is_named():
    with pytest.raises(ValueError, match="size.*multiple of 8"):
        Plan(size=50)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Plan(steps=0)
