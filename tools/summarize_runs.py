"""Compare runs: a table of what each reached, computed and saved, and their loss curves.

    python tools/summarize_runs.py --runs runs/random-ltd runs/dense --plot runs/loss.png

The work is in ``megatron.ltd.evaluation.summary`` and ``megatron.ltd.evaluation.plots``.
"""

from __future__ import annotations

from pathlib import Path

from megatron.ltd.errors import run_command
from megatron.ltd.evaluation.plots import check_plot_path, plot_losses
from megatron.ltd.evaluation.summary import SummaryConfig, read_runs, summarize, summary_table
from megatron.ltd.flags import FlagParser, add_flags, read_flags


def main() -> None:
    """Read the flags and the runs, print the table, draw the figure."""
    parser = FlagParser(__doc__)
    add_flags(parser, SummaryConfig)
    config = read_flags(parser.parse_args(), SummaryConfig)
    if config.plot is not None:
        check_plot_path(Path(config.plot))
    histories = read_runs(config)
    print(summary_table([summarize(history) for history in histories]))
    if config.plot is not None:
        plot_losses(histories, Path(config.plot))
        print(f"\nloss curves over FLOPs and over seconds: {config.plot}")


if __name__ == "__main__":
    run_command(main)
