"""The part of `GlobalGeometricMemory` that writes and reads: safetensors files and `state_dict`.

The cloud travels beside the weights, as `memory.points`, `memory.colors` and so on.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldstereo._core.atomic import write_atomic
from worldstereo.memory.geometric._features import PointFeatures
from worldstereo.memory.geometric._storage import Columns
from worldstereo.memory.geometric._store import PointStore

log = logging.getLogger("worldstereo.memory.geometric")

# Columns of the store by the name they have outside.
OUTSIDE = {
    "point": "points",
    "color": "colors",
    "confidence": "confidence",
    "count": "observations",
    "seen": "last_seen",
    "source": "sources",
    "normal": "normals",
    "radius": "radii",
    "feature": "features",
}


_RANGES = {
    "color": (-1e-3, 1 + 1e-3),  # means of colours are rounded
    "confidence": (-1e-3, 1 + 1e-3),
    "count": (1, 2**31 - 1),  # weighs the mean
    "seen": (-(2**31), 2**31 - 1),
    "source": (-(2**31), 2**31 - 1),
    "radius": (0, np.inf),
}


class MemoryFiles(nn.Module):
    """A module whose `state_dict` and files carry a `PointStore`."""

    point_cloud_dim: int
    max_points: int
    learned: PointFeatures
    _store: PointStore

    def _device_column(self, name: str) -> Tensor:
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Writes weights and cloud to a safetensors file, in place of an older one at once."""
        from safetensors.torch import save

        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        write_atomic(Path(path), save(state, {"worldstereo": json.dumps(self._settings())}))

    def load(self, path: str | Path) -> None:
        """Weights and cloud of a file of `save`; a cloud above capacity is thinned to it.

        Raises:
            ValueError: not such a file, or saved by a memory of other widths; nothing changes.
            OSError: it cannot be opened.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("worldstereo", "{}"))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no file that a memory saved, or it is damaged.") from error
        said = header if isinstance(header, dict) else {}
        for name in ("point_cloud_dim", "feature_dim", "latent_channels"):
            if said.get(name, getattr(self, name)) != getattr(self, name):
                raise ValueError(
                    f"{name} of {path} is {said[name]!r:.20}, of this memory {getattr(self, name)}."
                )
        before = {k: v.detach().clone() for k, v in self.learned.state_dict().items()}
        version = self._store.snapshot()
        try:
            self.load_state_dict(state)
        except RuntimeError as error:  # torch has copied what fitted
            self.learned.load_state_dict(before)
            self._store.restore(version)
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{path} does not fit this memory: {reason}") from error

    def _settings(self) -> dict[str, Any]:
        names = ("point_cloud_dim", "feature_dim", "num_neighbors", "update_frequency")
        names += ("spatial_index", "max_points", "latent_channels")
        return {name: getattr(self, name) for name in names}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, outside in OUTSIDE.items():
            if self._store.has(name):
                destination[f"{prefix}memory.{outside}"] = self._device_column(name)
        destination[f"{prefix}memory.tick"] = torch.tensor(self._store.tick)
        if self._store.stretch != 1.0:
            stretch = torch.tensor(self._store.stretch, dtype=torch.float64)
            destination[f"{prefix}memory.stretch"] = stretch

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        start = f"{prefix}memory."
        held = {k.removeprefix(start): k for k in list(state_dict) if k.startswith(start)}
        given = {name: state_dict.pop(key) for name, key in held.items()}
        columns, stretch = None, 1.0
        if "points" in given:
            try:  # before anything is written
                columns = self._columns_of(given)
                stretch = float(given.get("stretch", 1.0))
                if not 1.0 <= stretch < np.inf:
                    raise ValueError(f"stretch must be at least 1 and finite, got {stretch}.")
            except (ValueError, KeyError) as error:
                error_msgs.append(f"{start}*: {error}")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if columns is None:
            missing_keys.append(f"{start}points")
            return
        self._store.replace(columns, int(given.get("tick", torch.tensor(0))))
        self._store.stretch = stretch

    def _columns_of(self, given: dict[str, Tensor]) -> Columns:
        n = len(given["points"])
        columns: Columns = {}
        for name, outside in OUTSIDE.items():
            if outside not in given:
                continue
            width = {"feature": self.point_cloud_dim, "point": 3, "color": 3, "normal": 3}.get(name)
            shape = (n,) if width is None else (n, width)
            if tuple(given[outside].shape) != shape:
                raise ValueError(f"{outside} must be {shape}, got {tuple(given[outside].shape)}.")
            if given[outside].is_floating_point() and not torch.isfinite(given[outside]).all():
                raise ValueError(f"{outside} holds numbers that are not finite.")
            if n > 0 and name in _RANGES:
                low, high = (float(v) for v in given[outside].aminmax())
                if low < _RANGES[name][0] or high > _RANGES[name][1]:
                    raise ValueError(f"{outside} holds {low:.6g} to {high:.6g}, which cannot be.")
            kind = np.int32 if name in ("count", "seen", "source") else np.float32
            columns[name] = given[outside].detach().cpu().numpy().astype(kind)
        if n > self.max_points:
            log.info("load: %d points thinned evenly to the capacity %d", n, self.max_points)
            rows = np.arange(self.max_points) * n // self.max_points
            columns = {name: column[rows] for name, column in columns.items()}
        return columns
