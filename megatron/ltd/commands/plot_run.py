"""Plot runs: loss, learning rate, kept tokens, saved FLOPs and task scores, over steps, tokens, FLOPs or seconds.

    %(prog)s --runs runs/random-ltd runs/dense --x tokens flops --output runs/curves.svg

writes an image; the ending of its name is its format.
"""

from __future__ import annotations

from pathlib import Path

from megatron.ltd.flags import read_command
from megatron.ltd.reports.figures.config import PlotConfig
from megatron.ltd.reports.figures.draw import check_matplotlib, draw, save
from megatron.ltd.reports.figures.panels import panels_of
from megatron.ltd.reports.runs import read_runs


def main() -> None:
    """Read the flags and the runs, and save the figure."""
    (config,) = read_command(__doc__, PlotConfig)
    path = Path(config.output)
    check_matplotlib("--output", path)
    histories = read_runs(config)
    panels = panels_of(histories)
    save(draw(histories, panels, config.x), "--output", path)
    print(f"{path}: {', '.join(panel.title for panel in panels)}")
