"""NumPy arrays (`.npy`) from bytes: the header is read here, its shape compared with what follows.

Nothing is unpickled: only plain numbers are accepted.
Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import ast
import math
import struct

import numpy as np

from worldstereo.inputs.limits import Limits, refusal

_AGAIN = "A plain array of numbers (numpy.save) is accepted"
_KINDS = ("f2", "f4", "f8", "u1", "u2", "u4", "i2", "i4")


def read_array(name: str, data: bytes, limits: Limits) -> np.ndarray:
    """The array of a `.npy` file.

    Raises:
        InputRefused: objects, other types, or a shape that the bytes do not hold.
    """
    if not data.startswith(b"\x93NUMPY") or len(data) < 12 or data[6] not in (1, 2, 3):
        raise refusal(name, "not an array file", _AGAIN)
    form, start = ("<H", 10) if data[6] == 1 else ("<I", 12)
    (length,) = struct.unpack_from(form, data, 8)
    if length > 1 << 16 or start + length > len(data):
        raise refusal(name, "its header is cut off", _AGAIN)
    try:
        head = ast.literal_eval(data[start : start + length].decode("latin-1").strip())
        kind, shape = str(head["descr"]), tuple(int(n) for n in head["shape"])
        fortran = bool(head["fortran_order"])
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise refusal(name, "its header is damaged", _AGAIN) from None
    if kind[:1] not in "<>|=" or kind[1:] not in _KINDS or len(shape) > 4:
        raise refusal(name, "it holds no plain numbers", _AGAIN)
    size = np.dtype(kind).itemsize * math.prod(shape)
    if any(n < 0 for n in shape) or size != len(data) - start - length:
        raise refusal(
            name, f"it declares {size} bytes, {len(data) - start - length} follow", _AGAIN
        )
    if math.prod(shape) > 4 * limits.pixels:
        raise refusal(name, f"it holds {math.prod(shape)} values", "Fewer are accepted")
    flat = np.frombuffer(data, dtype=kind, offset=start + length)
    return flat.reshape(shape, order="F" if fortran else "C")
