"""The complete command line: rules between its parts, and that reading it imports no torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron.ltd.arguments import build_parser, parse_run_config
from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.config import PARTS, WORKLOAD_PARTS
from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag_name
from megatron.ltd.forecast.config import PlanConfig
from tests.support_processes import PATIENCE_SECONDS

NEEDED = ["--lr", "1e-3", "--train-iters", "10"]


def test_every_flag_is_spelled_once_and_explained() -> None:
    actions = build_parser()._actions
    spellings = [spelling for action in actions for spelling in action.option_strings]
    assert len(spellings) == len(set(spellings)) > 90
    assert all(action.help for action in actions)


LOCAL_FLAGS = {
    "--log-dir", "--tensorboard-dir", "--wandb-project", "--wandb-exp-name", "--no-progress", "--num-workers",
    "--num-dataset-builder-threads", "--no-mmap-bin-files", "--data-cache-path", "--wandb-entity", "--peak-tflops",
    "--mlflow-experiment", "--mlflow-run-name",
    "--profile", "--profile-step-start", "--profile-step-end", "--use-pytorch-profiler",
}  # fmt: skip
"""Flags that may differ between the processes of a run."""


def test_shared_flags_are_all_except_those_of_a_machine() -> None:
    """Ranks compare these flags at the start of a run; a difference in a missing flag would go unnoticed."""
    values = parse_run_config(NEEDED).shared_flags()
    spellings = {action.option_strings[0] for action in build_parser()._actions}  # of a pair of switches the first
    of_plans = {flag_name(PlanConfig, field.name) for field in dataclasses.fields(PlanConfig)}  # not part of a run
    assert values.keys() == spellings - {"-h", "--config"} - of_plans - LOCAL_FLAGS
    assert values["--lr"] == 1e-3 and values["--random-ltd"] is False


def test_to_dict_is_plain_and_complete() -> None:
    stored = json.loads(json.dumps(parse_run_config(NEEDED).to_dict()))
    assert stored.keys() == {*WORKLOAD_PARTS, *PARTS, "methods"}
    assert stored["optimizer"]["lr"] == 1e-3 and stored["methods"]["random_ltd"]["ltd_granularity"] == 16


@pytest.mark.parametrize(
    ("size", "processes", "samples"), [([], 3, 6), (["--global-batch-size", "12"], 3, 12)], ids=["default", "given"]
)
def test_global_batch_size(size: list[str], processes: int, samples: int) -> None:
    assert parse_run_config([*NEEDED, "--micro-batch-size", "2", *size]).global_batch_size(processes) == samples


def test_a_global_batch_must_be_a_multiple_of_all_microbatches() -> None:
    config = parse_run_config([*NEEDED, "--micro-batch-size", "2", "--global-batch-size", "10"])
    with pytest.raises(
        UserError, match=r"--global-batch-size 10 is not a multiple .* 2 x 3 data-parallel processes = 6"
    ):
        config.global_batch_size(3)


def test_full_validation_without_evaluation_is_refused() -> None:
    with pytest.raises(UserError, match="--full-validation.*--eval-iters 0"):
        parse_run_config([*NEEDED, "--full-validation", "--eval-iters", "0"])


def _stored(folder: Path, config: dict[str, dict[str, object]]) -> None:
    checkpoint = checkpoint_files.start_partial(folder, 5)
    (checkpoint / ".metadata").write_bytes(b"")
    checkpoint_files.write_run(
        checkpoint, {name: {} for name in ("progress", "schedule", "identity", "order")} | {"config": config}
    )
    names = checkpoint_files.file_names(checkpoint)
    checkpoint_files.write_manifest(checkpoint, checkpoint_files.checksums(checkpoint, names))
    checkpoint_files.publish(checkpoint, 5)


def test_use_checkpoint_args(tmp_path: Path) -> None:
    """Only the model's shape and the tokenizer come from the checkpoint, and a typed flag overrides them."""
    _stored(tmp_path, {
        "model": {"num_layers": 7, "hidden_size": 48, "num_attention_heads": 3},
        "tokenizer": {"tokenizer_type": "ByteTokenizer"},
        "optimizer": {"weight_decay": 0.7},
    })  # fmt: skip
    flags = [*NEEDED, "--load", str(tmp_path), "--use-checkpoint-args", "--num-layers", "5"]
    config = parse_run_config(flags)
    assert (config.model.num_layers, config.model.hidden_size, config.model.num_attention_heads) == (5, 48, 3)
    assert config.tokenizer.tokenizer_type == "ByteTokenizer" and config.optimizer.weight_decay == 0.01
    _stored(tmp_path / "images", {"model": {"num_layers": 3}})  # of a workload without text
    flags = [*NEEDED, "--load", str(tmp_path / "images"), "--use-checkpoint-args"]
    assert parse_run_config(flags).model.num_layers == 3
    with pytest.raises(UserError, match="--load .*--use-checkpoint-args"):
        parse_run_config([*NEEDED, "--load", str(tmp_path / "other"), "--use-checkpoint-args"])


def test_a_run_prefers_its_own_checkpoint_to_the_pretrained_one(tmp_path: Path) -> None:
    pretrained, own = str(tmp_path / "pretrained"), str(tmp_path / "own")
    flags = [*NEEDED, "--save", own, "--load", own, "--pretrained-checkpoint", pretrained]
    config = parse_run_config(flags).checkpoint
    assert (config.load, config.finetune) == (pretrained, True)
    _stored(tmp_path / "own", {"model": {}})
    config = parse_run_config(flags).checkpoint
    assert (config.load, config.finetune) == (own, False)
    for wrong, said in (([*flags, "--finetune"], "with --finetune"), ([*NEEDED, *flags[-2:]], "without --load")):
        with pytest.raises(UserError, match=f"--pretrained-checkpoint {pretrained}: it is given {said}; give"):
            parse_run_config(wrong)


def test_reading_the_command_line_imports_no_torch(repository: Path) -> None:
    """This makes --help and errors of mistyped flags fast."""
    code = (
        "import sys\n"
        "from megatron.ltd.arguments import parse_run_config\n"
        f"parse_run_config({NEEDED!r})\n"
        "heavy = {'torch', 'megatron.core', 'transformers', 'sentencepiece'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert ended.returncode == 0, ended.stderr
