#!/bin/sh
# Starts a whole cluster on a data directory, loads real records and shows what it can do.
#
# Usage: scripts/demo.sh [--once]      --once: end after the show
#   EBLA_BIN     the binary            (target/release/ebla)
#   EBLA_LISTEN  where to listen       (127.0.0.1:7400)
#   EBLA_DATA    data directory        (./ebla-data); run again on it as often as you like
#   EBLA_RECORDS a JSON-lines file with a Package field, instead of this machine's index
#
# It ends only the server that it started itself.
set -eu
cd "$(dirname "$0")/.."

bin="${EBLA_BIN:-target/release/ebla}"
listen="${EBLA_LISTEN:-127.0.0.1:7400}"
data="${EBLA_DATA:-./ebla-data}"
log="$data.log"
once=no
[ "${1:-}" = "--once" ] && once=yes

export EBLA_ENDPOINTS="$listen"
scratch=$(mktemp -d)
server=""

cleanup() {
    trap - EXIT INT TERM
    if [ -n "$server" ] && kill -0 "$server" 2>/dev/null; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        say "stopped; the rows are in $data"
    fi
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'cleanup; exit 0' INT TERM

say() { printf '%s\n' "$*"; }
heading() { printf '\n== %s\n' "$*"; }
fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

port_is_taken() {
    hex=$(printf ':%04X' "${listen##*:}")
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        awk -v port="$hex" '$4 == "0A" && substr($2, length($2) - 4) == port { taken = 1 } END { exit !taken }'
}

# Runs a command of the CLI, shows it and what it prints, long lines cut.
show() {
    printf '$ ebla %s\n' "$*"
    status=0
    "$bin" "$@" >"$scratch/out" 2>&1 || status=$?
    # Lines of a table are whole, long values are cut.
    head -n 14 "$scratch/out" | sed -e '/[─═]/b' -e 's/^\(.\{150\}\).*/\1 .../'
    [ "$status" = 0 ] || return "$status"
}

start_cluster() {
    [ -x "$bin" ] || fail "there is no $bin: run 'make run', which builds it"
    if port_is_taken; then
        fail "port ${listen##*:} is taken, perhaps by another cluster: stop that, or choose another with EBLA_LISTEN=127.0.0.1:7500 make run"
    fi
    heading "A cluster on $data: one master, three tablet servers, one process"
    "$bin" dev --data-dir "$data" --listen "$listen" >"$scratch/ready" 2>"$log" &
    server=$!
    waited=0
    until grep -q '^ready ' "$scratch/ready"; do
        if ! kill -0 "$server" 2>/dev/null; then
            tail -n 20 "$log" >&2
            server=""
            fail "the cluster did not start; its log is $log"
        fi
        [ "$waited" -lt 600 ] || fail "the cluster is not ready after 60 s; its log is $log"
        waited=$((waited + 1))
        sleep 0.1
    done
    cat "$scratch/ready"
    show status
}

# Leaves the records in $records and their number in $count.
find_records() {
    records="${EBLA_RECORDS:-}"
    source="$records"
    if [ -z "$records" ]; then
        records="$scratch/packages.jsonl"
        source="this machine's Debian package index"
        apt-cache dumpavail 2>/dev/null | awk -f scripts/packages-to-jsonl.awk >"$records" || true
        if [ ! -s "$records" ]; then
            records=data/packages-sample.jsonl
            source="the sample in $records (this machine has no package index)"
        fi
    fi
    count=$(wc -l <"$records" | tr -d ' ')
}

load_records() {
    find_records
    heading "Load $count records: $source"
    if ! "$bin" table describe packages >/dev/null 2>&1; then
        show table create packages
    fi
    say "\$ ebla load packages $records --format jsonl --key-field Package"
    "$bin" load packages "$records" --format jsonl --key-field Package
}

show_reads() {
    heading "Point reads"
    show get packages bash
    show get packages coreutils -o json
    heading "Prefix ranges"
    show range packages --prefix lib --limit 8 --keys-only
    show range packages --prefix lib --count
    found=$("$bin" range packages --count -o json | tr -dc '0-9')
    say "packages has $found rows, $count records were loaded"
    [ "$found" -ge "$count" ] || fail "rows are missing: this is a bug, please report it with $log"
}

show_split() {
    ids=$("$bin" -o jsonl tablet list packages | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
    # Run again and again, the demo would make crumbs of the table.
    if [ "$(printf '%s\n' "$ids" | wc -l)" -lt 4 ]; then
        heading "A tablet is split while it serves: no row moves"
        show tablet split "$(printf '%s\n' "$ids" | head -n 1)" --parts 4
    else
        heading "The table is split already"
    fi
    show tablet list packages
    show range packages --count
}

show_writes() {
    heading "Compare and set: the second is refused, the value has changed"
    "$bin" table describe demo >/dev/null 2>&1 || show table create demo
    show set demo greeting 'hello'
    show set demo greeting 'hello again' --if-value 'hello'
    if show set demo greeting 'too late' --if-value 'hello'; then
        fail "a condition that does not hold was accepted: this is a bug"
    fi
    show get demo greeting
    heading "A counter: it goes on rising when you run this again"
    show add demo visits 1
    show add demo visits 41
    heading "Tablets and servers"
    show tablet list
    show server list
}

farewell() {
    heading "The cluster runs until ^C. From another terminal:"
    [ "$listen" = 127.0.0.1:7400 ] || say "  export EBLA_ENDPOINTS=$listen"
    say "  $bin get packages vim"
    say "  $bin range packages --prefix python3- --limit 20 --keys-only"
    say "  $bin set demo greeting 'hello from over here'"
    say "  $bin --help"
    say "Rows: $data   Log: $log"
    status=0
    wait "$server" || status=$?
    server=""
    [ "$status" = 0 ] || fail "the cluster ended by itself with status $status; its log is $log"
}

start_cluster
load_records
show_reads
show_split
show_writes
[ "$once" = yes ] || farewell
