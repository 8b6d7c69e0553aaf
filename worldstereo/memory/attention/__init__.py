"""Softmax attention over explicit (query, entry) pairs; cost follows the pairs.

Pairs are grouped by query (CSR): the entries of query `i` are `column[offsets[i]:offsets[i + 1]]`.
Two paths give the same answer. `sampled_addmm` -> segment softmax -> `embedding_bag` needs nothing
but torch, runs on any device and is differentiable in q, k and v; a fused kernel takes over on the
CPU in float32 when no gradient is asked for. Neither stores anything of size pairs x channels.

Bounds per pair and channel: 4 operations, and 8 bytes read (one row of k, one of v).

Source: Vaswani et al. 2017, eq. 1; receptive field after WorldStereo, arXiv:2603.02049.
"""

import importlib.util
import itertools
import threading
import warnings
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

PAIR_BYTES = 40  # what the torch path needs for a pair it works on, beside the results
MIN_CHUNK_PAIRS = 1 << 14  # with fewer at once, calling the operators takes longer than they do
CHUNK = 512  # queries per task of the fused kernel: a few tenths of a millisecond of work


class AttentionResult(NamedTuple):
    """Unpacks as `output, weights`. Zero rows mean "nothing corresponds"."""

    output: Tensor
    """(N, C), like the values."""
    weights: Tensor
    """(P,): one weight per pair, the mean over heads; (P, heads) where asked for per head."""


def pair_attention(
    q: Float[Tensor, "N D"],
    k: Float[Tensor, "M D"],
    v: Float[Tensor, "M C"],
    row: Int[Tensor, "P"],
    column: Int[Tensor, "P"],
    *,
    num_heads: int = 1,
    per_head: bool = False,
) -> AttentionResult:
    """Exact softmax attention over the given (query, entry) pairs and nothing else.

    Pairs may come in any order; weights come back in that order. Time and memory follow the number
    of pairs, never N x M. A query without a pair gets zeros and no weight: it shows new surface,
    and the caller falls back on global guidance.

    Args:
        num_heads: heads split the channels of q, k and v.
        per_head: return (P, num_heads) weights instead of their mean over heads.

    Raises:
        ValueError: sizes do not fit, or a pair names a query or an entry that does not exist.
    """
    if len(row) != len(column):
        raise ValueError(f"row and column must be equally long, got {len(row)} and {len(column)}.")
    _check_range("row", row, len(q))
    _check_range("column", column, len(k))
    ordered = len(row) < 2 or bool((row[1:] >= row[:-1]).all())
    order = None if ordered else torch.argsort(row, stable=True)
    counts = torch.bincount(row, minlength=len(q))
    listed = column if order is None else column[order]
    result = csr_attention(
        q, k, v, _offsets(counts), listed, num_heads=num_heads, per_head=per_head, checked=True
    )
    if order is None:
        return result
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return AttentionResult(result.output, result.weights[back])


def csr_attention(
    q: Float[Tensor, "N D"],
    k: Float[Tensor, "M D"],
    v: Float[Tensor, "M C"],
    offsets: Int[Tensor, "N1"],
    column: Int[Tensor, "P"],
    *,
    num_heads: int = 1,
    per_head: bool = False,
    compiled: bool | None = None,
    checked: bool = False,
) -> AttentionResult:
    """`pair_attention` for pairs that are already grouped by query.

    Args:
        offsets: (N + 1,), ascending from 0 to P.
        compiled: True for the fused kernel, False for the torch path; by default whichever fits.
        checked: the caller guarantees that every column exists.

    Raises:
        ValueError: sizes do not fit, or a column names an entry that does not exist.
    """
    _check_sizes(q, k, v, num_heads)
    if len(offsets) != len(q) + 1:
        raise ValueError(
            f"offsets must have {len(q) + 1} entries for {len(q)} queries, got {len(offsets)}."
        )
    if not checked:
        _check_range("column", column, len(k))
    if len(column) == 0 or len(q) == 0:
        shape = (len(column), num_heads) if per_head else (len(column),)
        return AttentionResult(v.new_zeros(len(q), v.shape[1]), q.new_zeros(shape))
    if compiled is None:
        compiled = fits_kernel(q, k, v)
    path = _fused_attention if compiled else _torch_attention
    return path(q, k, v, offsets.long(), column.long(), num_heads, per_head)


