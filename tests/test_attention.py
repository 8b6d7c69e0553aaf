"""Pair attention against a dense float64 softmax and a slow loop, on both paths."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldstereo.memory import attention
from worldstereo.memory.attention import csr_attention, dense_attention, has_numba, pair_attention

N, M, D, C = 17, 13, 12, 6  # sizes that cannot be confused; 12 and 6 split into heads

PATHS = [False] + ([True] if has_numba() else [])


def example(
    seed: int, share: float = 0.4, size: tuple[int, int] = (N, M)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    n, m = size
    q, k = torch.randn(n, D, generator=g), torch.randn(m, D, generator=g)
    v, mask = torch.randn(m, C, generator=g), torch.rand(n, m, generator=g) < share
    mask[0] = False  # a query with nothing to attend
    return q, k, v, mask


def dense_oracle(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, heads: int):
    """Masked softmax in float64: output (N, C) and weights (N, M, heads)."""
    outputs, weights = [], []
    q, k, v = q.double(), k.double(), v.double()
    for h in range(heads):
        a, b = D // heads, C // heads
        qh, kh, vh = q[:, h * a : (h + 1) * a], k[:, h * a : (h + 1) * a], v[:, h * b : (h + 1) * b]
        score = (qh @ kh.T / math.sqrt(a)).masked_fill(~mask, -torch.inf)
        weight = score.softmax(dim=-1).nan_to_num()
        outputs.append(weight @ vh)
        weights.append(weight)
    return torch.cat(outputs, dim=1), torch.stack(weights, dim=-1)


def grouped(mask: Tensor) -> tuple[Tensor, Tensor]:
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    return offsets, mask.nonzero()[:, 1]


def test_pair_attention_is_masked_softmax():
    q, k, v, mask = example(0)
    dense = (q @ k.T / D**0.5).masked_fill(~mask, -torch.inf).softmax(dim=-1).nan_to_num() @ v
    out, _ = pair_attention(q, k, v, *mask.nonzero(as_tuple=True))
    torch.testing.assert_close(out, dense)


@pytest.mark.parametrize("compiled", PATHS)
@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@pytest.mark.parametrize("per_head", [False, True])
def test_both_paths_are_within_2e_6_of_float64(compiled, heads, per_head):
    q, k, v, mask = example(heads)
    offsets, column = grouped(mask)
    result = csr_attention(
        q, k, v, offsets, column, num_heads=heads, per_head=per_head, compiled=compiled
    )
    output, weights = dense_oracle(q, k, v, mask, heads)
    expected = weights[mask] if per_head else weights[mask].mean(-1)
    assert (result.output.double() - output).abs().max() < 2e-6
    assert (result.weights.double() - expected).abs().max() < 2e-6
    assert (result.output[0] == 0).all()


@pytest.mark.parametrize("compiled", PATHS)
def test_scores_that_overflow_exp_are_handled(compiled):
    q, k, v, mask = example(5)
    offsets, column = grouped(mask)
    result = csr_attention(300 * q, k, v, offsets, column, compiled=compiled)
    output, _ = dense_oracle(300 * q, k, v, mask, 1)
    torch.testing.assert_close(result.output.double(), output, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compiled", PATHS)
def test_many_chunks_and_one_crowded_query(compiled):
    """More queries than one task takes, and one query that attends everything."""
    q, k, v, mask = example(2, share=0.05, size=(1201, 211))
    mask[7] = True
    offsets, column = grouped(mask)
    result = csr_attention(q, k, v, offsets, column, num_heads=2, compiled=compiled)
    output, weights = dense_oracle(q, k, v, mask, 2)
    assert (result.output.double() - output).abs().max() < 2e-6
    assert (result.weights.double() - weights[mask].mean(-1)).abs().max() < 2e-6


def test_the_torch_path_works_piece_by_piece(monkeypatch):
    q, k, v, mask = example(8, share=0.3, size=(61, 37))
    mask[5] = True  # one query with more pairs than a piece holds
    offsets, column = grouped(mask)
    whole = csr_attention(q, k, v, offsets, column, num_heads=2, compiled=False)
    monkeypatch.setattr(attention, "MIN_CHUNK_PAIRS", 29)
    monkeypatch.setattr(attention, "PAIR_BYTES", 1 << 20)
    assert len(attention._pieces(offsets, 2)) > 5
    pieces = csr_attention(q, k, v, offsets, column, num_heads=2, compiled=False)
    torch.testing.assert_close(pieces.output, whole.output, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pieces.weights, whole.weights, rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0, 1), heads=st.sampled_from([1, 2]))
def test_the_order_of_pairs_does_not_matter(seed, share, heads):
    q, k, v, mask = example(seed, share)
    row, column = mask.nonzero(as_tuple=True)
    shuffle = torch.randperm(len(row), generator=torch.Generator().manual_seed(seed))
    straight = pair_attention(q, k, v, row, column, num_heads=heads)
    mixed = pair_attention(q, k, v, row[shuffle], column[shuffle], num_heads=heads)
    torch.testing.assert_close(mixed.output, straight.output)
    torch.testing.assert_close(mixed.weights, straight.weights[shuffle])
    sums = torch.zeros(N).index_add(0, row, straight.weights)
    torch.testing.assert_close(sums, mask.any(1).float())


def test_gradients_are_those_of_the_dense_form():
    q, k, v, mask = example(3)
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    out, _ = pair_attention(q, k, v, *mask.nonzero(as_tuple=True), num_heads=2)
    probe = torch.randn(N, C, generator=torch.Generator().manual_seed(1)).double()
    sparse = torch.autograd.grad((out * probe).sum(), (q, k, v))
    dense = torch.autograd.grad((dense_oracle(q, k, v, mask, 2)[0] * probe).sum(), (q, k, v))
    for a, b in zip(sparse, dense, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype(dtype):
    q, k, v, mask = (x.to(dtype) if x.is_floating_point() else x for x in example(4))
    out, weights = pair_attention(q, k, v, *mask.nonzero(as_tuple=True))
    assert out.dtype == dtype and weights.dtype == dtype
    expected, _ = dense_oracle(q, k, v, mask, 1)
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)


def test_nothing_to_attend_gives_zeros():
    q, k, v, _ = example(0)
    none = torch.zeros(0, dtype=torch.int64)
    out, weights = pair_attention(q, k, v, none, none)
    assert out.shape == (N, C) and (out == 0).all() and weights.shape == (0,)
    out, weights = pair_attention(q[:0], k, v, none, none)
    assert out.shape == (0, C)
    out, weights = dense_attention(q, k[:0], v[:0])
    assert out.shape == (N, C) and (out == 0).all() and weights.shape == (N, 0)


def test_dense_attention_is_pair_attention_over_all_pairs():
    q, k, v, _ = example(6)
    out, weights = dense_attention(q, k, v, num_heads=3)
    expected, each = dense_oracle(q, k, v, torch.ones(N, M, dtype=torch.bool), 3)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights.double(), each.mean(-1), rtol=1e-5, atol=1e-6)


def test_errors_name_what_is_wrong():
    q, k, v, mask = example(0)
    row, column = mask.nonzero(as_tuple=True)
    with pytest.raises(ValueError, match=r"column holds 13; only 0 to 12"):
        pair_attention(q, k, v, row, column + (column == 12).long())
    with pytest.raises(ValueError, match=r"row holds -1; only 0 to 16"):
        pair_attention(q, k, v, row - (row == 1).long() * 2, column)
    with pytest.raises(ValueError, match=r"num_heads must divide.*got 5"):
        pair_attention(q, k, v, row, column, num_heads=5)
