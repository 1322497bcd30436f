"""The plan of the evidence: every run has valid flags, and every record belongs to a run of the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence import length_warmup
from evidence.plan import PLAN, Run, arm_flags, planned_runs, quick
from evidence.records import read_records

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.errors import UserError

DATA = ("--data-path", "none", "--tokenizer-type", "ByteTokenizer")


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return list({run.key: run for run in planned_runs(PLAN)}.values())


def test_flags_of_an_arm_scale_with_sequence_length_and_steps() -> None:
    flags = arm_flags("blocks16", 256, 900)
    assert flags[flags.index("--ltd-min-kept-tokens") + 1] == "64"
    assert flags[flags.index("--ltd-growth-steps") + 1] == "600"
    assert arm_flags("dense", 256, 900) == ()
    assert arm_flags("layer-drop", 256, 900)[-1] == "0.111111"


def test_every_run_has_valid_flags_and_a_unique_name(runs: list[Run]) -> None:
    assert len({run.name for run in runs}) == len(runs)
    for run in {(run.setting.name, run.arm): run for run in runs}.values():
        with length_warmup.installed():
            config = parse_run_config((*DATA, *run.flags))
            name = config.build_method().name
        assert config.training.train_iters == run.plan.num_steps == run.steps
        assert (name == "dense") == run.arm.startswith("dense")


def test_runs_at_equal_flops_take_the_flops_of_their_arm(runs: list[Run]) -> None:
    arms = {(run.setting.name, run.arm): run for run in runs}
    planned = [run for run in arms.values() if "@" in run.arm]
    assert {run.arm.partition("@")[0] for run in planned} == {"dense", "dense-ramp", "length-warmup"}
    for run in planned:
        arm = arms[run.setting.name, run.arm.partition("@")[2]]
        missing = arm.plan.flops(arm.steps) - run.plan.flops(run.steps)
        last_step = run.plan.flops(run.steps) - run.plan.flops(run.steps - 1)
        assert abs(missing) <= last_step / 2


def test_quick_runs_are_tiny_runs_of_every_arm(runs: list[Run]) -> None:
    toys = quick(runs)
    assert {(toy.setting.name, toy.arm) for toy in toys} == {(run.setting.name, run.arm) for run in runs}
    most = {toy.setting.name: toy.plan.flops(12) for toy in toys if toy.arm == "dense"}
    for toy in toys:
        assert toy.plan.num_steps == toy.steps and toy.plan.shape.hidden_size == 32
        assert toy.plan.flops(toy.steps) <= most[toy.setting.name]
        assert toy.plan.shape.seq_length == toy.setting.seq_length


def test_records_agree_with_the_plan_and_its_flags(runs: list[Run], repository: Path) -> None:
    """The run that a key stands for does not change, and neither do the FLOPs on which the figures are based."""
    by_key = {run.key: run for run in runs}
    records = read_records(repository / "tools/benchmark/results/evidence.jsonl")
    assert records
    for key, record in records.items():
        run = by_key[key]
        assert (record.setting, record.arm, record.lr, record.seed) == (run.setting.name, run.arm, run.lr, run.seed)
        assert record.flags == " ".join(run.flags)
        assert (record.steps, record.dense_flops) == (run.steps, run.plan.dense_flops(run.steps))
        assert record.flops == run.plan.flops(run.steps) and record.layer_tokens == run.plan.layer_tokens(run.steps)


def test_parts_and_arms_outside_the_plan_are_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("- {part: A, setting: s256, arms: [none-such], seeds: [1]}\n")
    with pytest.raises(UserError, match="--part Z: the plan has no such part; give some of A"):
        planned_runs(plan, ["Z"])
    with pytest.raises(UserError, match=r"none-such.flags: cannot be read"):
        _ = planned_runs(plan)[0].flags
