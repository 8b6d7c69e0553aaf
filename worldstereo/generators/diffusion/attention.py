"""Stitched reference attention: one softmax over reference tokens followed by target tokens.

The released model lets every token attend to every other one. Two things are added on request and
cost nothing otherwise: a constraint on what target tokens may see of the references, and a probe
that keeps what is needed to recompute one attention row.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor

CONSTRAINTS = ("none", "mask", "bias")
_CHUNK = 2048  # target rows whose mask is dense at one time


@dataclass(frozen=True, eq=False)
class ReferenceConstraint:
    """Which reference tokens correspond to which target tokens, and what that decides.

    Pairs are sparse (target token, reference token), without duplicates. "mask": a target token
    attends to no reference token outside its pairs. "bias": outside the pairs `strength` is taken
    from the score. Target tokens stay visible to all, and reference rows stay as they are.
    """

    mode: str
    pairs: Tensor
    """(2, P) integers: target token, reference token."""
    strength: float = 4.0

    def __post_init__(self) -> None:
        if self.mode not in CONSTRAINTS:
            raise ValueError(
                f"constraint must be one of {', '.join(CONSTRAINTS)}, got {self.mode!r}."
            )
        if self.pairs.ndim != 2 or self.pairs.shape[0] != 2:
            raise ValueError(f"pairs must have shape (2, P), got {tuple(self.pairs.shape)}.")
        if not self.strength >= 0:
            raise ValueError(f"strength must be at least 0, got {self.strength}.")

    def rows(self, start: int, stop: int, references: int, like: Tensor) -> Tensor:
        """Additive bias (stop - start, references) of target tokens start .. stop-1."""
        outside = -torch.inf if self.mode == "mask" else -self.strength
        bias = torch.full((stop - start, references), outside, device=like.device, dtype=like.dtype)
        pairs = self.pairs.to(like.device)
        mine = pairs[:, (pairs[0] >= start) & (pairs[0] < stop)]
        bias[mine[0] - start, mine[1]] = 0
        return bias


@dataclass(eq=False)
class AttentionProbe:
    """Keeps, for one layer and a few target tokens, the q rows and all keys of one forward pass."""

    layer: int
    tokens: tuple[int, ...]
    query: Tensor | None = field(default=None, init=False)
    """(B, tokens, heads, d) after norm and rotation."""
    key: Tensor | None = field(default=None, init=False)
    """(B, references + targets, heads, d) after norm and rotation, references first."""
    references: int = field(default=0, init=False)
    once: bool = False
    """Keep the first forward pass only (the conditional one, where guidance makes two)."""

    def take(self, query: Tensor, key: Tensor, references: int) -> None:
        if self.once and self.query is not None:
            return
        index = torch.tensor(self.tokens, device=query.device) + references
        if int(index.max()) >= query.shape[1]:
            raise ValueError(
                f"token must be below {query.shape[1] - references}, got {max(self.tokens)}."
            )
        self.query, self.key = query[:, index].detach().clone(), key.detach().clone()
        self.references = references


class StitchedAttnProcessor:
    """Self-attention of Wan attention weights over [references ; targets]."""

    _attention_backend = None
    _parallel_config: Any = None

    def __init__(self) -> None:
        self.constraint: ReferenceConstraint | None = None
        self.probe: AttentionProbe | None = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        reference_states: Tensor,
        rotary: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Both streams (B, S, D) and (B, Sr, D) with the tables of `StitchedRotary`."""
        references = reference_states.shape[1]
        target = project(attn, hidden_states, rotary[:2])
        reference = project(attn, reference_states, rotary[2:])
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(reference, target, strict=True))
        if self.probe is not None:
            self.probe.take(query, key, references)
        constraint = self.constraint
        if constraint is None or constraint.mode == "none":
            out = dispatch_attention_fn(
                query,
                key,
                value,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
        elif self._parallel_config is not None:
            raise ValueError("constraint must be 'none' on more than one device.")
        else:
            out = constrained(query, key, value, references, constraint, self._attention_backend)
        out = attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))
        return out[:, references:], out[:, :references]


def project(
    attn: WanAttention, tokens: Tensor, rotary: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Normed and rotated q and k, and v, each (B, S, heads, d)."""
    query, key = attn.norm_q(attn.to_q(tokens)), attn.norm_k(attn.to_k(tokens))
    query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, attn.to_v(tokens)))
    return rotate(query, rotary), rotate(key, rotary), value


def rotate(x: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
    """Rotates adjacent pairs of the last axis: (x0, x1) -> (x0 c - x1 s, x0 s + x1 c)."""
    x0, x1 = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    return torch.stack([x0 * cos - x1 * sin, x0 * sin + x1 * cos], dim=-1).flatten(-2).type_as(x)


def constrained(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    references: int,
    constraint: ReferenceConstraint,
    backend: Any = None,
) -> Tensor:
    """Stitched attention with a bias on (target row, reference column); masks built by chunks.

    Memory: one dense bias of 2048 rows x all columns at a time, whatever the clip length.
    """
    out = [dispatch_attention_fn(query[:, :references], key, value, backend=backend)]
    targets = query.shape[1] - references
    for start in range(0, targets, _CHUNK):
        stop = min(start + _CHUNK, targets)
        bias = query.new_zeros(stop - start, key.shape[1])
        bias[:, :references] = constraint.rows(start, stop, references, query)
        rows = query[:, references + start : references + stop]
        out.append(
            dispatch_attention_fn(rows, key, value, attn_mask=bias[None, None], backend=backend)
        )
    return torch.cat(out, dim=1)
