"""The command `worldstereo-tour`: a recorded walkthrough of the app as a film."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from worldstereo.errors import WorldStereoError

SCRIPTS = Path(__file__).with_name("scripts")


@dataclass(frozen=True, kw_only=True)
class TourConfig:
    """Record a walkthrough of the app as a film: a script's steps, played in Chromium."""

    source: Annotated[str, tyro.conf.Positional] = "living-room"
    """What the app opens: a file, a folder, or a bundled example."""

    script: str = "walkthrough"
    """A JSON file of steps (docs/tours.md), or a bundled one: walkthrough, inspect, picture."""

    out: Path = Path("tour.mp4")
    """The film."""

    pictures: Path | None = None
    """Folder for the script's pictures; none are made without it."""


def main(config: TourConfig) -> None:
    """Raises `WorldStereoError` in one line."""
    from .record import record
    from .script import Tour

    bundled = SCRIPTS / f"{Path(config.script).name}.json"
    path = Path(config.script)
    tour = Tour.read(bundled if not path.is_file() and bundled.is_file() else path)
    if config.pictures is not None:
        config.pictures.mkdir(parents=True, exist_ok=True)

    def on_step(step: int, total: int, message: str) -> None:
        print(f"{step + 1} of {total}: {message}", file=sys.stderr, flush=True)

    film = record(config.source, tour, config.out, pictures=config.pictures, on_step=on_step)
    print(f"{config.out}: {film.seconds:.0f} s, {tour.width} x {tour.height}")


def run() -> None:
    config = tyro.cli(TourConfig)
    try:
        main(config)
    except (WorldStereoError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    run()
