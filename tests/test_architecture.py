"""The house: imports point only down, third parties have one door, public names are documented."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import worldstereo

ROOT = Path(__file__).parent.parent

# A line may import the lines above it, never its own or one below. A package is one place with all
# that it holds, unless one of its modules has a line of its own.
RANKS = [
    "errors progress",
    "_core",
    "cameras rotations",
    "trajectory depth neighbors render memory.attention memory._checks",
    "scene",
    "memory.geometric views.fusion views.multiview views.correspondences",
    "memory.stereo",
    "views.registration",
    "views.intake memory.localize",
    "guide inputs",
    "generators",
    "world reconstruct",
    "exports project warmup",
    "reconstruction model",
    "cli",
    "ui.palette",
    "ui.viewport ui.server ui.inspector",
    "ui.session",
    "ui.page",
    "ui.api",
    "ui.__main__",
    "ui.tour",
    "app",
]
UNRANKED = {"worldstereo", "worldstereo.__main__", "worldstereo.memory", "worldstereo.views", "ui"}
RANK = {name: rank for rank, line in enumerate(RANKS) for name in line.split()}
DOORS = {
    "gradio": {"ui.page", "ui.server"},
    "viser": {"ui.viewport"},
    "starlette": {"ui.server", "ui.api"},
    "websockets": {"ui.server"},
    "trimesh": {"exports", "inputs", "reconstruct"},
    "plyfile": {"inputs"},
    "pillow_heif": {"inputs"},
    "laspy": {"inputs", "exports"},
    "pye57": {"inputs"},
    "pycolmap": {"inputs"},
    "pykeops": {"neighbors"},
    "diffusers": {"generators"},
    "playwright": {"ui.tour"},
    "transformers": {"generators", "depth"},
}


def sources() -> list[Path]:
    return [
        *sorted((ROOT / "worldstereo").rglob("*.py")),
        *sorted((ROOT / "ui").rglob("*.py")),
        ROOT / "app.py",
    ]


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sources()}


def place(module: str) -> str:
    """The place of the table that a module belongs to: the longest name there that begins it."""
    name = module.removeprefix("worldstereo.")
    while name not in RANK:
        name, _, last = name.rpartition(".")
        if not last:
            return module
    return name


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    """(module, line) of each import as Python resolves it: modules of ours by their full names."""
    here = module_of(path)
    package = here if path.name == "__init__.py" else here.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.append((full if full in MODULES else base, node.lineno))
    return found


def ours(module: str) -> bool:
    return module.partition(".")[0] in ("worldstereo", "ui", "app")


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_and_third_parties_have_one_door(path):
    module = module_of(path)
    if module in UNRANKED:
        return
    here = place(module)
    assert here in RANK, f"{module} has no place in the table of ranks"
    for imported, line in imports(path):
        if imported == "worldstereo" or not ours(imported):
            door = DOORS.get(imported.partition(".")[0])
            assert door is None or here in door, f"{path.name}:{line} imports {imported}"
            continue
        there = place(imported)
        if there != here:
            assert there in RANK, f"{path.name}:{line} imports {imported}, which has no rank"
            assert RANK[there] < RANK[here], f"{path.name}:{line} imports {imported}, not above it"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_underscored_modules_stay_in_their_package(path):
    module = module_of(path)
    for imported, line in imports(path):
        parts = imported.split(".")
        for i, part in enumerate(parts):
            if ours(imported) and part.startswith("_") and not part.startswith("__"):
                owner = ".".join(parts[:i])
                inside = module == owner or module.startswith(f"{owner}.")
                assert inside, f"{path.name}:{line} imports {imported}, private to {owner}"


def test_no_module_imports_itself_by_way_of_others():
    """No circle among the files' imports, those inside functions included.

    The package's own face is left out: it imports a name when that is first asked for.
    """
    arrows = {
        module: {name for name, _ in imports(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
        if module != "worldstereo"
    }
    done: set[str] = set()
    way: list[str] = []

    def visit(module: str) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module in done:
            return
        way.append(module)
        for other in sorted(arrows[module] & set(arrows)):
            visit(other)
        way.pop()
        done.add(module)

    for module in sorted(arrows):
        visit(module)


def test_public_names_are_sorted_and_documented():
    assert worldstereo.__all__ == sorted(worldstereo.__all__)
    for name in worldstereo.__all__:
        assert (getattr(worldstereo, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_importing_the_library_is_silent_and_light():
    """No output, and neither torch nor anything heavier until a name is asked for."""
    heavy = "{'torch', 'numba', 'gradio', 'viser'}"
    code = f"import sys, worldstereo; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0
    assert run.stdout.strip() == "[]"
    assert run.stderr == ""


@pytest.mark.parametrize("entry", ["worldstereo.cli", "ui.__main__"])
def test_the_commands_keep_numpy_from_threads_that_spin_and_the_library_leaves_them(entry):
    rest = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    for name, given, expected in (
        (entry, {}, "1"),
        (entry, {"OPENBLAS_NUM_THREADS": "3"}, "3"),
        ("worldstereo", {}, "None"),
    ):
        code = f"import os, {name}; print(os.environ.get('OPENBLAS_NUM_THREADS'))"
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=rest | given)
        assert run.stdout.strip() == expected


def test_no_pickle_and_no_shell():
    """`torch.load`, pickle, extractall and shell strings are nowhere in the product."""
    banned = {("torch", "load"), ("zipfile", "extractall")}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                roots = {n.split(".")[0] for n in names}
                assert not roots & {"pickle", "joblib", "marshal", "shelve", "dill"}, path
            if isinstance(node, ast.Attribute):
                assert node.attr != "extractall", f"{path}:{node.lineno}"
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                assert (owner, node.attr) not in banned, f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "shell":
                assert not (isinstance(node.value, ast.Constant) and node.value.value), path


def test_fast_kernels_that_others_call_are_inlined():
    """A callee left outside is linked by name, and whichever copy was loaded first is taken: with
    fastmath the copies round differently, so a cold and a warm cache would give different bits."""
    loose = []
    for path in sources():
        tree = ast.parse(path.read_text())
        flags = {
            target.id: ast.unparse(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        kernels = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                text = " ".join(map(ast.unparse, node.decorator_list))
                if "kernel" in text:
                    named = [flags[n] for n in flags if f"**{n}" in text]
                    kernels[node.name] = (node, " ".join([text, *named]))
        for name, (node, _) in kernels.items():
            called = {c.func.id for c in ast.walk(node) if isinstance(c, ast.Call)
                      and isinstance(c.func, ast.Name)}  # fmt: skip
            for callee in called & set(kernels):
                said = kernels[callee][1]
                if "fastmath" in said and "inline" not in said.lower():
                    loose.append(f"{path.name}: {name} calls {callee}")
    assert loose == []


def _forwards(method: ast.FunctionDef) -> bool:
    """Whether a method's whole body reads or calls one thing of another object, as it is."""
    body = [
        s
        for s in method.body
        if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
    ]
    if len(body) != 1 or not isinstance(body[0], ast.Return | ast.Expr) or body[0].value is None:
        return False
    value = body[0].value
    if isinstance(value, ast.Call):
        given = [*value.args, *(keyword.value for keyword in value.keywords)]
        if not all(isinstance(argument, ast.Name | ast.Starred) for argument in given):
            return False
        value = value.func
    names = []
    while isinstance(value, ast.Attribute):
        names.append(value.attr)
        value = value.value
    return isinstance(value, ast.Name) and value.id == "self" and len(names) > 1


def test_the_session_layer_forwards_nothing():
    """The page asks the world, the plan or the saving itself."""
    example = """class A:
    def a(self): return self.b.c
    def d(self, x): self.b.e(x)
    def f(self): return self.b"""
    known = ast.parse(example).body[0]
    assert isinstance(known, ast.ClassDef)
    assert [_forwards(m) for m in known.body if isinstance(m, ast.FunctionDef)] == [
        True,
        True,
        False,
    ]
    tree = ast.parse((ROOT / "ui/session/session.py").read_text())
    methods = [
        m
        for c in tree.body
        if isinstance(c, ast.ClassDef)
        for m in c.body
        if isinstance(m, ast.FunctionDef)
    ]
    assert [m.name for m in methods if _forwards(m)] == []
