"""Score a trained model on lm-eval's tasks.

    python tools/evaluate.py --load runs/dense --tasks lambada_openai hellaswag --output_path results
    torchrun --nproc-per-node 8 tools/evaluate.py --load runs/1.3b --tensor-model-parallel-size 2 ...

All flags of lm_eval run are accepted too, such as --tasks, --num_fewshot, --limit and --output_path; lm_eval run --help
lists them. Data-parallel processes share the requests. The implementation is in ``megatron.ltd.evaluation``.
"""

from __future__ import annotations

import sys

from megatron.ltd.errors import run_command
from megatron.ltd.evaluation.lm_eval.harness_command import evaluate
from megatron.ltd.parallel.signals import stop_ignoring_signals

if __name__ == "__main__":
    stop_ignoring_signals()
    run_command(lambda: evaluate(sys.argv[1:], __doc__))
