#!/bin/sh
# scripts/job by busybox's shell and with nothing but busybox; and busybox's wget by itself.
# Run by scripts/test-peers, beside a deferd at DEFERD_URL with tests/scripts at /run/; with DEFERD_AUTH, if
# that deferd asks for credentials. JOB_WGET is another wget to try it with.
set -eu
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
busybox=$(command -v busybox)
for applet in base64 cat mkfifo mktemp nc rm sed sh sleep tail tr wc wget; do
    ln -s "$busybox" "$work/bin/$applet"
done
[ -z "${JOB_WGET:-}" ] || ln -sf "$(command -v "$JOB_WGET")" "$work/bin/wget"

# job ARGUMENT...: runs it; its exit code is in $code. The shell sets the environment: env would have the
# credentials in its arguments.
job() {
    code=0
    HOME=$work PATH=$work/bin DEFERD=$DEFERD_URL DEFERD_AUTH=${DEFERD_AUTH:-} \
        "$work/bin/sh" scripts/job "$@" 2>"$work/stderr" || code=$?
}

# expect WHAT FOUND WANTED
expect() {
    if [ "$2" != "$3" ]; then
        echo "$1: \"$2\" and not \"$3\"; $(cat "$work/stderr")" >&2
        exit 1
    fi
    checks=$((checks + 1))
}
checks=0

# A job from its submission to its result, which is there once.
printf 'some content' >"$work/content"
job submit /run/s-cat "$work/content" >"$work/id"
expect 'submit' $code 0
id=$(cat "$work/id")
job wait "$id"
expect 'wait' $code 0
job fetch "$id" >"$work/result"
expect 'fetch' "$code $(cat "$work/result")" '0 some content'
job fetch "$id" >"$work/result"
expect 'fetch again' "$code $(cat "$work/result")" '1 '

# Much content, and bytes of every kind, which busybox's wget cuts at the first NUL.
head -c 3000000 /dev/zero | tr '\0' x >"$work/large"
job submit /run/s-cat "$work/large" >"$work/id"
id=$(cat "$work/id")
job wait "$id"
job fetch "$id" >"$work/result"
cmp "$work/large" "$work/result" || expect 'large content' different same
if [ -n "${DEFERD_AUTH:-}" ]; then
    printf 'body\0\r\n\r\n\377' >"$work/odd"
    job submit /run/s-cat "$work/odd" >"$work/id"
    id=$(cat "$work/id")
    job wait "$id"
    job fetch "$id" >"$work/result"
    cmp "$work/odd" "$work/result" || expect 'odd content' different same
fi

# Content from standard input, and none.
printf 'piped' | job submit /run/s-cat - >"$work/id"
job wait "$(cat "$work/id")" 60
job fetch "$(cat "$work/id")" >"$work/result"
expect 'standard input' "$(cat "$work/result")" piped
job submit /_api/version >"$work/id"
job wait "$(cat "$work/id")"
job fetch "$(cat "$work/id")" >"$work/result"
expect 'GET' "$(cat "$work/result")" '{"server":"arango","version":"1.4.3"}'

# Not done yet; cancelled.
job submit '/_admin/sleep?duration=3600' >"$work/id"
id=$(cat "$work/id")
job wait "$id" 1
expect 'wait in vain' $code 4
job fetch "$id"
expect 'fetch too early' $code 4
job cancel "$id"
expect 'cancel' $code 0
job wait "$id"
expect 'wait for a cancelled one' $code 0
job fetch "$id"
expect 'fetch a cancelled one' "$code $(grep -c 'status 410' "$work/stderr")" '1 1'

# A program that fails: how, and why.
job submit '/run/s-fail?7' >"$work/id"
id=$(cat "$work/id")
job wait "$id"
expect 'wait for one that failed' $code 0
job status "$id" >"$work/result"
expect 'status of one that failed' "$code $(cat "$work/result")" '1 done: status 500, exit code 7'
job log "$id" >"$work/result"
expect 'log' "$code $(head -n 1 "$work/result")" '0 printing'
job fetch "$id" >"$work/result"
expect 'fetch one that failed' "$code $(cat "$work/stderr")" \
    "1 job: job $id ended with status 500, exit code 7: no paper"
job submit '/run/s-signal?KILL' >"$work/id"
id=$(cat "$work/id")
job wait "$id"
job fetch "$id" >"$work/result"
expect 'fetch one that was killed' "$code $(cat "$work/stderr")" \
    "1 job: job $id ended with status 500, signal 9"

