"""Stitched attention against an unfused double-precision reference; constraints and their mask."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parity import Fixture, difference, tiny_transformer
from worldstereo.cameras import Cameras
from worldstereo.generators.diffusion import (
    AttentionProbe,
    ReferenceConstraint,
    TokenGrid,
    attention_row,
    attention_rows,
    correspondence_pairs,
)


def inputs() -> dict[str, torch.Tensor]:
    return Fixture("worldstereo_refs_tiny").below("input/")


@torch.no_grad()
def unfused_rows(model, layer: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Every attention row of a layer (B, heads, all, all) in float64, from the block's input."""
    seen = {}
    block = model.blocks[layer]

    def keep(module, args, kwargs):
        seen["hidden"], seen["reference"], _, seen["temb"], seen["rotary"] = args

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    model(**inputs())
    handle.remove()
    e = (block.scale_shift_table + seen["temb"]).double().chunk(6, dim=1)
    weights = {k: v.double() for k, v in block.attn1.state_dict().items()}
    heads, sides = block.attn1.heads, []
    for stream, tables in (("reference", seen["rotary"][2:]), ("hidden", seen["rotary"][:2])):
        x = seen[stream].double()
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        x = x * (1 + e[1]) + e[0]
        out = []
        for name in ("q", "k"):
            y = x @ weights[f"to_{name}.weight"].T + weights[f"to_{name}.bias"]
            y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            y = (y * weights[f"norm_{name}.weight"]).unflatten(-1, (heads, -1))
            # a rotation of each pair as a complex product: another way than the model's
            turn = torch.complex(tables[0][..., 0::2].double(), tables[1][..., 0::2].double())
            pairs = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * turn
            out.append(torch.view_as_real(pairs).flatten(-2))
        sides.append(out)
    q, k = (torch.cat([sides[0][i], sides[1][i]], dim=1).transpose(1, 2) for i in (0, 1))
    score = q @ k.mT / math.sqrt(q.shape[-1])
    return (score if bias is None else score + bias.double()).softmax(-1)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_row_equals_the_unfused_reference(layer):
    model = tiny_transformer("worldstereo_refs_tiny")
    probe = AttentionProbe(layer, (0, 13, 23))
    model.set_probe(probe)
    with torch.no_grad():
        model(**inputs())
    model.set_probe(None)
    rows = attention_rows(probe)
    expected = unfused_rows(model, layer)[:, :, [12 + token for token in probe.tokens]]
    assert difference(rows, expected) <= 1e-5
    assert difference(rows.sum(-1), torch.ones_like(rows[..., 0])) <= 1e-5


def test_a_row_knows_its_window_and_share():
    model = tiny_transformer("worldstereo_refs_tiny")
    grid = TokenGrid(frames=4, references=2, rows=2, columns=3)
    token = grid.target(2, 1, 0)
    probe = AttentionProbe(1, (token,))
    model.set_probe(probe)
    with torch.no_grad():
        model(**inputs())
    pairs = torch.tensor([[token, token, token + 1], [4, 11, 0]])
    row = attention_row(probe, grid, pairs, step=7)
    rows = unfused_rows(model, 1)[0, :, 12 + token, :12].mean(0)
    assert row.token == (2, 1, 0) and row.layer == 1 and row.step == 7
    assert row.window.flatten().nonzero().flatten().tolist() == [4, 11]
    assert row.share == pytest.approx(float((rows[4] + rows[11]) / rows.sum()), abs=1e-5)
    assert row.reference_mass == pytest.approx(float(rows.sum()), abs=1e-5)
    with pytest.raises(ValueError, match=r"column must be 0 \.\. 2, got 3"):
        grid.target(0, 0, 3)


def test_none_is_bit_equal_and_all_pairs_are_no_constraint():
    model, given_inputs = tiny_transformer("worldstereo_refs_tiny"), inputs()
    everything = torch.cartesian_prod(torch.arange(24), torch.arange(12)).T
    with torch.no_grad():
        plain = model(**given_inputs).sample
        model.set_constraint(ReferenceConstraint("none", torch.zeros(2, 0, dtype=torch.int64)))
        assert torch.equal(model(**given_inputs).sample, plain)
        model.set_constraint(None)
        assert torch.equal(model(**given_inputs).sample, plain)
        for mode in ("mask", "bias"):
            model.set_constraint(ReferenceConstraint(mode, everything))
            assert difference(model(**given_inputs).sample, plain) <= 2e-5


