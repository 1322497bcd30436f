"""The GPT-3 examples: their commands contain the published numbers, and their READMEs agree with the commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.plan.clock import RunClock
from tests.docs.documents import code_blocks
from tests.docs.example_scripts import LENGTHS, RECIPE, SIZES, readme, run, steps_until, training_command


def length_words(length: str) -> list[str]:
    """The settings name of a length; 300B is the recipe's default and needs none."""
    return [] if length == "300B" else [length]


CASES = [
    *((*case, "random_ltd") for case in RECIPE),
    *((size, "150B", method) for size in SIZES for method in ("random_ltd_blocks", "dense")),
]


@pytest.mark.parametrize(("size", "length", "method"), CASES)
def test_every_number_of_the_recipe_is_in_the_command(
    repository: Path, tmp_path: Path, size: str, length: str, method: str
) -> None:
    lr, growth_steps = RECIPE[size, length]
    flags = training_command(repository, tmp_path, size, method, *length_words(length), GPUS_PER_NODE="8")
    config = parse_run_config(flags)
    tokens = int(length[:-1]) * 10**9
    check_shape(config, size)
    check_training(config, tokens, lr)
    random_ltd = config.methods["random_ltd"]
    assert random_ltd.random_ltd == (method != "dense")
    assert random_ltd.ltd_block_size == (16 if method == "random_ltd_blocks" else 1)
    if random_ltd.random_ltd:
        kept = (random_ltd.ltd_layers, random_ltd.ltd_min_kept_tokens, random_ltd.ltd_granularity)
        assert kept == ("2-23", 128, 16) and random_ltd.ltd_growth_steps == growth_steps
    clock = RunClock.build(
        config.model.shape(50304), config.training.global_batch_size, config.build_method(), config.training,
        config.optimizer,
    )  # fmt: skip
    batch, growth = config.training.global_batch_size, growth_steps if random_ltd.random_ltd else None
    assert clock.plan().num_steps == steps_until(tokens, batch, growth)
    assert os.listdir(tmp_path) == []


def check_shape(config: RunConfig, size: str) -> None:
    model = config.model
    hidden_size, init_std = {"1.3b": (2048, 0.013), "350m": (1024, 0.018)}[size]
    assert (model.num_layers, model.hidden_size, model.num_attention_heads) == (24, hidden_size, 16)
    assert (model.seq_length, model.max_position_embeddings, model.init_method_std) == (2048, 2048, init_std)
    assert (model.attention_dropout, model.hidden_dropout) == (0.1, 0.1)
    assert config.training.global_batch_size == {"1.3b": 512, "350m": 256}[size]


def check_training(config: RunConfig, tokens: int, lr: float) -> None:
    training, optimizer = config.training, config.optimizer
    assert (training.train_tokens, training.seed, config.data.split) == (tokens, 1234, "949,50,1")
    assert (optimizer.lr, optimizer.min_lr, optimizer.lr_decay_style) == (lr, 1e-6, "cosine")
    decay = (optimizer.lr_decay_tokens, optimizer.lr_decay_iters, optimizer.lr_decay_samples)
    assert optimizer.lr_warmup_tokens == 3 * 10**9 and decay == (None, None, None), "to the end of the run"
    assert (optimizer.adam_beta1, optimizer.adam_beta2, optimizer.adam_eps) == (0.9, 0.95, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_grad) == (0.1, 1.0)
    assert config.precision.bf16 and config.tokenizer.tokenizer_type == "GPT2BPETokenizer"
    parallel = config.parallel
    assert parallel.use_distributed_optimizer and parallel.overlap_grad_reduce and parallel.overlap_param_gather
    assert config.global_batch_size(parallel.data_parallel_size(8)) == training.global_batch_size
    assert config.checkpoint.save == config.checkpoint.load and config.checkpoint.keep_last == 3


def test_flags_and_files_change_the_command(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "blend.yaml").write_text("data-path: [0.7, /data/pile_text_document, 0.3, books]  # most\n")
    words = ["1.3b", "random_ltd", "150B", "fp16", "blend.yaml", "--lr", "1e-4", "--tensor-model-parallel-size", "2"]
    config = parse_run_config_in(tmp_path, training_command(repository, tmp_path, *words))
    assert config.parallel.tensor_model_parallel_size == 2
    assert config.data.data_path == ("0.7", "/data/pile_text_document", "0.3", "books")
    assert config.precision.fp16 and not config.precision.bf16 and config.precision.initial_loss_scale == 2**11
    assert config.optimizer.lr == 1e-4 and config.methods["random_ltd"].ltd_growth_steps == 100_000
    assert config.checkpoint.save == "runs/gpt3-1.3b/random_ltd-150B-fp16-blend"


