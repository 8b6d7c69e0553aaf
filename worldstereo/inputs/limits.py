"""How much a stranger may hand in, and how a refusal is worded.

A refusal is one line of at most 200 characters: `<what was given>: <what is wrong, with the
number>. <what is accepted or what to do>.` It shows no path of this machine and no type name.
"""

import contextlib
import logging
import secrets
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from worldstereo.errors import InputRefused

log = logging.getLogger(__name__)

MAX_LINE = 200
_MB, _GB = 1 << 20, 1 << 30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one import may cost. `LOCAL` is for one's own machine, `SPACE` for a public server."""

    file_bytes: int = 2 * _GB
    """Largest file read, an archive or one member of a folder."""

    pixels: int = 100_000_000
    """Most pixels of one picture; more are refused from the header alone."""

    side: int = 32_768
    """Longest side of one picture, pixels."""

    aspect: float = 20.0
    """Longest side over shortest side."""

    images: int = 20_000
    """Most pictures that one capture may list; only those kept are read."""

    views: int = 1_000
    """Most views kept of a capture; more are thinned evenly with a notice."""

    view_side: int = 960
    """Long side of a kept view, pixels; larger pictures are scaled down with a notice."""

    path_cameras: int = 10_000
    """Most cameras of a camera path."""

    members: int = 50_000
    """Most members of an archive or files of a folder."""

    unpacked_bytes: int = 8 * _GB
    """All members of an archive together, counted while they are read."""

    ratio: int = 200
    """Unpacked over packed size of a member above 1 MB."""

    points: int = 50_000_000
    """Most points or vertices that a header may declare."""

    faces: int = 20_000_000
    """Most faces that a header may declare."""

    nodes: int = 20_000
    """Most nodes of a glTF tree."""

    kept_points: int = 2_000_000
    """Points kept of a cloud; more are thinned evenly with a notice."""

    json_bytes: int = 64 * _MB
    """Largest JSON text."""

    json_depth: int = 64
    """Deepest nesting of a JSON text."""

    seconds: float = 300.0
    """Time after which the import worker is killed."""

    memory: int = 8 * _GB
    """Address space that the import worker may add to what it has after its imports."""

    solve_seconds: float = 600.0
    """Time for placing photos or the frames of a video, instead of `seconds`."""

    solve_images: int = 300
    """Most photos placed; more are thinned evenly with a notice."""

    video_frames: int = 60
    """Most keyframes of a video."""

    video_seconds: float = 600.0
    """Longest video."""

    video_bytes: int = 8 * _GB
    """Largest video file; it is read frame by frame."""

    video_side: int = 4096
    """Longest side of a video, pixels; its area at most that of 16:9."""

    prompt: int = 4_000
    """Longest prompt, characters; longer ones are cut with a notice."""

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"limits.{field} must be above 0, got {value!r}.")


LOCAL = Limits()
SPACE = Limits(
    file_bytes=200 * _MB,
    pixels=50_000_000,
    side=16_384,
    images=10_000,
    views=300,
    path_cameras=1_000,
    members=25_000,
    unpacked_bytes=1 * _GB,
    points=5_000_000,
    faces=2_000_000,
    nodes=2_000,
    json_bytes=16 * _MB,
    seconds=30.0,
    memory=2 * _GB,
    solve_seconds=180.0,
    solve_images=60,
    video_frames=30,
    video_bytes=200 * _MB,
)


def shown(text: str, longest: int = 48) -> str:
    """A foreign name fit for one line of text: no control or direction marks, not too long."""
    kept = "".join(c if unicodedata.category(c)[0] not in "CZ" or c == " " else "?" for c in text)
    kept = " ".join(kept.split()) or "?"
    if len(kept) <= longest:
        return kept
    tail = longest // 3
    return kept[: longest - tail - 1] + "…" + kept[-tail:]


def refusal(name: str, wrong: str, way_out: str) -> InputRefused:
    """The one-line refusal of `name`: what is wrong (with the number), what is accepted.

    When the line would pass 200 characters, what is wrong is shortened, never the way out.
    """
    head, tail = f"{shown(name)}: ", f". {way_out.rstrip('.')}."
    wrong = " ".join(wrong.split()).rstrip(".")
    room = MAX_LINE - len(head) - len(tail)
    if len(wrong) > room:
        wrong = wrong[: max(room - 1, 0)] + "…"
    return InputRefused((head + wrong + tail)[:MAX_LINE])


MIN_ROWS = 3  # rows that must be left: with two, it cannot be told which is wrong


class Losses:
    """Rows of a capture that were left out, each with its reason; too many, and it is refused.

    with losses.row():
        shots.append(...)    # a refusal in here leaves out this row only
    losses.settle(len(shots))
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.count = 0
        self.first: InputRefused | None = None

    def lost(self, error: InputRefused, rows: int = 1) -> None:
        """`rows` of them are out, for one reason."""
        self.count += rows
        self.first = self.first or error

    @contextlib.contextmanager
    def row(self) -> Iterator[None]:
        try:
            yield
        except InputRefused as error:
            self.lost(error)

    def settle(self, kept: int) -> None:
        """Raises the first reason unless most rows, and at least three, are left."""
        if self.first is not None and (kept < MIN_ROWS or kept <= self.count):
            raise self.first

    def notices(self, kept: int) -> tuple[str, ...]:
        if self.first is None:
            return ()
        n, total = self.count, kept + self.count
        why = str(self.first).rsplit(". ", 1)[0].rstrip(".")
        return (f"{n} of {total} {self.what} left out: {why}.",)


def size_text(n: float | int) -> str:
    """Bytes for a reader: `200 MB`, `1.5 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1024 or unit == "GB":
            return f"{n:.0f} {unit}" if n >= 10 or unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def unknown_failure(name: str) -> InputRefused:
    """The line for an unexpected failure; the traceback goes to the log under its number."""
    case = secrets.token_hex(2)
    log.exception("import failed (case %s)", case)
    return InputRefused(f"{shown(name)} could not be read (case {case}). The world is unchanged.")
