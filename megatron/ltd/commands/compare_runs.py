"""Compare runs on lm-eval's tasks: one table with standard errors and the average, in Markdown or LaTeX.

    %(prog)s --results runs/dense/scores runs/random-ltd/scores --names dense random-LTD

reads the newest result file in each folder, and older ones of the same model for tasks that it lacks.
"""

from __future__ import annotations

from pathlib import Path

from megatron.ltd.errors import writes_to
from megatron.ltd.flags import read_command
from megatron.ltd.reports.task_table import CompareConfig, compare
from megatron.ltd.reports.task_table_text import to_latex, to_markdown


def main() -> None:
    """Read the flags and the results, and print or write the table."""
    (config,) = read_command(__doc__, CompareConfig)
    table = (to_latex if config.format == "latex" else to_markdown)(compare(config))
    if config.output is None:
        print(table, end="")
        return
    with (
        writes_to(f"--output {config.output}", "give another file"),
        Path(config.output).open("x", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(table)
    print(f"table of {len(config.results)} runs: {config.output}")
