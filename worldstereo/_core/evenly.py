"""Which of many to look at, where all of them would take too long."""

import numpy as np


def evenly(n: int, most: int) -> list[int]:
    """At most `most` of 0 .. n - 1, evenly, both ends among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(int)).tolist()
