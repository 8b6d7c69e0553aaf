"""Functions of registries by name, imported when they are first needed."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def loaded(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """The function itself, or the one that "module:function" names."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)
