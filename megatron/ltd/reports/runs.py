"""Which runs a tool looks at, and what it calls them: flags that every such tool has. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.reports.metrics import RunHistory, read_history


@dataclass(frozen=True)
class RunsConfig:
    """runs"""

    runs: tuple[str, ...] = flag((), metavar="DIR", help="folders of the runs: their --log-dir, or --save")
    names: tuple[str, ...] = flag((), metavar="NAME", help="what to call them (default: the folders' own names)")

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("--runs is missing: give the folder of at least one run")
        if self.names and len(self.names) != len(self.runs):
            raise UserError(f"--names has {len(self.names)} values and --runs {len(self.runs)}: give one name a run")


def read_runs(config: RunsConfig) -> list[RunHistory]:
    """The histories that ``--runs`` names. Raises ``UserError``.

    Folders that are all called the same, such as a/log and b/log, go by the paths that were given.
    """
    folders = [Path(run) for run in config.runs]
    names = config.names or [folder.resolve().name for folder in folders]
    if not config.names and len(set(names)) < len(names):
        names = config.runs
    return [read_history(folder, name) for folder, name in zip(folders, names, strict=True)]
