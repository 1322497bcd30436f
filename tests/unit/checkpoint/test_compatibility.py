"""Settings on which a continued run must agree with its checkpoint, and how it reports other changes.

Each setting by itself, in whole runs: end_to_end/test_bad_checkpoint and test_continue.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.checkpoint.compatibility import (
    changed_settings,
    check_identity,
    check_lengths,
    check_order,
    check_schedule,
    replaced_order,
    unused_scales,
)
from megatron.ltd.checkpoint.differences import flag_changes
from megatron.ltd.config import RunConfig
from megatron.ltd.errors import UserError
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.words import name_of
from tests.support import assert_differs
from tests.support_errors import refused

CHECKPOINT = Path("runs/iter_0000100")
STORED = {"method": "random_ltd", "ltd_growth_steps": 50, "global_batch_size": 8, "lr": 1e-3}
OVERRIDE = "--override-opt-param-scheduler"


def test_an_equal_schedule_is_accepted() -> None:
    """A tuple equals the list that it becomes in JSON."""
    ramp = {"rampup_batch_size": [2, 2, 8]}
    assert check_schedule(CHECKPOINT, STORED | ramp, STORED | {"rampup_batch_size": (2, 2, 8)}, None) is None
    assert check_schedule(CHECKPOINT, STORED, dict(STORED), OVERRIDE) is None


@pytest.mark.parametrize("neutral", [None, False, [], ()])
def test_a_missing_setting_equals_one_that_is_not_used(neutral: object) -> None:
    """The same holds for a setting that the checkpoint has and this version lacks."""
    newer = STORED | {"ltd_block_size": neutral}
    assert check_schedule(CHECKPOINT, STORED, newer, None) is None
    assert check_schedule(CHECKPOINT, newer, STORED, None) is None


@pytest.mark.parametrize(
    ("wanted", "setting", "here", "there"),
    [
        ({**STORED, "global_batch_size": 4, "lr": 2e-3}, "global_batch_size", "4", "8"),
        ({**STORED, "of_tomorrow": 1}, "of_tomorrow", "1", "not given"),
        ({"method": "dense", "global_batch_size": 4, "lr": 1e-3}, "method", "dense", "random-LTD (--random-ltd)"),
    ],
)
def test_another_schedule_is_refused_or_accepted_as_a_whole(
    wanted: dict[str, object], setting: str, here: str, there: str
) -> None:
    """The error names the first setting that differs, and the one flag that accepts all of the new settings."""
    with pytest.raises(UserError) as caught:
        check_schedule(CHECKPOINT, STORED, wanted, None)
    line = str(caught.value)
    assert_differs(line, setting, here, there)
    assert line.startswith(name_of(setting)) and str(CHECKPOINT) in line and OVERRIDE in line
    assert check_schedule(CHECKPOINT, STORED, wanted, OVERRIDE) is not None


def test_weights_and_data_of_another_workload_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        check_identity(CHECKPOINT, {"model": "bert", "num_layers": 3}, {"model": "gpt", "num_layers": 4})
    assert_differs(str(caught.value), "model", "GPT", "BERT")
    with refused(CHECKPOINT, "--finetune"):
        check_order(CHECKPOINT, {"seed": 1}, {"seed": 1, "mask_prob": 0.15})


def test_replaced_data_are_reported_and_their_classes_are_not_replaced() -> None:
    stored = {"seed": 1, "class_count": 3, "train_data_fingerprint": "aaa"}
    assert replaced_order(CHECKPOINT, stored, dict(stored)) is None
    line = replaced_order(
        CHECKPOINT, stored, stored | {"train_data_fingerprint": "bbb", "seed": 2}, {"split": ("1", "2")}
    )
    assert line is not None
    for setting, now, before in (("train_data_fingerprint", "bbb", "aaa"), ("seed", "2", "1"), ("split", "1", "2")):
        assert_differs(line, setting, now, before)
    with refused("classes", CHECKPOINT):
        replaced_order(CHECKPOINT, stored, stored | {"class_count": 4})
    with refused(CHECKPOINT, "--finetune"):
        replaced_order(CHECKPOINT, stored, {"seed": 1})


def test_only_lengths_follow_the_length_of_samples() -> None:
    """Those of other flags do not, and nothing else may differ."""
    stored = STORED | {"lr_decay_length": 100, "lr_warmup_length": 10}
    assert check_lengths(CHECKPOINT, stored, dict(stored)) is None
    longer = stored | {"lr_decay_length": 180}
    line = check_lengths(CHECKPOINT, stored, longer)
    assert line is not None
    assert_differs(line, "lr_decay_length", "180", "100")
    assert name_of("lr_warmup_length") not in line
    with refused("--lr 0.002", OVERRIDE):
        check_lengths(CHECKPOINT, stored, longer | {"lr": 2e-3})
    with refused("--train-iters 90", OVERRIDE):
        check_lengths(CHECKPOINT, stored, longer, {"train_iters": (90, 60)})


BASE = "--num-layers 3 --lr 1e-3 --random-ltd --hidden-size 8 --num-attention-heads 2 --seq-length 128".split()


def pairs(words: str) -> dict[str, str]:
    """Flags and their values."""
    return dict(zip(words.split()[::2], words.split()[1::2], strict=True))


def settings_of(config: RunConfig) -> dict[str, Any]:
    """``RunClock.settings`` of a run, as its checkpoint stores it."""
    shape = config.model.shape(128)
    clock = RunClock.build(shape, 2, config.build_method(), config.training, config.optimizer)
    return json.loads(json.dumps(clock.settings(clock.schedule())))


@pytest.mark.parametrize(
    ("before", "now", "because", "keep"),
    [
        ("--train-iters 60", "--train-iters 90", "--train-iters 90", "--ltd-growth-steps 40 --lr-decay-iters 60"),
        ("--train-iters 60 --ltd-growth-steps 30", "--train-iters 90 --ltd-growth-steps 30", "--train-iters 90",
         "--lr-decay-iters 60"),
        ("--train-samples 120 --ltd-growth-steps 30", "--train-samples 180 --ltd-growth-steps 30",
         "--train-samples 180", "--lr-decay-samples 120"),
        ("--train-tokens 7680 --ltd-growth-steps 30 --lr-clock tokens",
         "--train-tokens 15360 --ltd-growth-steps 30 --lr-clock tokens", "--train-tokens 15360",
         "--lr-decay-tokens 7680"),
        ("--train-iters 60 --ltd-growth-steps 30", "--train-iters 60 --ltd-growth-steps 20", "",
         "--ltd-growth-steps 30"),
    ],
)  # fmt: skip
def test_a_longer_run_is_told_the_flags_that_keep_its_schedule(before: str, now: str, because: str, keep: str) -> None:
    """With these flags the schedule equals the checkpoint's."""
    old, new = (parse_run_config([*BASE, *words.split(), "--global-batch-size", "2"]) for words in (before, now))
    stored, lengths = settings_of(old), flag_changes(old.to_dict(), new, ["schedule", "numbers"])
    with refused(because or "--ltd-growth-steps", keep, OVERRIDE):
        check_schedule(CHECKPOINT, stored, settings_of(new), None, old.to_dict(), lengths)
    words = pairs(now) | pairs(keep)
    kept = parse_run_config([*BASE, *(word for pair in words.items() for word in pair), "--global-batch-size", "2"])
    assert check_schedule(CHECKPOINT, stored, settings_of(kept), None) is None


