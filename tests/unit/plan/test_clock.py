"""Run lengths and learning-rate horizons in iterations, samples and tokens, against a count of every step."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.ltd.methods.base import Dense, Method, ModelFacts
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig
from megatron.ltd.plan.accounting import ModelShape
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.plan.config import OptimizerConfig, TrainingConfig
from tests.support_errors import refused

LAYERS, SEQ, BATCH = 4, 32, 8
SHAPE = ModelShape(
    num_layers=LAYERS, hidden_size=8, ffn_hidden_size=32, num_attention_heads=2, num_query_groups=2, kv_channels=4,
    gated_mlp=False, vocab_size=64, seq_length=SEQ,
)  # fmt: skip
FACTS = ModelFacts(LAYERS, SEQ, 1)
LTD = RandomLTD.build(
    RandomLTDConfig(random_ltd=True, ltd_min_kept_tokens=8, ltd_growth_steps=20, ltd_granularity=8), FACTS
)


def clock(method: Method, length: dict[str, Any], **optimizer: Any) -> RunClock:
    return RunClock.build(SHAPE, BATCH, method, TrainingConfig(**length), OptimizerConfig(lr=1e-3, **optimizer))


def counted(run: RunClock, steps: int) -> int:
    """The clock after ``steps`` steps, as the sum of their increments."""
    return sum(run.increment(run.method.plan(step), run.batch.at(step * BATCH)) for step in range(steps))


@pytest.mark.parametrize("unit", ["layer-tokens", "tokens", "samples"])
@pytest.mark.parametrize("method", [Dense(FACTS), LTD], ids=["dense", "random-LTD"])
def test_increments_add_up_to_the_plan(unit: str, method: Method) -> None:
    run = clock(method, {"train_iters": 30}, lr_clock=unit)
    for steps in (0, 1, 7, 20, 30):
        assert run.plan().clock(steps, run.unit) == counted(run, steps)
    assert run.schedule()["lr_decay_steps"] == counted(run, 30)


@pytest.mark.parametrize("unit", ["layer-tokens", "tokens"])
def test_train_tokens_end_with_the_step_that_reaches_them(unit: str) -> None:
    run = clock(LTD, {"train_tokens": 5000}, lr_clock=unit)
    steps, scale = run.plan().num_steps, LAYERS if unit == "layer-tokens" else 1
    assert counted(run, steps - 1) < 5000 * scale <= counted(run, steps)


def test_tokens_on_the_layer_token_clock_are_layer_tokens_over_layers() -> None:
    """A dense run of ``--train-tokens`` T therefore reads T raw tokens, and random-LTD takes more steps."""
    dense, ltd = (clock(method, {"train_tokens": 5120}).plan().num_steps for method in (Dense(FACTS), LTD))
    assert dense == 5120 / (SEQ * BATCH) < ltd


def test_a_run_never_exceeds_train_samples() -> None:
    assert clock(LTD, {"train_samples": 10 * BATCH + 3}).plan().num_steps == 10


@pytest.mark.parametrize("name", ["lr_decay", "lr_warmup"])
def test_a_horizon_is_the_same_in_three_units(name: str) -> None:
    """A horizon of 10 steps is the same in iterations, in samples, and in tokens of the clock."""
    expected = counted(clock(LTD, {"train_iters": 30}), 10)
    for unit, value in (("iters", 10), ("samples", 10 * BATCH), ("tokens", expected // LAYERS)):
        run = clock(LTD, {"train_iters": 30}, **{f"{name}_{unit}": value})
        assert run.schedule()[f"{name}_steps"] == expected


@pytest.mark.parametrize("ramp", [(), (2, 1, 40)])
def test_the_wsd_decay_covers_the_last_steps(ramp: tuple[int, ...]) -> None:
    """The decay covers the last 14 of 30 steps, which compute more than the first 14, in each of three units."""
    run = clock(LTD, {"train_iters": 30, "rampup_batch_size": ramp})
    plan = run.plan()
    expected = plan.layer_tokens(30) - plan.layer_tokens(16)
    assert expected > plan.layer_tokens(14)
    samples = plan.samples(30) - plan.samples(16)
    for unit, value in (("iters", 14), ("samples", samples), ("samples", samples + 1), ("tokens", expected // LAYERS)):
        flags: dict[str, Any] = {"lr_decay_style": "WSD", f"lr_wsd_decay_{unit}": value}
        scheduled = clock(LTD, {"train_iters": 30, "rampup_batch_size": ramp}, **flags).schedule()
        assert scheduled["wsd_decay_steps"] == pytest.approx(expected, abs=LAYERS - 1 if unit == "tokens" else 0)


def test_warm_up_as_a_fraction() -> None:
    schedule = clock(LTD, {"train_iters": 30}, lr_warmup_fraction=0.1).schedule()
    assert schedule["lr_warmup_steps"] == schedule["lr_decay_steps"] // 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lr_decay_iters": 5, "lr_warmup_iters": 5}, ("--lr-warmup-*", "--lr-decay-*")),
        ({"lr_warmup_tokens": 10**9}, ("--lr-warmup-*", "--lr-decay-*")),
        ({"lr_decay_samples": 3}, (0, "--lr-decay-*")),
        ({"lr_decay_style": "WSD"}, ("--lr-decay-style WSD",)),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 28, "lr_warmup_iters": 5}, ("--lr-wsd-decay-*",)),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 31}, ("--lr-wsd-decay-iters 31", 30)),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_samples": 999}, ("--lr-wsd-decay-samples 999",)),
    ],
)
def test_horizons_that_do_not_fit_are_refused(flags: dict[str, Any], message: tuple[object, ...]) -> None:
    with refused(*message):
        clock(LTD, {"train_iters": 30}, **flags).schedule()


def test_a_run_continued_with_another_method_ends_on_time() -> None:
    """After 10 dense steps the run continues with random-LTD until the clock reaches the target."""
    dense, ltd = clock(Dense(FACTS), {"train_tokens": 5120}), clock(LTD, {"train_tokens": 5120})
    consumed: Any = {"layer-tokens": counted(dense, 10), "tokens": 10 * BATCH * SEQ, "samples": 10 * BATCH}
    steps = ltd.plan(10, consumed).num_steps
    total = consumed["layer-tokens"] + counted(ltd, steps) - counted(ltd, 10)
    last = ltd.increment(LTD.plan(steps - 1), BATCH)
    assert total - last < 5120 * LAYERS <= total
    assert ltd.schedule(10, consumed)["lr_decay_steps"] == total


def test_settings_do_not_depend_on_the_units_of_the_flags() -> None:
    iters = clock(LTD, {"train_iters": 30})
    samples = clock(LTD, {"train_samples": 30 * BATCH}, lr_decay_samples=30 * BATCH)
    assert iters.settings(iters.schedule()) == samples.settings(samples.schedule())
    settings = iters.settings(iters.schedule())
    assert settings["method"] == "random_ltd" and settings["ltd_layers"] == "2-3"
    assert settings["global_batch_size"] == BATCH and settings["lr"] == 1e-3
    dense = clock(Dense(FACTS), {"train_iters": 30})
    assert dense.settings(dense.schedule())["method"] == "dense"
