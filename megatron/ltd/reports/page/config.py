"""The flags of ``tools/report.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.flags import Settings, flag
from megatron.ltd.reports.figures.axes import AXES
from megatron.ltd.reports.figures.config import check_axes
from megatron.ltd.reports.output import check_output

SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class ReportConfig(Settings):
    """report of a run"""

    run: str = flag(
        None, metavar="DIR", help="folder of the run: its --log-dir, or --save",
        required="give the --log-dir (or --save) folder of a run",
    )  # fmt: skip
    name: str | None = flag(None, help="its name in the report (default: the name of the folder)")
    plan: str | None = flag(None, metavar="FILE", help="plan of the run that --plan-json wrote, to compare")
    scores: tuple[str, ...] = flag(
        (),
        metavar="PATH",
        help="results of lm-eval: its --output_path, or result files; for a task in several, the last one counts",
    )
    x: tuple[str, ...] = flag(("steps",), choices=tuple(AXES), help="x axes of the curves; each is a column")
    output: str = flag(
        None, metavar="FILE", help="file of the page, such as report.html", required="give a file such as report.html"
    )
    overwrite: bool = flag(False, help="replace the page if it exists")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axes(self.x)
        check_output("--output", Path(self.output), SUFFIXES, overwrite=self.overwrite)
