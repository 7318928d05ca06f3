#!/bin/sh
# Runs on each machine of the cluster before Ray starts there: makes ~/ali/venv hold what constraints.txt pins.
# Exits with 1 and one sentence where that is not possible.
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
# The project itself is not installed: its code travels with each job.
"$venv/bin/python" host.py requirements >requirements.txt
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --constraint constraints.txt --requirement requirements.txt
"$venv/bin/python" host.py missing
