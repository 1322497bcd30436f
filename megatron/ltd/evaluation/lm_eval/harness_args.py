"""How a model is opened for lm-eval: its ``--model_args`` and our flags, which are the same settings. No torch."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.tokenizers.config import TokenizerFiles

if TYPE_CHECKING:
    from megatron.ltd.evaluation.scoring import BatchSize

NAME = "megatron-ltd"
"""What lm-eval calls our models."""


@dataclass(frozen=True)
class HarnessArgs(TokenizerFiles):
    """model"""

    pretrained: str | None = flag(
        None,
        name="load",
        metavar="DIR",
        help="folder of checkpoints (--save of a run), of which the newest whole one is taken, or of a model as "
        "Hugging Face writes it",
    )
    tensor_model_parallel_size: int = flag(
        1, help="processes that share each layer; the others started share the requests, whatever layout trained it"
    )
    batch_tokens: int = flag(
        16384,
        help="tokens computed at once at most, padding included; lm-eval's --batch_size bounds the number of texts",
    )
    # lm-eval's own command line has these.
    device: str = ParallelConfig.device
    batch_size: str = "auto"
    seed: int = 1234

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained is None:
            raise UserError("--load is missing: give the folder of checkpoints, which is --save of a run")
        if self.tensor_model_parallel_size < 1:
            raise UserError(f"--tensor-model-parallel-size is {self.tensor_model_parallel_size}: it must be at least 1")
        if self.batch_tokens < 1:
            raise UserError(f"--batch-tokens is {self.batch_tokens}: it must be at least 1")
        is_number = self.batch_size.isdigit() and int(self.batch_size) > 0
        if not is_number and self.batch_size.partition(":")[0] != "auto":
            raise UserError(f"--batch_size is {self.batch_size}: it must be auto or a number above 0")
        if self.device not in ("auto", "cuda", "cpu"):
            raise UserError(f"--device is {self.device}: it must be auto, cuda or cpu")

    @classmethod
    def read(cls, model_args: Mapping[str, Any], asked: Mapping[str, Any]) -> HarnessArgs:
        """Out of lm-eval's ``--model_args`` and the ``--device`` and ``--batch_size`` of its own command line.

        Raises ``UserError`` for a name that is none, or a value that does not fit it.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in model_args.items():
            if name not in fields:
                alike = difflib.get_close_matches(name, fields, n=1)
                fix = f"use {alike[0]}" if alike else f"there are {', '.join(fields)}"
                raise UserError(f"--model_args {name}={value}: {NAME} knows no {name}; {fix}")
            is_number = isinstance(fields[name].default, int)
            if is_number and type(value) is not int:
                raise UserError(f"--model_args {name}={value}: it must be a whole number")
            values[name] = value if is_number else str(value)
        if asked.get("batch_size") is not None:
            values.setdefault("batch_size", str(asked["batch_size"]))
        if asked.get("device") is not None:
            values.setdefault("device", _device(str(asked["device"])))
        return cls(**values)

    @property
    def parallel(self) -> ParallelConfig:
        return ParallelConfig(device=self.device, tensor_model_parallel_size=self.tensor_model_parallel_size)

    @property
    def tokenizer_files(self) -> TokenizerFiles:
        return TokenizerFiles(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TokenizerFiles)})

    @property
    def batch(self) -> BatchSize:
        """How much is computed at once."""
        from megatron.ltd.evaluation.scoring import BatchSize

        return BatchSize(self.batch_tokens, int(self.batch_size) if self.batch_size.isdigit() else None)


def _device(name: str) -> str:
    """lm-eval's ``--device`` as ours. It says "cuda:0" where nothing was typed, and the launcher picks the device."""
    return "auto" if name == "cuda:0" else "cuda" if name.startswith("cuda") else name
