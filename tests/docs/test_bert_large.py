"""The BERT example as a user runs it, in its small version, in this Python environment."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.workloads import BERT, BERT_CLASSIFIER
from tests.docs.documents import code_blocks
from tests.docs.example_scripts import NEW_PYTHON, run
from tests.end_to_end.runs import metrics, snapshot

pytestmark = pytest.mark.slow

FOLDER = "bert_large"


def test_the_small_version_pretrains_and_finetunes(repository: Path, tmp_path: Path) -> None:
    def small(script: str, *words: str, **python: str) -> str:
        ended = run(repository, tmp_path, f"{FOLDER}/{script}", *words, TINY="1", GPUS_PER_NODE="0", **python)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
        return ended.stdout

    small("prepare_data.sh")
    small("pretrain.sh", "random_ltd", **NEW_PYTHON)
    printed = small("finetune.sh", "random_ltd", **NEW_PYTHON)
    out = tmp_path / "runs" / "bert-large-tiny"
    pretrained, finetuned = (metrics(out / name) for name in ("random_ltd", "random_ltd-finetuned"))
    losses = {step: line["masked_lm_loss"] for (kind, step), line in pretrained.items() if kind == "validation"}
    assert losses[max(losses)] < losses[min(losses)] < 6.5
    kept = [line["kept_tokens"] for (kind, _), line in pretrained.items() if kind == "train"]
    assert kept[0] == 16 and kept[-1] == 64
    assert "not loaded from the checkpoint: binary_head." in printed
    accuracies = {step: line["accuracy"] for (kind, step), line in finetuned.items() if kind == "validation"}
    assert accuracies[max(accuracies)] > 0.8

    assert small("prepare_data.sh").count("there already: ") == 3  # the vocabulary too
    assert "there is nothing left to do" in small("pretrain.sh", "random_ltd") + small("finetune.sh", "random_ltd")
    before = snapshot(out)
    words = ["random_ltd", "--lr", "1e-3"]
    other = run(repository, tmp_path, f"{FOLDER}/pretrain.sh", *words, TINY="1", GPUS_PER_NODE="0")
    lines = other.stderr.splitlines()
    assert (other.returncode, len(lines)) == (2, 1) and "--lr" in lines[0]
    assert snapshot(out) == before


def shown(repository: Path, folder: Path, script: str, *words: str) -> list[str]:
    """The command that the script prints with DRY_RUN=1."""
    ended = run(repository, folder, f"{FOLDER}/{script}", *words, DRY_RUN="1", GPUS_PER_NODE="0")
    assert (ended.returncode, ended.stderr) == (0, "")
    return shlex.split(ended.stdout)


def pretraining(repository: Path, folder: Path, *words: str) -> RunConfig:
    command = shown(repository, folder, "pretrain.sh", *words)
    return parse_run_config(command[command.index(str(repository / "pretrain_bert_ltd.py")) + 1 :], BERT)


@pytest.mark.parametrize("method", ["random_ltd", "dense", "token_bypass", "layer_drop"])
def test_the_commands_of_the_recipe_parse(repository: Path, tmp_path: Path, method: str) -> None:
    config = pretraining(repository, tmp_path, method, "--bf16")
    assert config.precision.bf16 and config.model.num_layers == 24
    assert [name for name, part in config.methods.items() if part.enabled] == ([method] if method != "dense" else [])
    assert config.training.train_tokens == 10**6 * 512 * 1024
    assert config.optimizer.lr_warmup_tokens == 10**4 * 512 * 1024
    assert list(tmp_path.iterdir()) == []


def test_finetuning_takes_twelve_passes(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "x\ty\n" * 99)
    command = shown(repository, tmp_path, "finetune.sh", "random_ltd", "train.tsv", "dev.tsv", "--bf16")
    flags = command[command.index(str(repository / "finetune_bert_ltd.py")) + 1 :]
    settings = flags[flags.index("--config") + 1]
    without_checkpoint = tmp_path / "settings.yaml"
    without_checkpoint.write_text(Path(settings).read_text().replace("use-checkpoint-args: true", ""))
    flags[flags.index(settings)] = str(without_checkpoint)
    config = parse_run_config(flags, BERT_CLASSIFIER)
    assert config.precision.bf16 and config.training.train_samples == 1200
    assert (config.checkpoint.load, config.checkpoint.finetune) == ("runs/bert-large/random_ltd", True)


def test_the_readmes_commands_name_existing_files(repository: Path) -> None:
    folder = repository / "examples" / FOLDER
    text = (folder / "README.md").read_text()
    commands = re.findall(rf"bash examples/{FOLDER}/(\w+\.sh)(?: (\w+))?", "".join(code_blocks(text, "bash")))
    assert {script for script, _ in commands} == {"prepare_data.sh", "pretrain.sh", "finetune.sh"}
    for script, variant in commands:
        assert (folder / script).is_file()
        assert script != "pretrain.sh" or (folder / f"{variant}.yaml").is_file()
