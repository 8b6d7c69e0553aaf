"""`Film`: pictures with the time at which they were seen, written as a film of constant rate."""

import io
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image


class Film:
    """Collects pictures in a folder of its own, so that memory does not grow with the film.

    Its clock can run slower than the browser's: a minute of waiting is shown in some seconds.
    """

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="tour-")
        self._times: list[float] = []
        self._marks: list[tuple[float, float]] = []

    def __len__(self) -> int:
        return len(self._times)

    def add(self, jpeg: bytes, seen: float) -> None:
        """A picture as JPEG, seen at a time in seconds; times only grow."""
        if self._times and seen <= self._times[-1]:
            return
        (Path(self._folder.name) / f"{len(self._times)}.jpg").write_bytes(jpeg)
        self._times.append(seen)

    def mark(self, seen: float, shown: float) -> None:
        """What was seen at a time is shown at second `shown` of the film; linear in between."""
        self._marks.append((seen, shown))

    @property
    def seconds(self) -> float:
        return self._marks[-1][1] if self._marks else 0.0

    def shown_at(self, seen: float) -> float:
        """The second of the film at which it shows what was seen then."""
        (before, start), *rest = self._marks
        for after, end in rest:
            if seen <= after:
                part = (seen - before) / max(after - before, 1e-9)
                return start + max(0.0, part) * (end - start)
            before, start = after, end
        return start

    def frames(self, fps: int, start: float = 0.0, end: float | None = None) -> list[int]:
        """For each frame of the film, or of a part in seconds, the newest picture seen by then."""
        shown = [self.shown_at(time) for time in self._times]
        end = self.seconds if end is None else end
        found, at = [], 0
        for k in range(max(1, round((end - start) * fps))):
            while at + 1 < len(shown) and shown[at + 1] <= start + (k + 0.5) / fps:
                at += 1
            found.append(at)
        return found

    def animate(
        self, path: Path, start: float, end: float, *, width: int = 720, fps: int = 8
    ) -> None:
        """A part of the film, in seconds, as an animated WebP that repeats.

        Raises:
            OSError: it cannot be written there.
        """
        which = self.frames(fps, start, end)
        wide, high = self._picture(which[0]).size
        size = (width, round(width * high / wide))
        first, *rest = [self._picture(at, size) for at in which]
        options: dict[str, Any] = {"quality": 70, "method": 4, "loop": 0, "duration": 1000 // fps}
        part = path.with_name(f".{path.name}.part")
        try:
            first.save(part, format="WEBP", save_all=True, append_images=rest, **options)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def write(self, path: Path, fps: int, size: tuple[int, int]) -> None:
        """H.264, yuv420p, index first. Nothing is left where it fails.

        Raises:
            OSError: it cannot be written there. av.FFmpegError: the encoder refused.
        """
        import av

        part = path.with_name(f".{path.name}.part")
        try:
            with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as out:
                video = out.add_stream("libx264", rate=Fraction(fps))
                video.width, video.height = size
                video.pix_fmt = "yuv420p"
                video.options = {"crf": "20", "preset": "veryfast"}
                last, frame = -1, None
                for k, at in enumerate(self.frames(fps)):
                    if at != last or frame is None:
                        last, frame = at, av.VideoFrame.from_image(self._picture(at, size))
                    frame.pts, frame.time_base = k, Fraction(1, fps)
                    out.mux(video.encode(frame))
                out.mux(video.encode(None))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        self._folder.cleanup()

    def _picture(self, at: int, size: tuple[int, int] | None = None) -> Image.Image:
        content = (Path(self._folder.name) / f"{at}.jpg").read_bytes()
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        return (
            picture
            if size in (None, picture.size)
            else picture.resize(size, Image.Resampling.LANCZOS)
        )
