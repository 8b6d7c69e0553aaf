"""Every script of `examples/` runs, and its code passes the type checker."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from tests import textured_room
from tests.conftest import room_capture
from worldstereo.exports import estimate, export, exporters
from worldstereo.exports.registry import unregister as unregister_exporter
from worldstereo.generators.registry import choice, names, unregister
from worldstereo.scene import Origin, PointCloud, Scene
from worldstereo.trajectory import Trajectory
from worldstereo.world import World, default_view, explore, start

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
LIVING_ROOM = ROOT / "assets" / "examples" / "living-room"


def load(name: str) -> ModuleType:
    (path,) = EXAMPLES.glob(f"{name}*.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_capture_becomes_a_ply(tmp_path, capsys):
    out = tmp_path / "room.ply"
    load("01").main(LIVING_ROOM, out, frames=2)
    assert out.read_bytes().startswith(b"ply\n")
    assert "2 views" in capsys.readouterr().out


def test_photos_without_poses_become_a_model(tmp_path, capsys):
    """Each photo is placed and named, and the model has the photos and the generated views."""
    pytest.importorskip("pycolmap")
    photos, out = tmp_path / "photos", tmp_path / "model.zip"
    photos.mkdir()
    for i, c2w in enumerate(textured_room.walk(4, 0.3)):
        pixels = textured_room.photo(c2w, 320, 240, 280.0)
        Image.fromarray(pixels).save(photos / f"{i}.jpg", quality=95)
    load("02").main(photos, out, frames=2)
    told = capsys.readouterr().out
    assert [f"{i}.jpg: at" in told for i in range(4)] == [True] * 4
    assert "4 photos, 2 generated views" in told
    names = zipfile.ZipFile(out).namelist()
    assert sum(name.endswith((".png", ".jpg")) for name in names) >= 4


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 40, path.name


def test_an_own_generator_is_offered_and_paints_only_what_is_unknown():
    try:
        load("03")
        assert names()[0] == "warp" and "plain" in names()
        generator = choice("plain").make()
        world = World(generator)
        start(world, room_capture(n=2, width=96, height=64))
        eye = default_view(world.scene)
        clip = explore(world, Trajectory.preset("pan", eye, frames=5))
    finally:
        unregister("plain")
    unknown = clip.origin[:, 0] == int(Origin.INVENTED)
    assert 0 < float(unknown.float().mean()) < 1
    magenta = torch.tensor([1.0, 0.0, 1.0])
    painted = clip.color.permute(0, 2, 3, 1)[unknown]
    torch.testing.assert_close(painted, magenta.expand_as(painted))


def test_an_own_exporter_is_offered_and_writes():
    scene = Scene(cloud=PointCloud.of(torch.rand(7, 3), step=torch.arange(7) % 2))
    try:
        load("04")
        assert exporters()["csv"].group == "use"
        assert estimate(scene, "csv").bytes > 0
        rows = export(scene, "csv").decode().splitlines()
        given = export(scene, "csv", generated=False).decode().splitlines()
    finally:
        unregister_exporter("csv")
    assert rows[0].startswith("x,y,z") and len(rows) == 8 and len(given) == 5
    assert [float(v) for v in rows[1].split(",")[:3]] == pytest.approx(
        scene.cloud.points[0].tolist(), abs=1e-5
    )


def test_a_pixel_is_explained(capsys):
    load("05").main(LIVING_ROOM)
    out = capsys.readouterr().out
    assert "stereo" in out and "from view" in out


def test_a_name_is_registered_once():
    from worldstereo.generators.registry import register

    with pytest.raises(ValueError, match="registered already"):
        register("warp", lambda settings: None)
    with pytest.raises(ValueError, match="must be one of warp, diffusion.*got 'wrap'"):
        choice("wrap")


def test_the_examples_and_the_readme_pass_the_type_checker(tmp_path):
    readme = (ROOT / "README.md").read_text()
    blocks = [part.split("```")[0] for part in readme.split("```python\n")[1:]]
    assert blocks
    for i, block in enumerate(blocks):
        (tmp_path / f"readme_{i}.py").write_text(block)
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    files = [*EXAMPLES.glob("*.py"), *tmp_path.glob("*.py")]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, cwd=ROOT)
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert not [(d["file"], d["message"]) for d in found if d["severity"] == "error"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("0[34]_*.py")), ids=lambda p: p.stem)
def test_an_own_part_takes_under_forty_lines(path):
    assert len(path.read_text().splitlines()) < 40


def test_the_readme_code_runs(monkeypatch):
    readme = (ROOT / "README.md").read_text()
    block = readme.split("```python\n")[1].split("```")[0].replace("frames=25", "frames=2")
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102
