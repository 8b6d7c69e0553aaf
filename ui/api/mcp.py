"""An MCP server over the HTTP API, for assistants: `worldstereo-mcp --url ... --api-token ...`.

It speaks on standard input and output and calls a running app; it opens and writes only files that
are named to it. Needs the optional package `mcp` (`pip install 'worldstereo[mcp]'`).
"""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from mcp.server import MCPServer

WAIT = 25.0  # seconds that one question for a state may take
MISSING = "worldstereo-mcp needs the package mcp; install it with: pip install 'worldstereo[mcp]'"


@dataclass(frozen=True, kw_only=True)
class McpConfig:
    """Let an assistant explore places in a running app."""

    url: str = "http://127.0.0.1:7860"
    """Address of the app."""

    api_token: str = ""
    """The app's --api-token; or WORLDSTEREO_API_TOKEN in the environment."""


class Remote:
    """The app's HTTP API. What it refuses is raised as `ValueError`, in its words."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return self.bytes_of(method, path, **options).json()

    def bytes_of(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, f"/v1{path}", **options)
        except httpx.HTTPError as error:
            raise ValueError(f"{self._http.base_url} does not answer: {error}.") from None
        if answer.is_error:
            try:
                line = answer.json()["error"]
            except (ValueError, KeyError, TypeError):
                line = f"The app answered {answer.status_code}."
            raise ValueError(line)
        return answer


def server(remote: Remote) -> "MCPServer":
    """The server with its tools.

    Raises:
        ImportError: the package `mcp` is not installed.
    """
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    def tool(call: Callable[..., Any]) -> Callable[..., Any]:
        """Registers a call; what it refuses reaches the assistant in its words."""

        @functools.wraps(call)
        def guarded(*args: Any, **values: Any) -> Any:
            try:
                return call(*args, **values)
            except (ValueError, OSError) as error:
                raise ToolError(str(error)) from None

        return made.tool()(guarded)

    made = MCPServer(
        "worldstereo",
        instructions="Explore a place in 3D: open a capture, plan a camera path, generate the"
        " novel views along it, export the world. Long steps return at once: ask for the state.",
    )

    @tool
    def about() -> dict[str, Any]:
        """The generators, camera paths, export formats and examples that this app has."""
        return remote.ask("GET", "")

    @tool
    def open_example(example: str) -> dict[str, Any]:
        """Open a bundled example as a new world; returns its state with its name `world`."""
        return remote.ask("POST", "/worlds", json={"example": example})

    @tool
    def open_file(path: str) -> dict[str, Any]:
        """Open a photo, video, capture (zip), mesh or project of this machine as a new world."""
        file = _file(path)
        world = remote.ask("POST", "/worlds", json={})["world"]
        return _send(remote, world, "open", file)

    @tool
    def add_photo(world: str, path: str) -> dict[str, Any]:
        """Find where a photo of this machine was taken in an open world, and let it grow by it."""
        return _send(remote, world, "add", _file(path))

    @tool
    def state(world: str, wait: float = WAIT) -> dict[str, Any]:
        """Views, points, path and job of a world; waits until its job is over, `wait` s at most."""
        return remote.ask("GET", f"/worlds/{world}", params={"wait": wait})

    @tool
    def plan_path(world: str, preset: str = "unseen", frames: int = 25) -> dict[str, Any]:
        """Plan a camera path: "unseen" goes where most is unknown; `about` names the others."""
        wanted = {"preset": preset, "frames": frames}
        return remote.ask("POST", f"/worlds/{world}/path", json=wanted)

    @tool
    def generate(world: str, generator: str = "", prompt: str = "", seed: int = 0) -> Any:
        """Generate the novel views along the planned path."""
        wanted = {"generator": generator, "prompt": prompt, "seed": seed}
        return remote.ask("POST", f"/worlds/{world}/generate", json=wanted)

    @tool
    def undo(world: str) -> dict[str, Any]:
        """Take the world's last step back."""
        return remote.ask("POST", f"/worlds/{world}/undo")

    @tool
    def export(world: str, format: str, path: str) -> str:
        """Write the world in a format that `about` names to a file; an existing file is kept."""
        out = Path(path)
        if out.exists():
            raise ValueError(f"{path} exists; name a file that does not.")
        content = remote.bytes_of("GET", f"/worlds/{world}/export/{format}").content
        with out.open("xb") as file:
            file.write(content)
        return f"{out} ({len(content):,} bytes)"

    return made


def _file(path: str) -> Path:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{path} is no file of this machine.")
    return file


def _send(remote: Remote, world: str, what: str, file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        return remote.ask(
            "POST", f"/worlds/{world}/{what}/upload", params={"name": file.name}, content=content
        )


def run() -> None:
    """The command `worldstereo-mcp`."""
    import tyro

    config = tyro.cli(
        McpConfig, default=McpConfig(api_token=os.environ.get("WORLDSTEREO_API_TOKEN", ""))
    )
    with httpx.Client(
        base_url=config.url,
        headers={"Authorization": f"Bearer {config.api_token}"},
        timeout=600,
        trust_env=False,
    ) as http:
        try:
            made = server(Remote(http))
        except ImportError:
            sys.exit(MISSING)
        made.run("stdio")


if __name__ == "__main__":
    run()
