"""Convert a task's published files to local data for lm-eval's official task, so that no download is needed.

``--help`` shows examples and all flags; ``megatron-ltd prepare-tasks`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("prepare-tasks")