def test_what_was_never_typed_is_said_with_what_was() -> None:
    stored = parse_run_config([*BASE, "--train-iters", "60", "--train-data-path", "x", "--split", "9,1,0"]).to_dict()
    for flag, now, setting in (("--seq-length", "256", "max_position_embeddings"), ("--split", "8,2,0", "train_data")):
        new = parse_run_config([*BASE, "--train-iters", "60", "--train-data-path", "x", "--split", "9,1,0", flag, now])
        changes = flag_changes(stored, new, ["model", "order"])
        then = {"--seq-length": "128", "--split": "9,1,0"}[flag]
        with refused(f"{flag} {now}", f"then {then}", CHECKPOINT):
            check_order(CHECKPOINT, {setting: 1}, {setting: 2}, changes)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("--fp8-format hybrid", "", "left out: products of layers are in bfloat16"),
        ("--fp8-format hybrid", "--fp8-format hybrid --fp8-amax-history-len 4", "another --fp8-recipe or"),
        ("--fp8-format hybrid", "--fp8-format hybrid --fp8-recipe tensorwise", "another --fp8-recipe or"),
        ("--fp8-format hybrid", "--fp8-format hybrid --weight-decay 0", None),
        ("--fp8-format hybrid --fp8-recipe tensorwise", "", None),
        ("", "--fp8-format hybrid", None),
        ("", "", None),
    ],
)
def test_scales_of_fp8_that_are_not_used(before: str, now: str, said: str | None) -> None:
    base = "--hidden-size 64 --num-attention-heads 4 --seq-length 128 --train-iters 9 --lr 1e-3 --bf16".split()
    line = unused_scales(parse_run_config([*base, *before.split()]).to_dict(), parse_run_config([*base, *now.split()]))
    assert line is None if said is None else said in str(line)
    assert unused_scales({}, parse_run_config(base)) is None


def test_free_flags_are_reported_and_the_schedules_are_not() -> None:
    base = ["--num-layers", "3", "--train-iters", "9", "--lr", "1e-3", "--random-ltd", "--ltd-growth-steps", "5"]
    base += ["--hidden-size", "8", "--num-attention-heads", "2", "--seq-length", "128"]
    stored = parse_run_config(base).to_dict()
    assert changed_settings(stored, parse_run_config(base)) is None
    more = "--lr 2e-3 --ltd-growth-steps 6 --global-batch-size 4 --weight-decay 0.5 --log-dir x --bf16".split()
    now = parse_run_config([*base, *more, "--tensor-model-parallel-size", "2", "--micro-batch-size", "2"])
    line = changed_settings(stored, now)
    assert line is not None
    for setting, here, before in (
        ("micro_batch_size", "2", "1"), ("weight_decay", "0.5", "0.01"), ("bf16", "given", "not given"),
    ):  # fmt: skip
        assert_differs(line, setting, here, before)
    assert line.count("(was ") == 3
    del stored["optimizer"]["weight_decay"]  # as in a checkpoint of a version without this flag
    line = changed_settings(stored, now)
    assert line is not None and "--weight-decay" not in line
