#!/bin/sh
# Deliveries of GitHub, Gitea and a sender by Standard Webhooks, as those send them, signed by openssl and sent by curl:
# hooks.sh DIR. deferd has the routes /github/, /gitea/ and /standard/ to tests/scripts; DIR has their secrets in files
# of these names, and gets a line of each run. Each delivery is sent three times, and must run once; one that was
# changed on the way must not run.
set -eu
dir=$1
payload=$dir/payload
printf '{"ref":"refs/heads/main","after":"%s","repository":{"full_name":"octo/deploy"},"note":"\303\251\\n"}' \
    6113728f27ae82c7b1a177c8d03f9e96e0adf246 >"$payload"

# Sends the payload to the route NAME, with the field lines that follow, and prints status and id.
send() {
    name=$1
    shift
    for field in "$@"; do
        set -- "$@" -H "$field"
        shift
    done
    curl -sS -o /dev/null -D - "$@" -H 'content-type: application/json' --data-binary "@$payload" \
        "$DEFERD_URL/$name/c-append?$dir/$name.runs" |
        tr -d '\r' | awk '/^HTTP/ { status = $2 } /^x-arango-async-id:/ { id = $2 } END { print status, id }'
}
hmac() { openssl dgst -sha256 -mac HMAC -macopt "$1" "$2" | sed 's/.*= *//'; }

github() {
    delivery=72d3162e-cc78-11e3-81ab-4c9367dc0958
    send github 'user-agent: GitHub-Hookshot/044aadd' 'x-github-event: push' "x-github-delivery: $delivery" \
        "x-hub-signature-256: sha256=$(hmac "key:$(cat "$dir/github")" "$1")"
}
gitea() {
    delivery=f6266f16-1bf3-46a5-9ea4-602e06ead473
    send gitea 'x-gitea-event: push' "x-gitea-delivery: $delivery" "x-github-delivery: $delivery" \
        "x-gitea-signature: $(hmac "key:$(cat "$dir/gitea")" "$1")"
}
# Each attempt has a time, and so a signature, of its own.
standard() {
    time=$(($(date +%s) - attempt))
    { printf 'msg_2KWPBgLlAfxdpx2AI54pPJ85f4W.%s.' "$time" && cat "$1"; } >"$dir/text"
    key=$(sed 's/^whsec_//' "$dir/standard" | openssl base64 -d -A | od -An -v -tx1 | tr -d ' \n')
    code=$(openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary "$dir/text" | openssl base64 -A)
    send standard 'webhook-id: msg_2KWPBgLlAfxdpx2AI54pPJ85f4W' "webhook-timestamp: $time" "webhook-signature: v1,$code"
}

for sender in github gitea standard; do
    printf '{}' >"$dir/other"
    attempt=0
    [ "$($sender "$dir/other")" = '401 ' ]
    first=
    while [ "$attempt" -lt 3 ]; do
        answer=$($sender "$payload")
        first=${first:-$answer}
        [ "$answer" = "$first" ]
        attempt=$((attempt + 1))
    done
    [ "${first%% *}" = 200 ]
    id=${first#200 }
    [ "$(curl -fsS -o /dev/null -w '%{http_code}' -H 'prefer: wait=60' "$DEFERD_URL/_api/job/$id")" = 200 ]
    cmp "$payload" "$dir/$sender.runs"
    rm "$dir/$sender.runs"
done
[ "$(curl -fsS "$DEFERD_URL/_api/job/pending")" = '[]' ]
[ "$(curl -fsS "$DEFERD_URL/_api/job/done" | tr ',' '\n' | awk 'END { print NR }')" -eq 3 ]
