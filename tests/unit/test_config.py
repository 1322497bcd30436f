"""The complete command line: rules between its parts, and what it takes from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.errors import UserError

NEEDED = ["--lr", "1e-3", "--train-iters", "10"]


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
