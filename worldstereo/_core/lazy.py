"""What registries hold by name, imported when it is first needed."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any


def loaded(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """The function itself, or the one that "module:function" names."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)


@cache
def installed(group: str) -> tuple[EntryPoint, ...]:
    """What other packages offer under a group of entry points, as installed at the first call."""
    return tuple(entry_points(group=group))  # reads a file of each installed package
