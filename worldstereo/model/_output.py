"""`ModelOutput`: what one training pass returns, by attribute, key, index or as a tuple."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NAMES = ("loss", "noise_pred", "memory_features")


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """One training pass; unpacks like a tuple in this order."""

    loss: Tensor
    """Scalar, differentiable."""
    noise_pred: Tensor
    """(B, T, C, H, W): the noise that the prediction implies."""
    memory_features: Mapping[str, Tensor]
    """"global" and "spatial", each (B, T rows columns, feature_dim); zeros from an empty memory."""

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in NAMES)

    def keys(self) -> tuple[str, ...]:
        return NAMES

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(NAMES)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in NAMES:
                raise KeyError(f"{key!r} is not in {', '.join(NAMES)}")
            return getattr(self, key)
        return self.to_tuple()[key]
