#!/usr/bin/env bash
# A newcomer's way, one command a step, each with its wall time: install, a quick start on one's own
# network, which solver, tune, load what was tuned, the likelihood of a folder of PNGs.
#
#   examples/newcomer/run.sh FOLDER             in a new environment inside FOLDER
#   INSTALL=no examples/newcomer/run.sh FOLDER  in the environment that is active
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${1:?a folder to work in}"
cd "$1"
TIMEFORMAT='   %R s'
step() { printf '\n== %s\n   $ %s\n' "$1" "${*:2}"; time "${@:2}"; }

if [ "${INSTALL:-yes}" = yes ]; then
    python3 -m venv venv
    . venv/bin/activate
    pip install -q "torch==${TORCH:-2.13.0}"
    step "install" pip install -q "$here/../..[bench]"
fi
# what a newcomer has already: a network in a file, its weights, pictures, three lines of Python
cp "$here"/*.py .
python mine.py pictures

step "samples of my own network" python quickstart.py
step "which solver?" undiffuse which mine.py:model --nfe 10
step "fit a table to it" undiffuse tune mine.py:model --nfe 6 --calls 400 --out tuned
step "load what was tuned" python load.py tuned/tuned-6.json
step "how likely are my pictures?" undiffuse likelihood mine.py:model pictures --limit 16 --out scored
