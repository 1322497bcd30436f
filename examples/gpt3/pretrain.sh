#!/usr/bin/env bash
# Pretrain a GPT-3 by the published recipe: with random-LTD, with random-LTD in blocks, or dense to compare with.
#
#     bash examples/gpt3/pretrain.sh 1.3b random_ltd               or random_ltd_blocks, dense; 350m is the smaller size
#     bash examples/gpt3/pretrain.sh 1.3b dense 150B --lr 3e-4     a shorter run; flags of pretrain_gpt_ltd.py win
#     DRY_RUN=1 bash examples/gpt3/pretrain.sh 1.3b random_ltd     show the command and the plan, start nothing
#     TINY=1 bash examples/gpt3/pretrain.sh 1.3b random_ltd        the same in small: two CPU processes, a few steps
#
# The names are YAML files of examples/gpt3_SIZE and of this folder, or yours by their paths. recipe.yaml of both folders
# holds every number; 300B counts layer tokens / layers. The data are those of prepare_data.sh; a run goes to
# runs/gpt3-SIZE of the current folder, and the same command continues it. On several nodes, under Slurm:
#
#     sbatch --nodes 8 examples/launch/slurm.sbatch examples/gpt3/pretrain.sh 1.3b random_ltd

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

size="${1:-}"
[[ -f "$examples/gpt3_$size/recipe.yaml" ]] || refuse "SIZE '$size': give 1.3b or 350m, then a variant such as random_ltd"
shift
out="runs/gpt3-$size" name=""
settings=("$here/recipe.yaml" "$examples/gpt3_$size/recipe.yaml")
while [[ $# -gt 0 && "$1" != -* ]]; do
    file="$(settings_file "$1" "$examples/gpt3_$size" "$here")" || exit
    settings+=("$file")
    name+="${name:+-}$(basename "$1" .yaml)"
    shift
done
[[ -n "$name" ]] || refuse "no variant is given: name dense, random_ltd or random_ltd_blocks"
if [[ "$TINY" == 1 ]]; then
    out+="-tiny"
    settings+=("$here/tiny.yaml")
    export GPUS_PER_NODE=0 NPROC="${NPROC:-2}"
fi

set_up logging eval
flags=(
    --config "${settings[@]}"
    --save "$out/$name" --load "$out/$name" --tensorboard-dir "$out/$name/tensorboard"
    "$@"
)
[[ "$DRY_RUN" == 1 ]] || train pretrain_gpt_ltd.py "${flags[@]}"
(train pretrain_gpt_ltd.py "${flags[@]}")
echo
"$python" "$root/pretrain_gpt_ltd.py" --config "$examples/gpt3_$size/plan.yaml" "${flags[@]}"
