# Sourced by every script:  . "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
# Changes to the repository root and exports PYTHON: $PYTHON, the active environment or the system's Python, whichever
# has the packages of the requirements file first; else .venv, which is created if need be.
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

# Set _base to the first Python that can create a virtual environment.
_find_base() {
    local python new_enough=
    for python in "${PYTHON:-}" python3 python python3.{14..10}; do
        "${python:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 || continue
        new_enough=$python
        "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 && _base=$python && return
    done
    [ -n "$new_enough" ] || _fail "Python 3.10 or newer is needed and not found: install it, or set PYTHON to one"
    _fail "$new_enough lacks the venv module: install it (Debian, Ubuntu: apt install python3-venv) or set PYTHON"
}

_install() {
    .venv/bin/python -m pip --version || "$_base" -m venv --clear .venv || return
    mkdir -p .venv/tmp || return  # wheels of several GB pass through TMPDIR, and /tmp may be small
    TMPDIR=$PWD/.venv/tmp .venv/bin/python -m pip install --no-input --no-user --progress-bar off \
        -r requirements-dev.txt || return
    rm -rf .venv/tmp
}

# Print in one sentence why _install failed.
_explain() {
    if grep -qiE 'no space left|disk quota|errno 28|errno 122' "$_log" ||
        [ "$(df -Pk . | awk 'NR == 2 { print $4 }')" -lt 50000 ]; then
        _fail "the disk is full: free space (a CUDA build of PyTorch takes 6 GB, and 3 more while it installs) and run again (see $_log)"
    elif grep -qE 'NewConnectionError|NameResolutionError|Timeout|ProxyError|SSLError|ConnectionResetError' "$_log"; then
        _fail "pip cannot reach the package index: check the network or pip's settings and run again (see $_log)"
    fi
    _fail "$("$_base" -V): $(grep -E 'ERROR|Error' "$_log" | tail -n 1) (see $_log; deleting .venv starts afresh)"
}

_set_up() {
    _find_base
    { mkdir -p "${_log%/*}" && : >>"$_log"; } 2>/dev/null || _fail "cannot write to $PWD"
    printf 'setting up .venv (once, a few minutes) ... ' >&2
    # One set-up at a time: the lock belongs to file descriptor 9. File systems without locks do without.
    exec 9<sh/_env.sh
    "$_base" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null || true
    if ! _has_packages .venv/bin/python; then
        _install >"$_log" 2>&1 </dev/null || { echo failed >&2; _explain; }
        _has_packages .venv/bin/python ||
            _fail "the set-up left out $(.venv/bin/python sh/check_requirements.py "$_needed" 2>&1) (see $_log)"
    fi
    exec 9<&-
    echo "done" >&2
}

for _python in "${PYTHON:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}" \
    python3 python .venv/bin/python; do
    _has_packages "${_python:-false}" && break
    _python=
done
if [ -z "$_python" ]; then
    _set_up
    _python=.venv/bin/python
fi
case $_python in .venv/*) _python=$PWD/$_python ;; esac
export PYTHON=$_python

# launch PROGRAM FLAGS...: in place of the shell; in several processes of this machine where NPROC says how many.
# With PRINT_FLAGS=1 it prints the flags, one a line, and runs nothing.
launch() {
    [ -z "${PRINT_FLAGS:-}" ] || { printf '%s\n' "${@:2}" && exit; }
    [ -n "${NPROC:-}" ] || exec "$PYTHON" "$@"
    [[ $NPROC =~ ^[1-9][0-9]*$ ]] || { echo "error: NPROC=$NPROC must be a number of processes, 1 or more" >&2 && exit 2; }
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$NPROC" "$@"
}
