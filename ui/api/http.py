"""The HTTP API: what the page does, for programs. On only where a token was set.

    GET    /v1                                  generators, exports, paths, examples
    POST   /v1/worlds                           {"example": "living-room"}, or {} for an empty one
    GET    /v1/worlds/{world}?wait=20           state; waits until its job is over, 30 s at most
    POST   /v1/worlds/{world}/open/upload?name=room.zip    the file is the body
    POST   /v1/worlds/{world}/add/upload?name=photo.jpg
    POST   /v1/worlds/{world}/path              {"preset": "orbit", "frames": 25, ...}
    POST   /v1/worlds/{world}/generate          {"generator": "warp", "seed": 0, "prompt": ""}
    POST   /v1/worlds/{world}/cancel | undo | redo
    GET    /v1/worlds/{world}/export/{format}
    DELETE /v1/worlds/{world}

Every request carries `Authorization: Bearer TOKEN`. Answers are JSON but for exports; what is
refused is `{"error": one line}` with a status of 4xx. A world's name is a secret of its own: it
also opens the world in a browser, at `/?world=NAME`.
"""

import asyncio
import hmac
import json
import logging
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePath
from typing import Any

import torch
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from worldstereo.cameras import Cameras
from worldstereo.errors import WorldBusy, WorldStereoError
from worldstereo.exports import export, exporters, file_name
from worldstereo.trajectory import PRESETS, Trajectory
from worldstereo.world import default_view

from ..page.settings import Settings, accepted_frames, chosen_size, parse_int, plan_path, reframed
from ..page.tabs.export import PROJECT, project_file
from ..session.jobs import Job
from ..session.session import PREPARING, Session
from ..session.sessions import Sessions

log = logging.getLogger(__name__)

MAX_BODY = 1 << 20  # bytes of one JSON body
MAX_WAIT = 30.0  # seconds
KEYFRAMES = 200  # of one path
MAX_PROMPT = 10_000  # characters of a prompt


