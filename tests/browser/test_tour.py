"""The README's pictures are made by a tour, and show today's page."""

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import CHROMIUM
from ui.tour.script import Tour

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
STALE = 0.06  # of the range, mean of pictures an eighth as large: another layout or another place


def small(path: Path) -> np.ndarray:
    picture = Image.open(path).convert("RGB")
    return np.asarray(picture.resize((180, 112), Image.Resampling.BOX), np.float64) / 255


def test_the_pictures_in_the_readme_are_what_a_visitor_sees(tmp_path):
    tour = Tour.read(ROOT / "ui" / "tour" / "scripts" / "picture.json")
    command = [sys.executable, "-m", "ui.tour", "living-room", "--script", "picture"]
    told = subprocess.run(
        [*command, "--pictures", str(tmp_path), "--out", str(tmp_path / "tour.mp4")],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"CHROMIUM": CHROMIUM or ""},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    with av.open(str(tmp_path / "tour.mp4")) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    assert len(frames) >= 2 * tour.fps and frames[0].size == (1440, 900)
    for name in ("readme.jpg", "fly.webp"):  # of an animation its first frame
        difference = np.abs(small(tmp_path / name) - small(ROOT / "assets" / name))
        assert difference.mean() < STALE, f"make {name} again: see docs/tours.md"
    moving = Image.open(tmp_path / "fly.webp")
    first = np.asarray(moving.convert("L"), np.float64)
    moving.seek(moving.n_frames - 1)
    assert moving.n_frames > 8 and np.abs(np.asarray(moving.convert("L")) - first).mean() > 2
