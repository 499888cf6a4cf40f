#!/bin/sh
# scripts/job by busybox's shell and with nothing but busybox; and busybox's wget by itself.
# Run by scripts/test-peers, beside a deferd at DEFERD_URL with tests/scripts at /run/; with DEFERD_TOKEN, if
# that deferd asks for a token. JOB_WGET is another wget to try it with.
set -eu
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'kill $servers 2>/dev/null || true; rm -rf "$work"' EXIT
servers=
mkdir "$work/bin"
busybox=$(command -v busybox)
for applet in cat date mkfifo mktemp nc rm sed sh sleep sync tail tr wc wget; do
    ln -s "$busybox" "$work/bin/$applet"
done
[ -z "${JOB_WGET:-}" ] || ln -sf "$(realpath "$(command -v "$JOB_WGET")")" "$work/bin/wget"

# job ARGUMENT...: runs it; its exit code is in $code. The shell sets the environment: env would have the
# token in its arguments.
job() {
    code=0
    HOME=$work PATH=$work/bin "$work/bin/sh" scripts/job "$@" 2>"$work/stderr" || code=$?
}
export DEFERD_URL
[ -z "${DEFERD_TOKEN:-}" ] || export DEFERD_TOKEN

# expect WHAT FOUND WANTED
expect() {
    if [ "$2" != "$3" ]; then
        echo "$1: \"$2\" and not \"$3\"; $(cat "$work/stderr")" >&2
        exit 1
    fi
    checks=$((checks + 1))
}
checks=0

# submitted ARGUMENT...: submits a job; its id is in $id.
submitted() {
    job submit "$@" >"$work/id"
    id=$(cat "$work/id")
    expect "submit $*" "$code" 0
}

# fetched ID: its content is in $work/result, with exit code and content in $fetched.
fetched() {
    job fetch "$@" >"$work/result"
    fetched="$code $(cat "$work/result")"
}

# A job from its submission to its result, which is there once.
printf 'some content' >"$work/content"
submitted -d "@$work/content" /run/s-cat
job wait "$id"
expect 'wait' $code 0
fetched "$id"
expect 'fetch' "$fetched" '0 some content'
fetched "$id"
expect 'fetch again' "$fetched" '1 '

# Into a file, which is there before the result is gone.
submitted -d "@$work/content" /run/s-cat
job wait "$id"
fetched -o "$work/file" "$id"
expect 'fetch -o' "$fetched $(cat "$work/file")" '0  some content'
job status "$id"
expect 'status of a fetched one' $code 1

# Much content, and bytes of every kind, which busybox's wget cuts at the first NUL.
head -c 3000000 /dev/zero | tr '\0' x >"$work/large"
submitted -d "@$work/large" /run/s-cat
job wait "$id"
fetched "$id"
cmp "$work/large" "$work/result" || expect 'large content' different same
if [ -n "${DEFERD_TOKEN:-}" ]; then
    printf 'body\0\r\n\r\n\377' >"$work/odd"
    submitted -d "@$work/odd" /run/s-cat
    job wait "$id"
    fetched "$id"
    cmp "$work/odd" "$work/result" || expect 'odd content' different same
fi

# Of a result that is cut on its way nothing is deleted, and what has come is not taken for the whole.
python3 tests/peers/cutting.py "$work/cut" &
servers=$!
rounds=0
until [ -s "$work/cut.port" ] || [ $rounds -gt 600 ]; do
    rounds=$((rounds + 1))
    sleep 0.1
done
right_url=$DEFERD_URL DEFERD_URL=http://127.0.0.1:$(cat "$work/cut.port")
for cut in 200 500; do
    fetched -o "$work/file" "$cut"
    # busybox's wget gets no content of an error, so none is cut.
    case $cut,${DEFERD_TOKEN:+token}${JOB_WGET:-} in
        500, | 500,wget | 500,tokenwget) wanted='1 PUT' ;;
        *) wanted='3 ' ;;
    esac
    expect "fetch -o of one of $cut that is cut" "$code $(cat "$work/cut.asked")" "$wanted"
    : >"$work/cut.asked"
