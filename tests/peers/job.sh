#!/bin/sh
# scripts/job by busybox's shell and with nothing but busybox; and busybox's wget by itself.
# Run by scripts/test-peers, beside a deferd at DEFERD_URL with tests/scripts at /run/.
set -eu
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
busybox=$(command -v busybox)
for applet in base64 cat mktemp rm sed sh sleep tail tr wget; do
    ln -s "$busybox" "$work/bin/$applet"
done

# job ARGUMENT...: runs it; its exit code is in $code.
job() {
    code=0
    env -i PATH="$work/bin" DEFERD="$DEFERD_URL" "$work/bin/sh" scripts/job "$@" 2>"$work/stderr" || code=$?
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

# wget alone, with each of the fields that replace the method.
for field in x-http-method-override x-http-method x-method-override; do
    answer=$("$busybox" wget -q -O - --header "$field: PUT" --post-data '' "$DEFERD_URL/_admin/echo")
    case $answer in
        *'"method":"PUT"'*) ;;
        *) expect "$field" "$answer" 'a PUT' ;;
    esac
done

echo "scripts/job with busybox: $checks checks passed"
