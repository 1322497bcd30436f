"""The commands on the pages about training, planning, data and BERT: they parse and do what the page says."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest
from gpu.cases import check_run_flags
from gpu.config import GpuConfig

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.data.merge import MergeConfig
from megatron.ltd.data.preprocess import PreprocessConfig
from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig
from megatron.ltd.flags import add_flags, read_flags
from megatron.ltd.launch import launch
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.tokenizers.config import TokenizerFiles, padded_vocab_size
from megatron.ltd.workloads import BERT, BERT_CLASSIFIER
from tests.docs.documents import code_blocks


def page(repository: Path, name: str) -> str:
    return (repository / "docs" / f"{name}.md").read_text(encoding="utf-8")


def blocks_with(text: str, word: str) -> list[str]:
    return [block for block in code_blocks(text, "bash") if word in block]


def training_flags(repository: Path) -> list[str]:
    """The flags of the training command for the published model."""
    (command,) = blocks_with(page(repository, "training"), "pretrain_gpt_ltd.py --bf16")
    return shlex.split(command.split("pretrain_gpt_ltd.py")[1].replace("\\\n", " "))


def parsed(block: str, script: str, *config_classes: type) -> argparse.Namespace:
    """The parsed flags of the call of ``script`` in ``block``."""
    parser = argparse.ArgumentParser()
    for config_class in config_classes:
        add_flags(parser, config_class)
    command = block.split(script)[1].replace("\\\n", " ").partition("\n")[0]
    return parser.parse_args(shlex.split(command))


def test_the_planning_commands_answer(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Append each planning command to the training command for 64 GPUs, without the flag whose value is computed."""
    (block,) = blocks_with(page(repository, "planning"), "--plan-target-saving")
    given = [*training_flags(repository), "--vocab-size", "50257"]
    found = []
    for line in block.splitlines():
        flags, _, promise = line.partition(" ... ")[2].partition("#")
        asked_for = [word for word in promise.split() if word.startswith("--")]
        kept = [word for name in asked_for for word in (name, given[given.index(name) + 1])]
        more = ["--plan-gpus", "64"] if "--plan-gpus" not in flags else []
        launch(parse_run_config([word for word in given if word not in kept] + shlex.split(flags) + more))
        said = capsys.readouterr().out
        assert "memory of a" in said and all(f"{name} " in said for name in asked_for)
        found += asked_for
    assert found == ["--ltd-growth-steps", "--train-tokens"]


def test_the_training_command_parses_and_plans_what_the_text_says(repository: Path) -> None:
    config = parse_run_config(training_flags(repository))
    shape = config.model.shape(padded_vocab_size(50257, config.tokenizer.make_vocab_size_divisible_by, 2))
    clock = RunClock.build(shape, config.global_batch_size(4), config.build_method(), config.training, config.optimizer)
    assert f"{clock.plan().num_steps:,} steps" in " ".join(page(repository, "training").split())


def test_the_methods_page_names_the_published_growth(repository: Path) -> None:
    config = parse_run_config(training_flags(repository))
    clock = RunClock.build(
        config.model.shape(50304), config.global_batch_size(4), config.build_method(), config.training, config.optimizer
    )
    growth, length = config.methods["random_ltd"].ltd_growth_steps, clock.plan().num_steps
    assert f"{growth:,} of {length:,} steps" in " ".join(page(repository, "methods").split())
    assert config.methods["random_ltd"].ltd_min_kept_tokens * 16 == config.model.seq_length  # "a sixteenth"


def test_the_data_commands_have_only_flags_that_exist(repository: Path) -> None:
    text = page(repository, "your-data")
    whole, part = blocks_with(text, "preprocess_data.py")
    commands = [parsed(block, "preprocess_data.py", PreprocessConfig, TokenizerFiles) for block in (whole, part)]
    assert all(flags.tokenizer_type == "GPT2BPETokenizer" and flags.append_eod for flags in commands)
    merged = parsed(part, "merge_datasets.py", MergeConfig)
    assert merged.output_prefix == f"{commands[0].output_prefix}_text_document"
    (block,) = blocks_with(text, "train_tokenizer.py")
    trained = read_flags(parsed(block, "train_tokenizer.py", TrainTokenizerConfig), TrainTokenizerConfig)
    assert str(trained.path) == "corpus.model"


def test_the_commands_for_bert_parse_and_fit_together(repository: Path) -> None:
    (block,) = blocks_with(page(repository, "bert"), "pretrain_bert_ltd.py")
    trained = parsed(block, "train_tokenizer.py", TrainTokenizerConfig)
    prepared = parsed(block, "preprocess_data.py", PreprocessConfig, TokenizerFiles)
    assert prepared.tokenizer_type == "BertWordPieceLowerCase" and prepared.split_sentences
    config = parse_run_config(shlex.split(block.split("pretrain_bert_ltd.py")[1].replace("\\\n", " ")), BERT)
    vocabulary = str(read_flags(trained, TrainTokenizerConfig).path)
    assert vocabulary == config.tokenizer.vocab_file == prepared.vocab_file
    shape = config.model.shape(padded_vocab_size(30522, config.tokenizer.make_vocab_size_divisible_by, 1))
    clock = RunClock.build(shape, config.global_batch_size(8), config.build_method(), config.training, config.optimizer)
    assert clock.plan().num_steps == 100_000

    (block,) = blocks_with(page(repository, "bert"), "finetune_bert_ltd.py")
    flags = shlex.split(block.split("finetune_bert_ltd.py")[1].replace("\\\n", " "))
    flags.remove("--use-checkpoint-args")  # there is no checkpoint here
    tuned = parse_run_config(flags, BERT_CLASSIFIER)
    assert tuned.checkpoint.load == config.checkpoint.save and tuned.checkpoint.finetune
    assert tuned.model.seq_length < config.model.seq_length


def test_the_commands_of_a_gpu_hour_parse_and_go_on_in_one_folder(repository: Path) -> None:
    text = (repository / "tools" / "benchmark" / "README.md").read_text(encoding="utf-8")
    (block,) = blocks_with(text, "gpu.py")
    lines = [line.partition("#")[0] for line in block.splitlines() if "gpu.py" in line]
    tiny, first, rest, fp8 = (read_flags(parsed(line, "gpu.py", GpuConfig), GpuConfig) for line in lines)
    assert tiny.tiny and not first.tiny and tiny.output != first.output == rest.output
    assert (first.visits, first.shapes) == (1, ("1.3b",)) and set(first.shapes) < set(rest.shapes)
    assert fp8.output not in (tiny.output, rest.output) and check_run_flags(fp8) == "float8"
