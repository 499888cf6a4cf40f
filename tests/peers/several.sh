#!/bin/sh
# Three deferd on one engine behind nginx, with the lines of REFERENCE.md as they stand: several.sh DEFERD ENGINE.
# What is sent to any of them is answered by any of them; after one is killed, its jobs and all others have results.
set -eu
deferd=$1 engine=$2
dir=$(mktemp -d)
running=''
# shellcheck disable=SC2086 # a list of process ids
trap 'kill $running 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

# Five ports that are free: bound at the same time, so that they differ.
ports=$(python3 -c '
import socket
sockets = [socket.socket() for _ in range(5)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))')
# shellcheck disable=SC2086 # five words
set -- $ports
url=http://127.0.0.1:$4

"$engine" --port "$5" --bind 127.0.0.1 --save '' --dir "$dir" --maxmemory-policy noeviction --appendonly yes \
    --appendfsync always >"$dir/engine" &
running=$!
tries=0
until grep -qs 'Ready to accept connections' "$dir/engine"; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || exit 1
    sleep 0.1
done
for port in "$1" "$2" "$3"; do
    DEFERD_STORE="redis://127.0.0.1:$5" "$deferd" --listen "127.0.0.1:$port" --lease 2s --route /run/=run:scripts/bin,rerun=yes \
        >"$dir/out.$port" 2>"$dir/log.$port" &
    running="$running $!"
    last=$!
done
{
    printf 'daemon off;\npid %s/pid;\nerror_log %s/log;\nevents {}\nhttp {\naccess_log off;\n' "$dir" "$dir"
    for kind in client_body proxy fastcgi uwsgi scgi; do
        echo "${kind}_temp_path $dir/$kind;"
    done
    # shellcheck disable=SC2016 # back-quotes
    sed -n '/^```nginx http$/,/^```$/{/^```/!p}' REFERENCE.md |
        sed "s|10.0.0.1:8529|127.0.0.1:$1|; s|10.0.0.2:8529|127.0.0.1:$2|; s|10.0.0.3:8529|127.0.0.1:$3|; s|listen 80|listen 127.0.0.1:$4|"
    echo '}'
} >"$dir/nginx.conf"
grep -q "server 127.0.0.1:$3" "$dir/nginx.conf"
nginx -e "$dir/log" -c "$dir/nginx.conf" &
running="$running $!"

fail() {
    echo "several.sh: $1" >&2
    cat "$dir"/log* >&2
    exit 1
}
# Submits a job twelve times, and prints the ids: submit NAME DELAY.
submit() {
    round=0
    while [ $round -lt 12 ]; do
        round=$((round + 1))
        printf 'a b c' | curl -s -D - -o /dev/null -H 'x-arango-async: store' -H "idempotency-key: $1-$round" \
            --retry 5 --retry-all-errors --data-binary @- "$url/run/slow-wc?delay=$2" |
            sed -n 's/^x-arango-async-id: *//p' | tr -d '\r'
    done
}
# Collects the results of these jobs, and prints how many came whole.
collect() {
    whole=0
    for id in "$@"; do
        result=$(curl -s --retry 5 --retry-all-errors -X PUT -H 'prefer: wait=20' "$url/_api/job/$id")
        case $result in *'3 words'*) whole=$((whole + 1)) ;; esac
    done
    echo $whole
}
tries=0
until [ "$(curl -s -o /dev/null -w '%{http_code}' "$url/_admin/server/availability")" = 200 ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || fail 'nginx does not answer'
    sleep 0.1
done
# shellcheck disable=SC2046,SC2086 # lists of ids
{
    [ "$(collect $(submit first 0))" = 12 ] || fail 'a result is missing'
    ids=$(submit second 1)
    kill -KILL "$last"
    [ "$(collect $ids)" = 12 ] || fail 'a job that ran on an instance that was killed is missing'
    [ "$(collect $(submit third 0))" = 12 ] || fail 'an instance that was killed is missed'
}
