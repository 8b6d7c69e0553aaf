"""What a process keeps in memory: values moved to files without a name, and pages given back.

Views, clips and undo steps are read now and then and never written again. `on_disk` writes such
values to a file and returns tensors of the same bits that are mappings of it: pages come in when
they are read, the system may drop them at any time, and `release` drops them at once. The file has
no name, so nothing is left when the process ends, however it ends. Where the disk is full or cannot
do this, the values stay in memory.

The folder is `/var/tmp` (on disk, where `/tmp` is often memory), else that of `tempfile`; the
variable WORLDSTEREO_SPILL names another one, "off" keeps all in memory.
"""

import contextlib
import ctypes
import functools
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

WORTH = 1 << 16
"""Bytes below which a group of values is not worth a file and a mapping of its own."""

TRIM_EVERY = 128 << 20
"""Bytes moved to disk after which the allocator is trimmed: it keeps what their owners free."""

_ALIGN = 64
_moved = [0]
_MARK = "/proc/self/fd/"
_DONTNEED = 4  # MADV_DONTNEED of Linux


def folder() -> Path | None:
    """Where files are put; None when the person switched that off, or this system cannot."""
    chosen = os.environ.get("WORLDSTEREO_SPILL", "")
    if chosen.lower() == "off" or not hasattr(os, "O_TMPFILE"):
        return None
    if chosen:
        return Path(chosen)
    lasting = Path("/var/tmp")  # noqa: S108  (files there have no name)
    return lasting if os.access(lasting, os.W_OK) else Path(tempfile.gettempdir())


def on_disk(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same values, mapped from one file; the tensors themselves where that is not possible."""
    given = list(tensors)
    total = sum(tensor.nbytes for tensor in given)
    place = folder()
    if place is None or total < WORTH or any(tensor.device.type != "cpu" for tensor in given):
        return given
    if all(is_on_disk(tensor) for tensor in given if tensor.nbytes):
        return given
    try:
        return _mapped(given, place)
    except (OSError, RuntimeError) as error:
        log.info("kept in memory, because the disk refused: %s", type(error).__name__)
        return given


def arrays_on_disk(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`on_disk` for numpy arrays of any type: the very arrays where that is not possible."""
    flat = [
        torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        if array.size
        else torch.zeros(0, dtype=torch.uint8)
        for array in arrays
    ]
    out = []
    for array, before, moved in zip(arrays, flat, on_disk(flat), strict=True):
        if moved is before or array.size == 0:
            out.append(array)
            continue
        out.append(moved.numpy().view(array.dtype).reshape(array.shape))
    return out


def is_array_on_disk(array: np.ndarray) -> bool:
    """Whether an array is one that `arrays_on_disk` made."""
    base = _base(array)
    return isinstance(base, Tensor) and is_on_disk(base)


def release_arrays(arrays: Iterable[np.ndarray]) -> None:
    """`release` for arrays that `arrays_on_disk` made; others are left alone."""
    release(base for base in map(_base, arrays) if isinstance(base, Tensor))


def _base(array: Any) -> Any:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def is_on_disk(tensor: Tensor) -> bool:
    """Whether a tensor is one that `on_disk` made, or a view of one."""
    if tensor.device.type != "cpu":
        return False
    name = tensor.untyped_storage().filename
    return name is not None and name.startswith(_MARK)


def release(tensors: Iterable[Tensor]) -> None:
    """Drops the pages of mapped tensors from memory; they are read again when they are needed."""
    done: set[int] = set()
    for tensor in tensors:
        if not is_on_disk(tensor):
            continue
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        if start in done or start == 0:
            continue
        done.add(start)
        if (advise := _function("madvise")) is not None:
            advise(ctypes.c_void_p(start), ctypes.c_size_t(storage.nbytes()), _DONTNEED)


def in_memory(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors hold in memory, each storage once; those on disk count nothing."""
    return held(tensors)[0]


def held(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Bytes that tensors hold: in memory, on disk; each storage is counted once."""
    memory, disk, seen = 0, 0, set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        key = (str(tensor.device), storage.data_ptr())
        if key in seen or storage.nbytes() == 0:
            continue
        seen.add(key)
        if is_on_disk(tensor):
            disk += storage.nbytes()
        else:
            memory += storage.nbytes()
    return memory, disk


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a value made of dataclasses, sequences and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def trim() -> None:
    """Gives free pages of the allocator back to the system; some milliseconds."""
    if (give := _function("malloc_trim")) is not None:
        give(0)


def warm_up() -> None:
    """Looks up what `release` and `trim` call, before a process gives up its rights."""
    for name in ("madvise", "malloc_trim"):
        _function(name)


def resident_bytes() -> int:
    """Memory of this process that is resident now; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


@functools.cache
def _function(name: str) -> Any:
    """A function of the C library, looked up once; None where there is none."""
    with contextlib.suppress(AttributeError, OSError):
        return getattr(ctypes.CDLL(None, use_errno=True), name)
    return None


def _mapped(tensors: list[Tensor], place: Path) -> list[Tensor]:
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += -(-tensor.nbytes // _ALIGN) * _ALIGN
    descriptor = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        for tensor, offset in zip(tensors, offsets, strict=True):
            flat = tensor.detach().contiguous().reshape(-1)
            raw: Any = flat.view(torch.uint8).numpy() if flat.nbytes else b""
            data = memoryview(raw)
            while len(data) > 0:  # an error of the disk is an error here, not a signal later
                done = os.pwrite(descriptor, data, offset)
                data, offset = data[done:], offset + done
        os.ftruncate(descriptor, end)
        storage: Any = torch.UntypedStorage.from_file(f"{_MARK}{descriptor}", True, end)
    finally:
        os.close(descriptor)
    _moved[0] += end
    if _moved[0] > TRIM_EVERY:
        _moved[0] = 0
        trim()
    out = []
    for tensor, offset in zip(tensors, offsets, strict=True):
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        part = whole[offset : offset + tensor.nbytes].view(tensor.dtype)
        out.append(part.reshape(tensor.shape))
    return out
