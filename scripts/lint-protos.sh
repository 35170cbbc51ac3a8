#!/bin/sh
# Lints the protos with buf. The linter is a pinned npm package in a cache directory of its
# own; only contributors need it.
set -eu
cd "$(dirname "$0")/.."

version=1.75.0
home="${XDG_CACHE_HOME:-$HOME/.cache}/ebla/buf-$version"
buf="$home/node_modules/.bin/buf"

if [ ! -x "$buf" ]; then
    if ! command -v npm >/dev/null 2>&1; then
        echo "lint-protos: SKIPPED, npm is not installed: the protos were NOT linted" >&2
        exit 0
    fi
    mkdir -p "$home"
    npm install --silent --no-audit --no-fund --prefix "$home" "@bufbuild/buf@$version" >&2
fi
cd proto
"$buf" lint
echo "lint-protos: ok"
