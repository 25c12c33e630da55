# Sourced by the scripts: words to the user, and prerequisites. `script` is the name that stands before each line.

say() { printf '%s: %s\n' "$script" "$*"; }
fail() { printf '%s: error: %s\n' "$script" "$*" >&2; exit 1; }

# The folder of what is fetched, by its own path where .deps is a link: programs in virtual environments name it.
deps_folder() { mkdir -p .deps && (cd .deps && pwd -P); }

# need CHECK WHAT-FOR DEBIAN-PACKAGES: CHECK is a command that must succeed. As root on Debian or Ubuntu what is missing is
# installed; elsewhere the command that installs it is named.
need() {
    local check=$1 purpose=$2 packages=$3
    if bash -c "$check" >/dev/null 2>&1; then return; fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing $packages ($purpose)"
        apt-get install -y $packages >/dev/null 2>&1 ||
            { apt-get update >/dev/null && apt-get install -y $packages >/dev/null; } ||
            fail "$purpose is missing and could not be installed: apt-get install $packages"
        bash -c "$check" >/dev/null 2>&1 || fail "$purpose is still missing after: apt-get install $packages"
    elif command -v apt-get >/dev/null 2>&1; then
        fail "$purpose is missing; install it with: sudo apt-get install $packages"
    else
        fail "$purpose is missing; install it with your package manager (Debian's names: $packages)"
    fi
}

# python_venv FOLDER REQUIREMENTS: a virtual environment with just those packages, made anew when they have changed.
python_venv() {
    if cmp -s "$2" "$1/requirements.txt"; then return; fi
    say "making $1"
    rm -rf "$1"
    python3 -m venv "$1"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check -r "$2"
    cp "$2" "$1/requirements.txt"
}
