"""The command line: the whole job headless, and refusals in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from worldstereo.cli import main

EXAMPLE = Path(__file__).parent.parent / "assets" / "examples" / "living-room"


def test_explore_writes_the_world_and_the_project_opens_again(tmp_path, capsys):
    size = ["--width", "96", "--height", "72", "--frames", "2"]
    out = tmp_path / "out"
    first = ["explore", str(EXAMPLE), "--trajectory", "truck", *size, "--out", str(out)]
    assert main([*first, "--no-register", "--export", "ply", "mp4"]) == 0
    assert {p.suffix for p in out.iterdir() if p.is_file()} >= {".ply", ".mp4"}
    shown = capsys.readouterr().out
    assert "6 given views, 2 generated" in shown

    project = out / "project.world"
    assert main(["info", str(project)]) == 0
    assert "6 given views, 2 generated" in capsys.readouterr().out
    assert (
        main(["export", str(project), "--format", "trajectory", "--out", str(out / "again")]) == 0
    )
    path = next((out / "again").glob("*.json"))
    follow = ["explore", str(project), "--trajectory", str(path), *size]
    assert main([*follow, "--out", str(tmp_path / "two"), "--export", "ply"]) == 0
    assert "6 given views, 4 generated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere"], "nowhere"),
        (
            ["explore", str(EXAMPLE), "--trajectory", "sideways", "--no-register"],
            "neither a preset",
        ),
        (["explore", str(EXAMPLE), "--generator", "diffusion"], "needs --model FOLDER"),
        (["export", str(EXAMPLE), "--format", "nope"], "must be one of"),
        (["export", str(EXAMPLE), "--format", "fbx"], "Write GLB"),
    ],
)
def test_a_refusal_is_one_line_on_standard_error(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.strip().count("\n") == 0
    assert "Traceback" not in said.err


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['worldstereo', '--help']\n"
        "try:\n    from worldstereo.cli import main; main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'numba', 'scipy', 'gradio', 'viser'} & set(sys.modules)\n"
        "sys.exit(len(heavy))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=EXAMPLE.parents[2])
    assert run.returncode == 0


def test_the_command_for_each_device_is_the_same_without_devices():
    from worldstereo.cli import _without_devices

    line = ["explore", "a.jpg", "--devices", "2", "--seed", "3"]
    assert _without_devices(line) == ["explore", "a.jpg", "--seed", "3"]
    assert _without_devices(["explore", "a.jpg", "--devices=2"]) == ["explore", "a.jpg"]


def test_gradio_is_imported_without_writing_type_stubs():
    """Oracle: the interpreter's own record of the files that are opened."""
    code = (
        "import sys\nopened = []\n"
        "def hook(name, args):\n"
        "    if name == 'open':\n        opened.append(str(args[0]))\n"
        "sys.addaudithook(hook)\n"
        "from ui.server.stubs import leave_out_stubs\n{}\n"
        "import gradio\ngradio.Textbox()\n"
        "print(sum(path.endswith('.pyi') for path in opened))"
    )
    root = EXAMPLE.parents[2]
    counts = []
    for line in ("leave_out_stubs()", ""):
        command = [sys.executable, "-c", code.format(line)]
        counts.append(int(subprocess.run(command, capture_output=True, cwd=root, text=True).stdout))
    assert counts[0] == 0 < counts[1]
