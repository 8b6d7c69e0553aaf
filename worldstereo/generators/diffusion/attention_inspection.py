"""One attention row, recomputed from captured q and k, and how much of it lies where it should.

Nothing is stored for all tokens: the probe keeps the q of a few tokens and the keys of one layer
at one step, and the row is a softmax over their products.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldstereo.generators.diffusion.attention import AttentionProbe, ReferenceConstraint


class TokenGrid(NamedTuple):
    """How tokens are numbered: frame by frame, row by row."""

    frames: int
    references: int
    rows: int
    columns: int

    def target(self, frame: int, row: int, column: int) -> int:
        """Number of a target token.

        Raises:
            ValueError: one of the indices is outside.
        """
        for name, value, end in (
            ("frame", frame, self.frames),
            ("row", row, self.rows),
            ("column", column, self.columns),
        ):
            if not 0 <= value < end:
                raise ValueError(f"{name} must be 0 .. {end - 1}, got {value}.")
        return (frame * self.rows + row) * self.columns + column


@dataclass(frozen=True, eq=False)
class AttentionRow:
    """What one target token attends to among the references."""

    layer: int
    step: int
    token: tuple[int, int, int]
    """Frame, row, column."""
    weights: Float[Tensor, "N R C"]
    """Mean over heads and batch; sums to `reference_mass`."""
    heads: Float[Tensor, "h N R C"]
    """The same for each head."""
    window: Bool[Tensor, "N R C"]
    """Reference tokens that correspond in 3D."""
    reference_mass: float
    """Share of all attention that goes to references; the rest goes to target tokens."""
    views: tuple[int, ...] = ()
    """Which remembered view each reference is, as indices into the request's views."""

    @property
    def share(self) -> float:
        """Share of the references' attention mass that lies within the correspondence window."""
        total = float(self.weights.sum())
        return float(self.weights[self.window].sum()) / total if total > 0 else 0.0


def attention_rows(
    probe: AttentionProbe, constraint: ReferenceConstraint | None = None
) -> Float[Tensor, "B h n S"]:
    """Softmax rows of the probed tokens over references followed by targets, in float32.

    Raises:
        ValueError: the probe has seen no forward pass yet.
    """
    if probe.query is None or probe.key is None:
        raise ValueError("probe has captured nothing: run the model with set_probe(probe) first.")
    query, key = probe.query.float(), probe.key.float()
    score = torch.einsum("bnhd,bshd->bhns", query, key) * query.shape[-1] ** -0.5
    if constraint is not None and constraint.mode != "none":
        for i, token in enumerate(probe.tokens):
            bias = constraint.rows(token, token + 1, probe.references, score)
            score[:, :, i, : probe.references] += bias[0]
    return score.softmax(dim=-1)


def attention_row(
    probe: AttentionProbe,
    grid: TokenGrid,
    pairs: Tensor,
    step: int,
    constraint: ReferenceConstraint | None = None,
    views: tuple[int, ...] = (),
) -> AttentionRow:
    """The row of the probe's first token as pictures over the references.

    Args:
        pairs: (2, P) correspondences of `correspondence_pairs`.
        constraint: the one that the model ran with, so that the row is the one it used.
    """
    token = probe.tokens[0]
    heads = attention_rows(probe, constraint)[:, :, 0, : probe.references].mean(dim=0).cpu()
    shape = (grid.references, grid.rows, grid.columns)
    window = torch.zeros(probe.references, dtype=torch.bool)
    window[pairs[1][pairs[0] == token].cpu()] = True
    frame, rest = divmod(token, grid.rows * grid.columns)
    weights = heads.mean(dim=0)
    return AttentionRow(
        layer=probe.layer,
        step=step,
        token=(frame, *divmod(rest, grid.columns)),
        weights=weights.reshape(shape),
        heads=heads.reshape(-1, *shape),
        window=window.reshape(shape),
        reference_mass=float(weights.sum()),
        views=views,
    )
