"""Which depth estimators there are. Adding one: a file that makes it, and one `register` line.

    register(Estimator("mine", "What it is, in one line.", lambda argument: MyDepth(argument)))

`--depth mine` or `--depth mine:ARGUMENT` then takes it. A package registers by an entry point of
the group `worldstereo.depth`, whose value is such an `Estimator`; the import process finds it, too.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from worldstereo._core.lazy import installed, loaded
from worldstereo.depth._base import DepthEstimator

GROUP = "worldstereo.depth"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimator:
    """One way to estimate the depth of a single picture."""

    name: str
    """Short, lower case; not a hub id and not a folder."""

    describes: str
    """One line: what it is and what its argument names."""

    make: Callable[[str], DepthEstimator] | str
    """Called with what stands behind `name:`, or ""; or "module:function", imported when needed."""

    def __call__(self, argument: str = "") -> DepthEstimator:
        """The estimator itself.

        Raises:
            WeightsMissing: what the argument names is not here or cannot be read.
        """
        return loaded(self.make)(argument)


_registered: dict[str, Estimator] = {}


def register(estimator: Estimator) -> Estimator:
    """Adds an estimator.

    Raises:
        ValueError: the name is taken, or could be a folder, a hub id or a choice of its own.
    """
    name = estimator.name
    if name in _registered or name in ("", "auto", "none"):
        raise ValueError(f"depth estimator {name!r} is registered already; choose another name.")
    if not name.isidentifier():
        raise ValueError(f"depth estimator {name!r}: one word of letters and digits is accepted.")
    _registered[name] = estimator
    return estimator


def unregister(name: str) -> None:
    """Takes an estimator out of the list again; nothing happens where it is not there."""
    _registered.pop(name, None)


def estimators() -> dict[str, Estimator]:
    """Every estimator by its name; one of a package that fails to load is left out and logged."""
    found = dict(_registered)
    for entry in installed(GROUP):
        if entry.name in found:
            continue
        try:
            estimator = entry.load()
            found[estimator.name] = estimator
        except Exception:  # a foreign package must not keep the rest from working
            log.exception("depth estimator %s", entry.name)
    return found


def named(spec: str) -> tuple[Estimator, str] | None:
    """The estimator and the argument of `name` or `name:argument`; None for anything else."""
    name, _, argument = spec.partition(":")
    found = estimators().get(name)
    return None if found is None else (found, argument)


_LEARNED = "worldstereo.depth._learned"
register(
    Estimator("layout", "Rough layout of floor and walls, without weights.", f"{_LEARNED}:layout")
)
register(
    Estimator(
        "transformers",
        "A depth model of the transformers library: its folder or hub id.",
        f"{_LEARNED}:learned",
    )
)
register(
    Estimator(
        "map",
        "A depth map made elsewhere: 16-bit PNG in millimetres, or TIFF.",
        f"{_LEARNED}:recorded",
    )
)