done
fetched 200
expect 'fetch of one that is cut' "$fetched" '3 '
DEFERD_URL=$right_url

# Content from standard input, and none; methods and fields.
printf 'piped' | job submit -d - /run/s-cat >"$work/id"
id=$(cat "$work/id")
job wait -t 60 "$id"
fetched "$id"
expect 'standard input' "$fetched" '0 piped'
submitted /_api/version
job wait -t 1m "$id"
fetched "$id"
expect 'GET' "$fetched" '0 {"server":"arango","version":"1.4.3"}'
for method in GET POST PUT DELETE; do
    submitted -X $method -H 'X-Word: a  "b"' /_admin/echo
    job wait "$id"
    fetched "$id"
    method_seen=$(sed -n 's/.*"x-word":"a  \\"b\\"".*"method":"\([A-Z]*\)".*/\1/p' "$work/result")
    expect "-X $method" "$code $method_seen" "0 $method"
done

# As if the script ran here.
printf 'some content' | job run /run/s-cat >"$work/result"
expect 'run' "$code $(cat "$work/result")" '0 some content'
job run -d "@$work/content" -X PUT /run/s-cat >"$work/result"
expect 'run -X PUT' "$code $(cat "$work/result")" '0 some content'
job run '/run/s-fail?7' </dev/null >"$work/result"
expect 'run one that fails' "$code $(tail -n 1 "$work/stderr" | sed 's/job [0-9]*/job ID/')" \
    '7 job: job ID ended with status 500, exit code 7: no paper'
job run '/run/s-signal?KILL' </dev/null >"$work/result"
expect 'run one that is killed' $code 137
job run /_api/job/1 </dev/null >"$work/result"
expect 'run one that is not found' $code 1
job run /nowhere </dev/null
expect 'run nowhere' $code 125

# Not done yet; cancelled.
submitted '/_admin/sleep?duration=3600'
begin=$(date +%s)
job wait -t 2 "$id"
expect 'wait in vain' $code 4
waited=$(($(date +%s) - begin))
[ $waited -ge 2 ] || expect 'it waits' "$waited s" '2 s'
fetched "$id"
expect 'fetch too early' "$fetched" '4 '
job cancel "$id"
expect 'cancel' $code 0
job wait "$id"
expect 'wait for a cancelled one' "$code $(grep -c 'status 410' "$work/stderr")" '1 1'
fetched "$id"
expect 'fetch a cancelled one' "$code $(grep -c 'status 410' "$work/stderr")" '1 1'

# A program that fails: how, and why.
submitted '/run/s-fail?7'
job wait "$id"
expect 'wait for one that failed' "$code $(cat "$work/stderr")" "1 job: job $id ended with status 500, exit code 7"
job status "$id" >"$work/result"
expect 'status of one that failed' "$code $(cat "$work/result")" '1 done: status 500, exit code 7'
job log "$id" >"$work/result"
expect 'log' "$code $(head -n 1 "$work/result")" '0 printing'
job log -f "$id" >"$work/result"
expect 'log -f of a done one' "$code $(sed -n 2p "$work/result")" '0   no paper '
fetched "$id"
expect 'fetch one that failed' "$code $(cat "$work/stderr")" \
    "1 job: job $id ended with status 500, exit code 7: no paper"
submitted '/run/s-signal?KILL'
job wait "$id"
fetched "$id"
expect 'fetch one that was killed' "$code $(cat "$work/stderr")" "1 job: job $id ended with status 500, signal 9"

# A log that is followed while it grows.
mkdir "$work/tell"
printf 'one\n' >"$work/tell/1"
submitted "/run/f-tell?$work/tell"
: >"$work/followed"
job log -f "$id" >"$work/followed" &
following=$!
rounds=0
# shellcheck disable=SC2015 # both lead on
until [ "$(cat "$work/followed")" = one ] || [ $rounds -gt 600 ]; do
    rounds=$((rounds + 1))
    sleep 0.1
