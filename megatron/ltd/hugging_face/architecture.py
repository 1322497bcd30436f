"""The description of a Hugging Face architecture, and the conversion of tensors in both directions. No torch.

"Ours" are Megatron-Core's tensors and our flags, "theirs" are Hugging Face's.

    Architecture   config.json <-> our flags, and the counterpart of each of our tensors
    Counterpart    their tensors for one of ours, and the arrangement between them
    Arrangement    to_ours(to_theirs(tensor)) == tensor: both directions are in one class, so that they match

Our rows of attention heads are grouped by key-value head, each after the queries that share it; theirs are all queries,
then all keys, then all values:

    ours    [q q k v | q q k v]        theirs    [q q q q] [k k] [v v]

Tensors are only sliced, transposed and concatenated, so that no value changes, but for ``ZeroCentred``. Not here: the
tensors of an architecture (``gpt2``, ``llama``), and their files (``weights``, ``shards``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron.ltd.hugging_face.config_file import ConfigFile
from megatron.ltd.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

HEAD = "lm_head.weight"
"""Their output matrix, the only tensor without the prefix of the architecture."""


class Arrangement:
    """One of our tensors is one of theirs, unchanged. Subclasses convert."""

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """Our tensor from ``theirs``, in the order of ``Counterpart.names``."""
        (tensor,) = theirs
        return tensor

    def to_theirs(self, ours: Tensor) -> list[Tensor]:
        """The inverse of ``to_ours``."""
        return [ours]


SAME = Arrangement()


@dataclass(frozen=True)
class Joined(Arrangement):
    """Our tensor is the concatenation of theirs along the rows."""

    part_rows: tuple[int, ...]

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """[rows of all parts, ...]."""
        return _joined(theirs)

    def to_theirs(self, ours: Tensor) -> list[Tensor]:
        """[rows of a part, ...] each."""
        return list(ours.split(self.part_rows))


@dataclass(frozen=True)
class Heads(Arrangement):
    """Theirs are queries, keys and values; ours is one tensor, grouped by key-value head."""

    groups: int
    """Key-value heads."""
    queries_per_group: int
    head_size: int
    are_joined: bool = False
    """Whether theirs is also one tensor: all queries, then all keys, then all values."""

    @property
    def part_rows(self) -> tuple[int, int, int]:
        """Rows of all queries, all keys, all values."""
        key_rows = self.groups * self.head_size
        return self.queries_per_group * key_rows, key_rows, key_rows

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """[(N + 2 G) D, ...] for N heads and G key-value heads of size D."""
        parts = theirs[0].split(self.part_rows) if self.are_joined else theirs
        return _joined([part.unflatten(0, (self.groups, -1)) for part in parts], dim=1).flatten(0, 1)

    def to_theirs(self, ours: Tensor) -> list[Tensor]:
        """[N D, ...], [G D, ...], [G D, ...], or one tensor of all these rows."""
        sizes = (self.queries_per_group * self.head_size, self.head_size, self.head_size)
        parts = [part.flatten(0, 1) for part in ours.unflatten(0, (self.groups, -1)).split(sizes, dim=1)]
        return [_joined(parts)] if self.are_joined else parts


@dataclass(frozen=True)
class Transposed(Arrangement):
    """Theirs is a matrix [in, out], ours is [out, in]; ``rows`` arranges the rows of the latter."""

    rows: Arrangement = SAME

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """[out, in]."""
        return self.rows.to_ours([tensor.T for tensor in theirs])

    def to_theirs(self, ours: Tensor) -> list[Tensor]:
        """[in, out] each."""
        return [tensor.T for tensor in self.rows.to_theirs(ours)]


@dataclass(frozen=True)
class ZeroCentred(Arrangement):
    """Ours is the weight of a norm minus 1 (``--apply-layernorm-1p``)."""

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """The same shape."""
        (tensor,) = theirs
        return tensor - 1.0

    def to_theirs(self, ours: Tensor) -> list[Tensor]:
        """Rounded to the type of ``ours``."""
        return [ours + 1.0]


def norm_weight(model: ModelConfig) -> Arrangement:
    """The arrangement of the weights of a model's norms."""
    return ZeroCentred() if model.apply_layernorm_1p else SAME


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    import torch  # only where there are tensors, because it would delay reading a command line

    return torch.cat(list(parts), dim)


@dataclass(frozen=True)
class Counterpart:
    """Their tensors for one of ours."""

    names: tuple[str, ...]
    """Their names, without the prefix of the architecture."""
    shapes: tuple[tuple[int, ...], ...]
    """Their shapes, in the order of ``names``."""
    shape: tuple[int, ...]
    """Our shape; for an embedding without padding rows."""
    arrangement: Arrangement = SAME
    is_vocabulary: bool = False
    """Whether there is a row for each token id; our tensor may have more rows as padding."""

    @classmethod
    def same(cls, name: str, *shape: int, arrangement: Arrangement = SAME, is_vocabulary: bool = False) -> Counterpart:
        """One tensor of the same shape."""
        return cls((name,), (shape,), shape, arrangement, is_vocabulary)


@dataclass(frozen=True)
class Architecture:
    """A Hugging Face architecture that is also one of our models."""

    model_type: str
    """Its name in config.json."""
    title: str
    """Its usual name."""
    class_name: str
    """The class of its language model in ``transformers``."""
    prefix: str
    """Prefix of the names of a language model's tensors, which those of a bare model do not have."""
    model_flags: Callable[[ConfigFile], dict[str, Any]]
    """The model of a config.json as fields of ``ModelConfig``. Raises ``UserError`` if it is not supported."""
    config_entries: Callable[[ModelConfig], dict[str, Any]]
    """The inverse: the entries of config.json for a model."""
    counterparts: Callable[[ModelConfig, int], dict[str, Counterpart]]
    """Their counterpart of each of our tensors. The number is their vocabulary size, not padded."""
    buffers: str
    """A pattern of the names of buffers, which need no counterpart."""
    needs: Callable[[ModelConfig], Mapping[str, bool]]
    """The conditions for our model to have this architecture, as flags, and whether they are met."""

    def is_left_out(self, name: str, model: ModelConfig) -> bool:
        """Whether one of their tensors needs no counterpart: a buffer, or a copy of the tied embedding."""
        return re.fullmatch(self.buffers, name) is not None or (model.tied_embeddings and name == HEAD)

    def full_name(self, name: str) -> str:
        """A tensor's name in the files of a language model."""
        return name if name == HEAD else self.prefix + name
