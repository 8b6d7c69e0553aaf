"""The part of `SpatialStereoMemory` that remembers states: undo, safetensors files, `state_dict`.

The bank travels beside the weights, as `memory.points`, `memory.confidence` and so on.
"""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldstereo._core.atomic import write_atomic
from worldstereo.memory._checks import WrongType
from worldstereo.memory.stereo._bank import Bank, Snapshot


class BankFiles(nn.Module):
    """A module whose snapshots, `state_dict` and files carry a `Bank`."""

    memory_size: int
    feature_dim: int
    num_correspondences: int
    _bank: Bank

    @property
    def device(self) -> torch.device:
        return self._bank.device

    def snapshot(self) -> Snapshot:
        """A handle on the present state. Later changes keep only the rows they overwrite.

        Handles may be kept in any number and restored in any order; a dropped one costs nothing.
        """
        return self._bank.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """The memory as it was at `snapshot`, bit for bit; costs what changed in between.

        Raises:
            ValueError: the snapshot belongs to another memory.
        """
        if not isinstance(snapshot, Snapshot):
            raise WrongType(f"snapshot must come from snapshot(), got {type(snapshot).__name__}.")
        self._bank.restore(snapshot)

    def save(self, path: str | Path) -> None:
        """Writes the stored memory to a safetensors file, which replaces an older one at once."""
        from safetensors.torch import save

        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        names = ("memory_size", "feature_dim", "num_correspondences")
        header = json.dumps({name: getattr(self, name) for name in names})
        write_atomic(Path(path), save(state, {"worldstereo": header}))

    def load(self, path: str | Path) -> None:
        """Becomes what `save` wrote; options (strategy, window, storage) stay those of this memory.

        Raises:
            ValueError: not such a file, other widths, or more entries than fit; nothing changes.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        before = self.snapshot()
        try:
            self.load_state_dict(load_file(str(path)))
        except (RuntimeError, SafetensorError) as error:
            self.restore(before)
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{path} does not fit this memory: {reason}") from error

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._bank.kinds:
            destination[f"{prefix}memory.{name}"] = self._bank.column(name)
        destination[f"{prefix}memory.scalars"] = torch.tensor(self._bank.scalars)

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
        held = {key: state_dict[key] for key in list(state_dict) if key.startswith(start)}
        others = OrderedDict((k, v) for k, v in state_dict.items() if k not in held)
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        given = {key.removeprefix(start): value for key, value in held.items()}
        try:
            self._bank.replace(given)
        except KeyError as error:
            missing_keys.append(f"{start}{error.args[0]}")
        except ValueError as error:
            error_msgs.append(f"{start}{error}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BankFiles":
        """Devices are followed, dtypes are not: `storage_dtype` alone compresses features."""
        super()._apply(fn, recurse)
        self._bank.move_to(fn(torch.zeros(0, device=self.device)).device)
        return self
