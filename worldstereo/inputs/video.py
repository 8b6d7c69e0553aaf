"""Videos to keyframes: spread over the way the picture moves, the sharpest of each stretch.

Two passes. The first looks at ten frames a second at 320 px; the second decodes the chosen ones at
full size, turns them by the display matrix and maps high dynamic range to standard range. The
container format is fixed by the first bytes and nothing but the given file is ever opened: a
playlist in a video's clothing cannot name another file or an address.
"""

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worldstereo.errors import InputRefused
from worldstereo.inputs.assemble import view_of
from worldstereo.inputs.capture import title
from worldstereo.inputs.limits import Limits, refusal, size_text
from worldstereo.progress import OnStep, ignore
from worldstereo.scene import Capture

SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv")
_SMALL = 320  # long side at which motion and sharpness are measured
_PER_SECOND = 10.0
_STEP = 0.03  # of the long side: the least motion between two keyframes
_STRIDE = 0.16  # of the long side: two thirds and more of the picture stay common
_MIN_KEYFRAMES = 24  # keyframes of a video that moves enough
_HLG, _PQ = 18, 16  # transfer characteristics (ITU-T H.273)
_WHITE = 203.0  # nits of reference white in a high dynamic range video (ITU-R BT.2408)


class Keyframe(NamedTuple):
    pixels: np.ndarray
    """(H, W, 3) uint8, upright, standard range."""
    seconds: float
    """When it was shown, from the beginning of the video."""


class Keyframes(NamedTuple):
    frames: tuple[Keyframe, ...]
    looked_at: int
    seconds: float
    """Length of the video as decoded."""
    hdr: bool


