"""The registry of workloads, and the flags of each. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.ltd.config import Entry
from megatron.ltd.data.config import BertDataConfig, DataConfig, ImageDataConfig, LabelledTextConfig
from megatron.ltd.errors import UserError
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.encoder_config import BertModelConfig, ViTConfig
from megatron.ltd.plan.parameters import ModelSizes
from megatron.ltd.tokenizers.build import planned_vocab_size
from megatron.ltd.tokenizers.config import GPT2_VOCAB_SIZE, WORDPIECE_TYPES, TokenizerConfig
from megatron.ltd.training.task_scores import TaskScoresConfig
from megatron.ltd.workloads.base import Workload
from megatron.ltd.workloads.sizes import bert_sizes, classifier_sizes, gpt_sizes, vit_sizes

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig


def _open_gpt(config: RunConfig) -> Workload:
    from megatron.ltd.workloads.gpt import GPT

    return GPT(config)


def _check_gpt(config: RunConfig) -> None:
    """Raises ``UserError`` for evaluations that are disabled, or impossible on this layout."""
    if config.data.full_validation and not config.training.eval_iters:
        raise UserError("--full-validation: --eval-iters 0 disables evaluation; remove one of the two")
    for name in ("pipeline_model_parallel_size", "context_parallel_size"):
        if config.scores.eval_tasks and getattr(config.parallel, name) > 1:
            raise UserError(
                f"--eval-tasks: not possible with --{name.replace('_', '-')} {getattr(config.parallel, name)}, because "
                "scoring during training needs whole samples and all layers on a process; score the checkpoints with "
                "tools/evaluate.py"
            )


def _open_bert(config: RunConfig) -> Workload:
    from megatron.ltd.workloads.bert import BERT

    return BERT(config)


def _open_bert_classifier(config: RunConfig) -> Workload:
    from megatron.ltd.workloads.bert_classifier import BertClassification

    return BertClassification(config)


def _check_bert(config: RunConfig) -> None:
    """Raises ``UserError`` for what BERT cannot do."""
    if config.parallel.context_parallel_size > 1:
        raise UserError(
            f"--context-parallel-size {config.parallel.context_parallel_size}: Megatron-Core's BERT needs the whole "
            "sample on every process; use 1, and --sequence-parallel to split activations"
        )
    if config.tokenizer.tokenizer_type not in (None, *WORDPIECE_TYPES):
        raise UserError(
            f"--tokenizer-type {config.tokenizer.tokenizer_type}: BERT needs [CLS], [SEP], [MASK] and [PAD]; use "
            f"{' or '.join(WORDPIECE_TYPES)}"
        )


def _check_bert_classifier(config: RunConfig) -> None:
    """Raises ``UserError`` for what BERT cannot do, and for flags of a loss that a classifier does not have."""
    _check_bert(config)
    if config.model.cross_entropy_loss_fusion:
        raise UserError("--cross-entropy-loss-fusion: it fuses the loss of tokens, and a classifier has none; drop it")


def _open_vit(config: RunConfig) -> Workload:
    from megatron.ltd.workloads.vit import ViT

    return ViT(config)


def _check_vit(config: RunConfig) -> None:
    """Raises ``UserError`` if no images are given; a plan needs them only to count their classes."""
    if not config.planning.plan or config.model.num_classes is None:
        config.data.check_given()


def _vocab_size(config: RunConfig, assumed: int | None = None) -> int:
    return planned_vocab_size(config.tokenizer, config.parallel.tensor_model_parallel_size, assumed)


def _gpt_sizes(config: RunConfig) -> ModelSizes:
    return gpt_sizes(config.model, _vocab_size(config, GPT2_VOCAB_SIZE))


def _bert_sizes(config: RunConfig) -> ModelSizes:
    return bert_sizes(config.model, _vocab_size(config))


def _classifier_sizes(config: RunConfig) -> ModelSizes:
    """The training data are read, whose labels are the classes."""
    from megatron.ltd.data.labelled_text import read_labelled

    data: LabelledTextConfig = config.data
    labelled = read_labelled(str(data.train_data_path), data.columns, flag="--train-data-path")
    return classifier_sizes(config.model, _vocab_size(config), len(labelled.classes))


def _vit_sizes(config: RunConfig) -> ModelSizes:
    """The number of classes is ``--num-classes``, else that of the training images, which are read."""
    if config.model.num_classes is not None:
        return vit_sizes(config.model, config.model.num_classes)
    from megatron.ltd.data.images import open_images  # imports torch

    return vit_sizes(config.model, len(open_images(config.data, config.model)[0].classes))


GPT = Entry(
    id="gpt",
    name="GPT",
    description="Pretrain a GPT on Megatron-Core: dense, or with a method that computes less.",
    parts={"model": ModelConfig, "tokenizer": TokenizerConfig, "data": DataConfig, "scores": TaskScoresConfig},
    open=_open_gpt,
    sizes=_gpt_sizes,
    check=_check_gpt,
)

BERT = Entry(
    id="bert",
    name="BERT",
    description="Pretrain a BERT on Megatron-Core: dense, or with a method that computes less.",
    parts={"model": BertModelConfig, "tokenizer": TokenizerConfig, "data": BertDataConfig},
    open=_open_bert,
    sizes=_bert_sizes,
    check=_check_bert,
)

BERT_CLASSIFIER = Entry(
    id="bert_classifier",
    name="BERT classifier",
    description="Finetune a BERT on labelled sentences: dense, or with a method that computes less.",
    parts={"model": BertModelConfig, "tokenizer": TokenizerConfig, "data": LabelledTextConfig},
    open=_open_bert_classifier,
    sizes=_classifier_sizes,
    check=_check_bert_classifier,
    weights=BERT.id,
)

VIT = Entry(
    id="vit",
    name="ViT",
    description="Finetune a vision transformer on Megatron-Core: dense, or with a method that computes less.",
    parts={"model": ViTConfig, "data": ImageDataConfig},
    open=_open_vit,
    sizes=_vit_sizes,
    check=_check_vit,
)

WORKLOADS = {entry.id: entry for entry in (GPT, BERT, BERT_CLASSIFIER, VIT)}
