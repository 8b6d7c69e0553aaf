"""Painters: what fills the masked part of one picture, how they are found, called and checked.

    register_painter("mine", lambda settings: my_function)

A painter is any callable `(image, mask, prompt, seed) -> image`. A package registers one by an
entry point of the group `worldstereo.painters`. Foreign code runs here: it may answer with anything
or not at all, so every answer is checked before it is used, and a call can be left at any time.
"""

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from worldstereo._core.lazy import installed, loaded
from worldstereo.errors import OutOfMemory, WorldStereoError
from worldstereo.generators.base import StepRange
from worldstereo.generators.registry import GeneratorSettings
from worldstereo.progress import OnStep

GROUP = "worldstereo.painters"
SHAPE = 0.02
"""Relative difference of the sides' ratio up to which a picture of another size is scaled back."""
ALIKE = 0.5
"""Correlation of the known part with what was given, below which it is another picture."""
SHIFT = 6
"""Pixels by which an answer may be displaced and is moved back."""
WAIT = 0.1
"""Seconds between two looks at whether a call should be left."""


class PainterFailed(WorldStereoError):
    """A painter gave no usable picture; the world is as it was before."""


@dataclass(frozen=True, kw_only=True)
class PainterLimits:
    """What a painter works best with."""

    side: int | None = None
    """Pictures are scaled so that their area is this squared; None leaves them as they are."""
    multiple: int = 1
    """Width and height are made multiples of this."""
    grow: int = 2
    """Pixels, at the painter's size, by which the mask is closed and grown."""
    text: bool = False
    """True where it reads the prompt."""
    steps: StepRange | None = None
    """Denoising steps; None where there are none."""
    guidance: float | None = None
    seconds: float = 0.3
    """A first guess for one picture on two cores."""


PLAIN = PainterLimits()


@runtime_checkable
class Painter(Protocol):
    """Fills the masked part of a picture. A `limits` attribute says what it works best with."""

    def __call__(
        self, image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"], prompt: str,
        seed: int,
    ) -> Any:  # fmt: skip
        """The picture with the pixels painted where `mask` is True; (H, W, 3) uint8."""
        ...


@dataclass(frozen=True, kw_only=True)
class PaintRequest:
    """What a person asked for, beside the prompt."""

    negative_prompt: str = ""
    steps: int | None = None
    guidance: float | None = None


@runtime_checkable
class StepwisePainter(Protocol):
    """A painter in steps: `on_step` is asked after each, and may raise `Cancelled`."""

    limits: PainterLimits

    def paint(
        self, image: np.ndarray, mask: np.ndarray, prompt: str, seed: int, options: PaintRequest,
        on_step: OnStep,
    ) -> Any:  # fmt: skip
        """As a painter's call."""
        ...


class OpenCVPainter:
    """OpenCV's fills: no weights, no text; a hole is continued from its rim.

    Source: Telea, An image inpainting technique based on the fast marching method, 2004;
    Bertalmio et al., Navier-Stokes, fluid dynamics, and image and video inpainting, 2001.
    """

    limits = PainterLimits(grow=1, seconds=1.0)

    def __init__(self, method: str = "telea") -> None:
        self.method = method

    def __call__(
        self, image: np.ndarray, mask: np.ndarray, prompt: str = "", seed: int = 0
    ) -> np.ndarray:
        import cv2

        flag = cv2.INPAINT_TELEA if self.method == "telea" else cv2.INPAINT_NS
        return cv2.inpaint(np.ascontiguousarray(image), mask.astype(np.uint8), 3, flag)


Make = Callable[[GeneratorSettings], Painter]
_registered: dict[str, Make | str] = {
    "telea": lambda settings: OpenCVPainter("telea"),
    "navier-stokes": lambda settings: OpenCVPainter("navier-stokes"),
}


def register_painter(name: str, make: Make | str) -> None:
    """Offer a painter under `name`.

    Args:
        make: called with the settings, or "module:function", imported when it is first needed.

    Raises:
        ValueError: the name is taken.
    """
    if name in _registered:
        raise ValueError(f"painter {name!r} is registered already; choose another name.")
    _registered[name] = make


