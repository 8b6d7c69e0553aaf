"""Imports gradio in half the time.

While its component classes are made, gradio compares the type stubs beside them with their source
and rewrites what differs. Only its own developers need that: the stubs come with the package.
Kept because each start feels it: 2.8 s of processor time against 4.2 to 4.8 s without it (gradio
6.31 on a 2-core cloud machine).
"""

import importlib.abc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODULE, STUBS = "gradio.component_meta", "create_or_modify_pyi"


class _Loader(importlib.abc.Loader):
    """Gradio's own module; what writes stubs does nothing."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if hasattr(module, STUBS):
            setattr(module, STUBS, lambda *_: None)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == MODULE else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


@contextmanager
def without_stubs() -> Iterator[None]:
    """Whatever imports gradio inside does not wait for its stubs."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
