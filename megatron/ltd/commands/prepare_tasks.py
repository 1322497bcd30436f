"""Convert a task's published files to local data for lm-eval's official task, so that no download is needed.

    %(prog)s --task hellaswag --validation hellaswag_val.jsonl --output-dir task_data
    %(prog)s --task arc_easy --test ARC-V1-Feb2018.zip --output-dir task_data

writes task_data/hellaswag/validation.jsonl and task_data/arc_easy/test.jsonl, for ``evaluate --task-data task_data``.
"""

from __future__ import annotations

from megatron.ltd.evaluation.local_tasks.prepare import PrepareConfig, prepare
from megatron.ltd.flags import read_command


def main() -> None:
    """Read the flags, convert the files, and print a summary."""
    (config,) = read_command(__doc__, PrepareConfig)
    print(prepare(config).summary())
