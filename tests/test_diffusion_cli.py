"""The published model from the command line: several devices, official examples, refusals."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests._clip_of_ranks import clip
from tests.conftest import room_capture
from tests.parity import difference
from tests.tiny_model import write_tiny_model
from worldstereo.cli import main
from worldstereo.generators import WarpGenerator
from worldstereo.project import load_world, save_world
from worldstereo.scene import Clip
from worldstereo.world import World, start

ROOT = Path(__file__).parent.parent
SIZE = ["--width", "96", "--height", "64", "--frames", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """A saved world of the two-wall room."""
    world, path = World(WarpGenerator()), tmp_path_factory.mktemp("world") / "room.world"
    start(world, room_capture(2, 96, 64), register=False)
    save_world(world, path)
    return path


def environment() -> dict[str, str]:
    mine = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | mine


def clip_in(out: Path) -> Clip:
    world = World(WarpGenerator())
    load_world(world, out / "project.world")
    return world.scene.clips[-1]


def test_a_whole_clip_on_two_ranks_is_that_of_one(folder, tmp_path):
    """Weights and tokens are shared out; guidance, references, VAE and all steps are in it."""
    out = tmp_path / "frames.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests._clip_of_ranks", str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    frames = load_file(out)["frames"]
    alone = clip(folder)
    assert frames.shape == alone.shape == (4, 3, 64, 96) and float(alone.std()) > 0.01
    assert difference(frames, alone) <= 1e-5


def test_devices_on_the_command_line(folder, room, tmp_path):
    """The documented command with `--devices 2` writes one result, and that of one device."""
    line = ["explore", str(room), "--generator", "diffusion", "--model", str(folder)]
    line += ["--variant", "worldstereo-memory-dmd", "--steps", "2", *SIZE]
    line += ["--trajectory", "truck", "--seed", "5", "--export", "mp4"]
    two = [*line, "--devices", "2", "--out", str(tmp_path / "two")]
    command = [sys.executable, "-m", "worldstereo", *two]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("points; unit") == 1  # one process writes and tells
    assert main([*line, "--out", str(tmp_path / "one")]) == 0
    a, b = clip_in(tmp_path / "one"), clip_in(tmp_path / "two")
    assert a.prompt.startswith("A photorealistic place") and a.prompt == b.prompt
    assert int((a.color_u8.int() - b.color_u8.int()).abs().max()) <= 1


def test_an_official_example_with_its_own_path_prompt_and_renders(folder, tmp_path, data):
    from worldstereo.generators.diffusion import read_example

    kitchen = data / "worldstereo" / "reconstruction" / "kitchen"
    path = kitchen / "renders" / "traj_left" / "camera.json"
    line = ["explore", str(kitchen), "--trajectory", str(path), "--generator", "diffusion"]
    line += ["--model", str(folder), "--steps", "2", "--export", "mp4"]
    clips = {}
    for guide in ("renders", "fused"):
        out = tmp_path / guide
        assert main([*line, "--guide", guide, "--out", str(out)]) == 0
        clips[guide] = clip_in(out)
    sizes = ((64, 96), (64, 64), (96, 64))
    example = read_example(path.parent, sizes=sizes, nframe=5)
    clip = clips["renders"]
    assert clip.prompt == example.prompt and "kitchen" in clip.prompt
    assert difference(clip.trajectory.cameras.c2w, example.trajectory.cameras.c2w) <= 1e-6
    assert difference(clip.trajectory.cameras.K, example.trajectory.cameras.K) <= 1e-4
    assert clip.color_u8.shape == (5, 3, 64, 96)
    assert example.guide is not None
    assert torch.equal(clip.origin == 0, example.guide.seen)  # seen where the render says so
    assert not torch.equal(clip.color_u8, clips["fused"].color_u8)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--prompt", " "], "prompt must describe the place"),
        (["--frames", "9"], "at most 5 for the worldstereo-memory-dmd generator, got 9"),
        (["--width", "100"], "multiples of 16"),
        (["--variant", "worldstereo-large"], "variant must be one of worldstereo-camera"),
        (["--memory-mode", "half"], "mode must be auto or one of full"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--guide", "renders"], "guide renders needs --trajectory FOLDER/camera.json"),
        (["--generator", "warp", "--devices", "2"], "devices must be 1 for the warp generator"),
        (["--devices", "99"], r"devices must be 1 \.\. \d+ on this machine, got 99"),
    ],
)
def test_what_cannot_run_is_one_line(folder, room, tmp_path, capsys, more, words):
    line = ["explore", str(room), "--generator", "diffusion", "--model", str(folder)]
    line += [*SIZE, "--out", str(tmp_path / "out"), *more]
    assert main(line) == 1
    [told] = capsys.readouterr().err.strip().splitlines()
    assert re.search(words, told)
    assert not (tmp_path / "out").exists()
