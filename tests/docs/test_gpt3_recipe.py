"""The GPT-3 examples: the published numbers in their commands, and their cards."""

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
from tests.docs.gpt3_scripts import RECIPE, SHARED, SIZES, VARIANTS, readme, run, steps_until, training_command


@pytest.mark.parametrize("method", ["random_ltd", "random_ltd_blocks", "dense"])
@pytest.mark.parametrize(("size", "variant"), RECIPE)
def test_every_number_of_the_recipe_is_in_the_command(
    repository: Path, tmp_path: Path, size: str, variant: str, method: str
) -> None:
    lr, growth_steps = RECIPE[size, variant]
    flags = training_command(repository, tmp_path, f"{size}/pretrain_{method}.sh", variant, GPUS_PER_NODE="8")
    config = parse_run_config(flags)
    check_shape(config, size)
    check_training(config, int(variant[:-1]) * 10**9, lr)
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
    assert clock.plan().num_steps == steps_until(int(variant[:-1]) * 10**9, batch, growth)
    assert os.listdir(tmp_path) == []


def check_shape(config: RunConfig, size: str) -> None:
    model = config.model
    hidden_size, init_std = {"gpt3_1.3b": (2048, 0.013), "gpt3_350m": (1024, 0.018)}[size]
    assert (model.num_layers, model.hidden_size, model.num_attention_heads) == (24, hidden_size, 16)
    assert (model.seq_length, model.max_position_embeddings, model.init_method_std) == (2048, 2048, init_std)
    assert (model.attention_dropout, model.hidden_dropout) == (0.1, 0.1)
    assert config.training.global_batch_size == {"gpt3_1.3b": 512, "gpt3_350m": 256}[size]


def check_training(config: RunConfig, tokens: int, lr: float) -> None:
    training, optimizer = config.training, config.optimizer
    assert (training.train_tokens, training.seed, config.data.split) == (tokens, 1234, "949,50,1")
    assert (optimizer.lr, optimizer.min_lr, optimizer.lr_decay_style) == (lr, 1e-6, "cosine")
    assert (optimizer.lr_warmup_tokens, optimizer.lr_decay_tokens) == (3 * 10**9, tokens)
    assert (optimizer.adam_beta1, optimizer.adam_beta2, optimizer.adam_eps) == (0.9, 0.95, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_grad) == (0.1, 1.0)
    assert config.precision.bf16 and config.tokenizer.tokenizer_type == "GPT2BPETokenizer"
    parallel = config.parallel
    assert parallel.use_distributed_optimizer and parallel.overlap_grad_reduce and parallel.overlap_param_gather
    assert config.global_batch_size(parallel.data_parallel_size(8)) == training.global_batch_size
    assert config.checkpoint.save == config.checkpoint.load and config.checkpoint.keep_last == 3


def test_settings_change_the_command(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "blend.txt").write_text("0.7 /data/pile_text_document  # most\n0.3 /data/books_text_document\n")
    settings = {
        "TENSOR_PARALLEL": "2", "PRECISION": "fp16", "RECOMPUTE": "full", "BLEND": "blend.txt", "LR": "1e-4",
    }  # fmt: skip
    script = "gpt3_1.3b/pretrain_random_ltd.sh"
    flags = training_command(repository, tmp_path, script, "150B", "--lr-warmup-tokens", "5", **settings)
    config = parse_run_config(flags)
    assert config.parallel.tensor_model_parallel_size == 2
    assert config.data.data_path == ("0.7", "/data/pile_text_document", "0.3", "/data/books_text_document")
    assert config.precision.fp16 and config.precision.initial_loss_scale == 2**11
    assert config.recompute.recompute_granularity == "full"
    assert config.optimizer.lr == 1e-4 and config.optimizer.lr_warmup_tokens == 5
    flags = training_command(repository, tmp_path, script, "150B", RECOMPUTE="mlp", DATA_PATH="2 a 1e-1 /b")
    config = parse_run_config(flags)
    assert config.recompute.recompute_modules == ("mlp",) and config.data.data_path == (
        "2",
        f"{tmp_path}/a",
        "1e-1",
        "/b",
    )


def test_what_the_plan_is_asked_is_not_told_to_it(repository: Path, tmp_path: Path) -> None:
    for question, answer in (
        ("--plan-target-saving 0.333", "--ltd-growth-steps"),
        ("--plan-gpu-hours 3000", "--train-tokens"),
    ):
        settings = {"DRY_RUN": "1", "PLAN_FLAGS": question}
        ended = run(repository, tmp_path, "gpt3_350m/pretrain_random_ltd.sh", "150B", **settings)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert re.search(rf"^answer +{answer} \d+ .*\({question}\)$", ended.stdout, re.MULTILINE)
        assert f" {answer} " in ended.stdout.partition("\n")[0]  # the command is the recipe's


