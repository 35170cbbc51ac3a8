#!/bin/sh
# Installs what the build needs and the machine lacks; does nothing when all is there.
#
# clang and libclang: bindings of RocksDB. g++: RocksDB itself. protobuf-compiler: the
# masters' Raft library. ccache: RocksDB is compiled once, not once per profile.
# `deps.sh check` adds what only `make check` needs.
set -eu

needed="clang libclang-dev protobuf-compiler ccache g++"

if ! command -v dpkg-query >/dev/null 2>&1; then
    for tool in clang protoc g++; do
        command -v "$tool" >/dev/null 2>&1 || {
            echo "deps: $tool is missing and this is no Debian: install the equivalents of: $needed" >&2
            exit 1
        }
    done
    exit 0
fi

missing=""
for package in $needed; do
    state=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
    case "$state" in
        *"ok installed") ;;
        *) missing="$missing $package" ;;
    esac
done

if [ "${1:-}" = check ] && command -v python3 >/dev/null 2>&1; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
fi

if [ -n "$missing" ]; then
    echo "deps: installing$missing" >&2
    as_root=""
    if [ "$(id -u)" != 0 ]; then
        as_root="sudo"
    fi
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing
fi

if ! command -v cargo >/dev/null 2>&1; then
    echo "deps: cargo is missing: install Rust 1.95 or newer, see https://rustup.rs" >&2
    exit 1
fi
