"""Finetuning BERT on labelled sentences: the origin of its weights, its evaluation, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.errors import UserError
from megatron.ltd.training.loop import evaluate
from tests.support import Finished, assert_differs, built, parse, pretrain, small_sentences
from tests.support_errors import refused

MODEL = "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32".split()
STEPS = "--micro-batch-size 4 --train-iters 6 --lr 3e-3 --seed 5".split()
RANDOM_LTD = "--random-ltd --ltd-min-kept-tokens 8 --ltd-granularity 8 --ltd-growth-steps 5".split()
NUM_VALID = 19  # not a multiple of the batch size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classifier")


@pytest.fixture(scope="module")
def pretraining(folder: Path) -> list[str]:
    prefix, vocabulary = small_sentences(folder)
    words = ["--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", vocabulary]
    return ["pretrain_bert_ltd.py", "--data-path", prefix, *words, *MODEL, *STEPS, "--eval-iters", "0"]


@pytest.fixture(scope="module")
def command(folder: Path, pretraining: list[str]) -> list[str]:
    """A command on sentences whose class is whether they contain "every token"."""
    draw = random.Random(3)
    for name, size in (("train", 50), ("valid", NUM_VALID)):
        words = [draw.choices(("the model", "every token", "skips", "this layer"), k=3) for _ in range(size)]
        rows = [{"text": " ".join(row), "label": "yes" if "every token" in row else "no"} for row in words]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = pretraining[pretraining.index("--tokenizer-type") : pretraining.index("--num-layers")]
    data = ["--train-data-path", str(folder / "train.jsonl"), "--valid-data-path", str(folder / "valid.jsonl")]
    return ["finetune_bert_ltd.py", *data, *words, *MODEL, *STEPS]


@pytest.fixture(scope="module")
def pretrained(pretraining: list[str], folder: Path) -> Finished:
    return pretrain(pretraining, folder / "pretrained")


@pytest.fixture(scope="module")
def tuned(command: list[str], folder: Path) -> Finished:
    """A classifier, from random weights."""
    return pretrain(command, folder / "tuned")


def weights(command: list[str], log: Path, *flags: object) -> dict[str, torch.Tensor]:
    """Those of a run before its first step."""
    with built(command, "--log-dir", log, *flags) as run:
        return {name: weight.detach().clone() for name, weight in run.state.chunks[0].module.named_parameters()}


@pytest.mark.parametrize("heads", [(), ("--bert-no-binary-head",)], ids=["sentence order", "masked tokens alone"])
def test_the_encoder_is_pretrained_and_the_head_is_new(
    command: list[str], pretraining: list[str], pretrained: Finished, tmp_path: Path, heads: tuple[str, ...]
) -> None:
    source = pretrain([*pretraining, *heads], tmp_path / "pretrained") if heads else pretrained
    stored, fresh = source.tensors(6), weights(command, tmp_path, *heads)
    loaded = weights(command, tmp_path, *heads, "--load", source.folder, "--finetune")
    anew = {name for name in loaded if torch.equal(loaded[name], fresh[name]) and "weight" in name}
    pooler = {"pooler.dense.weight"} if heads else set()
    assert anew == {"binary_head.weight"} | pooler
    for name in ("embedding.word_embeddings.weight", "embedding.position_embeddings.weight"):
        assert torch.equal(loaded[name], stored[name])
    if not heads:
        assert torch.equal(loaded["pooler.dense.weight"], stored["pooler.dense.weight"])
    assert not any(name.startswith(("lm_head", "output_layer")) for name in loaded)


def test_finetuning_with_a_method_learns_and_resumes_bit_for_bit(command: list[str], tmp_path: Path) -> None:
    flags = [*command, *RANDOM_LTD, "--train-iters", "60", "--eval-interval", "60"]
    straight = pretrain(flags, tmp_path / "straight")
    (last,) = straight.kind("validation")
    assert last["accuracy"] > 0.9 and last["f1"] > 0.9 and last["loss"] < 0.4
    assert straight.column("step_flops")[0] < straight.column("dense_step_flops")[0]
    pretrain([*flags, "--exit-interval", "25"], tmp_path / "parts")
    resumed = pretrain([*flags, "--load", str(tmp_path / "parts")], tmp_path / "parts")
    assert resumed.column("loss") == straight.column("loss")
    expected, found = straight.tensors(60), resumed.tensors(60)
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_command_starts_from_pretrained_weights_and_resumes(
    command: list[str], pretrained: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A launcher that restarts the same command gives the same losses as a run that is never stopped."""
    load = str(pretrained.folder)
    straight = pretrain([*command, "--load", load, "--finetune"], tmp_path / "straight")
    folder = tmp_path / "parts"
    parts = [*command, "--exit-interval", "4", "--load", str(folder), "--pretrained-checkpoint", load]
    for _ in range(2):
        found = pretrain(parts, folder)
    assert "not loaded from the checkpoint: " in capsys.readouterr().out
    assert found.column("loss") == straight.column("loss") and len(found.column("loss")) == 6


