"""The house: imports point only down, third parties have one door, public names are documented."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import worldstereo

ROOT = Path(__file__).parent.parent

RANKS = [
    "errors _parallel _atomic _compiled",
    "cameras _morton",
    "trajectory depth spatial_index render attention",
    "scene geometric_memory",
    "fusion stereo_memory",
    "registration multiview",
    "intake synthesis",
    "control inputs",
    "generator",
    "diffusion world",
    "remember export project",
    "edits explore",
    "__main__",
    "ui.viewport ui.proxy ui.inspector",
    "ui.session",
    "ui.panel",
    "app",
]
RANK = {name: rank for rank, line in enumerate(RANKS) for name in line.split()}
DOORS = {
    "gradio": {"ui.panel", "app"},
    "viser": {"ui.viewport"},
    "starlette": {"ui.proxy"},
    "websockets": {"ui.proxy"},
    "trimesh": {"export", "inputs"},
    "plyfile": {"inputs"},
    "pykeops": {"spatial_index"},
    "diffusers": {"diffusion"},
    "transformers": {"diffusion", "depth"},
}
# Private siblings and packages belong to the module that they were split from.
SIBLINGS = {
    "exports": "export",
    "trajectory_presets": "trajectory",
    "trajectory_splines": "trajectory",
}


def sources() -> list[Path]:
    return [
        *sorted((ROOT / "worldstereo").rglob("*.py")),
        *sorted((ROOT / "ui").rglob("*.py")),
        ROOT / "app.py",
    ]


def home(path: Path) -> str:
    """The module of the table that a file belongs to."""
    return _home(list(path.relative_to(ROOT).with_suffix("").parts))


def _home(parts: list[str]) -> str:
    if parts[0] == "worldstereo":
        name = parts[1] if len(parts) > 1 else "__init__"
    elif parts[0] == "ui":
        name = "ui." + (parts[1] if len(parts) > 1 else "__init__")
    else:
        name = parts[0]
    prefix, _, last = name.rpartition(".")
    if last in SIBLINGS:
        last = SIBLINGS[last]
    known = [n.rpartition(".")[2] for n in RANK if n.rpartition(".")[0] == prefix]
    stem = last.lstrip("_")
    if last not in known:
        owners = [n for n in known if stem == n or stem.startswith(n + "_")]
        last = max(owners, key=len) if owners else last
    return f"{prefix}.{last}" if prefix else last


def imports(path: Path) -> list[tuple[list[str], int]]:
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.split("."), node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module in ("worldstereo", "ui"):
                found += [([node.module, alias.name], node.lineno) for alias in node.names]
            else:
                found.append((node.module.split("."), node.lineno))
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_and_third_parties_have_one_door(path):
    here = home(path)
    if path.name == "__init__.py" and path.parent.name in ("worldstereo", "ui"):
        return
    assert here in RANK, f"{here} has no place in the table of ranks"
    for parts, line in imports(path):
        if parts[0] in ("worldstereo", "ui") and len(parts) > 1:
            there = _home(parts)
            if there != here:
                assert there in RANK, f"{path.name}:{line} imports {there}, which has no rank"
                assert RANK[there] < RANK[here], f"{path.name}:{line} imports {there}"
        elif parts[0] in DOORS:
            assert here in DOORS[parts[0]], f"{path.name}:{line} imports {parts[0]}"


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
