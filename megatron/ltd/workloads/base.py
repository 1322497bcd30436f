"""What a run trains: everything that differs between pretraining a GPT, pretraining a BERT and finetuning a ViT.

A ``Workload`` has checked its data; it builds the model, reads samples, makes microbatches, and has the training
objective. Its ``config.Entry`` creates it.

Parallelism, methods, schedules, optimizer, checkpoints and the loop do not depend on the workload, so that every
workload has all of them.
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
"""The id of the number of a model's classes in a checkpoint."""
_CLASS_NAMES = "class_names_fingerprint"


def class_order(names: Sequence[str]) -> dict[str, Any]:
    """The classes of the training data, by id, for ``Workload.order``; ``names`` identify them."""
    return {CLASS_COUNT: len(names), _CLASS_NAMES: hashlib.sha256("\n".join(names).encode()).hexdigest()[:6]}


def same_classes(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two ``Workload.order`` have the same classes."""
    return all(first.get(setting) == second.get(setting) for setting in (CLASS_COUNT, _CLASS_NAMES))


class Workload(Protocol):
    """A workload whose tokenizer and data are checked."""

    objective: Objective

    @property
    def identity(self) -> Mapping[str, Any]:
        """Settings, by id, that must be equal in two runs that share weights."""
        ...

    @property
    def order(self) -> Mapping[str, Any]:
        """Settings, by id, that decide the order of samples and which of their tokens are kept."""
        ...

    @property
    def fingerprints(self) -> Mapping[str, Sequence[str]]:
        """Fingerprints of the data, by id, for the log."""
        ...

    @property
    def sizes(self) -> ModelSizes:
        """The size of the model, equal to ``Entry.sizes``."""
        ...

    @property
    def shape(self) -> ModelShape:
        """The sizes of the model that the accounting needs."""
        return self.sizes.shape

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model, exactly."""
        return self.sizes.num_parameters

    @property
    def num_token_ids(self) -> int | None:
        """Number of ids that tokens have; None if tokens have no ids, or no loss of their own."""
        return None

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of special tokens except padding; empty if samples have only text."""
        return ()

    @property
    def every_layer_needs_data(self) -> bool:
        """Whether stages between the first and the last need data of the samples, such as an attention mask."""
        ...

    def eval_samples(self, global_batch_samples: int) -> dict[str, int]:
        """What is evaluated, and the samples of one evaluation, whole global batches; none disable evaluation.

        The keys are ``VALID``, or ``VALID/name`` for each of several validation sets, and ``TEST``.
        """
        ...

    def new_weights(self, stored: Mapping[str, Any]) -> tuple[str, ...]:
        """Prefixes of the names of parameters that ``--finetune`` does not load, but initializes randomly.

        ``stored`` is the run.json of the checkpoint, with ``identity``, ``order`` and ``config``.
        """
        return ()

    def open_imported(self, folder: Path) -> tuple[ImportedModel, Mapping[str, Any], Mapping[str, Any]]:
        """The Hugging Face model in ``folder``, its settings by id, and those of this run that must equal them.

        Raises ``UserError`` if the workload cannot start from such a model.
        """
        raise UserError(
            f"--load {folder}: is a Hugging Face model, and this command loads its own checkpoints only; give the "
            "folder of one"
        )

    def build_chunks(
        self, core_config: TransformerConfig, mesh: Mesh, *, entry_layers: frozenset[int]
    ) -> Sequence[MegatronModule]:
        """This process's part of the model: one stage, or the chunks of an interleaved pipeline.

        ``entry_layers``: the layers that are entry layers at some step (``StepPlan.entry_layers``).
        """
        ...

    def build_data(
        self, train_samples: int, eval_samples: Mapping[str, int], *, reads: bool
    ) -> tuple[SampleSource | None, Mapping[str, SampleSource]]:
        """The training samples of the whole run and those of ``eval_samples``. Every rank calls this.

        ``reads``: whether this rank reads them; if not, there are none. Raises ``UserError``.
        """
        ...

    def collate(self, shard: SequenceShard, *, whole_tokens: bool) -> Collate[Any]:
        """The function from samples to a microbatch, with this rank's ``shard`` of the sequence.

        ``whole_tokens``: with all tokens of the samples too. Samples without data give a microbatch of sample ids only.
        """
        ...
