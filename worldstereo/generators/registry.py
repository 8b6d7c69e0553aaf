"""Which generators there are. Adding one: a file that makes it, and one `register` line.

    register("mine", lambda settings: GeneratorChoice("mine", "Mine", "About it.", limits, Mine))

A package registers by an entry point of the group `worldstereo.generators`, whose name is the
generator's and whose value is such a function. Command line, page and tests read this list.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worldstereo._core.lazy import installed, loaded
from worldstereo.generators.base import Generator, GeneratorLimits, MemoryModeFit, SamplerConfig
from worldstereo.scene import Scene
from worldstereo.trajectory import Trajectory

GROUP = "worldstereo.generators"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """What a person says about weights and devices; a generator reads what concerns it."""

    model: Path | str | None = None
    """Folder, or hub id, with weights."""

    variant: str | None = None
    """Which of several checkpoints."""

    base: Path | None = None
    """Folder of a base model, where the checkpoint does not name one that is there."""

    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:1"."""

    constraint: str = "none"
    """What attention may see of the references: "none", "mask" or "bias"."""

    offline: bool = True
    """Never ask a model hub."""

    painter: str = "auto"
    """Who fills the holes of the inpainting generator: a registered painter's name, or a folder or
    hub id of an inpainting model; "auto" takes what the environment or `model` says, else Telea."""


@dataclass(frozen=True)
class GeneratorChoice:
    """A generator as it is offered, usable or not."""

    name: str
    label: str
    description: str
    """One sentence: what it does and what it needs."""
    limits: GeneratorLimits | None
    make: Callable[..., Generator]
    """Called with `mode` and `on_step` where there are `modes`, else without arguments."""
    why_not: str = ""
    """Why it cannot run here and what would change that; "" where it can."""
    modes: Callable[[int, int, int, SamplerConfig], Sequence[MemoryModeFit]] | None = None
    """The preflight of a clip (frames, width, height, sampler): ways to hold the weights, and
    which of them fit. None where there is one way only."""
    adds: str = "Generates the {share} of this path that no memory knows"
    """What it would add to a path, with the share of it that is unknown."""
    keyframes: Callable[[Scene, Trajectory], int] | None = None
    """About how many pictures of a path are made for all of its views; quick. None: every view."""


Choose = Callable[[GeneratorSettings], GeneratorChoice]
"""Says quickly, from headers alone, whether the generator can run here; weights load in `make`."""

_registered: dict[str, Choose | str] = {}


def register(name: str, choose: Choose | str) -> None:
    """Offer a generator under `name`, in the order of registration.

    Args:
        choose: a function, or "module:function", which is imported when it is first needed.

    Raises:
        ValueError: the name is taken.
    """
    if name in _registered:
        raise ValueError(f"generator {name!r} is registered already; choose another name.")
    _registered[name] = choose


def unregister(name: str) -> None:
    """Take a generator out of the list again; nothing happens where it is not there."""
    _registered.pop(name, None)


def names() -> tuple[str, ...]:
    """Every generator's name, the default first."""
    return tuple(_all())


def choice(name: str, settings: GeneratorSettings | None = None) -> GeneratorChoice:
    """One generator as it is offered here.

    Raises:
        ValueError: there is none of that name; the text lists those that there are.
    """
    found = _all()
    if name not in found:
        raise ValueError(f"generator must be one of {', '.join(found)}, got {name!r}.")
    return loaded(found[name])(settings or GeneratorSettings())


def choices(settings: GeneratorSettings | None = None) -> tuple[GeneratorChoice, ...]:
    """Every generator as it is offered here. One that fails to say so is left out and logged."""
    found = []
    for name in names():
        try:
            found.append(choice(name, settings))
        except Exception:  # a foreign package must not keep the app from starting
            log.exception("generator %r cannot be offered", name)
    return tuple(found)


def _all() -> dict[str, Choose | str]:
    foreign = {p.name: p.value for p in installed(GROUP) if p.name not in _registered}
    return _registered | foreign


register("warp", "worldstereo.generators.warp:choose")
register("diffusion", "worldstereo.generators.diffusion.choice:choose")
register("inpaint", "worldstereo.generators.inpaint.choice:choose")
