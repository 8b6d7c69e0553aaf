"""`ByteCache`: what was computed last, up to a number of bytes, shared by all who compute such."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class ByteCache:
    """Values by owner and key, the longest unused leave first; safe from any thread.

    An owner is held weakly: what it has here goes when it does.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: OrderedDict[tuple[int, Hashable], tuple[Any, int]] = OrderedDict()
        self._owners: dict[int, weakref.ref] = {}
        self._bytes = 0
        self._lock = threading.RLock()  # an owner may die while this very thread is inside

    def get(self, owner: object, key: Hashable) -> Any | None:
        with self._lock:
            place = (id(owner), key)
            if place not in self._entries:
                return None
            self._entries.move_to_end(place)
            return self._entries[place][0]

    def put(self, owner: object, key: Hashable, value: Any, nbytes: int) -> None:
        """Keeps a value; one that is larger than the limit is kept alone."""
        number = id(owner)
        with self._lock:
            if number not in self._owners:
                self._owners[number] = weakref.ref(owner, lambda _: self.forget(number))
            self._bytes += nbytes - self._entries.pop((number, key), (None, 0))[1]
            self._entries[number, key] = value, nbytes
            while self._bytes > self.limit and len(self._entries) > 1:
                self._bytes -= self._entries.popitem(last=False)[1][1]

    def forget(self, number: int) -> None:
        """Drops all of the owner with this `id`."""
        with self._lock:
            self._owners.pop(number, None)
            for place in [place for place in self._entries if place[0] == number]:
                self._bytes -= self._entries.pop(place)[1]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._owners.clear()
            self._bytes = 0

    @property
    def nbytes(self) -> int:
        return self._bytes

    def bytes_of(self, owner: object) -> int:
        """What one owner has here."""
        number = id(owner)
        with self._lock:
            return sum(size for place, (_, size) in self._entries.items() if place[0] == number)
