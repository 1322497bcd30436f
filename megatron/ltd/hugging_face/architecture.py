"""What is known of one architecture of Hugging Face's, and how a tensor of ours is made of theirs and back. No torch.

    Architecture   config.json <-> our flags, and of every tensor of ours its counterpart
    Counterpart    the tensors of theirs behind one of ours, and the arrangement between them
    Arrangement    to_ours(to_theirs(tensor)) == tensor: both directions stand together, so that they cannot disagree

Rows of ours that hold attention heads lie key-value head by key-value head, each with the queries that it serves before
it; theirs are all queries, then all keys, then all values:

    ours    [q q k v | q q k v]        theirs    [q q q q] [k k] [v v]

Tensors are only sliced, turned and joined: nothing is computed, so that every value stays what it was. Not here: which
tensors an architecture has (``gpt2``, ``llama``), and where they lie (``weights``, ``shards``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron.ltd.hugging_face.config_file import ConfigFile
from megatron.ltd.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

HEAD = "lm_head.weight"
"""Their output matrix, the one tensor that is named without the architecture's prefix."""


class Arrangement:
    """One tensor of ours is one of theirs, unchanged; subclasses say otherwise."""

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """The tensor of ours that holds what ``theirs`` hold, which come in the order of ``Counterpart.names``."""
        (tensor,) = theirs
        return tensor

    def to_theirs(self, ours: Tensor) -> list[Tensor]:
        """The inverse of ``to_ours``."""
        return [ours]


SAME = Arrangement()


@dataclass(frozen=True)
class Joined(Arrangement):
    """Theirs are the parts of ours, one after the other along the rows."""

    part_rows: tuple[int, ...]

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """[rows of all parts, ...]."""
        return _joined(theirs)

    def to_theirs(self, ours: Tensor) -> list[Tensor]:
        """[rows of a part, ...] each."""
        return list(ours.split(self.part_rows))


@dataclass(frozen=True)
class Heads(Arrangement):
    """Theirs are queries, keys and values; ours lie together, key-value head by key-value head."""

    groups: int
    """Key-value heads."""
    queries_per_group: int
    head_size: int

    @property
    def part_rows(self) -> tuple[int, int, int]:
        """Rows of all queries, all keys, all values."""
        key_rows = self.groups * self.head_size
        return self.queries_per_group * key_rows, key_rows, key_rows

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """[(N + 2 G) D, ...] for N heads and G key-value heads of size D."""
        by_group = [part.unflatten(0, (self.groups, -1)) for part in theirs]
        return _joined(by_group, dim=1).flatten(0, 1)

    def to_theirs(self, ours: Tensor) -> list[Tensor]:
        """[N D, ...], [G D, ...], [G D, ...]."""
        sizes = (self.queries_per_group * self.head_size, self.head_size, self.head_size)
        return [part.flatten(0, 1) for part in ours.unflatten(0, (self.groups, -1)).split(sizes, dim=1)]


@dataclass(frozen=True)
class JoinedHeads(Arrangement):
    """As ``Heads``, but theirs too are in one tensor: all queries, then all keys, then all values."""

    heads: Heads

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """[(N + 2 G) D, ...]."""
        (tensor,) = theirs
        return self.heads.to_ours(tensor.split(self.heads.part_rows))

    def to_theirs(self, ours: Tensor) -> list[Tensor]:
        """[(N + 2 G) D, ...], one tensor."""
        return [_joined(self.heads.to_theirs(ours))]


@dataclass(frozen=True)
class Transposed(Arrangement):
    """Theirs is a matrix [in, out] of what ``rows`` arranges as [out, in]."""

    rows: Arrangement = SAME

    def to_ours(self, theirs: Sequence[Tensor]) -> Tensor:
        """[out, in]."""
        return self.rows.to_ours([tensor.T for tensor in theirs])

    def to_theirs(self, ours: Tensor) -> list[Tensor]:
        """[in, out] each."""
        return [tensor.T for tensor in self.rows.to_theirs(ours)]


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat`` without torch, whose import a command line that is only read does not wait for."""
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    whole, start = parts[0].new_empty(shape), 0
    for part in parts:
        whole.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    return whole


@dataclass(frozen=True)
class Counterpart:
    """The tensors of theirs behind one of ours."""

    names: tuple[str, ...]
    """Without the architecture's prefix."""
    shapes: tuple[tuple[int, ...], ...]
    """Theirs, in the order of ``names``."""
    shape: tuple[int, ...]
    """Ours; of an embedding without padding rows."""
    arrangement: Arrangement = SAME
    is_vocabulary: bool = False
    """A row for each token id: ours may have more rows, which pad it."""

    @classmethod
    def same(cls, name: str, *shape: int, is_vocabulary: bool = False) -> Counterpart:
        """One tensor of the same shape."""
        return cls((name,), (shape,), shape, is_vocabulary=is_vocabulary)


@dataclass(frozen=True)
class Architecture:
    """One of Hugging Face's architectures that models of ours have too."""

    model_type: str
    """As config.json names it."""
    title: str
    """As people name it."""
    class_name: str
    """Of its language model in ``transformers``."""
    prefix: str
    """What the names of a language model's tensors begin with, and a bare model's do not."""
    model_flags: Callable[[ConfigFile], dict[str, Any]]
    """The model of a config.json as fields of ``ModelConfig``. Raises ``UserError`` for one that ours cannot be."""
    config_entries: Callable[[ModelConfig], dict[str, Any]]
    """The inverse: what config.json says of a model's shape."""
    counterparts: Callable[[ModelConfig, int], dict[str, Counterpart]]
    """Of every tensor of ours, theirs. The number is their vocabulary, not padded."""
    is_left_out: Callable[[str, ModelConfig], bool]
    """Whether a tensor of theirs has no counterpart and needs none."""
    needs: Callable[[ModelConfig], Mapping[str, bool]]
    """What a model of ours must be to be one of these, as flags that say it, and whether it is."""

    def full_name(self, name: str) -> str:
        """A tensor's name in the files of a language model."""
        return name if name == HEAD else self.prefix + name