def parse_run_config_in(folder: Path, flags: list[str]) -> RunConfig:
    """The run configuration that the flags give in the working directory ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return parse_run_config(flags)


def test_planning_replaces_a_setting_of_the_recipe(repository: Path, tmp_path: Path) -> None:
    for question, answer in (
        (["--plan-target-saving", "0.333"], "--ltd-growth-steps"),
        (["--plan-gpu-hours", "3000"], "--train-tokens"),
    ):
        ended = run(repository, tmp_path, "gpt3/pretrain.sh", "350m", "random_ltd", "150B", *question, DRY_RUN="1")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert re.search(rf"^answer +{answer} \d+ .*\({' '.join(question)}\)$", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize("size", SIZES)
def test_the_readmes_plan_is_what_the_command_shows(repository: Path, tmp_path: Path, size: str) -> None:
    ended = run(repository, tmp_path, "gpt3/pretrain.sh", size, "random_ltd", DRY_RUN="1")
    assert (ended.returncode, ended.stderr) == (0, "")
    (block,) = code_blocks(readme(repository, size), "text")
    assert block == ended.stdout.partition("\n\n")[2]


@pytest.mark.parametrize("size", SIZES)
def test_the_readmes_table_of_lengths(repository: Path, size: str) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme(repository, size).splitlines()]
    found = {row[0].strip("`"): row[1:] for row in rows if row and row[0].strip("`") in LENGTHS}
    assert tuple(found) == LENGTHS
    batch = {"1.3b": 512, "350m": 256}[size]
    for length, (tokens, lr, growth_steps, ltd_steps, dense_steps, raw_tokens) in found.items():
        billions = int(length[:-1])
        growth = RECIPE[size, length][1]
        steps = steps_until(billions * 10**9, batch, growth)
        assert (tokens, float(lr), growth_steps) == (f"{billions} B", RECIPE[size, length][0], f"{growth:,}")
        assert (ltd_steps, dense_steps) == (f"{steps:,}", f"{steps_until(billions * 10**9, batch, None):,}")
        assert raw_tokens == f"{steps * batch * 2048 / 1e9:.1f} B"


def test_the_readmes_flags_that_may_follow_the_variant(repository: Path, tmp_path: Path) -> None:
    sentence = readme(repository, "1.3b").partition("What follows the names goes to")[2].partition("\n\n")[0]
    more = [word for code in re.findall(r"`(--[^`]*)`", sentence) for word in code.split()]
    assert {"--wandb-project", "--async-save", "--eval-tasks"} <= set(more)
    parse_run_config(training_command(repository, tmp_path, "1.3b", "random_ltd", *more))


def test_the_readmes_table_of_memory(repository: Path, tmp_path: Path) -> None:
    rows = re.findall(r"^\| `(--micro-batch-size .*)` \| (.* GiB) \|$", readme(repository, "1.3b"), re.MULTILINE)
    assert len(rows) == 4
    for flags, memory in rows:
        words = ["1.3b", "random_ltd", "--plan-gpus", "8", *flags.split()]
        ended = run(repository, tmp_path, "gpt3/pretrain.sh", *words, DRY_RUN="1")
        assert re.search(rf"^  in all +{re.escape(memory)} ", ended.stdout, re.MULTILINE), flags


@pytest.mark.parametrize("size", SIZES)
def test_the_readmes_commands_exist(repository: Path, size: str) -> None:
    """The scripts (also those given to Slurm), the settings files and the tools' flags exist."""
    blocks = "".join(code_blocks(readme(repository, size), "bash")).replace("\\\n", " ")
    paths = re.findall(r"\b((?:examples|tools)/\S+\.(?:sh|py|sbatch))", blocks)
    assert len(paths) >= 6 and all((repository / path).is_file() for path in paths)
    named = re.findall(r"pretrain\.sh (\S+) ((?:[a-z_]\w* ?|\d+B ?)+)", blocks)
    assert len(named) >= 3
    for other_size, names in named:
        folders = [repository / "examples" / folder for folder in ("gpt3", f"gpt3_{other_size}")]
        assert all(any((folder / f"{name}.yaml").is_file() for folder in folders) for name in names.split())
    for tool, given in re.findall(r"python (tools/\w+\.py)(.*)", blocks):
        command = [sys.executable, str(repository / tool), "--help"]
        shown = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True, text=True, check=True
        ).stdout
        assert set(re.findall(r"(--[\w-]+)", given)) <= set(re.findall(r"(--[\w-]+)", shown))