class Refused(Exception):
    """An answer of one line and its status."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def routes(sessions: Sessions, token: str, max_upload: int) -> list[BaseRoute]:
    """The API's routes.

    Args:
        token: what every request must carry.
        max_upload: most bytes of one file.
    """
    api = _Api(sessions, token, max_upload)
    world = "/v1/worlds/{world}"
    return [
        Route("/v1", api.plain(api.about)),
        Route("/v1/worlds", api.plain(api.create), methods=["POST"]),
        Route(world, api.waiting, methods=["GET"]),
        Route(world, api.plain(api.close), methods=["DELETE"]),
        # their names end so because the filter of the page's events holds all other bodies whole
        Route(f"{world}/open/upload", api.upload("open"), methods=["POST"]),
        Route(f"{world}/add/upload", api.upload("add"), methods=["POST"]),
        Route(f"{world}/path", api.quick(api.path), methods=["POST"]),
        Route(f"{world}/generate", api.quick(api.generate), methods=["POST"]),
        Route(f"{world}/cancel", api.quick(api.cancel), methods=["POST"]),
        Route(f"{world}/undo", api.quick(lambda s, b: s.undo()), methods=["POST"]),
        Route(f"{world}/redo", api.quick(lambda s, b: s.redo()), methods=["POST"]),
        Route(f"{world}/export/{{format}}", api.plain(api.export)),
    ]


class _Api:
    def __init__(self, sessions: Sessions, token: str, max_upload: int) -> None:
        self._sessions, self._token, self._max_upload = sessions, token, max_upload

    # ---- what every request passes ---------------------------------------------------------------

    def _allow(self, request: Request) -> None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode(), self._token.encode()
        ):
            raise Refused(401, "This API takes `Authorization: Bearer TOKEN` of its --api-token.")

    def _found(self, request: Request) -> Session:
        session = self._sessions.get(request.path_params["world"])
        if session is None:
            raise Refused(404, "There is no such world; POST /v1/worlds makes one.")
        return session

    async def _session(self, request: Request) -> Session:
        return await run_in_threadpool(self._found, request)

    def _guarded(
        self, handle: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                self._allow(request)
                return await handle(request)
            except Refused as refused:
                return _error(refused.status, str(refused))
            except WorldBusy as busy:
                return _error(409, str(busy))
            except (WorldStereoError, ValueError) as refused:
                return _error(400, str(refused))
            except ClientDisconnect:
                return _error(400, "The connection was closed before all had arrived.")
            except Exception:
                log.exception("an API request failed")
                return _error(500, "The app made a mistake; its log says which.")

        return answer

    def plain(
        self, handle: Callable[[Request, dict[str, Any]], Response]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Answers in a thread of its own: it may take long."""

        async def run(request: Request) -> Response:
            body = await _body(request)
            return await run_in_threadpool(handle, request, body)

        return self._guarded(run)

    def quick(
        self, step: Callable[[Session, dict[str, Any]], Any]
    ) -> Callable[[Request], Awaitable[Response]]:
        """One step of an open world, then its state."""

        async def run(request: Request) -> Response:
            body, session = await _body(request), await self._session(request)
            await run_in_threadpool(step, session, body)
            return JSONResponse(state(session))

        return self._guarded(run)

    # ---- worlds ----------------------------------------------------------------------------------

    def about(self, request: Request, body: dict[str, Any]) -> Response:
        generators = {
            name: {"label": choice.label, "why_not": choice.why_not}
            for name, choice in self._sessions.generators.items()
        }
        exports = {name: form.describes for name, form in exporters().items()}
        return JSONResponse(
            {
                "generators": generators,
                "exports": exports | {PROJECT: "The whole world; can be opened again."},
                "paths": ["unseen", *PRESETS, "keyframes"],
                "examples": [example.key for example in self._sessions.examples],
                "max_upload_bytes": self._max_upload,
            }
        )

    def create(self, request: Request, body: dict[str, Any]) -> Response:
        _known(body, "example")
        key = body.get("example")
        keys = [example.key for example in self._sessions.examples]
        if key is not None and key not in keys:
            raise Refused(400, f"There is no example {key!r:.40}. There are: {', '.join(keys)}.")
        try:
            session = self._sessions.create(prepared=False)
        except WorldStereoError as full:
            raise Refused(503, str(full)) from None
        if key is not None:
            session.example(key)
        return JSONResponse(state(session), status_code=201)

    def close(self, request: Request, body: dict[str, Any]) -> Response:
        self._sessions.close(request.path_params["world"])
        return Response(status_code=204)

    async def _wait(self, request: Request) -> Response:
        session = await self._session(request)
        wait = _number(request.query_params.get("wait", "0"), "wait", 0, MAX_WAIT)
        end = time.monotonic() + wait
        while session.busy and time.monotonic() < end:
            await asyncio.sleep(0.1)
        return JSONResponse(state(session))

    @property
    def waiting(self) -> Callable[[Request], Awaitable[Response]]:
        return self._guarded(self._wait)

    # ---- files -----------------------------------------------------------------------------------

    def upload(self, what: str) -> Callable[[Request], Awaitable[Response]]:
        """A file in the body opens as the world, or a photo is added to it."""

        async def run(request: Request) -> Response:
            session = await self._session(request)
            name = PurePath(request.query_params.get("name", "")).name[:120]
            if not name or "\0" in name:
                raise Refused(400, "Say what the file is called: ?name=room.zip.")
            if session.busy:
                raise WorldBusy("Another step is running. Wait for it, or cancel it first.")
            folder = Path(tempfile.mkdtemp(prefix="api-"))
            try:
                await self._store(request, folder / name)
                job = session.open(folder / name, name) if what == "open" else session.add(
                    [folder / name]
                )  # fmt: skip
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            threading.Thread(target=_remove_after, args=(job, folder), daemon=True).start()
            return JSONResponse(state(session), status_code=202)

        return self._guarded(run)

    async def _store(self, request: Request, path: Path) -> None:
        size = 0
        with path.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > self._max_upload:
                    raise Refused(413, f"A file takes at most {self._max_upload:,} bytes here.")
                await run_in_threadpool(file.write, chunk)
        if not size:
            raise Refused(400, "The body is empty; send the file as it is.")

    def export(self, request: Request, body: dict[str, Any]) -> Response:
        session = self._found(request)
        if session.preparing:
            raise WorldBusy(PREPARING)
        form = request.path_params["format"]
        scene = session.world.scene
        if form == PROJECT:
            name, content = project_file(session)
        else:
            generated = request.query_params.get("generated", "1")
            if generated not in ("0", "1"):
                raise Refused(400, f"generated is 0 or 1, got {generated!r:.40}.")
            known = exporters().get(form)
            takes = known is not None and "generated" in known.options
            options: dict[str, Any] = {"generated": generated == "1"} if takes else {}
            content = export(scene, form, **options)
            name = file_name(scene, form)
        safe = name.encode("ascii", "replace").decode().replace('"', "_").replace("?", "_")
        headers = {
            "Content-Disposition": f'attachment; filename="{safe}"',
            "X-Content-Type-Options": "nosniff",
        }
        return Response(content, media_type="application/octet-stream", headers=headers)

    # ---- steps -----------------------------------------------------------------------------------

    def path(self, session: Session, body: dict[str, Any]) -> None:
        if "keyframes" in body:
            self._through(session, body)
            return
        _known(body, "preset", "value", "start", "frames", "size", "generator", "guide")
        preset = str(body.get("preset", "unseen"))
        slider = PRESETS[preset].parameter if preset in PRESETS else None
        settings = Settings.of(
            preset,
            body.get("value", slider.default if slider else 0),
            body.get("start", "first"),
            body.get("frames", 25),
            body.get("size", "640x480"),
            body.get("generator", session.generator),
            body.get("guide", "fused"),
        )
        plan_path(session, settings)

    def _through(self, session: Session, body: dict[str, Any]) -> None:
        _known(body, "keyframes", "frames", "size", "generator", "guide")
        if session.preparing:
            raise WorldBusy(PREPARING)
        guide = body.get("guide", "fused")
        if guide not in ("fused", "cloud"):
            raise Refused(400, f"guide is fused or cloud, got {guide!r:.40}.")
        scene = session.world.scene
        choice = session.shared.generators.get(str(body.get("generator", session.generator)))
        limits = choice.limits if choice else None
        width, height = chosen_size(str(body.get("size", "")), scene, limits)
        like = reframed(default_view(scene), width, height)
        frames = accepted_frames(parse_int(body.get("frames", 25), "frames", 2, 1000), limits)
        keys = [Cameras(like.K, pose, width, height) for pose in _poses(body["keyframes"])]
        session.set_plan(Trajectory.through(keys, max(2, frames)), guide=guide)

    def generate(self, session: Session, body: dict[str, Any]) -> None:
        _known(body, "generator", "seed", "prompt", "negative_prompt", "steps", "guidance")
        plan = session.planned.path
        if plan is None:
            raise Refused(400, "There is no path yet; POST .../path plans one.")
        steps, guidance = body.get("steps"), body.get("guidance")
        session.explore(
            plan,
            generator=str(body.get("generator", "")),
            seed=parse_int(body.get("seed", 0), "seed", 0, 2**31 - 1),
            steps=None if steps is None else parse_int(steps, "steps", 1, 1000),
            guidance=None if guidance is None else _number(guidance, "guidance", 0, 100),
            prompt=str(body.get("prompt", ""))[:MAX_PROMPT],
            negative_prompt=str(body.get("negative_prompt", ""))[:MAX_PROMPT],
        )

    def cancel(self, session: Session, body: dict[str, Any]) -> None:
        if session.job is not None:
            session.job.cancel()


