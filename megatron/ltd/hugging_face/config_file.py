"""The config.json of a Hugging Face folder. No torch.

    config.json                                           the architecture and the sizes of the model
    model.safetensors, or model.safetensors.index.json    its tensors (``weights``)
    vocab.json, merges.txt, or tokenizer.model            the tokenizer, if it is in the folder

Errors are ``UserError`` with ``--load`` and the folder. Not here: the meaning of the entries (``gpt2``, ``llama``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError, reads_from
from megatron.ltd.json_text import parse_json
from megatron.ltd.small_files import read_small

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VOCABULARY, MERGES, SENTENCEPIECE = "vocab.json", "merges.txt", "tokenizer.model"
TOKENIZER = "tokenizer.json"
_SIZE_LIMIT = 1 << 31
_LONGEST_SHOWN = 100
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def is_hugging_face(folder: Path) -> bool:
    """Whether ``folder`` has a Hugging Face model, or a part of one, and no checkpoint of this program."""
    ours = any(path.is_dir() for path in folder.glob("iter_*"))
    return not ours and any((folder / name).is_file() for name in (CONFIG, WEIGHTS, INDEX, *_PICKLED))


def refuse_pickled(folder: Path) -> None:
    """Raise ``UserError`` for a folder whose weights are in a pickle only, not in safetensors."""
    pickled = next((name for name in _PICKLED if (folder / name).is_file()), None)
    if pickled is not None and not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise UserError(
            f"--load {folder}: has its weights in {pickled} only, and a pickle can run code; save the model as "
            "safetensors, with save_pretrained of transformers"
        )


@dataclass(frozen=True)
class ConfigFile:
    """The entries of a folder's config.json, which are checked when they are read."""

    folder: Path
    entries: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> ConfigFile:
        """Raises ``UserError`` if the file is missing, or not a JSON object."""
        path = folder / CONFIG
        try:
            with reads_from(f"--load {folder}: {CONFIG}", "use a folder that has it beside the weights"):
                entries = parse_json(read_small(path))
        except ValueError as error:
            raise UserError(f"--load {folder}: {CONFIG} is not JSON ({error}); download the folder again") from None
        if not isinstance(entries, dict):
            raise UserError(f"--load {folder}: {CONFIG} is not a JSON object; download the folder again")
        return cls(folder, entries)

    @property
    def model_type(self) -> str:
        return str(self.entries.get("model_type"))

    def size(self, name: str, default: int | None = None) -> int:
        """An entry that is a count; ``default`` if it is absent or null, None if it is required."""
        value = self.entries.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < _SIZE_LIMIT:
            raise self.refusal(name, f"it must be an integer above 0 and below {_SIZE_LIMIT:,}")
        return value

    def number(self, name: str, default: float) -> float:
        """An entry that is any finite number, ``default`` where it is absent."""
        value = self.entries.get(name, default)
        try:
            number = float(value) if type(value) in (int, float) else math.nan
        except OverflowError:  # a whole number of hundreds of digits
            number = math.inf
        if not math.isfinite(number):
            raise self.refusal(name, "it must be a finite number")
        return number

    def switch(self, name: str, default: bool) -> bool:
        """An entry that is true or false, ``default`` where it is absent."""
        value = self.entries.get(name, default)
        if type(value) is not bool:
            raise self.refusal(name, "it must be true or false")
        return value

    def refuse_quantized(self) -> None:
        """Raise ``UserError`` if the weights are quantized."""
        table = self.entries.get("quantization_config")
        if table is not None:
            method = table.get("quant_method") if isinstance(table, dict) else None
            raise UserError(
                f"--load {self.folder}: in {CONFIG}, quantization_config says that the weights are quantized "
                f"({method}); use the original model"
            )

    def refusal(self, name: str, rule: str) -> UserError:
        """The error for an entry that breaks ``rule``."""
        try:
            value = json.dumps(self.entries[name]) if name in self.entries else "missing"
        except RecursionError:
            value = "nested too deeply"
        if len(value) > _LONGEST_SHOWN:
            value = f"{value[:_LONGEST_SHOWN]}..."
        return UserError(f"--load {self.folder}: in {CONFIG}, {name} is {value}: {rule}")
