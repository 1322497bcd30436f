#!/usr/bin/env bash
# Set up, check and test. Without arguments everything; arguments go to pytest, and then only it runs:
#
#     bash tests/run.sh tests/unit -k schedule

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh dev

# Tests are many small operations, some of them in several processes: more threads would only get in each other's way.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

arguments=("$@")
if [[ $# -eq 0 ]]; then
    # Two workers, each importing torch once; the tests of a file stay together, as they share their fixtures.
    arguments=(-n 2 --dist loadfile)
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
    echo "set-up and checks: ${SECONDS} s"
fi
exec .venv/bin/python -m pytest "${arguments[@]}"
