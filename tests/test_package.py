"""The wheel: what it holds, and that library and app run from it in an environment of their own."""

import json
import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
SOURCES = ("worldstereo", "ui", "assets", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no build folder is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        subprocess.run(["cp", "-r", str(ROOT / name), str(source / name)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel; a path file lends it the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    subprocess.run([*install, "--quiet", str(wheel)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def run(environment: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        capture_output=True, text=True, cwd=cwd, env=plain, timeout=240,
    )  # fmt: skip


def test_everything_is_inside_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"worldstereo"}
    wanted = ["py.typed", "ui/page/page.js", "ui/page/page.css", "assets/icons/play.svg"]
    templates = (ROOT / "ui" / "page" / "templates").iterdir()
    wanted += [f"ui/page/templates/{template.name}" for template in templates]
    assert {f"worldstereo/{name}" for name in wanted} <= set(names)
    assert any(name.startswith("worldstereo/assets/examples/living-room/") for name in names)


def test_the_command_and_an_example_by_the_library(environment, tmp_path):
    done = run(environment, "worldstereo", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "explore" in done.stdout
    code = (
        "import worldstereo, pathlib; from worldstereo import read;"
        "here = pathlib.Path(worldstereo.__file__).parent;"
        "capture = read(here / 'assets/examples/living-room');"
        "print(here, len(capture.views), worldstereo.__version__)"
    )
    done = run(environment, "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    where, views, version = done.stdout.split()
    assert Path(where).is_relative_to(environment)
    assert int(views) > 1
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_the_app_answers_from_the_wheel(environment, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    command = [str(environment / "bin" / "worldstereo-app"), "--port", str(free_port)]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    with subprocess.Popen(command, cwd=tmp_path, env=plain, stderr=subprocess.PIPE) as app:
        try:
            end = time.monotonic() + 200
            while True:
                try:
                    url = f"http://127.0.0.1:{free_port}/healthz"
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        assert answer.status == 200
                    break
                except OSError:
                    assert app.poll() is None, app.stderr.read().decode()
                    assert time.monotonic() < end, "the app does not answer"
                    time.sleep(0.5)
        finally:
            app.terminate()


def test_exact_pins_lie_within_the_ranges_of_the_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ranges: dict[str, SpecifierSet] = {}
    for line in [*project["dependencies"], *(line for group in extras.values() for line in group)]:
        if not line.startswith("worldstereo["):
            ranges[Requirement(line).name.lower()] = Requirement(line).specifier
    for file in ("requirements.txt", "requirements-model.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if not line.strip() or line.startswith(("#", "-r")):
                continue
            pin = Requirement(line)
            assert pin.name.lower() in ranges, f"{file}: {pin.name} is in no list of pyproject.toml"
            exact = [
                s.version for s in pin.specifier if s.operator == "==" and "*" not in s.version
            ]
            for version in exact:
                assert version in ranges[pin.name.lower()], f"{file}: {line}"


def test_a_checker_sees_the_public_names(tmp_path):
    """pyright resolves every public name to a type: an editor completes them."""
    import worldstereo

    names = worldstereo.__all__
    lines = "\n".join(f"reveal_type(worldstereo.{name})" for name in names)
    (tmp_path / "surface.py").write_text(f"import worldstereo\n{lines}\n")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, str(tmp_path / "surface.py")], capture_output=True, text=True, cwd=ROOT
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert not [d for d in found if d["severity"] == "error"], found
    shown = [d["message"] for d in found if d["severity"] == "information"]
    assert len(shown) == len(names)
    assert not [m for m in shown if "Unknown" in m or '"object"' in m]


def test_the_dockerfile_copies_and_runs_what_there_is():
    """Where no docker is at hand: its steps name files that exist and options that are known."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [line.split()[2:-1] for line in lines if line.startswith("COPY")]
    assert all((ROOT / name).exists() for names in copied for name in names)
    (command,) = [json.loads(line[4:]) for line in lines if line.startswith("CMD ")]
    assert command[:2] == ["python", "app.py"]
    done = subprocess.run(
        [sys.executable, *command[1:], "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and "--projects" in done.stdout
    (prepared,) = [line.split()[2:] for line in lines if line.startswith("RUN python ")]
    assert prepared[0] == "app.py" and prepared[-2:] == command[-2:]  # the same folder
    assert all(option in done.stdout for option in prepared if option.startswith("--"))
    assert "USER user" in lines