def dense_attention(
    q: Float[Tensor, "N D"],
    k: Float[Tensor, "M D"],
    v: Float[Tensor, "M C"],
    *,
    num_heads: int = 1,
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N M"]]:
    """Every query attends every entry; weights are the mean over heads. Nothing stored: zeros."""
    _check_sizes(q, k, v, num_heads)
    n, m = len(q), len(k)
    if m == 0 or n == 0:
        return v.new_zeros(n, v.shape[1]), q.new_zeros(n, m)
    weights, outputs = None, []
    for qh, kh, vh in zip(*(x.chunk(num_heads, dim=1) for x in (q, k, v)), strict=True):
        weight = (qh @ kh.T * qh.shape[1] ** -0.5).softmax(dim=-1)
        outputs.append(weight @ vh)
        weights = weight if weights is None else weights + weight
    assert weights is not None
    return torch.cat(outputs, dim=1), weights / num_heads if num_heads > 1 else weights


@cache
def has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def fits_kernel(*tensors: Tensor) -> bool:
    """Whether the compiled path may be used: CPU, float32, and no gradient is wanted."""
    graded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    return plain and not graded and has_numba()


def _fused_attention(q, k, v, offsets, column, num_heads, per_head) -> AttentionResult:
    from worldstereo._core.parallel import parallel_for
    from worldstereo.memory.attention import _kernels as kernels

    q, k, v = (x.detach().contiguous() for x in (q, k, v))
    n = len(q)
    out = torch.empty(n, v.shape[1])
    weight = torch.empty(len(column), num_heads if per_head else 1)
    arrays: Any = [x.numpy() for x in (q, k, v, offsets, column.contiguous())]
    scale = np.float32((q.shape[1] // num_heads) ** -0.5)
    chunks = -(-n // CHUNK)

    wide = v.shape[1] // num_heads
    attend = kernels.attend_heads(q.shape[1] // num_heads, wide) if num_heads > 1 else None

    def work(c: int) -> None:
        span = (c * CHUNK, min(n, (c + 1) * CHUNK))
        if attend is None:
            kernels.attend_one_head(*arrays, span, scale, out.numpy(), weight.numpy())
        else:
            attend(*arrays, span, scale, num_heads, out.numpy(), weight.numpy())

    parallel_for(chunks, work)
    return AttentionResult(out, weight if per_head else weight[:, 0])


def _torch_attention(q, k, v, offsets, column, num_heads, per_head) -> AttentionResult:
    """The plain twin. Halves are computed in float32, because `sampled_addmm` knows no halves.

    Without gradients on the CPU it works on runs of queries, so that what it needs beside its
    results stays below the weights, but for the keys or values of one head where there are several.
    """
    dtype = q.dtype if q.dtype in (torch.float32, torch.float64) else torch.float32
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return _graded_attention(q, k, v, offsets, column, num_heads, per_head)
    output = v.new_empty(len(q), v.shape[1], dtype=dtype)
    weights = q.new_zeros(len(column), num_heads if per_head else 1, dtype=dtype)
    own = weights[:, 0] if num_heads == 1 else weights.new_empty(len(column))
    spans = [(a, b, int(offsets[a]), int(offsets[b])) for a, b in _pieces(offsets, num_heads)]

    def layout(a: int, b: int, first: int, last: int) -> _Layout:
        return _lay_out(offsets[a : b + 1] - first, column[first:last], len(k), dtype)

    shared = [layout(*span) for span in spans] if num_heads > 1 else None  # else one at a time
    for h in range(num_heads):
        qh, kh = _head(q, h, num_heads, dtype), _head(k, h, num_heads, dtype)
        for i, (a, b, first, last) in enumerate(spans):
            here = shared[i] if shared else layout(a, b, first, last)
            own[first:last] = _softmax_scores(qh[a:b], kh, here)
            del here
        del qh, kh
        vh = _head(v, h, num_heads, dtype)
        channels = slice(h * vh.shape[1], (h + 1) * vh.shape[1])
        for a, b, first, last in spans:
            local = offsets[a : b + 1] - first
            output[a:b, channels] = _weighted_sums(vh, local, column[first:last], own[first:last])
        del vh
        if per_head and num_heads > 1:
            weights[:, h] = own
        elif num_heads > 1:
            weights[:, 0].add_(own, alpha=1 / num_heads)
    return AttentionResult(output.to(v.dtype), (weights if per_head else weights[:, 0]).to(q.dtype))


def _graded_attention(q, k, v, offsets, column, num_heads, per_head) -> AttentionResult:
    """The same with gradients, which need what every pair went through."""
    dtype = q.dtype if q.dtype in (torch.float32, torch.float64) else torch.float32
    outputs, weights = [], []
    for h in range(num_heads):
        qh, kh, vh = (_head(x, h, num_heads, dtype) for x in (q, k, v))
        weights.append(_softmax_scores(qh, kh, _lay_out(offsets, column, len(k), dtype)))
        outputs.append(_weighted_sums(vh, offsets, column, weights[-1]))
    weight = torch.stack(weights, dim=1)
    output, weight = torch.cat(outputs, dim=1), weight if per_head else weight.mean(dim=1)
    return AttentionResult(output.to(v.dtype), weight.to(q.dtype))


def _head(x: Tensor, h: int, num_heads: int, dtype: torch.dtype) -> Tensor:
    """The channels of one head; a copy only where there are others."""
    return x.chunk(num_heads, dim=1)[h].to(dtype).contiguous()


class _Layout(NamedTuple):
    """Where the pairs of a run of queries are; the same for every head."""

    offsets: Tensor
    row: Tensor
    pattern: Tensor


def _lay_out(offsets: Tensor, column: Tensor, entries: int, dtype: torch.dtype) -> _Layout:
    row = torch.repeat_interleave(offsets.diff(), output_size=len(column))
    return _Layout(offsets, row, _pattern(offsets, column, (len(offsets) - 1, entries), dtype))


def _softmax_scores(q: Tensor, k: Tensor, pairs: _Layout) -> Tensor:
    """Weights of one head's pairs."""
    offsets, row, pattern = pairs
    scale = q.shape[1] ** -0.5
    score = torch.sparse.sampled_addmm(pattern, q, k.T, beta=0.0, alpha=scale).values()
    # Each query's own peak, as in any stable softmax: exp of a raw score overflows.
    peak = torch.segment_reduce(score.detach(), "max", offsets=offsets)
    if score.requires_grad:
        weight = (score - peak.index_select(0, row)).exp()
        return weight / torch.segment_reduce(weight, "sum", offsets=offsets).index_select(0, row)
    weight = score.sub_(peak.index_select(0, row)).exp_()
    return weight.div_(torch.segment_reduce(weight, "sum", offsets=offsets).index_select(0, row))


def _weighted_sums(v, offsets, column, weight) -> Tensor:
    return torch.nn.functional.embedding_bag(
        column, v, offsets, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _pieces(offsets: Tensor, num_heads: int) -> list[tuple[int, int]]:
    """Runs of queries whose temporaries take about a quarter of all weights (4 bytes each).

    On a device everything is done at once.
    """
    n, pairs = len(offsets) - 1, int(offsets[-1])
    piece = max(MIN_CHUNK_PAIRS, pairs * num_heads // PAIR_BYTES)
    if offsets.device.type != "cpu" or pairs <= piece:
        return [(0, n)]
    marks = torch.arange(piece, pairs, piece)
    cuts = [0, *torch.unique(torch.searchsorted(offsets, marks)).tolist(), n]
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]


_first_pattern = threading.Lock()
_pattern_made = False


def _pattern(offsets: Tensor, column: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The pairs as a CSR tensor of zeros, without the one warning that CSR is in beta."""
    global _pattern_made
    zeros = torch.zeros(len(column), dtype=dtype, device=column.device)
    if _pattern_made:
        return torch.sparse_csr_tensor(offsets, column, zeros, size=size, check_invariants=False)
    with _first_pattern, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = torch.sparse_csr_tensor(offsets, column, zeros, size=size, check_invariants=False)
        _pattern_made = True
    return made


def _offsets(counts: Int[Tensor, "N"]) -> Int[Tensor, "N1"]:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _check_sizes(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> None:
    if q.shape[1] != k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} channels and k {k.shape[1]}; they must be equal.")
    if len(k) != len(v):
        raise ValueError(f"k has {len(k)} entries and v {len(v)}; they must be equal.")
    if num_heads < 1 or q.shape[1] % num_heads or v.shape[1] % num_heads:
        raise ValueError(
            f"num_heads must divide the channels of q ({q.shape[1]}) and v ({v.shape[1]}), "
            f"got {num_heads}."
        )


def _check_range(name: str, index: Tensor, size: int) -> None:
    if len(index) == 0:
        return
    low, high = (int(x) for x in torch.aminmax(index))
    if low < 0 or high >= size:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} holds {wrong}; only 0 to {size - 1} are accepted.")
