"""How a model is loaded for lm-eval: its ``--model_args`` and our flags, which are the same settings. No torch."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.ltd.checkpoint.files import place_of
from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.flags.ranges import COUNT_OR_ZERO, Range, count_in
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.tokenizers.config import TokenizerFiles

if TYPE_CHECKING:
    from megatron.ltd.evaluation.scoring import BatchSize

NAME = "megatron-ltd"
"""The name of our models in lm-eval."""


@dataclass(frozen=True)
class HarnessArgs(TokenizerFiles):
    """model"""

    pretrained: str = flag(
        None,
        name="load",
        metavar="DIR",
        help="folder of checkpoints (--save of a run), of which the newest complete one is loaded, one of them, or a "
        "Hugging Face folder",
        required="give the folder of checkpoints, which is --save of a run",
    )
    ckpt_step: int | None = flag(None, range=COUNT_OR_ZERO, metavar="STEP", help="load the checkpoint of this step")
    tensor_model_parallel_size: int = flag(
        1,
        range=Range(1, 1 << 16),
        help="processes that share each layer; the others share the requests. May differ from training",
    )
    batch_tokens: int = flag(
        16384,
        help="most tokens of a batch, padding included; lm-eval's --batch_size limits the number of texts",
    )
    # lm-eval's own command line has these.
    device: str = ParallelConfig.device
    batch_size: str = "auto"
    seed: int = 1234

    def __post_init__(self) -> None:
        super().__post_init__()
        if not count_in(self.batch_size) and self.batch_size.partition(":")[0] != "auto":
            raise UserError(f"--batch_size {self.batch_size}: must be auto or a number above 0; change it")
        if self.device not in ("auto", "cuda", "cpu"):
            raise UserError(f"--device {self.device}: is not supported; give auto, cuda or cpu")

    @classmethod
    def read(cls, model_args: Mapping[str, Any], asked: Mapping[str, Any]) -> HarnessArgs:
        """From lm-eval's ``--model_args``, ``--device`` and ``--batch_size``.

        Raises ``UserError`` for an unknown name or a value of the wrong type.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in model_args.items():
            if name not in fields:
                alike = difflib.get_close_matches(name, fields, n=1)
                fix = f"use {alike[0]}" if alike else f"use {', '.join(fields)}"
                raise UserError(f"--model_args {name}={value}: {NAME} has no such argument; {fix}")
            is_number = name == "ckpt_step" or isinstance(fields[name].default, int)
            if is_number and type(value) is not int:
                raise UserError(f"--model_args {name}={value}: must be an integer; change it")
            values[name] = value if is_number else str(value)
        if asked.get("batch_size") is not None:
            values.setdefault("batch_size", str(asked["batch_size"]))
        if asked.get("device") is not None:
            values.setdefault("device", _device(str(asked["device"])))
        return cls(**values)

    @property
    def place(self) -> Path:
        """The folder that is loaded. Raises ``UserError`` if it has no checkpoint of ``ckpt_step``."""
        return Path(place_of(str(self.pretrained), self.ckpt_step))

    @property
    def parallel(self) -> ParallelConfig:
        return ParallelConfig(device=self.device, tensor_model_parallel_size=self.tensor_model_parallel_size)

    @property
    def tokenizer_files(self) -> TokenizerFiles:
        return TokenizerFiles(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TokenizerFiles)})

    @property
    def batch(self) -> BatchSize:
        """The largest batch."""
        from megatron.ltd.evaluation.scoring import BatchSize

        return BatchSize(self.batch_tokens, count_in(self.batch_size))


def _device(name: str) -> str:
    """lm-eval's ``--device`` as ours. Its default is "cuda:0", while here the launcher selects the device."""
    return "auto" if name == "cuda:0" else "cuda" if name.startswith("cuda") else name
