"""A visitor without a browser: uploads files over HTTP as the page does, and reads the answers.

    python -m tests.http_upload http://127.0.0.1:7860 [--seed 0] [--only zips] [--minutes 20]

sends the hostile corpus into a running app, one file after the other into one world, and
prints what was refused, how long it took, and every answer that is not what the corpus expects.
"""

import argparse
import json
import random
import re
import secrets
import sys
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

REFUSAL = re.compile(r'class="refusal"[^>]*>.*?<span>(.*?)</span>', re.DOTALL)
POINTS = re.compile(r'<span class="num">([\d,]+) points')


@dataclass(frozen=True)
class Answer:
    """What the page would show when a file was sent."""

    refusal: str
    """The line, as HTML; "" where the file was opened."""
    points: str
    """The header's count of points, "" where it was not sent."""
    seconds: float
    text: str
    """All that came back."""


class Visitor:
    """One page of the app: its Gradio session and its world."""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=address, timeout=180, trust_env=False)
        self._hash = secrets.token_hex(6)
        config = self._http.get("/config").json()
        self._upload_of = {"upload": -1, "load": -1}
        for number, one in enumerate(config["dependencies"]):
            for _, event in one["targets"]:
                if self._upload_of.get(event) == -1 or event == "load":  # the first upload button
                    self._upload_of[event] = one.get("id", number)
                    if event == "upload":
                        self._inputs = len(one["inputs"])
        self.opened = self._run("load", [])

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def upload(self, name: str, data: bytes) -> Answer:
        """Send a file and wait until the world has it, or has refused it."""
        began = time.monotonic()
        sent = self._http.post("/gradio_api/upload", files={"files": (quote(name), data)})
        if sent.status_code != 200:
            return Answer(f"HTTP {sent.status_code}", "", time.monotonic() - began, sent.text)
        return self.claim(sent.json()[0], name, began)

    def claim(self, path: str, name: str, began: float | None = None) -> Answer:
        """Say that a file was uploaded to this path of the server; hostile pages say anything."""
        began = time.monotonic() if began is None else began
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": name}
        text = self._run("upload", [None, [file]])
        refusals, points = REFUSAL.findall(text), POINTS.findall(text)
        return Answer(
            refusals[-1] if refusals else "",
            points[-1] if points else "",
            time.monotonic() - began,
            text,
        )

    def _run(self, event: str, values: list[Any]) -> str:
        """One event, to its end; everything that was streamed, as text."""
        body = {
            "data": values,
            "fn_index": self._upload_of[event],
            "session_hash": self._hash,
            "event_data": None,
            "trigger_id": None,
        }
        joined = self._http.post("/gradio_api/queue/join", json=body)
        if joined.status_code == 403:
            return joined.text
        joined.raise_for_status()
        event_id, parts = joined.json()["event_id"], []
        stream = f"/gradio_api/queue/data?session_hash={self._hash}"
        with self._http.stream("GET", stream) as lines:
            for line in lines.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message.get("event_id") not in (None, event_id):
                    continue
                parts.append(json.dumps(message, ensure_ascii=False).replace('\\"', '"'))
                if message["msg"] in ("process_completed", "close_stream", "unexpected_error"):
                    break
        return "\n".join(parts)


def main() -> None:
    from tests import corpus

    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a family of the corpus")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    asked = parser.parse_args()
    cases = [c for c in corpus.all_cases(asked.seed) if c.name.startswith(asked.only)]
    random.Random(asked.seed).shuffle(cases)  # a run that is cut short has seen every family
    wrong, seconds, until = 0, [], time.monotonic() + 60 * asked.minutes
    with Visitor(asked.address) as visitor:
        for case in cases:
            if time.monotonic() > until:
                break
            answer = visitor.upload(case.name, case.data)
            seconds.append(answer.seconds)
            why = doubts(case, answer)
            if why:
                wrong += 1
                sys.stdout.write(f"{case.label}: {why}: {answer.refusal[:200]!r}\n")
                sys.stdout.flush()
        health = httpx.get(f"{asked.address}/healthz", trust_env=False).json()
    seconds.sort()
    p95 = seconds[int(0.95 * len(seconds))] if seconds else 0
    middle = seconds[len(seconds) // 2]
    sys.stdout.write(
        f"{len(seconds)} of {len(cases)} files, {wrong} wrong; median {middle:.2f} s, "
        f"95 % {p95:.2f} s, slowest {seconds[-1]:.2f} s; afterwards {health}\n"
    )


def doubts(case: Any, answer: Answer) -> str:
    """Why an answer is not what the corpus expects; "" where it is."""
    if "Traceback" in answer.text or "unexpected_error" in answer.text:
        return "a traceback"
    if case.verdict == "accept" and answer.refusal:
        return "sound, and refused"
    if case.verdict == "reject" and not answer.refusal:
        return "opened"
    if "\n" in answer.refusal or len(answer.refusal) > 400 or "(case " in answer.refusal:
        return "not one foreseen line"
    return ""


if __name__ == "__main__":
    main()
