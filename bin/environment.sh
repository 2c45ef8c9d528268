# The virtual environments of this checkout; read by bin/test and bin/quickstart, not started by itself.
#
# Everything lives in one ignored folder, .discoro: environments, pip's cache and temporary files, compiled Python. Nothing
# outside it is touched. environment NAME EXTRAS makes .discoro/NAME with discoro and its extras ("" for none) once, and
# again only when the Python, the place of the checkout, setup.cfg or pyproject.toml changed. Needs $root, the checkout.

state=$root/.discoro
PIP_CACHE_DIR=$state/pip-cache
PYTHONPYCACHEPREFIX=$state/pycache
export PIP_CACHE_DIR PYTHONPYCACHEPREFIX

# One line that says what is missing; 69 is EX_UNAVAILABLE of sysexits.h.
missing() {
    echo "bin/${0##*/}: $1" >&2
    exit 69
}

# Sets $python to the newest usable Python.
find_python() {
    old='' bare=''
    for python in python3.13 python3.12 python3.11 python3; do
        command -v "$python" >/dev/null 2>&1 || continue
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            old=$python
        elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            bare=$python
        else
            return
        fi
    done
    [ -z "$bare" ] || missing "$bare lacks the modules venv and ensurepip; on Debian: apt-get install $bare-venv"
    [ -z "$old" ] || missing "Python 3.11 or newer is needed, and $old is older or does not run"
    missing "Python 3.11 or newer is needed, and none was found on PATH; on Debian: apt-get install python3 python3-venv"
}

# pip builds in the folder it installs from, so it gets a folder of links and not the checkout itself.
link_checkout() {
    rm -rf "$1" && mkdir -p "$1" || return
    for name in discoro setup.cfg pyproject.toml MANIFEST.in README.md CHANGELOG.md LICENSE; do
        ln -s "$root/$name" "$1/$name" || return
    done
}

environment() {
    find_python
    venv=$state/$1
    wanted=$({ "$python" -c 'import sys; print(sys.executable, sys.version)'
               cat "$root/setup.cfg" "$root/pyproject.toml"; echo "$venv $2"; } | cksum)
    [ -x "$venv/bin/python" ] && [ "$(cat "$venv/made-from" 2>/dev/null)" = "$wanted" ] && return
    { link_checkout "$state/$1-checkout" && mkdir -p "$state/tmp"; } 2>/dev/null || missing "the folder $state cannot be written"
    echo "bin/${0##*/}: making .discoro/$1 with $python (once; about a minute)" >&2
    TMPDIR=$state/tmp "$python" -m venv --clear "$venv" >"$state/$1.log" 2>&1 ||
        missing "$python could not make a virtual environment: see .discoro/$1.log"
    TMPDIR=$state/tmp "$venv/bin/python" -m pip install --disable-pip-version-check \
        --editable "$state/$1-checkout${2:+[$2]}" >>"$state/$1.log" 2>&1 ||
        missing "pip could not install discoro's dependencies (is a package index reachable?): see .discoro/$1.log"
    echo "$wanted" >"$venv/made-from"
}
