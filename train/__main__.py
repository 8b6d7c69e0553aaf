"""`python -m train scenes | tuples | run | ship`: see `train/README.md`."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from train.run import Plan
from train.shards import each, write_scenes, write_tuples


@dataclass(frozen=True)
class Scenes:
    """Render shards of procedural scenes: about 0.4 s a scene on one core."""

    textures: Path
    """Folder with crops256.tar and ambientcg128.tar."""
    out: Path
    shards: int = 30
    first: int = 0
    per_shard: int = 50
    views: int = 6
    size: int = 160
    held_out: bool = False
    """Scenes with textures that training never sees."""
    workers: int = 1
    """Processes; each writes whole shards, and the shards do not depend on how many there are."""


@dataclass(frozen=True)
class Tuples:
    """Ask the product's own memories for targets of every scene: about 0.1 s a tuple."""

    scenes: Path
    out: Path
    per_shard: int = 100
    rounds: int = 1
    workers: int = 1
    """Processes, as for scenes."""


@dataclass(frozen=True)
class Ship:
    """Write a run's mean weights into the package, in half precision."""

    run: Path
    out: Path = Path("worldstereo/weights/mini")
    caution: float = 0.0
    """Of `supported`: how much of a correction is kept where the references do not bear it."""


def main() -> None:
    """Run the command that was asked for."""
    tyro.extras.subcommand_cli_from_dict(
        {"scenes": scenes, "tuples": tuples, "run": train, "ship": ship},
        prog="train",
        config=(tyro.conf.OmitArgPrefixes,),
    )


def scenes(options: Scenes) -> None:
    """Render shards of procedural scenes."""
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "held" if options.held_out else "scenes"
    shards = range(options.first, options.shards)
    seed = 99 if options.held_out else 1000
    how = (options.textures, options.held_out, options.per_shard, options.views, options.size)
    wanted = [(*how, seed + i, options.out / f"{kind}-{i:03d}.safetensors") for i in shards]
    each(write_scenes, [job for job in wanted if not job[-1].exists()], options.workers)


def tuples(options: Tuples) -> None:
    """Make training tuples from every shard of scenes."""
    options.out.mkdir(parents=True, exist_ok=True)
    shards = list(enumerate(sorted(options.scenes.glob("scenes-*.safetensors"))))
    wanted = [
        (shard, options.per_shard, 1000 * r + i, options.out / f"tuples-{r}-{i:03d}.safetensors")
        for r in range(options.rounds)
        for i, shard in shards
    ]
    each(write_tuples, [job for job in wanted if not job[-1].exists()], options.workers)


def train(plan: Plan) -> None:
    """Train, resuming what is in the folder."""
    from train.run import run

    run(plan)


def ship(options: Ship) -> None:
    """Write weights and config of a run where the mini generator looks for them."""
    from safetensors.torch import load_file, save_file

    from worldstereo.mini import VERSION

    facts = json.loads((options.run / "run.json").read_text())
    weights = {
        k: v.half().contiguous() for k, v in load_file(options.run / "ema.safetensors").items()
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "weights-00001-of-00001.safetensors"
    save_file(weights, options.out / name)
    config = {
        "version": VERSION,
        "files": [name],
        "caution": options.caution,
        "stage": facts["plan"]["stage"],
        "steps": facts["step"],
        "batch": facts["plan"]["batch"],
        "crop": facts["plan"]["crop"],
        "seed": facts["plan"]["seed"],
    }
    (options.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
