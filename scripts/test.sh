#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them: style, types, browser tests, then all others on two
# processes. With arguments, those go to pytest instead: scripts/test.sh tests/test_world.py
# Debian's browsers are installed when they are not found and this user may install them: Chromium, and
# Firefox with the screen that it needs to draw. Without them their tests are skipped, and say so.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=()
command -v chromium >/dev/null || missing+=(chromium)
command -v firefox-esr >/dev/null || command -v firefox >/dev/null || missing+=(firefox-esr)
command -v Xvfb >/dev/null || missing+=(xvfb)
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  for package in "${missing[@]}"; do
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null || echo "no $package here" >&2
  done
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
