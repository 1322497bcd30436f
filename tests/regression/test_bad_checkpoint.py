"""Checkpoints that a run cannot go on from: another run's are refused, damaged ones are passed over; nothing is
overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.regression.runs import metrics, refusal, reseal, run_status, snapshot, tiny_flags, write_data

CONTINUED = {
    "layers": (["--num-layers", 4], ["--num-layers is 4 here and 3 in checkpoint", "--use-checkpoint-args"]),
    "width": (["--hidden-size", 32], ["--hidden-size is 32 here and 16 in checkpoint"]),
    "vocabulary": (["--vocab-size", 500], ["--vocab-size", "is 512 here and 384 in checkpoint"]),
    "seed": (["--seed", 7], ["--seed is 7 here and 1234 in checkpoint", "--finetune"]),
    "learning rate": (["--lr", 2e-3], ["--lr is 0.002 here and 0.001", "--override-opt-param-scheduler"]),
    "decay style": (["--lr-decay-style", "linear"], ["--lr-decay-style is linear here and cosine"]),
    "clock": (["--lr-clock", "samples"], ["--lr-clock is samples here and layer-tokens"]),
    "batch": (
        ["--global-batch-size", 2],
        ["--global-batch-size is 2 here and 4 in checkpoint", "iter_0000006", "--override-opt-param-scheduler"],
    ),
    "ramp": (
        ["--rampup-batch-size", 2, 2, 8],
        ["--rampup-batch-size is 2 2 8 here and not given in checkpoint", "--override-opt-param-scheduler"],
    ),
    "kept tokens": (["--ltd-min-kept-tokens", 8], ["--ltd-min-kept-tokens is 8 here and 4 in checkpoint"]),
    "growth": (["--ltd-growth-steps", 9], ["--ltd-growth-steps is 9 here and 5 in checkpoint"]),
    "schedule": (["--ltd-schedule", "shrinking"], ["--ltd-schedule is shrinking here and growing in checkpoint"]),
    "granularity": (["--ltd-granularity", 2], ["--ltd-granularity is 2 here and 4 in checkpoint"]),
    "strata": (["--ltd-strata", 2], ["--ltd-strata is 2 here and 1 in checkpoint"]),
    "layers that drop": (
        ["--ltd-layers", "1-2", "--ltd-allow-edge-layers"],
        ["--ltd-layers is 1-2 here and 2 in checkpoint"],
    ),
    "length": (["--train-iters", 8], ["the length of the run) is", "--override-opt-param-scheduler"]),
}


@pytest.mark.parametrize(("flags", "fragments"), CONTINUED.values(), ids=CONTINUED.keys())
def test_a_continued_run_agrees_with_its_checkpoint(
    flags: list[object], fragments: list[str], data: str, straight: Path
) -> None:
    before = snapshot(straight)
    line = refusal(tiny_flags(data, "--save", straight, "--load", straight, *flags))
    for fragment in fragments:
        assert fragment in line
    assert snapshot(straight) == before


def test_another_sample_length_is_another_order(data: str, trained: Path) -> None:
    flags = tiny_flags(data, "--save", trained / "rope", "--position-embedding-type", "rope")
    assert run_status([*flags, "--exit-interval", "2"])[0] == 0
    line = refusal([*flags, "--load", str(trained / "rope"), "--seq-length", "32"])
    assert "--seq-length is 32 here and 16 in checkpoint" in line


def test_other_data_are_another_order(straight: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path, "other", "dolor sit amet ")
    line = refusal(tiny_flags(other, "--load", straight, "--log-dir", tmp_path))
    assert "the training data (--data-path" in line and "--finetune" in line


def test_another_tokenizer_than_the_checkpoints(data: str, trained: Path) -> None:
    for checkpoint in trained.glob("iter_*"):
        record = json.loads((checkpoint / "run.json").read_text())
        record["identity"] = {
            name: "0123456789ab" if "tokenizer" in name else value for name, value in record["identity"].items()
        }
        (checkpoint / "run.json").write_text(json.dumps(record))
        reseal(checkpoint)
    line = refusal(tiny_flags(data, "--save", trained, "--load", trained))
    assert "fingerprint of the tokenizer (--tokenizer-type" in line and "0123456789ab in checkpoint" in line


def _flip_byte(checkpoint: Path) -> str:
    path = sorted(checkpoint.glob("*.distcp"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return f"{path.name} has changed since it was written"


def _shorten(checkpoint: Path) -> str:
    path = sorted(checkpoint.glob("*.distcp"))[-1]
    path.write_bytes(path.read_bytes()[:-3])
    return f"{path.name} has {path.stat().st_size} bytes instead of {path.stat().st_size + 3}"


def _lose_file(checkpoint: Path) -> str:
    (checkpoint / "common.pt").unlink()
    return "common.pt: No such file or directory"


def _lose_manifest(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").write_text('{"files": {"__0_0.distcp": ')
    return "manifest.json is missing or not readable"


@pytest.mark.parametrize("damage", [_flip_byte, _shorten, _lose_file, _lose_manifest])
def test_a_damaged_checkpoint_is_passed_over(
    damage: Callable[[Path], str], data: str, straight: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on from the last whole one, says so, and ends as the undamaged run did."""
    what = damage(trained / "iter_0000006")
    assert run_status(tiny_flags(data, "--save", trained, "--load", trained)) == (0, "")
    said = capsys.readouterr().out
    assert f"checkpoint {trained / 'iter_0000006'} is damaged: {what}" in said and "it is passed over" in said
    assert f"loading {trained / 'iter_0000004'}" in said
    assert metrics(trained) == metrics(straight)


def test_a_half_written_checkpoint_is_none(data: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (trained / "iter_0000006").rename(trained / "iter_0000006.partial")
    (trained / "latest_checkpointed_iteration.txt").write_text("4")
    assert run_status(tiny_flags(data, "--save", trained, "--load", trained)) == (0, "")
    assert f"loading {trained / 'iter_0000004'}" in capsys.readouterr().out
    assert [path.name for path in trained.glob("*.partial")] == []


@pytest.mark.parametrize(
    ("tracker", "complaint"), [("9", "names iteration 9, which is not there"), ("x\n", "no iteration")]
)
def test_a_wrong_tracker_is_said(
    tracker: str, complaint: str, data: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (trained / "latest_checkpointed_iteration.txt").write_text(tracker)
    assert run_status(tiny_flags(data, "--load", trained, "--log-dir", trained)) == (0, "")
    said = capsys.readouterr().out
    assert complaint in said and f"loading {trained / 'iter_0000006'}" in said


def test_no_whole_checkpoint_is_refused(data: str, trained: Path) -> None:
    """Starting anew in their place would overwrite them."""
    for checkpoint in trained.glob("iter_*"):
        _flip_byte(checkpoint)
    before = snapshot(trained)
    line = refusal(tiny_flags(data, "--save", trained, "--load", trained))
    assert f"--load {trained} holds no whole checkpoint" in line and "iter_0000002 is damaged" in line
    assert snapshot(trained) == before


@pytest.mark.parametrize("flags", [[], ["--load", "trained", "--finetune"]])
def test_a_folder_of_another_run(flags: list[str], data: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parent)
    before = snapshot(trained)
    line = refusal(tiny_flags(data, "--save", "trained", *flags))
    assert "--save trained already holds checkpoints (the last at iteration 6)" in line and "--load trained" in line
    assert snapshot(trained) == before