def unregister_painter(name: str) -> None:
    """Take a painter out of the list again; nothing happens where it is not there."""
    _registered.pop(name, None)


def painter_names() -> tuple[str, ...]:
    """Every painter's name."""
    return tuple(_all())


def painter_named(name: str, settings: GeneratorSettings | None = None) -> Painter:
    """A registered painter.

    Raises:
        ValueError: there is none of that name; the text lists those that there are.
    """
    found = _all()
    if name not in found:
        raise ValueError(f"painter must be one of {', '.join(found)}, got {name[:60]!r}.")
    return loaded(found[name])(settings or GeneratorSettings())


def _all() -> dict[str, Make | str]:
    foreign = {p.name: p.value for p in installed(GROUP) if p.name not in _registered}
    return _registered | foreign


def limits_of(painter: Painter) -> PainterLimits:
    return getattr(painter, "limits", PLAIN)


# ---- one call ----------------------------------------------------------------------------------


def call(
    painter: Painter,
    image: UInt8[np.ndarray, "H W 3"],
    mask: Bool[np.ndarray, "H W"],
    prompt: str,
    seed: int,
    options: PaintRequest,
    on_step: OnStep,
    seconds: float,
) -> UInt8[np.ndarray, "H W 3"]:
    """A painter's answer, checked and moved back where it was displaced.

    Raises:
        PainterFailed: it raised, took longer than `seconds`, or answered with no such picture.
        OutOfMemory: it needs more memory than there is.
        Cancelled: `on_step` raised it.
    """
    # What the painter is given is its own: it may write into it.
    given = image.copy(), mask.copy(), prompt, seed
    try:
        if isinstance(painter, StepwisePainter):
            answer = painter.paint(*given, options, on_step)
        else:
            answer = _watched(lambda: painter(*given), on_step, seconds)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what filled it
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        h, w = mask.shape
        raise OutOfMemory(
            f"The painter ran out of memory on a picture of {w} x {h} px. Choose a smaller size or "
            f"another painter; the world is kept."
        ) from None
    return checked(answer, image, mask)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a card or this machine has too little memory.

    On a CPU torch raises no class of its own for it, but a `RuntimeError` of its allocator.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _watched(work: Callable[[], Any], on_step: OnStep, seconds: float) -> Any:
    """What `work` returns, from a thread of its own, which is left where it takes too long."""
    result: list[Any] = []
    failure: list[BaseException] = []
    over = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)
        finally:
            over.set()

    threading.Thread(target=run, name="painter", daemon=True).start()
    waited = 0.0
    while not over.wait(WAIT):
        waited += WAIT
        on_step(0, 1, f"Painting, {waited:.0f} s")
        if waited > seconds:
            raise PainterFailed(
                f"The painter gave no picture in {seconds:g} s. Choose another one or a smaller "
                f"size."
            )
    if failure:
        error = failure[0]
        if isinstance(error, WorldStereoError) or ran_out_of_memory(error):
            raise error
        raise PainterFailed(
            f"The painter failed: {type(error).__name__}: {str(error)[:160]}."
        ) from error
    return result[0]


