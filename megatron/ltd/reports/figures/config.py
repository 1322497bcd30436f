"""The flags of ``tools/plot_run.py``; imports no matplotlib."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.reports.figures.axes import AXES
from megatron.ltd.reports.output import check_output
from megatron.ltd.reports.runs import RunsConfig

FORMATS = (".png", ".pdf", ".svg")


def check_axes(names: tuple[str, ...]) -> None:
    """Raises ``UserError`` for an axis that is given twice; argparse refuses unknown ones."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--x {' '.join(names)}: {twice} is given twice; give each axis once")


@dataclass(frozen=True)
class PlotConfig(RunsConfig):
    """figure of runs"""

    x: tuple[str, ...] = flag(("steps",), choices=tuple(AXES), help="x axes; each is a column of the figure")
    output: str = flag(
        None, metavar="FILE", help=f"file of the figure: {', '.join(FORMATS)}",
        required=f"give a file that ends in {', '.join(FORMATS)}",
    )  # fmt: skip
    overwrite: bool = flag(False, help="replace the figure if it exists")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axes(self.x)
        check_output("--output", Path(self.output), FORMATS, overwrite=self.overwrite)
