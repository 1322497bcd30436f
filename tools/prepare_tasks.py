"""Convert a task's published files to local data for lm-eval's official task, so that no download is needed.

    python tools/prepare_tasks.py --task hellaswag --validation hellaswag_val.jsonl --output-dir task_data
    python tools/prepare_tasks.py --task arc_easy --test ARC-V1-Feb2018.zip --output-dir task_data

The implementation is in ``megatron.ltd.commands.prepare_tasks``, which ``megatron-ltd prepare-tasks`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("prepare-tasks")