# What there is.
job submit '/_admin/sleep?duration=3600' >"$work/id"
pending=$(cat "$work/id")
job submit /_api/version >"$work/id"
id=$(cat "$work/id")
job wait "$id"
job list >"$work/result"
expect 'list' "$code $(tr '\n' ' ' <"$work/result")" "0 $pending pending $id done "
job list "done" >"$work/result"
expect 'list done' "$code $(cat "$work/result")" "0 $id"
job list pending >"$work/result"
expect 'list pending' "$code $(cat "$work/result")" "0 $pending"
job list other
expect 'list of what there is not' $code 2
job status "$pending" >"$work/result"
expect 'status of a pending one' $code 4
job status "$id" >"$work/result"
expect 'status of a done one' "$code $(cat "$work/result")" '0 done: status 200'
job delete "$id"
expect 'delete' $code 0
job delete "$id"
expect 'delete again' $code 1
job status "$id"
expect 'status of a deleted one' $code 1
job log "$id"
expect 'log of a deleted one' $code 1
job cancel "$pending"
job delete "$pending"
job list >"$work/result"
expect 'list of none' "$code $(cat "$work/result")" '0 '

# What cannot be.
job wait 1
expect 'wait for none' $code 1
job cancel 1
expect 'cancel none' $code 1
job submit /nowhere
expect 'submit nowhere' $code 3
job fetch "1/../2"
expect 'no id' $code 2
job submit /run/s-cat "$work/nothing"
expect 'no file' $code 2
job
expect 'no command' $code 2
DEFERD_URL=http://127.0.0.1:1 job submit /_api/version
expect 'no deferd' $code 3

if [ -n "${DEFERD_AUTH:-}" ]; then
    # While a request is under way, the credentials stand in the arguments of no process.
    job submit '/_admin/sleep?duration=3600' >"$work/id"
    id=$(cat "$work/id")
    job wait "$id" 60 &
    waiting=$!
    plain=${DEFERD_AUTH#*:}
    encoded=$(printf %s "$DEFERD_AUTH" | base64 | tr -d '\n')
    port=${DEFERD_URL##*:}
    seen=
    rounds=0
    while [ -z "$seen" ] && [ $rounds -lt 200 ]; do
        for process in /proc/[0-9]*; do
            # The process may be gone by now.
            arguments=$(tr '\0' ' ' 2>/dev/null <"$process/cmdline") || continue
            case $arguments in
                *"$plain"* | *"$encoded"*) expect "credentials in $process" shown hidden ;;
                nc*"$port"* | wget*"$port"* | */wget*"$port"*) seen=$arguments ;;
            esac
        done
        rounds=$((rounds + 1))
        sleep 0.02
    done
    [ -n "$seen" ] || expect 'the request under way' none one
    checks=$((checks + 1))
    job cancel "$id"
    wait $waiting || true

    # Credentials in the URL are as little for others to see, and others are refused.
    with_credentials=http://$DEFERD_AUTH@${DEFERD_URL#http://}
    DEFERD_URL=$with_credentials DEFERD_AUTH='' job wait "$id"
    expect 'credentials in the URL' $code 0
    DEFERD_AUTH=root:wrong job wait "$id"
    expect 'wrong credentials' "$code $(grep -c 'status 401' "$work/stderr")" '3 1'
    DEFERD_AUTH=root:wrong job submit /run/s-cat "$work/content"
    expect 'wrong credentials with content' $code 3
    if [ -z "${JOB_WGET:-}" ]; then
        DEFERD_URL=https://127.0.0.1:1 job wait "$id"
        expect 'https without GNU wget' $code 2
        mv "$work/bin/nc" "$work/bin/no-nc"
        job wait "$id"
        expect 'no nc' "$code $(grep -c 'needs GNU wget' "$work/stderr")" '2 1'
    fi
    echo "scripts/job with credentials: $checks checks passed"
    exit
fi

# wget alone, with each of the fields that replace the method.
for field in x-http-method-override x-http-method x-method-override; do
    answer=$("$busybox" wget -q -O - --header "$field: PUT" --post-data '' "$DEFERD_URL/_admin/echo")
    case $answer in
        *'"method":"PUT"'*) ;;
        *) expect "$field" "$answer" 'a PUT' ;;
    esac
done

echo "scripts/job with busybox: $checks checks passed"
