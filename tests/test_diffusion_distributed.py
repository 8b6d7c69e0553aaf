"""Two CPU ranks (gloo) against one, by tokens, by weights, and by both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity import tiny_transformer
from tests.tiny_model import write_tiny_model
from worldstereo.generators.diffusion import distributed

HERE = Path(__file__).parent


def test_two_ranks_give_what_one_gives(tmp_path):
    folder, out = write_tiny_model(tmp_path / "model"), tmp_path / "found.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(HERE / "_two_ranks.py"), str(out), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    share = found.pop("share of the weights on one rank")
    assert 0.45 < share < 0.6
    assert len(found) == 6
    for what, apart in found.items():
        assert apart <= 1e-5, what


def test_what_cannot_be_cut_evenly_is_named():
    model = tiny_transformer("worldstereo_refs_tiny")
    distributed.check_split(model, 2, 4, 32, 48, 2)
    with pytest.raises(ValueError, match="devices must divide the 3 target tokens evenly, got 2"):
        distributed.check_split(model, 2, 3, 16, 16, 2)
    with pytest.raises(ValueError, match="devices must divide the 2 heads evenly, got 3"):
        distributed.check_split(model, 3, 3, 48, 48, 3)


def test_alone_without_torchrun(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    devices = distributed.join()
    assert devices.count == 1 and devices.first
    model = tiny_transformer("worldstereo_refs_tiny")
    distributed.split_tokens(model, devices)  # nothing to do
    distributed.leave()
