#!/usr/bin/env bash
# Score trained models on zero-shot tasks, and print one table.
#
#     bash examples/gpt3/evaluate.sh runs/gpt3-1.3b/random_ltd runs/gpt3-1.3b/dense
#     bash examples/gpt3/evaluate.sh runs/gpt3-1.3b/* --task-data task_data       local copies of the tasks' data
#     DRY_RUN=1 bash ...                                                          show the commands, start nothing
#     TINY=1 bash examples/gpt3/evaluate.sh runs/gpt3-1.3b-tiny/*                 on a few sentences
#
# The tasks are in evaluate.yaml; flags of tools/evaluate.py and of lm-eval may follow the folders and win. Scores go to
# results/ beside the runs; a checkpoint that has its scores is not scored again.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

settings=("$here/evaluate.yaml") runs=() names=() results=()
if [[ "$TINY" == 1 ]]; then
    settings+=("$here/tiny_evaluate.yaml")
    export GPUS_PER_NODE=0 NPROC="${NPROC:-2}"
fi
while [[ $# -gt 0 && "$1" != -* ]]; do
    [[ "$(basename "$1")" == results ]] || runs+=("${1%/}")
    shift
done
[[ ${#runs[@]} -gt 0 ]] || refuse "no run is given: name folders with checkpoints, such as runs/gpt3-1.3b/random_ltd"
for run in "${runs[@]}"; do
    [[ -f "$run/latest_checkpointed_iteration.txt" ]] || refuse "$run: there is no checkpoint; train with pretrain.sh first"
done

set_up logging eval
for run in "${runs[@]}"; do
    steps="$(<"$run/latest_checkpointed_iteration.txt")"
    folder="$(dirname "$run")/results/$(basename "$run")-$steps-steps"
    names+=("$(basename "$run")") results+=("$folder")
    if compgen -G "$folder/*/results_*.json" >/dev/null; then
        [[ "$(cat "$folder/flags")" == "$*" ]] ||
            refuse "$folder: these scores were made with other flags ($(cat "$folder/flags")); move the folder away"
        echo "there already: $folder"
        continue
    fi
    [[ "$DRY_RUN" == 1 ]] || { mkdir -p "$folder" && echo "$*" >"$folder/flags"; }
    (train tools/evaluate.py --config "${settings[@]}" --load "$run" --output_path "$folder" "$@")
done
run "$python" "$root/tools/compare_runs.py" --results "${results[@]}" --names "${names[@]}"
