"""What a user can meet. Each message is one line: what was given, what is wrong, the way out."""


class WorldStereoError(Exception):
    """Base of every error whose text is written for the person in front of the app."""


class InvalidRequest(WorldStereoError, ValueError):
    """An argument that a person chose is not accepted. Also a `ValueError`, as arguments are."""


class Cancelled(WorldStereoError):
    """The person stopped the job; the world is as it was before."""


class WorldBusy(WorldStereoError):
    """Another step is changing this world; only one writer at a time."""


class WeightsMissing(WorldStereoError):
    """A generator or depth model was asked for whose weights are not installed."""


class OutOfMemory(WorldStereoError):
    """The card was too small for a step; the world is as it was before.

    Args:
        smaller: the next memory mode that takes less of the card; "" where there is none.
    """

    def __init__(self, message: str, smaller: str = "") -> None:
        super().__init__(message)
        self.smaller = smaller


class InputRefused(WorldStereoError):
    """A file that cannot be read safely or does not hold what its name promises."""


class ExportError(WorldStereoError):
    """The scene cannot be written in the format that was asked for."""
