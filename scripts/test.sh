#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them: style, types, browser tests, then all others on two
# processes. With arguments, those go to pytest instead: scripts/test.sh tests/test_world.py
# Debian's Chromium is installed when no browser is found and this user may install it.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
fi
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE
ruff check .
ruff format --check .
pyright --pythonpath .venv/bin/python
[ $# = 0 ] || exec python -m pytest -q "$@"
python -m pytest -q -m browser  # alone: a page is drawn by the CPU here
exec python -m pytest -q -m "not browser" -n 2 --dist loadfile
