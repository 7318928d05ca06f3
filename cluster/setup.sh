#!/bin/sh
# Runs on a machine of the cluster, before Ray starts there: ~/ali/venv has what constraints.txt pins, or is made so.
# Exit code 1, with one sentence, where that cannot be.
set -eu
cd "$(dirname "$0")"
venv=$PWD/venv

if "$venv/bin/python" host.py missing >/dev/null 2>&1; then
    exit 0
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=
    for candidate in python3.11 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "$(hostname) has no Python 3.11 with venv: install it there (python3.11 and python3.11-venv)." >&2
        exit 1
    fi
    "$python" -m venv --clear "$venv"
fi
echo "$(hostname): installing what constraints.txt pins into $venv; some minutes and 6 GB the first time."
# What pyproject.toml asks for, without the project itself: the code travels with each job.
"$venv/bin/python" host.py wanted >wanted.txt
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --constraint constraints.txt --requirement wanted.txt
"$venv/bin/python" host.py missing
