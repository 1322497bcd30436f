#!/usr/bin/env bash
# Build the documentation site in build/docs; open build/docs/index.html. The search field needs a server, such as
# python -m http.server --directory build/docs. A broken link or a page that mkdocs.yml does not list fails the build.
#
#     bash tools/docs.sh [FLAGS]            FLAGS of `mkdocs build`, such as --site-dir DIR
#
# Exit status: 0 built, 1 the build or the set-up failed.

set -euo pipefail
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh docs
# Material for MkDocs prints a notice about its successor at every build.
NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict "$@"
