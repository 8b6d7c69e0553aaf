"""Hostile files through the real upload of the real app: one line each, and it goes on serving."""

import json
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import httpx
import pytest

from tests import corpus
from tests.http_upload import Visitor, doubts

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1500)]


def test_hostile_files_over_http(app, tmp_path):
    cases = corpus.all_cases(5)
    families = sorted({case.name.split("-")[0] for case in cases})
    refused = [case for case in cases if case.verdict == corpus.REJECT]
    chosen = [next(c for c in refused if c.name.startswith(name)) for name in families]
    sound = next(c for c in cases if c.verdict == corpus.ACCEPT and c.name.startswith("clouds"))
    with Visitor(app) as visitor:
        before = visitor.upload(sound.name, sound.data)
        assert before.points and not before.refusal
        for case in chosen:
            answer = visitor.upload(case.name, case.data)
            assert doubts(case, answer) == "" and answer.seconds < 60, (case.label, answer.refusal)
            assert answer.points == before.points, case.label
        # a page may claim that any file of the server was uploaded: none is read
        secret = tmp_path / "secret.ply"
        secret.write_bytes(sound.data)
        for path in (secret, Path("/etc/passwd"), Path("projects")):
            answer = visitor.claim(str(path), "secret.ply")
            assert "root:" not in answer.text and "Traceback" not in answer.text
            assert "not uploaded here" in answer.text and not answer.points
        # nor do events that no page sends reach Gradio, which would write a stack for each
        for body in (b"\xff", b'{"fn_index": 9999, "data": []}', b'{"session_hash": NaN}'):
            sent = httpx.post(f"{app}/gradio_api/queue/join", content=body, trust_env=False)
            assert sent.status_code == 400 and "detail" in sent.json(), body
        again = visitor.upload(sound.name, sound.data)
        assert again.points == before.points and not again.refusal
    with build_opener(ProxyHandler({})).open(f"{app}/healthz", timeout=10) as health:
        assert json.loads(health.read())["running"] == 0
