"""What the sessions of an app share and may spend; checked once, here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from worldstereo.generators.registry import GeneratorChoice, choice
from worldstereo.inputs import LOCAL, Limits
from worldstereo.scene import Capture

from .retention import RetentionPolicy

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@dataclass(frozen=True)
class Example:
    """A bundled capture that opens with one click."""

    key: str
    label: str
    path: Path | None
    thumbnail: Path | None = None
    credit: str = ""


def bundled_examples(folder: Path = ASSETS / "examples") -> tuple[Example, ...]:
    """The captures under `assets/examples`, in alphabetical order; none where the folder is not."""
    if not folder.is_dir():
        return ()
    found = []
    for path in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        thumbnail, licence = path / "thumbnail.jpg", path / "LICENCE.txt"
        credit = licence.read_text(encoding="utf-8").strip() if licence.is_file() else ""
        found.append(
            Example(
                path.name,
                path.name.replace("-", " ").capitalize(),
                path,
                thumbnail if thumbnail.is_file() else None,
                credit,
            )
        )
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class SessionsConfig:
    """What sessions share and may spend."""

    max_sessions: int = 24
    """Worlds open at once."""

    idle_seconds: float = 900.0
    """A world without a tab for so long is closed; its saved form stays."""

    workers: int = 1
    """Generator threads: one per device."""

    max_points: int = 2_000_000
    """Capacity of each world's global memory."""

    projects: Path | None = None
    """Folder of the saved worlds; None saves nothing."""

    keep: RetentionPolicy = RetentionPolicy()
    """How many of them stay on disk."""

    generator: str = "warp"
    """The generator that a new world begins with."""

    generators: tuple[GeneratorChoice, ...] = field(default_factory=lambda: (choice("warp"),))

    examples: tuple[Example, ...] = field(default_factory=bundled_examples)

    limits: Limits = LOCAL
    """What one import may cost, its time among it."""

    depth_model: bool = True
    """Whether a visitor may have a depth model downloaded to this machine."""

    read: Callable[[Path, str], Capture] | None = None
    """Reads a person's file in this process instead of the import worker's; for tests."""

    def __post_init__(self) -> None:
        if self.max_sessions < 1 or self.workers < 1:
            raise ValueError(
                f"max_sessions and workers must be at least 1, got {self.max_sessions} and "
                f"{self.workers}."
            )
        if not self.idle_seconds > 0:
            raise ValueError(f"idle_seconds must be above 0, got {self.idle_seconds}.")
        names = [choice.name for choice in self.generators]
        if self.generator not in names:
            raise ValueError(
                f"generator must be one of {', '.join(names)}, got {self.generator!r}."
            )
