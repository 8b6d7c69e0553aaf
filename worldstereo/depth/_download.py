"""A depth model from the hub into its local cache, because a person asked for it.

Files are streamed into the cache's own layout, so that a download that was stopped goes on where it
was: `huggingface_hub` itself begins an unfinished file again.
"""

import fnmatch
import hashlib
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from worldstereo.depth._learned import SUGGESTED, cache_folder, check_folder, forget
from worldstereo.errors import Cancelled, WeightsMissing, WorldStereoError
from worldstereo.progress import OnStep, ignore

log = logging.getLogger(__name__)

_WANTED = ("config.json", "preprocessor_config.json", "*.safetensors")
_CHUNK = 1 << 18
_ROOM = 1.1  # free space over the size of what comes


def download(
    repo: str = SUGGESTED, *, on_step: OnStep = ignore, endpoint: str | None = None
) -> Path:
    """Get a depth model into the local hub cache.

    Args:
        on_step: hears bytes of bytes, and stops it by raising `Cancelled`; what is there is kept.
        endpoint: another hub than the usual one.

    Raises:
        WorldStereoError: the network or the hub does not give it; one line.
        Cancelled: `on_step` raised it.
    """
    if repo.count("/") != 1 or len(repo) > 96 or any(c in repo for c in " \\:?*\"'"):
        raise ValueError(f"repo must be a hub id such as {SUGGESTED}, got {repo[:60]!r}.")
    cache = cache_folder()
    if cache is None:
        raise WeightsMissing(
            "The huggingface_hub library is not installed. Install requirements.txt."
        )
    on_step(0, 0, f"Asking the hub for {repo}")
    try:
        folder = _fetched(repo, cache, on_step, endpoint)
    except (Cancelled, WorldStereoError):
        raise
    except Exception as error:  # of a dozen classes, of the hub's and of httpx
        log.warning("download of %s failed: %s", repo, error)
        raise WorldStereoError(_why_not(repo, error)) from None
    check_folder(folder)
    forget()
    return folder


def _fetched(repo: str, cache: Path, on_step: OnStep, endpoint: str | None) -> Path:
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    info = HfApi(endpoint=endpoint).model_info(repo, timeout=10)
    listed = [file.rfilename for file in info.siblings or []]
    names = [n for n in listed if any(fnmatch.fnmatchcase(n, p) for p in _WANTED)]
    if not any(name.endswith(".safetensors") for name in names):
        raise WorldStereoError(f"{repo}: holds no .safetensors weights. Choose another model.")
    files = [
        get_hf_file_metadata(
            hf_hub_url(repo, name, revision=info.sha, endpoint=endpoint), endpoint=endpoint
        )
        for name in names
    ]
    blobs = cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    total, done = sum(file.size or 0 for file in files), 0
    free = shutil.disk_usage(cache).free
    if free < _ROOM * total:
        raise WorldStereoError(
            f"{repo}: needs {total >> 20} MB and {free >> 20} MB are free. Free some space."
        )
    for file in files:
        # An etag that is no hash is none of ours to build a path of: the hub's own way is taken.
        if file.size and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.etag or ""):
            _stream(repo, file, blobs / str(file.etag), done, total, on_step)
        done += file.size or 0
    folder = snapshot_download(
        repo, cache_dir=cache, allow_patterns=list(_WANTED), endpoint=endpoint, max_workers=1,
        tqdm_class=_silent(),
    )  # fmt: skip
    return Path(str(folder))


def _stream(repo: str, file: Any, blob: Path, before: int, total: int, on_step: OnStep) -> None:
    """One file into its place in the cache, from where the last try ended."""
    from huggingface_hub import get_session

    if blob.exists():
        return
    part = blob.with_suffix(".worldstereo")
    have = part.stat().st_size if part.exists() else 0
    if have > file.size:
        part.unlink()
        have = 0
    if have < file.size:
        headers = {"Range": f"bytes={have}-"} if have else {}
        with get_session().stream(
            "GET", file.location, headers=headers, follow_redirects=True, timeout=30
        ) as answer:
            answer.raise_for_status()
            resumed = answer.status_code == 206
            have = have if resumed else 0
            with part.open("ab" if resumed else "wb") as out:
                for chunk in answer.iter_bytes(_CHUNK):
                    out.write(chunk)
                    have += len(chunk)
                    now = before + have
                    on_step(now, total, f"Getting {repo}: {now >> 20} of {total >> 20} MB")
    digest = None
    if len(blob.name) == 64:
        with part.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if have != file.size or digest not in (None, blob.name):
        part.unlink()
        raise WorldStereoError(f"{repo}: a file arrived damaged. Try again.")
    part.rename(blob)


def _silent() -> Any:
    """A progress bar that draws nothing: what is left by now are links."""
    from tqdm.auto import tqdm

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

    return Silent


def _why_not(repo: str, error: Exception) -> str:
    kind = type(error).__name__
    offline = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError",
               "ConnectError", "ConnectTimeout", "ProxyError")  # fmt: skip
    missing = ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError")
    if kind in offline or (isinstance(error, ConnectionError) and kind not in missing):
        why, way = (
            "the hub cannot be reached from here",
            "Connect, or start with --depth and a model's folder",
        )
    elif kind in missing:
        why, way = "the hub has no such open model", "Check the id"
    else:
        why, way = "the download failed", "Try again; what is there is kept"
    return f"{repo}: {why}. {way}."
