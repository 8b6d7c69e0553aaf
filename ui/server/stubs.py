"""Import Gradio without its writing type stubs.

Gradio parses the source of each of its components at every import, to write `.pyi` files for
editors into its own package: about half of what importing it costs, and a folder that may be
read-only. Nothing reads them while the app runs.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MODULE, WRITER = "gradio.component_meta", "create_or_modify_pyi"


class _WithoutStubs(MetaPathFinder):
    """Finds the one module that writes stubs, and takes its writer away once it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == MODULE else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            if hasattr(module, WRITER):
                setattr(module, WRITER, lambda *_: None)

        spec.loader.exec_module = exec_module
        return spec


def leave_out_stubs() -> None:
    """From now on; nothing where Gradio is imported already, or has no such function."""
    if not any(isinstance(finder, _WithoutStubs) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WithoutStubs())
