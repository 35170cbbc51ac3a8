#!/bin/sh
# Runs the README's demo twice on one data directory, in a place of its own, and looks at
# what it prints: the second run must find the rows and go on counting.
set -eu
cd "$(dirname "$0")/.."

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export EBLA_DATA="$place/data"
export EBLA_LISTEN="127.0.0.1:$((20000 + $$ % 12000))"
export EBLA_RECORDS=data/packages-sample.jsonl

expect() {
    if ! grep -q -- "$1" "$place/out"; then
        cat "$place/out" >&2
        echo "demo-check: the demo did not print: $1" >&2
        exit 1
    fi
}

for visits in 42 84; do
    sh scripts/demo.sh --once >"$place/out" 2>&1 || {
        cat "$place/out" >&2
        exit 1
    }
    expect '^ready endpoints='
    expect 'hello again'
    expect 'lib32gphobos3'
    expect 'split'
    expect "\b$visits\b"
done
echo "demo-check: ok"
