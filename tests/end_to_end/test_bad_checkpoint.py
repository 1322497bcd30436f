"""Checkpoints that a run cannot resume from: those of a different run are refused, and damaged ones are skipped.
Nothing is overwritten.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron.ltd.words import name_of
from tests.end_to_end.runs import metrics, refusal, reseal, run_status, snapshot, tiny_flags, write_data
from tests.support import assert_differs
from tests.support_errors import assert_names
from tests.support_pickles import Payload

WEIGHTS, ORDER, SCHEDULE = "--use-checkpoint-args", "--finetune", "--override-opt-param-scheduler"
CONTINUED = {
    "layers": (["--num-layers", 4], "num_layers", "4", "3", WEIGHTS),
    "width": (["--hidden-size", 32], "hidden_size", "32", "16", WEIGHTS),
    "vocabulary": (["--vocab-size", 500], "padded_vocab_size", "512", "384", WEIGHTS),
    "biases": (["--disable-bias-linear"], "add_bias_linear", "given", "not given", WEIGHTS),
    "seed": (["--seed", 7], "seed", "7", "1234", ORDER),
    "learning rate": (["--lr", 2e-3], "lr", "0.002", "0.001", SCHEDULE),
    "decay style": (["--lr-decay-style", "linear"], "lr_decay_style", "linear", "cosine", SCHEDULE),
    "clock": (["--lr-clock", "samples"], "lr_clock", "samples", "layer-tokens", SCHEDULE),
    "batch": (["--global-batch-size", 2], "global_batch_size", "2", "4", SCHEDULE),
    "ramp": (["--rampup-batch-size", 2, 2, 8], "rampup_batch_size", "2 2 8", "not given", SCHEDULE),
    "kept tokens": (["--ltd-min-kept-tokens", 8], "ltd_min_kept_tokens", "8", "4", SCHEDULE),
    "growth": (["--ltd-growth-steps", 9], "ltd_growth_steps", "9", "5", SCHEDULE),
    "schedule": (["--ltd-schedule", "shrinking"], "ltd_schedule", "shrinking", "growing", SCHEDULE),
    "granularity": (["--ltd-granularity", 2], "ltd_granularity", "2", "4", SCHEDULE),
    "strata": (["--ltd-strata", 2], "ltd_strata", "2", "1", SCHEDULE),
    "blocks": (["--ltd-block-size", 2], "ltd_block_size", "2", "not given", SCHEDULE),
    "layers that drop": (["--ltd-layers", "1-2", "--ltd-allow-edge-layers"], "ltd_layers", "1-2", "2", SCHEDULE),
    "length": (["--train-iters", 8], "lr_decay_length", "1360", "976", SCHEDULE),
}


@pytest.mark.parametrize(("flags", "setting", "here", "there", "fix"), CONTINUED.values(), ids=CONTINUED.keys())
def test_a_continued_run_agrees_with_its_checkpoint(
    flags: list[object], setting: str, here: str, there: str, fix: str, data: str, straight: Path
) -> None:
    before = snapshot(straight)
    line = refusal(tiny_flags(data, "--save", straight, "--load", straight, *flags))
    assert_differs(line, setting, here, there)
    assert str(straight / "iter_0000006") in line and fix in line
    assert snapshot(straight) == before


def test_a_checkpoint_of_format_1_continues_as_any_other(
    data: str, straight: Path, trained: Path, repository: Path
) -> None:
    """The run record of the checkpoint is one that an older version, which stored no ids, wrote for the same run and
    step.
    """
    shutil.rmtree(trained / "iter_0000006")
    (trained / "latest_checkpointed_iteration.txt").write_text("4")
    records = (repository / "tests" / "reference" / "run_records_format_1.jsonl").read_text().splitlines()
    record = next(line["record"] for line in map(json.loads, records) if line["name"] == "gpt")
    (trained / "iter_0000004" / "run.json").write_text(json.dumps(record))
    reseal(trained / "iter_0000004")
    flags = tiny_flags(data, "--save", trained, "--load", trained)
    line = refusal([*flags, "--untie-embeddings-and-output-weights"])
    assert_differs(line, "tied_embeddings", "given", "not given")
    line = refusal([*flags, "--ltd-growth-steps", "9"])
    assert_differs(line, "ltd_growth_steps", "9", "5")
    assert run_status(flags) == (0, "")
    assert metrics(trained) == metrics(straight)
    stored = json.loads((trained / "iter_0000006" / "run.json").read_text())
    assert stored["schedule"] == json.loads((straight / "iter_0000006" / "run.json").read_text())["schedule"]


def test_another_sequence_length_is_refused(data: str, trained: Path) -> None:
    flags = tiny_flags(data, "--save", trained / "rope", "--position-embedding-type", "rope")
    assert run_status([*flags, "--exit-interval", "2"])[0] == 0
    line = refusal([*flags, "--load", str(trained / "rope"), "--seq-length", "32"])
    assert_differs(line, "seq_length", "32", "16")


def test_other_data_are_refused(straight: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path, "other", "dolor sit amet ")
    line = refusal(tiny_flags(other, "--load", straight, "--log-dir", tmp_path))
    stored = json.loads((straight / "iter_0000006" / "run.json").read_text())["order"]
    assert name_of("train_data_fingerprint") in line and stored["train_data_fingerprint"] in line and ORDER in line


def test_another_tokenizer_is_refused(data: str, trained: Path) -> None:
    for checkpoint in trained.glob("iter_*"):
        record = json.loads((checkpoint / "run.json").read_text())
        fingerprint = record["identity"]["tokenizer_fingerprint"]
        record["identity"]["tokenizer_fingerprint"] = "0123456789ab"
        (checkpoint / "run.json").write_text(json.dumps(record))
        reseal(checkpoint)
    line = refusal(tiny_flags(data, "--save", trained, "--load", trained))
    assert_differs(line, "tokenizer_fingerprint", fingerprint, "0123456789ab")


def _flip_byte(checkpoint: Path) -> str:
    path = sorted(checkpoint.glob("*.distcp"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def _shorten(checkpoint: Path) -> str:
    path = sorted(checkpoint.glob("*.distcp"))[-1]
    path.write_bytes(path.read_bytes()[:-3])
    return path.name


def _lose_file(checkpoint: Path) -> str:
    (checkpoint / "common.pt").unlink()
    return "common.pt"


def _lose_manifest(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").write_text('{"files": {"__0_0.distcp": ')
    return "manifest.json"


@pytest.mark.parametrize("damage", [_flip_byte, _shorten, _lose_file, _lose_manifest])
def test_a_damaged_checkpoint_is_skipped(
    damage: Callable[[Path], str], data: str, straight: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run resumes from the last complete checkpoint, says so, and ends like the run without damage."""
    what = damage(trained / "iter_0000006")
    assert run_status(tiny_flags(data, "--save", trained, "--load", trained)) == (0, "")
    said = capsys.readouterr().out
    assert_names(next(line for line in said.splitlines() if str(trained / "iter_0000006") in line), what)
    assert f"loading {trained / 'iter_0000004'}" in said
    assert metrics(trained) == metrics(straight)


