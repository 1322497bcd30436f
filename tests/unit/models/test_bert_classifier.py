"""A BERT classifier against a plain PyTorch one with the same weights, with padding and dropped tokens."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.ltd.data.labelled_rows import SentenceBatch
from megatron.ltd.methods.base import Method, Samples
from megatron.ltd.models.bert import build_bert_chunks
from megatron.ltd.models.bert_classifier import BertClassifier
from megatron.ltd.models.encoder_config import BertModelConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.training.classification import Classification
from megatron.ltd.workloads.sizes import classifier_sizes
from tests.reference.plain_bert import PlainBERT, megatron_bert_tensors
from tests.reference.plain_gpt import PlainConfig
from tests.support import (
    VOCAB_SIZE,
    assert_gradients,
    core_config,
    dense,
    gradients_of,
    kept_positions,
    load_weights,
    random_ltd,
    small_model,
    stepper_of,
)

S, CLASSES, LAYERS = 16, 3, 5
CONFIG = PlainConfig(num_layers=LAYERS, vocab_size=VOCAB_SIZE, learned_positions=S)


def model_config(sentence_types: bool = True) -> BertModelConfig:
    return BertModelConfig(**{**vars(small_model(num_layers=LAYERS)), "bert_binary_head": sentence_types})


def build(mesh: Mesh, model: BertModelConfig) -> BertClassifier:
    kind = partial(BertClassifier, num_classes=CLASSES)
    (core,) = build_bert_chunks(kind, model, core_config(model, mesh), VOCAB_SIZE, mesh, seed=1)
    return core


def plain_classifier() -> PlainBERT:
    plain = PlainBERT(CONFIG, sentence_order=True)
    plain.order = nn.Linear(CONFIG.hidden_size, CLASSES)
    nn.init.normal_(plain.order.weight, std=0.2, generator=torch.Generator().manual_seed(5))
    return plain


def tensors_of(plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in our names, without the head for masked tokens."""
    named = megatron_bert_tensors(plain, CONFIG)
    return {name: tensor for name, tensor in named.items() if not name.startswith(("lm_head.", "output_layer."))}


def batches() -> list[SentenceBatch]:
    """Batches of two samples; the very last sample only fills its batch and has no weight."""
    generator, made = torch.Generator().manual_seed(3), []
    for number in range(3):
        lengths = torch.tensor([[4 + 5 * number], [16 - 4 * number]])
        padding_BS = torch.arange(S) >= lengths
        made.append(
            SentenceBatch(
                tokens_BS=torch.randint(1, VOCAB_SIZE, (2, S), generator=generator).masked_fill(padding_BS, 0),
                types_BS=((torch.arange(S) >= 3) & ~padding_BS).long(),
                padding_BS=padding_BS,
                labels_B=torch.tensor([number % CLASSES, 2]),
                weights_B=torch.tensor([1.0, float(number < 2)]),
                sample_ids_B=torch.arange(2 * number, 2 * number + 2) + 1000,
            )
        )
    return made


@pytest.mark.parametrize("drops", [False, True], ids=["dense", "random-LTD"])
def test_loss_and_every_gradient_equal_the_plain_bert(mesh: Mesh, drops: bool) -> None:
    model = model_config()
    method: Method = random_ltd(model, 6) if drops else dense(model)
    plain, core = plain_classifier(), build(mesh, model)
    load_weights(core, tensors_of(plain.state_dict()))
    objective = Classification(CLASSES, lambda model, batch: model(batch.tokens_BS, ~batch.padding_BS, batch.types_BS))
    stepper = stepper_of(core, method, mesh, objective)
    read = batches()
    result = stepper.train(iter(read), method.plan(0), 0, len(read))

    losses = []
    for batch in read:
        for row in range(2):
            real = int((~batch.padding_BS[row]).sum())
            kept_by_layer = kept_positions(method, Samples(batch.sample_ids_B), row)
            kept = {layer: kept_K[kept_K < real] for layer, kept_K in kept_by_layer.items()}
            _, logits_C = plain(batch.tokens_BS[row, :real], batch.types_BS[row, :real], kept=kept)
            if batch.weights_B[row]:
                losses.append(F.cross_entropy(logits_C[None], batch.labels_B[row : row + 1]))
    assert len(losses) == 5
    expected_loss = torch.stack(losses).mean()
    expected_loss.backward()
    assert result.loss == pytest.approx(float(expected_loss.detach()), rel=1e-6)
    assert_gradients(stepper, tensors_of(gradients_of(plain)))


@pytest.mark.parametrize("sentence_types", [True, False])
def test_parameters_are_counted_exactly(mesh: Mesh, sentence_types: bool) -> None:
    model = model_config(sentence_types)
    counted = classifier_sizes(model, VOCAB_SIZE, CLASSES).num_parameters
    assert counted == sum(parameter.numel() for parameter in build(mesh, model).parameters())


def test_the_head_has_dropout_only_in_training(mesh: Mesh) -> None:
    model = BertModelConfig(**{**vars(small_model(num_layers=LAYERS)), "hidden_dropout": 0.5})
    head, pooled = build(mesh, model).binary_head, torch.ones(2, model.hidden_size)
    assert head is not None
    assert not torch.equal(head(pooled), head(pooled))
    head.eval()
    assert torch.equal(head(pooled), F.linear(pooled, head.weight, head.bias))
