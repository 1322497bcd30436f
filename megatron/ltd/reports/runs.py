"""The flags of tools that read runs: their folders and names. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.reports.metrics import RunHistory, read_history


@dataclass(frozen=True)
class RunsConfig(Settings):
    """runs"""

    runs: tuple[str, ...] = flag(
        (), metavar="DIR", help="folders of the runs: their --log-dir, or --save",
        required="give the folder of at least one run",
    )  # fmt: skip
    names: tuple[str, ...] = flag(
        (), metavar="NAME", help="their names in tables and figures (default: the names of the folders)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names and len(self.names) != len(self.runs):
            raise UserError(f"--names has {len(self.names)} values and --runs {len(self.runs)}: give one name per run")


def read_runs(config: RunsConfig) -> list[RunHistory]:
    """The histories of ``--runs``. Raises ``UserError``.

    If folders have the same name, such as a/log and b/log, the given paths are the names.
    """
    folders = [Path(run) for run in config.runs]
    names = config.names or [folder.resolve().name for folder in folders]
    if not config.names and len(set(names)) < len(names):
        names = config.runs
    histories = [read_history(folder, name) for folder, name in zip(folders, names, strict=True)]
    for history in histories:
        history.report_damage()
    return histories