@pytest.mark.parametrize("size", SIZES)
def test_slurm_runs_the_scripts_of_the_folder(repository: Path, tmp_path: Path, size: str) -> None:
    (tmp_path / "scontrol").write_text("#!/usr/bin/env bash\necho n0\n")
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "n0", "SLURM_SUBMIT_DIR": str(repository), "DRY_RUN": "1",
    }  # fmt: skip
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "16"}
    ended = run(repository, tmp_path, f"{size}/slurm.sbatch", "prepare_data.sh", **slurm, **array, INPUT="/a.jsonl")
    srun, command = ended.stdout.splitlines()
    assert srun.endswith(f"bash {repository}/examples/{size}/prepare_data.sh ")
    assert "--input /a.jsonl " in command and "--shard 3/16 " in command
    assert "parts/corpus-0003-of-0016 " in command
    ended = run(repository, tmp_path, f"{size}/slurm.sbatch", "pretrain.sh", **slurm)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert f"'pretrain.sh' is no script of {repository}/examples/{size}: submit from the checkout" in ended.stderr


@pytest.mark.parametrize(("size", "num_gpus"), [("gpt3_1.3b", "64"), ("gpt3_350m", "8")])
def test_the_readmes_plan_is_what_the_command_shows(repository: Path, tmp_path: Path, size: str, num_gpus: str) -> None:
    settings = {"DRY_RUN": "1", "PLAN_GPUS": num_gpus, "GPUS_PER_NODE": "8"}
    ended = run(repository, tmp_path, f"{size}/pretrain_random_ltd.sh", "300B", **settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    (block,) = code_blocks(readme(repository, size), "text")
    assert block == ended.stdout.partition("\n\n")[2]


@pytest.mark.parametrize("size", SIZES)
def test_the_readmes_table_of_variants(repository: Path, size: str) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme(repository, size).splitlines()]
    found = {row[0].strip("`"): row[1:] for row in rows if row and row[0].strip("`") in VARIANTS}
    assert tuple(found) == VARIANTS
    batch = {"gpt3_1.3b": 512, "gpt3_350m": 256}[size]
    for variant, (tokens, lr, growth_steps, ltd_steps, dense_steps, raw_tokens) in found.items():
        billions = int(variant[:-1])
        growth = RECIPE[size, variant][1]
        steps = steps_until(billions * 10**9, batch, growth)
        assert (tokens, float(lr), growth_steps) == (f"{billions} B", RECIPE[size, variant][0], f"{growth:,}")
        assert (ltd_steps, dense_steps) == (f"{steps:,}", f"{steps_until(billions * 10**9, batch, None):,}")
        assert raw_tokens == f"{steps * batch * 2048 / 1e9:.1f} B"


def test_the_readmes_flags_that_may_follow_the_variant(repository: Path, tmp_path: Path) -> None:
    sentence = readme(repository, "gpt3_1.3b").partition("What follows the variant goes to")[2].partition("\n\n")[0]
    more = [word for code in re.findall(r"`(--[^`]*)`", sentence) for word in code.split()]
    assert {"--wandb-project", "--async-save", "--eval-tasks"} <= set(more)
    parse_run_config(training_command(repository, tmp_path, "gpt3_1.3b/pretrain_random_ltd.sh", "300B", *more))


def test_the_readmes_table_of_memory(repository: Path, tmp_path: Path) -> None:
    rows = re.findall(r"^\| `(MICRO_BATCH=.*)` \| (.* GiB) \|$", readme(repository, "gpt3_1.3b"), re.MULTILINE)
    assert len(rows) == 4
    for given, memory in rows:
        settings = dict(setting.split("=") for setting in given.split()) | {"DRY_RUN": "1", "PLAN_GPUS": "8"}
        ended = run(repository, tmp_path, "gpt3_1.3b/pretrain_random_ltd.sh", "300B", **settings)
        assert re.search(rf"^  in all +{re.escape(memory)} ", ended.stdout, re.MULTILINE), given


@pytest.mark.parametrize("size", SIZES)
def test_the_readmes_commands_are_there(repository: Path, size: str) -> None:
    """Scripts, the scripts that Slurm is given, settings, variants, and the tools' flags."""
    blocks = "".join(code_blocks(readme(repository, size), "bash")).replace("\\\n", " ")
    paths = re.findall(r"\b((?:examples|tools)/\S+\.(?:sh|py|sbatch))", blocks)
    assert len(paths) >= 6 and all((repository / path).is_file() for path in paths)
    for folder, script in re.findall(r"(\S+)/slurm\.sbatch ([\w.]+)", blocks):
        assert (repository / folder / script).is_file()
    for variant in re.findall(r"pretrain_\w+\.sh (\S+)", blocks):
        assert variant in VARIANTS
    shared = (repository / "examples" / name for name in (f"{size}/recipe.sh", *SHARED))
    sources = "".join(path.read_text() for path in shared)
    for name in set(re.findall(r"\b([A-Z_]{3,})=", readme(repository, size))):
        assert name in ("TINY", "DRY_RUN") or f'{name}="${{{name}:-' in sources, name
    for tool, given in re.findall(r"python (tools/\w+\.py)(.*)", blocks):
        command = [sys.executable, str(repository / tool), "--help"]
        shown = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(repository)}, capture_output=True, text=True, check=True
        ).stdout
        assert set(re.findall(r"(--[\w-]+)", given)) <= set(re.findall(r"(--[\w-]+)", shown))
