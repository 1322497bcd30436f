#!/usr/bin/env bash
# Pretrain GPT-3 350M with random-LTD that keeps blocks of 16 neighbouring tokens; the rest of the recipe is the paper's.
#
#     bash examples/gpt3_350m/pretrain_random_ltd_blocks.sh 300B            or 200B, 150B; flags may follow
#     BLOCK_SIZE=32 GRANULARITY=32 bash examples/gpt3_350m/pretrain_random_ltd_blocks.sh 300B
#     DRY_RUN=1 bash examples/gpt3_350m/pretrain_random_ltd_blocks.sh 300B  show the command and the plan, start nothing
#     TINY=1 bash examples/gpt3_350m/pretrain_random_ltd_blocks.sh 300B     the same in small: two CPU processes
#
# A kept token then has its left neighbour beside it, which single tokens mostly lack; see
# megatron/ltd/methods/random_ltd/README.md. Everything else is as in pretrain_random_ltd.sh.

set -euo pipefail
BLOCK_SIZE="${BLOCK_SIZE:-16}"
source "$(dirname "${BASH_SOURCE[0]}")/../gpt3/settings.sh"
source examples/gpt3_350m/recipe.sh
source examples/gpt3/pretrain.sh

pretrain random-ltd-blocks "$@"
