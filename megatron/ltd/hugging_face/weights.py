"""Loads the tensors of a Hugging Face folder into a model, under any layout: each process reads what it needs.

    ImportedModel.open        checks names and shapes in all files: every tensor has its counterpart
    ImportedModel.read        reads one tensor, converts and pads it
    ImportedModel.copy_into   reads all tensors, one at a time, and copies this process's shares

Only safetensors are read, with their own library, so that no code in them can run. Not here: names and layouts of the
tensors (``architecture``), and the comparison with the flags of the run (``checkpoint.start``).

The vocabulary of the model may be padded. A padding row is the mean of the real ones: its logit is the mean of theirs,
so that by Jensen's inequality p such rows beside V real ones raise the loss by at most ln(1 + p/V), for any text
(0.0009 for GPT-2 padded to 50,304). Zeros would be worse, because GPT-2's logits are far below 0.
``--make-vocab-size-divisible-by 1`` disables padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron.ltd.errors import UserError
from megatron.ltd.hugging_face.architecture import Architecture, Counterpart
from megatron.ltd.hugging_face.config_file import CONFIG, INDEX, WEIGHTS
from megatron.ltd.hugging_face.model import described_model, read_config
from megatron.ltd.json_text import parse_json
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.small_files import LARGE_BYTES, check_regular, read_small

_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file: path, key, shape and type."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ImportedModel:
    """A complete Hugging Face model: its settings as our flags, and the places of its tensors."""

    folder: Path
    architecture: Architecture
    model: ModelConfig
    vocab_size: int
    """Rows of its embedding [tokens], not padded."""
    counterparts: Mapping[str, Counterpart]
    stored: Mapping[str, _Stored]
    """By name, without prefix."""

    @classmethod
    def open(cls, folder: Path) -> ImportedModel:
        """Read config.json and the headers of all files. Raises ``UserError`` unless the model is complete."""
        architecture, file = read_config(folder)
        model, vocab_size = described_model(architecture, file), file.size("vocab_size")
        counterparts = architecture.counterparts(model, vocab_size)
        stored = _without_prefix(folder, _all_tensors(folder), architecture.prefix)
        imported = cls(folder, architecture, model, vocab_size, counterparts, stored)
        imported._check_whole()
        return imported

    @property
    def dtypes(self) -> set[str]:
        """The types of the stored tensors, as named in safetensors."""
        return {self.stored[name].dtype for counterpart in self.counterparts.values() for name in counterpart.names}

    def read(self, name: str, num_rows: int) -> Tensor:
        """One of our tensors by its name, whole; an embedding is padded to ``num_rows``.

        The file is closed afterwards, because an open one keeps in memory what was read.
        """
        counterpart = self.counterparts[name]
        whole = counterpart.arrangement.to_ours([_read(self.stored[theirs]) for theirs in counterpart.names])
        if not counterpart.is_vocabulary or num_rows <= whole.shape[0]:
            return whole
        mean_1H = whole.mean(dim=0, keepdim=True, dtype=torch.float32).to(whole.dtype)
        return torch.cat([whole, mean_1H.expand(num_rows - whole.shape[0], -1)])

    def copy_into(self, modules: Iterable[torch.nn.Module]) -> None:
        """Set the weights of this process's chunks of a model with the same sizes, as ``build_chunks`` makes them."""
        for module in modules:
            state = module.sharded_state_dict()  # type: ignore[operator]
            apply_factories(state)  # splits the two halves of a gated MLP
            for part in nested_values(state):
                if isinstance(part, ShardedTensor):  # Transformer Engine's modules hold other things too
                    with torch.no_grad():
                        part.data.copy_(self._share(part))

    def _share(self, part: ShardedTensor) -> Tensor:
        """The values of ``part`` of a tensor."""
        layers, place = part.global_slice()[: part.prepend_axis_num], part.global_slice()[part.prepend_axis_num :]
        name = part.key.replace("decoder.layers.", ".".join(["decoder.layers", *map(str, layers), ""]))
        whole = self.read(name, part.global_shape[part.prepend_axis_num])
        assert tuple(whole.shape) == tuple(part.global_shape[part.prepend_axis_num :]), name
        return whole[place]

    def _check_whole(self) -> None:
        """Raise ``UserError`` for tensors that are missing, unknown, or do not match config.json."""
        wanted = {
            name: shape
            for counterpart in self.counterparts.values()
            for name, shape in zip(counterpart.names, counterpart.shapes, strict=True)
        }
        for name, shape in wanted.items():
            self._check_tensor(name, shape)
        is_left_out = self.architecture.is_left_out
        other = next((name for name in self.stored if name not in wanted and not is_left_out(name, self.model)), None)
        if other is not None:
            raise UserError(
                f"--load {self.folder}: tensor {other} is not in the model of {CONFIG}; use both files of one language "
                "model"
            )

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self.stored.get(name)
        if tensor is None:
            raise UserError(
                f"--load {self.folder}: tensor {name} of the model of {CONFIG} is missing; download the folder again"
            )
        if tensor.shape != shape:
            raise UserError(
                f"--load {self.folder}: tensor {name} in {tensor.path.name} has shape {list(tensor.shape)}, and "
                f"{CONFIG} says {list(shape)}; use both files of one model"
            )
        if tensor.dtype not in _FLOATS:
            raise UserError(
                f"--load {self.folder}: tensor {name} has type {tensor.dtype}, but only {', '.join(_FLOATS)} are "
                "supported; use a model that is not quantized"
            )


def _read(stored: _Stored) -> Tensor:
    with safe_open(stored.path, framework="pt") as file:
        return file.get_tensor(stored.key)


def _all_tensors(folder: Path) -> dict[str, _Stored]:
    """Every tensor of ``folder`` by its key. Raises ``UserError`` if a file is missing or damaged."""
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        names = _indexed_files(folder)
    else:
        names = [WEIGHTS]
    found: dict[str, _Stored] = {}
    for path in (folder / name for name in names):
        try:
            check_regular(path)
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # no mapping: it has nothing but keys()
                    tensor = file.get_slice(key)
                    found[key] = _Stored(path, key, tuple(tensor.get_shape()), tensor.get_dtype())
        except (OSError, SafetensorError) as error:
            what = "is missing" if not path.exists() else f"cannot be read as safetensors ({error})"
            raise UserError(f"--load {folder}: {path.name} {what}; download the folder again") from None
    return found


def _indexed_files(folder: Path) -> list[str]:
    """The files in the index, which must be in the same folder."""
    try:
        files = sorted(set(parse_json(read_small(folder / INDEX, LARGE_BYTES))["weight_map"].values()))
        if all(Path(name).name == name for name in files):
            return files
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"--load {folder}: {INDEX} must list files in the same folder; download the folder again")


def _without_prefix(folder: Path, tensors: Mapping[str, _Stored], prefix: str) -> dict[str, _Stored]:
    names = {key: key.removeprefix(prefix) for key in tensors}
    twice = next((key for key, name in names.items() if name != key and name in tensors), None)
    if twice is not None:
        raise UserError(f"--load {folder}: has both {twice} and {names[twice]}; download the folder again")
    return {names[key]: tensor for key, tensor in tensors.items()}
