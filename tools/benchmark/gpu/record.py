"""gpu.json and gpu.md: all rows so far, replaced as a whole after each row, so that they are never half written.

settings   what all rows of a file share: device, versions, rounds, further flags; another start must have the same
rows       one for each arm, micro-batch size and turn, with every measured second; or the reason why it failed
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.page import write_json

from megatron.ltd.errors import UserError
from megatron.ltd.json_text import parse_json


@dataclass(frozen=True)
class Row:
    """An arm of a contender, measured in one turn, or failed. Flags and figures of others' models are None."""

    model: str
    contender: str
    arm: str
    kept_tokens: int | None
    block_size: int
    micro_batch_size: int
    visit: int
    samples: int
    """Of a step"""
    tokens: int
    """Of a step"""
    flops: int
    """Of a step"""
    dense_flops: int
    """Of the dense step"""
    date: str
    command: str | None = None
    """Flags of pretrain_gpt_ltd.py that train the same; None for the models of others"""
    planned_bytes: int | None = None
    """Memory by --plan"""
    seconds: list[float] = field(default_factory=list)
    """Of the measured steps"""
    dense_seconds: list[float] = field(default_factory=list)
    """Of the dense steps of the same rounds"""
    peak_bytes: int | None = None
    routing_seconds: float | None = None
    """Of a step, by the profiler; only in the first visit, and not where no tokens are dropped"""
    kernels: list[tuple[str, int, float]] = field(default_factory=list)
    """Those that take most in a step of one microbatch: name, calls and seconds"""
    ltd_kernels: str = "torch"
    failed: str | None = None
    """Why nothing was measured"""
    out_of_memory: bool = False

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """What a row is known by."""
        return self.model, self.contender, self.arm, self.micro_batch_size, self.visit


class Record:
    """The rows of a folder."""

    def __init__(self, folder: Path, settings: dict[str, Any], about: dict[str, str]) -> None:
        """Read what the folder has. Raises ``UserError`` for other settings, and for a file that is not a record."""
        self.path = folder / "gpu.json"
        self.settings, self.about = settings, about
        self.rows: dict[tuple[str, str, str, int, int], Row] = {}
        if self.path.exists():
            self._read()
        folder.mkdir(parents=True, exist_ok=True)

    def _read(self) -> None:
        try:
            content = parse_json(self.path.read_bytes())
            settings, self.about = content["settings"], content["about"]
            rows = [Row(**row) for row in content["rows"]]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(
                f"--output {self.path.parent}: gpu.json is not a file of this benchmark; remove it"
            ) from None
        for name, here in self.settings.items():
            if settings.get(name) != here:
                raise UserError(
                    f"--output {self.path.parent}: its rows were measured with {name} {settings.get(name)}, and this "
                    f"start has {here}; give another folder"
                )
        self.rows = {row.key: row for row in rows}

    def add(self, row: Row, page: Callable[[Record], str]) -> None:
        """Store a row, and the page of all rows."""
        self.rows[row.key] = row
        temporary = self.path.with_suffix(".tmp")
        rows = [asdict(row) for row in self.rows.values()]
        write_json(temporary, {"settings": self.settings, "about": self.about, "rows": rows})
        temporary.replace(self.path)
        self.path.with_suffix(".md").write_text(page(self), encoding="utf-8")