def test_every_held_out_sentence_is_evaluated_once(command: list[str], tmp_path: Path) -> None:
    """The metrics equal those computed by hand, one sentence at a time."""
    with built(command, "--log-dir", tmp_path) as run:
        measures = evaluate(run)
        workload: Any = run.workload
        model = run.state.chunks[0].eval()
        right, losses = 0, []
        for row in map(workload._rows(workload.valid).__getitem__, range(NUM_VALID)):
            real = ~row["padding"][None]
            with torch.no_grad():
                logits = model(row["tokens"][None], real, row["types"][None])
            right += int(logits.argmax()) == row["label"]
            losses.append(float(-logits.log_softmax(dim=1)[0, row["label"]]))
        assert measures["accuracy"] == pytest.approx(right / NUM_VALID)
        assert measures["loss"] == pytest.approx(sum(losses) / NUM_VALID, rel=1e-5)
        assert workload.num_parameters == sum(weight.numel() for weight in model.parameters())


def test_other_classes_are_refused_or_get_a_new_head(
    command: list[str], tuned: Finished, folder: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for row, label in zip(rows, ("a", "b", "c"), strict=False):
        row["label"] = label
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = [*command, "--train-data-path", str(tmp_path / "other.jsonl")]
    with pytest.raises(UserError) as caught, built(other, "--load", tuned.folder, "--log-dir", tmp_path):
        pass
    assert_differs(str(caught.value), "class_count", "5", "2")
    name, load = "binary_head.weight", ("--load", tuned.folder, "--finetune")
    assert weights(other, tmp_path, *load)[name].shape == (5, 32)
    assert torch.equal(weights(command, tmp_path, *load)[name], tuned.tensors(6)[name])


@pytest.mark.parametrize("flags", [(), ("--untie-embeddings-and-output-weights",)], ids=["tied", "untied"])
def test_pretraining_continues_from_a_classifiers_encoder(
    command: list[str], pretraining: list[str], tuned: Finished, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """The heads of pretraining are new, because a classifier does not have them."""
    source = pretrain([*command, *flags], tmp_path / "tuned") if flags else tuned
    fresh = weights(pretraining, tmp_path, *flags)
    loaded = weights(pretraining, tmp_path, *flags, "--load", source.folder, "--finetune")
    anew = {name for name in loaded if torch.equal(loaded[name], fresh[name]) and "norm" not in name}
    anew = {name for name in anew if name.endswith("weight")}
    output = {"output_layer.weight"} if flags else set()
    assert anew == {"lm_head.dense.weight", "binary_head.weight"} | output


def without(flag: str, command: list[str]) -> list[str]:
    place = command.index(flag)
    return command[:place] + command[place + 2 :]


def test_other_columns_are_other_data(command: list[str], folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps({**row, "other": row["text"]}) + "\n" for row in rows))
    flags = without("--valid-data-path", [*command, "--train-data-path", str(tmp_path / "two.jsonl")])
    flags += ["--eval-iters", "0"]
    saved = pretrain(flags, tmp_path / "saved").folder
    with pytest.raises(UserError) as caught, built(flags, "--text-column", "other", "--load", saved):
        pass
    assert_differs(str(caught.value), "text_column", "other", "text")


def test_a_shorter_length_keeps_the_pretrained_positions(
    command: list[str], pretrained: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--use-checkpoint-args takes their number from the checkpoint; a start from random weights prints a hint."""
    place = command.index("--num-layers")
    flags = [*command[:place], *STEPS, "--load", str(pretrained.folder), "--use-checkpoint-args"]
    with built(flags, "--finetune", "--seq-length", 16, "--log-dir", tmp_path) as run:
        assert run.state.chunks[0].module.embedding.position_embeddings.weight.shape == (32, 32)
        assert run.workload.shape.seq_length == 16
    hint = "--load and --finetune to start from a pretrained BERT"
    assert hint not in capsys.readouterr().out
    with refused("--finetune"), built(flags):
        pass
    with built(command, "--log-dir", tmp_path):
        assert hint in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--token-bypass"], ("--token-bypass-selector",)),
        (["--valid-data-path", "no.jsonl"], ("--valid-data-path", "no.jsonl")),
        (["--context-parallel-size", "2"], ("--context-parallel-size 2",)),
        (["--tokenizer-type", "ByteTokenizer"], ("--tokenizer-type ByteTokenizer",)),
        (["--label-column", "text"], ("--label-column",)),
        (["--label-column", "gold"], ("train.jsonl:1", "gold")),
    ],
)
def test_bad_flags_are_refused(
    command: list[str], tmp_path: Path, flags: list[str], message: tuple[object, ...]
) -> None:
    with refused(*message) as error, built(command, *flags, "--log-dir", tmp_path):
        pass
    assert "\n" not in str(error.value)


def test_missing_data_are_refused(command: list[str], tmp_path: Path) -> None:
    no_valid = without("--valid-data-path", command)
    with refused("--valid-data-path"), built(no_valid):
        pass
    with built(no_valid, "--eval-iters", 0, "--log-dir", tmp_path) as run:
        assert not run.eval_data
    with refused("--train-data-path"):
        parse(without("--train-data-path", no_valid))
