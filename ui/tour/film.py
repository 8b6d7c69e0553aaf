"""`Film`: pictures with the time at which they were seen, written as a film of constant rate."""

import io
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

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

    def frames(self, fps: int) -> list[int]:
        """For each frame of the film, the newest picture that was seen by then."""
        shown = [self.shown_at(time) for time in self._times]
        found, at = [], 0
        for k in range(max(1, round(self.seconds * fps))):
            while at + 1 < len(shown) and shown[at + 1] <= (k + 0.5) / fps:
                at += 1
            found.append(at)
        return found

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

    def _picture(self, at: int, size: tuple[int, int]) -> Image.Image:
        content = (Path(self._folder.name) / f"{at}.jpg").read_bytes()
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
