"""Write an HTML page about a run: flags, plan, totals, curves, stages, scores and unusual events.

    %(prog)s --run runs/random-ltd --plan plan.json --scores results --output report.html

The page is a single file that loads nothing else.
"""

from __future__ import annotations

from pathlib import Path

from megatron.ltd.flags import read_command
from megatron.ltd.reports.figures.draw import check_matplotlib
from megatron.ltd.reports.metrics import read_history
from megatron.ltd.reports.output import write_output
from megatron.ltd.reports.page.build import read_scores, report
from megatron.ltd.reports.page.config import ReportConfig
from megatron.ltd.reports.page.plan_file import read_plan


def main() -> None:
    """Read the flags, the run and its scores, and write the page."""
    (config,) = read_command(__doc__, ReportConfig)
    path, folder = Path(config.output), Path(config.run)
    check_matplotlib("--output", path)
    scores = read_scores(config.scores)
    plan = read_plan(Path(config.plan)) if config.plan is not None else None
    history = read_history(folder, config.name or folder.resolve().name)
    history.report_damage()
    content = report(history, plan, scores, config.x).encode(errors="backslashreplace")
    write_output("--output", path, content)
    print(f"{path}: {len(content) / 1e3:.0f} KB")
