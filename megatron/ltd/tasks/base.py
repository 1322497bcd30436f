"""What a run trains: everything in which pretraining a GPT differs from pretraining a BERT or finetuning a ViT.

A ``Task`` is open: its data are checked; it builds the model, reads samples, makes microbatches, judges outputs. What
opens it is its ``config.Entry``.

Parallelism, methods, schedules, optimizer, checkpoints and the loop know no task, so that each has all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from megatron.ltd.errors import UserError
from megatron.ltd.plan.accounting import ModelShape
from megatron.ltd.plan.parameters import ModelSizes

if TYPE_CHECKING:
    from megatron.core.transformer.module import MegatronModule
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron.ltd.data.microbatches import Collate, SampleSource
    from megatron.ltd.hugging_face.weights import ImportedModel
    from megatron.ltd.parallel.mesh import Mesh
    from megatron.ltd.routing.sequence_shard import SequenceShard
    from megatron.ltd.training.objective import Objective


CLASS_COUNT = "class_count"
"""The id under which a checkpoint says how many classes its model tells apart."""
_CLASS_NAMES = "class_names_fingerprint"


def class_order(names: Sequence[str]) -> dict[str, Any]:
    """The classes of the training data, by id, for ``Task.order``; ``names`` tell them apart."""
    return {CLASS_COUNT: len(names), _CLASS_NAMES: hashlib.sha256("\n".join(names).encode()).hexdigest()[:6]}


def same_classes(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two ``Task.order`` are of the same classes."""
    return all(first.get(setting) == second.get(setting) for setting in (CLASS_COUNT, _CLASS_NAMES))


class Task(Protocol):
    """A task whose tokenizer and data are there."""

    objective: Objective

    @property
    def identity(self) -> Mapping[str, Any]:
        """By id, what two runs must agree on to share weights."""
        ...

    @property
    def order(self) -> Mapping[str, Any]:
        """By id, what decides which sample comes when, and which of its tokens are kept."""
        ...

    @property
    def fingerprints(self) -> Mapping[str, Sequence[str]]:
        """By id, the content of the data, for the log."""
        ...

    @property
    def sizes(self) -> ModelSizes:
        """How large the model is; equal to what the task's ``Entry`` says beforehand."""
        ...

    @property
    def shape(self) -> ModelShape:
        """What the accounting needs to know of the model."""
        return self.sizes.shape

    @property
    def num_parameters(self) -> int:
        """Of the whole model, exactly."""
        return self.sizes.num_parameters

    @property
    def num_token_ids(self) -> int | None:
        """Number of ids that tokens have; None if tokens have no ids, or no loss of their own."""
        return None

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Token ids that stand for no text, padding aside; none where samples hold text alone."""
        return ()

    @property
    def every_layer_needs_data(self) -> bool:
        """Whether stages between the first and the last need more of a sample than its number: an attention mask."""
        ...

    def eval_samples(self, global_batch_samples: int) -> int:
        """Samples of one evaluation, whole global batches; 0 evaluates never."""
        ...

    def new_weights(self, stored: Mapping[str, Any]) -> tuple[str, ...]:
        """Beginnings of the names of the parameters that ``--finetune`` does not load, and that start anew.

        ``stored`` is what the checkpoint says of its run: its ``identity``, ``order`` and ``config``.
        """
        return ()

    def open_imported(self, folder: Path) -> tuple[ImportedModel, Mapping[str, Any], Mapping[str, Any]]:
        """The Hugging Face model in ``folder``, and what of it, by id, must equal which settings of this run.

        Raises ``UserError`` if the task cannot start from such a model.
        """
        raise UserError(
            f"--load {folder} holds a Hugging Face model, and this command starts from its own checkpoints only: name "
            "the folder of one"
        )

    def build_chunks(
        self, core_config: TransformerConfig, mesh: Mesh, *, explicit_mask: bool
    ) -> Sequence[MegatronModule]:
        """This process's part of the model: one stage, or several chunks of an interleaved pipeline."""
        ...

    def build_data(
        self, train_samples: int, valid_samples: int, *, reads: bool
    ) -> tuple[SampleSource | None, SampleSource | None]:
        """The training samples of the whole run and those of one evaluation (None if 0). Every rank calls this.

        ``reads``: this rank reads them; where it does not, both are None. Raises ``UserError``.
        """
        ...

    def collate(self, shard: SequenceShard, *, whole_tokens: bool) -> Collate[Any]:
        """How samples become a microbatch, of which this rank holds ``shard`` of the sequence.

        ``whole_tokens``: with all tokens of the samples beside it. Samples that hold nothing give their numbers only.
        """
        ...
