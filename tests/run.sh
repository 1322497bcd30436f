#!/usr/bin/env bash
# Set up, check and test. Without arguments everything; arguments go to pytest, and then only it runs:
#
#     bash tests/run.sh tests/unit -k schedule

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh dev

# Tests are many small operations, some of them in several processes: more threads would only get in each other's way.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

if [[ $# -gt 0 ]]; then
    exec .venv/bin/python -m pytest "$@"
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
echo "set-up and checks: ${SECONDS} s"

status=0
# Two workers, each importing torch once; the tests of a file stay together, as they share their fixtures.
.venv/bin/python -m pytest -n 2 --dist loadfile --durations 20 --ignore tests/distributed || status=$?
# One process by itself: its tests share one pool of up to eight ranks, which keep the machine busy.
.venv/bin/python -m pytest --durations 10 tests/distributed || status=$?
echo "everything: ${SECONDS} s"
exit "${status}"
