"""Settings files: a run writes its settings to ``config.yaml``, which reproduces it; every command reads them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.errors import UserError
from megatron.ltd.flags import field_id
from tests.end_to_end.runs import TINY, metrics, refusal, run_status, tiny_flags, write_data


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a finished run, and its flags."""
    folder = tmp_path_factory.mktemp("first")
    data = write_data(folder)
    flags = tiny_flags(data, "--save", folder / "run", "--load", folder / "run", "--save-interval", 3, "--no-progress")
    assert run_status(flags) == (0, "")
    return folder / "run", flags


def test_the_file_of_a_run_reproduces_the_run(first: tuple[Path, list[str]], tmp_path: Path) -> None:
    """The losses are bit-equal; flags on the command line replace the folder."""
    folder, _ = first
    again = [
        "--config",
        str(folder / "config.yaml"),
        "--save",
        str(tmp_path / "again"),
        "--load",
        str(tmp_path / "again"),
    ]
    assert run_status(again) == (0, "")
    assert metrics(tmp_path / "again") == metrics(folder)
    assert len(metrics(folder)) == 8


def test_the_file_of_a_run_contains_its_settings(first: tuple[Path, list[str]]) -> None:
    """The file sets exactly the flags that were given, and running from it does not change it."""
    folder, flags = first
    text = (folder / "config.yaml").read_text()
    config, read = parse_run_config(flags), parse_run_config(["--config", str(folder / "config.yaml")])
    assert dataclasses.replace(config, typed=()) == dataclasses.replace(read, typed=())
    assert read.settings_file() == text
    given = {word.removeprefix("--") for word in flags if word.startswith("--")}
    assert yaml.safe_load(text).keys() == given
    assert "# weight-decay: 0.01" in text.splitlines() and "no-progress: true" in text.splitlines()
    assert {field_id(name) for name in given} - config.given.keys() == {"no_progress"}


def test_a_run_continues_from_its_own_file(first: tuple[Path, list[str]]) -> None:
    folder, _ = first
    text = (folder / "config.yaml").read_text()
    assert run_status(["--config", str(folder / "config.yaml"), "--save-interval", "2"]) == (0, "")
    assert len(metrics(folder)) == 8
    assert (folder / "config.yaml").read_text() == text.replace("save-interval: 3", "save-interval: 2")


def test_a_setting_in_a_file_counts_as_given(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("train-iters: 5\nsave-interval: 3\n")
    flags = ["--config", str(file), "--lr", "1e-3"]
    assert refusal(flags) == (
        f"--save-interval 3: it needs --save; give the folder to save in (--save-interval is set in {file}:2)"
    )
    file.write_text("train-iters: 5\n")
    with pytest.raises(
        UserError, match="--train-iters 5 and --train-samples 40|--train-samples 40 and --train-iters 5"
    ):
        parse_run_config([*flags, "--train-samples", "40"])


@pytest.mark.parametrize(
    ("question", "name"),
    [(["--plan-gpu-hours", "5"], "train-iters"), (["--plan-target-saving", "0.2"], "ltd-growth-steps")],
)
def test_planning_may_replace_only_settings_of_files(tmp_path: Path, question: list[str], name: str) -> None:
    file = tmp_path / "settings.yaml"
    words = {"train-iters": "6", "ltd-growth-steps": "5"}
    file.write_text(f"{name}: {words[name]}\n")
    place = TINY.index(f"--{name}")
    others = [*TINY[:place], *TINY[place + 2 :]]
    speed = ["--plan", "--plan-step-seconds", "1", *question]
    config = parse_run_config([*others, "--config", str(file), *speed])
    assert (
        config.training.train_iters if name == "train-iters" else config.methods["random_ltd"].ltd_growth_steps
    ) == 1
    with pytest.raises(UserError, match=f"--{name} {words[name]} gives one; keep one"):
        parse_run_config([*others, "--config", str(file), f"--{name}", words[name], *speed])


@pytest.mark.parametrize(
    "command",
    [
        "pretrain_gpt_ltd.py", "pretrain_bert_ltd.py", "finetune_bert_ltd.py", "finetune_vit_ltd.py",
        "tools/evaluate.py", "tools/generate_text.py", "tools/export_hf.py", "tools/preprocess_data.py",
    ],
)  # fmt: skip
def test_every_command_reads_files(repository: Path, tmp_path: Path, command: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("here:\n  no-such-setting: 1\n")
    ended = subprocess.run(
        [sys.executable, str(repository / command), "--config", str(file)],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    name = Path(command).name
    where = f"{name}: error: {file}:2: no-such-setting: there is no such setting; --help lists the flags\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", where)