done
printf 'two\n' >"$work/tell/2"
echo 0 >"$work/tell/go"
wait $following
expect 'log -f' "$(tr '\n' ' ' <"$work/followed")" 'one two '
job delete "$id"

# What there is.
submitted '/_admin/sleep?duration=3600'
pending=$id
submitted /_api/version
job wait "$id"
rounds=0
until [ "$(job status "$pending")" = delayed ] || [ $rounds -gt 600 ]; do
    rounds=$((rounds + 1))
    sleep 0.1
done
job list >"$work/result"
expect 'list' "$code $(tr '\n' ' ' <"$work/result")" \
    "0 $pending delayed GET /_admin/sleep?duration=3600 $id done 200 GET /_api/version "
for state in "done=$id" "delayed=$pending" "pending=$pending" running= waiting=; do
    job list --state "${state%%=*}" >"$work/result"
    expect "list --state $state" "$code $(cat "$work/result")" "0 ${state#*=}"
done
job list --json >"$work/result"
expect 'list --json' "$code $(grep -c '^{"jobs":.*"more":false}$' "$work/result")" '0 1'
job list --state other
expect 'list of what there is not' $code 2
job status "$id" "$pending" >"$work/result"
expect 'status of two' "$code $(tr '\n' ' ' <"$work/result")" "4 $id done: status 200 $pending delayed "
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
# busybox's wget shows no fields of an error.
if [ -n "${JOB_WGET:-}" ]; then
    expect 'the hint' "$(grep -c 'collected, deleted or older' "$work/stderr")" 1
fi
job cancel 1
expect 'cancel none' $code 1
job submit /nowhere
expect 'submit nowhere' $code 3
for arguments in 'fetch 1/../2' 'fetch 01' 'fetch' "submit -d @$work/nothing /run/s-cat" 'submit run' 'submit / /' \
    'wait -t x 1' 'wait -t 1x2 1' 'list done' 'submit -x /' ''; do
    # shellcheck disable=SC2086 # a list of arguments
    job $arguments
    expect "job $arguments" $code 2
done
right_url=$DEFERD_URL DEFERD_URL=http://127.0.0.1:1
job submit /_api/version
expect 'no deferd' $code 3
DEFERD_URL=$right_url

if [ -n "${DEFERD_TOKEN:-}" ]; then
    # While a request is under way, the token stands in the arguments of no process.
    submitted '/_admin/sleep?duration=3600'
    job wait -t 60 "$id" &
    waiting=$!
    port=${DEFERD_URL##*:}
    seen=
    rounds=0
    while [ -z "$seen" ] && [ $rounds -lt 200 ]; do
        for process in /proc/[0-9]*; do
            # The process may be gone by now.
            arguments=$(tr '\0' ' ' 2>/dev/null <"$process/cmdline") || continue
            case $arguments in
                *"$DEFERD_TOKEN"*) expect "the token in $process" shown hidden ;;
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

    # Others are refused.
    right=$DEFERD_TOKEN DEFERD_TOKEN=wrong
    job wait "$id"
    expect 'a wrong token' "$code $(grep -c 'status 401' "$work/stderr")" '3 1'
    job submit -d "@$work/content" /run/s-cat
    expect 'a wrong token with content' $code 3
    DEFERD_TOKEN=$right
    DEFERD_URL=http://root:token@${right_url#http://}
    job wait "$id"
    expect 'a token in the URL' "$code $(grep -c DEFERD_TOKEN "$work/stderr")" '2 1'
    DEFERD_URL=https://127.0.0.1:1
    if [ -z "${JOB_WGET:-}" ]; then
        job wait "$id"
        expect 'https without GNU wget' $code 2
        mv "$work/bin/nc" "$work/bin/no-nc"
        DEFERD_URL=$right_url
        job wait "$id"
        expect 'no nc' "$code $(grep -c 'needs GNU wget' "$work/stderr")" '2 1'
    fi
    echo "scripts/job with a token: $checks checks passed"
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
