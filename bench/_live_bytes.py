"""Peak memory of a forward pass at full size without any memory: shape-only tensors, counted.

Every operator's output is counted while its storage is alive. What a device's allocator wastes and
what kernels use inside is not in it.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made inside it; `peak` is the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: Any = weakref.WeakSet()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor) and value.untyped_storage() not in self._seen:
                storage = value.untyped_storage()
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return out

    def ignore(self, tensors: Iterable[torch.Tensor]) -> None:
        """Does not count what was there before, whatever views of it appear."""
        for tensor in tensors:
            self._seen.add(tensor.untyped_storage())

    def _gone(self, size: int) -> None:
        self.now -= size


def activation_peak(
    control: dict[str, Any], inputs: Callable[[torch.device], dict[str, Any]], references: int
) -> tuple[int, int]:
    """Bytes of weights, and of activations at their peak, of the full-size memory transformer.

    Args:
        control: its `controlnet_cfg`.
        inputs: makes the arguments of a step on a device; called where tensors are shapes only.
        references: how many reference views they hold.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from worldstereo.generators.diffusion import WorldStereoRefSModel, memory_transformer
    from worldstereo.generators.diffusion.loading import set_parameter, target_type

    cpu = torch.device("cpu")
    with FakeTensorMode() as fake:
        model = WorldStereoRefSModel(controlnet_cfg=control).eval().requires_grad_(False)
        for name, parameter in list(model.named_parameters()):
            kind = target_type(name, torch.bfloat16, torch.float32)
            set_parameter(model, name, torch.empty(parameter.shape, dtype=kind))
        given = inputs(cpu)

        def tables(frames: torch.Tensor, rows: int, columns: int, first_column: int) -> Any:
            size = (1, references * rows * columns, 1, model.rope.attention_head_dim)
            return torch.empty(size), torch.empty(size)

        # the real ones look at values, which shapes do not have
        model.rope.at = tables
        checked, memory_transformer.check_slots = memory_transformer.check_slots, lambda *a: a[0]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    live = LiveBytes()
    live.ignore([*model.parameters(), *model.buffers(), *given.values()])
    try:
        with fake, torch.no_grad(), torch.autocast("cpu", torch.bfloat16), live:
            model(**given)
    finally:
        memory_transformer.check_slots = checked
    return weights, live.peak
