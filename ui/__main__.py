"""The app: parses `AppConfig`, builds the sessions, launches the page. No logic of its own."""

import gc
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .session.config import SessionsConfig
    from .session.sessions import Sessions

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing of ours asks anybody outside
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line, which says why

ASSETS = Path(__file__).resolve().parent.parent / "assets"
MIN_TOKEN = 16
SIZES = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Explore a capture or a photo as a growing 3D world, in the browser."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but a loopback address lets strangers in: your choice."""

    port: int = 7860
    """Port of page, viewport and events alike."""

    examples: Path = ASSETS / "examples"
    """Folder with one example capture per subfolder; the first is open at the first visit."""

    projects: Path = Path("projects")
    """Folder where every world is saved after each step."""

    keep_worlds: int = 40
    """The newest saved worlds that stay there; older ones are deleted, never one in use. 0: all."""

    keep_gb: float = 20.0
    """Older saved worlds are deleted, too, while all of them take more than this. 0: no limit."""

    max_points: int = 2_000_000
    """Most points of a world's cloud; beyond it, those observed longest ago are removed."""

    model: Path | None = None
    """Folder with the published model's weights, or WORLDSTEREO_MODEL in the environment; without
    it the app runs weight-free."""

    variant: str | None = None
    """worldstereo-camera, worldstereo-memory or worldstereo-memory-dmd; the quickest there is."""

    base: Path | None = None
    """Folder of the Wan base model, where the checkpoint does not name one that is installed."""

    painter: str = "auto"
    """Who paints for the inpaint generator: telea, navier-stokes, or a folder or hub id (in the
    local cache) of an inpainting model; or WORLDSTEREO_PAINTER in the environment."""

    depth: str | None = None
    """Depth of single photos: auto (a model in the local hub cache, else a rough layout), none, a
    model's folder or hub id; or WORLDSTEREO_DEPTH_MODEL in the environment."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the generator runs; auto takes a GPU where there is one."""

    threads: int | None = None
    """CPU threads of one kernel; 2 where not given."""

    max_sessions: int = 24
    """Worlds open at once; the next visitor is asked to wait."""

    idle_minutes: float = 60.0
    """A world without visitors is closed after this long; it is saved, and its file stays."""

    max_upload: str = "500mb"
    """Largest file that the page accepts."""

    api_token: str | None = None
    """Lets programs in at /v1 that know it (docs/http.md), at least 16 characters; or
    WORLDSTEREO_API_TOKEN in the environment. Without it there is no such address."""

    prepare: bool = False
    """Compile the kernels and prepare the first example, then end, as a first start would."""

    verbose: bool = False
    """Log what the app does."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port must be between 0 and 65535, got {self.port}.")
        if self.max_points < 1:
            raise ValueError(f"max-points must be at least 1, got {self.max_points}.")
        if self.keep_worlds < 0 or not self.keep_gb >= 0:
            raise ValueError(
                f"keep-worlds and keep-gb must be at least 0, got {self.keep_worlds} and "
                f"{self.keep_gb}."
            )
        if self.max_sessions < 1:
            raise ValueError(f"max-sessions must be at least 1, got {self.max_sessions}.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}.")
        if not self.idle_minutes > 0:
            raise ValueError(f"idle-minutes must be above 0, got {self.idle_minutes}.")
        byte_count(self.max_upload)
        if self.api_token is not None and len(self.api_token) < MIN_TOKEN:
            raise ValueError(
                f"api-token takes at least {MIN_TOKEN} characters, got {len(self.api_token)}."
            )


def byte_count(text: str) -> int:
    """Bytes of a size such as "500mb". Raises `ValueError`."""
    found = re.fullmatch(r"\s*(\d{1,15})\s*([a-z]*)\s*", text.lower())
    if found is None or (found[2] or "b") not in SIZES:
        raise ValueError(f"max-upload must be a size such as 500mb, got {text[:40]!r}.")
    return int(found[1]) * SIZES[found[2] or "b"]


def sessions_config(config: AppConfig) -> "SessionsConfig":
    """What the sessions share, from what the command line says."""
    from worldstereo.generators.registry import GeneratorSettings, choices
    from worldstereo.inputs.limits import LOCAL, SPACE

    from .session.config import SessionsConfig, bundled_examples
    from .session.retention import RetentionPolicy

    settings = GeneratorSettings(
        model=config.model,
        variant=config.variant,
        base=config.base,
        device=config.device,
        painter=config.painter,
    )
    public = "SPACE_ID" in os.environ  # a hosted Space takes files from strangers, many at once
    return SessionsConfig(
        max_sessions=config.max_sessions,
        idle_seconds=60 * config.idle_minutes,
        max_points=config.max_points,
        limits=SPACE if public else LOCAL,
        depth_model=not public,
        projects=config.projects,
        keep=RetentionPolicy(worlds=config.keep_worlds, gigabytes=config.keep_gb),
        # What this machine can run comes first.
        generators=tuple(sorted(choices(settings), key=lambda choice: bool(choice.why_not))),
        examples=bundled_examples(config.examples),
    )


def main(config: AppConfig) -> None:
    """Serves until it is interrupted."""
    import logging

    logging.basicConfig(
        level=logging.INFO if config.verbose else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    if config.threads is not None:
        os.environ["WORLDSTEREO_THREADS"] = str(config.threads)
    if config.depth is not None:
        from worldstereo.depth import use

        use(config.depth)
    from .session.sessions import Sessions

    sessions = Sessions(sessions_config(config))
    if config.prepare:
        prepare(sessions)
        return
    # Where nothing is left to compile, the first world opens while the page is imported.
    ready = sessions.prepare() if sessions.has_kept else None
    from .server.stubs import leave_out_stubs

    leave_out_stubs()
    from .api.http import routes
    from .page.page import launch

    token, most = config.api_token, byte_count(config.max_upload)
    more = routes(sessions, token, most) if token else ()
    demo, url, stop = launch(sessions, config, more, ready)
    print(f"WorldStereo is open at {url}", flush=True)
    gc.freeze()  # a million objects of imports: the collector need not look at them again
    gc.enable()
    try:
        demo.block_thread()
    finally:
        stop()


def prepare(sessions: "Sessions") -> None:
    """Does what a first start does besides serving, and ends; everything is on disk then."""
    print("Compiling kernels and preparing the first example: once, some 20 seconds.", flush=True)
    session = sessions.prepare()
    try:
        if session is not None and session.job is not None:
            session.job.result()
            if not sessions.shared.settled(sessions.examples[0], timeout=600):
                print("The first example could not be kept; the first start prepares it again.")
    finally:
        sessions.close_all()


def run() -> None:
    """The command `worldstereo-app`; defaults come from the environment."""
    gc.disable()  # a fifth of the time that imports take would be spent looking for garbage
    import tyro

    # Hosted spaces and containers say where to listen through the environment.
    default = AppConfig(
        host=os.environ.get("GRADIO_SERVER_NAME", AppConfig.host),
        port=int(os.environ.get("PORT", os.environ.get("GRADIO_SERVER_PORT", AppConfig.port))),
        model=Path(os.environ["WORLDSTEREO_MODEL"]) if "WORLDSTEREO_MODEL" in os.environ else None,
        api_token=os.environ.get("WORLDSTEREO_API_TOKEN") or None,
    )
    main(tyro.cli(AppConfig, default=default))


if __name__ == "__main__":
    run()
