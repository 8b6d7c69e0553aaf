"""safetensors files read tensor by tensor, with their promises checked before anything is placed.

The header is checked against the file's size first, so a truncated download or another kind of
file is refused in one line. Reading copies one tensor at a time into fresh memory and maps
nothing, so loading costs the destination and one tensor. Nothing is ever unpickled.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worldstereo.errors import WeightsMissing
from worldstereo.generators.diffusion.config import named_once

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER = 100_000_000
_MAX_AXES = 16


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where it lies, and what it is."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    size: int
    """Bytes."""

    def read(self) -> Tensor:
        """The tensor in its own fresh memory."""
        buffer = torch.empty(self.size, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            view, done = memoryview(buffer.numpy()), 0  # pyright: ignore[reportArgumentType]
            while done < self.size:
                count = file.readinto(view[done : done + (1 << 28)])
                if not count:
                    raise WeightsMissing(
                        f"{self.path} ends inside tensor {self.name}: {self.size - done} bytes are "
                        f"missing. Download it again."
                    )
                done += count
        return buffer.view(self.dtype).reshape(self.shape)


class Weights:
    """The tensors of one or more safetensors files, by name."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = {entry.name: entry for entry in entries}

    @staticmethod
    def open(*paths: Path) -> "Weights":
        """Reads the headers.

        Raises:
            WeightsMissing: a file is absent, truncated, or no safetensors file.
        """
        return Weights(entry for path in paths for entry in read_header(path))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor."""
        return max((entry.size for entry in self.entries.values()), default=0)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def stream(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors in the order of the files, one at a time."""
        wanted = [self.entries[name] for name in names]
        for entry in sorted(wanted, key=lambda e: (str(e.path), e.start)):
            yield entry.name, entry.read()


def read_header(path: Path) -> list[Entry]:
    """The tensors that a safetensors file promises, each checked to lie inside the file.

    Raises:
        WeightsMissing: the file is absent, truncated, or something else.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
                raise WeightsMissing(
                    f"{path} is a pickled checkpoint, which is never opened here; a .safetensors "
                    f"file is expected."
                )
            if start == b"version ":
                raise WeightsMissing(
                    f"{path} is a Git LFS pointer of {size} bytes, not the weights; download the "
                    f"real file."
                )
            if not 2 <= length <= _MAX_HEADER:
                raise WeightsMissing(f"{path} ({size} bytes) is not a safetensors file.")
            if 8 + length > size:
                raise WeightsMissing(
                    f"{path} is truncated: its header alone needs {8 + length} bytes, the file has "
                    f"{size}. Download it again."
                )
            text = file.read(length)
    except OSError as error:
        raise WeightsMissing(
            f"{path} cannot be read ({error.strerror}); model.safetensors is expected there."
        ) from error
    try:
        header = json.loads(text, object_pairs_hook=named_once)
    except (ValueError, RecursionError) as error:
        raise WeightsMissing(f"{path} has no safetensors header (JSON is damaged).") from error
    if not isinstance(header, dict):
        raise WeightsMissing(f"{path} has no safetensors header (not an object).")
    entries = [
        _entry(path, name, value, 8 + length)
        for name, value in header.items()
        if name != "__metadata__"
    ]
    end = max((entry.start + entry.size for entry in entries), default=8 + length)
    if end > size:
        raise WeightsMissing(
            f"{path} is truncated: {end} bytes are promised, the file has {size}. "
            f"Download it again."
        )
    at = 0
    for entry in sorted((e for e in entries if e.size), key=lambda e: e.start):
        if entry.start < at:  # a small file could else fill the memory many times
            raise WeightsMissing(f"{path}: {_short(entry.name)} shares bytes with another tensor.")
        at = entry.start + entry.size
    return entries


def _entry(path: Path, name: str, value: object, offset: int) -> Entry:
    try:
        assert isinstance(value, dict)
        dtype = DTYPES[value["dtype"]]
        shape, (start, end) = tuple(value["shape"]), value["data_offsets"]
        # no axis is longer than any file, so that their product is quick
        sound = all(type(n) is int and abs(n) < 1 << 63 for n in (*shape, start, end))
        assert sound and len(shape) <= _MAX_AXES
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise WeightsMissing(f"{path}: the header entry of {_short(name)} is damaged.") from error
    size = end - start
    if min((start, *shape)) < 0 or size != math.prod(shape) * dtype.itemsize:
        raise WeightsMissing(
            f"{path}: {_short(name)} claims {size} bytes for shape {shape} of {value['dtype']}."
        )
    return Entry(name, path, dtype, shape, offset + start, size)


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:79]}…")[1:-1]


def component_files(folder: Path) -> list[Path]:
    """The safetensors files of a diffusers component: one, or the shards that its index names.

    Raises:
        WeightsMissing: there are none.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        try:
            names = set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise WeightsMissing(f"{indices[0]} is not a weight index.") from error
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise WeightsMissing(f"{indices[0]} names files outside its own folder.")
        return [folder / name for name in sorted(names)]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsMissing(
            f"{folder} holds no .safetensors file; the base model needs one there."
        )
    return files[:1]
