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
cores="$(.venv/bin/python -c 'import os; print(os.cpu_count() or 1)')"
# A worker for each core, of which each imports torch once and may have a server of warm scripts. The tests of a file
# stay together, as they share their fixtures; files with slow tests come first (tests/conftest.py).
.venv/bin/python -m pytest -n "$((cores < 8 ? cores : 8))" --dist loadfile --no-loadscope-reorder --durations 20 \
    --ignore tests/distributed || status=$?
# Fewer workers, each with a pool of up to eight ranks. Many runs have one rank, so that two workers keep two cores busy.
.venv/bin/python -m pytest -n "$((cores < 6 ? 2 : cores < 16 ? cores / 2 : 8))" --dist loadfile --durations 10 \
    tests/distributed || status=$?
echo "everything: ${SECONDS} s"
exit "${status}"
