"""The learned parts of `GlobalGeometricMemory`: encoder, aggregations, control branch.

Every way into the backbone ends in a projection built as zeros, so that a fresh module changes
nothing. The encoder and the projection to `feature_dim` are useful before any training: Fourier
features of a fixed seed, and a projection built as an (incomplete) identity.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

AGGREGATIONS = ("mean", "max", "weighted", "attention")
INJECTIONS = ("addition", "concatenation", "cross_attention")
FREQUENCIES = 6
EPSILON = (
    1e-8  # added to distances, scene units: a point asked for by its own position answers alone
)
ATTENTION = 64  # channels of queries and keys


class PointFeatures(nn.Module):
    """Encoder of points, aggregation over neighbours, injection into latents."""

    def __init__(self, point_dim: int, feature_dim: int, latent_channels: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(3 + 3 + 6 * FREQUENCIES, point_dim)
        self.project = nn.Linear(point_dim, feature_dim, bias=False)
        nn.init.eye_(self.project.weight)
        self.seed = nn.Parameter(torch.randn(ATTENTION) / ATTENTION**0.5)
        self.ask = nn.Linear(4, ATTENTION)  # viewing direction, known or not
        self.key = nn.Linear(
            point_dim + 6, ATTENTION
        )  # feature, direction, distance, confidence...
        self.bias = nn.Linear(3, 1)
        with torch.no_grad():  # near, certain points along the ray count more from the beginning
            self.bias.weight.copy_(torch.tensor([[-1.0, 1.0, 1.0]]))
            self.bias.bias.zero_()
        self.latent_query = nn.Linear(latent_channels, ATTENTION)
        self.latent_key = nn.Linear(point_dim, ATTENTION)
        self.add = nn.Linear(feature_dim, latent_channels)
        self.concat = nn.Linear(latent_channels + feature_dim, latent_channels)
        self.cross = nn.Linear(feature_dim, latent_channels)
        for layer in (self.add, self.concat, self.cross):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def encode(
        self, points: Float[Tensor, "*S 3"], colors: Float[Tensor, "*S 3"] | None
    ) -> Float[Tensor, "*S D"]:
        """Embedding of a position in the world and its colour (grey where there is none).

        Source: Tancik et al. 2020, "Fourier features let networks learn high frequency functions".
        """
        octaves = 2.0 ** torch.arange(FREQUENCIES, device=points.device)
        waves = (points[..., None] * octaves).flatten(start_dim=-2)
        colors = torch.full_like(points, 0.5) if colors is None else colors
        parts = [points / (1 + points.norm(dim=-1, keepdim=True)), colors - 0.5]
        return self.encoder(torch.cat([*parts, waves.sin(), waves.cos()], dim=-1))

    def aggregate(
        self,
        how: str,
        query: Float[Tensor, "B Q 3"],
        distance: Float[Tensor, "B Q k"],
        neighbors: tuple[Float[Tensor, "B Q k 3"], Float[Tensor, "B Q k"]],
        features: Float[Tensor, "B Q k D"],
        eye: Float[Tensor, "b 1 3"] | None,
    ) -> Float[Tensor, "B Q F"]:
        """Features of the neighbours (position, confidence) of each query, as one."""
        if how == "mean":
            pooled = features.mean(dim=-2)
        elif how == "max":
            pooled = features.amax(dim=-2)
        elif how == "weighted":
            weight = 1 / (distance + EPSILON)
            pooled = _mean(features, weight / weight.sum(dim=-1, keepdim=True))
        else:
            pooled = _mean(features, self._attend(query, distance, neighbors, features, eye))
        return self.project(pooled)

    def inject(
        self,
        how: str,
        latent: Float[Tensor, "B T C H W"],
        visible: Bool[Tensor, "T H W"],
        features: Float[Tensor, "..."],
        distance: Float[Tensor, "V k"] | None,
    ) -> Float[Tensor, "B T C H W"]:
        """Latent cells that see a point, plus what the branch makes of the features (V, D) of the
        points seen, or for "cross_attention" (V, k, D) of their surroundings."""
        B = latent.shape[0]
        cells = latent.movedim(2, -1)  # (B, T, H, W, C)
        seen = cells[:, visible].to(self.add.weight.dtype)  # (B, V, C)
        if how == "addition":
            change = self.add(self.project(features)).expand(B, -1, -1)
        elif how == "concatenation":
            shown = self.project(features).expand(B, -1, -1)
            change = self.concat(torch.cat([seen, shown], dim=-1))
        else:
            assert distance is not None
            q, k = self.latent_query(seen), self.latent_key(features)
            score = torch.einsum("bvd,vkd->bvk", q, k) / ATTENTION**0.5 - distance
            change = self.cross(
                self.project(torch.einsum("bvk,vkd->bvd", score.softmax(-1), features))
            )
        out = cells.clone()
        out[:, visible] = (seen + change).to(latent.dtype)
        return out.movedim(-1, 2)

    def _attend(
        self,
        query: Float[Tensor, "B Q 3"],
        distance: Float[Tensor, "B Q k"],
        neighbors: tuple[Float[Tensor, "B Q k 3"], Float[Tensor, "B Q k"]],
        features: Float[Tensor, "B Q k D"],
        eye: Float[Tensor, "b 1 3"] | None,
    ) -> Float[Tensor, "B Q k"]:
        """Weights of the neighbours: they follow the viewing direction, distance and confidence.

        Distances count relative to the farthest neighbour, so the scale of the scene does not.
        """
        position, confidence = neighbors
        toward = nn.functional.normalize(position - query[..., None, :], dim=-1)
        if eye is None:
            view = torch.zeros_like(query)
        else:
            view = nn.functional.normalize(query - eye, dim=-1)
        known = torch.full_like(query[..., :1], float(eye is not None))
        along = (toward * view[..., None, :]).sum(dim=-1)
        relative = distance / distance[..., -1:].clamp(min=torch.finfo(distance.dtype).tiny)
        facts = torch.stack([relative, confidence, along], dim=-1)
        q = self.ask(torch.cat([view, known], dim=-1)) + self.seed
        k = self.key(torch.cat([features, toward, facts], dim=-1))
        score = (k @ q[..., None])[..., 0] / ATTENTION**0.5 + self.bias(facts)[..., 0]
        return score.softmax(dim=-1)


def _mean(
    features: Float[Tensor, "*S k D"], weight: Float[Tensor, "*S k"]
) -> Float[Tensor, "*S D"]:
    return (weight[..., None, :] @ features)[..., 0, :]
