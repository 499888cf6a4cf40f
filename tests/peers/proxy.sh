#!/bin/sh
# deferd behind nginx, with the lines of REFERENCE.md as they stand: proxy.sh PORT. deferd has the route /run/ to
# scripts/bin and asks for credentials, as it should behind a proxy: root with DEFERD_TOKEN.
set -eu
port=$1
dir=$(mktemp -d)
nginx=''
trap '[ -z "$nginx" ] || kill "$nginx" 2>/dev/null; wait; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

{
    printf 'daemon off;\npid %s/pid;\nerror_log %s/log;\nevents {}\nhttp {\naccess_log off;\n' "$dir" "$dir"
    for kind in client_body proxy fastcgi uwsgi scgi; do
        echo "${kind}_temp_path $dir/$kind;"
    done
    printf 'server {\nlisten 127.0.0.1:%s;\n' "$port"
    # shellcheck disable=SC2016 # back-quotes
    sed -n '/^```nginx$/,/^```$/{/^```/!p}' REFERENCE.md | sed "s|http://127.0.0.1:8529|$DEFERD_URL|"
    printf '}\n}\n'
} >"$dir/nginx.conf"
grep -q "proxy_pass $DEFERD_URL;" "$dir/nginx.conf"
nginx -e "$dir/log" -c "$dir/nginx.conf" &
nginx=$!
url=http://127.0.0.1:$port

# ask NAME [OPTION of curl]... PATH: leaves fields and content of the answer, prints the status code.
ask() {
    name=$1
    shift
    curl -s -D "$dir/$name.fields" -o "$dir/$name" -w '%{http_code}' -u "root:$DEFERD_TOKEN" "$@"
}
expect() {
    [ "$1" = "$2" ] || {
        echo "proxy.sh: $3: $1, not $2" >&2
        cat "$dir/log" >&2
        exit 1
    }
}

tries=0
until [ "$(ask ready "$url/_admin/server/availability")" = 200 ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || expect 0 200 'nginx answers'
    sleep 0.1
done
# As large as the content may be, to a job and back.
head -c 16000000 /dev/urandom >"$dir/large"
expect "$(ask large -H 'x-arango-async: store' --data-binary "@$dir/large" "$url/run/slow-wc?delay=0")" 202 'a large upload'
id=$(sed -n 's/^x-arango-async-id: *//p' "$dir/large.fields" | tr -d '\r')
expect "$(ask result -X PUT -H 'prefer: wait=60' "$url/_api/job/$id")" 200 'a result that is waited for'
expect "$(tail -n 1 "$dir/result")" '16000000 bytes' 'the content of the result'
# A page of the proxy's own origin is one of deferd's own, another is not.
expect "$(ask own -H "origin: $url" "$url/_api/version")" 200 'a page of this origin'
expect "$(ask other -H 'origin: http://elsewhere.example' "$url/_api/version")" 403 'a page of another origin'
expect "$(curl -s -o "$dir/open" -w '%{http_code}' "$url/_api/version")" 401 'without credentials'
kill "$nginx"
wait "$nginx"
nginx=''