def state(session: Session) -> dict[str, Any]:
    """What a program is told about a world."""
    scene, job, plan = session.world.scene, session.job, session.planned.path
    given = sum(view.step == 0 for view in scene.views)
    told: dict[str, Any] = {
        "world": session.token,
        "name": scene.name,
        "points": len(scene.cloud),
        "views": {"given": given, "generated": len(scene.views) - given},
        "clips": len(scene.clips),
        "busy": session.busy,
        "job": None,
        "path": None,
        "notices": list(session.notices),
        "saved": session.saving.state,
        "can_undo": session.can_undo,
        "can_redo": session.world.can_redo,
    }
    if job is not None:
        at = job.progress
        told["job"] = {
            "kind": job.kind,
            "state": job.state,
            "message": at.message,
            "step": at.step,
            "total": at.total,
            "seconds_left": at.seconds_left,
            "frames": len(job.frames),
        }
    if plan is not None:
        size = plan.cameras.width, plan.cameras.height
        told["path"] = {"name": plan.name, "frames": len(plan), "size": size}
    return told


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request; {} where there is none."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise Refused(413, f"A request takes at most {MAX_BODY:,} bytes.")
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise Refused(400, f"The body must be a JSON object, got {type(body).__name__}.")
    return body


def _known(body: dict[str, Any], *keys: str) -> None:
    unknown = sorted(set(body) - set(keys))
    if unknown:
        raise Refused(400, f"There is no field {unknown[0][:40]!r}; it takes {', '.join(keys)}.")


def _number(value: Any, what: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not low <= number <= high:
        raise Refused(400, f"{what} must be a number from {low:g} to {high:g}, got {value!r:.40}.")
    return number


def _poses(value: Any) -> list[torch.Tensor]:
    """Camera-to-world matrices (4, 4), +x right, +y down, +z forward."""
    if not isinstance(value, list) or not 2 <= len(value) <= KEYFRAMES:
        raise Refused(400, f"keyframes must be 2 to {KEYFRAMES} matrices of 4 rows of 4 numbers.")
    found = []
    for i, rows in enumerate(value):
        try:
            pose = torch.tensor(rows, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pose = torch.zeros(0)
        if pose.shape != (4, 4) or not bool(torch.isfinite(pose).all()):
            raise Refused(400, f"keyframe {i} must be 4 rows of 4 finite numbers.")
        found.append(pose)
    return found


def _error(status: int, line: str) -> Response:
    return JSONResponse({"error": " ".join(line.split())}, status_code=status)


def _remove_after(job: Job, folder: Path) -> None:
    for _ in job:
        pass
    shutil.rmtree(folder, ignore_errors=True)
