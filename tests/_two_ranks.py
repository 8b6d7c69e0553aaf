"""What each of two CPU ranks runs: the tiny memory model, split by tokens or by weights.

torchrun --nproc-per-node 2 tests/_two_ranks.py OUT.json [MODEL_FOLDER]
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.parity import Fixture, difference, tiny_transformer  # noqa: E402
from worldstereo.generators.diffusion import distributed, load_transformer  # noqa: E402


def main(out: Path, folder: Path) -> None:
    devices = distributed.join("gloo")
    found: dict[str, float] = {}
    for name in ("worldstereo_camera_tiny", "worldstereo_refs_tiny"):
        fixture = Fixture(name)
        given = fixture.below("input/")
        with torch.no_grad():
            alone = tiny_transformer(name)(**given).sample
            model = tiny_transformer(name)
            distributed.split_tokens(model, devices)
            found[f"{name} tokens"] = difference(model(**given).sample, alone)
            model = tiny_transformer(name)
            distributed.shard_weights(model, devices)
            found[f"{name} weights"] = difference(model(**given).sample, alone)
            model = tiny_transformer(name)
            distributed.shard_weights(model, devices)
            distributed.split_tokens(model, devices)
            found[f"{name} both"] = difference(model(**given).sample, alone)
    variant = "worldstereo-memory"
    whole, _, _ = load_transformer(folder, variant)
    place = distributed.shard_place(devices, torch.float32, torch.float32)
    shared, _, _ = load_transformer(folder, variant, place=place)
    weights = distributed.gathered(shared)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(weights[name], tensor), name
    local = sum(p.to_local().numel() for p in shared.parameters())
    found["share of the weights on one rank"] = local / sum(p.numel() for p in whole.parameters())
    if devices.first:
        out.write_text(json.dumps(found))
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
