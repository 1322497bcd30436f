"""The results of finished runs, one JSON object per line, committed so that no run is repeated."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from common.runs import RunResult

from megatron.ltd.versions import cpu_model

from .plan import Run


@dataclass(frozen=True)
class Record:
    """The results of one run."""

    key: str
    setting: str
    arm: str
    lr: float
    seed: int
    steps: int
    loss: float
    """Held-out loss at the end of the run, nats per token."""
    flops: int
    dense_flops: int
    """FLOPs of a dense run of as many steps."""
    layer_tokens: int
    cpu_seconds: float | None
    data_sha256: str
    flags: str
    """The flags of ``pretrain_gpt_ltd.py``, without data and folders."""
    date: str
    machine: str
    versions: str


def read_records(path: Path) -> dict[str, Record]:
    """Read the records by key; empty if there is no file."""
    if not path.exists():
        return {}
    records = (Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
    return {record.key: record for record in records}


def add_record(path: Path, run: Run, result: RunResult, data_sha256: str) -> Record:
    """Append the record of a finished run."""
    versions = ", ".join(f"{name} {value}" for name, value in result.versions.items())
    record = Record(
        run.key, run.setting.name, run.arm, run.lr, run.seed, run.steps, result.validation_loss, result.flops,
        result.dense_flops, result.layer_tokens, result.cpu_seconds, data_sha256, " ".join(run.flags),
        time.strftime("%Y-%m-%d"), cpu_model(), versions,
    )  # fmt: skip
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")
    return record
