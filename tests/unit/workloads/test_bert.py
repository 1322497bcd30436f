"""BERT as a workload: refused flags, its loss over microbatches, and the special ids that methods keep."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megatron.ltd.data.bert_batch import BertBatch
from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.load import load_model
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.training.objective import MaskedLM
from tests.support import assert_differs, built, parse, pretrain, small_sentences, world
from tests.support_errors import refused

MODEL = "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32".split()
STEPS = "--micro-batch-size 4 --train-iters 1 --lr 1e-3 --eval-iters 0".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bert")


@pytest.fixture(scope="module")
def command(folder: Path) -> list[str]:
    prefix, vocabulary = small_sentences(folder)
    words = ["--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", vocabulary]
    return ["pretrain_bert_ltd.py", "--data-path", prefix, *words, *MODEL, *STEPS]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--context-parallel-size 2", ("--context-parallel-size 2",)),
        ("--tokenizer-type ByteTokenizer", ("--tokenizer-type ByteTokenizer",)),
        ("--seq-length 4", ("--seq-length 4", 5)),
        ("--mask-prob 1.5", ("--mask-prob 1.5",)),
        ("--reset-attention-mask", ("--reset-attention-mask",)),
    ],
)
def test_bad_flags_are_refused(command: list[str], flags: str, message: tuple[object, ...]) -> None:
    with refused(*message) as error:
        parse([*command, *flags.split()])
    assert "\n" not in str(error.value)


def test_the_error_of_a_missing_tokenizer_names_the_possible_types(command: list[str]) -> None:
    place = command.index("--tokenizer-type")
    without = command[:place] + command[place + 2 :]
    with refused("--tokenizer-type", "BertWordPieceLowerCase", "BertWordPieceCase"), built(without):
        pass


def test_documents_without_split_sentences_are_refused(command: list[str], folder: Path) -> None:
    """They are accepted when the only objective is that of masked tokens."""
    (folder / "whole.jsonl").write_text(json.dumps({"text": "the model. the tokens."}) + "\n")
    config = PreprocessConfig(input=(str(folder / "whole.jsonl"),), output_prefix=str(folder / "w"))
    files = TokenizerFiles("BertWordPieceLowerCase", vocab_file=command[command.index("--vocab-file") + 1])
    (prefix,) = preprocess(config, files).cards
    flags = [*command, "--data-path", prefix, "--split", "1", "--log-dir", str(folder / "log")]
    with refused("--split-sentences", "--bert-no-binary-head"), built(flags):
        pass
    with built(flags, "--bert-no-binary-head") as run:
        assert run.workload.num_parameters == sum(weight.numel() for weight in run.state.chunks[0].parameters())


def test_a_gpt_does_not_continue_from_a_bert(command: list[str], folder: Path) -> None:
    """Training stops before anything is written, and evaluation refuses the BERT as well."""
    pretrain(command, folder / "saved")
    flags = ["pretrain_gpt_ltd.py", *command[1:], "--load", str(folder / "saved")]
    with pytest.raises(UserError) as caught:
        pretrain(flags, folder / "gpt")
    assert_differs(str(caught.value), "model", "GPT", "BERT")
    assert not any((folder / "gpt").iterdir())
    with world() as mesh, refused("--load"):
        load_model(folder / "saved", TokenizerFiles(), ParallelConfig(device="cpu"), mesh)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("", [1, 2, 3, 4]), ("--token-bypass-special-ids 2 7", [2, 7]), ("--token-bypass-selector random", [])],
)
def test_importance_keeps_the_special_ids_of_the_tokenizer_or_the_flag(
    command: list[str], tmp_path: Path, flags: str, expected: list[int]
) -> None:
    with built(command, "--token-bypass", *flags.split(), "--log-dir", tmp_path) as run:
        assert run.method.settings["token_bypass_special_ids"] == expected
        assert not expected or run.method.special_ids == tuple(expected)


def test_special_ids_outside_the_vocabulary_are_refused(command: list[str]) -> None:
    with refused("--token-bypass-special-ids 99"), built(command, "--token-bypass", "--token-bypass-special-ids", 99):
        pass


def test_the_flops_of_a_step_are_an_encoders(command: list[str], tmp_path: Path) -> None:
    with built(command, "--log-dir", tmp_path) as run:
        hidden, vocabulary = 32, run.workload.shape.vocab_size
        layer = 2 * 32 * hidden * 4 * hidden + 4 * 32 * 32 * hidden + 2 * 2 * 32 * hidden * 4 * hidden
        head = 2 * 32 * hidden * (hidden + vocabulary)
        assert run.plan.flops(1) == 4 * 3 * (4 * layer + head)


def batch_of(hidden: list[int]) -> tuple[BertBatch, torch.Tensor, torch.Tensor]:
    """Samples of 8 tokens with ``hidden`` masked tokens each, and random outputs of a model."""
    generator = torch.Generator().manual_seed(len(hidden))
    shape = (len(hidden), 8)
    loss_mask_BS = (torch.arange(8) < torch.tensor(hidden)[:, None]).float()
    tokens_BS = torch.randint(0, 9, shape, generator=generator)
    batch = BertBatch(
        sample_ids_B=torch.arange(len(hidden)), tokens_BS=tokens_BS, types_BS=tokens_BS, labels_BS=tokens_BS,
        loss_mask_BS=loss_mask_BS, is_swapped_B=torch.tensor([0, 1, 1][: len(hidden)]),
    )  # fmt: skip
    return batch, torch.rand(shape, generator=generator), torch.randn(len(hidden), 2, generator=generator)


def test_the_loss_over_microbatches_is_berts() -> None:
    objective = MaskedLM(sentence_order=True)
    batch, losses, logits = batch_of([2, 2, 2])
    total, number, report = objective.loss(batch, (losses, logits))
    order = F.cross_entropy(logits, batch.is_swapped_B)
    assert float(total / number) == pytest.approx(float(losses[:, :2].mean() + order), rel=1e-6)
    assert report.shape == (objective.num_sums,) and number.dtype == torch.int32

    other = batch_of([1, 5])
    reports = [report, objective.loss(other[0], other[1:])[2]]
    measures = objective.measures(sum(reports).tolist())
    masked_lm = (losses[:, :2].sum() + other[1][0, :1].sum() + other[1][1, :5].sum()) / 12
    assert measures["masked_lm_loss"] == pytest.approx(float(masked_lm), rel=1e-6)
    assert measures["perplexity"] == pytest.approx(math.exp(measures["masked_lm_loss"]))
    assert measures["loss"] == pytest.approx(measures["masked_lm_loss"] + measures["sentence_order_loss"], rel=1e-6)
    right = [(answer.argmax(1) == part.is_swapped_B).float() for part, _, answer in ((batch, 0, logits), other)]
    assert measures["sentence_order_accuracy"] == pytest.approx(float(torch.cat(right).mean()))
    assert next(iter(measures)) == "loss"


def test_without_sentence_order_there_are_no_metrics_of_it() -> None:
    objective = MaskedLM(sentence_order=False)
    batch, losses, _ = batch_of([1, 3])
    total, number, report = objective.loss(batch, (losses, None))
    assert float(total) == pytest.approx(float(losses[0, :1].sum() + losses[1, :3].sum()), rel=1e-6) and number == 4
    assert objective.measures(report.tolist()).keys() == {"loss", "perplexity"}
