"""Schedule flags of both methods that drop tokens: the schedules they build, and combinations that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron.ltd.methods.base import Method, ModelFacts
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig
from megatron.ltd.methods.token_bypass.method import TokenBypass, TokenBypassConfig
from tests.support_errors import refused

FACTS = ModelFacts(num_layers=4, seq_length=32, seed=1)
Build = Callable[..., Method]


def random_ltd(facts: ModelFacts = FACTS, **flags: Any) -> RandomLTD:
    named = {f"ltd_{'min_' * (name == 'kept_tokens')}{name}": value for name, value in flags.items()}
    return RandomLTD.build(RandomLTDConfig(random_ltd=True, **{"ltd_granularity": 8, **named}), facts)


def token_bypass(facts: ModelFacts = FACTS, **flags: Any) -> TokenBypass:
    named = {f"token_bypass_{name}": value for name, value in flags.items()}
    return TokenBypass.build(TokenBypassConfig(token_bypass=True, **{"token_bypass_granularity": 8, **named}), facts)


BOTH = pytest.mark.parametrize("build", [random_ltd, token_bypass])


def kept(method: Method, num_steps: int) -> list[int]:
    return [method.plan(step).min_kept_tokens for step in range(num_steps)]


@BOTH
def test_each_schedule_is_planned(build: Build) -> None:
    assert kept(build(schedule="growing", kept_tokens=8, growth_steps=3), 5) == [8, 16, 24, 32, 32]
    assert kept(build(schedule="shrinking", kept_tokens=8, growth_steps=3), 5) == [32, 24, 16, 8, 8]
    assert kept(build(schedule="constant", kept_tokens=11), 3) == [11, 11, 11]
    staged = build(schedule="staged", stages=("0:16", "2:8", "3:32"))
    assert kept(staged, 5) == [16, 16, 8, 32, 32]
    assert [(first, steps) for first, steps, _ in staged.stages(5)] == [(0, 2), (2, 1), (3, 2)]


@BOTH
def test_stages_can_be_one_quoted_argument(build: Build) -> None:
    listed = build(schedule="staged", stages=("0:16", "2:8"))
    quoted = build(schedule="staged", stages=(" 0:16  2:8",))
    assert listed.settings == quoted.settings and kept(listed, 4) == kept(quoted, 4)


def test_settings_tell_schedules_apart() -> None:
    """Different schedules have different settings, and a flag that the schedule does not use does not change them."""
    runs = [
        random_ltd(kept_tokens=8, growth_steps=3),
        random_ltd(schedule="shrinking", kept_tokens=8, growth_steps=3),
        random_ltd(schedule="constant", kept_tokens=8),
        random_ltd(schedule="staged", stages=("0:8",)),
        random_ltd(schedule="staged", stages=("0:8", "4:16")),
    ]
    settings = [dict(run.settings) for run in runs]
    assert all(one != other for i, one in enumerate(settings) for other in settings[:i])
    assert settings[2] == random_ltd(schedule="constant", kept_tokens=8, granularity=4).settings
    assert settings[0] == {
        "method": "random_ltd", "ltd_schedule": "growing", "ltd_min_kept_tokens": 8, "ltd_growth_steps": 3,
        "ltd_granularity": 8, "ltd_stages": None, "ltd_strata": 1, "ltd_layers": "2-3", "ltd_block_size": None,
    }  # fmt: skip
    assert random_ltd(kept_tokens=8, growth_steps=3, block_size=4).settings == {**settings[0], "ltd_block_size": 4}


def test_defaults_are_the_advice() -> None:
    """random-LTD starts from a quarter of the sequence, TokenBypass from half; both grow over two thirds of the run."""
    facts = ModelFacts(4, 256, 1, num_steps=90)
    for build, prefix, fewest in ((random_ltd, "ltd_min", 64), (token_bypass, "token_bypass", 128)):
        settings = build(facts, schedule="growing").settings
        name = f"{prefix.removesuffix('_min')}_growth_steps"
        assert (settings[f"{prefix}_kept_tokens"], settings[name]) == (fewest, 60)
    assert kept(random_ltd(ModelFacts(4, 70, 1), growth_steps=9), 10)[::9] == [16, 70]  # 17 is no multiple of 8
    assert kept(token_bypass(ModelFacts(4, 70, 1)), 1) == [35]


REFUSED: list[tuple[Build, dict[str, Any], tuple[object, ...]]] = [
    (random_ltd, {"growth_steps": 3, "stages": ("0:8",)}, ("--ltd-stages 0:8", "--ltd-schedule growing")),
    (random_ltd, {"schedule": "constant", "growth_steps": 3}, ("--ltd-growth-steps 3",)),
    (random_ltd, {"schedule": "staged", "stages": ("0:8",), "kept_tokens": 8},
     ("--ltd-min-kept-tokens 8", "--ltd-schedule")),
    (random_ltd, {"schedule": "shrinking"}, ("--ltd-growth-steps",)),
    (random_ltd, {"schedule": "shrinking", "growth_steps": 0}, ("--ltd-growth-steps 0",)),
    (random_ltd, {"schedule": "staged"}, ("--ltd-stages", "0:128", "1000:256")),
    (random_ltd, {"schedule": "staged", "stages": ("0-8",)}, ("--ltd-stages", "0-8", "1000:256")),
    (random_ltd, {"schedule": "staged", "stages": ("0:8", "-3:8")}, ("-3:8",)),
    (random_ltd, {"growth_steps": -1}, ("--ltd-growth-steps -1", 0)),
    (random_ltd, {"growth_steps": 3, "kept_tokens": 0}, ("--ltd-min-kept-tokens 0", 1)),
    (random_ltd, {"growth_steps": 3, "kept_tokens": 40}, ("--ltd-min-kept-tokens 40", "--seq-length 32")),
    (random_ltd, {"growth_steps": 3, "granularity": 0}, ("--ltd-granularity 0", 1)),
    (random_ltd, {"growth_steps": 3, "kept_tokens": 12}, ("--ltd-min-kept-tokens 12", "--ltd-granularity 8")),
    (random_ltd, {"growth_steps": 3, "strata": 0}, ("--ltd-strata 0", 1)),
    (random_ltd, {"growth_steps": 3, "strata": 3}, ("--ltd-strata 3", "--seq-length 32")),
    (random_ltd, {"schedule": "constant", "kept_tokens": 12, "strata": 8},
     ("--ltd-strata 8", "--seq-length 32", "--ltd-min-kept-tokens 12")),
    (random_ltd, {"schedule": "staged", "stages": ("0:8",), "strata": 16},
     ("--ltd-strata 16", "--seq-length 32", "--ltd-granularity 8")),
    (random_ltd, {"growth_steps": 3, "block_size": 0}, ("--ltd-block-size 0", 1)),
    (random_ltd, {"growth_steps": 3, "block_size": 5}, ("--ltd-block-size 5", "--seq-length 32", 4, 8)),
    (random_ltd, {"growth_steps": 3, "block_size": 64}, ("--ltd-block-size 64", 32)),
    (random_ltd, {"growth_steps": 3, "granularity": 4, "block_size": 8},
     ("--ltd-granularity 4", "--ltd-block-size 8", 8)),
    (random_ltd, {"schedule": "constant", "kept_tokens": 20, "block_size": 8},
     ("--ltd-min-kept-tokens 20", "--ltd-block-size 8", 16, 24)),
    (random_ltd, {"growth_steps": 3, "block_size": 4, "strata": 4},
     ("--ltd-block-size 4", "--ltd-strata 4", 16, "--seq-length 32", "--ltd-granularity 8")),
    (token_bypass, {"block_size": 4}, ("--token-bypass-block-size 4", "--token-bypass-selector random")),
    (token_bypass, {"schedule": "growing"}, ("--token-bypass-growth-steps",)),
    (token_bypass, {"schedule": "staged", "stages": ("0:12",)},
     ("--token-bypass-stages 0:12", "--token-bypass-granularity 8")),
]  # fmt: skip


@pytest.mark.parametrize(("build", "flags", "line"), REFUSED)
def test_flags_that_disagree_are_refused(build: Build, flags: dict[str, Any], line: tuple[object, ...]) -> None:
    with refused(*line):
        build(**flags)
