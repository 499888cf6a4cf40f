# shellcheck shell=sh
# What the scripts that test with other programs have in common; they read it with `.`. Everything is installed once: a
# second run finds it.

export DEBIAN_FRONTEND=noninteractive

# Installs the Debian packages of missing programs or files: PROGRAM=PACKAGE...
install_packages() {
    missing=
    for wanted in "$@"; do
        command -v "${wanted%%=*}" >/dev/null || [ -e "${wanted%%=*}" ] || missing="$missing ${wanted#*=}"
    done
    [ -n "$missing" ] || return 0
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of names
    apt-get install -qq --no-install-recommends $missing >/dev/null
}

# Makes a virtual environment in DIR with the packages in REQUIREMENTS.
install_python() {
    dir=$1 requirements=$2
    cmp -s "$requirements" "$dir/installed" && return 0
    rm -rf "$dir"
    if ! python3 -m venv "$dir" >/dev/null 2>&1; then
        rm -rf "$dir"
        apt-get update -qq
        apt-get install -qq --no-install-recommends python3 python3-venv >/dev/null
        python3 -m venv "$dir"
    fi
    "$dir/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$dir/installed"
}

# Writes FILE for --auth, with the user `root`, and prints the token.
make_user() (
    umask 077
    cargo build --quiet --locked
    lines=$("${CARGO_TARGET_DIR:-target}/debug/deferd" token root)
    echo "$lines" | sed -n 's/^line for --auth: //p' >"$1"
    echo "$lines" | sed -n 's/^token: //p'
)

# Makes a certificate for localhost, and for no address, in DIR: localhost.crt and localhost.key, signed by an
# authority of its own, authority.crt, which no system trusts. Needs openssl.
make_certificate() (
    cd "$1" || exit 1
    {
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout authority.key -out authority.crt -subj '/CN=deferd test' &&
            openssl req -newkey rsa:2048 -nodes -keyout localhost.key -out localhost.csr -subj '/CN=localhost' &&
            printf 'subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n' >extensions &&
            openssl x509 -req -in localhost.csr -CA authority.crt -CAkey authority.key -CAcreateserial -days 2 \
                -extfile extensions -out localhost.crt
    } 2>openssl.log || { cat openssl.log >&2 && exit 1; }
)
