"""Open addressing with linear probing, for kernels: keys are uint64, 0 is a free place.

The table's size is a power of two; the lowest bit of a key is set, so that none is 0.
"""

import numpy as np

from worldstereo._core.compiled import kernel


@kernel(inline="always")
def place_of(key, keys):
    """Where a key is in the table, or the free place where it belongs."""
    mask = np.int64(keys.size - 1)
    at = np.int64(key >> np.uint64(1)) & mask
    while keys[at] != key and keys[at] != np.uint64(0):
        at = (at + 1) & mask
    return at
