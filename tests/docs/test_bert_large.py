"""The BERT example as a user runs it, in its small version, on this interpreter's environment."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.tasks import BERT, BERT_CLASSIFIER
from tests.docs.documents import code_blocks
from tests.end_to_end.runs import metrics, snapshot
from tests.support_processes import PATIENCE_SECONDS

pytestmark = pytest.mark.slow

FOLDER = Path("examples") / "bert_large"


def run(repository: Path, cwd: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The script in a plain user's environment, with few threads, and this environment in place of one set up."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "LANG")}
    return subprocess.run(
        ["bash", str(repository / FOLDER / "run.sh"), *arguments],
        env={**kept, "OMP_NUM_THREADS": "1", "VENV": sys.prefix, "GPUS_PER_NODE": "0", **settings},
        cwd=cwd, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def test_the_small_version_pretrains_and_finetunes(repository: Path, tmp_path: Path) -> None:
    ended = run(repository, tmp_path, TINY="1", OUT="out")
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    pretrained, finetuned = (metrics(tmp_path / "out" / name) for name in ("pretrained", "finetuned"))
    losses = {step: line["masked_lm_loss"] for (kind, step), line in pretrained.items() if kind == "validation"}
    assert losses[max(losses)] < losses[min(losses)] < 6.5
    kept = [line["kept_tokens"] for (kind, _), line in pretrained.items() if kind == "train"]
    assert kept[0] == 16 and kept[-1] == 64
    assert "not loaded from the checkpoint: binary_head." in ended.stdout
    accuracies = {step: line["accuracy"] for (kind, step), line in finetuned.items() if kind == "validation"}
    assert accuracies[max(accuracies)] > 0.8

    again = run(repository, tmp_path, TINY="1", OUT="out")
    assert again.returncode == 0 and again.stdout.count("nothing is left to do") == 2
    before = snapshot(tmp_path / "out")
    other = run(repository, tmp_path, TINY="1", OUT="out", LR="1e-3")
    assert other.returncode == 2 and "was made with other settings" in other.stderr
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize("method", ["random-ltd", "dense", "token-bypass", "layer-drop"])
def test_the_commands_of_the_recipe_are_read(repository: Path, tmp_path: Path, method: str) -> None:
    files = {name: tmp_path / f"{name}.tsv" for name in ("TEXT", "VALID_TEXT", "VOCAB_FILE", "TRAIN", "DEV")}
    for file in files.values():
        file.write_text("text\tlabel\n" + "x\ty\n" * 99)
    settings = {name: str(file) for name, file in files.items()}
    ended = run(repository, tmp_path, "--bf16", STAGE="all", METHOD=method, DRY_RUN="1", OUT="out", **settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not (tmp_path / "out").exists()
    commands = [shlex.split(line) for line in ended.stdout.splitlines()]
    for command, script, task in zip(
        commands, ("pretrain_bert_ltd.py", "finetune_bert_ltd.py"), (BERT, BERT_CLASSIFIER), strict=True
    ):
        place = next(number for number, word in enumerate(command) if word.endswith(script))
        config = parse_run_config(command[place + 1 :], task)
        assert config.precision.bf16 and config.model.num_layers == 24
        config.build_method()
    pretraining = parse_run_config(commands[0][place + 1 :], BERT)
    assert pretraining.training.train_tokens == 10**6 * 512 * 1024
    assert commands[1][commands[1].index("--train-samples") + 1] == "1200"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"STAGE": "train"}, "STAGE is 'train': give prepare, pretrain, finetune or all"),
        ({"METHOD": "ltd"}, "METHOD is 'ltd': give random-ltd, token-bypass, layer-drop or dense"),
        ({}, "VOCAB_FILE is '', which is no file: name a WordPiece vocabulary (vocab.txt), or set TINY=1"),
    ],
)
def test_settings_that_cannot_be(repository: Path, tmp_path: Path, settings: dict[str, str], line: str) -> None:
    ended = run(repository, tmp_path, OUT="out", **settings)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"run.sh: error: {line}\n")
    assert not (tmp_path / "out").exists()


def test_the_readmes_commands_are_the_scripts(repository: Path) -> None:
    (block,) = code_blocks((repository / FOLDER / "README.md").read_text(), "bash")
    script = (repository / FOLDER / "run.sh").read_text()
    for word in shlex.split(block, comments=True):
        name, equals, _ = word.partition("=")
        assert not equals or f'{name}="${{{name}' in script
