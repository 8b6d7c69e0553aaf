"""The one way to compile a kernel: lazily, cached on disk, without the GIL."""

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`numba.njit(cache=True, nogil=True, ...)`; compiles on the first call, not at import.

    Tests wrap every function of the package to check shape annotations. A wrapper holds references
    that numba's disk cache cannot store, so the plain function below it is what gets compiled.
    """
    if function is None:
        return lambda f: kernel(f, **options)
    from numba import njit

    compiler: Any = njit
    return compiler(**({"cache": True, "nogil": True} | options))(inspect.unwrap(function))


def has_compiler() -> bool:
    """Whether numba is installed; without it every function takes its torch or scipy path."""
    return importlib.util.find_spec("numba") is not None
