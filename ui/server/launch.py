"""Serves a page, its viewports and its event sockets on one port."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks at once

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from .proxy import Sockets, ViewportEndpoint, routes
from .request_filter import RequestFilter


class Address(Protocol):
    """Where the page is served; `AppConfig` is one."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def max_upload(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Look:
    """What the browser gets besides the components."""

    theme: gr.themes.Base
    css: str
    css_paths: tuple[Path, ...]
    js: str
    folders: tuple[Path, ...]
    """Folders of our own files, such as icons: the only ones served beside uploads."""


def launch(
    demo: gr.Blocks,
    address: Address,
    look: Look,
    *,
    viewport: Callable[[str], ViewportEndpoint | None],
    stats: Callable[[], Mapping[str, int]],
    sockets: Sockets,
    more: Sequence[BaseRoute] = (),
    middleware: Sequence[Callable[[ASGIApp], ASGIApp]] = (),
) -> str:
    """Starts serving and returns the address; `more` are routes beside the page's own.

    Every request goes through `middleware` first.

    A mounted app would start too, but hosts that hook `Blocks.launch` would never see it.
    """
    takes = {
        index: [getattr(part, "file_count", "") == "multiple" for part in fn.inputs]
        for index, fn in demo.fns.items()
    }
    _, url, _ = demo.launch(
        server_name=address.host,
        server_port=address.port,
        prevent_thread_lock=True,
        ssr_mode=False,  # its Node front has no websocket upgrade: no viewport
        share=False,
        show_error=False,
        quiet=True,
        max_file_size=address.max_upload,
        allowed_paths=[str(folder) for folder in look.folders],
        app_kwargs={
            "routes": [*routes(viewport, stats=stats, sockets=sockets), *more],
            "middleware": [
                *((layer, (), {}) for layer in middleware),
                (RequestFilter, (get_upload_folder, takes), {}),
            ],
        },
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=look.theme,
        css=look.css,
        css_paths=list(look.css_paths),
        js=look.js,
    )
    # uvicorn reads these per connection, and launch() has no arguments for them
    config: Any = demo.server.config
    config.ws_per_message_deflate = False  # compressing a million points blocks every session 0.8 s
    config.ws_ping_timeout = 120.0  # a slow line would be cut and replayed for ever
    config.ws_max_size = 64 << 20
    return url