def container(head: bytes) -> str | None:
    """The format of a video by its first bytes: "mov", "matroska" or None."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        brand = head[8:12]
        pictures = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
        return None if head[4:8] == b"ftyp" and brand in pictures else "mov"
    return "matroska" if head[:4] == b"\x1a\x45\xdf\xa3" else None


def is_video(name: str, head: bytes) -> bool:
    """By its first bytes; by its suffix only where these are no other known kind."""
    from worldstereo.inputs.images import looks_like

    if container(head) is not None:
        return True
    named = name.lower().endswith(SUFFIXES) and len(head) > 0
    return named and not looks_like(head).startswith("it looks like")


def keyframes(
    name: str,
    source: Path | bytes,
    limits: Limits,
    *,
    side: int = 1280,
    on_step: OnStep = ignore,
) -> Keyframes:
    """At most `limits.video_frames` pictures of a video.

    Raises:
        InputRefused: no video, too long or too large, or damaged before the second keyframe.
    """
    film = _Film(name, source, limits)
    survey = _survey(film, on_step)
    if len(survey.pts) == 0:
        raise refusal(name, "holds no picture that can be decoded", "Save or convert it again")
    wanted = {survey.pts[i] for i in _choose(survey.way, survey.sharp, limits.video_frames)}
    total, frames, hdr = len(wanted), [], False
    for frame, stream in film.frames():
        if frame.pts in wanted:
            wanted.discard(frame.pts)
            pixels, was_hdr = _pixels(frame, side)
            hdr |= was_hdr
            start = float((frame.pts - survey.pts[0]) * stream.time_base)
            frames.append(Keyframe(pixels, start))
            on_step(len(frames), total, f"Taking keyframes: {len(frames)} of {total}")
        if not wanted:
            break
    return Keyframes(tuple(frames), len(survey.pts), survey.seconds, hdr)


def every_frame(
    name: str, source: Path | bytes, limits: Limits, on_step: OnStep = ignore
) -> Capture:
    """All frames of a video as pictures in their own size, without poses or depth.

    Raises:
        InputRefused: no video, damaged, or more than `limits.images` frames.
    """
    film, views = _Film(name, source, limits), []
    for frame, _ in film.frames():
        if len(views) == limits.images:
            raise refusal(name, f"more than {limits.images} frames", "Cut it")
        pixels, _ = _pixels(frame, max(frame.width, frame.height))
        height, width = pixels.shape[:2]
        K = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
        empty = np.zeros((height, width), np.float32)
        views.append(
            view_of(pixels, empty, K, np.eye(4), frame=len(views), name=f"frame {len(views)}")
        )
        if len(views) % 10 == 1:
            on_step(len(views), len(views), f"Reading frame {len(views)}")
    if not views:
        raise refusal(name, "holds no picture that can be decoded", "Save or convert it again")
    return Capture(title(name), "pictures", tuple(views))


class _Film:
    """A video that can be decoded from the beginning as often as needed."""

    def __init__(self, name: str, source: Path | bytes, limits: Limits) -> None:
        self.name, self.source, self.limits = name, source, limits
        try:
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            with self._opened() as file:
                head = file.read(64)
        except OSError:
            raise refusal(name, "the file cannot be opened", "Check that you may read it") from None
        if size > limits.video_bytes:
            raise refusal(
                name,
                f"{size_text(size)} is too large",
                f"Videos up to {size_text(limits.video_bytes)} are accepted. Cut it",
            )
        found = container(head)
        if found is None:
            from worldstereo.inputs.images import looks_like

            raise refusal(
                name,
                f"not a video that can be read, {looks_like(head)}",
                "MP4, MOV, M4V, WebM and MKV are accepted",
            )
        self.format = found

    def _opened(self) -> Any:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")

    def frames(self) -> Iterator[tuple[Any, Any]]:
        """Frames with a time stamp, in the order of the stream, and the stream."""
        import av

        seen = 0
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self._opened())
                box: Any = stack.enter_context(
                    av.open(file, format=self.format, options={"protocol_whitelist": ""})
                )
                stream = self._stream(box)
            except InputRefused:
                raise
            except Exception:
                raise refusal(
                    self.name, "the video is cut off or damaged", "Copy or convert it again"
                ) from None
            decoded = box.decode(stream)
            while True:
                try:
                    frame = next(decoded)
                except StopIteration:
                    return
                except MemoryError:
                    raise
                except Exception:  # cut off: what was decoded so far is a video, too
                    if seen > 1:
                        return
                    raise refusal(
                        self.name, "the video is cut off or damaged", "Copy or convert it again"
                    ) from None
                if frame.pts is None:
                    continue
                seen += 1
                yield frame, stream

    def _stream(self, box: Any) -> Any:
        """The first moving video stream, checked before a frame is decoded."""
        streams = [s for s in box.streams.video if not _attached(s)]
        if not streams:
            kinds = sorted({s.type for s in box.streams}) or ["nothing"]
            raise refusal(
                self.name,
                f"holds no video, only {' and '.join(kinds)}",
                "A file with a video track is accepted",
            )
        stream, limits = streams[0], self.limits
        context = stream.codec_context
        if context is None:
            raise refusal(self.name, "its codec is not known here", "Convert it to H.264")
        length = _length(box, stream)
        if length is not None and length > limits.video_seconds:
            raise self.too_long(length)
        width, height = context.width, context.height
        most = max(limits.video_side * limits.video_side * 9 // 16, 1)
        if width * height > most or max(width, height) > limits.video_side:
            raise refusal(
                self.name,
                f"{width} x {height} px",
                f"Videos up to {limits.video_side} x {limits.video_side * 9 // 16} are accepted",
            )
        stream.thread_type, context.thread_count = "AUTO", 2
        return stream

    def too_long(self, seconds: float) -> InputRefused:
        minutes = self.limits.video_seconds / 60
        return refusal(
            self.name,
            f"{_duration(seconds)} is too long",
            f"Videos up to {minutes:.0f} minutes are accepted. Cut it",
        )


class _Survey(NamedTuple):
    pts: list[int]
    way: np.ndarray
    """How far the picture has moved until each frame, pixels of `_SMALL`."""
    sharp: np.ndarray
    seconds: float


def _survey(film: _Film, on_step: OnStep) -> _Survey:
    import cv2

    pts, way, sharp = [], [0.0], []
    before, due, first, at = None, -math.inf, None, 0.0
    flow = cv2.DISOpticalFlow_create(0)  # pyright: ignore[reportAttributeAccessIssue]  (ULTRAFAST)
    for frame, stream in film.frames():
        time = float(frame.pts * stream.time_base)
        first = time if first is None else first
        at = max(at, time - first)
        if at > film.limits.video_seconds:  # a header may say anything
            raise film.too_long(at)
        if time < due:
            continue
        due = time + 0.999 / _PER_SECOND  # seconds, never frames: rates vary
        scale = _SMALL / max(frame.width, frame.height)
        width, height = (max(16, round(v * scale / 2) * 2) for v in (frame.width, frame.height))
        small = frame.reformat(width, height, "gray").to_ndarray()
        if before is not None and before.shape == small.shape:
            moved = np.linalg.norm(flow.calc(before, small, None), axis=2)
            way.append(way[-1] + float(np.median(moved)))
        elif before is not None:
            way.append(way[-1])
        pts.append(frame.pts)
        sharp.append(float(cv2.Laplacian(small, cv2.CV_32F).var() / (small.var() + 1.0)))
        before = small
        if len(pts) % 10 == 1:
            total = stream.duration
            whole = float(total * stream.time_base) if total else 0.0
            said = f" of {whole:.0f}" if whole > 0 else ""
            on_step(
                round(1000 * min(1.0, at / whole)) if whole > 0 else 0,
                1000,
                f"Looking through the video: {at:.0f}{said} s",
            )
    return _Survey(pts, np.array(way[: max(len(pts), 1)]), np.array(sharp), at)


def _choose(way: np.ndarray, sharp: np.ndarray, most: int) -> list[int]:
    """The sharpest of each of up to `most` equal stretches of the way.

    As many as keep two thirds of the picture from one to the next, `_MIN_KEYFRAMES` at least, never
    two nearer than `_STEP`: a video that hardly moves gives few.
    """
    way = way[: len(sharp)]
    wanted = max(_MIN_KEYFRAMES, math.ceil(way[-1] / (_STRIDE * _SMALL)))
    count = int(min(wanted, most, max(1, way[-1] / (_STEP * _SMALL)), len(way)))
    marks = np.linspace(0, way[-1] + 1e-6, count + 1)
    stretch = np.clip(np.searchsorted(marks, way, "right") - 1, 0, count - 1)
    groups = (np.nonzero(stretch == k)[0] for k in range(count))
    return [int(g[np.argmax(sharp[g])]) for g in groups if len(g)]


def _pixels(frame: Any, side: int) -> tuple[np.ndarray, bool]:
    """(H, W, 3) uint8, upright, at most `side` long; and whether it was mapped from HDR."""
    scale = min(1.0, side / max(frame.width, frame.height))
    size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    curve = int(getattr(frame, "color_trc", 0) or 0)
    hdr = curve in (_HLG, _PQ)
    if hdr:
        wide = frame.reformat(*size, "rgb48le").to_ndarray().astype(np.float32) / 65535
        pixels = standard_range(wide, curve)
    else:
        pixels = frame.reformat(*size, "rgb24").to_ndarray()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)), hdr


def standard_range(signal: np.ndarray, curve: int) -> np.ndarray:
    """BT.2020 pictures in HLG (18) or PQ (16), 0 to 1, as sRGB-like (H, W, 3) uint8.

    Reference white (203 nits) becomes 237 of 255; what is brighter rolls off below 255.

    Source: ITU-R BT.2100-2, tables 4 and 5; BT.2087 for the primaries.
    """
    if curve == _PQ:
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        e = np.power(np.clip(signal, 0, 1), 1 / m2)
        light = 10_000 * np.power(np.maximum(e - c1, 0) / (c2 - c3 * e), 1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        e = np.clip(signal, 0, 1)
        scene = np.where(e <= 0.5, e * e / 3, (np.exp((e - c) / a) + b) / 12)
        luma = scene @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light = 1000 * scene * np.power(np.maximum(luma, 1e-6), 0.2)[..., None]
    matrix = np.array(
        [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
        np.float32,
    )
    x = np.maximum(light / _WHITE @ matrix.T, 0)
    x = np.where(x > 0.7, 1 - 0.09 / np.maximum(x - 0.4, 0.3), x)
    return (255 * np.power(np.clip(x, 0, 1), 1 / 2.2) + 0.5).astype(np.uint8)


def _attached(stream: Any) -> bool:
    """A cover picture, which is no video."""
    with contextlib.suppress(Exception):
        from av.stream import Disposition

        return bool(stream.disposition & Disposition.attached_pic)
    return False


def _length(box: Any, stream: Any) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return box.duration / 1e6 if box.duration else None


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.0f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