def test_a_partly_written_checkpoint_is_ignored(data: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "iter_0000006").rename(trained / "iter_0000006.partial")
    (trained / "latest_checkpointed_iteration.txt").write_text("4")
    assert run_status(tiny_flags(data, "--save", trained, "--load", trained)) == (0, "")
    assert f"loading {trained / 'iter_0000004'}" in capsys.readouterr().out
    assert [path.name for path in trained.glob("*.partial")] == []


@pytest.mark.parametrize(("tracker", "complaint"), [("9", "iteration 9"), ("x\n", "latest_checkpointed_iteration.txt")])
def test_a_wrong_tracker_is_reported(
    tracker: str, complaint: str, data: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (trained / "latest_checkpointed_iteration.txt").write_text(tracker)
    assert run_status(tiny_flags(data, "--load", trained, "--log-dir", trained)) == (0, "")
    said = capsys.readouterr().out
    assert complaint in said and f"loading {trained / 'iter_0000006'}" in said


def test_only_damaged_checkpoints_are_refused(data: str, trained: Path) -> None:
    """The run must not start from the beginning, because it would overwrite the damaged checkpoints."""
    for checkpoint in trained.glob("iter_*"):
        _flip_byte(checkpoint)
    before = snapshot(trained)
    line = refusal(tiny_flags(data, "--save", trained, "--load", trained))
    assert_names(line, f"--load {trained}", "iter_0000002")
    assert snapshot(trained) == before


@pytest.mark.parametrize("flags", [[], ["--load", "trained", "--finetune"]])
def test_a_folder_of_another_run(flags: list[str], data: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parent)
    before = snapshot(trained)
    line = refusal(tiny_flags(data, "--save", "trained", *flags))
    assert_names(line, "--save trained", "iteration 6", "--load trained")
    assert snapshot(trained) == before


@pytest.mark.parametrize("flags", [[], ["--finetune"]])
def test_a_checkpoint_of_older_programs_is_refused_unread(flags: list[str], data: str, tmp_path: Path) -> None:
    """Megatron-LM's former format is one pickle per rank; unpickling it would execute any code in it."""
    folder, mark = tmp_path / "old", tmp_path / "mark"
    rank = folder / "iter_0000100" / "mp_rank_00"
    rank.mkdir(parents=True)
    torch.save({"model": Payload(mark), "iteration": 100}, rank / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("100")
    assert_names(refusal(tiny_flags(data, "--load", folder, *flags)), f"--load {folder}")
    assert not mark.exists()
