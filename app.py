"""Starts the app: `python app.py`, then open http://127.0.0.1:7860. See `ui/__main__.py`."""

from ui.__main__ import run

if __name__ == "__main__":
    run()
