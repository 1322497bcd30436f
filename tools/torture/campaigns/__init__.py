"""The campaigns by name. Each module has one class with ``attempt``, which makes one trial."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ..trials import Trial


class Campaign(Protocol):
    """One kind of trials. It is made once, from the folder of the material, before its workers are forked."""

    def attempt(self, number: int, draw: random.Random, folder: Path) -> Trial:
        """Make trial ``number`` in the new ``folder``. All that is tried comes from the number and ``draw``."""
        ...


def campaign(name: str) -> Callable[[Path], Campaign]:
    """The class of a campaign."""
    from . import command_lines, corruption, data_files, disks, kills

    classes: dict[str, Callable[[Path], Campaign]] = {
        "kills": kills.Kills,
        "corruption": corruption.Corruption,
        "command-lines": command_lines.CommandLines,
        "data-files": data_files.DataFiles,
        "disks": disks.Disks,
    }
    return classes[name]
