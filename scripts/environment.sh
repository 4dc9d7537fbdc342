#!/bin/sh
# Makes .venv from a lock file, every file checked against its hash: environment.sh run | dev
set -eu
cd "$(dirname "$0")/.."

kind=${1:-run}
lock=requirements.lock
[ "$kind" = dev ] && lock=requirements-dev.lock

if ! [ -x .venv/bin/python ] || ! .venv/bin/python -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null; then
    python=$(sh scripts/find-python.sh)
    echo "Making .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv
fi

if ! [ -x .venv/bin/uv ]; then
    # uv first, by pip, out of the same lock: it installs the rest in seconds
    only=$(mktemp)
    trap 'rm -f "$only"' EXIT
    awk '/^[a-zA-Z0-9]/ { wanted = /^uv==/ } wanted && !/^ *#/' "$lock" >"$only"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$only"
fi

echo "Installing $lock"
if ! .venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r "$lock" -r requirements-build.lock; then
    echo "uv could not; installing with pip"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock" -r requirements-build.lock
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
touch .venv/.made-run
if [ "$kind" = dev ]; then touch .venv/.made-dev; fi
