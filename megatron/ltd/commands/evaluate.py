"""Score a trained model on lm-eval's tasks.

    %(prog)s --load runs/dense --tasks lambada_openai hellaswag --output_path results
    torchrun --nproc-per-node 8 -m megatron.ltd evaluate --load runs/1.3b --tensor-model-parallel-size 2 ...

All flags of lm_eval run are accepted too, such as --tasks, --num_fewshot, --limit and --output_path; lm_eval run --help
lists them. Data-parallel processes share the requests.
"""

from __future__ import annotations

import sys

from megatron.ltd.evaluation.lm_eval.harness_command import evaluate
from megatron.ltd.parallel.signals import stop_ignoring_signals


def main() -> None:
    """Read the flags, score the model, and print lm-eval's table."""
    stop_ignoring_signals()
    evaluate(sys.argv[1:], __doc__)
