"""A program as a visitor: start the app with `--api-token`, then run this beside it.

WORLDSTEREO_API_TOKEN=... python examples/06_http_client.py photo.jpg orbit.mp4
"""

import os
import sys
from pathlib import Path

import httpx


def main(capture: Path, film: Path) -> None:
    url = os.environ.get("WORLDSTEREO_URL", "http://127.0.0.1:7860")
    token = {"Authorization": f"Bearer {os.environ['WORLDSTEREO_API_TOKEN']}"}
    with httpx.Client(base_url=f"{url}/v1", headers=token, timeout=600) as app:
        world = f"/worlds/{app.post('/worlds').raise_for_status().json()['world']}"
        named = {"name": capture.name}
        app.post(f"{world}/open/upload", params=named, content=capture.read_bytes())
        while app.get(world, params={"wait": 30}).raise_for_status().json()["busy"]:
            pass
        app.post(f"{world}/path", json={"preset": "orbit", "frames": 9}).raise_for_status()
        app.post(f"{world}/generate", json={"seed": 0}).raise_for_status()
        while (state := app.get(world, params={"wait": 30}).raise_for_status().json())["busy"]:
            print(state["job"]["message"])
        film.write_bytes(app.get(f"{world}/export/mp4").raise_for_status().content)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