@pytest.mark.parametrize("mode", ["mask", "bias"])
def test_constrained_blocks_are_masked_softmax(mode):
    """The probe's rows with the constraint are those of a dense bias on the reference columns."""
    model = tiny_transformer("worldstereo_refs_tiny")
    pairs = torch.tensor([[0, 0, 5, 23], [1, 7, 3, 11]])
    constraint = ReferenceConstraint(mode, pairs, strength=3.0)
    bias = torch.zeros(36, 36)
    bias[12:, :12] = -torch.inf if mode == "mask" else -3.0
    bias[12 + pairs[0], pairs[1]] = 0
    model.set_constraint(constraint)
    probe = AttentionProbe(2, (0, 1, 5))
    model.set_probe(probe)
    with torch.no_grad():
        model(**inputs())
    rows = attention_rows(probe, constraint)
    model.set_probe(None)
    expected = unfused_rows(model, 2, bias)[:, :, [12, 13, 17]]
    assert difference(rows, expected) <= 1e-5
    if mode == "mask":
        assert float(rows[:, :, 1, :12].abs().max()) == 0  # nothing corresponds: nothing is seen
        assert float(rows[:, :, 1, 12:].min()) > 0  # targets stay visible


def test_masked_attention_by_chunks_is_the_dense_one(monkeypatch):
    from worldstereo.generators.diffusion import attention

    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 7 + 11, 2, 6) for _ in range(3))
    pairs = torch.stack([torch.arange(11), torch.arange(11) % 7])
    bias = torch.zeros(18, 18)
    bias[7:, :7] = -torch.inf
    bias[7 + pairs[0], pairs[1]] = 0
    score = torch.einsum("bqhd,bkhd->bhqk", q, k) / 6**0.5 + bias
    expected = torch.einsum("bhqk,bkhd->bqhd", score.softmax(-1), v)
    constraint = ReferenceConstraint("mask", pairs)
    for chunk in (3, 2048):
        monkeypatch.setattr(attention, "_CHUNK", chunk)
        assert difference(attention.constrained(q, k, v, 7, constraint), expected) <= 1e-6


@settings(max_examples=8, deadline=None)
@given(st.floats(-0.25, 0.25), st.floats(-0.2, 0.2), st.integers(0, 3))
def test_correspondences_of_a_wall_are_where_it_projects(shift_x, shift_y, seed):
    """A wall at depth 4 seen by two shifted cameras: tokens pair with where their point lands."""
    K = torch.tensor([[60.0, 0.0, 48.0], [0.0, 60.0, 32.0], [0.0, 0.0, 1.0]])
    target, reference = torch.eye(4), torch.eye(4)
    reference[0, 3], reference[1, 3] = shift_x, shift_y
    depth = torch.full((1, 1, 64, 96), 4.0)
    cameras = Cameras(K[None], target[None], 96, 64)
    others = Cameras(K[None], reference[None], 96, 64)
    pairs = correspondence_pairs(depth, cameras, depth, others, window=24.0)
    expected = set()
    for t in range(24):
        for r in range(24):
            u = r % 6 * 16 + 8.5 + 60 * shift_x / 4 - (t % 6 * 16 + 8.5)
            v = r // 6 * 16 + 8.5 + 60 * shift_y / 4 - (t // 6 * 16 + 8.5)
            if max(abs(u), abs(v)) <= 12:
                expected.add((t, r))
    assert set(map(tuple, pairs.T.tolist())) == expected
    hidden = correspondence_pairs(depth * 0, cameras, depth, others)
    assert hidden.shape == (2, 0)


@pytest.mark.parametrize("count", [0, 9])
def test_reference_counts_outside_1_to_8_are_refused(count):
    model, given_inputs = tiny_transformer("worldstereo_refs_tiny"), inputs()
    given_inputs["reference_latent"] = torch.zeros(1, 36, count, 4, 6)
    given_inputs["ref_index"] = torch.zeros(count, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"references must be 1 to 8, got {count}"):
        model(**given_inputs)
    given_inputs["reference_latent"] = None
    with pytest.raises(ValueError, match="references must be 1 to 8, got 0"):
        model(**given_inputs)


def test_wrong_inputs_are_named():
    model = tiny_transformer("worldstereo_refs_tiny")
    for name, value, match in (
        ("hidden_states", torch.zeros(1, 16, 4, 4, 6), "hidden_states must be"),
        ("hidden_states", torch.zeros(1, 36, 4, 3, 6), "multiples of 16"),
        ("encoder_hidden_states", torch.zeros(1, 77, 32), "512 text tokens"),
        ("render_mask", None, "render_latent and render_mask are required"),
        ("render_mask", torch.zeros(1, 1, 3, 32, 48), "render_mask and camera_embedding|Sizes"),
        ("camera_embedding", None, "must give 7 channels"),
        ("ref_index", torch.zeros(3, dtype=torch.int64), "one slot for each of 2"),
        ("extrinsics", torch.tensor([torch.nan]), "extrinsics must hold only finite"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=match):
            model(**(inputs() | {name: value}))
