"""Compare runs: a table of loss, cost and savings of each, and their loss curves.

    %(prog)s --runs runs/random-ltd runs/dense --plot runs/loss.png

``plot_run`` plots more than losses.
"""

from __future__ import annotations

from pathlib import Path

from megatron.ltd.flags import read_command
from megatron.ltd.reports.figures.config import FORMATS
from megatron.ltd.reports.figures.draw import check_matplotlib, draw_losses, save
from megatron.ltd.reports.output import check_output
from megatron.ltd.reports.runs import read_runs
from megatron.ltd.reports.summary import SummaryConfig, busy_note, summarize, summary_table


def main() -> None:
    """Read the flags and the runs, print the table, and save the figure."""
    (config,) = read_command(__doc__, SummaryConfig)
    if config.plot is not None:
        check_output("--plot", Path(config.plot), FORMATS, overwrite=True)
        check_matplotlib("--plot", Path(config.plot))
    histories = read_runs(config)
    summaries = [summarize(history) for history in histories]
    print(summary_table(summaries))
    note = busy_note(summaries)
    if note is not None:
        print(f"\n{note}")
    if config.plot is not None:
        save(draw_losses(histories), "--plot", Path(config.plot))
        print(f"\nloss curves over FLOPs and over seconds: {config.plot}")
