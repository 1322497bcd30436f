"""Flags of the two commands. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import COUNT_OR_ZERO, SIZE

DTYPES = ("float32", "bfloat16", "float16")
_UNITS_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class ExportConfig(Settings):
    """export"""

    load: str = flag(
        None, metavar="DIR", help="folder of checkpoints, the --save of a run, or one of them; the newest is taken",
        required="give the --save folder of a run",
    )  # fmt: skip
    ckpt_step: int | None = flag(None, range=COUNT_OR_ZERO, metavar="STEP", help="take the checkpoint of this step")
    output: str = flag(
        None, metavar="DIR", help="folder to write, which must not exist yet", required="give the folder to write"
    )
    dtype: str | None = flag(None, choices=DTYPES, help="type of the weights (default: as they are stored)")
    max_shard_size: str = flag("5GB", metavar="SIZE", help="largest file of weights, in KB, MB or GB (of 1000)")
    tokenizer: bool = flag(True, help="leave the tokenizer's files out")
    log_dir: str | None = flag(
        None, metavar="DIR", help="folder of the run's metrics.jsonl, for the model card (default: --load)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.max_shard_bytes

    @property
    def max_shard_bytes(self) -> int:
        """``--max-shard-size`` as a number. Raises ``UserError``."""
        found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]+)?)(KB|MB|GB)", self.max_shard_size.upper())
        num_bytes = int(float(found[1]) * _UNITS_BYTES[found[2]]) if found else 0
        if num_bytes < 1:
            raise UserError(f"--max-shard-size {self.max_shard_size}: must be a number and KB, MB or GB, as in 5GB")
        return num_bytes


@dataclass(frozen=True)
class ImportConfig(Settings):
    """import"""

    load: str = flag(
        None,
        metavar="DIR",
        required="give the folder of a Hugging Face model or of Megatron-LM's checkpoints",
        help="folder of a Hugging Face GPT-2 or Llama in safetensors, or of Megatron-LM's checkpoints",
    )
    save: str = flag(
        None, metavar="DIR", help="folder to write the checkpoint in, which must hold none yet",
        required="give the folder to write the checkpoint in",
    )  # fmt: skip
    dtype: str | None = flag(None, choices=DTYPES, help="type of the weights (default: as they are stored)")
    make_vocab_size_divisible_by: int = flag(
        128,
        range=SIZE,
        metavar="N",
        help="pad the vocabulary of a Hugging Face model to a multiple of this; 1 pads nothing",
    )


def check_free(flag_and_path: str, path: Path) -> None:
    """Check that the target does not exist or is an empty folder. Raises ``UserError``."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{flag_and_path}: exists and is not empty; use another folder, nothing is overwritten")


def check_new(flag_and_path: str, path: Path) -> None:
    """Check that the target does not exist, not even as a broken link. Raises ``UserError``."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{flag_and_path}: exists; use a new folder, nothing is overwritten")
