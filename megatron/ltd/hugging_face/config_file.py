"""A folder as Hugging Face writes it, seen by its config.json. No torch.

    config.json                                           which model this is, and its shape
    model.safetensors, or model.safetensors.index.json    its tensors (``weights``)
    vocab.json, merges.txt, or tokenizer.model            the tokenizer, where it lies there

Every mistake is a ``UserError`` that names ``--load`` and the folder. Not here: what the entries of a config.json mean
(``gpt2``, ``llama``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.json_text import parse_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VOCABULARY, MERGES, SENTENCEPIECE = "vocab.json", "merges.txt", "tokenizer.model"
_SIZE_LIMIT = 1 << 31
_LONGEST_SHOWN = 100
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def is_hugging_face(folder: Path) -> bool:
    """Whether ``folder`` holds a Hugging Face model, or a part of one, and no checkpoint of this program."""
    ours = any(path.is_dir() for path in folder.glob("iter_*"))
    return not ours and any((folder / name).is_file() for name in (CONFIG, WEIGHTS, INDEX, *_PICKLED))


def refuse_pickled(folder: Path) -> None:
    """Refuse a folder whose weights are in a pickle and in no safetensors file. Raises ``UserError``."""
    pickled = next((name for name in _PICKLED if (folder / name).is_file()), None)
    if pickled is not None and not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise UserError(
            f"--load {folder} holds its weights in {pickled} only, and a pickle can run code: only safetensors are "
            "read; save the model anew with transformers (save_pretrained writes safetensors)"
        )


@dataclass(frozen=True)
class ConfigFile:
    """The entries of a folder's config.json, each asked for by name and checked as it is."""

    folder: Path
    entries: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> ConfigFile:
        """Raises ``UserError`` if there is none, or what is there is no JSON object."""
        path = folder / CONFIG
        try:
            entries = parse_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"--load {folder}: {CONFIG} cannot be read ({error.strerror}), and it says what model this is: name "
                "a folder that holds it beside the weights"
            ) from None
        except ValueError as error:
            raise UserError(f"--load {folder}: {CONFIG} is not JSON ({error}): take the folder anew") from None
        if not isinstance(entries, dict):
            raise UserError(f"--load {folder}: {CONFIG} is no JSON object: take the folder anew")
        return cls(folder, entries)

    @property
    def model_type(self) -> str:
        return str(self.entries.get("model_type"))

    def size(self, name: str, default: int | None = None) -> int:
        """An entry that counts something; ``default`` where it is absent or null, None if it must be there."""
        value = self.entries.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < _SIZE_LIMIT:
            raise self.refusal(name, f"it must be a whole number above 0 and below {_SIZE_LIMIT:,}")
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
        """Raise ``UserError`` if the weights are said to be stored in fewer bits than their values have."""
        table = self.entries.get("quantization_config")
        if table is not None:
            method = table.get("quant_method") if isinstance(table, dict) else None
            raise UserError(
                f"--load {self.folder}: in {CONFIG}, quantization_config says that the weights are quantized "
                f"({method}): take the model that was quantized"
            )

    def refusal(self, name: str, rule: str) -> UserError:
        """What to raise for an entry that breaks ``rule``."""
        try:
            value = json.dumps(self.entries[name]) if name in self.entries else "missing"
        except RecursionError:
            value = "values in values"
        if len(value) > _LONGEST_SHOWN:
            value = f"{value[:_LONGEST_SHOWN]}..."
        return UserError(f"--load {self.folder}: in {CONFIG}, {name} is {value}: {rule}")
