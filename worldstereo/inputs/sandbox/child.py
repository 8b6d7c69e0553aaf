"""What the import worker's process runs: one job, inside limits of time, memory and files.

A job may be of another kind than a capture: the app names a module, as the argument, whose
`takes(path)` says so and whose `write(path, name, folder, limits)` then does the job.

After the imports an audit hook refuses every file outside the job, every socket, every other
program and every library to load; memory, processor time and file sizes are limited by the system.

The hook is defence in depth, not a sandbox: native code raises no audit event (PEP 578).
"""

import base64
import contextlib
import gc
import importlib
import io
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

_REFUSED = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "os.startfile", "pty.", "ctypes.", "webbrowser.", "urllib.", "http.", "ftplib.", "smtplib.",
    "pickle.find_class", "os.chmod", "os.chown", "os.link", "os.symlink", "os.kill", "os.putenv",
    "shutil.", "sqlite3.",
)  # fmt: skip
_PATHS = {"open": 0, "os.listdir": 0, "os.scandir": 0, "os.remove": 0, "os.rename": 0,
          "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0}  # fmt: skip
_HARMLESS = ("ctypes.cdata", "ctypes.addressof", "ctypes.get_errno", "ctypes.set_errno")

_PLY = b"""ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
element face 1
property list uchar int vertex_indices
end_header
0 0 0\n1 0 0\n0 1 0\n3 0 1 2
"""
_GLTF = b"""{"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}],
"nodes": [{"mesh": 0}], "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
"accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
"bufferViews": [{"buffer": 0, "byteLength": 36}], "buffers": [{"byteLength": 36, "uri":
"data:;base64,AAAAAAAAAAAAAAAAAACAPwAAAAAAAAAAAAAAAAAAgD8AAAAA"}]}"""


def main() -> None:
    """Says ready, reads one job from standard input, answers with one line, ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the errors, not into the answers
    records: list[str] = []
    logging.basicConfig(handlers=[_Kept(records)], level=logging.WARNING)
    _warm_up()
    _say(channel, {"ready": True})
    line = sys.stdin.readline()
    if not line:
        return  # the app is gone
    job = json.loads(line)
    answer = _answer(job, channel)
    _say(channel, answer | {"log": records[:20]})
    channel.close()
    os._exit(0)  # no exit handlers: the answer is out


def _answer(job: dict[str, Any], channel: Any) -> dict[str, Any]:
    from worldstereo import inputs
    from worldstereo.errors import InputRefused
    from worldstereo.inputs.limits import Limits
    from worldstereo.inputs.pictures import read_pictures
    from worldstereo.inputs.sandbox import transfer
    from worldstereo.inputs.task import Task
    from worldstereo.inputs.video import every_frame

    limits = Limits(**job["limits"])
    source, folder = Path(job["path"]), Path(job["folder"])
    tempfile.tempdir = str(folder)  # the only place that may be written from here on
    if os.environ.get("WORLDSTEREO_SPILL", "").lower() != "off":
        os.environ["WORLDSTEREO_SPILL"] = str(folder)  # views that were read wait on disk
    gc.disable()  # one job, then the end; collecting made large JSON texts three times slower
    _limit(limits, float(job["seconds"]))
    keep = Path(job["keep"]) if job.get("keep") else None
    forbid(source, folder, keep)
    task = Task(
        on_step=lambda *said: _say(channel, {"step": said}),
        room=keep or folder,
        on_picture=lambda pixels: _show(channel, pixels),
        solving=lambda: _say(channel, {"needs": "solve"}),
    )
    try:
        also = _also()
        if also is not None and not job.get("pictures") and also.takes(source):
            also.write(source, job["name"], folder, limits)
            return {"done": True, "also": True}
        if job.get("pictures"):
            given = sorted(source.iterdir()) if source.is_dir() else source
            capture = read_pictures(given, job["name"], limits, on_step=task.on_step)
        elif job.get("frames"):
            capture = every_frame(job["name"], source, limits, task.on_step)
        else:
            capture = inputs.read_here(source, job["name"], limits, task)
        transfer.write(capture, folder)
    except InputRefused as error:
        return {"refused": str(error)}
    except MemoryError:
        wrong = "needs more memory than an import may take"
        return {"refused": str(inputs.refusal(job["name"], wrong, "Make it smaller first"))}
    except Exception:
        return {"refused": str(inputs.unknown_failure(job["name"]))}
    return {"done": True}


def _also() -> Any:
    """The module for another kind of file, imported while that is allowed; None without one."""
    return importlib.import_module(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else None


def forbid(source: Path, folder: Path, keep: Path | None = None) -> None:
    """From here on only `source` may be read and only `folder` and `keep` written; for good."""
    readable = str(source)
    roots = [str(path) for path in (folder, keep) if path is not None]
    # A library may still import a part of itself: code, never data, from where code lies now.
    code = tuple(os.path.realpath(p) for p in sys.path if p and os.path.isdir(p))

    def inside(path: str, root: str) -> bool:
        return path == root or path.startswith(root.rstrip(os.sep) + os.sep)

    def hook(event: str, arguments: tuple) -> None:
        if event in _PATHS:
            given = arguments[_PATHS[event]]
            if given is None or isinstance(given, int):
                return
            path = os.path.realpath(os.fsdecode(given))
            mode = arguments[1] if len(arguments) > 1 and event == "open" else ""
            flags = arguments[2] if len(arguments) > 2 and event == "open" else 0
            writes = (isinstance(mode, str) and any(c in mode for c in "wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            reads = event in ("open", "os.listdir", "os.scandir") and not writes
            if any(inside(path, root) for root in roots) or (reads and inside(path, readable)):
                return
            is_code = event != "open" or path.endswith((".py", ".pyc"))
            if reads and is_code and any(inside(path, root) for root in code):
                return
            raise PermissionError(f"{event} is not allowed here")
        if event.startswith(_REFUSED) and not event.startswith(_HARMLESS):
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(hook)


def _limit(limits: Any, seconds: float) -> None:
    try:
        import resource
    except ImportError:  # not on this system: the time-out of the parent remains
        return
    pages = Path("/proc/self/statm")
    used = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 4 << 30
    for kind, value in (
        (resource.RLIMIT_AS, used + limits.memory),
        (resource.RLIMIT_FSIZE, 4 * limits.unpacked_bytes),
        (resource.RLIMIT_CPU, int(4 * max(seconds, limits.solve_seconds)) + 10),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _warm_up() -> None:
    """Imports everything that a job may need, and runs each lazy part of it once."""
    import codecs

    import cv2
    import numpy as np
    import safetensors.torch
    import torch
    import trimesh
    from PIL import Image, ImageCms, ImageOps

    from worldstereo._core import resident
    from worldstereo.depth import best_estimator
    from worldstereo.inputs import builtin, cloud, dispatch, images, lens, photo, posed, rgbd
    from worldstereo.inputs.limits import LOCAL
    from worldstereo.inputs.sandbox import transfer

    assert all((ImageOps, cloud, dispatch, posed, rgbd, transfer, safetensors.torch, trimesh))
    _also()
    resident.warm_up()
    builtin.load()  # readers of other packages too: code is loaded now or never
    for optional in ("pillow_heif", "laspy", "lazrs", "pye57", "pycolmap", "av.logging"):
        with contextlib.suppress(ImportError):
            importlib.import_module(optional)
    cv2.setNumThreads(1)
    torch.set_num_threads(2)
    for name in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp437", "ascii"):
        codecs.lookup(name)
    Image.init()
    pixels = np.zeros((16, 24, 3), np.uint8)
    images.can_read_heic()
    p3 = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    p3 = p3.replace(b"sRGB", b"warm").replace(
        "sRGB".encode("utf-16-be"), "warm".encode("utf-16-be")
    )
    for form in ("PNG", "JPEG", "WEBP", "AVIF"):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, form, icc_profile=p3)
        photo.read_photo("warm.png", data.getvalue(), LOCAL)
    for form in ("PNG", "TIFF"):
        data = io.BytesIO()
        Image.fromarray(pixels[..., 0].astype(np.uint16)).save(data, form)
        images.depth("warm.png", data.getvalue(), LOCAL)
    K = np.array([[20.0, 0, 12], [0, 20.0, 8], [0, 0, 1]])
    lens.undistorted(pixels, pixels[..., 0].astype(np.float32), lens.Lens(K, 24, 16, (0.01,)))
    mesh = cloud.read_geometry("warm.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", LOCAL)
    cloud.read_geometry("warm.ply", _PLY, LOCAL)
    cloud.read_geometry("warm.gltf", _GLTF, LOCAL)
    with tempfile.TemporaryDirectory(prefix="worldstereo-warm-") as folder:
        transfer.write(mesh, Path(folder))
    best_estimator()
    try:
        Image.open(io.BytesIO(b"nothing"))
    except Exception:
        logging.getLogger(__name__).debug("warm", exc_info=True)


class _Kept(logging.Handler):
    """Log records as text, for the answer."""

    def __init__(self, records: list[str]) -> None:
        super().__init__()
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


def _show(channel: Any, pixels: Any) -> None:
    """A picture on its way, small and bare: whoever hears of it decodes nothing."""
    import cv2
    import numpy as np

    from worldstereo.inputs.task import PICTURE_SIDE

    height, width = pixels.shape[:2]
    scale = PICTURE_SIDE / max(height, width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    data = base64.b64encode(small.tobytes()).decode("ascii")
    _say(channel, {"picture": [*size, data]})


def _say(channel: Any, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
