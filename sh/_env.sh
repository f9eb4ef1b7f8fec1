# Sourced by every script:  . "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
# Enters the repository root and exports PYTHON, a Python that has the packages of the requirements file: the present
# one ($PYTHON, an activated environment, python3 or python) if it has them, else .venv, which is made if need be.
# shellcheck shell=bash

set -euo pipefail
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."

_needed=$1
_log=Logs/setup.log

_fail() {
    echo "error: $*" >&2
    exit 1
}

_has_packages() { "$1" sh/check_requirements.py "$_needed" >/dev/null 2>&1; }

# .building lies in a .venv from before the installation until its end: where it is left over, somebody pulled the plug.
_venv_is_ready() { [ ! -e .venv/.building ] && _has_packages .venv/bin/python; }

# The first Python that can make a virtual environment.
_find_base() {
    local python new_enough=
    for python in "${PYTHON:-}" python3 python python3.14 python3.13 python3.12 python3.11 python3.10; do
        "${python:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 || continue
        new_enough=$python
        "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 && _base=$python && return
    done
    [ -n "$new_enough" ] || _fail "Python 3.10 or newer is needed and not found: install it, or set PYTHON to one"
    _fail "$new_enough lacks the venv module: install it (Debian, Ubuntu: apt install python3-venv) or set PYTHON"
}

# One set-up at a time: the lock belongs to file descriptor 9 and ends with it.
_lock() {
    exec 9<sh/_env.sh
    "$_base" - <<'EOF'
import fcntl, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another script that is setting up .venv", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:
    pass  # a file system without locks
EOF
}

_quietly() {
    "$@" >>"$_log" 2>&1 </dev/null &
    _child=$!
    wait "$_child"
}

_interrupted() {
    kill "$_child" 2>/dev/null || true
    echo "interrupted; the next run starts the set-up again" >&2
    exit 130
}

# One sentence about why the set-up failed.
_explain() {
    local reason
    if grep -qiE 'no space left|disk quota|errno 28|errno 122' "$_log" || [ "$(_free_megabytes)" -lt 50 ]; then
        reason="the disk is full (a CUDA build of PyTorch takes 6 GB); free space and run again"
    elif grep -qE 'NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|ConnectionResetError|NameResolutionError' "$_log"; then
        reason="pip could not reach the package index; check the network or pip's settings and run again"
    elif grep -q 'No matching distribution found' "$_log"; then
        reason="$(_last 'No matching distribution found') with $("$_base" -V); set PYTHON to another Python"
    else
        reason=$(_last 'ERROR|Error')
    fi
    echo "failed" >&2
    _fail "${reason:-the set-up stopped} (log: $_log)"
}

_last() { grep -E "$1" "$_log" | tail -1 | sed 's/^ERROR: //' || true; }

_free_megabytes() { df -Pk . | awk 'NR == 2 { print int($4 / 1024) }'; }

_make_venv() {
    local _base _child=
    _find_base
    _lock
    if _venv_is_ready; then return; fi
    { mkdir -p .venv "${_log%/*}" && : >"$_log"; } 2>/dev/null || _fail "cannot write to $PWD"
    printf 'setting up .venv (once, a few minutes) ... ' >&2
    trap _interrupted INT TERM HUP
    if [ -e .venv/.building ] || ! .venv/bin/python -c 'import pip' >/dev/null 2>&1; then
        rm -rf .venv/bin .venv  # in this order: interrupted in the middle, nothing is left that looks usable
        mkdir .venv
        : >.venv/.building
        _quietly "$_base" -m venv .venv || _explain
    fi
    # Wheels of several GB pass through the temporary folder: it must not be a small /tmp.
    mkdir -p .venv/tmp
    : >.venv/.building
    TMPDIR=$PWD/.venv/tmp _quietly .venv/bin/python -m pip install --no-input --progress-bar off --no-user \
        -r requirements-dev.txt || _explain
    rm -rf .venv/tmp .venv/.building
    trap - INT TERM HUP
    _venv_is_ready || _fail "the set-up left out $(.venv/bin/python sh/check_requirements.py "$_needed" 2>&1) (log: $_log)"
    echo "done" >&2
}

_choose_python() {
    local python
    for python in "${PYTHON:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}" python3 python; do
        if _has_packages "${python:-false}"; then
            PYTHON=$python
            return
        fi
    done
    if ! _venv_is_ready; then
        _make_venv
        exec 9<&-
    fi
    PYTHON=$PWD/.venv/bin/python
}

_choose_python
export PYTHON
