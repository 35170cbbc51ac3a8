#!/bin/sh
# Runs the second-language client against `ebla dev`. Its libraries live in a virtual
# environment in a cache directory, made anew when requirements.txt changes.
set -eu
cd "$(dirname "$0")/.."

if ! command -v python3 >/dev/null 2>&1; then
    echo "python-client: SKIPPED, python3 is not installed: the Python client was NOT tested" >&2
    exit 0
fi
tests=cluster-tests/tests/python
sum=$(cksum <"$tests/requirements.txt" | tr ' ' '-')
venv="${XDG_CACHE_HOME:-$HOME/.cache}/ebla/python-$sum"

if [ ! -e "$venv/ready" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement "$tests/requirements.txt" >&2
    touch "$venv/ready"
fi
PYTHONDONTWRITEBYTECODE=1 exec "$venv/bin/python" "$tests/client_test.py"