def checked(answer: Any, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An answer as a picture of the size that was given, at the place where it belongs.

    Raises:
        PainterFailed: it is no picture, or not this one.
    """
    import cv2

    out = _as_picture(answer)
    h, w = image.shape[:2]
    if out.shape[:2] != (h, w):
        ratio = (out.shape[1] * h) / (out.shape[0] * w)
        if min(out.shape[:2]) < 2 or not 1 - SHAPE < ratio < 1 + SHAPE:
            raise PainterFailed(
                f"The painter returned {out.shape[1]} x {out.shape[0]} px for {w} x {h}; a picture "
                f"of that shape is accepted."
            )
        smaller = out.shape[0] > h
        out = cv2.resize(out, (w, h), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    known = ~mask
    if not known.any():
        return out
    dx, dy, alike = _displacement(image, out, known)
    if alike < ALIKE:
        raise PainterFailed(
            f"The painter returned another picture: what was known correlates {alike:.2f} with "
            f"what it was given; at least {ALIKE} is accepted."
        )
    if (dx, dy) != (0, 0):
        move = np.array([[1.0, 0.0, -dx], [0.0, 1.0, -dy]], np.float32)
        out = cv2.warpAffine(out, move, (w, h), flags=cv2.INTER_NEAREST,
                             borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    return out


def _as_picture(answer: Any) -> np.ndarray:
    if isinstance(answer, str | bytes) or answer is None:
        raise PainterFailed(
            f"The painter returned {type(answer).__name__}; an array (H, W, 3) of uint8 is "
            f"accepted."
        )
    try:
        out = np.asarray(answer)
    except Exception:  # a foreign object may raise anything
        out = np.zeros(0)
    if out.ndim != 3 or out.shape[-1] not in (3, 4) or out.dtype.kind not in "uf":
        raise PainterFailed(
            f"The painter returned {out.dtype} of shape {out.shape}; an array (H, W, 3) of uint8 "
            f"is accepted."
        )
    out = out[..., :3]
    if out.dtype.kind == "f":
        if not np.isfinite(out).all():
            raise PainterFailed("The painter returned NaN or infinite values; nothing was kept.")
        low, high = float(out.min()), float(out.max())
        if low < -0.01 or high > 1.01:
            raise PainterFailed(
                f"The painter returned floats from {low:.3g} to {high:.3g}; uint8, or floats in "
                f"[0, 1], are accepted."
            )
        out = np.rint(out.clip(0, 1) * 255)
    elif out.dtype != np.uint8 and int(out.max(initial=0)) > 255:
        raise PainterFailed(f"The painter returned {out.dtype} above 255; uint8 is accepted.")
    return np.ascontiguousarray(out.astype(np.uint8))


def _displacement(image: np.ndarray, out: np.ndarray, known: np.ndarray) -> tuple[int, int, float]:
    """By how many pixels the known part was moved, and how well it correlates there, 1 for equal.

    It is taken to lie where it was unless another place fits twice as well.
    """
    a, b = (p.astype(np.float32).mean(2) for p in (image, out))
    at_home = _alike(a, b, known, 0, 0)
    if at_home[1] < 1.0:  # grey levels: nothing that a displacement would leave
        return 0, 0, at_home[0]
    best, home = (0, 0), at_home[1]
    least, alike = at_home[1], at_home[0]
    for dy in range(-SHIFT, SHIFT + 1):
        for dx in range(-SHIFT, SHIFT + 1):
            similar, off = _alike(a, b, known, dx, dy)
            if off < least:
                best, least, alike = (dx, dy), off, similar
    if best != (0, 0) and least < 0.5 * home and alike > 0.9:
        return *best, alike
    return 0, 0, at_home[0]


def _alike(
    a: np.ndarray, b: np.ndarray, known: np.ndarray, dx: int, dy: int
) -> tuple[float, float]:
    """Correlation and mean difference of `a` and of `b` moved back, over what is known."""
    h, w = a.shape
    rows, columns = slice(max(0, -dy), h - max(0, dy)), slice(max(0, -dx), w - max(0, dx))
    moved = b[max(0, dy) : h + min(0, dy), max(0, dx) : w + min(0, dx)]
    thin = max(1, round((known.sum() / 40_000) ** 0.5))
    where = known[rows, columns][::thin, ::thin]
    x, y = a[rows, columns][::thin, ::thin][where], moved[::thin, ::thin][where]
    if len(x) == 0:
        return 1.0, 0.0
    off = float(np.abs(x - y).mean())
    sx, sy = float(x.std()), float(y.std())
    if sx < 2.0:  # a plain surface has no pattern to compare: its colour must be kept
        return (1.0 if off < 24 else 0.0), off
    return float(((x - x.mean()) * (y - y.mean())).mean() / max(sx * sy, 1e-9)), off
